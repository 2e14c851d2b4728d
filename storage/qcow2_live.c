// SPDX-License-Identifier: MIT
#include "storage/qcow2_live.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/qcow2_image.h"

static bool is_qcow2(const struct block *b)
{
	return !strcmp(b->info.driver, "qcow2");
}

static bool is_file(const struct block *b)
{
	return !strcmp(b->info.driver, "file");
}

struct block *qcow2_live_layer(struct block *disk, unsigned n)
{
	while (disk && n--)
		disk = is_qcow2(disk) ? to_qcow2(disk)->backing : NULL;
	return disk;
}

static void rename_layer(struct block *b, const char *name)
{
	snprintf(b->info.name, sizeof(b->info.name), "%s", name);
	if (is_qcow2(b))
		rename_layer(to_qcow2(b)->file, name);
}

/* What has been written is for reading only from now on. Nothing is under way, and everything was flushed. */
static void freeze(struct block *b)
{
	struct block_qcow2 *q = to_qcow2(b);

	b->info.read_only = true;
	if (!is_qcow2(b)) {
		if (is_file(b))
			block_file_freeze(b);
		return;
	}
	if (q->w) {
		qcow2_bitmaps_store(q, NULL);
		qcow2_write_counts(q);
		qcow2_trim(q);
		qcow2_writer_free(q);
	}
	if (is_file(q->file))
		block_file_freeze(q->file);
}

/* ---- another layer on top ---- */

struct qcow2_prepared {
	struct block_qcow2 *disk, *next, *below;
	char *name;
	uint64_t held_at;
};

uint64_t qcow2_live_held_at(const struct qcow2_prepared *p)
{
	return p->held_at;
}

int qcow2_open_next(struct block_qcow2 *q, struct block *file, const char *name,
		    struct qcow2_prepared **out, struct pgr_error *err)
{
	struct qcow2_prepared *p = calloc(1, sizeof(*p));
	struct block *next;
	int ret;

	if (p) {
		p->disk = q;
		p->below = calloc(1, sizeof(*p->below));
		p->name = strdup(name);
	}
	if (!p || !p->below || !p->name) {
		block_close(file, NULL);
		ret = pgr_fail(err, -ENOMEM, "%s: no memory for another layer", q->b.info.name);
	} else {
		ret = qcow2_open_layer(file, q, &next, err);
	}
	if (!ret) {
		p->next = to_qcow2(next);
		ret = qcow2_bitmaps_prepare_next(q, p->next, err);
		if (!ret) {
			*out = p;
			return 0;
		}
		block_close(next, NULL);
	}
	if (p) {
		free(p->below);
		free(p->name);
	}
	free(p);
	return ret;
}

void qcow2_drop_next(struct qcow2_prepared *p)
{
	block_close(&p->next->b, NULL);
	free(p->below);
	free(p->name);
	free(p);
}

/*
 * The disk's contents become those of p->below, and p->next's become the disk's: whoever has the disk has the new layer from now on. Requests that come
 * while this waits are in q->b: it is not to be copied before the last wait.
 */
void qcow2_take_next(struct qcow2_prepared *p)
{
	struct block_qcow2 *q = p->disk, *below = p->below;
	const struct block_options o = {.read_only = true,
					.block_size = q->b.info.block_size,
					.max_requests = q->b.max_requests};
	char *path = q->path;
	struct block disk;

	*below = *q;
	memset(&below->b, 0, sizeof(below->b));
	block_init(&below->b, q->b.loop, q->b.ops, &o);
	below->b.info = q->b.info;
	below->path = p->name;
	below->settled = false;
	qcow2_bitmaps_hand_over(below, p->next);
	freeze(&below->b);

	disk = q->b;
	*q = *p->next;
	q->b = disk;
	q->b.align = p->next->b.align;
	q->b.memory_align = p->next->b.memory_align;
	q->path = path;
	q->backing = &below->b;
	rename_layer(&q->b, disk.info.name);
	rename_layer(&below->b, p->name);
	free(p->next);
	free(p);
}

