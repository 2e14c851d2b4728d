// SPDX-License-Identifier: MIT
/*
 * A qcow2 image as a disk: what there is, and reading it.
 *
 * The first table is in memory, slices of the second tables are cached. A read is cut into runs: as many clusters as have the same kind and, for
 * data, follow each other in the file; each run is one read of the file, of the backing disk, or a fill with zeros. Packed clusters are unpacked
 * one at a time; the last one is kept, since small reads come one after the other.
 *
 * Nothing in the image is trusted. An entry that is out of range fails the request that needs it with -EIO and a sentence, and no other.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

int qcow2_fail_entry(struct block_qcow2 *q, uint64_t offset, const char *why, struct pgr_error *err)
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
	if (next->kind != first->kind || next->sole != first->sole || first->kind == QCOW2_PACKED)
		return false;
	return first->kind != QCOW2_DATA || next->at == first->at + (clusters << h->cluster_bits);
}

int qcow2_slice_of(struct block_qcow2 *q, uint64_t offset, uint64_t *slice, uint64_t *index,
		   struct pgr_error *err)
{
	uint64_t cluster = offset >> q->h.cluster_bits, entries = qcow2_l2_entries(&q->h);
	uint64_t in_table = cluster % entries, table;
	const char *why;

	if (qcow2_l1_entry(&q->h, be64toh(q->l1[cluster / entries]), block_info(q->file)->size,
			   &table, &why))
		return qcow2_fail_entry(q, offset, why, err);
	*index = in_table % q->slice_entries;
	*slice = table ? table + (in_table - *index) * 8 : 0;
	return 0;
}

int qcow2_find_run(struct block_qcow2 *q, uint64_t offset, uint64_t length, struct qcow2_run *out,
		   struct pgr_error *err)
{
	const struct qcow2_header *h = &q->h;
	uint64_t file_size = block_info(q->file)->size;
	uint64_t in_cluster = offset & (h->cluster_size - 1);
	uint64_t at, index, clusters = 1;
	struct qcow2_mapping next;
	const uint64_t *slice;
	const char *why;
	int ret = qcow2_slice_of(q, offset, &at, &index, err);

	if (ret)
		return ret;
	if (!at) {
		uint64_t left = qcow2_l2_covers(h) - offset % qcow2_l2_covers(h);

		*out = (struct qcow2_run){.first = {.kind = QCOW2_UNALLOCATED},
					  .length = left < length ? left : length};
		return 0;
	}
	ret = qcow2_cache_get(q->tables, at, &slice, err);
	if (ret)
		return ret;
	if (qcow2_entry(h, be64toh(slice[index]), file_size, &out->first, &why))
		return qcow2_fail_entry(q, offset, why, err);
	while (index + clusters < q->slice_entries &&
	       (clusters << h->cluster_bits) - in_cluster < length) {
		/* A bad one is reported when it is its turn. */
		if (qcow2_entry(h, be64toh(slice[index + clusters]), file_size, &next, &why) ||
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
	/* In whole units of the file, so that no bounce buffer is needed by who may hold one. */
	const uint64_t unit = q->file->align, from = m->at & ~(unit - 1);
	const size_t most = 2u * q->h.cluster_size + 2 * 4096;
	const size_t length = (size_t)((m->at + m->bytes - from + unit - 1) & ~(unit - 1));
	int ret;

	if (q->unpacked_valid && q->unpacked_at == m->at)
		return 0;
	if (!q->unpacked)
		q->unpacked = malloc(q->h.cluster_size);
	if (!q->packed)
		q->packed = block_memory(most);
	if (!q->unpacked || !q->packed || length > most)
		return pgr_fail(
			err, -ENOMEM,
			"%s: no memory for a packed cluster; the request may be tried again",
			q->b.info.name);
	q->unpacked_valid = false;
	/* What is behind the end of the file reads as zeros: the last sector need not be there. */
	ret = block_read(q->file, from, q->packed, length, err);
	if (ret)
		return ret;
	ret = qcow2_unpack(&q->h, q->packed + (m->at - from), m->bytes, q->unpacked);
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

static int read_run(struct block_qcow2 *q, const struct qcow2_run *run, uint64_t offset,
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

int qcow2_read_held(struct block_qcow2 *q, uint64_t offset, uint64_t length, struct block_data to,
		    struct pgr_error *err)
{
	int ret = 0;

	while (length && !ret) {
		struct qcow2_run run;

		ret = qcow2_find_run(q, offset, length, &run, err);
		if (ret)
			break;
		ret = read_run(q, &run, offset, to, err);
		to = block_data_skip(to, run.length);
		offset += run.length;
		length -= run.length;
	}
	return ret;
}

int qcow2_image_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		     struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	struct range_lock k;
	int ret;

	if (!q->w)
		return qcow2_read_held(q, offset, length, to, err);
	range_lock(&q->w->ranges, &k, b->loop, offset, offset + length, false);
	ret = qcow2_read_held(q, offset, length, to, err);
	range_unlock(&q->w->ranges, &k);
	return ret;
}

int qcow2_zeros_below(struct block_qcow2 *q, uint64_t offset, uint64_t length,
		      struct pgr_error *err)
{
	uint64_t end = q->backing ? block_info(q->backing)->size : 0;

	if (end > offset + length)
		end = offset + length;
	while (offset < end) {
		struct block_extent e;
		int ret = block_status(q->backing, offset, end - offset, &e, err);

		if (ret)
			return ret;
		if (!(e.flags & BLOCK_EXTENT_ZERO))
			return 0;
		offset += e.length;
	}
	return 1;
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

int qcow2_image_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		       struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	struct qcow2_run run;
	int ret = qcow2_find_run(q, offset, length, &run, err);

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
