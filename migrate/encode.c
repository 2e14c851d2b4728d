// SPDX-License-Identifier: MIT
/*
 * Pages to the body of a PAGES record.
 *
 * The guest may write its pages while they are encoded. So a page is read in two ways only:
 *
 *  - The zero test reads it in place. Each word is read once and found zero; what is sent, a page
 *    of zeroes, is made of words that the page held at some moment since the batch was read,
 *    exactly like a copy would be, and copying is skipped. A write that comes after its word was
 *    read is in the dirty log, and the page will be sent again.
 *  - A page that is not zero is copied once into the batch buffer. The CRC, the comparison with the
 *    cache, the XOR, the new contents of the cache and the compression all take the copy, so they
 *    agree whatever the guest does.
 *
 * Invariant of the cache: what it holds for a pfn is, byte for byte, what this encoder last sent
 * for it, as ordinary DATA or DELTA. Whatever else is sent for the pfn (zero, absent, a page table)
 * removes it.
 *
 * Pages with data stand in the batch buffer in order and are cut into groups of group_pages; each
 * is compressed as one block and stays raw unless that saves 1/32. Memory that does not compress
 * should cost little more than its copy: after a group that stayed raw the next ones are looked at
 * cheaply first, and only one that yields is compressed properly; so is every 16th, in case the
 * look deceives.
 */
#include "migrate/encode.h"

#include <assert.h>
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "migrate/encode_cache.h"
#include "migrate/page_scan.h"
#include "migrate/stream.h"

/*
 * 64 KiB are the most for which LZ4 keeps 16-bit positions and twice as many of them: measured
 * (tests/bench/bench_encode.c --groups), 16 pages have the best ratio of all sizes on text and
 * binaries, at 0.9 of the speed of larger groups.
 */
#define LZ4_GROUP   16u
#define LZ4_DEFAULT 1
/*
 * zstd gains from all the context that a record has. Level 2 has the same matcher as level 1 with a
 * larger table: on groups of 256 pages it is as fast within the noise and sends 2 to 8 % less; level
 * 3 halves the speed for 2 to 4 %.
 */
#define ZSTD_GROUP   PGR_BATCH_MAX
#define ZSTD_DEFAULT 2
#define PAGE_WORDS   (PGR_PAGE_SIZE / sizeof(uint64_t))
#define DELTA_WORDS_MAX \
	(PAGE_WORDS / 4) /* a delta with more words is not clearly sparser than the page */
#define PROBE_ACCELERATION 32
/*
 * Every so many raw groups one is tried properly: zstd finds skewed bytes where LZ4, which looks,
 * finds no match.
 */
#define PROBE_PERIOD 16u

#define HEAD_MAX                                                       \
	(sizeof(struct pgr_pages) + PGR_BATCH_MAX * sizeof(uint64_t) + \
	 PGR_BATCH_MAX * sizeof(struct pgr_group))
#define BATCH_BYTES (PGR_BATCH_MAX * PGR_PAGE_SIZE)
#define PARTS_MAX   4u

struct encoder {
	struct encode_options o;
	struct encode_cache *cache; /* NULL: no deltas */
	struct encode_stats stats;
	uint8_t *batch;	   /* the pages with data, one after the other */
	uint8_t *out;	   /* compressed groups, each padded */
	size_t out_length; /* used */
	void *lz4;
	ZSTD_CCtx *zstd;
	unsigned raw_streak; /* groups that stayed raw since one that did not */
	struct iovec *part;  /* the caller's array during a call; part[0] is the head */
	unsigned parts;
	bool referenced; /* a part points into the batch buffer */
	/* per page with data: words that a delta leaves zero; 0: plain */
	uint16_t delta_zeroes[PGR_BATCH_MAX];
	_Alignas(8) uint8_t head[HEAD_MAX];
};

uint32_t encode_zero_crc(void)
{
	return 0xc71c0011u; /* the worked example of stream.md; test_encode computes it */
}

bool encode_is_zero(const void *page)
{
	return page_is_zero(page);
}

