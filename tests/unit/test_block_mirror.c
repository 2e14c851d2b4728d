// SPDX-License-Identifier: MIT
/* Disks that are mirrored while they are written: mirror.h. Over disks in memory. */
#include <errno.h>
#include <stdlib.h>

#include "storage/fiber.h"
#include "storage/mirror.h"
#include "tests/storage/tape.h"
#include "tests/unit/unit.h"

#define SIZE	((12u << 20) + 512)
#define WRITERS 6u

static struct loop *loop;
static struct tape *from, *to;
static struct block *disk;
static struct pgr_error err;
static uint64_t random_state;

static void setup_sized(uint64_t destination_size, struct mirror_options o)
{
	uint8_t *contents = malloc(SIZE);
	int ret;

	err = PGR_ERROR_NONE;
	random_state = unit_seed();
	unit_fill_random(&random_state, contents, SIZE);
	CHECK_EQ(loop_create(&loop, NULL), 0);
	from = tape_new(contents, SIZE);
	to = tape_new(NULL, destination_size);
	ret = mirror_open(tape_open(from, loop, &(struct tape_options){.seed = 1}),
			  tape_open(to, loop, &(struct tape_options){.seed = 2}), &o, &disk, &err);
	CHECK_MSG(!ret, "%s", err.text);
	free(contents);
}

static void setup(void)
{
	setup_sized(SIZE, (struct mirror_options){.rate = 0});
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	tape_free(from);
	tape_free(to);
	loop_free(loop);
}

static void check_equal(void)
{
	uint64_t size, other;
	const uint8_t *a = tape_contents(from, &size), *b = tape_contents(to, &other);

	CHECK_EQ(size, SIZE);
	CHECK_MEM(a, b, SIZE);
}

static enum mirror_phase phase(void)
{
	struct mirror_status s;

	mirror_status(disk, &s);
	return s.phase;
}

/* ---- users of the disk ---- */

#define FOREVER UINT32_MAX

static unsigned writers, failures;
static uint32_t to_do; /* requests of all of them */

/* They write from the same memory, which so changes under each other's requests. They leave the loop's turn no end: who watches them is a fiber, too. */
static void write_on(void *ctx)
{
	static uint8_t data[4u << 20];
	uint64_t state = (uintptr_t)ctx + unit_seed();

	while (to_do) {
		uint64_t length = 512 * (1 + unit_below(&state, 1u << unit_below(&state, 8)));
		uint64_t offset = unit_below(&state, SIZE / 512) * 512;
		int ret;

		if (unit_below(&state, 2))
			offset %= 64 << 10; /* where they meet */
		if (!unit_below(&state, 64))
			length = (3u << 20) + 100;
		if (length > SIZE - offset)
			length = SIZE - offset;
		switch (unit_below(&state, 8)) {
		case 0:
			ret = block_zero(disk, offset, length, BLOCK_UNMAP, NULL);
			break;
		case 1:
			ret = block_discard(disk, offset, length, NULL);
			break;
		case 2:
			ret = block_flush(disk, NULL);
			break;
		case 3:
			ret = block_read(disk, offset, data, length, NULL);
			break;
		default:
			memset(data, (int)unit_below(&state, 256), length);
			ret = block_write(disk, offset, data, length,
					  unit_below(&state, 4) ? 0 : BLOCK_FUA, NULL);
		}
		failures += ret != 0;
		to_do -= to_do && to_do != FOREVER;
		fiber_yield(loop);
	}
	writers--;
}

/* While watch() runs, and `more` requests after it. */
static void with_load(void (*watch)(void *ctx), void *ctx)
{
	to_do = FOREVER;
	failures = 0;
	for (uintptr_t i = 0; i < WRITERS; i++) {
		writers++;
		CHECK_EQ(fiber_start(loop, write_on, (void *)i), 0);
	}
	CHECK_EQ(fiber_start(loop, watch, ctx), 0);
	while (writers)
		loop_turn(loop, true);
	CHECK_EQ(failures, 0);
}

/* ---- tests ---- */

