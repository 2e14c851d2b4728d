/* SPDX-License-Identifier: MIT */
/* Event channels: ports, what they are bound to, and the two-level ABI. event_internal.h says which lock guards what. */
#include "vmm/hypercall/event_channel.h"

#include "vmm/hypercall/event_internal.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/mm/access.h"
#include "vmm/mm/heap.h"
#include "vmm/platform/irq.h"
#include "vmm/sched/sched.h"

static spinlock_t binding_lock = SPINLOCK_INIT;

/* ---- locks ---- */

static uint64_t lock_two(struct domain *a, struct domain *b)
{
	struct domain *first = a->id < b->id ? a : b, *second = a->id < b->id ? b : a;
	uint64_t flags = spin_lock_irq(&first->events->lock);

	if (a != b)
		spin_lock(&second->events->lock);
	return flags;
}

static void unlock_two(struct domain *a, struct domain *b, uint64_t flags)
{
	if (a != b)
		spin_unlock(&b->events->lock);
	spin_unlock_irq(&a->events->lock, flags);
}

/* ---- making ports pending; an event lock is held ---- */

void vcpu_mark_events_pending(struct vcpu *v)
{
	/* One that was not looked at yet has woken it already. */
	if (__atomic_exchange_n(&v->info->evtchn_upcall_pending, 1, __ATOMIC_SEQ_CST))
		return;
	if (READ_ONCE(v->blocked))
		vcpu_unblock(v);
	else
		vcpu_kick(v);
}

/* Pending and not masked: the port's vCPU looks at its word of ports. */
static void two_level_notify(struct domain *d, uint32_t port, struct evtchn *c)
{
	struct vcpu *v = d->vcpu[READ_ONCE(c->vcpu)];

	if (!bit_test_and_set(&v->info->evtchn_pending_sel, port / 64))
		vcpu_mark_events_pending(v);
}

static void two_level_set_pending(struct domain *d, uint32_t port, struct evtchn *c)
{
	struct shared_info *s = d->shared_info;

	if (!bit_test_and_set(s->evtchn_pending, port) && !bit_test(s->evtchn_mask, port))
		two_level_notify(d, port, c);
}

static void wake_pollers(struct domain *d, uint32_t port, uint64_t polling)
{
	bit_for_each(id, &polling, MAX_VCPUS)
	{
		struct vcpu *v = d->vcpu[id];
		uint32_t waits_for = READ_ONCE(v->poll_port);

		if (READ_ONCE(v->poll) && (waits_for == 0 || waits_for == port))
			vcpu_unblock(v);
	}
}

static void set_pending(struct domain *d, uint32_t port, struct evtchn *c)
{
	uint64_t polling;

	if (__atomic_load_n(&d->events->fifo, __ATOMIC_ACQUIRE))
		fifo_set_pending(d, port, c);
	else if (port < EVTCHN_2L_NR_CHANNELS)
		two_level_set_pending(d, port, c);
	polling = __atomic_load_n(&d->events->polling, __ATOMIC_SEQ_CST);
	if (unlikely(polling))
		wake_pollers(d, port, polling);
}

static bool is_pending(struct domain *d, uint32_t port, const struct evtchn *c)
{
	if (d->events->fifo)
		return fifo_is_pending(d, port, c);
	return port < EVTCHN_2L_NR_CHANNELS && bit_test(d->shared_info->evtchn_pending, port);
}

static void clear_pending(struct domain *d, uint32_t port, struct evtchn *c)
{
	if (d->events->fifo)
		fifo_clear_pending(d, port, c);
	else if (port < EVTCHN_2L_NR_CHANNELS)
		bit_test_and_clear(d->shared_info->evtchn_pending, port);
}

/* ---- opening and closing; the binding lock is held ---- */

