/* SPDX-License-Identifier: MIT */
/*
 * Loading tables and forgetting translations. The TLB clock counts full flushes on all CPUs; each CPU knows its value at its own last one, and a frame the
 * value when its last use ended, so that most of the flushes that invariant 5 asks for turn out to have happened already.
 */
#pragma once

#include "vmm/domain/domain.h"
#include "vmm/lib/types.h"

/* The current vCPU's tables for its mode into CR3, when that is all that changed. */
void tlb_load(const struct vcpu *v);
/* The same when the tables are others than before: nothing of those before is left on this CPU. */
void tlb_load_new(const struct vcpu *v);
/* No guest's tables. */
void tlb_load_none(void);
/* The current vCPU, which is in kernel mode, gets other user tables. */
void tlb_user_changed(void);
/* With isolated tables: CR3 for the vCPU's code. Interrupts are off, and it is entered next. */
uint64_t tlb_guest_cr3(const struct vcpu *v);

/* Everything of guests on this CPU. */
void tlb_flush_local(void);
/* The same on the CPUs of the mask; interrupts are on. */
void tlb_flush_cpus(uint64_t cpus);
/* One page, on this CPU and on those of the mask. */
void tlb_page_local(uint64_t va);
void tlb_flush_page(uint64_t cpus, uint64_t va);
/* tlb_flush_since (page_type.h) would have nothing to do. */
bool tlb_flushed_since(const struct domain *d, uint32_t clock);
/* On all CPUs: no translation is left from before the clock value. */
void tlb_flush_all_since(uint32_t clock);