static void a_disk_at_rest(void)
{
	struct mirror_status s;

	setup();
	CHECK_EQ(phase(), MIRROR_COPY);
	CHECK_EQ(mirror_wait(disk, &err), 0);
	mirror_status(disk, &s);
	CHECK(s.phase == MIRROR_EQUAL && s.size == SIZE && !s.left && s.copied == SIZE);
	check_equal();
	CHECK_EQ(mirror_finish(disk, MIRROR_STAY, &err), 0);
	CHECK_EQ(tape_count(to, TAPE_FLUSH), 1);
	check_equal();
	/* A plain disk from now on. */
	CHECK_EQ(block_write(disk, 0, "after", 5, 0, &err), 0);
	CHECK_MEM(tape_contents(from, &(uint64_t){0}), "after", 5);
	CHECK(memcmp(tape_contents(to, &(uint64_t){0}), "after", 5) != 0);
	CHECK_EQ(mirror_wait(disk, &err), -ENOTCONN);
	teardown();
}

/* Compared in the moment of the switch, before anybody else runs; then the load goes on, on one of them. */
static void switch_now(void *ctx)
{
	CHECK_EQ(mirror_finish(disk, *(enum mirror_end *)ctx, &err), 0);
	check_equal();
	to_do = 300;
}

static void under_load(enum mirror_end end)
{
	setup();
	with_load(switch_now, &end);
	teardown();
}

static void equal_at_the_switch_under_load(void)
{
	under_load(MIRROR_STAY);
	under_load(MIRROR_MOVE);
}

static void look_often(void *ctx)
{
	(void)ctx;
	CHECK_EQ(mirror_wait(disk, &err), 0);
	for (int round = 0; round < 10; round++) {
		for (int i = 0; i < 40; i++)
			fiber_yield(loop);
		block_quiesce(disk);
		CHECK_EQ(phase(), MIRROR_EQUAL);
		check_equal();
		block_resume(disk);
	}
	to_do = 0;
}

/* Equal for as long as nobody switches. */
static void stays_equal_under_load(void)
{
	setup();
	with_load(look_often, NULL);
	teardown();
}

static void see_it_fail(void *ctx)
{
	(void)ctx;
	while (phase() != MIRROR_FAILED)
		fiber_yield(loop);
	CHECK_EQ(mirror_wait(disk, &err), -ENOSPC);
	CHECK_EQ(mirror_finish(disk, MIRROR_MOVE, &err), -ENOSPC);
	to_do = 50;
}

/* Whatever fails there, the disk's users see nothing of it, and who waits for the mirror does. */
static void the_destination_fails(void)
{
	static const unsigned at[] = {1, 2, 12, 13, 14, 40};

	for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		setup();
		tape_fail(to, TAPE_WRITE, at[i], -ENOSPC);
		with_load(see_it_fail, NULL);
		teardown();
	}
	setup();
	tape_fail(to, TAPE_ZERO, 1, -ENOSPC);
	with_load(see_it_fail, NULL);
	teardown();
	setup();
	tape_fail(to, TAPE_FLUSH, 1, -EIO);
	CHECK_EQ(mirror_finish(disk, MIRROR_MOVE, &err), -EIO);
	CHECK_EQ(block_write(disk, 0, "stays", 5, 0, &err), 0);
	CHECK_MEM(tape_contents(from, &(uint64_t){0}), "stays", 5);
	teardown();
}

/* What a failed write left on the source is what is copied. */
static void the_source_fails(void)
{
	static uint8_t data[4096];

	setup();
	tape_fail(from, TAPE_READ, 3, -EIO);
	CHECK_EQ(mirror_wait(disk, &err), -EIO);
	teardown();
	setup();
	CHECK_EQ(mirror_wait(disk, &err), 0);
	memset(data, 9, sizeof(data));
	tape_fail(from, TAPE_WRITE, 1, -ENOSPC);
	CHECK_EQ(block_write(disk, 8192, data, sizeof(data), 0, &err), -ENOSPC);
	CHECK_EQ(mirror_finish(disk, MIRROR_STAY, &err), 0);
	check_equal();
	teardown();
}

