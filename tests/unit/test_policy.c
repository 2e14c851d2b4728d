// SPDX-License-Identifier: MIT
/*
 * The policy on simulated guests (a working set written at a rate, a link with a bandwidth), on
 * fixed traces, and on absurd numbers.
 */
#include <stdio.h>
#include <string.h>

#include "migrate/policy.h"
#include "tests/unit/unit.h"

#define MS 1000000ull
#define S  (1000 * MS)

/*
 * A guest that writes `rate` pages a second at full speed, all within `set` pages, and a link of
 * `link` pages a second.
 */
struct model {
	uint64_t memory, set, rate, link;
};

struct run {
	struct policy_round round[64];
	unsigned nr;
	uint64_t elapsed;
	struct policy_decision last;
	unsigned throttled;
};

/* Pages to send next: what was written meanwhile, no more than the working set. */
static uint64_t written(const struct model *m, uint64_t ns, unsigned speed)
{
	uint64_t pages = (uint64_t)((double)m->rate * speed / 100 * (double)ns / 1e9);

	return pages < m->set ? pages : m->set;
}

static void simulate(const struct model *m, const struct policy_limits *l, struct run *r)
{
	uint64_t pages = m->memory;
	unsigned speed = 100;

	memset(r, 0, sizeof(*r));
	for (;;) {
		struct policy_round *now = &r->round[r->nr];

		policy_next(l, r->round, r->nr, r->elapsed, &r->last);
		CHECK(r->last.reason[0] && strlen(r->last.reason) < sizeof(r->last.reason) - 1);
		if (r->last.action == POLICY_STOP || r->last.action == POLICY_GIVE_UP)
			return;
		if (r->last.action == POLICY_THROTTLE) {
			CHECK(r->last.speed < speed && r->last.speed >= l->min_speed);
			r->throttled++;
			speed = r->last.speed;
		}
		CHECK_MSG(r->nr < 64, "it does not end");
		now->pages = pages;
		now->bytes = pages * 4096;
		now->duration_ns = pages * S / m->link + 1;
		now->speed = speed;
		pages = now->dirtied = written(m, now->duration_ns, speed);
		r->elapsed += now->duration_ns;
		r->nr++;
	}
}

static struct policy_limits limits(uint64_t downtime)
{
	return (struct policy_limits){
		.downtime_ns = downtime, .min_speed = 100, .can_log_dirty = true};
}

static void cannot_log_stops_at_once(void)
{
	struct policy_limits l = limits(10 * MS);
	struct policy_decision d;

	l.can_log_dirty = false;
	policy_next(&l, NULL, 0, 0, &d);
	CHECK_EQ(d.action, POLICY_STOP);
	CHECK_HAS(d.reason, "cannot log the guest's writes");
}

static void first_comes_a_round(void)
{
	struct policy_limits l = limits(0);
	struct policy_decision d;

	policy_next(&l, NULL, 0, 0, &d);
	CHECK_EQ(d.action, POLICY_ROUND);
	CHECK_EQ(d.predicted_downtime_ns, 0);
}

static void impossible_target_is_told_before_copying(void)
{
	struct policy_limits l = limits(10 * MS);
	struct policy_decision d;

	l.fixed_stop_ns = 50 * MS;
	policy_next(&l, NULL, 0, 0, &d);
	CHECK_EQ(d.action, POLICY_GIVE_UP);
	CHECK_HAS(d.reason, "50 ms");
	CHECK_HAS(d.reason, "longer stop");
}

static void idle_guest_stops_after_one_round(void)
{
	struct model m = {.memory = 65536, .set = 0, .rate = 0, .link = 100000};
	struct policy_limits l = limits(0);
	struct run r;

	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_STOP);
	CHECK_EQ(r.nr, 1);
	CHECK_HAS(r.last.reason, "wrote nothing");
}

