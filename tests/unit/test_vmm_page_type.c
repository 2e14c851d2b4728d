// SPDX-License-Identifier: MIT
/*
 * The types of frames, attacked: what a guest might try with its page tables, one try a test. The numbers in the comments are those of the invariants in
 * vmm/mm/page_type.c.
 */
#include "tests/unit/vmm_frames.h"

/* The usual tree: L4 1 -> L3 2 -> L2 3 -> L1 4 -> 10 writable, 11 read-only. */
enum { L4 = 1, L3, L2, L1, DATA = 10 };

static inline void build(void)
{
	begin();
	set(L4, 0, L3, RW);
	set(L3, 0, L2, RW);
	set(L2, 0, L1, RW);
	set(L1, 0, DATA, RW);
	set(L1, 1, DATA + 1, P);
}

/* ---- one thing at a time ---- */

/* 1, 2, 3: a legal tree is taken, holds what it says, and gives all of it back. */
static void a_tree_is_held_and_given_back(void)
{
	build();
	memory[L1][0] |= PTE_G;
	CHECK_EQ(pin(L4, 4), 0);
	CHECK_EQ(put_entry(L1, 1, 1, entry(DATA + 1, P | PTE_G)), 0);
	CHECK_EQ(type_of(frames[DATA].type), TYPE_WRITABLE);
	CHECK_EQ(count(DATA), 1);
	CHECK_EQ(count(DATA + 1), 0);
	CHECK_EQ(frames[DATA + 1].ref & REF_COUNT_MASK, 2);
	CHECK_EQ(memory[L1][0], entry(DATA, RW | PTE_US));
	CHECK_EQ(pin(L4, 4), -EINVAL);
	CHECK_EQ(pin(L3, 3), 0);
	CHECK_EQ(pin(L3, 2), -EINVAL);
	CHECK_EQ(unpin(L4), 0);
	CHECK_EQ(unpin(L4), -EINVAL);
	CHECK_EQ(count(L1), 1);
	CHECK_EQ(unpin(L3), 0);
	CHECK_EQ(unpin(DATA), -EINVAL);
	relinquish(&guest);
}

/* 1: what is a table cannot be made writable: by a new table, by an update, by plain use, for the guest or the other. */
static void a_table_is_never_writable(void)
{
	for (unsigned n = L4; n <= L1; n++) {
		build();
		CHECK_EQ(pin(L4, 4), 0);
		set(20, 7, n, RW);
		CHECK_EQ(pin(20, 1), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 5, entry(n, RW)), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 0, entry(n, RW)), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 5, entry(n, P)), 0);
		CHECK_EQ(put_entry(L1, 1, 5, entry(n, RW)), -EINVAL);
		CHECK_EQ(hold_for_test(n, TYPE_WRITABLE), -EINVAL);
		CHECK_EQ(hold_for_test(n, TYPE_DESC), -EINVAL);
		CHECK_EQ(LOCKED(&other, frame_pin(at(OTHER), TYPE_L1)), 0);
		CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 0, entry(n, RW), false, &guest)),
			 -EINVAL);
		relinquish(&other);
		relinquish(&guest);
	}
}

/* 1: what can be written to cannot become a table or a page of descriptors. */
static void a_writable_page_becomes_no_table(void)
{
	for (unsigned level = 1; level <= 4; level++) {
		build();
		CHECK_EQ(pin(L1, 1), 0);
		CHECK_EQ(pin(DATA, level), -EINVAL);
		CHECK_EQ(pin(DATA + 1, level), 0);
		CHECK_EQ(pin(SHARED, level), -EINVAL);
		CHECK_EQ(hold_for_test(DATA, TYPE_DESC), -EINVAL);
		CHECK_EQ(hold_for_test(30, TYPE_DESC), 0);
		CHECK_EQ(pin(30, level), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 2, entry(30, RW)), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 2, entry(30, P)), 0);
		relinquish(&guest);
	}
	/* The same page as a table and writable in one tree, in both orders. */
	build();
	set(L1, 5, L1, RW);
	CHECK_EQ(pin(L4, 4), -EINVAL);
	set(L1, 5, L4, RW);
	CHECK_EQ(pin(L4, 4), -EINVAL);
	set(L1, 5, 5, RW);
	set(L2, 1, 5, RW);
	CHECK_EQ(pin(L4, 4), -EINVAL);
	memory[L1][5] = 0;
	set(5, 0, L1, RW);
	CHECK_EQ(pin(L4, 4), -EINVAL);
	relinquish(&guest);
}

