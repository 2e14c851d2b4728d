// SPDX-License-Identifier: MIT
#include "storage/lvm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/lvm_command.h"
#include "storage/offload.h"

#define NEXT	  "+next"
#define BEFORE	  "+before"
#define ZERO_ONCE (1u << 30)
#define WITH_END  (2 * LVM_NAME)
#define FULL_NAME (4 * LVM_NAME)

/* A volume in full, or its name with an end. What does not fit is no name that LVM has. */
static const char *in_full(char out[FULL_NAME], const char *vg, const char *lv)
{
	snprintf(out, FULL_NAME, "%s/%s", vg, lv);
	return out;
}

static const char *with_end(char out[WITH_END], const char *lv, const char *end)
{
	snprintf(out, WITH_END, "%s%s", lv, end);
	return out;
}

/* ---- one piece of work on a volume, in the helper thread ---- */

struct work {
	struct snapshot_work *w;
	struct lvm_name name;
	struct lvm_group group;
	const struct lvm_volume *disk;
	struct snapshots *out;
	int (*run)(struct work *k, struct pgr_error *err);
	struct pgr_error *err;
};

static int load(struct work *k, struct pgr_error *err)
{
	int ret;

	lvm_free(&k->group);
	ret = lvm_load(k->name.vg, &k->group, err);
	k->disk = ret ? NULL : lvm_volume_of(&k->group, k->name.lv);
	return ret;
}

static int do_work(void *ctx)
{
	struct work *k = ctx;
	int ret = load(k, k->err);

	return ret ? ret : k->run(k, k->err);
}

/* Errors begin with the disk's name. */
static int work(struct snapshot_work *w, struct snapshots *out,
		int (*run)(struct work *k, struct pgr_error *err), struct pgr_error *err)
{
	struct work k = {.w = w, .out = out, .run = run, .err = err};
	int ret;

	if (!lvm_find(w->disk, &k.name))
		return pgr_fail(err, -EINVAL, "%s: is no volume of LVM", w->disk);
	ret = offload(w->loop, do_work, &k);
	lvm_free(&k.group);
	if (ret)
		pgr_fail_prefix(err, "%s", w->disk);
	return ret;
}

static int fail_no_disk(const struct work *k, struct pgr_error *err)
{
	char before[WITH_END];

	if (lvm_volume_of(&k->group, with_end(before, k->name.lv, BEFORE)))
		return pgr_fail(
			err, -ENOENT,
			"a revert of it was stopped, and it is called %s/%s now; say pagurus disk revert again",
			k->name.vg, before);
	return pgr_fail(err, -ENOENT, "the group %s has no volume %s (lvs %s lists them)",
			k->name.vg, k->name.lv, k->name.vg);
}

/* ---- which volumes are snapshots of the disk ---- */

static bool is_snapshot(const struct work *k, const struct lvm_volume *v)
{
	return !strcmp(v->pool[0] ? v->of : v->origin, k->name.lv);
}

/* The part of a name that is said: "monday" of web.monday. */
static const char *short_name(const struct work *k, const char *lv)
{
	size_t n = strlen(k->name.lv);

	return !strncmp(lv, k->name.lv, n) && lv[n] == '.' && lv[n + 1] ? lv + n + 1 : lv;
}

/* The volume of a new snapshot. */
static int name_snapshot(const struct work *k, char out[WITH_END], struct pgr_error *err)
{
	char end[LVM_NAME + 1];

	if (snprintf(end, sizeof(end), ".%s", k->w->name) < (int)sizeof(end) && k->w->name[0] &&
	    strlen(k->name.lv) + strlen(end) < LVM_NAME &&
	    lvm_name_is_valid(with_end(out, k->name.lv, end)))
		return 0;
	return pgr_fail(
		err, -EINVAL,
		"\"%s\" is no name for a snapshot in LVM: letters, digits and + _ . -, with %s. before it at most %u",
		k->w->name, k->name.lv, LVM_NAME - 1);
}

/* By the short name, the whole, or VG/LV. */
static const struct lvm_volume *find_snapshot(const struct work *k, struct pgr_error *err)
{
	const char *said = k->w->name, *slash = strrchr(said, '/');

	for (unsigned i = 0; i < k->group.nr; i++) {
		const struct lvm_volume *v = &k->group.list[i];

		if (is_snapshot(k, v) && (!strcmp(short_name(k, v->name), said) ||
					  !strcmp(v->name, slash ? slash + 1 : said)))
			return v;
	}
	pgr_fail(err, -ENOENT, "has no snapshot \"%s\"; pagurus disk list shows those that it has",
		 said);
	return NULL;
}

