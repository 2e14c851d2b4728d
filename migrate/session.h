/* SPDX-License-Identifier: MIT */
/*
 * A session: one guest on its way from a source to a target, or to and from a file.
 *
 *   source                                                target
 *   CONNECT    HELLO IDENTITY CPU_POLICY CONFIG OPEN  ->   PRECHECK
 *   PRECHECK                       <- HELLO_REPLY PRECHECK  RECEIVE (domain created)
 *   DISKS      (those that come along: NBD, connections of their own, until both have the same)
 *   ROUNDS     PAGES... ROUND_END, again and again    ->
 *   STOP       (disks let go of, and the target's have everything)
 *              STOP PAGES... ROUND_END state DIGEST END ->  FINISH
 *   WAIT                                        <- READY    READY
 *   COMMIT     (journal) COMMIT                       ->    (journal) START
 *   CLEANUP                                     <- RUNNING  CLEANUP
 *   DONE                                      <- CONNECTED  DONE     (figures; nothing depends on them)
 *
 * Up to COMMIT every failure leaves the guest running at the source and nothing at the target. After COMMIT the source runs it again
 * only when the target says that it did not start.
 */
#ifndef PAGURUS_SESSION_H
#define PAGURUS_SESSION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "migrate/channel.h"
#include "migrate/encode.h"
#include "migrate/guest.h"
#include "migrate/policy.h"

enum session_phase {
	SESSION_CONNECT,
	SESSION_PRECHECK,
	SESSION_ROUNDS,	 /* source: copying a running guest */
	SESSION_RECEIVE, /* target */
	SESSION_STOP,	 /* source: the guest stands still from here */
	SESSION_FINISH,	 /* target: putting the guest together */
	SESSION_VERIFY,
	SESSION_WAIT,	/* source: everything sent, waiting for READY */
	SESSION_READY,	/* target: waiting for COMMIT */
	SESSION_COMMIT, /* from here the guest belongs to the target */
	SESSION_CLEANUP,
	SESSION_DONE,
	SESSION_FAILED,
	SESSION_RECONNECT, /* the connection is lost and being made again */
	SESSION_DISKS,	   /* source: the disks are copied, and from then on kept the same */
};
const char *session_phase_name(enum session_phase p); /* "rounds" ... */

struct session_progress {
	enum session_phase phase;
	unsigned round;
	uint64_t elapsed_ns;
	uint64_t pages_total;  /* of this round */
	uint64_t pages_done;   /* of this round */
	uint64_t bytes_sent;   /* on the wire or read from it, all channels, since the start */
	uint64_t disk_bytes;   /* of disks that come along: copied so far */
	uint64_t disk_left;    /* and still to copy */
	uint64_t memory_bytes; /* the guest's populated memory */
	uint64_t rate;	       /* bytes a second on the wire, recent */
	uint64_t memory_rate;  /* bytes of guest memory a second, recent */
	uint64_t dirty_rate;   /* pages a second that the guest wrote in the last round */
	struct encode_stats encode;
	uint64_t predicted_downtime_ns; /* 0: unknown */
	uint64_t left_ns;		/* 0: unknown */
	char reason[200];		/* the policy's last reason */
};

/* Marks that must be durable before the session goes on, so that a host that crashed knows what it may do. */
enum session_mark {
	SESSION_MARK_BEGIN,    /* source and target: the session exists */
	SESSION_MARK_STOPPING, /* source: the guest is about to be suspended */
	SESSION_MARK_COMMIT, /* source: COMMIT is about to be sent; target: COMMIT arrived, the guest is about to start */
	SESSION_MARK_MOVED,    /* source: the target runs it; target: it runs here */
	SESSION_MARK_RETURNED, /* source: it runs here again; target: nothing of it is left here */
};

enum session_log { SESSION_INFO, SESSION_WARNING };

/* What the session tells and asks its owner. Callbacks come from one of the session's threads, one at a time; NULL: not wanted. */
struct session_owner {
	void *ctx;
	void (*progress)(void *ctx,
			 const struct session_progress
				 *p); /* about five a second and on each change of phase */
	void (*message)(void *ctx, enum session_log level, const char *text);
	int (*mark)(void *ctx, enum session_mark mark,
		    struct pgr_error *err); /* durable on return */
	/* source: it moved and nothing of it is left here; the session only waits for the target's figures any more */
	void (*moved)(void *ctx);
	const atomic_bool
		*cancel; /* set by anyone: stop; after COMMIT only waiting for figures stops */
};

