/* SPDX-License-Identifier: MIT */
#include "vmm/hypercall/sched_op.h"

#include "vmm/lib/xen.h"
#include <xen/sched.h>

#include "vmm/domain/domain.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/print.h"
#include "vmm/mm/access.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define POLL_PORTS_MAX 128u
#define NS_PER_SECOND  1000000000ull

static long shutdown(arg_t arg)
{
	struct sched_shutdown op;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.reason > SHUTDOWN_MAX)
		return -EINVAL;
	domain_shutdown(current->domain, (uint8_t)op.reason);
	return 0;
}

/* What tools are told; a shutdown with another reason replaces it. */
static long shutdown_code(arg_t arg)
{
	struct sched_shutdown op;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.reason > SHUTDOWN_MAX)
		return -EINVAL;
	current->domain->shutdown_code = (uint8_t)op.reason;
	return 0;
}

static long remote_shutdown(arg_t arg)
{
	struct sched_remote_shutdown op;
	struct domain *d;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (!current->domain->privileged)
		return -EPERM;
	if (op.reason > SHUTDOWN_MAX)
		return -EINVAL;
	d = domain_get(op.domain_id);
	if (!d)
		return -ESRCH;
	domain_shutdown(d, (uint8_t)op.reason);
	domain_put(d);
	return 0;
}

/* Whether one of the ports is pending: 1, 0, -EINVAL, -EFAULT. */
static int any_pending(struct domain *d, const struct sched_poll *op)
{
	for (unsigned i = 0; i < op->nr_ports; i++) {
		evtchn_port_t port;

		if (from_guest(&port, op->ports, i))
			return -EFAULT;
		if (!evtchn_port_valid(d, port))
			return -EINVAL;
		if (evtchn_port_pending(d, port))
			return 1;
	}
	return 0;
}

/*
 * Returns to the guest when the vCPU runs again, whatever ended the wait; the guest looks itself. First it is made known that the vCPU waits, then its ports
 * are looked at; whoever sends does it the other way round.
 */
static long poll(arg_t arg)
{
	struct vcpu *v = current;
	struct sched_poll op;
	evtchn_port_t port = 0;
	int found;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.nr_ports > POLL_PORTS_MAX)
		return -EINVAL;
	if (op.nr_ports == 1 && from_guest(&port, op.ports, 0))
		return -EFAULT;
	WRITE_ONCE(v->poll_port, port);
	WRITE_ONCE(v->poll, true);
	WRITE_ONCE(v->blocked, true);
	events_set_polling(v, true);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	found = any_pending(v->domain, &op);
	if (found || vcpu_event_deliverable(v) || READ_ONCE(v->nmi_pending) ||
	    (op.timeout && op.timeout <= time_now())) {
		WRITE_ONCE(v->poll, false);
		WRITE_ONCE(v->blocked, false);
		events_set_polling(v, false);
		return MIN(found, 0);
	}
	if (op.timeout)
		timer_set(&v->poll_timer, op.timeout);
	else
		timer_stop(&v->poll_timer);
	raise_soft(this_cpu(), SOFT_SCHEDULE);
	return 0;
}

/* ---- watchdogs: numbers 1 .. ---- */

static void watchdog_barks(void *arg)
{
	struct domain *d = arg;

	log_warning("Domain %u: its watchdog has not been fed", d->id);
	domain_shutdown(d, SHUTDOWN_watchdog);
}

/* One that is free: it was never set up or has been stopped. The domain's lock is held. */
static unsigned watchdog_free(const struct domain *d)
{
	unsigned i = 0;

	while (i < ARRAY_SIZE(d->watchdog) && d->watchdog[i].arg)
		i++;
	return i;
}

static long watchdog_locked(struct domain *d, const struct sched_watchdog *op)
{
	unsigned i = op->id - 1;
	struct timer *t;

	if (op->id == 0) {
		if (op->timeout == 0)
			return -EINVAL;
		i = watchdog_free(d);
		if (i == ARRAY_SIZE(d->watchdog))
			return -ENOSPC;
		timer_init(&d->watchdog[i], watchdog_barks, d, this_cpu()->id);
	}
	if (i >= ARRAY_SIZE(d->watchdog))
		return -EINVAL;
	t = &d->watchdog[i];
	if (!t->arg)
		return -EINVAL;
	if (op->timeout == 0) {
		timer_stop(t);
		t->arg = NULL;
		return 0;
	}
	timer_set(t, time_now() + op->timeout * NS_PER_SECOND);
	return op->id == 0 ? (long)i + 1 : 0;
}

static long watchdog(arg_t arg)
{
	struct domain *d = current->domain;
	struct sched_watchdog op;
	long rc;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	spin_lock(&d->lock);
	rc = watchdog_locked(d, &op);
	spin_unlock(&d->lock);
	return rc;
}

void watchdogs_kill(struct domain *d)
{
	for (unsigned i = 0; i < ARRAY_SIZE(d->watchdog); i++) {
		if (d->watchdog[i].fn)
			timer_kill(&d->watchdog[i]);
	}
}

static long pin_override(arg_t arg)
{
	struct vcpu *v = current;
	struct sched_pin_override op;

	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (!v->domain->privileged)
		return -EPERM;
	if (op.pcpu < 0) {
		if (!v->affinity_saved)
			return -EINVAL;
		vcpu_set_affinity(v, v->affinity_saved);
		v->affinity_saved = 0;
		return 0;
	}
	if ((unsigned)op.pcpu >= nr_cpus)
		return -EINVAL;
	if (v->affinity_saved)
		return -EBUSY;
	v->affinity_saved = v->affinity;
	vcpu_set_affinity(v, 1ull << op.pcpu);
	return 0;
}

long do_sched_op(arg_t command, arg_t arg)
{
	switch (command) {
	case SCHEDOP_yield:
		vcpu_yield();
		return 0;
	case SCHEDOP_block:
		vcpu_block();
		return 0;
	case SCHEDOP_shutdown:
		return shutdown(arg);
	case SCHEDOP_poll:
		return poll(arg);
	case SCHEDOP_remote_shutdown:
		return remote_shutdown(arg);
	case SCHEDOP_shutdown_code:
		return shutdown_code(arg);
	case SCHEDOP_watchdog:
		return watchdog(arg);
	case SCHEDOP_pin_override:
		return pin_override(arg);
	default:
		return -ENOSYS;
	}
}
