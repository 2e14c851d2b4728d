// SPDX-License-Identifier: MIT
/* Header and header extensions. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/text.h"
#include "storage/qcow2.h"

#define HEADER_READ \
	65536u /* the first cluster, which has all of the header, where that has the usual size */

#define EXTENSION_END	0u
#define HEADER_LENGTH_2 72u
#define HEADER_LENGTH_3 104u
#define FEATURE_NAME	46u
#define FEATURE_ENTRY	(2u + FEATURE_NAME)
#define KNOWN_INCOMPATIBLE \
	(QCOW2_INCOMPATIBLE_DIRTY | QCOW2_INCOMPATIBLE_CORRUPT | QCOW2_INCOMPATIBLE_COMPRESSION)

bool qcow2_is_image(const uint8_t *bytes, size_t length)
{
	uint32_t magic;

	if (length < sizeof(magic))
		return false;
	memcpy(&magic, bytes, sizeof(magic));
	return be32toh(magic) == QCOW2_MAGIC;
}

struct extension {
	uint32_t type, length;
	const uint8_t *data;
};

/* The extension at *at, which moves on; false: there is none any more. Broken ones are an end, too, and *broken is set. */
static bool next_extension(const uint8_t *bytes, size_t end, size_t *at, struct extension *out,
			   bool *broken)
{
	uint32_t word[2];

	if (*at >= end)
		return false;
	if (end - *at < sizeof(word)) {
		/* Fewer bytes than an extension needs: there is none. */
		return false;
	}
	memcpy(word, bytes + *at, sizeof(word));
	*out = (struct extension){.type = be32toh(word[0]),
				  .length = be32toh(word[1]),
				  .data = bytes + *at + sizeof(word)};
	*at += sizeof(word);
	if (out->type == EXTENSION_END)
		return false;
	if (out->length > end - *at) {
		*broken = true;
		return false;
	}
	*at += out->length;
	*at += -*at & 7;
	return true;
}

/* What the image itself calls an incompatible feature, or its number. */
static void feature_name(const uint8_t *bytes, size_t end, size_t at, unsigned bit, char *out,
			 size_t size)
{
	struct extension e;
	bool broken = false;

	snprintf(out, size, "bit %u", bit);
	while (next_extension(bytes, end, &at, &e, &broken)) {
		if (e.type != QCOW2_EXTENSION_FEATURES)
			continue;
		for (uint32_t i = 0; i + FEATURE_ENTRY <= e.length; i += FEATURE_ENTRY)
			if (e.data[i] == 0 && e.data[i + 1] == bit)
				text_plain(out, size, (const char *)e.data + i + 2,
					   strnlen((const char *)e.data + i + 2, FEATURE_NAME));
	}
}

static int check_features(const struct qcow2_header *h, const uint8_t *bytes, size_t end, size_t at,
			  const char *name, struct pgr_error *err)
{
	uint64_t unknown = h->incompatible & ~KNOWN_INCOMPATIBLE;
	char feature[64];

	if (h->incompatible & QCOW2_INCOMPATIBLE_DATA_FILE)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: keeps its data in another file, which is not supported; make an image without that: qemu-img convert -O qcow2",
			name);
	if (h->incompatible & QCOW2_INCOMPATIBLE_EXTENDED_L2)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: has subclusters (extended L2 entries), which are not supported; make an image without: qemu-img convert -O qcow2",
			name);
	if (!unknown)
		return 0;
	feature_name(bytes, end, at, (unsigned)__builtin_ctzll(unknown), feature, sizeof(feature));
	return pgr_fail(
		err, -EOPNOTSUPP,
		"%s: uses the feature \"%s\", which is not known here; convert it with the program that made it",
		name, feature);
}

static bool table_is_inside(const struct qcow2_header *h, uint64_t offset, uint64_t bytes,
			    uint64_t file_size)
{
	return !(offset & (h->cluster_size - 1)) && offset && offset <= file_size &&
	       bytes <= file_size - offset;
}

