// SPDX-License-Identifier: MIT
#include "tests/storage/tape.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"
#include "tests/unit/unit.h"

#define DELAY_TURNS 4

struct change {
	enum tape_op op;
	uint64_t offset, length; /* TAPE_RESIZE: length is the new size */
	uint8_t *data;		 /* TAPE_WRITE */
	bool fua;
	unsigned begun, done; /* number of the event, from 1; done 0: not yet */
};

struct tape {
	uint8_t *data, *first;
	uint64_t size, first_size, room, limit;
	bool record, keeps;
	struct change *change;
	unsigned nr, capacity, events;
	unsigned count[TAPE_OPS], fail_at[TAPE_OPS];
	int code[TAPE_OPS];
	uint64_t delays;
};

struct tape_block {
	struct block b;
	struct tape *t;
};

static struct tape *of(struct block *b)
{
	return ((struct tape_block *)b)->t;
}

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

struct tape *tape_new(const void *contents, uint64_t size)
{
	struct tape *t = must(calloc(1, sizeof(*t)));

	t->size = t->first_size = t->room = size;
	t->data = must(calloc(1, size + 1));
	t->first = must(calloc(1, size + 1));
	if (contents) {
		memcpy(t->data, contents, size);
		memcpy(t->first, contents, size);
	}
	return t;
}

void tape_free(struct tape *t)
{
	for (unsigned i = 0; i < t->nr; i++)
		free(t->change[i].data);
	free(t->change);
	free(t->data);
	free(t->first);
	free(t);
}

void tape_fail(struct tape *t, enum tape_op op, unsigned n, int code)
{
	t->count[op] = 0;
	t->fail_at[op] = n;
	t->code[op] = code;
}

unsigned tape_count(const struct tape *t, enum tape_op op)
{
	return t->count[op];
}

void tape_limit(struct tape *t, uint64_t size)
{
	t->limit = size;
}

unsigned tape_events(const struct tape *t)
{
	return t->events;
}

const void *tape_contents(const struct tape *t, uint64_t *size)
{
	*size = t->size;
	return t->data;
}

/* False: no memory, which a test may have asked for. */
static bool make_room(uint8_t **data, uint64_t *room, uint64_t need)
{
	uint8_t *larger;

	if (need <= *room)
		return true;
	larger = realloc(*data, need * 2);
	if (!larger)
		return false;
	memset(larger + *room, 0, need * 2 - *room);
	*data = larger;
	*room = need * 2;
	return true;
}

static void must_make_room(uint8_t **data, uint64_t *room, uint64_t need)
{
	if (!make_room(data, room, need))
		abort();
}

/* ---- the disk ---- */

static void delay(struct tape *t, struct loop *l)
{
	for (uint64_t n = unit_below(&t->delays, DELAY_TURNS); n; n--)
		fiber_yield(l);
}

static int trial(struct tape *t, enum tape_op op, struct pgr_error *err)
{
	if (++t->count[op] != t->fail_at[op])
		return 0;
	return pgr_fail(err, t->code[op], "tape: operation %u of kind %d fails on demand",
			t->fail_at[op], (int)op);
}

/* Its index, for end(); nothing is kept when nothing is recorded. */
static unsigned begin(struct tape *t, struct change c)
{
	if (!t->record)
		return 0;
	if (t->nr == t->capacity) {
		t->capacity = t->capacity * 2 + 64;
		t->change = must(realloc(t->change, t->capacity * sizeof(*t->change)));
	}
	c.begun = ++t->events;
	t->change[t->nr] = c;
	return t->nr++;
}

static void end(struct tape *t, unsigned index)
{
	if (t->record)
		t->change[index].done = ++t->events;
}

static int tape_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		     struct pgr_error *err)
{
	struct tape *t = of(b);
	uint64_t there = offset < t->size ? t->size - offset : 0;
	int ret = trial(t, TAPE_READ, err);

	if (ret)
		return ret;
	delay(t, b->loop);
	if (there > length)
		there = length;
	block_data_copy_in(to, t->data + offset, there);
	block_data_zero(block_data_skip(to, there), length - there);
	return 0;
}

