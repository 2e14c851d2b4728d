// SPDX-License-Identifier: MIT
/*
 * The scheduler on a machine of simulated CPUs and a clock that the test moves on. After every step: a vCPU is queued once, where it belongs, exactly
 * when it can run and does not; no two CPUs have the same one; none idles beside work that it may do.
 */
#define VMM_HOSTED
#define __XEN_TOOLS__ // the interface of the headers, not the oldest
#include "vmm/domain/domain.h"

#undef this_cpu
#define this_cpu() (&pcpus[cpu_now])
static unsigned cpu_now;

#include "vmm/sched/timer.c" /* NOLINT(bugprone-suspicious-include) */
#include "vmm/sched/sched.c" /* NOLINT(bugprone-suspicious-include) */

#include <stdlib.h>

#include "tests/unit/unit.h"

#define CPUS	4u
#define DOMAINS 3u
#define VCPUS	4u /* of each */
#define MS	1000000ull

struct pcpu pcpus[MAX_CPUS];
unsigned nr_cpus = CPUS;
struct domain *domain_list, *dom0;
spinlock_t domain_list_lock;

static uint64_t now;
static struct domain idle_domain, domains[DOMAINS];
static struct vcpu idle_vcpu[CPUS], vcpus[DOMAINS][VCPUS];
static struct vcpu_info info[DOMAINS][VCPUS];
static bool hold_back; /* context_switch leaves the old vCPU unsaved */
static struct vcpu *unsaved;

/* ---- surroundings ---- */

uint64_t time_now(void)
{
	return now;
}

void time_set_interrupt(uint64_t when)
{
	(void)when;
}

void apic_send(unsigned cpu, uint8_t vector)
{
	CHECK(cpu < CPUS && cpu != cpu_now);
	CHECK_EQ(vector, VECTOR_EVENT);
}

void log_print(enum log_level level, const char *format, ...)
{
	(void)level;
	(void)format;
}

void vcpu_timers_init(struct vcpu *v)
{
	(void)v;
}

void vcpu_timers_move(struct vcpu *v, unsigned cpu)
{
	v->timer.cpu = cpu;
}

void vcpu_areas_update(struct vcpu *v)
{
	(void)v;
}

void vcpu_time_init_cpu(unsigned cpu)
{
	(void)cpu;
}

void nmi_run(void)
{
}

void context_switch(struct vcpu *from, struct vcpu *to)
{
	CHECK(this_cpu()->vcpu == from);
	CHECK(!spin_is_locked(&queues[cpu_now].lock));
	CHECK(to->running && from->running);
	this_cpu()->vcpu = to;
	if (hold_back)
		unsaved = from;
	else
		sched_switched(from);
}

/* ---- the machine ---- */

static struct domain *add_domain(unsigned i, unsigned nr)
{
	struct domain *d = &domains[i];

	*d = (struct domain){.id = (domid_t)i, .weight = 256, .next = domain_list};
	domain_list = d;
	d->nr_vcpus = nr;
	for (unsigned k = 0; k < nr; k++) {
		struct vcpu *v = &vcpus[i][k];

		*v = (struct vcpu){.domain = d, .id = k, .info = &info[i][k], .down = true};
		d->vcpu[k] = v;
		sched_vcpu_init(v);
	}
	return d;
}

static void begin(unsigned cpus)
{
	memset(timers, 0, sizeof(timers));
	memset(queues, 0, sizeof(queues));
	memset(info, 0, sizeof(info));
	online_cpus = idle_cpus = 0;
	now = 1000 * MS;
	hold_back = accounting_rests = false;
	domain_list = NULL;
	idle_domain = (struct domain){.idle = true};
	for (cpu_now = 0; cpu_now < cpus; cpu_now++) {
		struct vcpu *v = &idle_vcpu[cpu_now];

		*v = (struct vcpu){.domain = &idle_domain, .id = cpu_now};
		pcpus[cpu_now] = (struct pcpu){.id = cpu_now, .idle = v, .vcpu = v};
		sched_vcpu_init(v);
		sched_init_cpu(cpu_now);
	}
	nr_cpus = cpus;
	cpu_now = 0;
}

static void start(struct vcpu *v)
{
	v->down = false;
	vcpu_wake(v);
}

static struct vcpu *runs_on(unsigned cpu)
{
	return pcpus[cpu].vcpu;
}

