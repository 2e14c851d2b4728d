/* SPDX-License-Identifier: MIT */
/* The snapshots inside of an image, which other programs make: their first tables. */
#ifndef PAGURUS_QCOW2_SNAPSHOTS_H
#define PAGURUS_QCOW2_SNAPSHOTS_H

#include "storage/block.h"
#include "storage/qcow2.h"

#define QCOW2_SNAPSHOTS_MAX	 65536u	     /* QEMU's limit */
#define QCOW2_SNAPSHOT_BYTES_MAX (64u << 20) /* of all first tables together */

struct qcow2_snapshot {
	uint64_t l1_offset; /* a cluster of the file; the table is inside of it */
	uint32_t l1_entries;
};

/*
 * The snapshots of the image in file, malloc'd into *out, h->nr_snapshots of them, and the bytes of their list into *bytes. Waiting. -EINVAL with a
 * sentence: the list contradicts itself; -EFBIG: more than is allowed; -ENOMEM.
 */
int qcow2_snapshots_load(struct block *file, const struct qcow2_header *h,
			 struct qcow2_snapshot **out, uint64_t *bytes, struct pgr_error *err);

/* A first table, as in the file, malloc'd. Waiting. */
int qcow2_l1_load(struct block *file, uint64_t offset, uint32_t entries, uint64_t **out,
		  struct pgr_error *err);

#endif
