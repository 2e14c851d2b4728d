/* SPDX-License-Identifier: MIT */
/*
 * A connected socket, plain or with TLS, for code that waits in fibers: one of them reads, anybody sends.
 *
 * Reading goes through a buffer, so that one system call fetches many requests. Sending never waits: what is to go is put in a queue, and at the end
 * of the loop's turn goes with as few system calls as it takes; who queues has to bound what is queued. All in the loop's thread. SIGPIPE has to be
 * ignored by the process when there is TLS.
 */
#ifndef PAGURUS_NBD_STREAM_H
#define PAGURUS_NBD_STREAM_H

#include <openssl/ssl.h>
#include <sys/uio.h>

#include "common/identity.h"
#include "storage/fiber.h"

#define NBD_STREAM_IN	 (32u << 10)
#define NBD_STREAM_STAGE (16u << 10) /* one TLS record */

/* Bytes to send, its owner's until sent() is called: they went to the kernel, or never will. */
struct nbd_out {
	struct nbd_out *next;
	struct iovec iov[2];
	void (*sent)(struct nbd_out *o);
};

struct nbd_stream {
	struct loop *loop;
	struct loop_watch watch;
	uint32_t armed; /* events that the watch is for */
	bool hung_up;	/* nothing is watched any more: reading does not wait, sending fails */
	bool cancelled;
	bool timed_out;
	bool dry;  /* the last bytes came alone: nothing more was there */
	int error; /* of sending; 0: none */
	SSL *ssl;

	struct wait *reader; /* NULL: it does not wait */
	uint32_t reader_wants;
	struct loop_timer timer;
	struct loop_task turn; /* let the others run */
	size_t greed;	       /* bytes read since they did */
	uint8_t in[NBD_STREAM_IN];
	size_t in_start, in_end;

	struct loop_task flush;
	struct nbd_out *first, **end;
	size_t skip;	/* bytes of the first that went already */
	uint8_t *stage; /* TLS: a record, gathered */
	size_t staged;
	bool blocked; /* the kernel takes no more */
	struct wait_queue drained;
};

/* s is zeroed. fd becomes the stream's, also on failure. -ENOMEM and others of loop_watch(). */
int nbd_stream_open(struct nbd_stream *s, struct loop *l, int fd, struct pgr_error *err);
/* In a fiber. What is queued and was not sent is dropped. */
void nbd_stream_close(struct nbd_stream *s);

/*
 * Read exactly length bytes, or throw them away. 0, -ENODATA (the other side has closed before the first of them), -EPIPE (in the middle),
 * -ECANCELED, -ETIMEDOUT, -EPROTO (TLS) or that of the socket.
 */
int nbd_stream_read(struct nbd_stream *s, void *to, size_t length);
int nbd_stream_skip(struct nbd_stream *s, uint64_t length);
/* Whether bytes have come that nobody has read. */
bool nbd_stream_has_more(const struct nbd_stream *s);

void nbd_stream_send(struct nbd_stream *s, struct nbd_out *o);
/* Wait until everything has gone. 0, or why it cannot, or as for reading. */
int nbd_stream_drain(struct nbd_stream *s);

/* Every wait, the present one and later ones, fails with -ECANCELED. What is queued still goes. */
void nbd_stream_cancel(struct nbd_stream *s);
/* From now on all waits end with -ETIMEDOUT at that time (loop_now_ns()); 0: no longer. */
void nbd_stream_limit(struct nbd_stream *s, uint64_t at_ns);

/*
 * TLS 1.3 as the server. The other side's certificate has to be a trusted one; its name in peer. Nothing is queued and nothing read ahead.
 * -EACCES: a stranger.
 */
int nbd_stream_tls(struct nbd_stream *s, const struct tls_identity *id, char peer[80],
		   struct pgr_error *err);

#endif
