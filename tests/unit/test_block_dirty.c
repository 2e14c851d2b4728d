// SPDX-License-Identifier: MIT
/* Bitmaps of changes: dirty.h. */
#include <errno.h>
#include <stdlib.h>

#include "storage/dirty.h"
#include "tests/storage/tape.h"
#include "tests/unit/unit.h"

#define CHUNK 4096u
#define SIZE  (200u * CHUNK + 512)
#define NR    201u

static struct pgr_error err;

/* ---- the bitmap alone ---- */

static uint64_t model_bytes(const bool *model)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < NR; i++)
		sum += model[i] ? i == NR - 1 ? 512 : CHUNK : 0;
	return sum;
}

static void check_runs(const struct dirty *d, const bool *model, uint64_t at, uint64_t length)
{
	bool set;
	uint64_t run = dirty_run(d, at, length, &set), end;

	CHECK(run > 0 && run <= length);
	CHECK_EQ(set, model[at / CHUNK]);
	for (uint64_t i = at / CHUNK; i <= (at + run - 1) / CHUNK; i++)
		CHECK_EQ(model[i], set);
	end = at + run;
	if (run < length && end < SIZE)
		CHECK(model[end / CHUNK] != set);
}

static void check_take(struct dirty *d, bool *model, uint64_t from, uint64_t max)
{
	uint64_t offset, length;
	unsigned first = (unsigned)(from / CHUNK);

	while (first < NR && !model[first])
		first++;
	if (!dirty_take(d, from, max, &offset, &length)) {
		CHECK_EQ(first, NR);
		return;
	}
	CHECK_EQ(offset, first * CHUNK);
	CHECK(length > 0 && (length <= max || length <= CHUNK) && offset + length <= SIZE);
	CHECK(offset + length == SIZE || length % CHUNK == 0);
	for (uint64_t i = first; i <= (offset + length - 1) / CHUNK; i++) {
		CHECK(model[i]);
		model[i] = false;
	}
	if (length + CHUNK <= max && offset + length < SIZE)
		CHECK(!model[(offset + length) / CHUNK]);
}

static void is_as_a_table(void)
{
	bool model[NR] = {false};
	uint64_t random = unit_seed();
	struct dirty *d;

	CHECK_EQ(dirty_create(SIZE, CHUNK, &d, &err), 0);
	for (int i = 0; i < 20000; i++) {
		uint64_t at = unit_below(&random, SIZE);
		uint64_t length = 1 + unit_below(&random, 1u << unit_below(&random, 18));

		switch (unit_below(&random, 3)) {
		case 0:
			dirty_set(d, at, length);
			for (uint64_t k = at / CHUNK; k < NR && k <= (at + length - 1) / CHUNK; k++)
				model[k] = true;
			break;
		case 1:
			check_take(d, model, at, length);
			break;
		default:
			check_runs(d, model, at, length);
		}
		CHECK_EQ(dirty_bytes(d), model_bytes(model));
	}
	dirty_free(d);
}

static void ends_are_kept(void)
{
	uint64_t offset, length;
	struct dirty *d;

	CHECK_EQ(dirty_create(SIZE, CHUNK, &d, &err), 0);
	dirty_set(d, SIZE, 10);
	dirty_set(d, UINT64_MAX, UINT64_MAX);
	dirty_set(d, 5, 0);
	CHECK_EQ(dirty_bytes(d), 0);
	CHECK(!dirty_take(d, 0, UINT64_MAX, &offset, &length));
	dirty_set(d, SIZE - 1, UINT64_MAX);
	CHECK_EQ(dirty_bytes(d), 512);
	dirty_set(d, 0, UINT64_MAX);
	CHECK_EQ(dirty_bytes(d), SIZE);
	CHECK(dirty_take(d, 0, UINT64_MAX, &offset, &length));
	CHECK(offset == 0 && length == SIZE);
	CHECK(!dirty_take(d, SIZE * 2, 1, &offset, &length));
	dirty_free(d);
	CHECK_EQ(dirty_create(0, CHUNK, &d, &err), 0);
	dirty_set(d, 0, 1);
	CHECK(!dirty_bytes(d) && !dirty_take(d, 0, 1, &offset, &length));
	dirty_free(d);
	dirty_free(NULL);
	CHECK_EQ(dirty_create(SIZE, 256, &d, &err), -EINVAL);
	CHECK_EQ(dirty_create(SIZE, 12288, &d, &err), -EINVAL);
	CHECK_HAS(err.text, "power of two");
	unit_fail_alloc(1);
	CHECK_EQ(dirty_create(SIZE, CHUNK, &d, &err), -ENOMEM);
	unit_fail_alloc(0);
}

