// SPDX-License-Identifier: MIT
/*
 * Pages to the body of a PAGES record and back: every kind of page with every method, deltas over
 * evictions and forgetting, pages that change while they are read, and bodies that a hostile peer
 * could send.
 */
#include <errno.h>
#include <lz4.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <zstd.h>

#include "migrate/encode.h"
#include "migrate/page_scan.h"
#include "migrate/stream.h"
#include "tests/unit/unit.h"

#define PAGE	PGR_PAGE_SIZE
#define NR_PFNS 4096u
#define NR_MEM	512u /* pages of the pretended guest */

static _Alignas(4096) uint8_t source[NR_MEM][PAGE];
static _Alignas(4096) uint8_t target[NR_MEM][PAGE];
static _Alignas(8) uint8_t body[PGR_RECORD_MAX];

static struct encoder *new_encoder(enum encode_method method, unsigned group, size_t cache)
{
	struct encode_options o = {.method = method, .group_pages = group, .cache_bytes = cache};
	struct pgr_error err = PGR_ERROR_NONE;
	struct encoder *e;

	CHECK_MSG(encoder_create(&o, &e, &err) == 0, "%s", err.text);
	return e;
}

static struct decoder *new_decoder(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct decoder *d;

	CHECK_MSG(decoder_create(&d, &err) == 0, "%s", err.text);
	return d;
}

/*
 * Encode into `body`; its length. All pages go into one record; the promises of encode.h are checked.
 */
static size_t encode(struct encoder *e, const uint64_t *pfn, uint8_t *const *page,
		     const uint8_t *type, unsigned nr, bool first, uint32_t *crc)
{
	struct pgr_error err = PGR_ERROR_NONE;
	size_t most = encoder_room(e, nr);
	struct encoded made;

	CHECK(most < sizeof(body));
	body[most] = 0xa5;
	CHECK_MSG(encoder_pages(e, 7, pfn, page, type, nr, first, crc, body, &made, &err) == 0,
		  "%s", err.text);
	CHECK(made.length <= most);
	CHECK_EQ(body[most], 0xa5);
	CHECK_EQ(made.crc, stream_crc(0, body, made.length));
	CHECK_MSG(stream_check_body(PGR_REC_PAGES, body, made.length, &err) == 0, "%s", err.text);
	return made.length;
}

/* Decode `body` into target[pfn]; compares CRCs with what the encoder said. */
static void decode(struct decoder *d, size_t length, const uint32_t *want, bool with_base)
{
	struct pgr_error err = PGR_ERROR_NONE;
	uint8_t *page[PGR_BATCH_MAX];
	struct decoded_header h;
	uint32_t crc[PGR_BATCH_MAX];

	CHECK_MSG(decoder_parse(d, body, length, NR_MEM, &h, &err) == 0, "%s", err.text);
	CHECK_EQ(h.round, 7);
	CHECK(h.nr > 0);
	for (unsigned i = 0; i < h.nr; i++)
		page[i] = h.transform[i] == PGR_ABSENT ? NULL : target[h.pfn[i]];
	CHECK_MSG(decoder_pages(d, page, with_base ? page[0] : NULL, NULL, crc, &err) == 0, "%s",
		  err.text);
	for (unsigned i = 0; i < h.nr; i++)
		CHECK_EQ(crc[i], want[i]);
}

/* Contents by kind: 0 zero, 1 random, 2 text, 3 sparse, 4 one byte set at the end. */
static void fill(uint64_t *seed, uint8_t *page, unsigned kind)
{
	memset(page, 0, PAGE);
	switch (kind) {
	case 1:
		unit_fill_random(seed, page, PAGE);
		break;
	case 2:
		for (unsigned i = 0; i < PAGE; i++)
			page[i] = (uint8_t)("etaoin shrdlu\n"[unit_below(seed, 14)]);
		break;
	case 3:
		for (unsigned i = 0; i < 20; i++)
			page[unit_below(seed, PAGE)] = (uint8_t)unit_random(seed);
		break;
	case 4:
		page[PAGE - 1] = 1;
		break;
	default:
		break;
	}
}

static void zero_crc_is_right(void)
{
	static const uint8_t zero[PAGE];

	CHECK_EQ(encode_zero_crc(), stream_crc(0, zero, PAGE));
}

static void zero_test_sees_every_bit(void)
{
	uint8_t *page = source[0];

	memset(page, 0, PAGE);
	CHECK(encode_is_zero(page));
	for (unsigned bit = 0; bit < PAGE * 8; bit++) {
		page[bit / 8] = (uint8_t)(1u << bit % 8);
		CHECK_MSG(!encode_is_zero(page), "bit %u was overlooked", bit);
		page[bit / 8] = 0;
	}
}

