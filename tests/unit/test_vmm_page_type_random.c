// SPDX-License-Identifier: MIT
/*
 * The types of frames under random operations, interrupted and abandoned at random, beside a model that finds from scratch whether each is legal, and with
 * another domain and other processors at work in between.
 */
#include "tests/unit/vmm_random.h"

#include <pthread.h>
#include <sched.h>

#define ROUNDS	   2000u
#define OPERATIONS 1000u /* in each */

static void random_operations(void)
{
	memset(outcomes, 0, sizeof(outcomes));
	seed = unit_seed();
	for (unsigned round = 0; round < ROUNDS; round++) {
		bool busy = round % 2;

		random_begin();
		look_at_stores = round % 16 < 2;
		for (unsigned k = 0; k < OPERATIONS; k++) {
			preempt_every = below(3) ? 0 : 1 + below(6);
			meanwhile = busy ? others_meanwhile : NULL;
			random_operation();
			if (k % 16 == 0)
				audit();
		}
		preempt_every = below(8);
		relinquish(&other);
		relinquish(&guest);
	}
	for (unsigned level = 1; level <= 4; level++)
		CHECK(outcomes[0][level] && outcomes[1][level]);
}

/* ---- two real CPUs ---- */

#define TURNS 200000u

static unsigned wrote;
static bool enough;

/* Another domain takes the page to write to it, without any lock, whenever it can. */
static void *writer(void *unused)
{
	uint64_t *word = &memory[GUEST][100];

	(void)unused;
	while (!READ_ONCE(enough)) {
		if (frame_get_both(at(GUEST), &guest, TYPE_WRITABLE))
			continue;
		CHECK_EQ(type_of(READ_ONCE(frames[GUEST].type)), TYPE_WRITABLE);
		WRITE_ONCE(*word, READ_ONCE(*word) + 2); /* never present */
		WRITE_ONCE(wrote, wrote + 1);
		frame_put_both(at(GUEST));
	}
	return NULL;
}

static bool all_had(const unsigned *had)
{
	return had[0] && had[1] && had[2] && READ_ONCE(wrote);
}

/* 1: while the page is a table or has descriptors, nobody writes to it, though who wants what first is decided anew each time. */
static void two_want_the_same_page(void)
{
	static const enum page_type types[] = {TYPE_L1, TYPE_DESC, TYPE_WRITABLE};
	unsigned had[ARRAY_SIZE(types)] = {0};
	pthread_t other_cpu;

	begin();
	in_hook = true; /* the auditor sees one CPU only */
	wrote = 0;
	enough = false;
	CHECK_EQ(pthread_create(&other_cpu, NULL, writer, NULL), 0);
	for (unsigned k = 0; k < TURNS || !all_had(had); k++) {
		unsigned i = k % ARRAY_SIZE(types);
		uint64_t before;

		CHECK_EQ(page_lock(&guest), 0);
		if (!frame_get_both(at(GUEST), &guest, types[i])) {
			had[i]++;
			before = READ_ONCE(memory[GUEST][100]);
			for (unsigned wait = 0; wait < 20; wait++)
				__builtin_ia32_pause();
			if (types[i] != TYPE_WRITABLE)
				CHECK_EQ(READ_ONCE(memory[GUEST][100]), before);
			frame_put_both(at(GUEST));
		}
		page_unlock(&guest);
		if (k % 1024 == 0)
			sched_yield();
	}
	WRITE_ONCE(enough, true);
	CHECK_EQ(pthread_join(other_cpu, NULL), 0);
	in_hook = false;
	CHECK_EQ(count(GUEST), 0);
	CHECK_EQ(frames[GUEST].ref & REF_COUNT_MASK, 1);
}

UNIT_MAIN(TEST(random_operations), TEST(two_want_the_same_page))
