/* SPDX-License-Identifier: MIT */
/*
 * The scheduler. Each CPU has a run queue with three classes: vCPUs that an event has woken while they had credit, vCPUs with credit, vCPUs without. The best
 * class goes first, and in it whoever has run least by its weight (`turn`), for a slice. Credit is nanoseconds: running uses it up, and
 * every 30 ms all CPUs' time is given to the domains that want it, by weight. So credit is fair between CPUs, and turns are fair on one, where
 * vCPUs that are bound to it have more credit than it has time. A domain with a cap is given no more than that, and its vCPUs are parked while
 * they owe. While nobody wants a CPU nothing is given. The turns of two queues do not compare: who changes the queue keeps its distance to the queue's own turn, the least of those with credit.
 *
 * A CPU without anything to run takes from other queues. Whoever queues a vCPU looks for idle CPUs afterwards, and an idle CPU says that
 * it is one before it looks for work, so that none sleeps beside work.
 *
 * Invariants, under the lock of the queue of v->processor:
 *   1. v->running holds from the moment that schedule() chooses v until its registers are saved (sched_switched). It is on one CPU meanwhile.
 *   2. A vCPU is queued only while it can run and is not running; one that can run and is neither is about to be placed by the function that is at it.
 *   3. v->processor changes with the locks of the old and the new queue held.
 */
#include "vmm/sched/sched.h"

#include "vmm/cpu/context.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/lib/print.h"
#include "vmm/platform/irq.h"
#include "vmm/platform/time.h"

#define ACCOUNT_NS     30000000ll
#define DEBT_CAPPED_NS (10 * ACCOUNT_NS)
#define WEIGHT_DEFAULT 256u
#define PART_UNIT      16u /* of vcpu.part */

enum priority { CLASS_BOOST, CLASS_CREDIT, CLASS_DEBT, CLASSES };

struct runqueue {
	spinlock_t lock;
	struct list queue[CLASSES];
	unsigned nr;
	struct vcpu *runs;
	uint64_t charged; /* its time is accounted for up to here */
	uint64_t slice_end;
	int64_t turn;
	bool yielded;
	struct timer slice; /* runs only while others wait */
};

static struct runqueue queues[MAX_CPUS];
static uint64_t online_cpus, idle_cpus;
static struct timer accounting;
static uint64_t accounted; /* when it was done last; it may be late */
static bool
	accounting_rests; /* since nobody used or wanted a CPU; who is chosen to run ends that */

static struct runqueue *queue_of(const struct pcpu *c)
{
	return &queues[c->id];
}

static bool is_idle(const struct vcpu *v)
{
	return v->domain->idle;
}

static bool is_queued(const struct vcpu *v)
{
	return !list_empty(&v->queue);
}

static bool may_run(const struct vcpu *v)
{
	const struct domain *d = v->domain;

	return !READ_ONCE(v->pause_count) && !READ_ONCE(d->pause_count) && !v->down &&
	       !READ_ONCE(v->blocked) && !d->shut_down && !d->dying;
}

static bool wants_cpu(const struct vcpu *v)
{
	return !is_idle(v) && !v->parked && may_run(v);
}

static enum priority class_of(const struct vcpu *v)
{
	if (v->credit < 0)
		return CLASS_DEBT;
	return v->boosted ? CLASS_BOOST : CLASS_CREDIT;
}

static bool allowed_on(const struct vcpu *v, unsigned cpu)
{
	/* One whose CPUs are all off line runs anywhere rather than never. */
	return (v->affinity & online_cpus ? v->affinity : online_cpus) >> cpu & 1;
}

/* ---- states and time ---- */

static void set_state(struct vcpu *v, enum run_state state, uint64_t now)
{
	if (v->state == state)
		return;
	v->state_time[v->state] += now - v->state_since;
	v->state_since = now;
	v->state = state;
}

/* What a vCPU that does not run is in. */
static enum run_state waiting_state(const struct vcpu *v)
{
	if (READ_ONCE(v->blocked))
		return VCPU_BLOCKED;
	return is_idle(v) || may_run(v) ? VCPU_RUNNABLE : VCPU_OFFLINE;
}

