// SPDX-License-Identifier: MIT
/*
 * A qcow2 image as a disk, for reading.
 *
 * The first table is in memory, slices of the second tables are cached. A read is cut into runs: as many clusters as have the same kind and, for
 * data, follow each other in the file; each run is one read of the file, of the backing disk, or a fill with zeros. Packed clusters are unpacked
 * one at a time; the last one is kept, since small reads come one after the other.
 *
 * Nothing in the image is trusted. An entry that is out of range fails the request that needs it with -EIO and a sentence, and no other. A chain of
 * backing files has at most CHAIN_MAX images and none twice.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "storage/block_driver.h"
#include "storage/block_qcow2.h"
#include "storage/qcow2.h"
#include "storage/qcow2_cache.h"

#define CHAIN_MAX 64u /* of what a fiber's stack holds, with room to spare */

struct block_qcow2 {
	struct block b;
	struct block *file;
	struct block *backing; /* NULL: zeros */
	struct qcow2_header h;
	uint64_t *l1; /* as in the file */
	struct qcow2_cache *cache;
	uint32_t slice_entries;
	/* The packed cluster that was unpacked last. */
	struct fiber_lock unpack_lock;
	uint64_t unpacked_at;
	bool unpacked_valid;
	uint8_t *unpacked, *packed;
};

/* Clusters in a row that are alike. */
struct run {
	struct qcow2_mapping first;
	uint64_t length; /* bytes, from the offset that was asked for */
};

static struct block_qcow2 *to_qcow2(struct block *b)
{
	return (struct block_qcow2 *)b;
}

static int fail_table(struct block_qcow2 *q, uint64_t offset, const char *why,
		      struct pgr_error *err)
{
	return pgr_fail(
		err, -EIO,
		"%s: damaged: the entry for offset %llu has %s; qemu-img check says what is left of it",
		q->b.info.name, (unsigned long long)offset, why);
}

/* ---- where a part of the disk is ---- */

static bool goes_on(const struct qcow2_header *h, const struct qcow2_mapping *first,
		    const struct qcow2_mapping *next, uint64_t clusters)
{
	if (next->kind != first->kind || first->kind == QCOW2_PACKED)
		return false;
	return first->kind != QCOW2_DATA || next->at == first->at + (clusters << h->cluster_bits);
}

/* The run that begins at offset, at most length bytes; it ends where a slice of a table ends, too. */
static int find_run(struct block_qcow2 *q, uint64_t offset, uint64_t length, struct run *out,
		    struct pgr_error *err)
{
	const struct qcow2_header *h = &q->h;
	uint64_t file_size = block_info(q->file)->size;
	uint64_t cluster = offset >> h->cluster_bits, in_cluster = offset & (h->cluster_size - 1);
	uint64_t index = cluster % qcow2_l2_entries(h), in_slice = index % q->slice_entries;
	uint64_t table, clusters = 1;
	struct qcow2_mapping next;
	const uint64_t *slice;
	const char *why;
	int ret;

	if (qcow2_l1_entry(h, be64toh(q->l1[cluster / qcow2_l2_entries(h)]), file_size, &table,
			   &why))
		return fail_table(q, offset, why, err);
	if (!table) {
		uint64_t left = qcow2_l2_covers(h) - offset % qcow2_l2_covers(h);

		*out = (struct run){.first = {.kind = QCOW2_UNALLOCATED},
				    .length = left < length ? left : length};
		return 0;
	}
	ret = qcow2_cache_get(q->cache, table + (index - in_slice) * 8, &slice, err);
	if (ret)
		return ret;
	if (qcow2_entry(h, be64toh(slice[in_slice]), file_size, &out->first, &why))
		return fail_table(q, offset, why, err);
	while (in_slice + clusters < q->slice_entries &&
	       (clusters << h->cluster_bits) - in_cluster < length) {
		/* A bad one is reported when it is its turn. */
		if (qcow2_entry(h, be64toh(slice[in_slice + clusters]), file_size, &next, &why) ||
		    !goes_on(h, &out->first, &next, clusters))
			break;
		clusters++;
	}
	out->length = (clusters << h->cluster_bits) - in_cluster;
	if (out->length > length)
		out->length = length;
	return 0;
}

