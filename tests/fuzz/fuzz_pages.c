// SPDX-License-Identifier: MIT
/*
 * Hostile bodies of PAGES through the decoder.
 *
 * An even first byte: the rest is the body as it is. An odd one: the rest describes a body whose
 * frame is right (counts, words, lengths), so that the bytes behind it reach LZ4, zstd, deltas and
 * the way of pages into place. Asserted: as in fuzz_stream, and that pages which the record does
 * not name stay as they were.
 */
#include <stdlib.h>
#include <string.h>

#include "migrate/encode.h"
#include "migrate/stream.h"

#define NR_PFNS 64u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static _Alignas(4096) uint8_t memory[NR_PFNS][PGR_PAGE_SIZE];
static _Alignas(8) uint8_t body[PGR_RECORD_MAX];
static struct decoder *decoder;

static void must(bool condition)
{
	if (!condition)
		abort();
}

struct bytes {
	const uint8_t *p;
	size_t left;
};

static unsigned next_byte(struct bytes *b)
{
	if (!b->left)
		return 0;
	b->left--;
	return *b->p++;
}

/* Page words by the bytes' choice; returns the number of pages with data. */
static unsigned describe_pages(struct bytes *b, uint64_t *word, unsigned nr)
{
	unsigned pfn = next_byte(b), with_data = 0;

	for (unsigned i = 0; i < nr; i++) {
		unsigned choice = next_byte(b), transform = choice & 3, type = choice >> 2 & 15;

		if (transform == PGR_DELTA || transform == PGR_ABSENT)
			type = 0;
		if (choice & 0x40)
			pfn = next_byte(b);
		else
			pfn++;
		word[i] = PGR_PAGE_WORD(pfn % NR_PFNS, transform, type);
		with_data += transform == PGR_DATA || transform == PGR_DELTA;
	}
	return with_data;
}

static size_t describe(struct bytes *b)
{
	struct pgr_pages *head = (void *)body;
	uint64_t *word = (void *)(head + 1);
	unsigned nr = 1 + next_byte(b) % 40, left = describe_pages(b, word, nr);
	struct pgr_group *group = (void *)(word + nr);
	unsigned groups = 0;
	size_t at;

	while (left) {
		unsigned pages = 1 + next_byte(b) % left, codec = next_byte(b) % 3;
		uint32_t length = next_byte(b) | next_byte(b) << 8;

		if (codec == PGR_CODEC_RAW)
			length = pages * PGR_PAGE_SIZE;
		else
			length = length % (pages * PGR_PAGE_SIZE) + 1;
		group[groups++] = (struct pgr_group){codec, pages, length, 0};
		left -= pages;
	}
	*head = (struct pgr_pages){.nr_pages = nr, .nr_groups = groups};
	at = (size_t)((uint8_t *)(group + groups) - body);
	for (unsigned i = 0; i < groups; i++) {
		size_t padded = (group[i].length + 7u) & ~7u;
		size_t have = group[i].length < b->left ? group[i].length : b->left;

		memset(body + at, 0, padded);
		memcpy(body + at, b->p, have);
		b->p += have;
		b->left -= have;
		at += padded;
	}
	return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct bytes b = {data, size};
	struct pgr_error err = PGR_ERROR_NONE;
	uint8_t *page[PGR_BATCH_MAX], *exact;
	bool named[NR_PFNS] = {false}, contiguous = true, delta = false,
	     described = next_byte(&b) & 1;
	struct decoded_header h;
	uint32_t crc[PGR_BATCH_MAX];
	size_t length;
	int differs;

	if (!decoder)
		must(decoder_create(&decoder, &err) == 0);
	if (described) {
		length = describe(&b);
	} else {
		length = b.left < sizeof(body) ? b.left : sizeof(body);
		memcpy(body, b.p, length);
	}
	/* An allocation of exactly that size: the sanitizer sees a read beyond. */
	exact = aligned_alloc(8, (length + 7) & ~(size_t)7);
	must(exact != NULL);
	memcpy(exact, body, length);

	if (decoder_parse(decoder, exact, length, NR_PFNS, &h, &err))
		goto out;
	for (unsigned i = 0; i < h.nr; i++) {
		must(h.pfn[i] < NR_PFNS && !named[h.pfn[i]]);
		named[h.pfn[i]] = h.transform[i] != PGR_ABSENT;
		page[i] = memory[h.pfn[i]];
		contiguous = contiguous && page[i] == page[0] + i * PGR_PAGE_SIZE;
		delta = delta || h.transform[i] == PGR_DELTA;
	}
	for (unsigned pfn = 0; pfn < NR_PFNS; pfn++)
		memory[pfn][PGR_PAGE_SIZE - 1] = memory[pfn][0] = (uint8_t)pfn;
	if (decoder_pages(decoder, page, contiguous ? page[0] : NULL, NULL, crc, &err) == 0) {
		for (unsigned i = 0; i < h.nr; i++)
			must(h.transform[i] == PGR_ABSENT ||
			     crc[i] == stream_crc(0, page[i], PGR_PAGE_SIZE));
		if (!delta)
			must(decoder_compare(decoder, page, &differs, &err) == 0 && differs == -1);
	}
	for (unsigned pfn = 0; pfn < NR_PFNS; pfn++)
		must(named[pfn] ||
		     (memory[pfn][0] == pfn && memory[pfn][PGR_PAGE_SIZE - 1] == pfn));
out:
	free(exact);
	return 0;
}