static int check_geometry(const struct qcow2_header *h, uint64_t file_size, const char *name,
			  struct pgr_error *err)
{
	uint64_t covers = qcow2_l2_covers(h), needed;

	if (h->size > (1ull << 62))
		return pgr_fail(err, -EINVAL,
				"%s: the header says %llu bytes, more than a disk can have", name,
				(unsigned long long)h->size);
	needed = h->size / covers + !!(h->size % covers);
	if (h->l1_entries < needed || h->l1_entries > QCOW2_L1_BYTES_MAX / 8)
		return pgr_fail(
			err, -EINVAL,
			"%s: its first table has %u entries where %llu are needed, and at most %u allowed",
			name, h->l1_entries, (unsigned long long)needed, QCOW2_L1_BYTES_MAX / 8);
	if (h->l1_entries && !table_is_inside(h, h->l1_offset, h->l1_entries * 8ull, file_size))
		return pgr_fail(
			err, -EINVAL,
			"%s: its first table, at %llu, is not inside the file; the file has been cut, or is damaged",
			name, (unsigned long long)h->l1_offset);
	if (h->refcount_clusters &&
	    !table_is_inside(h, h->refcount_offset,
			     (uint64_t)h->refcount_clusters << h->cluster_bits,
			     file_size + h->cluster_size))
		return pgr_fail(
			err, -EINVAL,
			"%s: its table of reference counts, at %llu, is not inside the file", name,
			(unsigned long long)h->refcount_offset);
	return 0;
}

static int parse_backing(const struct qcow2_disk_header *d, const uint8_t *bytes, size_t length,
			 const char *name, struct qcow2_header *h, struct pgr_error *err)
{
	uint64_t offset = be64toh(d->backing_offset);
	uint32_t size = be32toh(d->backing_size);

	if (!offset || !size)
		return 0;
	if (size > QCOW2_BACKING_MAX || offset > length || size > length - offset)
		return pgr_fail(err, -EINVAL,
				"%s: the name of its backing file is not inside the header", name);
	memcpy(h->backing, bytes + offset, size);
	if (strlen(h->backing) != size)
		return pgr_fail(err, -EINVAL,
				"%s: the name of its backing file has a zero byte in it", name);
	return 0;
}

