/* SPDX-License-Identifier: MIT */
#include "vmm/domain/vcpu_time.h"

#include <xen/sched.h>

#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define PERIOD_MIN_NS 1000000ull

static long initialise(struct vcpu *v, arg_t arg)
{
	struct vcpu_guest_context context;
	long rc;

	if (copy_from_guest(&context, GUEST_VA(arg), sizeof(context)))
		return -EFAULT;
	/* No lock, for others would wait while its tables are checked. */
	if (__atomic_exchange_n(&v->initialising, true, __ATOMIC_SEQ_CST))
		return -EEXIST;
	rc = v->initialised ? -EEXIST : vcpu_set_context(v, &context);
	__atomic_store_n(&v->initialising, false, __ATOMIC_SEQ_CST);
	return rc;
}

static long up(struct vcpu *v)
{
	if (!v->initialised)
		return -EINVAL;
	spin_lock(&v->domain->lock);
	WRITE_ONCE(v->down, false);
	spin_unlock(&v->domain->lock);
	vcpu_wake(v);
	return 0;
}

/* A domain without a vCPU that is up cannot come back: that is its end. */
static long down(struct vcpu *v)
{
	struct domain *d = v->domain;
	bool last = true;

	spin_lock(&d->lock);
	for (unsigned i = 0; i < MAX_VCPUS && last; i++)
		last = !d->vcpu[i] || d->vcpu[i] == v || d->vcpu[i]->down;
	if (!last)
		WRITE_ONCE(v->down, true);
	spin_unlock(&d->lock);
	if (last)
		domain_shutdown(d, SHUTDOWN_poweroff);
	else
		vcpu_sleep(v);
	return 0;
}

static long get_runstate(struct vcpu *v, arg_t arg)
{
	struct vcpu_runstate_info info;

	memset(&info, 0, sizeof(info));
	vcpu_runstate(v, &info);
	return copy_to_guest(GUEST_VA(arg), &info, sizeof(info));
}

static long register_runstate(struct vcpu *v, arg_t arg)
{
	struct vcpu_register_runstate_memory_area op;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.addr.p && !guest_range_ok(GUEST_VA(op.addr.p), sizeof(struct vcpu_runstate_info)))
		return -EFAULT;
	v->runstate_area = GUEST_VA(op.addr.p);
	if (v == current)
		vcpu_runstate_update(v);
	else if (op.addr.p)
		/* Another's kernel has the same addresses, or the guest would not name this one. */
		return get_runstate(v, op.addr.p);
	return 0;
}

static long register_time(struct vcpu *v, arg_t arg)
{
	struct vcpu_register_time_memory_area op;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.addr.p && !guest_range_ok(GUEST_VA(op.addr.p), sizeof(struct vcpu_time_info)))
		return -EFAULT;
	v->time_area = GUEST_VA(op.addr.p);
	/* Another vCPU's is written when it is loaded next. */
	if (v == current)
		vcpu_time_update(v);
	return 0;
}

/* Once in its life, and by itself or before it is up: nobody else uses the old place meanwhile but senders of events. */
static long register_info(struct vcpu *v, arg_t arg)
{
	struct vcpu_register_vcpu_info op;
	struct vcpu_info *info;
	struct frame *f;
	long rc;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.offset % sizeof(uint64_t) || op.offset > PAGE_SIZE - sizeof(*info))
		return -EINVAL;
	rc = mfn_get_both(MFN(op.mfn), v->domain, TYPE_WRITABLE);
	if (rc)
		return rc;
	f = mfn_frame(MFN(op.mfn));
	spin_lock(&v->domain->lock);
	if (!mfn_eq(v->info_frame, MFN_NONE) || (v != current && !v->down)) {
		spin_unlock(&v->domain->lock);
		frame_put_both(f);
		return -EINVAL;
	}
	info = (void *)((char *)mfn_to_ptr(MFN(op.mfn)) + op.offset);
	memcpy(info, v->info, sizeof(*info));
	v->info_frame = MFN(op.mfn);
	__atomic_store_n(&v->info, info, __ATOMIC_SEQ_CST);
	spin_unlock(&v->domain->lock);
	/* An event may have been noted in the old place after it was copied: the guest looks at everything once. */
	__atomic_store_n(&info->evtchn_pending_sel, ~0ul, __ATOMIC_SEQ_CST);
	__atomic_store_n(&info->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
	vcpu_mark_events_pending(v);
	shadow_mark(v->domain, MFN(op.mfn));
	return 0;
}

static long set_periodic(struct vcpu *v, arg_t arg)
{
	struct vcpu_set_periodic_timer op;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	/* The upper bound keeps sums of times within 64 bits. */
	if (op.period_ns < PERIOD_MIN_NS || op.period_ns > INT64_MAX)
		return -EINVAL;
	WRITE_ONCE(v->period, op.period_ns);
	timer_set(&v->periodic, time_now() + op.period_ns);
	return 0;
}

static long set_singleshot(struct vcpu *v, arg_t arg)
{
	struct vcpu_set_singleshot_timer op;

	if (v != current)
		return -EINVAL;
	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.flags & VCPU_SSHOTTMR_future && op.timeout_abs_ns <= time_now())
		return -ETIME;
	timer_set(&v->timer, op.timeout_abs_ns);
	return 0;
}

void vcpu_send_nmi(struct vcpu *v)
{
	if (__atomic_exchange_n(&v->nmi_pending, true, __ATOMIC_SEQ_CST))
		return;
	if (READ_ONCE(v->blocked))
		vcpu_unblock(v);
	else
		vcpu_kick(v);
}

long do_vcpu_op(arg_t command, arg_t vcpu, arg_t arg)
{
	struct vcpu *v = domain_vcpu(current->domain, (uint32_t)vcpu);

	if (!v)
		return -ENOENT;
	switch ((uint32_t)command) {
	case VCPUOP_initialise:
		return initialise(v, arg);
	case VCPUOP_up:
		return up(v);
	case VCPUOP_down:
		return down(v);
	case VCPUOP_is_up:
		return !v->down;
	case VCPUOP_get_runstate_info:
		return get_runstate(v, arg);
	case VCPUOP_register_runstate_memory_area:
		return register_runstate(v, arg);
	case VCPUOP_set_periodic_timer:
		return set_periodic(v, arg);
	case VCPUOP_stop_periodic_timer:
		WRITE_ONCE(v->period, 0);
		timer_stop(&v->periodic);
		return 0;
	case VCPUOP_set_singleshot_timer:
		return set_singleshot(v, arg);
	case VCPUOP_stop_singleshot_timer:
		if (v != current)
			return -EINVAL;
		timer_stop(&v->timer);
		return 0;
	case VCPUOP_register_vcpu_info:
		return register_info(v, arg);
	case VCPUOP_send_nmi:
		vcpu_send_nmi(v);
		return 0;
	case VCPUOP_register_vcpu_time_memory_area:
		return register_time(v, arg);
	default:
		return -ENOSYS;
	}
}
