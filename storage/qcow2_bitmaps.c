// SPDX-License-Identifier: MIT
/*
 * A directory of entries, each with its table; the table names the clusters that have the bits, or says that all of them are 0, or 1.
 *
 * What a cut may leave at each step of qcow2_bitmaps_store(), which begins with all of them marked:
 *
 *   new clusters get the bits        leaks
 *   counts, flush
 *   tables name them, flush          marked; a table may name old and new clusters, and all of them are counted
 *   marks go, flush                  each bitmap is either marked, or whole
 *   old clusters are given back
 *
 * The directory is only written in place to change marks, which are 4 bytes in one sector; a directory with other entries is a new one, and the header
 * names it.
 */
#include "storage/qcow2_bitmaps.h"

#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

#define FLAG_IN_USE	  1u
#define FLAG_AUTO	  2u
#define KIND_DIRTY	  1u
#define GRANULARITY_MIN	  9u
#define GRANULARITY_MAX	  31u
#define TABLE_RESERVED	  0xff000000000001feull
#define TABLE_ONES	  1ull
#define TABLE_ENTRIES_MAX (1u << 20)
#define ENTRY_BYTES(name) ((sizeof(struct qcow2_disk_bitmap) + (name) + 7) & ~(size_t)7)
#define DIRECTORY_MAX	  (QCOW2_BITMAPS_MAX * ENTRY_BYTES(QCOW2_BITMAP_NAME_MAX))

static int bad(const struct block_qcow2 *q, const char *why, struct pgr_error *err)
{
	return pgr_fail(err, -EINVAL, "%s: its dirty bitmaps cannot be read: %s", q->b.info.name,
			why);
}

static int no_memory(const struct block_qcow2 *q, struct pgr_error *err)
{
	return pgr_fail(err, -ENOMEM, "%s: no memory for its dirty bitmaps", q->b.info.name);
}

void qcow2_bitmaps_free(struct block_qcow2 *q)
{
	for (uint32_t i = 0; i < q->bitmaps.nr; i++) {
		dirty_free(q->bitmaps.list[i].dirty);
		free(q->bitmaps.list[i].entry);
	}
	free(q->bitmaps.list);
	q->bitmaps = (struct qcow2_bitmaps){.list = NULL};
	q->bitmaps_read = false;
}

/* ---- geometry ---- */

static uint64_t bytes_of(uint64_t size, uint32_t granularity)
{
	uint64_t bits = size / granularity + !!(size % granularity);

	return bits / 8 + !!(bits % 8);
}

static uint64_t entries_of(const struct block_qcow2 *q, uint32_t granularity)
{
	return cluster_up(q, bytes_of(q->h.size, granularity)) >> q->h.cluster_bits;
}

static bool is_inside(const struct block_qcow2 *q, uint64_t at, uint64_t bytes)
{
	uint64_t size = block_info(q->file)->size;

	return at && !(at & (q->h.cluster_size - 1)) && at < size && bytes <= size - at;
}

/* ---- reading ---- */

static int read_entry(const struct block_qcow2 *q, const uint8_t *from, size_t left,
		      struct qcow2_bitmap *out, size_t *used, struct pgr_error *err)
{
	struct qcow2_disk_bitmap d;
	uint32_t flags;
	size_t name;

	if (left < sizeof(d))
		return bad(q, "their directory is too short", err);
	memcpy(&d, from, sizeof(d));
	name = be16toh(d.name_bytes);
	flags = be32toh(d.flags);
	*used = ENTRY_BYTES(name);
	if (!name || name > QCOW2_BITMAP_NAME_MAX || *used > left)
		return bad(q, "a name is too long", err);
	if (d.kind != KIND_DIRTY || d.extra_bytes || flags & ~(FLAG_IN_USE | FLAG_AUTO))
		return bad(q, "there is one of a kind that is not known here", err);
	if (d.granularity_bits < GRANULARITY_MIN || d.granularity_bits > GRANULARITY_MAX)
		return bad(q, "one has no granularity that can be", err);
	memcpy(out->name, from + sizeof(d), name);
	if (strlen(out->name) != name)
		return bad(q, "a name has a zero byte in it", err);
	out->granularity = 1u << d.granularity_bits;
	out->recording = flags & FLAG_AUTO;
	out->in_use = flags & FLAG_IN_USE;
	out->table = be64toh(d.table);
	out->entries = be32toh(d.entries);
	if (!is_inside(q, out->table, out->entries * 8ull) || out->entries > TABLE_ENTRIES_MAX ||
	    (!out->in_use && out->entries != entries_of(q, out->granularity)))
		return bad(q, "a table is not inside the file, or not as large as the disk", err);
	return 0;
}

