// SPDX-License-Identifier: MIT
/*
 * Log-dirty shadow paging (invariant 7).
 *
 * Guests run on their own tables (page_type.c). While somebody wants to know what a domain writes, the processor walks copies of them instead, the shadows,
 * in which a frame that has not been written to is read-only. The first write faults, sets the frame's bit in the log, and makes that entry writable.
 *
 *  7a. A shadow of a table has in each place nothing, or the guest's entry with fewer rights; in place of the next table's frame its shadow's. Guests
 *      change tables through the hypervisor only, so a shadow is never behind: shadow_entry_end() replaces the one entry before anything that the old one
 *      held is given up. So flushes (invariant 5) are what they are without shadows.
 *  7b. An entry in a shadow is writable when the guest's is and has bit D, and the frame's bit in the log is set. It is there when the guest's has bit A. So
 *      the guest's A and D bits are set by the fault, as the processor would; in shadows both are set from the start.
 *  7c. CLEAN begins another log, then takes the right to write from every entry that got it since the last time, then flushes, then reads the old log. A
 *      write in between is in one of the two. Shadow L1 tables with writable entries are in a queue, and know where these are, so this
 *      costs what was written to. Nobody is stopped for it.
 *
 * What others write for the guest is marked by who does (shadow_mark). What they may write to at any time (grants mapped writable, foreign mappings, vcpu_info,
 * the pages of event channels) is marked at the beginning of each log.
 *
 * Pages for shadows are set aside when it is switched on. When there are none left, all shadows are dropped but the vCPUs' roots, which are emptied; they
 * come back by faults. A page goes back to the end of the queue of free ones, and is used again when every processor has flushed since.
 *
 * The lock is the domain's shadow_lock, a leaf: nothing waits under it, since a fault that comes with interrupts off takes it, too. Everything that leads from
 * one table to another changes under it, and a table that a vCPU's tables lead to is held, so a fault may walk them without the page lock.
 */
#include "vmm/mm/shadow.h"

#include "vmm/cpu/regs.h"
#include "vmm/hypercall/event_channel.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/xpti.h"

#define PAGES_PER_VCPU	  34u /* two roots, and what one instruction can need */
#define PAGES_BASE	  64u
#define FRAMES_PER_PAGE	  128u /* of the guest, for a page of shadows */
#define PROTECT_AT_ONCE	  8u   /* tables */
#define LOOK_AT_ONCE	  64u  /* pages of the log: 2 million of the guest's */
#define ENTRIES_PER_CHUNK 16u
#define IS_OLD		  (1ull << 32)

/*
 * A page of a shadow: frame.clock has its table's number, frame.type, in one of an L1 table, a bit for each 16 entries some of which may be writable, and IS_OLD. A table
 * with a shadow has TYPE_SHADOWED, and the shadow's number in frame.clock. A free page: frame.clock is when it became that.
 */
struct shadow {
	bool log;
	uint8_t now;   /* the log that is written */
	uint64_t pfns; /* that it has bits for */
	uint64_t log_pages, **bits[2];
	bool reading;		 /* the other log */
	uint64_t pages, nr_free; /* for shadows */
	struct frame_list free;
	struct frame_list clean, written; /* in use; written: L1 tables with writable entries */
	struct frame_list old;		  /* written since the log before: to be protected */
	uint32_t faults, dirty[2];
};

/* ---- pages ---- */

static struct frame *first(const struct frame_list *q)
{
	return q->first == FRAME_NONE ? NULL : &frame_table[q->first];
}

static void page_free(struct shadow *s, struct frame *page)
{
	page->clock = tlb_clock_now();
	page->type = 0;
	frame_append(&s->free, page);
	s->nr_free++;
}

/* NULL: there is none, or the next one may still be in a TLB. */
static struct frame *page_alloc(struct domain *d)
{
	struct shadow *s = d->shadow;
	struct frame *page = first(&s->free);

	if (!page || !tlb_flushed_since(d, page->clock))
		return NULL;
	frame_take(&s->free, page);
	s->nr_free--;
	return page;
}

