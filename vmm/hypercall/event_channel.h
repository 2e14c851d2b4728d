/* SPDX-License-Identifier: MIT */
/* Event channels: what other rooms use of them. The hypercall is in event_channel.c. Any context with the event lock free. */
#pragma once

#include "vmm/domain/domain.h"

int events_create(struct domain *d); /* -ENOMEM */
void events_destroy(
	struct domain *d); /* closes all, none can be opened again; the domain is dying */
void events_free(
	struct domain *
		d); /* with the domain itself: nobody can send to it any more, its timers are killed */

/* A virtual interrupt: VIRQ_TIMER and the like for a vCPU, global ones for the domain that has bound them. */
void send_vcpu_virq(struct vcpu *v, unsigned virq);
void send_global_virq(unsigned virq); /* to dom0 */
/* A physical one; false: the domain has not bound it. */
bool send_pirq(struct domain *d, unsigned pirq);
/* Set the vCPU's upcall flag and wake it. */
void vcpu_mark_events_pending(struct vcpu *v);
/* It would take an event at once when entered. */
static inline bool vcpu_event_deliverable(const struct vcpu *v)
{
	return READ_ONCE(v->info->evtchn_upcall_pending) && !READ_ONCE(v->info->evtchn_upcall_mask);
}
/* An unbound port of d for remote, made by the hypervisor or the toolstack (dom0 builder). Port or negative. */
int evtchn_alloc_unbound_port(struct domain *d, domid_t remote);
bool evtchn_port_valid(struct domain *d, uint32_t port);
bool evtchn_port_pending(struct domain *d, uint32_t port);
/* The vCPU waits, or does no longer, in SCHEDOP_poll for v->poll_port (0: any): an event ends that even when it is masked. */
void events_set_polling(struct vcpu *v, bool polls);
/* The frames of the domain that its events hold, typed writable: the i-th, or NULL in *f where there is none. False: there are no more. */
bool events_frame(struct domain *d, unsigned i, struct frame **f);
