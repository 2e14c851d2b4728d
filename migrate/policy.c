// SPDX-License-Identifier: MIT
/*
 * When to go on, throttle, stop, or give up.
 *
 * What a stop costs. If the guest is stopped after n rounds, the pages that it wrote during the
 * last round are still to be sent:
 *
 *	predicted downtime = fixed + dirtied * bytes a page / bandwidth
 *	                   = fixed + dirtied * duration / pages
 *
 * because bytes cancel: a page took duration/pages in the last round, whatever it was encoded to.
 * (Measured over the last round, the newest truth. A round that sent nothing says nothing about
 * speed; then the newest round that did is asked.) Before the first round nothing is known and,
 * when the guest can log its writes, one round is made, unless the fixed part alone is above the
 * target: that is said before anything is copied and not after.
 *
 * Stop when
 *  1. the guest cannot log its writes: there are no rounds, at once;
 *  2. nothing was written during the last round;
 *  3. the prediction is within the target;
 *  4. there is no target (0: as short as possible, never refuse) and rounds no longer help: over
 *     the last two rounds the pages to send shrank by less than a tenth - the writable working set
 *     is reached, another round sends the same pages again - and there is no throttling left; or
 *     the rounds or the time are used up.
 *
 * Throttle when rounds no longer help, the target is not reached and the guest may still be slowed.
 * A guest at half speed dirties about half as much in a second, so the steps are multiplicative:
 * half of the speed each time, never below min_speed. A guest at full speed is slowed when two
 * rounds did not help. After that one round at the new speed is enough: a guest that wrote no less
 * than was sent meanwhile is still too fast, however the round after turns out; and each round
 * may send the whole working set again, so small steps or long looks would cost more than they
 * spare the guest.
 *
 * Give up when there is a target and it is not reached: the rounds or the time are used up; or
 * rounds no longer help, no throttling is left and the prediction has been above the target for
 * both rounds since. The numbers and what to change are in the reason. (Letting a hopeless run go
 * on to its last round would cost the guest's owner bandwidth and time for nothing; and stopping
 * regardless would break the promise that the target is.)
 *
 * Two properties, tested: (a) rounds end: with nr >= max_rounds the decision is STOP or GIVE_UP;
 * (b) monotone: what stops at a target stops at every larger one, because the target enters only
 *     through `predicted <= target`, which comes before all else that a target decides.
 * The target 0 stands for "no limit" and is left out of (b).
 *
 * All sums saturate: absurd numbers give a large prediction, never a small one.
 */
#include "migrate/policy.h"

#include <stdio.h>

#define MAX_ROUNDS_DEFAULT 30u
/* Rounds help when the pages to send fell below 9/10 of what they were two rounds ago. */
#define SHRINK_NUM  9u
#define SHRINK_DEN  10u
#define SHRINK_SPAN 2u
/* A throttling step divides the speed by this. */
#define THROTTLE_STEP 2u

typedef unsigned __int128 u128;

static uint64_t saturate(u128 x)
{
	return x > UINT64_MAX ? UINT64_MAX : (uint64_t)x;
}

static uint64_t add(uint64_t a, uint64_t b)
{
	return saturate((u128)a + b);
}

/* Time for pages at the speed of the newest round that says something; *known false: none does. */
static uint64_t time_for(const struct policy_round *rounds, unsigned nr, uint64_t pages,
			 bool *known)
{
	for (unsigned i = nr; i-- > 0;) {
		if (!rounds[i].pages)
			continue;
		*known = true;
		return saturate((u128)pages * rounds[i].duration_ns / rounds[i].pages);
	}
	*known = false;
	return pages ? UINT64_MAX : 0;
}

/* What the guest wrote is not getting less: compared over two rounds made at the present speed. */
static bool stopped_shrinking(const struct policy_round *rounds, unsigned nr)
{
	const struct policy_round *now, *then;

	if (nr <= SHRINK_SPAN)
		return false;
	now = &rounds[nr - 1];
	then = &rounds[nr - 1 - SHRINK_SPAN];
	for (unsigned i = nr - SHRINK_SPAN; i < nr; i++) {
		if (rounds[i].speed != now->speed)
			return false;
	}
	return (u128)now->dirtied * SHRINK_DEN > (u128)then->dirtied * SHRINK_NUM;
}