/* A closed port, which stays so until the caller makes something of it; -ENOSPC, -ENOMEM; -ENOENT: there is no vCPU yet that could be told. */
static int port_find(struct domain *d)
{
	struct evtchn_state *s = d->events;
	uint32_t limit = s->fifo ? s->limit : MIN(s->limit, (uint32_t)EVTCHN_2L_NR_CHANNELS);

	if (!d->vcpu[0])
		return -ENOENT;
	for (uint32_t port = s->search; port < limit; port++) {
		struct evtchn **bucket = &s->bucket[port / PORTS_PER_BUCKET], *made, *c;

		if (!*bucket) {
			made = heap_zalloc(PORTS_PER_BUCKET * sizeof(*made));
			if (!made)
				return -ENOMEM;
			__atomic_store_n(bucket, made, __ATOMIC_RELEASE);
		}
		c = &(*bucket)[port % PORTS_PER_BUCKET];
		if (c->state == EVTCHNSTAT_closed) {
			s->search = port;
			return (int)port;
		}
	}
	return -ENOSPC;
}

/* Make a closed port into something; its event lock is held, too. */
static struct evtchn *port_open(struct domain *d, uint32_t port, uint8_t state, unsigned vcpu,
				uint32_t number)
{
	struct evtchn *c = evtchn_of(d, port);

	c->state = state;
	c->vcpu = (uint8_t)vcpu;
	c->number = number;
	c->priority = EVTCHN_FIFO_PRIORITY_DEFAULT;
	c->pending = false;
	return c;
}

/* The same for one that is bound to nothing that has to know. Port or negative. */
static int port_new(struct domain *d, uint8_t state, unsigned vcpu, uint32_t number, domid_t peer)
{
	int port = port_find(d);
	uint64_t flags;

	if (port < 0)
		return port;
	flags = spin_lock_irq(&d->events->lock);
	port_open(d, (uint32_t)port, state, vcpu, number)->peer_id = peer;
	spin_unlock_irq(&d->events->lock, flags);
	return port;
}

static bool virq_is_per_vcpu(uint32_t virq)
{
	return virq == VIRQ_TIMER || virq == VIRQ_DEBUG || virq == VIRQ_XENOPROF ||
	       virq == VIRQ_XENPMU;
}

/* Where the virtual interrupt of a port is entered: global ones at vCPU 0, whoever is told. */
static uint16_t *virq_entry(struct domain *d, const struct evtchn *c)
{
	return &d->vcpu[virq_is_per_vcpu(c->number) ? c->vcpu : 0]->virq_port[c->number];
}

static long port_close(struct domain *d, uint32_t port)
{
	struct evtchn *c = evtchn_of(d, port), *peer;
	struct domain *other = d;
	uint64_t flags;

	if (!c || c->state == EVTCHNSTAT_closed)
		return -EINVAL;
	if (c->state == EVTCHNSTAT_pirq)
		irq_guest_unbind(d, c->number);
	if (c->state == EVTCHNSTAT_interdomain)
		other = c->peer;
	flags = lock_two(d, other);
	switch (c->state) {
	case EVTCHNSTAT_pirq:
		d->events->pirq_port[c->number] = 0;
		break;
	case EVTCHNSTAT_virq:
		*virq_entry(d, c) = 0;
		break;
	case EVTCHNSTAT_interdomain:
		peer = evtchn_of(other, c->number);
		peer->state = EVTCHNSTAT_unbound;
		peer->peer_id = d->id;
		peer->peer = NULL;
		break;
	default:
		break;
	}
	clear_pending(d, port, c);
	c->state = EVTCHNSTAT_closed;
	c->peer = NULL;
	d->events->search = MIN(d->events->search, port);
	unlock_two(d, other, flags);
	return 0;
}

/* ---- other rooms ---- */

int events_create(struct domain *d)
{
	d->events = heap_zalloc(sizeof(*d->events));
	if (!d->events)
		return -ENOMEM;
	d->events->limit = d->privileged ? PORTS_MAX : PORTS_GUEST;
	d->events->search = 1;
	return 0;
}

void events_destroy(struct domain *d)
{
	spin_lock(&binding_lock);
	for (uint32_t port = 1; port < d->events->limit; port++)
		port_close(d, port);
	d->events->limit = 0;
	fifo_destroy(d);
	spin_unlock(&binding_lock);
}

