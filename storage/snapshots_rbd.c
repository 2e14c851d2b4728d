// SPDX-License-Identifier: MIT
/* Ceph's own snapshots. Each of these comes to the cluster for itself, so it works beside a server that has the disk. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_rbd.h"
#include "storage/offload.h"
#include "storage/rbd_session.h"

#define LIST_FIRST 64

struct work {
	struct rbd_session s;
	struct snapshot_work *w;
	struct snapshots *out;
	bool read_only;
	int (*run)(struct work *k, struct pgr_error *err);
	struct pgr_error *err;
};

static int do_work(void *ctx)
{
	struct work *k = ctx;
	int ret = rbd_session_begin(&k->s, k->err), ret2;

	if (!ret)
		ret = rbd_session_open(&k->s, k->read_only, k->err);
	if (!ret)
		ret = k->run(k, k->err);
	ret2 = rbd_session_end(&k->s);
	if (!ret && ret2)
		ret = pgr_fail_errno(k->err, ret2, "closing the image failed");
	return ret;
}

static char *in_full(const struct rbd_name *n, const char *snapshot)
{
	char *out;

	return asprintf(&out, "rbd:%s/%s@%s%s%s%s%s", n->pool, n->image, snapshot,
			n->conf[0] ? "?conf=" : "", n->conf,
			!n->id[0]    ? ""
			: n->conf[0] ? "&id="
				     : "?id=",
			n->id) < 0
		       ? NULL
		       : out;
}

/* In the image of w->disk; errors begin with its name. */
static int work(struct snapshot_work *w, struct snapshots *out,
		int (*run)(struct work *k, struct pgr_error *err), struct pgr_error *err)
{
	struct work *k = calloc(1, sizeof(*k));
	int ret;

	if (!k)
		return pgr_fail(err, -ENOMEM, "%s: no memory for its snapshots", w->disk);
	*k = (struct work){.w = w, .out = out, .read_only = out != NULL, .run = run, .err = err};
	ret = rbd_name_parse(w->disk, &k->s.name, err);
	if (!ret && k->s.name.snapshot[0])
		ret = pgr_fail(err, -EINVAL, "%s: is a snapshot itself; leave @%s away", w->disk,
			       k->s.name.snapshot);
	if (!ret && w->name)
		ret = rbd_name_check_snapshot(w->name, err);
	if (!ret) {
		ret = offload(w->loop, do_work, k);
		if (ret)
			pgr_fail_prefix(err, "%s", w->disk);
	}
	if (!ret && w->name)
		w->path = in_full(&k->s.name, w->name);
	free(k);
	return ret;
}

static int fail_none(const struct work *k, struct pgr_error *err)
{
	return pgr_fail(err, -ENOENT,
			"has no snapshot \"%s\"; pagurus disk list shows those that it has",
			k->w->name);
}

/* ---- list ---- */

static int add(struct work *k, const rbd_snap_info_t *i, struct pgr_error *err)
{
	struct timespec made = {.tv_sec = 0};

	k->s.lib->rbd_snap_get_timestamp(k->s.image, i->id, &made);
	return snapshots_add(k->out,
			     (struct snapshot){.name = strdup(i->name),
					       .path = in_full(&k->s.name, i->name),
					       .size = i->size,
					       .used = SNAPSHOT_UNKNOWN,
					       .made = made.tv_sec},
			     err);
}

static int do_list(struct work *k, struct pgr_error *err)
{
	rbd_image_info_t image = {.size = 0};
	rbd_snap_info_t *list = NULL;
	int max = LIST_FIRST, nr, ret = k->s.lib->rbd_stat(k->s.image, &image, sizeof(image));

	if (ret)
		return pgr_fail_errno(err, ret, "cannot be looked at");
	k->out->size = image.size;
	do {
		free(list);
		list = calloc((size_t)max, sizeof(*list));
		nr = list ? k->s.lib->rbd_snap_list(k->s.image, list, &max) : -ENOMEM;
	} while (nr == -ERANGE && max > 0 && max <= (int)SNAPSHOTS_MAX);
	if (nr < 0)
		ret = pgr_fail_errno(err, nr, "its snapshots cannot be listed");
	for (int i = 0; i < nr && !ret; i++)
		ret = add(k, &list[i], err);
	if (nr >= 0)
		k->s.lib->rbd_snap_list_end(list);
	free(list);
	return ret;
}

static int list_snapshots(struct snapshot_work *w, struct snapshots *out, struct pgr_error *err)
{
	return work(w, out, do_list, err);
}

/* ---- make, revert, remove ---- */

static int do_make(struct work *k, struct pgr_error *err)
{
	int ret = k->s.lib->rbd_snap_create(k->s.image, k->w->name);

	if (ret == -EEXIST)
		return pgr_fail(
			err, ret,
			"has a snapshot \"%s\" already; choose another name for the snapshot",
			k->w->name);
	return ret ? pgr_fail_errno(err, ret, "cannot make the snapshot %s", k->w->name) : 0;
}

static int make_snapshot(struct snapshot_work *w, struct pgr_error *err)
{
	return work(w, NULL, do_make, err);
}

static int on_progress(uint64_t done, uint64_t size, void *ctx)
{
	const struct snapshot_work *w = ctx;

	if (w->progress)
		w->progress(w->ctx, done, size);
	return 0;
}

static int do_revert(struct work *k, struct pgr_error *err)
{
	int ret = rbd_session_lock(&k->s, err);

	if (ret)
		return ret;
	ret = k->s.lib->rbd_snap_rollback_with_progress(k->s.image, k->w->name, on_progress, k->w);
	if (ret == -ENOENT)
		return fail_none(k, err);
	return ret ? pgr_fail_errno(
			     err, ret,
			     "cannot be made what it was at %s, and may be half of it; say it again",
			     k->w->name)
		   : 0;
}

static int revert_to(struct snapshot_work *w, struct pgr_error *err)
{
	return work(w, NULL, do_revert, err);
}

static int do_remove(struct work *k, struct pgr_error *err)
{
	int ret = k->s.lib->rbd_snap_remove(k->s.image, k->w->name);

	if (ret == -ENOENT)
		return fail_none(k, err);
	if (ret == -EBUSY)
		return pgr_fail(
			err, ret,
			"the snapshot %s is protected, since clones stand on it or may: rbd children and rbd snap unprotect %s/%s@%s",
			k->w->name, k->s.name.pool, k->s.name.image, k->w->name);
	return ret ? pgr_fail_errno(err, ret, "cannot remove the snapshot %s", k->w->name) : 0;
}

static int remove_snapshot(struct snapshot_work *w, struct pgr_error *err)
{
	return work(w, NULL, do_remove, err);
}

const struct snapshots_ops block_rbd_snapshots = {.make = make_snapshot,
						  .list = list_snapshots,
						  .revert = revert_to,
						  .remove = remove_snapshot};
