// SPDX-License-Identifier: MIT
/*
 * Page scans: see page_scan.h.
 *
 * The loops are written once, over vectors of 32 bytes; the compiler makes them of two SSE2 or one
 * AVX2 instruction, depending on the function that they are inlined into.
 */
#include "migrate/page_scan.h"

#include <stdint.h>
#include <string.h>

#include "protocol-spec/stream.h"

typedef uint64_t vec __attribute__((vector_size(32), may_alias));
typedef uint64_t loose_vec __attribute__((vector_size(32), aligned(1), may_alias));

#define VECS	(PGR_PAGE_SIZE / sizeof(vec))
#define LANES	(sizeof(vec) / sizeof(uint64_t))
#define ALWAYS	static inline __attribute__((always_inline))
#define AVX2_FN __attribute__((target("avx2")))

ALWAYS bool any(const vec *v)
{
	return ((*v)[0] | (*v)[1] | (*v)[2] | (*v)[3]) != 0;
}

/*
 * Most pages that are not zero show it in their first line; the rest goes in strides that keep the
 * loads busy.
 */
ALWAYS bool zero_loop(const vec *p)
{
	const unsigned stride = 8;
	vec sum = p[0] | p[1];

	if (any(&sum))
		return false;
	for (unsigned i = 0; i < VECS; i += stride) {
		vec x = p[i] | p[i + 1], y = p[i + 2] | p[i + 3];
		vec z = p[i + 4] | p[i + 5], w = p[i + 6] | p[i + 7];

		sum = (x | y) | (z | w);
		if (any(&sum))
			return false;
	}
	return true;
}

ALWAYS unsigned differ_loop(const loose_vec *a, const vec *b, unsigned limit)
{
	const unsigned stride = 16;
	unsigned words = 0;

	for (unsigned i = 0; i < VECS && words < limit; i += stride) {
		vec count = {0};

		for (unsigned k = 0; k < stride; k++)
			count -= (vec)((vec)a[i + k] != b[i + k]);
		words += (unsigned)(count[0] + count[1] + count[2] + count[3]);
	}
	return words < limit ? words : limit;
}

ALWAYS void xor_loop(loose_vec *out, const loose_vec *a, const loose_vec *b)
{
	for (unsigned i = 0; i < VECS; i++)
		out[i] = a[i] ^ b[i];
}

/* Loads before stores: the next page's loads need not wait for stores that only seem to meet them. */
ALWAYS void copy_loop(loose_vec *out, const loose_vec *page)
{
	const unsigned stride = 4;

	for (unsigned i = 0; i < VECS; i += stride) {
		vec x = page[i], y = page[i + 1], z = page[i + 2], w = page[i + 3];

		out[i] = x;
		out[i + 1] = y;
		out[i + 2] = z;
		out[i + 3] = w;
	}
}

AVX2_FN static bool zero_avx2(const void *page)
{
	return zero_loop(page);
}

static bool zero_sse2(const void *page)
{
	return zero_loop(page);
}

AVX2_FN static unsigned differ_avx2(const void *a, const void *b, unsigned limit)
{
	return differ_loop(a, b, limit);
}

static unsigned differ_sse2(const void *a, const void *b, unsigned limit)
{
	return differ_loop(a, b, limit);
}

AVX2_FN static void xor_avx2(void *out, const void *a, const void *b)
{
	xor_loop(out, a, b);
}

static void xor_sse2(void *out, const void *a, const void *b)
{
	xor_loop(out, a, b);
}

AVX2_FN static void copy_avx2(void *out, const void *page)
{
	copy_loop(out, page);
}

static void copy_sse2(void *out, const void *page)
{
	copy_loop(out, page);
}

bool page_is_zero(const void *page)
{
	return __builtin_cpu_supports("avx2") ? zero_avx2(page) : zero_sse2(page);
}

unsigned page_words_differ(const void *a, const void *b, unsigned limit)
{
	return __builtin_cpu_supports("avx2") ? differ_avx2(a, b, limit) : differ_sse2(a, b, limit);
}

void page_copy(void *out, const void *page)
{
	if (__builtin_cpu_supports("avx2"))
		copy_avx2(out, page);
	else
		copy_sse2(out, page);
}

void page_xor(void *out, const void *a, const void *b)
{
	if (__builtin_cpu_supports("avx2"))
		xor_avx2(out, a, b);
	else
		xor_sse2(out, a, b);
}