static int check_options(const struct encode_options *o, struct pgr_error *err)
{
	if ((unsigned)o->method > ENCODE_ZSTD)
		return pgr_fail(err, -EINVAL, "the compression method %d is unknown", o->method);
	if (o->group_pages > PGR_BATCH_MAX)
		return pgr_fail(err, -EINVAL, "groups of %u pages are not possible: at most %u",
				o->group_pages, PGR_BATCH_MAX);
	return 0;
}

int encoder_create(const struct encode_options *o, struct encoder **out, struct pgr_error *err)
{
	struct encoder *e = NULL;
	int rc = check_options(o, err);

	*out = NULL;
	if (rc)
		return rc;
	e = calloc(1, sizeof(*e));
	if (!e)
		goto no_memory;
	e->o = *o;
	if (!e->o.group_pages)
		e->o.group_pages = o->method == ENCODE_ZSTD ? ZSTD_GROUP : LZ4_GROUP;
	if (!e->o.level)
		e->o.level = o->method == ENCODE_ZSTD ? ZSTD_DEFAULT : LZ4_DEFAULT;
	e->batch = aligned_alloc(PGR_PAGE_SIZE, BATCH_BYTES);
	e->out = malloc(BATCH_BYTES);
	if (!e->batch || !e->out)
		goto no_memory;
	if (o->method != ENCODE_NONE) {
		e->lz4 = malloc((size_t)LZ4_sizeofState()); /* zstd probes with it */
		if (!e->lz4)
			goto no_memory;
	}
	if (o->method == ENCODE_ZSTD) {
		e->zstd = ZSTD_createCCtx();
		if (!e->zstd)
			goto no_memory;
	}
	if (encode_cache_create(o->cache_bytes, &e->cache))
		goto no_memory;
	*out = e;
	return 0;

no_memory:
	encoder_free(e);
	return pgr_fail(err, -ENOMEM, "no memory for an encoder with a cache of %zu bytes",
			o->cache_bytes);
}

void encoder_free(struct encoder *e)
{
	if (!e)
		return;
	encode_cache_free(e->cache);
	ZSTD_freeCCtx(e->zstd);
	free(e->lz4);
	free(e->out);
	free(e->batch);
	free(e);
}

void encoder_forget(struct encoder *e, const uint64_t *pfn, unsigned nr)
{
	if (!e->cache)
		return;
	for (unsigned i = 0; i < nr; i++)
		encode_cache_remove(e->cache, pfn[i]);
}

void encoder_forget_all(struct encoder *e)
{
	if (e->cache)
		encode_cache_clear(e->cache);
}

void encoder_stats(const struct encoder *e, struct encode_stats *s)
{
	*s = e->stats;
}

/*
 * The copy of an ordinary page against the cache. Leaves the cache with the page; makes the copy a
 * delta, and returns the words that are zero in it, when that is worth it; else 0.
 */
static unsigned try_delta(struct encoder *e, uint64_t pfn, uint8_t *copy, bool first_time)
{
	/* What was never sent is not there: the look-up, a miss in the processor's caches too, is saved. */
	uint8_t *sent = first_time ? NULL : encode_cache_find(e->cache, pfn);
	unsigned words;

	if (!sent) {
		sent = encode_cache_insert(e->cache, pfn, !first_time);
		if (sent)
			memcpy(sent, copy, PGR_PAGE_SIZE);
		return 0;
	}
	words = page_words_differ(copy, sent, DELTA_WORDS_MAX + 1);
	if (words > DELTA_WORDS_MAX) {
		memcpy(sent, copy, PGR_PAGE_SIZE);
		return 0;
	}
	/*
	 * Now the copy becomes the delta and then the cache the page: delta = page ^ sent, page =
	 * delta ^ sent.
	 */
	page_xor(copy, copy, sent);
	page_xor(sent, sent, copy);
	return PAGE_WORDS - words;
}

