// SPDX-License-Identifier: MIT
/* Requests to a disk on Ceph. A call is begun in the loop's thread; a thread of Ceph's says that it is over, and posts that to the loop. */
#include "storage/block_rbd.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "common/text.h"
#include "storage/block_driver.h"
#include "storage/offload.h"
#include "storage/rbd_session.h"

#define PIECES_AT_ONCE 128u	  /* on a fiber's stack */
#define PIECE_MAX      (4u << 20) /* of a read or write: an object of Ceph's, usually */
#define RANGE_MAX      (1u << 30) /* of what has no data */
#define LOOK_MAX \
	(16ull   \
	 << 30) /* that is looked at for one extent, where a map of all objects says what is there */
#define LOOK_EACH_MAX (128u << 20) /* the same where each object is asked */
#define GRANULARITY   (64u << 10)  /* rbd_discard_granularity_bytes, by default */

struct block_rbd {
	struct block b;
	struct rbd_session s;
	uint64_t object; /* bytes */
	bool has_map;
};

static struct block_rbd *to_rbd(struct block *b)
{
	return (struct block_rbd *)b;
}

/* ---- one call ---- */

enum kind { CALL_READ, CALL_WRITE, CALL_ZERO, CALL_DISCARD, CALL_FLUSH };

struct call {
	enum kind kind;
	uint64_t offset, length;
	const struct iovec *iov;
	unsigned nr_iov;
	int flags; /* librbd's */
	struct block_rbd *r;
	rbd_completion_t completion;
	struct loop_task over; /* posted by a thread of Ceph's */
	struct wait wait;
	int64_t result;
};

static void call_over(struct loop_task *t)
{
	struct call *c = (struct call *)((char *)t - offsetof(struct call, over));

	wait_end(&c->wait);
}

/* Nothing of c may be used after the post. */
static void landed(rbd_completion_t completion, void *ctx)
{
	struct call *c = ctx;

	c->result = c->r->s.lib->rbd_aio_get_return_value(completion);
	loop_post(c->r->b.loop, &c->over);
}

static int issue(const struct rbd_session *s, const struct call *c)
{
	switch (c->kind) {
	case CALL_READ:
		return s->lib->rbd_aio_readv(s->image, c->iov, (int)c->nr_iov, c->offset,
					     c->completion);
	case CALL_WRITE:
		return s->lib->rbd_aio_writev(s->image, c->iov, (int)c->nr_iov, c->offset,
					      c->completion);
	case CALL_ZERO:
		return s->lib->rbd_aio_write_zeroes(s->image, c->offset, c->length, c->completion,
						    c->flags, 0);
	case CALL_DISCARD:
		return s->lib->rbd_aio_discard(s->image, c->offset, c->length, c->completion);
	case CALL_FLUSH:
		return s->lib->rbd_aio_flush(s->image, c->completion);
	}
	return -EINVAL;
}

static int call_fail(const struct call *c, int ret, struct pgr_error *err)
{
	static const char *const what[] = {"reading", "writing", "zeroing", "discarding",
					   "flushing"};
	const char *name = c->r->b.info.name;

	if (ret == -ENOSPC || ret == -EDQUOT)
		return pgr_fail_errno(
			err, ret,
			"%s: the cluster has no room for %llu bytes at %llu; make room and try again",
			name, (unsigned long long)c->length, (unsigned long long)c->offset);
	if (ret == -ESHUTDOWN)
		return pgr_fail(
			err, ret,
			"%s: the cluster shuts this host out (`ceph osd blocklist ls`), for another one has taken the disk over; close it",
			name);
	return pgr_fail_errno(err, ret, "%s: %s %llu bytes at %llu failed", name, what[c->kind],
			      (unsigned long long)c->length, (unsigned long long)c->offset);
}