void events_free(struct domain *d)
{
	for (unsigned i = 0; i < BUCKETS; i++) {
		if (d->events->bucket[i])
			heap_zfree(d->events->bucket[i], PORTS_PER_BUCKET * sizeof(struct evtchn));
	}
	heap_zfree(d->events, sizeof(*d->events));
	d->events = NULL;
}

/* The port was 0 or one that the domain had in that state when the caller looked: look again with the lock held. */
static bool send_locked(struct domain *d, uint32_t port, unsigned state)
{
	struct evtchn *c = evtchn_of(d, port);

	if (!c || c->state != state)
		return false;
	set_pending(d, port, c);
	return true;
}

void send_vcpu_virq(struct vcpu *v, unsigned virq)
{
	uint64_t flags = spin_lock_irq(&v->domain->events->lock);

	send_locked(v->domain, v->virq_port[virq], EVTCHNSTAT_virq);
	spin_unlock_irq(&v->domain->events->lock, flags);
}

void send_global_virq(unsigned virq)
{
	if (dom0 && dom0->vcpu[0] && dom0->events)
		send_vcpu_virq(dom0->vcpu[0], virq);
}

bool send_pirq(struct domain *d, unsigned pirq)
{
	uint64_t flags;
	bool sent;

	if (pirq >= NR_IRQS)
		return false;
	flags = spin_lock_irq(&d->events->lock);
	sent = send_locked(d, d->events->pirq_port[pirq], EVTCHNSTAT_pirq);
	spin_unlock_irq(&d->events->lock, flags);
	return sent;
}

int evtchn_alloc_unbound_port(struct domain *d, domid_t remote)
{
	int port;

	spin_lock(&binding_lock);
	port = port_new(d, EVTCHNSTAT_unbound, 0, 0, remote);
	spin_unlock(&binding_lock);
	return port;
}

bool evtchn_port_valid(struct domain *d, uint32_t port)
{
	struct evtchn *c = evtchn_of(d, port);

	return c && READ_ONCE(c->state) != EVTCHNSTAT_closed;
}

bool evtchn_port_pending(struct domain *d, uint32_t port)
{
	uint64_t flags = spin_lock_irq(&d->events->lock);
	struct evtchn *c = evtchn_of(d, port);
	bool pending = c && c->state != EVTCHNSTAT_closed && is_pending(d, port, c);

	spin_unlock_irq(&d->events->lock, flags);
	return pending;
}

void events_set_polling(struct vcpu *v, bool polls)
{
	if (polls)
		bit_test_and_set(&v->domain->events->polling, v->id);
	else
		bit_test_and_clear(&v->domain->events->polling, v->id);
}

/* ---- the hypercall ---- */

/* A port that was opened for the caller, or why not. */
static long give_port(long port, evtchn_port_t *out)
{
	if (port < 0)
		return port;
	*out = (evtchn_port_t)port;
	return 0;
}

static long alloc_unbound(struct evtchn_alloc_unbound *op)
{
	domid_t remote = op->remote_dom == DOMID_SELF ? current->domain->id : op->remote_dom;
	struct domain *d;
	long rc = domain_subject(current->domain, op->dom, &d);

	if (rc)
		return rc;
	rc = evtchn_alloc_unbound_port(d, remote);
	domain_put(d);
	return give_port(rc, &op->port);
}

static long connect(struct domain *d, struct domain *other, uint32_t other_port)
{
	struct evtchn *c, *peer = evtchn_of(other, other_port);
	uint64_t flags;
	int port;

	if (!peer || peer->state != EVTCHNSTAT_unbound || peer->peer_id != d->id)
		return -EINVAL;
	port = port_find(d);
	if (port < 0)
		return port;
	flags = lock_two(d, other);
	c = port_open(d, (uint32_t)port, EVTCHNSTAT_interdomain, 0, other_port);
	c->peer = other;
	peer->state = EVTCHNSTAT_interdomain;
	peer->number = (uint32_t)port;
	peer->peer = d;
	/* The peer may have sent something before there was anyone to get it. */
	set_pending(d, (uint32_t)port, c);
	unlock_two(d, other, flags);
	return port;
}