static uint64_t *entries(const struct frame *f)
{
	return mfn_to_ptr(frame_mfn(f));
}

/* ---- the log ---- */

static uint64_t *log_word(const struct shadow *s, uint64_t pfn)
{
	return &s->bits[s->now][pfn / LOG_PFNS][pfn % LOG_PFNS / 64];
}

static void log_set(struct shadow *s, mfn_t m)
{
	uint64_t pfn = m2p_get(m), one = 1ull << pfn % 64, *word;

	if (pfn >= s->pfns)
		return;
	word = log_word(s, pfn);
	s->dirty[s->now] += !(*word & one);
	*word |= one;
}

/* What has no bit counts as written. */
static bool is_logged(const struct shadow *s, mfn_t m)
{
	uint64_t pfn = m2p_get(m);

	return pfn >= s->pfns || (*log_word(s, pfn) >> pfn % 64 & 1);
}

/* Whose writes are asked for: another's frame that it has mapped is not. */
static bool is_watched(const struct domain *d, mfn_t m)
{
	return d->shadow->log && mfn_valid(m) && READ_ONCE(mfn_frame(m)->owner) == d;
}

void shadow_mark_frame(struct domain *d, mfn_t m)
{
	spin_lock(&d->shadow_lock);
	if (d->shadow)
		log_set(d->shadow, m);
	spin_unlock(&d->shadow_lock);
}

/* What other domains' tables let those write to: the first of its frames. */
static void mark_foreign(struct domain *d)
{
	spin_lock(&d->frames_lock);
	for (uint32_t n = d->list.first;
	     n != FRAME_NONE && (READ_ONCE(frame_table[n].ref) & REF_FOREIGN);
	     n = frame_table[n].next)
		shadow_mark_frame(d, MFN(n));
	spin_unlock(&d->frames_lock);
}

/* What others may write to without anybody's seeing it. */
static void mark_outside(struct domain *d)
{
	struct frame *f;

	for (unsigned i = 0; i < d->nr_vcpus; i++)
		if (d->vcpu[i] && !mfn_eq(d->vcpu[i]->info_frame, MFN_NONE))
			shadow_mark_frame(d, d->vcpu[i]->info_frame);
	for (unsigned i = 0; events_frame(d, i, &f); i++)
		if (f)
			shadow_mark_frame(d, frame_mfn(f));
	mark_foreign(d);
}

/* ---- shadows ---- */

static struct frame *shadow_of(const struct frame *f)
{
	return READ_ONCE(f->type) & TYPE_SHADOWED ? &frame_table[f->clock] : NULL;
}

static struct frame *table_of(const struct frame *page)
{
	return &frame_table[page->clock];
}

static unsigned level_of_table(const struct frame *f)
{
	return type_of(READ_ONCE(f->type)) - TYPE_L1 + 1;
}

static void put_l1(struct domain *d, struct frame *page, unsigned index, uint64_t e)
{
	struct shadow *s = d->shadow;
	mfn_t m = pte_mfn(e);

	if ((e & (PTE_P | PTE_A)) != (PTE_P | PTE_A))
		e = 0;
	if ((e & PTE_RW) && (!(e & PTE_D) || (is_watched(d, m) && !is_logged(s, m))))
		e &= ~PTE_RW;
	WRITE_ONCE(entries(page)[index], e | (e ? PTE_D : 0));
	if (!(e & PTE_RW) || !is_watched(d, m))
		return;
	if (!page->type) {
		frame_take(&s->clean, page);
		frame_append(&s->written, page);
	}
	page->type |= 1ull << index / ENTRIES_PER_CHUNK;
}

/* An entry of a higher table leads to the next table's shadow when it has one. */
static void put_link(struct frame *page, unsigned level, unsigned index, uint64_t e)
{
	const struct frame *below = NULL;

	if ((e & (PTE_P | PTE_A)) == (PTE_P | PTE_A))
		below = shadow_of(mfn_frame(pte_mfn(e)));
	WRITE_ONCE(entries(page)[index],
		   below ? pte_make(frame_mfn(below), (e & ~PTE_ADDR) | PTE_D) : 0);
	if (level == 4)
		xpti_entry_changed(frame_mfn(page), index);
}