/* 2: flags of higher entries. */
static void higher_entries_have_no_flags_of_their_own(void)
{
	static const uint64_t bad[] = {PTE_PSE, PTE_PWT, PTE_PCD};

	for (unsigned level = 2; level <= 4; level++) {
		unsigned n = L4 + 4 - level;

		for (unsigned k = 0; k < ARRAY_SIZE(bad); k++) {
			build();
			memory[n][0] |= bad[k];
			CHECK_EQ(pin(L4, 4), -EINVAL);
			memory[n][0] &= ~bad[k];
			CHECK_EQ(pin(L4, 4), 0);
			CHECK_EQ(put_entry(n, level, 0, memory[n][0] | bad[k]), -EINVAL);
			CHECK_EQ(put_entry(n, level, 9, memory[n][0] | bad[k]), -EINVAL);
			CHECK_EQ(LOCKED(&guest, pt_compare_exchange(at(n), level, 0, memory[n][0],
								    memory[n][0] | bad[k])),
				 -EINVAL);
			relinquish(&guest);
		}
	}
}

/* 2: how RAM is cached is the hypervisor's to say, else what it has checked is not what the processor walks. */
static void ram_is_cached(void)
{
	static const uint64_t bad[] = {PTE_PAT, PTE_PWT, PTE_PCD};

	for (unsigned k = 0; k < ARRAY_SIZE(bad); k++) {
		build();
		memory[L1][0] |= bad[k];
		CHECK_EQ(pin(L4, 4), -EINVAL);
		memory[L1][0] &= ~bad[k];
		CHECK_EQ(pin(L4, 4), 0);
		CHECK_EQ(put_entry(L1, 1, 0, entry(DATA, RW | bad[k])), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 1, entry(DATA + 1, P | bad[k])), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 9, entry(DATA + 1, P | bad[k])), -EINVAL);
		CHECK_EQ(put_entry(L1, 1, 9, entry(IO_FAR, RW | bad[k])), 0);
		relinquish(&guest);
		set(OTHER, 0, OTHER + 1, RW | bad[k]);
		CHECK_EQ(LOCKED(&other, frame_pin(at(OTHER), TYPE_L1)), 0);
		relinquish(&other);
	}
}

/* 2: a table that would be walked at two levels, or by itself. */
static void no_table_has_two_levels(void)
{
	for (unsigned n = L4; n <= L1; n++) {
		for (unsigned m = L4; m <= L2; m++) {
			unsigned level = 5 - m;

			build();
			CHECK_EQ(pin(L4, 4), 0);
			/* The right level alone is taken. */
			CHECK_EQ(put_entry(m, level, 100, entry(n, RW)), n == m + 1 ? 0 : -EINVAL);
			relinquish(&guest);
			build();
			set(m, 100, n, RW);
			CHECK_EQ(pin(L4, 4), n == m + 1 ? 0 : -EINVAL);
			relinquish(&guest);
		}
		/* Reading one's own tables is what guests do. */
		build();
		set(L1, 100, n, P);
		CHECK_EQ(pin(L4, 4), 0);
		relinquish(&guest);
	}
}

/* 2: the hypervisor's slots are filled by it alone, whatever the guest left there. */
static void the_hypervisors_slots_stay_its_own(void)
{
	build();
	for (unsigned i = HV_FIRST_SLOT; i <= HV_LAST_SLOT; i++)
		set(L4, i, i % 2 ? L3 : 0xfffffffff, RW);
	CHECK_EQ(pin(L4, 4), 0);
	for (unsigned i = HV_FIRST_SLOT; i <= HV_LAST_SLOT; i++) {
		CHECK_EQ(memory[L4][i], HV_MARK(i));
		CHECK_EQ(put_entry(L4, 4, i, entry(L3, RW)), -EINVAL);
		CHECK_EQ(put_entry(L4, 4, i, 0), -EINVAL);
		CHECK_EQ(LOCKED(&guest,
				pt_compare_exchange(at(L4), 4, i, HV_MARK(i), HV_MARK(i) | PTE_US)),
			 -EINVAL);
		CHECK_EQ(memory[L4][i], HV_MARK(i));
	}
	CHECK_EQ(put_entry(L4, 4, HV_FIRST_SLOT - 1, entry(L3, RW)), 0);
	CHECK_EQ(put_entry(L4, 4, HV_LAST_SLOT + 1, entry(L3, RW)), 0);
	CHECK_EQ(count(L3), 3);
	CHECK_EQ(unpin(L4), 0);
	/* What stands there now does not come in at another level. */
	CHECK_EQ(pin(L4, 3), -EINVAL);
	relinquish(&guest);
}

