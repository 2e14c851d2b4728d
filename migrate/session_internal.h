/* SPDX-License-Identifier: MIT */
/*
 * What both ends of a session share: clock, waiting, the digest of sent or received pages, and the reporter that tells the owner how it goes.
 */
#ifndef PAGURUS_SESSION_INTERNAL_H
#define PAGURUS_SESSION_INTERNAL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "migrate/session.h"
#include "migrate/stream.h"

#define SESSION_KEEPALIVE_NS 2000000000ull
/* Keepalives come in between, so this much silence means that the peer, or what it sends, is stuck. */
#define SESSION_SILENCE_DEFAULT_MS 20000u

uint64_t session_now_ns(void); /* CLOCK_MONOTONIC */

/* A condition variable on CLOCK_MONOTONIC. */
void session_cond_init(pthread_cond_t *c);
/* False when the time (session_now_ns) has passed. */
bool session_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, uint64_t until_ns);

/* stream.h's callbacks over a struct channel as ctx. */
int session_channel_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err);
int session_channel_read(void *ctx, void *data, size_t length, struct pgr_error *err);

/* True for errors that mean "the connection is gone", so that making it again may help. */
bool session_is_loss(int code);

/* The record ABORT as an error for the user: "WHO: text"; code by reason. */
int session_abort_error(struct pgr_error *err, const char *who, const struct stream_record *rec);
enum pgr_abort_reason session_abort_reason(int code);
/* The body of an ABORT for an error. Returns its length; buffer of at least sizeof(struct pgr_abort) + sizeof(err->text). */
size_t session_abort_body(void *buffer, const struct pgr_error *err);

/* Bytes of a record with this body on the wire. */
uint64_t session_record_bytes(const struct iovec *parts, unsigned nr);

void session_encode_stats_add(struct encode_stats *sum, const struct encode_stats *s);

/*
 * CRCs of the pages as last sent or received, and their sum. Shared by the lanes: a pfn belongs to one lane, sums are per lane.
 */
struct page_ledger {
	uint64_t nr_pfns;
	uint32_t *crc;
	uint64_t *present; /* bit: holds memory */
};
struct ledger_sum {
	uint64_t digest;
	uint64_t pages;
};
int ledger_init(struct page_ledger *l, uint64_t nr_pfns, struct pgr_error *err);
void ledger_free(struct page_ledger *l);
/* Bytes that a ledger for so many pfns takes. */
uint64_t ledger_bytes(uint64_t nr_pfns);
void ledger_set(struct page_ledger *l, struct ledger_sum *sum, uint64_t pfn, uint32_t crc);
void ledger_absent(struct page_ledger *l, struct ledger_sum *sum, uint64_t pfn);
bool ledger_is_present(const struct page_ledger *l, uint64_t pfn);

/* Calls tick() five times a second on a thread of its own; serialises the owner's callbacks. */
struct reporter {
	const struct session_owner *owner;
	pthread_mutex_t lock; /* progress, and one callback at a time */
	pthread_cond_t changed;
	pthread_t thread;
	bool running, stop;
	uint64_t started_ns;
	struct session_progress progress;
	/* Fill in what is counted elsewhere (under lock); also where keepalives and cancellation are looked after. */
	void (*tick)(void *ctx, struct session_progress *p);
	void *ctx;
	uint64_t last_ns, last_bytes, last_memory;
};
int reporter_start(struct reporter *r, const struct session_owner *o,
		   void (*tick)(void *, struct session_progress *), void *ctx,
		   struct pgr_error *err);
void reporter_stop(struct reporter *r);
void reporter_phase(struct reporter *r, enum session_phase phase);
void reporter_message(struct reporter *r, enum session_log level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
int reporter_mark(struct reporter *r, enum session_mark mark, struct pgr_error *err);
void reporter_moved(struct reporter *r);
bool reporter_cancelled(const struct reporter *r);

#endif
