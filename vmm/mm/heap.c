/* SPDX-License-Identifier: MIT */
/*
 * A buddy system. A free block is known by its first frame: REF_HEAP in ref, the order in `type`, the list in next and prev. Two
 * zones, so that frames below 4 GiB are kept for who needs them.
 */
#include "vmm/mm/heap.h"

#include "vmm/lib/lock.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/tlb.h"

#define ZONE_LIMIT (1ull << (32 - PAGE_SHIFT)) /* frames */
enum { ZONE_LOW, ZONE_HIGH, ZONES };

static spinlock_t heap_lock = SPINLOCK_INIT;
static uint32_t free_list[ZONES][HEAP_MAX_ORDER + 1];
static bool lists_made;
static uint64_t free_frames, total_frames;
static uint64_t fail_in, fail_then, failures; /* heap_fail: allocations until one fails */

struct frame *frame_table;
uint64_t frame_max;
char *direct_base;

static unsigned zone_of(uint64_t n)
{
	return n >= ZONE_LIMIT ? ZONE_HIGH : ZONE_LOW;
}

static void link_block(uint64_t n, unsigned order)
{
	uint32_t *list = &free_list[zone_of(n)][order];
	struct frame *f = &frame_table[n];

	f->ref = REF_HEAP;
	f->type = order;
	f->prev = FRAME_NONE;
	f->next = *list;
	if (*list != FRAME_NONE)
		frame_table[*list].prev = (uint32_t)n;
	*list = (uint32_t)n;
}

static void unlink_block(uint64_t n, unsigned order)
{
	struct frame *f = &frame_table[n];

	if (f->next != FRAME_NONE)
		frame_table[f->next].prev = f->prev;
	if (f->prev != FRAME_NONE)
		frame_table[f->prev].next = f->next;
	else
		free_list[zone_of(n)][order] = f->next;
	f->ref = 0;
	f->type = 0;
}

/* Join the block with its buddies as far as they are free. Caller holds heap_lock. */
static void insert(uint64_t n, unsigned order)
{
	free_frames += 1ull << order;
	while (order < HEAP_MAX_ORDER) {
		uint64_t buddy = n ^ 1ull << order;

		if (buddy >= frame_max || frame_table[buddy].ref != REF_HEAP ||
		    frame_table[buddy].type != order || zone_of(buddy) != zone_of(n))
			break;
		unlink_block(buddy, order);
		n &= ~(1ull << order);
		order++;
	}
	link_block(n, order);
}

void heap_add(mfn_t first, mfn_t last)
{
	uint64_t n = first.v;

	if (!lists_made) {
		memset(free_list, 0xff, sizeof(free_list));
		lists_made = true;
	}
	while (n < last.v) {
		unsigned order = n ? (unsigned)__builtin_ctzll(n) : HEAP_MAX_ORDER;

		if (order > HEAP_MAX_ORDER)
			order = HEAP_MAX_ORDER;
		while (n + (1ull << order) > last.v)
			order--;
		for (uint64_t i = n; i < n + (1ull << order); i++)
			frame_table[i] = (struct frame){0};
		total_frames += 1ull << order;
		insert(n, order);
		n += 1ull << order;
	}
}

/* A block of the order or a larger one, split, all of it below the limit (in frames). */
static uint64_t take(unsigned zone, unsigned order, uint64_t limit)
{
	for (unsigned o = order; o <= HEAP_MAX_ORDER; o++) {
		for (uint32_t n = free_list[zone][o]; n != FRAME_NONE; n = frame_table[n].next) {
			if (n + (1ull << order) > limit)
				continue;
			unlink_block(n, o);
			free_frames -= 1ull << o;
			while (o > order) {
				o--;
				insert(n + (1ull << o), o);
			}
			return n;
		}
	}
	return FRAME_NONE;
}

/* Caller holds heap_lock. */
static bool made_to_fail(void)
{
	if (likely(!fail_in) || --fail_in)
		return false;
	fail_in = fail_then;
	failures++;
	return true;
}

uint64_t heap_fail(uint64_t nth, bool on)
{
	uint64_t failed;

	spin_lock(&heap_lock);
	failed = failures;
	failures = 0;
	fail_in = nth;
	fail_then = on;
	spin_unlock(&heap_lock);
	return failed;
}

mfn_t heap_alloc(unsigned order, unsigned bits)
{
	uint64_t limit = bits && bits < 64 ? 1ull << (MAX(bits, PAGE_SHIFT) - PAGE_SHIFT) : ~0ull;
	uint64_t n = FRAME_NONE;
	uint32_t newest;

	if (order > HEAP_MAX_ORDER)
		return MFN_NONE;
	spin_lock(&heap_lock);
	if (made_to_fail())
		limit = 0;
	if (limit > ZONE_LIMIT)
		n = take(ZONE_HIGH, order, limit);
	if (n == FRAME_NONE)
		n = take(ZONE_LOW, order, limit);
	spin_unlock(&heap_lock);
	if (n == FRAME_NONE)
		return MFN_NONE;
	newest = frame_table[n].clock;
	for (uint64_t i = n; i < n + (1ull << order); i++) {
		if ((int32_t)(frame_table[i].clock - newest) > 0)
			newest = frame_table[i].clock;
		frame_table[i].ref = 0;
		frame_table[i].type = 0;
		frame_table[i].owner = NULL;
		frame_table[i].next = frame_table[i].prev = FRAME_NONE;
	}
	tlb_flush_all_since(newest);
	memset(mfn_to_ptr(MFN(n)), 0, PAGE_SIZE << order);
	return MFN(n);
}

void heap_free(mfn_t m, unsigned order)
{
	uint32_t clock = tlb_clock_now();

	spin_lock(&heap_lock);
	for (uint64_t i = m.v; i < m.v + (1ull << order); i++) {
		BUG_ON(frame_table[i].ref & (REF_COUNT_MASK | REF_IO | REF_HEAP));
		frame_table[i].ref = 0;
		frame_table[i].owner = NULL;
		frame_table[i].type = 0;
		frame_table[i].clock = clock;
	}
	insert(m.v, order);
	spin_unlock(&heap_lock);
}

void *heap_alloc_pages(unsigned order)
{
	mfn_t m = heap_alloc(order, 0);

	return mfn_eq(m, MFN_NONE) ? NULL : mfn_to_ptr(m);
}

void heap_free_pages(void *p, unsigned order)
{
	if (p)
		heap_free(ptr_to_mfn(p), order);
}

static unsigned order_for(size_t bytes)
{
	unsigned order = 0;

	while ((PAGE_SIZE << order) < bytes)
		order++;
	return order;
}

void *heap_zalloc(size_t bytes)
{
	return heap_alloc_pages(order_for(bytes));
}

void heap_zfree(void *p, size_t bytes)
{
	heap_free_pages(p, order_for(bytes));
}

uint64_t heap_free_frames(void)
{
	return READ_ONCE(free_frames);
}

uint64_t heap_total_frames(void)
{
	return total_frames;
}
