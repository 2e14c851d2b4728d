// SPDX-License-Identifier: MIT
/*
 * Writing into an image.
 *
 * Where a cluster is the image's own and named once, a write goes there, and others may do the same beside it. Else the cluster gets a new place: what
 * the request does not cover is copied from where it was (or is known to be zeros already, in a hole of the file), all of it is written, and then
 * the entry is changed. Who does that holds the clusters exclusively, so no part of a cluster is copied while another is written.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

#define NEW_AT_ONCE BLOCK_PIECE
#define ZEROS_BYTES (64u << 10)

static uint64_t min_of(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Where the slice of a table that has the entry of offset ends, as an offset of the disk. */
static uint64_t slice_end(const struct block_qcow2 *q, uint64_t offset)
{
	uint64_t covers = (uint64_t)q->slice_entries << q->h.cluster_bits;

	return (offset / covers + 1) * covers;
}

/* ---- what an entry names ---- */

/* How many clusters of the file, the first one in *cluster. */
static uint64_t clusters_of(const struct block_qcow2 *q, const struct qcow2_mapping *m,
			    uint64_t *cluster)
{
	*cluster = m->at >> q->h.cluster_bits;
	if (m->kind == QCOW2_PACKED)
		return ((m->at + m->bytes - 1) >> q->h.cluster_bits) - *cluster + 1;
	return m->at ? 1 : 0;
}

/* No data is where a table is. */
static int check_clusters(struct block_qcow2 *q, uint64_t cluster, uint64_t nr,
			  struct pgr_error *err)
{
	for (uint64_t i = 0; i < nr; i++)
		if (qcow2_guard_has(&q->w->guard, cluster + i))
			return qcow2_corrupt(q, cluster + i, "data where it has a table", err);
	return 0;
}

static void release(struct block_qcow2 *q, const struct qcow2_mapping *m, bool discard)
{
	uint64_t cluster, nr = clusters_of(q, m, &cluster);

	if (nr)
		qcow2_release(q, cluster, nr, discard);
}

/* The entries of nr clusters from begin on: their slice, and what they say, checked. Until the next wait nothing changes, and there is room to release them. */
static int look_up(struct block_qcow2 *q, uint64_t begin, uint64_t nr, uint64_t *at,
		   uint64_t *index, struct qcow2_mapping *old, struct pgr_error *err)
{
	const uint64_t *slice;
	const char *why;
	int ret = qcow2_slice_of(q, begin, at, index, err);

	if (ret)
		return ret;
	ret = qcow2_cache_get(q->tables, *at, &slice, err);
	if (ret)
		return ret;
	ret = qcow2_release_room(q, nr, err);
	for (uint64_t i = 0; i < nr && !ret; i++) {
		uint64_t cluster, named;

		if (qcow2_entry(&q->h, be64toh(slice[*index + i]), block_info(q->file)->size,
				&old[i], &why))
			return qcow2_fail_entry(q, begin + (i << q->h.cluster_bits), why, err);
		named = clusters_of(q, &old[i], &cluster);
		ret = check_clusters(q, cluster, named, err);
	}
	return ret;
}

/* ---- tables ---- */

static int fill_table(struct block_qcow2 *q, uint64_t old, uint64_t cluster, struct pgr_error *err)
{
	const size_t size = q->h.cluster_size;
	void *table = block_memory(size);
	int ret = 0;

	if (!table)
		return pgr_fail(err, -ENOMEM,
				"%s: no memory for a table; the request may be tried again",
				q->b.info.name);
	if (old)
		ret = block_read(q->file, old, table, size, err);
	else
		memset(table, 0, size);
	if (!ret)
		ret = block_write(q->file, cluster << q->h.cluster_bits, table, size, 0, err);
	free(table);
	return ret;
}

