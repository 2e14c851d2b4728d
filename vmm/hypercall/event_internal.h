/* SPDX-License-Identifier: MIT */
/*
 * What event_channel.c and event_fifo.c share.
 *
 * Locks. Ports are opened, bound, unbound and closed under one global lock (binding_lock in event_channel.c, taken before any event lock, with interrupts
 * on), so these may allocate memory, and a peer that is bound stays so while it is held. The words of a port change with, besides, the event lock of
 * its domain, for two bound ports those of both domains. Making a port pending needs the event lock of either end: neither can be closed
 * then. It changes nothing but the guest's words, atomically, and the FIFO queues, which have a lock of their own (a leaf).
 */
#pragma once

#include "vmm/domain/domain.h"

#include <xen/event_channel.h>

#define PORTS_PER_BUCKET 128u
#define FIFO_WORDS	 (uint32_t)(PAGE_SIZE / sizeof(event_word_t))
#define FIFO_PAGES	 31u
#define BUCKETS		 (FIFO_PAGES * FIFO_WORDS / PORTS_PER_BUCKET)
#define PORTS_MAX	 (BUCKETS * PORTS_PER_BUCKET)
#define PORTS_GUEST	 1024u

struct evtchn {
	uint8_t state; /* EVTCHNSTAT_* */
	uint8_t vcpu;  /* is told */
	/* FIFO: */
	uint8_t priority;
	bool pending;		       /* it became so while it had no event word */
	uint8_t last_vcpu, last_queue; /* the queue in which it was linked last */
	domid_t peer_id;	       /* unbound: who may bind to it */
	uint32_t number;	       /* the peer's port; pirq; virq */
	struct domain *peer;	       /* interdomain */
};
_Static_assert(PORTS_PER_BUCKET * sizeof(struct evtchn) <= PAGE_SIZE, "a bucket is a page");

struct fifo_state;

struct evtchn_state {
	spinlock_t lock;
	uint32_t limit;		 /* ports below this may be opened */
	uint32_t search;	 /* no port below this is free */
	uint64_t polling;	 /* vCPUs that wait in SCHEDOP_poll, and some that did */
	struct fifo_state *fifo; /* NULL: two-level */
	uint16_t pirq_port[NR_IRQS];
	struct evtchn *bucket[BUCKETS];
};
_Static_assert(sizeof(struct evtchn_state) <= PAGE_SIZE, "every domain has one");

static inline struct evtchn *evtchn_of(const struct domain *d, uint32_t port)
{
	struct evtchn *bucket;

	if (port == 0 || port >= PORTS_MAX)
		return NULL;
	bucket = __atomic_load_n(&d->events->bucket[port / PORTS_PER_BUCKET], __ATOMIC_ACQUIRE);
	return bucket ? &bucket[port % PORTS_PER_BUCKET] : NULL;
}

/* ---- event_fifo.c ---- */

/* Under the binding lock. -ENOENT, -EINVAL, -EPERM, -ENOMEM, -ENOSPC. */
long fifo_init_control(struct domain *d, struct evtchn_init_control *op);
long fifo_expand_array(struct domain *d, uint64_t gfn);
void fifo_destroy(struct domain *d); /* all ports are closed */

/* Under an event lock. */
void fifo_set_pending(struct domain *d, uint32_t port, struct evtchn *c);
void fifo_unmask(struct domain *d, uint32_t port, struct evtchn *c);
void fifo_clear_pending(struct domain *d, uint32_t port, struct evtchn *c);
bool fifo_is_pending(struct domain *d, uint32_t port, const struct evtchn *c);
