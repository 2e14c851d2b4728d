/* SPDX-License-Identifier: MIT */
/*
 * Types of frames: why a guest that writes its own page tables cannot leave its own memory.
 *
 * The invariants of which everything here is a part (tests cite the numbers):
 *
 *  1. A frame has one owner and, while its type count is not zero, one type. A frame with writable references is never a table or
 *     a page of descriptors, and the reverse.
 *  2. Every present entry of a VALID table was checked and holds what it maps: L4 -> L3 -> L2 -> L1 one typed reference each, L1 one
 *     reference to its frame and, when it is writable, one typed TYPE_WRITABLE. The hypervisor's slots of an L4 are the hypervisor's.
 *  3. The processor walks VALID tables only: CR3 and every entry above hold typed references.
 *  4. (The accessors: mm/access.h.)
 *  5. A frame changes its type or its owner only when no TLB holds an entry of its former use: f->clock is the TLB clock at which the
 *     last typed reference went, and whoever changes the type flushes the CPUs that have not flushed since.
 *  6. Checking a table takes as long as its guest likes, so it stops when shall_stop() says so and goes on later.
 *
 * The states of a frame's type word (mm/frame.h), and who changes them:
 *
 *   count 0, not PARTIAL      free for any type; the type that is left says only what a flush would be for
 *   count n, WRITABLE         frame_get_type, frame_put_type: lock-free, any CPU, any domain
 *   BUSY, count 1             becoming a type: change_type() .. settle(); or ceasing to be WRITABLE: the clock is noted while nobody can take it
 *   count n, table, VALID     entries hold their references; changed by pt_update()
 *   count 0, table, PARTIAL   entries [0, progress) hold theirs, the others do not; it keeps a reference to itself. With PENDING, the table of entry
 *                             [progress] is PARTIAL and holds nothing from here. climb() makes it VALID, descend() empties it.
 *   the same, BUSY            climb() is at it: nobody may want it as anything now, not even a table that it leads to
 *
 * A table that is wanted as something else while it is PARTIAL is emptied first, and that can take the last reference of a table that has nothing to do
 * with it: the one whose entry is being replaced. update() looks again.
 *
 * Tables and descriptor pages are typed by their owner only, under its page lock, so climb() and descend() are alone. Another domain's
 * foreign mapping can make a frame WRITABLE at the same moment: the compare-and-exchange on the word decides who was first.
 */
#include "vmm/mm/page_type.h"

#include "vmm/cpu/mitigation.h"
#include "vmm/cpu/policy.h"
#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/mm/shadow.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/xpti.h"

/* Entries that are looked at between two questions whether to stop. */
#define PREEMPT_EVERY 64u

#define LEVEL_FLAGS_FORBIDDEN (PTE_PWT | PTE_PCD | PTE_PSE)
#define L1_CACHE_FLAGS	      (PTE_PWT | PTE_PCD | PTE_PAT)

static bool is_table(enum page_type t)
{
	return t >= TYPE_L1 && t <= TYPE_L4;
}

static unsigned level_of(enum page_type t)
{
	return (unsigned)t - TYPE_L1 + 1;
}

static enum page_type table_type(unsigned level)
{
	return (enum page_type)(TYPE_L1 + level - 1);
}

/* Whether to stop for now: something waits for this CPU, or another vCPU, which keeps its CPU meanwhile, for the page lock. */
static bool shall_stop(const struct frame *f)
{
	return may_preempt() || spin_is_contended(&f->owner->page_lock);
}

static unsigned progress_of(uint64_t word)
{
	return (unsigned)((word & TYPE_PROGRESS_MASK) >> TYPE_PROGRESS_SHIFT);
}

/* ---- what an entry holds ---- */

static bool is_io(mfn_t m)
{
	return !mfn_valid(m) || (READ_ONCE(mfn_frame(m)->ref) & REF_IO);
}

/*
 * On some processors an entry that is not present lets its user read, in speculation, what the first cache holds of the address in it (L1TF). dom0 sees
 * all of memory anyway.
 */
static bool leaks(uint64_t pte, const struct domain *table_owner)
{
	uint64_t address = pte & PTE_ADDR & ((1ull << cpu_features.phys_bits) - 1);

	return mitigations.l1tf && !table_owner->privileged && address &&
	       mfn_valid(pte_mfn(address));
}

