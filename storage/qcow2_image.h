/* SPDX-License-Identifier: MIT */
/*
 * An open qcow2 image: what the files that make it share. block_qcow2.h is for everybody else.
 *
 *   block_qcow2_open.c   opening and closing images and their chains
 *   block_qcow2.c        where a part of the disk is, reading, status
 *   block_qcow2_write.c  writing, zeros, discard
 *   block_qcow2_size.c   resize
 *   block_qcow2_snapshot.c  another layer takes over
 *   qcow2_live.c         layers come and go while the disk is in use
 *   qcow2_alloc.c        reference counts, taking and giving back clusters
 *   qcow2_bitmaps.c      dirty bitmaps that the image keeps; qcow2_header_bitmaps.c: the header's part of it
 *   qcow2_commit.c       the order in which things become durable
 *
 * A writer has what is needed on top of a reader in struct qcow2_writer. The rules that it keeps to, so that a cut at any moment leaves an image
 * in which nothing is wrong but perhaps clusters that nobody uses:
 *
 *   1. A cluster is counted, durably, before anything durable names it.
 *   2. What an entry points to is durable, whole, before the entry is.
 *   3. A count goes down, and the cluster may be used again, only when no durable entry names it any more.
 *   4. What somebody still reads or writes is not given back: requests hold the range of the disk that they are in, shared; who changes where a
 *      part of the disk is holds it exclusively.
 *
 * Entries and counts are changed in memory first. qcow2_commit() takes a copy of all changed entries, writes the counts, flushes (1, 2), writes the
 * copies, flushes, and gives back (3) what was released before the copies were taken.
 */
#ifndef PAGURUS_QCOW2_IMAGE_H
#define PAGURUS_QCOW2_IMAGE_H

#include "storage/block_driver.h"
#include "storage/qcow2.h"
#include "storage/qcow2_bitmaps.h"
#include "storage/qcow2_cache.h"
#include "storage/qcow2_guard.h"

/* Clusters that nothing names any more, once what has been changed is durable. */
struct qcow2_release {
	uint64_t cluster, nr; /* numbers, in the file */
	bool discard;	      /* the storage may go, too */
};

struct qcow2_releases {
	struct qcow2_release *list;
	size_t nr, room;
};

struct qcow2_writer {
	uint8_t *first; /* the beginning of the file, as it is to be */
	size_t first_bytes;
	bool first_stale;   /* writing it failed */
	uint64_t *reftable; /* as in the file */
	uint64_t reftable_entries;
	struct qcow2_cache *counts;
	struct fiber_lock alloc_lock; /* counts and their tables */
	uint64_t next_free;	      /* no cluster before this one is free */
	uint64_t hole;		      /* from this cluster on the file is a hole: zeros */
	bool no_room_ahead;	      /* making it failed */
	struct fiber_lock table_lock; /* making L2 tables */
	struct range_locks ranges;    /* of the disk */
	struct qcow2_guard guard;
	struct fiber_lock commit_lock;
	uint64_t begun, good;	 /* commits: how many have begun; the last one that succeeded */
	uint32_t l1_from, l1_to; /* changed entries */
	struct qcow2_releases releases;
	bool broken; /* nothing is written any more */
};

struct block_qcow2 {
	struct block b;
	struct block *file;
	struct block *backing; /* NULL: zeros */
	char *path;	       /* NULL: it has none */
	struct qcow2_header h;
	uint64_t *l1; /* as in the file, whole clusters of it */
	struct qcow2_cache *tables;
	uint32_t slice_entries;
	bool settled; /* as in struct block_options */
	/* The packed cluster that was unpacked last. */
	struct fiber_lock unpack_lock;
	uint64_t unpacked_at;
	bool unpacked_valid;
	uint8_t *unpacked, *packed;
	struct qcow2_bitmaps bitmaps;
	bool bitmaps_read;
	struct qcow2_writer *w; /* NULL: for reading only */
};