static unsigned times_queued(const struct vcpu *v, unsigned *where)
{
	unsigned n = 0;

	for (unsigned c = 0; c < nr_cpus; c++) {
		for (unsigned k = 0; k < CLASSES; k++) {
			list_for_each(p, &queues[c].queue[k])
			{
				if (list_entry(p, struct vcpu, queue) == v) {
					n++;
					*where = c;
				}
			}
		}
	}
	return n;
}

/* Between any two steps. */
static void check_queues(void)
{
	unsigned queued[CPUS] = {0};

	for (struct domain *d = domain_list; d; d = d->next) {
		for (unsigned k = 0; k < d->nr_vcpus; k++) {
			struct vcpu *v = d->vcpu[k];
			unsigned on = 0, where = 0, n = times_queued(v, &where);

			for (unsigned c = 0; c < nr_cpus; c++)
				on += runs_on(c) == v;
			CHECK(on <= 1);
			CHECK_EQ(v->running, on == 1 || v == unsaved);
			CHECK_EQ(n, wants_cpu(v) && !v->running);
			if (n) {
				queued[where]++;
				CHECK_EQ(v->processor->id, where);
				CHECK_EQ(v->state, VCPU_RUNNABLE);
			}
			if (on) {
				CHECK(runs_on(v->processor->id) == v);
				CHECK_EQ(v->state, VCPU_RUNNING);
				CHECK(accounting.slot && !accounting_rests);
			}
		}
	}
	for (unsigned c = 0; c < nr_cpus; c++) {
		CHECK_EQ(queues[c].nr, queued[c]);
		CHECK(queues[c].runs == runs_on(c));
		CHECK(!spin_is_locked(&queues[c].lock));
	}
}

/* All CPUs have done what they were told to. */
static void settle_down(void)
{
	unsigned rounds = 0;
	bool again;

	do {
		again = false;
		for (cpu_now = 0; cpu_now < nr_cpus; cpu_now++) {
			again = again || pcpus[cpu_now].pending;
			soft_run();
			check_queues();
		}
		CHECK_MSG(++rounds < 100, "CPUs tell each other to look for ever");
	} while (again);
	cpu_now = 0;
	for (unsigned c = 0; c < nr_cpus; c++) {
		if (runs_on(c)->domain->idle) {
			CHECK(idle_cpus >> c & 1);
			for (unsigned other = 0; other < nr_cpus; other++)
				CHECK_MSG(!queue_first(&queues[other], c), "CPU %u idles", c);
		} else {
			CHECK(!(idle_cpus >> c & 1));
			CHECK(may_run(runs_on(c)));
		}
	}
}

/* Timers are late by up to a step. */
static void pass_in_steps(uint64_t ms, uint64_t step)
{
	for (; ms >= step; ms -= step) {
		now += step * MS;
		for (unsigned c = 0; c < nr_cpus; c++)
			raise_soft(&pcpus[c], SOFT_TIMER);
		settle_down();
	}
}

static void pass(uint64_t ms)
{
	pass_in_steps(ms, 1);
}

static uint64_t ran(struct vcpu *v)
{
	struct vcpu_runstate_info r;

	vcpu_runstate(v, &r);
	return r.time[RUNSTATE_running] / MS;
}

/* ---- tests ---- */

static void runs_what_can(void)
{
	struct vcpu_runstate_info r;
	struct domain *d;

	begin(1);
	d = add_domain(0, 1);
	settle_down();
	CHECK(runs_on(0) == &idle_vcpu[0]);
	start(d->vcpu[0]);
	CHECK_EQ(d->vcpu[0]->state, VCPU_RUNNABLE);
	settle_down();
	CHECK(runs_on(0) == d->vcpu[0]);
	pass(7);
	d->vcpu[0]->pause_count++;
	vcpu_sleep(d->vcpu[0]);
	CHECK(d->vcpu[0]->running);
	settle_down();
	CHECK(runs_on(0) == &idle_vcpu[0]);
	CHECK_EQ(d->vcpu[0]->state, VCPU_OFFLINE);
	pass(3);
	d->vcpu[0]->pause_count--;
	vcpu_wake(d->vcpu[0]);
	settle_down();
	pass(2);
	vcpu_runstate(d->vcpu[0], &r);
	CHECK_EQ(r.state, RUNSTATE_running);
	CHECK_EQ(r.time[RUNSTATE_running], 9 * MS);
	CHECK_EQ(r.time[RUNSTATE_offline], 3 * MS);
	CHECK_EQ(r.state_entry_time, now - 2 * MS);
}

