/* SPDX-License-Identifier: MIT */
/*
 * What is inside a struct tls_identity, and the certificates it is made of. Internal to tls_identity.c, to what speaks TLS, and to tests.
 */
#ifndef PAGURUS_TLS_IDENTITY_H
#define PAGURUS_TLS_IDENTITY_H

#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <time.h>

#include "common/identity.h"

#define TLS_FINGERPRINT_SIZE 128u
#define TLS_NAME_MAX	     64u /* of a host: what fits in a common name (RFC 5280, ub-common-name) */

struct tls_trusted {
	char name[TLS_NAME_MAX + 1];
	X509 *cert;
	unsigned char *der; /* OPENSSL_free */
	int der_length;
};

/* A key, its certificate and those that are trusted. Immutable after tls_identity_load(). */
struct tls_identity {
	SSL_CTX *ctx; /* TLS 1.3 only, with key and certificate; verifies by struct tls_check */
	X509 *cert;
	char name[TLS_NAME_MAX + 1]; /* this host's common name */
	char fingerprint[TLS_FINGERPRINT_SIZE];
	struct tls_trusted *trusted;
	size_t nr_trusted;
};

enum tls_refusal { REFUSED_NOT, REFUSED_UNKNOWN, REFUSED_EXPIRED, REFUSED_EARLY, REFUSED_NAME };

/*
 * The question whether a connection's peer is the right one, and the answer. It is the application data (SSL_set_app_data) of the
 * SSL during the handshake; without it every peer is refused. found and refusal are the answer.
 */
struct tls_check {
	const struct tls_identity *id;
	const char *expect; /* name of the trusted certificate that it must be, NULL: any */
	const struct tls_trusted *found;
	enum tls_refusal refusal;
	char name[TLS_NAME_MAX + 1]; /* of the certificate that came */
	char fingerprint[TLS_FINGERPRINT_SIZE];
};

/*
 * common/tls_handshake.c: a sentence that begins with the peer's name, and its code. The first: this side refused the peer's certificate, as k says. The second: why
 * OpenSSL's last call of this thread failed in a handshake, of either side's doing; empties its queue.
 */
int tls_fail_refused(const char *peer, const struct tls_check *k, struct pgr_error *err);
int tls_fail_handshake(const char *peer, const struct tls_check *k, struct pgr_error *err);

/* The ciphers that are offered, for labels: "AES-256-GCM" of "TLS_AES_256_GCM_SHA384"; others unchanged. */
const char *tls_cipher_label(const char *name);

/* A self-signed certificate for key, valid from..until. 0 or -ENOMEM; X509_free(*out). */
int tls_certificate_make(EVP_PKEY *key, const char *cn, time_t from, time_t until, X509 **out);
/* "SHA256:AA:BB..." of cert. */
void tls_certificate_fingerprint(const X509 *cert, char out[TLS_FINGERPRINT_SIZE]);
/* The common name, cut and with '?' for what is not printable ASCII. */
void tls_certificate_name(const X509 *cert, char out[TLS_NAME_MAX + 1]);
/* 0 in its validity, -EKEYEXPIRED after it, -EAGAIN before it. */
int tls_certificate_validity(const X509 *cert);
/* Why OpenSSL's last call of this thread failed, for messages; empties its queue. Static text. */
const char *tls_reason(void);

#endif