/* ---- on a disk ---- */

static struct loop *loop;
static struct tape *tape;
static struct block *disk;

static void setup(void)
{
	err = PGR_ERROR_NONE;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	tape = tape_new(NULL, SIZE);
	disk = tape_open(tape, loop, &(struct tape_options){.seed = unit_seed()});
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	tape_free(tape);
	loop_free(loop);
}

/* What is set is this, and nothing else. */
static void check_set(struct dirty *d, uint64_t offset, uint64_t length)
{
	uint64_t at, n;

	CHECK_EQ(dirty_bytes(d), length);
	CHECK(dirty_take(d, 0, UINT64_MAX, &at, &n));
	CHECK(at == offset && n == length);
}

static void changes_are_seen(void)
{
	static uint8_t data[3 * CHUNK];
	struct dirty *d, *e;

	setup();
	CHECK_EQ(dirty_create(SIZE, CHUNK, &d, &err), 0);
	CHECK_EQ(dirty_create(SIZE, CHUNK, &e, &err), 0);
	CHECK_EQ(block_write(disk, 0, data, 1, 0, &err), 0);
	dirty_attach(d, disk);
	dirty_attach(e, disk);
	CHECK_EQ(block_read(disk, 0, data, sizeof(data), &err), 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	CHECK_EQ(dirty_bytes(d), 0);
	CHECK_EQ(block_write(disk, CHUNK + 1, data, CHUNK, 0, &err), 0);
	check_set(d, CHUNK, 2 * CHUNK);
	CHECK_EQ(block_zero(disk, 5 * CHUNK - 1, 1, BLOCK_UNMAP, &err), 0);
	check_set(d, 4 * CHUNK, CHUNK);
	CHECK_EQ(block_discard(disk, 7 * CHUNK, 2 * CHUNK, &err), 0);
	check_set(d, 7 * CHUNK, 2 * CHUNK);
	tape_fail(tape, TAPE_WRITE, 1, -EIO);
	CHECK_EQ(block_write(disk, 9 * CHUNK, data, 512, 0, &err), -EIO);
	check_set(d, 9 * CHUNK, CHUNK);
	CHECK_EQ(block_write(disk, SIZE, data, 512, 0, &err), -ERANGE);
	CHECK_EQ(block_resize(disk, SIZE + 512, &err), -EBUSY);
	CHECK_HAS(err.text, "tracked");
	dirty_detach(d);
	dirty_detach(d);
	CHECK_EQ(block_write(disk, 0, data, 512, 0, &err), 0);
	CHECK(!dirty_bytes(d) && dirty_bytes(e) == 7 * CHUNK);
	dirty_free(d);
	dirty_free(e);
	CHECK_EQ(block_resize(disk, SIZE + 512, &err), 0);
	teardown();
}

struct call {
	struct block_request r;
	bool over;
};

static void call_done(struct block_request *r, const struct pgr_error *e)
{
	(void)e;
	((struct call *)r)->over = true;
}

/* Taken while a write is under way: the write sets it again when it is over. */
static void a_write_under_way_is_not_lost(void)
{
	static uint8_t data[512];
	struct iovec iov = {.iov_base = data, .iov_len = sizeof(data)};
	struct call c = {.r = {.op = BLOCK_WRITE,
			       .length = sizeof(data),
			       .iov = &iov,
			       .nr_iov = 1,
			       .done = call_done}};
	uint64_t offset, length;
	struct dirty *d;

	setup();
	CHECK_EQ(dirty_create(SIZE, CHUNK, &d, &err), 0);
	dirty_attach(d, disk);
	dirty_set(d, 0, 1);
	block_submit(disk, &c.r);
	CHECK(dirty_take(d, 0, CHUNK, &offset, &length));
	CHECK(!c.over);
	while (!c.over)
		loop_turn(loop, true);
	check_set(d, 0, CHUNK);
	dirty_free(d);
	teardown();
}

UNIT_MAIN(TEST(is_as_a_table), TEST(ends_are_kept), TEST(changes_are_seen),
	  TEST(a_write_under_way_is_not_lost))
