// SPDX-License-Identifier: MIT
/*
 * The check of an image: everything that names a cluster is walked and counted, then the counts in the image are compared with that.
 *
 *   1. what is there once: header, first tables, second tables, table and blocks of counts, list of snapshots, bitmaps
 *   2. data, of the disk and of the snapshots inside
 *   3. counts: higher than what was found is a leak, lower is a damage
 *   4. flags in the disk's tables, which say that a cluster is named once
 *
 * Repairing writes the counts that were found into the blocks, then the flags, and only when nothing else is wrong: where two things claim the same
 * cluster no count is right.
 */
#include "storage/qcow2_check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/qcow2.h"
#include "storage/qcow2_guard.h"
#include "storage/qcow2_snapshots.h"

#define CLUSTERS_MAX (1ull << 28)

struct checker {
	struct qcow2_check *c;
	struct block *file;
	struct qcow2_header h;
	uint64_t size; /* of the file */
	uint32_t *refs;
	struct qcow2_guard tables;
	uint64_t *l1, *reftable;
	uint64_t *table;  /* of one cluster: buffer */
	uint64_t *below;  /* the same, for a second table below it */
	uint64_t unclear; /* damages that no count can mend */
	unsigned told;
	int ret;
	struct pgr_error *err;
};

static void tell(struct checker *k, const char *fmt, va_list ap)
{
	char text[256];

	if (!k->c->found || k->told++ >= QCOW2_FINDINGS_MAX)
		return;
	vsnprintf(text, sizeof(text), fmt, ap);
	k->c->found(k->c->ctx, text);
}

