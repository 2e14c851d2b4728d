/* SPDX-License-Identifier: MIT */
/*
 * Which vCPU runs where: run queues for each CPU, weights and caps by credit, idle.
 *
 * Callers say what happened; the CPU concerned is told by SOFT_SCHEDULE and an IPI and looks before it enters a guest.
 */
#ifndef VMM_SCHED_SCHED_H
#define VMM_SCHED_SCHED_H

#include "vmm/domain/domain.h"

#define SCHED_SLICE_NS 10000000ull

void sched_init_cpu(unsigned cpu);
void sched_vcpu_init(struct vcpu *v);

/* It has a reason to run (event, unpaused, up). Does nothing when it cannot run or does already. */
void vcpu_wake(struct vcpu *v);
/* It must not run (paused, taken down): returns at once, the CPU that runs it is told. */
void vcpu_sleep(struct vcpu *v);
/* The same, and wait until it is not running anywhere: from another vCPU only. */
void vcpu_sleep_sync(struct vcpu *v);
/* The current one waits for an event (SCHEDOP_block): events are unmasked; returns at once when one is pending. */
void vcpu_block(void);
void vcpu_yield(void);
void vcpu_set_affinity(struct vcpu *v, uint64_t cpus);
/* Nanoseconds in each state, RUNSTATE_*. */
void vcpu_runstate(const struct vcpu *v, struct vcpu_runstate_info *out);

/* Choose and switch; called when SOFT_SCHEDULE is pending, on the way out to a guest. Does not return when another is chosen. */
void schedule(void);
void idle_loop(void) __attribute__((noreturn));

#endif