static void put(struct frame *f, struct frame *page, unsigned level, unsigned index)
{
	uint64_t e = READ_ONCE(entries(f)[index]);

	if (level == 1)
		put_l1(f->owner, page, index, e);
	else
		put_link(page, level, index, e);
}

static bool is_hypervisors(unsigned level, unsigned index)
{
	return level == 4 && index >= HV_FIRST_SLOT && index <= HV_LAST_SLOT;
}

/* A table in use gets a shadow; NULL: no page. */
static struct frame *make(struct frame *f)
{
	struct shadow *s = f->owner->shadow;
	unsigned level = level_of_table(f);
	struct frame *page = page_alloc(f->owner);

	if (!page)
		return NULL;
	memset(entries(page), 0, PAGE_SIZE);
	page->clock = (uint32_t)frame_mfn(f).v;
	page->type = 0;
	frame_append(&s->clean, page);
	f->clock = (uint32_t)frame_mfn(page).v;
	__atomic_fetch_or(&f->type, TYPE_SHADOWED, __ATOMIC_SEQ_CST);
	if (level == 4)
		pt_fill_hypervisor_slots(entries(page));
	for (unsigned i = 0; i < PT_ENTRIES; i++)
		if (!is_hypervisors(level, i) && (READ_ONCE(entries(f)[i]) & PTE_P))
			put(f, page, level, i);
	return page;
}

/* Nothing leads to the shadow any more, but what TLBs know. */
static void unmake(struct shadow *s, struct frame *page)
{
	struct frame *f = table_of(page);

	frame_take(!page->type ? &s->clean : page->type & IS_OLD ? &s->old : &s->written, page);
	__atomic_fetch_and(&f->type, ~TYPE_SHADOWED, __ATOMIC_SEQ_CST);
	f->clock = tlb_clock_now();
	page_free(s, page);
}

static bool is_root(const struct domain *d, const struct frame *page)
{
	mfn_t m = frame_mfn(page);

	for (unsigned i = 0; i < d->nr_vcpus; i++)
		if (d->vcpu[i] &&
		    (mfn_eq(d->vcpu[i]->root_kernel, m) || mfn_eq(d->vcpu[i]->root_user, m)))
			return true;
	return false;
}

/* Room again: no shadow is left but vCPUs' roots, and those lead nowhere. */
static void drop_all(struct domain *d, bool roots_too)
{
	struct shadow *s = d->shadow;

	for (struct frame *page; (page = first(&s->written)) || (page = first(&s->old));)
		unmake(s, page);
	for (struct frame *page = first(&s->clean), *next; page; page = next) {
		next = page->next == FRAME_NONE ? NULL : &frame_table[page->next];
		if (roots_too || level_of_table(table_of(page)) != 4 || !is_root(d, page)) {
			unmake(s, page);
			continue;
		}
		for (unsigned i = 0; i < PT_ENTRIES; i++)
			if (!is_hypervisors(4, i) && entries(page)[i])
				put_link(page, 4, i, 0);
	}
}

/* The processors' side of all vCPUs, which do not run. */
static void vcpus_follow(struct domain *d)
{
	for (unsigned i = 0; i < d->nr_vcpus; i++)
		if (d->vcpu[i]) {
			vcpu_tables_changed(d->vcpu[i]);
			vcpu_traps_changed(d->vcpu[i]);
		}
	tlb_flush_since(d, tlb_clock_now());
}

void shadow_entry_begin(struct frame *f)
{
	spin_lock(&f->owner->shadow_lock);
}

void shadow_entry_end(struct frame *f, unsigned level, unsigned index)
{
	struct domain *d = f->owner;
	struct frame *page = shadow_of(f);

	log_set(d->shadow, frame_mfn(f));
	if (page)
		put(f, page, level, index);
	spin_unlock(&d->shadow_lock);
}

