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
 * more (found early).
 */
unsigned page_words_differ(const void *a, const void *b, unsigned limit);

/* out = a XOR b; out may be a or b. b need not be aligned. */
void page_xor(void *out, const void *a, const void *b);

#endif