static long bind_interdomain(struct evtchn_bind_interdomain *op)
{
	struct domain *other = domain_get(op->remote_dom);
	long port;

	if (!other)
		return -ESRCH;
	spin_lock(&binding_lock);
	port = connect(current->domain, other, op->remote_port);
	spin_unlock(&binding_lock);
	domain_put(other);
	return give_port(port, &op->local_port);
}

/* ---- under the binding lock ---- */

static long bind_virq(struct domain *d, struct evtchn_bind_virq *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);
	int port;

	if (op->virq >= NR_VIRQS || (!virq_is_per_vcpu(op->virq) && op->vcpu != 0))
		return -EINVAL;
	if (!v)
		return -ENOENT;
	if (v->virq_port[op->virq])
		return -EEXIST;
	port = port_new(d, EVTCHNSTAT_virq, v->id, op->virq, 0);
	if (port > 0)
		WRITE_ONCE(v->virq_port[op->virq], (uint16_t)port);
	return give_port(port, &op->port);
}

static long bind_ipi(struct domain *d, struct evtchn_bind_ipi *op)
{
	if (!domain_vcpu(d, op->vcpu))
		return -ENOENT;
	return give_port(port_new(d, EVTCHNSTAT_ipi, op->vcpu, 0, 0), &op->port);
}

/* The event lock is not held while the interrupt is set up, which takes locks that come before it or none of ours. */
static long bind_pirq(struct domain *d, struct evtchn_bind_pirq *op)
{
	uint64_t flags;
	int port;
	long rc;

	if (op->pirq >= NR_IRQS || op->flags & ~(uint32_t)BIND_PIRQ__WILL_SHARE)
		return -EINVAL;
	if (!rangeset_contains(&d->irqs, op->pirq, op->pirq))
		return -EPERM;
	if (d->events->pirq_port[op->pirq])
		return -EEXIST;
	port = port_new(d, EVTCHNSTAT_pirq, 0, op->pirq, 0);
	if (port < 0)
		return port;
	/* The first interrupt may come before irq_guest_bind returns. */
	WRITE_ONCE(d->events->pirq_port[op->pirq], (uint16_t)port);
	rc = irq_guest_bind(d, op->pirq);
	if (rc) {
		flags = spin_lock_irq(&d->events->lock);
		d->events->pirq_port[op->pirq] = 0;
		evtchn_of(d, (uint32_t)port)->state = EVTCHNSTAT_closed;
		spin_unlock_irq(&d->events->lock, flags);
		return rc;
	}
	return give_port(port, &op->port);
}

/* ---- under event locks ---- */

static long send_op(uint32_t port)
{
	struct domain *d = current->domain;
	uint64_t flags = spin_lock_irq(&d->events->lock);
	struct evtchn *c = evtchn_of(d, port);
	long rc = 0;

	switch (c ? c->state : EVTCHNSTAT_closed) {
	case EVTCHNSTAT_interdomain:
		set_pending(c->peer, c->number, evtchn_of(c->peer, c->number));
		break;
	case EVTCHNSTAT_ipi:
		set_pending(d, port, c);
		break;
	case EVTCHNSTAT_unbound:
		/* Nobody there: it is lost, as bind_interdomain makes up for. */
		break;
	default:
		rc = -EINVAL;
	}
	spin_unlock_irq(&d->events->lock, flags);
	return rc;
}

static void status_of(const struct evtchn *c, struct evtchn_status *op)
{
	op->status = c ? c->state : EVTCHNSTAT_closed;
	op->vcpu = c ? c->vcpu : 0;
	switch (op->status) {
	case EVTCHNSTAT_unbound:
		op->u.unbound.dom = c->peer_id;
		break;
	case EVTCHNSTAT_interdomain:
		op->u.interdomain.dom = c->peer->id;
		op->u.interdomain.port = c->number;
		break;
	case EVTCHNSTAT_pirq:
		op->u.pirq = c->number;
		break;
	case EVTCHNSTAT_virq:
		op->u.virq = c->number;
		break;
	default:
		break;
	}
}

