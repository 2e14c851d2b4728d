// SPDX-License-Identifier: MIT
/*
 * Log-dirty shadow paging under random operations: a guest with two vCPUs on two processors, which walk the shadows only, cache what they find, and write; another
 * domain; and a reader that copies what the log names. After each reading its copy is the guest's memory, but for what the other log names (7c). After each
 * store: what the processors could walk is safe (2, 3), and nothing is writable that is not in the log (7a, 7b).
 */
#define WITH_SHADOWS
#include "tests/unit/vmm_random.h"

#include <stdio.h>
#include <stdlib.h>

#define ROUNDS	   300u
#define OPERATIONS 1500u
#define VCPUS	   2u
#define DATA_WORD  100u /* of a frame, that no test uses as an entry; even: not present */

/* ---- the hypervisor's memory ---- */

static bool pool_used[FRAMES];

mfn_t heap_alloc(unsigned order, unsigned bits)
{
	(void)order;
	(void)bits;
	for (unsigned n = POOL; n < FRAMES; n++)
		if (!pool_used[n]) {
			pool_used[n] = true;
			/* Nobody may have it in a TLB: the allocator's part. */
			flush_behind(NULL, frames[n].clock);
			frames[n] = (struct frame){.clock = frames[n].clock};
			memset(memory[n], 0, PAGE_SIZE);
			return MFN(n);
		}
	return MFN_NONE;
}

void heap_free(mfn_t m, unsigned order)
{
	(void)order;
	CHECK(pool_used[m.v]);
	pool_used[m.v] = false;
	frames[m.v].clock = tlb_clock;
}

void *heap_alloc_pages(unsigned order)
{
	return calloc(1, PAGE_SIZE << order);
}

void heap_free_pages(void *p, unsigned order)
{
	(void)order;
	free(p);
}

void *heap_zalloc(size_t bytes)
{
	return calloc(1, bytes ? bytes : 1);
}

void heap_zfree(void *p, size_t bytes)
{
	(void)bytes;
	free(p);
}

static uint64_t pfn_of[FRAMES];

uint64_t m2p_get(mfn_t m)
{
	return m.v < FRAMES ? pfn_of[m.v] : ~0ull;
}

bool tlb_flushed_since(const struct domain *d, uint32_t clock)
{
	for (unsigned c = 0; c < CPUS; c++)
		if (runs_on(c) == d && (int32_t)(cpu[c].clock - clock) <= 0)
			return false;
	return true;
}

bool events_frame(struct domain *d, unsigned i, struct frame **f)
{
	(void)d;
	(void)i;
	(void)f;
	return false;
}

/* ---- the processors ---- */

static struct vcpu vcpus[VCPUS];
static mfn_t cr3[VCPUS], cr3_table[VCPUS]; /* what is loaded, and whose shadow it was then */

/* What a processor remembers of a walk: the L1 shadow that it came to, and what it found there. Good until its next flush. */
static struct memory_of_walk {
	uint32_t clock;
	unsigned page, index, table; /* table: whose shadow the page was */
	uint64_t rights, found;
} walks[VCPUS][16];

static bool watched(uint64_t m)
{
	return guest.shadow && m < POOL && frames[m].owner == &guest;
}

static unsigned writes, by_memory, emptied;

/* A processor writes: to the guest's own memory, which is no table, and no other's that it may not. */
static void write_to(uint64_t m)
{
	if (test_is_io(m))
		return;
	if (type_of(frames[m].type) != TYPE_WRITABLE || !(frames[m].type & TYPE_COUNT_MASK))
		WRONG(m, "a processor writes to what is not writable");
	memory[m][DATA_WORD] += 2;
	writes++;
}

static bool use_memory(unsigned c)
{
	struct memory_of_walk *w = &walks[c][below(ARRAY_SIZE(walks[c]))];
	uint64_t e = w->found;

	if (!w->clock || w->clock != cpu[c].clock)
		return false;
	for (unsigned n = 0; n < POOL; n++)
		if ((frames[n].type & TYPE_SHADOWED) && frames[n].clock == w->page && n != w->table)
			WRONG(n,
			      "its shadow is a page that a processor may still walk as another's");
	if (below(2))
		e = memory[w->page][w->index];
	if ((e & PTE_P) && (e & w->rights & PTE_RW)) {
		write_to(pte_mfn(e).v);
		by_memory++;
	}
	return true;
}

