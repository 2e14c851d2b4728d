// SPDX-License-Identifier: MIT
/* The timers' heaps beside a list that is searched, with the links and ranks checked after every step; the hardware's deadline; other CPUs. */
#define VMM_HOSTED
#define __XEN_TOOLS__ // the interface of the headers, not the oldest
#include "vmm/cpu/pcpu.h"

#undef this_cpu
#define this_cpu() (&pcpus[cpu_now])
static unsigned cpu_now;

#include "vmm/sched/timer.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"

#define TIMERS 200

struct pcpu pcpus[MAX_CPUS];
unsigned nr_cpus = 2;

static uint64_t now, deadline[2];
static unsigned interrupts[2];

uint64_t time_now(void)
{
	return now;
}

void time_set_interrupt(uint64_t when)
{
	deadline[cpu_now] = when;
}

void apic_send(unsigned cpu, uint8_t vector)
{
	CHECK_EQ(vector, VECTOR_EVENT);
	interrupts[cpu]++;
}

struct item {
	struct timer t;
	bool set;
	uint64_t when;
	unsigned fired;
};

static struct item items[TIMERS];

static void fire(void *arg)
{
	struct item *i = arg;

	CHECK(i->set);
	CHECK(i->when <= now);
	CHECK_EQ(i->t.slot, 0);
	i->set = false;
	i->fired++;
}

static void begin(void)
{
	memset(timers, 0, sizeof(timers));
	memset(items, 0, sizeof(items));
	memset(deadline, 0, sizeof(deadline));
	memset(interrupts, 0, sizeof(interrupts));
	now = 1000;
	cpu_now = 0;
	for (unsigned i = 0; i < 2; i++)
		pcpus[i] = (struct pcpu){.id = i};
	for (unsigned i = 0; i < TIMERS; i++)
		timer_init(&items[i].t, fire, &items[i], 0);
}

/* As soft_run() does. */
static void run_due(void)
{
	pcpus[cpu_now].pending = 0;
	timer_run();
}

/* Timers of a tree; parents, order and ranks are right. */
static unsigned check_tree(const struct timer *t, const struct timer *parent)
{
	if (!t)
		return 0;
	CHECK(t->parent == parent);
	CHECK(!parent || parent->expires <= t->expires);
	CHECK(rank(t->child[0]) >= rank(t->child[1]));
	CHECK_EQ(t->slot, rank(t->child[1]) + 1);
	return 1 + check_tree(t->child[0], t) + check_tree(t->child[1], t);
}

static void check_all(void)
{
	unsigned set[2] = {0, 0};
	uint64_t first[2] = {UINT64_MAX, UINT64_MAX};

	for (unsigned i = 0; i < TIMERS; i++) {
		CHECK_EQ(items[i].t.slot != 0, items[i].set);
		if (!items[i].set)
			continue;
		CHECK_EQ(items[i].t.expires, items[i].when);
		set[items[i].t.cpu]++;
		first[items[i].t.cpu] = MIN(first[items[i].t.cpu], items[i].when);
	}
	for (unsigned c = 0; c < 2; c++) {
		CHECK_EQ(check_tree(timers[c].first, NULL), set[c]);
		CHECK(!set[c] || timers[c].first->expires == first[c]);
		CHECK(!spin_is_locked(&timers[c].lock));
	}
	CHECK_EQ(timers_running(), set[0] + set[1]);
	/* This CPU is never interrupted too late. */
	if (set[cpu_now])
		CHECK(pcpus[cpu_now].pending & 1u << SOFT_TIMER ||
		      (deadline[cpu_now] != 0 && deadline[cpu_now] <= first[cpu_now]));
}

static void keeps_order(void)
{
	uint64_t state = unit_seed();

	begin();
	for (unsigned step = 0; step < 20000; step++) {
		struct item *i = &items[unit_below(&state, TIMERS)];
		uint64_t when = now + unit_below(&state, 50) * 10;

		switch (unit_below(&state, 8)) {
		case 0:
			timer_stop(&i->t);
			i->set = false;
			break;
		case 1:
			now += unit_below(&state, 40);
			run_due();
			for (unsigned k = 0; k < TIMERS; k++)
				CHECK(!items[k].set || items[k].when > now);
			break;
		default:
			i->set = true;
			i->when = when;
			timer_set(&i->t, when);
		}
		check_all();
	}
	CHECK(items[0].fired > 0);
}

