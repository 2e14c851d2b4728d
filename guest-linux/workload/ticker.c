// SPDX-License-Identifier: MIT
/*
 * ticker - ticks once a millisecond and reports the longest gap between two ticks.
 *
 * The gap is what a user of this machine feels when it is paused, migrated or starved. It is
 * measured on CLOCK_BOOTTIME, because a guest that is saved and restored does not see the time in
 * between on CLOCK_MONOTONIC; the gap on that clock is reported beside it, and so is a jump of the
 * wall clock against CLOCK_BOOTTIME.
 *
 * The thread that ticks does nothing else, at real-time priority when that is allowed; the main
 * thread prints, so that a slow console is not mistaken for a gap.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "options.h"
#include "parse.h"

#define TICK_PRIORITY 50

/* What the ticking thread leaves for the printing one; each field is exchanged for 0 when read. */
struct gaps {
	_Atomic int64_t longest;      /* ns on CLOCK_BOOTTIME */
	_Atomic int64_t longest_mono; /* ns on CLOCK_MONOTONIC */
	_Atomic int64_t wall_jump;    /* ns, signed, largest by magnitude */
	_Atomic uint64_t ticks;	      /* since start, not exchanged */
};

static struct gaps gaps;
static int64_t interval_ns = NS_PER_MS;

static void keep_larger(_Atomic int64_t *kept, int64_t value)
{
	int64_t seen = atomic_load_explicit(kept, memory_order_relaxed);

	while (llabs(value) > llabs(seen) && !atomic_compare_exchange_weak(kept, &seen, value))
		;
}

static void *tick(void *unused)
{
	int64_t mono = clock_ns(CLOCK_MONOTONIC);
	int64_t boot = clock_ns(CLOCK_BOOTTIME);
	int64_t wall_ahead = clock_ns(CLOCK_REALTIME) - boot;
	int64_t next = mono;

	(void)unused;
	for (;;) {
		int64_t mono_now, boot_now, ahead_now;

		next += interval_ns;
		sleep_until_ns(next);
		mono_now = clock_ns(CLOCK_MONOTONIC);
		boot_now = clock_ns(CLOCK_BOOTTIME);
		ahead_now = clock_ns(CLOCK_REALTIME) - boot_now;
		keep_larger(&gaps.longest, boot_now - boot);
		keep_larger(&gaps.longest_mono, mono_now - mono);
		keep_larger(&gaps.wall_jump, ahead_now - wall_ahead);
		atomic_fetch_add(&gaps.ticks, 1);
		mono = mono_now;
		boot = boot_now;
		wall_ahead = ahead_now;
		/* Ticks that were missed are gone: catching up would hide the next gap. */
		if (next < mono_now)
			next = mono_now;
	}
	return NULL;
}

/* Real-time priority where allowed; otherwise the gaps include waiting for the processor. */
static int start_ticking(bool realtime)
{
	struct sched_param param = {.sched_priority = TICK_PRIORITY};
	pthread_t thread;
	int rc;

	rc = pthread_create(&thread, NULL, tick, NULL);
	if (rc)
		return -rc;
	if (realtime && pthread_setschedparam(thread, SCHED_FIFO, &param))
		fprintf(stderr,
			"TICKER note: no permission for real-time priority, gaps include scheduling delays\n");
	return 0;
}

static void report(int64_t *longest)
{
	int64_t since_last = atomic_exchange(&gaps.longest, 0);
	int64_t since_last_mono = atomic_exchange(&gaps.longest_mono, 0);
	int64_t jump = atomic_exchange(&gaps.wall_jump, 0);

	if (since_last > *longest)
		*longest = since_last;
	printf("TICKER now_ms=%" PRId64 " longest_ms=%.3f since_last_ms=%.3f ticks=%" PRIu64
	       " mono_since_last_ms=%.3f wall_ms=%" PRId64 " wall_jump_ms=%.3f\n",
	       clock_ns(CLOCK_MONOTONIC) / NS_PER_MS, (double)*longest / NS_PER_MS,
	       (double)since_last / NS_PER_MS, atomic_load(&gaps.ticks),
	       (double)since_last_mono / NS_PER_MS, clock_ns(CLOCK_REALTIME) / NS_PER_MS,
	       (double)jump / NS_PER_MS);
	fflush(stdout);
}

static void usage(void)
{
	puts("Usage: ticker [OPTION]...\n"
	     "Ticks once a millisecond; prints the longest gap between two ticks once a second.\n"
	     "\n"
	     "  --interval MS   time between ticks (1)\n"
	     "  --report MS     time between reports (1000)\n"
	     "  --count N       exit after N reports (0: never)\n"
	     "  --no-realtime   do not ask for real-time priority\n"
	     "\n"
	     "Each report is one line:\n"
	     "  TICKER now_ms=N longest_ms=F since_last_ms=F ticks=N mono_since_last_ms=F wall_ms=N wall_jump_ms=F\n"
	     "now_ms is CLOCK_MONOTONIC; longest_ms and since_last_ms are the longest gap on\n"
	     "CLOCK_BOOTTIME since start and since the last report; ticks counts since start;\n"
	     "mono_since_last_ms is the longest gap on CLOCK_MONOTONIC, which stands still while a\n"
	     "guest is saved; wall_jump_ms is the largest jump of the wall clock, signed.");
}

int main(int argc, char **argv)
{
	int64_t report_ns = NS_PER_S, longest = 0, next;
	uint64_t count = 0, done;
	bool no_realtime = false;
	const struct option_row options[] = {
		OPTION_INTERVAL(&interval_ns),
		OPTION_REPORT(&report_ns),
		OPTION_COUNT(&count),
		{OPTION_FLAG, "--no-realtime", &no_realtime, 0, 0, NULL},
		OPTION_ROWS_END,
	};
	int first = options_read(argc, argv, options, usage), rc;

	if (first != argc)
		usage_error("unexpected '%s'", argv[first]);

	/* Without the lock a page fault under memory pressure looks like a gap; it is no condition. */
	if (mlockall(MCL_CURRENT))
		fprintf(stderr, "TICKER note: memory is not locked: %s\n", strerror(errno));
	rc = start_ticking(!no_realtime);
	if (rc) {
		fprintf(stderr, "ticker: cannot start the ticking thread: %s\n", strerror(-rc));
		return 1;
	}
	next = clock_ns(CLOCK_MONOTONIC);
	for (done = 0; count == 0 || done < count; done++) {
		int64_t now;

		next += report_ns;
		sleep_until_ns(next);
		report(&longest);
		now = clock_ns(CLOCK_MONOTONIC);
		if (next < now - report_ns)
			next = now;
	}
	return 0;
}
