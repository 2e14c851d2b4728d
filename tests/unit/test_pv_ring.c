// SPDX-License-Identifier: MIT
/* The ring and the requests of a PV disk: what front ends may send, and what none should. */
#include <errno.h>
#include <stdint.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#include "storage/pv_request.h"
#include "tests/unit/pv_fake_guest.h"
#include "tests/unit/unit.h"

struct setup {
	struct fake_guest *guest;
	struct fake_front front;
	struct pv_queue_at at;
	struct pv_ring ring;
	uint8_t raw[PV_RING_RAW];
};

static void set_up(struct setup *s, enum pv_abi abi, unsigned order, uint32_t start)
{
	s->guest = fake_guest_new();
	fake_front_init(&s->front, s->guest, abi, order, 0, start, 0, &s->at);
	pv_ring_init(&s->ring, fake_page(s->guest, 0), order, abi);
}

static void send(struct setup *s, uint64_t id)
{
	struct fake_segment segment = {FAKE_REF(100), 0, 7};

	fake_data(s->front.abi, s->raw, BLKIF_OP_READ, id, 0, &segment, 1);
	fake_front_put(&s->front, s->raw);
}

static uint64_t id_of(const struct setup *s)
{
	uint64_t id;

	memcpy(&id, s->raw + s->ring.layout->id, sizeof(id));
	return id;
}

static void sizes(void)
{
	CHECK_EQ(pv_ring_entries(PV_ABI_64, 0), 32);
	CHECK_EQ(pv_ring_entries(PV_ABI_32, 0), 32);
	CHECK_EQ(pv_ring_entries(PV_ABI_64, 1), 64);
	CHECK_EQ(pv_ring_entries(PV_ABI_64, PV_RING_ORDER_MAX), PV_RING_ENTRIES);
	CHECK_EQ(pv_ring_entries(PV_ABI_64, 0),
		 __CONST_RING_SIZE(blkif, 4096)); /* the header's own calculation */
}

/* Full rings of requests come over and go back, across the overflow of the indexes. */
static void round_trips(enum pv_abi abi, unsigned order)
{
	struct setup s;
	uint32_t entries = pv_ring_entries(abi, order);
	struct pv_answer a;

	set_up(&s, abi, order, 0u - 3 * entries / 2);
	for (unsigned round = 0; round < 4; round++) {
		for (uint32_t i = 0; i < entries; i++)
			send(&s, ((uint64_t)round << 40) + i);
		CHECK_EQ(pv_ring_take(&s.ring, s.raw), 0);
		fake_front_push(&s.front);
		for (uint32_t i = 0; i < entries; i++) {
			CHECK_EQ(pv_ring_take(&s.ring, s.raw), 1);
			CHECK_EQ(id_of(&s), ((uint64_t)round << 40) + i);
		}
		CHECK_EQ(pv_ring_take(&s.ring, s.raw), 0);
		for (uint32_t i = 0; i < entries; i++)
			pv_ring_answer(&s.ring, &(struct pv_answer){.id = ((uint64_t)i << 32) + 5,
								    .operation = 1,
								    .status = -1});
		CHECK(!fake_front_get(&s.front, &a));
		pv_ring_publish(&s.ring);
		for (uint32_t i = 0; i < entries; i++) {
			CHECK(fake_front_get(&s.front, &a));
			CHECK_EQ(a.id, ((uint64_t)i << 32) + 5);
			CHECK_EQ(a.operation, 1);
			CHECK_EQ(a.status, -1);
		}
	}
	fake_guest_free(s.guest);
}

static void both_layouts(void)
{
	round_trips(PV_ABI_64, 0);
	round_trips(PV_ABI_32, 0);
	round_trips(PV_ABI_64, 2);
	round_trips(PV_ABI_32, PV_RING_ORDER_MAX);
}

