/* SPDX-License-Identifier: MIT */
/* The hypervisor's own mappings. */
#ifndef VMM_MM_MAP_H
#define VMM_MM_MAP_H

#include "vmm/lib/types.h"

/* Boot: build the tables of slots 256 .. 271 and load them. */
void map_init(void);
/* Of the hypervisor's own top-level table: what idle CPUs use and guests' tables get their upper slots from. */
extern uint64_t *hv_l4;
mfn_t map_hv_l4(void);

/* How much of the machine's memory is mapped at direct_base (mm/frame.h): all of RAM and the ACPI tables between. */
extern uint64_t direct_bytes;

/* Device memory, uncached; never unmapped. NULL: no address space left. */
void *map_device(uint64_t maddr, size_t bytes);

/* A page in a CPU's window (layout.h) at the offset; MFN_NONE: nothing. Flushes this CPU's TLB for it when it runs on it. */
void map_window(unsigned cpu, unsigned offset, mfn_t m, bool writable);
/* Windows and stack of a CPU that is about to start. Returns the top of its stack or 0. */
uint64_t map_cpu(unsigned cpu);

/* machine_to_phys_mapping */
void m2p_set(mfn_t m, uint64_t pfn);
uint64_t m2p_get(mfn_t m);

#endif
