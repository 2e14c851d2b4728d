// SPDX-License-Identifier: MIT
/*
 * Requests that the driver cannot take as they are.
 *
 * Memory that is not aligned: through a bounce buffer. A part of a sector: the sector is read, changed and written while its range is locked.
 * Every write holds the lock of its range, shared when it writes whole sectors, exclusive when it does not: a read-modify-write then neither
 * undoes a write beside it nor is undone by one. Whole sectors do not wait for each other.
 *
 * A request is done in pieces of BLOCK_PIECE, and a bounce buffer is asked for while nothing else is held but the range, so those who wait for
 * room wait only for requests that go on.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/block_driver.h"

static uint64_t down(uint64_t value, uint64_t unit)
{
	return value & ~(unit - 1);
}

static uint64_t up(uint64_t value, uint64_t unit)
{
	return down(value + unit - 1, unit);
}

void *block_bounce_get(struct block *b, size_t size)
{
	size_t align = b->memory_align > 64 ? b->memory_align : 64;
	void *buffer;

	while (b->bounce_used && b->bounce_used + size > BLOCK_BOUNCE_MAX)
		wait_queue_join(&b->bounce_room, b->loop);
	if (posix_memalign(&buffer, align, size))
		return NULL;
	b->bounce_used += size;
	return buffer;
}

void block_bounce_put(struct block *b, void *buffer, size_t size)
{
	if (!buffer)
		return;
	free(buffer);
	b->bounce_used -= size;
	wait_queue_wake_all(&b->bounce_room);
}

static int no_memory(struct block *b, size_t size, struct pgr_error *err)
{
	return pgr_fail(err, -ENOMEM,
			"%s: no memory for a buffer of %zu bytes; the request may be tried again",
			b->info.name, size);
}

static int driver_read(struct block *b, uint64_t offset, void *buffer, size_t length,
		       struct pgr_error *err)
{
	struct iovec iov = {.iov_base = buffer, .iov_len = length};

	return b->ops->read(b, offset, length, (struct block_data){.iov = &iov, .nr = 1}, err);
}

/* The piece of a request at offset: as much of it as fits BLOCK_PIECE together with the rest of its first and last sector. */
struct piece {
	uint64_t offset, length; /* what was asked for */
	uint64_t begin, size;	 /* with whole sectors */
};

static struct piece first_piece(const struct block *b, uint64_t offset, uint64_t length)
{
	struct piece p = {.offset = offset, .begin = down(offset, b->align)};
	uint64_t most = p.begin + BLOCK_PIECE - offset;

	p.length = length < most ? length : most;
	p.size = up(offset + p.length, b->align) - p.begin;
	return p;
}

static int read_piece(struct block *b, const struct piece *p, struct block_data to,
		      struct pgr_error *err)
{
	uint8_t *buffer = block_bounce_get(b, p->size);
	int ret;

	if (!buffer)
		return no_memory(b, p->size, err);
	ret = driver_read(b, p->begin, buffer, p->size, err);
	if (!ret)
		block_data_copy_in(to, buffer + (p->offset - p->begin), p->length);
	block_bounce_put(b, buffer, p->size);
	return ret;
}

int block_aligned_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		       struct pgr_error *err)
{
	int ret = 0;

	while (length && !ret) {
		struct piece p = first_piece(b, offset, length);

		ret = read_piece(b, &p, to, err);
		to = block_data_skip(to, p.length);
		offset += p.length;
		length -= p.length;
	}
	return ret;
}

/* What is around the piece in its first and last sector. */
static int read_edges(struct block *b, const struct piece *p, uint8_t *buffer,
		      struct pgr_error *err)
{
	uint64_t last = p->size - b->align;
	bool head = p->offset != p->begin;
	bool tail = p->offset + p->length != p->begin + p->size;
	int ret = 0;

	if (head || (tail && !last))
		ret = driver_read(b, p->begin, buffer, b->align, err);
	if (!ret && tail && last)
		ret = driver_read(b, p->begin + last, buffer + last, b->align, err);
	return ret;
}

/* from.iov NULL: zeros. */
static int write_piece(struct block *b, const struct piece *p, struct block_data from,
		       uint32_t flags, struct pgr_error *err)
{
	uint8_t *buffer = block_bounce_get(b, p->size);
	struct iovec iov = {.iov_base = buffer, .iov_len = p->size};
	struct block_data d = {.iov = &iov, .nr = 1};
	int ret;

	if (!buffer)
		return no_memory(b, p->size, err);
	ret = read_edges(b, p, buffer, err);
	if (!ret) {
		if (from.iov)
			block_data_copy_out(from, buffer + (p->offset - p->begin), p->length);
		else
			block_data_zero(block_data_skip(d, p->offset - p->begin), p->length);
		ret = b->ops->write(b, p->begin, p->size, d, flags, err);
	}
	block_bounce_put(b, buffer, p->size);
	return ret;
}

static int write_pieces(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
			uint32_t flags, struct pgr_error *err)
{
	int ret = 0;

	while (length && !ret) {
		struct piece p = first_piece(b, offset, length);

		ret = write_piece(b, &p, from, flags, err);
		from = block_data_skip(from, p.length);
		offset += p.length;
		length -= p.length;
	}
	return ret;
}

static void lock_sectors(struct block *b, struct range_lock *k, uint64_t offset, uint64_t length)
{
	bool partial = (offset | length) & (b->align - 1);

	range_lock(&b->ranges, k, b->loop, down(offset, b->align), up(offset + length, b->align),
		   partial);
}

int block_aligned_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
			uint32_t flags, struct pgr_error *err)
{
	struct range_lock k;
	int ret;

	lock_sectors(b, &k, offset, length);
	if (!((offset | length) & (b->align - 1)) &&
	    block_data_aligned(from, length, b->memory_align))
		ret = b->ops->write(b, offset, length, from, flags, err);
	else
		ret = write_pieces(b, offset, length, from, flags, err);
	range_unlock(&b->ranges, &k);
	return ret;
}

int block_aligned_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		       struct pgr_error *err)
{
	const struct block_data zeros = {.iov = NULL};
	uint64_t begin = up(offset, b->align), end = down(offset + length, b->align);
	struct range_lock k;
	int ret = -EOPNOTSUPP;

	lock_sectors(b, &k, offset, length);
	if (begin < end && b->ops->zero) {
		ret = b->ops->zero(b, begin, end - begin, flags, err);
		if (!ret && offset < begin)
			ret = write_pieces(b, offset, begin - offset, zeros, flags, err);
		if (!ret && end < offset + length)
			ret = write_pieces(b, end, offset + length - end, zeros, flags, err);
	}
	if (ret == -EOPNOTSUPP && flags & BLOCK_FAST)
		pgr_fail(err, ret, "%s: zeros take as long as data here", b->info.name);
	else if (ret == -EOPNOTSUPP)
		ret = write_pieces(b, offset, length, zeros, flags & ~BLOCK_FAST, err);
	range_unlock(&b->ranges, &k);
	return ret;
}
