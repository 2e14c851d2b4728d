// SPDX-License-Identifier: MIT
/* The end of a copy before it is done: disk_copy.h. Over disks in memory. */
#include <errno.h>
#include <stdlib.h>

#include "storage/block_driver.h"
#include "storage/disk_copy.h"
#include "tests/storage/tape.h"
#include "tests/unit/unit.h"

#define SIZE	 (12u << 20)
#define PART	 (1u << 20)
#define DATA_END (8 * PART) /* as many parts as there are copiers */
#define BORED_NS UINT64_C(60000000000)
#define LOOK_NS	 UINT64_C(50000000)

static struct loop *loop;
static struct tape *from, *to;
static struct block *source, *target;
static struct disk_copy copy;
static atomic_bool stop;
static struct pgr_error err;
static bool over;
static int result;

static void setup(uint64_t rate)
{
	uint8_t *contents = malloc(SIZE);
	uint64_t state = unit_seed();

	err = PGR_ERROR_NONE;
	over = false;
	atomic_store(&stop, false);
	unit_fill_random(&state, contents, SIZE);
	CHECK_EQ(loop_create(&loop, NULL), 0);
	from = tape_new(contents, SIZE);
	to = tape_new(NULL, SIZE);
	source = tape_open(from, loop, &(struct tape_options){.seed = 1});
	target = tape_open(to, loop, &(struct tape_options){.seed = 2});
	copy = (struct disk_copy){
		.from = source, .to = target, .what = COPY_ALL, .rate = rate, .stop = &stop};
	free(contents);
}

static void teardown(void)
{
	CHECK_EQ(block_close(source, &err), 0);
	block_close(target, NULL);
	tape_free(from);
	tape_free(to);
	loop_free(loop);
}

static void run(void *ctx)
{
	(void)ctx;
	result = disk_copy(&copy, &err);
	over = true;
}

static void look_again(struct loop_timer *t)
{
	loop_arm(loop, t, loop_now_ns() + LOOK_NS);
}

static void wait_until_over(const char *what)
{
	struct loop_timer look = {.fire = look_again};
	uint64_t bored = loop_now_ns() + BORED_NS;

	look_again(&look);
	while (!over && loop_now_ns() < bored)
		loop_turn(loop, true);
	loop_disarm(loop, &look);
	CHECK_MSG(over, "the copy does not end: %s", what);
}

/* So slow that the first turn is days away. */
static void stopped_while_it_keeps_to_its_rate(void)
{
	setup(1);
	CHECK_EQ(fiber_start(loop, run, NULL), 0);
	for (unsigned i = 0; i < 1000; i++)
		loop_turn(loop, false);
	CHECK(!over);
	atomic_store(&stop, true);
	wait_until_over("it was stopped");
	CHECK_EQ(result, -ECANCELED);
	CHECK_EQ(tape_count(from, TAPE_READ), 0);
	CHECK_EQ(tape_count(to, TAPE_WRITE), 0);
	teardown();
}

/* Zeros, data for all copiers but one, and zeros again. */
static int data_between(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
			struct pgr_error *error)
{
	bool data = offset >= PART && offset < DATA_END;
	uint64_t end = offset < PART ? PART : data ? DATA_END : SIZE;

	(void)b;
	(void)error;
	*out = (struct block_extent){.length = length < end - offset ? length : end - offset,
				     .flags = BLOCK_EXTENT_HERE};
	out->flags |= data ? BLOCK_EXTENT_DATA : BLOCK_EXTENT_ZERO;
	return 0;
}

/* The others have begun to wait for their turns when the second zeros fail. */
static void one_fails_while_the_others_keep_to_the_rate(void)
{
	struct block_ops ops;

	setup(1);
	ops = *source->ops;
	ops.status = data_between;
	source->ops = &ops;
	tape_fail(to, TAPE_ZERO, 2, -EIO);
	CHECK_EQ(fiber_start(loop, run, NULL), 0);
	wait_until_over("its target failed");
	CHECK_EQ(result, -EIO);
	CHECK_EQ(tape_count(from, TAPE_READ), 0);
	teardown();
}

static void all_is_copied_when_nobody_stops_it(void)
{
	uint64_t size, other;
	const void *a, *b;

	setup(UINT64_C(64) << 20);
	CHECK_EQ(fiber_start(loop, run, NULL), 0);
	wait_until_over("nothing is wrong");
	CHECK_EQ(result, 0);
	CHECK_EQ(copy.copied, SIZE);
	a = tape_contents(from, &size);
	b = tape_contents(to, &other);
	CHECK_EQ(size, other);
	CHECK_MEM(a, b, SIZE);
	teardown();
}

UNIT_MAIN(TEST(stopped_while_it_keeps_to_its_rate),
	  TEST(one_fails_while_the_others_keep_to_the_rate),
	  TEST(all_is_copied_when_nobody_stops_it))
