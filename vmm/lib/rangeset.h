/* SPDX-License-Identifier: MIT */
/*
 * A set of numbers as a small sorted array of ranges: I/O ports, I/O frames, interrupts that a domain may use. Few ranges, read
 * often, changed rarely. The caller serialises changes against everything; reading at once from several CPUs is fine.
 */
#pragma once

#include "vmm/lib/types.h"

#define RANGESET_MAX 64

struct rangeset {
	unsigned nr;
	struct {
		uint64_t first, last; /* both inside */
	} range[RANGESET_MAX];
};

/* 0, or -ENOSPC when there would be more than RANGESET_MAX ranges; then nothing has changed. */
int rangeset_add(struct rangeset *s, uint64_t first, uint64_t last);
int rangeset_remove(struct rangeset *s, uint64_t first, uint64_t last);
/* All of first .. last is inside. */
bool rangeset_contains(const struct rangeset *s, uint64_t first, uint64_t last);