static void parse_bitmaps(const struct extension *e, struct qcow2_header *h)
{
	struct qcow2_disk_bitmaps_extension b;
	const size_t head = offsetof(struct qcow2_disk_bitmaps_extension, nr);

	if (e->length < sizeof(b) - head || !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
		return;
	memcpy((uint8_t *)&b + head, e->data, sizeof(b) - head);
	h->nr_bitmaps = be32toh(b.nr);
	h->bitmaps_bytes = be64toh(b.bytes);
	h->bitmaps_offset = be64toh(b.offset);
}

static int parse_extensions(const uint8_t *bytes, size_t end, size_t at, const char *name,
			    struct qcow2_header *h, struct pgr_error *err)
{
	struct extension e;
	bool broken = false;

	while (next_extension(bytes, end, &at, &e, &broken)) {
		if (e.type == QCOW2_EXTENSION_BITMAPS)
			parse_bitmaps(&e, h);
		if (e.type != QCOW2_EXTENSION_FORMAT)
			continue;
		if (e.length >= sizeof(h->backing_format))
			return pgr_fail(err, -EINVAL,
					"%s: the format of its backing file is a name of %u bytes",
					name, e.length);
		memset(h->backing_format, 0, sizeof(h->backing_format));
		memcpy(h->backing_format, e.data, e.length);
	}
	return broken ? pgr_fail(err, -EINVAL, "%s: a part of its header is longer than the header",
				 name)
		      : 0;
}

static int parse_version_3(const struct qcow2_disk_header *d, uint32_t header_length,
			   const char *name, struct qcow2_header *h, struct pgr_error *err)
{
	uint8_t compression = header_length > offsetof(struct qcow2_disk_header, compression)
				      ? d->compression
				      : 0;

	h->incompatible = be64toh(d->incompatible);
	h->compatible = be64toh(d->compatible);
	h->autoclear = be64toh(d->autoclear);
	h->refcount_order = be32toh(d->refcount_order);
	if (h->refcount_order > 6)
		return pgr_fail(err, -EINVAL, "%s: its reference counts have 2^%u bits", name,
				h->refcount_order);
	if (!(h->incompatible & QCOW2_INCOMPATIBLE_COMPRESSION) != !compression)
		return pgr_fail(err, -EINVAL,
				"%s: its header says twice how it is compressed, and not the same",
				name);
	if (compression > QCOW2_ZSTD)
		return pgr_fail(err, -EOPNOTSUPP,
				"%s: compressed by method %u; zlib (0) and zstd (1) are known here",
				name, compression);
	h->compression = (enum qcow2_compression)compression;
	return 0;
}

int qcow2_header_parse(const uint8_t *bytes, size_t length, uint64_t file_size, const char *name,
		       struct qcow2_header *h, struct pgr_error *err)
{
	struct qcow2_disk_header d = {0};
	uint32_t header_length = HEADER_LENGTH_2;
	uint64_t backing;
	size_t end;
	int ret;

	memset(h, 0, sizeof(*h));
	if (!qcow2_is_image(bytes, length) || length < HEADER_LENGTH_2)
		return pgr_fail(err, -EINVAL, "%s: not a qcow2 image", name);
	memcpy(&d, bytes, length < sizeof(d) ? length : sizeof(d));
	h->version = be32toh(d.version);
	if (h->version != 2 && h->version != 3)
		return pgr_fail(err, -EOPNOTSUPP, "%s: version %u of qcow2; 2 and 3 are known here",
				name, h->version);
	h->cluster_bits = be32toh(d.cluster_bits);
	if (h->cluster_bits < QCOW2_CLUSTER_BITS_MIN || h->cluster_bits > QCOW2_CLUSTER_BITS_MAX)
		return pgr_fail(err, -EINVAL,
				"%s: clusters of 2^%u bytes; 2^9 to 2^21 are possible", name,
				h->cluster_bits);
	h->cluster_size = 1u << h->cluster_bits;
	if (length > h->cluster_size)
		length = h->cluster_size;
	h->size = be64toh(d.size);
	h->l1_entries = be32toh(d.l1_entries);
	h->l1_offset = be64toh(d.l1_offset);
	h->refcount_offset = be64toh(d.refcount_offset);
	h->refcount_clusters = be32toh(d.refcount_clusters);
	h->refcount_order = 4;
	h->nr_snapshots = be32toh(d.nr_snapshots);
	h->snapshots_offset = be64toh(d.snapshots_offset);
	if (d.crypt_method)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"%s: encrypted (method %u), which is not supported; decrypt it with qemu-img convert",
			name, be32toh(d.crypt_method));
	if (h->version == 3) {
		header_length = be32toh(d.header_length);
		if (header_length < HEADER_LENGTH_3 || header_length & 7 || header_length > length)
			return pgr_fail(err, -EINVAL, "%s: a header of %u bytes", name,
					header_length);
		ret = parse_version_3(&d, header_length, name, h, err);
		if (ret)
			return ret;
	}
	/* Extensions end where the name of the backing file begins. */
	backing = be64toh(d.backing_offset);
	end = backing > header_length && backing < length ? (size_t)backing : length;
	ret = check_features(h, bytes, end, header_length, name, err);
	if (!ret)
		ret = parse_extensions(bytes, end, header_length, name, h, err);
	if (!ret)
		ret = parse_backing(&d, bytes, length, name, h, err);
	return ret ? ret : check_geometry(h, file_size, name, err);
}