static void blocks_unless_an_event_is_there(void)
{
	struct vcpu *v;

	begin(1);
	v = add_domain(0, 1)->vcpu[0];
	start(v);
	settle_down();
	v->info->evtchn_upcall_mask = 1;
	v->info->evtchn_upcall_pending = 1;
	vcpu_block();
	CHECK(!v->blocked);
	CHECK_EQ(v->info->evtchn_upcall_mask, 0);
	CHECK_EQ(pcpus[0].pending, 0);
	v->info->evtchn_upcall_pending = 0;
	vcpu_block();
	CHECK(v->blocked && v->running);
	settle_down();
	CHECK_EQ(v->state, VCPU_BLOCKED);
	CHECK(runs_on(0) == &idle_vcpu[0]);
	/* Being unpaused is no event. */
	vcpu_wake(v);
	settle_down();
	CHECK(runs_on(0) == &idle_vcpu[0]);
	vcpu_unblock(v);
	settle_down();
	CHECK(runs_on(0) == v);
	/* An event between blocking and the switch: it goes on. */
	vcpu_block();
	vcpu_unblock(v);
	settle_down();
	CHECK(runs_on(0) == v);
}

static void shares_by_weight(void)
{
	struct domain *a, *b;
	uint64_t x, y;

	begin(1);
	a = add_domain(0, 1);
	b = add_domain(1, 1);
	sched_set_share(a, 512, 0);
	start(a->vcpu[0]);
	start(b->vcpu[0]);
	settle_down();
	pass(6000);
	x = ran(a->vcpu[0]);
	y = ran(b->vcpu[0]);
	CHECK(x + y == 6000);
	CHECK_MSG(x > 3800 && x < 4200, "weight 512 beside 256 ran for %llu of 6000 ms",
		  (unsigned long long)x);
}

/* Bound to one of two CPUs they are given credit for both: their turns keep to the weights. */
static void shares_a_cpu_they_are_bound_to(void)
{
	static const unsigned weights[] = {256, 512, 1024};
	struct domain *d[3];

	begin(2);
	for (unsigned i = 0; i < 3; i++) {
		d[i] = add_domain(i, 1);
		sched_set_share(d[i], weights[i], 0);
		vcpu_set_affinity(d[i]->vcpu[0], 2);
		start(d[i]->vcpu[0]);
	}
	settle_down();
	pass(7000);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t due = 7000 * weights[i] / 1792, x = ran(d[i]->vcpu[0]);

		CHECK_MSG(x > due * 97 / 100 && x < due * 103 / 100,
			  "weight %u ran for %llu of 7000 ms", weights[i], (unsigned long long)x);
	}
}

/* One that sleeps and is woken all the time does not get ahead of its turn by that, nor does one that slept for long. */
static void waking_is_no_advantage(void)
{
	struct domain *a, *b;
	struct vcpu *v;
	uint64_t before;

	begin(2);
	a = add_domain(0, 1);
	b = add_domain(1, 1);
	v = a->vcpu[0];
	vcpu_set_affinity(v, 1);
	vcpu_set_affinity(b->vcpu[0], 1);
	start(v);
	start(b->vcpu[0]);
	for (unsigned i = 0; i < 3000; i++) {
		settle_down();
		/* It gives the CPU up shortly before anybody would take it away. */
		if (runs_on(0) == v && i % 8 == 7) {
			vcpu_block();
			settle_down();
			vcpu_unblock(v);
		}
		pass(1);
	}
	CHECK_MSG(ran(v) < 1600, "it ran for %llu of 3000 ms", (unsigned long long)ran(v));
	v->pause_count++;
	vcpu_sleep(v);
	pass(5000);
	v->pause_count--;
	before = ran(v);
	vcpu_wake(v);
	pass(1000);
	CHECK_MSG(ran(v) - before < 540, "after a long sleep it ran for %llu of 1000 ms",
		  (unsigned long long)(ran(v) - before));
}

