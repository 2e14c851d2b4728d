/* SPDX-License-Identifier: MIT */
/* Whole sessions on a simulated guest, when all goes well: every option, one to sixteen channels. */
#include <stdio.h>
#include <string.h>

#include "tests/unit/session_pair.h"
#include "tests/unit/unit.h"

static void must_move(const struct pair_options *o)
{
	struct pair p;

	pair_run(&p, o);
	CHECK_MSG(p.source.rc == 0, "source: %s; target: %s", p.source.error.text,
		  p.target.error.text);
	CHECK_MSG(p.target.rc == 0, "target: %s", p.target.error.text);
	CHECK_EQ(p.source.result.digest, p.target.result.digest);
	CHECK(p.source.result.digest_pages > 0);
	CHECK_EQ(p.source.result.verified, o->source.verify);
	CHECK_EQ(p.target.result.verified, o->source.verify);
	CHECK_STR(p.target.messages, "");
	pair_verify_capture(&p);
	pair_check_and_free(&p);
}

static void moves_a_running_guest(void)
{
	struct pair_options o;

	pair_defaults(&o);
	must_move(&o);
}

static void moves_over_1_to_16_channels(void)
{
	static const unsigned channels[] = {1, 3, 4, 7, 16};

	for (unsigned i = 0; i < sizeof(channels) / sizeof(channels[0]); i++) {
		struct pair_options o;

		pair_defaults(&o);
		o.source.channels = channels[i];
		must_move(&o);
	}
}

static void moves_with_each_encoding(void)
{
	for (enum encode_method m = ENCODE_NONE; m <= ENCODE_ZSTD; m++) {
		struct pair_options o;

		pair_defaults(&o);
		o.source.encode.method = m;
		o.source.encode.cache_bytes = m == ENCODE_NONE ? 0 : 1u << 20;
		must_move(&o);
	}
}

static void verifies(void)
{
	struct pair_options o;

	pair_defaults(&o);
	o.source.verify = true;
	must_move(&o);
}

static void moves_what_cannot_be_logged(void)
{
	struct pair_options o;
	struct pair p;

	pair_defaults(&o);
	o.guest.track = GUEST_SIM_TRACK_NONE;
	o.source.verify = true;
	pair_run(&p, &o);
	CHECK_MSG(p.source.rc == 0, "%s", p.source.error.text);
	CHECK_HAS(p.source.messages, "stands still");
	CHECK_EQ(p.source.result.rounds, 2);
	pair_verify_capture(&p);
	pair_check_and_free(&p);
}

static void moves_the_smallest_and_odd_sizes(void)
{
	static const uint64_t pages[] = {16, 17, 63, 64, 65, 255, 256, 257, 511, 1023};

	for (unsigned i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
		struct pair_options o;

		pair_defaults(&o);
		o.guest.memory = pages[i] * 4096;
		o.guest.workload.working_set = 8 * 4096;
		o.guest.page_table_pages = 1;
		o.source.channels = 3;
		must_move(&o);
	}
}

/* Races at the end of a session show once in many: an acknowledgement of COMMIT that followed RUNNING was one. */
static void moves_often(void)
{
	for (unsigned i = 0; i < 80; i++) {
		struct pair_options o;
		struct pair p;

		pair_defaults(&o);
		o.guest.memory = 64 * 4096;
		o.guest.workload.working_set = 8 * 4096;
		o.guest.page_table_pages = 1;
		o.source.policy.max_rounds = 2;
		pair_run(&p, &o);
		CHECK_MSG(p.source.rc == 0, "move %u: %s; target: %s", i, p.source.error.text,
			  p.target.error.text);
		CHECK_STR(p.source.messages, "");
		pair_check_and_free(&p);
	}
}

