/* SPDX-License-Identifier: MIT */
/*
 * Snapshots that are no layers of qcow2: kept by a file system that shares blocks between files, by LVM or by Ceph. One table of functions for each kind; the layers are in
 * layers.h.
 */
#ifndef PAGURUS_SNAPSHOTS_H
#define PAGURUS_SNAPSHOTS_H

#include <stdint.h>

#include "storage/block.h"

#define SNAPSHOTS_MAX 4096u

#define SNAPSHOT_UNKNOWN UINT64_MAX

struct snapshot {
	char *name;	     /* as it is said to revert and delete */
	char *path;	     /* the same in full: its own disk */
	uint64_t size, used; /* bytes: of the disk; that it takes up, or SNAPSHOT_UNKNOWN */
	int64_t made;	     /* seconds since 1970; 0: unknown */
	bool is_void;	     /* its contents are gone */
};

struct snapshots {
	struct snapshot *list;
	unsigned nr;
	uint64_t size; /* of the disk itself; 0: somebody else shows that */
};

struct snapshot_work {
	struct loop *loop;
	const char *disk, *name;
	uint64_t room; /* to make: bytes for what is overwritten afterwards; 0: enough */
	char *path;    /* out, malloc'd: the snapshot in full; NULL: there was no memory */
	/* NULL, or how far it is, now and then, by any thread. */
	void (*progress)(void *ctx, uint64_t done, uint64_t size);
	void *ctx;
};

/* Waiting; 0 or -errno with a sentence. -ENOENT: there is no such snapshot. What is taken away from a disk, or put back, is so durably. */
struct snapshots_ops {
	/* Of a disk that may be in use; NULL: block_snapshot() makes it. */
	int (*make)(struct snapshot_work *w, struct pgr_error *err);
	int (*list)(struct snapshot_work *w, struct snapshots *out, struct pgr_error *err);
	/* The disk, which nobody may have open (-EAGAIN), is what it was; the snapshot stays. What a cut leaves is said where the table is. */
	int (*revert)(struct snapshot_work *w, struct pgr_error *err);
	int (*remove)(struct snapshot_work *w, struct pgr_error *err);
};

/* Take both texts over, also on failure; -ENOMEM, -EFBIG (more than SNAPSHOTS_MAX). */
int snapshots_add(struct snapshots *s, struct snapshot one, struct pgr_error *err);
void snapshots_sort(struct snapshots *s);
void snapshots_free(struct snapshots *s);

#endif
