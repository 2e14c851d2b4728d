// SPDX-License-Identifier: MIT
/*
 * Reference counts: taking clusters and giving them back.
 *
 * A table of counts names blocks, each of one cluster, with a count for each cluster of the file in 1 to 64 bits. Counts are changed in memory; they
 * become durable by qcow2_commit(). The table and its blocks grow here, durably and at once, when a cluster is to be taken that no block describes:
 *
 *   a block that is missing   is that cluster itself: it counts itself. Written, flushed, then entered in the table.
 *   a table that is too short a new one, with the blocks for itself, from that cluster on. Written, flushed, then entered in the header.
 *
 * Who is in here holds alloc_lock.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

#define PARTS_MAX 16u
#define AHEAD_MIN (1u << 20)
#define AHEAD_MAX (64u << 20)

static uint64_t block_entries(const struct block_qcow2 *q)
{
	return ((uint64_t)q->h.cluster_size * 8) >> q->h.refcount_order;
}

/* ---- one count ---- */

uint64_t qcow2_count_get(const void *block, uint32_t order, uint64_t index)
{
	const uint8_t *p = block;
	uint64_t value = 0;

	if (order < 3) {
		unsigned shift = (unsigned)(index & ((8u >> order) - 1)) << order;

		return p[index >> (3 - order)] >> shift & ((1u << (1u << order)) - 1);
	}
	p += index << (order - 3);
	for (unsigned n = 1u << (order - 3); n; n--)
		value = value << 8 | *p++;
	return value;
}

void qcow2_count_set(void *block, uint32_t order, uint64_t index, uint64_t value)
{
	uint8_t *p = block;

	if (order < 3) {
		unsigned shift = (unsigned)(index & ((8u >> order) - 1)) << order;
		unsigned mask = ((1u << (1u << order)) - 1) << shift;

		p += index >> (3 - order);
		*p = (uint8_t)((*p & ~mask) | (unsigned)value << shift);
		return;
	}
	p += index << (order - 3);
	for (unsigned n = 1u << (order - 3); n; n--, value >>= 8)
		p[n - 1] = (uint8_t)value;
}

/* Counts that are in the same slice. */
struct counts {
	uint64_t slice;		 /* offset in the file; 0: no block describes the cluster */
	uint64_t index, entries; /* of the cluster, and how many the slice has */
	const uint64_t *data;
};

static int find_counts(struct block_qcow2 *q, uint64_t cluster, struct counts *out,
		       struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	uint64_t in_table = cluster / block_entries(q), in_block = cluster % block_entries(q);
	uint64_t block;

	out->entries = ((uint64_t)q->slice_entries * 64) >> q->h.refcount_order;
	out->index = in_block % out->entries;
	out->slice = 0;
	block = in_table < w->reftable_entries ? be64toh(w->reftable[in_table]) : 0;
	if (!block)
		return 0;
	out->slice = block + in_block / out->entries * q->slice_entries * 8;
	return qcow2_cache_get(w->counts, out->slice, &out->data, err);
}

static uint64_t count_at(const struct block_qcow2 *q, const struct counts *c, uint64_t index)
{
	return qcow2_count_get(c->data, q->h.refcount_order, index);
}

static void set_count(struct block_qcow2 *q, const struct counts *c, uint64_t index, uint64_t value)
{
	qcow2_count_set(qcow2_cache_change(q->w->counts, c->slice), q->h.refcount_order, index,
			value);
}

/* ---- growing ---- */

static int write_and_flush(struct block_qcow2 *q, uint64_t cluster, const void *data, size_t length,
			   struct pgr_error *err)
{
	int ret = block_write(q->file, cluster << q->h.cluster_bits, data, length, 0, err);

	return ret ? ret : block_flush(q->file, err);
}

static int no_memory(struct block_qcow2 *q, struct pgr_error *err)
{
	return pgr_fail(err, -ENOMEM,
			"%s: no memory for its tables; the request may be tried again",
			q->b.info.name);
}

static void taken(struct block_qcow2 *q, uint64_t cluster, uint64_t nr)
{
	if (q->w->hole < cluster + nr)
		q->w->hole = cluster + nr;
}

