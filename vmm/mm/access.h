/* SPDX-License-Identifier: MIT */
/*
 * The only way to a guest's memory by its own addresses (invariant 4): a fault becomes -EFAULT, an address of the hypervisor is refused, SMAP is lifted
 * for the copy alone. They use the address space that is loaded: the current vCPU's. A guest may change what was read at any
 * moment: read once, check the copy.
 */
#pragma once

#include "vmm/cpu/patch.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/types.h"
#include "vmm/mm/layout.h"

/* All of va .. va+bytes-1 lies outside of the hypervisor's part (wrapping round counts as inside). */
static inline bool guest_range_ok(guest_va_t va, uint64_t bytes)
{
	uint64_t first = va.v, last = va.v + (bytes ? bytes - 1 : 0);

	if (last < first)
		return false;
	/* Below the hole, or above the hypervisor; what is not canonical faults by itself, as #GP: so it is refused here. */
	return last < 0x0000800000000000ull || first >= HV_END;
}

static inline bool guest_address_ok(uint64_t va)
{
	return guest_range_ok(GUEST_VA(va), 1);
}

/* No-ops until patched (cpu/patch.h). */
#define PATCH_STRING(x) #x
#define PATCHED_CODE(feature, last)                                         \
	".pushsection .patches, \"a\"\n .quad 9991f\n .byte " PATCH_STRING( \
		feature) ", 3, 0x0f, 0x01, " last                           \
			 ", 0, 0, 0\n .popsection\n 9991: .byte 0x0f, 0x1f, 0x00\n"
#define STAC PATCHED_CODE(PATCH_SMAP, "0xcb")
#define CLAC PATCHED_CODE(PATCH_SMAP, "0xca")
/* A fault at the one address goes on at the other (cpu/traps.c: fixup_find). */
#define FIXUP(from, to) ".pushsection .fixup_table, \"a\"\n .quad " from ", " to "\n .popsection\n"

/*
 * Single words for the hottest paths: whoever has asked guest_range_ok() may do these between begin and end, and comes to the label when one faults,
 * where end is still to be done.
 */
static inline void guest_access_begin(void)
{
	__asm__ volatile(STAC ::: "memory");
}

static inline void guest_access_end(void)
{
	__asm__ volatile(CLAC ::: "memory");
}

#define guest_get_word(at, value, fault)                                      \
	do {                                                                  \
		uint64_t word_ = 0;                                           \
                                                                              \
		__asm__ goto("1: movq %1, %0\n" FIXUP("1b", "%l[" #fault "]") \
			     : "=r"(word_)                                    \
			     : "m"(*(const volatile uint64_t *)(at))          \
			     :                                                \
			     : fault);                                        \
		(value) = word_;                                              \
	} while (0)

/* 0 or -EFAULT; a copy may have been made in part. */
int copy_from_guest(void *to, guest_va_t from, size_t bytes);
int copy_to_guest(guest_va_t to, const void *from, size_t bytes);
int clear_guest(guest_va_t to, size_t bytes);

/* The same for a structure behind a handle: n-th element of an array in guest memory. */
#define from_guest(object, handle, n)                                                       \
	copy_from_guest((object),                                                           \
			GUEST_VA((uint64_t)(handle).p + (uint64_t)(n) * sizeof(*(object))), \
			sizeof(*(object)))
#define to_guest(handle, n, object)                                                       \
	copy_to_guest(GUEST_VA((uint64_t)(handle).p + (uint64_t)(n) * sizeof(*(object))), \
		      (object), sizeof(*(object)))

/* Write a byte of guest memory with what is in it, atomically: 0, or -EFAULT. */
int touch_guest(guest_va_t at);
