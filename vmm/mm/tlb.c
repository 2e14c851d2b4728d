/* SPDX-License-Identifier: MIT */
/*
 * See tlb.h. Guests' translations are never global, so that loading CR3 forgets them; the hypervisor's own are, as far as they never change.
 *
 * With PCIDs a CPU has up to four address spaces of its vCPU: its user and kernel tables, and with isolated tables the copy of each that its code sees
 * (xpti.c). Each has a PCID, the same on every CPU for whatever vCPU is there. pcpu.fresh has a bit for each space that holds nothing outdated: it may be
 * loaded without forgetting what it holds. So a flush of everything is: flush the space that is loaded, and no other is fresh; another
 * tagged translation stays where it is and cannot be used before its space is loaded, which forgets it. All the bits go when other tables or another
 * vCPU come. Interrupts are off from reading a bit to loading CR3, because a flush that another CPU asks for comes as an interrupt.
 * PCID 0 has no guest's tables and is never fresh.
 *
 * Guests' user pages are not made global, which would spare processors without PCIDs some misses on the way between kernel and user: every flush
 * would have to be one of everything, and with isolated tables a global page is what must not be.
 */
#include "vmm/mm/tlb.h"

#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/lib/bitmap.h"
#include "vmm/lib/lock.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/xpti.h"
#include "vmm/platform/irq.h"

/* A CPU that is so far behind is flushed whatever the clock says: its difference would soon look like the future. */
#define CLOCK_HORIZON (1u << 30)

static uint32_t tlb_clock;

uint32_t tlb_clock_now(void)
{
	return __atomic_load_n(&tlb_clock, __ATOMIC_SEQ_CST);
}

static uint32_t flush_begins(void)
{
	return __atomic_add_fetch(&tlb_clock, 1, __ATOMIC_SEQ_CST);
}

static void flush_ended(uint32_t clock)
{
	WRITE_ONCE(this_cpu()->tlb_clock, clock);
}

#define CR3_KEEP       (1ull << 63) /* what the PCID holds (SDM vol. 3, "MOV to CR3") */
#define SPACE_GUEST    2u /* with isolated tables: 2, 3 are the copies of 0, 1: user, kernel */
#define SPACE_NONE     4u
#define INVPCID_PAGE   0ull
#define PCID_OF(space) ((space) + 1ull)

/* CR3 for the space, which is loaded at once: it is fresh then. Interrupts are off. */
static uint64_t cr3_of(mfn_t root, unsigned space)
{
	struct pcpu *c = this_cpu();
	uint64_t keep = c->fresh >> space & 1 ? CR3_KEEP : 0;

	if (!cpu_features.pcid)
		return root.v << PAGE_SHIFT;
	c->fresh |= (uint8_t)(1u << space);
	return root.v << PAGE_SHIFT | PCID_OF(space) | keep;
}

static void load(const struct vcpu *v)
{
	unsigned space = v->kernel_mode;
	mfn_t root = space ? v->root_kernel : v->root_user;
	uint64_t cr3 = root.v << PAGE_SHIFT, later = cr3;

	/* Without PCIDs nothing is ever fresh, so that there is nothing to note. */
	if (cpu_features.pcid) {
		cr3 = cr3_of(root, space);
		later = cr3 | CR3_KEEP;
		this_cpu()->tables = (uint8_t)space;
	}
	stack_top()->hv_cr3 = later;
	write_cr3(cr3);
}

void tlb_load(const struct vcpu *v)
{
	uint64_t flags;

	if (!cpu_features.pcid) {
		load(v);
		return;
	}
	flags = irq_save();
	load(v);
	irq_restore(flags);
}

void tlb_load_new(const struct vcpu *v)
{
	uint64_t flags = irq_save();
	uint32_t clock = flush_begins();

	this_cpu()->fresh = 0;
	load(v);
	flush_ended(clock);
	irq_restore(flags);
}

void tlb_load_none(void)
{
	uint32_t clock = flush_begins();
	uint64_t flags = irq_save();

	this_cpu()->fresh = 0;
	this_cpu()->tables = SPACE_NONE;
	stack_top()->hv_cr3 = map_hv_l4().v << PAGE_SHIFT;
	write_cr3(stack_top()->hv_cr3);
	irq_restore(flags);
	flush_ended(clock);
}

/* No other space than the one that is loaded. */
static void only_this_is_fresh(void)
{
	this_cpu()->fresh &= (uint8_t)(1u << this_cpu()->tables);
}

void tlb_user_changed(void)
{
	only_this_is_fresh();
}

uint64_t tlb_guest_cr3(const struct vcpu *v)
{
	return cr3_of(xpti_root(v), SPACE_GUEST + v->kernel_mode);
}

void tlb_flush_local(void)
{
	uint32_t clock = flush_begins();

	only_this_is_fresh();
	write_cr3(read_cr3());
	flush_ended(clock);
}

void tlb_page_local(uint64_t va)
{
	const struct pcpu *c = this_cpu();
	uint64_t others = c->fresh & ~(1ull << c->tables);

	invlpg(va);
	if (!others)
		return;
	if (!cpu_features.invpcid) {
		only_this_is_fresh();
		return;
	}
	bit_for_each(space, &others, SPACE_NONE) invpcid(INVPCID_PAGE, PCID_OF(space), va);
}

static void flush_here(void *unused)
{
	(void)unused;
	tlb_flush_local();
}

static void flush_page_here(void *va)
{
	tlb_page_local((uint64_t)va);
}

void tlb_flush_cpus(uint64_t cpus)
{
	if (cpus == 1ull << this_cpu()->id)
		tlb_flush_local();
	else if (cpus)
		call_on_cpus(cpus, flush_here, NULL);
}

void tlb_flush_page(uint64_t cpus, uint64_t va)
{
	if (cpus == 1ull << this_cpu()->id)
		tlb_page_local(va);
	else if (cpus)
		call_on_cpus(cpus, flush_page_here, (void *)va);
}

static uint64_t behind(uint64_t cpus, uint32_t clock)
{
	uint32_t now = tlb_clock_now();
	uint64_t late = 0;

	bit_for_each(i, &cpus, MAX_CPUS)
	{
		uint32_t last = READ_ONCE(pcpus[i].tlb_clock);

		if ((int32_t)(last - clock) <= 0 || now - last > CLOCK_HORIZON)
			late |= 1ull << i;
	}
	return late;
}

bool tlb_flushed_since(const struct domain *d, uint32_t clock)
{
	return !behind(READ_ONCE(d->dirty_cpus), clock);
}

void tlb_flush_since(struct domain *d, uint32_t clock)
{
	tlb_flush_cpus(behind(READ_ONCE(d->dirty_cpus), clock));
}

void tlb_flush_all_since(uint32_t clock)
{
	uint64_t online = 0;

	for (unsigned i = 0; i < MAX_CPUS; i++)
		if (pcpus[i].online)
			online |= 1ull << i;
	tlb_flush_cpus(behind(online, clock));
}
