/* SPDX-License-Identifier: MIT */
/*
 * A machine for vmm/mm/page_type.c, which is included here: two domains, their processors with TLBs, and an auditor that recounts from the tables' memory
 * what every frame has to be held by. Exactly between operations; inside one, after each store and wherever it asks its surroundings for something, what
 * isolation needs of it.
 */
#ifndef TESTS_UNIT_VMM_FRAMES_H
#define TESTS_UNIT_VMM_FRAMES_H

#define VMM_HOSTED
#define __XEN_TOOLS__ 1
#include "vmm/domain/domain.h"
#include "vmm/mm/tlb.h"

#include "tests/unit/unit.h"

/* Every store of page_type.c, to a table or to the frame table, is a moment at which all invariants hold: the others may look right then. */
static inline void moment(void);
static bool look_at_stores = true; /* many tests in one are too slow for that */

static inline void stored(void)
{
	if (look_at_stores)
		moment();
}

#undef WRITE_ONCE
#define WRITE_ONCE(x, value)                               \
	do {                                               \
		*(volatile __typeof__(x) *)&(x) = (value); \
		stored();                                  \
	} while (0)
#define STORE(operation)                    \
	({                                  \
		__auto_type r_ = operation; \
		stored();                   \
		r_;                         \
	})
/* NOLINTBEGIN(bugprone-reserved-identifier): the compiler's own names are what page_type.c uses. */
#define __atomic_compare_exchange_n(...) STORE(__atomic_compare_exchange_n(__VA_ARGS__))
#define __atomic_exchange_n(...)	 STORE(__atomic_exchange_n(__VA_ARGS__))
#define __atomic_fetch_or(...)		 STORE(__atomic_fetch_or(__VA_ARGS__))
#define __atomic_fetch_and(...)		 STORE(__atomic_fetch_and(__VA_ARGS__))
#define __atomic_fetch_add(...)		 STORE(__atomic_fetch_add(__VA_ARGS__))
#define __atomic_sub_fetch(...)		 STORE(__atomic_sub_fetch(__VA_ARGS__))
#define __atomic_store_n(...)                  \
	do {                                   \
		__atomic_store_n(__VA_ARGS__); \
		stored();                      \
	} while (0)
/* NOLINTEND(bugprone-reserved-identifier) */
#include "vmm/mm/page_type.c" /* NOLINT(bugprone-suspicious-include) */
#ifdef WITH_SHADOWS
#include "vmm/mm/shadow.c" /* NOLINT(bugprone-suspicious-include) */
#endif
#undef __atomic_compare_exchange_n
#undef __atomic_exchange_n
#undef __atomic_fetch_or
#undef __atomic_fetch_and
#undef __atomic_fetch_add
#undef __atomic_sub_fetch
#undef __atomic_store_n

#define FRAMES 400u

/* Who owns what. The guest is a domain without rights; the other one may map the guest's frames, as a toolstack does. */
enum {
	GUEST = 1,
	GUEST_END = 160,
	OTHER = 160,
	OTHER_END = 180,
	SHARED = 180,	/* the hypervisor's, shared with the guest */
	OWN = 181,	/* the hypervisor's own */
	IO_FRAME = 182, /* not RAM, in the frame table */
	NO_RAM = 183,	/* has an entry, and is nothing */
	POOL = 200,	/* the hypervisor's, for shadow tables; no auditor but theirs looks there */
	IO_FAR = 1000,	/* beyond the frame table, the guest may map it */
	IO_OTHERS,
};

#define P  PTE_P
#define RW (PTE_P | PTE_RW)

static struct frame frames[FRAMES];
struct frame *frame_table = frames;
uint64_t frame_max = FRAMES;
static _Alignas(4096) uint64_t memory[FRAMES][PT_ENTRIES];
char *direct_base = (char *)memory;

static struct domain guest, other;

static inline struct frame *at(unsigned n)
{
	return &frames[n];
}

/* ---- processors and their TLBs ---- */

#define CPUS	   3u /* 0 and 1 run the guest, 2 the other */
#define OTHERS_CPU 2u
#define MAY_READ \
	1u /* the bit of TYPE_NONE; the others: 1 << the type as which the processor uses the frame */
#define MAY_WRITE  (1u << TYPE_WRITABLE)
#define WALKED_AS  (1u << TYPE_L1 | 1u << TYPE_L2 | 1u << TYPE_L3 | 1u << TYPE_L4)
#define HV_MARK(i) (0x1234567800000063ull + ((uint64_t)(i) << PAGE_SHIFT))

