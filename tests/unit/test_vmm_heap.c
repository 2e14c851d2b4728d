// SPDX-License-Identifier: MIT
/* The frame allocator against a map of who has which frame: nothing is given out twice, what is free is joined again, and all of it is zero. */
#define VMM_HOSTED
#include "vmm/mm/heap.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"
#include "tests/unit/vmm_log.h"

#define FRAMES	   2048u
#define FIRST	   17u /* neither end is aligned to anything */
#define LAST	   2001u
#define HOLE	   700u /* and there is a hole */
#define HOLE_END   733u
#define BLOCKS	   300u
#define OPERATIONS 200000u

static struct frame frames[FRAMES];
static _Alignas(4096) uint8_t memory[FRAMES][PAGE_SIZE];
static uint8_t taken[FRAMES]; /* by the test */
static uint32_t clock_now, flushed_since;

uint32_t tlb_clock_now(void)
{
	return clock_now;
}

void tlb_flush_all_since(uint32_t clock)
{
	flushed_since = clock;
}

static void begin(void)
{
	memset(frames, 0, sizeof(frames));
	memset(memory, 0xee, sizeof(memory));
	memset(taken, 0, sizeof(taken));
	frame_table = frames;
	frame_max = FRAMES;
	direct_base = (char *)memory;
	lists_made = false;
	free_frames = total_frames = 0;
	clock_now = 5;
	for (unsigned n = 0; n < FRAMES; n++)
		frames[n].ref = REF_IO;
	heap_add(MFN(FIRST), MFN(HOLE));
	heap_add(MFN(HOLE_END), MFN(LAST));
	CHECK_EQ(heap_total_frames(), LAST - FIRST - (HOLE_END - HOLE));
	CHECK_EQ(heap_free_frames(), heap_total_frames());
}

static bool is_ram(uint64_t n)
{
	return n >= FIRST && n < LAST && (n < HOLE || n >= HOLE_END);
}

/* The lists hold each free frame once, in aligned blocks that could not be joined further. */
static void check_lists(void)
{
	static uint8_t listed[FRAMES];
	uint64_t free = 0;

	memset(listed, 0, sizeof(listed));
	for (unsigned order = 0; order <= HEAP_MAX_ORDER; order++) {
		CHECK_EQ(free_list[ZONE_HIGH][order], FRAME_NONE);
		for (uint32_t n = free_list[ZONE_LOW][order]; n != FRAME_NONE; n = frames[n].next) {
			uint64_t buddy = n ^ 1ull << order;

			CHECK_EQ(n % (1ull << order), 0);
			CHECK_EQ(frames[n].ref, REF_HEAP);
			CHECK_EQ(frames[n].type, order);
			CHECK(buddy >= FRAMES || frames[buddy].ref != REF_HEAP ||
			      frames[buddy].type != order);
			for (uint64_t i = n; i < n + (1ull << order); i++) {
				CHECK(is_ram(i) && !taken[i] && !listed[i]);
				listed[i] = 1;
				free++;
			}
		}
	}
	CHECK_EQ(free, heap_free_frames());
	for (unsigned n = 0; n < FRAMES; n++)
		CHECK_EQ(is_ram(n) && !taken[n], listed[n]);
}

static void take_block(mfn_t m, unsigned order)
{
	static const uint8_t zero[PAGE_SIZE];

	CHECK_EQ(m.v % (1ull << order), 0);
	for (uint64_t n = m.v; n < m.v + (1ull << order); n++) {
		CHECK(is_ram(n) && !taken[n]);
		CHECK_EQ(memcmp(memory[n], zero, PAGE_SIZE), 0);
		CHECK(!frames[n].owner && !frames[n].ref && !frames[n].type);
		memset(memory[n], 0xdd, PAGE_SIZE);
		taken[n] = 1;
	}
}

static void give_block(mfn_t m, unsigned order)
{
	for (uint64_t n = m.v; n < m.v + (1ull << order); n++)
		taken[n] = 0;
	heap_free(m, order);
}

