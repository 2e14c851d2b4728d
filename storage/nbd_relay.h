/* SPDX-License-Identifier: MIT */
/*
 * Between a client of an NBD server that knows nothing of TLS, and the server's connection with it (nbd_starttls.h): the client is greeted as the server greeted, and
 * then bytes are passed on, both ways, until either side has ended.
 *
 *	client ◀── a socket ──▶ relay ◀── TLS ──▶ server
 *
 * One buffer of NBD_RELAY_BUFFER bytes for each way; a side that takes nothing has nothing more read from the other one. A client that has said all that it has to say
 * (shutdown(), SHUT_WR) still gets its answers. One that has gone altogether has what it said passed on for NBD_RELAY_GOODBYE_MS at most. When the server has
 * ended, the client gets what came before, and then its end.
 *
 * In the loop's thread, and in its callbacks as well. SIGPIPE is ignored by the process. It works with read() and write() alone.
 */
#ifndef PAGURUS_NBD_RELAY_H
#define PAGURUS_NBD_RELAY_H

#include <openssl/ssl.h>
#include <stdint.h>

#include "storage/loop.h"

#define NBD_RELAY_BUFFER     (64u << 10)
#define NBD_RELAY_GOODBYE_MS 2000u

struct nbd_relay;

/*
 * server is the connection, over its own non-blocking socket; client is a non-blocking socket; both become the relay's, also on failure. flags: of nbd_starttls(); a client
 * that answers with others is ended. over() is called once, from the loop, when there is nothing more to pass on; the relay is still there then. -ENOMEM and
 * others of loop_watch().
 */
int nbd_relay_new(struct loop *l, SSL *server, int client, uint16_t flags, void (*over)(void *ctx),
		  void *ctx, struct nbd_relay **out, struct pgr_error *err);
/* Closes both, the server's with a goodbye if that can go at once. Waiting: in a fiber or outside of the loop. NULL is allowed. */
void nbd_relay_free(struct nbd_relay *r);

#endif