static int apply(struct block *b, struct change c, struct pgr_error *err)
{
	struct tape *t = of(b);
	uint64_t last = c.offset + c.length;
	int ret = trial(t, c.op, err);
	unsigned index;

	if (!ret && t->limit && last > t->limit)
		ret = pgr_fail(err, -ENOSPC, "tape: no room at %llu", (unsigned long long)c.offset);
	if (!ret && !make_room(&t->data, &t->room, last))
		ret = pgr_fail(err, -ENOMEM, "tape: no memory");
	if (ret) {
		free(c.data);
		return ret;
	}
	index = begin(t, c);
	delay(t, b->loop);
	must_make_room(&t->data, &t->room, last);
	if (c.op == TAPE_WRITE)
		memcpy(t->data + c.offset, c.data, c.length);
	else
		memset(t->data + c.offset, 0, c.length);
	if (last > t->size)
		b->info.size = t->size = last;
	delay(t, b->loop);
	end(t, index);
	if (!t->record)
		free(c.data);
	return 0;
}

static int tape_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		      uint32_t flags, struct pgr_error *err)
{
	struct change c = {
		.op = TAPE_WRITE, .offset = offset, .length = length, .fua = flags & BLOCK_FUA};

	c.data = malloc(length);
	if (!c.data)
		return pgr_fail(err, -ENOMEM, "tape: no memory");
	block_data_copy_out(from, c.data, length);
	return apply(b, c, err);
}

static int tape_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		     struct pgr_error *err)
{
	const struct change c = {
		.op = TAPE_ZERO, .offset = offset, .length = length, .fua = flags & BLOCK_FUA};

	return apply(b, c, err);
}

static int tape_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	const struct change c = {.op = TAPE_DISCARD, .offset = offset, .length = length};

	return of(b)->keeps ? trial(of(b), TAPE_DISCARD, err) : apply(b, c, err);
}

static int tape_flush(struct block *b, struct pgr_error *err)
{
	struct tape *t = of(b);
	int ret = trial(t, TAPE_FLUSH, err);
	unsigned index;

	if (ret)
		return ret;
	index = begin(t, (struct change){.op = TAPE_FLUSH});
	delay(t, b->loop);
	end(t, index);
	return 0;
}

static int tape_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		       struct pgr_error *err)
{
	(void)b;
	(void)err;
	*out = (struct block_extent){.length = length,
				     .flags = BLOCK_EXTENT_DATA | BLOCK_EXTENT_HERE |
					      BLOCK_EXTENT_AT,
				     .at = offset};
	return 0;
}

static void set_size(uint8_t **data, uint64_t *room, uint64_t *size, uint64_t to)
{
	must_make_room(data, room, to);
	if (to < *size)
		memset(*data + to, 0, *size - to);
	*size = to;
}

static int tape_resize(struct block *b, uint64_t size, struct pgr_error *err)
{
	struct tape *t = of(b);
	int ret = trial(t, TAPE_RESIZE, err);
	unsigned index;

	if (ret)
		return ret;
	index = begin(t, (struct change){.op = TAPE_RESIZE, .length = size});
	set_size(&t->data, &t->room, &t->size, size);
	b->info.size = size;
	end(t, index);
	return 0;
}

static int tape_close(struct block *b, struct pgr_error *err)
{
	(void)b;
	(void)err;
	return 0;
}

static const struct block_ops tape_ops = {
	.read = tape_read,
	.write = tape_write,
	.discard = tape_discard,
	.zero = tape_zero,
	.flush = tape_flush,
	.status = tape_status,
	.resize = tape_resize,
	.close = tape_close,
};

struct block *tape_open(struct tape *t, struct loop *l, const struct tape_options *o)
{
	const struct block_options options = {.grows = o->grows, .max_requests = o->max_requests};
	struct tape_block *tb = must(calloc(1, sizeof(*tb)));
	struct block *b = &tb->b;