void shadow_table_ends(struct frame *f)
{
	struct domain *d = f->owner;

	spin_lock(&d->shadow_lock);
	if (shadow_of(f))
		unmake(d->shadow, shadow_of(f));
	spin_unlock(&d->shadow_lock);
}

/* ---- faults ---- */

static void set_bits(struct domain *d, struct frame *table, unsigned index, uint64_t bits)
{
	uint64_t *e = &entries(table)[index];

	if ((READ_ONCE(*e) & bits) == bits)
		return;
	__atomic_fetch_or(e, bits, __ATOMIC_SEQ_CST);
	log_set(d->shadow, frame_mfn(table));
}

/* enum shadow_fault, or -ENOMEM: no page. The lock is held. */
static int resolve(struct vcpu *v, uint64_t va, uint32_t *code)
{
	bool write = *code & PF_WRITE, fetch = *code & PF_FETCH;
	mfn_t m = v->kernel_mode ? v->table_kernel : v->table_user;
	uint64_t any = 0, all = ~0ull;
	struct domain *d = v->domain;
	struct frame *table[5], *page;

	*code &= ~PF_PRESENT;
	for (unsigned level = 4; level >= 1; level--) {
		uint64_t e = READ_ONCE(entries(mfn_frame(m))[pt_index(va, level)]);

		if (!(e & PTE_P))
			return SHADOW_GUEST;
		table[level] = mfn_frame(m);
		any |= e;
		all &= e;
		m = pte_mfn(e);
	}
	*code |= PF_PRESENT;
	if ((write && !(all & PTE_RW)) || (fetch && (any & PTE_NX)))
		return SHADOW_GUEST;
	for (unsigned level = 4; level > 1; level--) {
		set_bits(d, table[level], pt_index(va, level), PTE_A);
		page = shadow_of(table[level]);
		BUG_ON(!page);
		if (!shadow_of(table[level - 1]) && !make(table[level - 1]))
			return -ENOMEM;
		put(table[level], page, level, pt_index(va, level));
	}
	set_bits(d, table[1], pt_index(va, 1), PTE_A | (write ? PTE_D : 0));
	if (write && is_watched(d, m))
		log_set(d->shadow, m);
	put(table[1], shadow_of(table[1]), 1, pt_index(va, 1));
	d->shadow->faults++;
	return SHADOW_DONE;
}

/* Without the lock: there will be a page. */
static void make_room(struct domain *d)
{
	spin_lock(&d->shadow_lock);
	if (!d->shadow->nr_free)
		drop_all(d, false);
	spin_unlock(&d->shadow_lock);
	tlb_flush_since(d, tlb_clock_now());
}

enum shadow_fault shadow_fault(struct vcpu *v, uint64_t va, uint32_t *code, bool may_wait)
{
	struct domain *d = v->domain;
	int rc;

	if (*code & PF_RSVD)
		return SHADOW_GUEST;
	for (;;) {
		spin_lock(&d->shadow_lock);
		rc = resolve(v, va, code);
		spin_unlock(&d->shadow_lock);
		if (rc != -ENOMEM)
			return (enum shadow_fault)rc;
		if (!may_wait)
			return SHADOW_LATER;
		make_room(d);
	}
}

static bool set_root(mfn_t *root, mfn_t table)
{
	struct frame *page = NULL;

	if (!mfn_eq(table, MFN_NONE)) {
		page = shadow_of(mfn_frame(table));
		if (!page)
			page = make(mfn_frame(table));
		/* Until there is a new one, the old one is what the processor has loaded. */
		if (!page)
			return false;
	}
	*root = page ? frame_mfn(page) : MFN_NONE;
	return true;
}

void shadow_roots(struct vcpu *v)
{
	struct domain *d = v->domain;
	bool done;

	for (;;) {
		spin_lock(&d->shadow_lock);
		done = set_root(&v->root_kernel, v->table_kernel) &&
		       set_root(&v->root_user, v->table_user);
		spin_unlock(&d->shadow_lock);
		if (done)
			return;
		make_room(d);
	}
}