static long status_op(struct evtchn_status *op)
{
	struct domain *d;
	uint64_t flags;
	long rc = domain_subject(current->domain, op->dom, &d);

	if (rc)
		return rc;
	if (op->port == 0 || op->port >= d->events->limit) {
		rc = -EINVAL;
	} else {
		flags = spin_lock_irq(&d->events->lock);
		status_of(evtchn_of(d, op->port), op);
		spin_unlock_irq(&d->events->lock, flags);
	}
	domain_put(d);
	return rc;
}

static long bind_vcpu(const struct evtchn_bind_vcpu *op)
{
	struct domain *d = current->domain;
	struct vcpu *v = domain_vcpu(d, op->vcpu);
	uint32_t irq = NR_IRQS;
	struct evtchn *c;
	uint64_t flags;
	long rc = 0;

	if (!v)
		return -ENOENT;
	flags = spin_lock_irq(&d->events->lock);
	c = evtchn_of(d, op->port);
	switch (c ? c->state : EVTCHNSTAT_closed) {
	case EVTCHNSTAT_virq:
		if (virq_is_per_vcpu(c->number))
			rc = -EINVAL;
		break;
	case EVTCHNSTAT_pirq:
		irq = c->number;
		break;
	case EVTCHNSTAT_unbound:
	case EVTCHNSTAT_interdomain:
		break;
	default:
		rc = -EINVAL;
	}
	if (!rc)
		c->vcpu = (uint8_t)v->id;
	spin_unlock_irq(&d->events->lock, flags);
	if (irq != NR_IRQS)
		irq_set_cpu(irq, v->processor->id);
	return rc;
}

static long unmask_op(uint32_t port)
{
	struct domain *d = current->domain;
	struct shared_info *s = d->shared_info;
	uint64_t flags = spin_lock_irq(&d->events->lock);
	struct evtchn *c = evtchn_of(d, port);
	long rc = c && c->state != EVTCHNSTAT_closed ? 0 : -EINVAL;

	if (rc)
		goto out;
	if (d->events->fifo)
		fifo_unmask(d, port, c);
	else if (port < EVTCHN_2L_NR_CHANNELS && bit_test_and_clear(s->evtchn_mask, port) &&
		 bit_test(s->evtchn_pending, port))
		two_level_notify(d, port, c);
out:
	spin_unlock_irq(&d->events->lock, flags);
	return rc;
}

static long set_priority(const struct evtchn_set_priority *op)
{
	struct domain *d = current->domain;
	uint64_t flags;
	struct evtchn *c;
	long rc = -EINVAL;

	if (op->priority > EVTCHN_FIFO_PRIORITY_MIN)
		return -EINVAL;
	if (!d->events->fifo)
		return -ENOSYS;
	flags = spin_lock_irq(&d->events->lock);
	c = evtchn_of(d, op->port);
	if (c && c->state != EVTCHNSTAT_closed) {
		c->priority = (uint8_t)op->priority;
		rc = 0;
	}
	spin_unlock_irq(&d->events->lock, flags);
	return rc;
}

/* Begun again after an interruption it passes over what it has closed. */
static long reset_op(const struct evtchn_reset *op)
{
	struct domain *d;
	long rc = domain_subject(current->domain, op->dom, &d);

	if (rc)
		return rc;
	spin_lock(&binding_lock);
	for (uint32_t port = 1; port < d->events->limit && !rc; port++) {
		if (port_close(d, port) == 0 && hypercall_preempt_check())
			rc = -ERESTART;
	}
	if (!rc)
		fifo_destroy(d);
	spin_unlock(&binding_lock);
	domain_put(d);
	return rc;
}

union event_op {
	struct evtchn_alloc_unbound alloc_unbound;
	struct evtchn_bind_interdomain bind_interdomain;
	struct evtchn_bind_virq bind_virq;
	struct evtchn_bind_pirq bind_pirq;
	struct evtchn_bind_ipi bind_ipi;
	struct evtchn_close close;
	struct evtchn_send send;
	struct evtchn_status status;
	struct evtchn_bind_vcpu bind_vcpu;
	struct evtchn_unmask unmask;
	struct evtchn_reset reset;
	struct evtchn_init_control init_control;
	struct evtchn_expand_array expand_array;
	struct evtchn_set_priority set_priority;
};

