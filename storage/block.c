// SPDX-License-Identifier: MIT
/*
 * What all backends have in common: queueing, checks, order, and the two ways to call.
 *
 * A submitted request runs in a fiber, which goes on with the next one in the queue when it is done. enter() and leave() make requests that
 * have to be alone alone:
 *
 *   users     requests in the driver, shared
 *   holders   who is alone, or has asked to be: from then on nobody else enters; it goes on when users is 0
 *
 * Flushes: `written` counts writes that are over, `flushed` is the count up to which a flush has made them durable. It starts behind, since the
 * process before this one may have written without a flush.
 */
#include "storage/block.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"
#include "storage/dirty.h"

void block_init(struct block *b, struct loop *l, const struct block_ops *ops,
		const struct block_options *o)
{
	b->ops = ops;
	b->loop = l;
	b->align = b->memory_align = 1;
	b->info.block_size = o && o->block_size ? o->block_size : BLOCK_SECTOR;
	b->info.granularity = b->info.block_size;
	b->info.read_only = o && o->read_only;
	b->grows = o && o->grows;
	b->max_requests = o && o->max_requests ? o->max_requests : BLOCK_REQUESTS;
	if (b->max_requests > BLOCK_REQUESTS_MAX)
		b->max_requests = BLOCK_REQUESTS_MAX;
	b->written = 1;
}

const struct block_info *block_info(const struct block *b)
{
	return &b->info;
}

void block_stats(const struct block *b, struct block_stats *out)
{
	*out = b->stats;
}

/* ---- who may be in ---- */

static void enter(struct block *b)
{
	while (b->holders)
		wait_queue_join(&b->entrance, b->loop);
	b->users++;
}

static void leave(struct block *b)
{
	if (--b->users == 0)
		wait_queue_wake_all(&b->exit);
}

static void wait_for_users(struct block *b)
{
	while (b->users)
		wait_queue_join(&b->exit, b->loop);
}

static void enter_alone(struct block *b)
{
	while (b->holders)
		wait_queue_join(&b->entrance, b->loop);
	b->holders = 1;
	wait_for_users(b);
}

static void leave_alone(struct block *b)
{
	b->holders--;
	if (!b->holders) {
		b->quiescing = false;
		wait_queue_wake_all(&b->entrance);
	}
}

void block_quiesce(struct block *b)
{
	if (b->quiescing) {
		b->holders++;
		wait_for_users(b);
		return;
	}
	while (b->holders)
		wait_queue_join(&b->entrance, b->loop);
	b->holders = 1;
	b->quiescing = true;
	wait_for_users(b);
}

void block_resume(struct block *b)
{
	leave_alone(b);
}

/* ---- checks ---- */

static int check_range(const struct block *b, uint64_t offset, uint64_t length, bool may_grow,
		       struct pgr_error *err)
{
	uint64_t end = may_grow ? BLOCK_SIZE_MAX : b->info.size;

	if (offset <= end && length <= end - offset)
		return 0;
	return pgr_fail(err, -ERANGE, "%s: %llu bytes at %llu are beyond its end at %llu",
			b->info.name, (unsigned long long)length, (unsigned long long)offset,
			(unsigned long long)b->info.size);
}

static int check_writable(const struct block *b, struct pgr_error *err)
{
	if (!b->info.read_only)
		return 0;
	return pgr_fail(err, -EROFS, "%s: opened for reading only", b->info.name);
}

static int check_change(const struct block *b, uint64_t offset, uint64_t length,
			struct pgr_error *err)
{
	int ret = check_writable(b, err);

	return ret ? ret : check_range(b, offset, length, b->grows, err);
}

/* ---- the operations, waiting ---- */

static bool is_aligned(const struct block *b, uint64_t offset, uint64_t length,
		       struct block_data data)
{
	return !((offset | length) & (b->align - 1)) &&
	       (b->memory_align == 1 || block_data_aligned(data, length, b->memory_align));
}