static void set_path(struct work *k, const char *lv)
{
	free(k->w->path);
	if (asprintf(&k->w->path, "/dev/%s/%s", k->name.vg, lv) < 0)
		k->w->path = NULL;
}

/* ---- list ---- */

static uint64_t used_of(const struct lvm_volume *v)
{
	if (!v->pool[0])
		return v->size;
	return v->filled < 0 ? SNAPSHOT_UNKNOWN : (uint64_t)((double)v->size * v->filled / 100);
}

static int do_list(struct work *k, struct pgr_error *err)
{
	int ret = 0;

	if (!k->disk)
		return fail_no_disk(k, err);
	k->out->size = k->disk->size;
	for (unsigned i = 0; i < k->group.nr && !ret; i++) {
		const struct lvm_volume *v = &k->group.list[i];

		if (!is_snapshot(k, v))
			continue;
		set_path(k, v->name);
		ret = snapshots_add(k->out,
				    (struct snapshot){.name = strdup(short_name(k, v->name)),
						      .path = k->w->path,
						      .size = v->pool[0] ? v->size : v->origin_size,
						      .used = used_of(v),
						      .made = v->made,
						      .is_void = v->invalid},
				    err);
		k->w->path = NULL;
	}
	snapshots_sort(k->out);
	return ret;
}

static int list_snapshots(struct snapshot_work *w, struct snapshots *out, struct pgr_error *err)
{
	return work(w, out, do_list, err);
}

/* ---- make ---- */

static int make_thin(const struct work *k, const char *of, const char *lv, struct pgr_error *err)
{
	char full[FULL_NAME], tag[2 * LVM_NAME];

	in_full(full, k->name.vg, of);
	snprintf(tag, sizeof(tag), LVM_MARK "%s", of);
	return lvm_run(err, "lvcreate", "--quiet", "--yes", "--snapshot", "--setactivationskip",
		       "n", "--addtag", tag, "--name", lv, full);
}

/* A disk, and no snapshot: without the tag. */
static int make_thin_disk(const struct work *k, const char *of, const char *lv,
			  struct pgr_error *err)
{
	char full[FULL_NAME];

	return lvm_run(err, "lvcreate", "--quiet", "--yes", "--snapshot", "--setactivationskip",
		       "n", "--name", lv, in_full(full, k->name.vg, of));
}

/* room: bytes for what is overwritten later; 0: for everything. */
static int make_classic(const struct work *k, const char *lv, uint64_t room, struct pgr_error *err)
{
	char full[FULL_NAME], size[32];

	in_full(full, k->name.vg, k->name.lv);
	if (!room)
		return lvm_run(err, "lvcreate", "--quiet", "--yes", "--snapshot", "--extents",
			       "100%ORIGIN", "--name", lv, full);
	snprintf(size, sizeof(size), "%llub", (unsigned long long)room);
	return lvm_run(err, "lvcreate", "--quiet", "--yes", "--snapshot", "--size", size, "--name",
		       lv, full);
}

static int do_make(struct work *k, struct pgr_error *err)
{
	char lv[WITH_END];
	int ret;

	if (!k->disk)
		return fail_no_disk(k, err);
	ret = name_snapshot(k, lv, err);
	if (ret)
		return ret;
	if (lvm_volume_of(&k->group, lv))
		return pgr_fail(
			err, -EEXIST,
			"the group %s has a volume %s already; choose another name for the snapshot",
			k->name.vg, lv);
	if (k->disk->pool[0]) {
		if (k->w->room)
			return pgr_fail(
				err, -EINVAL,
				"is a thin volume, whose snapshots take their room from the pool; leave --room away");
		ret = make_thin(k, k->name.lv, lv, err);
	} else {
		ret = make_classic(k, lv, k->w->room, err);
		if (ret == -EIO && !k->w->room)
			pgr_fail_prefix(
				err,
				"a snapshot with room for the whole disk cannot be made (--room SIZE: for so much of what changes)");
	}
	if (!ret)
		set_path(k, lv);
	return ret;
}

static int make_snapshot(struct snapshot_work *w, struct pgr_error *err)
{
	return work(w, NULL, do_make, err);
}

/* ---- revert ---- */

static int fail_in_use(const struct work *k, struct pgr_error *err)
{
	return pgr_fail(
		err, -EAGAIN,
		"is in use (lsof /dev/%s/%s, or lsblk, shows by whom), and who uses it would not expect other contents",
		k->name.vg, k->name.lv);
}