static inline struct block_qcow2 *to_qcow2(struct block *b)
{
	return (struct block_qcow2 *)b;
}

static inline uint64_t cluster_down(const struct block_qcow2 *q, uint64_t offset)
{
	return offset & ~(uint64_t)(q->h.cluster_size - 1);
}

static inline uint64_t cluster_up(const struct block_qcow2 *q, uint64_t offset)
{
	return cluster_down(q, offset + q->h.cluster_size - 1);
}

/* The bytes of a table that are written at once: a sector of the file, but nothing behind the cluster. */
static inline uint32_t qcow2_unit(const struct block_qcow2 *q)
{
	uint32_t sector = q->file->align > BLOCK_SECTOR ? q->file->align : BLOCK_SECTOR;

	return sector < q->h.cluster_size ? sector : q->h.cluster_size;
}

/* ---- block_qcow2.c ---- */

/* Clusters in a row that are alike. */
struct qcow2_run {
	struct qcow2_mapping first;
	uint64_t length; /* bytes, from the offset that was asked for */
};

/* The run that begins at offset, at most length bytes; it ends where a slice of a table ends, too. */
int qcow2_find_run(struct block_qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *out,
		   struct pgr_error *err);
/* Where the slice is that has the entry of offset, and the entry's number in it; 0: there is no table. -EIO. */
int qcow2_slice_of(struct block_qcow2 *q, uint64_t offset, uint64_t *slice, uint64_t *index,
		   struct pgr_error *err);
/* As a read, but the range is the caller's already. */
int qcow2_read_held(struct block_qcow2 *q, uint64_t offset, uint64_t length, struct block_data to,
		    struct pgr_error *err);
/* Whether what is below the image is all zeros there. Negative: it cannot be said. */
int qcow2_zeros_below(struct block_qcow2 *q, uint64_t offset, uint64_t length,
		      struct pgr_error *err);
int qcow2_fail_entry(struct block_qcow2 *q, uint64_t offset, const char *why,
		     struct pgr_error *err);

int qcow2_image_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		     struct pgr_error *err);
int qcow2_image_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		       struct pgr_error *err);

/* ---- block_qcow2_write.c ---- */

int qcow2_image_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		      uint32_t flags, struct pgr_error *err);
int qcow2_image_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		     struct pgr_error *err);
int qcow2_image_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err);

/* ---- block_qcow2_size.c ---- */

int qcow2_image_resize(struct block *b, uint64_t size, struct pgr_error *err);

/* ---- block_qcow2_snapshot.c ---- */

int qcow2_image_snapshot(struct block *b, const char *name, struct pgr_error *err);
/* -EOPNOTSUPP: there are as many as can be. */
int qcow2_fail_layers(const struct block *b, struct pgr_error *err);

/* ---- qcow2_live.c ---- */

/* As qcow2_live_prepare(), of a disk on which nothing is under way and everything is flushed. */
struct qcow2_prepared;
int qcow2_open_next(struct block_qcow2 *q, struct block *file, const char *name,
		    struct qcow2_prepared **out, struct pgr_error *err);
void qcow2_take_next(struct qcow2_prepared *p);
void qcow2_drop_next(struct qcow2_prepared *p);

/* ---- block_qcow2_open.c ---- */

/* Everything but b itself. */
int qcow2_image_close(struct block *b, struct pgr_error *err);
/* A new layer, for writing, whose backing disk the caller sets; it shares the memory for tables with another. Takes file over, also on failure. */
int qcow2_open_layer(struct block *file, struct block_qcow2 *other, struct block **out,
		     struct pgr_error *err);

/* ---- qcow2_writer.c ---- */

/* Make q, which has been opened, one that can be written. On failure qcow2_writer_free() is still to be called. */
int qcow2_writer_open(struct block_qcow2 *q, struct pgr_error *err);
void qcow2_writer_free(struct block_qcow2 *q);
/* -EIO after qcow2_corrupt(). */
int qcow2_check_whole(struct block_qcow2 *q, struct pgr_error *err);
/*
 * The image contradicts itself there: mark it as damaged, write nothing to it any more. -EIO with a sentence.
 */