static int new_table(struct block_qcow2 *q, uint32_t index, struct pgr_error *err)
{
	uint64_t old, cluster, got;
	const char *why;
	bool hole;
	int ret;

	if (qcow2_l1_entry(&q->h, be64toh(q->l1[index]), block_info(q->file)->size, &old, &why))
		return qcow2_fail_entry(q, index * qcow2_l2_covers(&q->h), why, err);
	ret = qcow2_take(q, 1, &cluster, &got, &hole, err);
	if (ret)
		return ret;
	ret = fill_table(q, old, cluster, err);
	if (!ret)
		ret = qcow2_release_room(q, 1, err);
	if (!ret && qcow2_guard_add(&q->w->guard, cluster))
		ret = pgr_fail(err, -ENOMEM,
			       "%s: no memory for a table; the request may be tried again",
			       q->b.info.name);
	if (ret) {
		qcow2_give_back(q, cluster, 1, false);
		return ret;
	}
	qcow2_cache_forget(q->tables, cluster << q->h.cluster_bits, q->h.cluster_size);
	q->l1[index] = htobe64(cluster << q->h.cluster_bits | QCOW2_SOLE);
	qcow2_l1_changed(q, index);
	if (old)
		qcow2_release(q, old >> q->h.cluster_bits, 1, false);
	return 0;
}

static bool has_own_table(const struct block_qcow2 *q, uint64_t offset)
{
	uint64_t entry = be64toh(q->l1[offset / qcow2_l2_covers(&q->h)]);

	return entry & QCOW2_SOLE && entry & QCOW2_OFFSET_MASK;
}

/* That the table with the entry of offset is there, and named once. */
static int make_table(struct block_qcow2 *q, uint64_t offset, struct pgr_error *err)
{
	int ret = 0;

	if (has_own_table(q, offset))
		return 0;
	fiber_lock(&q->w->table_lock, q->b.loop);
	if (!has_own_table(q, offset))
		ret = new_table(q, (uint32_t)(offset / qcow2_l2_covers(&q->h)), err);
	fiber_unlock(&q->w->table_lock);
	return ret;
}

/* ---- a new place ---- */

struct part {
	uint64_t begin, end; /* whole clusters */
	uint64_t from, to;   /* what the request has of them */
};

/* Bytes from..to of the old contents, to where they are in a buffer that begins at begin. */
static int read_old(struct block_qcow2 *q, uint64_t begin, uint64_t from, uint64_t to,
		    uint8_t *buffer, struct pgr_error *err)
{
	struct iovec iov = {.iov_base = buffer + (from - begin), .iov_len = to - from};

	if (from >= to)
		return 0;
	return qcow2_read_held(q, from, to - from, (struct block_data){.iov = &iov, .nr = 1}, err);
}

/* What is in begin..end, new and old, to at in the file. Both ends are at most BLOCK_PIECE apart. */
static int merge(struct block_qcow2 *q, const struct part *p, uint64_t begin, uint64_t end,
		 uint64_t at, struct block_data data, struct pgr_error *err)
{
	uint64_t from = p->from > begin ? min_of(p->from, end) : begin;
	uint64_t to = p->to < end ? p->to : end;
	const size_t size = (size_t)(end - begin);
	uint8_t *buffer = block_bounce_get(q->file, size);
	int ret;

	if (!buffer)
		return pgr_fail(
			err, -ENOMEM,
			"%s: no memory for a buffer of %zu bytes; the request may be tried again",
			q->b.info.name, size);
	if (to < from)
		to = from;
	ret = read_old(q, begin, begin, from, buffer, err);
	if (!ret)
		ret = read_old(q, begin, to, end, buffer, err);
	if (!ret && to > from)
		block_data_copy_out(block_data_skip(data, from - p->from), buffer + (from - begin),
				    to - from);
	if (!ret)
		ret = block_write(q->file, at, buffer, size, 0, err);
	block_bounce_put(q->file, buffer, size);
	return ret;
}

/* Whether what the request leaves out reads as zeros. */
static int rest_is_zeros(struct block_qcow2 *q, const struct part *p, const struct qcow2_run *run,
			 struct pgr_error *err)
{
	int ret;