/* 2: others' frames, the hypervisor's, what is free or no RAM. */
static void only_ones_own_frames(void)
{
	static const unsigned theirs[] = {OTHER, OWN, NO_RAM, 0, IO_OTHERS};

	for (unsigned k = 0; k < ARRAY_SIZE(theirs); k++) {
		build();
		CHECK_EQ(pin(L4, 4), 0);
		CHECK_EQ(put_entry(L1, 1, 0, entry(theirs[k], RW)), -EPERM);
		CHECK_EQ(put_entry(L1, 1, 0, entry(theirs[k], P)), -EPERM);
		for (unsigned n = L4; n <= L2; n++)
			CHECK(put_entry(n, 5 - n, 0, entry(theirs[k], P)) < 0);
		set(20, 3, theirs[k], P);
		for (unsigned level = 1; level <= 4; level++)
			CHECK_EQ(pin(20, level), -EINVAL);
		relinquish(&guest);
	}
	CHECK(!frame_get(at(OTHER), &guest));
	CHECK(!frame_get(at(NO_RAM), &guest));
	CHECK(!frame_get(at(OWN), &guest));
	/* All bits of the address, and those above it. */
	build();
	CHECK_EQ(pin(L4, 4), 0);
	CHECK_EQ(put_entry(L1, 1, 0, PTE_ADDR | RW), -EPERM);
	CHECK_EQ(put_entry(L2, 2, 0, PTE_ADDR | RW), -EINVAL);
	CHECK_EQ(put_entry(L1, 1, 0, entry(DATA, RW | PTE_NX | 0x7ffull << 52 | PTE_AVAIL)), 0);
	relinquish(&guest);
}

/* 2: device memory by right, in L1 only, and it is not counted. */
static void io_memory_by_right(void)
{
	build();
	CHECK_EQ(pin(L4, 4), 0);
	CHECK_EQ(put_entry(L1, 1, 2, entry(IO_FAR, RW | PTE_PCD)), 0);
	CHECK_EQ(put_entry(L1, 1, 3, entry(IO_FRAME, RW)), 0);
	CHECK_EQ(put_entry(L1, 1, 2, entry(IO_OTHERS, RW)), -EPERM);
	CHECK_EQ(put_entry(L1, 1, 4, entry(0xffffffffff, P)), -EPERM);
	for (unsigned n = L4; n <= L2; n++) {
		CHECK_EQ(put_entry(n, 5 - n, 4, entry(IO_FAR, RW)), -EINVAL);
		CHECK_EQ(put_entry(n, 5 - n, 4, entry(IO_FRAME, RW)), -EINVAL);
	}
	CHECK_EQ(frames[IO_FRAME].ref, REF_IO);
	CHECK_EQ(frames[IO_FRAME].type, 0);
	set(OTHER, 0, IO_FAR, RW);
	CHECK_EQ(LOCKED(&other, frame_pin(at(OTHER), TYPE_L1)), -EINVAL);
	relinquish(&guest);
	relinquish(&other);
}

/* 2: what is not present is the guest's to keep there. */
static void garbage_that_is_not_present(void)
{
	uint64_t seed = unit_seed();

	build();
	for (unsigned n = L4; n <= L1; n++)
		for (unsigned i = 1; i < PT_ENTRIES; i++)
			memory[n][i] = unit_random(&seed) & ~PTE_P;
	CHECK_EQ(pin(L4, 4), 0);
	for (unsigned n = L4; n <= L1; n++) {
		uint64_t garbage = unit_random(&seed) & ~PTE_P;

		CHECK_EQ(put_entry(n, 5 - n, 77, garbage), 0);
		CHECK_EQ(memory[n][77], garbage);
	}
	relinquish(&guest);
}

/* 1, 2: a change of rights moves the typed reference with it. */
static void rights_move_the_type(void)
{
	build();
	CHECK_EQ(pin(L4, 4), 0);
	CHECK_EQ(put_entry(L1, 1, 9, entry(DATA, RW)), 0);
	CHECK_EQ(count(DATA), 2);
	CHECK_EQ(put_entry(L1, 1, 0, entry(DATA, P)), 0);
	CHECK_EQ(count(DATA), 1);
	CHECK_EQ(put_entry(L1, 1, 9, entry(DATA, P | PTE_NX)), 0);
	CHECK_EQ(count(DATA), 0);
	CHECK_EQ(pin(DATA, 1), 0);
	CHECK_EQ(put_entry(L1, 1, 9, entry(DATA, RW)), -EINVAL);
	CHECK_EQ(unpin(DATA), 0);
	CHECK_EQ(put_entry(L1, 1, 9, entry(DATA, RW)), 0);
	CHECK_EQ(put_entry(L1, 1, 9, 0), 0);
	CHECK_EQ(put_entry(L1, 1, 0, 0), 0);
	CHECK_EQ(frames[DATA].ref & REF_COUNT_MASK, 1);
	/* In higher tables the right to write is nothing that is held. */
	CHECK_EQ(put_entry(L2, 2, 0, entry(L1, P)), 0);
	CHECK_EQ(count(L1), 1);
	relinquish(&guest);
}

