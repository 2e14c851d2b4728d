// SPDX-License-Identifier: MIT
/* The compiler emits calls to the first four by itself; REP is fast on every processor that has ERMS, by words on every one, and small everywhere. */
#include "vmm/lib/string.h"

#include "vmm/lib/types.h"

void *memcpy(void *to, const void *from, size_t n)
{
	void *at = to;
	size_t words = n / 8;

	__asm__ volatile("rep movsq\n\tmov %k3, %%ecx\n\trep movsb"
			 : "+&D"(at), "+&S"(from), "+&c"(words)
			 : "r"(n % 8)
			 : "memory");
	return to;
}

void *memmove(void *to, const void *from, size_t n)
{
	char *last = (char *)to + n - 1;
	const char *last_from = (const char *)from + n - 1;

	if ((uintptr_t)to - (uintptr_t)from >= n)
		return memcpy(to, from, n);
	__asm__ volatile("std; rep movsb; cld" : "+D"(last), "+S"(last_from), "+c"(n)::"memory");
	return to;
}

void *memset(void *to, int byte, size_t n)
{
	void *at = to;
	size_t words = n / 8;

	__asm__ volatile("rep stosq\n\tmov %k2, %%ecx\n\trep stosb"
			 : "+&D"(at), "+&c"(words)
			 : "r"(n % 8), "a"((uint8_t)byte * 0x0101010101010101ull)
			 : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const unsigned char *x = a, *y = b;

	for (size_t i = 0; i < n; i++)
		if (x[i] != y[i])
			return x[i] - y[i];
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

int strncmp(const char *a, const char *b, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (a[i] != b[i] || !a[i])
			return (unsigned char)a[i] - (unsigned char)b[i];
	return 0;
}

int strcmp(const char *a, const char *b)
{
	return strncmp(a, b, SIZE_MAX);
}

char *strchr(const char *s, int c)
{
	for (; *s != (char)c; s++)
		if (!*s)
			return NULL;
	return (char *)(uintptr_t)s;
}