static int call(struct block_rbd *r, struct call *c, struct pgr_error *err)
{
	const struct rbd_library *lib = r->s.lib;
	int ret;

	c->r = r;
	c->over = (struct loop_task){.run = call_over};
	wait_begin(&c->wait, r->b.loop);
	ret = lib->rbd_aio_create_completion(c, landed, &c->completion);
	if (ret)
		return call_fail(c, ret, err);
	ret = issue(&r->s, c);
	if (!ret) {
		wait_for(&c->wait);
		ret = c->result < 0 ? (int)c->result : 0;
	}
	lib->rbd_aio_release(c->completion);
	if (!ret && c->kind == CALL_READ && (uint64_t)c->result < c->length)
		ret = -ENODATA; /* somebody made the image smaller */
	return ret ? call_fail(c, ret, err) : 0;
}

/* ---- reading and writing ---- */

static int move_data(struct block *b, enum kind kind, uint64_t offset, uint64_t length,
		     struct block_data data, struct pgr_error *err)
{
	struct iovec iov[PIECES_AT_ONCE];
	int ret = 0;

	while (length && !ret) {
		struct call c = {.kind = kind, .offset = offset, .iov = iov};

		c.length = length < PIECE_MAX ? length : PIECE_MAX;
		while (!(c.nr_iov = block_data_pieces(data, c.length, iov, PIECES_AT_ONCE)))
			c.length = (c.length + 1) / 2;
		ret = call(to_rbd(b), &c, err);
		data = block_data_skip(data, c.length);
		offset += c.length;
		length -= c.length;
	}
	return ret;
}

static int image_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		      struct pgr_error *err)
{
	return move_data(b, CALL_READ, offset, length, to, err);
}

static int image_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		       uint32_t flags, struct pgr_error *err)
{
	(void)flags;
	return move_data(b, CALL_WRITE, offset, length, from, err);
}

/* ---- what has no data ---- */

static int clear(struct block *b, enum kind kind, uint64_t offset, uint64_t length, int flags,
		 struct pgr_error *err)
{
	int ret = 0;

	while (length && !ret) {
		struct call c = {.kind = kind, .offset = offset, .flags = flags};

		c.length = length < RANGE_MAX ? length : RANGE_MAX;
		ret = call(to_rbd(b), &c, err);
		offset += c.length;
		length -= c.length;
	}
	return ret;
}

static int image_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		      struct pgr_error *err)
{
	/* Zeros that take up room are written by Ceph as data are. */
	if (flags & BLOCK_FAST && !(flags & BLOCK_UNMAP))
		return -EOPNOTSUPP;
	return clear(b, CALL_ZERO, offset, length,
		     flags & BLOCK_UNMAP ? 0 : RBD_WRITE_ZEROES_FLAG_THICK_PROVISION, err);
}

static int image_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	return clear(b, CALL_DISCARD, offset, length, 0, err);
}

static int image_flush(struct block *b, struct pgr_error *err)
{
	struct call c = {.kind = CALL_FLUSH};

	return call(to_rbd(b), &c, err);
}

/* ---- what is there ---- */

struct look {
	struct block_rbd *r;
	uint64_t offset, end; /* what is asked for */
	struct block_extent *out;
	bool enough;
};

#define ENOUGH (-ECANCELED)

/* For each part that is there, or is known to be a hole, in their order: the first extent is put together, and then it ends. */
static int found(uint64_t at, size_t length, int exists, void *ctx)
{
	struct look *k = ctx;
	uint32_t flags = (exists ? BLOCK_EXTENT_DATA : BLOCK_EXTENT_ZERO) | BLOCK_EXTENT_HERE;
	uint64_t reached = k->offset + k->out->length, end = at + length;

	if (end <= reached)
		return 0;
	if (end > k->end)
		end = k->end;
	/* A hole that nothing is said of. */
	if (at > reached) {
		if (k->out->length && !(k->out->flags & BLOCK_EXTENT_ZERO)) {
			k->enough = true;
			return ENOUGH;
		}
		k->out->flags = BLOCK_EXTENT_ZERO | BLOCK_EXTENT_HERE;
		k->out->length = (at < k->end ? at : k->end) - k->offset;
	}
	if (at >= k->end || (k->out->length && k->out->flags != flags)) {
		k->enough = true;
		return ENOUGH;
	}
	k->out->flags = flags;
	k->out->length = end - k->offset;
	return 0;
}

