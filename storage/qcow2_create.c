// SPDX-License-Identifier: MIT
/*
 * A new image: header, table of counts, blocks of counts, first table, one after the other. The header is written last, and flushed: a file that
 * was cut in between is no image.
 */
#include "storage/qcow2_create.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"
#include "storage/qcow2.h"

#define DEFAULT_CLUSTER (64u << 10)
#define COUNT_ORDER	4u /* 16 bits */

struct layout {
	uint32_t cluster_bits;
	uint64_t entries; /* of the first table */
	uint64_t reftable, blocks,
		tables; /* clusters: of the table of counts, its blocks, the first table */
};

static uint64_t up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit;
}

static int plan(const char *name, const struct qcow2_creation *c, struct layout *y,
		struct pgr_error *err)
{
	uint64_t cluster = c->cluster_size ? c->cluster_size : DEFAULT_CLUSTER;
	uint64_t counts = cluster * 8 >> COUNT_ORDER, covers = cluster * (cluster / 8);

	if (cluster & (cluster - 1) || cluster < 1u << QCOW2_CLUSTER_BITS_MIN ||
	    cluster > 1u << QCOW2_CLUSTER_BITS_MAX)
		return pgr_fail(err, -EINVAL,
				"%s: clusters have 512 bytes to 2 MiB, a power of two, not %llu",
				name, (unsigned long long)cluster);
	*y = (struct layout){.cluster_bits = (uint32_t)__builtin_ctzll(cluster),
			     .entries = c->size / covers + !!(c->size % covers)};
	if (y->entries > QCOW2_L1_BYTES_MAX / 8)
		return pgr_fail(
			err, -EINVAL,
			"%s: with clusters of %llu bytes an image has at most %llu bytes; choose larger clusters",
			name, (unsigned long long)cluster,
			(unsigned long long)(QCOW2_L1_BYTES_MAX / 8 * covers));
	y->tables = up(y->entries * 8, cluster);
	if (!y->tables)
		y->tables = 1;
	for (uint64_t before = ~0ull; before != y->blocks + y->reftable;) {
		before = y->blocks + y->reftable;
		y->blocks = up(1 + before + y->tables, counts);
		y->reftable = up(y->blocks * 8, cluster);
	}
	return 0;
}

/* Table of counts and its blocks. */
static void fill_counts(const struct layout *y, uint8_t *to)
{
	uint64_t cluster = 1ull << y->cluster_bits, used = 1 + y->reftable + y->blocks + y->tables;
	uint64_t *table = (uint64_t *)to;
	uint8_t *blocks = to + (y->reftable << y->cluster_bits);

	for (uint64_t i = 0; i < y->blocks; i++)
		table[i] = htobe64((1 + y->reftable + i) << y->cluster_bits);
	/* The blocks follow each other: together they are one. */
	for (uint64_t i = 0; i < used && i < y->blocks * (cluster * 8 >> COUNT_ORDER); i++)
		qcow2_count_set(blocks, COUNT_ORDER, i, 1);
}

static int fill_header(const char *name, const struct qcow2_creation *c, const struct layout *y,
		       uint8_t *to, struct pgr_error *err)
{
	struct qcow2_disk_header h = {
		.magic = htobe32(QCOW2_MAGIC),
		.version = htobe32(3),
		.cluster_bits = htobe32(y->cluster_bits),
		.size = htobe64(c->size),
		.l1_entries = htobe32((uint32_t)y->entries),
		.l1_offset = htobe64((1 + y->reftable + y->blocks) << y->cluster_bits),
		.refcount_offset = htobe64(1ull << y->cluster_bits),
		.refcount_clusters = htobe32((uint32_t)y->reftable),
		.refcount_order = htobe32(COUNT_ORDER),
		.header_length = htobe32(sizeof(h)),
	};
	size_t at = sizeof(h), length = c->backing ? strlen(c->backing) : 0;
	size_t format = c->backing ? strlen(c->backing_format) : 0;

	if (c->backing) {
		uint32_t extension[2] = {htobe32(QCOW2_EXTENSION_FORMAT),
					 htobe32((uint32_t)format)};

		if (length > QCOW2_BACKING_MAX || at + 24 + format + length > 1u << y->cluster_bits)
			return pgr_fail(err, -EINVAL,
					"%s: the name of its backing file has %zu bytes, too many",
					name, length);
		memcpy(to + at, extension, sizeof(extension));
		memcpy(to + at + sizeof(extension), c->backing_format, format);
		at += sizeof(extension) + (format + 7) / 8 * 8;
		at += 8; /* the end of the extensions */
		memcpy(to + at, c->backing, length);
		h.backing_offset = htobe64(at);
		h.backing_size = htobe32((uint32_t)length);
	}
	memcpy(to, &h, sizeof(h));
	return 0;
}

int qcow2_create(struct block *file, const struct qcow2_creation *c, struct pgr_error *err)
{
	const char *name = block_info(file)->name;
	size_t cluster, counts, tables;
	uint8_t *buffer, *zeros;
	struct layout y = {.cluster_bits = 0};
	int ret = plan(name, c, &y, err);

	if (ret)
		return ret;
	cluster = (size_t)1 << y.cluster_bits;
	counts = (y.reftable + y.blocks) << y.cluster_bits;
	tables = y.tables << y.cluster_bits;
	buffer = block_memory(cluster + counts);
	zeros = block_memory(tables);
	if (!buffer || !zeros) {
		ret = pgr_fail(err, -ENOMEM, "%s: no memory for its tables", name);
		goto out;
	}
	memset(buffer, 0, cluster + counts);
	memset(zeros, 0, tables);
	fill_counts(&y, buffer + cluster);
	ret = fill_header(name, c, &y, buffer, err);
	if (!ret)
		ret = block_write(file, cluster + counts, zeros, tables, 0, err);
	if (!ret)
		ret = block_write(file, cluster, buffer + cluster, counts, 0, err);
	if (!ret)
		ret = block_flush(file, err);
	if (!ret)
		ret = block_write(file, 0, buffer, cluster, 0, err);
	if (!ret)
		ret = block_flush(file, err);
out:
	free(buffer);
	free(zeros);
	return ret;
}
