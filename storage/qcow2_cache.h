/* SPDX-License-Identifier: MIT */
/*
 * A bounded cache of slices of an image's L2 tables: CACHE_SLICE bytes each, or a whole table where that is smaller. A slice that several fibers
 * want is read once. Contents are big-endian, as in the file, and unchecked.
 */
#ifndef PAGURUS_QCOW2_CACHE_H
#define PAGURUS_QCOW2_CACHE_H

#include "storage/block.h"

#define CACHE_SLICE  4096u
#define CACHE_SLICES 512u /* 2 MiB: the tables of 16 GiB with clusters of 64 KiB */

struct qcow2_cache;

/* file: where slices are read from; it outlives the cache. NULL: no memory. */
struct qcow2_cache *qcow2_cache_new(struct block *file, struct loop *l, uint32_t slice_bytes);
void qcow2_cache_free(struct qcow2_cache *c);

/*
 * The slice at that offset of the file, into *out; good until the caller waits the next time. -ENOMEM, or what the file says.
 */
int qcow2_cache_get(struct qcow2_cache *c, uint64_t offset, const uint64_t **out,
		    struct pgr_error *err);

#endif