static void options_are_checked(void)
{
	struct encode_options bad_group = {.group_pages = PGR_BATCH_MAX + 1};
	struct encode_options bad_method = {.method = (enum encode_method)9};
	struct pgr_error err = PGR_ERROR_NONE;
	struct encoder *e;

	CHECK_EQ(encoder_create(&bad_group, &e, &err), -EINVAL);
	CHECK_HAS(err.text, "257");
	CHECK_EQ(encoder_create(&bad_method, &e, &err), -EINVAL);
}

/*
 * One configuration: many batches of random pages, types and holes; the target must follow the
 * source exactly.
 */
static void follow(enum encode_method method, unsigned group, size_t cache, uint64_t seed)
{
	struct encoder *e = new_encoder(method, group, cache);
	struct decoder *d = new_decoder();
	bool sent_once[NR_MEM] = {false};
	struct encode_stats s;
	uint64_t pages = 0;

	memset(source, 0, sizeof(source));
	memset(target, 0xee, sizeof(target));
	for (unsigned step = 0; step < 60; step++) {
		unsigned nr = (unsigned)unit_below(&seed, 3) ? 1 + (unsigned)unit_below(&seed, 64)
							     : PGR_BATCH_MAX;
		unsigned from = (unsigned)unit_below(&seed, NR_MEM - nr + 1);
		bool first = true, holes = unit_below(&seed, 2);
		uint64_t pfn[PGR_BATCH_MAX];
		uint8_t *page[PGR_BATCH_MAX], type[PGR_BATCH_MAX];
		uint32_t crc[PGR_BATCH_MAX];

		for (unsigned i = 0; i < nr; i++) {
			unsigned p = from + i;

			pfn[i] = p;
			page[i] = holes && !unit_below(&seed, 5) ? NULL : source[p];
			type[i] = unit_below(&seed, 8) ? 0 : (uint8_t)(1 + unit_below(&seed, 4));
			if (!page[i])
				type[i] = 0;
			if (unit_below(&seed, 3))
				fill(&seed, source[p], (unsigned)unit_below(&seed, 5));
			else /* a small change: food for deltas */
				source[p][unit_below(&seed, PAGE)] ^= 0x5a;
			first = first && !sent_once[p];
			sent_once[p] = true;
		}
		decode(d, encode(e, pfn, page, type, nr, first, crc), crc, !holes);
		for (unsigned i = 0; i < nr; i++) {
			if (page[i])
				CHECK_MEM(target[pfn[i]], source[pfn[i]], PAGE);
			else
				CHECK_EQ(crc[i], 0);
		}
		pages += nr;
	}
	encoder_stats(e, &s);
	CHECK_EQ(s.pages, pages);
	CHECK_EQ(s.zero + s.delta + s.plain + s.absent, pages);
	CHECK_EQ(s.bytes_in, (pages - s.absent) * PAGE);
	CHECK(cache < 1u << 20 ? cache || !s.delta : s.delta > 0);
	CHECK(method == ENCODE_NONE ? !s.lz4_groups && !s.zstd_groups
				    : s.lz4_groups + s.zstd_groups > 0);
	decoder_free(d);
	encoder_free(e);
}

static void target_follows_source(void)
{
	static const unsigned groups[] = {0, 1, 3, 16, 256};
	static const size_t caches[] = {0, 64u << 10, 1u << 20, 16u << 20};
	uint64_t seed = unit_seed();

	for (int method = ENCODE_NONE; method <= ENCODE_ZSTD; method++) {
		for (unsigned g = 0; g < 5; g++) {
			for (unsigned c = 0; c < 4; c++)
				follow((enum encode_method)method, groups[g], caches[c],
				       unit_random(&seed));
		}
	}
}

/* Send pfn 0 .. nr-1 from source, check the target, and return how many went as delta. */
static uint64_t send_all(struct encoder *e, struct decoder *d, unsigned nr, bool first)
{
	struct encode_stats before, after;

	encoder_stats(e, &before);
	for (unsigned from = 0; from < nr; from += PGR_BATCH_MAX) {
		unsigned n = nr - from < PGR_BATCH_MAX ? nr - from : PGR_BATCH_MAX;
		uint8_t *page[PGR_BATCH_MAX], type[PGR_BATCH_MAX] = {0};
		uint64_t pfn[PGR_BATCH_MAX];
		uint32_t crc[PGR_BATCH_MAX];

		for (unsigned i = 0; i < n; i++) {
			pfn[i] = from + i;
			page[i] = source[from + i];
		}
		decode(d, encode(e, pfn, page, type, n, first, crc), crc, true);
		CHECK_MEM(target[from], source[from], (size_t)n * PAGE);
	}
	encoder_stats(e, &after);
	return after.delta - before.delta;
}

