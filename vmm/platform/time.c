// SPDX-License-Identifier: MIT
/*
 * Time is the TSC, scaled the way guests scale it, so that what a guest computes out of vcpu_time_info and what we compute agree.
 *
 * How fast the TSC runs is measured against a clock of known speed. Under an emulator or on a busy host a single measurement may be off by
 * any amount: each reading is taken between two of the TSC and the tightest of several is used, and there are several runs, of
 * which the median is believed where the whole is not in line with it.
 */
#include "vmm/platform/time.h"

#include "vmm/boot/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/lock.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/map.h"
#include "vmm/platform/irq.h"

__extension__ typedef unsigned __int128 wide_t;

#define NS_PER_SECOND 1000000000ull
#define NS_PER_MS     1000000ull

static uint64_t tsc_base; /* TSC at time 0 */
static uint64_t tsc_khz;
static uint32_t scale_mul;
static int8_t scale_shift;

/* Wall clock at time 0. */
static spinlock_t wall_lock = SPINLOCK_INIT;
static uint64_t wall_seconds;
static uint32_t wall_ns;

/* ---- scaling ---- */

/* ns = ((tsc << shift or >> -shift) * mul) >> 32, with mul as large as it can be. */
static void compute_scale(uint64_t khz, uint32_t *mul, int8_t *shift)
{
	uint64_t ns = NS_PER_MS, cycles = khz;
	int8_t s = 0;

	for (; ns >= cycles; s++)
		cycles <<= 1;
	for (; ns * 2 < cycles; s--)
		ns <<= 1;
	*mul = (uint32_t)((ns << 32) / cycles);
	*shift = s;
}

static uint64_t scale(uint64_t cycles)
{
	if (scale_shift < 0)
		cycles >>= -scale_shift;
	else
		cycles <<= scale_shift;
	return (uint64_t)((wide_t)cycles * scale_mul >> 32);
}

uint64_t time_of_tsc(uint64_t tsc)
{
	/* Another CPU's TSC may lag behind the one that time began on. */
	return tsc > tsc_base ? scale(tsc - tsc_base) : 0;
}

uint64_t time_now(void)
{
	return time_of_tsc(rdtsc());
}

uint64_t time_tsc_khz(void)
{
	return tsc_khz;
}

void time_scale(uint32_t *mul, int8_t *shift)
{
	*mul = scale_mul;
	*shift = scale_shift;
}

/* ---- clocks of known speed ---- */

struct reference {
	const char *name;
	uint64_t hz, mask; /* its width */
	bool is_pit;
};

#define PM_TIMER_HZ  3579545u
#define PIT_HZ	     1193182u
#define PIT_CHANNEL2 0x42
#define PIT_MODE     0x43
#define PIT_GATE     0x61

static uint64_t reference_read(const struct reference *r)
{
	uint8_t low;

	if (!r->is_pit)
		return inl((uint16_t)acpi.pm_timer_port) & r->mask;
	outb(PIT_MODE, 0x80); /* latch channel 2 */
	low = inb(PIT_CHANNEL2);
	/* It counts down. */
	return (0u - (uint32_t)(low | inb(PIT_CHANNEL2) << 8)) & r->mask;
}

static bool use_pm_timer(struct reference *r)
{
	*r = (struct reference){"ACPI timer", PM_TIMER_HZ, 0xffffff, false};
	return acpi.pm_timer_port;
}

static bool use_pit(struct reference *r)
{
	*r = (struct reference){"PIT", PIT_HZ, 0xffff, true};
	outb(PIT_GATE, (uint8_t)((inb(PIT_GATE) & ~2u) | 1)); /* gate on, speaker off */
	outb(PIT_MODE, 0xb4); /* channel 2, both bytes, mode 2: from 65536 round and round */
	outb(PIT_CHANNEL2, 0);
	outb(PIT_CHANNEL2, 0);
	return true;
}

/* ---- calibration ---- */

#define RUNS	 5
#define RUN_MS	 20
#define READINGS 8
#define STUCK_TSC \
	(1ull << 34) /* some seconds: a clock that does not move in that many cycles is dead */
#define KHZ_MIN	    10000u
#define KHZ_MAX	    100000000u
#define TOLERANCE   50	/* a run within 1/50 of the whole is in line with it */
#define CPUID_CLOSE 100 /* what the processor says must be within 1/100 of what was measured */

struct reading {
	uint64_t tsc, ref;
};

static struct reading read_both(const struct reference *r)
{
	struct reading best = {0};
	uint64_t width = UINT64_MAX;

	for (unsigned i = 0; i < READINGS; i++) {
		uint64_t before = rdtsc(), ref = reference_read(r), after = rdtsc();

		if (after - before < width) {
			width = after - before;
			best = (struct reading){.tsc = before + width / 2, .ref = ref};
		}
	}
	return best;
}