static void converging_guest_meets_its_target(void)
{
	struct model m = {.memory = 262144, .set = 262144, .rate = 20000, .link = 100000};
	struct policy_limits l = limits(50 * MS);
	struct run r;

	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_STOP);
	CHECK(r.last.predicted_downtime_ns <= 50 * MS);
	CHECK(r.nr >= 3 && r.nr <= 6);
	CHECK_HAS(r.last.reason, "within the target of 50 ms");
}

/*
 * Without a target the run ends when the writable working set is reached, not after all 30 rounds.
 */
static void working_set_ends_an_open_run(void)
{
	struct model m = {.memory = 262144, .set = 4000, .rate = 1000000, .link = 100000};
	struct policy_limits l = limits(0);
	struct run r;

	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_STOP);
	CHECK(r.nr <= 5);
	CHECK_EQ(r.last.predicted_downtime_ns / MS, 40);
	CHECK_HAS(r.last.reason, "more rounds do not help");
}

static void busy_guest_is_refused_with_numbers_and_advice(void)
{
	struct model m = {.memory = 262144, .set = 100000, .rate = 200000, .link = 100000};
	struct policy_limits l = limits(100 * MS);
	struct run r;

	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_GIVE_UP);
	CHECK(r.nr <= 5);
	CHECK_HAS(r.last.reason, "100000 pages");
	CHECK_HAS(r.last.reason, "1000 ms");
	CHECK_HAS(r.last.reason, "the target is 100 ms");
	CHECK_HAS(r.last.reason, "allow a longer stop or a lower speed");
}

static void throttling_makes_it_converge(void)
{
	struct model m = {.memory = 262144, .set = 262144, .rate = 110000, .link = 100000};
	struct policy_limits l = limits(100 * MS);
	struct run r;

	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_GIVE_UP);
	l.min_speed = 30;
	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_STOP);
	CHECK(r.throttled >= 1 && r.throttled <= 3);
	CHECK(r.last.predicted_downtime_ns <= 100 * MS);
}

static void throttling_ends_at_its_limit(void)
{
	struct model m = {.memory = 262144, .set = 200000, .rate = 4000000, .link = 100000};
	struct policy_limits l = limits(100 * MS);
	struct run r;

	l.min_speed = 20;
	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_GIVE_UP);
	CHECK_EQ(r.last.speed, 20);
	CHECK_EQ(r.throttled, 3); /* 50, 25, 20 */
}

/* A round that was made before the last step says nothing about the new speed; one that was made after it is enough to tell that it is too high. */
static void a_throttling_step_gets_one_round(void)
{
	struct policy_round r[5] = {
		{9000, 9000, S, 9000, 100}, {9000, 9000, S, 9000, 100},
		{9000, 9000, S, 9000, 50},  {9000, 9000, 2 * S, 5000, 25},
		{5000, 9000, S, 4600, 25},
	};
	struct policy_limits l = limits(10 * MS);
	struct policy_decision d;

	l.min_speed = 10;
	policy_next(&l, r, 2, 2 * S, &d);
	CHECK_EQ(d.action, POLICY_ROUND);
	policy_next(&l, r, 3, 3 * S, &d);
	CHECK_EQ(d.action, POLICY_THROTTLE);
	CHECK_EQ(d.speed, 25);
	/* It helps. */
	policy_next(&l, r, 4, 5 * S, &d);
	CHECK_EQ(d.action, POLICY_ROUND);
	CHECK_EQ(d.speed, 25);
	/* Not any more. */
	policy_next(&l, r, 5, 6 * S, &d);
	CHECK_EQ(d.action, POLICY_THROTTLE);
	CHECK_EQ(d.speed, 12);
}

/* The writer of docs/performance.md: what it costs until it is slow enough, in rounds of all that it writes. */
static void few_rounds_until_it_is_slow_enough(void)
{
	struct model m = {.memory = 65536, .set = 16384, .rate = 5120, .link = 1800};
	struct policy_limits l = limits(0);
	unsigned whole = 0;
	struct run r;

	l.min_speed = 10;
	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_STOP);
	CHECK(r.last.predicted_downtime_ns < 50 * MS);
	for (unsigned i = 1; i < r.nr; i++)
		whole += r.round[i].pages == m.set;
	CHECK_MSG(whole <= 4, "%u rounds sent all", whole);
}