static void shares_equally_without_credit(void)
{
	struct domain *d;

	begin(2);
	d = add_domain(0, 3);
	for (unsigned k = 0; k < 3; k++)
		start(d->vcpu[k]);
	settle_down();
	pass(3000);
	for (unsigned k = 0; k < 3; k++)
		CHECK_MSG(ran(d->vcpu[k]) > 1800 && ran(d->vcpu[k]) < 2200,
			  "vCPU %u ran for %llu of 2000 ms", k,
			  (unsigned long long)ran(d->vcpu[k]));
}

static void keeps_to_caps(void)
{
	struct domain *d;
	uint64_t x;

	begin(2);
	d = add_domain(0, 1);
	sched_set_share(d, 256, 40);
	start(d->vcpu[0]);
	settle_down();
	pass(6000);
	x = ran(d->vcpu[0]);
	CHECK_MSG(x > 2280 && x < 2520, "capped at 40 per cent it ran for %llu of 6000 ms",
		  (unsigned long long)x);
	/* The same where all is late. */
	pass_in_steps(7000, 7);
	x = ran(d->vcpu[0]) - x;
	CHECK_MSG(x > 2660 && x < 2940, "capped at 40 per cent it ran for %llu of 7000 ms",
		  (unsigned long long)x);
	/* Without the cap it has the CPU again. */
	sched_set_share(d, 256, 0);
	pass(100);
	x = ran(d->vcpu[0]);
	pass(1000);
	CHECK_EQ(ran(d->vcpu[0]) - x, 1000);
}

/* One that an event wakes does not wait for the other's slice, as long as it has credit; only for the moment that each gets. */
static void wakes_at_once(void)
{
	struct vcpu *hog, *waits;

	begin(1);
	hog = add_domain(0, 1)->vcpu[0];
	waits = add_domain(1, 1)->vcpu[0];
	start(hog);
	start(waits);
	for (unsigned i = 0; i < 50; i++) {
		/* It comes to run, and blocks. */
		for (unsigned k = 0; k < 60 && runs_on(0) != waits; k++)
			pass(1);
		CHECK(runs_on(0) == waits);
		vcpu_block();
		settle_down();
		CHECK(runs_on(0) == hog);
		pass(13);
		CHECK(runs_on(0) == hog);
		/* Not because the other one has used up what it had. */
		hog->credit = waits->credit = ACCOUNT_NS;
		queues[0].charged = now;
		queues[0].slice_end = now + SCHED_SLICE_NS - (i % 2 ? SCHED_RATELIMIT_NS : 0);
		vcpu_unblock(waits);
		settle_down();
		CHECK(runs_on(0) == (i % 2 ? waits : hog));
		pass(2);
		CHECK(runs_on(0) == waits);
	}
}

/* What an idle machine does every 30 ms for nothing is much of what it does. */
static void accounting_rests_when_idle(void)
{
	struct vcpu *v;

	begin(2);
	v = add_domain(0, 1)->vcpu[0];
	pass(70);
	CHECK(accounting_rests && !accounting.slot);
	for (unsigned i = 0; i < 3; i++) {
		start(v);
		settle_down();
		CHECK(accounting.slot && now - accounted < 2 * MS);
		pass(100);
		CHECK(accounting.slot != 0);
		v->down = true;
		vcpu_sleep(v);
		settle_down();
		pass(70);
		CHECK(accounting_rests && !accounting.slot);
	}
}

static void yields(void)
{
	struct domain *d;
	struct vcpu *first;

	begin(1);
	d = add_domain(0, 2);
	start(d->vcpu[0]);
	settle_down();
	vcpu_yield();
	CHECK_EQ(pcpus[0].pending, 0);
	start(d->vcpu[1]);
	settle_down();
	first = runs_on(0);
	vcpu_yield();
	settle_down();
	CHECK(runs_on(0) != first && !runs_on(0)->domain->idle);
}

static void idle_processors_take_work(void)
{
	struct domain *d;

	begin(CPUS);
	d = add_domain(0, 4);
	for (unsigned k = 0; k < 4; k++) {
		d->vcpu[k]->processor = &pcpus[0];
		start(d->vcpu[k]);
	}
	settle_down();
	for (unsigned c = 0; c < CPUS; c++)
		CHECK(!runs_on(c)->domain->idle);
}

