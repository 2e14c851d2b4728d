// SPDX-License-Identifier: MIT
/*
 * Interrupts on their way from a vector to a domain's event channel.
 *
 * Vectors are the same on all CPUs: one table leads from a vector to its irq. A level-triggered GSI is masked and then acknowledged, and unmasked
 * when the guest says that it has dealt with its device; so the CPU never waits for a guest with an interrupt in service. The
 * others are acknowledged at once. One that comes more often than any device has reason to is masked for a moment.
 *
 * Order: an irq's lock is taken before those of the hardware (ioapic.c, pci.c), and never held while an event is sent.
 */
#include "vmm/platform/irq_internal.h"

#include "vmm/cpu/pcpu.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/lock.h"
#include "vmm/lib/print.h"
#include "vmm/platform/time.h"
#include "vmm/sched/timer.h"

#define VECTOR_INT80   0x80 /* guests' own: a gate that user programs may use */
#define STORM_COUNT    10000u
#define STORM_NS       10000000ull
#define STORM_PAUSE_NS 10000000ull

static struct irq {
	spinlock_t lock;
	struct domain *domain; /* who has bound it */
	unsigned cpu;
	uint8_t vector; /* 0: none yet */
	bool eoi_owed;	/* masked until the guest is done */
	bool paused;	/* masked because it came too often */
	uint32_t window_count;
	uint64_t window_start;
} irqs[NR_IRQS];

static uint16_t vector_irq[256]; /* 0: none, else irq + 1 */
static spinlock_t vector_lock = SPINLOCK_INIT;
static struct timer storm_timer;

static bool irq_exists(unsigned irq)
{
	return irq < nr_gsis || msi_exists(irq);
}

bool irq_needs_eoi(unsigned irq)
{
	return irq < nr_gsis && gsi_is_level(irq);
}

/* ---- hardware; the irq's lock is held ---- */

static bool should_be_masked(const struct irq *i)
{
	return !i->domain || i->eoi_owed || i->paused;
}

static void update_mask(unsigned irq)
{
	if (irq < nr_gsis)
		ioapic_mask(irq, should_be_masked(&irqs[irq]));
	else
		msi_mask(irq, should_be_masked(&irqs[irq]));
}

static void route(unsigned irq)
{
	struct irq *i = &irqs[irq];
	uint32_t apic = pcpus[i->cpu].apic_id;

	if (irq < nr_gsis)
		ioapic_route(irq, i->vector, apic, should_be_masked(i));
	else
		msi_route(irq, i->vector, apic, should_be_masked(i));
}

void irq_reprogram(unsigned irq)
{
	uint64_t flags = spin_lock_irq(&irqs[irq].lock);

	route(irq);
	spin_unlock_irq(&irqs[irq].lock, flags);
}

/* ---- vectors ---- */

int irq_vector(unsigned irq)
{
	uint64_t flags;
	int rc = -ENOSPC;

	if (irq >= NR_IRQS || !irq_exists(irq))
		return -EINVAL;
	flags = spin_lock_irq(&vector_lock);
	if (irqs[irq].vector)
		rc = irqs[irq].vector;
	for (unsigned v = VECTOR_FIRST; rc < 0 && v <= VECTOR_LAST; v++) {
		if (v == VECTOR_INT80 || vector_irq[v])
			continue;
		vector_irq[v] = (uint16_t)(irq + 1);
		irqs[irq].vector = (uint8_t)v;
		rc = (int)v;
	}
	spin_unlock_irq(&vector_lock, flags);
	return rc;
}

void irq_forget(unsigned irq)
{
	struct irq *i = &irqs[irq];
	uint64_t flags = spin_lock_irq(&i->lock);

	i->domain = NULL;
	update_mask(irq);
	/* One that is on its way still will find no irq, or be one too many for the vector's next owner: both do no harm. */
	spin_lock(&vector_lock);
	vector_irq[i->vector] = 0;
	i->vector = 0;
	spin_unlock(&vector_lock);
	i->eoi_owed = i->paused = false;
	spin_unlock_irq(&i->lock, flags);
}

/* ---- binding ---- */

bool irq_bound(unsigned irq)
{
	return irq < NR_IRQS && READ_ONCE(irqs[irq].domain);
}