/* ---- reading ---- */

static int read_backing(struct block_qcow2 *q, uint64_t offset, uint64_t length,
			struct block_data to, struct pgr_error *err)
{
	uint64_t size = q->backing ? block_info(q->backing)->size : 0;
	uint64_t there = offset < size ? size - offset : 0;
	int ret = 0;

	if (there > length)
		there = length;
	if (there)
		ret = block_read_data(q->backing, offset, there, to, err);
	if (!ret)
		block_data_zero(block_data_skip(to, there), length - there);
	return ret;
}

/* Make q->unpacked the cluster that is packed at m. */
static int unpack(struct block_qcow2 *q, const struct qcow2_mapping *m, struct pgr_error *err)
{
	const size_t most = 2u * q->h.cluster_size + BLOCK_SECTOR;
	int ret;

	if (q->unpacked_valid && q->unpacked_at == m->at)
		return 0;
	if (!q->unpacked)
		q->unpacked = malloc(q->h.cluster_size);
	if (!q->packed)
		q->packed = malloc(most);
	if (!q->unpacked || !q->packed || m->bytes > most)
		return pgr_fail(
			err, -ENOMEM,
			"%s: no memory for a packed cluster; the request may be tried again",
			q->b.info.name);
	q->unpacked_valid = false;
	/* What is behind the end of the file reads as zeros: the last sector need not be there. */
	ret = block_read(q->file, m->at, q->packed, m->bytes, err);
	if (ret)
		return ret;
	ret = qcow2_unpack(&q->h, q->packed, m->bytes, q->unpacked);
	if (ret == -ENOMEM)
		return pgr_fail(err, ret,
				"%s: no memory to unpack a cluster; the request may be tried again",
				q->b.info.name);
	if (ret)
		return pgr_fail(
			err, ret,
			"%s: damaged: the packed cluster at %llu of the file does not unpack",
			q->b.info.name, (unsigned long long)m->at);
	q->unpacked_at = m->at;
	q->unpacked_valid = true;
	return 0;
}

static int read_packed(struct block_qcow2 *q, const struct qcow2_mapping *m, uint64_t in_cluster,
		       uint64_t length, struct block_data to, struct pgr_error *err)
{
	int ret;

	fiber_lock(&q->unpack_lock, q->b.loop);
	ret = unpack(q, m, err);
	if (!ret)
		block_data_copy_in(to, q->unpacked + in_cluster, length);
	fiber_unlock(&q->unpack_lock);
	return ret;
}

static int read_run(struct block_qcow2 *q, const struct run *run, uint64_t offset,
		    struct block_data to, struct pgr_error *err)
{
	uint64_t in_cluster = offset & (q->h.cluster_size - 1);

	switch (run->first.kind) {
	case QCOW2_UNALLOCATED:
		return read_backing(q, offset, run->length, to, err);
	case QCOW2_ZEROS:
		block_data_zero(to, run->length);
		return 0;
	case QCOW2_DATA:
		return block_read_data(q->file, run->first.at + in_cluster, run->length, to, err);
	case QCOW2_PACKED:
		return read_packed(q, &run->first, in_cluster, run->length, to, err);
	}
	return -EINVAL;
}

static int image_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		      struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	int ret = 0;

	while (length && !ret) {
		struct run run;

		ret = find_run(q, offset, length, &run, err);
		if (ret)
			break;
		ret = read_run(q, &run, offset, to, err);
		to = block_data_skip(to, run.length);
		offset += run.length;
		length -= run.length;
	}
	return ret;
}

static int status_below(struct block_qcow2 *q, uint64_t offset, struct block_extent *out,
			struct pgr_error *err)
{
	uint64_t size = q->backing ? block_info(q->backing)->size : 0;
	int ret;