/* ---- on and off ---- */

uint64_t shadow_pages_least(const struct domain *d)
{
	return PAGES_BASE + (uint64_t)PAGES_PER_VCPU * d->nr_vcpus;
}

uint64_t shadow_pages_default(const struct domain *d)
{
	return shadow_pages_least(d) + d->pages_max / FRAMES_PER_PAGE;
}

uint64_t shadow_pages(const struct domain *d)
{
	const struct shadow *s = d->shadow;

	return s ? s->pages + 2 * s->log_pages : 0;
}

static int grow(struct domain *d, struct shadow *s, uint64_t pages)
{
	while (s->pages < pages) {
		mfn_t m = heap_alloc(0, 0);

		if (mfn_eq(m, MFN_NONE))
			return -ENOMEM;
		spin_lock(&d->shadow_lock);
		frame_append(&s->free, mfn_frame(m));
		s->nr_free++;
		s->pages++;
		spin_unlock(&d->shadow_lock);
	}
	return 0;
}

int shadow_resize(struct domain *d, uint64_t pages)
{
	struct shadow *s = d->shadow;

	pages = MAX(pages, shadow_pages_least(d));
	while (s->pages > pages) {
		struct frame *page;

		if (!s->nr_free)
			make_room(d);
		spin_lock(&d->shadow_lock);
		page = first(&s->free);
		if (page) {
			frame_take(&s->free, page);
			s->nr_free--;
			s->pages--;
		}
		spin_unlock(&d->shadow_lock);
		if (page)
			heap_free(frame_mfn(page), 0);
	}
	return grow(d, s, pages);
}

/* All of its pages are free. */
static void free_all(struct shadow *s)
{
	struct frame *page;

	while ((page = first(&s->free)) != NULL) {
		frame_take(&s->free, page);
		heap_free(frame_mfn(page), 0);
	}
	for (unsigned i = 0; i < 2; i++) {
		for (uint64_t n = 0; s->bits[i] && n < s->log_pages; n++)
			heap_free_pages(s->bits[i][n], 0);
		heap_zfree(s->bits[i], s->log_pages * sizeof(*s->bits[i]));
	}
	heap_zfree(s, sizeof(*s));
}

static int make_logs(struct shadow *s)
{
	s->log_pages = ROUND_UP(s->pfns, LOG_PFNS) / LOG_PFNS;
	for (unsigned i = 0; i < 2; i++) {
		s->bits[i] = heap_zalloc(s->log_pages * sizeof(*s->bits[i]));
		for (uint64_t n = 0; s->bits[i] && n < s->log_pages; n++) {
			s->bits[i][n] = heap_alloc_pages(0);
			if (!s->bits[i][n])
				return -ENOMEM;
		}
		if (!s->bits[i])
			return -ENOMEM;
	}
	return 0;
}

int shadow_enable(struct domain *d, bool log, uint64_t pages, uint64_t pfns)
{
	struct shadow *s = heap_zalloc(sizeof(*s));
	int rc;

	if (!s)
		return -ENOMEM;
	s->log = log;
	s->pfns = pfns;
	s->free = s->clean = s->written = s->old = (struct frame_list){FRAME_NONE, FRAME_NONE};
	rc = make_logs(s);
	if (!rc)
		rc = grow(d, s, MAX(pages, shadow_pages_least(d)));
	if (!rc)
		rc = page_lock(d);
	if (rc) {
		free_all(s);
		return rc;
	}
	spin_lock(&d->shadow_lock);
	d->shadow = s;
	d->page_work |= PAGES_LOGGED;
	spin_unlock(&d->shadow_lock);
	vcpus_follow(d);
	page_unlock(d);
	mark_outside(d);
	return 0;
}

void shadow_disable(struct domain *d)
{
	struct shadow *s = d->shadow;

	if (!s)
		return;
	spin_lock(&d->page_lock);
	spin_lock(&d->shadow_lock);
	drop_all(d, true);
	d->shadow = NULL;
	d->page_work &= (uint8_t)~PAGES_LOGGED;
	spin_unlock(&d->shadow_lock);
	vcpus_follow(d);
	spin_unlock(&d->page_lock);
	free_all(s);
}