/* Accessed and dirty bits: kept when asked for; an exact exchange fails when the processor has set one, and then holds nothing of it. */
static void the_processors_bits(void)
{
	const uint64_t was = entry(DATA, RW | PTE_US);

	build();
	CHECK_EQ(pin(L4, 4), 0);
	memory[L1][0] |= PTE_A | PTE_D;
	CHECK_EQ(LOCKED(&guest, pt_update(at(L1), 1, 0, entry(DATA, P), true, &guest)), 0);
	CHECK_EQ(memory[L1][0], entry(DATA, P | PTE_US | PTE_A | PTE_D));
	CHECK_EQ(put_entry(L1, 1, 0, entry(DATA, RW)), 0);
	CHECK_EQ(memory[L1][0], was);
	memory[L1][0] |= PTE_A;
	CHECK_EQ(LOCKED(&guest, pt_compare_exchange(at(L1), 1, 0, was, entry(20, RW))), -EAGAIN);
	CHECK_EQ(LOCKED(&guest, pt_compare_exchange(at(L1), 1, 0, was, entry(DATA, P))), -EAGAIN);
	CHECK_EQ(LOCKED(&guest, pt_compare_exchange(at(L1), 1, 0, was, was | PTE_D)), -EAGAIN);
	CHECK_EQ(memory[L1][0], was | PTE_A);
	CHECK_EQ(count(20), 0);
	CHECK_EQ(LOCKED(&guest, pt_compare_exchange(at(L1), 1, 0, was | PTE_A, entry(20, RW))), 0);
	CHECK_EQ(count(20), 1);
	CHECK_EQ(LOCKED(&guest, pt_compare_exchange(at(L2), 2, 0, entry(L1, RW), entry(21, RW))),
		 -EAGAIN);
	CHECK_EQ(type_of(frames[21].type), TYPE_L1);
	CHECK_EQ(count(21), 0);
	relinquish(&guest);
}

/* 1: another domain maps by right what its owner has, and never what is a table there. */
static void foreign_mappings(void)
{
	build();
	CHECK_EQ(LOCKED(&other, frame_pin(at(OTHER), TYPE_L1)), 0);
	CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 0, entry(DATA, RW), false, &guest)), 0);
	CHECK_EQ(pin(DATA, 1), -EINVAL);
	CHECK_EQ(pin(L4, 4), 0);
	CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 1, entry(L1, RW), false, &guest)), -EINVAL);
	CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 1, entry(L1, P), false, &guest)), 0);
	CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 2, entry(DATA, P), false, &other)), -EPERM);
	CHECK_EQ(LOCKED(&other, frame_unpin(at(OTHER))), 0);
	CHECK_EQ(frames[DATA].ref & REF_COUNT_MASK, 2);
	/* A table is checked with its owner's rights alone. */
	CHECK_EQ(LOCKED(&other, frame_pin(at(OTHER), TYPE_L1)), -EINVAL);
	relinquish(&other);
	relinquish(&guest);
}

/* The last reference frees a frame, and until then it is nobody else's. */
static void a_dropped_frame_lives_while_it_is_used(void)
{
	build();
	CHECK_EQ(pin(L4, 4), 0);
	for (unsigned n = L4; n <= L1; n++)
		take_back(n);
	take_back(DATA);
	audit();
	CHECK(frames[L4].owner == &guest && frames[DATA].owner == &guest);
	CHECK_EQ(unpin(L4), 0);
	for (unsigned n = L4; n <= L1; n++)
		CHECK(!frames[n].owner);
	CHECK(!frames[DATA].owner);
	CHECK(!frame_get(at(DATA), &guest));
	relinquish(&guest);
}

/* Counts do not run over: neither the guest's mappings nor what the hypervisor adds to them. */
static void references_do_not_run_over(void)
{
	build();
	CHECK_EQ(pin(L4, 4), 0);
	/* As many as a guest gets. */
	frames[L2].ref |= REF_COUNT_MASK - 2000;
	while (frame_get(at(L2), &guest))
		;
	CHECK((frames[L2].ref & REF_COUNT_MASK) > REF_COUNT_MASK - 2000);
	CHECK(page_lock(&guest) == 0);
	CHECK_EQ(pt_update(at(L1), 1, 8, entry(L2, P), false, &guest), -EPERM);
	/* A table that is PARTIAL holds itself. */
	preempt_every = 1;
	CHECK_EQ(pt_update(at(L3), 3, 0, 0, false, &guest), 0);
	CHECK(frames[L2].type & TYPE_PARTIAL);
	page_unlock(&guest);
	build();
	CHECK_EQ(pin(L4, 4), 0);
	frames[DATA].type |= TYPE_COUNT_MASK;
	CHECK_EQ(pt_update(at(L1), 1, 8, entry(DATA, RW), false, &guest), -EINVAL);
	CHECK_EQ(frames[DATA].ref & REF_COUNT_MASK, 2);
}

/* ---- descriptors ---- */

#define DESC_P	  (1ull << 47)
#define DESC_S	  (1ull << 44)
#define DESC_DPL  (3ull << 45)
#define DESC_A	  (1ull << 40)
#define DESC_CODE (1ull << 43)
#define DESC_CONF (1ull << 42)

