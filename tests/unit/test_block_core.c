// SPDX-License-Identifier: MIT
/* What block.h promises whatever the backend: alignment, order, limits, flushes, closing. Over a disk in memory. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/block.h"
#include "storage/fiber.h"
#include "tests/storage/tape.h"
#include "tests/unit/unit.h"

#define SIZE (256u << 10)

static struct loop *loop;
static struct tape *tape;
static struct block *disk;
static struct pgr_error err;

static void setup(struct tape_options o)
{
	err = PGR_ERROR_NONE;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	tape = tape_new(NULL, SIZE);
	disk = tape_open(tape, loop, &o);
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	tape_free(tape);
	loop_free(loop);
}

/* ---- requests of a test ---- */

struct call {
	struct block_request r;
	struct iovec iov[4];
	unsigned calls, order;
	int result;
	char text[1024];
};

static unsigned calls_done;
static bool submitting;

static void done(struct block_request *r, const struct pgr_error *e)
{
	struct call *c = (struct call *)r;

	if (submitting)
		c->calls += 100; /* never within the call */
	c->calls++;
	c->order = ++calls_done;
	c->result = e ? e->code : 0;
	snprintf(c->text, sizeof(c->text), "%s", e ? e->text : "");
}

static void submit(struct call *c, enum block_op op, uint64_t offset, void *data, uint64_t length,
		   uint32_t flags)
{
	memset(c, 0, sizeof(*c));
	c->iov[0] = (struct iovec){.iov_base = data, .iov_len = length};
	c->r = (struct block_request){.op = op,
				      .offset = offset,
				      .length = length,
				      .flags = flags,
				      .iov = c->iov,
				      .nr_iov = 1,
				      .done = done};
	submitting = true;
	block_submit(disk, &c->r);
	submitting = false;
}

static void wait_for_calls(unsigned nr)
{
	while (calls_done < nr)
		loop_turn(loop, false);
	calls_done = 0;
}

/* ---- alignment ---- */

static void random_requests(uint32_t align, bool fua)
{
	uint8_t *model = calloc(1, SIZE), *data = malloc(SIZE + 64), *back = malloc(SIZE);
	uint64_t random = unit_seed();

	setup((struct tape_options){.align = align, .fua = fua, .seed = random});
	for (int i = 0; i < 600; i++) {
		uint64_t offset = unit_below(&random, SIZE),
			 length = 1 + unit_below(&random, SIZE - offset);
		uint8_t *from = data + unit_below(&random, 64);

		if (unit_below(&random, 4))
			length = 1 + length % 9000;
		if (offset + length > SIZE)
			length = SIZE - offset;
		switch (unit_below(&random, 4)) {
		case 0:
			CHECK_EQ(block_zero(disk, offset, length, 0, &err), 0);
			memset(model + offset, 0, length);
			break;
		case 1:
			CHECK_EQ(block_read(disk, offset, from, length, &err), 0);
			CHECK_MEM(from, model + offset, length);
			break;
		default:
			unit_fill_random(&random, from, length);
			CHECK_EQ(block_write(disk, offset, from, length, fua ? BLOCK_FUA : 0, &err),
				 0);
			memcpy(model + offset, from, length);
		}
	}
	CHECK_EQ(block_read(disk, 0, back, SIZE, &err), 0);
	CHECK_MEM(back, model, SIZE);
	teardown();
	free(model);
	free(data);
	free(back);
}

static void any_offset_and_length(void)
{
	random_requests(512, false);
	random_requests(4096, true);
}