static void fill_all(uint64_t *seed, unsigned kind)
{
	for (unsigned i = 0; i < NR_MEM; i++)
		fill(seed, source[i], kind);
}

static void touch_all(void)
{
	for (unsigned i = 0; i < NR_MEM; i++)
		source[i][17]++;
}

static void deltas_are_used_and_small(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 16u << 20);
	struct decoder *d = new_decoder();
	struct encode_stats s, t;
	uint64_t seed = unit_seed();

	fill_all(&seed, 1);
	CHECK_EQ(send_all(e, d, NR_MEM, true), 0);
	encoder_stats(e, &s);
	touch_all();
	CHECK_EQ(send_all(e, d, NR_MEM, false), NR_MEM);
	encoder_stats(e, &t);
	CHECK(t.bytes_out - s.bytes_out < NR_MEM * 128);
	CHECK_EQ(send_all(e, d, NR_MEM, false),
		 NR_MEM); /* unchanged: an empty delta, still right */
	CHECK(t.saved_delta > NR_MEM * (PAGE - 128));
	decoder_free(d);
	encoder_free(e);
}

static void no_delta_after_forgetting(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 16u << 20);
	struct decoder *d = new_decoder();
	uint64_t seed = unit_seed(), some[2] = {3, 400};

	fill_all(&seed, 1);
	send_all(e, d, NR_MEM, true);
	encoder_forget(e, some, 2);
	touch_all();
	CHECK_EQ(send_all(e, d, NR_MEM, false), NR_MEM - 2);
	encoder_forget_all(e);
	touch_all();
	CHECK_EQ(send_all(e, d, NR_MEM, false), 0);
	touch_all();
	CHECK_EQ(send_all(e, d, NR_MEM, false), NR_MEM);
	decoder_free(d);
	encoder_free(e);
}

/*
 * After zero, absent or a table, the next version must be whole: stream.md allows a delta against
 * none of them but zero.
 */
static void no_delta_across_other_kinds(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 16u << 20);
	struct decoder *d = new_decoder();
	uint64_t seed = unit_seed(), pfn = 5;
	uint8_t *page = source[5], *none = NULL, type = 0, table = PGR_TYPE_L1;
	uint32_t crc;

	for (unsigned kind = 0; kind < 3; kind++) {
		struct encode_stats s;

		fill(&seed, page, 1);
		decode(d, encode(e, &pfn, &page, &type, 1, false, &crc), &crc, true);
		if (kind == 0)
			memset(page, 0, PAGE);
		if (kind == 1)
			decode(d, encode(e, &pfn, &none, &type, 1, false, &crc), &crc, false);
		else
			decode(d,
			       encode(e, &pfn, &page, kind == 2 ? &table : &type, 1, false, &crc),
			       &crc, true);
		page[9] ^= 1;
		decode(d, encode(e, &pfn, &page, &type, 1, false, &crc), &crc, true);
		CHECK_MEM(target[5], page, PAGE);
		encoder_stats(e, &s);
		CHECK_EQ(s.delta, 0);
		encoder_forget_all(e);
	}
	decoder_free(d);
	encoder_free(e);
}

/*
 * A cache for some 64 pages, a guest of 512 of which 32 are written again and again: the 32 must
 * end up as deltas.
 */
static void working_set_stays_in_a_small_cache(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 64 * 4200);
	struct decoder *d = new_decoder();
	uint64_t seed = unit_seed(), deltas = 0;

	fill_all(&seed, 1);
	send_all(e, d, NR_MEM, true);
	for (unsigned round = 0; round < 6; round++) {
		for (unsigned i = 0; i < 32; i++)
			source[i][round]++;
		deltas = send_all(e, d, 32, false);
	}
	CHECK_EQ(deltas, 32);
	decoder_free(d);
	encoder_free(e);
}