	if (offset >= size) {
		out->flags = BLOCK_EXTENT_ZERO;
		return 0;
	}
	if (out->length > size - offset)
		out->length = size - offset;
	ret = block_status(q->backing, offset, out->length, out, err);
	out->flags &= ~(BLOCK_EXTENT_HERE | BLOCK_EXTENT_AT);
	return ret;
}

static int image_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
			struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	struct run run;
	int ret = find_run(q, offset, length, &run, err);

	if (ret)
		return ret;
	*out = (struct block_extent){.length = run.length, .flags = BLOCK_EXTENT_HERE};
	switch (run.first.kind) {
	case QCOW2_UNALLOCATED:
		return status_below(q, offset, out, err);
	case QCOW2_ZEROS:
		out->flags |= BLOCK_EXTENT_ZERO;
		break;
	case QCOW2_DATA:
		out->flags |= BLOCK_EXTENT_DATA | BLOCK_EXTENT_AT;
		out->at = run.first.at + (offset & (q->h.cluster_size - 1));
		break;
	case QCOW2_PACKED:
		out->flags |= BLOCK_EXTENT_DATA | BLOCK_EXTENT_COMPRESSED;
		break;
	}
	return 0;
}

static int image_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		       uint32_t flags, struct pgr_error *err)
{
	(void)offset;
	(void)length;
	(void)from;
	(void)flags;
	return pgr_fail(err, -EROFS, "%s: qcow2 images can be read only", b->info.name);
}

static int image_flush(struct block *b, struct pgr_error *err)
{
	(void)b;
	(void)err;
	return 0;
}

static int image_close(struct block *b, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	int ret, ret2;

	qcow2_cache_free(q->cache);
	free(q->l1);
	free(q->unpacked);
	free(q->packed);
	ret = block_close(q->backing, err);
	ret2 = block_close(q->file, ret ? NULL : err);
	return ret ? ret : ret2;
}

static const struct block_ops image_ops = {
	.read = image_read,
	.write = image_write,
	.flush = image_flush,
	.status = image_status,
	.close = image_close,
};

/* ---- opening ---- */

/* The images that are being opened, from the one that was asked for down. */
struct chain {
	const struct chain *above;
	dev_t dev;
	ino_t ino;
	unsigned depth;
};

static int open_any(struct loop *l, const char *path, const char *format,
		    const struct block_options *o, const struct chain *above, struct block **out,
		    struct pgr_error *err);

static int load_header(struct block_qcow2 *q, struct pgr_error *err)
{
	uint64_t file_size = block_info(q->file)->size;
	size_t length = file_size < QCOW2_HEADER_READ ? (size_t)file_size : QCOW2_HEADER_READ;
	uint8_t *bytes = malloc(length + 1);
	int ret;

	if (!bytes)
		return pgr_fail(err, -ENOMEM, "%s: no memory to read its header", q->b.info.name);
	ret = block_read(q->file, 0, bytes, length, err);
	if (!ret)
		ret = qcow2_header_parse(bytes, length, file_size, q->b.info.name, &q->h, err);
	free(bytes);
	return ret;
}

static int load_tables(struct block_qcow2 *q, struct pgr_error *err)
{
	size_t bytes = q->h.l1_entries * sizeof(uint64_t);
	uint32_t slice = q->h.cluster_size < CACHE_SLICE ? q->h.cluster_size : CACHE_SLICE;

	q->slice_entries = slice / 8;
	q->cache = qcow2_cache_new(q->file, q->b.loop, slice);
	q->l1 = malloc(bytes + 1);
	if (!q->cache || !q->l1)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its tables", q->b.info.name);
	return bytes ? block_read(q->file, q->h.l1_offset, q->l1, bytes, err) : 0;
}

/* The path of the backing file, malloc'd: its name is seen from the image's folder. */
static char *backing_path(const struct block_qcow2 *q, const char *path)
{
	const char *name = q->h.backing, *slash = strrchr(path, '/');
	char *out;

	if (!strncmp(name, "file:", 5))
		name += 5;
	if (name[0] == '/' || !slash)
		return strdup(name);
	return asprintf(&out, "%.*s/%s", (int)(slash - path), path, name) < 0 ? NULL : out;
}