static void limits_of_rounds_and_time_hold(void)
{
	struct model m = {.memory = 262144, .set = 262144, .rate = 80000, .link = 100000};
	struct policy_limits l = limits(1 * MS);
	struct run r;

	l.max_rounds = 4;
	simulate(&m, &l, &r);
	CHECK_EQ(r.nr, 4);
	CHECK_EQ(r.last.action, POLICY_GIVE_UP);
	CHECK_HAS(r.last.reason, "limit of rounds");
	l.max_rounds = 0;
	l.max_time_ns = 3 * S;
	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_GIVE_UP);
	CHECK_HAS(r.last.reason, "limit of time");
	l.downtime_ns = 0;
	simulate(&m, &l, &r);
	CHECK_EQ(r.last.action, POLICY_STOP);
	CHECK_HAS(r.last.reason, "limit of time");
}

/*
 * Calculated for two emulated hosts: a 256 MB guest, 64 MB of it written at 20 MB/s, a link of 8.5
 * MB/s.
 */
static void slow_link_does_not_converge(void)
{
	static const struct policy_round trace[] = {
		{65536, 268435456, 31000 * MS, 16384, 100},
		{16384, 67108864, 7900 * MS, 16384, 100},
		{16384, 67108864, 7900 * MS, 16384, 100},
	};
	struct policy_limits l = limits(300 * MS);
	struct policy_decision d;

	policy_next(&l, trace, 1, 31000 * MS, &d);
	CHECK_EQ(d.action, POLICY_ROUND);
	CHECK_EQ(d.predicted_downtime_ns / MS, 7750);
	policy_next(&l, trace, 3, 46800 * MS, &d);
	CHECK_EQ(d.action, POLICY_GIVE_UP);
	l.min_speed = 10;
	policy_next(&l, trace, 3, 46800 * MS, &d);
	CHECK_EQ(d.action, POLICY_THROTTLE);
	CHECK_EQ(d.speed, 50);
	l.downtime_ns = 0;
	l.min_speed = 100;
	policy_next(&l, trace, 3, 46800 * MS, &d);
	CHECK_EQ(d.action, POLICY_STOP);
	l.downtime_ns = 8 * S;
	policy_next(&l, trace, 2, 38900 * MS, &d);
	CHECK_EQ(d.action, POLICY_STOP);
}

static void fixed_part_counts(void)
{
	static const struct policy_round one = {1000, 4096000, 100 * MS, 500, 100};
	struct policy_limits l = limits(60 * MS);
	struct policy_decision d;

	policy_next(&l, &one, 1, 100 * MS, &d);
	CHECK_EQ(d.action, POLICY_STOP);
	CHECK_EQ(d.predicted_downtime_ns, 50 * MS);
	l.fixed_stop_ns = 20 * MS;
	policy_next(&l, &one, 1, 100 * MS, &d);
	CHECK_EQ(d.action, POLICY_ROUND);
	CHECK_EQ(d.predicted_downtime_ns, 70 * MS);
	CHECK(d.predicted_left_ns > d.predicted_downtime_ns);
}

/* Any numbers: 0, 1, huge, or ordinary. */
static uint64_t absurd(uint64_t *seed)
{
	switch (unit_below(seed, 6)) {
	case 0:
		return 0;
	case 1:
		return 1;
	case 2:
		return UINT64_MAX - unit_below(seed, 2);
	case 3:
		return unit_random(seed);
	default:
		return unit_below(seed, 100000);
	}
}

