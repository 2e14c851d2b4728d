// SPDX-License-Identifier: MIT
#include "storage/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"

#define GRANULARITY_MAX (1u << 31)
#define WORD_BITS	64u

struct dirty {
	struct block *block; /* NULL: not attached */
	struct dirty *next;  /* of the same block */
	uint64_t size, nr;   /* bytes, chunks */
	unsigned shift;
	uint64_t nr_set;
	uint64_t word[];
};

int dirty_create(uint64_t size, uint32_t granularity, struct dirty **out, struct pgr_error *err)
{
	struct dirty *d;
	uint64_t nr;

	if (granularity < BLOCK_SECTOR || granularity > GRANULARITY_MAX ||
	    granularity & (granularity - 1))
		return pgr_fail(
			err, -EINVAL,
			"changes are tracked in chunks of a power of two from %u bytes to 2 GiB, not of %u",
			BLOCK_SECTOR, granularity);
	nr = size / granularity + (size % granularity != 0);
	d = calloc(1, sizeof(*d) + (nr / WORD_BITS + 1) * sizeof(d->word[0]));
	if (!d)
		return pgr_fail(err, -ENOMEM, "no memory to track the changes of %llu bytes",
				(unsigned long long)size);
	d->size = size;
	d->nr = nr;
	d->shift = (unsigned)__builtin_ctz(granularity);
	*out = d;
	return 0;
}

void dirty_free(struct dirty *d)
{
	if (d)
		dirty_detach(d);
	free(d);
}

void dirty_attach(struct dirty *d, struct block *b)
{
	d->block = b;
	d->next = b->dirty;
	b->dirty = d;
}

void dirty_detach(struct dirty *d)
{
	struct dirty **link;

	if (!d->block)
		return;
	for (link = &d->block->dirty; *link != d; link = &(*link)->next)
		;
	*link = d->next;
	d->block = NULL;
}

static bool is_set(const struct dirty *d, uint64_t chunk)
{
	return d->word[chunk / WORD_BITS] >> (chunk % WORD_BITS) & 1;
}

/* The first chunk at or behind `chunk` that is set, or that is not; d->nr: none. */
static uint64_t find(const struct dirty *d, uint64_t chunk, bool set)
{
	while (chunk < d->nr) {
		uint64_t word = d->word[chunk / WORD_BITS];

		word = (set ? word : ~word) >> (chunk % WORD_BITS);
		if (word) {
			chunk += (unsigned)__builtin_ctzll(word);
			break;
		}
		chunk = (chunk / WORD_BITS + 1) * WORD_BITS;
	}
	return chunk < d->nr ? chunk : d->nr;
}

/* Bytes before a chunk: the last one may be shorter. */
static uint64_t begin_of(const struct dirty *d, uint64_t chunk)
{
	return chunk < d->nr ? chunk << d->shift : d->size;
}

void dirty_set(struct dirty *d, uint64_t offset, uint64_t length)
{
	uint64_t last;

	if (!length || offset >= d->size)
		return;
	if (length > d->size - offset)
		length = d->size - offset;
	last = (offset + length - 1) >> d->shift;
	for (uint64_t chunk = offset >> d->shift; chunk <= last; chunk++) {
		if (is_set(d, chunk))
			continue;
		d->word[chunk / WORD_BITS] |= UINT64_C(1) << (chunk % WORD_BITS);
		d->nr_set++;
	}
}

void dirty_set_all(struct dirty *first, uint64_t offset, uint64_t length)
{
	for (struct dirty *d = first; d; d = d->next)
		dirty_set(d, offset, length);
}

uint64_t dirty_bytes(const struct dirty *d)
{
	uint64_t missing = (d->nr << d->shift) - d->size;

	return (d->nr_set << d->shift) - (d->nr && is_set(d, d->nr - 1) ? missing : 0);
}

uint64_t dirty_map_bytes(const struct dirty *d)
{
	return (d->nr + 7) / 8;
}

void dirty_map_get(const struct dirty *d, uint64_t at, void *out, size_t length)
{
	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are bytes in order");
	memcpy(out, (const uint8_t *)d->word + at, length);
}

void dirty_map_add(struct dirty *d, uint64_t at, const void *from, size_t length)
{
	const uint8_t *bytes = from;

	for (size_t i = 0; i < length; i++)
		for (unsigned bits = bytes[i]; bits; bits &= bits - 1) {
			uint64_t chunk = (at + i) * 8 + (unsigned)__builtin_ctz(bits);

			if (chunk < d->nr && !is_set(d, chunk)) {
				d->word[chunk / WORD_BITS] |= UINT64_C(1) << (chunk % WORD_BITS);
				d->nr_set++;
			}
		}
}

void dirty_clear(struct dirty *d)
{
	memset(d->word, 0, (d->nr / WORD_BITS + 1) * sizeof(d->word[0]));
	d->nr_set = 0;
}

bool dirty_take(struct dirty *d, uint64_t from, uint64_t max, uint64_t *offset, uint64_t *length)
{
	uint64_t first = find(d, from >> d->shift, true), end, most = max >> d->shift;

	if (first == d->nr)
		return false;
	end = find(d, first, false);
	if (end - first > most)
		end = first + (most ? most : 1);
	for (uint64_t chunk = first; chunk < end; chunk++)
		d->word[chunk / WORD_BITS] &= ~(UINT64_C(1) << (chunk % WORD_BITS));
	d->nr_set -= end - first;
	*offset = begin_of(d, first);
	*length = begin_of(d, end) - *offset;
	return true;
}

uint64_t dirty_run(const struct dirty *d, uint64_t offset, uint64_t length, bool *set)
{
	uint64_t chunk = offset >> d->shift, run;

	*set = is_set(d, chunk);
	run = begin_of(d, find(d, chunk, !*set)) - offset;
	return run < length ? run : length;
}