/* Every index that a front end cannot have is refused, and leaves the ring as it was. */
static void jumps(void)
{
	static const int32_t bad[] = {-1, -33, 33, 1000, INT32_MIN, INT32_MAX};
	struct setup s;

	set_up(&s, PV_ABI_64, 0, 7);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fake_front_indexes(&s.front)[0] = 7u + (uint32_t)bad[i];
		CHECK_EQ(pv_ring_take(&s.ring, s.raw), -EPROTO);
		CHECK_EQ(s.ring.req_cons, 7);
	}
	/* With 10 unanswered there is room for 22. */
	fake_front_indexes(&s.front)[0] = 17;
	for (unsigned i = 0; i < 10; i++)
		CHECK_EQ(pv_ring_take(&s.ring, s.raw), 1);
	fake_front_indexes(&s.front)[0] = 17 + 23;
	CHECK_EQ(pv_ring_take(&s.ring, s.raw), -EPROTO);
	fake_front_indexes(&s.front)[0] = 17 + 22;
	CHECK_EQ(pv_ring_take(&s.ring, s.raw), 1);
	fake_guest_free(s.guest);
}

/* An event is asked for and sent exactly where the other side waits. */
static void events(void)
{
	struct pv_answer a = {.id = 1};
	struct setup s;

	set_up(&s, PV_ABI_64, 0, 0);
	/* The server waits: the first request has an event, the second has none. */
	CHECK(!pv_ring_await(&s.ring));
	send(&s, 1);
	CHECK(fake_front_push(&s.front));
	send(&s, 2);
	CHECK(!fake_front_push(&s.front));
	CHECK(pv_ring_await(&s.ring));
	CHECK_EQ(pv_ring_take(&s.ring, s.raw), 1);
	CHECK_EQ(pv_ring_take(&s.ring, s.raw), 1);
	CHECK(!pv_ring_await(&s.ring));

	/* The front end waits for the first response; it has not asked for one with the second. */
	pv_ring_answer(&s.ring, &a);
	CHECK(pv_ring_publish(&s.ring));
	pv_ring_answer(&s.ring, &a);
	CHECK(!pv_ring_publish(&s.ring));
	CHECK(!pv_ring_publish(&s.ring));
	CHECK(fake_front_get(&s.front, &a));
	CHECK(fake_front_get(&s.front, &a));
	CHECK(!fake_front_get(&s.front, &a));
	/* It waits for the second of the next two. */
	for (uint64_t id = 3; id < 6; id++)
		send(&s, id);
	fake_front_push(&s.front);
	for (uint64_t id = 3; id < 6; id++)
		CHECK_EQ(pv_ring_take(&s.ring, s.raw), 1);
	fake_front_indexes(&s.front)[3] = 4;
	pv_ring_answer(&s.ring, &a);
	CHECK(!pv_ring_publish(&s.ring));
	pv_ring_answer(&s.ring, &a);
	CHECK(pv_ring_publish(&s.ring));
	fake_guest_free(s.guest);
}

/* ---- requests ---- */

static const struct pv_limits limits = {.size = 1 << 20, .sector_shift = 9, .discards = true};
static struct pv_segment segments[PV_SEGMENTS_MAX];

static int decode(enum pv_abi abi, const void *raw, const struct pv_limits *l,
		  struct pv_request *out)
{
	int ret = pv_request_decode(&pv_layouts[abi], raw, l, out, segments);

	CHECK_EQ(ret != 0, out->wrong != NULL);
	return ret;
}

static void data(void)
{
	const struct fake_segment two[] = {{FAKE_REF(3), 2, 2}, {FAKE_REF(4), 0, 7}};
	uint8_t raw[PV_RING_RAW];
	struct pv_request r;

	for (unsigned abi = 0; abi < 2; abi++) {
		fake_data(abi, raw, BLKIF_OP_WRITE, 0x123456789abcdef0, 100, two, 2);
		CHECK_EQ(decode(abi, raw, &limits, &r), 0);
		CHECK_EQ(r.id, 0x123456789abcdef0);
		CHECK_EQ(r.operation, BLKIF_OP_WRITE);
		CHECK_EQ(r.op, PV_WRITE);
		CHECK_EQ(r.offset, 51200);
		CHECK_EQ(r.length, 4608);
		CHECK_EQ(r.nr_segments, 2);
		CHECK_EQ(segments[0].ref, FAKE_REF(3));
		CHECK_EQ(segments[0].offset, 1024);
		CHECK_EQ(segments[0].length, 512);
		CHECK_EQ(segments[1].length, 4096);
	}
}

