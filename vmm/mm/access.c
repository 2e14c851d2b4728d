/* SPDX-License-Identifier: MIT */
/*
 * See access.h. A fault inside one of the sequences below is found by its address in the exception table (cpu/traps.c: fixup_find), which makes the
 * copy end with what was not copied.
 */
#include "vmm/mm/access.h"

/* Returns what was not copied: 0 or not. */
static size_t copy(void *to, const void *from, size_t bytes)
{
	size_t words = bytes / 8;

	/* Nearly everything that crosses consists of words. */
	if (likely(bytes % 8 == 0)) {
		__asm__ volatile(STAC "1: rep movsq\n2:\n" CLAC FIXUP("1b", "2b")
				 : "+D"(to), "+S"(from), "+c"(words)::"memory");
		return words;
	}
	__asm__ volatile(STAC "1: rep movsb\n2:\n" CLAC FIXUP("1b", "2b")
			 : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
	return bytes;
}

int copy_from_guest(void *to, guest_va_t from, size_t bytes)
{
	if (!guest_range_ok(from, bytes))
		return -EFAULT;
	return copy(to, (const void *)from.v, bytes) ? -EFAULT : 0;
}

int copy_to_guest(guest_va_t to, const void *from, size_t bytes)
{
	if (!guest_range_ok(to, bytes))
		return -EFAULT;
	return copy((void *)to.v, from, bytes) ? -EFAULT : 0;
}

int clear_guest(guest_va_t to, size_t bytes)
{
	uint64_t at = to.v;

	if (!guest_range_ok(to, bytes))
		return -EFAULT;
	__asm__ volatile(STAC "1: rep stosb\n2:\n" CLAC FIXUP("1b", "2b")
			 : "+D"(at), "+c"(bytes)
			 : "a"(0)
			 : "memory");
	return bytes ? -EFAULT : 0;
}

int touch_guest(guest_va_t at)
{
	uint64_t bad = 1;

	if (!guest_address_ok(at.v))
		return -EFAULT;
	__asm__ volatile(STAC "1: lock orb $0, (%1)\n   xor %0, %0\n2:\n" CLAC FIXUP("1b", "2b")
			 : "+&r"(bad)
			 : "r"(at.v)
			 : "memory", "cc");
	return bad ? -EFAULT : 0;
}
