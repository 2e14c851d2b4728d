/* SPDX-License-Identifier: MIT */
/* Reading the page tables that are loaded. */
#pragma once

#include "vmm/lib/types.h"

/*
 * The L1 entry for the address in the current vCPU's tables, and the table's frame. 0, or -EFAULT: no table, or the hypervisor's part. Without the page
 * lock another vCPU may change it at once; the frame numbers are checked, so this reads no strange memory.
 */
int guest_walk(uint64_t va, uint64_t *l1e, mfn_t *l1_table);
/* The same in its kernel's tables, whichever are loaded. */
int guest_walk_kernel(uint64_t va, uint64_t *l1e, mfn_t *l1_table);