void sched_get_share(const struct domain *d, unsigned *weight, unsigned *cap)
{
	*weight = READ_ONCE(d->weight);
	*cap = READ_ONCE(d->cap);
	if (!*weight)
		*weight = WEIGHT_DEFAULT;
}

/* A vCPU's credit changes; it is parked when it owes more than `allowance`, and let go when it owes nothing. */
static void credit(struct vcpu *v, int64_t ns, bool capped, int64_t allowance)
{
	int64_t least = capped ? -DEBT_CAPPED_NS : -ACCOUNT_NS;

	v->credit = MIN(MAX(v->credit + ns, least), ACCOUNT_NS);
	if (!capped || v->credit >= 0)
		v->parked = false;
	else if (v->credit < -allowance)
		v->parked = true;
}

/* The running vCPU pays for the time since it did so last. */
static void charge(struct runqueue *q, uint64_t now)
{
	struct vcpu *v = q->runs;
	int64_t used = (int64_t)(now - q->charged);
	unsigned cap = READ_ONCE(v->domain->cap);

	q->charged = now;
	if (is_idle(v) || used <= 0)
		return;
	v->active = true;
	v->turn += used * WEIGHT_DEFAULT * PART_UNIT /
		   (v->part ? v->part : WEIGHT_DEFAULT * PART_UNIT);
	/* Parking is exact enough with the whole cap as each vCPU's allowance; accounting gives each its part. */
	credit(v, -used, cap != 0, (int64_t)cap * ACCOUNT_NS / 100);
}

/* ---- queues; their locks are held ---- */

static void queue_add(struct runqueue *q, struct vcpu *v)
{
	struct list *before = &q->queue[class_of(v)];

	/* From the end: most have had less of a turn than the one that just ran. */
	while (before->prev != &q->queue[class_of(v)] &&
	       list_entry(before->prev, struct vcpu, queue)->turn > v->turn)
		before = before->prev;
	list_add_tail(before, &v->queue);
	q->nr++;
}

static void queue_del(struct runqueue *q, struct vcpu *v)
{
	list_del(&v->queue);
	q->nr--;
}

/* The first of the best class that may run on this CPU; NULL: none. */
static struct vcpu *queue_first(struct runqueue *q, unsigned cpu)
{
	for (unsigned c = 0; c < CLASSES; c++) {
		list_for_each(p, &q->queue[c])
		{
			struct vcpu *v = list_entry(p, struct vcpu, queue);

			if (allowed_on(v, cpu))
				return v;
		}
	}
	return NULL;
}

static void kick_cpu(unsigned cpu)
{
	raise_soft(&pcpus[cpu], SOFT_SCHEDULE);
	if (&pcpus[cpu] != this_cpu())
		apic_send(cpu, VECTOR_EVENT);
}

static struct runqueue *lock_queue(struct vcpu *v, uint64_t *flags)
{
	for (;;) {
		struct pcpu *c = READ_ONCE(v->processor);

		*flags = spin_lock_irq(&queue_of(c)->lock);
		if (v->processor == c)
			return queue_of(c);
		spin_unlock_irq(&queue_of(c)->lock, *flags);
	}
}

static void lock_both(unsigned a, unsigned b)
{
	spin_lock(&queues[MIN(a, b)].lock);
	if (a != b)
		spin_lock(&queues[MAX(a, b)].lock);
}

static void unlock_both(unsigned a, unsigned b)
{
	spin_unlock(&queues[a].lock);
	if (a != b)
		spin_unlock(&queues[b].lock);
}

/* Idle CPUs that have not been given anything yet. */
static uint64_t free_cpus(void)
{
	uint64_t idle = __atomic_load_n(&idle_cpus, __ATOMIC_SEQ_CST), left = idle;

	bit_for_each(cpu, &idle, MAX_CPUS)
	{
		if (READ_ONCE(queues[cpu].nr))
			bit_clear(&left, cpu);
	}
	return left;
}

