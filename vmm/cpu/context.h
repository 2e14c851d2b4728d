/* SPDX-License-Identifier: MIT */
/* Which vCPU's registers and tables the processor has. */
#pragma once

#include "vmm/domain/domain.h"

/*
 * Leave `from`, which runs here, for `to`: saves everything of the one, loads everything of the other and enters it. Returns only when they are the same. The run
 * queue's lock is free. Calls sched_switched(from) when from may run elsewhere.
 */
void context_switch(struct vcpu *from, struct vcpu *to);

/* The vCPU's debug registers into the processor. */
void load_debug_registers(const struct vcpu *v);
/* v->fs_base and the GS bases as the processor has them now, for the current vCPU. */
void save_segment_bases(struct vcpu *v);