/* Slowed already, and still writing about as much in a round as the round sends. */
static bool still_too_fast(const struct policy_round *last)
{
	return last->speed < 100 &&
	       (u128)last->dirtied * SHRINK_DEN > (u128)last->pages * SHRINK_NUM;
}

static unsigned current_speed(const struct policy_round *rounds, unsigned nr)
{
	unsigned speed = nr ? rounds[nr - 1].speed : 100;

	return speed < 1 ? 1 : speed > 100 ? 100 : speed;
}

static unsigned lowest_speed(const struct policy_limits *l)
{
	return l->min_speed < 1 ? 1 : l->min_speed > 100 ? 100 : l->min_speed;
}

static unsigned slower(unsigned speed, unsigned lowest)
{
	unsigned next = speed / THROTTLE_STEP;

	return next < lowest ? lowest : next;
}

/* Nanoseconds as a person says them. */
static const char *say_time(char text[24], uint64_t ns)
{
	if (ns == UINT64_MAX)
		snprintf(text, 24, "an unknown time");
	else if (ns < 10000000)
		snprintf(text, 24, "%.1f ms", (double)ns / 1e6);
	else if (ns < 10000000000u)
		snprintf(text, 24, "%.0f ms", (double)ns / 1e6);
	else
		snprintf(text, 24, "%.0f s", (double)ns / 1e9);
	return text;
}

struct view {
	const struct policy_limits *l;
	const struct policy_round *last; /* NULL before the first round */
	unsigned nr, max_rounds, speed, lowest;
	bool stuck, out_of_rounds, out_of_time;
	char predicted[24], target[24];
};

#define SAY(out, ...) snprintf((out)->reason, sizeof((out)->reason), __VA_ARGS__)

static void decide_stop(const struct view *v, struct policy_decision *out)
{
	out->action = POLICY_STOP;
	out->predicted_left_ns = out->predicted_downtime_ns;
	if (!v->l->can_log_dirty)
		SAY(out,
		    "this host cannot log the guest's writes: it is stopped while all of its memory is copied");
	else if (!v->last->dirtied)
		SAY(out, "the guest wrote nothing during round %u: a stop costs %s", v->nr - 1,
		    v->predicted);
	else if (v->l->downtime_ns && out->predicted_downtime_ns <= v->l->downtime_ns)
		SAY(out, "%llu pages are left: a stop costs %s, within the target of %s",
		    (unsigned long long)v->last->dirtied, v->predicted, v->target);
	else if (v->out_of_rounds || v->out_of_time)
		SAY(out, "the limit of %s is reached with %llu pages left: a stop costs %s",
		    v->out_of_rounds ? "rounds" : "time", (unsigned long long)v->last->dirtied,
		    v->predicted);
	else
		SAY(out,
		    "the guest keeps writing %llu pages a round, more rounds do not help: a stop costs %s",
		    (unsigned long long)v->last->dirtied, v->predicted);
}

static void decide_throttle(const struct view *v, struct policy_decision *out)
{
	out->action = POLICY_THROTTLE;
	out->speed = slower(v->speed, v->lowest);
	SAY(out,
	    "the guest keeps writing %llu pages a round (a stop would cost %s): slowing it from %u %% to %u %%",
	    (unsigned long long)v->last->dirtied, v->predicted, v->speed, out->speed);
}

static void decide_give_up(const struct view *v, struct policy_decision *out)
{
	const char *advice = v->lowest < v->speed ? "allow more rounds or a longer stop"
			     : v->lowest > 1	  ? "allow a longer stop or a lower speed"
						  : "allow a longer stop";

	out->action = POLICY_GIVE_UP;
	SAY(out,
	    "%s: the guest writes %llu pages a round, a stop would cost %s and the target is %s; %s",
	    v->out_of_rounds ? "the limit of rounds is reached"
	    : v->out_of_time ? "the limit of time is reached"
			     : "more rounds do not help",
	    (unsigned long long)v->last->dirtied, v->predicted, v->target, advice);
}