static struct {
	uint32_t clock;
	uint8_t knows[FRAMES];
} cpu[CPUS];
static uint32_t tlb_clock;
static unsigned flushes;

static inline const struct domain *runs_on(unsigned c)
{
	return c == OTHERS_CPU ? &other : &guest;
}

static inline void flush_cpu(unsigned c)
{
	cpu[c].clock = ++tlb_clock;
	memset(cpu[c].knows, 0, sizeof(cpu[c].knows));
	flushes++;
}

static inline void flush_behind(const struct domain *d, uint32_t clock)
{
	for (unsigned c = 0; c < CPUS; c++)
		if ((!d || runs_on(c) == d) && (int32_t)(cpu[c].clock - clock) <= 0)
			flush_cpu(c);
}

/* ---- what the tests hold and where they look ---- */

static unsigned typed_by_test[FRAMES], held_by_test[FRAMES];

/* The entries of tables that a test uses; the others are empty. */
static uint16_t all_spots[PT_ENTRIES];
static const uint16_t *spots = all_spots;
static unsigned nr_spots = PT_ENTRIES;

static inline bool used_as_table(uint64_t word)
{
	return (word & TYPE_VALID) && (word & TYPE_COUNT_MASK);
}

static inline bool guest_slot(unsigned level, unsigned i)
{
	return level != 4 || i < HV_FIRST_SLOT || i > HV_LAST_SLOT;
}

static inline bool test_is_io(uint64_t m)
{
	return m >= FRAMES || m == IO_FRAME;
}

/* The processor fills its TLB with all that it could walk. */
static inline void fill_tlb(unsigned c)
{
	for (unsigned n = 0; n < POOL; n++) {
		uint64_t word = frames[n].type;

		if (frames[n].owner != runs_on(c) || !used_as_table(word))
			continue;
		cpu[c].knows[n] |= (uint8_t)(1u << type_of(word));
		for (unsigned k = 0; type_of(word) == TYPE_L1 && k < nr_spots; k++) {
			uint64_t e = memory[n][spots[k]], m = pte_mfn(e).v;

			if ((e & PTE_P) && !test_is_io(m))
				cpu[c].knows[m] |= e & PTE_RW ? MAY_WRITE | MAY_READ : MAY_READ;
		}
	}
}

/* ---- the auditor ---- */

struct holders {
	unsigned refs, writers; /* writers: entries of others' tables */
	unsigned types[TYPE_WRITABLE + 1];
};
static struct holders held[FRAMES];

/* What tables hold. partial: those that are PARTIAL too, as far as they say; true between operations only. */
static inline void recount(bool partial)
{
	memset(held, 0, sizeof(held));
	for (unsigned n = 0; n < POOL; n++) {
		uint64_t word = frames[n].type;
		unsigned level = level_of(type_of(word)), type = type_of(word);
		unsigned limit = PT_ENTRIES;

		if ((word & TYPE_PARTIAL) && partial) {
			held[n].refs++;
			limit = progress_of(word);
		} else if (!used_as_table(word)) {
			limit = 0;
		}
		if (word & TYPE_PINNED) {
			held[n].refs++;
			held[n].types[type]++;
		}
		held[n].refs += typed_by_test[n] + held_by_test[n];
		held[n].refs += !!(frames[n].ref & REF_ALLOCATED);
		held[n].types[type] += typed_by_test[n] + (n == SHARED);
		for (unsigned v = 0; v < guest.nr_vcpus; v++) {
			bool its = guest.vcpu[v]->table_kernel.v == n;

			held[n].refs += its;
			held[n].types[TYPE_L4] += its;
		}
		for (unsigned k = 0; k < nr_spots && spots[k] < limit; k++) {
			uint64_t e = memory[n][spots[k]], m = pte_mfn(e).v;

			if (!guest_slot(level, spots[k]) || !(e & PTE_P) ||
			    (level == 1 && test_is_io(m)))
				continue;
			if (m >= POOL)
				unit_fail(__FILE__, __LINE__, "L%u table %u has %llx", level, n,
					  (unsigned long long)e);
			held[m].refs++;
			if (level > 1)
				held[m].types[type - 1]++;
			else if (e & PTE_RW)
				held[m].types[TYPE_WRITABLE]++;
			held[m].writers += level == 1 && (e & PTE_RW) && m != SHARED &&
					   frames[m].owner != frames[n].owner;
		}
	}
}

