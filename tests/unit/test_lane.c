// SPDX-License-Identifier: MIT
/*
 * The send ring: what is made in it or appended to it is what a reader gets, in order, wherever it lies in the ring and however often
 * the connection is lost in between.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "migrate/lane.h"
#include "migrate/session_internal.h"
#include "tests/unit/stream_samples.h"
#include "tests/unit/unit.h"

#define RING	   (PGR_RECORD_MAX + 4096)
#define RECORD_MAX (300u << 10)
#define RECORDS	   400u

/* A connection that takes so many bytes and is lost then. What it took is kept in `got`, where the other end would have it. */
struct cut_channel {
	struct channel c;
	size_t left;
};
static struct memory_stream got;

static int cut_write(struct channel *c, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct cut_channel *k = (struct cut_channel *)c;

	for (unsigned i = 0; i < nr; i++) {
		struct iovec part = iov[i];

		if (part.iov_len > k->left)
			part.iov_len = k->left;
		CHECK_EQ(memory_write(&got, &part, 1, err), 0);
		k->left -= part.iov_len;
		if (part.iov_len < iov[i].iov_len)
			return pgr_fail(err, -ECONNRESET, "cut");
	}
	return 0;
}

static void cut_nothing(struct channel *c)
{
	(void)c;
}

static const struct channel_ops cut_ops = {
	.write = cut_write, .shutdown = cut_nothing, .close = cut_nothing};

/* What record n says: text, so that a NOTE may say it. */
static size_t fill(unsigned n, uint8_t *text)
{
	uint64_t seed = unit_seed() + n;
	size_t length = 1 + unit_below(&seed, n % 3 ? 2000 : RECORD_MAX);

	for (size_t i = 0; i < length; i++)
		text[i] = (uint8_t)('a' + (i * 7 + n + i / 4096) % 26);
	return length;
}

static void put(struct lane *l, unsigned n)
{
	static uint8_t text[RECORD_MAX];
	struct pgr_error err = PGR_ERROR_NONE;
	size_t length = fill(n, text);
	void *body;

	if (n % 4 == 1) {
		CHECK_EQ(lane_append_body(l, PGR_REC_NOTE, text, length, &err), 0);
		return;
	}
	CHECK_EQ(lane_reserve(l, PGR_REC_NOTE, RECORD_MAX, &body, &err), 0);
	CHECK_EQ((uintptr_t)body % 8, 0);
	memset(body, 0xee, RECORD_MAX);
	if (n % 4 == 2) {
		/* One that comes to nothing leaves no trace. */
		lane_drop(l);
		CHECK_EQ(lane_reserve(l, PGR_REC_NOTE, length, &body, &err), 0);
	}
	memcpy(body, text, length);
	CHECK_EQ(lane_commit(l, PGR_REC_NOTE, length, stream_crc(0, text, length), &err), 0);
}

/* Records that arrived completely; what arrived of the next one is cut off. */
static uint32_t complete(void)
{
	uint32_t n = 0;
	size_t at = 0;

	while (at + sizeof(struct pgr_record) <= got.length) {
		struct pgr_record h;
		size_t bytes;

		memcpy(&h, got.data + at, sizeof(h));
		bytes = sizeof(h) + ((h.length + 7u) & ~7ull);
		if (at + bytes > got.length)
			break;
		at += bytes;
		n++;
	}
	got.length = at;
	return n;
}

static void check_arrived(void)
{
	static uint8_t text[RECORD_MAX];
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_reader r;
	struct stream_record rec;

	got.at = 0;
	stream_reader_init(&r, memory_read, &got);
	for (unsigned n = 0; n < RECORDS; n++) {
		size_t length = fill(n, text);

		CHECK_MSG(stream_read(&r, &rec, &err) == 0, "%s", err.text);
		CHECK_EQ(rec.sequence, n);
		CHECK_EQ(rec.length, length);
		CHECK_MEM(rec.body, text, length);
	}
	CHECK_EQ(stream_read(&r, &rec, &err), -ENODATA);
	stream_reader_free(&r);
}

/* All records over connections that each take up to `least` .. 2 * `least` bytes. */
static void send_all(size_t least)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct cut_channel channel = {.c.ops = &cut_ops};
	uint64_t seed = unit_seed();
	unsigned n = 0, losses = 0;
	struct lane l;

	got.length = 0;
	CHECK_MSG(lane_init(&l, 0, RING, &err) == 0, "%s", err.text);
	for (bool sent = false; !sent;) {
		channel.left = least == SIZE_MAX ? least : least + unit_below(&seed, least);
		CHECK_EQ(lane_start(&l, &channel.c, &err), 0);
		do {
			/* As many as fit, so that they lie everywhere in the ring and some are made while others are sent. */
			while (n < RECORDS && lane_has_room(&l, PGR_REC_NOTE,
							    sizeof(struct pgr_record) + RECORD_MAX))
				put(&l, n++);
			sent = lane_wait_sent(&l, session_now_ns() + 60000000000ull);
			if (sent)
				CHECK_EQ(lane_ack(&l, lane_next_sequence(&l), &err), 0);
		} while (sent && n < RECORDS);
		lane_stop(&l);
		losses += !sent;
		CHECK_MSG(lane_rewind(&l, complete(), &err) == 0, "%s", err.text);
	}
	CHECK(lane_drained(&l));
	CHECK(least == SIZE_MAX ? !losses : losses > 5);
	check_arrived();
	lane_free(&l);
	memory_free(&got);
}

static void records_arrive(void)
{
	send_all(SIZE_MAX);
}

static void lost_connections_change_nothing(void)
{
	send_all(1 << 20);
}

static void room_is_waited_for(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct lane l;
	void *body;

	CHECK_EQ(lane_init(&l, 0, RING, &err), 0);
	CHECK_EQ(lane_reserve(&l, PGR_REC_NOTE, 2 * RING, &body, &err), -EMSGSIZE);
	CHECK_EQ(lane_reserve(&l, PGR_REC_NOTE, PGR_RECORD_MAX, &body, &err), 0);
	memset(body, 'x', PGR_RECORD_MAX);
	CHECK_EQ(lane_commit(&l, PGR_REC_NOTE, PGR_RECORD_MAX, stream_crc(0, body, PGR_RECORD_MAX),
			     &err),
		 0);
	CHECK(!lane_has_room(&l, PGR_REC_NOTE, 8192));
	CHECK_EQ(lane_try_append(&l, PGR_REC_NOTE, &(struct iovec){body, 8192}, 1, &err), -EAGAIN);
	lane_cancel(&l);
	CHECK_EQ(lane_reserve(&l, PGR_REC_NOTE, 8192, &body, &err), -ECANCELED);
	lane_free(&l);
}

UNIT_MAIN(TEST(records_arrive), TEST(lost_connections_change_nothing), TEST(room_is_waited_for))
