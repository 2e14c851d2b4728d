/* SPDX-License-Identifier: MIT */
/*
 * Bad luck at every place: connections that are cut, fall silent or change a bit at the n-th call and byte in either direction, guests,
 * hypervisors, journals and memory that fail at the n-th step, people who cancel in each phase. After each: pair_check_and_free(),
 * which demands one runnable guest with the right memory, nothing left behind, and a reason.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/session_pair.h"
#include "tests/unit/unit.h"

static void small(struct pair_options *o)
{
	pair_defaults(o);
	o->guest.memory = 1u << 20;
	o->guest.page_table_pages = 4;
	o->guest.workload.working_set = 64u << 10;
	o->guest.workload.rate = 1u << 20;
	o->source.policy.max_rounds = 3;
	/* What heals does so at once; a machine that stands still for seconds must not look like a fault. */
	o->source.reconnect_ms = o->source.reconnect_stopped_ms = 10000;
	o->target.resume_wait_ms = 4000;
}

static bool resumable(const struct pair *p)
{
	/* Before the opening is through there is nothing to resume. */
	for (unsigned i = 0; i < p->source.nr_phases; i++)
		if (p->source.phases[i] == SESSION_ROUNDS)
			return true;
	return false;
}

/* Step the place of a fault through the whole session until it is behind the end. */
static void at_every_place(enum fault_kind kind, enum fault_side side, enum fault_unit unit,
			   uint64_t first, uint64_t step, uint64_t growth, unsigned channel,
			   bool must_heal)
{
	unsigned struck = 0;

	for (uint64_t at = first;; at += step, step += step * growth / 100) {
		struct pair_options o;
		struct pair p;
		bool fired;

		small(&o);
		o.fault = (struct fault_plan){.kind = kind, .side = side, .unit = unit, .at = at};
		o.fault_channel = channel;
		pair_run(&p, &o);
		fired = p.fault_fired;
		if (getenv("PAIR_TRACE"))
			fprintf(stderr, "place %llu: %.2f s, source %d %s\n%s%s",
				(unsigned long long)at, (double)p.source.result.elapsed_ns / 1e9,
				p.source.rc, p.source.error.text, p.source.messages,
				p.target.messages);
		if (fired)
			struck++;
		if (must_heal && fired && resumable(&p))
			CHECK_MSG(p.source.rc == 0, "place %llu: %s; target: %s",
				  (unsigned long long)at, p.source.error.text, p.target.error.text);
		if (kind == FAULT_FLIP && side == FAULT_WRITE && fired)
			/* A changed length makes a reader wait for what never comes: then the connection is made again and all is sent anew. */
			CHECK_MSG(p.source.rc < 0 || p.source.result.reconnects,
				  "place %llu: a changed bit went unnoticed",
				  (unsigned long long)at);
		if (!fired)
			CHECK_MSG(p.source.rc == 0, "place %llu: %s", (unsigned long long)at,
				  p.source.error.text);
		pair_check_and_free(&p);
		if (!fired)
			break;
		CHECK_MSG(struck < 2000, "the session never ends");
	}
	CHECK_MSG(struck > 3, "only %u places were tried", struck);
}

static void cut_at_every_write(void)
{
	at_every_place(FAULT_CUT, FAULT_WRITE, FAULT_CALL, 1, 1, 0, 0, true);
}

static void cut_at_every_write_of_a_further_channel(void)
{
	at_every_place(FAULT_CUT, FAULT_WRITE, FAULT_CALL, 1, 1, 0, 1, true);
}

static void cut_at_every_read(void)
{
	at_every_place(FAULT_CUT, FAULT_READ, FAULT_CALL, 1, 1, 10, 0, true);
}

/* Whether an answer that was on its way when the connection went has arrived only the source knows. */
static void cut_while_the_answer_arrives(void)
{
	struct pair_options o;
	struct pair p;

	small(&o);
	o.answer_lost_late = true;
	o.fault = (struct fault_plan){
		.kind = FAULT_CUT, .side = FAULT_WRITE, .unit = FAULT_CALL, .at = 8};
	pair_run(&p, &o);
	CHECK_MSG(p.source.rc == 0, "%s; target: %s", p.source.error.text, p.target.error.text);
	CHECK(p.source.result.reconnects >= 1);
	pair_check_and_free(&p);
}