/* The first bytes of the file into *bytes, which is freed and made again. */
static int read_first(struct block *file, uint8_t **bytes, size_t length, struct pgr_error *err)
{
	free(*bytes);
	*bytes = malloc(length + 1);
	return *bytes ? block_read(file, 0, *bytes, length, err)
		      : pgr_fail(err, -ENOMEM, "%s: no memory to read its header",
				 block_info(file)->name);
}

/* The size of the first cluster, if these are a header's first bytes. */
static size_t first_cluster(const uint8_t *bytes, size_t length)
{
	struct qcow2_disk_header d;
	uint32_t bits;

	if (length < sizeof(d) || !qcow2_is_image(bytes, length))
		return 0;
	memcpy(&d, bytes, sizeof(d));
	bits = be32toh(d.cluster_bits);
	return bits <= QCOW2_CLUSTER_BITS_MAX ? (size_t)1 << bits : 0;
}

int qcow2_header_load(struct block *file, struct qcow2_header *out, struct pgr_error *err)
{
	const struct block_info *info = block_info(file);
	size_t length = info->size < HEADER_READ ? (size_t)info->size : HEADER_READ, whole;
	uint8_t *bytes = NULL;
	int ret = read_first(file, &bytes, length, err);

	whole = ret ? 0 : first_cluster(bytes, length);
	if (whole > info->size)
		whole = (size_t)info->size;
	if (whole > length) {
		length = whole;
		ret = read_first(file, &bytes, length, err);
	}
	if (!ret)
		ret = qcow2_header_parse(bytes, length, info->size, info->name, out, err);
	free(bytes);
	return ret;
}

/* ---- tables ---- */

static int bad(const char **why, const char *text)
{
	*why = text;
	return -EIO;
}

static int check_cluster(const struct qcow2_header *h, uint64_t offset, uint64_t file_size,
			 const char **why)
{
	if (offset & (h->cluster_size - 1))
		return bad(why, "an offset that is not that of a cluster");
	if (offset >= file_size)
		return bad(why, "an offset beyond the end of the file");
	return 0;
}

int qcow2_l1_entry(const struct qcow2_header *h, uint64_t entry, uint64_t file_size, uint64_t *out,
		   const char **why)
{
	*out = entry & QCOW2_OFFSET_MASK;
	if (entry & QCOW2_L1_RESERVED)
		return bad(why, "reserved bits that are set");
	return *out ? check_cluster(h, *out, file_size, why) : 0;
}

int qcow2_entry(const struct qcow2_header *h, uint64_t entry, uint64_t file_size,
		struct qcow2_mapping *out, const char **why)
{
	unsigned bits = 62 - (h->cluster_bits - 8);

	*out = (struct qcow2_mapping){.kind = QCOW2_UNALLOCATED};
	if (entry & QCOW2_COMPRESSED) {
		out->kind = QCOW2_PACKED;
		out->at = entry & ((1ull << bits) - 1);
		out->bytes = (uint32_t)(((entry & (QCOW2_COMPRESSED - 1)) >> bits) + 1) * 512 -
			     (out->at & 511);
		if (entry >> 63)
			return bad(why, "a packed cluster that claims to have one owner");
		return out->at < file_size ? 0 : bad(why, "an offset beyond the end of the file");
	}
	if (entry & QCOW2_L2_RESERVED)
		return bad(why, "reserved bits that are set");
	out->at = entry & QCOW2_OFFSET_MASK;
	out->sole = entry & QCOW2_SOLE && out->at;
	if (entry & QCOW2_ZERO) {
		if (h->version < 3)
			return bad(why, "a cluster of zeros, which version 2 does not have");
		out->kind = QCOW2_ZEROS;
	} else if (out->at) {
		out->kind = QCOW2_DATA;
	} else {
		return 0;
	}
	return out->at ? check_cluster(h, out->at, file_size, why) : 0;
}