/* From the beginning of an object on: versions of librbd are wrong about parts of them where there is a map of all objects. */
static int do_look(void *ctx)
{
	struct look *k = ctx;
	const struct rbd_session *s = &k->r->s;
	uint64_t begin = k->offset - k->offset % k->r->object;
	int ret = s->lib->rbd_diff_iterate2(s->image, NULL, begin, k->end - begin, 1, 1, found, k);

	return k->enough ? 0 : ret;
}

static int image_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
			struct pgr_error *err)
{
	struct block_rbd *r = to_rbd(b);
	uint64_t most = r->has_map ? LOOK_MAX : LOOK_EACH_MAX;
	struct look k = {.r = r,
			 .offset = offset,
			 .end = offset + (length < most ? length : most),
			 .out = out};
	int ret;

	*out = (struct block_extent){.length = 0};
	ret = offload(b->loop, do_look, &k);
	if (ret)
		return pgr_fail_errno(err, ret, "%s: what it has at byte %llu cannot be said",
				      b->info.name, (unsigned long long)offset);
	if (!out->length)
		*out = (struct block_extent){.length = k.end - offset,
					     .flags = BLOCK_EXTENT_ZERO | BLOCK_EXTENT_HERE};
	return 0;
}

/* ---- another size, a snapshot ---- */

struct change {
	struct block_rbd *r;
	uint64_t size;
	const char *name;
};

static int do_resize(void *ctx)
{
	struct change *c = ctx;

	return c->r->s.lib->rbd_resize(c->r->s.image, c->size);
}

static int image_resize(struct block *b, uint64_t size, struct pgr_error *err)
{
	struct change c = {.r = to_rbd(b), .size = size};
	int ret = offload(b->loop, do_resize, &c);

	if (ret)
		return pgr_fail_errno(err, ret, "%s: changing its size to %llu bytes failed",
				      b->info.name, (unsigned long long)size);
	b->info.size = size;
	return 0;
}

static int do_snapshot(void *ctx)
{
	struct change *c = ctx;

	return c->r->s.lib->rbd_snap_create(c->r->s.image, c->name);
}

static int image_snapshot(struct block *b, const char *name, struct pgr_error *err)
{
	struct change c = {.r = to_rbd(b), .name = name};
	int ret = rbd_name_check_snapshot(name, err);

	if (!ret) {
		ret = offload(b->loop, do_snapshot, &c);
		if (ret)
			pgr_fail_errno(err, ret, "%s: cannot make the snapshot %s", b->info.name,
				       name);
	}
	return ret;
}

/* ---- opening and closing ---- */

static int do_close(void *ctx)
{
	return rbd_session_end(ctx);
}

static int image_close(struct block *b, struct pgr_error *err)
{
	int ret = offload(b->loop, do_close, &to_rbd(b)->s);

	return ret ? pgr_fail_errno(err, ret, "%s: closing failed", b->info.name) : 0;
}

static const struct block_ops image_ops = {
	.read = image_read,
	.write = image_write,
	.discard = image_discard,
	.zero = image_zero,
	.flush = image_flush,
	.status = image_status,
	.resize = image_resize,
	.snapshot = image_snapshot,
	.close = image_close,
};

struct open_job {
	struct block_rbd *r;
	bool unlocked;
	struct pgr_error *err;
};

static int learn(struct block_rbd *r, bool unlocked, struct pgr_error *err)
{
	struct block_info *info = &r->b.info;
	rbd_image_info_t image = {.size = 0};
	uint64_t features = 0;
	int ret = r->s.lib->rbd_stat(r->s.image, &image, sizeof(image));

	if (!ret)
		ret = r->s.lib->rbd_get_features(r->s.image, &features);
	if (ret)
		return pgr_fail_errno(err, ret, "cannot be looked at");
	if (image.size > BLOCK_SIZE_MAX || !image.obj_size)
		return pgr_fail(err, -EFBIG, "has %llu bytes, which no disk can have",
				(unsigned long long)image.size);
	info->size = image.size;
	r->object = image.obj_size;
	r->has_map = features & RBD_FEATURE_FAST_DIFF;
	if (!(features & RBD_FEATURE_EXCLUSIVE_LOCK))
		snprintf(
			info->note, sizeof(info->note),
			"the image has not the feature exclusive-lock, so nothing keeps a second writer away");
	return unlocked || info->read_only ? 0 : rbd_session_lock(&r->s, err);
}

