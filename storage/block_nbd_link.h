/* SPDX-License-Identifier: MIT */
/*
 * The connection below an NBD disk: made, watched, lost, made again. Internal to block_nbd*.c.
 *
 *   nothing ──nbd_link_open()──▶ up ──server gone──▶ lost ──keeper fiber──▶ connected ──restore()──▶ up ...
 *
 * `connected`: libnbd takes requests; `up`: everybody's. What was under way when the connection is lost comes back by libnbd's completion
 * callbacks, with ENOTCONN; not before that is the handle freed.
 */
#ifndef PAGURUS_BLOCK_NBD_LINK_H
#define PAGURUS_BLOCK_NBD_LINK_H

#include <libnbd.h>

#include "storage/block_driver.h"

struct nbd_link {
	struct loop *loop;
	const char *name;     /* for messages */
	const char *uri;      /* this and the next are the owner's */
	const char *identity; /* or NULL */
	uint64_t patience_ns;
	uint64_t silence_ns;	 /* 0: it may be silent for ever */
	const atomic_bool *stop; /* NULL, or as block_options.stop */
	int socket; /* connected to the server already; once it is lost there is no other. -1: connect to the uri */
	bool socket_taken;	       /* by libnbd, which closes it */
	const struct block_dial *dial; /* connects it; NULL: libnbd does */
	bool to_write;
	/* By the keeper, on a new connection, before anybody else may use it. After an error another one is made. */
	int (*restore)(struct nbd_link *k, struct pgr_error *err);
	/* A connection with other facts than the first is refused. */
	bool known;
	uint64_t size;
	char *export; /* its name on the server; free() it, it is there when they are known */

	struct nbd_handle *h; /* NULL: none */
	bool connected, up, given_up, broken;
	struct pgr_error why; /* it is not up */
	struct loop_watch watch;
	bool watched;
	uint32_t events;
	struct loop_timer timer; /* of who waits for `progress` */
	struct wait *progress;
	bool in_time;
	struct loop_timer retry; /* starts the keeper */
	bool keeping, closing;
	uint64_t lost_ns;
	unsigned in_flight;	/* calls that libnbd has */
	struct loop_timer look; /* whether something moves; armed while there are such calls */
	unsigned looks;		/* since something did */
	bool silent;		/* it was cut because nothing did */
	struct loop_timer ask;	/* for `stop` */
	bool stopped;
	struct wait_queue waiting; /* for a change of these */
};

/* The first connection. Waiting. On failure nothing is left. */
int nbd_link_open(struct nbd_link *k, struct pgr_error *err);
/* Until it is up, or an error: given up, broken, stopped. Waiting. */
int nbd_link_await(struct nbd_link *k, struct pgr_error *err);
/* After every call of libnbd that may have moved it on: watches its socket for what it wants now, and sees when it is lost. */
void nbd_link_step(struct nbd_link *k);
/* End a connection that is no good any more; what is under way fails. */
void nbd_link_cut(struct nbd_link *k);
/* One call more that libnbd is going to have. */
void nbd_link_begun(struct nbd_link *k);
/* One call less. */
void nbd_link_landed(struct nbd_link *k);
/* Say goodbye and free what is here. Nothing is under way. Waiting. */
void nbd_link_close(struct nbd_link *k);

/* libnbd's reason for a call that failed just now in this thread, as a negative errno and a sentence. */
int nbd_link_fail(const struct nbd_link *k, const char *what, struct pgr_error *err);

#endif
