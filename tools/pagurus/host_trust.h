/* SPDX-License-Identifier: MIT */
/* Exchanging certificates with another host, by file or over ssh. */
#ifndef PAGURUS_HOST_TRUST_H
#define PAGURUS_HOST_TRUST_H

#include "common/error.h"
#include "tools/pagurus/paths.h"

struct host_trust {
	struct paths paths;
	const char *name;	 /* of the other host, checked by units_name_ok() */
	const char *file;	 /* its certificate, "-" standard input; NULL: over ssh */
	const char *ssh;	 /* where ssh reaches it; NULL: root@name */
	const char *address;	 /* where its daemon is; NULL: name */
	const char *our_address; /* where it finds ours; NULL: our name */
};

/* Does it and says on standard output what was done, with both fingerprints. Idempotent. */
int host_trust_run(const struct host_trust *t, struct pgr_error *err);

/* CONFIG/cert.pem as text, malloc'd. -ENOENT says `pagurus host init`. */
int host_own_certificate(const char *config, char **pem, struct pgr_error *err);
/* A small text file. -EFBIG beyond 64 KiB. */
int host_read_pem(const char *path, char **pem, struct pgr_error *err);

#endif