/* kHz of the TSC between two readings, 0: no time has gone by. */
static uint64_t rate(const struct reference *r, uint64_t tsc, uint64_t ref)
{
	/* No overflow: at most STUCK_TSC cycles and 10^9 Hz. */
	return ref ? tsc * r->hz / ref / 1000 : 0;
}

uint64_t median(uint64_t *values, unsigned n)
{
	for (unsigned i = 1; i < n; i++)
		for (unsigned j = i; j && values[j - 1] > values[j]; j--) {
			uint64_t higher = values[j - 1];

			values[j - 1] = values[j];
			values[j] = higher;
		}
	return values[n / 2];
}

static bool close_to(uint64_t a, uint64_t b, uint64_t parts)
{
	return (a > b ? a - b : b - a) <= b / parts;
}

static uint64_t measure(const struct reference *r)
{
	uint64_t khz[RUNS], total_ref = 0, start = rdtsc(), whole, middle;
	struct reading first = read_both(r), last = first;

	for (unsigned i = 0; i < RUNS; i++) {
		struct reading next;
		uint64_t ticks;

		do {
			next = read_both(r);
			ticks = (next.ref - last.ref) & r->mask;
			if (next.tsc - start > STUCK_TSC)
				return 0;
		} while (ticks < r->hz * RUN_MS / 1000);
		khz[i] = rate(r, next.tsc - last.tsc, ticks);
		total_ref += ticks;
		last = next;
	}
	whole = rate(r, last.tsc - first.tsc, total_ref);
	middle = median(khz, RUNS);
	return close_to(whole, middle, TOLERANCE) ? whole : middle;
}

/* What the processor, or the hypervisor under us, says; 0: nothing. */
static uint64_t khz_from_cpuid(void)
{
	struct cpuid leaf = cpuid(0x40000000, 0);

	/* VMware's timing leaf, which QEMU has too. */
	if (cpuid(1, 0).c >> 31 && leaf.a >= 0x40000010 && leaf.a < 0x40010000)
		return cpuid(0x40000010, 0).a;
	leaf = cpuid_leaf(0x15, 0);
	return leaf.a && leaf.b ? (uint64_t)leaf.c * leaf.b / leaf.a / 1000 : 0;
}

static uint64_t calibrate(void)
{
	bool (*const use[])(struct reference *) = {use_pm_timer, use_pit};
	uint64_t said = khz_from_cpuid();

	for (unsigned i = 0; i < ARRAY_SIZE(use); i++) {
		struct reference r;
		uint64_t khz = use[i](&r) ? measure(&r) : 0;

		if (khz < KHZ_MIN || khz > KHZ_MAX)
			continue;
		if (said && close_to(said, khz, CPUID_CLOSE)) {
			log_info("TSC: %lu kHz, as the processor says (%s: %lu)", said, r.name,
				 khz);
			return said;
		}
		log_info("TSC: %lu kHz, measured by the %s", khz, r.name);
		return khz;
	}
	if (!said)
		said = NS_PER_MS;
	log_error("TSC: there is no clock to measure it by, %lu kHz are assumed", said);
	return said;
}

/* ---- the wall clock ---- */

#define CMOS_INDEX   0x70
#define CMOS_DATA    0x71
#define CMOS_SECONDS 0x00
#define CMOS_MINUTES 0x02
#define CMOS_HOURS   0x04
#define CMOS_DAY     0x07
#define CMOS_MONTH   0x08
#define CMOS_YEAR    0x09
#define CMOS_A	     0x0a
#define CMOS_B	     0x0b
#define UPDATING     0x80 /* in A */
#define HOURS_24     0x02 /* in B */
#define BINARY	     0x04 /* in B */
#define HOUR_PM	     0x80
#define CMOS_TRIES   10000

struct cmos_time {
	uint8_t second, minute, hour, day, month, year, century, mode;
};

static uint8_t cmos_read(uint8_t at)
{
	outb(CMOS_INDEX, at);
	return inb(CMOS_DATA);
}

static struct cmos_time cmos_read_time(void)
{
	struct cmos_time t;

	for (unsigned i = 0; i < CMOS_TRIES && cmos_read(CMOS_A) & UPDATING; i++)
		__builtin_ia32_pause();
	t.second = cmos_read(CMOS_SECONDS);
	t.minute = cmos_read(CMOS_MINUTES);
	t.hour = cmos_read(CMOS_HOURS);
	t.day = cmos_read(CMOS_DAY);
	t.month = cmos_read(CMOS_MONTH);
	t.year = cmos_read(CMOS_YEAR);
	t.century = acpi.rtc_century ? cmos_read(acpi.rtc_century) : 0;
	t.mode = cmos_read(CMOS_B);
	return t;
}

