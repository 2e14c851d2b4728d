// SPDX-License-Identifier: MIT
/* Sets of ranges against a bitmap, and at the ends of the numbers. */
#define VMM_HOSTED
#include "vmm/lib/rangeset.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"

#define NUMBERS 200u

/* Sorted, disjoint, none touching the next: what contains() relies on. */
static void check_form(const struct rangeset *s)
{
	CHECK(s->nr <= RANGESET_MAX);
	for (unsigned i = 0; i < s->nr; i++) {
		CHECK(s->range[i].first <= s->range[i].last);
		if (i)
			CHECK(s->range[i].first - s->range[i - 1].last >= 2 &&
			      s->range[i].first > s->range[i - 1].last);
	}
}

static void empty_contains_nothing(void)
{
	struct rangeset s = {0};

	CHECK(!rangeset_contains(&s, 0, 0));
	CHECK_EQ(rangeset_remove(&s, 0, UINT64_MAX), 0);
	CHECK_EQ(s.nr, 0);
}

static void joins_neighbours(void)
{
	struct rangeset s = {0};

	CHECK_EQ(rangeset_add(&s, 10, 19), 0);
	CHECK_EQ(rangeset_add(&s, 30, 39), 0);
	CHECK_EQ(s.nr, 2);
	CHECK(!rangeset_contains(&s, 19, 30));
	CHECK_EQ(rangeset_add(&s, 20, 29), 0);
	CHECK_EQ(s.nr, 1);
	CHECK(rangeset_contains(&s, 10, 39));
	CHECK(!rangeset_contains(&s, 9, 10));
	CHECK(!rangeset_contains(&s, 39, 40));
	CHECK_EQ(rangeset_remove(&s, 15, 15), 0);
	CHECK_EQ(s.nr, 2);
	CHECK(!rangeset_contains(&s, 15, 15));
	CHECK(rangeset_contains(&s, 10, 14));
	CHECK(rangeset_contains(&s, 16, 39));
}

static void ends_of_the_numbers(void)
{
	struct rangeset s = {0};

	CHECK_EQ(rangeset_add(&s, 1, UINT64_MAX), 0);
	CHECK_EQ(rangeset_add(&s, 0, 0), 0);
	CHECK_EQ(s.nr, 1);
	CHECK(rangeset_contains(&s, 0, UINT64_MAX));
	CHECK_EQ(rangeset_add(&s, 5, 6), 0);
	CHECK_EQ(s.nr, 1);
	CHECK_EQ(rangeset_remove(&s, 0, 0), 0);
	CHECK_EQ(rangeset_remove(&s, UINT64_MAX, UINT64_MAX), 0);
	CHECK_EQ(s.nr, 1);
	CHECK(rangeset_contains(&s, 1, UINT64_MAX - 1));
	CHECK_EQ(rangeset_remove(&s, 0, UINT64_MAX), 0);
	CHECK_EQ(s.nr, 0);
}

static void refuses_backward_ranges(void)
{
	struct rangeset s = {0};

	CHECK_EQ(rangeset_add(&s, 0, 100), 0);
	CHECK_EQ(rangeset_add(&s, 300, 200), -EINVAL);
	CHECK_EQ(rangeset_remove(&s, 60, 50), -EINVAL);
	CHECK(!rangeset_contains(&s, 60, 50));
	CHECK(rangeset_contains(&s, 0, 100));
}

static void full_changes_nothing(void)
{
	struct rangeset s = {0}, before;

	for (uint64_t i = 0; i < RANGESET_MAX; i++)
		CHECK_EQ(rangeset_add(&s, i * 10, i * 10 + 4), 0);
	before = s;
	CHECK_EQ(rangeset_add(&s, 7, 7), -ENOSPC);
	CHECK_MEM(&s, &before, sizeof(s));
	CHECK_EQ(rangeset_remove(&s, 12, 12), -ENOSPC);
	CHECK_MEM(&s, &before, sizeof(s));
	CHECK_EQ(rangeset_add(&s, 5, 9), 0);
	CHECK_EQ(s.nr, RANGESET_MAX - 1);
	CHECK_EQ(rangeset_remove(&s, 22, 22), 0);
	CHECK_EQ(s.nr, RANGESET_MAX);
}

static void agrees_with_a_bitmap(void)
{
	uint64_t state = unit_seed();

	for (unsigned run = 0; run < 200; run++) {
		struct rangeset s = {0};
		bool model[NUMBERS] = {0};

		for (unsigned step = 0; step < 100; step++) {
			unsigned a = unit_below(&state, NUMBERS), b = unit_below(&state, NUMBERS);
			bool add = unit_below(&state, 2), all = true;
			unsigned first = MIN(a, b), last = MIN(MAX(a, b), first + 9);

			if ((add ? rangeset_add : rangeset_remove)(&s, first, last) == 0)
				memset(model + first, add, last - first + 1);
			check_form(&s);
			first = unit_below(&state, NUMBERS);
			last = first + unit_below(&state, NUMBERS - first);
			for (unsigned i = first; i <= last; i++)
				all &= model[i];
			CHECK_EQ(rangeset_contains(&s, first, last), all);
		}
	}
}

UNIT_MAIN(TEST(empty_contains_nothing), TEST(joins_neighbours), TEST(ends_of_the_numbers),
	  TEST(refuses_backward_ranges), TEST(full_changes_nothing), TEST(agrees_with_a_bitmap))
