/* SPDX-License-Identifier: MIT */
#include "migrate/channel_limit.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>

#include "migrate/channel_io.h"

#define LIMIT_MAX      (UINT64_C(1) << 40)
#define LIMIT_NAP_NS   100000000 /* longest sleep before looking at the rate again */
#define LIMIT_BURST_MS 20
#define NS_PER_S       1e9

struct rate_limit {
	pthread_mutex_t lock;
	double rate; /* bytes per second, 0: unlimited */
	double burst;
	double tokens; /* negative: debt */
	int64_t filled_ns;
};

/* lock is held. */
static void limit_fill(struct rate_limit *l)
{
	int64_t now = channel_now_ns();

	l->tokens += l->rate * (double)(now - l->filled_ns) / NS_PER_S;
	if (l->tokens > l->burst)
		l->tokens = l->burst;
	l->filled_ns = now;
}

/* lock is held, or nobody else knows l. */
static void limit_rate(struct rate_limit *l, uint64_t bytes_per_s, uint64_t burst)
{
	l->rate = bytes_per_s > LIMIT_MAX ? 0 : (double)bytes_per_s;
	l->burst = burst ? (double)burst : l->rate * LIMIT_BURST_MS / 1000;
	/* At a byte per second 20 ms give no whole byte; one must fit. */
	if (l->burst < 1)
		l->burst = 1;
}

int rate_limit_new(uint64_t bytes_per_s, uint64_t burst, struct rate_limit **out)
{
	struct rate_limit *l = calloc(1, sizeof(*l));

	*out = l;
	if (!l)
		return -ENOMEM;
	pthread_mutex_init(&l->lock, NULL);
	limit_rate(l, bytes_per_s, burst);
	l->tokens = l->burst;
	l->filled_ns = channel_now_ns();
	return 0;
}

void rate_limit_free(struct rate_limit *l)
{
	if (!l)
		return;
	pthread_mutex_destroy(&l->lock);
	free(l);
}

/* Take now, or say how many nanoseconds to wait before trying again. */
static int64_t limit_try(struct rate_limit *l, uint64_t bytes)
{
	double wait = 0;

	pthread_mutex_lock(&l->lock);
	if (l->rate > 0) {
		limit_fill(l);
		/* Exactly empty is not enough, or a take of nothing's worth would never wait. */
		if (l->tokens <= 0)
			wait = (1 - l->tokens) / l->rate * NS_PER_S;
		else
			l->tokens -= (double)bytes;
	}
	pthread_mutex_unlock(&l->lock);
	return wait > LIMIT_NAP_NS ? LIMIT_NAP_NS : (int64_t)wait;
}

int rate_limit_take(struct rate_limit *l, uint64_t bytes, int cancel)
{
	int64_t wait;

	if (!l)
		return 0;
	while ((wait = limit_try(l, bytes)) > 0) {
		/* No descriptor but the cancellation's: poll sleeps for the time. */
		if (channel_wait(-1, 0, cancel, channel_now_ns() + wait) == -ECANCELED)
			return -ECANCELED;
	}
	return 0;
}

void rate_limit_set(struct rate_limit *l, uint64_t bytes_per_s, uint64_t burst)
{
	pthread_mutex_lock(&l->lock);
	limit_fill(l);
	limit_rate(l, bytes_per_s, burst);
	if (l->tokens > l->burst)
		l->tokens = l->burst;
	pthread_mutex_unlock(&l->lock);
}
