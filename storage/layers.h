/* SPDX-License-Identifier: MIT */
/*
 * The layers that belong to a disk: the images in its folder, what they stand on, and who stands on whom. A snapshot is the file that a disk was before
 * it: DISK.NAME.qcow2 beside DISK.qcow2. Images in other folders that stand on one of these are not seen.
 */
#ifndef PAGURUS_LAYERS_H
#define PAGURUS_LAYERS_H

#include <sys/types.h>

#include "storage/block.h"

#define LAYERS_MAX 4096u

struct layer {
	char *path;
	dev_t dev;
	ino_t ino;
	bool raw;
	bool unclear; /* an image that could not be read: it may stand on anything */
	bool blank; /* of those: it is none yet, what a crash leaves of one that was being made, and stands on nothing */
	bool leaving;	     /* it is being merged into; its own contents are gone */
	uint64_t size, used; /* bytes of the disk, and that its file takes up */
	int64_t changed;     /* seconds since 1970 */
	int below;	     /* index of what it stands on; -1: nothing */
};

struct layers {
	struct layer *list;
	unsigned nr;
	int disk; /* index of the disk itself */
};

/* Read the headers of all that is called .qcow2 in the folder of disk, and of what they stand on. Waiting. To be freed also on failure. */
int layers_load(struct loop *l, const char *disk, struct layers *out, struct pgr_error *err);
void layers_free(struct layers *s);

/* Index of the only image that stands on it; -1: none; -EEXIST with a sentence: several, or it cannot be said. */
int layers_child(const struct layers *s, int layer, struct pgr_error *err);
/* Whether `upper` stands, by any number of layers, on `lower`. */
bool layers_stands_on(const struct layers *s, int upper, int lower);

/* The file of a snapshot of that name: a path or file name of an image, or a plain name. malloc'd; NULL: no memory. */
char *layers_snapshot_path(const char *disk, const char *name);
/* The plain name of the snapshot in that file, into out: "monday" for web.monday.qcow2 beside web.qcow2, else its file name. */
void layers_snapshot_name(const char *disk, const char *path, char *out, size_t size);
/* The layer of a snapshot as a person names it. -ENOENT with a sentence. */
int layers_find(const struct layers *s, const char *disk, const char *name, struct pgr_error *err);

/* Keep in mind, beside the file, that the layer is being merged into (or is so no longer). 0 or -errno. */
int layers_set_leaving(const char *path, bool leaving);
bool layers_is_leaving(const char *path);
/* -EINVAL with a sentence, when it is: it does not hold what it held. */
int layers_check_whole(const char *path, struct pgr_error *err);

/* Remove the file of a layer that nobody uses. -errno with a sentence; those of block_open_file() when it is in use. Waiting. */
int layers_remove(struct loop *l, const char *path, struct pgr_error *err);

/* From here on the layer does not hold what it held, since another is merged into it. -errno with a sentence. */
int layers_begin_merge(const char *lower, struct pgr_error *err);
/* What a merge that was cancelled leaves behind: -ECANCELED with a sentence. */
int layers_fail_stopped(const char *disk, struct pgr_error *err);

#endif