static void cut_in_the_middle_of_records(void)
{
	at_every_place(FAULT_SHORT, FAULT_WRITE, FAULT_BYTE, 1, 37, 30, 0, true);
	at_every_place(FAULT_SHORT, FAULT_READ, FAULT_BYTE, 1, 5, 30, 0, true);
}

static void a_changed_bit_is_refused(void)
{
	at_every_place(FAULT_FLIP, FAULT_WRITE, FAULT_BYTE, 0, 7, 20, 0, false);
	at_every_place(FAULT_FLIP, FAULT_WRITE, FAULT_BYTE, 0, 41, 40, 1, false);
}

static void a_changed_bit_from_the_target(void)
{
	at_every_place(FAULT_FLIP, FAULT_READ, FAULT_BYTE, 0, 3, 15, 0, false);
}

static void the_channel_fails_otherwise(void)
{
	at_every_place(FAULT_FAIL, FAULT_WRITE, FAULT_CALL, 1, 1, 10, 0, false);
	at_every_place(FAULT_FAIL, FAULT_READ, FAULT_CALL, 1, 2, 20, 0, false);
}

/* The connection is cut and nobody listens any more until both give up. */
static void cut_for_good(void)
{
	for (unsigned at = 3; at < 24; at += 5) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.fault = (struct fault_plan){
			.kind = FAULT_CUT, .side = FAULT_WRITE, .unit = FAULT_CALL, .at = at};
		o.refuse_after = 2;
		o.source.reconnect_ms = o.source.reconnect_stopped_ms = 300;
		o.target.resume_wait_ms = 600;
		/* After COMMIT the source asks without end; the answers come again after a while. */
		o.refuse_number = 30;
		pair_run(&p, &o);
		if (p.fault_fired && p.source.rc)
			CHECK_MSG(strstr(p.source.error.text, "lost") ||
					  strstr(p.source.error.text, "not start"),
				  "%s", p.source.error.text);
		pair_check_and_free(&p);
	}
}

static void the_source_guest_fails(void)
{
	for (enum guest_sim_fault_point f = GUEST_SIM_FAULT_DESCRIBE; f <= GUEST_SIM_FAULT_STATE;
	     f++)
		for (unsigned n = 1; n <= 3; n++) {
			struct pair_options o;
			struct pair p;

			small(&o);
			o.source_fault = (struct guest_sim_fault){.point = f, .nth = n};
			o.source.suspend_timeout_ms = 200;
			pair_run(&p, &o);
			if (n == 1 && f != GUEST_SIM_FAULT_LOG_STOP &&
			    f != GUEST_SIM_FAULT_THROTTLE)
				CHECK_MSG(p.source.rc < 0, "%s: nothing happened",
					  guest_sim_fault_name(f));
			pair_check_and_free(&p);
		}
}

static void the_sink_fails(void)
{
	for (enum guest_sim_fault_point f = GUEST_SIM_FAULT_PRECHECK; f <= GUEST_SIM_FAULT_START;
	     f++)
		for (unsigned n = 1; n <= 4; n++) {
			struct pair_options o;
			struct pair p;

			small(&o);
			o.sink_fault = (struct guest_sim_fault){.point = f, .nth = n};
			pair_run(&p, &o);
			if (n == 1) {
				CHECK_MSG(p.source.rc < 0, "%s: nothing happened",
					  guest_sim_fault_name(f));
				/* The reason travels to whoever asked for the move. */
				CHECK_MSG(strstr(p.source.error.text, "target") != NULL, "%s",
					  p.source.error.text);
			}
			/* Also when it fails before its first answer. */
			if (f == GUEST_SIM_FAULT_PRECHECK && n == 1)
				CHECK_HAS(p.source.error.text, "says");
			if (f == GUEST_SIM_FAULT_PRECHECK_REFUSE && n == 1)
				CHECK_EQ(p.source.rc, -EPERM);
			pair_check_and_free(&p);
		}
}

