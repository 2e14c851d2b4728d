/* SPDX-License-Identifier: MIT */
/*
 * The frame allocator: a buddy system over all of RAM. What it gives out is zero and no CPU has a TLB entry for it from earlier.
 * Any CPU; not from interrupt handlers.
 */
#pragma once

#include "vmm/mm/frame.h"

#define HEAP_MAX_ORDER 18 /* 1 GiB */

/* Boot: the frames first .. last-1 become free RAM. */
void heap_add(mfn_t first, mfn_t last);

/* 2^order frames, contiguous and aligned to their size, zeroed, owner NULL, below 2^bits bytes (0: anywhere). MFN_NONE: there are none. */
mfn_t heap_alloc(unsigned order, unsigned bits);
/* Give 2^order frames back; nobody has references to them. Contents are scrubbed before anyone gets them again. */
void heap_free(mfn_t m, unsigned order);

/* For the hypervisor's own structures: zeroed, page aligned; NULL: no memory. */
void *heap_alloc_pages(unsigned order);
void heap_free_pages(void *p, unsigned order);
/* Zeroed, from whole pages; for things of one page and more and for the few small ones of each domain. */
void *heap_zalloc(size_t bytes);
void heap_zfree(void *p, size_t bytes);

/* For tests: the nth allocation from now finds no memory, and with `on` all behind it; 0: none. Returns how many did so since the last call. */
uint64_t heap_fail(uint64_t nth, bool on);

uint64_t heap_free_frames(void);
uint64_t heap_total_frames(void);