#define WRONG(n, what)                                                               \
	unit_fail(__FILE__, __LINE__, "frame %u: " what " (type word %llx, ref %x)", \
		  (unsigned)(n), (unsigned long long)frames[n].type, frames[n].ref)

/* 2, 3: an entry that the processor may use. */
static inline void audit_entry(unsigned n, unsigned level, unsigned i)
{
	uint64_t e = memory[n][i], m = pte_mfn(e).v, word;

	if (!guest_slot(level, i)) {
		if (e != HV_MARK(i))
			WRONG(n, "a slot of the hypervisor's is another's");
		return;
	}
	if (!(e & PTE_P))
		return;
	if (!(e & PTE_US) || (level == 1 && (e & PTE_G)))
		WRONG(n, "an entry is the kernel's or global");
	if (level > 1 && (e & (PTE_PSE | PTE_PCD | PTE_PWT)))
		WRONG(n, "an entry of a higher table has flags that are not its own to set");
	if (level == 1 && test_is_io(m)) {
		if (!domain_may_map_io(frames[n].owner, MFN(m)))
			WRONG(n, "it maps I/O memory without right");
		return;
	}
	if (m >= FRAMES || !(frames[m].ref & REF_COUNT_MASK))
		WRONG(n, "it maps what nobody holds");
	word = frames[m].type;
	if (frames[m].owner != frames[n].owner &&
	    (level > 1 || frames[n].owner != &other || frames[m].owner != &guest))
		WRONG(n, "it maps another's frame");
	if (level == 1 && (e & (PTE_PAT | PTE_PCD | PTE_PWT)) && !frames[n].owner->privileged)
		WRONG(n, "it maps RAM that is not cached");
	if (level == 1 && (e & PTE_RW) &&
	    (type_of(word) != TYPE_WRITABLE || !(word & TYPE_COUNT_MASK)))
		WRONG(m, "it is mapped writable and is not of that type");
	if (level > 1 && (type_of(word) != table_type(level - 1) || !used_as_table(word)))
		WRONG(m, "a table in use has it as a table, which it is not");
}

/* What holds at any moment: the invariants that keep a guest in its memory. */
static inline void audit_safety(void)
{
	recount(false);
	for (unsigned n = 0; n < POOL; n++) {
		uint64_t word = frames[n].type, count = word & TYPE_COUNT_MASK;
		unsigned type = type_of(word), known = 0;

		if (!word && !held[n].refs)
			continue;
		for (unsigned k = 0; used_as_table(word) && k < nr_spots; k++)
			audit_entry(n, level_of(type), spots[k]);
		/* 1: never two types, and enough references for all who believe in one. */
		for (unsigned t = TYPE_L1; t <= TYPE_WRITABLE; t++)
			if (held[n].types[t] > (t == type ? count : 0))
				WRONG(n, "it is used as what it is not held as");
		if ((frames[n].ref & REF_COUNT_MASK) < held[n].refs)
			WRONG(n, "it has fewer references than users");
		/* 5: what processors still know of it fits what it is now. */
		for (unsigned c = 0; c < CPUS; c++)
			known |= cpu[c].knows[n];
		if ((!count && !(word & TYPE_PARTIAL)) || (word & TYPE_BUSY))
			continue;
		if (is_table(type) && (known & ~(1u << type | MAY_READ)))
			WRONG(n, "a TLB knows it as something else than this table");
		if (type == TYPE_DESC && (known & ~MAY_READ))
			WRONG(n, "a TLB may write to this page of descriptors, or walk it");
		if (type == TYPE_WRITABLE && (known & WALKED_AS))
			WRONG(n, "a TLB knows as a table what can be written to");
	}
}

/* Between operations: everything that is held is held by somebody. */
static inline void audit(void)
{
	audit_safety();
	recount(true);
	for (unsigned n = 0; n < POOL; n++) {
		uint64_t word = frames[n].type, count = word & TYPE_COUNT_MASK;
		unsigned type = type_of(word), types = 0;

		for (unsigned t = TYPE_L1; t <= TYPE_WRITABLE; t++)
			types += held[n].types[t];
		if (count != types || (types && held[n].types[type] != types))
			WRONG(n, "typed references are not what is held");
		if (frames[n].owner && (frames[n].ref & REF_COUNT_MASK) != held[n].refs)
			unit_fail(__FILE__, __LINE__, "frame %u: %u references, %u holders (%llx)",
				  n, frames[n].ref & REF_COUNT_MASK, held[n].refs,
				  (unsigned long long)word);
		if ((word & TYPE_BUSY) || ((word & TYPE_PARTIAL) && count) ||
		    !!(word & TYPE_VALID) != (is_table(type) && count))
			WRONG(n, "its state is none");
		if (frames[n].owner && !(frames[n].ref & REF_COUNT_MASK))
			WRONG(n, "it is free and has an owner");
		if ((word & TYPE_WRITERS_MASK) != held[n].writers * TYPE_WRITERS_ONE ||
		    !(frames[n].ref & REF_FOREIGN) != !held[n].writers)
			WRONG(n, "others may write to it, and that is not known");
		if (held[n].writers && frames[n].prev != FRAME_NONE &&
		    !held[frames[n].prev].writers)
			WRONG(n, "others may write to it, and it is not at the head of the list");
	}
	unit_checked();
}

