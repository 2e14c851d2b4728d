/* SPDX-License-Identifier: MIT */
/*
 * The address of a disk on an NBD server, taken apart (doc/uri.md of https://github.com/NetworkBlockDevice/nbd):
 *
 *   nbd://HOST[:PORT]/EXPORT    nbd+unix:///EXPORT?socket=PATH    and with TLS nbds:// and nbds+unix://[HOST]/
 *
 * With TLS the host is the name that the server's certificate has to be trusted under. Parameters that are not named here mean nothing. Any thread.
 */
#ifndef PAGURUS_NBD_ADDRESS_H
#define PAGURUS_NBD_ADDRESS_H

#include <stdbool.h>
#include <sys/un.h>

#include "common/error.h"
#include "storage/nbd_proto.h"

#define NBD_HOST_MAX 255u

struct nbd_address {
	bool tls;
	char host[NBD_HOST_MAX +
		  1]; /* of an IPv6 address without brackets; "": none was said, at a Unix socket */
	char port[6]; /* decimal, 1 to 65535 */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* of a Unix socket; "": by TCP */
	char export[NBD_NAME_MAX + 1];				/* "": the server's default */
};

/* Whether a disk's name begins as such an address does. */
bool nbd_address_is(const char *name);

/* Whether it is to have TLS with this host's identity: with tls-certificates= or tls-psk-file= in it, it brings its own. */
bool nbd_address_takes_identity(const char *name);

/* -EINVAL: it is none, has a user's name, or a part of it is too long. */
int nbd_address_parse(const char *uri, struct nbd_address *out, struct pgr_error *err);

#endif