/* Every combination of type, privilege and presence: none that runs or reads with privilege remains. */
static void descriptors(void)
{
	for (unsigned bits = 0; bits < 256; bits++) {
		uint64_t d = (uint64_t)bits << 40 | 0x00af00000000ffffull, was = d;
		int rc = descriptor_check(&d);

		if (!(d & DESC_P)) {
			CHECK(rc == 0 && d == was);
		} else if (!(d & DESC_S)) {
			CHECK_EQ(rc, -EINVAL); /* gates, TSS, LDT */
		} else if ((d & DESC_CODE) && (d & DESC_CONF) && (d & DESC_DPL) != DESC_DPL) {
			CHECK_EQ(rc, -EINVAL);
		} else {
			CHECK_EQ(rc, 0);
			CHECK_EQ(d, was | DESC_DPL | DESC_A);
		}
	}
}

static void pages_of_descriptors(void)
{
	const uint64_t good = DESC_P | DESC_S | DESC_CODE;

	begin();
	for (unsigned i = 0; i < PT_ENTRIES; i++)
		memory[20][i] = good;
	memory[20][511] = DESC_P; /* a system descriptor, the last */
	CHECK_EQ(hold_for_test(20, TYPE_DESC), -EINVAL);
	CHECK_EQ(count(20), 0);
	CHECK_EQ(hold_for_test(20, TYPE_WRITABLE), 0);
	CHECK_EQ(hold_for_test(20, TYPE_DESC), -EINVAL);
	memory[20][511] = good;
	CHECK_EQ(drop_for_test(20), 0);
	CHECK_EQ(hold_for_test(20, TYPE_DESC), 0);
	CHECK_EQ(hold_for_test(20, TYPE_DESC), 0);
	for (unsigned i = 0; i < PT_ENTRIES; i++)
		CHECK_EQ(memory[20][i], good | DESC_DPL | DESC_A);
	CHECK_EQ(hold_for_test(20, TYPE_WRITABLE), -EINVAL);
	CHECK_EQ(pin(20, 1), -EINVAL);
	CHECK_EQ(hold_for_test(OTHER, TYPE_DESC), 0);
	relinquish(&guest);
	relinquish(&other);
}

/* ---- invariant 5 ---- */

/* Whoever could write to a page through its TLB has forgotten that when the page is a table; the reverse for a table. */
static void tlbs_forget_before_types_change(void)
{
	for (unsigned level = 1; level <= 4; level++) {
		unsigned before;

		build();
		CHECK_EQ(pin(L4, 4), 0);
		fill_tlb(0);
		fill_tlb(1);
		CHECK(cpu[1].knows[DATA] & MAY_WRITE);
		CHECK_EQ(put_entry(L1, 1, 0, 0), 0);
		before = flushes;
		CHECK_EQ(pin(DATA, level), 0);
		CHECK_EQ(flushes, before + 2);
		CHECK(!cpu[0].knows[DATA] && !cpu[1].knows[DATA]);
		fill_tlb(0);
		CHECK_EQ(unpin(DATA), 0);
		/* The same again: no flush; another use: one. */
		before = flushes;
		CHECK_EQ(pin(DATA, level), 0);
		CHECK_EQ(unpin(DATA), 0);
		CHECK_EQ(flushes, before);
		CHECK_EQ(put_entry(L1, 1, 0, entry(DATA, RW)), 0);
		CHECK(!(cpu[0].knows[DATA] & WALKED_AS));
		relinquish(&guest);
	}
	/* A flush that happened meanwhile is not repeated. */
	build();
	CHECK_EQ(pin(L4, 4), 0);
	fill_tlb(0);
	CHECK_EQ(put_entry(L1, 1, 0, 0), 0);
	flush_cpu(0);
	flush_cpu(1);
	flushes = 0;
	CHECK_EQ(pin(DATA, 1), 0);
	CHECK_EQ(flushes, 0);
	relinquish(&guest);
}

/* Who has mapped another's page forgets it too before it becomes a table, though the owner never ran on that processor. */
static void foreign_tlbs_forget_too(void)
{
	for (unsigned reused = 0; reused < 2; reused++) {
		build();
		CHECK_EQ(LOCKED(&other, frame_pin(at(OTHER), TYPE_L1)), 0);
		CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 0, entry(DATA, RW), false, &guest)),
			 0);
		fill_tlb(OTHERS_CPU);
		CHECK(cpu[OTHERS_CPU].knows[DATA] & MAY_WRITE);
		CHECK_EQ(LOCKED(&other, pt_update(at(OTHER), 1, 0, 0, false, &guest)), 0);
		if (reused) {
			CHECK_EQ(hold_for_test(DATA, TYPE_WRITABLE), 0);
			CHECK_EQ(drop_for_test(DATA), 0);
		}
		CHECK_EQ(pin(DATA, 1), 0);
		CHECK(!(cpu[OTHERS_CPU].knows[DATA] & MAY_WRITE));
		relinquish(&guest);
		relinquish(&other);
	}
}

/*
 * A vCPU is about to note when the last writable reference went; meanwhile another takes one, writes through its TLB, and gives it up. What is noted
 * must not be from before that.
 */