/* Nearly always it has that type already. */
static inline int get_writable(struct frame *f)
{
	uint64_t word = READ_ONCE(f->type);

	if (likely((word & (TYPE_MASK | TYPE_BUSY)) == (uint64_t)TYPE_WRITABLE << TYPE_SHIFT &&
		   (uint32_t)word - 1 < TYPE_COUNT_MASK - 1) &&
	    likely(__atomic_compare_exchange_n(&f->type, &word, word + 1, false, __ATOMIC_SEQ_CST,
					       __ATOMIC_RELAXED)))
		return 0;
	return frame_get_type(f, TYPE_WRITABLE);
}

/* Where it stands among its owner's frames tells whether others may write to it; not while destroy.c goes through them. */
static void move_foreign(struct frame *f, struct domain *owner, bool foreign)
{
	if (foreign)
		__atomic_fetch_or(&f->ref, REF_FOREIGN, __ATOMIC_SEQ_CST);
	else
		__atomic_fetch_and(&f->ref, ~REF_FOREIGN, __ATOMIC_SEQ_CST);
	if (owner->dying)
		return;
	frame_take(&owner->list, f);
	if (foreign)
		frame_prepend(&owner->list, f);
	else
		frame_append(&owner->list, f);
}

/* One entry more of another domain's tables lets that write to the frame, which is held as writable. False: they are too many. */
static bool add_writer(struct frame *f, struct domain *owner)
{
	uint64_t before;

	if (READ_ONCE(f->ref) & REF_HYPERVISOR)
		return true;
	spin_lock(&owner->frames_lock);
	before = READ_ONCE(f->type) & TYPE_WRITERS_MASK;
	if (before != TYPE_WRITERS_MASK)
		__atomic_fetch_add(&f->type, TYPE_WRITERS_ONE, __ATOMIC_SEQ_CST);
	if (!before)
		move_foreign(f, owner, true);
	spin_unlock(&owner->frames_lock);
	if (!(READ_ONCE(f->type) & TYPE_FOREIGN))
		__atomic_fetch_or(&f->type, TYPE_FOREIGN, __ATOMIC_SEQ_CST);
	shadow_mark(owner, frame_mfn(f));
	return before != TYPE_WRITERS_MASK;
}

static __attribute__((noinline)) void drop_writer(struct frame *f)
{
	struct domain *owner = f->owner;
	uint64_t before;

	spin_lock(&owner->frames_lock);
	before = __atomic_fetch_sub(&f->type, TYPE_WRITERS_ONE, __ATOMIC_SEQ_CST);
	if ((before & TYPE_WRITERS_MASK) == TYPE_WRITERS_ONE)
		move_foreign(f, owner, false);
	spin_unlock(&owner->frames_lock);
}

/* An L1 entry takes its references. The rights of the entry decide under which type. */
static inline __attribute__((always_inline)) int
hold_l1e(uint64_t pte, const struct domain *table_owner, struct domain *subject)
{
	mfn_t m = pte_mfn(pte);
	struct frame *f;

	if (!(pte & PTE_P))
		return leaks(pte, table_owner) ? -EINVAL : 0;
	if (is_io(m))
		return domain_may_map_io(table_owner, m) ? 0 : -EPERM;
	/* What is written past the caches is not what is checked here and walked later. */
	if ((pte & L1_CACHE_FLAGS) && !table_owner->privileged)
		return -EINVAL;
	f = mfn_frame(m);
	if (!frame_get(f, subject))
		return -EPERM;
	if (pte & PTE_RW) {
		int rc = get_writable(f);

		if (rc) {
			frame_put(f);
			return rc;
		}
		if (unlikely(subject != table_owner) && !add_writer(f, subject)) {
			frame_put_both(f);
			return -EINVAL;
		}
	}
	return 0;
}

