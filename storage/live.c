// SPDX-License-Identifier: MIT
#include "storage/live.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "storage/block_driver.h"
#include "storage/layers.h"
#include "storage/qcow2_layer.h"

#define MERGING	    "merging"
#define MERGING_MAX 100u

/* ---- snapshots ---- */

struct one {
	const struct live_disk *disk;
	char *snapshot;
	int fd;
	bool made, held, exchanged;
};

static int make_layer(struct one *o, struct pgr_error *err)
{
	struct qcow2_layer y = {.path = o->snapshot,
				.image = o->disk->path,
				.like = o->disk->path,
				.backing = o->snapshot,
				.backing_format = "qcow2"};
	struct qcow2_header h;
	struct block *file;
	int ret = qcow2_layer_header(o->disk->loop, o->disk->path, &h, err);

	if (ret)
		return ret;
	y.size = h.size;
	y.cluster_size = h.cluster_size;
	ret = qcow2_layer_make(o->disk->loop, &y, &file, err);
	if (ret)
		return ret;
	o->made = true;
	ret = block_close(file, err);
	if (ret)
		return ret;
	o->fd = open(o->snapshot, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (o->fd < 0)
		return pgr_fail_errno(err, -errno, "%s: cannot be opened", o->snapshot);
	return o->disk->pins ? live_pins_add(o->disk->pins, o->fd, err) : 0;
}

/* What needs no held requests. */
static int begin_one(struct one *o, const char *name, struct pgr_error *err)
{
	o->snapshot = layers_snapshot_path(o->disk->path, name);
	if (!o->snapshot)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	if (!o->disk->raw)
		return make_layer(o, err);
	return access(o->snapshot, F_OK)
		       ? 0
		       : pgr_fail(err, -EEXIST,
				  "%s: is there already; choose another name for the snapshot",
				  o->snapshot);
}

static int hold_one(struct one *o, struct pgr_error *err)
{
	int fd = o->fd, ret;

	o->fd = -1;
	ret = o->disk->ops->hold(o->disk->ctx, fd, o->snapshot, err);
	o->held = !ret;
	return ret;
}

/* A file that shares all blocks with the raw disk, which is held. */
static int clone_raw(struct one *o, struct pgr_error *err)
{
	const struct block_options reading = {.read_only = true, .unlocked = true};
	struct block *b;
	int ret = block_open_file(o->disk->loop, o->disk->path, &reading, &b, err);

	if (ret)
		return ret;
	ret = b->ops->snapshot
		      ? b->ops->snapshot(b, o->snapshot, err)
		      : pgr_fail(err, -EOPNOTSUPP,
				 "%s: it has no snapshots of its own; put a qcow2 overlay over it",
				 o->disk->path);
	block_close(b, NULL);
	return ret;
}

static int keep_one(struct one *o, struct pgr_error *err)
{
	int ret;

	if (o->disk->raw) {
		ret = clone_raw(o, err);
		o->exchanged = !ret;
		return ret;
	}
	return qcow2_layer_exchange(o->disk->loop, o->disk->path, o->snapshot, &o->exchanged, err);
}

/* As if it had not been begun. False: it cannot be. */
static bool undo_one(struct one *o)
{
	bool again = false;

	if (!o->exchanged)
		return true;
	if (o->disk->raw)
		return !unlink(o->snapshot);
	qcow2_layer_exchange(o->disk->loop, o->disk->path, o->snapshot, &again, NULL);
	o->exchanged = !again;
	return again;
}

static int end_one(struct one *o, uint64_t *held_ns, struct pgr_error *err)
{
	uint64_t held = 0;
	int ret = 0;

	if (o->held)
		ret = o->disk->ops->release(o->disk->ctx, o->exchanged && !o->disk->raw, &held,
					    err);
	/* A process that died meanwhile: the next one opens what has the names. */
	if (ret == -EPIPE)
		ret = 0;
	if (held > *held_ns)
		*held_ns = held;
	if (o->fd >= 0)
		close(o->fd);
	if (o->made && !o->exchanged)
		unlink(o->snapshot);
	free(o->snapshot);
	return ret;
}

int live_snapshot(const struct live_disk *disks, unsigned nr, const char *name, uint64_t *held_ns,
		  struct pgr_error *err)
{
	struct one *list = calloc(nr, sizeof(*list));
	int ret = 0, ret2;

	*held_ns = 0;
	if (!list)
		return pgr_fail(err, -ENOMEM, "no memory for a list of disks");
	if (nr > 1 && strchr(name, '/'))
		ret = pgr_fail(err, -EINVAL,
			       "%s: a snapshot of several disks has a plain name, and no path",
			       name);
	for (unsigned i = 0; i < nr; i++)
		list[i] = (struct one){.disk = &disks[i], .fd = -1};
	for (unsigned i = 0; i < nr && !ret; i++)
		ret = begin_one(&list[i], name, err);
	for (unsigned i = 0; i < nr && !ret; i++)
		ret = hold_one(&list[i], err);
	for (unsigned i = 0; i < nr && !ret; i++) {
		ret = keep_one(&list[i], err);
		/* It is there, and cannot be said to be durable. */
		if (ret && list[i].exchanged && nr == 1)
			break;
		for (unsigned j = 0; ret && j <= i; j++)
			undo_one(&list[j]);
	}
	for (unsigned i = 0; i < nr; i++) {
		ret2 = end_one(&list[i], held_ns, ret ? NULL : err);
		ret = ret ? ret : ret2;
	}
	free(list);
	return ret;
}

/* ---- merging ---- */

static int fail_unknown(const struct live_disk *d, const char *path, struct pgr_error *err)
{
	return pgr_fail(
		err, -EPERM,
		"%s: its header names %s, which it did not stand on when it was opened, so nothing is merged while it is in use; look at it with pagurus disk list when it is not",
		d->path, path);
}

bool live_is_reserved(const char *name)
{
	return !strncmp(name, MERGING, strlen(MERGING));
}

bool live_is_merging(const char *disk, const struct layer *y)
{
	char name[256];

	layers_snapshot_name(disk, y->path, name, sizeof(name));
	/* The whole name of a file is what is called so itself. */
	return live_is_reserved(name) && strcmp(name, y->path + file_folder_length(y->path)) != 0;
}

int live_remove_merged(struct loop *l, const char *disk, const struct layers *s,
		       struct pgr_error *err)
{
	int lower = s->list[s->disk].below, ret;
	unsigned i = 0;

	if (lower < 0 || !s->list[lower].leaving)
		return 0;
	while (i < s->nr &&
	       ((int)i == s->disk || s->list[i].below != lower ||
		!live_is_merging(disk, &s->list[i]) || layers_child(s, (int)i, NULL) != -1))
		i++;
	if (i == s->nr)
		return 0;
	ret = layers_remove(l, s->list[i].path, err);
	if (ret)
		return ret;
	layers_set_leaving(s->list[lower].path, false);
	return 1;
}

/* The layers; what the disk stands on is what it is known to stand on. To be freed also on failure. */
static int read_layers(const struct live_disk *d, struct layers *s, struct pgr_error *err)
{
	int ret = layers_load(d->loop, d->path, s, err), at = ret ? -1 : s->disk;

	for (unsigned n = 0; d->pins && at >= 0 && n < s->nr; n++, at = s->list[at].below)
		if (!live_pins_have(d->pins, s->list[at].dev, s->list[at].ino))
			return fail_unknown(d, s->list[at].path, err);
	return ret;
}

/* The same, without what a commit that was killed has left. */
static int load_layers(const struct live_disk *d, struct layers *s, struct pgr_error *err)
{
	int ret = read_layers(d, s, err);

	if (!ret)
		ret = live_remove_merged(d->loop, d->path, s, err);
	if (ret != 1)
		return ret;
	layers_free(s);
	return read_layers(d, s, err);
}

/* How many layers below the disk's own it is; 0: it is none of them, or that itself. */
static unsigned depth_of(const struct layers *s, int layer)
{
	unsigned n = 0;

	for (int at = s->disk; at >= 0 && n < s->nr; at = s->list[at].below, n++)
		if (at == layer)
			return n;
	return 0;
}

static int check_known(const struct live_disk *d, int fd, const char *path, struct pgr_error *err)
{
	struct stat st;

	if (!d->pins || (!fstat(fd, &st) && live_pins_have(d->pins, st.st_dev, st.st_ino)))
		return 0;
	return fail_unknown(d, path, err);
}

/* Everything of layer n is in the next one, whose file is at `lower`. */
static int merge(const struct live_disk *d, unsigned n, const char *lower,
		 const struct live_work *w, struct pgr_error *err)
{
	int fd = open(lower, O_RDWR | O_CLOEXEC), ret;

	if (fd < 0)
		return pgr_fail_errno(err, -errno, "%s: cannot be opened for writing", lower);
	ret = check_known(d, fd, lower, err);
	if (!ret)
		ret = layers_begin_merge(lower, err);
	if (ret) {
		close(fd);
		return ret;
	}
	ret = d->ops->merge(d->ctx, n, fd, w, err);
	return ret == -ECANCELED ? layers_fail_stopped(d->path, err) : ret;
}

/* Another layer on top, so that the disk's own so far is written no more. */
static int put_on_top(const struct live_disk *d, struct layers *s, struct pgr_error *err)
{
	uint64_t held;
	int ret = -EEXIST;

	for (unsigned i = 1; i <= MERGING_MAX && ret == -EEXIST; i++) {
		char name[32];

		snprintf(name, sizeof(name), i > 1 ? MERGING "-%u" : MERGING, i);
		*err = PGR_ERROR_NONE;
		ret = live_snapshot(d, 1, name, &held, err);
	}
	if (ret)
		return ret;
	layers_free(s);
	return load_layers(d, s, err);
}

static int check_sole_child(const struct layers *s, int layer, struct pgr_error *err)
{
	int child = layers_child(s, layer, err);

	return child == -EEXIST ? child : 0;
}

static int delete_below(const struct live_disk *d, struct layers *s, const char *name,
			const struct live_work *w, struct pgr_error *err)
{
	int index = layers_find(s, d->path, name, err), upper, ret;
	unsigned n;

	if (index < 0)
		return index;
	if (index == s->disk)
		return pgr_fail(err, -EINVAL, "%s: is the disk itself, and no snapshot", d->path);
	if (!depth_of(s, index))
		return pgr_fail(err, -ESRCH, "%s: is not below %s", s->list[index].path, d->path);
	if (s->list[index].raw)
		return pgr_fail(
			err, -EINVAL,
			"%s: is a raw disk, and what stands on it is qcow2; merge into it with pagurus disk commit, or copy: pagurus disk convert",
			s->list[index].path);
	ret = check_sole_child(s, index, err);
	if (!ret && depth_of(s, index) == 1) {
		ret = put_on_top(d, s, err);
		index = ret ? -1 : layers_find(s, d->path, name, err);
		if (!ret && index < 0)
			ret = index;
	}
	if (ret)
		return ret;
	n = depth_of(s, index);
	upper = s->disk;
	for (unsigned i = 1; i < n; i++)
		upper = s->list[upper].below;
	ret = merge(d, n - 1, s->list[index].path, w, err);
	if (ret)
		return ret;
	/* It holds all of the upper one, and gets its place. */
	if (rename(s->list[index].path, s->list[upper].path))
		return pgr_fail_errno(err, -errno, "%s: cannot get the name %s",
				      s->list[index].path, s->list[upper].path);
	layers_set_leaving(s->list[index].path, false);
	ret = file_sync_folder_of(s->list[upper].path);
	if (ret)
		pgr_fail_errno(err, ret, "the folder of %s cannot be made durable", d->path);
	else
		ret = d->ops->drop(d->ctx, n - 1, NULL, err);
	return ret == -EPIPE ? 0 : ret;
}

static int delete_one(const struct live_disk *d, const char *name, const struct live_work *w,
		      struct pgr_error *err)
{
	struct layers s;
	int ret = load_layers(d, &s, err);

	if (!ret)
		ret = delete_below(d, &s, name, w, err);
	layers_free(&s);
	return ret;
}

/* What earlier merges put on top and has other layers between itself and the disk's own: nobody's snapshot, so the chain need not have it. malloc'd. */
static char *find_leftover(const struct live_disk *d)
{
	struct layers s;
	char *found = NULL;
	int at = -1;

	if (!load_layers(d, &s, NULL)) {
		at = s.list[s.disk].below;
		at = at < 0 ? -1 : s.list[at].below;
	}
	for (; at >= 0 && !found; at = s.list[at].below)
		if (live_is_merging(d->path, &s.list[at]) && !check_sole_child(&s, at, NULL))
			found = strdup(s.list[at].path);
	layers_free(&s);
	return found;
}

int live_delete(const struct live_disk *d, const char *name, const struct live_work *w,
		struct pgr_error *err)
{
	char *more;
	int ret;

	if (d->raw)
		return pgr_fail(err, -ESRCH, "%s: a raw disk stands on nothing", d->path);
	ret = delete_one(d, name, w, err);
	while (!ret && (more = find_leftover(d))) {
		ret = delete_one(d, more, w, err);
		free(more);
	}
	return ret;
}

/* Marked before another layer is on top of the disk's own: killed in between, that one is known as what is merged into `lower`. */
static int begin_commit(const struct live_disk *d, struct layers *s, int lower,
			struct pgr_error *err)
{
	bool was = s->list[lower].leaving;
	char *path = strdup(s->list[lower].path);
	int ret = path ? layers_begin_merge(path, err)
		       : pgr_fail(err, -ENOMEM, "no memory for a name");

	if (!ret) {
		ret = put_on_top(d, s, err);
		if (ret && !was)
			layers_set_leaving(path, false);
	}
	free(path);
	return ret;
}

static int commit_own(const struct live_disk *d, struct layers *s, const struct live_work *w,
		      char **into, struct pgr_error *err)
{
	int upper = s->list[s->disk].below, lower = upper < 0 ? -1 : s->list[upper].below, ret = 0;
	char *name;

	/* One that was stopped is gone on with; else this is what the disk's own layer goes into. */
	if (lower < 0 || !s->list[lower].leaving || !live_is_merging(d->path, &s->list[upper])) {
		if (upper < 0)
			return pgr_fail(err, -EINVAL,
					"%s: stands on nothing that it could be merged into",
					d->path);
		ret = check_sole_child(s, upper, err);
		if (!ret)
			ret = begin_commit(d, s, upper, err);
		if (ret)
			return ret;
		upper = s->list[s->disk].below;
		lower = upper < 0 ? -1 : s->list[upper].below;
	}
	if (lower < 0)
		return pgr_fail(err, -EIO, "%s: its layers are not what they were", d->path);
	*into = strdup(s->list[lower].path);
	name = qcow2_layer_name(d->path, s->list[lower].path);
	if (!*into || !name)
		ret = pgr_fail(err, -ENOMEM, "no memory for a name");
	if (!ret)
		ret = merge(d, 1, s->list[lower].path, w, err);
	if (!ret)
		ret = d->ops->drop(d->ctx, 1, name, err);
	free(name);
	if (ret)
		return ret;
	/* Nothing stands on it any more. */
	if (unlink(s->list[upper].path))
		return pgr_fail_errno(err, -errno, "%s: cannot be removed", s->list[upper].path);
	layers_set_leaving(s->list[lower].path, false);
	return 0;
}

int live_commit(const struct live_disk *d, const struct live_work *w, char **into,
		struct pgr_error *err)
{
	struct layers s;
	int ret;

	*into = NULL;
	if (d->raw)
		return pgr_fail(
			err, -EINVAL,
			"%s: a raw disk has no layers; its snapshots are files of their own",
			d->path);
	ret = load_layers(d, &s, err);
	if (!ret)
		ret = commit_own(d, &s, w, into, err);
	layers_free(&s);
	return ret;
}