/* Parts of one sector by many at once: none is lost. */
static void parts_of_a_sector_at_the_same_time(void)
{
	static struct call c[64];
	static uint8_t data[64][64], back[4096];

	setup((struct tape_options){.align = 4096, .seed = 3});
	for (unsigned i = 0; i < 64; i++) {
		memset(data[i], (int)i + 1, 64);
		submit(&c[i], BLOCK_WRITE, i * 64, data[i], 64, 0);
	}
	wait_for_calls(64);
	CHECK_EQ(block_read(disk, 0, back, 4096, &err), 0);
	for (unsigned i = 0; i < 4096; i++)
		CHECK_EQ(back[i], i / 64 + 1);
	for (unsigned i = 0; i < 64; i++)
		CHECK_EQ(c[i].calls, 1);
	teardown();
}

static void data_in_several_pieces(void)
{
	static uint8_t a[700], b[1], d[3395], back[4096];
	struct call c = {
		.r = {.op = BLOCK_WRITE, .offset = 512, .length = 4096, .nr_iov = 4, .done = done}};
	uint64_t random = 5;

	setup((struct tape_options){.seed = 1});
	unit_fill_random(&random, a, sizeof(a));
	unit_fill_random(&random, d, sizeof(d));
	c.r.iov = c.iov;
	c.iov[0] = (struct iovec){.iov_base = a, .iov_len = sizeof(a)};
	c.iov[1] = (struct iovec){.iov_base = b, .iov_len = sizeof(b)};
	c.iov[2] = (struct iovec){.iov_base = b, .iov_len = 0};
	c.iov[3] = (struct iovec){.iov_base = d, .iov_len = sizeof(d)};
	block_submit(disk, &c.r);
	wait_for_calls(1);
	CHECK_EQ(c.result, 0);
	CHECK_EQ(block_read(disk, 512, back, 4096, &err), 0);
	CHECK_MEM(back, a, sizeof(a));
	CHECK_MEM(back + 701, d, sizeof(d));
	c.iov[3].iov_len--;
	block_submit(disk, &c.r);
	wait_for_calls(1);
	CHECK_EQ(c.result, -EINVAL);
	CHECK_HAS(c.text, "has memory for 4095");
	teardown();
}

/* ---- refusals ---- */

static void nonsense_is_refused(void)
{
	static uint8_t data[512];
	struct block_extent extent;
	struct call c;

	setup((struct tape_options){.seed = 1});
	CHECK_EQ(block_read(disk, SIZE, data, 1, &err), -ERANGE);
	CHECK_HAS(err.text, "beyond its end");
	CHECK_EQ(block_write(disk, SIZE - 511, data, 512, 0, &err), -ERANGE);
	CHECK_EQ(block_read(disk, ~0ull, data, 512, &err), -ERANGE);
	CHECK_EQ(block_zero(disk, 1, ~0ull, 0, &err), -ERANGE);
	CHECK_EQ(block_discard(disk, ~0ull - 1, 10, &err), -ERANGE);
	CHECK_EQ(block_status(disk, 5, 0, &extent, &err), -EINVAL);
	CHECK_EQ(block_resize(disk, ~0ull, &err), -EINVAL);
	CHECK_EQ(block_snapshot(disk, "x", &err), -EOPNOTSUPP);
	CHECK_HAS(err.text, "overlay");
	submit(&c, BLOCK_SNAPSHOT, 0, NULL, 0, 0); /* without a name */
	wait_for_calls(1);
	CHECK_EQ(c.result, -EINVAL);
	submit(&c, (enum block_op)77, 0, data, 512, 0);
	wait_for_calls(1);
	CHECK_EQ(c.result, -EINVAL);
	submit(&c, BLOCK_READ, 0, data, BLOCK_LENGTH_MAX + 1ull, 0);
	wait_for_calls(1);
	CHECK_EQ(c.result, -EINVAL);
	CHECK_EQ(block_read(disk, 0, data, 0, &err), 0);
	CHECK_EQ(tape_count(tape, TAPE_WRITE), 0);
	teardown();
}

/* ---- order and limits ---- */

