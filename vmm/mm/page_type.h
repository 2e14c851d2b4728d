/* SPDX-License-Identifier: MIT */
/*
 * References to frames and the types under which they are held: the isolation argument is in page_type.c.
 *
 * A reference (ref) keeps a frame from being freed; a typed one (type) keeps it from being used as anything else besides. Writable and untyped
 * references are taken by any CPU without a lock; types of tables and descriptor pages change under the owner's page lock only.
 */
#ifndef VMM_MM_PAGE_TYPE_H
#define VMM_MM_PAGE_TYPE_H

#include "vmm/lib/lock.h"
#include "vmm/mm/frame.h"

struct domain;

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

/* Take a reference to a frame that the domain owns. False: it does not, or too many references. */
bool frame_get(struct frame *f, const struct domain *owner);
/* The last one frees the frame. */
void frame_put(struct frame *f);

/*
 * Take a typed reference; the caller holds a reference. 0; -EINVAL: it is in use as something else, or has entries that do
 * not fit; -ERESTART: interrupted, nothing is held, and trying again goes on where it was. Types of tables: the owner's page lock is held and `may_preempt` may
 * return true to interrupt; -EINVAL of a table says in log_debug what was wrong with which entry.
 */
int frame_get_type(struct frame *f, enum page_type type);
/* 0, or -ERESTART: the reference is dropped, but the table still holds some of its own: call frame_finish until it returns 0. */
int frame_put_type(struct frame *f);
/* Go on giving up what an interrupted table holds. 0 or -ERESTART. */
int frame_finish(struct frame *f);

/* A reference and a typed one. 0, -EPERM (not the domain's), or as frame_get_type. */
int frame_get_both(struct frame *f, const struct domain *owner, enum page_type type);
int frame_put_both(struct frame *f);

/* ---- entries of tables in use; the owner's page lock is held ---- */

struct pt_actor {
	struct domain *domain; /* whose table it is, who pays and who is checked */
	struct domain *
		subject; /* whose frames an L1 entry may map: itself, or another by right (foreign mapping) */
};

/*
 * Replace the entry at index of the table f, which the caller holds as a table of that level. preserve_ad: keep accessed and dirty bits that the
 * processor sets meanwhile. 0, -EINVAL, -EPERM, -ERESTART (nothing changed, or everything, see there).
 */
int pt_update(struct frame *f, unsigned level, unsigned index, uint64_t value, bool preserve_ad,
	      const struct pt_actor *who);

/* Pin (type L1..L4) and unpin. 0, -EINVAL, -ERESTART. */
int frame_pin(struct frame *f, enum page_type type);
int frame_unpin(struct frame *f);

/* Give up everything that a dying domain's frame holds as a table. 0 or -ERESTART. */
int frame_relinquish(struct frame *f);

/* ---- what page_type.c asks of its surroundings (hypervisor: tlb.c, domain.c; host tests: a model) ---- */

/* Whether work that a guest chose the length of shall be interrupted now. */
bool may_preempt(void);
/* No CPU on which the domain may have run has a TLB entry from before the clock value. */
void tlb_flush_since(struct domain *d, uint32_t clock);
uint32_t tlb_clock(void);
/* The domain may map this frame of I/O memory (not RAM). */
bool domain_may_map_io(const struct domain *d, mfn_t m);
/* Fill the hypervisor's slots of a new top-level table. */
void pt_fill_hypervisor_slots(uint64_t *l4);
void frame_release(struct frame *f); /* the last reference went */

#endif
