// SPDX-License-Identifier: MIT
/* Requests to an NBD server. block_nbd.h has the argument why they may be sent twice, block_nbd_link.c the connection. */
#include "storage/block_nbd.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/text.h"
#include "storage/block_nbd_keep.h"
#include "storage/block_nbd_link.h"
#include "storage/nbd_address.h"

#define PATIENCE_MS 60000u
#define PIECE_MAX   (4u << 20) /* of a read or write */
#define RANGE_MAX   (1u << 30) /* of what has no data */
#define BASE_HOLE   1u	       /* of base:allocation: the NBD protocol, "Metadata contexts" */
#define BASE_ZERO   2u
#define GRANULARITY (64u << 10) /* where the server says nothing of what it likes best */

struct block_nbd {
	struct block b;
	char *uri, *identity;
	struct nbd_link link;
	struct nbd_keep keep;
	uint64_t piece;
	bool can_trim, can_zero, can_fast_zero, can_status;
	struct fiber_lock room;	  /* of who flushes to make room in keep */
	struct pgr_error *failed; /* such a flush */
};

static struct block_nbd *to_nbd(struct block *b)
{
	return (struct block_nbd *)b;
}

/* ---- one call of libnbd ---- */

enum kind { CALL_READ, CALL_WRITE, CALL_ZERO, CALL_TRIM, CALL_FLUSH, CALL_STATUS };

struct call {
	enum kind kind;
	uint64_t offset, length;
	void *data;
	uint32_t flags; /* libnbd's */
	struct block_extent extent;
	struct wait wait;
	int error; /* errno */
};

static int landed(void *ctx, int *error)
{
	struct call *c = ctx;

	c->error = *error;
	wait_end(&c->wait);
	return 1;
}

static int got_extents(void *ctx, const char *context, uint64_t offset, uint32_t *entries,
		       size_t nr, int *error)
{
	struct call *c = ctx;

	(void)offset;
	(void)error;
	if (nr < 2 || strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0)
		return 0;
	c->extent.length = entries[0] < c->length ? entries[0] : c->length;
	c->extent.flags = BLOCK_EXTENT_HERE;
	if (entries[1] & BASE_ZERO)
		c->extent.flags |= BLOCK_EXTENT_ZERO;
	if (!(entries[1] & BASE_HOLE) || !(entries[1] & BASE_ZERO))
		c->extent.flags |= BLOCK_EXTENT_DATA;
	return 0;
}

static int64_t issue(struct nbd_handle *h, struct call *c)
{
	nbd_completion_callback over = {.callback = landed, .user_data = c};
	nbd_extent_callback extent = {.callback = got_extents, .user_data = c};

	switch (c->kind) {
	case CALL_READ:
		return nbd_aio_pread(h, c->data, c->length, c->offset, over, c->flags);
	case CALL_WRITE:
		return nbd_aio_pwrite(h, c->data, c->length, c->offset, over, c->flags);
	case CALL_ZERO:
		return nbd_aio_zero(h, c->length, c->offset, over, c->flags);
	case CALL_TRIM:
		return nbd_aio_trim(h, c->length, c->offset, over, c->flags);
	case CALL_FLUSH:
		return nbd_aio_flush(h, over, c->flags);
	case CALL_STATUS:
		return nbd_aio_block_status(h, c->length, c->offset, extent, over, c->flags);
	}
	return -1;
}

/* On the connection that is there. *lost: nothing is known of it, it has to be sent again. */
static int call_once(struct block_nbd *n, struct call *c, bool *lost, struct pgr_error *err)
{
	static const char *const what[] = {"reading",	 "writing",  "zeroing",
					   "discarding", "flushing", "the status of"};
	struct nbd_link *k = &n->link;
	int ret = 0;

	wait_begin(&c->wait, n->b.loop);
	c->error = 0;
	nbd_link_begun(k);
	if (issue(k->h, c) < 0) {
		ret = nbd_link_fail(k, what[c->kind], err);
		nbd_link_step(k);
		*lost = !k->connected;
	} else {
		nbd_link_step(k);
		wait_for(&c->wait);
		*lost = c->error == ENOTCONN || c->error == ESHUTDOWN;
		if (c->error == ESHUTDOWN)
			nbd_link_cut(k);
		if (c->error)
			ret = pgr_fail_errno(
				err, -c->error, "%s: %s %llu bytes at %llu failed on the server",
				n->b.info.name, what[c->kind], (unsigned long long)c->length,
				(unsigned long long)c->offset);
	}
	nbd_link_landed(k);
	return ret;
}

