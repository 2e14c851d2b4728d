/* SPDX-License-Identifier: MIT */
/* Timers: each belongs to a CPU and its function runs there with interrupts on, before a guest is entered. Any context. */
#pragma once

#include "vmm/lib/types.h"

typedef void timer_fn(void *arg);

struct timer {
	uint64_t expires; /* ns since boot (time_now) */
	timer_fn *fn;
	void *arg;
	unsigned cpu;
	uint32_t slot; /* its rank in the CPU's heap; 0: not running */
	struct timer *parent, *child[2];
};

void timer_init(struct timer *t, timer_fn *fn, void *arg, unsigned cpu);
/* Start or move it. A time that is over: as soon as possible. */
void timer_set(struct timer *t, uint64_t expires);
void timer_stop(struct timer *t);
/* The same, and wait until its function does not run: before its memory is freed. Not from a timer function, nor with a lock that it takes. */
void timer_kill(struct timer *t);
/* It runs on another CPU from now on. */
void timer_move(struct timer *t, unsigned cpu);

/* Run what is due on this CPU, set its hardware for the next. */
void timer_run(void);

/* How many there are that wait for their time, on all CPUs. */
unsigned timers_running(void);
