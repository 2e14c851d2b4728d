/* SPDX-License-Identifier: MIT */
/*
 * Forgetting translations. The TLB clock counts full flushes on all CPUs; each CPU knows its value at its own last one, and a frame the value when
 * its last use ended, so that most of the flushes that invariant 5 asks for turn out to have happened already.
 */
#ifndef VMM_MM_TLB_H
#define VMM_MM_TLB_H

#include "vmm/lib/types.h"

/* Everything of guests on this CPU. */
void tlb_flush_local(void);
/* The same on the CPUs of the mask; interrupts are on. */
void tlb_flush_cpus(uint64_t cpus);
/* One page on the CPUs of the mask. */
void tlb_flush_page(uint64_t cpus, uint64_t va);
/* On all CPUs: no translation is left from before the clock value. */
void tlb_flush_all_since(uint32_t clock);
/* A full flush of this CPU happens by other means (loading CR3): call before it. */
uint32_t tlb_flush_begin(void);
void tlb_flush_end(uint32_t clock);

#endif