enum session_outcome {
	SESSION_MOVED,	/* source: the target has it; target: it runs here; file: complete */
	SESSION_STAYED, /* source: it runs here as before; target: nothing is left */
	SESSION_UNKNOWN, /* source: COMMIT was sent and no answer came; the guest is suspended: source_recover() */
	/* target: COMMIT arrived, the guest did not start and that could not be recorded: it stands here, complete */
};

/* Where the stop went, in ns; zero where it does not apply. */
struct session_stop {
	uint64_t
		total; /* from suspend until RUNNING arrived (migrate), until the guest ran again (save) */
	uint64_t suspend; /* until the guest stood still */
	uint64_t disks;	  /* until its disks were flushed and closed */
	uint64_t pages;	  /* last pages sent */
	uint64_t state;	  /* vCPU and device state */
	uint64_t verify;
	uint64_t build; /* waiting for READY */
	uint64_t start; /* COMMIT to RUNNING */
	struct pgr_connected
		connected; /* source: after the stop, as the target told; zero: it did not */
};

struct session_result {
	enum session_outcome outcome;
	unsigned rounds;
	uint64_t elapsed_ns;
	uint64_t bytes;	       /* on the wire */
	uint64_t memory_bytes; /* populated */
	uint64_t disk_bytes;   /* of disks that came along, copied */
	uint64_t digest;
	uint64_t digest_pages;
	bool verified; /* everything was sent twice and compared */
	unsigned reconnects;
	struct encode_stats encode;
	struct session_stop stop;
	struct policy_decision last;
	uint64_t peak_buffers; /* bytes of buffers and caches the session allocated for itself */
	/*
	 * Something of the guest stands here that should not: a source could not resume it (STAYED) or remove it (MOVED), a target
	 * could not decide that it never starts (UNKNOWN). The owner leaves its journal open, so that the repair tries again.
	 */
	bool unfinished;
	bool may_stop; /* of an unfinished one at the source: the guest runs, but had begun to suspend and may stop yet */
};

/*
 * Disks that come along, at the source: a mirror under each, over a connection to the target (PGR_PURPOSE_DISK). Called by one thread at a time, but for look().
 */
struct source_disks {
	void *ctx;
	const struct guest_disk *disks; /* at least one */
	unsigned nr;
	/* Begin. The target takes them. */
	int (*begin)(void *ctx, struct pgr_error *err);
	/* Any thread: how many bytes are copied and left; *same: whatever the guest writes from now on is written at the target as well. An error: the move has to fail. */
	int (*look)(void *ctx, uint64_t *copied, uint64_t *left, bool *same, struct pgr_error *err);
	/* Before the guest is stopped: from now on mirrors may end. One that did before has failed. */
	void (*stopping)(void *ctx);
	/* The guest's disks have been let go of: wait until the target's have everything, durably. -ETIMEDOUT, or why not. */
	int (*finish)(void *ctx, unsigned timeout_ms, struct pgr_error *err);
	/* What is left of it, also of one that was not begun. The guest goes on without it. */
	void (*end)(void *ctx);
};

/* The same at the target. One thread, but for attach(). */
struct target_disks {
	void *ctx;
	/* With the precheck: whether they can be made here. Touches nothing. */
	int (*check)(void *ctx, const struct guest_description *d, struct guest_refusals *r,
		     struct pgr_error *err);
	/* Make them, and have them written by whoever attach() brings. Durably noted before, so that they can be removed after a crash. */
	int (*make)(void *ctx, const struct guest_description *d, struct pgr_error *err);
	/* A connection for one of them, which is taken over. Any thread, also before make(). */
	void (*attach)(void *ctx, struct channel *c);
	/* The source has everything sent: close them, durably. */
	int (*finish)(void *ctx, struct pgr_error *err);
	/* Nothing of them is left. Idempotent. */
	int (*remove)(void *ctx, struct pgr_error *err);
};

