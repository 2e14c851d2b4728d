// SPDX-License-Identifier: MIT
#include <errno.h>
#include <stdio.h>

#include "storage/live.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_image.h"

static int add_up(struct block *disk, struct live_look *out, struct pgr_error *err)
{
	for (uint64_t at = 0; at < out->size;) {
		struct block_extent e;
		int ret = block_status(disk, at, out->size - at, &e, err);

		if (ret)
			return ret;
		if (e.flags & BLOCK_EXTENT_ZERO)
			out->zeros += e.length;
		else if (e.flags & BLOCK_EXTENT_HERE)
			out->here += e.length;
		else
			out->below += e.length;
		at += e.length;
		/* A large disk has many, and nothing of it waits. */
		fiber_yield(disk->loop);
	}
	return 0;
}

static void found(void *ctx, const char *sentence)
{
	struct live_look *out = ctx;

	if (!out->finding[0])
		snprintf(out->finding, sizeof(out->finding), "%s", sentence);
}

/* What the file says, with all that is in memory written first: the second time what the first one has given back. */
static int check_held(struct block_qcow2 *q, struct live_look *out, struct pgr_error *err)
{
	struct qcow2_check c = {.found = found, .ctx = out};
	int ret = 0;

	for (unsigned i = 0; q->w && i < 2 && !ret; i++)
		ret = qcow2_image_flush(&q->b, err);
	if (!ret)
		ret = qcow2_check(q->file, &c, err);
	out->clusters = c.clusters;
	out->used = c.used;
	out->leaks = c.leaks;
	out->damages = c.damages;
	return ret;
}

int live_look(struct block *disk, bool check, struct live_look *out, struct pgr_error *err)
{
	const struct block_info *info = block_info(disk);
	int ret;

	*out = (struct live_look){.size = info->size, .block_size = info->block_size};
	snprintf(out->driver, sizeof(out->driver), "%s", info->driver);
	if (!check)
		return add_up(disk, out, err);
	if (strcmp(info->driver, "qcow2") != 0)
		return pgr_fail(err, -EINVAL, "%s: a raw disk has no tables that could be checked",
				info->name);
	block_quiesce(disk);
	ret = check_held(to_qcow2(disk), out, err);
	block_resume(disk);
	return ret;
}