static unsigned plain(uint8_t value, uint8_t mode)
{
	return mode & BINARY ? value : (unsigned)(value >> 4) * 10 + (value & 15);
}

/* Days since 1970-01-01 in the Gregorian calendar. Years are counted from March, so that the leap day is a year's last. */
static uint64_t days_since_1970(unsigned year, unsigned month, unsigned day)
{
	unsigned y = month < 3 ? year - 1 : year, m = month < 3 ? month + 9 : month - 3;

	/* Months from March have 31, 30, 31, 30, 31 days over and over: 153 in five. */
	return 365ull * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719468;
}

/* Seconds since 1970, 0: that is no time. */
static uint64_t cmos_seconds(const struct cmos_time *t)
{
	unsigned hour = plain(t->hour & 0x7f, t->mode), year = plain(t->year, t->mode);
	unsigned month = plain(t->month, t->mode), day = plain(t->day, t->mode);
	unsigned minute = plain(t->minute, t->mode), second = plain(t->second, t->mode);
	unsigned century = plain(t->century, t->mode);

	if (!(t->mode & HOURS_24))
		hour = hour % 12 + (t->hour & HOUR_PM ? 12 : 0);
	if (century >= 19 && century <= 22)
		year += century * 100;
	else
		year += year < 70 ? 2000 : 1900;
	if (year < 1970 || !month || month > 12 || !day || day > 31 || hour > 23 || minute > 59 ||
	    second > 60)
		return 0;
	return days_since_1970(year, month, day) * 86400 + hour * 3600ull + minute * 60ull + second;
}

static void wallclock_init(void)
{
	struct cmos_time a, b;
	uint64_t seconds = 0;

	if (acpi.no_rtc) {
		log_warning("There is no CMOS clock: the time is 1970 until dom0 sets it");
		return;
	}
	/* Twice the same: no update came between. */
	for (unsigned i = 0; i < RUNS; i++) {
		a = cmos_read_time();
		b = cmos_read_time();
		if (!memcmp(&a, &b, sizeof(a)))
			break;
	}
	seconds = cmos_seconds(&b);
	if (!seconds)
		log_warning("The CMOS clock is not set: the time is 1970 until dom0 sets it");
	else
		time_set_wallclock(seconds, 0, time_now());
}

void time_wallclock(uint64_t *seconds, uint32_t *nanoseconds)
{
	uint64_t flags = spin_lock_irq(&wall_lock);

	*seconds = wall_seconds;
	*nanoseconds = wall_ns;
	spin_unlock_irq(&wall_lock, flags);
}

void time_set_wallclock(uint64_t seconds, uint32_t nanoseconds, uint64_t system_time)
{
	/* Back to time 0. */
	uint64_t past_seconds = system_time / NS_PER_SECOND;
	uint32_t past_ns = (uint32_t)(system_time % NS_PER_SECOND);
	uint64_t flags;

	if (nanoseconds < past_ns) {
		nanoseconds += NS_PER_SECOND;
		past_seconds++;
	}
	flags = spin_lock_irq(&wall_lock);
	wall_seconds = seconds - past_seconds;
	wall_ns = nanoseconds - past_ns;
	spin_unlock_irq(&wall_lock, flags);
}

/* ---- start, interrupts, delays ---- */

void time_init(void)
{
	tsc_khz = calibrate();
	compute_scale(tsc_khz, &scale_mul, &scale_shift);
	tsc_base = rdtsc();
	if (!cpu_features.invariant_tsc)
		log_info("TSC: it may change its speed with the processor's, as CPUID has it");
	wallclock_init();
}

void time_init_cpu(void)
{
	if (rdtsc() < tsc_base)
		log_warning(
			"TSC: CPU with APIC id %u is behind the first one; time will jump between them",
			apic_id());
}

#define LONGEST_NS (4 * NS_PER_SECOND)

void time_set_interrupt(uint64_t when)
{
	uint64_t tsc = rdtsc(), now, delta;

	if (!when) {
		apic_timer_set(0);
		return;
	}
	now = time_of_tsc(tsc);
	/* What is farther off comes early, and whoever asked asks again. */
	delta = when > now ? MIN(when - now, LONGEST_NS) : 0;
	apic_timer_set(tsc + delta * tsc_khz / NS_PER_MS + 1);
}

void udelay(unsigned microseconds)
{
	uint64_t start = rdtsc();

	/* Before the TSC is calibrated: a write to an unused port takes about this long on a PC. */
	if (!tsc_khz) {
		while (microseconds--)
			outb(0x80, 0);
		return;
	}
	while (rdtsc() - start < microseconds * tsc_khz / 1000)
		__builtin_ia32_pause();
}
