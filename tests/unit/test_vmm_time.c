// SPDX-License-Identifier: MIT
/* Time's arithmetic: scaling as a guest does it, the CMOS clock's ways of writing a date against the C library's. */
#define VMM_HOSTED
#define __XEN_TOOLS__
#include "vmm/platform/time.c" /* NOLINT(bugprone-suspicious-include) */

#include <time.h>

#include "tests/unit/unit.h"
#include "tests/unit/vmm_log.h"

struct acpi_info acpi;
struct cpu_features cpu_features;
static uint64_t deadline;

void apic_timer_set(uint64_t tsc)
{
	deadline = tsc;
}

uint32_t apic_id(void)
{
	return 0;
}

void *map_device(uint64_t maddr, size_t bytes)
{
	(void)maddr;
	(void)bytes;
	return NULL;
}

static void scales_any_frequency(void)
{
	static const uint64_t khz[] = {10000,	999999,	 1000000, 1000001, 2399998,
				       3000000, 4095999, 5000000, 99999999};

	for (unsigned i = 0; i < ARRAY_SIZE(khz); i++) {
		/* A day's cycles must come out as a day, to within the multiplier's 32 bits. */
		uint64_t cycles = 86400 * 1000ull * khz[i], day = 86400 * NS_PER_SECOND, got;

		compute_scale(khz[i], &scale_mul, &scale_shift);
		CHECK(scale_mul >> 31);
		got = scale(cycles);
		CHECK_MSG(got <= day && day - got < day >> 30, "%lu kHz: %lu of %lu ns", khz[i],
			  got, day);
		CHECK_EQ(scale(0), 0);
	}
}

static uint8_t bcd(unsigned v)
{
	return (uint8_t)(v / 10 << 4 | v % 10);
}

static void dates_agree_with_the_c_library(void)
{
	/* A step that meets every hour, day, month and leap year between 1970 and 2106. */
	for (uint64_t s = 1; s < UINT32_MAX; s += 86400 * 3 + 3671) {
		time_t t = (time_t)s;
		struct tm tm;
		struct cmos_time c = {0};
		unsigned year, hour12;

		gmtime_r(&t, &tm);
		year = 1900u + (unsigned)tm.tm_year;
		c = (struct cmos_time){bcd((unsigned)tm.tm_sec),
				       bcd((unsigned)tm.tm_min),
				       bcd((unsigned)tm.tm_hour),
				       bcd((unsigned)tm.tm_mday),
				       bcd((unsigned)tm.tm_mon + 1),
				       bcd(year % 100),
				       bcd(year / 100),
				       HOURS_24};
		CHECK_EQ(cmos_seconds(&c), s);

		/* Twelve hours, no century. */
		hour12 = (unsigned)tm.tm_hour % 12 ? (unsigned)tm.tm_hour % 12 : 12;
		c.hour = (uint8_t)(bcd(hour12) | (tm.tm_hour >= 12 ? HOUR_PM : 0));
		c.mode = 0;
		if (year < 2070)
			c.century = 0;
		CHECK_EQ(cmos_seconds(&c), s);

		c = (struct cmos_time){(uint8_t)tm.tm_sec,	 (uint8_t)tm.tm_min,
				       (uint8_t)tm.tm_hour,	 (uint8_t)tm.tm_mday,
				       (uint8_t)(tm.tm_mon + 1), (uint8_t)(year % 100),
				       (uint8_t)(year / 100),	 HOURS_24 | BINARY};
		CHECK_EQ(cmos_seconds(&c), s);
	}
}

static void nonsense_is_no_date(void)
{
	struct cmos_time good = {0, 0, 0, 1, 1, 20, 20, HOURS_24 | BINARY}, t = good;

	CHECK_EQ(cmos_seconds(&good), 1577836800);
	t.month = 0;
	CHECK_EQ(cmos_seconds(&t), 0);
	t.month = 13;
	CHECK_EQ(cmos_seconds(&t), 0);
	t = good;
	t.day = 0;
	CHECK_EQ(cmos_seconds(&t), 0);
	t = good;
	t.minute = 0xff;
	CHECK_EQ(cmos_seconds(&t), 0);
	memset(&t, 0xff, sizeof(t));
	CHECK_EQ(cmos_seconds(&t), 0);
}

static void wall_clock_is_kept_as_of_time_0(void)
{
	uint64_t s;
	uint32_t ns;

	time_set_wallclock(1000, 300, 5 * NS_PER_SECOND + 400);
	time_wallclock(&s, &ns);
	CHECK_EQ(s, 994);
	CHECK_EQ(ns, 999999900);
	time_set_wallclock(1000, 400, 5 * NS_PER_SECOND + 400);
	time_wallclock(&s, &ns);
	CHECK_EQ(s, 995);
	CHECK_EQ(ns, 0);
}

static void runs_are_sorted_for_the_median(void)
{
	uint64_t v[] = {5, 1, 4, 1, 3};

	median(v, 5);
	CHECK(v[0] == 1 && v[1] == 1 && v[2] == 3 && v[3] == 4 && v[4] == 5);
	CHECK(close_to(102, 100, TOLERANCE) && !close_to(103, 100, TOLERANCE));
	CHECK(close_to(98, 100, TOLERANCE) && !close_to(97, 100, TOLERANCE));
}

static void rates_are_exact(void)
{
	struct reference pm = {.hz = PM_TIMER_HZ};

	CHECK_EQ(rate(&pm, 3000000000, PM_TIMER_HZ), 3000000);
	CHECK_EQ(rate(&pm, 1, 0), 0);
	/* As long as a stuck clock is waited for, at the fastest that is accepted. */
	CHECK_EQ(rate(&(struct reference){.hz = NS_PER_SECOND}, STUCK_TSC, 1u << 31), 8000000);
}

static void far_deadlines_come_early(void)
{
	uint64_t before;

	tsc_khz = 1000000;
	compute_scale(tsc_khz, &scale_mul, &scale_shift);
	tsc_base = rdtsc();
	time_set_interrupt(0);
	CHECK_EQ(deadline, 0);
	before = rdtsc();
	time_set_interrupt(UINT64_MAX);
	CHECK(deadline >= before + LONGEST_NS && deadline <= rdtsc() + LONGEST_NS + 1);
	/* One that is over: at once, but not never. */
	time_set_interrupt(1);
	CHECK(deadline && deadline <= rdtsc() + 1);
}

UNIT_MAIN(TEST(scales_any_frequency), TEST(dates_agree_with_the_c_library),
	  TEST(nonsense_is_no_date), TEST(wall_clock_is_kept_as_of_time_0),
	  TEST(runs_are_sorted_for_the_median), TEST(rates_are_exact),
	  TEST(far_deadlines_come_early))