static void moves_between_processors(void)
{
	uint64_t state = unit_seed();

	begin();
	for (unsigned step = 0; step < 5000; step++) {
		struct item *i = &items[unit_below(&state, TIMERS)];

		if (unit_below(&state, 3) == 0) {
			timer_move(&i->t, (unsigned)unit_below(&state, 2));
		} else {
			i->set = true;
			i->when = now + unit_below(&state, 1000);
			timer_set(&i->t, i->when);
		}
		check_all();
	}
	now += 2000;
	run_due();
	CHECK(timers[0].first == NULL);
	CHECK_EQ(deadline[0], 0);
	CHECK(timers[1].first != NULL);
	cpu_now = 1;
	run_due();
	check_all();
	CHECK(timers[1].first == NULL);
}

/* A guest that sets one that is over again and again does not move the interrupt that the others wait for. */
static void over_already(void)
{
	begin();
	items[0].set = items[1].set = true;
	timer_set(&items[0].t, items[0].when = 1500);
	CHECK_EQ(deadline[0], 1500);
	for (unsigned i = 0; i < 10; i++) {
		now += 100;
		timer_set(&items[1].t, items[1].when = 1);
		CHECK_EQ(deadline[0], 1500);
		CHECK_EQ(pcpus[0].pending, 1u << SOFT_TIMER);
		check_all();
	}
	run_due();
	CHECK(items[0].fired == 1 && items[1].fired == 1);
	check_all();
}

/* The other CPU is told exactly when its first timer is another one. */
static void tells_the_other_processor(void)
{
	begin();
	items[0].t.cpu = items[1].t.cpu = 1;
	items[0].set = items[1].set = true;
	timer_set(&items[0].t, items[0].when = 5000);
	CHECK_EQ(interrupts[1], 1);
	CHECK_EQ(pcpus[1].pending, 1u << SOFT_TIMER);
	timer_set(&items[1].t, items[1].when = 6000);
	CHECK_EQ(interrupts[1], 1);
	timer_set(&items[1].t, items[1].when = 4000);
	CHECK_EQ(interrupts[1], 2);
	CHECK_EQ(deadline[0], 0);
	check_all();
}

static unsigned repeats;

static void repeat(void *arg)
{
	repeats++;
	/* Not before the time that timer_run works with, or it would not end. */
	timer_set(arg, now + 100);
}

static void starts_again_in_its_function(void)
{
	struct timer t;

	begin();
	repeats = 0;
	timer_init(&t, repeat, &t, 0);
	timer_set(&t, 1);
	for (unsigned i = 1; i <= 5; i++) {
		run_due();
		CHECK_EQ(repeats, i);
		CHECK_EQ(deadline[0], now + 100);
		now += 100;
	}
	timer_kill(&t);
	now += 1000;
	run_due();
	CHECK_EQ(repeats, 5);
	CHECK_EQ(deadline[0], 0);
}

/* One whose function runs stays with its CPU, where timer_kill looks for it. */
static void move_self(void *arg)
{
	timer_move(arg, 1);
	repeats++;
}

static void does_not_move_while_it_runs(void)
{
	struct timer t;

	begin();
	repeats = 0;
	timer_init(&t, move_self, &t, 0);
	timer_set(&t, now);
	run_due();
	CHECK_EQ(repeats, 1);
	CHECK_EQ(t.cpu, 0);
	timer_move(&t, 1);
	CHECK_EQ(t.cpu, 1);
}

/* 0 is how the hardware is told that there is nothing to wait for. */
static void the_beginning_of_time_is_over(void)
{
	struct timer t;

	begin();
	repeats = 0;
	timer_init(&t, repeat, &t, 0);
	timer_set(&t, 0);
	CHECK_EQ(pcpus[0].pending, 1u << SOFT_TIMER);
	run_due();
	CHECK_EQ(repeats, 1);
	timer_kill(&t);
}

UNIT_MAIN(TEST(the_beginning_of_time_is_over), TEST(keeps_order), TEST(moves_between_processors),
	  TEST(over_already), TEST(tells_the_other_processor), TEST(starts_again_in_its_function),
	  TEST(does_not_move_while_it_runs))
