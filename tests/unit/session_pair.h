/* SPDX-License-Identifier: MIT */
/*
 * Both ends of a session in one process: a simulated guest, a source, a target, socket pairs between them, and a stand-in for the daemon that
 * hands connections over and answers for a target that has ended from its durable marks alone.
 */
#ifndef PAGURUS_TEST_SESSION_PAIR_H
#define PAGURUS_TEST_SESSION_PAIR_H

#include <pthread.h>
#include <stdatomic.h>

#include "migrate/channel_fault.h"
#include "migrate/guest_sim.h"
#include "migrate/session.h"

#define PAIR_MARKS_MAX 16

struct pair_end {
	struct session_owner owner;
	atomic_bool cancel;
	enum session_mark marks[PAIR_MARKS_MAX];
	unsigned nr_marks;
	unsigned moved;		       /* calls of that callback */
	unsigned mark_fails;	       /* the n-th mark fails (1: the first) */
	enum session_mark mark_failed; /* the injected failure struck */
	enum session_phase
		cancel_at; /* set cancel when this phase is reached; SESSION_FAILED: never */
	char messages[8192];
	enum session_phase phases[64];
	unsigned nr_phases;
	struct session_result result;
	struct pgr_error error;
	int rc;
};

struct pair_options {
	struct guest_sim_options guest;
	struct source_params source;
	struct target_params target;
	struct guest_sim_sink_options sink;
	struct guest_sim_fault source_fault, sink_fault;
	struct fault_plan fault; /* on the source's side of one connection */
	unsigned fault_channel;
	unsigned fault_connection; /* which connection of that channel, 0: the first */
	unsigned refuse_after;	   /* connections, then the target cannot be reached; 0: never */
	unsigned refuse_number;	   /* how many are refused then; 0: all */
	unsigned source_mark_fails, target_mark_fails;
	unsigned long source_alloc_fails; /* the n-th allocation of the source's main thread */
	enum session_phase source_cancel, target_cancel; /* 0 (CONNECT): never */
	unsigned lose_join; /* channel whose JOIN connection never reaches the target; 0: none */
	bool answer_lost_late; /* PRECHECK arrives, but fault cuts the connection before the target knows */
	bool target_is_older;	   /* it never says CONNECTED */
	bool cut_after_running;	   /* nothing more comes on the target's first connection */
	bool target_dies_silently; /* when the target has ended nobody answers */
	/* In place of the guest's own. */
	int (*let_go)(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err);
	bool state_without_end; /* behind the guest's state come keepalives until one cannot be sent */
};

struct pair {
	struct pair_options o;
	struct guest_sim *guest;
	uint64_t overlaps, allocated; /* before */
	struct pair_end source, target;
	struct guest_source *g;
	struct guest_sink *s;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct pair_waiting {
		unsigned channel;
		enum pgr_purpose purpose;
		struct channel *c;
	} waiting[64];
	unsigned nr_waiting;
	unsigned connections, made[PGR_CHANNELS_MAX];
	bool target_over, source_over;
	bool fault_fired;
	/* The guest's, percent: now, at least, and when it was asked to suspend. */
	unsigned speed, lowest_speed, speed_at_stop;
	struct channel *lost; /* the target's end of lose_join */
	char capture[64];     /* directory with what was sent */
};

/* Defaults: 16 MiB mixed, one vCPU writing, 2 channels, LZ4, resume quick. */
void pair_defaults(struct pair_options *o);
/* Make the guest and run both ends to their end. */
void pair_run(struct pair *p, const struct pair_options *o);
/*
 * What must hold whatever happened: exactly one runnable guest with this uuid, its memory right, none twice at any time, nothing half made left,
 * both ends of one mind, an error that says something. Then destroys everything and checks that nothing is left allocated.
 */
void pair_check_and_free(struct pair *p);
/* Run the verifier on what was captured. */
void pair_verify_capture(struct pair *p);

#endif
