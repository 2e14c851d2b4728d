/* SPDX-License-Identifier: MIT */
/* A socket that is connected to the server in an NBD address, for somebody who may not make one: libnbd takes it from there. */
#ifndef PAGURUS_NBD_DIAL_H
#define PAGURUS_NBD_DIAL_H

#include "common/error.h"

/*
 * The socket, non-blocking and close-on-exec. Waits, ten seconds at most beside looking up the host's name; any thread. -EINVAL: not an address of a
 * server (block_nbd.h); -EOPNOTSUPP: it is to have TLS; -ETIMEDOUT, -ECONNREFUSED and the like.
 */
int nbd_dial(const char *uri, int *out, struct pgr_error *err);

/* A network that goes away is noticed, also when nothing is to be sent. On other sockets it means nothing. */
void nbd_dial_keepalive(int fd);

#endif