	if (run->first.kind == QCOW2_ZEROS)
		return 1;
	if (run->first.kind != QCOW2_UNALLOCATED)
		return 0;
	ret = qcow2_zeros_below(q, p->begin, p->from - p->begin, err);
	return ret == 1 ? qcow2_zeros_below(q, p->to, p->end - p->to, err) : ret;
}

static int fill(struct block_qcow2 *q, const struct part *p, const struct qcow2_run *run,
		uint64_t at, bool hole, struct block_data from, struct pgr_error *err)
{
	bool all = p->from == p->begin && p->to == p->end;
	int ret = 0;

	if (hole && !all) {
		ret = rest_is_zeros(q, p, run, err);
		if (ret < 0)
			return ret;
		all = ret;
	}
	if (all)
		return block_write_data(q->file, at + (p->from - p->begin), p->to - p->from, from,
					0, err);
	ret = 0;
	for (uint64_t begin = p->begin; begin < p->end && !ret; begin += BLOCK_PIECE)
		ret = merge(q, p, begin, min_of(begin + BLOCK_PIECE, p->end),
			    at + (begin - p->begin), from, err);
	return ret;
}

/* The entries say from now on that the part is there. */
static int enter(struct block_qcow2 *q, const struct part *p, uint64_t at, struct pgr_error *err)
{
	struct qcow2_mapping old[CACHE_SLICE / 8];
	uint64_t nr = (p->end - p->begin) >> q->h.cluster_bits, slice, index;
	uint64_t *entry;
	int ret = look_up(q, p->begin, nr, &slice, &index, old, err);

	if (ret)
		return ret;
	entry = qcow2_cache_change(q->tables, slice) + index;
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t place = at + (i << q->h.cluster_bits);

		if (old[i].at != place)
			release(q, &old[i], false);
		entry[i] = htobe64(place | QCOW2_SOLE);
	}
	return 0;
}

static bool is_own(const struct qcow2_mapping *m)
{
	return m->kind == QCOW2_DATA && m->sole;
}

static int write_elsewhere(struct block_qcow2 *q, struct part *p, const struct qcow2_run *run,
			   struct block_data from, struct pgr_error *err)
{
	/* Zeros that have kept their place. */
	bool kept = run->first.kind == QCOW2_ZEROS && run->first.sole, hole = false;
	uint64_t cluster = run->first.at >> q->h.cluster_bits, got = 1;
	int ret = make_table(q, p->begin, err);

	if (ret)
		return ret;
	if (kept)
		ret = check_clusters(q, cluster, 1, err);
	else
		ret = qcow2_take(q, run->length >> q->h.cluster_bits, &cluster, &got, &hole, err);
	if (ret)
		return ret;
	p->end = p->begin + (got << q->h.cluster_bits);
	p->to = min_of(p->to, p->end);
	ret = fill(q, p, run, cluster << q->h.cluster_bits, hole, from, err);
	if (!ret)
		ret = enter(q, p, cluster << q->h.cluster_bits, err);
	if (ret && !kept)
		qcow2_give_back(q, cluster, got, false);
	return ret;
}

/* *done: as far as it got; 0 when it has its own place meanwhile. */
static int write_new(struct block_qcow2 *q, uint64_t offset, uint64_t length,
		     struct block_data from, uint64_t *done, struct pgr_error *err)
{
	struct part p = {.begin = cluster_down(q, offset), .from = offset};
	uint64_t most = q->h.cluster_size > NEW_AT_ONCE ? q->h.cluster_size : NEW_AT_ONCE;
	struct qcow2_run run;
	struct range_lock k;
	int ret;

