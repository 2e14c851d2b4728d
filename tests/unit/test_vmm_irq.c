// SPDX-License-Identifier: MIT
/* Interrupts from vector to domain: who has one bound, when it is masked, and what an acknowledgement does. */
#define VMM_HOSTED
#define __XEN_TOOLS__
#include "vmm/cpu/pcpu.h"

struct pcpu pcpus[MAX_CPUS];
#undef this_cpu
#define this_cpu() (&pcpus[1])

#include "vmm/platform/irq.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"
#include "tests/unit/vmm_log.h"

#define LEVEL_GSI 20
#define EDGE_GSI  4
#define MSI	  30 /* behind nr_gsis */

unsigned nr_gsis = 24;
static struct domain me, other;
static bool masked[NR_IRQS], msi_there;
static uint8_t vector_of[NR_IRQS];
static uint32_t cpu_of[NR_IRQS];
static unsigned acknowledged, sent, sent_pirq;
static bool masked_when_acknowledged;
static uint64_t now = 1000;
static struct timer *timer_running;

bool gsi_is_level(unsigned gsi)
{
	return gsi == LEVEL_GSI;
}

bool msi_exists(unsigned irq)
{
	return msi_there && irq >= nr_gsis && irq < nr_gsis + 200;
}

void ioapic_mask(unsigned gsi, bool m)
{
	masked[gsi] = m;
}

void ioapic_route(unsigned gsi, uint8_t vector, uint32_t apic, bool m)
{
	vector_of[gsi] = vector;
	cpu_of[gsi] = apic;
	masked[gsi] = m;
}

void msi_mask(unsigned irq, bool m)
{
	ioapic_mask(irq, m);
}

void msi_route(unsigned irq, uint8_t vector, uint32_t apic, bool m)
{
	ioapic_route(irq, vector, apic, m);
}

void apic_eoi(void)
{
	acknowledged++;
	masked_when_acknowledged = masked[LEVEL_GSI];
}

bool send_pirq(struct domain *d, unsigned pirq)
{
	/* The event's locks come before an irq's. */
	CHECK(!spin_is_locked(&irqs[pirq].lock));
	CHECK(d == &me);
	sent++;
	sent_pirq = pirq;
	return true;
}

bool rangeset_contains(const struct rangeset *s, uint64_t first, uint64_t last)
{
	(void)s;
	return first == EDGE_GSI && last == EDGE_GSI;
}

uint64_t time_now(void)
{
	return now;
}

void timer_init(struct timer *t, timer_fn *fn, void *arg, unsigned cpu)
{
	*t = (struct timer){.fn = fn, .arg = arg, .cpu = cpu};
}

void timer_set(struct timer *t, uint64_t expires)
{
	t->expires = expires;
	timer_running = t;
}

static void fresh(void)
{
	memset(irqs, 0, sizeof(irqs));
	memset(vector_irq, 0, sizeof(vector_irq));
	memset(masked, 1, sizeof(masked));
	memset(vector_of, 0, sizeof(vector_of));
	for (unsigned i = 0; i < 4; i++)
		pcpus[i] = (struct pcpu){.id = i, .apic_id = 10 * i, .online = i < 3};
	me.privileged = true;
	other.privileged = false;
	acknowledged = sent = 0;
	msi_there = true;
	timer_running = NULL;
	logged[0] = 0;
	irq_init();
}

static void edge_is_acknowledged_and_sent(void)
{
	fresh();
	CHECK_EQ(irq_guest_bind(&me, EDGE_GSI), 0);
	CHECK(!masked[EDGE_GSI]);
	CHECK_EQ(cpu_of[EDGE_GSI], 10);
	irq_dispatch(vector_of[EDGE_GSI]);
	irq_dispatch(vector_of[EDGE_GSI]);
	CHECK_EQ(acknowledged, 2);
	CHECK_EQ(sent, 2);
	CHECK_EQ(sent_pirq, EDGE_GSI);
	CHECK(!masked[EDGE_GSI] && !irq_needs_eoi(EDGE_GSI));
}

static void level_is_masked_until_the_guest_is_done(void)
{
	fresh();
	CHECK(irq_needs_eoi(LEVEL_GSI));
	CHECK_EQ(irq_guest_bind(&me, LEVEL_GSI), 0);
	CHECK(!masked[LEVEL_GSI]);
	irq_dispatch(vector_of[LEVEL_GSI]);
	CHECK_EQ(sent, 1);
	CHECK_EQ(acknowledged, 1);
	CHECK(masked_when_acknowledged);
	/* Moving it to another CPU does not open it. */
	irq_set_cpu(LEVEL_GSI, 2);
	CHECK_EQ(cpu_of[LEVEL_GSI], 20);
	CHECK(masked[LEVEL_GSI]);
	irq_guest_eoi(&other, LEVEL_GSI);
	CHECK(masked[LEVEL_GSI]);
	irq_guest_eoi(&me, LEVEL_GSI);
	CHECK(!masked[LEVEL_GSI]);
	irq_guest_eoi(&me, LEVEL_GSI);
	irq_guest_eoi(&me, NR_IRQS);
	CHECK(!masked[LEVEL_GSI]);
}

