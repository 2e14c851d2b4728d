// SPDX-License-Identifier: MIT
/* The loop, fibers, locks and the helper thread, that everything in storage/ stands on. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "storage/fiber.h"
#include "storage/loop.h"
#include "storage/offload.h"
#include "storage/range_lock.h"
#include "tests/unit/unit.h"

static struct loop *loop;
static char trace[256];

static void setup(void)
{
	trace[0] = '\0';
	CHECK_EQ(loop_create(&loop, NULL), 0);
}

static void note(char c)
{
	size_t n = strlen(trace);

	CHECK(n + 1 < sizeof(trace));
	trace[n] = c;
	trace[n + 1] = '\0';
}

/* ---- timers, tasks, descriptors ---- */

static struct loop_timer timer[3];

static void fired(struct loop_timer *t)
{
	note((char)('a' + (t - timer)));
	if (t == &timer[2])
		loop_stop(loop);
}

static void timers_fire_in_order(void)
{
	uint64_t now = loop_now_ns();

	setup();
	for (int i = 0; i < 3; i++)
		timer[i] = (struct loop_timer){.fire = fired};
	loop_arm(loop, &timer[2], now + 3000000);
	loop_arm(loop, &timer[0], now + 9000000);
	loop_arm(loop, &timer[1], now + 2000000);
	loop_arm(loop, &timer[0], now + 1000000);
	loop_run(loop);
	CHECK_STR(trace, "abc");
	CHECK(loop_now_ns() >= now + 3000000);
	loop_arm(loop, &timer[0], now);
	loop_disarm(loop, &timer[0]);
	loop_disarm(loop, &timer[0]);
	loop_turn(loop, false);
	CHECK_STR(trace, "abc");
	loop_free(loop);
}

static struct loop_task again;

static void run_again(struct loop_task *t)
{
	note('t');
	if (strlen(trace) < 3)
		loop_defer(loop, t);
}

static void tasks_run_in_the_turn_in_which_they_come(void)
{
	setup();
	again = (struct loop_task){.run = run_again};
	loop_defer(loop, &again);
	loop_defer(loop, &again);
	CHECK_STR(trace, "");
	loop_turn(loop, false);
	CHECK_STR(trace, "ttt");
	loop_free(loop);
}

#define POSTS 1000

static atomic_uint posted;

static void count_post(struct loop_task *t)
{
	(void)t;
	if (++posted == POSTS)
		loop_stop(loop);
}

static void *post_all(void *tasks)
{
	for (int i = 0; i < POSTS; i++)
		loop_post(loop, (struct loop_task *)tasks + i);
	return NULL;
}

static void another_thread_posts(void)
{
	static struct loop_task tasks[POSTS];
	pthread_t thread;

	setup();
	posted = 0;
	for (int i = 0; i < POSTS; i++)
		tasks[i] = (struct loop_task){.run = count_post};
	CHECK_EQ(pthread_create(&thread, NULL, post_all, tasks), 0);
	loop_run(loop);
	pthread_join(thread, NULL);
	CHECK_EQ(posted, POSTS);
	loop_free(loop);
}

/* ---- looking before sleeping ---- */

static struct loop_watch bell;

static void rung(struct loop_watch *w, uint32_t events)
{
	char c;

	CHECK(events & EPOLLIN);
	CHECK_EQ(read(w->fd, &c, 1), 1);
	note(c);
}

/* Whether it looks or sleeps: each event is there once, and so are timers, posts and the end. */
static void spinning_misses_nothing(void)
{
	int p[2];

	setup();
	CHECK_EQ(pipe(p), 0);
	loop_spin(loop, 50000000);
	bell = (struct loop_watch){.fd = p[0], .ready = rung};
	CHECK_EQ(loop_watch(loop, &bell, EPOLLIN, NULL), 0);
	for (int i = 0; i < 3; i++) {
		CHECK_EQ(write(p[1], "x", 1), 1);
		loop_turn(loop, true);
	}
	CHECK_STR(trace, "xxx");
	/* It looks now, and the timer ends that; then one that is later than it looks. */
	timer[0] = (struct loop_timer){.fire = fired};
	loop_arm(loop, &timer[0], loop_now_ns() + 2000000);
	loop_turn(loop, true);
	CHECK_STR(trace, "xxxa");
	loop_arm(loop, &timer[0], loop_now_ns() + 100000000);
	loop_turn(loop, true);
	CHECK_STR(trace, "xxxaa");
	loop_arm(loop, &timer[0], loop_now_ns() + 1000000);
	loop_turn(loop, true);
	CHECK_STR(trace, "xxxaaa");
	loop_stop(loop);
	loop_run(loop);
	CHECK_EQ(write(p[1], "y", 1), 1);
	loop_turn(loop, true);
	CHECK_STR(trace, "xxxaaay");
	loop_unwatch(loop, &bell);
	close(p[0]);
	close(p[1]);
	loop_free(loop);
}

static struct loop_watch watch[2];

static void ready(struct loop_watch *w, uint32_t events)
{
	CHECK(events & EPOLLIN);
	note(w == &watch[0] ? '0' : '1');
	/* The other one is due in the same turn and must not be called any more. */
	loop_unwatch(loop, w == &watch[0] ? &watch[1] : &watch[0]);
	loop_unwatch(loop, w);
}

static void an_unwatched_descriptor_is_not_called(void)
{
	int a[2], b[2];

	setup();
	CHECK(pipe(a) == 0 && pipe(b) == 0);
	watch[0] = (struct loop_watch){.fd = a[0], .ready = ready};
	watch[1] = (struct loop_watch){.fd = b[0], .ready = ready};
	for (int i = 0; i < 2; i++)
		CHECK_EQ(loop_watch(loop, &watch[i], EPOLLIN, NULL), 0);
	CHECK(write(a[1], "x", 1) == 1 && write(b[1], "x", 1) == 1);
	loop_turn(loop, true);
	loop_turn(loop, false);
	CHECK_EQ(strlen(trace), 1);
	for (int i = 0; i < 2; i++) {
		close(a[i]);
		close(b[i]);
	}
	loop_free(loop);
}

