/* SPDX-License-Identifier: MIT */
/* Hypercalls by their numbers, with all six arguments when a test wants them. */
#ifndef TESTS_GUESTS_LIB_HYPERCALLS_H
#define TESTS_GUESTS_LIB_HYPERCALLS_H

#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"

static inline long hypercall6(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
			      uint64_t e, uint64_t f)
{
	register uint64_t r10 __asm__("r10") = d;
	register uint64_t r8 __asm__("r8") = e;
	register uint64_t r9 __asm__("r9") = f;
	long rc = (long)number;

	/* A hypercall that was interrupted has its arguments changed. */
	__asm__ volatile("syscall"
			 : "+a"(rc), "+D"(a), "+S"(b), "+d"(c), "+r"(r10), "+r"(r8), "+r"(r9)
			 :
			 : "rcx", "r11", "memory");
	return rc;
}

#define hypercall4(number, a, b, c, d) hypercall6(number, a, b, c, d, 0, 0)
#define hypercall3(number, a, b, c)    hypercall6(number, a, b, c, 0, 0, 0)
#define hypercall2(number, a, b)       hypercall6(number, a, b, 0, 0, 0, 0)
#define hypercall1(number, a)	       hypercall6(number, a, 0, 0, 0, 0, 0)

#endif
