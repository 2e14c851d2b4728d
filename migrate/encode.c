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
 *  - A page that is not zero is copied once. The CRC, the comparison with the cache, the XOR, the new
 *    contents of the cache and the compression all take the copy, so they agree whatever the guest
 *    does. (It may have become zero meanwhile: then zeroes are sent as data.)
 *
 * The body is made where it will be sent from. All pages are tested first, so the length of the head is
 * known when data are placed; then group by group is copied, worked on and finished, so that its bytes
 * are looked at while they are in the processor's caches.
 *
 * Invariant of the cache: what it holds for a pfn is, byte for byte, what this encoder last sent
 * for it, as ordinary DATA or DELTA. Whatever else is sent for the pfn (zero, absent, a page table)
 * removes it.
 *
 * Pages with data are in order cut into groups of group_pages; each is compressed as one block and
 * stays raw unless that saves 1/32. Memory that does not compress should cost little more than its
 * copy: after a group that stayed raw the next ones are looked at cheaply first, and only one that
 * yields is compressed properly; so is every 16th, in case the look deceives.
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
 * zstd gains from all the context that a record has. On groups of 256 pages (bench_encode --levels)
 * level 2 sends 4 to 5 % less than level 1 on text and binaries for 15 to 35 % of the speed; level 3
 * sends 1 % more to 4 % less than level 2 for as much again.
 */
#define WHOLE_RECORD PGR_BATCH_MAX
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

struct encoder {
	struct encode_options o;
	struct encode_cache *cache; /* NULL: no deltas */
	struct encode_stats stats;
	uint8_t *scratch; /* one group */
	void *lz4;
	ZSTD_CCtx *zstd;
	unsigned raw_streak;  /* groups that stayed raw since one that did not */
	uint64_t delta_words; /* that are zero in the deltas of the group at hand */
};

