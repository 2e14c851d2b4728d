/* SPDX-License-Identifier: MIT */
/* Guests' tables with next to nothing of the hypervisor in them, for processors that read what they may not (Meltdown). Does nothing where it is off. */
#pragma once

#include "vmm/domain/domain.h"

/* This CPU's window is complete. */
void xpti_init_cpu(void);
/* What CR3 shall point to while the current vCPU's code runs in its mode. Interrupts are off, and it is entered next. */
mfn_t xpti_root(const struct vcpu *v);
/* The entry of a top-level table in use was changed. Before what it mapped may go. */
void xpti_entry_changed(mfn_t l4, unsigned index);
/* The frame becomes a top-level table: what was known of it is void. */
void xpti_forget(mfn_t l4);