int block_read_data(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		    struct pgr_error *err)
{
	uint64_t there = length;
	int ret;

	enter(b);
	if (b->grows && offset + length > b->info.size) {
		/* What an image's file does not have yet is zeros. */
		there = offset < b->info.size ? b->info.size - offset : 0;
		block_data_zero(block_data_skip(to, there), length - there);
	}
	ret = check_range(b, offset, there, b->grows, err);
	b->stats.reads++;
	b->stats.read_bytes += length;
	if (!ret && there)
		ret = is_aligned(b, offset, there, to)
			      ? b->ops->read(b, offset, there, to, err)
			      : block_aligned_read(b, offset, there, to, err);
	if (ret)
		b->stats.failed++;
	leave(b);
	return ret;
}

static int flush_inside(struct block *b, struct pgr_error *err)
{
	uint64_t target = b->written;
	int ret;

	if (b->flush_error) {
		if (err)
			*err = *b->flush_error;
		return b->flush_error->code;
	}
	if (b->flushed >= target || b->info.read_only)
		return 0;
	b->stats.flushes++;
	ret = b->ops->flush(b, err);
	if (!ret) {
		if (b->flushed < target)
			b->flushed = target;
		return 0;
	}
	b->stats.failed++;
	if (ret == -ENOSPC || ret == -EDQUOT || ret == -ENOMEM)
		return ret; /* nothing was lost: it may be tried again */
	b->flush_error = malloc(sizeof(*b->flush_error));
	if (b->flush_error)
		pgr_fail(
			b->flush_error, -EIO,
			"%s: an earlier flush failed, so what was written since the last good one may be lost; close the disk and check its storage (%s)",
			b->info.name, err ? err->text : "no details");
	return ret;
}

/* Over, with success or not: what flushes have to cover, and bitmaps of changes. */
static int written(struct block *b, uint64_t offset, uint64_t length, uint32_t flags, int ret,
		   struct pgr_error *err)
{
	b->written++;
	dirty_set_all(b->dirty, offset, length);
	if (ret)
		b->stats.failed++;
	else if (flags & BLOCK_FUA && !b->fua)
		ret = flush_inside(b, err);
	return ret;
}

int block_write_data(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		     uint32_t flags, struct pgr_error *err)
{
	int ret;

	enter(b);
	ret = check_change(b, offset, length, err);
	b->stats.writes++;
	b->stats.write_bytes += length;
	if (!ret && length) {
		ret = block_aligned_write(b, offset, length, from,
					  b->fua ? flags : flags & ~BLOCK_FUA, err);
		ret = written(b, offset, length, flags, ret, err);
	}
	leave(b);
	return ret;
}

int block_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
	       struct pgr_error *err)
{
	int ret;

	enter(b);
	ret = check_change(b, offset, length, err);
	b->stats.zeros++;
	if (!ret && length) {
		ret = block_aligned_zero(b, offset, length, b->fua ? flags : flags & ~BLOCK_FUA,
					 err);
		ret = written(b, offset, length, flags, ret, err);
	}
	leave(b);
	return ret;
}

int block_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	uint64_t unit = b->align, begin, end;
	int ret;

	enter(b);
	ret = check_writable(b, err);
	if (!ret)
		ret = check_range(b, offset, length, false, err);
	b->stats.discards++;
	if (!ret && b->ops->discard) {
		begin = (offset + unit - 1) & ~(unit - 1);
		end = (offset + length) & ~(unit - 1);
		if (begin < end)
			ret = written(b, begin, end - begin, 0,
				      b->ops->discard(b, begin, end - begin, err), err);
	}
	leave(b);
	return ret;
}

int block_flush(struct block *b, struct pgr_error *err)
{
	int ret;

	enter(b);
	ret = flush_inside(b, err);
	leave(b);
	return ret;
}

int block_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		 struct pgr_error *err)
{
	int ret;

	enter(b);
	ret = check_range(b, offset, length, false, err);
	if (!ret && !length)
		ret = pgr_fail(err, -EINVAL, "%s: the status of no bytes was asked for",
			       b->info.name);
	if (!ret)
		ret = b->ops->status(b, offset, length, out, err);
	leave(b);
	return ret;
}