static inline void drop_l1e(uint64_t pte, const struct frame *table)
{
	mfn_t m = pte_mfn(pte);
	uint32_t kind;

	if (!(pte & PTE_P) || !mfn_valid(m))
		return;
	kind = READ_ONCE(mfn_frame(m)->ref) & (REF_IO | REF_FOREIGN);
	if (unlikely(kind)) {
		if (kind & REF_IO)
			return;
		if ((pte & PTE_RW) && mfn_frame(m)->owner != table->owner)
			drop_writer(mfn_frame(m));
	}
	if (pte & PTE_RW)
		frame_put_type(mfn_frame(m));
	frame_put(mfn_frame(m));
}

/* An entry of a higher table takes its references to the table below. */
static int hold_table(uint64_t pte, unsigned level, const struct domain *owner)
{
	mfn_t m = pte_mfn(pte);

	if (!(pte & PTE_P))
		return leaks(pte, owner) ? -EINVAL : 0;
	if ((pte & LEVEL_FLAGS_FORBIDDEN) || is_io(m))
		return -EINVAL;
	return frame_get_both(mfn_frame(m), owner, table_type(level - 1));
}

static int hold(uint64_t pte, unsigned level, struct domain *owner)
{
	return level == 1 ? hold_l1e(pte, owner, owner) : hold_table(pte, level, owner);
}

/* How an entry stands in a table: guests run in ring 3, and their pages are never global. */
static uint64_t adjusted(uint64_t pte, unsigned level)
{
	if (!(pte & PTE_P))
		return pte;
	pte |= PTE_US;
	return level == 1 ? pte & ~PTE_G : pte;
}

static bool is_hypervisor_slot(unsigned level, unsigned index)
{
	return level == 4 && index >= HV_FIRST_SLOT && index <= HV_LAST_SLOT;
}

/* Most tables are mostly empty, and are looked through this many entries at a time. */
#define BLOCK 8u

static bool block_is_empty(const uint64_t *block)
{
	uint64_t any = 0;

	for (unsigned i = 0; i < BLOCK; i++)
		any |= READ_ONCE(block[i]);
	return !(any & (mitigations.l1tf ? PTE_P | PTE_ADDR : PTE_P));
}

/* ---- tables become valid and empty ---- */

static int descend(struct frame *f);

/* Record how far a table is; a PARTIAL one holds a reference to itself. */
static void set_partial(struct frame *f, enum page_type type, unsigned progress, bool pending)
{
	uint64_t word = READ_ONCE(f->type);

	if (!(word & TYPE_PARTIAL))
		frame_get_again(f);
	WRITE_ONCE(f->type, (uint64_t)type << TYPE_SHIFT | TYPE_PARTIAL |
				    progress * TYPE_PROGRESS_ONE | (pending ? TYPE_PENDING : 0));
}

static void clear_partial(struct frame *f, uint64_t word)
{
	bool was = READ_ONCE(f->type) & TYPE_PARTIAL;

	__atomic_store_n(&f->type, word, __ATOMIC_SEQ_CST);
	if (was)
		frame_put(f); /* perhaps the last: f is not touched again by who has none */
}

/*
 * Hold what the entries from progress on map. 0: all; -ERESTART: PARTIAL, go on later; else the entry at fault is not held and the table is
 * PARTIAL, to be emptied.
 */
static int climb(struct frame *f, enum page_type type, unsigned progress)
{
	unsigned level = level_of(type);
	uint64_t *table = mfn_to_ptr(frame_mfn(f));

	for (unsigned i = progress; i < PT_ENTRIES; i++) {
		uint64_t pte;
		int rc;

		if (i % PREEMPT_EVERY == 0 && i != progress && shall_stop(f)) {
			set_partial(f, type, i, false);
			return -ERESTART;
		}
		if (i % BLOCK == 0 && block_is_empty(table + i)) {
			i += BLOCK - 1;
			continue;
		}
		pte = READ_ONCE(table[i]);
		if (!pte || is_hypervisor_slot(level, i))
			continue;
		rc = hold(pte, level, f->owner);
		if (rc) {
			set_partial(f, type, i, rc == -ERESTART);
			if (rc != -ERESTART)
				log_debug("d%u: entry %u of the L%u table %lx: %lx: error %d",
					  f->owner->id, i, level, frame_mfn(f).v, pte, rc);
			return rc;
		}
		if (adjusted(pte, level) != pte)
			WRITE_ONCE(table[i], adjusted(pte, level));
	}
	if (level == 4)
		pt_fill_hypervisor_slots(table);
	return 0;
}