/* The reason comes while the source's main thread is adding records: its lane is cancelled before it looks for a failure. */
static void the_reason_wins_over_the_cancelled_lane(void)
{
	struct pair_options o;
	struct pair p;

	small(&o);
	o.state_without_end = true;
	o.sink_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_SINK_STATE};
	pair_run(&p, &o);
	CHECK_MSG(strstr(p.source.error.text, "the target") &&
			  strstr(p.source.error.text,
				 guest_sim_fault_name(GUEST_SIM_FAULT_SINK_STATE)),
		  "%d %s", p.source.rc, p.source.error.text);
	CHECK_EQ(p.source.rc, -EIO);
	pair_check_and_free(&p);
}

static void the_journal_fails(void)
{
	for (unsigned n = 1; n <= 4; n++) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.source_mark_fails = n;
		pair_run(&p, &o);
		CHECK_EQ(p.source.rc == 0, n == 4);
		pair_check_and_free(&p);
	}
	for (unsigned n = 1; n <= 2; n++) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.target_mark_fails = n;
		pair_run(&p, &o);
		CHECK(p.source.rc < 0);
		pair_check_and_free(&p);
	}
}

static void cancelled_in_each_phase(void)
{
	static const enum session_phase at_source[] = {SESSION_PRECHECK, SESSION_ROUNDS,
						       SESSION_STOP, SESSION_VERIFY, SESSION_WAIT};
	static const enum session_phase at_target[] = {SESSION_PRECHECK, SESSION_RECEIVE,
						       SESSION_FINISH, SESSION_READY};

	for (unsigned i = 0; i < 5; i++) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.source.verify = true;
		o.source_cancel = at_source[i];
		pair_run(&p, &o);
		CHECK_MSG(p.source.rc == -ECANCELED ||
				  (at_source[i] == SESSION_WAIT && p.source.rc == 0),
			  "%s: %d %s", session_phase_name(at_source[i]), p.source.rc,
			  p.source.error.text);
		pair_check_and_free(&p);
	}
	for (unsigned i = 0; i < 4; i++) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.target_cancel = at_target[i];
		pair_run(&p, &o);
		/* The cancellation and the COMMIT may cross: then the target's word decides. */
		CHECK_MSG(p.source.rc == -ECANCELED ||
				  (i >= 2 && (p.source.rc == -ESTALE || p.source.rc == 0)),
			  "%s: %d %s", session_phase_name(at_target[i]), p.source.rc,
			  p.source.error.text);
		pair_check_and_free(&p);
	}
}

static void memory_is_short_at_the_source(void)
{
	for (unsigned long n = 1; n < 60; n++) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.source_alloc_fails = n;
		pair_run(&p, &o);
		/* A thread that finds no memory for its stack says EAGAIN. */
		if (p.source.rc && p.source.rc != -EAGAIN)
			CHECK_EQ(p.source.rc, -ENOMEM);
		pair_check_and_free(&p);
	}
}

/* A digest that does not agree: a page of the sink changed behind the engine's back is found by --verify. */
static void a_guest_too_big_is_refused(void)
{
	struct pair_options o;
	struct pair p;

	small(&o);
	o.sink.memory_free = 64u << 10;
	pair_run(&p, &o);
	CHECK_EQ(p.source.rc, -EPERM);
	CHECK_HAS(p.source.error.text, "memory");
	CHECK_EQ(p.source.result.rounds, 0);
	pair_check_and_free(&p);
}

UNIT_MAIN(TEST(cut_at_every_write), TEST(cut_at_every_write_of_a_further_channel),
	  TEST(cut_at_every_read), TEST(cut_while_the_answer_arrives),
	  TEST(cut_in_the_middle_of_records), TEST(a_changed_bit_is_refused),
	  TEST(a_changed_bit_from_the_target), TEST(the_channel_fails_otherwise),
	  TEST(cut_for_good), TEST(the_source_guest_fails), TEST(the_sink_fails),
	  TEST(the_reason_wins_over_the_cancelled_lane), TEST(the_journal_fails),
	  TEST(cancelled_in_each_phase), TEST(memory_is_short_at_the_source),
	  TEST(a_guest_too_big_is_refused))
