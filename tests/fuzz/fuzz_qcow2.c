// SPDX-License-Identifier: MIT
/*
 * A hostile qcow2 image, opened and read.
 *
 * The input is the file. Every request has to end, with an error or not; a disk that claims to be huge is read at its beginning, middle and end. What
 * is said to be zeros has to read as zeros, a failed request has a sentence, and memory stays bounded (the run's limit).
 */
#include <stdlib.h>
#include <string.h>

#include "storage/block_qcow2.h"
/* The build makes a fuzzer of one file and the libraries. */
#include "tests/storage/tape.c" /* NOLINT(bugprone-suspicious-include) */

#define READ_AT_ONCE (256u << 10)
#define EXTENTS_MAX  64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The tape's delays: none. */
uint64_t unit_below(uint64_t *state, uint64_t n)
{
	(void)state;
	(void)n;
	return 0;
}

static void expect(bool condition)
{
	if (!condition)
		abort();
}

/* One extent at `at`, read as far as a buffer goes; where the next one begins, 0 after a failure. */
static uint64_t read_extent(struct block *disk, uint64_t at, uint8_t *buffer)
{
	uint64_t size = block_info(disk)->size;
	struct pgr_error err = PGR_ERROR_NONE;
	struct block_extent e;
	uint64_t n;

	if (block_status(disk, at, size - at, &e, &err)) {
		expect(err.code < 0 && err.text[0] != '\0');
		return 0;
	}
	expect(e.length > 0 && e.length <= size - at);
	n = e.length < READ_AT_ONCE ? e.length : READ_AT_ONCE;
	if (block_read(disk, at, buffer, n, &err))
		expect(err.code < 0 && err.text[0] != '\0');
	else if (e.flags & BLOCK_EXTENT_ZERO)
		for (uint64_t i = 0; i < n; i++)
			expect(buffer[i] == 0);
	return at + e.length;
}

static void read_from(struct block *disk, uint64_t at, uint8_t *buffer)
{
	for (unsigned i = 0; i < EXTENTS_MAX && at < block_info(disk)->size; i++) {
		at = read_extent(disk, at, buffer);
		if (!at)
			return;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const struct tape_options o = {.grows = true};
	struct pgr_error err = PGR_ERROR_NONE;
	static struct loop *loop;
	static uint8_t *buffer;
	struct block *disk;
	struct tape *t;

	if (!loop) {
		expect(loop_create(&loop, NULL) == 0);
		buffer = must(malloc(READ_AT_ONCE));
	}
	t = tape_new(data, size);
	if (block_open_qcow2_over(tape_open(t, loop, &o), &disk, &err)) {
		expect(err.code < 0 && err.text[0] != '\0');
	} else {
		read_from(disk, 0, buffer);
		read_from(disk, block_info(disk)->size / 2, buffer);
		if (block_info(disk)->size)
			read_from(disk, block_info(disk)->size - 1, buffer);
		expect(block_close(disk, &err) == 0);
	}
	tape_free(t);
	return 0;
}