/* Apart from drop_table(), which has less to save without it. */
static __attribute__((noinline)) int drop_last(struct frame *f, uint64_t word)
{
	struct domain *d = f->owner;

	BUG_ON((word & TYPE_COUNT_MASK) != 1 || !(word & TYPE_VALID));
	if (unlikely(d->shadow != NULL))
		shadow_table_ends(f);
	f->clock = tlb_clock_now();
	set_partial(f, type_of(word), PT_ENTRIES, false);
	/* Who copies the guest's memory wants to know that it is no table, which it is not from here on. */
	shadow_mark(d, frame_mfn(f));
	return descend(f);
}

/* Drop a table's typed reference and empty it when that was the last. 0 or -ERESTART: it is PARTIAL. */
static int drop_table(struct frame *f)
{
	uint64_t word = READ_ONCE(f->type);

	if ((word & TYPE_COUNT_MASK) <= 1)
		return drop_last(f, word);
	while (!__atomic_compare_exchange_n(&f->type, &word, word - 1, false, __ATOMIC_SEQ_CST,
					    __ATOMIC_RELAXED))
		;
	return 0;
}

/* A PARTIAL table gives up what it holds. 0: it holds nothing and is free for any type; -ERESTART. */
static int descend(struct frame *f)
{
	uint64_t word = READ_ONCE(f->type);
	enum page_type type = type_of(word);
	unsigned level = level_of(type), i = progress_of(word);
	uint64_t *table = mfn_to_ptr(frame_mfn(f));
	int rc;

	if (word & TYPE_PENDING) {
		struct frame *below = mfn_frame(pte_mfn(table[i]));

		/* Somebody else may have taken it up again, or emptied it, or be at it further up the stack. */
		if ((READ_ONCE(below->type) & (TYPE_PARTIAL | TYPE_BUSY)) == TYPE_PARTIAL &&
		    below->owner == f->owner && type_of(below->type) == table_type(level - 1)) {
			rc = descend(below);
			if (rc)
				return rc;
		}
	}
	while (i > 0) {
		uint64_t pte = 0;

		if (i % BLOCK == 0 && block_is_empty(table + i - BLOCK)) {
			i -= BLOCK;
		} else {
			i--;
			pte = READ_ONCE(table[i]);
		}
		if (!(pte & PTE_P) || is_hypervisor_slot(level, i)) {
			/* nothing is held */
		} else if (level == 1) {
			drop_l1e(pte, f);
		} else {
			rc = drop_table(mfn_frame(pte_mfn(pte)));
			/* While it is PARTIAL it keeps itself. */
			frame_put(mfn_frame(pte_mfn(pte)));
			if (rc) {
				set_partial(f, type, i, true);
				return rc;
			}
		}
		/* Empty entries count too: a tree of tables with few entries each is large all the same. */
		if (i % PREEMPT_EVERY == 0 && i > 0 && shall_stop(f)) {
			set_partial(f, type, i, false);
			return -ERESTART;
		}
	}
	f->clock = tlb_clock_now();
	clear_partial(f, (uint64_t)type << TYPE_SHIFT);
	return 0;
}

static int check_descriptors(struct frame *f)
{
	uint64_t *descriptor = mfn_to_ptr(frame_mfn(f));
	int rc = 0;

	for (unsigned i = 0; !rc && i < PAGE_SIZE / sizeof(*descriptor); i++)
		rc = descriptor_check(&descriptor[i]);
	shadow_mark(f->owner, frame_mfn(f));
	return rc;
}

int descriptor_check(uint64_t *descriptor)
{
	const uint64_t present = 1ull << 47, system = 1ull << 44, accessed = 1ull << 40;
	const uint64_t dpl3 = 3ull << 45, code = 1ull << 43, conforming = 1ull << 42;
	uint64_t d = *descriptor;

	if (!(d & present))
		return 0;
	/* No gates, no TSS, no LDT; nothing that would run or be read with more privilege. */
	if (!(d & system))
		return -EINVAL;
	if ((d & dpl3) != dpl3) {
		if ((d & code) && (d & conforming))
			return -EINVAL;
		d |= dpl3;
	}
	/* The processor would write the accessed bit: no need to. */
	*descriptor = d | accessed;
	return 0;
}