static int call(struct block_nbd *n, struct call *c, struct pgr_error *err)
{
	bool lost = true;
	int ret = 0;

	while (lost) {
		ret = nbd_link_await(&n->link, err);
		if (ret)
			return ret;
		lost = false;
		ret = call_once(n, c, &lost, err);
	}
	return ret;
}

/* ---- what is kept until it is flushed ---- */

static int flush_kept(struct block_nbd *n, struct pgr_error *err)
{
	uint64_t number = n->keep.number;
	struct call c = {.kind = CALL_FLUSH};
	int ret = call(n, &c, err);

	if (!ret)
		nbd_keep_drop(&n->keep, number);
	return ret;
}

/* A flush of our own that fails is one that block.h's promise needed: the next one of the user says so. */
static int make_room(struct block_nbd *n, struct pgr_error *err)
{
	int ret = 0;

	fiber_lock(&n->room, n->b.loop);
	if (n->keep.bytes > NBD_KEEP_MAX)
		ret = flush_kept(n, err);
	if (ret && !n->failed && err) {
		n->failed = malloc(sizeof(*n->failed));
		if (n->failed)
			*n->failed = *err;
	}
	fiber_unlock(&n->room);
	return ret;
}

static uint32_t zero_flags(uint32_t flags)
{
	return (flags & BLOCK_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
	       (flags & BLOCK_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0) |
	       (flags & BLOCK_FUA ? LIBNBD_CMD_FLAG_FUA : 0);
}

static struct call call_of(struct nbd_kept *e)
{
	static const enum kind kinds[] = {CALL_WRITE, CALL_ZERO, CALL_TRIM};

	return (struct call){.kind = kinds[e->kind],
			     .offset = e->offset,
			     .length = e->length,
			     .data = e->data,
			     .flags = e->flags};
}

static int restore(struct nbd_link *k, struct pgr_error *err)
{
	struct block_nbd *n = (struct block_nbd *)((char *)k - offsetof(struct block_nbd, link));
	int ret = 0;

	for (struct nbd_kept *e = n->keep.first; e && !ret; e = e->next) {
		struct call c = call_of(e);
		bool lost = false;

		ret = call_once(n, &c, &lost, err);
	}
	return ret;
}

/* ---- reading ---- */

/* The next piece of a read: as it is in memory, or through a bounce buffer. */
static size_t next_piece(const struct block_nbd *n, struct block_data d, uint64_t length,
			 void **where)
{
	struct iovec first;
	size_t size = length < n->piece ? length : n->piece;

	if (block_data_pieces(d, size, &first, 1)) {
		*where = first.iov_base;
		return size;
	}
	*where = NULL;
	return size < BLOCK_PIECE ? size : BLOCK_PIECE;
}

static int read_piece(struct block_nbd *n, struct call *c, struct block_data to,
		      struct pgr_error *err)
{
	void *bounce = c->data ? NULL : block_bounce_get(&n->b, c->length);
	int ret;

	if (!c->data && !bounce)
		return pgr_fail(err, -ENOMEM, "%s: no memory for a buffer", n->b.info.name);
	if (bounce)
		c->data = bounce;
	ret = call(n, c, err);
	if (!ret && bounce)
		block_data_copy_in(to, bounce, c->length);
	block_bounce_put(&n->b, bounce, c->length);
	return ret;
}

static int remote_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		       struct pgr_error *err)
{
	struct block_nbd *n = to_nbd(b);
	int ret = 0;

	while (length && !ret) {
		struct call c = {.kind = CALL_READ, .offset = offset};

		c.length = next_piece(n, to, length, &c.data);
		ret = read_piece(n, &c, to, err);
		to = block_data_skip(to, c.length);
		offset += c.length;
		length -= c.length;
	}
	return ret;
}

/* ---- changes: each is kept from before it is sent, so it is the same each time it is sent ---- */

