// SPDX-License-Identifier: MIT
/*
 * The answers to requests, and what a request in pieces keeps until they have gone.
 *
 *   one answer (call.whole)   when the last piece is done: a simple reply, or one chunk; an error of any piece is the request's
 *   a chunk a piece           reads with structured replies: each piece is sent when it is done, in any order; the last one ends the answer
 *
 * A piece holds its memory until its answer has gone; that of a write only until it is written. It does not go back to the
 * kernel each time, which would take longer than copying the data: the server keeps some buffers of the two sizes that most requests have.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"
#include "storage/nbd_internal.h"

#define MEMORY_ALIGN 4096u
#define LARGE	     (64u << 10)

static struct nbd_piece *of_out(struct nbd_out *o)
{
	return (struct nbd_piece *)((char *)o - offsetof(struct nbd_piece, out));
}

static const struct {
	size_t size;
	unsigned most; /* that are kept */
} classes[NBD_CLASSES] = {{4096, NBD_PIECES}, {NBD_PIECE, NBD_KEEP}};

/* A buffer that nobody uses holds the next one's address. */
static void *take_kept(struct nbd_kept *k)
{
	void *buffer = k->first;

	if (buffer) {
		memcpy(&k->first, buffer, sizeof(k->first));
		k->nr--;
	}
	return buffer;
}

static void give_back(struct nbd_server *s, unsigned class, void *buffer)
{
	struct nbd_kept *k = &s->kept[class];

	if (class == NBD_CLASSES || !buffer || k->nr == classes[class].most) {
		free(buffer);
		return;
	}
	memcpy(buffer, &k->first, sizeof(k->first));
	k->first = buffer;
	k->nr++;
}

void nbd_free_kept(struct nbd_server *s)
{
	for (unsigned i = 0; i < NBD_CLASSES; i++)
		while (s->kept[i].nr)
			free(take_kept(&s->kept[i]));
}

static bool get_memory(struct nbd_piece *p, size_t bytes)
{
	p->class = bytes <= classes[0].size		 ? 0
		   : bytes > LARGE && bytes <= NBD_PIECE ? 1
							 : NBD_CLASSES;
	if (!bytes)
		return true;
	if (p->class < NBD_CLASSES) {
		bytes = classes[p->class].size;
		p->iov.iov_base = take_kept(&p->c->server->kept[p->class]);
	}
	return p->iov.iov_base || !posix_memalign(&p->iov.iov_base, MEMORY_ALIGN, bytes);
}

static void release_memory(struct nbd_piece *p, struct nbd_connection *c)
{
	give_back(c->server, p->class, p->iov.iov_base);
	p->class = NBD_CLASSES;
	p->iov.iov_base = NULL;
	c->used -= p->held;
	p->held = 0;
	wait_queue_wake_all(&c->room);
}

void nbd_piece_drop(struct nbd_piece *p)
{
	struct nbd_connection *c = p->c;

	release_memory(p, c);
	c->pieces--;
	free(p);
}

static void piece_sent(struct nbd_out *o)
{
	nbd_piece_drop(of_out(o));
}

int nbd_piece_new(struct nbd_call *call, size_t bytes, struct nbd_piece **out)
{
	struct nbd_connection *c = call->c;
	struct nbd_piece *p;

	while (c->pieces >= NBD_PIECES || (c->used && c->used + bytes > NBD_BUDGET))
		wait_queue_join(&c->room, c->server->loop);
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->c = c;
	if (!get_memory(p, bytes)) {
		free(p);
		return -ENOMEM;
	}
	p->iov.iov_len = bytes;
	p->call = call;
	p->held = bytes;
	p->out.sent = piece_sent;
	c->pieces++;
	c->used += bytes;
	*out = p;
	return 0;
}

/* ---- what is sent ---- */

static uint32_t error_number(int code)
{
	switch (code) {
	case 0:
		return 0;
	case -EPERM:
	case -EROFS:
	case -EACCES:
		return NBD_EPERM;
	case -ENOMEM:
		return NBD_ENOMEM;
	case -EINVAL:
	case -ERANGE:
		return NBD_EINVAL;
	case -ENOSPC:
	case -EDQUOT:
		return NBD_ENOSPC;
	case -EOVERFLOW:
		return NBD_EOVERFLOW;
	case -EOPNOTSUPP:
		return NBD_ENOTSUP;
	case -ECANCELED:
		return NBD_ESHUTDOWN;
	default:
		return NBD_EIO;
	}
}