static void a_resize_is_alone(void)
{
	static struct call c[40];
	static uint8_t data[512], after[40];

	setup((struct tape_options){.seed = 9, .max_requests = 8});
	for (unsigned i = 0; i < 40; i++) {
		if (i == 20)
			submit(&c[i], BLOCK_RESIZE, 0, NULL, SIZE / 2, 0);
		else
			submit(&c[i], BLOCK_WRITE, SIZE - 512 * (i + 1), data, 512, 0);
	}
	wait_for_calls(40);
	for (unsigned i = 0; i < 40; i++) {
		after[i] = c[i].order > c[20].order;
		CHECK_EQ(c[i].calls, 1);
		CHECK_EQ(c[i].result, i > 20 ? -ERANGE : 0);
		CHECK_EQ(after[i], i > 20);
	}
	CHECK_EQ(block_info(disk)->size, SIZE / 2);
	teardown();
}

static void requests_beyond_the_limit_wait(void)
{
	static struct call c[300];
	static uint8_t data[4096];
	struct block_stats s;

	setup((struct tape_options){.seed = 9, .max_requests = 16});
	for (unsigned i = 0; i < 300; i++)
		submit(&c[i], BLOCK_WRITE, i * 512 % SIZE, data, 512, 0);
	block_stats(disk, &s);
	CHECK(s.running <= 16);
	CHECK_EQ(s.running + s.queued, 300);
	wait_for_calls(300);
	loop_turn(loop, false);
	block_stats(disk, &s);
	CHECK_EQ(s.running + s.queued, 0);
	CHECK_EQ(s.writes, 300);
	CHECK_EQ(s.write_bytes, 300 * 512);
	teardown();
}

static void quiesced_disks_stand_still(void)
{
	static struct call c[3];
	static uint8_t data[512];

	setup((struct tape_options){.seed = 2});
	submit(&c[0], BLOCK_WRITE, 0, data, 512, 0);
	block_quiesce(disk);
	CHECK_EQ(tape_count(tape, TAPE_WRITE), 1);
	block_quiesce(disk);
	submit(&c[1], BLOCK_WRITE, 0, data, 512, 0);
	submit(&c[2], BLOCK_RESIZE, 0, NULL, 4096, 0);
	for (int i = 0; i < 50; i++)
		loop_turn(loop, false);
	block_resume(disk);
	for (int i = 0; i < 50; i++)
		loop_turn(loop, false);
	CHECK_EQ(calls_done, 1);
	CHECK_EQ(tape_count(tape, TAPE_WRITE), 1);
	block_resume(disk);
	wait_for_calls(3);
	CHECK_EQ(c[1].result, 0);
	CHECK_EQ(block_info(disk)->size, 4096);
	teardown();
}

static void closing_cancels_what_waits(void)
{
	static struct call c[30];
	static uint8_t data[512];
	unsigned finished = 0;

	setup((struct tape_options){.seed = 2, .max_requests = 4});
	tape_fail(tape, TAPE_WRITE, 2, -EIO);
	for (unsigned i = 0; i < 28; i++)
		submit(&c[i], BLOCK_WRITE, i * 512, data, 512, 0);
	submit(&c[28], BLOCK_CLOSE, 0, NULL, 0, 0);
	submit(&c[29], BLOCK_READ, 0, data, 512, 0);
	wait_for_calls(30);
	for (unsigned i = 0; i < 28; i++) {
		CHECK_EQ(c[i].calls, 1);
		CHECK(c[i].result == 0 || c[i].result == -ECANCELED ||
		      (i == 1 && c[i].result == -EIO));
		finished += c[i].result != -ECANCELED;
	}
	CHECK_EQ(finished, 4);
	CHECK_EQ(c[28].result, 0);
	CHECK_EQ(c[29].result, -ECANCELED);
	CHECK_EQ(tape_count(tape, TAPE_FLUSH), 1);
	loop_turn(loop, false);
	tape_free(tape);
	loop_free(loop);
}

/* ---- flushes ---- */