static uint64_t some_address(void)
{
	uint64_t va = 0;

	for (unsigned level = 4; level >= 1; level--) {
		unsigned i;

		do
			i = some_spot();
		while (!guest_slot(level, i));
		va |= (uint64_t)i << (PAGE_SHIFT + 9 * (level - 1));
	}
	return va;
}

/* What the guest's own tables say: 0 allowed, or the error code. */
static uint32_t by_the_book(unsigned table, uint64_t va, uint32_t code)
{
	uint64_t all = ~0ull, any = 0, m = table;

	for (unsigned level = 4; level >= 1; level--) {
		uint64_t e = memory[m][pt_index(va, level)];

		if (!(e & PTE_P))
			return (code & ~PF_PRESENT) | PF_USER;
		all &= e;
		any |= e;
		m = pte_mfn(e).v;
	}
	if (((code & PF_WRITE) && !(all & PTE_RW)) || ((code & PF_FETCH) && (any & PTE_NX)))
		return code | PF_PRESENT | PF_USER;
	return 0;
}

/* One walk of the processor through what CR3 has. True: allowed; else *code has bit P or not. */
static bool walk_shadows(unsigned c, uint64_t va, uint32_t *code)
{
	uint64_t all = ~0ull, any = 0, m = cr3[c].v, e = 0;
	struct memory_of_walk *w = &walks[c][below(ARRAY_SIZE(walks[c]))];

	*code &= ~PF_PRESENT;
	for (unsigned level = 4; level >= 1; level--) {
		CHECK(m < FRAMES);
		if (m < POOL)
			WRONG(m, "a processor walks what is no shadow");
		e = memory[m][pt_index(va, level)];
		if (!(e & PTE_P))
			return false;
		if ((e & (PTE_A | PTE_D)) != (PTE_A | PTE_D))
			WRONG(m, "a processor would set bits in a shadow");
		if (level == 1)
			*w = (struct memory_of_walk){cpu[c].clock,    (unsigned)m, pt_index(va, 1),
						     frames[m].clock, all,	   e};
		all &= e;
		any |= e;
		m = pte_mfn(e).v;
	}
	*code |= PF_PRESENT;
	if (((*code & PF_WRITE) && !(all & PTE_RW)) || ((*code & PF_FETCH) && (any & PTE_NX)))
		return false;
	if (*code & PF_WRITE)
		write_to(m);
	return true;
}

static unsigned faults_by[SHADOW_LATER + 1];

static void processor_access(unsigned c)
{
	uint32_t code = (below(2) ? PF_WRITE : below(3) ? 0 : PF_FETCH) | PF_USER, truth;
	uint64_t va = some_address();

	if (mfn_eq(cr3[c], MFN_NONE))
		return;
	/* Mostly where something is. */
	for (unsigned tries = 0;
	     tries < 40 && by_the_book((unsigned)vcpus[c].table_kernel.v, va, code); tries++)
		va = some_address();
	truth = by_the_book((unsigned)vcpus[c].table_kernel.v, va, code);
	for (unsigned tries = 0; !walk_shadows(c, va, &code); tries++) {
		enum shadow_fault rc;
		uint64_t used;

		if (tries > 3)
			unit_fail(__FILE__, __LINE__, "a fault comes again and again");
		used = guest.shadow->pages - guest.shadow->nr_free;
		rc = shadow_fault(&vcpus[c], va, &code, true);
		emptied += guest.shadow->pages - guest.shadow->nr_free < used;
		faults_by[rc]++;
		if (rc == SHADOW_DONE)
			continue;
		CHECK_EQ(rc, SHADOW_GUEST);
		CHECK_EQ(code, truth);
		return;
	}
	CHECK_EQ(truth, 0);
}

static unsigned one_of(unsigned level)
{
	unsigned n;

	do
		n = GUEST + below(ACTIVE);
	while (favourite(n) != level);
	return n;
}

static void audit_shadows(void);

static void load_cr3(unsigned c)
{
	flush_cpu(c);
	cr3[c] = vcpus[c].root_kernel;
	cr3_table[c] = vcpus[c].table_kernel;
}

static void load_tables(unsigned c)
{
	struct vcpu *v = &vcpus[c];
	mfn_t old = v->table_kernel;
	unsigned n = below(20) ? one_of(4) : some_frame(4);

	if (page_lock(&guest))
		return;
	if (!frame_get_both(at(n), &guest, TYPE_L4)) {
		v->table_kernel = MFN(n);
		vcpu_tables_changed(v);
		audit_shadows();
		load_cr3(c);
		if (!mfn_eq(old, MFN_NONE))
			frame_put_both(mfn_frame(old));
	}
	page_unlock(&guest);
}