static void evictions_never_lie(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 8, 40 * 4200);
	struct decoder *d = new_decoder();
	uint64_t seed = unit_seed(), deltas = 0;

	fill_all(&seed, 2);
	send_all(e, d, NR_MEM, true);
	for (unsigned round = 0; round < 300; round++) {
		unsigned nr = 1 + (unsigned)unit_below(&seed, 60);

		for (unsigned i = 0; i < nr; i++) {
			unsigned p = (unsigned)(unit_below(&seed, 4) ? unit_below(&seed, 30)
								     : unit_below(&seed, NR_MEM));
			uint8_t *page = source[p], type = 0;
			uint64_t pfn = p;
			struct encode_stats s;
			uint32_t crc;

			page[unit_below(&seed, PAGE)]++;
			if (!unit_below(&seed, 10))
				encoder_forget(e, &pfn, 1);
			decode(d, encode(e, &pfn, &page, &type, 1, false, &crc), &crc, true);
			CHECK_MEM(target[p], source[p], PAGE);
			encoder_stats(e, &s);
			deltas = s.delta;
		}
	}
	CHECK(deltas > 500);
	decoder_free(d);
	encoder_free(e);
}

/*
 * A thread writes the pages while they are encoded: CRC, contents and later deltas agree, and at
 * the end the target is the source.
 */
struct writer {
	atomic_bool stop;
	atomic_ulong writes;
};

static void *write_pages(void *arg)
{
	struct writer *w = arg;
	uint64_t seed = 99;

	while (!atomic_load(&w->stop)) {
		unsigned p = (unsigned)unit_below(&seed, 64);
		uint64_t where = unit_below(&seed, PAGE / 8);
		volatile uint64_t *word = (volatile uint64_t *)(void *)source[p] + where;

		*word = unit_below(&seed, 3) ? unit_random(&seed) : 0;
		if (!unit_below(&seed, 200))
			memset(source[p], 0, PAGE);
		atomic_fetch_add(&w->writes, 1);
	}
	return NULL;
}

static void changing_pages_stay_consistent(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 1u << 20);
	struct decoder *d = new_decoder();
	struct writer w = {false, 0};
	uint8_t *page[64], type[64] = {0};
	struct encode_stats s;
	uint32_t crc[64];
	uint64_t pfn[64];
	pthread_t thread;
	unsigned long last = 0;

	memset(source, 0, sizeof(source));
	for (unsigned i = 0; i < 64; i++) {
		pfn[i] = i;
		page[i] = source[i];
	}
	CHECK_EQ(pthread_create(&thread, NULL, write_pages, &w), 0);
	for (unsigned round = 0; round < 400; round++) {
		/*
		 * decode() compares the CRCs of what arrived: a delta against anything else than
		 * was sent would show.
		 */
		decode(d, encode(e, pfn, page, type, 64, false, crc), crc, true);
		if (round % 50 == 0) {
			while (atomic_load(&w.writes) < last + 1000)
				sched_yield();
			last = atomic_load(&w.writes);
		}
	}
	atomic_store(&w.stop, true);
	pthread_join(thread, NULL);
	encoder_stats(e, &s);
	CHECK(s.delta > 0);
	CHECK(atomic_load(&w.writes) > 1000);
	decode(d, encode(e, pfn, page, type, 64, false, crc), crc, true);
	CHECK_MEM(target, source, 64 * PAGE);
	decoder_free(d);
	encoder_free(e);
}

static void random_memory_stays_raw_and_uncopied(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 0);
	struct decoder *d = new_decoder();
	struct encode_stats s;
	uint64_t seed = unit_seed();

	fill_all(&seed, 1);
	send_all(e, d, NR_MEM, true);
	encoder_stats(e, &s);
	CHECK_EQ(s.lz4_groups, 0);
	CHECK(s.raw_groups > 0);
	/* Text behind it is compressed at once: probing finds it. */
	fill_all(&seed, 2);
	send_all(e, d, NR_MEM, false);
	encoder_stats(e, &s);
	CHECK_EQ(s.lz4_groups, s.raw_groups);
	fill_all(&seed, 3);
	send_all(e, d, NR_MEM, false);
	encoder_stats(e, &s);
	CHECK_EQ(s.lz4_groups, 2 * s.raw_groups);
	decoder_free(d);
	encoder_free(e);
}

/* Raw and compressed groups in turn: each kind follows the other, in place and not. */
static void alternating_groups_follow(void)
{
	for (enum encode_method m = ENCODE_LZ4; m <= ENCODE_ZSTD; m++) {
		struct encoder *e = new_encoder(m, 2, 0);
		struct decoder *d = new_decoder();
		uint64_t seed = unit_seed();
		struct encode_stats s;

		for (unsigned i = 0; i < NR_MEM; i++)
			fill(&seed, source[i], i / 2 % 2 ? 1 : 3);
		CHECK_EQ(send_all(e, d, NR_MEM, true), 0);
		CHECK_MEM(target, source, sizeof(source));
		encoder_stats(e, &s);
		CHECK_EQ(s.raw_groups, NR_MEM / 4);
		CHECK_EQ(s.lz4_groups + s.zstd_groups, NR_MEM / 4);
		decoder_free(d);
		encoder_free(e);
	}
}