static void absurd_numbers_get_a_decision(void)
{
	uint64_t seed = unit_seed();
	unsigned seen[4] = {0};

	for (unsigned i = 0; i < 200000; i++) {
		unsigned nr = (unsigned)unit_below(&seed, 6);
		struct policy_limits l = {
			.downtime_ns = absurd(&seed),
			.fixed_stop_ns = absurd(&seed),
			.max_rounds = (unsigned)absurd(&seed),
			.max_time_ns = absurd(&seed),
			.min_speed = (unsigned)absurd(&seed),
			.can_log_dirty = unit_below(&seed, 8) != 0,
		};
		struct policy_decision d, larger;
		struct policy_round r[6];
		uint64_t elapsed = absurd(&seed);

		for (unsigned k = 0; k < nr; k++)
			r[k] = (struct policy_round){absurd(&seed), absurd(&seed), absurd(&seed),
						     absurd(&seed), (unsigned)absurd(&seed)};
		policy_next(&l, r, nr, elapsed, &d);
		CHECK(d.action <= POLICY_GIVE_UP);
		seen[d.action]++;
		CHECK(d.speed >= 1 && d.speed <= 100);
		CHECK(d.reason[0] && memchr(d.reason, '\0', sizeof(d.reason)));
		CHECK(!nr || d.predicted_downtime_ns >= l.fixed_stop_ns || !l.can_log_dirty);
		if (nr >= (l.max_rounds ? l.max_rounds : 30))
			CHECK(d.action == POLICY_STOP || d.action == POLICY_GIVE_UP);
		if (d.action == POLICY_STOP && l.downtime_ns && l.downtime_ns < UINT64_MAX) {
			l.downtime_ns += 1 + unit_below(&seed, UINT64_MAX - l.downtime_ns);
			policy_next(&l, r, nr, elapsed, &larger);
			CHECK_EQ(larger.action, POLICY_STOP);
		}
		policy_next(&l, r, nr, elapsed, &larger);
		policy_next(&l, r, nr, elapsed, &d);
		CHECK_MEM(&larger, &d, sizeof(d)); /* deterministic, no byte left unset */
	}
	for (unsigned a = 0; a < 4; a++)
		CHECK_MSG(seen[a] > 20, "action %u was decided %u times only", a, seen[a]);
}

static void every_model_ends_in_its_rounds(void)
{
	uint64_t seed = unit_seed();

	for (unsigned i = 0; i < 3000; i++) {
		struct model m = {
			.memory = 1 + unit_below(&seed, 1u << 20),
			.rate = unit_below(&seed, 1u << 22),
			.link = 1 + unit_below(&seed, 1u << 20),
		};
		struct policy_limits l = limits(unit_below(&seed, 2000) * MS);
		struct run r;

		m.set = unit_below(&seed, m.memory + 1);
		l.min_speed = 1 + (unsigned)unit_below(&seed, 100);
		l.max_rounds = (unsigned)unit_below(&seed, 40);
		simulate(&m, &l, &r);
		CHECK(r.nr <= (l.max_rounds ? l.max_rounds : 30));
		if (!l.downtime_ns)
			CHECK_EQ(r.last.action, POLICY_STOP);
		if (l.downtime_ns && r.last.action == POLICY_STOP)
			CHECK(r.last.predicted_downtime_ns <= l.downtime_ns);
	}
}

static void actions_have_names(void)
{
	CHECK_STR(policy_action_name(POLICY_ROUND), "round");
	CHECK_STR(policy_action_name(POLICY_GIVE_UP), "give up");
	CHECK_STR(policy_action_name((enum policy_action)77), "unknown");
}

UNIT_MAIN(TEST(cannot_log_stops_at_once), TEST(first_comes_a_round),
	  TEST(impossible_target_is_told_before_copying), TEST(idle_guest_stops_after_one_round),
	  TEST(converging_guest_meets_its_target), TEST(working_set_ends_an_open_run),
	  TEST(busy_guest_is_refused_with_numbers_and_advice), TEST(throttling_makes_it_converge),
	  TEST(throttling_ends_at_its_limit), TEST(a_throttling_step_gets_one_round),
	  TEST(few_rounds_until_it_is_slow_enough), TEST(limits_of_rounds_and_time_hold),
	  TEST(slow_link_does_not_converge), TEST(fixed_part_counts),
	  TEST(absurd_numbers_get_a_decision), TEST(every_model_ends_in_its_rounds),
	  TEST(actions_have_names))
