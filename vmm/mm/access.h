/* SPDX-License-Identifier: MIT */
/*
 * The only way to a guest's memory by its own addresses (invariant 4): a fault becomes -EFAULT, an address of the hypervisor is refused, SMAP is lifted
 * for the copy alone. They use the address space that is loaded: the current vCPU's. A guest may change what was read at any
 * moment: read once, check the copy.
 */
#ifndef VMM_MM_ACCESS_H
#define VMM_MM_ACCESS_H

#include "vmm/lib/errno.h"
#include "vmm/lib/types.h"

/* All of va .. va+bytes-1 lies outside of the hypervisor's part (wrapping round counts as inside). */
bool guest_range_ok(guest_va_t va, uint64_t bytes);

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

/* Atomic compare-and-exchange of a naturally aligned word of 1, 2, 4 or 8 bytes in guest memory. 0 (*old gets what was there) or -EFAULT. */
int cmpxchg_guest(guest_va_t at, uint64_t *old, uint64_t new, unsigned bytes);

#endif
