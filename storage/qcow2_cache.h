/* SPDX-License-Identifier: MIT */
/*
 * A bounded cache of slices of an image's tables: L2 tables, blocks of reference counts. A slice has CACHE_SLICE bytes, or a whole table where that
 * is smaller. A slice that several fibers want is read once. Contents are big-endian, as in the file, and unchecked.
 *
 * All tables of a chain of images share one pool of CACHE_SLICES slices. A changed slice stays in it until it is written: qcow2_cache_collect()
 * takes copies of all that are changed, which qcow2_batch_write() writes later. In between they may be changed again, and are then changed
 * slices anew; what is written is what they were when they were collected.
 */
#ifndef PAGURUS_QCOW2_CACHE_H
#define PAGURUS_QCOW2_CACHE_H

#include "storage/block.h"
#include "storage/fiber.h"

#define CACHE_SLICE  4096u
#define CACHE_SLICES 1024u /* 4 MiB: the tables of 32 GiB with clusters of 64 KiB */
#define CACHE_CHANGED_MAX \
	(CACHE_SLICES / 2) /* from here on a writer has to write them before it goes on */

struct qcow2_cache;

/* file: what the slices are of; it outlives the cache. with: whose pool to share, or NULL. NULL: no memory. */
struct qcow2_cache *qcow2_cache_new(struct qcow2_cache *with, struct block *file, struct loop *l,
				    uint32_t slice_bytes);
/* What is changed is forgotten. NULL is allowed. */
void qcow2_cache_free(struct qcow2_cache *c);

/*
 * The slice at that offset of the file, into *out; good until the caller waits the next time. -ENOMEM, or what the file says.
 */
int qcow2_cache_get(struct qcow2_cache *c, uint64_t offset, const uint64_t **out,
		    struct pgr_error *err);
/* The same slice, after a get and before the next wait, to change it. */
uint64_t *qcow2_cache_change(struct qcow2_cache *c, uint64_t offset);
/* Forget what is known of these bytes of the file: they have become another table. */
void qcow2_cache_forget(struct qcow2_cache *c, uint64_t offset, uint64_t length);

/* Changed slices: of this cache, of its pool. */
unsigned qcow2_cache_changed(const struct qcow2_cache *c);
unsigned qcow2_cache_pool_changed(const struct qcow2_cache *c);

/* ---- writing them ---- */

struct qcow2_batch {
	struct qcow2_cache *cache;
	unsigned nr, left; /* parts */
	struct batch_part *part;
	uint16_t *slot;
	uint8_t *copies;
	struct wait wait;
	struct pgr_error err;
};

/* Copies of all changed slices, which count as unchanged from now on, but stay in the pool. Without a wait. -ENOMEM: as before. */
int qcow2_cache_collect(struct qcow2_cache *c, struct qcow2_batch *out, struct pgr_error *err);
/* Write them, those that follow each other at once, all at the same time. What failed is changed again. The batch is over. */
int qcow2_batch_write(struct qcow2_batch *b, struct pgr_error *err);
/* They are changed again. The batch is over; one of zero bytes is none. */
void qcow2_batch_undo(struct qcow2_batch *b);

#endif