/* ---- typed references ---- */

/* The frame is free for the type; make it that, alone. False: somebody was faster. */
static bool change_type(struct frame *f, uint64_t word, enum page_type type)
{
	uint64_t fresh = (uint64_t)type << TYPE_SHIFT | TYPE_BUSY | 1;
	bool same = type_of(word) == type;

	if (same)
		fresh |= word & TYPE_FOREIGN;
	if (!__atomic_compare_exchange_n(&f->type, &word, fresh, false, __ATOMIC_SEQ_CST,
					 __ATOMIC_RELAXED))
		return false;
	if (same)
		return true;
	/* Another domain that mapped it ran where its owner may never have been. */
	if (word & TYPE_FOREIGN)
		tlb_flush_all_since(f->clock);
	else
		tlb_flush_since(f->owner, f->clock);
	return true;
}

/* Others that wanted the same type and came meanwhile wait in frame_get_type, so the count is still 1. */
static void settle(struct frame *f)
{
	__atomic_fetch_and(&f->type, ~TYPE_BUSY, __ATOMIC_SEQ_CST);
}

/* Whether the domain's frame was given up in part. It may have been finished since, and be another's. */
static bool is_unfinished(const struct frame *f, const struct domain *d)
{
	return READ_ONCE(f->owner) == d && (READ_ONCE(f->type) & TYPE_PARTIAL);
}

/*
 * The table could not be given up at once. What one operation leaves is a new entry's tables of up to four levels that turned out wrong, the one that it
 * replaces, and the one that it was made in.
 */
static void leave_unfinished(struct frame *f)
{
	struct domain *d = f->owner;
	struct frame **free = NULL;

	for (unsigned i = 0; i < ARRAY_SIZE(d->unfinished); i++) {
		if (d->unfinished[i] == f)
			return;
		if (!d->unfinished[i] || !is_unfinished(d->unfinished[i], d))
			free = &d->unfinished[i];
	}
	BUG_ON(!free);
	*free = f;
	d->page_work |= PAGES_UNFINISHED;
}

/* Go on with a table that is PARTIAL, or begin with one that is BUSY. */
static int make_valid(struct frame *f, enum page_type type, unsigned progress)
{
	int rc;

	/* From here to the end of climb() it is BUSY: tables that it leads to may want it as something else. */
	WRITE_ONCE(f->type, READ_ONCE(f->type) | TYPE_BUSY);
	rc = climb(f, type, progress);
	/* It may have adjusted entries, and those who copy the guest's memory want to know that it is a table. */
	shadow_mark(f->owner, frame_mfn(f));
	if (!rc) {
		clear_partial(f, (uint64_t)type << TYPE_SHIFT | TYPE_VALID | 1);
		return 0;
	}
	if (rc != -ERESTART) {
		/* What it held so far is given up; if that takes long, it is unfinished business. */
		if (descend(f) == -ERESTART)
			leave_unfinished(f);
		rc = -EINVAL;
	}
	return rc;
}

static int get_partial(struct frame *f, uint64_t word, enum page_type type)
{
	if (word & TYPE_BUSY)
		return -EINVAL; /* by a table that it leads to itself */
	if (type_of(word) == type)
		return make_valid(f, type, progress_of(word));
	if (!is_table(type) && type != TYPE_DESC)
		return -EINVAL; /* without the page lock: the guest may try again when it has finished */
	return descend(f) ? -ERESTART : -EAGAIN;
}