static int read_directory(struct block_qcow2 *q, const uint8_t *bytes, size_t length,
			  struct pgr_error *err)
{
	uint64_t memory = 0;
	size_t at = 0;

	for (uint32_t i = 0; i < q->h.nr_bitmaps; i++) {
		struct qcow2_bitmap *m = &q->bitmaps.list[i];
		size_t used = 0;
		int ret = read_entry(q, bytes + at, length - at, m, &used, err);

		if (ret)
			return ret;
		for (uint32_t n = 0; n < i; n++)
			if (!strcmp(q->bitmaps.list[n].name, m->name))
				return bad(q, "two have the same name", err);
		memory += m->entries * 8ull + (m->in_use ? 0 : bytes_of(q->h.size, m->granularity));
		if (memory > QCOW2_BITMAP_BYTES_MAX)
			return bad(q, "they are too large", err);
		q->bitmaps.nr++;
		at += used;
	}
	return at == length ? 0 : bad(q, "their directory is longer than its entries", err);
}

static int load_directory(struct block_qcow2 *q, struct pgr_error *err)
{
	size_t length = (size_t)q->h.bitmaps_bytes;
	uint8_t *bytes;
	int ret;

	if (!q->h.nr_bitmaps)
		return 0;
	if (q->h.nr_bitmaps > QCOW2_BITMAPS_MAX || q->h.bitmaps_bytes > DIRECTORY_MAX ||
	    !is_inside(q, q->h.bitmaps_offset, q->h.bitmaps_bytes))
		return bad(q, "there are too many, or their directory is not inside the file", err);
	bytes = malloc(length + 1);
	q->bitmaps.list = calloc(q->h.nr_bitmaps, sizeof(*q->bitmaps.list));
	if (bytes && q->bitmaps.list)
		ret = block_read(q->file, q->h.bitmaps_offset, bytes, length, err);
	else
		ret = no_memory(q, err);
	if (!ret)
		ret = read_directory(q, bytes, length, err);
	free(bytes);
	return ret;
}

static int load_table(struct block_qcow2 *q, struct qcow2_bitmap *m, struct pgr_error *err)
{
	int ret;

	m->entry = calloc(m->entries + 1ull, sizeof(*m->entry));
	if (!m->entry)
		return no_memory(q, err);
	ret = block_read(q->file, m->table, m->entry, m->entries * 8ull, err);
	for (uint32_t i = 0; i < m->entries && !ret; i++) {
		uint64_t at;

		m->entry[i] = be64toh(m->entry[i]);
		at = m->entry[i] & QCOW2_OFFSET_MASK;
		if (m->entry[i] & TABLE_RESERVED || (at && m->entry[i] & TABLE_ONES) ||
		    (at && !is_inside(q, at, 1)))
			ret = bad(q, "a table names something that is no cluster of the file", err);
	}
	return ret;
}

/* The bytes of the map that entry i is about. */
static size_t part_of(const struct block_qcow2 *q, const struct qcow2_bitmap *m, uint32_t i)
{
	uint64_t left = dirty_map_bytes(m->dirty) - ((uint64_t)i << q->h.cluster_bits);

	return left < q->h.cluster_size ? (size_t)left : q->h.cluster_size;
}

static int load_bits(struct block_qcow2 *q, struct qcow2_bitmap *m, struct pgr_error *err)
{
	uint8_t *buffer = block_memory(q->h.cluster_size);
	int ret = buffer ? dirty_create(q->h.size, m->granularity, &m->dirty, err)
			 : no_memory(q, err);

	for (uint32_t i = 0; i < m->entries && !ret; i++) {
		uint64_t at = m->entry[i] & QCOW2_OFFSET_MASK;

		if (!m->entry[i])
			continue;
		memset(buffer, 0xff, q->h.cluster_size);
		if (at)
			ret = block_read(q->file, at, buffer, q->h.cluster_size, err);
		if (!ret)
			dirty_map_add(m->dirty, (uint64_t)i << q->h.cluster_bits, buffer,
				      part_of(q, m, i));
	}
	free(buffer);
	return ret;
}