static int revert_classic(struct work *k, const struct lvm_volume *snapshot, struct pgr_error *err)
{
	char lv[LVM_NAME], full[FULL_NAME];
	uint64_t room = snapshot->size;
	const struct lvm_volume *left;
	int ret;

	memcpy(lv, snapshot->name, sizeof(lv));
	if (snapshot->invalid)
		return pgr_fail(
			err, -EINVAL,
			"the snapshot %s is void: more was overwritten since than it had room for",
			lv);
	if (!snapshot->merging) {
		ret = lvm_run(err, "lvconvert", "--quiet", "--yes", "--interval", "1", "--merge",
			      in_full(full, k->name.vg, lv));
		if (ret)
			return ret;
	}
	ret = load(k, err);
	if (ret)
		return ret;
	left = lvm_volume_of(&k->group, lv);
	if (left)
		return pgr_fail(
			err, -EBUSY,
			"somebody has opened it meanwhile, so LVM merges the snapshot %s when the volume is activated the next time",
			lv);
	ret = make_classic(k, lv, room, err);
	if (ret)
		pgr_fail_prefix(
			err,
			"is as it was at %s; that snapshot was used up and cannot be made again",
			lv);
	return ret;
}

static int rename_volume(const struct work *k, const char *from, const char *to,
			 struct pgr_error *err)
{
	return lvm_run(err, "lvrename", "--quiet", k->name.vg, from, to);
}

static int remove_volume(const struct work *k, const char *lv, struct pgr_error *err)
{
	char full[FULL_NAME];

	return lvm_run(err, "lvremove", "--quiet", "--yes", in_full(full, k->name.vg, lv));
}

/* Steps 3 and 4: the volume lv+next becomes the disk, or the disk is what it was. */
static int put_in_place(const struct work *k, struct pgr_error *err)
{
	char next[WITH_END], before[WITH_END];
	struct pgr_error undone = PGR_ERROR_NONE;
	int ret;

	with_end(next, k->name.lv, NEXT);
	with_end(before, k->name.lv, BEFORE);
	ret = rename_volume(k, next, k->name.lv, err);
	if (!ret) {
		ret = remove_volume(k, before, err);
		if (ret)
			pgr_fail_prefix(err, "is reverted, but what it was before, %s/%s, is left",
					k->name.vg, before);
		return ret;
	}
	if (rename_volume(k, before, k->name.lv, &undone))
		pgr_fail_prefix(err, "it is called %s/%s now, and the same command goes on (%s)",
				k->name.vg, before, undone.text);
	else
		remove_volume(k, next, NULL);
	return ret;
}

/* After a revert that was stopped: there is a disk of that name again, and nothing else is left. */
static int tidy_up(struct work *k, struct pgr_error *err)
{
	char next[WITH_END], before[WITH_END];
	bool has_next, has_before;
	int ret = 0;

	has_next = lvm_volume_of(&k->group, with_end(next, k->name.lv, NEXT));
	has_before = lvm_volume_of(&k->group, with_end(before, k->name.lv, BEFORE));
	if (!has_next && !has_before)
		return 0;
	if (!k->disk && has_before) {
		ret = rename_volume(k, before, k->name.lv, err);
		has_before = false;
	}
	if (!ret && has_next)
		ret = remove_volume(k, next, err);
	if (!ret && has_before)
		ret = remove_volume(k, before, err);
	return ret ? ret : load(k, err);
}

static int revert_thin(const struct work *k, const struct lvm_volume *snapshot,
		       struct pgr_error *err)
{
	char next[WITH_END], before[WITH_END];
	int ret;

	with_end(next, k->name.lv, NEXT);
	with_end(before, k->name.lv, BEFORE);
	if (!lvm_name_is_valid(before))
		return pgr_fail(
			err, -ENAMETOOLONG,
			"its name is too long to go back: LVM has %u letters for it and an end",
			LVM_NAME - 1);
	ret = make_thin_disk(k, snapshot->name, next, err);
	if (ret)
		return ret;
	ret = rename_volume(k, k->name.lv, before, err);
	if (ret) {
		remove_volume(k, next, NULL);
		return ret;
	}
	return put_in_place(k, err);
}

static int do_revert(struct work *k, struct pgr_error *err)
{
	const struct lvm_volume *snapshot;
	int ret = tidy_up(k, err);

	if (ret)
		return ret;
	if (!k->disk)
		return fail_no_disk(k, err);
	if (k->disk->open)
		return fail_in_use(k, err);
	snapshot = find_snapshot(k, err);
	if (!snapshot)
		return -ENOENT;
	if (snapshot->open)
		return pgr_fail(err, -EAGAIN, "its snapshot %s is in use", snapshot->name);
	set_path(k, snapshot->name);
	return snapshot->pool[0] ? revert_thin(k, snapshot, err) : revert_classic(k, snapshot, err);
}

static int revert_to(struct snapshot_work *w, struct pgr_error *err)
{
	return work(w, NULL, do_revert, err);
}

/* ---- remove ---- */