int qcow2_corrupt(struct block_qcow2 *q, uint64_t at, const char *what, struct pgr_error *err);
/* The header as it is to be: change a field of it with these, then write it. They say where the bytes are as in struct qcow2_disk_header. */
void qcow2_header_put32(struct block_qcow2 *q, size_t field, uint32_t value);
void qcow2_header_put64(struct block_qcow2 *q, size_t field, uint64_t value);
int qcow2_header_write(struct block_qcow2 *q, struct pgr_error *err);

/* ---- qcow2_bitmaps.c ---- */

/* Read those of an image that is being opened for writing, and mark those that record. -EINVAL: they cannot be kept; then there are none. */
int qcow2_bitmaps_open(struct block_qcow2 *q, struct pgr_error *err);
/* Before it is closed or written no more: the marks go. On failure they stay. */
int qcow2_bitmaps_store(struct block_qcow2 *q, struct pgr_error *err);
void qcow2_bitmaps_free(struct block_qcow2 *q);
/* Make those of q that record in the next layer; later it gets their contents, and q has none any more. */
int qcow2_bitmaps_prepare_next(struct block_qcow2 *q, struct block_qcow2 *next,
			       struct pgr_error *err);
void qcow2_bitmaps_hand_over(struct block_qcow2 *from, struct block_qcow2 *to);

/* ---- qcow2_header_bitmaps.c ---- */

/* The header names another directory, or none (nr 0), durably. -EOPNOTSUPP: there is no room. */
int qcow2_header_set_bitmaps(struct block_qcow2 *q, uint32_t nr, uint64_t bytes, uint64_t offset,
			     struct pgr_error *err);

/* ---- qcow2_alloc.c ---- */

/*
 * Take clusters that follow each other: at least one and at most `want`; the first is *cluster, their number *got, and *hole says whether the file is
 * known to be zeros there. -ENOSPC, -EIO and others of the file.
 */
int qcow2_take(struct block_qcow2 *q, uint64_t want, uint64_t *cluster, uint64_t *got, bool *hole,
	       struct pgr_error *err);
/* All of them or none. */
int qcow2_take_all(struct block_qcow2 *q, uint64_t want, uint64_t *cluster, struct pgr_error *err);
/* Give back what nothing durable names; discard: its storage, too, where nobody else has it. What cannot be done is a leak, and no error. */
void qcow2_give_back(struct block_qcow2 *q, uint64_t cluster, uint64_t nr, bool discard);

/* Clusters that were taken are those of tables from now on, or no longer: data there means that the image contradicts itself. -ENOMEM, -EIO. */
int qcow2_guard_new(struct block_qcow2 *q, uint64_t cluster, uint64_t nr, struct pgr_error *err);
void qcow2_unguard(struct block_qcow2 *q, uint64_t cluster, uint64_t nr);

/* Before the image is closed: the file ends where what was taken ends. */
void qcow2_trim(struct block_qcow2 *q);

/* ---- qcow2_commit.c ---- */

/* Room for so many more releases, so that qcow2_release() cannot fail until the next wait. -ENOMEM. */
int qcow2_release_room(struct block_qcow2 *q, size_t more, struct pgr_error *err);
/* Once what has been changed so far is durable, give back these. */
void qcow2_release(struct block_qcow2 *q, uint64_t cluster, uint64_t nr, bool discard);
void qcow2_l1_changed(struct block_qcow2 *q, uint32_t index);
/* Everything that was done before the call is durable when it returns. */
int qcow2_image_flush(struct block *b, struct pgr_error *err);
/* Before a change: as much as the caches hold has to be written first. Nothing may be held but a range. */
int qcow2_relieve(struct block_qcow2 *q, struct pgr_error *err);
/* Counts that went down since the last commit, before the image is closed: for tidiness only. */
void qcow2_write_counts(struct block_qcow2 *q);

#endif
