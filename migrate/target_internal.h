/* SPDX-License-Identifier: MIT */
/* The target of a session: what its files share. target.c: the states; target_link.c: connections; target_pages.c: records of pages. */
#ifndef PAGURUS_TARGET_INTERNAL_H
#define PAGURUS_TARGET_INTERNAL_H

#include "migrate/session_internal.h"

/* Bytes of buffers that wait between the thread that reads a channel and the one that applies. */
#define TARGET_QUEUE_BYTES (3u << 20)

struct target;

struct queued {
	struct queued *next;
	struct stream_record rec; /* body is the buffer */
	uint8_t *buffer;	  /* owned */
	size_t bytes;		  /* of it */
};

struct target_lane {
	struct target *t;
	unsigned index;
	struct decoder *decoder;
	struct ledger_sum sum;
	struct stream_order order; /* of what took effect */
	uint32_t applied;	   /* sequence of the next record to take effect */
	uint64_t round_pages, round_bytes, stream_records, stream_bytes;
	uint64_t
		next_offset; /* on this connection, of the record after the last that took effect */
	uint64_t verified;   /* pages that hold memory, in the VERIFY round */
	bool verifying, ended;
	bool committed; /* COMMIT took effect: RUNNING is the answer, and nothing may come after it */
	bool usable;	/* initialised */
	bool greeted;	/* had a connection */
	bool replied; /* the answer that must be the first record on this connection was given; under write_lock */
	bool receiver_done; /* the source has closed; under t->lock */
	bool quiet;	    /* its connection is being ended on purpose; under t->lock */
	uint64_t lost_ns;   /* since when it has no connection, 0: it has; under t->lock */
	struct pgr_error lost_error;
	atomic_uint_least64_t heard_ns; /* when the last record came */
	uint64_t wire_bytes;		/* read on this connection */

	struct channel *channel; /* owned; NULL between connections */
	struct stream_reader reader;
	pthread_mutex_t write_lock; /* writer, channel when written to */
	struct stream_writer writer;
	uint32_t acked; /* under write_lock */
	uint64_t unacked_bytes;
	bool hurry; /* the applier's: an acknowledgement may be waited for */
	uint64_t last_write_ns;
	pthread_t receiver; /* reads records from the channel into the queue */
	bool receiver_running;
	pthread_t applier; /* takes them out and makes them take effect */
	bool applier_running;

	pthread_mutex_t lock; /* the queue */
	pthread_cond_t changed;
	struct queued *first, **last;
	size_t queued_bytes;  /* of their buffers: a record of no bytes costs one too */
	struct queued *spare; /* buffers to use again */
	size_t spare_bytes;
	bool busy; /* the applier works on a record */
	bool stop;
	bool failed;		   /* what comes is thrown away */
	struct encode_stats stats; /* under t->lock */
};

struct target {
	struct guest_sink *sink;
	const struct target_params *p;
	struct session_result *res;
	struct reporter reporter;
	bool file;
	enum pgr_kind kind;
	uint8_t session[PGR_SESSION_SIZE];
	bool session_known;
	unsigned nr;	  /* lanes */
	unsigned offered; /* in the stream header */
	uint32_t features;
	struct target_lane lanes[PGR_CHANNELS_MAX];
	struct guest_description d;
	bool created, opened_replied, refused;
	bool committed;	   /* the journal may say so */
	uint64_t until_ns; /* target_wait() fails then; 0: no limit */
	struct page_ledger ledger;
	uint8_t *owner;	      /* per pfn: lane + 1 that brought it first */
	uint64_t wire_before; /* bytes read on earlier connections */

	pthread_t acceptor;
	bool acceptor_running;

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	enum pgr_session_state state;
	bool opened;	  /* OPEN arrived */
	bool want_create; /* the first record after OPEN arrived */
	bool have_commit, have_digest;
	struct pgr_digest digest;
	unsigned lanes_ended;
	int failed;
	struct pgr_error error;
	bool over; /* the session has ended: the acceptor shall end */
	struct channel *arrived[PGR_CHANNELS_MAX]; /* accepted, not yet in use */
	enum pgr_purpose arrived_purpose[PGR_CHANNELS_MAX];
};

void target_fail(struct target *t, const struct pgr_error *err);
void target_set_state(struct target *t, enum pgr_session_state state);

/* ---- target_link.c ---- */
int target_lane_init(struct target *t, unsigned i, struct pgr_error *err);
void target_lane_free(struct target_lane *tl);
/* Take c (owned) into use for lane i: threads start. The stream header has been exchanged, the reader is ready. */
int target_lane_start(struct target *t, unsigned i, struct pgr_error *err);
/* Read and check the peer's stream header on lane i's channel and send ours. */
int target_greet(struct target *t, unsigned i, struct pgr_error *err);
/* End all connections; what was read completely still takes effect. */
void target_unlink(struct target *t);
/* The lane's connection failed in a way that a resume mends: wait for one. */
void target_lane_lost(struct target_lane *tl, const struct pgr_error *err);
/* Wait until the lane's applier has nothing to do and will not touch the guest again (the session has failed). */
void target_lane_drain(struct target_lane *tl);
/* The answer that comes first on the lane's connection was given: acknowledgements and keepalives may follow. */
void target_replied(struct target_lane *tl);
int target_send(struct target_lane *tl, uint32_t type, const void *body, size_t length,
		struct pgr_error *err);
int target_acceptor_start(struct target *t, struct pgr_error *err);
void target_acceptor_stop(struct target *t);
/* Wait until done(t) (with t->lock held); looks after lost connections. As source_wait. */
int target_wait(struct target *t, bool (*done)(struct target *t), struct pgr_error *err);

/* ---- target_pages.c ---- */
/* Make one record take effect. */
int target_apply(struct target_lane *tl, const struct stream_record *rec, struct pgr_error *err);

/* ---- target.c ---- */
int target_opening(struct target *t, const struct stream_record *rec, struct pgr_error *err);
#endif
