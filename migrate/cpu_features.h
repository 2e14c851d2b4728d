/* SPDX-License-Identifier: MIT */
/*
 * Features of a processor as CPUID tells them: which of those that a guest was promised does a host
 * lack?
 *
 * Pure functions, any thread.
 */
#ifndef PAGURUS_CPU_FEATURES_H
#define PAGURUS_CPU_FEATURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol-spec/stream.h"

struct cpu_leaves {
	const struct pgr_cpu_leaf *leaf;
	uint32_t nr;
};

/*
 * True when host lacks something of what guest has; text (at least 64 bytes) then has names: "avx2,
 * leaf 0x7 edx bit 3, and 4 more". Bits that count or number, or repeat others, are left out; a
 * leaf that is not there has no features.
 */
bool cpu_lacking(struct cpu_leaves guest, struct cpu_leaves host, char *text, size_t size);

#endif
