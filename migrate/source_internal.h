/* SPDX-License-Identifier: MIT */
/* The source of a session: what its three files share. source.c: the states; source_link.c: connections; source_copy.c: pages. */
#ifndef PAGURUS_SOURCE_INTERNAL_H
#define PAGURUS_SOURCE_INTERNAL_H

#include "migrate/lane.h"
#include "migrate/session_internal.h"

/* Pages of one stripe go to one lane; stripes go to the lanes in turn. */
#define SOURCE_STRIPE 256u

struct source;

struct source_lane {
	struct source *s;
	struct lane lane;
	struct encoder *encoder;
	struct ledger_sum sum;
	pthread_t worker; /* reads and encodes this lane's pages */
	bool worker_running;
	pthread_t listener; /* reads what the target sends on this channel */
	bool listener_running;
	struct channel *in; /* the lane's channel, as the listener sees it */
	uint64_t heard_ns;  /* when the last record came; under s->lock */
	struct stream_reader reader;
	struct encode_stats stats; /* copy for the reporter, under s->lock */
	struct stream_order order; /* of what the target sends on this connection */
	uint64_t round_pages, round_bytes;
	struct pgr_index_entry *index; /* files only */
	uint64_t index_nr, index_capacity;
};

enum source_work { WORK_NONE, WORK_COPY, WORK_VERIFY, WORK_QUIT };

struct source {
	struct guest_source *g;
	const struct source_params *p;
	struct session_result *res;
	struct reporter reporter;
	struct guest_description d;
	bool file;	/* one-way: no conversation */
	unsigned nr;	/* lanes in use */
	unsigned batch; /* pages in a record */
	struct source_lane lanes[PGR_CHANNELS_MAX];
	struct rate_limit *limit;
	struct page_ledger ledger;
	uint64_t *todo;	 /* pages of this round */
	uint64_t *dirty; /* what the log said last */
	uint32_t round;
	atomic_uint_least64_t pages_done;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	enum source_work work;
	unsigned work_number, busy;
	bool lost; /* a connection; error says why */
	struct pgr_error lost_error;
	int failed; /* for good; error says why */
	struct pgr_error error;
	bool have_reply, have_precheck, have_ready, have_running, have_connected, stopping_threads;
	bool disks_same; /* whatever the guest writes to its disks is written at the target, too */
	unsigned want_lane; /* where source_append() waits for room, for what */
	uint32_t want_type;
	size_t want_bytes;
	uint64_t taken,
		taken_ns; /* bytes that had taken effect at the target, and since when no more have */
	uint64_t retry_ns,
		retry_to;     /* the last reconnect ended; the present run of them must end */
	uint64_t retry_taken; /* `taken` of that run */
	struct pgr_hello_reply reply;
	struct pgr_digest ready;
	struct pgr_connected connected;
	struct guest_refusals refusals;
	unsigned refusals_total;

	/* where the session is, for the owner of the main thread only */
	bool suspended, logging, throttled, committed;
	atomic_bool disks_begun;  /* and not over */
	uint64_t disks_failed_ns; /* the reporter's: since when one of them has */
	unsigned speed;
	uint64_t started_ns, suspend_ns;
};

/* ---- source_link.c ---- */

/* Record a failure that ends the session (the first one wins) and wake everybody. */
void source_fail(struct source *s, const struct pgr_error *err);
/*
 * Wait until done(s) (called with s->lock held) is true. Makes lost connections again as long as that may help. Returns 0, the session's failure,
 * -ECANCELED, or -ETIMEDOUT when until_ns (0: none) has passed.
 */
int source_wait(struct source *s, bool (*done)(struct source *s), uint64_t until_ns,
		struct pgr_error *err);
/*
 * Add a record from the main thread. Unlike lane_append() it goes on looking after the connections while there is no room: nobody else
 * would make a lost one again, or notice a cancellation. Errors: the session's failure when it has failed, lane_append's, source_wait's.
 */
int source_append(struct source *s, unsigned lane, uint32_t type, const struct iovec *parts,
		  unsigned nr, struct pgr_error *err);
int source_append_body(struct source *s, unsigned lane, uint32_t type, const void *body,
		       size_t length, struct pgr_error *err);
/* Connect lane 0, then (source_link_more) the others. */
int source_link_first(struct source *s, struct pgr_error *err);
int source_link_more(struct source *s, unsigned channels, struct pgr_error *err);
/* End all threads of the connections and close them. Idempotent. */
void source_unlink(struct source *s);
/* Tell the target that it is over, as far as that is possible. */
void source_send_abort(struct source *s, const struct pgr_error *err);
/* Ask on a connection of its own what became of the session. */
int source_query(const struct source_params *p, enum pgr_session_state *state,
		 struct pgr_error *err);
int source_lane_open(struct source *s, unsigned i, size_t ring, bool one_way,
		     struct pgr_error *err);

/* ---- source_copy.c ---- */

/* Start the workers (one per lane) and stop them. */
int source_workers_start(struct source *s, struct pgr_error *err);
void source_workers_stop(struct source *s);
/* Send the pages of todo on all lanes, then ROUND_END; returns when all of it took effect at the target. Fills r but for dirtied. */
int source_copy_round(struct source *s, enum source_work work, struct policy_round *r,
		      struct pgr_error *err);
uint64_t source_count(const uint64_t *bitmap, uint64_t bits);
size_t source_words(const struct source *s);

/* ---- source_estimate.c ---- */

/* How long the guest will stand still if all of its memory is copied then, measured on samples; without what the stop costs besides. */
int source_estimate_stop(struct source *s, uint64_t *ns, struct pgr_error *err);

#endif
