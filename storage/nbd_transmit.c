// SPDX-License-Identifier: MIT
/*
 * Requests: read, checked, cut into pieces, and given to the disk while the next one is read.
 *
 * The connection's fiber reads and waits for room (nbd_piece_new()); it never waits for the disk. Everything in a request is checked before the first
 * of its pieces: a request that is refused costs one empty piece, and a write that is refused has its data read and thrown away. A request that is not
 * the protocol's at all ends the connection, for nobody knows where the next one begins.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "storage/nbd_internal.h"

/* In host order. */
struct request {
	uint16_t type, flags;
	uint64_t offset;
	uint32_t length;
};

static const uint16_t flags_of[NBD_CMDS] = {
	[NBD_CMD_READ] = NBD_CMD_FLAG_DF,
	[NBD_CMD_WRITE_ZEROES] = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
	[NBD_CMD_BLOCK_STATUS] = NBD_CMD_FLAG_REQ_ONE,
};

static bool changes(uint16_t type)
{
	return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

/* ---- checks ---- */

static int refuse(const char **why, int code, const char *text)
{
	*why = text;
	return code;
}

static int check(const struct nbd_connection *c, const struct request *r, const char **why)
{
	bool read_only = nbd_export_flags(c->export) & NBD_FLAG_READ_ONLY;

	if (r->type >= NBD_CMDS || r->type == NBD_CMD_CACHE)
		return refuse(why, -EINVAL, "this server does not have this command");
	/* FUA may stand in any request, and means something in those that change the disk. */
	if (r->flags & ~(flags_of[r->type] | NBD_CMD_FLAG_FUA))
		return refuse(why, -EINVAL, "a flag that does not belong to this command");
	if (changes(r->type) && read_only)
		return refuse(why, -EPERM, "this export is for reading only");
	if (r->flags & NBD_CMD_FLAG_DF && !c->structured)
		return refuse(why, -EINVAL, "without structured replies a read is always whole");
	if (r->type == NBD_CMD_FLUSH)
		return r->offset || r->length
			       ? refuse(why, -EINVAL, "a flush is for the whole disk")
			       : 0;
	if (r->offset > c->size || r->length > c->size - r->offset)
		return refuse(why, r->type == NBD_CMD_WRITE ? -ENOSPC : -EINVAL,
			      "this is beyond the end of the disk");
	if (r->type == NBD_CMD_READ && r->length > NBD_LENGTH_MAX)
		return refuse(why, -EINVAL, "no read may be longer than 32 MiB");
	if (r->type != NBD_CMD_BLOCK_STATUS)
		return 0;
	if (!c->context[NBD_ALLOCATION] && !c->context[NBD_DIRTY])
		return refuse(why, -EINVAL, "no context was chosen");
	return r->length ? 0 : refuse(why, -EINVAL, "the status of nothing");
}

/* ---- to the disk ---- */

static struct nbd_piece *of_request(struct block_request *r)
{
	return (struct nbd_piece *)((char *)r - offsetof(struct nbd_piece, r));
}

static void done(struct block_request *r, const struct pgr_error *err)
{
	struct nbd_piece *p = of_request(r);

	/* The block layer knows no durable discard. */
	if (!err && r->op == BLOCK_DISCARD && p->call->flags & NBD_CMD_FLAG_FUA) {
		r->op = BLOCK_FLUSH;
		block_submit(p->call->c->export->e.disk, r);
		return;
	}
	nbd_piece_done(p, err ? err->code : 0, err ? err->text : NULL);
}

static void submit(struct nbd_piece *p, enum block_op op, uint64_t offset, uint64_t length)
{
	const struct nbd_call *call = p->call;
	struct block_request *r = &p->r;

	r->op = op;
	r->offset = offset;
	r->length = length;
	r->done = done;
	if (call->flags & NBD_CMD_FLAG_FUA && (op == BLOCK_WRITE || op == BLOCK_ZERO))
		r->flags |= BLOCK_FUA;
	if (op == BLOCK_ZERO && !(call->flags & NBD_CMD_FLAG_NO_HOLE))
		r->flags |= BLOCK_UNMAP;
	if (op == BLOCK_ZERO && call->flags & NBD_CMD_FLAG_FAST_ZERO)
		r->flags |= BLOCK_FAST;
	if (op == BLOCK_READ || op == BLOCK_WRITE) {
		r->iov = &p->iov;
		r->nr_iov = 1;
	} else if (op == BLOCK_STATUS) {
		r->extents = p->iov.iov_base;
		r->nr_extents = call->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_EXTENTS;
	}
	block_submit(call->c->export->e.disk, r);
}

/* Reads and writes: a piece at a time. */
static int transfer(struct nbd_call *call, const struct request *r, enum block_op op, size_t unit)
{
	uint64_t at = r->offset, end = r->offset + r->length;

	call->pieces = r->length ? (unsigned)((r->length + unit - 1) / unit) : 1;
	do {
		size_t n = end - at < unit ? (size_t)(end - at) : unit;
		struct nbd_piece *p;
		int ret = nbd_piece_new(call, n, &p);

		if (!ret && op == BLOCK_WRITE) {
			ret = nbd_stream_read(&call->c->stream, p->iov.iov_base, n);
			if (ret)
				nbd_piece_drop(p);
		}
		if (ret) {
			/* The connection ends here, and with it the rest of this request. */
			call->pieces -= (unsigned)((end - at + unit - 1) / unit);
			if (!call->pieces)
				free(call);
			return ret == -ENODATA ? -EPIPE : ret;
		}
		at += n;
		submit(p, op, at - n, n);
	} while (at < end);
	return 0;
}

static int single(struct nbd_call *call, const struct request *r, enum block_op op, size_t bytes)
{
	struct nbd_piece *p;
	int ret = nbd_piece_new(call, bytes, &p);

	call->pieces = 1;
	if (ret)
		free(call);
	else
		submit(p, op, r->offset, r->length);
	return ret;
}

static int answer_refusal(struct nbd_call *call, const struct request *r, int code, const char *why)
{
	struct nbd_piece *p;
	int ret = r->type == NBD_CMD_WRITE ? nbd_stream_skip(&call->c->stream, r->length) : 0;

	if (!ret)
		ret = nbd_piece_new(call, 0, &p);
	if (ret) {
		free(call);
		return ret;
	}
	call->pieces = 1;
	call->whole = true;
	nbd_piece_done(p, code, why);
	return 0;
}

static int perform(struct nbd_call *call, const struct request *r)
{
	switch (r->type) {
	case NBD_CMD_READ:
		call->whole = !call->c->structured || r->flags & NBD_CMD_FLAG_DF;
		return transfer(call, r, BLOCK_READ, call->whole ? NBD_LENGTH_MAX : NBD_PIECE);
	case NBD_CMD_WRITE:
		return transfer(call, r, BLOCK_WRITE, NBD_PIECE);
	case NBD_CMD_FLUSH:
		return single(call, r, BLOCK_FLUSH, 0);
	case NBD_CMD_TRIM:
		return single(call, r, BLOCK_DISCARD, 0);
	case NBD_CMD_WRITE_ZEROES:
		return single(call, r, BLOCK_ZERO, 0);
	default:
		return single(call, r, BLOCK_STATUS, NBD_EXTENTS * sizeof(struct block_extent));
	}
}

/* -ENODATA: the client has said goodbye, or has gone. */
static int one_request(struct nbd_connection *c)
{
	struct nbd_request wire;
	struct request r;
	struct nbd_call *call;
	const char *why;
	int ret = nbd_stream_read(&c->stream, &wire, sizeof(wire));

	if (ret)
		return ret;
	r = (struct request){.type = be16toh(wire.type),
			     .flags = be16toh(wire.flags),
			     .offset = be64toh(wire.offset),
			     .length = be32toh(wire.length)};
	if (be32toh(wire.magic) != NBD_REQUEST_MAGIC) {
		nbd_log(c, "sent something that is no request");
		return -EPROTO;
	}
	if (r.type == NBD_CMD_DISC)
		return -ENODATA;
	if (r.type == NBD_CMD_WRITE && r.length > NBD_LENGTH_MAX) {
		nbd_log(c, "wanted to write %u bytes at once", r.length);
		return -EPROTO;
	}
	call = calloc(1, sizeof(*call));
	if (!call)
		return -ENOMEM;
	call->c = c;
	call->cookie = wire.cookie;
	call->type = r.type;
	call->flags = r.flags;
	call->whole = true;
	ret = check(c, &r, &why);
	return ret ? answer_refusal(call, &r, ret, why) : perform(call, &r);
}

void nbd_transmit(struct nbd_connection *c)
{
	int ret;

	do
		ret = one_request(c);
	while (!ret);
	if (ret == -ENOMEM)
		nbd_log(c, "no memory for its requests");
	nbd_stream_limit(&c->stream, loop_now_ns() + NBD_GOODBYE_MS * 1000000ull);
	while (c->pieces)
		wait_queue_join(&c->room, c->server->loop);
}