static int do_open(void *ctx)
{
	struct open_job *j = ctx;
	struct block_rbd *r = j->r;
	int ret = rbd_session_begin(&r->s, j->err);

	if (!ret)
		ret = rbd_session_open(&r->s, r->b.info.read_only, j->err);
	if (!ret)
		ret = learn(r, j->unlocked, j->err);
	if (ret)
		rbd_session_end(&r->s);
	return ret;
}

static int check_name(const char *name, const struct block_options *o, struct rbd_name *out,
		      struct pgr_error *err)
{
	int ret = rbd_name_parse(name, out, err);

	if (!ret && out->snapshot[0] && !(o && o->read_only))
		ret = pgr_fail(err, -EROFS, "%s: is a snapshot, which can only be read", name);
	return ret;
}

int block_open_rbd(struct loop *l, const char *name, const struct block_options *o,
		   struct block **out, struct pgr_error *err)
{
	struct open_job j = {.unlocked = o && o->unlocked, .err = err};
	struct block_rbd *r = calloc(1, sizeof(*r));
	struct block *b;
	int ret;

	if (!r)
		return pgr_fail(err, -ENOMEM, "%s: no memory to open it", name);
	b = &r->b;
	ret = check_name(name, o, &r->s.name, err);
	if (ret) {
		free(r);
		return ret;
	}
	block_init(b, l, &image_ops, o);
	b->info.driver = "rbd";
	b->info.can_discard = b->info.can_snapshot = true;
	b->info.granularity = GRANULARITY;
	text_plain(b->info.name, sizeof(b->info.name), name, strlen(name));
	j.r = r;
	ret = offload(l, do_open, &j);
	if (ret) {
		if (err && !err->code)
			pgr_fail_errno(err, ret, "cannot be opened");
		pgr_fail_prefix(err, "%s", b->info.name);
		free(r);
		return ret;
	}
	*out = b;
	return 0;
}

struct create_job {
	struct rbd_session s;
	uint64_t size;
	struct pgr_error *err;
};

static int do_create(void *ctx)
{
	struct create_job *j = ctx;
	rbd_image_options_t options;
	int ret = rbd_session_begin(&j->s, j->err);

	if (!ret) {
		j->s.lib->rbd_image_options_create(&options);
		ret = j->s.lib->rbd_create4(j->s.pool, j->s.name.image, j->size, options);
		j->s.lib->rbd_image_options_destroy(options);
		if (ret == -EEXIST)
			pgr_fail(j->err, ret, "is there already; choose another name");
		else if (ret)
			pgr_fail_errno(j->err, ret, "cannot be made");
	}
	rbd_session_end(&j->s);
	return ret;
}

int block_rbd_create(struct loop *l, const char *name, uint64_t size, struct pgr_error *err)
{
	struct create_job *j = calloc(1, sizeof(*j));
	int ret;

	if (!j)
		return pgr_fail(err, -ENOMEM, "%s: no memory to make it", name);
	j->err = err;
	j->size = size;
	ret = rbd_name_parse(name, &j->s.name, err);
	if (!ret && j->s.name.snapshot[0])
		ret = pgr_fail(err, -EINVAL, "%s: names a snapshot, and no disk", name);
	if (!ret && size & (BLOCK_SECTOR - 1))
		ret = pgr_fail(err, -EINVAL, "%s: a size has to be a multiple of %u bytes", name,
			       BLOCK_SECTOR);
	if (!ret) {
		ret = offload(l, do_create, j);
		if (ret)
			pgr_fail_prefix(err, "%s", name);
	}
	free(j);
	return ret;
}
