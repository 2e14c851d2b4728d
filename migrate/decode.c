// SPDX-License-Identifier: MIT
/*
 * The body of a PAGES record to pages.
 *
 * decoder_parse checks everything that the record says about itself and keeps where its groups are;
 * decoder_pages and decoder_compare open the groups one by one. A group goes straight into the
 * guest's memory when its pages are all DATA and lie there one after the other; else through a
 * scratch buffer of one full record.
 */
#include "migrate/encode.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "migrate/page_scan.h"
#include "migrate/stream.h"

#define ZSTD_FRAME_MAGIC  0xfd2fb528u
#define ZSTD_WINDOW_MAX	  (PGR_BATCH_MAX * PGR_PAGE_SIZE)
#define SEEN_ENTRIES	  (2 * PGR_BATCH_MAX)
#define SCRATCH_BYTES	  (PGR_BATCH_MAX * PGR_PAGE_SIZE)
#define ZSTD_HEADER_BYTES 6u

struct decoder {
	struct decoded_header h;
	const struct pgr_group *group;
	const uint8_t *data; /* of the first group */
	unsigned nr_groups;
	unsigned with_data;
	uint8_t with_data_at[PGR_BATCH_MAX]; /* indices of the pages with data, in order */
	uint8_t *scratch;
	ZSTD_DCtx *zstd;
	uint64_t seen[SEEN_ENTRIES]; /* pfn + 1 */
};
_Static_assert(PGR_BATCH_MAX <= 256, "an index of a page fits into a byte");

int decoder_create(struct decoder **out, struct pgr_error *err)
{
	struct decoder *d = calloc(1, sizeof(*d));

	*out = NULL;
	if (d) {
		d->scratch = aligned_alloc(PGR_PAGE_SIZE, SCRATCH_BYTES);
		d->zstd = ZSTD_createDCtx();
	}
	if (!d || !d->scratch || !d->zstd) {
		decoder_free(d);
		return pgr_fail(err, -ENOMEM, "no memory for a decoder");
	}
	*out = d;
	return 0;
}

void decoder_free(struct decoder *d)
{
	if (!d)
		return;
	ZSTD_freeDCtx(d->zstd);
	free(d->scratch);
	free(d);
}

static bool ascending(const struct decoded_header *h)
{
	for (unsigned i = 1; i < h->nr; i++) {
		if (h->pfn[i] <= h->pfn[i - 1])
			return false;
	}
	return true;
}

/*
 * The index of a page whose pfn came before in the record, or -1. Ascending pfns, the usual case,
 * need no table.
 */
static int find_double(struct decoder *d)
{
	if (ascending(&d->h))
		return -1;
	memset(d->seen, 0, sizeof(d->seen));
	for (unsigned i = 0; i < d->h.nr; i++) {
		uint64_t key = d->h.pfn[i] + 1;
		unsigned at = (unsigned)(key * 0x9e3779b97f4a7c15u >> 32) % SEEN_ENTRIES;

		while (d->seen[at] && d->seen[at] != key)
			at = (at + 1) % SEEN_ENTRIES;
		if (d->seen[at])
			return (int)i;
		d->seen[at] = key;
	}
	return -1;
}

int decoder_parse(struct decoder *d, const void *body, size_t length, uint64_t nr_pfns,
		  struct decoded_header *h, struct pgr_error *err)
{
	const struct pgr_pages *b = body;
	const uint64_t *word = (const void *)(b + 1);
	int rc, twice;

	d->h.nr = 0;
	d->nr_groups = 0;
	rc = stream_check_body(PGR_REC_PAGES, body, length, err);
	if (rc)
		return rc;
	d->with_data = 0;
	for (unsigned i = 0; i < b->nr_pages; i++) {
		uint64_t pfn = PGR_PAGE_PFN(word[i]);
		unsigned transform = PGR_PAGE_TRANSFORM(word[i]);

		if (pfn >= nr_pfns)
			return pgr_fail(
				err, -EPROTO,
				"page %u: pfn 0x%llx is outside of the guest's 0x%llx pages", i,
				(unsigned long long)pfn, (unsigned long long)nr_pfns);
		d->h.pfn[i] = pfn;
		d->h.transform[i] = (uint8_t)transform;
		d->h.type[i] = (uint8_t)PGR_PAGE_TYPE(word[i]);
		if (transform == PGR_DATA || transform == PGR_DELTA)
			d->with_data_at[d->with_data++] = (uint8_t)i;
	}
	d->h.nr = b->nr_pages;
	d->h.round = b->round;
	twice = find_double(d);
	if (twice >= 0) {
		d->h.nr = 0;
		return pgr_fail(err, -EPROTO, "page %d: pfn 0x%llx is in the record twice", twice,
				(unsigned long long)d->h.pfn[twice]);
	}
	d->group = (const void *)(word + b->nr_pages);
	d->nr_groups = b->nr_groups;
	d->data = (const uint8_t *)(d->group + b->nr_groups);
	*h = d->h;
	return 0;
}

/* The frame is the only thing there, needs no dictionary and no window beyond a record. */
static bool zstd_frame_allowed(const uint8_t *data, size_t length)
{
	uint32_t magic;
	unsigned log;

	if (length < ZSTD_HEADER_BYTES)
		return false;
	memcpy(&magic, data, sizeof(magic));
	if (magic != ZSTD_FRAME_MAGIC || (data[4] & 3))
		return false;
	if (!(data[4] & 0x20)) { /* not a single segment: a window descriptor follows */
		log = 10 + (data[5] >> 3);
		if (log > 20 || (1u << log) + ((1u << log) >> 3) * (data[5] & 7u) > ZSTD_WINDOW_MAX)
			return false;
	}
	return ZSTD_findFrameCompressedSize(data, length) == length;
}