/* One page into the batch buffer at place `filled` when it has data; returns its transform. */
static enum pgr_transform take_page(struct encoder *e, uint64_t pfn, const uint8_t *page,
				    unsigned type, bool first_time, unsigned filled, uint32_t *crc)
{
	uint8_t *copy = e->batch + (size_t)filled * PGR_PAGE_SIZE;
	enum pgr_transform transform = PGR_DATA;
	bool cached = e->cache && !first_time;

	e->stats.pages++;
	if (!page) {
		e->stats.absent++;
		*crc = 0;
		transform = PGR_ABSENT;
	} else if (page_is_zero(page)) {
		e->stats.zero++;
		e->stats.saved_zero += PGR_PAGE_SIZE;
		*crc = encode_zero_crc();
		transform = PGR_ZERO;
	}
	if (transform != PGR_DATA || type != PGR_TYPE_ORDINARY) {
		if (cached)
			encode_cache_remove(e->cache, pfn);
		if (transform != PGR_DATA)
			return transform;
	}

	memcpy(copy, page, PGR_PAGE_SIZE);
	*crc = stream_crc(0, copy, PGR_PAGE_SIZE);
	e->delta_zeroes[filled] = 0;
	if (e->cache && type == PGR_TYPE_ORDINARY)
		e->delta_zeroes[filled] = (uint16_t)try_delta(e, pfn, copy, first_time);
	if (!e->delta_zeroes[filled]) {
		e->stats.plain++;
		return PGR_DATA;
	}
	e->stats.delta++;
	return PGR_DELTA;
}

/* Where `length` bytes that follow in the out buffer belong in the parts. */
static void part_in_out(struct encoder *e, size_t length)
{
	struct iovec *last = &e->part[e->parts - 1];
	uint8_t *at = e->out + e->out_length;

	if (e->parts > 1 && (uint8_t *)last->iov_base + last->iov_len == at)
		last->iov_len += length;
	else
		e->part[e->parts++] = (struct iovec){.iov_base = at, .iov_len = length};
	e->out_length += length;
}

/*
 * A raw group goes from where it is, as far as the parts suffice: one run of raw groups, the others
 * are copied behind.
 */
static void put_raw(struct encoder *e, uint8_t *data, size_t length)
{
	struct iovec *last = &e->part[e->parts - 1];

	if (e->referenced && (uint8_t *)last->iov_base + last->iov_len == data) {
		last->iov_len += length;
	} else if (!e->referenced) {
		e->part[e->parts++] = (struct iovec){.iov_base = data, .iov_len = length};
		e->referenced = true;
	} else {
		memcpy(e->out + e->out_length, data, length);
		part_in_out(e, length);
	}
}

static size_t lz4_group(struct encoder *e, const uint8_t *data, size_t length, size_t most,
			int acceleration)
{
	int n = LZ4_compress_fast_extState(e->lz4, (const char *)data,
					   (char *)e->out + e->out_length, (int)length, (int)most,
					   acceleration);

	return n > 0 ? (size_t)n : 0;
}

/*
 * A cheap look at a group after one that stayed raw: one page in small steps (a different one each
 * time), then all of it in large ones.
 */
static bool seems_compressible(struct encoder *e, const uint8_t *data, size_t length)
{
	size_t page;

	assert(length >= PGR_PAGE_SIZE);
	page = e->raw_streak % (length / PGR_PAGE_SIZE) * PGR_PAGE_SIZE;

	return lz4_group(e, data + page, PGR_PAGE_SIZE, PGR_PAGE_SIZE - PGR_PAGE_SIZE / 32,
			 LZ4_DEFAULT) ||
	       lz4_group(e, data, length, length - length / 32, PROBE_ACCELERATION);
}

/*
 * Compress a group to the end of the out buffer: *length_out bytes, or 0 when it does not save
 * enough. Those `most` bytes are always there: all groups before took at most their own length.
 */
static int compress_group(struct encoder *e, const uint8_t *data, size_t length, size_t *length_out,
			  struct pgr_error *err)
{
	size_t most = length - length / 32;

	*length_out = 0;
	if (e->o.method == ENCODE_NONE)
		return 0;
	if (e->raw_streak % PROBE_PERIOD && !seems_compressible(e, data, length))
		return 0;
	if (e->o.method == ENCODE_LZ4) {
		*length_out = lz4_group(e, data, length, most, e->o.level);
		return 0;
	}
	*length_out =
		ZSTD_compressCCtx(e->zstd, e->out + e->out_length, most, data, length, e->o.level);
	if (!ZSTD_isError(*length_out))
		return 0;
	if (ZSTD_getErrorCode(*length_out) == ZSTD_error_memory_allocation)
		return pgr_fail(err, -ENOMEM, "no memory for zstd at level %d", e->o.level);
	*length_out = 0; /* does not fit: stays raw */
	return 0;
}

