/* SPDX-License-Identifier: MIT */
/*
 * clock - reading clocks and sleeping, in nanoseconds.
 *
 * All functions may be called from any thread; none fails (the clocks used always exist on Linux).
 */
#ifndef WORKLOAD_CLOCK_H
#define WORKLOAD_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_US ((int64_t)1000)
#define NS_PER_MS (1000 * NS_PER_US)
#define NS_PER_S  (1000 * NS_PER_MS)

/* Nanoseconds on clock @id. */
int64_t clock_ns(clockid_t id);

/* Sleeps until CLOCK_MONOTONIC reads @when_ns; returns at once when that is past. Signals do not end it. */
void sleep_until_ns(int64_t when_ns);

/*
 * Keeps a busy thread to @percent (1..100) of one processor: called every now and then with
 * *@since holding the CLOCK_MONOTONIC time at which the thread last began to work (0: now), it
 * sleeps when the thread has worked for some milliseconds. A gap in which the machine itself
 * stood still is not paid back.
 */
void clock_share(int64_t *since, unsigned int percent);

#endif
