// SPDX-License-Identifier: MIT
/*
 * The header's extension about dirty bitmaps comes, changes or goes, in one sector: the header is the old one or the new one. All other extensions stay,
 * but for the names of features, when there is no room for them; a name of a backing file that is in the sector moves within it.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

#define HEADER_MOST (64u << 10)

struct header {
	uint8_t *old;
	size_t length; /* of what was read */
	uint8_t bytes[4096];
	size_t used, room;
};

static bool append(struct header *h, const void *data, size_t length)
{
	size_t padded = (length + 7) & ~(size_t)7;

	if (h->room - h->used < padded)
		return false;
	memset(h->bytes + h->used, 0, padded);
	memcpy(h->bytes + h->used, data, length);
	h->used += padded;
	return true;
}

/* The extensions that stay. -ENOSPC, -EINVAL. */
static int keep_extensions(struct header *h, size_t at, size_t end, bool features)
{
	while (at + 8 <= end) {
		uint32_t word[2], type, length;

		memcpy(word, h->old + at, sizeof(word));
		type = be32toh(word[0]);
		length = be32toh(word[1]);
		if (!type)
			break;
		if (length > end - at - 8)
			return -EINVAL;
		if (type != QCOW2_EXTENSION_BITMAPS &&
		    (features || type != QCOW2_EXTENSION_FEATURES) &&
		    !append(h, h->old + at, 8 + length))
			return -ENOSPC;
		at += 8 + length;
		at += -at & 7;
	}
	return 0;
}

static int build(const struct block_qcow2 *q, struct header *h,
		 const struct qcow2_disk_bitmaps_extension *e, bool features)
{
	const uint64_t end_mark = 0;
	struct qcow2_disk_header d;
	uint64_t backing;
	size_t name, length, end = h->length;
	int ret;

	memcpy(&d, h->old, sizeof(d));
	backing = be64toh(d.backing_offset);
	name = q->h.backing[0] ? strlen(q->h.backing) : 0;
	length = be32toh(d.header_length);
	if (name && backing > length && backing < end)
		end = (size_t)backing;
	memcpy(h->bytes, h->old, length);
	h->used = length;
	ret = keep_extensions(h, length, end, features);
	if (ret)
		return ret;
	if ((be32toh(e->nr) && !append(h, e, sizeof(*e))) ||
	    !append(h, &end_mark, sizeof(end_mark)))
		return -ENOSPC;
	if (name && backing < h->room) {
		d.backing_offset = htobe64(h->used);
		memcpy(h->bytes + offsetof(struct qcow2_disk_header, backing_offset),
		       &d.backing_offset, sizeof(d.backing_offset));
		if (!append(h, q->h.backing, name))
			return -ENOSPC;
	}
	memset(h->bytes + h->used, 0, h->room - h->used);
	return 0;
}

static int write_sector(struct block_qcow2 *q, const struct header *h, uint64_t autoclear,
			struct pgr_error *err)
{
	uint8_t before[sizeof(h->bytes)];
	int ret;

	memcpy(before, q->w->first, h->room);
	memcpy(q->w->first, h->bytes, h->room);
	qcow2_header_put64(q, offsetof(struct qcow2_disk_header, autoclear), autoclear);
	ret = qcow2_header_write(q, err);
	if (!ret)
		ret = block_flush(q->file, err);
	if (ret) {
		/* Which of them is there cannot be said: what comes next writes the old one. */
		memcpy(q->w->first, before, h->room);
		q->w->first_stale = true;
	}
	return ret;
}

int qcow2_header_set_bitmaps(struct block_qcow2 *q, uint32_t nr, uint64_t bytes, uint64_t offset,
			     struct pgr_error *err)
{
	const struct qcow2_disk_bitmaps_extension e = {
		.type = htobe32(QCOW2_EXTENSION_BITMAPS),
		.length = htobe32(24),
		.nr = htobe32(nr),
		.bytes = htobe64(bytes),
		.offset = htobe64(offset),
	};
	struct header h = {.room = q->w->first_bytes,
			   .length = q->h.cluster_size < HEADER_MOST ? q->h.cluster_size
								     : HEADER_MOST};
	uint64_t autoclear = nr ? QCOW2_AUTOCLEAR_BITMAPS : 0;
	int ret;

	h.old = block_memory(h.length);
	if (!h.old)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its header", q->b.info.name);
	ret = block_read(q->file, 0, h.old, h.length, err);
	if (!ret) {
		memcpy(h.old, q->w->first, q->w->first_bytes);
		ret = build(q, &h, &e, true);
		if (ret == -ENOSPC)
			ret = build(q, &h, &e, false);
		if (ret)
			ret = pgr_fail(
				err, -EOPNOTSUPP,
				"%s: there is no room for bitmaps in the first sector of its header, beside the name of its backing file; a shorter name makes some",
				q->b.info.name);
	}
	if (!ret)
		ret = write_sector(q, &h, autoclear, err);
	free(h.old);
	if (ret)
		return ret;
	q->h.autoclear = autoclear;
	q->h.nr_bitmaps = nr;
	q->h.bitmaps_bytes = nr ? bytes : 0;
	q->h.bitmaps_offset = nr ? offset : 0;
	return 0;
}