static void unload_tables(unsigned c)
{
	struct vcpu *v = &vcpus[c];
	mfn_t old = v->table_kernel;

	if (mfn_eq(old, MFN_NONE))
		return;
	while (page_lock(&guest))
		;
	v->table_kernel = MFN_NONE;
	vcpu_tables_changed(v);
	load_cr3(c);
	frame_put_both(mfn_frame(old));
	page_unlock(&guest);
}

/* ---- what must hold ---- */

static void audit_link(unsigned page, const struct frame *f, unsigned level, uint64_t e)
{
	const struct frame *below = &frames[pte_mfn(e).v], *table;

	if (pte_mfn(e).v < POOL || pte_mfn(e).v >= FRAMES)
		WRONG(page, "a shadow leads to what is none");
	table = table_of(below);
	if (shadow_of(table) != below || !used_as_table(table->type) ||
	    level_of_table(table) != level - 1 || table->owner != f->owner)
		WRONG(page, "a shadow leads to what is no table's any more");
}

static void audit_shadow_entry(unsigned page, const struct frame *f, unsigned level, unsigned i)
{
	uint64_t e = memory[page][i], g = memory[frame_mfn(f).v][i], m = pte_mfn(e).v;

	if (!guest_slot(level, i)) {
		if (e != HV_MARK(i))
			WRONG(page, "a slot of the hypervisor's is another's");
		return;
	}
	if (!e)
		return;
	if (!(e & PTE_P))
		WRONG(page, "an entry is neither present nor empty");
	if (level > 1)
		audit_link(page, f, level, e);
	else if (!test_is_io(m) && (!(frames[m].ref & REF_COUNT_MASK) ||
				    ((e & PTE_RW) && (type_of(frames[m].type) != TYPE_WRITABLE ||
						      !(frames[m].type & TYPE_COUNT_MASK)))))
		WRONG(page, "it maps what nobody holds");
	/* While an entry is changed its shadow is behind, by one. */
	if (spin_is_locked(&guest.shadow_lock))
		return;
	if ((e & ~(PTE_D | PTE_ADDR)) & ~g || !(g & PTE_A) ||
	    (level == 1 ? pte_mfn(g).v != m : shadow_of(mfn_frame(pte_mfn(g))) != &frames[m]))
		WRONG(page, "7a: it has more than its table");
	if (level > 1 || !(e & PTE_RW))
		return;
	if (!(g & PTE_D))
		WRONG(page, "7b: a write would not be seen in bit D");
	if (watched(m) && !is_logged(guest.shadow, MFN(m)) && !(frames[page].type & IS_OLD))
		WRONG(m, "7b: it is writable and not in the log");
	if (watched(m) && !(frames[page].type >> i / ENTRIES_PER_CHUNK & 1))
		WRONG(page, "7c: nobody will find this entry");
}

/* Pages of the pool that the test keeps away, so that there are too few. */
static struct frame *kept[FRAMES];
static unsigned nr_kept;

static unsigned audit_queue(const struct frame_list *q, bool in_use)
{
	unsigned n = 0;

	for (uint32_t page = q->first; page != FRAME_NONE; page = frames[page].next) {
		const struct frame *f = in_use ? table_of(&frames[page]) : NULL;

		n++;
		for (unsigned k = 0; in_use && k < nr_spots; k++)
			audit_shadow_entry(page, f, level_of_table(f), spots[k]);
	}
	return n;
}

static void audit_shadows(void)
{
	const struct shadow *s = guest.shadow;
	uint64_t pages;

	if (!s)
		return;
	/* Queues are whole while nobody changes them. */
	if (spin_is_locked(&guest.shadow_lock))
		return;
	for (unsigned c = 0; c < VCPUS; c++)
		for (unsigned n = 0; n < POOL; n++)
			if ((frames[n].type & TYPE_SHADOWED) && frames[n].clock == cr3[c].v &&
			    n != cr3_table[c].v)
				WRONG(n, "its shadow is what a processor has loaded as another's");
	pages = audit_queue(&s->clean, true) + audit_queue(&s->written, true) +
		audit_queue(&s->old, true);
	CHECK_EQ(audit_queue(&s->free, false), s->nr_free);
	CHECK_EQ(pages + s->nr_free + nr_kept, s->pages);
}