int qcow2_live_prepare(struct block *disk, struct block *file, const char *name,
		       struct qcow2_prepared **out, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(disk);
	struct qcow2_prepared *p;
	int ret = 0;

	if (!is_qcow2(disk) || disk->info.read_only)
		ret = pgr_fail(err, -EOPNOTSUPP,
			       "%s: is no qcow2 image that is written, so it gets no layers",
			       disk->info.name);
	else if (block_qcow2_layers(disk) >= QCOW2_CHAIN_MAX)
		ret = qcow2_fail_layers(disk, err);
	if (ret)
		block_close(file, NULL);
	else
		ret = qcow2_open_next(q, file, name, &p, err);
	if (ret)
		return ret;
	/* Most of it before the requests have to wait. */
	ret = block_flush(disk, err);
	p->held_at = loop_now_ns();
	block_quiesce(disk);
	if (!ret)
		ret = qcow2_image_flush(disk, err);
	if (!ret && q->h.size != p->next->h.size)
		ret = pgr_fail(err, -EAGAIN, "%s: its size is being changed; try again",
			       disk->info.name);
	if (ret)
		qcow2_live_abandon(p);
	else
		*out = p;
	return ret;
}

void qcow2_live_switch(struct qcow2_prepared *p)
{
	struct block *disk = &p->disk->b;

	qcow2_take_next(p);
	block_resume(disk);
}

void qcow2_live_abandon(struct qcow2_prepared *p)
{
	struct block *disk = &p->disk->b;

	qcow2_drop_next(p);
	block_resume(disk);
}

/* ---- a layer into the one below ---- */

/* Writable from now on. Those above read it meanwhile. */
static int thaw(struct block *b, int fd, struct pgr_error *err)
{
	struct block *file = is_qcow2(b) ? to_qcow2(b)->file : b;
	int ret = 0;

	if (!b->info.read_only) {
		if (fd >= 0)
			close(fd);
		return 0;
	}
	block_quiesce(b);
	if (is_file(file)) {
		block_quiesce(file);
		ret = block_file_thaw(file, fd, err);
		block_resume(file);
	} else if (fd >= 0) {
		close(fd);
	}
	if (!ret && is_qcow2(b)) {
		ret = qcow2_writer_open(to_qcow2(b), err);
		if (ret) {
			qcow2_writer_free(to_qcow2(b));
			freeze(b);
		}
	}
	if (!ret)
		b->info.read_only = false;
	block_resume(b);
	return ret;
}

static int fit(struct block *lower, uint64_t size, struct pgr_error *err)
{
	if (block_info(lower)->size == size || (!is_qcow2(lower) && block_info(lower)->size > size))
		return 0;
	return block_resize(lower, size, err);
}

int qcow2_live_merge(struct block *disk, unsigned n, int fd, struct disk_copy *c,
		     struct pgr_error *err)
{
	struct block *upper = n ? qcow2_live_layer(disk, n) : NULL;
	struct block *lower = upper ? qcow2_live_layer(upper, 1) : NULL;
	int ret;

	if (!lower) {
		if (fd >= 0)
			close(fd);
		return pgr_fail(err, -EINVAL, "%s: has no layers %u and %u", disk->info.name, n,
				n + 1);
	}
	ret = thaw(lower, fd, err);
	if (!ret)
		ret = fit(lower, block_info(upper)->size, err);
	c->from = upper;
	c->to = lower;
	c->what = COPY_OWN;
	return ret ? ret : disk_copy(c, err);
}

/* Layer n, which is held by the top's, goes. */
static struct block *unlink_layer(struct block *disk, unsigned n, bool keeps_name)
{
	struct block_qcow2 *above = to_qcow2(qcow2_live_layer(disk, n - 1));
	struct block *gone = above->backing, *below = to_qcow2(gone)->backing;

	above->backing = below;
	to_qcow2(gone)->backing = NULL;
	freeze(below);
	if (!keeps_name)
		rename_layer(below, gone->info.name);
	return gone;
}

static int check_droppable(struct block *disk, unsigned n, struct pgr_error *err)
{
	struct block *gone = n ? qcow2_live_layer(disk, n) : NULL;

	if (gone && is_qcow2(gone) && to_qcow2(gone)->backing)
		return 0;
	return pgr_fail(err, -EINVAL, "%s: its layer %u cannot go", disk->info.name, n);
}

int qcow2_live_drop(struct block *disk, unsigned n, struct pgr_error *err)
{
	int ret = check_droppable(disk, n, err);
	struct block *gone;

	if (ret)
		return ret;
	block_quiesce(disk);
	gone = unlink_layer(disk, n, false);
	block_resume(disk);
	block_close(gone, NULL);
	return 0;
}

/* ---- the disk's own layer says that it stands on something else ---- */

struct names {
	uint64_t at; /* of the backing file's name, in the first cluster */
	size_t length;
	const char *name, *format;
};