static int one(uint8_t operation, uint64_t sector, uint8_t first, uint8_t last,
	       const struct pv_limits *l)
{
	const struct fake_segment segment = {FAKE_REF(3), first, last};
	uint8_t raw[PV_RING_RAW];
	struct pv_request r;
	int ret;

	fake_data(PV_ABI_64, raw, operation, 77, sector, &segment, 1);
	ret = decode(PV_ABI_64, raw, l, &r);
	CHECK_EQ(r.id, 77);
	return ret;
}

static void bounds(void)
{
	const struct pv_limits read_only = {.size = 1 << 20, .sector_shift = 9, .read_only = true};
	const struct pv_limits large = {.size = 1 << 20, .sector_shift = 12};
	const struct pv_limits odd = {.size = (1 << 20) + 100, .sector_shift = 9};

	CHECK_EQ(one(BLKIF_OP_READ, 2040, 0, 7, &limits), 0);
	CHECK_EQ(one(BLKIF_OP_READ, 2041, 0, 7, &limits), -ERANGE);
	CHECK_EQ(one(BLKIF_OP_READ, 2047, 0, 0, &limits), 0);
	CHECK_EQ(one(BLKIF_OP_READ, 2048, 0, 0, &limits), -ERANGE);
	CHECK_EQ(one(BLKIF_OP_READ, 2048, 0, 0, &odd), -ERANGE);
	CHECK_EQ(one(BLKIF_OP_READ, 1ull << 55, 0, 0, &limits), -ERANGE);
	CHECK_EQ(one(BLKIF_OP_READ, UINT64_MAX, 0, 0, &limits), -ERANGE);
	CHECK_EQ(one(BLKIF_OP_READ, 0, 0, 8, &limits), -EINVAL);
	CHECK_EQ(one(BLKIF_OP_READ, 0, 3, 2, &limits), -EINVAL);
	CHECK_EQ(one(BLKIF_OP_READ, 0, 255, 255, &limits), -EINVAL);
	CHECK_EQ(one(BLKIF_OP_READ, 255, 0, 0, &large), 0);
	CHECK_EQ(one(BLKIF_OP_READ, 256, 0, 0, &large), -ERANGE);
	CHECK_EQ(one(BLKIF_OP_READ, 0, 0, 1, &large), -EINVAL);
	CHECK_EQ(one(BLKIF_OP_READ, 0, 0, 0, &read_only), 0);
	CHECK_EQ(one(BLKIF_OP_WRITE, 0, 0, 0, &read_only), -EROFS);
	CHECK_EQ(one(BLKIF_OP_WRITE_BARRIER, 0, 0, 0, &read_only), -EROFS);
	CHECK_EQ(one(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 0, &limits), -EINVAL);
	CHECK_EQ(one(BLKIF_OP_RESERVED_1, 0, 0, 0, &limits), -EOPNOTSUPP);
	CHECK_EQ(one(255, 0, 0, 0, &limits), -EOPNOTSUPP);
}

