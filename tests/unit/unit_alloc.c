// SPDX-License-Identifier: MIT
/*
 * Allocations that fail when a test says so.
 *
 * The program's own malloc and its relatives come first in symbol resolution, count, and hand on to
 * the C library's, or to AddressSanitizer's when it is there.
 */
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdlib.h>

#ifdef __SANITIZE_ADDRESS__
#define REAL(name)    __interceptor_##name
#define real_memalign __interceptor_memalign
#else
#define REAL(name)    __libc_##name
#define real_memalign __libc_memalign
#endif

void *REAL(malloc)(size_t size);
void *REAL(calloc)(size_t nr, size_t size);
void *REAL(realloc)(void *p, size_t size);
void *real_memalign(size_t align, size_t size);

static _Thread_local unsigned long made, fail_at;

unsigned long unit_fail_alloc(unsigned long n)
{
	unsigned long before = made;

	made = 0;
	fail_at = n;
	return before;
}

static bool fails(void)
{
	if (++made != fail_at)
		return false;
	errno = ENOMEM;
	return true;
}

void *malloc(size_t size)
{
	return fails() ? NULL : REAL(malloc)(size);
}

void *calloc(size_t nr, size_t size)
{
	return fails() ? NULL : REAL(calloc)(nr, size);
}

void *realloc(void *p, size_t size)
{
	return fails() ? NULL : REAL(realloc)(p, size);
}

void *aligned_alloc(size_t align, size_t size)
{
	return fails() ? NULL : real_memalign(align, size);
}

int posix_memalign(void **out, size_t align, size_t size)
{
	void *p;

	if (align < sizeof(void *) || (align & (align - 1)))
		return EINVAL;
	p = fails() ? NULL : real_memalign(align, size);
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}