static void write_meanwhile(void)
{
	meanwhile = NULL;
	/* The processor has flushed, and only then has it got the mapping. */
	flush_cpu(1);
	if (frames[DATA].type & TYPE_BUSY) /* it would wait until that is done */
		return;
	if (frame_get_type(at(DATA), TYPE_WRITABLE))
		return;
	cpu[1].knows[DATA] |= MAY_WRITE;
	frame_put_type(at(DATA));
}

static void the_last_use_is_the_one_noted(void)
{
	build();
	CHECK_EQ(hold_for_test(DATA, TYPE_WRITABLE), 0);
	meanwhile = write_meanwhile;
	CHECK_EQ(drop_for_test(DATA), 0);
	CHECK(!meanwhile);
	CHECK_EQ(pin(DATA, 1), 0);
	CHECK(!(cpu[1].knows[DATA] & MAY_WRITE));
	relinquish(&guest);
}

/* ---- 6: work that is interrupted, and what a guest does with a table that is PARTIAL ---- */

/* Let the operation be interrupted once the table has come so far. */
static void pin_in_part(unsigned n, unsigned level)
{
	preempt_every = 1;
	CHECK_EQ(pin(n, level), -ERESTART);
	preempt_every = 0;
	CHECK(frames[n].type & TYPE_PARTIAL);
}

/* A table that goes on being checked meets itself further down, as a table of another level. */
static void a_resumed_table_does_not_meet_itself(void)
{
	build();
	memory[L3][0] = 0;
	set(L3, 100, L2, P);
	memory[L2][0] = 0;
	set(L2, 0, L3, P); /* as an L1 table, it would map L2 for reading */
	pin_in_part(L3, 3);
	CHECK_EQ(pin_all(L3, 3), -EINVAL);
	CHECK_EQ(count(L3), 0);
	relinquish(&guest);
}

/*
 * L3 is PARTIAL because of L2, which is PARTIAL itself. L2 is asked for alone and has L3 as an L1 table: L3 is emptied for that, but not L2, which is
 * being checked.
 */
static void emptying_one_does_not_empty_what_is_being_filled(void)
{
	build();
	set(L2, 0, L1, P);
	set(L2, 300, L3, P);
	set(L3, 0, L2, P);
	CHECK_EQ(pin(L1, 1), 0);
	pin_in_part(L3, 3);
	CHECK_EQ(unpin(L1), 0);
	CHECK(frames[L3].type & TYPE_PENDING);
	CHECK(frames[L2].type & TYPE_PARTIAL);
	CHECK_EQ(pin_all(L2, 2), 0);
	CHECK_EQ(count(L1), 1);
	CHECK_EQ(type_of(frames[L3].type), TYPE_L1);
	CHECK_EQ(hold_for_test(L1, TYPE_WRITABLE), -EINVAL);
	relinquish(&guest);
}

/* The only user of the table in which an entry is replaced is a PARTIAL one, which the new entry wants as something else. */
static void an_update_does_not_outlive_its_table(void)
{
	for (unsigned level = 2; level <= 3; level++) {
		unsigned user = L4 + 3 - level, table = user + 1, other_use = table + 1;

		build();
		memory[other_use][0] = 0; /* what is replaced */
		CHECK_EQ(pin(table, level), 0);
		pin_in_part(user, level + 1);
		CHECK_EQ(unpin(table), 0);
		CHECK_EQ(count(table), 1);
		/* As a lower table it would be fine. */
		memory[user][0] &= ~PTE_RW;
		CHECK_EQ(put_entry(table, level, 0, entry(user, P)), -EINVAL);
		CHECK_EQ(count(table), 0);
		relinquish(&guest);
	}
}

/* Every table of a tree is at fault at once, and giving each up takes long: nothing is forgotten. */
static void failures_in_failures(void)
{
	for (unsigned bad = L4; bad <= L1; bad++) {
		for (unsigned every = 1; every < 12; every++) {
			build();
			for (unsigned n = L4; n <= L2; n++)
				for (unsigned i = 0; i < 200; i++)
					set(n, i, n + 20, P);
			for (unsigned i = 0; i < 200; i++)
				set(L1, i, DATA, RW);
			for (unsigned n = L4; n <= bad; n++)
				set(n, 210, n == bad ? OTHER : n + 1, P);
			preempt_every = every;
			for (unsigned tries = 0; pin(L4, 4) == -ERESTART; tries++)
				CHECK(tries < 1000);
			CHECK_EQ(FINISHED(&guest, 0), 0);
			for (unsigned n = GUEST; n < GUEST_END; n++)
				CHECK(!(frames[n].type & TYPE_PARTIAL) && !count(n));
			relinquish(&guest);
		}
	}
}

