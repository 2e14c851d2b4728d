// SPDX-License-Identifier: MIT
/*
 * Slots in buckets by offset. A slot that is being read stays in its bucket and has those who wait for it in its queue; the one used longest ago
 * that is not being read gives way. When all are being read the next one waits until any is done.
 */
#include "storage/qcow2_cache.h"

#include <errno.h>
#include <stdlib.h>

#include "storage/fiber.h"

#define BUCKETS 1024u
#define NOBODY	UINT16_MAX

struct slot {
	uint64_t offset;
	uint64_t *data;
	uint64_t used; /* when, by the cache's clock */
	struct wait_queue readers;
	uint16_t next; /* in its bucket */
	bool loading, filled;
};

struct qcow2_cache {
	struct block *file;
	struct loop *loop;
	uint32_t slice_bytes;
	uint64_t clock;
	unsigned nr; /* slots that have memory */
	struct wait_queue room;
	uint16_t bucket[BUCKETS];
	struct slot slot[CACHE_SLICES];
};
_Static_assert(CACHE_SLICES < NOBODY, "an index fits");

struct qcow2_cache *qcow2_cache_new(struct block *file, struct loop *l, uint32_t slice_bytes)
{
	struct qcow2_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->file = file;
	c->loop = l;
	c->slice_bytes = slice_bytes;
	for (unsigned i = 0; i < BUCKETS; i++)
		c->bucket[i] = NOBODY;
	return c;
}

void qcow2_cache_free(struct qcow2_cache *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < c->nr; i++)
		free(c->slot[i].data);
	free(c);
}

static uint16_t *bucket_of(struct qcow2_cache *c, uint64_t offset)
{
	return &c->bucket[offset / c->slice_bytes % BUCKETS];
}

static struct slot *find(struct qcow2_cache *c, uint64_t offset)
{
	for (uint16_t i = *bucket_of(c, offset); i != NOBODY; i = c->slot[i].next)
		if (c->slot[i].offset == offset)
			return &c->slot[i];
	return NULL;
}

static void forget(struct qcow2_cache *c, struct slot *s)
{
	uint16_t *at = bucket_of(c, s->offset);

	while (&c->slot[*at] != s)
		at = &c->slot[*at].next;
	*at = s->next;
	s->filled = false;
}

static struct slot *oldest(struct qcow2_cache *c)
{
	struct slot *best = NULL;

	for (unsigned i = 0; i < c->nr; i++) {
		struct slot *s = &c->slot[i];

		if (!s->loading && (!best || s->used < best->used))
			best = s;
	}
	return best;
}

/* A slot that is in no bucket; NULL: none is free, or there is no memory for the first. */
static struct slot *free_slot(struct qcow2_cache *c)
{
	struct slot *s;

	if (c->nr < CACHE_SLICES) {
		s = &c->slot[c->nr];
		s->data = aligned_alloc(CACHE_SLICE, CACHE_SLICE);
		if (s->data) {
			c->nr++;
			return s;
		}
	}
	s = oldest(c);
	if (s && s->filled)
		forget(c, s);
	return s;
}

static int load(struct qcow2_cache *c, struct slot *s, uint64_t offset, struct pgr_error *err)
{
	uint16_t *bucket = bucket_of(c, offset);
	int ret;

	s->offset = offset;
	s->next = *bucket;
	*bucket = (uint16_t)(s - c->slot);
	s->loading = s->filled = true;
	ret = block_read(c->file, offset, s->data, c->slice_bytes, err);
	s->loading = false;
	if (ret) {
		forget(c, s);
		s->used = 0;
	}
	wait_queue_wake_all(&s->readers);
	wait_queue_wake_all(&c->room);
	return ret;
}

int qcow2_cache_get(struct qcow2_cache *c, uint64_t offset, const uint64_t **out,
		    struct pgr_error *err)
{
	for (;;) {
		struct slot *s = find(c, offset);
		int ret;

		if (s && !s->loading) {
			s->used = ++c->clock;
			*out = s->data;
			return 0;
		}
		if (s) {
			wait_queue_join(&s->readers, c->loop);
			continue;
		}
		s = free_slot(c);
		if (s) {
			s->used = ++c->clock;
			ret = load(c, s, offset, err);
			if (ret)
				return ret;
			*out = s->data;
			return 0;
		}
		if (!c->nr)
			return pgr_fail(
				err, -ENOMEM,
				"%s: no memory for a part of its tables; the request may be tried again",
				block_info(c->file)->name);
		wait_queue_join(&c->room, c->loop);
	}
}
