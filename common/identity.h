/* SPDX-License-Identifier: MIT */
/* Who a host is to other hosts, and whom it trusts: what TLS between them goes by. Any thread. */
#ifndef PAGURUS_IDENTITY_H
#define PAGURUS_IDENTITY_H

#include <stdbool.h>

#include "common/error.h"

struct tls_identity; /* a key, its certificate and the certificates that are trusted; immutable, shared by threads */

/*
 * DIR holds key.pem (0600), cert.pem and trusted/NAME.pem. A peer is accepted only when its certificate is byte for byte one
 * of the trusted ones, is within its validity and proves its key. -ENOENT: not initialised (says `pagurus host init`).
 */
int tls_identity_load(const char *dir, struct tls_identity **out, struct pgr_error *err);
void tls_identity_free(struct tls_identity *id);

/* Make a P-256 key and a self-signed certificate (10 years, CN=name) in DIR (0700). -EEXIST: there, unless force. */
int tls_identity_create(const char *dir, const char *name, bool force, struct pgr_error *err);
/* Check a PEM certificate text (one, within validity, P-256 or better) and store it as trusted/NAME.pem, atomically. */
int tls_identity_trust(const char *dir, const char *name, const char *pem, struct pgr_error *err);
/* "SHA256:AA:BB..." of a PEM text, for people to compare. */
int tls_fingerprint(const char *pem, char out[128], struct pgr_error *err);

#endif