/* Where it shall run: where it was, if that CPU is idle or none is; else an idle one; else the shortest queue. */
static unsigned choose_cpu(const struct vcpu *v, unsigned last)
{
	uint64_t may = v->affinity & online_cpus ? v->affinity & online_cpus : online_cpus;
	uint64_t idle = may & free_cpus();
	unsigned best = MAX_CPUS;

	if ((idle ? idle : may) >> last & 1)
		return last;
	if (idle)
		return (unsigned)__builtin_ctzll(idle);
	bit_for_each(cpu, &may, MAX_CPUS)
	{
		if (best == MAX_CPUS || READ_ONCE(queues[cpu].nr) < READ_ONCE(queues[best].nr))
			best = cpu;
	}
	return best;
}

/* Have as many idle CPUs look as can take something of what waits here. */
static void tell_idle(const struct runqueue *q)
{
	uint64_t idle = free_cpus();

	for (unsigned c = 0; c < CLASSES && idle; c++) {
		list_for_each(p, &q->queue[c])
		{
			unsigned cpu = bit_next(&idle, MAX_CPUS, 0);

			while (cpu < MAX_CPUS &&
			       !allowed_on(list_entry(p, struct vcpu, queue), cpu))
				cpu = bit_next(&idle, MAX_CPUS, cpu + 1);
			if (cpu == MAX_CPUS)
				continue;
			bit_clear(&idle, cpu);
			kick_cpu(cpu);
		}
	}
}

/*
 * v was queued on the CPU: tell whoever has to look. When that is the CPU itself, it tells others if it leaves something.
 * A vCPU that has just begun to run is left alone for a moment: one that sends events gets its work done in larger pieces.
 */
static void tell(const struct vcpu *v, unsigned cpu)
{
	struct runqueue *q = &queues[cpu];
	uint64_t when = q->slice_end;

	if (is_idle(q->runs)) {
		kick_cpu(cpu);
		return;
	}
	if (class_of(v) < class_of(q->runs)) {
		when += SCHED_RATELIMIT_NS - SCHED_SLICE_NS;
		if (time_now() >= when) {
			kick_cpu(cpu);
			return;
		}
		timer_set(&q->slice, when);
	} else if (!q->slice.slot) {
		timer_set(&q->slice, when);
	}
	tell_idle(q);
}

/* Take it to another queue. It is on neither; both are locked. */
static void change_queue(struct vcpu *v, unsigned cpu)
{
	v->turn += queues[cpu].turn - queue_of(v->processor)->turn;
	v->processor = &pcpus[cpu];
}

/* One that did not want to run has not saved its turns for later, but for one slice; and it is not boosted while it is ahead. */
static void returns(struct vcpu *v, bool boost)
{
	int64_t now = queue_of(v->processor)->turn, slice = SCHED_SLICE_NS;

	v->turn = MAX(v->turn, now - slice);
	v->boosted = boost && v->turn <= now + slice;
}

/* Queue it, if it wants to run and does not: the one function that does. boost: an event woke it. */
static void place(struct vcpu *v, bool boost)
{
	uint64_t flags = irq_save();
	unsigned last, cpu;

	for (;;) {
		last = READ_ONCE(v->processor)->id;
		/* A running one stays where it is. */
		cpu = READ_ONCE(v->running) ? last : choose_cpu(v, last);
		lock_both(last, cpu);
		if (v->processor->id == last)
			break;
		unlock_both(last, cpu);
	}
	if (!v->running && !is_queued(v)) {
		bool waited = v->state != VCPU_RUNNABLE;

		set_state(v, waiting_state(v), time_now());
		if (wants_cpu(v)) {
			change_queue(v, cpu);
			if (waited)
				returns(v, boost);
			else
				v->boosted = boost;
			queue_add(&queues[cpu], v);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			tell(v, cpu);
		}
	}
	unlock_both(last, cpu);
	irq_restore(flags);
}

/* ---- what happens to vCPUs ---- */

