/* SPDX-License-Identifier: MIT */
#include "migrate/speed_cap.h"

/* What was measured for less says little. */
#define LEAST_NS 200000000ull

unsigned speed_used(uint64_t cpu_ns, uint64_t took_ns)
{
	uint64_t us = took_ns / 1000, used;

	if (took_ns < LEAST_NS)
		return 0;
	/* Nothing runs for longer than this times as long as it takes. */
	if (cpu_ns / (SPEED_CAP_MAX / 100) > took_ns)
		return SPEED_CAP_MAX;
	used = (cpu_ns / 1000 * 100 + us - 1) / us;
	return used < 1 ? 1 : (unsigned)used;
}

int speed_cap(unsigned used, int own, unsigned vcpus, unsigned percent)
{
	uint64_t base = 100ull * (vcpus ? vcpus : 1), cap;

	if (own > 0 && (uint64_t)own < base)
		base = (uint64_t)own;
	if (used && used < base)
		base = used;
	cap = base * percent / 100;
	return cap ? (int)cap : 1;
}