static void caps_the_bandwidth(void)
{
	struct pair_options o;
	struct pair p;

	pair_defaults(&o);
	o.guest.memory = 4u << 20;
	o.guest.region[0].content = GUEST_SIM_RANDOM;
	o.guest.region[0].share = 1;
	o.guest.nr_regions = 1;
	o.guest.workload.rate = 64u << 10;
	o.source.bandwidth = 4u << 20;
	pair_run(&p, &o);
	CHECK_MSG(p.source.rc == 0, "%s", p.source.error.text);
	/* 4 MiB at 4 MiB/s and a little burst: never below half a second, however fast the machine is. */
	CHECK(p.source.result.elapsed_ns > 500000000ull);
	pair_check_and_free(&p);
}

/* A slow guest would be long about suspending itself. */
static void a_slowed_guest_is_stopped_at_full_speed(void)
{
	struct pair_options o;
	struct pair p;

	pair_defaults(&o);
	o.guest.workload.rate = 40u << 20;
	o.source.bandwidth = 4u << 20;
	o.source.encode.method = ENCODE_NONE;
	o.source.encode.cache_bytes = 0;
	o.source.policy.max_rounds = 8;
	o.source.policy.min_speed = 10;
	pair_run(&p, &o);
	CHECK_MSG(p.source.rc == 0, "%s", p.source.error.text);
	CHECK_MSG(p.lowest_speed < 100, "it was not slowed in %u rounds", p.source.result.rounds);
	CHECK_EQ(p.speed_at_stop, 100);
	CHECK_MSG(strstr(p.source.messages, "slowing it from 100 % to 50 %"), "%s",
		  p.source.messages);
	pair_check_and_free(&p);
}

static void a_dry_run_touches_nothing(void)
{
	struct pair_options o;
	struct pair p;

	pair_defaults(&o);
	o.source.dry_run = true;
	pair_run(&p, &o);
	CHECK_EQ(p.source.rc, 0);
	CHECK_EQ(p.source.result.outcome, SESSION_STAYED);
	CHECK_EQ(guest_sim_count(p.o.guest.uuid), 1);
	CHECK(guest_sim_of_sink(p.s) == NULL);
	CHECK(guest_sim_running(p.o.guest.uuid) == 1);
	p.g->ops->close(p.g);
	p.s->ops->close(p.s);
	guest_sim_destroy(p.guest);
}

static void passes_through_its_phases_in_order(void)
{
	static const enum session_phase expected[] = {
		SESSION_CONNECT, SESSION_PRECHECK, SESSION_ROUNDS,  SESSION_STOP, SESSION_VERIFY,
		SESSION_WAIT,	 SESSION_COMMIT,   SESSION_CLEANUP, SESSION_DONE};
	struct pair_options o;
	struct pair p;
	unsigned at = 0;

	pair_defaults(&o);
	o.source.verify = true;
	pair_run(&p, &o);
	CHECK_EQ(p.source.rc, 0);
	for (unsigned i = 0; i < p.source.nr_phases && at < 9; i++)
		if (p.source.phases[i] == expected[at])
			at++;
	CHECK_EQ(at, 9);
	CHECK_EQ(p.source.nr_phases, 9);
	CHECK_EQ(p.source.nr_marks, 4);
	CHECK_EQ(p.source.marks[1], SESSION_MARK_STOPPING);
	CHECK_EQ(p.source.marks[2], SESSION_MARK_COMMIT);
	CHECK_EQ(p.source.marks[3], SESSION_MARK_MOVED);
	CHECK_EQ(p.target.nr_marks, 3);
	CHECK_EQ(p.target.marks[1], SESSION_MARK_COMMIT);
	CHECK_EQ(p.target.marks[2], SESSION_MARK_MOVED);
	pair_check_and_free(&p);
}

UNIT_MAIN(TEST(moves_a_running_guest), TEST(moves_over_1_to_16_channels),
	  TEST(moves_with_each_encoding), TEST(verifies), TEST(moves_what_cannot_be_logged),
	  TEST(moves_the_smallest_and_odd_sizes), TEST(moves_often), TEST(caps_the_bandwidth),
	  TEST(a_slowed_guest_is_stopped_at_full_speed), TEST(a_dry_run_touches_nothing),
	  TEST(passes_through_its_phases_in_order))