static void numbers_of_segments(void)
{
	struct fake_segment many[PV_SEGMENTS_MAX + 1];
	uint8_t raw[PV_RING_RAW];
	struct setup s;
	struct pv_request r;

	for (unsigned i = 0; i <= PV_SEGMENTS_MAX; i++)
		many[i] = (struct fake_segment){FAKE_REF(i), 0, 7};
	fake_data(PV_ABI_64, raw, BLKIF_OP_READ, 1, 0, many, 11);
	CHECK_EQ(decode(PV_ABI_64, raw, &limits, &r), 0);
	CHECK_EQ(r.length, 11 * 4096);
	fake_data(PV_ABI_64, raw, BLKIF_OP_READ, 1, 0, many, 12);
	CHECK_EQ(decode(PV_ABI_64, raw, &limits, &r), -EINVAL);
	fake_data(PV_ABI_64, raw, BLKIF_OP_READ, 1, 0, many, 0);
	CHECK_EQ(decode(PV_ABI_64, raw, &limits, &r), -EINVAL);
	fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE_BARRIER, 1, 0, many, 0);
	CHECK_EQ(decode(PV_ABI_64, raw, &limits, &r), 0);
	CHECK_EQ(r.nr_segments, 0);
	fake_data(PV_ABI_64, raw, BLKIF_OP_FLUSH_DISKCACHE, 1, 0, many, 0);
	CHECK_EQ(decode(PV_ABI_64, raw, &limits, &r), 0);

	set_up(&s, PV_ABI_32, 0, 0);
	for (unsigned nr = 0; nr <= PV_SEGMENTS_MAX + 1; nr += PV_SEGMENTS_MAX / 2) {
		fake_indirect(&s.front, raw, BLKIF_OP_READ, 9, 0, 200, many, nr);
		CHECK_EQ(decode(PV_ABI_32, raw, &limits, &r), nr ? 0 : -EINVAL);
		CHECK_EQ(r.operation, BLKIF_OP_READ);
		CHECK_EQ(r.indirect_ref, FAKE_REF(200));
		if (nr) {
			CHECK_EQ(
				pv_request_segments(&r, fake_page(s.guest, 200), &limits, segments),
				0);
			CHECK_EQ(r.length, nr * 4096);
		}
	}
	fake_indirect(&s.front, raw, BLKIF_OP_READ, 9, 0, 200, many, PV_SEGMENTS_MAX + 1);
	CHECK_EQ(decode(PV_ABI_32, raw, &limits, &r), -EINVAL);
	fake_indirect(&s.front, raw, BLKIF_OP_READ, 9, 1, 200, many, PV_SEGMENTS_MAX);
	CHECK_EQ(decode(PV_ABI_32, raw, &limits, &r), 0);
	CHECK_EQ(pv_request_segments(&r, fake_page(s.guest, 200), &limits, segments), -ERANGE);
	fake_indirect(&s.front, raw, BLKIF_OP_WRITE_BARRIER, 9, 0, 200, many, 1);
	CHECK_EQ(decode(PV_ABI_32, raw, &limits, &r), -EOPNOTSUPP);
	fake_indirect(&s.front, raw, BLKIF_OP_INDIRECT, 9, 0, 200, many, 1);
	CHECK_EQ(decode(PV_ABI_32, raw, &limits, &r), -EOPNOTSUPP);
	fake_guest_free(s.guest);
}

static void discards(void)
{
	const struct pv_limits none = {.size = 1 << 20, .sector_shift = 9};
	uint8_t raw[PV_RING_RAW];
	struct pv_request r;

	for (unsigned abi = 0; abi < 2; abi++) {
		fake_discard(abi, raw, 0, 5, 8, 2040);
		CHECK_EQ(decode(abi, raw, &limits, &r), 0);
		CHECK_EQ(r.op, PV_DISCARD);
		CHECK_EQ(r.offset, 4096);
		CHECK_EQ(r.length, (1 << 20) - 4096);
		CHECK_EQ(decode(abi, raw, &none, &r), -EOPNOTSUPP);
		fake_discard(abi, raw, 0, 5, 8, 2041);
		CHECK_EQ(decode(abi, raw, &limits, &r), -ERANGE);
		fake_discard(abi, raw, 0, 5, 8, UINT64_MAX - 7);
		CHECK_EQ(decode(abi, raw, &limits, &r), -ERANGE);
		fake_discard(abi, raw, 0, 5, 8, 1ull << 55);
		CHECK_EQ(decode(abi, raw, &limits, &r), -ERANGE);
		fake_discard(abi, raw, BLKIF_DISCARD_SECURE, 5, 8, 8);
		CHECK_EQ(decode(abi, raw, &limits, &r), -EOPNOTSUPP);
	}
}

static void statuses(void)
{
	CHECK_EQ(pv_request_status(0), BLKIF_RSP_OKAY);
	CHECK_EQ(pv_request_status(-EOPNOTSUPP), BLKIF_RSP_EOPNOTSUPP);
	CHECK_EQ(pv_request_status(-EIO), BLKIF_RSP_ERROR);
}

UNIT_MAIN(TEST(sizes), TEST(both_layouts), TEST(jumps), TEST(events), TEST(data), TEST(bounds),
	  TEST(numbers_of_segments), TEST(discards), TEST(statuses))
