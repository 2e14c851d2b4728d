/* SPDX-License-Identifier: MIT */
/*
 * Which vCPU runs where: run queues for each CPU, weights and caps by credit, idle.
 *
 * Callers say what happened; the CPU concerned is told by SOFT_SCHEDULE and an IPI and looks before it enters a guest.
 */
#pragma once

#include "vmm/domain/domain.h"

#define SCHED_SLICE_NS 10000000ull
/* So long one that has just begun to run is not interrupted by one that wakes. */
#define SCHED_RATELIMIT_NS 1000000ull

/* pcpus[cpu].idle exists and runs there. Each CPU before it enables interrupts. */
void sched_init_cpu(unsigned cpu);
/* Chooses a processor, sets up the queue's link and the timers; affinity 0 becomes all CPUs. The vCPU is offline. */
void sched_vcpu_init(struct vcpu *v);

/* Something that kept it from running has gone (unpaused, up). Does nothing when it cannot run or does already. */
void vcpu_wake(struct vcpu *v);
/* What it may have been waiting for in vcpu_block or a poll has happened (event, NMI). */
void vcpu_unblock(struct vcpu *v);
/* It shall look for events soon: interrupts the CPU that runs it, when that is another one. */
void vcpu_kick(struct vcpu *v);
/* Its NMI handler runs as soon as it can (hypercall/vcpu_op.c). */
void vcpu_send_nmi(struct vcpu *v);
/* It must not run (paused, taken down): returns at once, the CPU that runs it is told. */
void vcpu_sleep(struct vcpu *v);
/* The same, and wait until it is not running anywhere: from another vCPU only. */
void vcpu_sleep_sync(struct vcpu *v);
/* The current one waits for an event (SCHEDOP_block): events are unmasked; returns at once when one is pending. */
void vcpu_block(void);
void vcpu_yield(void);
void vcpu_set_affinity(struct vcpu *v, uint64_t cpus);
/* Weight (1 ..) and cap (per cent of one CPU, 0: none) of a domain; they count from the next accounting on, 30 ms. */
void sched_set_share(struct domain *d, unsigned weight, unsigned cap);
void sched_get_share(const struct domain *d, unsigned *weight, unsigned *cap);
/* Nanoseconds in each state, RUNSTATE_*, up to now. */
void vcpu_runstate(struct vcpu *v, struct vcpu_runstate_info *out);
/* The same up to the last change of state. */
void vcpu_runstate_at_change(struct vcpu *v, struct vcpu_runstate_info *out);

/* Choose and switch; called when SOFT_SCHEDULE is pending, on the way out to a guest. Does not return when another is chosen. */
void schedule(void);
/* All of this CPU's pending soft events, until there are none: the way out to a guest. Interrupts on, no locks held. May not return (schedule). */
void soft_run(void);
/* From context_switch: the registers of the vCPU are saved, another CPU may load them. Any vCPU, the idle one included. */
void sched_switched(struct vcpu *v);
/* Debug key. */
void sched_dump(void);
void idle_loop(void) __attribute__((noreturn));
