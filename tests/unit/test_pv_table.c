// SPDX-License-Identifier: MIT
/* Page tables of PV guests: what is translated, what is refused, what is left alone. */
#include "migrate/pv_table.h"

#include <errno.h>

#include "tests/unit/unit.h"

static uint64_t from[PV_TABLE_ENTRIES], to[PV_TABLE_ENTRIES];
static struct pv_table_error fault;

/* Frame f becomes 2 f; frames from 1000 on are nobody's. */
static uint64_t twice(const void *ctx, uint64_t frame, unsigned level, uint64_t entry)
{
	(void)ctx;
	/* Frame 500 may be named by a table of level 2 alone, and not to be written. */
	if (frame == 500 && (level != 2 || (entry & PV_ENTRY_WRITE)))
		return PV_FRAME_KIND;
	return frame < 1000 ? 2 * frame : PV_FRAME_NONE;
}

static int translate(unsigned level)
{
	return pv_table_translate(to, from, level, twice, NULL, &fault);
}

static void clear(void)
{
	memset(from, 0, sizeof(from));
	memset(to, 0xff, sizeof(to));
}

static void present_entries_change_their_frame_and_nothing_else(void)
{
	clear();
	from[0] = 0x8000000000007067;	/* NX and flags */
	from[511] = 0x07f0000000003001; /* every bit that software may use */
	CHECK_EQ(translate(1), 0);
	CHECK_EQ(to[0], 0x800000000000e067);
	CHECK_EQ(to[511], 0x07f0000000006001);
	CHECK_EQ(to[1], 0);
}

static void entries_that_are_not_present_stay(void)
{
	clear();
	from[3] = 0xfffffffffffffffe; /* a swap entry, say: no frame of anybody */
	CHECK_EQ(translate(1), 0);
	CHECK_EQ(to[3], 0xfffffffffffffffe);
}

static void an_unknown_frame_is_named(void)
{
	clear();
	from[17] = 1000ull << 12 | 1;
	CHECK_EQ(translate(1), -EINVAL);
	CHECK_EQ(fault.fault, PV_TABLE_FRAME);
	CHECK_EQ(fault.slot, 17);
	CHECK_EQ(fault.entry, 1000ull << 12 | 1);
	CHECK(pv_table_fault_text(fault.fault)[0]);
}

static void a_frame_of_the_wrong_kind_is_named(void)
{
	clear();
	from[4] = 500ull << 12 | 1;
	CHECK_EQ(translate(2), 0);
	CHECK_EQ(to[4], 1000ull << 12 | 1);
	CHECK_EQ(translate(1), -EINVAL);
	CHECK_EQ(fault.fault, PV_TABLE_KIND);
	CHECK_EQ(fault.slot, 4);
	CHECK(pv_table_fault_text(fault.fault)[0]);
	from[4] |= PV_ENTRY_WRITE;
	CHECK_EQ(translate(2), -EINVAL);
	CHECK_EQ(fault.fault, PV_TABLE_KIND);
}

static void large_pages_are_refused_where_they_can_be(void)
{
	unsigned level;

	clear();
	from[2] = 0x1081;
	for (level = 2; level <= 4; level++) {
		CHECK_EQ(translate(level), -EINVAL);
		CHECK_EQ(fault.fault, PV_TABLE_LARGE);
		CHECK(pv_table_fault_text(fault.fault)[0]);
	}
	/* In the lowest table the bit is the PAT's. */
	CHECK_EQ(translate(1), 0);
	CHECK_EQ(to[2], 0x2081);
}

static void the_hypervisors_slots_of_a_top_table_vanish(void)
{
	unsigned i;

	clear();
	for (i = 255; i <= 272; i++)
		from[i] = (i == 255 || i == 272 ? 5ull : 5000ull) << 12 | 1;
	CHECK_EQ(translate(4), 0);
	CHECK_EQ(to[255], 10ull << 12 | 1);
	CHECK_EQ(to[272], 10ull << 12 | 1);
	for (i = 256; i <= 271; i++)
		CHECK_EQ(to[i], 0);
	/* Only there: in another table they are entries as all others. */
	CHECK_EQ(translate(3), -EINVAL);
	CHECK_EQ(fault.slot, 256);
}

static void a_table_can_be_translated_in_place(void)
{
	clear();
	from[9] = 7ull << 12 | 3;
	CHECK_EQ(pv_table_translate(from, from, 2, twice, NULL, &fault), 0);
	CHECK_EQ(from[9], 14ull << 12 | 3);
}

/* A translation that answers with a number no entry can hold must not spill into the flags. */
static uint64_t too_large(const void *ctx, uint64_t frame, unsigned level, uint64_t entry)
{
	(void)ctx;
	(void)level;
	(void)entry;
	return frame + (1ull << 40);
}

static void a_frame_number_beyond_an_entry_is_refused(void)
{
	clear();
	from[0] = 0x1001;
	CHECK_EQ(pv_table_translate(to, from, 1, too_large, NULL, &fault), -EINVAL);
}

UNIT_MAIN(TEST(present_entries_change_their_frame_and_nothing_else),
	  TEST(entries_that_are_not_present_stay), TEST(an_unknown_frame_is_named),
	  TEST(a_frame_of_the_wrong_kind_is_named), TEST(large_pages_are_refused_where_they_can_be),
	  TEST(the_hypervisors_slots_of_a_top_table_vanish),
	  TEST(a_table_can_be_translated_in_place), TEST(a_frame_number_beyond_an_entry_is_refused))