bool encode_method_parse(const char *name, enum encode_method *out)
{
	static const char *const names[] = {
		[ENCODE_NONE] = "none", [ENCODE_LZ4] = "lz4", [ENCODE_ZSTD] = "zstd"};

	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (strcmp(names[i], name) != 0)
			continue;
		*out = (enum encode_method)i;
		return true;
	}
	return false;
}

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
		e->o.group_pages = o->method == ENCODE_LZ4 ? LZ4_GROUP : WHOLE_RECORD;
	if (!e->o.level)
		e->o.level = o->method == ENCODE_ZSTD ? ZSTD_DEFAULT : LZ4_DEFAULT;
	if (o->method != ENCODE_NONE) {
		e->lz4 = malloc((size_t)LZ4_sizeofState()); /* zstd probes with it */
		e->scratch = aligned_alloc(PGR_PAGE_SIZE, (size_t)e->o.group_pages * PGR_PAGE_SIZE);
		if (!e->lz4 || !e->scratch)
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
	free(e->scratch);
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

/*
 * A page that holds data: copied to `copy`, its CRC taken, made a delta if it can be. Returns its
 * transform.
 */
static enum pgr_transform take_page(struct encoder *e, uint64_t pfn, const uint8_t *page,
				    unsigned type, bool first_time, uint8_t *copy, uint32_t *crc)
{
	unsigned zeroes = 0;

	page_copy(copy, page);
	*crc = stream_crc(0, copy, PGR_PAGE_SIZE);
	if (e->cache && type == PGR_TYPE_ORDINARY)
		zeroes = try_delta(e, pfn, copy, first_time);
	else if (e->cache && !first_time)
		encode_cache_remove(e->cache, pfn);
	e->delta_words += zeroes;
	if (!zeroes) {
		e->stats.plain++;
		return PGR_DATA;
	}
	e->stats.delta++;
	return PGR_DELTA;
}

static size_t lz4_group(struct encoder *e, const uint8_t *data, size_t length, uint8_t *to,
			size_t most, int acceleration)
{
	int n = LZ4_compress_fast_extState(e->lz4, (const char *)data, (char *)to, (int)length,
					   (int)most, acceleration);

	return n > 0 ? (size_t)n : 0;
}

/*
 * A cheap look at a group after one that stayed raw: one page in small steps (a different one each
 * time), then all of it in large ones. What it writes at `to` is of no use.
 */
static bool seems_compressible(struct encoder *e, const uint8_t *data, size_t length, uint8_t *to)
{
	size_t page;

	assert(length >= PGR_PAGE_SIZE);
	page = e->raw_streak % (length / PGR_PAGE_SIZE) * PGR_PAGE_SIZE;

	return lz4_group(e, data + page, PGR_PAGE_SIZE, to, PGR_PAGE_SIZE - PGR_PAGE_SIZE / 32,
			 LZ4_DEFAULT) ||
	       lz4_group(e, data, length, to, length - length / 32, PROBE_ACCELERATION);
}

/* Compress a group: *sent bytes at `to`, which has room for `length`, or 0 when it does not save enough. */
static int compress_group(struct encoder *e, const uint8_t *data, size_t length, uint8_t *to,
			  size_t *sent, struct pgr_error *err)
{
	size_t most = length - length / 32;

	*sent = 0;
	if (e->raw_streak % PROBE_PERIOD && !seems_compressible(e, data, length, to))
		return 0;
	if (e->o.method == ENCODE_LZ4) {
		*sent = lz4_group(e, data, length, to, most, e->o.level);
		return 0;
	}
	*sent = ZSTD_compressCCtx(e->zstd, to, most, data, length, e->o.level);
	if (!ZSTD_isError(*sent))
		return 0;
	if (ZSTD_getErrorCode(*sent) == ZSTD_error_memory_allocation)
		return pgr_fail(err, -ENOMEM, "no memory for zstd at level %d", e->o.level);
	*sent = 0; /* does not fit: stays raw */
	return 0;
}

/*
 * What was saved, by what saved it: first the zero words of deltas, the rest is the compression's.
 */
static void count_saved(struct encoder *e, size_t length, size_t sent)
{
	uint64_t saved = length - sent, by_delta = e->delta_words * sizeof(uint64_t);

	if (by_delta > saved)
		by_delta = saved;
	e->stats.saved_delta += by_delta;
	e->stats.saved_compress += saved - by_delta;
}

/* The batch that is being encoded. */
struct batch {
	const uint64_t *pfn;
	uint8_t *const *page;
	const uint8_t *type;
	bool first_time;
	uint32_t *crc;
	uint64_t *word;
	unsigned at;			  /* next of with_data */
	uint8_t with_data[PGR_BATCH_MAX]; /* indices of the pages that hold data, in order */
};
_Static_assert(PGR_BATCH_MAX <= 256, "an index of a page fits into a byte");

/*
 * The next n pages with data to `copy`, one after the other. *crc: of all of it, known if none is a
 * delta: returns whether it is.
 */
static bool take_group(struct encoder *e, struct batch *b, unsigned n, uint8_t *copy, uint32_t *crc)
{
	bool plain = true;

	*crc = 0;
	e->delta_words = 0;
	for (unsigned k = 0; k < n; k++, copy += PGR_PAGE_SIZE) {
		unsigned i = b->with_data[b->at++];
		enum pgr_transform t = take_page(e, b->pfn[i], b->page[i], b->type[i],
						 b->first_time, copy, &b->crc[i]);

		b->word[i] = PGR_PAGE_WORD(b->pfn[i], t, b->type[i]);
		plain = plain && t == PGR_DATA;
		if (plain)
			*crc = stream_crc_join_page(*crc, b->crc[i]);
	}
	return plain;
}

/*
 * The next n pages with data as a group at `to`; returns the bytes there, padding included. After a
 * group that stayed raw this one is expected to: it is copied to where it belongs, else compressed
 * to there.
 */
static int put_group(struct encoder *e, struct batch *b, unsigned n, uint8_t *to,
		     struct pgr_group *g, size_t *bytes, uint32_t *crc, struct pgr_error *err)
{
	size_t length = (size_t)n * PGR_PAGE_SIZE, sent = 0, pad;
	bool in_place = e->o.method == ENCODE_NONE || e->raw_streak;
	uint8_t *copy = in_place ? to : e->scratch;
	bool plain = take_group(e, b, n, copy, crc);
	int rc = 0;

	if (e->o.method != ENCODE_NONE)
		rc = compress_group(e, copy, length, in_place ? e->scratch : to, &sent, err);
	if (rc)
		return rc;
	if (!sent) {
		if (!in_place)
			memcpy(to, copy, length);
		if (!plain)
			*crc = stream_crc(0, to, length);
		*g = (struct pgr_group){PGR_CODEC_RAW, n, (uint32_t)length, 0};
		*bytes = length;
		e->raw_streak++;
		e->stats.raw_groups++;
		return 0;
	}
	if (in_place)
		memcpy(to, e->scratch, sent);
	pad = -sent & 7;
	memset(to + sent, 0, pad);
	*bytes = sent + pad;
	*crc = stream_crc(0, to, *bytes);
	e->raw_streak = 0;
	if (e->o.method == ENCODE_LZ4)
		e->stats.lz4_groups++;
	else
		e->stats.zstd_groups++;
	*g = (struct pgr_group){e->o.method == ENCODE_LZ4 ? PGR_CODEC_LZ4 : PGR_CODEC_ZSTD, n,
				(uint32_t)sent, 0};
	count_saved(e, length, sent);
	return 0;
}

/* Which pages hold data, how many; the words of the others. */
static unsigned look(struct encoder *e, struct batch *b, unsigned nr)
{
	unsigned filled = 0;

	for (unsigned i = 0; i < nr; i++) {
		enum pgr_transform t = b->page[i] ? PGR_ZERO : PGR_ABSENT;

		if (b->page[i] && !page_is_zero(b->page[i])) {
			b->with_data[filled++] = (uint8_t)i;
			continue;
		}
		if (e->cache && !b->first_time)
			encode_cache_remove(e->cache, b->pfn[i]);
		b->crc[i] = t == PGR_ZERO ? encode_zero_crc() : 0;
		b->word[i] = PGR_PAGE_WORD(b->pfn[i], t, t == PGR_ZERO ? b->type[i] : 0);
		if (t == PGR_ABSENT) {
			e->stats.absent++;
		} else {
			e->stats.zero++;
			e->stats.saved_zero += PGR_PAGE_SIZE;
		}
	}
	return filled;
}

static unsigned groups_of(const struct encoder *e, unsigned pages)
{
	return (pages + e->o.group_pages - 1) / e->o.group_pages;
}

size_t encoder_room(const struct encoder *e, unsigned nr)
{
	return sizeof(struct pgr_pages) + nr * sizeof(uint64_t) +
	       groups_of(e, nr) * sizeof(struct pgr_group) + (size_t)nr * PGR_PAGE_SIZE;
}

int encoder_pages(struct encoder *e, uint32_t round, const uint64_t *pfn, uint8_t *const *page,
		  const uint8_t *type, unsigned nr, bool first_time, uint32_t *crc, void *body,
		  struct encoded *out, struct pgr_error *err)
{
	struct pgr_pages *head = body;
	struct batch b = {.pfn = pfn,
			  .page = page,
			  .type = type,
			  .first_time = first_time,
			  .crc = crc,
			  .word = (void *)(head + 1)};
	struct pgr_group *group;
	unsigned filled;
	uint32_t data_crc = 0;
	size_t head_bytes;
	uint8_t *data, *to;

	if (!nr || nr > PGR_BATCH_MAX)
		return pgr_fail(err, -EINVAL, "a batch of %u pages cannot be encoded: 1 .. %u", nr,
				PGR_BATCH_MAX);
	filled = look(e, &b, nr);
	*head = (struct pgr_pages){
		.nr_pages = nr, .nr_groups = groups_of(e, filled), .round = round};
	group = (void *)(b.word + nr);
	data = to = (void *)(group + head->nr_groups);
	head_bytes = (size_t)(data - (uint8_t *)body);
	while (b.at < filled) {
		unsigned left = filled - b.at;
		size_t bytes;
		uint32_t group_crc;
		int rc = put_group(e, &b, left < e->o.group_pages ? left : e->o.group_pages, to,
				   group++, &bytes, &group_crc, err);

		if (rc) {
			/* What the cache took from this batch was never sent. */
			encoder_forget(e, pfn, nr);
			return rc;
		}
		data_crc = stream_crc_join(data_crc, group_crc, bytes);
		to += bytes;
	}
	out->length = head_bytes + (size_t)(to - data);
	out->crc = stream_crc_join(stream_crc(0, body, head_bytes), data_crc, (size_t)(to - data));
	e->stats.pages += nr;
	e->stats.bytes_out += out->length;
	e->stats.bytes_in = (e->stats.pages - e->stats.absent) * PGR_PAGE_SIZE;
	return 0;
}
