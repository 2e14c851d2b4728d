// SPDX-License-Identifier: MIT
/* Walking over data that is in several pieces of memory. */
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"

#define MEMORY_ALIGN 4096u /* as much as any storage wants */

/* Where d goes on and for how many bytes, at most length; d moves on behind them. */
static size_t next_piece(struct block_data *d, size_t length, uint8_t **at)
{
	size_t n;

	while (d->skip >= d->iov->iov_len) {
		d->skip -= d->iov->iov_len;
		d->iov++;
	}
	*at = (uint8_t *)d->iov->iov_base + d->skip;
	n = d->iov->iov_len - d->skip;
	if (n > length)
		n = length;
	d->skip += n;
	return n;
}

unsigned block_data_pieces(struct block_data d, size_t length, struct iovec *out, unsigned max)
{
	unsigned nr = 0;
	uint8_t *at;

	for (size_t n; length; length -= n) {
		if (nr == max)
			return 0;
		n = next_piece(&d, length, &at);
		out[nr++] = (struct iovec){.iov_base = at, .iov_len = n};
	}
	return nr;
}

bool block_data_aligned(struct block_data d, size_t length, uint32_t align)
{
	uint8_t *at;

	for (size_t n; length; length -= n) {
		n = next_piece(&d, length, &at);
		if (((uintptr_t)at | n) & (align - 1))
			return false;
	}
	return true;
}

void block_data_copy_in(struct block_data d, const void *from, size_t length)
{
	const uint8_t *p = from;
	uint8_t *at;

	for (size_t n; length; length -= n, p += n) {
		n = next_piece(&d, length, &at);
		memcpy(at, p, n);
	}
}

void block_data_copy_out(struct block_data d, void *to, size_t length)
{
	uint8_t *p = to, *at;

	for (size_t n; length; length -= n, p += n) {
		n = next_piece(&d, length, &at);
		memcpy(p, at, n);
	}
}

void block_data_zero(struct block_data d, size_t length)
{
	uint8_t *at;

	for (size_t n; length; length -= n) {
		n = next_piece(&d, length, &at);
		memset(at, 0, n);
	}
}

bool block_is_zero(const void *data, size_t length)
{
	const uint8_t *p = data;

	return !p[0] && !memcmp(p, p + 1, length - 1);
}

void *block_memory(size_t bytes)
{
	return aligned_alloc(MEMORY_ALIGN,
			     (bytes + MEMORY_ALIGN - 1) & ~(size_t)(MEMORY_ALIGN - 1));
}
