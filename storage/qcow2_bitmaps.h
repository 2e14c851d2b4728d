/* SPDX-License-Identifier: MIT */
/*
 * Dirty bitmaps that an image keeps: which parts of the disk were written since each of them was made or cleared, for incremental backups. As QEMU has them.
 *
 * When an image is opened for writing, the bitmaps that record are read into memory (dirty.h), and are marked in the image, durably and before anything is
 * written, as in use. Closing writes their contents, then takes the mark away. So one whose mark is found was not closed: it is inconsistent, says
 * nothing, and can only be removed. One without a mark has every write that was done.
 *
 * A new layer of a disk goes on with the bitmaps of the one before, where they stay marked: a disk that is reverted to that layer, and merged into it, is not
 * what a backup has that was made meanwhile, and nothing in the old bitmap says so.
 */
#ifndef PAGURUS_QCOW2_BITMAPS_H
#define PAGURUS_QCOW2_BITMAPS_H

#include "storage/block.h"
#include "storage/dirty.h"

#define QCOW2_BITMAP_NAME_MAX  1023u
#define QCOW2_BITMAPS_MAX      1024u	   /* in an image; QEMU: 65535 */
#define QCOW2_BITMAP_BYTES_MAX (64u << 20) /* of all of an image together, in memory */

struct qcow2_bitmap {
	char name[QCOW2_BITMAP_NAME_MAX + 1];
	uint32_t granularity;
	bool recording;	     /* it gets what is written; else it stays as it is */
	bool in_use;	     /* as the image has it */
	struct dirty *dirty; /* its contents; NULL: not read, or it is inconsistent */
	/* qcow2_bitmaps.c's */
	uint64_t table;	  /* in the file */
	uint32_t entries; /* of the table */
	uint64_t *entry;
};

struct qcow2_bitmaps {
	struct qcow2_bitmap *list;
	uint32_t nr;
};

/*
 * Those of an image, with the contents of all that are not in use; they stay the image's. Waiting. -EINVAL with a sentence: they contradict themselves;
 * -EOPNOTSUPP: it is no qcow2 image; -ENOMEM, -EIO.
 */
int qcow2_bitmaps(struct block *image, const struct qcow2_bitmaps **out, struct pgr_error *err);
/* The contents of one. -ENOENT, -EUCLEAN (it is inconsistent), and as above. */
int qcow2_bitmap_find(struct block *image, const char *name, struct dirty **out,
		      struct pgr_error *err);

/*
 * Of an image that was opened for writing; durable when they return 0. granularity: 512 bytes to 2 GiB, a power of two. -EEXIST, -EINVAL (the name, the
 * granularity), -EOPNOTSUPP (the version, no room in the header), -ENOSPC.
 */
int qcow2_bitmap_add(struct block *image, const char *name, uint32_t granularity,
		     struct pgr_error *err);
int qcow2_bitmap_remove(struct block *image, const char *name, struct pgr_error *err);
/* Nothing is set in it any more. Durable when the image is closed. */
int qcow2_bitmap_clear(struct block *image, const char *name, struct pgr_error *err);

#endif