/* ---- the reader ---- */

static uint64_t copy[FRAMES][ARRAY_SIZE(few_spots) + 1]; /* by pfn */

static unsigned copied_as[FRAMES]; /* by pfn: the level of the table that it was, or 0 */

static unsigned table_level(unsigned m)
{
	uint64_t word = frames[m].type;

	return (word & TYPE_COUNT_MASK) && is_table(type_of(word)) ? level_of_table(&frames[m]) : 0;
}

static uint64_t word_of(unsigned m, unsigned k)
{
	return k < nr_spots ? memory[m][spots[k]] : memory[m][DATA_WORD];
}

static void read_frame(unsigned m)
{
	copied_as[pfn_of[m]] = table_level(m);
	for (unsigned k = 0; k <= nr_spots; k++)
		copy[pfn_of[m]][k] = word_of(m, k);
}

static bool has_bit(const uint64_t *log, uint64_t pfn)
{
	return log[pfn / 64] >> pfn % 64 & 1;
}

/* 7c: what is not in the log that is written is as it was read. */
static void compare(void)
{
	for (unsigned m = GUEST; m < GUEST_END; m++) {
		if (frames[m].owner != &guest || has_bit(shadow_log_now(&guest, 0), pfn_of[m]))
			continue;
		if (copied_as[pfn_of[m]] != table_level(m))
			WRONG(m, "it became a table or ceased to be one, and is not in the log");
		for (unsigned k = 0; k <= nr_spots; k++)
			if (copy[pfn_of[m]][k] != word_of(m, k))
				WRONG(m, "it was changed and is not in the log");
	}
}

static void look(void)
{
	audit_safety();
	audit_shadows();
}

static unsigned readings;
static bool merged; /* a log that could not be read, into the next */

/* As many bits as is said are in the log; after merging at most. */
static void count_bits(void)
{
	const uint64_t *log = shadow_log_old(&guest, 0);
	uint32_t faults, said, bits = 0;

	for (unsigned i = 0; i < LOG_PFNS / 64; i++)
		bits += (uint32_t)__builtin_popcountll(log[i]);
	shadow_log_counts(&guest, true, &faults, &said);
	CHECK(merged ? bits <= said : bits == said);
	merged = false;
}

static void read_log(bool whole)
{
	bool quiet = meanwhile == look && !guest.shadow->reading;

	shadow_log_begin(&guest);
	do {
		if (shadow_log_protect(&guest))
			continue;
		count_bits();
		if (below(8) == 0) { /* the reader's memory is not there */
			merged = true;
			shadow_log_end(&guest, 0, true);
			return;
		}
		for (unsigned m = GUEST; m < GUEST_END; m++)
			if (frames[m].owner == &guest &&
			    has_bit(shadow_log_old(&guest, 0), pfn_of[m]))
				read_frame(m);
		if (below(2))
			shadow_log_end(&guest, 1, false);
		else
			CHECK_EQ(shadow_log_next(&guest, 0), LOG_NONE);
		readings++;
		compare();
		/* Nothing was written since: no more is in the log than what others may write to. */
		for (unsigned m = GUEST; m < GUEST_END; m++)
			if (has_bit(shadow_log_now(&guest, 0), pfn_of[m]) && quiet &&
			    !(frames[m].ref & REF_FOREIGN))
				WRONG(m, "it is in the log and nobody has written to it");
		return;
	} while (whole);
}

/* ---- random operations ---- */

static void give_back(void)
{
	spin_lock(&guest.shadow_lock);
	while (nr_kept)
		page_free(guest.shadow, kept[--nr_kept]);
	spin_unlock(&guest.shadow_lock);
}

static void keep_all_but(unsigned n)
{
	struct shadow *s = guest.shadow;

	while (s->nr_free > n) {
		kept[nr_kept] = first(&s->free);
		frame_take(&s->free, kept[nr_kept++]);
		s->nr_free--;
	}
}

static void switch_on(void)
{
	uint64_t pages = below(3) ? shadow_pages_least(&guest) + below(8) : 0;

	merged = false;
	while (shadow_enable(&guest, true, pages, FRAMES) == -ERESTART)
		;
	for (unsigned c = 0; c < VCPUS; c++)
		load_cr3(c);
	for (unsigned m = GUEST; m < GUEST_END; m++)
		if (frames[m].owner == &guest)
			read_frame(m);
	if (below(2))
		keep_all_but(6 + below(8));
	audit_shadows();
}