/* all: also the contents of those that do not record. */
static int load_all(struct block_qcow2 *q, bool all, struct pgr_error *err)
{
	int ret = q->bitmaps_read ? 0 : load_directory(q, err);

	for (uint32_t i = 0; i < q->bitmaps.nr && !ret; i++) {
		struct qcow2_bitmap *m = &q->bitmaps.list[i];

		if (!m->entry)
			ret = load_table(q, m, err);
		if (!ret && !m->in_use && !m->dirty && (all || m->recording))
			ret = load_bits(q, m, err);
	}
	q->bitmaps_read = !ret;
	if (ret)
		qcow2_bitmaps_free(q);
	return ret;
}

/* ---- where they are, so that no data is written there ---- */

static int guard_one(struct block_qcow2 *q, uint64_t at, uint64_t bytes, uint64_t *guarded,
		     struct pgr_error *err)
{
	uint64_t end = cluster_up(q, at + bytes);

	for (; at < end; at += q->h.cluster_size) {
		int ret = qcow2_guard_add(&q->w->guard, at >> q->h.cluster_bits);

		if (ret == -ENOMEM)
			return no_memory(q, err);
		if (ret)
			return bad(q, "one is where something else is", err);
		guarded[0]++;
		guarded[guarded[0]] = at >> q->h.cluster_bits;
	}
	return 0;
}

static uint64_t clusters_of_all(const struct block_qcow2 *q)
{
	uint64_t nr = (cluster_up(q, q->h.bitmaps_bytes) >> q->h.cluster_bits) + 1;

	for (uint32_t i = 0; i < q->bitmaps.nr; i++)
		nr += q->bitmaps.list[i].entries + 1ull +
		      (cluster_up(q, q->bitmaps.list[i].entries * 8ull) >> q->h.cluster_bits);
	return nr;
}

static int guard_all(struct block_qcow2 *q, struct pgr_error *err)
{
	/* Their number, then those that were guarded here. */
	uint64_t *guarded = calloc(clusters_of_all(q) + 1, sizeof(*guarded));
	int ret = guarded ? 0 : no_memory(q, err);

	if (!ret && q->h.nr_bitmaps)
		ret = guard_one(q, q->h.bitmaps_offset, q->h.bitmaps_bytes, guarded, err);
	for (uint32_t i = 0; i < q->bitmaps.nr && !ret; i++) {
		const struct qcow2_bitmap *m = &q->bitmaps.list[i];

		ret = guard_one(q, m->table, m->entries * 8ull, guarded, err);
		for (uint32_t n = 0; n < m->entries && !ret; n++)
			if (m->entry[n] & QCOW2_OFFSET_MASK)
				ret = guard_one(q, m->entry[n] & QCOW2_OFFSET_MASK, 1, guarded,
						err);
	}
	for (uint64_t i = 1; ret && guarded && i <= guarded[0]; i++)
		qcow2_guard_remove(&q->w->guard, guarded[i]);
	free(guarded);
	return ret;
}

/* ---- the directory ---- */

static size_t directory_bytes(const struct qcow2_bitmaps *s)
{
	size_t bytes = 0;

	for (uint32_t i = 0; i < s->nr; i++)
		bytes += ENTRY_BYTES(strlen(s->list[i].name));
	return bytes;
}

static void put_entry(const struct qcow2_bitmap *m, uint8_t *to)
{
	const struct qcow2_disk_bitmap d = {
		.table = htobe64(m->table),
		.entries = htobe32(m->entries),
		.flags = htobe32((m->in_use ? FLAG_IN_USE : 0) | (m->recording ? FLAG_AUTO : 0)),
		.kind = KIND_DIRTY,
		.granularity_bits = (uint8_t)__builtin_ctz(m->granularity),
		.name_bytes = htobe16((uint16_t)strlen(m->name)),
	};

	memcpy(to, &d, sizeof(d));
	memcpy(to + sizeof(d), m->name, strlen(m->name));
}

static int write_directory(struct block_qcow2 *q, const struct qcow2_bitmaps *s, uint64_t at,
			   struct pgr_error *err)
{
	size_t bytes = (size_t)cluster_up(q, directory_bytes(s)), used = 0;
	uint8_t *buffer = block_memory(bytes);
	int ret;

