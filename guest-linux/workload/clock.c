// SPDX-License-Identifier: MIT
#include "clock.h"

#include <errno.h>

/* Long enough that sleeping costs little, short enough not to disturb the 1 ms ticker for long. */
#define SHARE_SLICE_NS	       (2 * NS_PER_MS)
#define SHARE_LONGEST_SLEEP_NS (50 * NS_PER_MS)

int64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

void sleep_until_ns(int64_t when_ns)
{
	struct timespec ts = {.tv_sec = when_ns / NS_PER_S, .tv_nsec = when_ns % NS_PER_S};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
		;
}

void clock_share(int64_t *since, unsigned int percent)
{
	int64_t now = clock_ns(CLOCK_MONOTONIC);
	int64_t pause;

	if (*since == 0)
		*since = now;
	if (percent >= 100 || now - *since < SHARE_SLICE_NS)
		return;
	pause = (now - *since) * (100 - percent) / percent;
	if (pause > SHARE_LONGEST_SLEEP_NS)
		pause = SHARE_LONGEST_SLEEP_NS;
	sleep_until_ns(now + pause);
	*since = clock_ns(CLOCK_MONOTONIC);
}