/* Bytes of an operation's structure, and whether it is written back. */
static const struct {
	uint8_t bytes;
	bool answers;
} known[] = {
	[EVTCHNOP_alloc_unbound] = {sizeof(struct evtchn_alloc_unbound), true},
	[EVTCHNOP_bind_interdomain] = {sizeof(struct evtchn_bind_interdomain), true},
	[EVTCHNOP_bind_virq] = {sizeof(struct evtchn_bind_virq), true},
	[EVTCHNOP_bind_pirq] = {sizeof(struct evtchn_bind_pirq), true},
	[EVTCHNOP_bind_ipi] = {sizeof(struct evtchn_bind_ipi), true},
	[EVTCHNOP_status] = {sizeof(struct evtchn_status), true},
	[EVTCHNOP_init_control] = {sizeof(struct evtchn_init_control), true},
	[EVTCHNOP_close] = {sizeof(struct evtchn_close), false},
	[EVTCHNOP_send] = {sizeof(struct evtchn_send), false},
	[EVTCHNOP_unmask] = {sizeof(struct evtchn_unmask), false},
	[EVTCHNOP_bind_vcpu] = {sizeof(struct evtchn_bind_vcpu), false},
	[EVTCHNOP_reset] = {sizeof(struct evtchn_reset), false},
	[EVTCHNOP_expand_array] = {sizeof(struct evtchn_expand_array), false},
	[EVTCHNOP_set_priority] = {sizeof(struct evtchn_set_priority), false},
};

static long binding_op(uint64_t command, union event_op *op)
{
	struct domain *d = current->domain;

	switch (command) {
	case EVTCHNOP_bind_virq:
		return bind_virq(d, &op->bind_virq);
	case EVTCHNOP_bind_pirq:
		return bind_pirq(d, &op->bind_pirq);
	case EVTCHNOP_bind_ipi:
		return bind_ipi(d, &op->bind_ipi);
	case EVTCHNOP_close:
		return port_close(d, op->close.port);
	case EVTCHNOP_init_control:
		return fifo_init_control(d, &op->init_control);
	default:
		return fifo_expand_array(d, op->expand_array.array_gfn);
	}
}

static long perform(uint64_t command, union event_op *op)
{
	long rc;

	switch (command) {
	case EVTCHNOP_send:
		return send_op(op->send.port);
	case EVTCHNOP_unmask:
		return unmask_op(op->unmask.port);
	case EVTCHNOP_alloc_unbound:
		return alloc_unbound(&op->alloc_unbound);
	case EVTCHNOP_bind_interdomain:
		return bind_interdomain(&op->bind_interdomain);
	case EVTCHNOP_status:
		return status_op(&op->status);
	case EVTCHNOP_bind_vcpu:
		return bind_vcpu(&op->bind_vcpu);
	case EVTCHNOP_reset:
		return reset_op(&op->reset);
	case EVTCHNOP_set_priority:
		return set_priority(&op->set_priority);
	default:
		spin_lock(&binding_lock);
		rc = binding_op(command, op);
		spin_unlock(&binding_lock);
		return rc;
	}
}

long do_event_channel_op(arg_t command, arg_t arg)
{
	uint64_t i = command < ARRAY_SIZE(known) ? array_nospec(command, ARRAY_SIZE(known)) : 0;
	uint8_t bytes = known[i].bytes;
	union event_op op;
	long rc;

	/* bind_interdomain is number 0. */
	if (i != command || !bytes)
		return -ENOSYS;
	if (copy_from_guest(&op, GUEST_VA(arg), bytes))
		return -EFAULT;
	rc = perform(command, &op);
	return !rc && known[i].answers ? copy_to_guest(GUEST_VA(arg), &op, bytes) : rc;
}
