/* SPDX-License-Identifier: MIT */
/*
 * When to go on copying, when to slow the guest, when to stop it, when to give up: a pure function of what happened so far.
 */
#ifndef PAGURUS_POLICY_H
#define PAGURUS_POLICY_H

#include <stdbool.h>
#include <stdint.h>

struct policy_limits {
	uint64_t
		downtime_ns; /* the longest stop that the user accepts; 0: as short as possible, never refuse */
	uint64_t
		fixed_stop_ns; /* what a stop costs without any page (state, build, start), measured or estimated */
	unsigned max_rounds;  /* 0: 30 */
	uint64_t max_time_ns; /* 0: none */
	unsigned min_speed;   /* throttling may slow the guest to this percent; 100: not allowed */
	bool can_log_dirty;
};

/* One finished round. */
struct policy_round {
	uint64_t pages; /* sent */
	uint64_t bytes; /* put on the wire for them */
	uint64_t duration_ns;
	uint64_t dirtied; /* pages written by the guest while the round ran */
	unsigned speed;	  /* percent at which the guest ran */
};

enum policy_action { POLICY_ROUND, POLICY_THROTTLE, POLICY_STOP, POLICY_GIVE_UP };

struct policy_decision {
	enum policy_action action;
	unsigned speed; /* the guest's percent from now on (THROTTLE: lower than before) */
	uint64_t predicted_downtime_ns; /* if it were stopped now */
	uint64_t predicted_left_ns;	/* until the guest runs at the target, 0: unknown */
	char reason[200];		/* for the user, with the numbers */
};

/*
 * rounds[0 .. nr-1] are all the rounds so far (nr >= 0), elapsed_ns the time since the first began. Deterministic, no allocation, total:
 * any numbers, also absurd ones (zero durations, overflow), give a decision.
 */
void policy_next(const struct policy_limits *l, const struct policy_round *rounds, unsigned nr,
		 uint64_t elapsed_ns, struct policy_decision *out);

const char *policy_action_name(enum policy_action a);

#endif
