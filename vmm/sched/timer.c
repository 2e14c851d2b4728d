/* SPDX-License-Identifier: MIT */
/*
 * Each CPU's timers are a leftist heap: a binary tree in which no child expires before its parent and the rank (the distance to the nearest missing child) of
 * the left child is never below that of the right one. So the way down the right side is at most log2(n) long, and merging two heaps walks only that way.
 * The links are in the timers: starting one needs no memory and cannot fail.
 *
 * t->cpu changes only with the locks of both CPUs held.
 */
#include "vmm/sched/timer.h"

#include "vmm/cpu/pcpu.h"
#include "vmm/lib/lock.h"
#include "vmm/platform/irq.h"
#include "vmm/platform/time.h"

struct timers {
	spinlock_t lock;
	struct timer *first;
	struct timer *runs; /* whose function is being called */
	unsigned nr;
};

static struct timers timers[MAX_CPUS];

static uint32_t rank(const struct timer *t)
{
	return t ? t->slot : 0;
}

/* The rank of t from its children, the higher one left. */
static void settle(struct timer *t)
{
	if (rank(t->child[0]) < rank(t->child[1])) {
		struct timer *lower = t->child[0];

		t->child[0] = t->child[1];
		t->child[1] = lower;
	}
	t->slot = rank(t->child[1]) + 1;
}

/* One heap out of two; recursion is as deep as the right sides are long. */
static struct timer *merge(struct timer *a, struct timer *b)
{
	if (!a || !b)
		return a ? a : b;
	if (b->expires < a->expires) {
		struct timer *later = a;

		a = b;
		b = later;
	}
	a->child[1] = merge(a->child[1], b);
	a->child[1]->parent = a;
	settle(a);
	return a;
}

static void insert(struct timers *q, struct timer *t)
{
	t->child[0] = t->child[1] = NULL;
	t->slot = 1;
	q->first = merge(q->first, t);
	q->first->parent = NULL;
	q->nr++;
}

static void take_out(struct timers *q, struct timer *t)
{
	struct timer *parent = t->parent, *rest = merge(t->child[0], t->child[1]);

	q->nr--;
	if (rest)
		rest->parent = parent;
	if (!parent)
		q->first = rest;
	else
		parent->child[parent->child[1] == t] = rest;
	t->slot = 0;
	/* Ranks above get lower until one stays as it was: no more steps than the highest of them. */
	while (parent) {
		uint32_t before = parent->slot;

		settle(parent);
		if (parent->slot == before)
			break;
		parent = parent->parent;
	}
}

static struct timers *lock_timers(struct timer *t, uint64_t *flags)
{
	for (;;) {
		unsigned cpu = READ_ONCE(t->cpu);

		*flags = spin_lock_irq(&timers[cpu].lock);
		if (t->cpu == cpu)
			return &timers[cpu];
		spin_unlock_irq(&timers[cpu].lock, *flags);
	}
}

/* Another timer is the CPU's first: its hardware has to know. Its lock is held. */
static void first_changed(unsigned cpu)
{
	struct timer *first = timers[cpu].first;

	if (&pcpus[cpu] != this_cpu()) {
		raise_soft(&pcpus[cpu], SOFT_TIMER);
		apic_send(cpu, VECTOR_EVENT);
	} else if (first && first->expires <= time_now()) {
		/* Who sets one that is over again and again must not put the interrupt off for all of the CPU's timers. */
		raise_soft(&pcpus[cpu], SOFT_TIMER);
	} else {
		time_set_interrupt(first ? first->expires : 0);
	}
}

void timer_init(struct timer *t, timer_fn *fn, void *arg, unsigned cpu)
{
	*t = (struct timer){.fn = fn, .arg = arg, .cpu = cpu};
}

void timer_set(struct timer *t, uint64_t expires)
{
	uint64_t flags;
	struct timers *q = lock_timers(t, &flags);

	if (t->slot)
		take_out(q, t);
	t->expires = MAX(expires, 1ull); /* 0 would switch the hardware off */
	insert(q, t);
	/* One that was the first and went backwards leaves an interrupt too early behind, which does no harm. */
	if (q->first == t)
		first_changed(t->cpu);
	spin_unlock_irq(&q->lock, flags);
}

void timer_stop(struct timer *t)
{
	uint64_t flags;
	struct timers *q = lock_timers(t, &flags);

	if (t->slot)
		take_out(q, t);
	spin_unlock_irq(&q->lock, flags);
}

void timer_kill(struct timer *t)
{
	uint64_t flags;
	struct timers *q;
	bool runs;

	do {
		q = lock_timers(t, &flags);
		if (t->slot)
			take_out(q, t);
		runs = q->runs == t;
		spin_unlock_irq(&q->lock, flags);
		if (runs)
			__builtin_ia32_pause();
	} while (runs);
}

void timer_move(struct timer *t, unsigned cpu)
{
	for (;;) {
		unsigned old = READ_ONCE(t->cpu);
		struct timers *from = &timers[old], *to = &timers[cpu];
		uint64_t flags;
		bool done = false;

		if (old == cpu)
			return;
		flags = spin_lock_irq(&timers[MIN(old, cpu)].lock);
		spin_lock(&timers[MAX(old, cpu)].lock);
		/* While its function runs it stays, so that timer_kill knows where to look. */
		if (t->cpu == old && from->runs == t) {
			done = true;
		} else if (t->cpu == old) {
			bool set = t->slot != 0;

			if (set)
				take_out(from, t);
			t->cpu = cpu;
			if (set)
				insert(to, t);
			if (to->first == t)
				first_changed(cpu);
			done = true;
		}
		spin_unlock(&timers[MAX(old, cpu)].lock);
		spin_unlock_irq(&timers[MIN(old, cpu)].lock, flags);
		if (done)
			return;
	}
}

void timer_run(void)
{
	unsigned cpu = this_cpu()->id;
	struct timers *q = &timers[cpu];
	uint64_t now = time_now();
	uint64_t flags = spin_lock_irq(&q->lock);

	while (q->first && q->first->expires <= now) {
		struct timer *t = q->first;

		take_out(q, t);
		q->runs = t;
		spin_unlock_irq(&q->lock, flags);
		t->fn(t->arg);
		flags = spin_lock_irq(&q->lock);
		q->runs = NULL;
	}
	time_set_interrupt(q->first ? q->first->expires : 0);
	spin_unlock_irq(&q->lock, flags);
}

unsigned timers_running(void)
{
	unsigned nr = 0;

	for (unsigned i = 0; i < MAX_CPUS; i++)
		nr += READ_ONCE(timers[i].nr);
	return nr;
}
