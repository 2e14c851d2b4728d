/* SPDX-License-Identifier: MIT */
/* Layers: images that stand on others by name. What the names mean, and making a new layer. */
#ifndef PAGURUS_QCOW2_LAYER_H
#define PAGURUS_QCOW2_LAYER_H

#include "storage/block.h"
#include "storage/qcow2.h"

/* The path, malloc'd, of the backing file that the image at `image` names so: names are seen from the image's folder. NULL: no memory. */
char *qcow2_layer_path(const char *image, const char *backing);
/* Whether a backing file's name is that of a file, not of something on a network. */
bool qcow2_layer_is_file(const char *backing);
/* The other way round: how the image at `image` has to name `path`. malloc'd; NULL: no memory. */
char *qcow2_layer_name(const char *image, const char *path);

struct qcow2_layer {
	const char *path; /* of the new file */
	const char *
		image; /* of the image that it is going to be: its name may change before it is used */
	const char *like;    /* the file whose owner and mode it gets; NULL: 0600 */
	const char *backing; /* path of what it stands on; NULL: nothing */
	const char *backing_format;
	uint64_t size;
	uint32_t cluster_size; /* 0: 64 KiB */
};

/*
 * Make an image without contents of its own, durably but for its name in the folder, and open its file for writing, locked. Waiting. Killed, it leaves
 * nothing, where the file system has files without names (O_TMPFILE); else a file that is no image yet. -EEXIST with a
 * sentence: there is a file already (but what qcow2_layer_unfinished() says is removed); on failure nothing is left.
 */
int qcow2_layer_make(struct loop *l, const struct qcow2_layer *y, struct block **file,
		     struct pgr_error *err);

/*
 * Exchange the names of an image and of the new layer that was made for it, durably. *done: whether they are, also when it cannot be said that it is
 * durable. -errno with a sentence. Waiting.
 */
int qcow2_layer_exchange(struct loop *l, const char *image, const char *name, bool *done,
			 struct pgr_error *err);

/* Read the header of an image, without a lock. Waiting. As qcow2_header_parse(), and what opening a file may say. */
int qcow2_layer_header(struct loop *l, const char *path, struct qcow2_header *h,
		       struct pgr_error *err);

#endif