/* Decompress one group to exactly its pages at out. */
static int open_group(struct decoder *d, const struct pgr_group *g, const uint8_t *data,
		      uint8_t *out, unsigned number, struct pgr_error *err)
{
	size_t size = (size_t)g->nr_pages * PGR_PAGE_SIZE, got = 0;
	int n;

	if (g->codec == PGR_CODEC_LZ4) {
		n = LZ4_decompress_safe((const char *)data, (char *)out, (int)g->length, (int)size);
		got = n > 0 ? (size_t)n : 0;
	} else if (zstd_frame_allowed(data, g->length)) {
		got = ZSTD_decompressDCtx(d->zstd, out, size, data, g->length);
	}
	if (got != size)
		return pgr_fail(
			err, -EBADMSG, "group %u: its %u bytes of %s do not decompress to %u pages",
			number, g->length, g->codec == PGR_CODEC_LZ4 ? "LZ4" : "zstd", g->nr_pages);
	return 0;
}

/* The pages of a group are DATA and neighbours in the record, so also in base. */
static bool goes_straight(const struct decoder *d, unsigned first, unsigned nr)
{
	for (unsigned k = 0; k < nr; k++) {
		unsigned i = d->with_data_at[first + k];

		if (d->h.transform[i] != PGR_DATA || i != d->with_data_at[first] + k)
			return false;
	}
	return true;
}

/*
 * What is done with a page with data: `data` are its 4096 bytes as sent (NULL: they are in place
 * already). Returns a positive number to stop.
 */
typedef int page_fn(struct decoder *d, unsigned i, const uint8_t *data, void *ctx);

/*
 * Open all groups in order and hand on their pages. base: see decoder_pages; NULL: always through
 * the scratch buffer.
 */
static int each_page(struct decoder *d, uint8_t *base, page_fn *fn, void *ctx,
		     struct pgr_error *err)
{
	const uint8_t *data = d->data;
	unsigned first = 0;

	for (unsigned k = 0; k < d->nr_groups; k++) {
		const struct pgr_group *g = &d->group[k];
		const uint8_t *pages = data;
		bool straight = false;
		int rc;

		if (g->codec != PGR_CODEC_RAW) {
			size_t at = (size_t)d->with_data_at[first] * PGR_PAGE_SIZE;

			straight = base && goes_straight(d, first, g->nr_pages);
			rc = open_group(d, g, data, straight ? base + at : d->scratch, k, err);
			if (rc)
				return rc;
			pages = d->scratch;
		}
		for (unsigned n = 0; n < g->nr_pages; n++) {
			rc = fn(d, d->with_data_at[first + n],
				straight ? NULL : pages + (size_t)n * PGR_PAGE_SIZE, ctx);
			if (rc)
				return rc;
		}
		first += g->nr_pages;
		data += ((size_t)g->length + 7) & ~(size_t)7;
	}
	return 0;
}

struct store {
	uint8_t *const *page;
	uint32_t *crc;
};

static int store_page(struct decoder *d, unsigned i, const uint8_t *data, void *ctx)
{
	const struct store *s = ctx;

	if (data && d->h.transform[i] == PGR_DELTA)
		page_xor(s->page[i], s->page[i], data);
	else if (data)
		page_copy(s->page[i], data);
	s->crc[i] = stream_crc(0, s->page[i], PGR_PAGE_SIZE);
	return 0;
}

int decoder_pages(struct decoder *d, uint8_t *const *page, uint8_t *base, const bool *page_is_zero,
		  uint32_t *crc, struct pgr_error *err)
{
	struct store s = {.page = page, .crc = crc};

	for (unsigned i = 0; i < d->h.nr; i++) {
		if (d->h.transform[i] == PGR_ABSENT) {
			crc[i] = 0;
			continue;
		}
		if (!page[i])
			return pgr_fail(err, -EINVAL, "page %u (pfn 0x%llx) has no memory to go to",
					i, (unsigned long long)d->h.pfn[i]);
		if (d->h.transform[i] != PGR_ZERO)
			continue;
		if (!page_is_zero || !page_is_zero[i])
			memset(page[i], 0, PGR_PAGE_SIZE);
		crc[i] = encode_zero_crc();
	}
	return each_page(d, base, store_page, &s, err);
}

struct comparison {
	uint8_t *const *page;
	int differs;
};

static int compare_page(struct decoder *d, unsigned i, const uint8_t *data, void *ctx)
{
	struct comparison *c = ctx;

	(void)d;
	if (!c->page[i] || memcmp(c->page[i], data, PGR_PAGE_SIZE) != 0) {
		if (c->differs < 0 || (int)i < c->differs)
			c->differs = (int)i;
		return 1; /* pages with data come in order: this one is the first */
	}
	return 0;
}

int decoder_compare(struct decoder *d, uint8_t *const *page, int *differs, struct pgr_error *err)
{
	struct comparison c = {.page = page, .differs = -1};
	int rc;

	*differs = -1;
	for (unsigned i = 0; i < d->h.nr; i++) {
		if (d->h.transform[i] == PGR_DELTA)
			return pgr_fail(
				err, -EPROTO,
				"page %u: a delta cannot verify: it would compare the page with itself",
				i);
		if (c.differs < 0 && d->h.transform[i] == PGR_ZERO &&
		    (!page[i] || !page_is_zero(page[i])))
			c.differs = (int)i;
	}
	rc = each_page(d, NULL, compare_page, &c, err);
	if (rc < 0)
		return rc;
	*differs = c.differs;
	return 0;
}