	if (!buffer)
		return no_memory(q, err);
	memset(buffer, 0, bytes);
	for (uint32_t i = 0; i < s->nr; i++) {
		put_entry(&s->list[i], buffer + used);
		used += ENTRY_BYTES(strlen(s->list[i].name));
	}
	ret = block_write(q->file, at, buffer, bytes, 0, err);
	free(buffer);
	return ret;
}

static bool is_kept_up(const struct qcow2_bitmap *m)
{
	return m->recording && m->dirty;
}

/* The marks of those that are kept up here, durably. */
static int mark(struct block_qcow2 *q, bool in_use, struct pgr_error *err)
{
	bool changed = false;
	int ret;

	for (uint32_t i = 0; i < q->bitmaps.nr; i++) {
		struct qcow2_bitmap *m = &q->bitmaps.list[i];

		if (is_kept_up(m) && m->in_use != in_use) {
			m->in_use = in_use;
			changed = true;
		}
	}
	if (!changed)
		return 0;
	ret = write_directory(q, &q->bitmaps, q->h.bitmaps_offset, err);
	return ret ? ret : block_flush(q->file, err);
}

int qcow2_bitmaps_open(struct block_qcow2 *q, struct pgr_error *err)
{
	int ret = load_all(q, false, err);

	if (!ret)
		ret = guard_all(q, err);
	if (!ret)
		ret = mark(q, true, err);
	for (uint32_t i = 0; i < q->bitmaps.nr && !ret; i++)
		if (is_kept_up(&q->bitmaps.list[i]))
			dirty_attach(q->bitmaps.list[i].dirty, &q->b);
	if (ret)
		qcow2_bitmaps_free(q);
	return ret;
}

/* ---- storing ---- */

/* What a table is going to say, and what is free then. */
struct storing {
	uint64_t **entry; /* of each bitmap */
	uint8_t *buffer;
};

static bool is_all(const uint8_t *bytes, size_t length, uint8_t value)
{
	for (size_t i = 0; i < length; i++)
		if (bytes[i] != value)
			return false;
	return true;
}

static int store_part(struct block_qcow2 *q, struct storing *s, uint32_t index, uint32_t i,
		      struct pgr_error *err)
{
	const struct qcow2_bitmap *m = &q->bitmaps.list[index];
	size_t length = part_of(q, m, i);
	uint64_t cluster;
	int ret;

	memset(s->buffer, 0, q->h.cluster_size);
	dirty_map_get(m->dirty, (uint64_t)i << q->h.cluster_bits, s->buffer, length);
	if (is_all(s->buffer, length, 0) || is_all(s->buffer, length, 0xff)) {
		s->entry[index][i] = s->buffer[0] ? TABLE_ONES : 0;
		return 0;
	}
	ret = qcow2_take_all(q, 1, &cluster, err);
	if (!ret)
		ret = qcow2_guard_new(q, cluster, 1, err);
	if (ret)
		return ret;
	s->entry[index][i] = cluster << q->h.cluster_bits;
	return block_write(q->file, s->entry[index][i], s->buffer, q->h.cluster_size, 0, err);
}

static int write_table(struct block_qcow2 *q, const struct qcow2_bitmap *m, const uint64_t *entry,
		       struct pgr_error *err)
{
	size_t bytes = (size_t)cluster_up(q, m->entries * 8ull);
	uint64_t *table = block_memory(bytes);
	int ret;

	if (!table)
		return no_memory(q, err);
	memset(table, 0, bytes);
	for (uint32_t i = 0; i < m->entries; i++)
		table[i] = htobe64(entry[i]);
	ret = block_write(q->file, m->table, table, bytes, 0, err);
	free(table);
	return ret;
}

/* Nothing names it any more. */
static void give_back(struct block_qcow2 *q, uint64_t at, uint64_t bytes)
{
	uint64_t cluster = at >> q->h.cluster_bits, nr = cluster_up(q, bytes) >> q->h.cluster_bits;

	qcow2_unguard(q, cluster, nr);
	qcow2_give_back(q, cluster, nr, false);
}

