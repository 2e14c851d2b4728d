/* SPDX-License-Identifier: MIT */
/* What a vCPU is told about time, and its timers. */
#pragma once

#include "vmm/domain/domain.h"

/*
 * When a vCPU is loaded (its tables in CR3): its time information and its areas. These are in the guest's kernel's address space; while its user tables
 * are loaded they are only marked stale, and vcpu_areas_update is due when the kernel's are loaded again (a no-op when nothing is stale).
 */
void vcpu_time_update(struct vcpu *v);	   /* vcpu_info.time and its copy */
void vcpu_runstate_update(struct vcpu *v); /* the registered runstate area */
void vcpu_areas_update(struct vcpu *v);

/* Write the wall clock into the shared page: at creation, and after time_set_wallclock. Any context but interrupt handlers. */
void domain_update_wallclock(struct domain *d);
/* A domain that ends has another page in place of its shared one; nobody writes to the old one when this returns. */
void domain_replace_shared_info(struct domain *d, struct shared_info *s);

/* Set up the vCPU's three timers; move them to the CPU where it runs; end them before it is freed. */
void vcpu_timers_init(struct vcpu *v);
void vcpu_timers_move(struct vcpu *v, unsigned cpu);
void vcpu_timers_kill(struct vcpu *v);

/* Starts the CPU's refreshing of the running vCPU's time, once a second. */
void vcpu_time_init_cpu(unsigned cpu);