static void flushes_only_when_something_was_written(void)
{
	uint8_t data[512] = {1};

	setup((struct tape_options){.seed = 1});
	CHECK_EQ(block_flush(disk, &err), 0);
	CHECK_EQ(tape_count(tape, TAPE_FLUSH), 1); /* of whoever had the disk before */
	CHECK_EQ(block_flush(disk, &err), 0);
	CHECK_EQ(tape_count(tape, TAPE_FLUSH), 1);
	CHECK_EQ(block_write(disk, 0, data, 512, 0, &err), 0);
	CHECK_EQ(block_write(disk, 512, data, 512, BLOCK_FUA, &err), 0);
	CHECK_EQ(tape_count(tape, TAPE_FLUSH), 2);
	CHECK_EQ(block_zero(disk, 512, 512, BLOCK_FUA, &err), 0);
	CHECK_EQ(tape_count(tape, TAPE_FLUSH), 3);
	teardown();
	CHECK_EQ(err.code, 0);
}

static void a_failed_flush_is_not_forgotten(void)
{
	uint8_t data[512] = {1};

	setup((struct tape_options){.seed = 1});
	CHECK_EQ(block_write(disk, 0, data, 512, 0, &err), 0);
	tape_fail(tape, TAPE_FLUSH, 1, -ENOSPC);
	CHECK_EQ(block_flush(disk, &err), -ENOSPC);
	CHECK_EQ(block_flush(disk, &err), 0);
	CHECK_EQ(block_write(disk, 0, data, 512, 0, &err), 0);
	tape_fail(tape, TAPE_FLUSH, 1, -EIO);
	CHECK_EQ(block_flush(disk, &err), -EIO);
	CHECK_EQ(block_flush(disk, &err), -EIO);
	CHECK_HAS(err.text, "earlier flush failed");
	CHECK_EQ(block_write(disk, 0, data, 512, 0, &err), 0);
	CHECK_EQ(block_write(disk, 0, data, 512, BLOCK_FUA, &err), -EIO);
	CHECK_EQ(block_close(disk, &err), -EIO);
	tape_free(tape);
	loop_free(loop);
}

/* ---- failures ---- */

static void the_nth_operation_fails(void)
{
	static const enum tape_op ops[] = {TAPE_READ, TAPE_WRITE, TAPE_ZERO};
	static uint8_t data[3000], back[3000];

	memset(data, 7, sizeof(data));
	for (unsigned i = 0; i < 3; i++) {
		for (unsigned n = 1;; n++) {
			int ret;

			setup((struct tape_options){.align = 512, .seed = n});
			tape_fail(tape, ops[i], n, -EIO);
			ret = block_write(disk, 100, data, sizeof(data), 0, &err);
			if (!ret)
				ret = block_zero(disk, 700, 2000, 0, &err);
			if (!ret)
				ret = block_read(disk, 100, back, sizeof(back), &err);
			CHECK(ret == 0 || (ret == -EIO && err.code == -EIO));
			if (ret)
				CHECK_HAS(err.text, "on demand");
			/* The disk goes on. */
			tape_fail(tape, ops[i], 0, 0);
			CHECK_EQ(block_write(disk, 100, data, sizeof(data), 0, &err), 0);
			CHECK_EQ(block_read(disk, 100, back, sizeof(back), &err), 0);
			CHECK_MEM(data, back, sizeof(data));
			teardown();
			if (!ret)
				break;
			CHECK(n < 20);
		}
	}
}

static void the_nth_allocation_fails(void)
{
	static uint8_t data[3000];
	static struct call c;
	unsigned long n;

	setup((struct tape_options){.seed = 1});
	for (n = 1;; n++) {
		unsigned long made;

		unit_fail_alloc(n);
		submit(&c, BLOCK_READ, 100, data, 3000, 0);
		wait_for_calls(1);
		made = unit_fail_alloc(0);
		CHECK_EQ(c.calls, 1);
		CHECK(c.result == 0 || c.result == -ENOMEM);
		if (made < n)
			break;
		CHECK_EQ(c.result, -ENOMEM);
		CHECK_HAS(c.text, "memory");
	}
	CHECK(n > 1);
	teardown();
}

