/* SPDX-License-Identifier: MIT */
/*
 * An NBD server over block.h: disks for whoever speaks the protocol (nbd-client, libnbd, QEMU, `pagurus disk mirror`).
 *
 * Fixed newstyle handshake; one loop for everything, a fiber and no thread for each connection. What a connection may cost is bounded (nbd_internal.h);
 * who reads slowly, or sends nonsense, waits or is cut off, and the others do not notice. All connections to an export share its struct block, whose
 * flush covers what was done through any of them: so the server says that several connections at once are safe (NBD_FLAG_CAN_MULTI_CONN).
 *
 * With an identity (common/identity.h) nothing works without TLS, and only certificates that are trusted come in.
 *
 * The loop's thread. The process ignores SIGPIPE.
 */
#ifndef PAGURUS_NBD_SERVER_H
#define PAGURUS_NBD_SERVER_H

#include "common/identity.h"
#include "storage/block.h"
#include "storage/dirty.h"

struct nbd_server;

#define NBD_CONNECTIONS	 64u /* the default of max_connections */
#define NBD_HANDSHAKE_MS 20000u
#define NBD_GOODBYE_MS	 10000u /* what answers have at the end to reach their client */

struct nbd_options {
	const struct tls_identity *identity; /* NULL: no TLS */
	unsigned max_connections;	     /* 0: NBD_CONNECTIONS; who comes later waits */
	unsigned handshake_ms;		     /* 0: NBD_HANDSHAKE_MS */
	/* One line about something that happened: who came, who was refused and why. NULL: nobody listens. */
	void (*log)(void *ctx, const char *text);
	void *log_ctx;
};

/* o may be NULL. -ENOMEM. */
int nbd_server_create(struct loop *l, const struct nbd_options *o, struct nbd_server **out,
		      struct pgr_error *err);
/*
 * Waiting. Listens no more, finishes the requests that were received, sends their answers and closes everything. The disks are the caller's to flush and
 * close. NULL is allowed.
 */
void nbd_server_free(struct nbd_server *s);

struct nbd_export {
	const char *name;	   /* copied */
	const char *description;   /* copied; NULL: none */
	struct block *disk;	   /* the caller's, until nbd_server_free() has come back */
	bool read_only;		   /* also when the disk is */
	const struct dirty *dirty; /* shown as a context; NULL: none */
	const char *dirty_name;	   /* of that context, copied; NULL: pagurus:dirty */
};

/* -EEXIST, -EINVAL (the name), -ENOMEM. A client that says no name gets the only export there is. */
int nbd_server_export(struct nbd_server *s, const struct nbd_export *e, struct pgr_error *err);

/* fd listens; it becomes the server's, also on failure. */
int nbd_server_listen(struct nbd_server *s, int fd, struct pgr_error *err);
/* fd is a connected socket; it becomes the server's. */
int nbd_server_accept(struct nbd_server *s, int fd, struct pgr_error *err);
/* How many there are. */
unsigned nbd_server_connections(const struct nbd_server *s);

/*
 * Sockets to listen at, for nbd_server_listen(). path: a Unix socket, 0600; one that nobody listens at any more is replaced. address: numeric or a
 * name, NULL for loopback; port 0: any, *port says which.
 */
int nbd_listen_unix(const char *path, int *fd, struct pgr_error *err);
int nbd_listen_tcp(const char *address, uint16_t *port, int *fd, struct pgr_error *err);

#endif