/* What fits the first sector is written with it; a longer name goes where nothing is, first. */
static int place_name(struct block_qcow2 *q, const struct names *n, struct pgr_error *err)
{
	uint8_t *sectors;
	int ret;

	if (n->at + n->length <= BLOCK_SECTOR) {
		memset(q->w->first + n->at, 0, BLOCK_SECTOR - n->at);
		memcpy(q->w->first + n->at, n->name, n->length);
		return 0;
	}
	if (n->at + n->length > q->h.cluster_size)
		return pgr_fail(err, -EOPNOTSUPP,
				"%s: the name of what it is to stand on is too long",
				q->b.info.name);
	sectors = block_memory(2 * 4096);
	if (!sectors)
		return pgr_fail(err, -ENOMEM, "%s: no memory for a name", q->b.info.name);
	memset(sectors, 0, 2 * 4096);
	memcpy(sectors, n->name, n->length);
	ret = block_write(q->file, n->at, sectors, 2 * BLOCK_SECTOR, 0, err);
	if (!ret)
		ret = block_flush(q->file, err);
	free(sectors);
	return ret;
}

/*
 * Where the name goes: behind the format of what it stands on, and perhaps the place of dirty bitmaps. 0: there is something else, so it was not made by
 * qcow2_create().
 */
static size_t place_of_name(const struct block_qcow2 *q)
{
	size_t at = sizeof(struct qcow2_disk_header);
	uint32_t extension[2];

	memcpy(extension, q->w->first + at, sizeof(extension));
	if (be32toh(extension[0]) != QCOW2_EXTENSION_FORMAT || be32toh(extension[1]) > 8)
		return 0;
	at += 16;
	memcpy(extension, q->w->first + at, sizeof(extension));
	if (be32toh(extension[0]) == QCOW2_EXTENSION_BITMAPS)
		at += sizeof(struct qcow2_disk_bitmaps_extension);
	memcpy(extension, q->w->first + at, sizeof(extension));
	return !extension[0] && q->h.version >= 3 && q->h.cluster_size >= 4 * 4096 ? at + 8 : 0;
}

static int write_names(struct block_qcow2 *q, const char *name, const char *format,
		       struct pgr_error *err)
{
	const size_t header = sizeof(struct qcow2_disk_header);
	const uint32_t extension[2] = {htobe32(QCOW2_EXTENSION_FORMAT),
				       htobe32((uint32_t)strlen(format))};
	struct names n = {.at = place_of_name(q), .length = strlen(name), .name = name};
	uint8_t before[BLOCK_SECTOR];
	uint64_t now;
	int ret;

	memcpy(before, q->w->first, sizeof(before));
	memcpy(&now, before + offsetof(struct qcow2_disk_header, backing_offset), sizeof(now));
	/* Two places for long ones, of which one is free. */
	if (n.at + n.length > BLOCK_SECTOR)
		n.at = be64toh(now) == 4096 ? 2 * 4096 : 4096;
	ret = place_name(q, &n, err);
	if (ret)
		return ret;
	memcpy(q->w->first + header, extension, sizeof(extension));
	memset(q->w->first + header + 8, 0, 8);
	memcpy(q->w->first + header + 8, format, strlen(format));
	qcow2_header_put64(q, offsetof(struct qcow2_disk_header, backing_offset), n.at);
	qcow2_header_put32(q, offsetof(struct qcow2_disk_header, backing_size), (uint32_t)n.length);
	ret = qcow2_header_write(q, err);
	if (!ret)
		ret = block_flush(q->file, err);
	if (ret) {
		/* It may be there or not, and both is right: both read the same. What comes next writes the old one. */
		memcpy(q->w->first, before, sizeof(before));
		q->w->first_stale = true;
		return ret;
	}
	snprintf(q->h.backing, sizeof(q->h.backing), "%s", name);
	snprintf(q->h.backing_format, sizeof(q->h.backing_format), "%s", format);
	return 0;
}

int qcow2_live_rebase(struct block *disk, const char *name, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(disk);
	struct block *gone = NULL;
	int ret = check_droppable(disk, 1, err);

	if (!ret && (disk->info.read_only || !place_of_name(q) || strlen(name) > QCOW2_BACKING_MAX))
		ret = pgr_fail(err, -EOPNOTSUPP,
			       "%s: its header is not one that is changed while it is in use",
			       disk->info.name);
	if (ret)
		return ret;
	block_quiesce(disk);
	ret = qcow2_check_whole(q, err);
	if (!ret)
		ret = write_names(q, name, is_qcow2(qcow2_live_layer(disk, 2)) ? "qcow2" : "raw",
				  err);
	if (!ret)
		gone = unlink_layer(disk, 1, true);
	block_resume(disk);
	block_close(gone, NULL);
	return ret;
}