	tb->t = t;
	t->record = o->record;
	t->keeps = o->keeps;
	t->delays = o->seed;
	block_init(b, l, &tape_ops, &options);
	b->info.driver = "tape";
	b->info.size = t->size;
	b->info.can_discard = true;
	b->align = b->memory_align = o->align ? o->align : BLOCK_SECTOR;
	b->info.block_size = b->align;
	b->fua = o->fua;
	snprintf(b->info.name, sizeof(b->info.name), "tape");
	return b;
}

/* ---- the cut ---- */

struct image {
	uint8_t *data;
	uint64_t size, room;
};

static void put(struct image *i, const struct change *c, uint64_t at, uint64_t length)
{
	must_make_room(&i->data, &i->room, at + length);
	if (at + length > i->size)
		i->size = at + length;
	if (c->op == TAPE_WRITE)
		memcpy(i->data + at, c->data + (at - c->offset), length);
	else
		memset(i->data + at, 0, length);
}

static void put_some_sectors(struct image *i, const struct change *c, uint64_t *random)
{
	for (uint64_t at = c->offset; at < c->offset + c->length; at += BLOCK_SECTOR)
		if (unit_below(random, 2))
			put(i, c, at, BLOCK_SECTOR);
}

/* Whether a flush made c durable before the cut. */
static bool is_certain(const struct tape *t, const struct change *c, unsigned events)
{
	if (!c->done || c->done > events)
		return false;
	if (c->fua || c->op == TAPE_RESIZE)
		return true;
	for (unsigned i = 0; i < t->nr; i++) {
		const struct change *f = &t->change[i];

		if (f->op == TAPE_FLUSH && f->begun > c->done && f->done && f->done <= events)
			return true;
	}
	return false;
}

static void put_uncertain(struct image *i, const struct change *c, enum tape_cut how,
			  uint64_t *random)
{
	switch (how) {
	case TAPE_NONE:
		break;
	case TAPE_ALL:
		put(i, c, c->offset, c->length);
		break;
	case TAPE_RANDOM:
		if (unit_below(random, 2))
			put(i, c, c->offset, c->length);
		break;
	case TAPE_TORN:
		put_some_sectors(i, c, random);
		break;
	}
}

/* Two that touch the same bytes in the order in which they were done, if the second began after that; what was under way together, in any. */
static bool must_precede(const struct change *a, const struct change *b)
{
	return a->done && a->done < b->begun;
}

static void shuffle(const struct change **list, unsigned nr, uint64_t *random)
{
	for (unsigned i = 1; i < nr; i++)
		for (unsigned at = i;
		     at > 0 && !must_precede(list[at - 1], list[at]) && unit_below(random, 2);
		     at--) {
			const struct change *swap = list[at];

			list[at] = list[at - 1];
			list[at - 1] = swap;
		}
}

void *tape_cut_at(const struct tape *t, unsigned events, enum tape_cut how, uint64_t seed,
		  uint64_t *size)
{
	struct image i = {.size = t->first_size, .room = t->first_size + 1};
	const struct change **list = must(malloc((t->nr + 1) * sizeof(struct change *)));
	unsigned nr = 0;

	i.data = must(malloc(i.room));
	memcpy(i.data, t->first, t->first_size);
	for (unsigned n = 0; n < t->nr; n++)
		if (t->change[n].op != TAPE_FLUSH && t->change[n].begun <= events)
			list[nr++] = &t->change[n];
	if (how == TAPE_RANDOM || how == TAPE_TORN)
		shuffle(list, nr, &seed);
	for (unsigned n = 0; n < nr; n++) {
		const struct change *c = list[n];
		bool certain = is_certain(t, c, events);

		if (c->op == TAPE_RESIZE) {
			if (certain)
				set_size(&i.data, &i.room, &i.size, c->length);
		} else if (certain) {
			put(&i, c, c->offset, c->length);
		} else {
			put_uncertain(&i, c, how, &seed);
		}
	}
	free(list);
	*size = i.size;
	return i.data;
}