static void switch_off(void)
{
	give_back();
	shadow_disable(&guest);
	for (unsigned c = 0; c < VCPUS; c++)
		load_cr3(c);
	for (unsigned n = 0; n < FRAMES; n++) {
		CHECK(!(frames[n].type & TYPE_SHADOWED));
		CHECK(!pool_used[n]);
	}
}

/* Two frames change places in the guest's eyes. */
static void renumber(void)
{
	unsigned a = GUEST + below(ACTIVE), b = GUEST + below(ACTIVE);
	uint64_t pfn = pfn_of[a];

	pfn_of[a] = pfn_of[b];
	pfn_of[b] = pfn;
	shadow_mark(&guest, MFN(a));
	shadow_mark(&guest, MFN(b));
}

/* The other domain's processor writes where it may. */
static void foreign_write(void)
{
	uint64_t e = memory[OTHER][some_spot()];

	if (used_as_table(frames[OTHER].type) && (e & PTE_P) && (e & PTE_RW) &&
	    !test_is_io(pte_mfn(e).v) && frames[pte_mfn(e).v].owner == &guest)
		write_to(pte_mfn(e).v);
}

static void shadow_operation(void)
{
	unsigned c = below(VCPUS);

	switch (below(16)) {
	case 0:
		load_tables(c);
		break;
	case 1:
		if (below(6) == 0)
			unload_tables(c);
		break;
	case 2:
		read_log(below(4));
		break;
	case 3:
		renumber();
		break;
	case 4:
	case 5:
		foreign_write();
		break;
	case 6:
		give_back();
		if (below(4) == 0)
			(void)shadow_resize(&guest, shadow_pages_least(&guest) + below(30));
		break;
	case 7:
	case 8:
	case 9:
		(void)use_memory(c);
		break;
	default:
		processor_access(c);
	}
}

static void others_and_processors(void)
{
	others_meanwhile();
	if (below(8) == 0)
		(void)use_memory(below(VCPUS));
	if (below(8) == 0)
		foreign_write();
	audit_shadows();
}

/* Tables that are legal, of which random operations take away. */
static void make_trees(void)
{
	static const uint64_t flags[] = {RW,	    RW | PTE_A,		 RW | PTE_A | PTE_D,
					 P | PTE_A, RW | PTE_A | PTE_NX, P | PTE_A | PTE_NX};

	for (unsigned n = GUEST; n < GUEST + ACTIVE; n++) {
		unsigned level = favourite(n);

		memset(memory[n], 0, PAGE_SIZE);
		for (unsigned k = 0; level && k < nr_spots; k++)
			memory[n][spots[k]] =
				entry(one_of(level - 1), flags[below(ARRAY_SIZE(flags))]);
	}
}

static void begin_with_shadows(void)
{
	random_begin();
	make_trees();
	memset(pool_used, 0, sizeof(pool_used));
	memset(walks, 0, sizeof(walks));
	memset(vcpus, 0, sizeof(vcpus));
	for (unsigned m = 0; m < FRAMES; m++)
		pfn_of[m] = m;
	guest.nr_vcpus = VCPUS;
	for (unsigned c = 0; c < VCPUS; c++) {
		vcpus[c].domain = &guest;
		vcpus[c].id = c;
		vcpus[c].kernel_mode = true;
		vcpus[c].table_kernel = vcpus[c].table_user = vcpus[c].info_frame = MFN_NONE;
		vcpus[c].root_kernel = vcpus[c].root_user = MFN_NONE;
		guest.vcpu[c] = &vcpus[c];
		cr3[c] = cr3_table[c] = MFN_NONE;
	}
	for (unsigned c = 0; c < VCPUS; c++)
		load_tables(c);
}

static void end_with_shadows(void)
{
	preempt_every = 0;
	for (unsigned c = 0; c < VCPUS; c++)
		unload_tables(c);
	if (guest.shadow)
		switch_off();
	guest.nr_vcpus = 0;
	relinquish(&other);
	relinquish(&guest);
}

