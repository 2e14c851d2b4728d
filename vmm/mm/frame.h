/* SPDX-License-Identifier: MIT */
/*
 * The frame table: who owns each page of RAM and what it is used for. How the words change is in mm/page_type.c, which holds the
 * isolation argument.
 */
#pragma once

#include "vmm/lib/types.h"

struct domain;

#define FRAME_NONE 0xffffffffu

/* What a frame may be used as. One at a time, while it is counted. */
enum page_type {
	TYPE_NONE,
	TYPE_L1,
	TYPE_L2,
	TYPE_L3,
	TYPE_L4,
	TYPE_DESC, /* descriptor table page */
	TYPE_WRITABLE,
};

/*
 * The type word. count: typed references. VALID: a table all of whose entries hold their references. PARTIAL: a table with count 0 whose
 * first `progress` entries do, because the work was interrupted; PENDING: the next entry's table is PARTIAL itself, without
 * a reference from here. PINNED: one of the references is the guest's pin. FOREIGN: while it had this type, another domain has mapped it writable;
 * WRITERS: entries of others' tables by which it is that now. SHADOWED: the table has a shadow (mm/shadow.c).
 */
#define TYPE_COUNT_MASK	    0xffffffffull
#define TYPE_SHIFT	    32
#define TYPE_MASK	    (7ull << TYPE_SHIFT)
#define TYPE_VALID	    (1ull << 35)
#define TYPE_PINNED	    (1ull << 36)
#define TYPE_PARTIAL	    (1ull << 37)
#define TYPE_PENDING	    (1ull << 38)
#define TYPE_BUSY	    (1ull << 39) /* being changed: whoever wants the same type waits a moment */
#define TYPE_PROGRESS_SHIFT 40
#define TYPE_PROGRESS_ONE   (1ull << TYPE_PROGRESS_SHIFT)
#define TYPE_PROGRESS_MASK  (0x3ffull << TYPE_PROGRESS_SHIFT)
#define TYPE_FOREIGN	    (1ull << 50)
#define TYPE_SHADOWED	    (1ull << 51)
#define TYPE_WRITERS_ONE    (1ull << 52)
#define TYPE_WRITERS_MASK   (0xfffull << 52)

/* The reference word: references of all kinds, and flags. */
#define REF_COUNT_MASK 0x07ffffffu
#define REF_GET_LIMIT  (REF_COUNT_MASK - 1024) /* those above are for who must not fail */
#define REF_ALLOCATED  (1u << 31)	       /* holds one reference: the owner's */
#define REF_HYPERVISOR \
	(1u << 30) /* the hypervisor's own, shared with a domain: not on its list of pages */
#define REF_IO	 (1u << 28) /* not RAM: never counted */
#define REF_HEAP (1u << 29) /* free, first of a block in the allocator */
#define REF_FOREIGN \
	(1u << 27) /* TYPE_WRITERS are some; such frames are the first of their owner's list */

struct frame {
	uint32_t next, prev; /* frame numbers: a free list, or the owner's pages; FRAME_NONE ends */
	struct domain *owner; /* NULL: the hypervisor, or free */
	uint32_t ref;
	/* TLB clock when the last typed reference went, or when it was freed; SHADOWED: the shadow's number. */
	uint32_t clock;
	uint64_t type;
};
_Static_assert(sizeof(struct frame) == 32, "the frame table has one of these for every 4 KiB");

/* Frames by their next and prev. */
struct frame_list {
	uint32_t first, last; /* FRAME_NONE: it is empty */
};

extern struct frame *frame_table;
/* Frames below this have an entry; those that are not RAM have ref 0 and never become allocated. */
extern uint64_t frame_max, ram_frames; /* the end; what of it is RAM */

static inline bool mfn_valid(mfn_t m)
{
	return m.v < frame_max;
}

static inline struct frame *mfn_frame(mfn_t m)
{
	return &frame_table[m.v];
}

static inline mfn_t frame_mfn(const struct frame *f)
{
	return MFN((uint64_t)(f - frame_table));
}

/* All of RAM is mapped at direct_base. */
extern char *direct_base;

static inline void *mfn_to_ptr(mfn_t m)
{
	return direct_base + (m.v << PAGE_SHIFT);
}

static inline void *maddr_to_ptr(uint64_t maddr)
{
	return direct_base + maddr;
}

static inline mfn_t ptr_to_mfn(const void *p)
{
	return MFN((uint64_t)((const char *)p - direct_base) >> PAGE_SHIFT);
}

/* ---- lists; the lock is the caller's ---- */

static inline void frame_append(struct frame_list *list, struct frame *f)
{
	uint32_t n = (uint32_t)frame_mfn(f).v;

	f->next = FRAME_NONE;
	f->prev = list->last;
	if (list->last == FRAME_NONE)
		list->first = n;
	else
		frame_table[list->last].next = n;
	list->last = n;
}

static inline void frame_prepend(struct frame_list *list, struct frame *f)
{
	uint32_t n = (uint32_t)frame_mfn(f).v;

	f->prev = FRAME_NONE;
	f->next = list->first;
	if (list->first == FRAME_NONE)
		list->last = n;
	else
		frame_table[list->first].prev = n;
	list->first = n;
}

static inline void frame_take(struct frame_list *list, struct frame *f)
{
	if (f->prev == FRAME_NONE)
		list->first = f->next;
	else
		frame_table[f->prev].next = f->next;
	if (f->next == FRAME_NONE)
		list->last = f->prev;
	else
		frame_table[f->next].prev = f->prev;
}

static inline unsigned type_of(uint64_t word)
{
	return (unsigned)((word & TYPE_MASK) >> TYPE_SHIFT);
}