static void keeps_to_affinity(void)
{
	struct vcpu *v;

	begin(CPUS);
	v = add_domain(0, 2)->vcpu[0];
	start(v);
	start(domains[0].vcpu[1]);
	for (unsigned c = 0; c < CPUS; c++) {
		vcpu_set_affinity(v, 1ull << c);
		settle_down();
		CHECK_EQ(v->processor->id, c);
		/* The other one, if it is there, leaves when its slice is over. */
		pass(20);
		CHECK(runs_on(c) == v && domains[0].vcpu[1]->running);
		CHECK_EQ(v->processor->id, c);
	}
	/* Both on one CPU, though others idle. */
	vcpu_set_affinity(domains[0].vcpu[1], 1ull << (CPUS - 1));
	settle_down();
	CHECK_EQ(queues[CPUS - 1].nr, 1);
	/* None of its CPUs is on line: anywhere rather than nowhere. */
	vcpu_set_affinity(v, 1ull << 60);
	settle_down();
	CHECK(v->running);
}

/* While its registers are being saved nobody else may have it. */
static void is_not_taken_before_it_is_saved(void)
{
	struct domain *d;
	struct vcpu *v;

	begin(2);
	d = add_domain(0, 1);
	v = d->vcpu[0];
	start(v);
	settle_down();
	cpu_now = v->processor->id;
	hold_back = true;
	vcpu_block();
	soft_run();
	CHECK(unsaved == v && v->running);
	/* The event comes on the other CPU. */
	cpu_now = !cpu_now;
	hold_back = false;
	vcpu_unblock(v);
	check_queues();
	schedule();
	CHECK(runs_on(cpu_now)->domain->idle);
	CHECK(!is_queued(v));
	cpu_now = !cpu_now;
	unsaved = NULL;
	sched_switched(v);
	check_queues();
	settle_down();
	CHECK(v->running && !v->blocked);
}

static void change(uint64_t *state, struct vcpu *v)
{
	switch (unit_below(state, 8)) {
	case 0:
		v->pause_count++;
		vcpu_sleep(v);
		break;
	case 1:
		if (v->pause_count) {
			v->pause_count--;
			vcpu_wake(v);
		}
		break;
	case 2:
	case 3:
		/* What runs here blocks. */
		if (!runs_on(cpu_now)->domain->idle)
			vcpu_block();
		break;
	case 4:
		vcpu_set_affinity(v, unit_below(state, 15) + 1);
		break;
	case 5:
		if (!runs_on(cpu_now)->domain->idle)
			vcpu_yield();
		break;
	default:
		vcpu_unblock(v);
	}
}

static void holds_under_anything(void)
{
	uint64_t state = unit_seed();

	begin(CPUS);
	for (unsigned i = 0; i < DOMAINS; i++) {
		struct domain *d = add_domain(i, VCPUS);

		sched_set_share(d, 100 * (i + 1), i == 2 ? 50 : 0);
		for (unsigned k = 0; k < VCPUS; k++)
			start(d->vcpu[k]);
	}
	for (unsigned step = 0; step < 20000; step++) {
		cpu_now = (unsigned)unit_below(&state, CPUS);
		change(&state, &vcpus[unit_below(&state, DOMAINS)][unit_below(&state, VCPUS)]);
		now += unit_below(&state, 3) * MS / 2;
		raise_soft(this_cpu(), SOFT_TIMER);
		soft_run();
		if (step % 8 == 0)
			settle_down();
	}
	/* Time is neither lost nor counted twice. */
	for (unsigned i = 0; i < DOMAINS; i++) {
		for (unsigned k = 0; k < VCPUS; k++) {
			struct vcpu_runstate_info r;

			vcpu_runstate(&vcpus[i][k], &r);
			CHECK_EQ(r.time[0] + r.time[1] + r.time[2] + r.time[3], now - 1000 * MS);
		}
	}
}

UNIT_MAIN(TEST(runs_what_can), TEST(blocks_unless_an_event_is_there), TEST(shares_by_weight),
	  TEST(shares_a_cpu_they_are_bound_to), TEST(waking_is_no_advantage),
	  TEST(shares_equally_without_credit), TEST(keeps_to_caps), TEST(wakes_at_once),
	  TEST(accounting_rests_when_idle), TEST(yields), TEST(idle_processors_take_work),
	  TEST(keeps_to_affinity), TEST(is_not_taken_before_it_is_saved),
	  TEST(holds_under_anything))
