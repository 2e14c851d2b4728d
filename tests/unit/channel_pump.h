/* SPDX-License-Identifier: MIT */
/* Byte-exact transfers over a pair of channels, for the channels' tests. A difference fails the test. */
#ifndef PAGURUS_TESTS_CHANNEL_PUMP_H
#define PAGURUS_TESTS_CHANNEL_PUMP_H

#include <stddef.h>
#include <stdint.h>

#include "migrate/channel.h"

/* At least length bytes (up to 64 MiB) without a short period, the same in every call; of the test program, not to be freed. */
char *pump_data(size_t length);

/* Two threads each: length bytes from c[0] to c[1] and as many back at the same time, in pieces of 1 byte to some MiB. */
void pump_both(struct channel *c[2], size_t length, uint64_t seed);

#endif
