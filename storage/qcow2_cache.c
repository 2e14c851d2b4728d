// SPDX-License-Identifier: MIT
/*
 * Slots in buckets by cache and offset. A slot that is being read stays in its bucket and has those who wait for it in its queue. When all are
 * taken, a hand goes round and takes the first that was not used since it came by the last time, and is neither changed nor being read or written.
 */
#include "storage/qcow2_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS	   1024u
#define NOBODY	   UINT16_MAX
#define PART_BYTES (1u << 20)
#define SLICES	   64u /* whose memory comes in one piece: alone each would take up twice its size */

struct slot {
	struct qcow2_cache *owner; /* NULL: in no bucket */
	uint64_t offset;
	uint64_t *data;
	struct wait_queue readers;
	uint16_t next; /* in its bucket */
	bool touched, loading, changed, writing;
};

struct pool {
	struct loop *loop;
	unsigned users;	  /* caches */
	unsigned nr;	  /* slots that have memory */
	unsigned changed; /* slots */
	unsigned hand;
	struct wait_queue room;
	uint16_t bucket[BUCKETS];
	struct slot slot[CACHE_SLICES];
};
_Static_assert(CACHE_SLICES < NOBODY, "an index fits");

struct qcow2_cache {
	struct pool *pool;
	struct block *file;
	uint32_t slice_bytes;
	unsigned changed; /* slots */
};

static struct pool *pool_new(struct loop *l)
{
	struct pool *p = calloc(1, sizeof(*p));

	if (!p)
		return NULL;
	p->loop = l;
	for (unsigned i = 0; i < BUCKETS; i++)
		p->bucket[i] = NOBODY;
	return p;
}

struct qcow2_cache *qcow2_cache_new(struct qcow2_cache *with, struct block *file, struct loop *l,
				    uint32_t slice_bytes)
{
	struct qcow2_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->file = file;
	c->slice_bytes = slice_bytes;
	c->pool = with ? with->pool : pool_new(l);
	if (!c->pool) {
		free(c);
		return NULL;
	}
	c->pool->users++;
	return c;
}

static uint16_t *bucket_of(const struct qcow2_cache *c, uint64_t offset)
{
	uint64_t key = offset / c->slice_bytes + ((uintptr_t)c >> 5) * 31;

	return &c->pool->bucket[key % BUCKETS];
}

static struct slot *find(const struct qcow2_cache *c, uint64_t offset)
{
	struct pool *p = c->pool;

	for (uint16_t i = *bucket_of(c, offset); i != NOBODY; i = p->slot[i].next)
		if (p->slot[i].owner == c && p->slot[i].offset == offset)
			return &p->slot[i];
	return NULL;
}

static void set_changed(struct slot *s, bool changed)
{
	if (s->changed == changed)
		return;
	s->changed = changed;
	s->owner->changed += changed ? 1u : -1u;
	s->owner->pool->changed += changed ? 1u : -1u;
}

static void forget(struct slot *s)
{
	struct pool *p = s->owner->pool;
	uint16_t *at = bucket_of(s->owner, s->offset);

	set_changed(s, false);
	while (&p->slot[*at] != s)
		at = &p->slot[*at].next;
	*at = s->next;
	s->owner = NULL;
	s->touched = false;
}

void qcow2_cache_forget(struct qcow2_cache *c, uint64_t offset, uint64_t length)
{
	for (uint64_t at = offset; at < offset + length; at += c->slice_bytes) {
		struct slot *s = find(c, at);

		if (s && !s->loading && !s->writing)
			forget(s);
	}
}

void qcow2_cache_free(struct qcow2_cache *c)
{
	struct pool *p;

	if (!c)
		return;
	p = c->pool;
	for (unsigned i = 0; i < p->nr; i++)
		if (p->slot[i].owner == c)
			forget(&p->slot[i]);
	free(c);
	if (--p->users)
		return;
	for (unsigned i = 0; i < p->nr; i += SLICES)
		free(p->slot[i].data);
	free(p);
}

/* A slot that is in no bucket; NULL: none is free. */
static struct slot *free_slot(struct pool *p)
{
	struct slot *s;

	if (p->nr < CACHE_SLICES) {
		s = &p->slot[p->nr];
		s->data = p->nr % SLICES ? s[-1].data + CACHE_SLICE / sizeof(*s->data)
					 : aligned_alloc(CACHE_SLICE, SLICES * CACHE_SLICE);
		if (s->data) {
			p->nr++;
			return s;
		}
	}
	for (unsigned n = 0; n < 2 * p->nr; n++) {
		s = &p->slot[p->hand++ % p->nr];
		if (s->loading || s->changed || s->writing)
			continue;
		if (s->touched) {
			s->touched = false;
			continue;
		}
		if (s->owner)
			forget(s);
		return s;
	}
	return NULL;
}

static bool any_will_be_free(const struct pool *p)
{
	for (unsigned i = 0; i < p->nr; i++)
		if (p->slot[i].loading || p->slot[i].writing)
			return true;
	return false;
}

static int load(struct qcow2_cache *c, struct slot *s, uint64_t offset, struct pgr_error *err)
{
	struct pool *p = c->pool;
	uint16_t *bucket = bucket_of(c, offset);
	int ret;

	s->owner = c;
	s->offset = offset;
	s->next = *bucket;
	*bucket = (uint16_t)(s - p->slot);
	s->loading = true;
	ret = block_read(c->file, offset, s->data, c->slice_bytes, err);
	s->loading = false;
	if (ret)
		forget(s);
	wait_queue_wake_all(&s->readers);
	wait_queue_wake_all(&p->room);
	return ret;
}

