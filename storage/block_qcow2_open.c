// SPDX-License-Identifier: MIT
/*
 * Opening and closing qcow2 images, with the chain of backing files below them: at most QCOW2_CHAIN_MAX images and none twice. What is below the image that
 * was asked for is opened for reading.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "storage/block_qcow2.h"
#include "storage/qcow2_image.h"
#include "storage/qcow2_layer.h"

int qcow2_image_close(struct block *b, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	int ret = 0, ret2;

	if (q->w && q->w->counts) {
		ret = qcow2_bitmaps_store(q, err);
		qcow2_write_counts(q);
		qcow2_trim(q);
	}
	qcow2_writer_free(q);
	qcow2_cache_free(q->tables);
	free(q->l1);
	free(q->unpacked);
	free(q->packed);
	free(q->path);
	ret2 = block_close(q->backing, ret ? NULL : err);
	ret = ret ? ret : ret2;
	ret2 = block_close(q->file, ret ? NULL : err);
	return ret ? ret : ret2;
}

/* block.c asks for no change of what is opened for reading. */
static const struct block_ops image_ops = {
	.read = qcow2_image_read,
	.write = qcow2_image_write,
	.zero = qcow2_image_zero,
	.discard = qcow2_image_discard,
	.flush = qcow2_image_flush,
	.status = qcow2_image_status,
	.resize = qcow2_image_resize,
	.snapshot = qcow2_image_snapshot,
	.close = qcow2_image_close,
};

/* ---- opening ---- */

/* The images that are being opened, from the one that was asked for down. */
struct chain {
	const struct chain *above;
	dev_t dev;
	ino_t ino;
	unsigned depth;
	struct qcow2_cache *tables; /* of the image above, to share its memory */
	bool ends;		    /* what is below is somebody else's matter */
};

static int open_any(struct loop *l, const char *path, const char *format,
		    const struct block_options *o, const struct chain *above, struct block **out,
		    struct pgr_error *err);

static int load_tables(struct block_qcow2 *q, struct qcow2_cache *with, struct pgr_error *err)
{
	size_t bytes = q->h.l1_entries * sizeof(uint64_t), room = cluster_up(q, bytes);
	uint32_t slice = q->h.cluster_size < CACHE_SLICE ? q->h.cluster_size : CACHE_SLICE;

	q->slice_entries = slice / 8;
	q->tables = qcow2_cache_new(with, q->file, q->b.loop, slice);
	q->l1 = calloc(1, room + 1);
	if (!q->tables || !q->l1)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its tables", q->b.info.name);
	return bytes ? block_read(q->file, q->h.l1_offset, q->l1, bytes, err) : 0;
}

static int open_backing(struct block_qcow2 *q, const char *path, const struct block_options *o,
			struct chain *chain, struct pgr_error *err)
{
	struct block_options below = *o;
	char *name;
	int ret;

	if (!q->h.backing[0] || q->backing || (chain && chain->ends))
		return 0;
	if (!path)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: it has a backing file, and no place from which that could be found",
			q->b.info.name);
	if (!qcow2_layer_is_file(q->h.backing))
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: its backing disk %.100s is no file, which is not supported here",
			q->b.info.name, q->h.backing);
	if (!q->h.backing_format[0])
		return pgr_fail(
			err, -EINVAL,
			"%s: does not say which format its backing file %.200s has, and to guess is dangerous; say it with: qemu-img rebase -u -b FILE -F raw|qcow2 IMAGE",
			q->b.info.name, q->h.backing);
	name = qcow2_layer_path(path, q->h.backing);
	if (!name)
		return pgr_fail(err, -ENOMEM, "%s: no memory for the name of its backing file",
				q->b.info.name);
	below.read_only = true;
	below.grows = below.settled = false;
	chain->tables = q->tables;
	ret = open_any(q->b.loop, name, q->h.backing_format, &below, chain, &q->backing, err);
	free(name);
	return ret;
}