	p.end = min_of(cluster_up(q, offset + length), p.begin + most);
	p.end = min_of(p.end, slice_end(q, p.begin));
	p.to = min_of(offset + length, p.end);
	range_lock(&q->w->ranges, &k, q->b.loop, p.begin, p.end, true);
	ret = qcow2_find_run(q, p.begin, p.end - p.begin, &run, err);
	*done = 0;
	if (!ret && !is_own(&run.first)) {
		ret = write_elsewhere(q, &p, &run, from, err);
		*done = p.to - p.from;
	}
	range_unlock(&q->w->ranges, &k);
	return ret;
}

/* *done: 0 when it has no place of its own. */
static int write_in_place(struct block_qcow2 *q, uint64_t offset, uint64_t length,
			  struct block_data from, uint64_t *done, struct pgr_error *err)
{
	uint64_t in_cluster = offset & (q->h.cluster_size - 1);
	struct qcow2_run run;
	struct range_lock k;
	int ret;

	range_lock(&q->w->ranges, &k, q->b.loop, offset, offset + length, false);
	ret = qcow2_find_run(q, offset, length, &run, err);
	*done = 0;
	if (!ret && is_own(&run.first)) {
		*done = run.length;
		ret = check_clusters(q, run.first.at >> q->h.cluster_bits,
				     (in_cluster + run.length + q->h.cluster_size - 1) >>
					     q->h.cluster_bits,
				     err);
		if (!ret)
			ret = block_write_data(q->file, run.first.at + in_cluster, run.length, from,
					       0, err);
	}
	range_unlock(&q->w->ranges, &k);
	return ret;
}

/* No entry that names what was written is in memory only, whoever changed it. */
static int settle(struct block_qcow2 *q, struct pgr_error *err)
{
	const struct qcow2_writer *w = q->w;

	if (!q->settled ||
	    (!w->commit_lock.held && w->l1_from == w->l1_to && !qcow2_cache_changed(q->tables)))
		return 0;
	return qcow2_image_flush(&q->b, err);
}

int qcow2_image_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		      uint32_t flags, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);

	(void)flags;
	while (length) {
		uint64_t done;
		int ret = qcow2_relieve(q, err);

		if (!ret)
			ret = write_in_place(q, offset, length, from, &done, err);
		if (!ret && !done)
			ret = write_new(q, offset, length, from, &done, err);
		if (ret)
			return ret;
		from = block_data_skip(from, done);
		offset += done;
		length -= done;
	}
	return settle(q, err);
}

/* ---- zeros and discards ---- */

enum emptying {
	DISCARD,	/* give the storage back, where that leaves zeros */
	ZERO_UNMAP,	/* zeros, without storage */
	ZERO_ALLOCATED, /* zeros, and the storage stays */
};

static bool is_backed(const struct block_qcow2 *q, uint64_t offset)
{
	return q->backing && offset < block_info(q->backing)->size;
}

/* What the entry of a cluster becomes. */
static uint64_t emptied(const struct block_qcow2 *q, uint64_t offset, const struct qcow2_mapping *m,
			uint64_t entry, enum emptying how)
{
	uint64_t empty = is_backed(q, offset) ? QCOW2_ZERO : 0;

	if (how == DISCARD && (m->kind == QCOW2_UNALLOCATED || (empty && q->h.version < 3)))
		return entry;
	if (how == ZERO_ALLOCATED && m->sole)
		return entry | QCOW2_ZERO;
	return empty;
}

static int empty_held(struct block_qcow2 *q, uint64_t begin, uint64_t end, enum emptying how,
		      struct pgr_error *err)
{
	struct qcow2_mapping old[CACHE_SLICE / 8];
	uint64_t nr = (end - begin) >> q->h.cluster_bits, slice, index;
	int ret = make_table(q, begin, err);

	if (!ret)
		ret = look_up(q, begin, nr, &slice, &index, old, err);
	if (ret)
		return ret;
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t *entry = qcow2_cache_change(q->tables, slice) + index + i;
		uint64_t is = be64toh(*entry);
		uint64_t becomes = emptied(q, begin + (i << q->h.cluster_bits), &old[i], is, how);