static void decide_round(const struct view *v, struct policy_decision *out)
{
	out->action = POLICY_ROUND;
	if (!v->last)
		SAY(out, "the first round copies all of the memory");
	else if (v->l->downtime_ns)
		SAY(out,
		    "%llu pages were written: a stop would cost %s, the target is %s; another round",
		    (unsigned long long)v->last->dirtied, v->predicted, v->target);
	else
		SAY(out, "%llu pages were written: a stop would cost %s; another round may help",
		    (unsigned long long)v->last->dirtied, v->predicted);
}

/* The time to come if each round goes on shrinking as the last did; 0: unknown. */
static uint64_t predict_left(const struct policy_round *rounds, unsigned nr, uint64_t target,
			     uint64_t predicted)
{
	const struct policy_round *last = &rounds[nr - 1];
	uint64_t left = predicted, next = predicted;
	bool shrinks = nr && last->pages && last->dirtied < last->pages;

	if (!shrinks || predicted == UINT64_MAX)
		return 0;
	for (unsigned i = 0; i < MAX_ROUNDS_DEFAULT && next > target; i++) {
		next = saturate((u128)next * last->dirtied / last->pages);
		left = add(left, next);
	}
	return left;
}

void policy_next(const struct policy_limits *l, const struct policy_round *rounds, unsigned nr,
		 uint64_t elapsed_ns, struct policy_decision *out)
{
	struct view v = {
		.l = l,
		.last = nr ? &rounds[nr - 1] : NULL,
		.nr = nr,
		.max_rounds = l->max_rounds ? l->max_rounds : MAX_ROUNDS_DEFAULT,
		.speed = current_speed(rounds, nr),
		.lowest = lowest_speed(l),
		.stuck = stopped_shrinking(rounds, nr),
		.out_of_time = nr && l->max_time_ns && elapsed_ns >= l->max_time_ns,
	};
	uint64_t dirtied = nr ? rounds[nr - 1].dirtied : 0;
	bool known, can_slow = v.lowest < v.speed;

	v.out_of_rounds = nr >= v.max_rounds;
	*out = (struct policy_decision){.speed = v.speed};
	out->predicted_downtime_ns = add(l->fixed_stop_ns, time_for(rounds, nr, dirtied, &known));
	say_time(v.predicted, out->predicted_downtime_ns);
	say_time(v.target, l->downtime_ns);

	if (!l->can_log_dirty) {
		out->predicted_downtime_ns =
			0; /* all of the memory, at a speed that nobody has measured */
		decide_stop(&v, out);
	} else if (!nr && l->downtime_ns && l->fixed_stop_ns > l->downtime_ns) {
		out->action = POLICY_GIVE_UP;
		SAY(out,
		    "a stop costs %s even without any page and the target is %s; allow a longer stop",
		    v.predicted, v.target);
	} else if (!nr) {
		decide_round(&v, out);
		out->predicted_downtime_ns = 0;
	} else if (!dirtied && (!l->downtime_ns || l->fixed_stop_ns <= l->downtime_ns)) {
		decide_stop(&v, out);
	} else if (l->downtime_ns && out->predicted_downtime_ns <= l->downtime_ns) {
		decide_stop(&v, out);
	} else if (v.out_of_rounds || v.out_of_time) {
		if (l->downtime_ns)
			decide_give_up(&v, out);
		else
			decide_stop(&v, out);
	} else if (can_slow && (v.stuck || still_too_fast(v.last))) {
		decide_throttle(&v, out);
	} else if (v.stuck || !dirtied) {
		if (l->downtime_ns)
			decide_give_up(&v, out);
		else
			decide_stop(&v, out);
	} else {
		decide_round(&v, out);
		out->predicted_left_ns =
			predict_left(rounds, nr, l->downtime_ns, out->predicted_downtime_ns);
	}
}

const char *policy_action_name(enum policy_action a)
{
	static const char *const names[] = {
		[POLICY_ROUND] = "round",
		[POLICY_THROTTLE] = "throttle",
		[POLICY_STOP] = "stop",
		[POLICY_GIVE_UP] = "give up",
	};

	return (unsigned)a < sizeof(names) / sizeof(names[0]) ? names[a] : "unknown";
}
