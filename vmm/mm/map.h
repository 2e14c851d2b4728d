/* SPDX-License-Identifier: MIT */
/* The hypervisor's own mappings. */
#pragma once

#include "vmm/lib/types.h"

/* Bytes of RAM and holes that are mapped at direct_base; what lies above needs map_device(). */
extern uint64_t direct_bytes;

/*
 * Boot: out of boot_info, make the frame table, the machine-to-physical table and the tables of slots 256 .. 271, load them, and give all RAM that
 * is not in use to the heap. Panics when there is too little memory.
 */
void map_init(void);
/* The hypervisor's own top-level table: what idle CPUs use and guests' tables get their upper slots from. */
extern uint64_t *hv_l4;
mfn_t map_hv_l4(void);

/* Device memory, uncached; never unmapped. NULL: no address space or memory left. */
void *map_device(uint64_t maddr, size_t bytes);

enum window_rights { WINDOW_RO, WINDOW_RW, WINDOW_RX };
/* A page in the second half of this CPU's window (layout.h) at the offset; MFN_NONE: nothing. */
void map_window(unsigned offset, mfn_t m, enum window_rights rights);
/* Window and stack of a CPU that is about to start. False: no memory. map_init() does it for the first. */
bool map_cpu(unsigned cpu);

/* machine_to_phys_mapping */
void m2p_set(mfn_t m, uint64_t pfn);
uint64_t m2p_get(mfn_t m);
#define M2P_INVALID (~0ull)
/* Its frames, contiguous from 2 MiB on, and how many: a multiple of 512. */
uint64_t map_m2p(mfn_t *first);

/* Give the memory of boot modules back; nothing points into it any more. */
void map_free_modules(void);
