/* SPDX-License-Identifier: MIT */
/* See tlb.h. Guests' translations are never global, so loading CR3 forgets them; the hypervisor's own are, and never change once made. */
#include "vmm/mm/tlb.h"

#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/mm/page_type.h"
#include "vmm/platform/irq.h"

/* A CPU that is so far behind is flushed whatever the clock says: its difference would soon look like the future. */
#define CLOCK_HORIZON (1u << 30)

static uint32_t tlb_clock;

uint32_t tlb_clock_now(void)
{
	return __atomic_load_n(&tlb_clock, __ATOMIC_SEQ_CST);
}

uint32_t tlb_flush_begin(void)
{
	return __atomic_add_fetch(&tlb_clock, 1, __ATOMIC_SEQ_CST);
}

void tlb_flush_end(uint32_t clock)
{
	WRITE_ONCE(this_cpu()->tlb_clock, clock);
}

void tlb_flush_local(void)
{
	uint32_t clock = tlb_flush_begin();

	write_cr3(read_cr3());
	tlb_flush_end(clock);
}

static void flush_here(void *unused)
{
	(void)unused;
	tlb_flush_local();
}

static void flush_page_here(void *va)
{
	invlpg((uint64_t)va);
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
		invlpg(va);
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
