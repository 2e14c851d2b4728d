/* SPDX-License-Identifier: MIT */
/*
 * What the encodings ask of the words of a page. Pure functions, any thread; pages are 4096 bytes
 * aligned to 64 unless said otherwise.
 *
 * Each exists twice, for SSE2 and AVX2, chosen at the first call.
 */
#ifndef PAGURUS_PAGE_SCAN_H
#define PAGURUS_PAGE_SCAN_H

#include <stdbool.h>

/* All bytes are zero. The page may change meanwhile. */
bool page_is_zero(const void *page);

/*
 * Number of 8-byte words (0 .. 512) in which a and b differ, or `limit` when there are as many or
 * more (found early). a need not be aligned.
 */
unsigned page_words_differ(const void *a, const void *b, unsigned limit);

/*
 * Copy a page, which may change meanwhile: each of its bytes is read once. None need be aligned.
 * memcpy(), and the string instructions that the compiler makes of it, run at a quarter of the speed
 * on some processors (AMD's Zen 4) when `out` lies up to 31 bytes further into a page of memory than
 * what is copied does into its own, which is where a record's data happen to be.
 */
void page_copy(void *out, const void *page);

/* out = a XOR b; out may be a or b. None need be aligned. */
void page_xor(void *out, const void *a, const void *b);

#endif