static void put_header(struct nbd_piece *p, const void *a, size_t a_length, const void *b,
		       size_t b_length)
{
	_Static_assert(sizeof(struct nbd_simple_reply) <= sizeof(p->header), "it has room");
	memcpy(p->header, a, a_length);
	if (b_length)
		memcpy(p->header + a_length, b, b_length);
	p->out.iov[0] = (struct iovec){.iov_base = p->header, .iov_len = a_length + b_length};
}

static void put_simple(struct nbd_piece *p, const struct nbd_call *call, int code)
{
	const struct nbd_simple_reply reply = {
		.magic = htobe32(NBD_SIMPLE_MAGIC),
		.error = htobe32(error_number(code)),
		.cookie = call->cookie,
	};

	put_header(p, &reply, sizeof(reply), NULL, 0);
}

/* The chunk's content is `content` and then so many bytes of the piece's memory. */
static void put_chunk(struct nbd_piece *p, const struct nbd_call *call, uint16_t type,
		      const void *content, size_t content_length, size_t data)
{
	const struct nbd_chunk chunk = {
		.magic = htobe32(NBD_STRUCTURED_MAGIC),
		.flags = htobe16(call->pieces ? 0 : NBD_CHUNK_DONE),
		.type = htobe16(type),
		.cookie = call->cookie,
		.length = htobe32((uint32_t)(content_length + data)),
	};

	put_header(p, &chunk, sizeof(chunk), content, content_length);
	p->out.iov[1] = (struct iovec){.iov_base = p->iov.iov_base, .iov_len = data};
}

static void put_error(struct nbd_piece *p, const struct nbd_call *call, int code, const char *why)
{
	size_t n = strlen(why);
	struct nbd_chunk_error e = {.error = htobe32(error_number(code))};

	/* The sentence goes where the data would be. Without memory: none. */
	release_memory(p, call->c);
	p->iov.iov_base = strdup(why);
	n = p->iov.iov_base ? n : 0;
	e.text_length = htobe16((uint16_t)n);
	put_chunk(p, call, NBD_CHUNK_ERROR, &e, sizeof(e), n);
}

static void put_data(struct nbd_piece *p, const struct nbd_call *call)
{
	const uint64_t at = htobe64(p->r.offset);
	const struct nbd_chunk_hole hole = {.offset = at, .length = htobe32((uint32_t)p->r.length)};

	if (!call->whole && block_is_zero(p->iov.iov_base, p->r.length)) {
		release_memory(p, call->c);
		put_chunk(p, call, NBD_CHUNK_HOLE, &hole, sizeof(hole), 0);
	} else {
		put_chunk(p, call, NBD_CHUNK_DATA, &at, sizeof(at), p->r.length);
	}
}

/* Replaces the extents that were found by what is sent. */
static int put_status(struct nbd_piece *p, const struct nbd_call *call)
{
	uint8_t *chunks = malloc(NBD_STATUS_BYTES);
	size_t n;

	if (!chunks)
		return -ENOMEM;
	n = nbd_status_chunks(call, &p->r, chunks);
	give_back(call->c->server, p->class, p->iov.iov_base);
	p->class = NBD_CLASSES;
	p->iov.iov_base = chunks;
	p->out.iov[0] = (struct iovec){.iov_base = chunks, .iov_len = n};
	return 0;
}

static void put_answer(struct nbd_piece *p, const struct nbd_call *call, int code, const char *why)
{
	const struct nbd_connection *c = call->c;

	if (!code && call->type == NBD_CMD_BLOCK_STATUS) {
		code = put_status(p, call);
		if (!code)
			return;
		why = "no memory for the answer";
	}
	if (code && c->structured) {
		put_error(p, call, code, why);
	} else if (!code && call->type == NBD_CMD_READ && c->structured && p->r.length) {
		put_data(p, call);
	} else if (call->type == NBD_CMD_READ && c->structured) {
		put_chunk(p, call, NBD_CHUNK_NONE, NULL, 0, 0);
	} else {
		put_simple(p, call, code);
		if (!code && call->type == NBD_CMD_READ)
			p->out.iov[1] = p->iov;
	}
}

void nbd_piece_done(struct nbd_piece *p, int code, const char *why)
{
	struct nbd_call *call = p->call;
	struct nbd_connection *c = call->c;

	call->pieces--;
	if (call->type == NBD_CMD_WRITE)
		release_memory(p, c);
	if (call->whole && code && !call->failed) {
		call->failed = code;
		snprintf(call->why, sizeof(call->why), "%s", why);
	}
	if (call->whole && call->pieces) {
		nbd_piece_drop(p);
		return;
	}
	if (call->whole)
		put_answer(p, call, call->failed, call->why);
	else
		put_answer(p, call, code, why);
	if (!call->pieces)
		free(call);
	nbd_stream_send(&c->stream, &p->out);
}
