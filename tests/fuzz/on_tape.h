/* SPDX-License-Identifier: MIT */
/* For fuzzers whose disk is a tape: the tape itself, since the build makes a fuzzer of one file and the libraries. */
#ifndef PAGURUS_FUZZ_ON_TAPE_H
#define PAGURUS_FUZZ_ON_TAPE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include "tests/storage/tape.c" /* NOLINT(bugprone-suspicious-include) */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The tape's delays: none. */
uint64_t unit_below(uint64_t *state, uint64_t n)
{
	(void)state;
	(void)n;
	return 0;
}

static inline void expect(bool condition)
{
	if (!condition)
		abort();
}

#endif