/* ---- the contract of power cuts, and that the tape keeps to it ---- */

static void what_was_flushed_is_there_after_a_cut(void)
{
	enum { SLOTS = 16 };
	uint64_t random = unit_seed(), size;
	uint32_t block[128], value[SLOTS] = {0};
	struct {
		unsigned events;
		uint32_t value[SLOTS];
	} flushed[40];
	unsigned nr = 0;

	setup((struct tape_options){.record = true, .seed = random});
	for (uint32_t i = 1; i <= 200; i++) {
		unsigned slot = (unsigned)unit_below(&random, SLOTS);

		for (unsigned k = 0; k < 128; k++)
			block[k] = i;
		CHECK_EQ(block_write(disk, slot * 512, block, 512, 0, &err), 0);
		value[slot] = i;
		if (i % 5 == 0) {
			CHECK_EQ(block_flush(disk, &err), 0);
			flushed[nr].events = tape_events(tape);
			memcpy(flushed[nr++].value, value, sizeof(value));
		}
	}
	for (unsigned at = 0; at <= tape_events(tape); at++) {
		for (enum tape_cut how = TAPE_NONE; how <= TAPE_TORN; how++) {
			uint32_t *image = tape_cut_at(tape, at, how, at, &size);
			const uint32_t *least = NULL;

			CHECK_EQ(size, SIZE);
			for (unsigned k = 0; k < nr && flushed[k].events <= at; k++)
				least = flushed[k].value;
			for (unsigned slot = 0; slot < SLOTS; slot++) {
				uint32_t *sector = image + slot * 128;

				CHECK(sector[0] == sector[127]);
				CHECK(sector[0] >= (least ? least[slot] : 0));
			}
			free(image);
		}
	}
	teardown();
}

/* Zeros that are refused unless they are quicker than data. */
static void zeros_that_have_to_be_quick(void)
{
	static uint8_t data[4096], back[4096];

	setup((struct tape_options){.seed = 4});
	memset(data, 7, sizeof(data));
	CHECK_EQ(block_write(disk, 0, data, sizeof(data), 0, &err), 0);
	tape_fail(tape, TAPE_ZERO, 1, -EOPNOTSUPP);
	CHECK_EQ(block_zero(disk, 100, 3000, BLOCK_FAST, &err), -EOPNOTSUPP);
	CHECK_HAS(err.text, "as long as data");
	CHECK_EQ(block_read(disk, 0, back, sizeof(back), &err), 0);
	CHECK_MEM(back, data, sizeof(data));
	tape_fail(tape, TAPE_ZERO, 1, -EOPNOTSUPP);
	CHECK_EQ(block_zero(disk, 100, 1000, 0, &err), 0);
	CHECK_EQ(block_zero(disk, 1100, 2000, BLOCK_FAST, &err), 0);
	memset(data + 100, 0, 3000);
	CHECK_EQ(block_read(disk, 0, back, sizeof(back), &err), 0);
	CHECK_MEM(back, data, sizeof(data));
	teardown();
}

UNIT_MAIN(TEST(any_offset_and_length), TEST(parts_of_a_sector_at_the_same_time),
	  TEST(data_in_several_pieces), TEST(nonsense_is_refused), TEST(a_resize_is_alone),
	  TEST(requests_beyond_the_limit_wait), TEST(quiesced_disks_stand_still),
	  TEST(zeros_that_have_to_be_quick), TEST(closing_cancels_what_waits),
	  TEST(flushes_only_when_something_was_written), TEST(a_failed_flush_is_not_forgotten),
	  TEST(the_nth_operation_fails), TEST(the_nth_allocation_fails),
	  TEST(what_was_flushed_is_there_after_a_cut))