int block_resize(struct block *b, uint64_t size, struct pgr_error *err)
{
	int ret;

	enter_alone(b);
	ret = check_writable(b, err);
	if (!ret && size > BLOCK_SIZE_MAX)
		ret = pgr_fail(err, -EINVAL, "%s: %llu bytes are more than a disk can have",
			       b->info.name, (unsigned long long)size);
	if (!ret && b->dirty)
		ret = pgr_fail(
			err, -EBUSY,
			"%s: its changes are tracked, for a mirror or in dirty bitmaps; end the mirror, or remove the bitmaps (pagurus disk bitmap), before its size is changed",
			b->info.name);
	if (!ret && !b->ops->resize)
		ret = pgr_fail(err, -EOPNOTSUPP,
			       "%s: its size is that of its storage and changes with it",
			       b->info.name);
	if (!ret)
		ret = b->ops->resize(b, size, err);
	leave_alone(b);
	return ret;
}

int block_snapshot(struct block *b, const char *name, struct pgr_error *err)
{
	int ret;

	enter_alone(b);
	ret = check_writable(b, err);
	if (!ret && (!name || !name[0]))
		ret = pgr_fail(err, -EINVAL, "%s: a snapshot needs a name", b->info.name);
	if (!ret && !b->ops->snapshot)
		ret = pgr_fail(err, -EOPNOTSUPP,
			       "%s: it has no snapshots of its own; put a qcow2 overlay over it",
			       b->info.name);
	if (!ret)
		ret = flush_inside(b, err);
	if (!ret)
		ret = b->ops->snapshot(b, name, err);
	leave_alone(b);
	return ret;
}

int block_read(struct block *b, uint64_t offset, void *data, size_t length, struct pgr_error *err)
{
	struct iovec iov = {.iov_base = data, .iov_len = length};

	return block_read_data(b, offset, length, (struct block_data){.iov = &iov, .nr = 1}, err);
}

int block_write(struct block *b, uint64_t offset, const void *data, size_t length, uint32_t flags,
		struct pgr_error *err)
{
	struct iovec iov = {.iov_base = (void *)data, .iov_len = length};

	return block_write_data(b, offset, length, (struct block_data){.iov = &iov, .nr = 1}, flags,
				err);
}

/* ---- requests ---- */

/* Close b when no more than so many requests are left, which are the caller's own. */
static int close_but(struct block *b, unsigned own, struct pgr_error *err)
{
	int ret, ret2;

	enter_alone(b);
	while (b->stats.running > own)
		wait_queue_join(&b->exit, b->loop);
	ret = flush_inside(b, err);
	ret2 = b->ops->close(b, ret ? NULL : err);
	free(b->flush_error);
	free(b);
	return ret ? ret : ret2;
}

static int check_data(const struct block_request *r, struct pgr_error *err)
{
	uint64_t have = 0;

	if (r->length > BLOCK_LENGTH_MAX || r->nr_iov > BLOCK_IOV_MAX)
		return pgr_fail(err, -EINVAL,
				"%s: a request of %llu bytes in %u pieces is too large",
				r->block->info.name, (unsigned long long)r->length, r->nr_iov);
	for (unsigned i = 0; i < r->nr_iov; i++)
		have += r->iov[i].iov_len;
	if (have >= r->length)
		return 0;
	return pgr_fail(err, -EINVAL, "%s: a request of %llu bytes has memory for %llu",
			r->block->info.name, (unsigned long long)r->length,
			(unsigned long long)have);
}

static int do_status(struct block *b, struct block_request *r, struct pgr_error *err)
{
	uint64_t at = r->offset, end = r->offset + r->length;
	unsigned nr = 0, room = r->nr_extents;
	int ret = check_range(b, r->offset, r->length, false, err);

	if (!ret && (!room || !r->length))
		ret = pgr_fail(err, -EINVAL, "%s: the status of no bytes was asked for",
			       b->info.name);
	while (!ret && at < end && nr < room) {
		ret = block_status(b, at, end - at, &r->extents[nr], err);
		if (!ret)
			at += r->extents[nr++].length;
	}
	r->nr_extents = nr;
	return ret;
}

