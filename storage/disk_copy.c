// SPDX-License-Identifier: MIT
#include "storage/disk_copy.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"

#define CHUNK	  (1u << 20)
#define COPIERS	  8u
#define ZERO_MOST (1ull << 30)
#define NS	  1000000000ull
#define NAP_NS	  (NS / 10)

/* Why there is nothing more to copy: somebody says so, or another copier failed. */
static int is_over(const struct disk_copy *c, struct pgr_error *err)
{
	if (c->err.code || (c->stop && atomic_load(c->stop)))
		return pgr_fail(err, -ECANCELED, "stopped");
	return 0;
}

/* As long as what was copied is more than the rate allows. A slow one's turn may be far off, and the end of a disk does not wait for it. */
static int keep_to_rate(struct disk_copy *c, struct pgr_error *err)
{
	uint64_t due, now;
	int ret = is_over(c, err);

	if (!c->rate)
		return ret;
	due = c->began_ns + c->copied / c->rate * NS + c->copied % c->rate * NS / c->rate;
	while (!ret && (now = loop_now_ns()) < due) {
		fiber_sleep_until(c->from->loop, due - now < NAP_NS ? due : now + NAP_NS);
		ret = is_over(c, err);
	}
	return ret;
}

/* The next part that there is something to do for: *length 0 when there is none. One copier at a time looks for it. */
static int find_part(struct disk_copy *c, uint64_t *at, struct block_extent *e,
		     struct pgr_error *err)
{
	int ret = 0;

	fiber_lock(&c->finder, c->from->loop);
	e->length = 0;
	while (c->next < c->size) {
		bool zero;
		uint64_t most;

		ret = block_status(c->from, c->next, c->size - c->next, e, err);
		if (ret)
			break;
		zero = e->flags & BLOCK_EXTENT_ZERO;
		*at = c->next;
		if (c->what == COPY_OWN ? !(e->flags & BLOCK_EXTENT_HERE)
					: zero && c->what == COPY_DATA) {
			c->next += e->length;
			c->done += e->length;
			e->length = 0;
			continue;
		}
		most = zero ? ZERO_MOST : CHUNK;
		if (e->length > most)
			e->length = most;
		c->next += e->length;
		break;
	}
	fiber_unlock(&c->finder);
	return ret;
}

static int copy_part(struct disk_copy *c, uint64_t at, const struct block_extent *e,
		     uint8_t *buffer, struct pgr_error *err)
{
	int ret;

	if (e->flags & BLOCK_EXTENT_ZERO)
		return block_zero(c->to, at, e->length, BLOCK_UNMAP, err);
	c->copied += e->length;
	ret = keep_to_rate(c, err);
	if (!ret)
		ret = block_read(c->from, at, buffer, e->length, err);
	if (ret)
		return ret;
	if (block_is_zero(buffer, e->length))
		return c->what == COPY_DATA ? 0
					    : block_zero(c->to, at, e->length, BLOCK_UNMAP, err);
	return block_write(c->to, at, buffer, e->length, 0, err);
}

static void copier(void *ctx)
{
	struct disk_copy *c = ctx;
	uint8_t *buffer = block_memory(CHUNK);
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = buffer ? 0 : pgr_fail(&err, -ENOMEM, "no memory for a buffer");

	while (!ret) {
		struct block_extent e = {.length = 0};
		uint64_t at = 0;

		ret = is_over(c, &err);
		if (!ret)
			ret = find_part(c, &at, &e, &err);
		if (ret || !e.length)
			break;
		ret = copy_part(c, at, &e, buffer, &err);
		c->done += e.length;
		if (c->progress)
			c->progress(c);
	}
	if (ret && !c->err.code)
		c->err = err;
	free(buffer);
	if (--c->left == 0)
		wait_end(&c->over);
}

int disk_copy(struct disk_copy *c, struct pgr_error *err)
{
	unsigned begun = 0;

	c->size = block_info(c->from)->size;
	c->next = c->done = c->copied = 0;
	c->began_ns = loop_now_ns();
	c->err = PGR_ERROR_NONE;
	c->left = 1;
	wait_begin(&c->over, c->from->loop);
	for (unsigned i = 0; i < COPIERS; i++) {
		c->left++;
		if (fiber_start(c->from->loop, copier, c))
			c->left--;
		else
			begun++;
	}
	if (!begun)
		pgr_fail(&c->err, -ENOMEM, "no memory to copy");
	if (--c->left)
		wait_for(&c->over);
	if (c->err.code) {
		if (err)
			*err = c->err;
		return c->err.code;
	}
	return block_flush(c->to, err);
}