/* Two tables are let go of under one lock. */
static void two_tables_are_left_unfinished(void)
{
	build();
	CHECK_EQ(pin(L3, 3), 0);
	for (unsigned i = 0; i < 200; i++) {
		set(20, i, DATA, RW);
		set(21, i, DATA, P);
	}
	CHECK_EQ(pin(20, 1), 0);
	CHECK_EQ(pin(21, 1), 0);
	preempt_every = 1;
	CHECK_EQ(page_lock(&guest), 0);
	CHECK_EQ(frame_unpin(at(20)), 0);
	CHECK_EQ(frame_unpin(at(21)), 0);
	/* One of them is wanted again at once, again and again. */
	for (unsigned k = 0; k < 20; k++) {
		CHECK_EQ(frame_get_both(at(20), &guest, TYPE_L1), 0);
		frame_put_both(at(20));
	}
	page_unlock(&guest);
	audit();
	CHECK(frames[21].type & TYPE_PARTIAL);
	CHECK_EQ(FINISHED(&guest, 0), 0);
	CHECK(!(frames[20].type & TYPE_PARTIAL) && !(frames[21].type & TYPE_PARTIAL));
	relinquish(&guest);
}

/* What was left unfinished, was finished elsewhere, and belongs to another domain now is not touched. */
static void what_was_unfinished_may_be_anothers(void)
{
	build();
	for (unsigned i = 0; i < 200; i++)
		set(20, i, DATA, RW);
	CHECK_EQ(pin(20, 1), 0);
	take_back(20);
	preempt_every = 1;
	CHECK_EQ(page_lock(&guest), 0);
	CHECK(frame_get(at(20), &guest));
	CHECK_EQ(frame_unpin(at(20)), 0);
	preempt_every = 0;
	/* Another use finishes it, and lets go of it. */
	CHECK_EQ(frame_get_type(at(20), TYPE_DESC), 0);
	frame_put_both(at(20));
	page_unlock(&guest);
	CHECK(!frames[20].owner);
	give(20, &other);
	for (unsigned i = 0; i < 200; i++)
		set(20, i, OTHER, P);
	preempt_every = 1;
	CHECK_EQ(LOCKED(&other, frame_pin(at(20), TYPE_L1)), -ERESTART);
	preempt_every = 0;
	CHECK_EQ(LOCKED(&guest, 0), 0);
	CHECK(frames[20].type & TYPE_PARTIAL);
	relinquish(&other);
	relinquish(&guest);
}

/* A dying domain's tables, one after the other under one lock: more than one operation may leave, and none stays. */
static void relinquished_under_one_lock(void)
{
	build();
	for (unsigned n = 20; n < 60; n++) {
		for (unsigned i = 0; i < 200; i++)
			set(n, i, DATA, RW);
		CHECK_EQ(pin(n, 1), 0);
	}
	CHECK_EQ(page_lock(&guest), 0);
	preempt_every = 1;
	for (unsigned left = 40; left;) {
		left = 0;
		for (unsigned n = 20; n < 60; n++) {
			CHECK(frame_get(at(n), &guest));
			left += frame_relinquish(at(n)) != 0;
			frame_put(at(n));
		}
	}
	page_unlock(&guest);
	audit();
	relinquish(&guest);
}

/* Tables with few entries each: giving up a tree of them asks as often as one with many. */
static void narrow_trees_are_interrupted_too(void)
{
	unsigned first = 20;

	begin();
	for (unsigned k = 0; k < 60; k++) {
		set(L2, k, first + k, P);
		for (unsigned i = 0; i < 60; i++)
			set(first + k, i, DATA, RW);
	}
	CHECK_EQ(pin(L2, 2), 0);
	dropped_unasked = dropped_most = 0;
	CHECK_EQ(unpin(L2), 0);
	CHECK(dropped_most < 8);
	relinquish(&guest);
}

/* Nothing waits for this CPU, but another vCPU for the lock. */
static void whoever_waits_for_the_lock_gets_it(void)
{
	int tries = 0, rc;

	begin();
	for (unsigned i = 0; i < PT_ENTRIES; i++)
		set(L1, i, DATA, RW);
	do {
		CHECK_EQ(page_lock(&guest), 0);
		guest.page_lock.ticket++;
		rc = frame_pin(at(L1), TYPE_L1);
		guest.page_lock.ticket--;
		page_unlock(&guest);
		audit();
		tries++;
	} while (rc == -ERESTART);
	CHECK_EQ(rc, 0);
	CHECK_EQ(tries, PT_ENTRIES / PREEMPT_EVERY);
	CHECK_EQ(unpin(L1), 0);
	relinquish(&guest);
}

/*
 * Interrupted at every n-th question, for every n: a tree is pinned, changed at each level, made to fail, wanted as something else while it is PARTIAL,
 * and let go of.
 */
static void wide_tree(void)
{
	build();
	for (unsigned i = 1; i < 512; i += 7) {
		set(L4, i, i % 3 ? L3 : 5, RW);
		set(L3, i, i % 2 ? L2 : 6, RW);
		set(L2, i, i % 5 ? L1 : 7, RW);
		set(L1, i, 40 + i % 64, i % 3 ? RW : P);
		set(5, i, 6, RW);
		set(6, i, 7, RW);
		set(7, i, 40 + i % 64, RW);
	}
}

