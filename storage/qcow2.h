/* SPDX-License-Identifier: MIT */
/*
 * The qcow2 format: what its bytes mean. Versions 2 and 3, as docs/interop/qcow2 of QEMU describes them. Numbers are big-endian.
 *
 * qcow2_header_parse() and qcow2_entry() are pure functions over hostile bytes; whoever reads an image goes through them, and what they accept
 * is in range: offsets are whole clusters within the file, sizes are bounded, features are known.
 */
#ifndef PAGURUS_QCOW2_H
#define PAGURUS_QCOW2_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "common/error.h"
#include "storage/block.h"

#define QCOW2_MAGIC	       0x514649fbu /* "QFI\xfb" */
#define QCOW2_CLUSTER_BITS_MIN 9u
#define QCOW2_CLUSTER_BITS_MAX 21u	   /* QEMU's limit: 2 MiB */
#define QCOW2_L1_BYTES_MAX     (32u << 20) /* QEMU's limit */
#define QCOW2_BACKING_MAX      1023u
#define QCOW2_REFTABLE_MAX     (8u << 20) /* QEMU's limit, bytes */

#define QCOW2_INCOMPATIBLE_DIRTY       (1ull << 0)
#define QCOW2_INCOMPATIBLE_CORRUPT     (1ull << 1)
#define QCOW2_INCOMPATIBLE_DATA_FILE   (1ull << 2)
#define QCOW2_INCOMPATIBLE_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPATIBLE_EXTENDED_L2 (1ull << 4)
#define QCOW2_AUTOCLEAR_BITMAPS	       (1ull << 0)

#define QCOW2_EXTENSION_FORMAT	 0xe2792acau /* of the backing file */
#define QCOW2_EXTENSION_FEATURES 0x6803f857u
#define QCOW2_EXTENSION_BITMAPS	 0x23852875u

struct qcow2_disk_header {
	uint32_t magic, version;
	uint64_t backing_offset;
	uint32_t backing_size, cluster_bits;
	uint64_t size;
	uint32_t crypt_method, l1_entries;
	uint64_t l1_offset, refcount_offset;
	uint32_t refcount_clusters, nr_snapshots;
	uint64_t snapshots_offset;
	/* Version 3. */
	uint64_t incompatible, compatible, autoclear;
	uint32_t refcount_order, header_length;
	uint8_t compression, unused[7];
};
_Static_assert(sizeof(struct qcow2_disk_header) == 112, "as the format has it");
_Static_assert(offsetof(struct qcow2_disk_header, incompatible) == 72, "length of version 2");

/* The extension about dirty bitmaps, with what every extension begins with. */
struct qcow2_disk_bitmaps_extension {
	uint32_t type, length;
	uint32_t nr, reserved;
	uint64_t bytes, offset; /* of their directory */
};
_Static_assert(sizeof(struct qcow2_disk_bitmaps_extension) == 32, "as the format has it");

/* An entry of the directory; the name follows. */
struct qcow2_disk_bitmap {
	uint64_t table;
	uint32_t entries, flags;
	uint8_t kind, granularity_bits;
	uint16_t name_bytes;
	uint32_t extra_bytes;
};
_Static_assert(sizeof(struct qcow2_disk_bitmap) == 24, "as the format has it");

enum qcow2_compression { QCOW2_ZLIB = 0, QCOW2_ZSTD = 1 };

struct qcow2_header {
	uint32_t version, cluster_bits, cluster_size;
	uint64_t size;
	uint32_t l1_entries;
	uint64_t l1_offset;
	uint64_t refcount_offset;
	uint32_t refcount_clusters, refcount_order;
	uint32_t nr_snapshots;
	uint64_t snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	enum qcow2_compression compression;
	char backing[QCOW2_BACKING_MAX + 1]; /* "": none */
	char backing_format[16];	     /* "": not said */
	/* The directory of dirty bitmaps, when autoclear says that they are valid; 0: none. */
	uint64_t bitmaps_offset, bitmaps_bytes;
	uint32_t nr_bitmaps;
};

/* Whether the bytes, at least 4, begin as those of an image. */
bool qcow2_is_image(const uint8_t *bytes, size_t length);

/*
 * Parse the first `length` bytes of a file of file_size bytes: its first cluster, or all of it. name: for messages.
 * -EINVAL: no image, or one that contradicts itself; -EOPNOTSUPP: a feature that is not known here, by its name.
 */
int qcow2_header_parse(const uint8_t *bytes, size_t length, uint64_t file_size, const char *name,
		       struct qcow2_header *out, struct pgr_error *err);
/* The same of a file. -ENOMEM and those of reading it, too. Waiting. */
int qcow2_header_load(struct block *file, struct qcow2_header *out, struct pgr_error *err);

/* ---- tables ---- */

#define QCOW2_OFFSET_MASK 0x00fffffffffffe00ull
#define QCOW2_L1_RESERVED 0x7f000000000001ffull
#define QCOW2_L2_RESERVED 0x3f000000000001feull
#define QCOW2_COMPRESSED  (1ull << 62)
#define QCOW2_SOLE	  (1ull << 63)
#define QCOW2_ZERO	  1ull

enum qcow2_kind { QCOW2_UNALLOCATED, QCOW2_ZEROS, QCOW2_DATA, QCOW2_PACKED };

struct qcow2_mapping {
	enum qcow2_kind kind;
	uint64_t
		at; /* QCOW2_DATA, QCOW2_PACKED: offset in the file; QCOW2_ZEROS: that of its cluster, or 0 */
	uint32_t bytes; /* QCOW2_PACKED: how many there may be */
	bool sole;	/* its cluster is named by this entry alone, and may be written */
};

/* What an entry of an L2 table says. -EIO: it is not one; *why is a short reason. */
int qcow2_entry(const struct qcow2_header *h, uint64_t entry, uint64_t file_size,
		struct qcow2_mapping *out, const char **why);
/* The offset of the L2 table that an entry of the L1 table names, 0: none. -EIO as above. */
int qcow2_l1_entry(const struct qcow2_header *h, uint64_t entry, uint64_t file_size, uint64_t *out,
		   const char **why);

/* Entries of an L2 table, and the bytes of the disk that it describes: at most 2^39. */
static inline uint64_t qcow2_l2_entries(const struct qcow2_header *h)
{
	return h->cluster_size / 8;
}

static inline uint64_t qcow2_l2_covers(const struct qcow2_header *h)
{
	return qcow2_l2_entries(h) << h->cluster_bits;
}

/* The index-th count in a block of reference counts of 2^order bits each. */
uint64_t qcow2_count_get(const void *block, uint32_t order, uint64_t index);
void qcow2_count_set(void *block, uint32_t order, uint64_t index, uint64_t value);

/*
 * Unpack a cluster into out (cluster_size bytes). The input may have bytes behind the end of what is packed. -EIO: it does not unpack to a whole
 * cluster; -ENOMEM.
 */
int qcow2_unpack(const struct qcow2_header *h, const void *packed, size_t length, void *out);

#endif