static int store_bits(struct block_qcow2 *q, struct storing *s, struct pgr_error *err)
{
	int ret = 0;

	for (uint32_t n = 0; n < q->bitmaps.nr && !ret; n++) {
		const struct qcow2_bitmap *m = &q->bitmaps.list[n];

		if (!is_kept_up(m))
			continue;
		s->entry[n] = calloc(m->entries + 1ull, sizeof(uint64_t));
		if (!s->entry[n])
			ret = no_memory(q, err);
		for (uint32_t i = 0; i < m->entries && !ret; i++)
			ret = store_part(q, s, n, i, err);
	}
	if (!ret)
		ret = qcow2_image_flush(&q->b, err);
	for (uint32_t n = 0; n < q->bitmaps.nr && !ret; n++)
		if (s->entry[n])
			ret = write_table(q, &q->bitmaps.list[n], s->entry[n], err);
	return ret ? ret : block_flush(q->file, err);
}

static void use_new_tables(struct block_qcow2 *q, struct storing *s)
{
	for (uint32_t n = 0; n < q->bitmaps.nr; n++) {
		struct qcow2_bitmap *m = &q->bitmaps.list[n];

		for (uint32_t i = 0; s->entry[n] && i < m->entries; i++)
			if (m->entry[i] & QCOW2_OFFSET_MASK)
				give_back(q, m->entry[i], 1);
		if (s->entry[n]) {
			free(m->entry);
			m->entry = s->entry[n];
			s->entry[n] = NULL;
		}
	}
}

int qcow2_bitmaps_store(struct block_qcow2 *q, struct pgr_error *err)
{
	struct storing s = {.entry = NULL};
	bool any = false;
	int ret;

	for (uint32_t i = 0; i < q->bitmaps.nr; i++)
		any = any || is_kept_up(&q->bitmaps.list[i]);
	if (!any || q->w->broken)
		return 0;
	s.entry = calloc(q->bitmaps.nr, sizeof(*s.entry));
	s.buffer = block_memory(q->h.cluster_size);
	ret = s.entry && s.buffer ? store_bits(q, &s, err) : no_memory(q, err);
	if (!ret)
		ret = mark(q, false, err);
	if (!ret)
		use_new_tables(q, &s);
	for (uint32_t i = 0; s.entry && i < q->bitmaps.nr; i++)
		free(s.entry[i]);
	free(s.entry);
	free(s.buffer);
	return ret;
}

/* ---- more of them, or fewer ---- */

/* Another directory, durably; the old one is free. */
static int replace_directory(struct block_qcow2 *q, const struct qcow2_bitmaps *s,
			     struct pgr_error *err)
{
	uint64_t bytes = directory_bytes(s), nr = cluster_up(q, bytes) >> q->h.cluster_bits;
	uint64_t old = q->h.bitmaps_offset, old_bytes = q->h.nr_bitmaps ? q->h.bitmaps_bytes : 0;
	uint64_t cluster = 0;
	int ret = nr ? qcow2_take_all(q, nr, &cluster, err) : 0;

	if (!ret && nr)
		ret = qcow2_guard_new(q, cluster, nr, err);
	if (!ret && nr)
		ret = write_directory(q, s, cluster << q->h.cluster_bits, err);
	if (!ret)
		ret = qcow2_image_flush(&q->b, err);
	if (!ret)
		ret = qcow2_header_set_bitmaps(q, s->nr, bytes, cluster << q->h.cluster_bits, err);
	if (ret) {
		/* The header may name it nevertheless. */
		if (nr && cluster && !q->w->first_stale)
			give_back(q, cluster << q->h.cluster_bits, bytes);
		return ret;
	}
	if (old_bytes)
		give_back(q, old, old_bytes);
	return 0;
}

static int check_new(struct block_qcow2 *q, const char *name, uint32_t granularity,
		     struct pgr_error *err)
{
	uint64_t memory = bytes_of(q->h.size, granularity ? granularity : 1);