static void is_as_slow_as_told(void)
{
	uint64_t begin = loop_now_ns();

	setup_sized(SIZE, (struct mirror_options){.rate = 60u << 20});
	CHECK_EQ(mirror_wait(disk, &err), 0);
	check_equal();
	/* All but the last four pieces, which have begun, at 60 MiB a second. */
	CHECK(loop_now_ns() - begin > UINT64_C(8) * 1000000000 / 60);
	teardown();
	/* Closed while all of them wait for their turn. */
	setup_sized(SIZE, (struct mirror_options){.rate = 1});
	loop_turn(loop, true);
	teardown();
}

/* Cancelled in the middle, it is the source alone, which goes on without the filter; and can be mirrored again. */
static void cancel_now(void *ctx)
{
	(void)ctx;
	for (unsigned i = 0; i < 100; i++)
		fiber_yield(loop);
	CHECK_EQ(phase(), MIRROR_COPY);
	mirror_cancel(disk);
	CHECK_EQ(phase(), MIRROR_FAILED);
	to_do = 100;
}

static void cancelled_and_begun_again(void)
{
	uint64_t size;

	setup_sized(SIZE, (struct mirror_options){.rate = 4u << 20});
	with_load(cancel_now, NULL);
	CHECK_EQ(failures, 0);
	disk = mirror_unwrap(disk);
	CHECK_EQ(block_write(disk, 0, "all the same", 12, 0, &err), 0);
	CHECK_MEM(tape_contents(from, &size), "all the same", 12);
	CHECK_EQ(mirror_open(disk, tape_open(to, loop, &(struct tape_options){.seed = 3}), NULL,
			     &disk, &err),
		 0);
	CHECK_EQ(mirror_finish(disk, MIRROR_STAY, &err), 0);
	check_equal();
	teardown();
}

static void what_is_refused(void)
{
	struct tape *small;
	struct block *source, *destination, *out;

	CHECK_EQ(loop_create(&loop, NULL), 0);
	from = tape_new(NULL, SIZE);
	small = tape_new(NULL, SIZE - 512);
	source = tape_open(from, loop, &(struct tape_options){.seed = 1});
	destination = tape_open(small, loop, &(struct tape_options){.seed = 1});
	CHECK_EQ(mirror_open(source, destination, NULL, &out, &err), -EINVAL);
	CHECK_HAS(err.text, "bytes");
	for (unsigned long n = 1; n <= 3; n++) {
		unit_fail_alloc(n);
		if (mirror_open(destination, source, NULL, &out, &err)) {
			unit_fail_alloc(0);
			CHECK_EQ(err.code, -ENOMEM);
			continue;
		}
		/* One copier less, or none: that is seen later. */
		unit_fail_alloc(0);
		mirror_wait(out, &err);
		CHECK_EQ(block_close(out, &err), 0);
		source = NULL;
		break;
	}
	if (source) {
		CHECK_EQ(block_close(source, &err), 0);
		CHECK_EQ(block_close(destination, &err), 0);
	}
	tape_free(from);
	tape_free(small);
	loop_free(loop);
}

/* A larger one keeps its end; closing in the middle ends the copying. */
static void sizes_and_closing(void)
{
	uint64_t size;

	setup_sized(SIZE + 4096, (struct mirror_options){.zeroed = true});
	CHECK_EQ(mirror_wait(disk, &err), 0);
	check_equal();
	tape_contents(to, &size);
	CHECK_EQ(size, SIZE + 4096);
	CHECK_EQ(block_resize(disk, SIZE + 512, &err), -EOPNOTSUPP);
	teardown();
	setup();
	CHECK_EQ(phase(), MIRROR_COPY);
	teardown();
}

UNIT_MAIN(TEST(a_disk_at_rest), TEST(equal_at_the_switch_under_load), TEST(stays_equal_under_load),
	  TEST(the_destination_fails), TEST(the_source_fails), TEST(is_as_slow_as_told),
	  TEST(cancelled_and_begun_again), TEST(what_is_refused), TEST(sizes_and_closing))
