/* SPDX-License-Identifier: MIT */
/* Words that every room uses: boxed addresses, barriers, assertions. No code of its own. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE  4096ul
#define PAGE_MASK  (~(PAGE_SIZE - 1))

/* A machine frame number: which page of real memory. */
typedef struct {
	uint64_t v;
} mfn_t;
/* A pseudo-physical frame number: which page of a domain, as it counts them itself. */
typedef struct {
	uint64_t v;
} pfn_t;
/* An address in a guest's address space: never dereferenced but by the accessors of mm/access.h. */
typedef struct {
	uint64_t v;
} guest_va_t;

#define MFN(n)	    ((mfn_t){(n)})
#define GUEST_VA(a) ((guest_va_t){(uint64_t)(a)})
#define MFN_NONE    MFN(~0ull)

static inline bool mfn_eq(mfn_t a, mfn_t b)
{
	return a.v == b.v;
}

#define ARRAY_SIZE(a)		   (sizeof(a) / sizeof((a)[0]))
#define container_of(p, type, mem) ((type *)((char *)(p)-offsetof(type, mem)))
#define likely(x)		   __builtin_expect(!!(x), 1)
#define unlikely(x)		   __builtin_expect(!!(x), 0)
#define ROUND_UP(x, to)		   (((x) + (to)-1) / (to) * (to))
#define MIN(a, b)		   ((a) < (b) ? (a) : (b))
#define MAX(a, b)		   ((a) > (b) ? (a) : (b))

#define barrier()	     __asm__ volatile("" ::: "memory")
#define READ_ONCE(x)	     (*(const volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile __typeof__(x) *)&(x) = (value))

/* An index that was found to be below n: as far as the processor speculates that it was, when it was not, it is 0. */
static inline uint64_t array_nospec(uint64_t index, uint64_t n)
{
	uint64_t mask;

	__asm__ volatile("cmp %2, %1; sbb %0, %0" : "=r"(mask) : "r"(index), "r"(n) : "cc");
	return index & mask;
}

/* Something of the hypervisor itself is wrong: print the state and halt. Never for a guest's value. */
__attribute__((noreturn, cold)) void bug(const char *file, int line, const char *what);
#define BUG_ON(x)                                    \
	do {                                         \
		if (unlikely(x))                     \
			bug(__FILE__, __LINE__, #x); \
	} while (0)
#define ASSERT(x) BUG_ON(!(x))