void vcpu_wake(struct vcpu *v)
{
	place(v, false);
}

void vcpu_unblock(struct vcpu *v)
{
	bool waited = __atomic_exchange_n(&v->blocked, false, __ATOMIC_SEQ_CST);

	WRITE_ONCE(v->poll, false);
	place(v, waited);
}

void vcpu_kick(struct vcpu *v)
{
	struct pcpu *c = READ_ONCE(v->processor);

	if (READ_ONCE(v->running) && c != this_cpu())
		apic_send(c->id, VECTOR_EVENT);
}

void vcpu_sleep(struct vcpu *v)
{
	uint64_t flags;
	struct runqueue *q = lock_queue(v, &flags);

	if (!may_run(v)) {
		if (is_queued(v))
			queue_del(q, v);
		if (v->running)
			kick_cpu(v->processor->id);
		else
			set_state(v, waiting_state(v), time_now());
	}
	spin_unlock_irq(&q->lock, flags);
}

void vcpu_sleep_sync(struct vcpu *v)
{
	vcpu_sleep(v);
	while (__atomic_load_n(&v->running, __ATOMIC_ACQUIRE))
		__builtin_ia32_pause();
}

void vcpu_block(void)
{
	struct vcpu *v = current;

	WRITE_ONCE(v->info->evtchn_upcall_mask, 0);
	WRITE_ONCE(v->blocked, true);
	/* Whoever sends sets `pending` before it looks at `blocked`; one of the two sees the other. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (vcpu_event_deliverable(v) || READ_ONCE(v->nmi_pending))
		WRITE_ONCE(v->blocked, false);
	else
		raise_soft(this_cpu(), SOFT_SCHEDULE);
}

void vcpu_yield(void)
{
	struct runqueue *q = queue_of(this_cpu());

	if (READ_ONCE(q->nr)) {
		WRITE_ONCE(q->yielded, true);
		raise_soft(this_cpu(), SOFT_SCHEDULE);
	}
}

void vcpu_set_affinity(struct vcpu *v, uint64_t cpus)
{
	uint64_t flags;
	struct runqueue *q = lock_queue(v, &flags);
	bool again = false;

	v->affinity = cpus;
	/* A queued one is placed anew in any case: CPUs that were forbidden may be idle. */
	if (is_queued(v)) {
		queue_del(q, v);
		again = true;
	} else if (v->running && !allowed_on(v, v->processor->id)) {
		kick_cpu(v->processor->id);
	}
	spin_unlock_irq(&q->lock, flags);
	if (again)
		place(v, false);
}

void sched_set_share(struct domain *d, unsigned weight, unsigned cap)
{
	WRITE_ONCE(d->weight, weight);
	WRITE_ONCE(d->cap, cap);
}

void vcpu_runstate_at_change(struct vcpu *v, struct vcpu_runstate_info *out)
{
	uint64_t flags;
	struct runqueue *q = lock_queue(v, &flags);

	out->state = (int)v->state;
	out->state_entry_time = v->state_since;
	for (unsigned i = 0; i < ARRAY_SIZE(out->time); i++)
		out->time[i] = v->state_time[i];
	spin_unlock_irq(&q->lock, flags);
}

void vcpu_runstate(struct vcpu *v, struct vcpu_runstate_info *out)
{
	uint64_t now;

	vcpu_runstate_at_change(v, out);
	now = time_now();
	/* Clocks of two CPUs may differ a little. */
	if (now > out->state_entry_time)
		out->time[out->state] += now - out->state_entry_time;
}

/* ---- choosing ---- */

/* Something better than the class out of another CPU's queue that may run here; this CPU's queue is locked. */
static struct vcpu *steal(unsigned cpu, enum priority than)
{
	bit_for_each(other, &online_cpus, MAX_CPUS)
	{
		struct runqueue *q = &queues[other];
		struct vcpu *v;

		/* Not waiting for it keeps clear of the locks' order; whoever holds it to queue something sees that we are idle. */
		if (other == cpu || !READ_ONCE(q->nr) || !spin_trylock(&q->lock))
			continue;
		v = queue_first(q, cpu);
		if (v && class_of(v) >= than)
			v = NULL;
		if (v) {
			queue_del(q, v);
			change_queue(v, cpu);
		}
		spin_unlock(&q->lock);
		if (v)
			return v;
	}
	return NULL;
}