static int do_remove(struct work *k, struct pgr_error *err)
{
	const struct lvm_volume *snapshot = find_snapshot(k, err);

	if (!snapshot)
		return -ENOENT;
	if (snapshot->open)
		return pgr_fail(err, -EAGAIN, "its snapshot %s is in use", snapshot->name);
	if (snapshot->merging)
		return pgr_fail(err, -EBUSY,
				"its snapshot %s is being merged, for a revert; finish that first",
				snapshot->name);
	set_path(k, snapshot->name);
	return remove_volume(k, snapshot->name, err);
}

static int remove_snapshot(struct snapshot_work *w, struct pgr_error *err)
{
	return work(w, NULL, do_remove, err);
}

const struct snapshots_ops lvm_snapshots = {.make = make_snapshot,
					    .list = list_snapshots,
					    .revert = revert_to,
					    .remove = remove_snapshot};

/* ---- new volumes, other sizes ---- */

struct size_work {
	struct lvm_name name;
	const char *pool;
	uint64_t size;
	struct pgr_error *err;
};

static int do_create(void *ctx)
{
	const struct size_work *k = ctx;
	char size[32], pool[FULL_NAME];

	snprintf(size, sizeof(size), "%llub", (unsigned long long)k->size);
	if (k->pool)
		return lvm_run(k->err, "lvcreate", "--quiet", "--yes", "--thin", "--virtualsize",
			       size, "--name", k->name.lv, in_full(pool, k->name.vg, k->pool));
	return lvm_run(k->err, "lvcreate", "--quiet", "--yes", "--wipesignatures", "y", "--zero",
		       "y", "--size", size, "--name", k->name.lv, k->name.vg);
}

static int do_remove_new(void *ctx)
{
	const struct size_work *k = ctx;
	char full[FULL_NAME];

	return lvm_run(NULL, "lvremove", "--quiet", "--yes", in_full(full, k->name.vg, k->name.lv));
}

static int do_resize(void *ctx)
{
	const struct size_work *k = ctx;
	char size[32], full[FULL_NAME];

	snprintf(size, sizeof(size), "%llub", (unsigned long long)k->size);
	return lvm_run(k->err, "lvresize", "--quiet", "--yes", "--size", size,
		       in_full(full, k->name.vg, k->name.lv));
}

/* What it has from there on is zeros: a volume of the group itself has what was in its place before, which may be another guest's. *size: what it has got. */
static int settle(struct loop *l, const struct lvm_name *name, uint64_t from, uint64_t *size,
		  struct pgr_error *err)
{
	char device[LVM_DEVICE];
	struct block *b;
	int ret, ret2;

	snprintf(device, sizeof(device), "/dev/%s/%s", name->vg, name->lv);
	ret = block_open_file(l, device, NULL, &b, err);
	if (ret)
		return ret;
	*size = block_info(b)->size;
	while (!ret && from < *size) {
		uint64_t n = *size - from < ZERO_ONCE ? *size - from : ZERO_ONCE;

		ret = block_zero(b, from, n, BLOCK_UNMAP, err);
		from += n;
	}
	ret2 = block_close(b, ret ? NULL : err);
	return ret ? ret : ret2;
}

int lvm_create(struct loop *l, const char *disk, uint64_t *size, const char *pool,
	       struct pgr_error *err)
{
	struct size_work k = {.pool = pool, .size = *size, .err = err};
	int ret;

	if (!access(disk, F_OK))
		return pgr_fail(err, -EEXIST, "%s: is there already; choose another name", disk);
	if (!lvm_find(disk, &k.name))
		return pgr_fail(err, -EINVAL, "%s: is no name for a volume of LVM: VG/LV", disk);
	if (pool && !lvm_name_is_valid(pool))
		return pgr_fail(err, -EINVAL, "%s: \"%s\" is no name for a pool of LVM", disk,
				pool);
	ret = offload(l, do_create, &k);
	if (ret) {
		pgr_fail_prefix(err, "%s", disk);
		return ret;
	}
	ret = settle(l, &k.name, pool ? UINT64_MAX : 0, size, err);
	if (ret)
		offload(l, do_remove_new, &k);
	return ret;
}

int lvm_resize(struct loop *l, const char *disk, uint64_t from, uint64_t *size,
	       struct pgr_error *err)
{
	struct size_work k = {.size = *size, .err = err};
	int ret;

	if (!lvm_find(disk, &k.name))
		return pgr_fail(err, -EINVAL, "%s: is no volume of LVM", disk);
	ret = offload(l, do_resize, &k);
	if (ret) {
		pgr_fail_prefix(err, "%s", disk);
		return ret;
	}
	return settle(l, &k.name, from, size, err);
}
