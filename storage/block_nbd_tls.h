/* SPDX-License-Identifier: MIT */
/* This host's key and certificates as libnbd wants them: a folder with ca-cert.pem, client-cert.pem and client-key.pem. */
#ifndef PAGURUS_BLOCK_NBD_TLS_H
#define PAGURUS_BLOCK_NBD_TLS_H

#include "common/error.h"

struct nbd_tls_folder {
	char path[64]; /* "": none is needed */
};

/*
 * A folder of our own for as long as a connection is made: all that identity/trusted/ has as one ca-cert.pem, and links to key.pem and cert.pem. None for
 * an address without TLS or with certificates of its own, and for identity NULL. -ENOENT: the host has no identity, or trusts nobody. Any thread.
 */
int nbd_tls_folder_make(struct nbd_tls_folder *f, const char *uri, const char *identity,
			struct pgr_error *err);
void nbd_tls_folder_remove(struct nbd_tls_folder *f);

#endif
