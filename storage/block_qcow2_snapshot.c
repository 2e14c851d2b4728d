// SPDX-License-Identifier: MIT
/*
 * Snapshot of an open disk: a new layer takes over, in constant time.
 *
 * The disk is a path. After a snapshot that path is a new, empty image, which stands on the file that was there before and that has another name now.
 * Both names change at once, by an exchange, so that a cut leaves either all of it or nothing:
 *
 *   1. a new image is made under the snapshot's name, which says that it stands on a file of that very name
 *   2. the two names are exchanged
 *
 * Cut behind 1, the snapshot's name is that of an image that stands on itself: it opens nowhere, and the next snapshot of that name removes it.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/qcow2_image.h"
#include "storage/qcow2_layer.h"

unsigned block_qcow2_layers(const struct block *b)
{
	unsigned layers = 0;

	for (; b; layers++)
		b = !strcmp(b->info.driver, "qcow2") ? ((const struct block_qcow2 *)b)->backing
						     : NULL;
	return layers;
}

static int open_new(struct block_qcow2 *q, const char *image, const char *name,
		    struct qcow2_prepared **out, struct pgr_error *err)
{
	const struct qcow2_layer y = {.path = name,
				      .image = image,
				      .like = image,
				      .backing = name,
				      .backing_format = "qcow2",
				      .size = q->h.size,
				      .cluster_size = q->h.cluster_size};
	struct block *file;
	int ret;

	/* In its own folder it is found under its own name. */
	ret = qcow2_layer_make(q->b.loop, &y, &file, err);
	if (ret)
		return ret;
	ret = qcow2_open_next(q, file, name, out, err);
	if (ret)
		unlink(name);
	return ret;
}

int qcow2_fail_layers(const struct block *b, struct pgr_error *err)
{
	return pgr_fail(
		err, -EOPNOTSUPP,
		"%s: has %u layers already, the most that can be; merge some first: pagurus disk delete",
		b->info.name, QCOW2_CHAIN_MAX);
}

int qcow2_image_snapshot(struct block *b, const char *name, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	struct qcow2_prepared *next;
	bool exchanged = false;
	char *image;
	int ret = qcow2_check_whole(q, err);

	if (ret)
		return ret;
	if (!q->path)
		return pgr_fail(err, -EOPNOTSUPP,
				"%s: is no file of its own, so there is no place for another layer",
				b->info.name);
	if (block_qcow2_layers(b) >= QCOW2_CHAIN_MAX)
		return qcow2_fail_layers(b, err);
	/* Where a link points to: the file gets the name, not the link. */
	image = realpath(q->path, NULL);
	ret = image ? open_new(q, image, name, &next, err)
		    : pgr_fail(err, -ENOMEM, "%s: no memory for another layer", b->info.name);
	if (ret)
		goto out;
	ret = qcow2_layer_exchange(b->loop, image, name, &exchanged, err);
	if (exchanged) {
		qcow2_take_next(next);
	} else {
		unlink(name);
		qcow2_drop_next(next);
	}
out:
	free(image);
	return ret;
}