		if (old[i].at && !(becomes & QCOW2_OFFSET_MASK))
			release(q, &old[i], true);
		*entry = htobe64(becomes);
	}
	return 0;
}

/* Whether there is something to do at all where there is no table; *end: up to where the answer holds. */
static int needs_table(struct block_qcow2 *q, uint64_t begin, uint64_t *end, enum emptying how,
		       struct pgr_error *err)
{
	uint64_t covers = qcow2_l2_covers(&q->h), slice, index;
	uint64_t to = min_of(*end, (begin / covers + 1) * covers);
	int ret = qcow2_slice_of(q, begin, &slice, &index, err);

	if (!ret && !slice)
		ret = how == DISCARD ? 1 : qcow2_zeros_below(q, begin, to - begin, err);
	if (ret < 0)
		return ret;
	*end = ret ? to : min_of(*end, slice_end(q, begin));
	return !ret;
}

/* Whole clusters. */
static int empty_clusters(struct block_qcow2 *q, uint64_t begin, uint64_t end, enum emptying how,
			  struct pgr_error *err)
{
	while (begin < end) {
		uint64_t part_end = end;
		struct range_lock k;
		int ret = qcow2_relieve(q, err);

		if (ret)
			return ret;
		range_lock(&q->w->ranges, &k, q->b.loop, begin, end, true);
		/* Nothing to do: 0, and the next part. */
		ret = needs_table(q, begin, &part_end, how, err);
		if (ret > 0)
			ret = empty_held(q, begin, part_end, how, err);
		range_unlock(&q->w->ranges, &k);
		if (ret)
			return ret;
		begin = part_end;
		fiber_yield(q->b.loop);
	}
	return 0;
}

/* A part of one cluster, where it does not read as zeros already. */
static int zero_part(struct block_qcow2 *q, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	static uint8_t zeros[ZEROS_BYTES] __attribute__((aligned(4096)));
	struct iovec iov[(1u << QCOW2_CLUSTER_BITS_MAX) / ZEROS_BYTES];
	struct qcow2_run run;
	unsigned nr = 0;
	int ret = qcow2_find_run(q, offset, length, &run, err);

	if (!ret && run.first.kind == QCOW2_UNALLOCATED)
		ret = qcow2_zeros_below(q, offset, length, err);
	else if (!ret)
		ret = run.first.kind == QCOW2_ZEROS;
	if (ret)
		return ret < 0 ? ret : 0;
	for (uint64_t left = length; left; left -= iov[nr++].iov_len)
		iov[nr] = (struct iovec){.iov_base = zeros,
					 .iov_len = (size_t)min_of(left, sizeof(zeros))};
	return qcow2_image_write(&q->b, offset, length, (struct block_data){.iov = iov, .nr = nr},
				 0, err);
}

/* The end of the disk is that of its last cluster. */
static uint64_t whole_end(const struct block_qcow2 *q, uint64_t end)
{
	return end >= q->b.info.size ? cluster_up(q, end) : cluster_down(q, end);
}

int qcow2_image_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		     struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	uint64_t last = offset + length, begin = cluster_up(q, offset), end = whole_end(q, last);
	int ret = 0;

	if (q->h.version < 3)
		return -EOPNOTSUPP; /* its clusters cannot be zeros: they are written */
	if (offset < begin)
		ret = zero_part(q, offset, min_of(begin, last) - offset, err);
	if (!ret && begin < end)
		ret = empty_clusters(q, begin, end,
				     flags & BLOCK_UNMAP ? ZERO_UNMAP : ZERO_ALLOCATED, err);
	if (!ret && end < last && end >= begin)
		ret = zero_part(q, end, last - end, err);
	return ret || begin >= end ? ret : settle(q, err);
}

int qcow2_image_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	uint64_t begin = cluster_up(q, offset), end = whole_end(q, offset + length);

	int ret = begin < end ? empty_clusters(q, begin, end, DISCARD, err) : 0;

	return ret || begin >= end ? ret : settle(q, err);
}
