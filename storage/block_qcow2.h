/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images as disks: versions 2 and 3, clusters of 512 bytes to 2 MiB, chains of backing files (qcow2 and raw), clusters of zeros, packed
 * clusters (zlib, zstd). Refused by name: encryption, external data files, subclusters, unknown incompatible features, backing files that are no files or
 * whose format is not said.
 *
 * Writing keeps to block.h and leaves, whenever it is cut, an image that opens and in which qemu-img check finds nothing but perhaps leaks. Reference
 * counts are always kept (lazy ones are not used); snapshots inside of the image stay as they are; dirty bitmaps are kept (qcow2_bitmaps.h), other
 * autoclear features are void from then on. BLOCK_SNAPSHOT: the file gets that name (a path), and a new, empty image over it has the disk's. An image that turns out to contradict itself where something is to be written is marked as damaged, and written no more.
 */
#ifndef PAGURUS_BLOCK_QCOW2_H
#define PAGURUS_BLOCK_QCOW2_H

#include "storage/block.h"

#define QCOW2_CHAIN_MAX 64u /* images, of what a fiber's stack holds, with room to spare */

/*
 * The image at path and what it stands on, each locked as block_open_file() does. o may be NULL: for reading. What is below is
 * opened for reading. Waiting. Its errors, and -EINVAL (no image, or one that contradicts itself), -EOPNOTSUPP, -ELOOP (a chain that comes back to
 * itself, or has more than QCOW2_CHAIN_MAX images), -EIO (for writing: it is marked as damaged, or its tables overlap).
 */
int block_open_qcow2(struct loop *l, const char *path, const struct block_options *o,
		     struct block **out, struct pgr_error *err);

/* The image at path alone, without what it stands on: what it does not say itself are zeros. For reading. Waiting. Errors as above. */
int block_open_qcow2_alone(struct loop *l, const char *path, const struct block_options *o,
			   struct block **out, struct pgr_error *err);

/*
 * The image in another disk, which was opened with options.grows, over `backing` (NULL: it has none). Both are taken over, also on failure.
 */
int block_open_qcow2_over(struct block *file, struct block *backing, const struct block_options *o,
			  struct block **out, struct pgr_error *err);

/* How many layers a disk has: its own, and those that it stands on. 1 where there are no layers. */
unsigned block_qcow2_layers(const struct block *b);

#endif