static void random_with_shadows(void)
{
	memset(outcomes, 0, sizeof(outcomes));
	seed = unit_seed();
	for (unsigned round = 0; round < ROUNDS; round++) {
		bool busy = round % 2;

		begin_with_shadows();
		look_at_stores = round % 16 < 2;
		for (unsigned k = 0; k < OPERATIONS; k++) {
			preempt_every = below(3) ? 0 : 1 + below(6);
			meanwhile = busy ? others_and_processors : look;
			if (!guest.shadow && below(60) == 0)
				switch_on();
			else if (guest.shadow && below(500) == 0)
				switch_off();
			if (guest.shadow && below(4))
				shadow_operation();
			else
				random_operation();
			if (k % 16 == 0) {
				audit();
				audit_shadows();
			}
		}
		end_with_shadows();
	}
	for (unsigned level = 1; level <= 4; level++)
		CHECK(outcomes[0][level] && outcomes[1][level]);
	printf("  %u readings, %u faults made good, %u the guest's, %u writes, %u of them by memory, %u times no room\n",
	       readings, faults_by[SHADOW_DONE], faults_by[SHADOW_GUEST], writes, by_memory,
	       emptied);
	fflush(stdout);
	CHECK(readings > ROUNDS && faults_by[SHADOW_DONE] > ROUNDS && by_memory && emptied);
}

/* 5: what was a shadow is used again when both processors have flushed. */
static void a_page_waits_for_processors(void)
{
	struct frame *page;

	begin_with_shadows();
	CHECK_EQ(shadow_enable(&guest, true, 0, FRAMES), 0);
	keep_all_but(0);
	page = kept[--nr_kept];
	page_free(guest.shadow, page);
	CHECK(!page_alloc(&guest));
	flush_cpu(1);
	CHECK(!page_alloc(&guest));
	flush_cpu(0);
	CHECK(page_alloc(&guest) == page);
	page_free(guest.shadow, page);
	end_with_shadows();
}

/* 3: a processor has its old root loaded until it has a new one, though there is no room for both but by dropping all others. */
static void a_root_stays_while_it_is_loaded(void)
{
	unsigned pins = 0;

	seed = unit_seed();
	begin_with_shadows();
	CHECK_EQ(shadow_enable(&guest, true, 0, FRAMES), 0);
	for (unsigned c = 0; c < VCPUS; c++)
		load_cr3(c);
	/* Pinned, so that shadows stay until there is no room. */
	for (unsigned n = GUEST; n < GUEST + ACTIVE; n++)
		if (favourite(n) == 4)
			pins += !pin_all(n, 4);
	CHECK(pins > VCPUS);
	keep_all_but(1);
	for (unsigned k = 0; k < 100; k++)
		load_tables(k % VCPUS);
	end_with_shadows();
}

/* A log of many pages, of which few have bits: those are seen once each, however far apart, and the others passed over. */
static void a_long_log_is_read_in_parts(void)
{
	static const unsigned written[] = {0, 3, 150, 199};
	unsigned visits = 0, seen = 0;
	uint64_t n = 0, bits = 0;

	begin_with_shadows();
	CHECK_EQ(shadow_enable(&guest, true, 0, 200ull * LOG_PFNS - 1), 0);
	CHECK(!shadow_log_old(&guest, 0));
	for (unsigned i = 0; i < ARRAY_SIZE(written); i++)
		guest.shadow->bits[guest.shadow->now][written[i]][i] |= 2;
	shadow_log_begin(&guest);
	CHECK_EQ(shadow_log_protect(&guest), 0);
	CHECK(!shadow_log_old(&guest, 200));
	for (; n != LOG_NONE; visits++) {
		const uint64_t *log = shadow_log_old(&guest, n);

		for (unsigned i = 0; i < ARRAY_SIZE(written); i++)
			seen += n == written[i] && log[i] & 2;
		for (unsigned i = 0; i < LOG_PFNS / 64; i++)
			bits += (uint64_t)__builtin_popcountll(log[i]);
		n = shadow_log_next(&guest, n);
	}
	CHECK_EQ(seen, ARRAY_SIZE(written));
	CHECK(bits >= seen && visits < 10);
	CHECK(!shadow_log_old(&guest, 0));
	/* The next reading is of another log, and has none of them. */
	shadow_log_begin(&guest);
	CHECK_EQ(shadow_log_protect(&guest), 0);
	for (unsigned i = 1; i < ARRAY_SIZE(written); i++)
		CHECK_EQ(shadow_log_old(&guest, written[i])[i], 0);
	shadow_log_end(&guest, 1, false);
	end_with_shadows();
}

UNIT_MAIN(TEST(random_with_shadows), TEST(a_long_log_is_read_in_parts),
	  TEST(a_root_stays_while_it_is_loaded), TEST(a_page_waits_for_processors))
