/* SPDX-License-Identifier: MIT */
/*
 * prng - small, fast, repeatable pseudo-random numbers.
 *
 * prng_mix is the finaliser of MurmurHash3 as improved by David Stafford (variant 13) and used by
 * SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
 * No function fails; a struct prng belongs to one thread.
 */
#ifndef WORKLOAD_PRNG_H
#define WORKLOAD_PRNG_H

#include <stdint.h>

#define PRNG_GOLDEN 0x9e3779b97f4a7c15ULL

struct prng {
	uint64_t state;
};

/* A bijection of 64-bit words without visible structure. */
static inline uint64_t prng_mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
	return x ^ x >> 31;
}

static inline uint64_t prng_next(struct prng *prng)
{
	prng->state += PRNG_GOLDEN;
	return prng_mix(prng->state);
}

/* 0 to @limit - 1; @limit is 1 to 2^32. */
static inline uint64_t prng_below(struct prng *prng, uint64_t limit)
{
	return (prng_next(prng) >> 32) * limit >> 32;
}

/* 0 (included) to 1 (excluded). */
static inline double prng_unit(struct prng *prng)
{
	return (double)(prng_next(prng) >> 11) * 0x1p-53;
}

#endif