/* ---- the log, read ---- */

void shadow_log_begin(struct domain *d)
{
	struct shadow *s = d->shadow;

	if (s->reading)
		return;
	spin_lock(&d->shadow_lock);
	s->reading = true;
	s->now ^= 1;
	for (struct frame *page; (page = first(&s->written)) != NULL;) {
		frame_take(&s->written, page);
		frame_append(&s->old, page);
		page->type |= IS_OLD;
	}
	spin_unlock(&d->shadow_lock);
	mark_outside(d);
}

/* The right to write from all entries that have got it. */
static void protect(struct domain *d, struct frame *page)
{
	for (unsigned i = 0; i < PT_ENTRIES; i++) {
		uint64_t *e = &entries(page)[i];

		if (!(page->type >> i / ENTRIES_PER_CHUNK & 1))
			i += ENTRIES_PER_CHUNK - 1;
		else if ((READ_ONCE(*e) & PTE_RW) && is_watched(d, pte_mfn(*e)))
			WRITE_ONCE(*e, *e & ~PTE_RW);
	}
	frame_take(&d->shadow->old, page);
	page->type = 0;
	frame_append(&d->shadow->clean, page);
}

int shadow_log_protect(struct domain *d)
{
	struct shadow *s = d->shadow;

	for (;;) {
		spin_lock(&d->shadow_lock);
		for (unsigned i = 0; i < PROTECT_AT_ONCE && first(&s->old); i++)
			protect(d, first(&s->old));
		spin_unlock(&d->shadow_lock);
		if (!first(&s->old))
			break;
		if (may_preempt())
			return -ERESTART;
	}
	tlb_flush_since(d, tlb_clock_now());
	return 0;
}

const uint64_t *shadow_log_old(const struct domain *d, uint64_t n)
{
	const struct shadow *s = d->shadow;

	return s->reading && n < s->log_pages ? s->bits[!s->now][n] : NULL;
}

const uint64_t *shadow_log_now(const struct domain *d, uint64_t n)
{
	return n < d->shadow->log_pages ? d->shadow->bits[d->shadow->now][n] : NULL;
}

void shadow_log_end(struct domain *d, uint64_t n, bool back)
{
	struct shadow *s = d->shadow;

	for (uint64_t i = 0; i < s->log_pages; i++) {
		uint64_t *old = s->bits[!s->now][i], *now = s->bits[s->now][i];

		spin_lock(&d->shadow_lock);
		for (unsigned k = 0; back && i >= n && k < PAGE_SIZE / sizeof(*now); k++)
			now[k] |= old[k];
		spin_unlock(&d->shadow_lock);
		memset(old, 0, PAGE_SIZE);
	}
	/* As many at most. */
	if (back)
		s->dirty[s->now] += s->dirty[!s->now];
	s->dirty[!s->now] = 0;
	s->reading = false;
}

uint32_t shadow_log_next(struct domain *d, uint64_t n)
{
	struct shadow *s = d->shadow;
	uint64_t most = MIN(n + LOOK_AT_ONCE, s->log_pages);

	memset(s->bits[!s->now][n], 0, PAGE_SIZE);
	for (n++; n < most; n++)
		for (unsigned k = 0; k < PAGE_SIZE / sizeof(uint64_t); k++)
			if (s->bits[!s->now][n][k])
				return (uint32_t)n;
	if (n < s->log_pages)
		return (uint32_t)n;
	s->dirty[!s->now] = 0;
	s->reading = false;
	return LOG_NONE;
}

void shadow_log_counts(struct domain *d, bool old, uint32_t *faults, uint32_t *dirty)
{
	struct shadow *s = d->shadow;

	spin_lock(&d->shadow_lock);
	*faults = s->faults;
	*dirty = s->dirty[s->now ^ old];
	if (old)
		s->faults = 0;
	spin_unlock(&d->shadow_lock);
}