static void unbinding_masks_and_forgets_what_was_owed(void)
{
	fresh();
	CHECK_EQ(irq_guest_bind(&me, LEVEL_GSI), 0);
	irq_dispatch(vector_of[LEVEL_GSI]);
	irq_guest_unbind(&other, LEVEL_GSI);
	CHECK(irq_bound(LEVEL_GSI));
	irq_guest_unbind(&me, LEVEL_GSI);
	CHECK(masked[LEVEL_GSI] && !irq_bound(LEVEL_GSI));
	irq_guest_eoi(&me, LEVEL_GSI);
	CHECK(masked[LEVEL_GSI]);
	irq_dispatch(vector_of[LEVEL_GSI]); /* was on its way */
	CHECK_EQ(sent, 1);
	CHECK_EQ(acknowledged, 2);
	CHECK_EQ(irq_guest_bind(&me, LEVEL_GSI), 0);
	CHECK(!masked[LEVEL_GSI]);
	irq_guest_unbind(&me, NR_IRQS);
}

static void binding_has_conditions(void)
{
	fresh();
	CHECK_EQ(irq_guest_bind(&me, NR_IRQS), -EINVAL);
	CHECK_EQ(irq_guest_bind(&other, LEVEL_GSI), -EPERM);
	CHECK_EQ(irq_guest_bind(&other, EDGE_GSI), 0);
	CHECK_EQ(irq_guest_bind(&me, EDGE_GSI), -EBUSY);
	msi_there = false;
	CHECK_EQ(irq_guest_bind(&me, MSI), -EINVAL);
	msi_there = true;
	CHECK_EQ(irq_guest_bind(&me, MSI), 0);
	irq_set_cpu(MSI, 3); /* not online */
	CHECK_EQ(cpu_of[MSI], 10);
}

static void vectors_are_used_once_and_again(void)
{
	bool seen[256] = {false};
	unsigned n = 0;
	int v;

	fresh();
	for (unsigned irq = 0;; irq++, n++) {
		v = irq_vector(irq);
		if (v < 0)
			break;
		CHECK(v >= VECTOR_FIRST && v <= VECTOR_LAST && v != VECTOR_INT80);
		CHECK(!seen[v]);
		seen[v] = true;
		CHECK_EQ(irq_vector(irq), v);
	}
	CHECK_EQ(v, -ENOSPC);
	CHECK_EQ(n, VECTOR_LAST - VECTOR_FIRST);
	v = irq_vector(MSI);
	irq_forget(MSI);
	CHECK(masked[MSI]);
	irq_dispatch((uint8_t)v);
	CHECK_EQ(acknowledged, 1);
	CHECK_HAS(logged, "nobody uses");
	CHECK_EQ(irq_vector(n), v);
}

static void a_storm_is_held_back(void)
{
	fresh();
	CHECK_EQ(irq_guest_bind(&me, MSI), 0);
	/* Many, but over a long time: none of our business. */
	for (unsigned i = 0; i < 3 * STORM_COUNT; i++) {
		now += 2 * STORM_NS / STORM_COUNT;
		irq_dispatch(vector_of[MSI]);
	}
	CHECK(!masked[MSI] && !timer_running);
	for (unsigned i = 0; i < STORM_COUNT; i++)
		irq_dispatch(vector_of[MSI]);
	CHECK(masked[MSI] && timer_running);
	CHECK_EQ(timer_running->expires, now + STORM_PAUSE_NS);
	CHECK_EQ(lines_logged(), 1);
	/* Neither an acknowledgement nor a move ends it before its time. */
	irq_guest_eoi(&me, MSI);
	irq_set_cpu(MSI, 2);
	CHECK(masked[MSI]);
	timer_running->fn(timer_running->arg);
	CHECK(!masked[MSI]);
	CHECK_EQ(sent, 4 * STORM_COUNT);
}

UNIT_MAIN(TEST(edge_is_acknowledged_and_sent), TEST(level_is_masked_until_the_guest_is_done),
	  TEST(unbinding_masks_and_forgets_what_was_owed), TEST(binding_has_conditions),
	  TEST(vectors_are_used_once_and_again), TEST(a_storm_is_held_back))
