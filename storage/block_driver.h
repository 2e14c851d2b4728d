/* SPDX-License-Identifier: MIT */
/*
 * What a backend is to the block layer. block.h is for everybody else.
 *
 * A backend is a table of functions in the waiting style: each runs in a fiber (or turns the loop) and returns when it is done. Several run at
 * the same time, one for each request; between two waits a function is alone. What block.c has checked and arranged before it calls one:
 *
 *   - offset and length are within the disk (info.size), length is not 0, and writing functions are not called when info.read_only;
 *   - read, write: offset and length are multiples of `align`, and every piece in memory and its length of `memory_align`;
 *   - zero, discard: offset and length are multiples of `align`;
 *   - resize, snapshot and close run while nothing else does.
 *
 * A flush is passed on only when something was written since the last; a failed one is remembered there, too.
 */
#ifndef PAGURUS_BLOCK_DRIVER_H
#define PAGURUS_BLOCK_DRIVER_H

#include "storage/block.h"
#include "storage/fiber.h"
#include "storage/range_lock.h"

/* A part of somebody's iovec: what begins `skip` bytes after its start. How long it is comes beside it. */
struct block_data {
	const struct iovec *iov;
	unsigned nr;
	size_t skip;
};

/* The part of d that begins `by` bytes later. */
static inline struct block_data block_data_skip(struct block_data d, size_t by)
{
	d.skip += by;
	return d;
}

/* The pieces of `length` bytes of d into out; their number, or 0 when there are more than max. */
unsigned block_data_pieces(struct block_data d, size_t length, struct iovec *out, unsigned max);
/* Whether each piece begins at, and has, a multiple of align, a power of two. */
bool block_data_aligned(struct block_data d, size_t length, uint32_t align);
void block_data_copy_in(struct block_data d, const void *from, size_t length);
void block_data_copy_out(struct block_data d, void *to, size_t length);
void block_data_zero(struct block_data d, size_t length);
/* Memory for at least so many bytes, for requests that need no bounce buffer; free() it. NULL: there is none. */
void *block_memory(size_t bytes);
/* Whether length > 0 bytes are all zero. */
bool block_is_zero(const void *data, size_t length);

struct block_ops {
	int (*read)(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		    struct pgr_error *err);
	/* flags: BLOCK_FUA only when the driver has fua. */
	int (*write)(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		     uint32_t flags, struct pgr_error *err);
	/* NULL: nothing is done. */
	int (*discard)(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err);
	/* NULL, or -EOPNOTSUPP: zeros are written. */
	int (*zero)(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		    struct pgr_error *err);
	int (*flush)(struct block *b, struct pgr_error *err);
	int (*status)(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		      struct pgr_error *err);
	/* NULL: cannot. Durable when it returns. Sets info.size. */
	int (*resize)(struct block *b, uint64_t size, struct pgr_error *err);
	/* NULL: cannot. */
	int (*snapshot)(struct block *b, const char *name, struct pgr_error *err);
	/* Free everything but b itself; after the flush, which may have failed. */
	int (*close)(struct block *b, struct pgr_error *err);
};

/* First in the structure of each backend, made by block_init(). */
struct block {
	const struct block_ops *ops;
	struct loop *loop;
	struct block_info info;
	uint32_t align, memory_align; /* powers of two; align is at most info.block_size */
	bool fua;		      /* write and zero do BLOCK_FUA themselves */
	bool grows;		      /* writes beyond the end are allowed, and set info.size */

	/* block.c's */
	struct block_stats stats;
	unsigned max_requests;
	struct block_request *first_queued, *last_queued;
	unsigned users;	  /* shared: requests in the driver */
	unsigned holders; /* exclusive: one that is in, or those of block_quiesce() */
	bool quiescing;	  /* holders are block_quiesce()'s */
	struct wait_queue entrance, exit;
	struct range_locks ranges; /* of read-modify-write */
	size_t bounce_used;
	struct wait_queue bounce_room;
	bool closing;
	uint64_t written, flushed; /* generations */
	struct pgr_error *flush_error;
	struct dirty *dirty; /* dirty.h: who wants to know of changes */
};

/* Fill b, which is zeroed; ops, align and so on are the backend's to set. */
void block_init(struct block *b, struct loop *l, const struct block_ops *ops,
		const struct block_options *o);

/*
 * What backends call of the blocks below them: as the waiting functions of block.h, with the data wherever the caller has it.
 */
int block_read_data(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		    struct pgr_error *err);
int block_write_data(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		     uint32_t flags, struct pgr_error *err);

/* A block of block_open_file() that was opened for writing is for reading from now on, its lock, too. Nothing may be under way. */
void block_file_freeze(struct block *b);
/*
 * The other way round, by fd, another open file of the same file, for reading and writing; it is taken over, also on failure. -EAGAIN: somebody
 * else has it open, too; -EINVAL: it is another file.
 */
int block_file_thaw(struct block *b, int fd, struct pgr_error *err);

/* block_align.c: for requests that the driver cannot take as they are, or may not. */
int block_aligned_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		       struct pgr_error *err);
int block_aligned_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
			uint32_t flags, struct pgr_error *err);
int block_aligned_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		       struct pgr_error *err);

/* A buffer for direct I/O out of the block's budget, at most BLOCK_PIECE bytes; NULL: no memory. Waits for its turn. */
#define BLOCK_PIECE (1u << 20)
void *block_bounce_get(struct block *b, size_t size);
void block_bounce_put(struct block *b, void *buffer, size_t size);

#endif