/* At each place that a record's data may have beside what is copied. */
static void pages_are_copied_from_and_to_any_place(void)
{
	static _Alignas(PAGE) uint8_t from[2 * PAGE], to[2 * PAGE + 64];
	uint64_t seed = unit_seed();

	unit_fill_random(&seed, from, sizeof(from));
	for (unsigned a = 0; a < 128; a += 8)
		for (unsigned b = 0; b < 128; b += 8) {
			memset(to, 0xa5, sizeof(to));
			page_copy(to + 64 + b, from + a);
			CHECK_MEM(to + 64 + b, from + a, PAGE);
			CHECK_EQ(to[63 + b], 0xa5);
			CHECK_EQ(to[64 + b + PAGE], 0xa5);
		}
}

static void batch_sizes_are_checked(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 0);
	struct pgr_error err = PGR_ERROR_NONE;
	struct encoded made;

	CHECK_EQ(encoder_pages(e, 0, NULL, NULL, NULL, 0, false, NULL, body, &made, &err), -EINVAL);
	CHECK_EQ(encoder_pages(e, 0, NULL, NULL, NULL, 257, false, NULL, body, &made, &err),
		 -EINVAL);
	encoder_free(e);
}

static void every_allocation_may_fail(void)
{
	struct encode_options o = {.method = ENCODE_ZSTD, .cache_bytes = 1u << 20};
	struct pgr_error err = PGR_ERROR_NONE;
	unsigned long k, needed;
	struct encoder *e;
	struct decoder *d;

	unit_fail_alloc(0);
	CHECK_EQ(encoder_create(&o, &e, &err), 0);
	needed = unit_fail_alloc(0);
	CHECK(needed >= 8);
	encoder_free(e);
	for (k = 1; k <= needed; k++) {
		int rc;

		unit_fail_alloc(k);
		rc = encoder_create(&o, &e, &err);
		unit_fail_alloc(0);
		CHECK_EQ(rc, -ENOMEM);
		CHECK(e == NULL);
		CHECK_HAS(err.text, "no memory");
	}
	CHECK_EQ(decoder_create(&d, &err), 0);
	needed = unit_fail_alloc(0);
	decoder_free(d);
	for (k = 1; k <= needed; k++) {
		int rc;

		unit_fail_alloc(k);
		rc = decoder_create(&d, &err);
		unit_fail_alloc(0);
		CHECK_EQ(rc, -ENOMEM);
		CHECK(d == NULL);
	}
}

/*
 * zstd allocates at its first use: the batch fails, nothing of it may be taken for sent, the next
 * one is right.
 */
static void allocation_failure_while_encoding(void)
{
	struct encoder *e = new_encoder(ENCODE_ZSTD, 0, 1u << 20);
	struct decoder *d = new_decoder();
	uint8_t *page = source[0], type = 0;
	struct pgr_error err = PGR_ERROR_NONE;
	struct encode_stats s;
	uint64_t seed = unit_seed(), pfn = 0;
	struct encoded made;
	uint32_t crc;
	int rc;

	fill(&seed, page, 2);
	unit_fail_alloc(1);
	rc = encoder_pages(e, 7, &pfn, &page, &type, 1, false, &crc, body, &made, &err);
	unit_fail_alloc(0);
	CHECK_EQ(rc, -ENOMEM);
	CHECK_HAS(err.text, "zstd");
	page[0] ^= 1;
	decode(d, encode(e, &pfn, &page, &type, 1, false, &crc), &crc, true);
	CHECK_MEM(target[0], page, PAGE);
	encoder_stats(e, &s);
	CHECK_EQ(s.delta, 0);
	decoder_free(d);
	encoder_free(e);
}

/* ---- the decoder against hostile bodies ---- */

struct crafted {
	uint64_t word[4];
	struct pgr_group group[4];
	uint8_t data[4 * PAGE];
	unsigned pages, groups;
	size_t length; /* of data */
};

/* Lay a body out as it says, right or not; its length. */
static size_t lay_out(const struct crafted *c)
{
	struct pgr_pages head = {.nr_pages = c->pages, .nr_groups = c->groups, .round = 7};
	size_t n = sizeof(head);

	memcpy(body, &head, n);
	memcpy(body + n, c->word, c->pages * sizeof(c->word[0]));
	n += c->pages * sizeof(c->word[0]);
	memcpy(body + n, c->group, c->groups * sizeof(c->group[0]));
	n += c->groups * sizeof(c->group[0]);
	memcpy(body + n, c->data, c->length);
	return n + c->length;
}

