/* SPDX-License-Identifier: MIT */
/*
 * content - what pages of a real machine look like to a compressor.
 *
 * Templates are made once; a page is then filled by a copy from them, so that filling costs about a
 * memcpy and the dirtier's rate is limited by memory rather than by a generator.
 */
#ifndef WORKLOAD_CONTENT_H
#define WORKLOAD_CONTENT_H

#include <stddef.h>
#include <stdint.h>

#include "prng.h"

#define CONTENT_PAGE_SIZE 4096

enum content_kind {
	CONTENT_ZERO, /* zero bytes */
	CONTENT_TEXT, /* words and punctuation, like a log or a mail spool */
	CONTENT_BINARY, /* records of small integers, pointers and opcodes, like a program and its heap */
	CONTENT_RANDOM, /* incompressible */
	CONTENT_MIXED,	/* one of the four for each page, in equal shares */
	CONTENT_KINDS,
};

/* The names of the kinds for a command line, ending with NULL. */
extern const char *const content_names[CONTENT_KINDS + 1];

/* Makes the templates from @seed. Returns 0 or -ENOMEM. Call once, before content_fill. */
int content_init(uint64_t seed);

/*
 * Fills the first @bytes (0 to CONTENT_PAGE_SIZE) of @page with new content of @kind, of which
 * @random_percent (0 to 100) are replaced by random bytes, at its end. Content of CONTENT_ZERO
 * without random bytes is all zero; any other differs from call to call.
 */
void content_fill(uint8_t *page, size_t bytes, enum content_kind kind, unsigned int random_percent,
		  struct prng *prng);

#endif
