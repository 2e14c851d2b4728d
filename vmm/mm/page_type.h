/* SPDX-License-Identifier: MIT */
/*
 * References to frames and the types under which they are held: the isolation argument is in page_type.c.
 *
 * A reference (ref) keeps a frame from being freed; a typed one (type) keeps it from being used as anything else besides. Writable and untyped
 * references are taken by any CPU without a lock; types of tables and descriptor pages change under the owner's page lock only.
 */
#pragma once

#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/lock.h"
#include "vmm/mm/frame.h"

/* ---- page-table entries ---- */

#define PTE_P	   (1ull << 0)
#define PTE_RW	   (1ull << 1)
#define PTE_US	   (1ull << 2)
#define PTE_PWT	   (1ull << 3)
#define PTE_PCD	   (1ull << 4)
#define PTE_A	   (1ull << 5)
#define PTE_D	   (1ull << 6)
#define PTE_PSE	   (1ull << 7) /* in L2, L3 */
#define PTE_PAT	   (1ull << 7) /* in L1 */
#define PTE_G	   (1ull << 8)
#define PTE_AVAIL  (7ull << 9)
#define PTE_NX	   (1ull << 63)
#define PTE_ADDR   0x000ffffffffff000ull
#define PT_ENTRIES 512u

static inline mfn_t pte_mfn(uint64_t pte)
{
	return MFN((pte & PTE_ADDR) >> PAGE_SHIFT);
}

static inline uint64_t pte_make(mfn_t m, uint64_t flags)
{
	return m.v << PAGE_SHIFT | flags;
}

static inline unsigned pt_index(uint64_t va, unsigned level)
{
	return (unsigned)(va >> (PAGE_SHIFT + 9 * (level - 1))) & (PT_ENTRIES - 1);
}

/* ---- references ---- */

/* The last reference went: what page_type.c asks of domain/domain.c. */
void frame_release(struct frame *f);

/* The last one frees the frame. */
static inline void frame_put(struct frame *f)
{
	uint32_t after = __atomic_sub_fetch(&f->ref, 1, __ATOMIC_SEQ_CST);

	BUG_ON((after & REF_COUNT_MASK) == REF_COUNT_MASK);
	if (unlikely(!(after & REF_COUNT_MASK)))
		frame_release(f);
}

/* Take a reference to a frame that the domain owns. False: it does not, or too many references: a few are kept for frame_get_again. */
static inline bool frame_get(struct frame *f, const struct domain *owner)
{
	uint32_t ref = READ_ONCE(f->ref);

	do {
		if (!(ref & REF_COUNT_MASK) || (ref & REF_COUNT_MASK) >= REF_GET_LIMIT)
			return false;
	} while (!__atomic_compare_exchange_n(&f->ref, &ref, ref + 1, false, __ATOMIC_SEQ_CST,
					      __ATOMIC_RELAXED));
	if (likely(READ_ONCE(f->owner) == owner))
		return true;
	frame_put(f);
	return false;
}

/* One more, for who holds one. */
static inline void frame_get_again(struct frame *f)
{
	uint32_t before = __atomic_fetch_add(&f->ref, 1, __ATOMIC_SEQ_CST);

	BUG_ON(!(before & REF_COUNT_MASK) || (before & REF_COUNT_MASK) == REF_COUNT_MASK);
}

/*
 * Take a typed reference; the caller holds a reference. 0; -EINVAL: it is in use as something else, or has entries that do
 * not fit; -ERESTART: interrupted, nothing is held, and trying again goes on where it was. Types of tables and descriptors: the owner's
 * page lock is held.
 */
int frame_get_type(struct frame *f, enum page_type type);
/* Tables: the owner's page lock is held, and what could not be given up at once is left to the owner's `unfinished`. */
void frame_put_type(struct frame *f);

/* A reference and a typed one. 0, -EPERM (not the domain's), or as frame_get_type. */
int frame_get_both(struct frame *f, const struct domain *owner, enum page_type type);
/* The same by a number that a guest gave: -EINVAL, too, when there is no such frame. */
static inline int mfn_get_both(mfn_t m, const struct domain *owner, enum page_type type)
{
	return mfn_valid(m) ? frame_get_both(mfn_frame(m), owner, type) : -EINVAL;
}

void frame_put_both(struct frame *f);

/*
 * Take the page lock for changing tables, and first finish what was left unfinished. -ERESTART: interrupted, the lock is not held. An operation under
 * it may leave a few tables unfinished: begin the next with page_lock_again(), which is quick when there are none.
 */
int page_lock(struct domain *d);
int page_lock_again(struct domain *d); /* the lock is held; -ERESTART: it still is */
void page_unlock(struct domain *d);

/* ---- entries of tables in use; the owner's page lock is held ---- */

/*
 * Replace the entry at index of f, which is a VALID table of that level and to which the caller has a reference. subject: whose frames an L1 entry may map,
 * the table's owner or another by right (foreign mapping). preserve_ad: keep accessed and dirty bits that the processor sets meanwhile. 0, -EPERM, -EINVAL
 * (also when f has ceased to be a table, because what kept it one was wanted as something else); -ERESTART: nothing changed, the next try goes on.
 */
int pt_update(struct frame *f, unsigned level, unsigned index, uint64_t value, bool preserve_ad,
	      struct domain *subject);
/* The same when the owner's page_work has PAGES_LOGGED. */
int pt_update_logged(struct frame *f, unsigned level, unsigned index, uint64_t value,
		     bool preserve_ad, struct domain *subject);
static inline int pt_update_any(struct frame *f, unsigned level, unsigned index, uint64_t value,
				bool preserve_ad, struct domain *subject)
{
	return unlikely(f->owner->page_work & PAGES_LOGGED)
		       ? pt_update_logged(f, level, index, value, preserve_ad, subject)
		       : pt_update(f, level, index, value, preserve_ad, subject);
}

/* The same for the owner's own frames, if the entry is `old`; -EAGAIN: it is not, because the processor has set a bit in it. */
int pt_compare_exchange(struct frame *f, unsigned level, unsigned index, uint64_t old,
			uint64_t value);

/* Pin (type L1..L4) and unpin. 0, -EINVAL, -ERESTART. */
int frame_pin(struct frame *f, enum page_type type);
int frame_unpin(struct frame *f);

/* Give up what a dying domain's frame holds as a table. The page lock is held, and the caller has a reference to the frame. 0 or -ERESTART. */
int frame_relinquish(struct frame *f);

/* A segment descriptor that a guest may have in a table: 0, or -EINVAL. Sets what it must have (privilege 3, accessed). */
int descriptor_check(uint64_t *descriptor);

/* ---- what page_type.c asks of its surroundings (hypervisor: tlb.c, domain.c; host tests: a model) ---- */

/* Whether work that a guest chose the length of shall be interrupted now. */
bool may_preempt(void);
/* No CPU on which the domain may have run has a TLB entry from before the clock value. */
void tlb_flush_since(struct domain *d, uint32_t clock);
uint32_t tlb_clock_now(void);
/* The domain may map this frame of I/O memory (not RAM). */
bool domain_may_map_io(const struct domain *d, mfn_t m);
/* Fill the hypervisor's slots of a new top-level table. */
void pt_fill_hypervisor_slots(uint64_t *l4);
