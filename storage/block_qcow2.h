/* SPDX-License-Identifier: MIT */
/*
 * qcow2 images as disks: versions 2 and 3, clusters of 512 bytes to 2 MiB, chains of backing files (qcow2 and raw), clusters of zeros, packed
 * clusters (zlib, zstd). For reading only so far. Refused by name: encryption, external data files, subclusters, unknown incompatible features,
 * backing files that are no files or whose format is not said.
 */
#ifndef PAGURUS_BLOCK_QCOW2_H
#define PAGURUS_BLOCK_QCOW2_H

#include "storage/block.h"

/*
 * The image at path and what it stands on, each locked as block_open_file() does. o may be NULL; read_only has to be true. Waiting. Its errors, and
 * -EINVAL (no image, or one that contradicts itself), -EOPNOTSUPP, -ELOOP (a chain that comes back to itself, or has more than 64 images).
 */
int block_open_qcow2(struct loop *l, const char *path, const struct block_options *o,
		     struct block **out, struct pgr_error *err);

/* The image in another disk, which is taken over, also on failure, and was opened with options.grows. It may have no backing file. */
int block_open_qcow2_over(struct block *file, struct block **out, struct pgr_error *err);

#endif