static struct vcpu *choose(struct runqueue *q, unsigned cpu, uint64_t now)
{
	struct vcpu *previous = q->runs, *next = queue_first(q, cpu), *stolen;
	bool over = now >= q->slice_end, yielded = q->yielded;

	q->yielded = false;
	if (over)
		previous->boosted = false;
	if (wants_cpu(previous) && allowed_on(previous, cpu) &&
	    (!next || (!yielded && (class_of(next) > class_of(previous) ||
				    (class_of(next) == class_of(previous) &&
				     (!over || previous->turn < next->turn))))))
		next = previous;
	if (!next)
		__atomic_fetch_or(&idle_cpus, 1ull << cpu, __ATOMIC_SEQ_CST);
	/* One that has had its share does not run while another waits elsewhere that has not. */
	if (!next || class_of(next) == CLASS_DEBT) {
		stolen = steal(cpu, next ? CLASS_DEBT : CLASSES);
		if (stolen)
			return stolen;
	}
	if (next && next != previous)
		queue_del(q, next);
	return next ? next : pcpus[cpu].idle;
}

/* The previous one is to be queued yet. */
static void advance_turn(struct runqueue *q, const struct vcpu *previous, const struct vcpu *next)
{
	int64_t least = next->turn;

	if (is_idle(next))
		return;
	if (wants_cpu(previous) && class_of(previous) != CLASS_DEBT)
		least = MIN(least, previous->turn);
	for (unsigned c = CLASS_BOOST; c <= CLASS_CREDIT; c++)
		if (!list_empty(&q->queue[c]))
			least = MIN(least, list_entry(q->queue[c].next, struct vcpu, queue)->turn);
	q->turn = MAX(q->turn, least);
}

static void becomes_active(struct vcpu *v, uint64_t now)
{
	__atomic_store_n(&v->active, true, __ATOMIC_SEQ_CST);
	if (READ_ONCE(accounting_rests) &&
	    __atomic_exchange_n(&accounting_rests, false, __ATOMIC_SEQ_CST)) {
		accounted = now;
		timer_set(&accounting, now + ACCOUNT_NS);
	}
}

void schedule(void)
{
	struct pcpu *c = this_cpu();
	struct runqueue *q = queue_of(c);
	uint64_t flags = spin_lock_irq(&q->lock);
	uint64_t now = time_now();
	struct vcpu *previous = q->runs, *next;

	charge(q, now);
	next = choose(q, c->id, now);
	if (!is_idle(next))
		__atomic_fetch_and(&idle_cpus, ~(1ull << c->id), __ATOMIC_SEQ_CST);
	if (next != previous || now >= q->slice_end)
		q->slice_end = now + SCHED_SLICE_NS;
	if (q->nr && !is_idle(next)) {
		timer_set(&q->slice, q->slice_end);
		tell_idle(q);
	} else {
		timer_stop(&q->slice);
	}
	if (next == previous) {
		spin_unlock_irq(&q->lock, flags);
		return;
	}
	set_state(previous, waiting_state(previous), now);
	set_state(next, VCPU_RUNNING, now);
	next->running = true;
	if (!is_idle(next))
		becomes_active(next, now);
	advance_turn(q, previous, next);
	q->runs = next;
	spin_unlock(&q->lock);
	if (!is_idle(next) && next->timer.cpu != c->id)
		vcpu_timers_move(next, c->id);
	context_switch(previous, next);
	irq_restore(flags);
}

void sched_switched(struct vcpu *v)
{
	uint64_t flags;
	struct runqueue *q;

	if (is_idle(v))
		return;
	q = lock_queue(v, &flags);
	__atomic_store_n(&v->running, false, __ATOMIC_RELEASE);
	spin_unlock_irq(&q->lock, flags);
	place(v, false);
}

