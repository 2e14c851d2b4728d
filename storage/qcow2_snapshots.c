// SPDX-License-Identifier: MIT
#include "storage/qcow2_snapshots.h"

#include <errno.h>
#include <stdlib.h>

struct disk_snapshot {
	uint64_t l1_offset;
	uint32_t l1_entries;
	uint16_t id_length, name_length;
	uint32_t seconds, nanoseconds;
	uint64_t ran;
	uint32_t state_bytes, extra_bytes;
};
_Static_assert(sizeof(struct disk_snapshot) == 40, "as the format has it");

static int bad(struct block *file, uint32_t index, const char *why, struct pgr_error *err)
{
	return pgr_fail(err, -EINVAL, "%s: damaged: snapshot %u in it %s", block_info(file)->name,
			index, why);
}

static int load_one(struct block *file, const struct qcow2_header *h, uint32_t index, uint64_t *at,
		    struct qcow2_snapshot *out, struct pgr_error *err)
{
	uint64_t size = block_info(file)->size, length;
	struct disk_snapshot d;
	int ret;

	if (*at > size || size - *at < sizeof(d))
		return bad(file, index, "is beyond the end of the file", err);
	ret = block_read(file, *at, &d, sizeof(d), err);
	if (ret)
		return ret;
	out->l1_offset = be64toh(d.l1_offset);
	out->l1_entries = be32toh(d.l1_entries);
	length = out->l1_entries * 8ull;
	if (out->l1_offset & (h->cluster_size - 1) || length > QCOW2_L1_BYTES_MAX ||
	    (length &&
	     (!out->l1_offset || out->l1_offset > size || length > size - out->l1_offset)))
		return bad(file, index, "has a first table that is not inside the file", err);
	*at += sizeof(d) + (uint64_t)be32toh(d.extra_bytes) + be16toh(d.id_length) +
	       be16toh(d.name_length);
	*at = (*at + 7) & ~7ull;
	return 0;
}

int qcow2_snapshots_load(struct block *file, const struct qcow2_header *h,
			 struct qcow2_snapshot **out, uint64_t *bytes, struct pgr_error *err)
{
	uint64_t at = h->snapshots_offset, tables = 0;
	struct qcow2_snapshot *list;
	int ret = 0;

	*out = NULL;
	*bytes = 0;
	if (!h->nr_snapshots)
		return 0;
	if (h->nr_snapshots > QCOW2_SNAPSHOTS_MAX)
		return pgr_fail(err, -EFBIG, "%s: has %u snapshots in it, more than %u",
				block_info(file)->name, h->nr_snapshots, QCOW2_SNAPSHOTS_MAX);
	if (at & (h->cluster_size - 1) || !at)
		return bad(file, 0, "is not at the beginning of a cluster", err);
	list = calloc(h->nr_snapshots, sizeof(*list));
	if (!list)
		return pgr_fail(err, -ENOMEM, "%s: no memory for the list of its snapshots",
				block_info(file)->name);
	for (uint32_t i = 0; i < h->nr_snapshots && !ret; i++) {
		ret = load_one(file, h, i, &at, &list[i], err);
		tables += list[i].l1_entries * 8ull;
		if (!ret && tables > QCOW2_SNAPSHOT_BYTES_MAX)
			ret = pgr_fail(err, -EFBIG,
				       "%s: the tables of the snapshots in it are too large",
				       block_info(file)->name);
	}
	if (ret) {
		free(list);
		return ret;
	}
	*out = list;
	*bytes = at - h->snapshots_offset;
	return 0;
}

int qcow2_l1_load(struct block *file, uint64_t offset, uint32_t entries, uint64_t **out,
		  struct pgr_error *err)
{
	const size_t bytes = entries * sizeof(uint64_t);
	int ret = 0;

	*out = malloc(bytes + 1);
	if (!*out)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its first table",
				block_info(file)->name);
	if (bytes)
		ret = block_read(file, offset, *out, bytes, err);
	if (ret) {
		free(*out);
		*out = NULL;
	}
	return ret;
}
