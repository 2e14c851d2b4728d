/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of disks that are in use, and merging of their layers: the order of what is done to files in a folder, and of what is done to the open disk. The
 * one who calls this may change the folder; the disk may be open in another process, which cannot. The two meet in struct live_ops.
 *
 *   snapshot   the new layer is made; hold all disks, flushed; exchange the names; go on over the new layers. A failure before the last name was
 *              exchanged undoes the others: all disks have it or none. A power cut among the exchanges may leave some of them with an empty layer more,
 *              which reads the same.
 *   delete     the layer above the snapshot goes into it, and then it has the place and the name of that. Where the disk's own layer is what stands on it,
 *              that one first gets another on top, called "merging", in which the disk goes on.
 *   commit     the same, but the lower one keeps its name and the disk's own layer stands on that from then on.
 *
 * A merge that was stopped or killed is said again; `leaving` (layers.h) marks the file that is merged into as void. The disk reads the same throughout.
 *
 * Waiting functions, in a fiber.
 */
#ifndef PAGURUS_LIVE_H
#define PAGURUS_LIVE_H

#include <stdatomic.h>

#include "storage/block.h"
#include "storage/layers.h"
#include "storage/live_pins.h"

/* Names that are not for snapshots. */
bool live_is_reserved(const char *name);
/* Whether that is a layer which a merge has put on top (web.merging.qcow2 of web.qcow2), and nobody's image whose own name begins so. */
bool live_is_merging(const char *disk, const struct layer *y);

/*
 * Remove the layer of which a commit that was killed at its very end has merged all, and on which the disk stands no more: it would stand on what the disk stands
 * on for ever. 1: it was there, s is to be loaded again; 0: there is none; -errno with a sentence.
 */
int live_remove_merged(struct loop *l, const char *disk, const struct layers *s,
		       struct pgr_error *err);

struct live_work {
	uint64_t rate;		 /* bytes a second; 0: no limit */
	const atomic_bool *stop; /* NULL, or it becomes true: -ECANCELED soon after */
	void (*progress)(void *ctx, uint64_t done, uint64_t size); /* NULL: nobody wants to know */
	void *ctx;
};

/* What `pagurus disk info` and `check` want to know. */
struct live_look {
	uint64_t size, here, below, zeros; /* bytes */
	uint64_t clusters, used, leaks, damages;
	uint32_t block_size;
	char driver[16];
	char finding[256]; /* the first thing that is wrong, or "" */
};

/* What is done to the open disk. Layers are numbered as in qcow2_live.h; descriptors are taken over, also on failure. */
struct live_ops {
	/* Hold its requests, with everything flushed; fd: the file of its next layer, -1: it gets none. name: what its file will be called. */
	int (*hold)(void *ctx, int fd, const char *name, struct pgr_error *err);
	/* Let them go on, over the next layer or as before. *held_ns: how long they were held. */
	int (*release)(void *ctx, bool switched, uint64_t *held_ns, struct pgr_error *err);
	/* Layer n into n + 1, whose file fd is. */
	int (*merge)(void *ctx, unsigned n, int fd, const struct live_work *w,
		     struct pgr_error *err);
	/* Layer n goes. name: what layer n - 1 is to call the one that it stands on from now on; NULL: as before. */
	int (*drop)(void *ctx, unsigned n, const char *name, struct pgr_error *err);
	/* live_look(). */
	int (*look)(void *ctx, bool check, struct live_look *out, struct pgr_error *err);
};

struct live_disk {
	const char *path; /* of its file, where links end */
	bool raw;
	struct loop *loop; /* of the caller */
	const struct live_ops *ops;
	void *ctx;
	struct live_pins
		*pins; /* NULL, or the only files that may be changed; new layers are added */
};

/*
 * Keep what the disks hold now, all at the same moment, under that name (layers_snapshot_path(); a path only for one disk). *held_ns: how long the
 * disks' requests waited, the longest.
 */
int live_snapshot(const struct live_disk *disks, unsigned nr, const char *name, uint64_t *held_ns,
		  struct pgr_error *err);
/* -ESRCH: what is to be deleted is not below the disk; whoever calls may do it as if the disk were not in use. */
int live_delete(const struct live_disk *d, const char *name, const struct live_work *w,
		struct pgr_error *err);
/* *into: the path of what it was merged into, malloc'd. */
int live_commit(const struct live_disk *d, const struct live_work *w, char **into,
		struct pgr_error *err);

/*
 * What an open disk is, or with `check` whether the tables of its own layer are sound; for that it is held meanwhile, with everything flushed. Waiting. In a
 * fiber. -EINVAL: it is raw.
 */
int live_look(struct block *disk, bool check, struct live_look *out, struct pgr_error *err);

/* ---- the open disk's side, in the process that has it ---- */

struct live_local {
	struct block *disk;
	struct qcow2_prepared *prepared; /* held, with a next layer */
	uint64_t held_at;		 /* 0: it is not held */
	bool merging;
};

/* The ctx is the struct live_local. */
extern const struct live_ops live_local_ops;

#endif
