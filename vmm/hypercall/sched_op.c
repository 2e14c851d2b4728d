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

union sched_op {
	struct sched_poll poll; /* the largest: zeroed as a whole */
	struct sched_shutdown shutdown;
	struct sched_remote_shutdown remote_shutdown;
	struct sched_watchdog watchdog;
	struct sched_pin_override pin_override;
};

static long remote_shutdown(const struct sched_remote_shutdown *op)
{
	struct domain *d;

	if (!current->domain->privileged)
		return -EPERM;
	if (op->reason > SHUTDOWN_MAX)
		return -EINVAL;
	d = domain_get(op->domain_id);
	if (!d)
		return -ESRCH;
	domain_shutdown(d, (uint8_t)op->reason);
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
static long poll(const struct sched_poll *op)
{
	struct vcpu *v = current;
	evtchn_port_t port = 0;
	int found;

	if (op->nr_ports > POLL_PORTS_MAX)
		return -EINVAL;
	if (op->nr_ports == 1 && from_guest(&port, op->ports, 0))
		return -EFAULT;
	WRITE_ONCE(v->poll_port, port);
	WRITE_ONCE(v->poll, true);
	WRITE_ONCE(v->blocked, true);
	events_set_polling(v, true);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	found = any_pending(v->domain, op);
	if (found || vcpu_event_deliverable(v) || READ_ONCE(v->nmi_pending) ||
	    (op->timeout && op->timeout <= time_now())) {
		WRITE_ONCE(v->poll, false);
		WRITE_ONCE(v->blocked, false);
		events_set_polling(v, false);
		return MIN(found, 0);
	}
	if (op->timeout)
		timer_set(&v->poll_timer, op->timeout);
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

void watchdogs_kill(struct domain *d)
{
	for (unsigned i = 0; i < ARRAY_SIZE(d->watchdog); i++) {
		if (d->watchdog[i].fn)
			timer_kill(&d->watchdog[i]);
	}
}

static long pin_override(int pcpu)
{
	struct vcpu *v = current;

	if (!v->domain->privileged)
		return -EPERM;
	if (pcpu < 0) {
		if (!v->affinity_saved)
			return -EINVAL;
		vcpu_set_affinity(v, v->affinity_saved);
		v->affinity_saved = 0;
		return 0;
	}
	if ((unsigned)pcpu >= nr_cpus)
		return -EINVAL;
	if (v->affinity_saved)
		return -EBUSY;
	v->affinity_saved = v->affinity;
	vcpu_set_affinity(v, 1ull << pcpu);
	return 0;
}

/* Bytes of the structures of those that have one. */
static const uint8_t op_bytes[] = {
	[SCHEDOP_shutdown] = sizeof(struct sched_shutdown),
	[SCHEDOP_shutdown_code] = sizeof(struct sched_shutdown),
	[SCHEDOP_remote_shutdown] = sizeof(struct sched_remote_shutdown),
	[SCHEDOP_poll] = sizeof(struct sched_poll),
	[SCHEDOP_watchdog] = sizeof(struct sched_watchdog),
	[SCHEDOP_pin_override] = sizeof(struct sched_pin_override),
};

long do_sched_op(arg_t command, arg_t arg)
{
	struct domain *d = current->domain;
	union sched_op op = {0};
	uint8_t bytes;
	long rc;

	if (command >= ARRAY_SIZE(op_bytes))
		return -ENOSYS;
	bytes = op_bytes[array_nospec(command, ARRAY_SIZE(op_bytes))];
	if (bytes && copy_from_guest(&op, GUEST_VA(arg), bytes))
		return -EFAULT;
	switch (command) {
	case SCHEDOP_yield:
		vcpu_yield();
		return 0;
	case SCHEDOP_block:
		vcpu_block();
		return 0;
	case SCHEDOP_shutdown:
	case SCHEDOP_shutdown_code:
		if (op.shutdown.reason > SHUTDOWN_MAX)
			return -EINVAL;
		/* The code is what tools are told; a shutdown with another reason replaces it. */
		if (command == SCHEDOP_shutdown)
			domain_shutdown(d, (uint8_t)op.shutdown.reason);
		else
			d->shutdown_code = (uint8_t)op.shutdown.reason;
		return 0;
	case SCHEDOP_poll:
		return poll(&op.poll);
	case SCHEDOP_remote_shutdown:
		return remote_shutdown(&op.remote_shutdown);
	case SCHEDOP_watchdog:
		spin_lock(&d->lock);
		rc = watchdog_locked(d, &op.watchdog);
		spin_unlock(&d->lock);
		return rc;
	case SCHEDOP_pin_override:
		return pin_override(op.pin_override.pcpu);
	default:
		return -ENOSYS;
	}
}
