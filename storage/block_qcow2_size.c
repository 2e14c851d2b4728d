// SPDX-License-Identifier: MIT
/*
 * Another size. Alone on the disk: nothing else is under way.
 *
 * What is beyond the end of a disk may hold anything (the rest of a cluster, a longer backing file, what a shrink has left when it was cut), so
 * a disk that grows first gets zeros there, durably, and then its size.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

static int set_size(struct block_qcow2 *q, uint64_t size, struct pgr_error *err)
{
	const size_t field = offsetof(struct qcow2_disk_header, size);
	int ret;

	qcow2_header_put64(q, field, size);
	ret = qcow2_header_write(q, err);
	if (!ret)
		ret = block_flush(q->file, err);
	if (!ret) {
		q->h.size = size;
		return 0;
	}
	/* It may be there nevertheless: the next commit begins by undoing it. */
	qcow2_header_put64(q, field, q->h.size);
	q->w->first_stale = true;
	return ret;
}

/* ---- a larger first table ---- */

static void put_l1(struct block_qcow2 *q, uint64_t offset, uint32_t entries)
{
	qcow2_header_put64(q, offsetof(struct qcow2_disk_header, l1_offset), offset);
	qcow2_header_put32(q, offsetof(struct qcow2_disk_header, l1_entries), entries);
}

/* The table, whole clusters of it, is written to `cluster`, and is the image's when this succeeds. */
static int move_l1(struct block_qcow2 *q, uint64_t cluster, uint64_t *l1, uint32_t entries,
		   struct pgr_error *err)
{
	uint64_t at = cluster << q->h.cluster_bits;
	int ret = block_write(q->file, at, l1, cluster_up(q, entries * 8ull), 0, err);

	/* The counts of its clusters, too. */
	if (!ret)
		ret = qcow2_image_flush(&q->b, err);
	if (ret)
		return ret;
	put_l1(q, at, entries);
	ret = qcow2_header_write(q, err);
	if (!ret)
		ret = block_flush(q->file, err);
	if (ret) {
		put_l1(q, q->h.l1_offset, q->h.l1_entries);
		q->w->first_stale = true;
	}
	return ret;
}

static int grow_l1(struct block_qcow2 *q, uint32_t entries, struct pgr_error *err)
{
	uint64_t bytes = cluster_up(q, entries * 8ull), nr = bytes >> q->h.cluster_bits;
	uint64_t old = q->h.l1_offset >> q->h.cluster_bits;
	uint64_t old_nr = cluster_up(q, q->h.l1_entries * 8ull) >> q->h.cluster_bits;
	uint64_t *l1 = block_memory(bytes), cluster;
	int ret;

	if (!l1)
		return pgr_fail(err, -ENOMEM, "%s: no memory for a larger first table",
				q->b.info.name);
	ret = qcow2_image_flush(&q->b, err);
	if (!ret)
		ret = qcow2_take_all(q, nr, &cluster, err);
	if (ret)
		goto out;
	memset(l1, 0, bytes);
	memcpy(l1, q->l1, q->h.l1_entries * 8ull);
	ret = qcow2_guard_new(q, cluster, nr, err);
	if (!ret) {
		ret = move_l1(q, cluster, l1, entries, err);
		if (ret)
			qcow2_unguard(q, cluster, nr);
	}
	if (ret) {
		/* The header that failed may be there nevertheless: then the table has to be, too. */
		if (!q->w->first_stale)
			qcow2_give_back(q, cluster, nr, false);
		goto out;
	}
	free(q->l1);
	q->l1 = l1;
	l1 = NULL;
	q->h.l1_offset = cluster << q->h.cluster_bits;
	q->h.l1_entries = entries;
	qcow2_unguard(q, old, old_nr);
	if (old_nr && !qcow2_release_room(q, 1, NULL))
		qcow2_release(q, old, old_nr, false);
out:
	free(l1);
	return ret;
}

/* ---- growing and shrinking ---- */

static int zero_beyond(struct block_qcow2 *q, uint64_t from, uint64_t to, struct pgr_error *err)
{
	uint64_t whole = cluster_up(q, from),
		 backed = q->backing ? block_info(q->backing)->size : 0;
	int ret = 0;

	if (whole > to)
		whole = to;
	if (from < whole)
		ret = block_aligned_zero(&q->b, from, whole - from, BLOCK_UNMAP, err);
	if (!ret && q->h.version < 3 && backed > whole) {
		if (backed > to)
			backed = to;
		ret = block_aligned_zero(&q->b, whole, backed - whole, BLOCK_UNMAP, err);
		whole = cluster_up(q, backed);
	}
	if (ret || whole >= to)
		return ret;
	return q->h.version < 3 ? qcow2_image_discard(&q->b, whole, to - whole, err)
				: qcow2_image_zero(&q->b, whole, to - whole, BLOCK_UNMAP, err);
}

static int grow(struct block_qcow2 *q, uint64_t size, struct pgr_error *err)
{
	uint64_t covers = qcow2_l2_covers(&q->h), before = q->b.info.size;
	uint64_t entries = size / covers + !!(size % covers);
	int ret = 0;

	if (entries > QCOW2_L1_BYTES_MAX / 8)
		return pgr_fail(
			err, -EINVAL,
			"%s: with clusters of %u bytes an image has at most %llu bytes; convert it to one with larger clusters",
			q->b.info.name, q->h.cluster_size,
			(unsigned long long)(QCOW2_L1_BYTES_MAX / 8 * covers));
	if (entries > q->h.l1_entries)
		ret = grow_l1(q, (uint32_t)entries, err);
	if (ret)
		return ret;
	q->b.info.size = size;
	ret = zero_beyond(q, before, size, err);
	if (!ret)
		ret = qcow2_image_flush(&q->b, err);
	if (!ret)
		ret = set_size(q, size, err);
	if (ret)
		q->b.info.size = before;
	return ret;
}

static int shrink(struct block_qcow2 *q, uint64_t size, struct pgr_error *err)
{
	uint64_t before = q->b.info.size, from = cluster_up(q, size);
	int ret = qcow2_image_flush(&q->b, err);

	if (!ret)
		ret = set_size(q, size, err);
	if (ret)
		return ret;
	q->b.info.size = size;
	/* It has the size; that this fails costs only room. */
	if (from < before && !qcow2_image_discard(&q->b, from, before - from, NULL))
		qcow2_image_flush(&q->b, NULL);
	return 0;
}

int qcow2_image_resize(struct block *b, uint64_t size, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	int ret = qcow2_check_whole(q, err);

	if (ret || size == b->info.size)
		return ret;
	if (q->h.nr_snapshots)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: has snapshots inside, which have its size; delete them first (qemu-img snapshot -d), or convert it",
			b->info.name);
	return size > b->info.size ? grow(q, size, err) : shrink(q, size, err);
}