struct source_params {
	uint8_t session[PGR_SESSION_SIZE]; /* random */
	unsigned channels;		   /* 1 .. PGR_CHANNELS_MAX */
	struct encode_options encode;	   /* cache_bytes: for all channels together */
	struct policy_limits policy;	   /* can_log_dirty is filled in by the session */
	uint64_t bandwidth;		   /* bytes a second on the wire, 0: no cap */
	bool verify;
	bool dry_run; /* stop after PRECHECK */
	bool stop_first; /* copy nothing of the guest while it runs, also when its writes can be logged */
	bool keep;	 /* source_save: let the guest go on afterwards; migrate: not allowed */
	const char *
		capture_dir; /* write what is sent on channel N to source-N.bin there; NULL: do not */
	unsigned suspend_timeout_ms;   /* 0: 60000 */
	unsigned reconnect_ms;	       /* how long to try to get a lost connection back; 0: 30000 */
	unsigned reconnect_stopped_ms; /* the same while the guest stands still; 0: 10000 */
	unsigned
		silence_ms; /* a connection on which no record arrives for so long is taken for lost; 0: 20000 */
	unsigned
		stall_ms; /* the session fails when nothing of what waits takes effect for so long before COMMIT; 0: 120000 */
	unsigned
		connected_ms; /* how long after RUNNING to wait for the target's figures; 0: 10000 */
	/* Make the connection for a channel: preamble sent, TLS done. Called again with PGR_PURPOSE_RESUME or _QUERY. */
	int (*connect)(void *ctx, unsigned channel, enum pgr_purpose purpose, struct channel **out,
		       struct pgr_error *err);
	void *connect_ctx;
	const struct source_disks *disks; /* NULL: none comes along */
};

struct target_params {
	/*
	 * The next connection that belongs to this session (preamble read, TLS done, same peer); waits up to timeout_ms (-ETIMEDOUT).
	 * Thread-safe against wake().
	 */
	int (*accept)(void *ctx, unsigned timeout_ms, unsigned *channel, enum pgr_purpose *purpose,
		      struct channel **out, struct pgr_error *err);
	void *accept_ctx;
	unsigned window; /* 0: default */
	unsigned
		resume_wait_ms; /* how long to keep what has arrived for a source that went away; 0: 60000 */
	unsigned silence_ms;		  /* as in source_params */
	uint32_t features;		  /* 0: all */
	const struct target_disks *disks; /* NULL: none is taken */
};

/*
 * Move g. Returns 0 (moved) or a negative errno with res->outcome telling where the guest is. Blocks until the end. Does not close g.
 */
int source_run(struct guest_source *g, const struct source_params *p, const struct session_owner *o,
	       struct session_result *res, struct pgr_error *err);

/*
 * A session that was committed and whose answer got lost (also by another process before a crash): ask the target until it answers
 * or cancel is set. 0: it runs there, g was destroyed (g may be NULL when it is already gone). -ECANCELED: still unknown. -ESTALE: it did
 * not start there, g was resumed here. Another error: the answer is known but g could not be removed or resumed; the journal says MOVED or
 * is as it was, and trying again is right.
 */
int source_recover(struct guest_source *g, const struct source_params *p,
		   const struct session_owner *o, struct pgr_error *err);

/* Write g into out (a file channel or any other one-way channel) as PGR_KIND_IMAGE; the caller commits the file. On success the
 * guest stays suspended unless p->keep: the caller destroys it after the file is durable. On failure it runs on. */
int source_save(struct guest_source *g, struct channel *out, const struct source_params *p,
		const struct session_owner *o, struct session_result *res, struct pgr_error *err);

/* Receive a guest into s. 0: it runs here. Does not close s. */
int target_run(struct guest_sink *s, const struct target_params *p, const struct session_owner *o,
	       struct session_result *res, struct pgr_error *err);

/* Put the guest of an image together and start it (start false: leave it complete but paused, the caller calls ops->start). */
int target_restore(struct guest_sink *s, struct channel *in, bool start,
		   const struct session_owner *o, struct session_result *res,
		   struct pgr_error *err);

/* Answer a QUERY connection for a session whose process is gone. */
int target_answer(struct channel *c, const uint8_t session[PGR_SESSION_SIZE],
		  enum pgr_session_state state, struct pgr_error *err);

#endif