/* ---- surroundings ---- */

static bool in_hook;
static void (*meanwhile)(void); /* what others do at such a moment */

/* Somewhere inside an operation. */
static inline void moment(void)
{
	if (in_hook)
		return;
	in_hook = true;
	if (meanwhile)
		meanwhile();
	else
		audit_safety();
	in_hook = false;
}

static unsigned preempt_every, asked, dropped_unasked, dropped_most;

bool may_preempt(void)
{
	moment();
	asked++;
	dropped_unasked = 0;
	return preempt_every && asked % preempt_every == 0;
}

void tlb_flush_since(struct domain *d, uint32_t clock)
{
	moment();
	flush_behind(d, clock);
	moment();
}

void tlb_flush_all_since(uint32_t clock)
{
	moment();
	flush_behind(NULL, clock);
	moment();
}

struct mitigations mitigations;
struct cpu_features cpu_features = {.phys_bits = 48};

void xpti_entry_changed(mfn_t l4, unsigned index)
{
	(void)l4;
	(void)index;
	moment();
}

uint32_t tlb_clock_now(void)
{
	uint32_t now = tlb_clock;

	if (++dropped_unasked > dropped_most)
		dropped_most = dropped_unasked;
	moment();
	return now;
}

bool domain_may_map_io(const struct domain *d, mfn_t m)
{
	return d == &guest && (m.v == IO_FAR || m.v == IO_FRAME);
}

void pt_fill_hypervisor_slots(uint64_t *l4)
{
	for (unsigned k = 0; k < nr_spots; k++)
		if (!guest_slot(4, spots[k]))
			l4[spots[k]] = HV_MARK(spots[k]);
}

void frame_release(struct frame *f)
{
	BUG_ON(f->type & (TYPE_COUNT_MASK | TYPE_PARTIAL));
	BUG_ON(f->ref & REF_ALLOCATED);
	frame_take(&f->owner->list, f);
	f->owner = NULL;
	f->ref = 0;
	f->clock = tlb_clock;
	moment();
}

void log_print(enum log_level level, const char *format, ...)
{
	(void)level;
	(void)format;
}

void bug(const char *file, int line, const char *what)
{
	unit_fail(file, line, "the hypervisor would have died: %s", what);
}

#ifndef WITH_SHADOWS
/* Nobody has asked for a log. */
#define NO_SHADOWS bug(__FILE__, __LINE__, "there are no shadows")
void shadow_mark_frame(struct domain *d, mfn_t m)
{
	(void)d;
	(void)m;
	NO_SHADOWS;
}

void shadow_entry_begin(struct frame *f)
{
	(void)f;
	NO_SHADOWS;
}

void shadow_entry_end(struct frame *f, unsigned level, unsigned index)
{
	(void)f;
	(void)level;
	(void)index;
	NO_SHADOWS;
}

void shadow_table_ends(struct frame *f)
{
	(void)f;
	NO_SHADOWS;
}

#endif

/* ---- the machine ---- */

static inline void give(unsigned n, struct domain *d)
{
	if (d)
		frame_append(&d->list, at(n));
	frames[n].owner = d;
	frames[n].type = 0;
	frames[n].ref = REF_ALLOCATED | 1;
}

/* As domain_drop_frame: the owner lets go of it. */
static inline void take_back(unsigned n)
{
	uint32_t ref = __atomic_fetch_and(&frames[n].ref, ~REF_ALLOCATED, __ATOMIC_SEQ_CST);

	if (ref & REF_ALLOCATED)
		frame_put(at(n));
}

