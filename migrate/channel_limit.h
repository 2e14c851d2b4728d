/* SPDX-License-Identifier: MIT */
/*
 * A bandwidth cap that all channels and threads of a session share: a token bucket.
 *
 * Whoever wants to send n bytes takes n tokens first. The bucket fills at the rate and holds at most a burst. A take waits until
 * the bucket is not empty and may then leave it in debt, which the next ones wait for: so a take may be larger than the burst,
 * the order of waiting threads is the kernel's, and over any time t at most rate * t + burst + one take per thread pass.
 */
#ifndef PAGURUS_CHANNEL_LIMIT_H
#define PAGURUS_CHANNEL_LIMIT_H

#include <stdint.h>

struct rate_limit;

#define RATE_UNLIMITED UINT64_C(0)

/*
 * bytes_per_s: RATE_UNLIMITED or the cap; above 2^40 it is not limited either. burst: bytes that may go at once after a pause;
 * 0: what the rate gives in 20 ms. -ENOMEM.
 */
int rate_limit_new(uint64_t bytes_per_s, uint64_t burst, struct rate_limit **out);
/* No other thread may be in a call. NULL is allowed. */
void rate_limit_free(struct rate_limit *l);

/*
 * Wait for and take bytes tokens. cancel: a descriptor that ends the wait when it is readable (-1: none); then nothing was
 * taken. 0 or -ECANCELED. l NULL: no limit. Any number of threads.
 */
int rate_limit_take(struct rate_limit *l, uint64_t bytes, int cancel);

/* Change the rate (and the burst, as in rate_limit_new); those who wait follow within 100 ms. Any thread. */
void rate_limit_set(struct rate_limit *l, uint64_t bytes_per_s, uint64_t burst);

#endif