static void slice_over(void *arg)
{
	(void)arg;
	raise_soft(this_cpu(), SOFT_SCHEDULE);
}

/* ---- accounting ---- */

/* How many of a domain's vCPUs have used or wanted a CPU lately. */
static unsigned active_vcpus(const struct domain *d)
{
	unsigned n = 0;

	for (unsigned i = 0; i < d->nr_vcpus; i++)
		n += d->vcpu[i] && READ_ONCE(d->vcpu[i]->active);
	return n;
}

static void account_vcpu(struct vcpu *v, int64_t ns, bool capped, int64_t allowance)
{
	uint64_t flags;
	struct runqueue *q = lock_queue(v, &flags);
	enum priority before = class_of(v);
	bool was_parked = v->parked;

	credit(v, ns, capped, allowance);
	v->active = v->parked || v->state == VCPU_RUNNING || v->state == VCPU_RUNNABLE;
	if (is_queued(v) && (v->parked || class_of(v) != before)) {
		queue_del(q, v);
		if (!v->parked)
			queue_add(q, v);
	}
	if (v->running && v->parked)
		kick_cpu(v->processor->id);
	spin_unlock_irq(&q->lock, flags);
	if (was_parked && !v->parked)
		place(v, false);
}

/* ns: the time since it was done last. */
static void account_domain(struct domain *d, int64_t ns, uint64_t weights)
{
	unsigned weight, cap, active = active_vcpus(d);
	int64_t share, limit;

	sched_get_share(d, &weight, &cap);
	share = ns * __builtin_popcountll(online_cpus) * weight / (int64_t)weights;
	limit = ns * cap / 100;
	if (cap && share > limit)
		share = limit;
	for (unsigned i = 0; i < d->nr_vcpus; i++) {
		struct vcpu *v = d->vcpu[i];

		if (!v || !READ_ONCE(v->active))
			continue;
		WRITE_ONCE(v->part, MAX(weight * PART_UNIT / active, 1u));
		account_vcpu(v, share / active, cap != 0, limit / active);
	}
}

/* CPUs whose vCPU has had its share look for one elsewhere that has not. */
static void balance(void)
{
	bool waiting = false;

	bit_for_each(cpu, &online_cpus, MAX_CPUS) waiting = waiting || READ_ONCE(queues[cpu].nr);
	bit_for_each(cpu, &online_cpus, MAX_CPUS)
	{
		uint64_t flags = spin_lock_irq(&queues[cpu].lock);
		bool look = waiting && !is_idle(queues[cpu].runs) &&
			    class_of(queues[cpu].runs) == CLASS_DEBT;

		spin_unlock_irq(&queues[cpu].lock, flags);
		if (look)
			kick_cpu(cpu);
	}
}

/* The weights of all domains that have used or wanted a CPU lately. */
static uint64_t active_weights(void)
{
	unsigned weight, cap;
	uint64_t weights = 0;

	for (struct domain *d = domain_list; d; d = d->next) {
		sched_get_share(d, &weight, &cap);
		if (!d->idle && active_vcpus(d))
			weights += weight;
	}
	return weights;
}

static void account(void *arg)
{
	uint64_t now = time_now(), weights;
	int64_t ns = MIN((int64_t)(now - accounted), DEBT_CAPPED_NS);

	(void)arg;
	accounted = now;
	bit_for_each(cpu, &online_cpus, MAX_CPUS)
	{
		uint64_t flags = spin_lock_irq(&queues[cpu].lock);

		charge(&queues[cpu], now);
		advance_turn(&queues[cpu], queues[cpu].runs, queues[cpu].runs);
		spin_unlock_irq(&queues[cpu].lock, flags);
	}
	spin_lock(&domain_list_lock);
	weights = active_weights();
	for (struct domain *d = domain_list; d; d = d->next) {
		/* One that became active since then waits for the next time. */
		if (weights && !d->idle && active_vcpus(d))
			account_domain(d, ns, weights);
	}
	/* It rests before it looks again, and who becomes active looks afterwards whether it rests. */
	if (!weights)
		__atomic_store_n(&accounting_rests, true, __ATOMIC_SEQ_CST);
	if (!weights && active_weights())
		weights = __atomic_exchange_n(&accounting_rests, false, __ATOMIC_SEQ_CST);
	spin_unlock(&domain_list_lock);
	balance();
	if (weights)
		timer_set(&accounting, now + ACCOUNT_NS);
}