int irq_guest_bind(struct domain *d, unsigned irq)
{
	int vector = irq_vector(irq);
	struct irq *i;
	uint64_t flags;
	int rc = 0;

	if (vector < 0)
		return vector;
	if (!d->privileged && !rangeset_contains(&d->irqs, irq, irq))
		return -EPERM;
	i = &irqs[irq];
	flags = spin_lock_irq(&i->lock);
	if (i->domain) {
		rc = -EBUSY;
	} else {
		i->cpu = this_cpu()->id;
		i->eoi_owed = i->paused = false;
		i->window_count = 0;
		WRITE_ONCE(i->domain, d);
		route(irq);
	}
	spin_unlock_irq(&i->lock, flags);
	return rc;
}

void irq_guest_unbind(struct domain *d, unsigned irq)
{
	struct irq *i = &irqs[irq];
	uint64_t flags;

	if (irq >= NR_IRQS)
		return;
	flags = spin_lock_irq(&i->lock);
	if (i->domain == d) {
		WRITE_ONCE(i->domain, NULL);
		update_mask(irq);
		i->eoi_owed = false;
	}
	spin_unlock_irq(&i->lock, flags);
}

void irq_guest_eoi(struct domain *d, unsigned irq)
{
	struct irq *i = &irqs[irq];
	uint64_t flags;

	if (irq >= NR_IRQS || !READ_ONCE(i->eoi_owed))
		return;
	flags = spin_lock_irq(&i->lock);
	if (i->domain == d && i->eoi_owed) {
		i->eoi_owed = false;
		update_mask(irq);
	}
	spin_unlock_irq(&i->lock, flags);
}

void irq_set_cpu(unsigned irq, unsigned cpu)
{
	struct irq *i = &irqs[irq];
	uint64_t flags;

	if (irq >= NR_IRQS || cpu >= MAX_CPUS || !pcpus[cpu].online || READ_ONCE(i->cpu) == cpu)
		return;
	flags = spin_lock_irq(&i->lock);
	if (i->domain && i->vector) {
		i->cpu = cpu;
		route(irq);
	}
	spin_unlock_irq(&i->lock, flags);
}

/* ---- what comes ---- */

static void storm_over(void *arg)
{
	(void)arg;
	for (unsigned irq = 0; irq < NR_IRQS; irq++) {
		uint64_t flags;

		if (!READ_ONCE(irqs[irq].paused))
			continue;
		flags = spin_lock_irq(&irqs[irq].lock);
		irqs[irq].paused = false;
		update_mask(irq);
		spin_unlock_irq(&irqs[irq].lock, flags);
	}
}

/* The clock is looked at once in STORM_COUNT interrupts. */
static void watch_for_storm(unsigned irq)
{
	struct irq *i = &irqs[irq];
	uint64_t now, since;

	if (++i->window_count < STORM_COUNT)
		return;
	now = time_now();
	since = now - i->window_start;
	i->window_start = now;
	i->window_count = 0;
	if (since > STORM_NS)
		return;
	spin_lock(&i->lock);
	i->paused = true;
	update_mask(irq);
	spin_unlock(&i->lock);
	log_warning("Interrupt %u came %u times in %lu us and is held back for a moment", irq,
		    STORM_COUNT, since / 1000);
	timer_set(&storm_timer, now + STORM_PAUSE_NS);
}

void irq_dispatch(uint8_t vector)
{
	static bool said;
	unsigned irq = READ_ONCE(vector_irq[vector]);
	struct domain *d;

	if (!irq--) {
		apic_eoi();
		if (!said)
			log_warning("An interrupt came with vector %x, which nobody uses", vector);
		said = true;
		return;
	}
	if (irq_needs_eoi(irq)) {
		spin_lock(&irqs[irq].lock);
		irqs[irq].eoi_owed = true;
		update_mask(irq);
		spin_unlock(&irqs[irq].lock);
	}
	watch_for_storm(irq);
	apic_eoi();
	d = READ_ONCE(irqs[irq].domain);
	if (d)
		send_pirq(d, irq);
}

void irq_init(void)
{
	timer_init(&storm_timer, storm_over, NULL, 0);
}
