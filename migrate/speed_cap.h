/* SPDX-License-Identifier: MIT */
/* speed_cap - the scheduler's cap that slows a guest. */
#ifndef PAGURUS_SPEED_CAP_H
#define PAGURUS_SPEED_CAP_H

#include <stdint.h>

/* The largest that is known here, and more than any guest can use. */
#define SPEED_CAP_MAX (100 * 4096)

/*
 * Percent of one processor, rounded up, for a guest that ran for cpu_ns in took_ns; 0: too short to
 * tell.
 */
unsigned speed_used(uint64_t cpu_ns, uint64_t took_ns);

/*
 * The cap in percent of one processor (at least 1) for a guest that used `used` of one, has `own` as its
 * cap (0: none) and `vcpus` of them, and is to have `percent` of its speed. used 0: unknown.
 */
int speed_cap(unsigned used, int own, unsigned vcpus, unsigned percent);

#endif