/* ---- fibers ---- */

static struct fiber_lock lock;
static unsigned inside, left;

static void take_turns(void *ctx)
{
	volatile double half = 0.5; /* kept over the switches */

	for (int i = 0; i < 50; i++) {
		fiber_lock(&lock, loop);
		if (inside++)
			note('!');
		fiber_yield(loop);
		inside--;
		fiber_unlock(&lock);
		if (*(unsigned *)ctx != 7 || half != 0.5)
			note('?');
	}
	left--;
}

static void a_lock_is_held_by_one_fiber(void)
{
	unsigned seven = 7;

	setup();
	left = 200; /* more than are kept */
	for (unsigned i = 0; i < 200; i++)
		CHECK_EQ(fiber_start(loop, take_turns, &seven), 0);
	while (left)
		loop_turn(loop, false);
	CHECK_STR(trace, "");
	CHECK_EQ(lock.held, false);
	loop_free(loop);
}

static struct wait early;

static void ends_at_once(struct loop_task *t)
{
	(void)t;
	wait_end(&early);
}

static void waiting_works_outside_of_fibers(void)
{
	static struct loop_task t = {.run = ends_at_once};

	setup();
	wait_begin(&early, loop);
	wait_end(&early);
	wait_for(&early);
	wait_begin(&early, loop);
	loop_defer(loop, &t);
	wait_for(&early);
	CHECK(early.over);
	loop_free(loop);
}

static void no_memory_for_a_fiber(void)
{
	unsigned nothing = 0;

	setup();
	for (unsigned n = 1; n <= 2; n++) {
		unit_fail_alloc(n);
		CHECK_EQ(fiber_start(loop, take_turns, &nothing), -ENOMEM);
		unit_fail_alloc(0);
	}
	loop_free(loop);
}

/* ---- ranges ---- */

#define RANGE 16

static struct range_locks ranges;
static int readers[RANGE], writers[RANGE];
static unsigned working;

static void use_ranges(void *ctx)
{
	uint64_t random = (uint64_t)(uintptr_t)ctx;

	for (int i = 0; i < 40; i++) {
		uint64_t begin = unit_below(&random, RANGE),
			 end = begin + 1 + unit_below(&random, RANGE - begin);
		bool exclusive = unit_below(&random, 3) == 0;
		struct range_lock k;

		range_lock(&ranges, &k, loop, begin, end, exclusive);
		for (uint64_t at = begin; at < end; at++) {
			if (writers[at] || (exclusive && readers[at]))
				note('!');
			(exclusive ? writers : readers)[at]++;
		}
		for (uint64_t n = unit_below(&random, 3); n; n--)
			fiber_yield(loop);
		for (uint64_t at = begin; at < end; at++)
			(exclusive ? writers : readers)[at]--;
		range_unlock(&ranges, &k);
	}
	working--;
}

static void ranges_are_shared_or_exclusive(void)
{
	setup();
	working = 60;
	for (uintptr_t i = 1; i <= 60; i++)
		CHECK_EQ(fiber_start(loop, use_ranges, (void *)(i * 7919)), 0);
	while (working)
		loop_turn(loop, false);
	CHECK_STR(trace, "");
	CHECK(!ranges.first);
	loop_free(loop);
}

static void take_range(void *ctx)
{
	const char *what = ctx;
	struct range_lock k;

	range_lock(&ranges, &k, loop, 0, 1, what[1] == 'x');
	note(what[0]);
	fiber_yield(loop);
	range_unlock(&ranges, &k);
	working--;
}

static void a_waiting_writer_is_not_overtaken(void)
{
	setup();
	working = 4;
	CHECK_EQ(fiber_start(loop, take_range, (void *)"as"), 0);
	CHECK_EQ(fiber_start(loop, take_range, (void *)"bx"), 0);
	CHECK_EQ(fiber_start(loop, take_range, (void *)"cs"), 0);
	CHECK_EQ(fiber_start(loop, take_range, (void *)"ds"), 0);
	while (working)
		loop_turn(loop, false);
	CHECK_STR(trace, "abcd");
	loop_free(loop);
}

/* ---- the helper thread ---- */

static int add_one(void *ctx)
{
	return ++*(int *)ctx;
}

static void offload_from_fiber(void *ctx)
{
	if (offload(loop, add_one, ctx) > 0)
		working--;
}

static void work_is_done_beside_the_loop(void)
{
	int count = 0;

	setup();
	CHECK_EQ(offload(loop, add_one, &count), 1);
	working = 100;
	for (int i = 0; i < 100; i++)
		CHECK_EQ(fiber_start(loop, offload_from_fiber, &count), 0);
	while (working)
		loop_turn(loop, true);
	CHECK_EQ(count, 101);
	loop_free(loop);
}

UNIT_MAIN(TEST(timers_fire_in_order), TEST(spinning_misses_nothing),
	  TEST(tasks_run_in_the_turn_in_which_they_come), TEST(another_thread_posts),
	  TEST(an_unwatched_descriptor_is_not_called), TEST(a_lock_is_held_by_one_fiber),
	  TEST(waiting_works_outside_of_fibers), TEST(no_memory_for_a_fiber),
	  TEST(ranges_are_shared_or_exclusive), TEST(a_waiting_writer_is_not_overtaken),
	  TEST(work_is_done_beside_the_loop))