static void damage(struct checker *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void damage(struct checker *k, const char *fmt, ...)
{
	va_list ap;

	k->c->damages++;
	va_start(ap, fmt);
	tell(k, fmt, ap);
	va_end(ap);
}

static void leak(struct checker *k, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void leak(struct checker *k, const char *fmt, ...)
{
	va_list ap;

	k->c->leaks++;
	va_start(ap, fmt);
	tell(k, fmt, ap);
	va_end(ap);
}

static uint64_t cluster_of(const struct checker *k, uint64_t offset)
{
	return offset >> k->h.cluster_bits;
}

/* ---- who names what ---- */

static void name_clusters(struct checker *k, uint64_t offset, uint64_t bytes, bool table,
			  const char *what)
{
	uint64_t first = cluster_of(k, offset), last = cluster_of(k, offset + bytes - 1);

	if (!bytes)
		return;
	if (last >= k->c->clusters || last < first) {
		k->unclear++;
		damage(k, "%s at %llu is not inside the file", what, (unsigned long long)offset);
		return;
	}
	for (uint64_t i = first; i <= last; i++) {
		int ret = table ? qcow2_guard_add(&k->tables, i)
				: -EEXIST * qcow2_guard_has(&k->tables, i);

		if (ret == -ENOMEM)
			k->ret = pgr_fail(k->err, ret, "%s: no memory to check it",
					  block_info(k->file)->name);
		if (ret == -EEXIST) {
			k->unclear++;
			damage(k, "%s at %llu is where something else is", what,
			       (unsigned long long)offset);
		}
		if (k->refs[i] < UINT32_MAX)
			k->refs[i]++;
	}
}

static bool load(struct checker *k, uint64_t offset, void *to, size_t bytes)
{
	if (!k->ret)
		k->ret = block_read(k->file, offset, to, bytes, k->err);
	return !k->ret;
}

/* The second tables that a first one names: their offsets are left in it, 0 for bad ones. shared: snapshots name those of others, too. */
static void name_tables(struct checker *k, uint64_t *l1, uint32_t entries, bool shared)
{
	for (uint32_t i = 0; i < entries && !k->ret; i++) {
		uint64_t at;
		const char *why;

		if (qcow2_l1_entry(&k->h, be64toh(l1[i]), k->size, &at, &why)) {
			k->unclear++;
			damage(k, "entry %u of a first table has %s", i, why);
			l1[i] = 0;
		} else if (at && shared && qcow2_guard_has(&k->tables, cluster_of(k, at))) {
			k->refs[cluster_of(k, at)]++;
		} else if (at) {
			name_clusters(k, at, k->h.cluster_size, true, "a second table");
		}
	}
}

static void name_data(struct checker *k, uint64_t table)
{
	uint64_t entries = qcow2_l2_entries(&k->h);

	if (!load(k, table, k->below, k->h.cluster_size))
		return;
	for (uint64_t i = 0; i < entries && !k->ret; i++) {
		struct qcow2_mapping m;
		const char *why;

		if (!k->below[i])
			continue;
		if (qcow2_entry(&k->h, be64toh(k->below[i]), k->size, &m, &why)) {
			k->unclear++;
			damage(k, "entry %llu of the table at %llu has %s", (unsigned long long)i,
			       (unsigned long long)table, why);
		} else if (m.kind == QCOW2_PACKED) {
			/* The last sector need not be in the file. */
			if (m.at + m.bytes > k->size)
				m.bytes = (uint32_t)(k->size - m.at);
			name_clusters(k, m.at, m.bytes, false, "packed data");
		} else if (m.at) {
			name_clusters(k, m.at, k->h.cluster_size, false, "data");
		}
	}
}

static void name_all_data(struct checker *k, const uint64_t *l1, uint32_t entries)
{
	for (uint32_t i = 0; i < entries && !k->ret; i++) {
		uint64_t at = be64toh(l1[i]) & QCOW2_OFFSET_MASK;

		if (at)
			name_data(k, at);
	}
}

static void name_snapshots(struct checker *k)
{
	struct qcow2_snapshot *list;
	uint64_t bytes;

	if (!k->ret)
		k->ret = qcow2_snapshots_load(k->file, &k->h, &list, &bytes, k->err);
	if (k->ret)
		return;
	name_clusters(k, k->h.snapshots_offset, bytes, true, "the list of snapshots");
	for (uint32_t i = 0; i < k->h.nr_snapshots && !k->ret; i++) {
		uint64_t *l1;

		name_clusters(k, list[i].l1_offset, list[i].l1_entries * 8ull, true,
			      "a snapshot's first table");
		k->ret = qcow2_l1_load(k->file, list[i].l1_offset, list[i].l1_entries, &l1, k->err);
		if (k->ret)
			break;
		name_tables(k, l1, list[i].l1_entries, true);
		name_all_data(k, l1, list[i].l1_entries);
		free(l1);
	}
	free(list);
}

static void name_bitmap(struct checker *k, const struct qcow2_disk_bitmap *b)
{
	uint64_t table = be64toh(b->table), bytes = be32toh(b->entries) * 8ull;

	if (table & (k->h.cluster_size - 1) || table > k->size || bytes > k->size - table) {
		k->unclear++;
		damage(k, "the table of a bitmap at %llu is not inside the file",
		       (unsigned long long)table);
		return;
	}
	name_clusters(k, table, bytes, true, "the table of a bitmap");
	for (uint64_t at = 0; at < bytes; at += sizeof(uint64_t)) {
		uint64_t entry;

		if (!load(k, table + at, &entry, sizeof(entry)))
			return;
		entry = be64toh(entry) & QCOW2_OFFSET_MASK;
		if (entry)
			name_clusters(k, entry, k->h.cluster_size, false, "a bitmap");
	}
}

static void name_bitmaps(struct checker *k)
{
	uint64_t at = k->h.bitmaps_offset, end = at + k->h.bitmaps_bytes;

	if (!k->h.nr_bitmaps || k->ret)
		return;
	if (at & (k->h.cluster_size - 1) || end < at || end > k->size) {
		k->unclear++;
		damage(k, "the directory of bitmaps is not inside the file");
		return;
	}
	name_clusters(k, at, k->h.bitmaps_bytes, true, "the directory of bitmaps");
	for (uint32_t i = 0; i < k->h.nr_bitmaps; i++) {
		struct qcow2_disk_bitmap b;

		if (at + sizeof(b) > end || !load(k, at, &b, sizeof(b)))
			return;
		name_bitmap(k, &b);
		at += sizeof(b) + be16toh(b.name_bytes) + be32toh(b.extra_bytes);
		at = (at + 7) & ~7ull;
	}
}

static void name_counts(struct checker *k)
{
	uint64_t bytes = (uint64_t)k->h.refcount_clusters << k->h.cluster_bits;

	name_clusters(k, k->h.refcount_offset, bytes, true, "the table of counts");
	for (uint64_t i = 0; i < bytes / 8 && !k->ret; i++) {
		uint64_t at = be64toh(k->reftable[i]);

		if (!at)
			continue;
		if (at & (k->h.cluster_size - 1) || at >= k->size) {
			k->unclear++;
			damage(k, "a block of counts is at %llu, which is no cluster of the file",
			       (unsigned long long)at);
			k->reftable[i] = 0;
			continue;
		}
		name_clusters(k, at, k->h.cluster_size, true, "a block of counts");
	}
}

static void name_all(struct checker *k)
{
	name_clusters(k, 0, k->h.cluster_size, true, "the header");
	if (k->h.l1_entries)
		name_clusters(k, k->h.l1_offset, k->h.l1_entries * 8ull, true, "the first table");
	name_counts(k);
	name_tables(k, k->l1, k->h.l1_entries, false);
	name_bitmaps(k);
	name_all_data(k, k->l1, k->h.l1_entries);
	name_snapshots(k);
}

/* ---- counts ---- */

static uint64_t refs_of(const struct checker *k, uint64_t cluster)
{
	return cluster < k->c->clusters ? k->refs[cluster] : 0;
}

static void compare_count(struct checker *k, uint64_t cluster, uint64_t count)
{
	uint64_t refs = refs_of(k, cluster), at = cluster << k->h.cluster_bits;

	if (count > refs)
		leak(k, "leak: the cluster at %llu is counted %llu times and named %llu times",
		     (unsigned long long)at, (unsigned long long)count, (unsigned long long)refs);
	else if (count < refs)
		damage(k, "the cluster at %llu is counted %llu times and named %llu times",
		       (unsigned long long)at, (unsigned long long)count, (unsigned long long)refs);
}

/* Clusters that no block describes. */
static void compare_missing(struct checker *k, uint64_t first, uint64_t entries)
{
	for (uint64_t i = first; i < first + entries && i < k->c->clusters; i++) {
		if (!k->refs[i])
			continue;
		k->unclear++;
		compare_count(k, i, 0);
	}
}

static bool fits(const struct checker *k, uint64_t count)
{
	return k->h.refcount_order == 6 || !(count >> (1u << k->h.refcount_order));
}

static void compare_block(struct checker *k, uint64_t at, uint64_t first, uint64_t entries,
			  bool repair)
{
	bool changed = false;

	if (!load(k, at, k->table, k->h.cluster_size))
		return;
	for (uint64_t i = 0; i < entries; i++) {
		uint64_t count = qcow2_count_get(k->table, k->h.refcount_order, i);
		uint64_t refs = refs_of(k, first + i);

		if (count == refs)
			continue;
		if (!repair) {
			compare_count(k, first + i, count);
		} else if (fits(k, refs)) {
			qcow2_count_set(k->table, k->h.refcount_order, i, refs);
			k->c->repaired++;
			changed = true;
		}
	}
	if (changed)
		k->ret = block_write(k->file, at, k->table, k->h.cluster_size, 0, k->err);
}

static void compare_counts(struct checker *k, bool repair)
{
	uint64_t entries = (k->h.cluster_size * 8ull) >> k->h.refcount_order;
	uint64_t nr = ((uint64_t)k->h.refcount_clusters << k->h.cluster_bits) / 8, i;

	for (i = 0; i < nr && !k->ret; i++) {
		uint64_t at = be64toh(k->reftable[i]);

		if (at)
			compare_block(k, at, i * entries, entries, repair);
		else if (!repair)
			compare_missing(k, i * entries, entries);
	}
	if (!repair && i * entries < k->c->clusters)
		compare_missing(k, i * entries, k->c->clusters - i * entries);
}

/* ---- flags ---- */

/* Whether an entry says rightly that what it names is named once; repaired when that is asked for. */
static bool compare_flag(struct checker *k, uint64_t *entry, bool repair)
{
	uint64_t value = be64toh(*entry), at = value & QCOW2_OFFSET_MASK;
	bool sole = value & QCOW2_SOLE;

	if (value & QCOW2_COMPRESSED || !at || cluster_of(k, at) >= k->c->clusters ||
	    sole == (k->refs[cluster_of(k, at)] == 1))
		return true;
	if (repair) {
		*entry = htobe64(value ^ QCOW2_SOLE);
		k->c->repaired++;
		return false;
	}
	damage(k, "an entry for %llu of the file says that it is %snamed once, and it is not so",
	       (unsigned long long)at, sole ? "" : "not ");
	return false;
}

static void compare_flags(struct checker *k, bool repair)
{
	for (uint32_t i = 0; i < k->h.l1_entries && !k->ret; i++) {
		uint64_t at = be64toh(k->l1[i]) & QCOW2_OFFSET_MASK;
		bool right = true;

		if (!at || !load(k, at, k->below, k->h.cluster_size))
			continue;
		for (uint64_t n = 0; n < qcow2_l2_entries(&k->h); n++)
			right &= compare_flag(k, &k->below[n], repair);
		if (!right && repair)
			k->ret = block_write(k->file, at, k->below, k->h.cluster_size, 0, k->err);
		if (!compare_flag(k, &k->l1[i], repair) && repair && !k->ret)
			k->ret = block_write(k->file, k->h.l1_offset + i * 8ull, &k->l1[i], 8, 0,
					     k->err);
	}
}

/* ---- */

static int clear_dirty(struct checker *k)
{
	const uint64_t at = offsetof(struct qcow2_disk_header, incompatible);
	uint64_t features = htobe64(k->h.incompatible & ~QCOW2_INCOMPATIBLE_DIRTY);
	int ret = block_flush(k->file, k->err);

	if (!ret && k->c->dirty)
		ret = block_write(k->file, at, &features, sizeof(features), 0, k->err);
	return ret ? ret : block_flush(k->file, k->err);
}

static void repair(struct checker *k)
{
	if (k->unclear) {
		if (k->c->found)
			k->c->found(
				k->c->ctx,
				"not repaired: more is wrong than counts; copy what can be read with pagurus disk convert");
		return;
	}
	compare_counts(k, true);
	compare_flags(k, true);
	if (!k->ret)
		k->ret = clear_dirty(k);
}

static int begin(struct checker *k)
{
	const char *name = block_info(k->file)->name;
	uint64_t table_bytes;
	int ret = qcow2_header_load(k->file, &k->h, k->err);

	if (ret)
		return ret;
	k->c->dirty = k->h.incompatible & QCOW2_INCOMPATIBLE_DIRTY;
	k->c->clusters = (k->size + k->h.cluster_size - 1) >> k->h.cluster_bits;
	table_bytes = (uint64_t)k->h.refcount_clusters << k->h.cluster_bits;
	if (k->c->clusters > CLUSTERS_MAX || table_bytes > QCOW2_REFTABLE_MAX)
		return pgr_fail(k->err, -EFBIG, "%s: has too many clusters to be checked here",
				name);
	k->refs = calloc(k->c->clusters + 1, sizeof(*k->refs));
	k->table = malloc(k->h.cluster_size);
	k->below = malloc(k->h.cluster_size);
	k->reftable = malloc(table_bytes + 1);
	if (!k->refs || !k->table || !k->below || !k->reftable)
		return pgr_fail(k->err, -ENOMEM, "%s: no memory to check it", name);
	if (table_bytes)
		ret = block_read(k->file, k->h.refcount_offset, k->reftable, table_bytes, k->err);
	return ret ? ret : qcow2_l1_load(k->file, k->h.l1_offset, k->h.l1_entries, &k->l1, k->err);
}

int qcow2_check(struct block *file, struct qcow2_check *c, struct pgr_error *err)
{
	struct checker k = {.c = c, .file = file, .size = block_info(file)->size, .err = err};

	c->clusters = c->used = c->leaks = c->damages = c->repaired = 0;
	k.ret = begin(&k);
	if (!k.ret)
		name_all(&k);
	if (!k.ret)
		compare_counts(&k, false);
	if (!k.ret)
		compare_flags(&k, false);
	for (uint64_t i = 0; i < c->clusters && !k.ret; i++)
		c->used += k.refs[i] != 0;
	if (!k.ret && c->repair && (c->leaks || c->damages || c->dirty))
		repair(&k);
	qcow2_guard_free(&k.tables);
	free(k.refs);
	free(k.table);
	free(k.below);
	free(k.reftable);
	free(k.l1);
	return k.ret;
}