/* Two pages of LZ4 text, well formed. */
static struct crafted good_body(enum pgr_codec codec)
{
	struct crafted c = {.pages = 2, .groups = 1};
	uint64_t seed = 4;
	size_t n;

	c.word[0] = PGR_PAGE_WORD(1, PGR_DATA, 0);
	c.word[1] = PGR_PAGE_WORD(2, PGR_DATA, 0);
	fill(&seed, source[1], 2);
	fill(&seed, source[2], 2);
	fill(&seed, source[3], 2);
	if (codec == PGR_CODEC_LZ4)
		n = (size_t)LZ4_compress_default((char *)source[1], (char *)c.data, 2 * PAGE,
						 sizeof(c.data));
	else
		n = ZSTD_compress(c.data, sizeof(c.data), source[1], 2 * PAGE, 1);
	c.group[0] = (struct pgr_group){codec, 2, (uint32_t)n, 0};
	c.length = (n + 7) & ~(size_t)7;
	return c;
}

static int parse(struct decoder *d, size_t length, struct pgr_error *err)
{
	struct decoded_header h;

	return decoder_parse(d, body, length, NR_MEM, &h, err);
}

static int open_pages(struct decoder *d, size_t length, struct pgr_error *err)
{
	uint8_t *page[4] = {target[1], target[2], target[3], target[4]};
	uint32_t crc[4];
	int rc = parse(d, length, err);

	return rc ? rc : decoder_pages(d, page, NULL, NULL, crc, err);
}

static void refuses(const struct crafted *c, int code, const char *says)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct decoder *d = new_decoder();
	size_t length = lay_out(c);

	CHECK_EQ(open_pages(d, length, &err), code);
	CHECK_HAS(err.text, says);
	decoder_free(d);
}

static void good_bodies_are_taken(void)
{
	for (unsigned codec = PGR_CODEC_LZ4; codec <= PGR_CODEC_ZSTD; codec++) {
		struct crafted c = good_body((enum pgr_codec)codec);
		struct pgr_error err = PGR_ERROR_NONE;
		struct decoder *d = new_decoder();

		CHECK_MSG(open_pages(d, lay_out(&c), &err) == 0, "%s", err.text);
		CHECK_MEM(target[1], source[1], 2 * PAGE);
		decoder_free(d);
	}
}

static void bad_page_words_are_refused(void)
{
	struct crafted c = good_body(PGR_CODEC_LZ4);
	uint64_t good = c.word[1];
	struct decoder *d;

	c.word[1] = PGR_PAGE_WORD(1, PGR_DATA, 0);
	refuses(&c, -EPROTO, "twice");
	c.word[1] = PGR_PAGE_WORD(0, PGR_DATA, 0); /* descending is allowed */
	d = new_decoder();
	CHECK_EQ(parse(d, lay_out(&c), NULL), 0);
	decoder_free(d);
	c.word[1] = PGR_PAGE_WORD(NR_MEM, PGR_DATA, 0);
	refuses(&c, -EPROTO, "outside of the guest's");
	c.word[1] = PGR_PAGE_WORD(PGR_PFNS_MAX, PGR_DATA, 0);
	refuses(&c, -EPROTO, "larger than any guest");
	c.word[1] = PGR_PAGE_WORD(2, PGR_DELTA, PGR_TYPE_L2);
	refuses(&c, -EPROTO, "must be sent whole");
	c.word[1] = PGR_PAGE_WORD(2, PGR_DATA, 5);
	refuses(&c, -EPROTO, "page type 5");
	c.word[1] = PGR_PAGE_WORD(2, PGR_DATA, PGR_TYPE_PINNED);
	refuses(&c, -EPROTO, "page type 8");
	c.word[1] = PGR_PAGE_WORD(2, 4, 0);
	refuses(&c, -EPROTO, "transform 4");
	c.word[1] = PGR_PAGE_WORD(2, PGR_ZERO, 0);
	refuses(&c, -EPROTO, "1 pages have data but the groups hold 2");
	for (unsigned bit = 40; bit < 64; bit++) {
		if ((bit >= 48 && bit < 52) || (bit >= 56 && bit < 60))
			continue;
		c.word[1] = good | 1ull << bit;
		refuses(&c, -EPROTO, "reserved bit");
	}
}

