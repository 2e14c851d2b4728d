// SPDX-License-Identifier: MIT
#include <errno.h>
#include <unistd.h>

#include "storage/block_driver.h"
#include "storage/live.h"
#include "storage/qcow2_live.h"

static int local_hold(void *ctx, int fd, const char *name, struct pgr_error *err)
{
	struct live_local *l = ctx;
	const struct block_options o = {.grows = true, .descriptor = &fd};
	uint64_t now = loop_now_ns();
	struct block *file;
	int ret;

	if (l->held_at) {
		if (fd >= 0)
			close(fd);
		return pgr_fail(err, -EBUSY, "%s: is being changed already", l->disk->info.name);
	}
	if (fd >= 0) {
		ret = block_open_file(l->disk->loop, name, &o, &file, err);
		if (!ret)
			ret = qcow2_live_prepare(l->disk, file, name, &l->prepared, err);
	} else {
		ret = block_flush(l->disk, err);
		now = loop_now_ns();
		if (!ret) {
			block_quiesce(l->disk);
			ret = l->disk->info.read_only ? 0 : l->disk->ops->flush(l->disk, err);
			if (ret)
				block_resume(l->disk);
		}
	}
	if (!ret)
		l->held_at = fd >= 0 ? qcow2_live_held_at(l->prepared) : now;
	return ret;
}

static int local_release(void *ctx, bool switched, uint64_t *held_ns, struct pgr_error *err)
{
	struct live_local *l = ctx;

	if (!l->held_at)
		return pgr_fail(err, -EINVAL, "%s: is not held", l->disk->info.name);
	if (!l->prepared)
		block_resume(l->disk);
	else if (switched)
		qcow2_live_switch(l->prepared);
	else
		qcow2_live_abandon(l->prepared);
	*held_ns = loop_now_ns() - l->held_at;
	l->prepared = NULL;
	l->held_at = 0;
	return 0;
}

struct watched {
	struct disk_copy copy;
	const struct live_work *work;
};

static void report(struct disk_copy *c)
{
	const struct live_work *w = ((struct watched *)c)->work;

	w->progress(w->ctx, c->done, c->size);
}

static int local_merge(void *ctx, unsigned n, int fd, const struct live_work *w,
		       struct pgr_error *err)
{
	struct live_local *l = ctx;
	struct watched c = {
		.copy = {.rate = w->rate, .stop = w->stop, .progress = w->progress ? report : NULL},
		.work = w};
	int ret;

	if (l->merging) {
		close(fd);
		return pgr_fail(err, -EBUSY, "%s: is being merged already", l->disk->info.name);
	}
	l->merging = true;
	ret = qcow2_live_merge(l->disk, n, fd, &c.copy, err);
	l->merging = false;
	return ret;
}

static int local_drop(void *ctx, unsigned n, const char *name, struct pgr_error *err)
{
	struct live_local *l = ctx;

	if (name && n != 1)
		return pgr_fail(err, -EINVAL, "%s: only its own layer can be changed",
				l->disk->info.name);
	return name ? qcow2_live_rebase(l->disk, name, err) : qcow2_live_drop(l->disk, n, err);
}

static int local_look(void *ctx, bool check, struct live_look *out, struct pgr_error *err)
{
	struct live_local *l = ctx;

	if (l->held_at)
		return pgr_fail(err, -EBUSY, "%s: is being changed already", l->disk->info.name);
	return live_look(l->disk, check, out, err);
}

const struct live_ops live_local_ops = {
	.hold = local_hold,
	.release = local_release,
	.merge = local_merge,
	.drop = local_drop,
	.look = local_look,
};