static int change(unsigned which)
{
	switch (which) {
	case 0:
		return FINISHED(&guest, pt_update(at(L4), 4, 0, 0, false, &guest));
	case 1:
		return FINISHED(&guest, pt_update(at(L3), 3, 0, entry(6, P), false, &guest));
	case 2:
		return FINISHED(&guest, pt_update(at(L2), 2, 0, entry(8, P), false, &guest));
	case 3:
		return FINISHED(&guest, pt_update(at(L4), 4, 2, entry(9, P), false, &guest));
	case 4:
		return pin(7, 1);
	case 5:
		return pin(6, 4);
	case 6:
		return hold_for_test(5, TYPE_DESC);
	case 7:
		return hold_for_test(L1, TYPE_WRITABLE);
	case 8:
		return FINISHED(&guest, frame_unpin(at(L4)));
	default:
		return pin(L4, 4);
	}
}

static void interrupted_anywhere(void)
{
	uint64_t seed = unit_seed();

	for (unsigned n = 1; n <= 64; n = n < 12 ? n + 1 : n * 2) {
		for (unsigned tries = 0;; tries++) {
			wide_tree();
			preempt_every = n;
			for (unsigned k = 0; k < tries; k++)
				if (pin(L4, 4) != -ERESTART)
					break;
			for (unsigned k = 0; k < 12; k++)
				(void)change((unsigned)unit_below(&seed, 10));
			preempt_every = n;
			relinquish(&guest);
			if (tries > 12)
				break;
		}
		wide_tree();
		preempt_every = n;
		CHECK_EQ(pin_all(L4, 4), 0);
		for (unsigned k = 0; k < 4; k++)
			CHECK(change(k) <= 0);
		relinquish(&guest);
	}
}

/* L1TF: what an entry that is not present points to is read in speculation. */
static void entries_that_are_not_present_point_to_no_memory(void)
{
	mitigations.l1tf = true;
	build();
	set(L1, 2, DATA, 0);
	CHECK_EQ(pin(L4, 4), -EINVAL);
	build();
	set(L2, 5, DATA, 0);
	CHECK_EQ(pin(L4, 4), -EINVAL);
	build();
	CHECK_EQ(pin(L4, 4), 0);
	CHECK_EQ(put_entry(L1, 1, 2, entry(DATA, 0)), -EINVAL);
	CHECK_EQ(put_entry(L1, 1, 1, entry(DATA, 0)), -EINVAL);
	CHECK_EQ(put_entry(L2, 2, 2, entry(DATA, 0)), -EINVAL);
	/* What a kernel that knows of it writes instead: the address inverted; and an address that only looks far off. */
	CHECK_EQ(put_entry(L1, 1, 2, ~entry(DATA, 0) & PTE_ADDR), 0);
	CHECK_EQ(put_entry(L1, 1, 3, entry(DATA, 0) | 1ull << 50), -EINVAL);
	CHECK_EQ(put_entry(L1, 1, 2, 0), 0);
	guest.privileged = true;
	CHECK_EQ(put_entry(L1, 1, 2, entry(DATA, 0)), 0);
	guest.privileged = false;
	mitigations.l1tf = false;
	CHECK_EQ(put_entry(L1, 1, 3, entry(DATA, 0)), 0);
	CHECK_EQ(unpin(L4), 0);
	relinquish(&guest);
}

UNIT_MAIN(TEST(entries_that_are_not_present_point_to_no_memory),
	  TEST(a_tree_is_held_and_given_back), TEST(a_table_is_never_writable),
	  TEST(a_writable_page_becomes_no_table), TEST(higher_entries_have_no_flags_of_their_own),
	  TEST(ram_is_cached), TEST(no_table_has_two_levels),
	  TEST(the_hypervisors_slots_stay_its_own), TEST(only_ones_own_frames),
	  TEST(io_memory_by_right), TEST(garbage_that_is_not_present), TEST(rights_move_the_type),
	  TEST(the_processors_bits), TEST(foreign_mappings),
	  TEST(a_dropped_frame_lives_while_it_is_used), TEST(references_do_not_run_over),
	  TEST(descriptors), TEST(pages_of_descriptors), TEST(tlbs_forget_before_types_change),
	  TEST(foreign_tlbs_forget_too), TEST(the_last_use_is_the_one_noted),
	  TEST(a_resumed_table_does_not_meet_itself),
	  TEST(emptying_one_does_not_empty_what_is_being_filled),
	  TEST(an_update_does_not_outlive_its_table), TEST(failures_in_failures),
	  TEST(two_tables_are_left_unfinished), TEST(what_was_unfinished_may_be_anothers),
	  TEST(relinquished_under_one_lock), TEST(narrow_trees_are_interrupted_too),
	  TEST(whoever_waits_for_the_lock_gets_it), TEST(interrupted_anywhere))