static void bad_groups_are_refused(void)
{
	struct crafted c = good_body(PGR_CODEC_LZ4), g = c;

	g.group[0].codec = 3;
	refuses(&g, -EPROTO, "codec 3");
	g = c;
	g.group[0].reserved = 1;
	refuses(&g, -EPROTO, "reserved");
	g = c;
	g.group[0].nr_pages = 0;
	refuses(&g, -EPROTO, "0 pages");
	g = c;
	g.group[0].nr_pages = 3;
	refuses(&g, -EPROTO, "groups hold 3");
	g = c;
	g.group[0].nr_pages = 0x40000001;
	refuses(&g, -EPROTO, "group 0");
	g = c;
	g.group[0].length = 0xfffffff9; /* its padding would wrap in 32 bits */
	refuses(&g, -EPROTO, "cannot be 2 pages");
	g = c;
	g.group[0].length = (uint32_t)c.length + 8;
	refuses(&g, -EPROTO, "beyond the record's");
	g = c;
	g.length += 8;
	refuses(&g, -EPROTO, "8 bytes follow the last group");
	g = c;
	g.group[0].codec = PGR_CODEC_RAW;
	refuses(&g, -EPROTO, "cannot be 2 pages");
	g = c;
	g.groups = 0;
	refuses(&g, -EPROTO, "follow the last group");
	g = c;
	g.groups = 3;
	refuses(&g, -EPROTO, "groups");
	g = c;
	if (g.length > g.group[0].length) {
		g.data[g.length - 1] = 1;
		refuses(&g, -EPROTO, "padding");
	}
}

/* A block that gives fewer or more bytes than its pages, or leaves input over. */
static void wrong_sizes_do_not_decompress(void)
{
	uint64_t seed = unit_seed();

	for (unsigned codec = PGR_CODEC_LZ4; codec <= PGR_CODEC_ZSTD; codec++) {
		static const int deltas[] = {-4096, -1, 1, 4096};

		for (unsigned i = 0; i < 4; i++) {
			struct crafted c = good_body((enum pgr_codec)codec);
			size_t size = 2 * PAGE + (size_t)deltas[i], n;

			for (unsigned k = 1; k <= 3; k++)
				fill(&seed, source[k], 3);
			if (codec == PGR_CODEC_LZ4)
				n = (size_t)LZ4_compress_default((char *)source[1], (char *)c.data,
								 (int)size, sizeof(c.data));
			else
				n = ZSTD_compress(c.data, sizeof(c.data), source[1], size, 1);
			memset(c.data + n, 0, 8);
			c.group[0].length = (uint32_t)n;
			c.length = (n + 7) & ~(size_t)7;
			refuses(&c, -EBADMSG, "do not decompress to 2 pages");
		}
	}
}

static void zstd_frames_are_plain(void)
{
	struct crafted c = good_body(PGR_CODEC_ZSTD), g = c;
	static const uint8_t skippable[] = {0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0};

	memmove(g.data + sizeof(skippable), g.data, g.length);
	memcpy(g.data, skippable, sizeof(skippable));
	g.length += sizeof(skippable);
	g.group[0].length += sizeof(skippable);
	refuses(&g, -EBADMSG, "zstd"); /* a skippable frame before */
	g = c;
	memcpy(g.data + g.group[0].length, skippable, sizeof(skippable));
	g.group[0].length += sizeof(skippable);
	g.length = (g.group[0].length + 7u) & ~7u;
	refuses(&g, -EBADMSG, "zstd"); /* and behind */
	g = c;
	g.group[0].length = 5;
	g.length = 8;
	memset(g.data + 5, 0, 3);
	refuses(&g, -EBADMSG, "zstd");
}

/*
 * Every cut and every flipped bit of a body must end in a refusal or in a decision, never outside
 * of the buffers (ASan watches).
 */
static void damaged_bodies_are_survived(void)
{
	uint64_t refused = 0, taken = 0;

	for (unsigned codec = PGR_CODEC_LZ4; codec <= PGR_CODEC_ZSTD; codec++) {
		struct crafted c = good_body((enum pgr_codec)codec);
		struct decoder *d = new_decoder();
		size_t length = lay_out(&c);
		struct pgr_error err;

		for (size_t cut = 0; cut < length; cut++) {
			/* a fresh allocation of exactly the size, so that reading beyond shows */
			void *exact = aligned_alloc(8, (cut + 7) & ~(size_t)7);
			struct decoded_header h;

			CHECK(exact != NULL);
			memcpy(exact, body, cut);
			CHECK_EQ(decoder_parse(d, exact, cut, NR_MEM, &h, &err), -EPROTO);
			free(exact);
		}
		for (size_t bit = 0; bit < length * 8; bit++) {
			body[bit / 8] ^= (uint8_t)(1u << bit % 8);
			if (open_pages(d, length, &err))
				refused++;
			else
				taken++;
			body[bit / 8] ^= (uint8_t)(1u << bit % 8);
		}
		decoder_free(d);
	}
	CHECK(refused > 2000);
	CHECK(taken > 0); /* literals: only the record's CRC can tell */
}