static int perform(struct block *b, struct block_request *r, struct pgr_error *err)
{
	struct block_data data = {.iov = r->iov, .nr = r->nr_iov};
	int ret;

	switch (r->op) {
	case BLOCK_READ:
	case BLOCK_WRITE:
		ret = check_data(r, err);
		if (ret)
			return ret;
		if (r->op == BLOCK_READ)
			return block_read_data(b, r->offset, r->length, data, err);
		return block_write_data(b, r->offset, r->length, data, r->flags, err);
	case BLOCK_DISCARD:
		return block_discard(b, r->offset, r->length, err);
	case BLOCK_ZERO:
		return block_zero(b, r->offset, r->length, r->flags, err);
	case BLOCK_FLUSH:
		return block_flush(b, err);
	case BLOCK_STATUS:
		return do_status(b, r, err);
	case BLOCK_RESIZE:
		return block_resize(b, r->length, err);
	case BLOCK_SNAPSHOT:
		return block_snapshot(b, r->name, err);
	case BLOCK_CLOSE:
		return close_but(b, 1, err);
	}
	return pgr_fail(err, -EINVAL, "%s: there is no operation %u", b->info.name,
			(unsigned)r->op);
}

static struct block_request *of_task(struct loop_task *t)
{
	return (struct block_request *)((char *)t - offsetof(struct block_request, task));
}

static void done_well(struct loop_task *t)
{
	struct block_request *r = of_task(t);

	r->done(r, NULL);
}

/* The error is on the stack of the fiber, which waits for this. */
struct failure {
	struct loop_task task;
	struct block_request *r;
	struct pgr_error err;
	struct wait told;
};

static void done_badly(struct loop_task *t)
{
	struct failure *f = (struct failure *)t;

	f->r->done(f->r, &f->err);
	wait_end(&f->told);
}

static void finish(struct loop *l, struct block_request *r, const struct pgr_error *err)
{
	struct failure f;

	if (!err->code) {
		r->task.run = done_well;
		loop_defer(l, &r->task);
		return;
	}
	f = (struct failure){.task = {.run = done_badly}, .r = r, .err = *err};
	wait_begin(&f.told, l);
	loop_defer(l, &f.task);
	wait_for(&f.told);
}

static void serve(void *ctx)
{
	struct block_request *r = ctx;
	struct block *b = r->block;
	struct loop *l = b->loop;

	while (r) {
		struct pgr_error err = PGR_ERROR_NONE;
		bool last = r->op == BLOCK_CLOSE;

		err.code = perform(b, r, &err);
		finish(l, r, &err);
		if (last)
			return;
		r = b->first_queued;
		if (r) {
			b->first_queued = r->next;
			b->stats.queued--;
		}
	}
	b->stats.running--;
	wait_queue_wake_all(&b->exit);
}

static void done_cancelled(struct loop_task *t)
{
	struct block_request *r = of_task(t);
	struct pgr_error err = PGR_ERROR_NONE;

	pgr_fail(&err, -ECANCELED, "the disk is being closed");
	r->done(r, &err);
}

static void done_without_memory(struct loop_task *t)
{
	struct block_request *r = of_task(t);
	struct pgr_error err = PGR_ERROR_NONE;

	pgr_fail(&err, r->op == BLOCK_CLOSE ? -EAGAIN : -ENOMEM,
		 "%s: no memory to begin a request; it may be tried again", r->block->info.name);
	r->done(r, &err);
}

static void end_with(struct block *b, struct block_request *r, void (*how)(struct loop_task *t))
{
	r->task.run = how;
	loop_defer(b->loop, &r->task);
}

static void cancel_queued(struct block *b)
{
	while (b->first_queued) {
		struct block_request *r = b->first_queued;

		b->first_queued = r->next;
		b->stats.queued--;
		end_with(b, r, done_cancelled);
	}
}

void block_submit(struct block *b, struct block_request *r)
{
	r->block = b;
	r->next = NULL;
	r->task = (struct loop_task){.run = NULL};
	if (b->closing) {
		end_with(b, r, done_cancelled);
		return;
	}
	if (r->op == BLOCK_CLOSE) {
		b->closing = true;
		cancel_queued(b);
	} else if (b->stats.running >= b->max_requests) {
		if (b->first_queued)
			b->last_queued->next = r;
		else
			b->first_queued = r;
		b->last_queued = r;
		b->stats.queued++;
		return;
	}
	b->stats.running++;
	if (fiber_start(b->loop, serve, r) == 0)
		return;
	b->stats.running--;
	b->closing = false;
	end_with(b, r, done_without_memory);
}

int block_close(struct block *b, struct pgr_error *err)
{
	if (!b)
		return 0;
	b->closing = true;
	cancel_queued(b);
	return close_but(b, 0, err);
}
