/* SPDX-License-Identifier: MIT */
/* Bits in arrays of 64-bit words; the atomic ones are full barriers. */
#pragma once

#include "vmm/lib/types.h"

static inline bool bit_test(const uint64_t *map, unsigned n)
{
	return READ_ONCE(map[n / 64]) >> n % 64 & 1;
}

static inline void bit_clear(uint64_t *map, unsigned n)
{
	map[n / 64] &= ~(1ull << n % 64);
}

/* These return what the bit was. */
static inline bool bit_test_and_set(uint64_t *map, unsigned n)
{
	return __atomic_fetch_or(&map[n / 64], 1ull << n % 64, __ATOMIC_SEQ_CST) >> n % 64 & 1;
}

static inline bool bit_test_and_clear(uint64_t *map, unsigned n)
{
	return __atomic_fetch_and(&map[n / 64], ~(1ull << n % 64), __ATOMIC_SEQ_CST) >> n % 64 & 1;
}

/* The first bit at or after `from` that is set, or `bits`. */
static inline unsigned bit_next(const uint64_t *map, unsigned bits, unsigned from)
{
	while (from < bits) {
		uint64_t word = READ_ONCE(map[from / 64]) >> from % 64;

		if (word) {
			from += (unsigned)__builtin_ctzll(word);
			return from < bits ? from : bits;
		}
		from = (from / 64 + 1) * 64;
	}
	return bits;
}

#define bit_for_each(n, map, bits) \
	for (unsigned n = bit_next(map, bits, 0); (n) < (bits); (n) = bit_next(map, bits, (n) + 1))
