/* SPDX-License-Identifier: MIT */
/* A socket that is connected to the server in an NBD address, for somebody who may not make one: libnbd takes it from there. */
#ifndef PAGURUS_NBD_DIAL_H
#define PAGURUS_NBD_DIAL_H

#include "storage/nbd_address.h"

/*
 * The socket, non-blocking and close-on-exec. Waits, ten seconds at most for each address of the host beside looking up its name; any thread. -EINVAL: not an
 * address of a server (nbd_address.h); -EOPNOTSUPP: it is to have TLS; -ETIMEDOUT, -ECONNREFUSED and the like.
 */
int nbd_dial(const char *uri, int *out, struct pgr_error *err);
/* The same to an address that was taken apart, whatever is to be spoken there; uri is for messages. */
int nbd_dial_address(const struct nbd_address *a, const char *uri, int *out, struct pgr_error *err);

/* A network that goes away is noticed, also when nothing is to be sent. On other sockets it means nothing. */
void nbd_dial_keepalive(int fd);

#endif