	if (q->h.version < 3)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: an image of version 2 has no dirty bitmaps; make it one of version 3: qemu-img amend -o compat=1.1",
			q->b.info.name);
	if (!name[0] || strlen(name) > QCOW2_BITMAP_NAME_MAX)
		return pgr_fail(err, -EINVAL, "a bitmap has a name of 1 to %u bytes",
				QCOW2_BITMAP_NAME_MAX);
	for (uint32_t i = 0; i < q->bitmaps.nr; i++) {
		const struct qcow2_bitmap *m = &q->bitmaps.list[i];

		if (!strcmp(m->name, name))
			return pgr_fail(err, -EEXIST, "%s: has a bitmap \"%s\" already",
					q->b.info.name, name);
		memory += m->entries * 8ull + bytes_of(q->h.size, m->granularity);
	}
	if (granularity < 1u << GRANULARITY_MIN || granularity & (granularity - 1))
		return pgr_fail(
			err, -EINVAL,
			"a bitmap has a bit for a power of two from 512 bytes to 2 GiB, not for %u",
			granularity);
	if (!q->h.size || q->bitmaps.nr == QCOW2_BITMAPS_MAX ||
	    memory + entries_of(q, granularity) * 8 > QCOW2_BITMAP_BYTES_MAX)
		return pgr_fail(
			err, -EFBIG,
			"%s: its bitmaps would be too many or too large; choose a larger granularity",
			q->b.info.name);
	return 0;
}

static int new_table(struct block_qcow2 *q, struct qcow2_bitmap *m, struct pgr_error *err)
{
	uint64_t cluster, nr = cluster_up(q, m->entries * 8ull) >> q->h.cluster_bits;
	int ret;

	m->entry = calloc(m->entries + 1ull, sizeof(*m->entry));
	if (!m->entry)
		return no_memory(q, err);
	ret = qcow2_take_all(q, nr, &cluster, err);
	if (!ret)
		ret = qcow2_guard_new(q, cluster, nr, err);
	if (ret)
		return ret;
	m->table = cluster << q->h.cluster_bits;
	ret = write_table(q, m, m->entry, err);
	if (ret)
		give_back(q, m->table, m->entries * 8ull);
	return ret;
}

/* Nothing is set in it; marked as in use. */
static int add(struct block_qcow2 *q, const char *name, uint32_t granularity, struct pgr_error *err)
{
	struct qcow2_bitmaps more = {
		.list = calloc(q->bitmaps.nr + 1, sizeof(*more.list)),
		.nr = q->bitmaps.nr + 1,
	};
	struct qcow2_bitmap *m = more.list ? &more.list[q->bitmaps.nr] : NULL;
	int ret;

	if (!m)
		return no_memory(q, err);
	if (q->bitmaps.nr)
		memcpy(more.list, q->bitmaps.list, q->bitmaps.nr * sizeof(*m));
	*m = (struct qcow2_bitmap){.granularity = granularity,
				   .recording = true,
				   .in_use = true,
				   .entries = (uint32_t)entries_of(q, granularity)};
	memcpy(m->name, name, strlen(name));
	ret = new_table(q, m, err);
	if (!ret) {
		ret = replace_directory(q, &more, err);
		if (ret && !q->w->first_stale)
			give_back(q, m->table, m->entries * 8ull);
	}
	if (ret) {
		free(m->entry);
		free(more.list);
		return ret;
	}
	free(q->bitmaps.list);
	q->bitmaps = more;
	return 0;
}

static int check_image(const struct block *b, bool writable, struct pgr_error *err)
{
	if (strcmp(b->info.driver, "qcow2") != 0)
		return pgr_fail(err, -EOPNOTSUPP, "%s: only qcow2 images have dirty bitmaps",
				b->info.name);
	if (writable && b->info.read_only)
		return pgr_fail(err, -EROFS, "%s: opened for reading only", b->info.name);
	return 0;
}

int qcow2_bitmap_add(struct block *image, const char *name, uint32_t granularity,
		     struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(image);
	struct dirty *dirty = NULL;
	int ret = check_image(image, true, err);

	if (!ret)
		ret = qcow2_check_whole(q, err);
	if (!ret)
		ret = check_new(q, name, granularity, err);
	if (!ret)
		ret = dirty_create(q->h.size, granularity, &dirty, err);
	if (ret)
		return ret;
	/* Nothing is written meanwhile that it would not have. */
	block_quiesce(image);
	ret = add(q, name, granularity, err);
	if (!ret) {
		q->bitmaps.list[q->bitmaps.nr - 1].dirty = dirty;
		dirty_attach(dirty, image);
	} else {
		dirty_free(dirty);
	}
	block_resume(image);
	return ret;
}