/*
 * What was saved, by what saved it: first the zero words of deltas, the rest is the compression's.
 */
static void count_saved(struct encoder *e, unsigned first, unsigned nr, size_t sent)
{
	uint64_t saved = (uint64_t)nr * PGR_PAGE_SIZE - sent, by_delta = 0;

	for (unsigned i = first; i < first + nr; i++)
		by_delta += e->delta_zeroes[i] * sizeof(uint64_t);
	if (by_delta > saved)
		by_delta = saved;
	e->stats.saved_delta += by_delta;
	e->stats.saved_compress += saved - by_delta;
}

static int put_group(struct encoder *e, unsigned first, unsigned nr, struct pgr_group *g,
		     struct pgr_error *err)
{
	uint8_t *data = e->batch + (size_t)first * PGR_PAGE_SIZE;
	size_t length = (size_t)nr * PGR_PAGE_SIZE, sent, padded;
	int rc;

	rc = compress_group(e, data, length, &sent, err);
	if (rc)
		return rc;
	if (!sent) {
		*g = (struct pgr_group){PGR_CODEC_RAW, nr, (uint32_t)length, 0};
		e->raw_streak++;
		e->stats.raw_groups++;
		put_raw(e, data, length);
		return 0;
	}
	e->raw_streak = 0;
	if (e->o.method == ENCODE_LZ4)
		e->stats.lz4_groups++;
	else
		e->stats.zstd_groups++;
	*g = (struct pgr_group){e->o.method == ENCODE_LZ4 ? PGR_CODEC_LZ4 : PGR_CODEC_ZSTD, nr,
				(uint32_t)sent, 0};
	padded = (sent + 7) & ~(size_t)7;
	memset(e->out + e->out_length + sent, 0, padded - sent);
	part_in_out(e, padded);
	count_saved(e, first, nr, sent);
	return 0;
}

int encoder_pages(struct encoder *e, uint32_t round, const uint64_t *pfn, uint8_t *const *page,
		  const uint8_t *type, unsigned nr, bool first_time, uint32_t *crc,
		  struct iovec body[4], unsigned *parts, struct pgr_error *err)
{
	struct pgr_pages *head = (void *)e->head;
	uint64_t *word = (void *)(e->head + sizeof(*head));
	struct pgr_group *group = (void *)(word + nr);
	unsigned filled = 0;

	if (!nr || nr > PGR_BATCH_MAX)
		return pgr_fail(err, -EINVAL, "a batch of %u pages cannot be encoded: 1 .. %u", nr,
				PGR_BATCH_MAX);
	*head = (struct pgr_pages){.nr_pages = nr, .round = round};
	for (unsigned i = 0; i < nr; i++) {
		enum pgr_transform t =
			take_page(e, pfn[i], page[i], type[i], first_time, filled, &crc[i]);

		word[i] = PGR_PAGE_WORD(pfn[i], t, t == PGR_ABSENT ? 0 : type[i]);
		if (t == PGR_DATA || t == PGR_DELTA)
			filled++;
	}

	e->part = body;
	e->parts = 1;
	e->out_length = 0;
	e->referenced = false;
	for (unsigned at = 0; at < filled; at += group[-1].nr_pages) {
		unsigned n = filled - at < e->o.group_pages ? filled - at : e->o.group_pages;
		int rc = put_group(e, at, n, group++, err);

		if (rc) {
			/* What the cache took from this batch was never sent. */
			encoder_forget(e, pfn, nr);
			return rc;
		}
		head->nr_groups++;
	}
	body[0] = (struct iovec){.iov_base = e->head,
				 .iov_len = (size_t)((uint8_t *)group - e->head)};
	*parts = e->parts;
	for (unsigned i = 0; i < e->parts; i++)
		e->stats.bytes_out += body[i].iov_len;
	e->stats.bytes_in = (e->stats.pages - e->stats.absent) * PGR_PAGE_SIZE;
	return 0;
}