int qcow2_guard_new(struct block_qcow2 *q, uint64_t cluster, uint64_t nr, struct pgr_error *err)
{
	for (uint64_t i = 0; i < nr; i++) {
		int ret = qcow2_guard_add(&q->w->guard, cluster + i);

		if (!ret)
			continue;
		if (ret == -EEXIST)
			return qcow2_corrupt(q, cluster + i, "a table that is counted as free",
					     err);
		qcow2_unguard(q, cluster, i);
		return no_memory(q, err);
	}
	return 0;
}

void qcow2_unguard(struct block_qcow2 *q, uint64_t cluster, uint64_t nr)
{
	for (uint64_t i = 0; i < nr; i++)
		qcow2_guard_remove(&q->w->guard, cluster + i);
}

/* The sector of the table that has that entry. */
static int write_reftable_entry(struct block_qcow2 *q, uint64_t index, struct pgr_error *err)
{
	uint64_t unit = qcow2_unit(q) / 8, at = index / unit * unit;

	return block_write(q->file, q->h.refcount_offset + at * 8, q->w->reftable + at,
			   qcow2_unit(q), 0, err);
}

static int add_block(struct block_qcow2 *q, uint64_t cluster, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	uint64_t index = cluster / block_entries(q);
	void *block = block_memory(q->h.cluster_size);
	int ret;

	if (!block)
		return no_memory(q, err);
	ret = qcow2_guard_new(q, cluster, 1, err);
	if (ret)
		goto out;
	memset(block, 0, q->h.cluster_size);
	qcow2_count_set(block, q->h.refcount_order, cluster % block_entries(q), 1);
	ret = write_and_flush(q, cluster, block, q->h.cluster_size, err);
	if (!ret) {
		w->reftable[index] = htobe64(cluster << q->h.cluster_bits);
		ret = write_reftable_entry(q, index, err);
		if (ret)
			w->reftable[index] = 0;
	}
	if (ret)
		qcow2_unguard(q, cluster, 1);
	taken(q, cluster, 1);
out:
	free(block);
	return ret;
}

/* A table that reaches beyond `cluster`, and the blocks that describe both, from there on. */
struct growth {
	uint64_t first;		/* number of its first block in the table */
	uint64_t blocks, table; /* clusters */
};

static struct growth plan_growth(const struct block_qcow2 *q, uint64_t cluster)
{
	uint64_t entries = block_entries(q), in_cluster = q->h.cluster_size / 8;
	struct growth g = {.first = cluster / entries, .blocks = 1, .table = 1};

	for (;;) {
		uint64_t last = (cluster + g.blocks + g.table - 1) / entries;
		uint64_t need = last + 1 + q->w->reftable_entries / 2;
		uint64_t blocks = last - g.first + 1;
		uint64_t table = (need + in_cluster - 1) / in_cluster;

		if (blocks <= g.blocks && table <= g.table)
			return g;
		if (g.blocks < blocks)
			g.blocks = blocks;
		if (g.table < table)
			g.table = table;
	}
}

static void fill_growth(const struct block_qcow2 *q, uint64_t cluster, const struct growth *g,
			uint8_t *buffer)
{
	uint64_t entries = block_entries(q), nr = g->blocks + g->table;
	uint64_t *table = (uint64_t *)(buffer + (g->blocks << q->h.cluster_bits));

	memset(buffer, 0, nr << q->h.cluster_bits);
	memcpy(table, q->w->reftable, q->w->reftable_entries * 8);
	for (uint64_t i = 0; i < g->blocks; i++)
		table[g->first + i] = htobe64((cluster + i) << q->h.cluster_bits);
	for (uint64_t at = cluster; at < cluster + nr; at++)
		qcow2_count_set(buffer + ((at / entries - g->first) << q->h.cluster_bits),
				q->h.refcount_order, at % entries, 1);
}