int frame_get_type(struct frame *f, enum page_type type)
{
	uint64_t word = READ_ONCE(f->type);

	for (;;) {
		if (word & TYPE_COUNT_MASK) {
			if (type_of(word) != type)
				return -EINVAL;
			if (word & TYPE_BUSY) {
				__builtin_ia32_pause();
				word = READ_ONCE(f->type);
				continue;
			}
			if ((word & TYPE_COUNT_MASK) == TYPE_COUNT_MASK)
				return -EINVAL;
			if (__atomic_compare_exchange_n(&f->type, &word, word + 1, false,
							__ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
				return 0;
			continue;
		}
		if (word & TYPE_PARTIAL) {
			int rc = get_partial(f, word, type);

			if (rc != -EAGAIN)
				return rc;
			word = READ_ONCE(f->type);
			continue;
		}
		if (change_type(f, word, type))
			break;
		word = READ_ONCE(f->type);
	}
	if (is_table(type))
		return make_valid(f, type, 0);
	if (type == TYPE_DESC && check_descriptors(f)) {
		__atomic_store_n(&f->type, (uint64_t)TYPE_DESC << TYPE_SHIFT, __ATOMIC_SEQ_CST);
		return -EINVAL;
	}
	settle(f);
	return 0;
}

void frame_put_type(struct frame *f)
{
	uint64_t word = READ_ONCE(f->type);
	bool last;

	if (is_table(type_of(word))) {
		if (drop_table(f) == -ERESTART)
			leave_unfinished(f);
		return;
	}
	do {
		BUG_ON(!(word & TYPE_COUNT_MASK));
		last = (word & TYPE_COUNT_MASK) == 1;
	} while (!__atomic_compare_exchange_n(&f->type, &word, last ? word | TYPE_BUSY : word - 1,
					      false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	/* Nobody takes and drops it between the look at the clock and the end: that use would be later than what is noted. */
	if (last) {
		f->clock = tlb_clock_now();
		__atomic_store_n(&f->type, word - 1, __ATOMIC_RELEASE);
	}
}

int frame_get_both(struct frame *f, const struct domain *owner, enum page_type type)
{
	int rc;

	if (!frame_get(f, owner))
		return -EPERM;
	rc = frame_get_type(f, type);
	if (rc)
		frame_put(f);
	return rc;
}

void frame_put_both(struct frame *f)
{
	frame_put_type(f);
	frame_put(f);
}

static __attribute__((noinline)) int finish(struct domain *d)
{
	for (unsigned i = 0; i < ARRAY_SIZE(d->unfinished); i++) {
		struct frame *f = d->unfinished[i];
		int rc = f && is_unfinished(f, d) ? descend(f) : 0;

		if (rc)
			return rc;
		d->unfinished[i] = NULL;
	}
	d->page_work &= (uint8_t)~PAGES_UNFINISHED;
	return 0;
}

int page_lock_again(struct domain *d)
{
	return likely(!(d->page_work & PAGES_UNFINISHED)) ? 0 : finish(d);
}

int page_lock(struct domain *d)
{
	int rc;

	spin_lock(&d->page_lock);
	if (likely(!(d->page_work & PAGES_UNFINISHED)))
		return 0;
	rc = finish(d);
	if (rc)
		spin_unlock(&d->page_lock);
	return rc;
}

void page_unlock(struct domain *d)
{
	spin_unlock(&d->page_lock);
}

/* ---- entries of tables in use ---- */

/* How an entry is replaced whose A and D bits the processor may set at the same moment. */
enum exchange { TAKE_ANY, KEEP_AD, EXACTLY };

/* Replace the entry; *old is what it is believed to be, and gets what it was. False: EXACTLY, and it was something else. */
static inline __attribute__((always_inline)) bool exchange(struct frame *f, unsigned level,
							   unsigned index, uint64_t *entry,
							   uint64_t *old, uint64_t value,
							   enum exchange how, bool logged)
{
	const uint64_t ad = PTE_A | PTE_D;
	bool done = true;

	if (logged)
		shadow_entry_begin(f);
	if (likely(how == TAKE_ANY))
		*old = __atomic_exchange_n(entry, value, __ATOMIC_SEQ_CST);
	else
		do {
			done = __atomic_compare_exchange_n(
				entry, old, how == KEEP_AD ? value | (*old & ad) : value, false,
				__ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
		} while (!done && how == KEEP_AD);
	if (logged)
		shadow_entry_end(f, level, index);
	if (done && level == 4)
		xpti_entry_changed(frame_mfn(f), index);
	return done;
}

static bool is_valid_table(const struct frame *f, unsigned level)
{
	uint64_t word = READ_ONCE(f->type);

	return (word & TYPE_COUNT_MASK) && (word & TYPE_VALID) &&
	       type_of(word) == table_type(level);
}

/* entry: where it is; old: what it is believed to be. */
static inline __attribute__((always_inline)) int
update(struct frame *f, unsigned level, unsigned index, uint64_t *entry, uint64_t old,
       uint64_t value, enum exchange how, struct domain *subject, bool logged)
{
	uint64_t held = PTE_ADDR | PTE_P | (level == 1 ? PTE_RW | L1_CACHE_FLAGS : 0);
	int rc;

	if (is_hypervisor_slot(level, index))
		return -EINVAL;
	if (level > 1 && (value & PTE_P) && (value & LEVEL_FLAGS_FORBIDDEN))
		return -EINVAL;
	if (how == KEEP_AD && !(old & PTE_P))
		how = TAKE_ANY;
	/* What is held does not change: other rights only. */
	if (!((old ^ value) & held) && (old & PTE_P))
		return exchange(f, level, index, entry, &old, adjusted(value, level), how, logged)
			       ? 0
			       : -EAGAIN;
	rc = level == 1 ? hold_l1e(value, f->owner, subject) : hold_table(value, level, f->owner);
	if (rc)
		return rc;
	if (level > 1 && !is_valid_table(f, level)) {
		/* A PARTIAL table was its only user, and was emptied to become the new entry's. */
		if (value & PTE_P)
			frame_put_both(mfn_frame(pte_mfn(value)));
		return -EINVAL;
	}
	/* Of the two, the one that does not stand in the table gives up what it held. */
	if (!exchange(f, level, index, entry, &old, adjusted(value, level), how, logged)) {
		rc = -EAGAIN;
		old = value;
	}
	if (level == 1)
		drop_l1e(old, f);
	else if (old & PTE_P)
		frame_put_both(mfn_frame(pte_mfn(old)));
	return rc;
}

static inline uint64_t *entry_of(const struct frame *f, unsigned index)
{
	return (uint64_t *)mfn_to_ptr(frame_mfn(f)) + index;
}

int pt_update(struct frame *f, unsigned level, unsigned index, uint64_t value, bool preserve_ad,
	      struct domain *subject)
{
	uint64_t *entry = entry_of(f, index), old = READ_ONCE(*entry);
	enum exchange how = preserve_ad ? KEEP_AD : TAKE_ANY;

	/* Nearly all are of this level, and get code of their own. */
	if (likely(level == 1))
		return update(f, 1, index, entry, old, value, how, subject, false);
	return update(f, level, index, entry, old, value, how, subject, false);
}

int pt_update_logged(struct frame *f, unsigned level, unsigned index, uint64_t value,
		     bool preserve_ad, struct domain *subject)
{
	uint64_t *entry = entry_of(f, index);

	return update(f, level, index, entry, READ_ONCE(*entry), value,
		      preserve_ad ? KEEP_AD : TAKE_ANY, subject, true);
}

int pt_compare_exchange(struct frame *f, unsigned level, unsigned index, uint64_t old,
			uint64_t value)
{
	return update(f, level, index, entry_of(f, index), old, value, EXACTLY, f->owner,
		      f->owner->page_work & PAGES_LOGGED);
}

int frame_pin(struct frame *f, enum page_type type)
{
	uint64_t word;
	int rc = frame_get_both(f, f->owner, type);

	if (rc)
		return rc;
	word = __atomic_fetch_or(&f->type, TYPE_PINNED, __ATOMIC_SEQ_CST);
	if (word & TYPE_PINNED) {
		frame_put_both(f);
		return -EINVAL;
	}
	return 0;
}

int frame_unpin(struct frame *f)
{
	uint64_t word = __atomic_fetch_and(&f->type, ~TYPE_PINNED, __ATOMIC_SEQ_CST);

	if (!(word & TYPE_PINNED))
		return -EINVAL;
	frame_put_both(f);
	return 0;
}

int frame_relinquish(struct frame *f)
{
	int rc = page_lock_again(f->owner);

	if (rc)
		return rc;
	if (READ_ONCE(f->type) & TYPE_PINNED)
		frame_unpin(f);
	if (READ_ONCE(f->type) & TYPE_PARTIAL)
		return descend(f);
	return 0;
}