static struct qcow2_bitmap *find(struct block_qcow2 *q, const char *name, struct pgr_error *err)
{
	for (uint32_t i = 0; i < q->bitmaps.nr; i++)
		if (!strcmp(q->bitmaps.list[i].name, name))
			return &q->bitmaps.list[i];
	pgr_fail(err, -ENOENT,
		 "%s: has no bitmap \"%.200s\"; pagurus disk bitmap list shows those that it has",
		 q->b.info.name, name);
	return NULL;
}

/* It is in no directory any more. */
static void drop(struct block_qcow2 *q, struct qcow2_bitmap *m)
{
	for (uint32_t i = 0; i < m->entries; i++)
		if (m->entry[i] & QCOW2_OFFSET_MASK)
			give_back(q, m->entry[i], 1);
	give_back(q, m->table, m->entries * 8ull);
	dirty_free(m->dirty);
	free(m->entry);
}

int qcow2_bitmap_remove(struct block *image, const char *name, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(image);
	struct qcow2_bitmap *m, gone;
	struct qcow2_bitmaps fewer;
	int ret = check_image(image, true, err);

	m = ret ? NULL : find(q, name, err);
	if (!m)
		return ret ? ret : -ENOENT;
	fewer.nr = q->bitmaps.nr - 1;
	fewer.list = calloc(q->bitmaps.nr, sizeof(*fewer.list));
	if (!fewer.list)
		return no_memory(q, err);
	gone = *m;
	for (uint32_t i = 0, n = 0; i < q->bitmaps.nr; i++)
		if (&q->bitmaps.list[i] != m)
			fewer.list[n++] = q->bitmaps.list[i];
	block_quiesce(image);
	ret = replace_directory(q, &fewer, err);
	if (!ret) {
		drop(q, &gone);
		free(q->bitmaps.list);
		q->bitmaps = fewer;
	} else {
		free(fewer.list);
	}
	block_resume(image);
	return ret;
}

/* ---- using them ---- */

int qcow2_bitmaps(struct block *image, const struct qcow2_bitmaps **out, struct pgr_error *err)
{
	int ret = check_image(image, false, err);

	if (!ret)
		ret = load_all(to_qcow2(image), true, err);
	if (!ret)
		*out = &to_qcow2(image)->bitmaps;
	return ret;
}

int qcow2_bitmap_find(struct block *image, const char *name, struct dirty **out,
		      struct pgr_error *err)
{
	const struct qcow2_bitmaps *all;
	const struct qcow2_bitmap *m;
	int ret = qcow2_bitmaps(image, &all, err);

	m = ret ? NULL : find(to_qcow2(image), name, err);
	if (!m)
		return ret ? ret : -ENOENT;
	if (!m->dirty)
		return pgr_fail(
			err, -EUCLEAN,
			"%s: the bitmap \"%.200s\" is inconsistent, for the program that kept it did not close the image; remove it and make a full backup: pagurus disk bitmap remove",
			image->info.name, name);
	*out = m->dirty;
	return 0;
}

int qcow2_bitmap_clear(struct block *image, const char *name, struct pgr_error *err)
{
	struct dirty *dirty;
	int ret = check_image(image, true, err);

	if (!ret)
		ret = qcow2_bitmap_find(image, name, &dirty, err);
	if (!ret && !is_kept_up(find(to_qcow2(image), name, NULL)))
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: the bitmap \"%.200s\" does not record; qemu-img bitmap --enable makes it",
			image->info.name, name);
	if (!ret)
		dirty_clear(dirty);
	return ret;
}

/* ---- another layer takes over ---- */

int qcow2_bitmaps_prepare_next(struct block_qcow2 *q, struct block_qcow2 *next,
			       struct pgr_error *err)
{
	int ret = 0;

	for (uint32_t i = 0; i < q->bitmaps.nr && !ret; i++)
		if (is_kept_up(&q->bitmaps.list[i]))
			ret = add(next, q->bitmaps.list[i].name, q->bitmaps.list[i].granularity,
				  err);
	return ret;
}

void qcow2_bitmaps_hand_over(struct block_qcow2 *from, struct block_qcow2 *to)
{
	for (uint32_t i = 0; i < to->bitmaps.nr; i++) {
		struct qcow2_bitmap *m = find(from, to->bitmaps.list[i].name, NULL);

		if (!m)
			continue;
		to->bitmaps.list[i].dirty = m->dirty;
		m->dirty = NULL;
	}
}
