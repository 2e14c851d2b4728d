/* SPDX-License-Identifier: MIT */
/* So that strangers cannot fill a log: so many lines a second, and then how many were left out. */
#ifndef PAGURUS_LOG_LIMIT_H
#define PAGURUS_LOG_LIMIT_H

#include <stdbool.h>
#include <stdint.h>

/* Zeroed at first. */
struct log_limit {
	unsigned left, suppressed;
	uint64_t refill_ms;
};

/* Every second there is room again; how many lines were left out before that, which is to be said (0: none). Before log_limit_pass(), or from time to time. */
unsigned log_limit_refill(struct log_limit *k);
/* Whether a line may be written now; it counts as written then. */
bool log_limit_pass(struct log_limit *k);

#endif
