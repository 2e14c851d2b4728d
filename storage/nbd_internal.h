/* SPDX-License-Identifier: MIT */
/*
 * What the files of the NBD server share: nbd_server.c (who comes and goes), nbd_handshake.c (options), nbd_context.c (block status), nbd_transmit.c
 * (requests) and nbd_reply.c (their answers).
 *
 * What one connection costs at most: its structure with NBD_STREAM_IN bytes, 17 KiB and what OpenSSL needs for TLS, NBD_PIECES pieces of requests, and
 * NBD_BUDGET bytes of data in them, held from before the data is read until it has left the machine; or instead one request of up to NBD_LENGTH_MAX
 * bytes that cannot be answered in parts (reads without structured replies).
 */
#ifndef PAGURUS_NBD_INTERNAL_H
#define PAGURUS_NBD_INTERNAL_H

#include "storage/nbd_proto.h"
#include "storage/nbd_server.h"
#include "storage/nbd_stream.h"

#define NBD_LENGTH_MAX (32u << 20) /* of a read or write: what the protocol promises */
#define NBD_PIECE      (1u << 20)  /* larger requests are done in pieces */
#define NBD_PIECES     64u
#define NBD_BUDGET     (8u << 20)
#define NBD_KEEP       8u   /* buffers of that size that a server keeps for the next requests */
#define NBD_CLASSES    2u   /* sizes of which it keeps some */
#define NBD_EXTENTS    128u /* of one answer to NBD_CMD_BLOCK_STATUS */

enum nbd_context { NBD_ALLOCATION, NBD_DIRTY, NBD_CONTEXTS };

struct nbd_exported {
	struct nbd_export e;
	struct nbd_exported *next;
};

struct nbd_listener {
	struct nbd_server *server;
	struct loop_watch watch;
	struct nbd_listener *next;
};

struct nbd_kept {
	void *first;
	unsigned nr;
};

struct nbd_server {
	struct loop *loop;
	struct nbd_options o;
	struct nbd_exported *exports;
	struct nbd_listener *listeners;
	struct nbd_connection *connections;
	unsigned nr_connections, last_number;
	bool resting; /* listens to nobody: full, or out of descriptors */
	struct loop_timer rest;
	struct wait_queue gone;		   /* a connection has ended */
	struct nbd_kept kept[NBD_CLASSES]; /* nbd_reply.c's */
};

struct nbd_connection {
	struct nbd_server *server;
	struct nbd_connection *next, **link;
	unsigned number;		   /* for the log */
	char peer[80];			   /* who the certificate says it is, or "" */
	const struct nbd_exported *export; /* NULL: handshake */
	uint64_t size;			   /* of the export, as it was told */
	bool no_zeroes, structured;
	bool context[NBD_CONTEXTS]; /* chosen, for: */
	const struct nbd_exported *context_export;

	unsigned pieces; /* of requests and answers that are under way */
	size_t used;	 /* bytes of their data */
	struct wait_queue room;

	struct nbd_stream stream; /* last: it is large */
};

/* One line into the server's log, behind the connection's number. */
void nbd_log(const struct nbd_connection *c, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

/* The export of that name (not terminated), or NULL. */
const struct nbd_exported *nbd_find_export(const struct nbd_server *s, const char *name,
					   size_t length);
uint16_t nbd_export_flags(const struct nbd_exported *e);

/* Until an export is chosen; 0: it is. Else the connection is over, for a reason that was logged if it is worth it. In the connection's fiber. */
int nbd_handshake(struct nbd_connection *c);
/* nbd_context.c: the options about contexts; `data` is the option's content. */
int nbd_contexts(struct nbd_connection *c, uint32_t option, const uint8_t *data, size_t length);
/* Answer an option with the bytes of a and b. */
int nbd_option_reply(struct nbd_connection *c, uint32_t option, uint32_t type, const void *a,
		     size_t a_length, const void *b, size_t b_length);
/* Refuse it with a sentence. */
int nbd_option_refuse(struct nbd_connection *c, uint32_t option, uint32_t type, const char *text);

/* Requests, until the other side goes; comes back when nothing is under way any more. */
void nbd_transmit(struct nbd_connection *c);

/* ---- requests and their answers ---- */

/* What a client asked for; in pieces, of which the last that is done ends it. */
struct nbd_call {
	struct nbd_connection *c;
	uint64_t cookie;
	uint16_t type, flags;
	bool whole;	 /* has one answer and no more */
	unsigned pieces; /* that are not done */
	int failed;	 /* the first error of a request with one answer for all its pieces */
	char why[200];
};

struct nbd_piece {
	struct block_request r;
	struct nbd_out out;
	struct nbd_call *call;
	struct nbd_connection *c;
	struct iovec iov;
	size_t held;	/* bytes of the connection's budget */
	unsigned class; /* of the memory; NBD_CLASSES: not one that is kept */
	/* What goes before the data: a header and what its content begins with. */
	uint8_t header[sizeof(struct nbd_chunk) + sizeof(struct nbd_chunk_hole)];
};

/* Wait for room and make a piece with `bytes` of memory. 0: *out; -ENOMEM, or the stream's error. */
int nbd_piece_new(struct nbd_call *call, size_t bytes, struct nbd_piece **out);
/* The piece's request is done: answer what can be answered now. Frees the piece, and the call with its last one. By the loop, or a fiber. */
void nbd_piece_done(struct nbd_piece *p, int code, const char *why);
/* At the end. */
void nbd_free_kept(struct nbd_server *s);
/* A piece that was not given to the disk. */
void nbd_piece_drop(struct nbd_piece *p);

/* What r found, as chunks for each chosen context; at most NBD_STATUS_BYTES of them. How many bytes they have. nbd_context.c */
#define NBD_STATUS_BYTES \
	(NBD_CONTEXTS *  \
	 (sizeof(struct nbd_chunk) + sizeof(uint32_t) + NBD_EXTENTS * sizeof(struct nbd_extent)))
size_t nbd_status_chunks(const struct nbd_call *call, const struct block_request *r, uint8_t *to);

#endif
