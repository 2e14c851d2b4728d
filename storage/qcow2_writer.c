// SPDX-License-Identifier: MIT
/* What makes an open image one that can be written: its header, its table of reference counts, and where its tables are. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"
#include "storage/qcow2_snapshots.h"

/* ---- the header ---- */

void qcow2_header_put32(struct block_qcow2 *q, size_t field, uint32_t value)
{
	value = htobe32(value);
	memcpy(q->w->first + field, &value, sizeof(value));
}

void qcow2_header_put64(struct block_qcow2 *q, size_t field, uint64_t value)
{
	value = htobe64(value);
	memcpy(q->w->first + field, &value, sizeof(value));
}

int qcow2_header_write(struct block_qcow2 *q, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	int ret = block_write(q->file, 0, w->first, w->first_bytes, 0, err);

	w->first_stale = ret;
	return ret;
}

int qcow2_check_whole(struct block_qcow2 *q, struct pgr_error *err)
{
	if (!q->w->broken)
		return 0;
	return pgr_fail(
		err, -EIO,
		"%s: damaged, so nothing is written to it any more; see what pagurus disk check says, and copy what can be read: pagurus disk convert",
		q->b.info.name);
}

int qcow2_corrupt(struct block_qcow2 *q, uint64_t at, const char *what, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;

	if (!w->broken) {
		w->broken = true;
		q->h.incompatible |= QCOW2_INCOMPATIBLE_CORRUPT;
		if (q->h.version >= 3) {
			qcow2_header_put64(q, offsetof(struct qcow2_disk_header, incompatible),
					   q->h.incompatible);
			if (!qcow2_header_write(q, NULL))
				block_flush(q->file, NULL);
		}
	}
	return pgr_fail(
		err, -EIO,
		"%s: damaged: at %llu of the file it has %s, so nothing is written to it any more; see what pagurus disk check says",
		q->b.info.name, (unsigned long long)(at << q->h.cluster_bits), what);
}

/* ---- where its tables are ---- */

static int fail_overlap(struct block_qcow2 *q, uint64_t cluster, struct pgr_error *err)
{
	return pgr_fail(
		err, -EIO,
		"%s: damaged: two of its tables are at %llu of the file, so it is not opened for writing; see what pagurus disk check says",
		q->b.info.name, (unsigned long long)(cluster << q->h.cluster_bits));
}

static int guard(struct block_qcow2 *q, uint64_t offset, uint64_t bytes, struct pgr_error *err)
{
	uint64_t end = cluster_up(q, offset + bytes);

	for (; offset < end; offset += q->h.cluster_size) {
		int ret = qcow2_guard_add(&q->w->guard, offset >> q->h.cluster_bits);

		if (ret == -ENOMEM)
			return pgr_fail(err, ret, "%s: no memory to remember where its tables are",
					q->b.info.name);
		if (ret)
			return fail_overlap(q, offset >> q->h.cluster_bits, err);
	}
	return 0;
}

/* The second tables that a first one names. shared: those of snapshots, which are named more than once. */
static int guard_l2(struct block_qcow2 *q, const uint64_t *l1, uint32_t entries, bool shared,
		    struct pgr_error *err)
{
	for (uint32_t i = 0; i < entries; i++) {
		uint64_t at;
		const char *why;
		int ret;

		if (qcow2_l1_entry(&q->h, be64toh(l1[i]), block_info(q->file)->size, &at, &why)) {
			if (shared)
				continue;
			return pgr_fail(
				err, -EIO,
				"%s: damaged: its first table has %s, so it is not opened for writing; see what pagurus disk check says",
				q->b.info.name, why);
		}
		if (!at || (shared && qcow2_guard_has(&q->w->guard, at >> q->h.cluster_bits)))
			continue;
		ret = guard(q, at, 1, err);
		if (ret)
			return ret;
	}
	return 0;
}

static int guard_snapshot(struct block_qcow2 *q, const struct qcow2_snapshot *s,
			  struct pgr_error *err)
{
	uint64_t *l1;
	int ret = qcow2_l1_load(q->file, s->l1_offset, s->l1_entries, &l1, err);

	if (!ret)
		ret = guard_l2(q, l1, s->l1_entries, true, err);
	free(l1);
	return ret;
}

static int guard_snapshots(struct block_qcow2 *q, struct pgr_error *err)
{
	struct qcow2_snapshot *list;
	uint64_t bytes;
	int ret = qcow2_snapshots_load(q->file, &q->h, &list, &bytes, err);

	if (ret)
		return ret;
	if (bytes)
		ret = guard(q, q->h.snapshots_offset, bytes, err);
	for (uint32_t i = 0; i < q->h.nr_snapshots && !ret; i++)
		if (list[i].l1_entries)
			ret = guard(q, list[i].l1_offset, list[i].l1_entries * 8ull, err);
	if (!ret)
		ret = guard_l2(q, q->l1, q->h.l1_entries, false, err);
	for (uint32_t i = 0; i < q->h.nr_snapshots && !ret; i++)
		ret = guard_snapshot(q, &list[i], err);
	free(list);
	return ret;
}