int qcow2_cache_get(struct qcow2_cache *c, uint64_t offset, const uint64_t **out,
		    struct pgr_error *err)
{
	struct pool *p = c->pool;

	for (;;) {
		struct slot *s = find(c, offset);

		if (s && s->loading) {
			wait_queue_join(&s->readers, p->loop);
			continue;
		}
		if (!s) {
			s = free_slot(p);
			if (s) {
				int ret = load(c, s, offset, err);

				if (ret)
					return ret;
			}
		}
		if (s) {
			s->touched = true;
			*out = s->data;
			return 0;
		}
		if (!any_will_be_free(p))
			return pgr_fail(
				err, -ENOMEM,
				"%s: no memory for a part of its tables; the request may be tried again",
				block_info(c->file)->name);
		wait_queue_join(&p->room, p->loop);
	}
}

uint64_t *qcow2_cache_change(struct qcow2_cache *c, uint64_t offset)
{
	struct slot *s = find(c, offset);

	set_changed(s, true);
	return s->data;
}

unsigned qcow2_cache_changed(const struct qcow2_cache *c)
{
	return c->changed;
}

unsigned qcow2_cache_pool_changed(const struct qcow2_cache *c)
{
	return c->pool->changed;
}

/* ---- writing ---- */

struct batch_part {
	struct block_request request;
	struct iovec iov;
	struct qcow2_batch *batch;
	unsigned first, nr; /* in batch->slot */
};

struct place {
	uint64_t offset;
	uint16_t slot;
};

static int by_offset(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	return x->offset < y->offset ? -1 : x->offset > y->offset;
}

/* Cut the sorted slices into parts that follow each other in the file. */
static void make_parts(struct qcow2_batch *b, const struct place *place, unsigned nr)
{
	struct qcow2_cache *c = b->cache;
	struct batch_part *part = NULL;

	for (unsigned i = 0; i < nr; i++) {
		struct slot *s = &c->pool->slot[place[i].slot];

		b->slot[i] = place[i].slot;
		memcpy(b->copies + (size_t)i * c->slice_bytes, s->data, c->slice_bytes);
		set_changed(s, false);
		s->writing = true;
		if (!part || part->request.offset + part->request.length != place[i].offset ||
		    part->request.length >= PART_BYTES) {
			part = &b->part[b->nr++];
			*part = (struct batch_part){.batch = b, .first = i};
			part->request = (struct block_request){
				.op = BLOCK_WRITE, .offset = place[i].offset, .nr_iov = 1};
			part->iov.iov_base = b->copies + (size_t)i * c->slice_bytes;
		}
		part->nr++;
		part->request.length += c->slice_bytes;
		part->iov.iov_len += c->slice_bytes;
	}
}

static void batch_free(struct qcow2_batch *b)
{
	free(b->part);
	free(b->slot);
	free(b->copies);
	*b = (struct qcow2_batch){.cache = NULL};
}

int qcow2_cache_collect(struct qcow2_cache *c, struct qcow2_batch *b, struct pgr_error *err)
{
	struct place *place;
	unsigned nr = 0;

	*b = (struct qcow2_batch){.cache = c};
	if (!c->changed)
		return 0;
	place = calloc(c->changed, sizeof(*place));
	b->part = calloc(c->changed, sizeof(*b->part));
	b->slot = calloc(c->changed, sizeof(*b->slot));
	b->copies = aligned_alloc(CACHE_SLICE, (size_t)c->changed * CACHE_SLICE);
	if (!place || !b->part || !b->slot || !b->copies) {
		free(place);
		batch_free(b);
		return pgr_fail(
			err, -ENOMEM,
			"%s: no memory to write %u parts of its tables; the request may be tried again",
			block_info(c->file)->name, c->changed);
	}
	for (unsigned i = 0; i < c->pool->nr; i++) {
		struct slot *s = &c->pool->slot[i];

		if (s->owner == c && s->changed)
			place[nr++] = (struct place){.offset = s->offset, .slot = (uint16_t)i};
	}
	qsort(place, nr, sizeof(*place), by_offset);
	make_parts(b, place, nr);
	free(place);
	return 0;
}

static void settle(struct batch_part *part, bool written)
{
	struct qcow2_batch *b = part->batch;

	for (unsigned i = part->first; i < part->first + part->nr; i++) {
		struct slot *s = &b->cache->pool->slot[b->slot[i]];

		s->writing = false;
		if (!written)
			set_changed(s, true);
	}
	wait_queue_wake_all(&b->cache->pool->room);
}

static void part_done(struct block_request *r, const struct pgr_error *err)
{
	struct batch_part *part = (struct batch_part *)r;
	struct qcow2_batch *b = part->batch;

	settle(part, !err);
	if (err && !b->err.code)
		b->err = *err;
	if (--b->left == 0)
		wait_end(&b->wait);
}

int qcow2_batch_write(struct qcow2_batch *b, struct pgr_error *err)
{
	int ret;

	if (!b->nr)
		return 0;
	b->left = b->nr;
	wait_begin(&b->wait, b->cache->pool->loop);
	for (unsigned i = 0; i < b->nr; i++) {
		struct batch_part *part = &b->part[i];

		part->request.iov = &part->iov;
		part->request.done = part_done;
		block_submit(b->cache->file, &part->request);
	}
	wait_for(&b->wait);
	ret = b->err.code;
	if (ret && err)
		*err = b->err;
	batch_free(b);
	return ret;
}

void qcow2_batch_undo(struct qcow2_batch *b)
{
	for (unsigned i = 0; i < b->nr; i++)
		settle(&b->part[i], false);
	batch_free(b);
}