static int use_new_table(struct block_qcow2 *q, uint64_t cluster, uint64_t *table, uint64_t nr,
			 struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	uint64_t old = q->h.refcount_offset >> q->h.cluster_bits, old_nr = q->h.refcount_clusters;
	int ret;

	qcow2_header_put64(q, offsetof(struct qcow2_disk_header, refcount_offset),
			   cluster << q->h.cluster_bits);
	qcow2_header_put32(q, offsetof(struct qcow2_disk_header, refcount_clusters), (uint32_t)nr);
	ret = qcow2_header_write(q, err);
	if (ret) {
		qcow2_header_put64(q, offsetof(struct qcow2_disk_header, refcount_offset),
				   q->h.refcount_offset);
		qcow2_header_put32(q, offsetof(struct qcow2_disk_header, refcount_clusters),
				   q->h.refcount_clusters);
		return ret;
	}
	free(w->reftable);
	w->reftable = table;
	w->reftable_entries = nr * q->h.cluster_size / 8;
	q->h.refcount_offset = cluster << q->h.cluster_bits;
	q->h.refcount_clusters = (uint32_t)nr;
	qcow2_unguard(q, old, old_nr);
	/* Without memory it is a leak. */
	if (!qcow2_release_room(q, 1, NULL))
		qcow2_release(q, old, old_nr, false);
	return 0;
}

static int grow_table(struct block_qcow2 *q, uint64_t cluster, struct pgr_error *err)
{
	struct growth g = plan_growth(q, cluster);
	uint64_t nr = g.blocks + g.table;
	size_t table_bytes = g.table << q->h.cluster_bits;
	uint8_t *buffer;
	uint64_t *table;
	int ret;

	if (table_bytes > QCOW2_REFTABLE_MAX)
		return pgr_fail(
			err, -ENOSPC,
			"%s: the image has as many clusters as it can count; convert it to one with larger clusters",
			q->b.info.name);
	buffer = block_memory(nr << q->h.cluster_bits);
	table = block_memory(table_bytes);
	ret = buffer && table ? qcow2_guard_new(q, cluster, nr, err) : no_memory(q, err);
	if (ret)
		goto out;
	fill_growth(q, cluster, &g, buffer);
	memcpy(table, buffer + (g.blocks << q->h.cluster_bits), table_bytes);
	ret = write_and_flush(q, cluster, buffer, nr << q->h.cluster_bits, err);
	taken(q, cluster, nr);
	if (!ret)
		ret = use_new_table(q, cluster + g.blocks, table, g.table, err);
	if (ret)
		qcow2_unguard(q, cluster, nr);
	else
		table = NULL;
out:
	free(buffer);
	free(table);
	return ret;
}

static int grow(struct block_qcow2 *q, uint64_t cluster, struct pgr_error *err)
{
	if (cluster / block_entries(q) < q->w->reftable_entries)
		return add_block(q, cluster, err);
	return grow_table(q, cluster, err);
}

/* ---- taking ---- */

/* The first free cluster from next_free on; counts of it in *c. */
static int find_free(struct block_qcow2 *q, struct counts *c, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;

	for (;;) {
		uint64_t most = (QCOW2_OFFSET_MASK >> q->h.cluster_bits) / 2;
		int ret;

		if (w->next_free > most)
			return pgr_fail(err, -ENOSPC, "%s: the image is as large as it can be",
					q->b.info.name);
		ret = find_counts(q, w->next_free, c, err);
		if (ret)
			return ret;
		if (!c->slice) {
			ret = grow(q, w->next_free, err);
			if (ret)
				return ret;
			continue;
		}
		while (c->index < c->entries && count_at(q, c, c->index)) {
			c->index++;
			w->next_free++;
		}
		if (c->index < c->entries)
			return 0;
	}
}

static int take(struct block_qcow2 *q, uint64_t want, uint64_t *cluster, uint64_t *got,
		struct pgr_error *err)
{
	struct counts c;
	int ret = find_free(q, &c, err);
	uint64_t n = 0;

	if (ret)
		return ret;
	*cluster = q->w->next_free;
	while (n < want && c.index + n < c.entries && !count_at(q, &c, c.index + n)) {
		if (qcow2_guard_has(&q->w->guard, *cluster + n))
			return qcow2_corrupt(q, *cluster + n, "a table that is counted as free",
					     err);
		n++;
	}
	for (uint64_t i = 0; i < n; i++)
		set_count(q, &c, c.index + i, 1);
	q->w->next_free += n;
	*got = n;
	return 0;
}

/*
 * Room in the file ahead of what is taken, as a hole that has its storage: a write that makes a file longer holds up all others in many file systems,
 * one into such a hole does not. qcow2_trim() takes back what was too much. Without it, writes only take longer.
 */
