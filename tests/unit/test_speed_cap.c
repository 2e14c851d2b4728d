/* SPDX-License-Identifier: MIT */
#include "migrate/speed_cap.h"
#include "tests/unit/unit.h"

#define S 1000000000ull

static void use_is_rounded_up(void)
{
	CHECK_EQ(speed_used(0, S), 1);
	CHECK_EQ(speed_used(S / 100, S), 1);
	CHECK_EQ(speed_used(S / 100 + 2000, S), 2);
	CHECK_EQ(speed_used(4 * S, 2 * S), 200);
}

static void what_is_too_short_or_absurd_says_nothing_wrong(void)
{
	CHECK_EQ(speed_used(S / 10, S / 10), 0);
	CHECK_EQ(speed_used(0, 0), 0);
	CHECK_EQ(speed_used(UINT64_MAX, S), SPEED_CAP_MAX);
	CHECK_EQ(speed_used(UINT64_MAX, UINT64_MAX), 100);
}

/* One that needs a tenth of a processor is slowed as much as one that needs all of it. */
static void a_guest_is_slowed_by_what_it_used(void)
{
	CHECK_EQ(speed_cap(10, 0, 1, 50), 5);
	CHECK_EQ(speed_cap(100, 0, 1, 30), 30);
	CHECK_EQ(speed_cap(250, 0, 4, 50), 125);
	CHECK_EQ(speed_cap(1, 0, 1, 30), 1);
	CHECK_EQ(speed_cap(0, 0, 2, 50), 100);
	CHECK_EQ(speed_cap(900, 0, 2, 50), 100);
	CHECK_EQ(speed_cap(0, 0, 0, 50), 50);
}

static void its_own_cap_is_never_passed(void)
{
	CHECK_EQ(speed_cap(0, 40, 2, 50), 20);
	CHECK_EQ(speed_cap(100, 40, 2, 50), 20);
	CHECK_EQ(speed_cap(20, 40, 2, 50), 10);
	CHECK_EQ(speed_cap(0, 400, 2, 50), 100);
}

UNIT_MAIN(TEST(use_is_rounded_up), TEST(what_is_too_short_or_absurd_says_nothing_wrong),
	  TEST(a_guest_is_slowed_by_what_it_used), TEST(its_own_cap_is_never_passed))
