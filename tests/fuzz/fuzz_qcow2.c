// SPDX-License-Identifier: MIT
/*
 * A hostile qcow2 image, opened, read, checked, and written.
 *
 * The input is the file. Every request has to end, with an error or not; a disk that claims to be huge is read at its beginning, middle and end. What
 * is said to be zeros has to read as zeros, a failed request has a sentence, and memory stays bounded (the run's limit).
 */
#include <stdlib.h>
#include <string.h>

#include "storage/block_qcow2.h"
#include "storage/qcow2.h"
#include "storage/qcow2_bitmaps.h"
#include "storage/qcow2_check.h"
#include "tests/fuzz/on_tape.h"

#define READ_AT_ONCE (256u << 10)
#define EXTENTS_MAX  64u

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

/* ---- writing ---- */

#define CHANGES	     24u
#define CHANGE_BYTES (96u << 10)
#define FILE_MOST    (16u << 20)

/* Damages of the image; UINT64_MAX: it cannot be checked. */
static uint64_t damages_of(struct tape *t, struct loop *loop)
{
	const struct tape_options o = {.grows = true};
	struct block *file = tape_open(t, loop, &o);
	struct qcow2_check c = {.repair = false};
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = qcow2_check(file, &c, &err);

	expect(!ret || err.text[0] != '\0');
	block_close(file, NULL);
	return ret ? UINT64_MAX : c.damages;
}

/* Numbers that depend on the input alone. */
static uint64_t next_number(uint64_t *state)
{
	*state = *state * 6364136223846793005ull + 1442695040888963407ull;
	return *state >> 33;
}

/* Those that it has are read; with a state one is added, and perhaps the first one goes. */
static void change_bitmaps(struct block *disk, uint64_t *state)
{
	const struct qcow2_bitmaps *all;
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = qcow2_bitmaps(disk, &all, &err);

	expect(!ret || (err.code < 0 && err.text[0] != '\0'));
	if (ret || !state)
		return;
	err = PGR_ERROR_NONE;
	ret = qcow2_bitmap_add(disk, "fuzzed", 512u << next_number(state) % 12, &err);
	expect(!ret || (err.code < 0 && err.text[0] != '\0'));
	if (all->nr && next_number(state) % 2) {
		char name[QCOW2_BITMAP_NAME_MAX + 1];

		memcpy(name, all->list[0].name, sizeof(name));
		err = PGR_ERROR_NONE;
		ret = qcow2_bitmap_remove(disk, name, &err);
		expect(!ret || (err.code < 0 && err.text[0] != '\0'));
	}
}

static int change(struct block *disk, uint64_t *state, uint8_t *buffer, struct pgr_error *err)
{
	uint64_t size = block_info(disk)->size, kind = next_number(state) % 16;
	uint64_t length = 1 + next_number(state) % CHANGE_BYTES;
	uint64_t at = (next_number(state) << 31 | next_number(state)) % size;

	/* Most of them where the input has something. */
	if (kind & 1 && size > CHANGE_BYTES)
		at %= CHANGE_BYTES;
	if (length > size - at)
		length = size - at;
	memset(buffer, (int)kind + 1, length);
	if (kind < 9)
		return block_write(disk, at, buffer, length, 0, err);
	if (kind < 11)
		return block_zero(disk, at, length, kind == 9 ? BLOCK_UNMAP : 0, err);
	if (kind < 13)
		return block_discard(disk, at, length, err);
	return kind < 15 ? block_flush(disk, err)
			 : block_resize(disk, size + next_number(state) % CHANGE_BYTES, err);
}

/*
 * Whatever the tables say, the file stays an image that opens; and one without damages has none afterwards, so that nothing was written where a table
 * is, or to a cluster that something else has.
 */
static void write_image(struct tape *t, struct loop *loop, uint64_t state, uint8_t *buffer)
{
	const struct tape_options o = {.grows = true};
	const struct block_options writing = {.read_only = false};
	uint64_t before = damages_of(t, loop);
	struct pgr_error err = PGR_ERROR_NONE;
	struct block *disk;

	tape_limit(t, FILE_MOST);
	if (block_open_qcow2_over(tape_open(t, loop, &o), NULL, &writing, &disk, &err)) {
		expect(err.code < 0 && err.text[0] != '\0');
		return;
	}
	if (next_number(&state) % 2)
		change_bitmaps(disk, &state);
	for (unsigned i = 0; i < CHANGES && block_info(disk)->size; i++)
		if (change(disk, &state, buffer, &err))
			expect(err.code < 0 && err.text[0] != '\0');
	block_close(disk, &err);
	err = PGR_ERROR_NONE;
	expect(block_open_qcow2_over(tape_open(t, loop, &o), NULL, NULL, &disk, &err) == 0);
	expect(block_close(disk, &err) == 0);
	expect(before || damages_of(t, loop) == 0);
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
	if (block_open_qcow2_over(tape_open(t, loop, &o), NULL, NULL, &disk, &err)) {
		expect(err.code < 0 && err.text[0] != '\0');
	} else {
		read_from(disk, 0, buffer);
		read_from(disk, block_info(disk)->size / 2, buffer);
		if (block_info(disk)->size)
			read_from(disk, block_info(disk)->size - 1, buffer);
		change_bitmaps(disk, NULL);
		expect(block_close(disk, &err) == 0);
		write_image(t, loop, size ? data[size - 1] * 257u + size : 0, buffer);
	}
	tape_free(t);
	return 0;
}