static void make_room(struct block_qcow2 *q)
{
	struct qcow2_writer *w = q->w;
	uint64_t end = w->hole << q->h.cluster_bits, size = block_info(q->file)->size;
	uint64_t ahead = size / 8;

	/* Only files become longer. */
	if (w->no_room_ahead || !block_info(q->file)->can_snapshot || end <= size)
		return;
	ahead = ahead < AHEAD_MIN ? AHEAD_MIN : ahead > AHEAD_MAX ? AHEAD_MAX : ahead;
	if (block_zero(q->file, size, end + ahead - size, BLOCK_FAST, NULL))
		w->no_room_ahead = true;
}

void qcow2_trim(struct block_qcow2 *q)
{
	uint64_t end = q->w->hole << q->h.cluster_bits;

	if (block_info(q->file)->can_snapshot && end < block_info(q->file)->size)
		block_resize(q->file, end, NULL);
}

int qcow2_take(struct block_qcow2 *q, uint64_t want, uint64_t *cluster, uint64_t *got, bool *hole,
	       struct pgr_error *err)
{
	int ret;

	fiber_lock(&q->w->alloc_lock, q->b.loop);
	ret = qcow2_check_whole(q, err);
	if (!ret)
		ret = take(q, want, cluster, got, err);
	if (!ret) {
		*hole = *cluster >= q->w->hole;
		taken(q, *cluster, *got);
		make_room(q);
	}
	fiber_unlock(&q->w->alloc_lock);
	return ret;
}

/* 0 as well when it cannot be said. */
static uint64_t count_of(struct block_qcow2 *q, uint64_t cluster)
{
	struct counts c;

	if (find_counts(q, cluster, &c, NULL) || !c.slice)
		return 0;
	return count_at(q, &c, c.index);
}

/* Those that nobody else has, before somebody may have them; that it fails costs only room. */
static void discard_sole(struct block_qcow2 *q, uint64_t cluster, uint64_t nr)
{
	uint64_t end = cluster + nr;

	while (cluster < end) {
		uint64_t n = 0;

		while (cluster + n < end && count_of(q, cluster + n) == 1)
			n++;
		if (n)
			block_discard(q->file, cluster << q->h.cluster_bits, n << q->h.cluster_bits,
				      NULL);
		cluster += n + 1;
	}
}

static void give_back(struct block_qcow2 *q, uint64_t cluster, uint64_t nr)
{
	for (; nr; cluster++, nr--) {
		uint64_t count = count_of(q, cluster);
		struct counts c;

		/* 0: it lied, and nothing becomes worse. */
		if (!count || find_counts(q, cluster, &c, NULL))
			continue;
		set_count(q, &c, c.index, count - 1);
		if (count == 1 && cluster < q->w->next_free)
			q->w->next_free = cluster;
	}
}

void qcow2_give_back(struct block_qcow2 *q, uint64_t cluster, uint64_t nr, bool discard)
{
	fiber_lock(&q->w->alloc_lock, q->b.loop);
	if (discard)
		discard_sole(q, cluster, nr);
	give_back(q, cluster, nr);
	fiber_unlock(&q->w->alloc_lock);
}

/* At the end of the file, where everything is free but what grows there; parts that turn out too short are given back in the end. */
int qcow2_take_all(struct block_qcow2 *q, uint64_t want, uint64_t *cluster, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	struct qcow2_release parts[PARTS_MAX], *last = NULL;
	uint64_t next = 0, got = 0, before;
	unsigned nr = 0;
	int ret;

	fiber_lock(&w->alloc_lock, q->b.loop);
	before = w->next_free;
	if (w->next_free < w->hole)
		w->next_free = w->hole;
	ret = qcow2_check_whole(q, err);
	while (!ret && (!last || last->nr < want)) {
		ret = take(q, want - (last ? last->nr : 0), &next, &got, err);
		if (ret)
			break;
		taken(q, next, got);
		if (last && next == last->cluster + last->nr) {
			last->nr += got;
		} else if (nr < PARTS_MAX) {
			last = &parts[nr++];
			*last = (struct qcow2_release){.cluster = next, .nr = got};
		} else {
			ret = pgr_fail(err, -ENOSPC, "%s: its file is too fragmented",
				       q->b.info.name);
		}
	}
	if (!ret && last) {
		*cluster = last->cluster;
		nr--;
	}
	w->next_free = before;
	for (unsigned i = 0; i < nr; i++)
		give_back(q, parts[i].cluster, parts[i].nr);
	fiber_unlock(&w->alloc_lock);
	return ret;
}