static bool is_file_name(const char *name)
{
	size_t scheme = strcspn(name, ":/");

	return name[scheme] != ':' || !strncmp(name, "file:", 5);
}

static int open_backing(struct block_qcow2 *q, const char *path, const struct block_options *o,
			const struct chain *chain, struct pgr_error *err)
{
	struct block_options below = *o;
	char *name;
	int ret;

	if (!q->h.backing[0])
		return 0;
	if (!path)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: it has a backing file, and no place from which that could be found",
			q->b.info.name);
	if (!is_file_name(q->h.backing))
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: its backing disk %.100s is no file, which is not supported here",
			q->b.info.name, q->h.backing);
	if (!q->h.backing_format[0])
		return pgr_fail(
			err, -EINVAL,
			"%s: does not say which format its backing file %.200s has, and to guess is dangerous; say it with: qemu-img rebase -u -b FILE -F raw|qcow2 IMAGE",
			q->b.info.name, q->h.backing);
	name = backing_path(q, path);
	if (!name)
		return pgr_fail(err, -ENOMEM, "%s: no memory for the name of its backing file",
				q->b.info.name);
	below.read_only = true;
	below.grows = false;
	ret = open_any(q->b.loop, name, q->h.backing_format, &below, chain, &q->backing, err);
	free(name);
	return ret;
}

static void describe(struct block_qcow2 *q)
{
	struct block_info *info = &q->b.info;

	info->size = q->h.size;
	info->granularity = q->h.cluster_size;
	if (q->h.incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
		snprintf(
			info->note, sizeof(info->note),
			"marked as damaged by the program that wrote it; qemu-img check -r all may repair it");
	else if (q->backing && block_info(q->backing)->note[0])
		snprintf(info->note, sizeof(info->note), "%s", block_info(q->backing)->note);
	else
		snprintf(info->note, sizeof(info->note), "%s", block_info(q->file)->note);
}

/* Takes the file over, also on failure. path NULL: the image has no place, and its backing file none relative to it. */
static int open_image(struct block *file, const char *path, const struct block_options *o,
		      const struct chain *chain, struct block **out, struct pgr_error *err)
{
	struct block_qcow2 *q = calloc(1, sizeof(*q));
	int ret;

	if (!q) {
		block_close(file, NULL);
		return pgr_fail(err, -ENOMEM, "no memory to open an image");
	}
	block_init(&q->b, file->loop, &image_ops, o);
	q->file = file;
	q->b.info.driver = "qcow2";
	memcpy(q->b.info.name, file->info.name, sizeof(q->b.info.name));
	if (q->b.info.block_size < file->info.block_size)
		q->b.info.block_size = file->info.block_size;
	ret = load_header(q, err);
	if (!ret)
		ret = load_tables(q, err);
	if (!ret)
		ret = open_backing(q, path, o, chain, err);
	if (ret) {
		image_close(&q->b, NULL);
		free(q);
		return ret;
	}
	describe(q);
	*out = &q->b;
	return 0;
}

int block_open_qcow2_over(struct block *file, struct block **out, struct pgr_error *err)
{
	static const struct block_options o = {.read_only = true};

	return open_image(file, NULL, &o, NULL, out, err);
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
	if (me->depth > CHAIN_MAX)
		return pgr_fail(err, -ELOOP, "%s: a chain of more than %u images", path, CHAIN_MAX);
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
	struct chain me;
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
	return ret ? ret : open_image(file, path, o, &me, out, err);
}

int block_open_qcow2(struct loop *l, const char *path, const struct block_options *o,
		     struct block **out, struct pgr_error *err)
{
	static const struct block_options defaults = {.read_only = true};

	if (!o)
		o = &defaults;
	if (!o->read_only)
		return pgr_fail(err, -EOPNOTSUPP, "%s: qcow2 images can be read only so far", path);
	return open_any(l, path, "qcow2", o, NULL, out, err);
}