/*
 * It was done. What is durable already, or need not last, is forgotten, unless something older is kept: sent again, that would undo it.
 */
static int changed(struct block_nbd *n, struct nbd_kept *e, bool may_forget, struct pgr_error *err)
{
	if (may_forget && !n->keep.first) {
		free(e);
		return 0;
	}
	e->flags &= ~(uint32_t)(LIBNBD_CMD_FLAG_FUA | LIBNBD_CMD_FLAG_FAST_ZERO);
	nbd_keep_add(&n->keep, e);
	return n->keep.bytes > NBD_KEEP_MAX ? make_room(n, err) : 0;
}

static int change(struct block_nbd *n, enum nbd_kept_kind kind, uint64_t offset, uint64_t length,
		  struct block_data from, uint32_t flags, struct pgr_error *err)
{
	uint64_t most = kind == NBD_KEPT_WRITE ? n->piece : RANGE_MAX, done = 0;
	bool may_forget = kind == NBD_KEPT_DISCARD || flags & LIBNBD_CMD_FLAG_FUA;
	int ret = 0;

	while (done < length && !ret) {
		uint64_t size = length - done < most ? length - done : most;
		struct nbd_kept *e = nbd_kept_new(kind, offset + done, size, from);
		struct call c;

		if (!e)
			return pgr_fail(err, -ENOMEM, "%s: no memory to change %llu bytes",
					n->b.info.name, (unsigned long long)size);
		e->flags = flags;
		c = call_of(e);
		ret = call(n, &c, err);
		if (ret)
			free(e);
		else
			ret = changed(n, e, may_forget, err);
		from = block_data_skip(from, size);
		done += size;
	}
	return ret;
}

static int remote_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
			uint32_t flags, struct pgr_error *err)
{
	return change(to_nbd(b), NBD_KEPT_WRITE, offset, length, from,
		      flags & BLOCK_FUA ? LIBNBD_CMD_FLAG_FUA : 0, err);
}

static int remote_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		       struct pgr_error *err)
{
	struct block_nbd *n = to_nbd(b);

	if (!n->can_zero || (flags & BLOCK_FAST && !n->can_fast_zero))
		return -EOPNOTSUPP;
	return change(n, NBD_KEPT_ZERO, offset, length, (struct block_data){.iov = NULL},
		      zero_flags(flags), err);
}

static int remote_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	struct block_nbd *n = to_nbd(b);

	if (!n->can_trim)
		return 0;
	return change(n, NBD_KEPT_DISCARD, offset, length, (struct block_data){.iov = NULL}, 0,
		      err);
}

/* ---- the rest ---- */

static int remote_flush(struct block *b, struct pgr_error *err)
{
	struct block_nbd *n = to_nbd(b);

	if (n->failed) {
		if (err)
			*err = *n->failed;
		return n->failed->code;
	}
	return flush_kept(n, err);
}

static int remote_status(struct block *b, uint64_t offset, uint64_t length,
			 struct block_extent *out, struct pgr_error *err)
{
	struct block_nbd *n = to_nbd(b);
	struct call c = {.kind = CALL_STATUS,
			 .offset = offset,
			 .length = length < RANGE_MAX ? length : RANGE_MAX,
			 .flags = LIBNBD_CMD_FLAG_REQ_ONE};
	int ret = 0;

	*out = (struct block_extent){.length = length,
				     .flags = BLOCK_EXTENT_DATA | BLOCK_EXTENT_HERE};
	if (!n->can_status)
		return 0;
	/* Whole units of the server's: a part of the last one is asked for as a whole by the layer above. */
	ret = call(n, &c, err);
	if (!ret && !c.extent.length)
		ret = pgr_fail(err, -EPROTO,
			       "%s: the server says nothing of the status of byte %llu",
			       b->info.name, (unsigned long long)offset);
	if (!ret)
		*out = c.extent;
	return ret;
}

/* ---- opening and closing ---- */

static int remote_close(struct block *b, struct pgr_error *err)
{
	struct block_nbd *n = to_nbd(b);

	(void)err;
	nbd_link_close(&n->link);
	nbd_keep_drop(&n->keep, UINT64_MAX);
	free(n->failed);
	free(n->link.export);
	free(n->uri);
	free(n->identity);
	return 0;
}