static void verify_compares(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 1u << 20);
	struct decoder *d = new_decoder();
	uint8_t *page[8], *there[8], type[8] = {0};
	struct pgr_error err = PGR_ERROR_NONE;
	uint64_t seed = unit_seed(), pfn[8];
	struct decoded_header h;
	uint32_t crc[8];
	size_t length;
	int differs;

	for (unsigned i = 0; i < 8; i++) {
		pfn[i] = i;
		fill(&seed, source[i], i % 4);
		memcpy(target[i], source[i], PAGE);
		page[i] = i == 6 ? NULL : source[i];
		there[i] = target[i];
	}
	length = encode(e, pfn, page, type, 8, true, crc);
	CHECK_EQ(decoder_parse(d, body, length, NR_MEM, &h, &err), 0);
	CHECK_EQ(decoder_compare(d, there, &differs, &err), 0);
	CHECK_EQ(differs, -1);
	for (unsigned i = 0; i < 8; i++) {
		target[i][PAGE - 1] ^= 0x80;
		CHECK_EQ(decoder_compare(d, there, &differs, &err), 0);
		CHECK_EQ(differs, i == 6 ? -1 : (int)i);
		target[7][0] ^= 1; /* of two differences the first */
		CHECK_EQ(decoder_compare(d, there, &differs, &err), 0);
		CHECK_EQ(differs, i == 6 ? 7 : (int)i);
		target[7][0] ^= 1;
		target[i][PAGE - 1] ^= 0x80;
	}
	there[2] = NULL;
	CHECK_EQ(decoder_compare(d, there, &differs, &err), 0);
	CHECK_EQ(differs, 2);
	there[2] = target[2];
	length = encode(e, pfn, page, type, 8, false, crc); /* deltas now */
	CHECK_EQ(decoder_parse(d, body, length, NR_MEM, &h, &err), 0);
	CHECK_EQ(decoder_compare(d, there, &differs, &err), -EPROTO);
	CHECK_HAS(err.text, "delta cannot verify");
	decoder_free(d);
	encoder_free(e);
}

static void known_zero_pages_are_not_written(void)
{
	struct encoder *e = new_encoder(ENCODE_LZ4, 0, 0);
	struct decoder *d = new_decoder();
	uint8_t *page[2] = {source[0], source[1]}, *there[2] = {target[0], target[1]},
		type[2] = {0};
	const bool is_zero[2] = {true, false};
	struct pgr_error err = PGR_ERROR_NONE;
	uint64_t pfn[2] = {0, 1};
	struct decoded_header h;
	uint32_t crc[2];
	size_t length;

	memset(source[0], 0, 2 * PAGE);
	memset(target[0], 0x77, 2 * PAGE);
	length = encode(e, pfn, page, type, 2, true, crc);
	CHECK_EQ(decoder_parse(d, body, length, NR_MEM, &h, &err), 0);
	CHECK_EQ(decoder_pages(d, there, NULL, is_zero, crc, &err), 0);
	CHECK_EQ(target[0][0], 0x77);
	CHECK_MEM(target[1], source[1], PAGE);
	there[1] = NULL;
	CHECK_EQ(decoder_pages(d, there, NULL, is_zero, crc, &err), -EINVAL);
	decoder_free(d);
	encoder_free(e);
}

UNIT_MAIN(TEST(zero_crc_is_right), TEST(zero_test_sees_every_bit), TEST(options_are_checked),
	  TEST(target_follows_source), TEST(deltas_are_used_and_small),
	  TEST(no_delta_after_forgetting), TEST(no_delta_across_other_kinds),
	  TEST(working_set_stays_in_a_small_cache), TEST(evictions_never_lie),
	  TEST(changing_pages_stay_consistent), TEST(random_memory_stays_raw_and_uncopied),
	  TEST(alternating_groups_follow), TEST(pages_are_copied_from_and_to_any_place),
	  TEST(batch_sizes_are_checked), TEST(every_allocation_may_fail),
	  TEST(allocation_failure_while_encoding), TEST(good_bodies_are_taken),
	  TEST(bad_page_words_are_refused), TEST(bad_groups_are_refused),
	  TEST(wrong_sizes_do_not_decompress), TEST(zstd_frames_are_plain),
	  TEST(damaged_bodies_are_survived), TEST(verify_compares),
	  TEST(known_zero_pages_are_not_written))
