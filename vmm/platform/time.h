/* SPDX-License-Identifier: MIT */
/* Time: nanoseconds since boot out of the TSC, calibrated against the ACPI PM timer or the PIT; the wall clock; a one-shot interrupt for each CPU. */
#pragma once

#include "vmm/lib/types.h"

struct vcpu;

/* Of so many measurements, which it sorts. */
uint64_t median(uint64_t *values, unsigned n);

void time_init(void);
void time_init_cpu(void);
uint64_t time_now(void); /* ns since boot, the same on all CPUs to within their TSCs' difference */
/* What time_now() is, was or will be when the TSC has this value: for a timestamp and a time that belong together. */
uint64_t time_of_tsc(uint64_t tsc);
uint64_t time_tsc_khz(void);
/* tsc -> ns: ((tsc << shift or >> -shift) * mul) >> 32, as struct vcpu_time_info has it. */
void time_scale(uint32_t *mul, int8_t *shift);
/* Interrupt this CPU (SOFT_TIMER) at that time, 0: never. */
void time_set_interrupt(uint64_t when);
/* Seconds and nanoseconds since 1970 at boot. From the CMOS clock, or what dom0 set. */
void time_wallclock(uint64_t *seconds, uint32_t *nanoseconds);
void time_set_wallclock(uint64_t seconds, uint32_t nanoseconds, uint64_t system_time);
void udelay(unsigned microseconds);