static const struct block_ops remote_ops = {
	.read = remote_read,
	.write = remote_write,
	.discard = remote_discard,
	.zero = remote_zero,
	.flush = remote_flush,
	.status = remote_status,
	.close = remote_close,
};

static uint64_t block_size_of(struct nbd_handle *h, int kind, uint64_t otherwise)
{
	int64_t size = nbd_get_block_size(h, kind);

	return size > 0 && !(size & (size - 1)) ? (uint64_t)size : otherwise;
}

/* What the server said of the disk and of itself. */
static void take_facts(struct block_nbd *n)
{
	struct nbd_handle *h = n->link.h;
	struct block_info *info = &n->b.info;
	uint64_t least = block_size_of(h, LIBNBD_SIZE_MINIMUM, 1);
	uint64_t best = block_size_of(h, LIBNBD_SIZE_PREFERRED, GRANULARITY);
	int64_t most = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

	info->size = n->link.size;
	n->b.align = (uint32_t)(least <= GRANULARITY ? least : GRANULARITY);
	if (info->block_size < n->b.align)
		info->block_size = n->b.align;
	info->granularity =
		(uint32_t)(best > info->block_size && best <= RANGE_MAX ? best : info->block_size);
	n->piece = most >= (int64_t)BLOCK_PIECE && most < (int64_t)PIECE_MAX ? (uint64_t)most
									     : PIECE_MAX;
	n->piece &= ~(uint64_t)(n->b.align - 1);
	n->b.fua = nbd_can_fua(h) == 1;
	n->can_trim = info->can_discard = nbd_can_trim(h) == 1;
	n->can_zero = nbd_can_zero(h) == 1;
	n->can_fast_zero = nbd_can_fast_zero(h) == 1;
	n->can_status = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
}

static int open_at(struct loop *l, const char *uri, const char *name, int socket,
		   const struct block_options *o, struct block **out, struct pgr_error *err)
{
	static const struct block_options defaults;
	struct block_nbd *n = calloc(1, sizeof(*n));
	int ret = -ENOMEM;

	if (!o)
		o = &defaults;
	if (!n) {
		if (socket >= 0)
			close(socket);
		return pgr_fail(err, -ENOMEM, "%s: no memory to open it", name);
	}
	block_init(&n->b, l, &remote_ops, o);
	n->b.info.driver = "nbd";
	text_plain(n->b.info.name, sizeof(n->b.info.name), name, strlen(name));
	nbd_keep_init(&n->keep);
	n->uri = strdup(uri);
	n->identity = o->identity ? strdup(o->identity) : NULL;
	n->link = (struct nbd_link){
		.loop = l,
		.name = n->b.info.name,
		.uri = n->uri,
		.identity = n->identity,
		.socket = socket,
		.patience_ns = UINT64_C(1000000) * (o->patience_ms ? o->patience_ms : PATIENCE_MS),
		.silence_ns = socket < 0 ? 0 : UINT64_C(1000000) * o->silence_ms,
		.stop = o->stop,
		.dial = o->dial,
		.to_write = !o->read_only,
		.restore = restore};
	if (n->uri && (n->identity || !o->identity))
		ret = nbd_link_open(&n->link, err);
	else
		pgr_fail(err, ret, "%s: no memory to open it", name);
	if (ret) {
		if (socket >= 0 && !n->link.socket_taken)
			close(socket);
		remote_close(&n->b, NULL);
		free(n);
		return ret;
	}
	take_facts(n);
	*out = &n->b;
	return 0;
}

int block_open_nbd(struct loop *l, const char *uri, const struct block_options *o,
		   struct block **out, struct pgr_error *err)
{
	if (nbd_address_is(uri))
		return open_at(l, uri, uri, -1, o, out, err);
	return pgr_fail(
		err, -EINVAL,
		"%s: not the address of an NBD disk: nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH, nbds:// with TLS",
		uri);
}

int block_open_nbd_socket(struct loop *l, int socket, const char *name,
			  const struct block_options *o, struct block **out, struct pgr_error *err)
{
	return open_at(l, "nbd://", name, socket, o, out, err);
}