static inline void begin(void)
{
	memset(frames, 0, sizeof(frames));
	memset(memory, 0, sizeof(memory));
	memset(cpu, 0, sizeof(cpu));
	memset(typed_by_test, 0, sizeof(typed_by_test));
	memset(held_by_test, 0, sizeof(held_by_test));
	guest = (struct domain){.id = 1, .list = {FRAME_NONE, FRAME_NONE}};
	other = (struct domain){.id = 0, .privileged = true, .list = {FRAME_NONE, FRAME_NONE}};
	for (unsigned i = 0; i < PT_ENTRIES; i++)
		all_spots[i] = (uint16_t)i;
	spots = all_spots;
	nr_spots = PT_ENTRIES;
	for (unsigned n = GUEST; n < GUEST_END; n++)
		give(n, &guest);
	for (unsigned n = OTHER; n < OTHER_END; n++)
		give(n, &other);
	give(SHARED, &guest);
	frames[SHARED].type = (uint64_t)TYPE_WRITABLE << TYPE_SHIFT | 1;
	frames[SHARED].ref |= REF_HYPERVISOR;
	give(OWN, NULL);
	frames[IO_FRAME].ref = REF_IO;
	tlb_clock = 0;
	for (unsigned c = 0; c < CPUS; c++)
		flush_cpu(c);
	preempt_every = asked = flushes = dropped_unasked = dropped_most = 0;
	in_hook = false;
	meanwhile = NULL;
}

static inline uint64_t entry(uint64_t m, uint64_t flags)
{
	return pte_make(MFN(m), flags);
}

static inline void set(unsigned n, unsigned i, uint64_t m, uint64_t flags)
{
	memory[n][i] = entry(m, flags);
}

/* One operation under the page lock, the auditor behind it. */
#define LOCKED(d, op)                   \
	({                              \
		int rc_ = page_lock(d); \
                                        \
		if (!rc_) {             \
			rc_ = (op);     \
			page_unlock(d); \
		}                       \
		audit();                \
		rc_;                    \
	})

/* Until it is no longer interrupted. */
#define FINISHED(d, op)                        \
	({                                     \
		int done_;                     \
                                               \
		do                             \
			done_ = LOCKED(d, op); \
		while (done_ == -ERESTART);    \
		done_;                         \
	})

static inline int pin(unsigned n, unsigned level)
{
	return LOCKED(&guest, frame_pin(at(n), table_type(level)));
}

static inline int pin_all(unsigned n, unsigned level)
{
	return FINISHED(&guest, frame_pin(at(n), table_type(level)));
}

static inline int unpin(unsigned n)
{
	return LOCKED(&guest, frame_unpin(at(n)));
}

static inline int put_entry(unsigned n, unsigned level, unsigned i, uint64_t value)
{
	return LOCKED(&guest, pt_update(at(n), level, i, value, false, &guest));
}

static inline unsigned count(unsigned n)
{
	return (unsigned)(frames[n].type & TYPE_COUNT_MASK);
}

/* The test holds a typed reference, as CR3 and the descriptor tables do. */
static inline int hold_for_test(unsigned n, enum page_type type)
{
	struct domain *d = frames[n].owner;
	int rc = page_lock(d);

	if (rc)
		return rc;
	rc = frame_get_both(at(n), d, type);
	typed_by_test[n] += !rc;
	page_unlock(d);
	audit();
	return rc;
}

static inline int drop_for_test(unsigned n)
{
	struct domain *d = frames[n].owner;
	int rc = page_lock(d);

	if (rc)
		return rc;
	typed_by_test[n]--;
	frame_put_both(at(n));
	page_unlock(d);
	audit();
	return 0;
}

/* A dying domain: afterwards nothing is held by anybody. */
static inline void relinquish(struct domain *d)
{
	for (unsigned n = 0; n < POOL; n++) {
		while (frames[n].owner == d && typed_by_test[n])
			(void)drop_for_test(n);
		while (frames[n].owner == d && held_by_test[n]) {
			held_by_test[n]--;
			frame_put(at(n));
		}
	}
	for (unsigned n = 0; n < POOL; n++)
		if (frame_get(at(n), d)) {
			held_by_test[n]++;
			CHECK_EQ(FINISHED(d, frame_relinquish(at(n))), 0);
			held_by_test[n]--;
			frame_put(at(n));
		}
	CHECK_EQ(FINISHED(d, 0), 0);
	for (unsigned n = 0; n < POOL; n++)
		if (frames[n].owner == d && n != SHARED) {
			CHECK_EQ(frames[n].ref & REF_COUNT_MASK, 1);
			CHECK_EQ(frames[n].type & ~(TYPE_MASK | TYPE_FOREIGN), 0);
		}
}

#endif
