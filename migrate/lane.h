/* SPDX-License-Identifier: MIT */
/*
 * The sending half of one channel of a session: records go into a ring, a thread of its own writes the ring to the channel.
 *
 * Bytes stay in the ring until the target has acknowledged the records that they belong to, so a lost connection is resumed
 * by writing the rest of the ring again, byte for byte: encoders, caches and digests never know that anything happened. The ring is also
 * what bounds the memory of the source.
 *
 * The ring is mapped twice in a row, so that what wraps around its end is in one piece too: records are made in it.
 *
 * Threads: one appender at a time (lane_append serialises), one sending thread (inside), one acknowledger.
 */
#ifndef PAGURUS_LANE_H
#define PAGURUS_LANE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/error.h"
#include "migrate/channel.h"
#include "migrate/channel_limit.h"
#include "migrate/stream.h"

struct lane {
	unsigned index;
	bool one_way; /* a file: nobody acknowledges, written is done */

	pthread_mutex_t append_lock;
	struct stream_writer writer; /* under append_lock; writes into the ring */

	pthread_mutex_t lock;	/* all below */
	pthread_cond_t to_send; /* the sender waits: there is something, or it shall stop */
	pthread_cond_t changed; /* others wait: for room, or until all was sent */
	unsigned flushers;	/* threads that wait until all was sent */
	uint8_t *ring;		/* its second image follows */
	size_t size;		/* a multiple of the page size */
	uint64_t
		filled; /* positions since the start of the stream's records; filled >= sent >= acked */
	uint64_t sent;		 /* given to the channel */
	uint64_t acked;		 /* taken effect at the target */
	uint32_t acked_sequence; /* of the record that begins at acked */
	uint64_t claimed;	 /* the sender is writing up to here */
	uint32_t next_sequence;	 /* of the record that begins at filled */
	uint32_t
		window; /* a PAGES record waits while so many are unacknowledged; 0: the ring is the bound */
	bool running;	/* the sending thread exists */
	bool stop;	/* it shall end */
	bool lost;	/* the channel failed; error says how */
	bool cancelled; /* appenders shall not wait any longer */
	bool abandoned; /* no acknowledgement is awaited any more; only an ABORT may follow */
	struct pgr_error error;

	struct channel *channel; /* owned; NULL between connections */
	pthread_t sender;
	struct rate_limit *limit; /* shared, may be NULL */
	int capture;		  /* a file that gets everything that is appended, or -1 */
	uint64_t wire_bytes;	  /* given to the channel, repetitions included */
	uint64_t last_append_ns;

	/* Told once per lost connection, from the sending thread. */
	void (*on_lost)(void *ctx, struct lane *l);
	/* One-way lanes: told when everything appended has been written. */
	void (*on_drained)(void *ctx, struct lane *l);
	void *ctx;
};

/* size: bytes of ring, at least PGR_RECORD_MAX + 64; rounded up to whole pages. Returns 0 or an error of memory. */
int lane_init(struct lane *l, unsigned index, size_t size, struct pgr_error *err);
void lane_free(struct lane *l);

/* Begin to send over c, which the lane owns from then on. Bytes before `from` in sequence have been acknowledged. */
int lane_start(struct lane *l, struct channel *c, struct pgr_error *err);
/* End the sending thread at once (shutting the channel down) and close the channel. What is unsent stays in the ring. Idempotent. */
void lane_stop(struct lane *l);

/*
 * Make a record in place: waits for room for a body of at most `most` bytes; *body (aligned to 8) is where it goes. Until lane_commit(), or
 * lane_drop() when there is to be none, nobody else can append: make it at once, and wait for nothing. Errors as lane_append.
 */
int lane_reserve(struct lane *l, uint32_t type, size_t most, void **body, struct pgr_error *err);
/* The body has `length` bytes and this CRC; the record is on its way. Fails only when the capture cannot be written. */
int lane_commit(struct lane *l, uint32_t type, size_t length, uint32_t crc, struct pgr_error *err);
void lane_drop(struct lane *l);

/* Add a record; waits for room. -ECANCELED after lane_cancel; never fails because a connection is lost (it waits). */
int lane_append(struct lane *l, uint32_t type, const struct iovec *parts, unsigned nr,
		struct pgr_error *err);
int lane_append_body(struct lane *l, uint32_t type, const void *body, size_t length,
		     struct pgr_error *err);
/* The same without waiting for room: -EAGAIN, which fills in no error. For the thread that makes lost connections again. */
int lane_try_append(struct lane *l, uint32_t type, const struct iovec *parts, unsigned nr,
		    struct pgr_error *err);
/* Whether a record of this type with so many bytes, header and padding included, has room now. */
bool lane_has_room(struct lane *l, uint32_t type, size_t bytes);
/* Add a KEEPALIVE if nothing was appended for a while and there is room. Never waits. */
void lane_keepalive(struct lane *l, uint64_t idle_ns);

/* Records below sequence took effect. -EPROTO: a record that was not sent completely. */
int lane_ack(struct lane *l, uint32_t sequence, struct pgr_error *err);
/* After a reconnect: the target expects `next`; everything from there is sent again. To be called between stop and start. */
int lane_rewind(struct lane *l, uint32_t next, struct pgr_error *err);

/* Wake every waiting appender and waiter with -ECANCELED, now and later. */
void lane_cancel(struct lane *l);

/*
 * Drop what the sender has not begun to write, up to a record's end, await no acknowledgement any more, and lift the bandwidth cap and
 * lane_cancel: room for a last ABORT. Nobody else may append any more.
 */
void lane_abandon(struct lane *l);
/* Wait until everything appended was given to the channel. */
bool lane_wait_sent(struct lane *l, uint64_t until_ns);

/* True when everything appended was acknowledged (one_way: written). */
bool lane_drained(struct lane *l);
/* Bytes of records that took effect since the start. */
uint64_t lane_acked(struct lane *l);
/* The number that the next record will have. */
uint32_t lane_next_sequence(struct lane *l);

#endif