static void random_blocks(void)
{
	static struct {
		mfn_t m;
		unsigned order;
	} block[BLOCKS];
	unsigned nr = 0;
	uint64_t seed = unit_seed();

	begin();
	for (unsigned k = 0; k < OPERATIONS; k++) {
		unsigned what;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		what = (unsigned)(seed >> 33);
		clock_now += what & 1;
		if (nr < BLOCKS && what % 16 < 9) {
			unsigned order = (what >> 8) % 16 < 12 ? 0 : (what >> 12) % 9;
			mfn_t m = heap_alloc(order, 0);

			if (!mfn_eq(m, MFN_NONE)) {
				take_block(m, order);
				block[nr].m = m;
				block[nr++].order = order;
			}
		} else if (nr) {
			unsigned i = (what >> 8) % nr;

			give_block(block[i].m, block[i].order);
			block[i] = block[--nr];
		}
		if (k % 512 == 0)
			check_lists();
	}
	while (nr--)
		give_block(block[nr].m, block[nr].order);
	check_lists();
	CHECK_EQ(heap_free_frames(), heap_total_frames());
}

static void until_there_is_nothing(void)
{
	uint64_t n = 0;

	begin();
	for (mfn_t m = heap_alloc(0, 0); !mfn_eq(m, MFN_NONE); m = heap_alloc(0, 0)) {
		take_block(m, 0);
		n++;
	}
	CHECK_EQ(n, heap_total_frames());
	CHECK_EQ(heap_free_frames(), 0);
	CHECK(mfn_eq(heap_alloc(3, 0), MFN_NONE));
	CHECK_EQ(heap_zalloc(1), NULL);
	check_lists();
	for (unsigned i = 0; i < FRAMES; i++)
		if (taken[i])
			give_block(MFN(i), 0);
	check_lists();
	/* Joined again: the largest block that fits between the ends. */
	CHECK(!mfn_eq(heap_alloc(9, 0), MFN_NONE));
}

static void orders_and_limits(void)
{
	mfn_t m;

	begin();
	CHECK(mfn_eq(heap_alloc(HEAP_MAX_ORDER + 1, 0), MFN_NONE));
	CHECK(mfn_eq(heap_alloc(64, 0), MFN_NONE));
	CHECK(mfn_eq(heap_alloc(11, 0), MFN_NONE));
	/* Addresses of so many bits: one page below 2^17 is left, none below 2^16. */
	for (unsigned bits = 1; bits <= 16; bits++)
		CHECK(mfn_eq(heap_alloc(0, bits), MFN_NONE));
	for (unsigned n = FIRST; n < 32; n++) {
		m = heap_alloc(0, 17);
		CHECK(m.v >= FIRST && m.v < 32);
		take_block(m, 0);
	}
	CHECK(mfn_eq(heap_alloc(0, 17), MFN_NONE));
	m = heap_alloc(2, 18);
	CHECK(m.v >= 32 && m.v + 4 <= 64);
	for (unsigned bits = 64; bits < 256; bits++)
		CHECK(!mfn_eq(heap_alloc(0, bits), MFN_NONE));
}

/* 5: whoever gets frames, those CPUs have forgotten them that have not flushed since the last of them was freed. */
static void newest_clock_counts(void)
{
	mfn_t m;

	begin();
	m = heap_alloc(4, 0);
	for (unsigned i = 0; i < 16; i++) {
		clock_now = 100 + (i == 11 ? 50 : i);
		heap_free(MFN(m.v + i), 0);
	}
	CHECK_EQ(heap_alloc(4, 0).v, m.v);
	CHECK_EQ(flushed_since, 150);
	/* Round the end of the numbers. */
	clock_now = UINT32_MAX;
	heap_free(m, 3);
	clock_now = 2;
	heap_free(MFN(m.v + 8), 3);
	CHECK_EQ(heap_alloc(4, 0).v, m.v);
	CHECK_EQ(flushed_since, 2);
}

static void fails_on_request(void)
{
	begin();
	CHECK_EQ(heap_fail(3, false), 0);
	for (unsigned n = 1; n <= 6; n++) {
		void *p = n & 1 ? heap_alloc_pages(n) : heap_zalloc(n);

		CHECK_EQ(!p, n == 3);
	}
	CHECK_EQ(heap_fail(2, true), 1);
	for (unsigned n = 1; n <= 6; n++)
		CHECK_EQ(mfn_eq(heap_alloc(0, 0), MFN_NONE), n >= 2);
	CHECK_EQ(heap_fail(0, true), 5);
	CHECK(!mfn_eq(heap_alloc(0, 0), MFN_NONE));
	CHECK_EQ(heap_fail(0, false), 0);
}

UNIT_MAIN(TEST(random_blocks), TEST(until_there_is_nothing), TEST(orders_and_limits),
	  TEST(newest_clock_counts), TEST(fails_on_request))
