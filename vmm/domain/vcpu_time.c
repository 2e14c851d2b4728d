/* SPDX-License-Identifier: MIT */
#include "vmm/domain/vcpu_time.h"

#include "vmm/boot/boot.h"
#include "vmm/cpu/policy.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define REFRESH_NS 1000000000ull

static struct timer refresh[MAX_CPUS];

/* ---- time information ---- */

/* The copy follows the same protocol as the original: an odd version, the values, the even version. */
static void copy_time(struct vcpu *v)
{
	struct vcpu_time_info t = v->time;
	guest_va_t version = GUEST_VA(v->time_area.v + offsetof(struct vcpu_time_info, version));

	if (!v->time_area.v)
		return;
	if (!v->kernel_mode) {
		v->areas_stale = true;
		return;
	}
	t.version--;
	/* An address that faults is the guest's own loss. */
	if (copy_to_guest(version, &t.version, sizeof(t.version)) ||
	    copy_to_guest(v->time_area, &t, sizeof(t)))
		return;
	t.version++;
	barrier();
	copy_to_guest(version, &t.version, sizeof(t.version));
}

void vcpu_time_update(struct vcpu *v)
{
	struct vcpu_time_info *t = &v->time, *shared = &v->info->time;

	t->tsc_timestamp = rdtsc();
	t->system_time = time_of_tsc(t->tsc_timestamp);
	time_scale(&t->tsc_to_system_mul, &t->tsc_shift);
	t->flags = cpu_features.invariant_tsc && !boot_options.tsc_unstable
			   ? XEN_PVCLOCK_TSC_STABLE_BIT
			   : 0;
	/* The version is ours and not what the guest has made of it in the shared page. */
	WRITE_ONCE(shared->version, t->version + 1);
	barrier();
	t->version += 2;
	shared->tsc_timestamp = t->tsc_timestamp;
	shared->system_time = t->system_time;
	shared->tsc_to_system_mul = t->tsc_to_system_mul;
	shared->tsc_shift = t->tsc_shift;
	shared->flags = t->flags;
	barrier();
	WRITE_ONCE(shared->version, t->version);
	copy_time(v);
}

static void refresh_time(void *arg)
{
	struct timer *t = arg;

	if (!current->domain->idle)
		vcpu_time_update(current);
	timer_set(t, time_now() + REFRESH_NS);
}

void vcpu_time_init_cpu(unsigned cpu)
{
	timer_init(&refresh[cpu], refresh_time, &refresh[cpu], cpu);
	timer_set(&refresh[cpu], time_now() + REFRESH_NS);
}

/* ---- runstate ---- */

void vcpu_runstate_update(struct vcpu *v)
{
	struct vcpu_runstate_info r;
	guest_va_t entry = GUEST_VA(v->runstate_area.v +
				    offsetof(struct vcpu_runstate_info, state_entry_time));
	bool flagged = v->domain->vm_assist >> VMASST_TYPE_runstate_update_flag & 1;

	if (!v->runstate_area.v)
		return;
	if (!v->kernel_mode) {
		v->areas_stale = true;
		return;
	}
	memset(&r, 0, sizeof(r));
	vcpu_runstate_at_change(v, &r);
	if (!flagged) {
		copy_to_guest(v->runstate_area, &r, sizeof(r));
		return;
	}
	r.state_entry_time |= XEN_RUNSTATE_UPDATE;
	if (copy_to_guest(entry, &r.state_entry_time, sizeof(r.state_entry_time)) ||
	    copy_to_guest(v->runstate_area, &r, sizeof(r)))
		return;
	r.state_entry_time &= ~XEN_RUNSTATE_UPDATE;
	barrier();
	copy_to_guest(entry, &r.state_entry_time, sizeof(r.state_entry_time));
}

void vcpu_areas_update(struct vcpu *v)
{
	if (!v->areas_stale || !v->kernel_mode)
		return;
	v->areas_stale = false;
	copy_time(v);
	vcpu_runstate_update(v);
}

/* ---- wall clock ---- */

static spinlock_t wallclock_lock = SPINLOCK_INIT;

void domain_replace_shared_info(struct domain *d, struct shared_info *s)
{
	spin_lock(&wallclock_lock);
	d->shared_info = s;
	spin_unlock(&wallclock_lock);
}

void domain_update_wallclock(struct domain *d)
{
	struct shared_info *s;
	uint64_t seconds;
	uint32_t ns, version;

	spin_lock(&wallclock_lock);
	s = d->shared_info;
	time_wallclock(&seconds, &ns);
	seconds += (uint64_t)d->time_offset;
	/* A guest that overwrites the version deceives itself only. */
	version = READ_ONCE(s->wc_version) | 1;
	WRITE_ONCE(s->wc_version, version);
	barrier();
	s->wc_sec = (uint32_t)seconds;
	s->wc_sec_hi = (uint32_t)(seconds >> 32);
	s->wc_nsec = ns;
	barrier();
	WRITE_ONCE(s->wc_version, version + 1);
	spin_unlock(&wallclock_lock);
}

/* ---- timers ---- */

static void singleshot_due(void *arg)
{
	send_vcpu_virq(arg, VIRQ_TIMER);
}

static void periodic_due(void *arg)
{
	struct vcpu *v = arg;
	uint64_t period = READ_ONCE(v->period);

	send_vcpu_virq(v, VIRQ_TIMER);
	/* From now on and not from when it was due: a vCPU that was late does not get a burst. */
	if (period)
		timer_set(&v->periodic, time_now() + period);
}

static void poll_due(void *arg)
{
	struct vcpu *v = arg;

	if (READ_ONCE(v->poll))
		vcpu_unblock(v);
}

void vcpu_timers_init(struct vcpu *v)
{
	unsigned cpu = v->processor->id;

	timer_init(&v->timer, singleshot_due, v, cpu);
	timer_init(&v->periodic, periodic_due, v, cpu);
	timer_init(&v->poll_timer, poll_due, v, cpu);
}

void vcpu_timers_move(struct vcpu *v, unsigned cpu)
{
	timer_move(&v->timer, cpu);
	timer_move(&v->periodic, cpu);
	timer_move(&v->poll_timer, cpu);
}

void vcpu_timers_kill(struct vcpu *v)
{
	WRITE_ONCE(v->period, 0);
	timer_kill(&v->timer);
	timer_kill(&v->periodic);
	timer_kill(&v->poll_timer);
}