static int guard_counts(struct block_qcow2 *q, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	uint64_t size = block_info(q->file)->size;
	int ret = guard(q, q->h.refcount_offset, w->reftable_entries * 8, err);

	for (uint64_t i = 0; i < w->reftable_entries && !ret; i++) {
		uint64_t at = be64toh(w->reftable[i]);

		if (!at)
			continue;
		if (at & (q->h.cluster_size - 1) || at >= size)
			return pgr_fail(
				err, -EIO,
				"%s: damaged: a block of reference counts is at %llu, which is no cluster of the file; see what pagurus disk check says",
				q->b.info.name, (unsigned long long)at);
		ret = guard(q, at, 1, err);
	}
	return ret;
}

static int guard_all(struct block_qcow2 *q, struct pgr_error *err)
{
	int ret = guard(q, 0, 1, err);

	if (!ret && q->h.l1_entries)
		ret = guard(q, q->h.l1_offset, q->h.l1_entries * 8ull, err);
	if (!ret)
		ret = guard_counts(q, err);
	return ret ? ret : guard_snapshots(q, err);
}

/* ---- opening ---- */

static int check_header(const struct block_qcow2 *q, struct pgr_error *err)
{
	const struct qcow2_header *h = &q->h;

	if (h->incompatible & QCOW2_INCOMPATIBLE_CORRUPT)
		return pgr_fail(
			err, -EIO,
			"%s: marked as damaged, so it is opened for reading only; repair it with qemu-img check -r all, or copy what can be read: pagurus disk convert",
			q->b.info.name);
	if (h->incompatible & QCOW2_INCOMPATIBLE_DIRTY)
		return pgr_fail(
			err, -EIO,
			"%s: the program that wrote it ended before its reference counts were written (lazy refcounts); write them first: pagurus disk check --repair",
			q->b.info.name);
	if (!h->refcount_clusters ||
	    (uint64_t)h->refcount_clusters << h->cluster_bits > QCOW2_REFTABLE_MAX)
		return pgr_fail(
			err, -EINVAL,
			"%s: its table of reference counts has %u clusters, which cannot be",
			q->b.info.name, h->refcount_clusters);
	return 0;
}

static int load_counts(struct block_qcow2 *q, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	size_t bytes = (size_t)q->h.refcount_clusters << q->h.cluster_bits;

	w->reftable = block_memory(bytes);
	w->counts = qcow2_cache_new(q->tables, q->file, q->b.loop, q->slice_entries * 8);
	if (!w->reftable || !w->counts)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its reference counts",
				q->b.info.name);
	w->reftable_entries = bytes / 8;
	return block_read(q->file, q->h.refcount_offset, w->reftable, bytes, err);
}

/* What is said there of features that are not kept up here is not true any more once this one has written. */
static int clear_features(struct block_qcow2 *q, uint64_t kept, struct pgr_error *err)
{
	int ret;

	if (!(q->h.autoclear & ~kept))
		return 0;
	qcow2_header_put64(q, offsetof(struct qcow2_disk_header, autoclear), q->h.autoclear & kept);
	ret = qcow2_header_write(q, err);
	if (!ret)
		ret = block_flush(q->file, err);
	if (!ret)
		snprintf(
			q->b.info.note, sizeof(q->b.info.note),
			"what other programs kept in it beside the disk (dirty bitmaps of a kind that is not known here) is void from now on");
	q->h.autoclear &= kept;
	return ret;
}

static int open_bitmaps(struct block_qcow2 *q, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	uint64_t kept = 0;
	int ret = 0;

	if (q->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS && q->h.nr_bitmaps) {
		ret = qcow2_bitmaps_open(q, &why);
		kept = ret ? 0 : QCOW2_AUTOCLEAR_BITMAPS;
	}
	if (ret && ret != -EINVAL) {
		if (err)
			*err = why;
		return ret;
	}
	if (!kept)
		q->h.nr_bitmaps = 0;
	return clear_features(q, kept, err);
}

int qcow2_writer_open(struct block_qcow2 *q, struct pgr_error *err)
{
	struct qcow2_writer *w;
	int ret = check_header(q, err);

	if (ret)
		return ret;
	w = q->w = calloc(1, sizeof(*w));
	if (!w)
		return pgr_fail(err, -ENOMEM, "%s: no memory to open it for writing",
				q->b.info.name);
	q->b.align = q->file->align;
	q->b.memory_align = q->file->memory_align;
	w->first_bytes = qcow2_unit(q);
	w->hole = cluster_up(q, block_info(q->file)->size) >> q->h.cluster_bits;
	w->first = block_memory(4096);
	if (!w->first)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its header", q->b.info.name);
	ret = block_read(q->file, 0, w->first, w->first_bytes, err);
	if (!ret)
		ret = load_counts(q, err);
	if (!ret)
		ret = guard_all(q, err);
	return ret ? ret : open_bitmaps(q, err);
}

void qcow2_writer_free(struct block_qcow2 *q)
{
	struct qcow2_writer *w = q->w;

	qcow2_bitmaps_free(q);
	if (!w)
		return;
	qcow2_cache_free(w->counts);
	qcow2_guard_free(&w->guard);
	free(w->releases.list);
	free(w->reftable);
	free(w->first);
	free(w);
	q->w = NULL;
}