static void describe(struct block_qcow2 *q)
{
	struct block_info *info = &q->b.info;

	info->size = q->h.size;
	info->granularity = q->h.cluster_size;
	info->can_discard = true;
	info->can_snapshot = q->path && !info->read_only;
	if (q->h.incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
		snprintf(
			info->note, sizeof(info->note),
			"marked as damaged by the program that wrote it; qemu-img check -r all may repair it");
	else if (q->backing && block_info(q->backing)->note[0])
		snprintf(info->note, sizeof(info->note), "%s", block_info(q->backing)->note);
	else
		snprintf(info->note, sizeof(info->note), "%s", block_info(q->file)->note);
}

/* Takes file and backing over, also on failure. path NULL: the image has no place, and what it stands on is given or nothing. */
static int open_image(struct block *file, const char *path, struct block *backing,
		      const struct block_options *o, struct chain *chain, struct block **out,
		      struct pgr_error *err)
{
	struct block_qcow2 *q = calloc(1, sizeof(*q));
	const bool writable = !o->read_only;
	int ret;

	if (!q) {
		block_close(file, NULL);
		block_close(backing, NULL);
		return pgr_fail(err, -ENOMEM, "no memory to open an image");
	}
	block_init(&q->b, file->loop, &image_ops, o);
	q->file = file;
	q->backing = backing;
	q->settled = o->settled;
	q->b.info.driver = "qcow2";
	memcpy(q->b.info.name, file->info.name, sizeof(q->b.info.name));
	if (q->b.info.block_size < file->info.block_size)
		q->b.info.block_size = file->info.block_size;
	ret = qcow2_header_load(file, &q->h, err);
	if (!ret)
		ret = load_tables(q, chain && chain->above ? chain->above->tables : NULL, err);
	if (!ret && path) {
		q->path = strdup(path);
		if (!q->path)
			ret = pgr_fail(err, -ENOMEM, "%s: no memory for its name", q->b.info.name);
	}
	if (!ret)
		ret = open_backing(q, path, o, chain, err);
	if (!ret)
		describe(q);
	if (!ret && writable)
		ret = qcow2_writer_open(q, err);
	if (ret) {
		qcow2_image_close(&q->b, NULL);
		free(q);
		return ret;
	}
	*out = &q->b;
	return 0;
}

int block_open_qcow2_over(struct block *file, struct block *backing, const struct block_options *o,
			  struct block **out, struct pgr_error *err)
{
	static const struct block_options defaults = {.read_only = true};

	return open_image(file, NULL, backing, o ? o : &defaults, NULL, out, err);
}

int qcow2_open_layer(struct block *file, struct block_qcow2 *other, struct block **out,
		     struct pgr_error *err)
{
	const struct block_options o = {.block_size = other->b.info.block_size,
					.settled = other->settled};
	struct chain parent = {.tables = other->tables}, me = {.above = &parent, .ends = true};

	/* What it stands on comes later. */
	return open_image(file, NULL, NULL, &o, &me, out, err);
}

static int check_chain(const char *path, const struct chain *above, struct chain *me,
		       struct pgr_error *err)
{
	struct stat st;

	if (stat(path, &st))
		return pgr_fail_errno(err, -errno, "%s: cannot be opened", path);
	*me = (struct chain){.above = above,
			     .dev = st.st_dev,
			     .ino = st.st_ino,
			     .depth = above ? above->depth + 1 : 1};
	if (me->depth > QCOW2_CHAIN_MAX)
		return pgr_fail(err, -ELOOP, "%s: a chain of more than %u images", path,
				QCOW2_CHAIN_MAX);
	for (const struct chain *c = above; c; c = c->above)
		if (c->dev == me->dev && c->ino == me->ino)
			return pgr_fail(err, -ELOOP,
					"%s: the chain of backing files comes back to this file",
					path);
	return 0;
}

static int open_any(struct loop *l, const char *path, const char *format,
		    const struct block_options *o, const struct chain *above, struct block **out,
		    struct pgr_error *err)
{
	struct block_options below = *o;
	struct chain me = {.above = NULL};
	struct block *file;
	int ret = check_chain(path, above, &me, err);

	if (ret)
		return ret;
	if (!strcmp(format, "raw") || !strcmp(format, "file") || !strcmp(format, "host_device"))
		return block_open_file(l, path, o, out, err);
	if (strcmp(format, "qcow2") != 0)
		return pgr_fail(err, -EOPNOTSUPP,
				"%s: the format %.20s is not supported; raw and qcow2 are", path,
				format);
	below.grows = true;
	ret = block_open_file(l, path, &below, &file, err);
	return ret ? ret : open_image(file, path, NULL, o, &me, out, err);
}

int block_open_qcow2(struct loop *l, const char *path, const struct block_options *o,
		     struct block **out, struct pgr_error *err)
{
	static const struct block_options defaults = {.read_only = true};

	if (!o)
		o = &defaults;
	return open_any(l, path, "qcow2", o, NULL, out, err);
}

int block_open_qcow2_alone(struct loop *l, const char *path, const struct block_options *o,
			   struct block **out, struct pgr_error *err)
{
	struct block_options file_options = *o;
	struct chain me = {.ends = true};
	struct block *file;
	int ret;

	file_options.grows = true;
	ret = block_open_file(l, path, &file_options, &file, err);
	return ret ? ret : open_image(file, path, NULL, o, &me, out, err);
}
