/* SPDX-License-Identifier: MIT */
/*
 * verify_pages - pages whose content is known, and a table that says what it must be.
 *
 * Page p of generation g holds a sequence that is a function of (seed, p, g) only. The table, in
 * other memory, keeps g and a checksum for each page; the caller's own memory (struct page_set) keeps
 * how many generations were written in all. A pass over all pages compares every word with the
 * function, the checksum with the words, and the sum of the generations with the count. So one pass
 * finds every flipped bit, every swapped or older page, and a page that went back together with its
 * table entry.
 *
 * A page is checked in the same step before it is written again: nothing is overwritten unseen.
 *
 * A struct page_set belongs to one thread.
 */
#ifndef WORKLOAD_VERIFY_PAGES_H
#define WORKLOAD_VERIFY_PAGES_H

#include <stddef.h>
#include <stdint.h>

#include "verify_fail.h"

#define VERIFY_PAGE_SIZE  4096
#define VERIFY_PAGE_WORDS (VERIFY_PAGE_SIZE / sizeof(uint64_t))

struct page_entry {
	uint64_t generation;
	uint64_t checksum;
};

struct page_set {
	uint64_t (*pages)[VERIFY_PAGE_WORDS]; /* page-aligned, not owned */
	struct page_entry *table;	      /* one entry a page, not owned */
	uint64_t count;			      /* pages, 1 or more */
	uint64_t first; /* number of the first page, for (seed, page, generation) */
	uint64_t seed;
	uint64_t generations; /* sum of all generations in the table */
};

/* Writes the content of page number @number, generation @generation; returns its checksum. */
uint64_t page_write(uint64_t page[VERIFY_PAGE_WORDS], uint64_t seed, uint64_t number,
		    uint64_t generation);

/* The index of the first word that is not as page_write left it, VERIFY_PAGE_WORDS if none is. */
size_t page_compare(const uint64_t page[VERIFY_PAGE_WORDS], uint64_t seed, uint64_t number,
		    uint64_t generation);

/* Word @index of that content. */
uint64_t page_word(uint64_t seed, uint64_t number, uint64_t generation, size_t index);

/* Writes generation 1 of all pages and the table. */
void pages_init(struct page_set *set);

/* Checks page @index (0 to count - 1); returns what is wrong with it, kind FINDING_NONE if nothing. */
struct finding pages_check(const struct page_set *set, uint64_t index);

/* Writes the next generation of page @index, which must just have been checked. */
void pages_rewrite(struct page_set *set, uint64_t index);

/* Checks that the table's generations add up, to be called between passes. */
struct finding pages_check_sum(const struct page_set *set);

#endif