/* ---- beginnings ---- */

void sched_vcpu_init(struct vcpu *v)
{
	uint64_t may;

	if (!v->affinity)
		v->affinity = ~0ull;
	may = v->affinity & online_cpus;
	list_init(&v->queue);
	v->state = VCPU_OFFLINE;
	v->state_since = time_now();
	if (is_idle(v))
		v->processor = &pcpus[v->id];
	else if (may >> v->id % MAX_CPUS & 1)
		v->processor = &pcpus[v->id % MAX_CPUS];
	else
		v->processor = &pcpus[may ? __builtin_ctzll(may) : 0];
	vcpu_timers_init(v);
}

void sched_init_cpu(unsigned cpu)
{
	struct runqueue *q = &queues[cpu];
	struct vcpu *idle = pcpus[cpu].idle;

	for (unsigned i = 0; i < CLASSES; i++)
		list_init(&q->queue[i]);
	q->runs = idle;
	q->charged = q->slice_end = time_now();
	timer_init(&q->slice, slice_over, NULL, cpu);
	idle->processor = &pcpus[cpu];
	set_state(idle, VCPU_RUNNING, q->charged);
	idle->running = true;
	__atomic_fetch_or(&online_cpus, 1ull << cpu, __ATOMIC_SEQ_CST);
	__atomic_fetch_or(&idle_cpus, 1ull << cpu, __ATOMIC_SEQ_CST);
	vcpu_time_init_cpu(cpu);
	if (cpu == 0) {
		accounted = q->charged;
		timer_init(&accounting, account, NULL, cpu);
		timer_set(&accounting, q->charged + ACCOUNT_NS);
	}
}

void soft_run(void)
{
	struct pcpu *c = this_cpu();
	uint32_t what;

	while ((what = __atomic_exchange_n(&c->pending, 0, __ATOMIC_SEQ_CST)) != 0) {
		if (unlikely(what & 1u << SOFT_NMI))
			nmi_run();
		if (what & 1u << SOFT_TIMER)
			timer_run();
		if (unlikely(what & 1u << SOFT_AREAS))
			vcpu_areas_update(c->vcpu);
		if (what & 1u << SOFT_SCHEDULE)
			schedule();
	}
}

void idle_loop(void)
{
	struct pcpu *c = this_cpu();

	for (;;) {
		__asm__ volatile("sti" ::: "memory");
		soft_run();
		__asm__ volatile("cli" ::: "memory");
		/* An interrupt after STI is taken only after HLT has begun, and ends it. */
		if (!READ_ONCE(c->pending))
			__asm__ volatile("sti; hlt" ::: "memory");
	}
}

void sched_dump(void)
{
	static const char *const names[] = {"boost", "credit", "debt"};

	bit_for_each(cpu, &online_cpus, MAX_CPUS)
	{
		struct runqueue *q = &queues[cpu];
		uint64_t flags = spin_lock_irq(&q->lock);

		log_info("CPU %u: %u waiting; runs d%uv%u, credit %ld us", cpu, q->nr,
			 q->runs->domain->id, q->runs->id, q->runs->credit / 1000);
		for (unsigned c = 0; c < CLASSES; c++) {
			list_for_each(p, &q->queue[c])
			{
				struct vcpu *v = list_entry(p, struct vcpu, queue);

				log_info("  %s: d%uv%u, credit %ld us", names[c], v->domain->id,
					 v->id, v->credit / 1000);
			}
		}
		spin_unlock_irq(&q->lock, flags);
	}
}
