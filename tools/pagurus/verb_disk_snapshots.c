// SPDX-License-Identifier: MIT
#include "tools/pagurus/verb_disk_snapshots.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

void disk_show_row(const struct disk_layer_row *r)
{
	char size[UNITS_TEXT], used[UNITS_TEXT] = "-", when[32] = "-                  ";
	time_t seconds = (time_t)r->when;
	struct tm tm;

	if (r->when)
		strftime(when, sizeof(when), "%F %T", localtime_r(&seconds, &tm));
	if (r->used != SNAPSHOT_UNKNOWN)
		units_show_size(r->used, used);
	printf("%*s%-*s  %10s  %10s  %s%s\n", (int)(2 * r->depth), "",
	       r->depth < 15 ? (int)(32 - 2 * r->depth) : 2, r->name,
	       units_show_size(r->size, size), used, when, r->notes);
}

static void show_snapshot(const struct snapshot *s, bool json)
{
	const struct disk_layer_row row = {.name = s->name,
					   .depth = 1,
					   .size = s->size,
					   .used = s->used,
					   .when = s->made,
					   .notes = s->is_void ? "  snapshot, void: it was full"
							       : "  snapshot"};

	json_t *o;

	if (!json) {
		disk_show_row(&row);
		return;
	}
	o = json_pack("{s:s,s:s,s:s,s:I}", "type", "snapshot", "name", s->name, "path", s->path,
		      "size", (json_int_t)s->size);
	if (o && s->used != SNAPSHOT_UNKNOWN)
		json_object_set_new(o, "used", json_integer((json_int_t)s->used));
	if (o && s->is_void)
		json_object_set_new(o, "void", json_true());
	if (o && s->made)
		json_object_set_new(o, "made", json_integer((json_int_t)s->made));
	disk_print_json(o);
}

static void show_disk(const char *disk, uint64_t size, bool json)
{
	const struct disk_layer_row row = {
		.name = disk, .size = size, .used = SNAPSHOT_UNKNOWN, .notes = "  the disk"};

	if (!json)
		disk_show_row(&row);
	else
		disk_print_json(json_pack("{s:s,s:s,s:s,s:I,s:b}", "type", "layer", "name", disk,
					  "path", disk, "size", (json_int_t)size, "disk", 1));
}

int disk_show_snapshots(struct loop *l, const struct snapshots_ops *ops, const char *disk,
			bool json, struct pgr_error *err)
{
	struct snapshot_work w = {.loop = l, .disk = disk};
	struct snapshots s = {.list = NULL};
	int ret = ops->list(&w, &s, err);

	if (!ret && s.size)
		show_disk(disk, s.size, json);
	for (unsigned i = 0; i < s.nr && !ret; i++)
		show_snapshot(&s.list[i], json);
	snapshots_free(&s);
	return ret;
}

int disk_check_stood_on(struct loop *l, const char *path, struct pgr_error *err)
{
	struct layers s = {.list = NULL};
	int ret = layers_load(l, path, &s, err), child;

	if (!ret) {
		child = layers_child(&s, s.disk, err);
		ret = child == -EEXIST ? child : 0;
		if (child >= 0)
			ret = pgr_fail(
				err, -EEXIST,
				"%s: %s stands on it and would change with it; copy that first (pagurus disk convert), or delete it",
				path, s.list[child].path);
	}
	layers_free(&s);
	return ret;
}

void disk_tell(const char *what, const char *disk, const char *path, bool json)
{
	if (json)
		disk_print_json(json_pack("{s:s,s:s,s:s,s:s}", "type", "result", "action", what,
					  "disk", disk, "path", path));
	else
		printf("%s: %s\n", what, path);
}

/* ---- of disks that are no files ---- */

int disk_list_elsewhere(const struct snapshots_ops *ops, const char *disk, bool json)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct loop *l;
	int ret = loop_create(&l, &err);

	if (!ret) {
		ret = disk_show_snapshots(l, ops, disk, json, &err);
		loop_free(l);
	}
	return ret ? disk_fail(&err, json) : EXIT_OK;
}

static void on_progress(void *ctx, uint64_t done, uint64_t size)
{
	disk_progress_show(ctx, done, size);
}

static int change(int (*run)(struct snapshot_work *w, struct pgr_error *err),
		  struct snapshot_work w, const char *what, bool json)
{
	struct disk_progress progress = {.json = json};
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = loop_create(&w.loop, &err);

	w.progress = on_progress;
	w.ctx = &progress;
	if (!ret) {
		ret = run(&w, &err);
		loop_free(w.loop);
	}
	disk_progress_end(&progress);
	if (!ret)
		disk_tell(what, w.disk, w.path ? w.path : w.name, json);
	free(w.path);
	return ret ? disk_fail(&err, json) : EXIT_OK;
}

int disk_snapshot_elsewhere(const struct snapshots_ops *ops, const char *disk, const char *name,
			    uint64_t room, bool json)
{
	const struct snapshot_work w = {.disk = disk, .name = name, .room = room};

	return change(ops->make, w, "snapshot", json);
}

int disk_revert_elsewhere(const struct snapshots_ops *ops, const char *disk, const char *name,
			  bool json)
{
	const struct snapshot_work w = {.disk = disk, .name = name};

	return change(ops->revert, w, "reverted to", json);
}

int disk_delete_elsewhere(const struct snapshots_ops *ops, const char *disk, const char *name,
			  bool json)
{
	const struct snapshot_work w = {.disk = disk, .name = name};

	return change(ops->remove, w, "deleted", json);
}
