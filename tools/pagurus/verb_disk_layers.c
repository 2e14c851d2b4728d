// SPDX-License-Identifier: MIT
/*
 * `pagurus disk snapshot`, `list`, `revert`, `commit` and `delete`: the layers of a disk. One that is in use is its server's matter
 * (live.h); what is here is for one that is not.
 *
 * A change is one rename, behind everything that it needs: what stands there before it is what was there before. Merging writes into the layer below,
 * under everything that the disk itself says, so that the disk reads the same before, meanwhile and afterwards; stopped or killed it is begun again.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/layers.h"
#include "storage/live.h"
#include "storage/qcow2_layer.h"
#include "storage/reflink.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/disk_server.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verb_disk_snapshots.h"
#include "tools/pagurus/verbs.h"

/* What each of them begins with. */
struct work {
	const char *disk; /* where links end */
	char *real;
	bool json, quiet; /* quiet: somebody else says what came of it */
	uint64_t rate;
	struct loop *loop;
	struct layers layers;
};

static int begin(struct work *w, const char *disk, struct pgr_error *err)
{
	int ret;

	w->real = realpath(disk, NULL);
	if (!w->real)
		return pgr_fail_errno(err, -errno, "%s: cannot be found", disk);
	w->disk = w->real;
	ret = loop_create(&w->loop, err);
	return ret ? ret : layers_load(w->loop, w->disk, &w->layers, err);
}

static void release(struct work *w)
{
	layers_free(&w->layers);
	loop_free(w->loop);
	free(w->real);
}

/* The exit status. */
static int end(struct work *w, int ret, const struct pgr_error *err)
{
	release(w);
	return ret ? disk_fail(err, w->json) : EXIT_OK;
}

/* ---- what its server does, when it is in use ---- */

/* The request, and how its result is told. */
struct served_as {
	const char *request, *told;
};

static const struct served_as as_snapshot = {"snapshot", "snapshot"},
			      as_revert = {"revert", "reverted to"},
			      as_commit = {"commit", "committed into"},
			      as_delete = {"delete", "deleted"};

static json_t *request_about(const struct served_as *as, const char *disk, const char *name)
{
	char *real = realpath(disk, NULL), *path = NULL;
	json_t *o;

	/* A path is seen from where we are. */
	if (name && strchr(name, '/') && name[0] != '/') {
		char *here = getcwd(NULL, 0);

		if (!here || asprintf(&path, "%s/%s", here, name) < 0)
			path = NULL;
		free(here);
	}
	o = json_pack("{ss ss}", "request", as->request, "disk", real ? real : disk);
	if (name)
		json_object_set_new(o, "name", json_string(path ? path : name));
	free(path);
	free(real);
	return o;
}

static void tell_served(const struct work *w, const struct served_as *as, const json_t *result)
{
	const json_t *paths = json_object_get(result, "paths"), *path;
	json_int_t held = json_integer_value(json_object_get(result, "held_ns"));
	bool frozen = message_flag(result, "frozen");
	size_t i;

	json_array_foreach(paths, i, path)
	{
		if (w->json)
			disk_print_json(json_pack("{ss ss sO sI}", "type", "result", "action",
						  as->told, "path", path, "held_ns", held));
		else
			printf("%s: %s\n", as->told, json_string_value(path));
	}
	if (!w->json && held)
		printf("in use: requests waited for %.1f ms%s\n", (double)held / 1e6,
		       frozen ? ", the guest's file systems were frozen" : "");
}

/* 1: somebody has the disk open and did it, *result; 0: nobody has, or it is nothing of its server's, for it is not below the disk; -errno. */
static int ask(const struct work *w, json_t *request, json_t **result, struct pgr_error *err)
{
	struct paths paths;
	int ret;

	paths_init(&paths);
	if (w->rate)
		json_object_set_new(request, "rate", json_integer((json_int_t)w->rate));
	ret = disk_server_ask(paths.disks, request, w->json, NULL, NULL, result, err);
	return ret == -ESRCH ? 0 : ret;
}

/* True: it was its server's matter; *status. */
static bool served(struct work *w, json_t *request, const struct served_as *as, int *status)
{
	struct pgr_error err = PGR_ERROR_NONE;
	json_t *result = NULL;
	int ret = ask(w, request, &result, &err);

	if (ret > 0)
		tell_served(w, as, result);
	json_decref(result);
	if (ret)
		*status = ret > 0 ? EXIT_OK : disk_fail(&err, w->json);
	return ret;
}

/* ---- and else ---- */

typedef int work_fn(struct work *w, const char *name, struct pgr_error *err);

/* The same for a disk that is no file. */
static int act_elsewhere(const struct work *w, const struct snapshots_ops *ops, const char *disk,
			 const char *name, const struct served_as *as)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (!as)
		return disk_list_elsewhere(ops, disk, w->json);
	if (as == &as_revert)
		return disk_revert_elsewhere(ops, disk, name, w->json);
	if (as == &as_delete)
		return disk_delete_elsewhere(ops, disk, name, w->json);
	pgr_fail(&err, -EINVAL, "%s: a raw disk has no layers", disk);
	return disk_fail(&err, w->json);
}

/* An action on the layers of argv[0]; name is argv[1], or NULL. */
static int act(struct work *w, const struct usage *usage, int argc, char **argv, work_fn *fn,
	       const struct served_as *as)
{
	struct pgr_error err = PGR_ERROR_NONE;
	const struct snapshots_ops *ops;
	int count, status, ret;

	if (!options_parse(usage, argc, argv, &count, &status))
		return status;
	ops = disk_snapshots_of(argv[0]);
	if (ops)
		return act_elsewhere(w, ops, argv[0], count > 1 ? argv[1] : NULL, as);
	if (as && served(w, request_about(as, argv[0], count > 1 ? argv[1] : NULL), as, &status))
		return status;
	ret = begin(w, argv[0], &err);
	if (!ret)
		ret = fn(w, count > 1 ? argv[1] : NULL, &err);
	return end(w, ret, &err);
}

static void tell(const struct work *w, const char *what, const char *path)
{
	if (!w->quiet)
		disk_tell(what, w->disk, path, w->json);
}

/* The layer at the bottom of the disk. */
static int root_of(const struct work *w)
{
	int root = w->layers.disk;

	for (unsigned i = 0; i < w->layers.nr && w->layers.list[root].below >= 0; i++)
		root = w->layers.list[root].below;
	return root;
}

static bool is_raw(const struct work *w)
{
	return w->layers.list[w->layers.disk].raw;
}

/* ---- snapshot ---- */

static int snapshot_unused(struct work *w, const char *name, const char *format)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct block *b;
	char *path;
	int ret, ret2;

	/* The snapshot is beside the disk and not beside a link to it. */
	w->real = realpath(w->disk, NULL);
	if (w->real)
		w->disk = w->real;
	if (disk_open_to_write(w->disk, format, &w->loop, &b, &err)) {
		free(w->real);
		return disk_fail(&err, w->json);
	}
	path = layers_snapshot_path(w->disk, name);
	ret = path ? block_snapshot(b, path, &err)
		   : pgr_fail(&err, -ENOMEM, "no memory for a name");
	ret2 = block_close(b, ret ? NULL : &err);
	if (!ret)
		ret = ret2;
	if (!ret)
		tell(w, "snapshot", path);
	free(path);
	return end(w, ret, &err);
}

static int snapshot_guest(struct work *w, const char *guest, const char *name)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int status;

	if (served(w, json_pack("{ss ss ss}", "request", "snapshot", "guest", guest, "name", name),
		   &as_snapshot, &status))
		return status;
	pgr_fail(&err, -ENOENT,
		 "%s: no guest of that name or number has disks served by pagurus-blk here", guest);
	return disk_fail(&err, w->json);
}

int disk_snapshot(int argc, char **argv)
{
	const char *format = NULL, *guest = NULL;
	const struct snapshots_ops *ops;
	struct work w = {.disk = NULL};
	uint64_t room = 0;
	const struct option_spec options[] = {
		{"domain", OPTION_STRING, &guest, "GUEST",
		 "of all disks of that guest at the same moment, in place of DISK", 0, 0},
		{"room", OPTION_SIZE, &room, "SIZE",
		 "LVM, no thin volume: for what is overwritten later (default: for the whole disk)",
		 4096, BLOCK_SIZE_MAX},
		DISK_OPTION_FORMAT(&format),
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk snapshot [OPTIONS] DISK NAME",
		"Keep what the disk holds now as DISK.NAME.qcow2, or .raw, beside it, in constant time. NAME may be a path. The disk may be in use.",
		options, 1, 2};
	int count, status;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (count != (guest ? 1 : 2))
		return options_complain(&usage, guest ? "--domain and a NAME, and no DISK"
						      : "a DISK and a NAME");
	if (live_is_reserved(argv[count - 1]))
		return options_complain(&usage, "%s: that name is for layers that are merged",
					argv[count - 1]);
	if (guest)
		return snapshot_guest(&w, guest, argv[0]);
	w.disk = argv[0];
	ops = disk_snapshots_of(w.disk);
	if (ops)
		return disk_snapshot_elsewhere(ops, w.disk, argv[1], room, w.json);
	if (room)
		return options_complain(&usage, "--room is for classic volumes of LVM");
	if (served(&w, request_about(&as_snapshot, argv[0], argv[1]), &as_snapshot, &status))
		return status;
	return snapshot_unused(&w, argv[1], format);
}

int disk_ask_server(const char *what, const char *disk, json_t **result, struct pgr_error *err)
{
	const struct served_as as = {what, what};
	const struct work w = {.disk = disk};

	return disk_is_address(disk) ? 0 : ask(&w, request_about(&as, disk, NULL), result, err);
}

int disk_keep_moment(const char *disk, const char *name, json_t **result, struct pgr_error *err)
{
	const struct work w = {.disk = disk};

	return ask(&w, request_about(&as_snapshot, disk, name), result, err);
}

/* ---- list ---- */

static void show_layer(const struct work *w, int index, unsigned depth)
{
	const struct layer *y = &w->layers.list[index];
	char name[256], notes[64];

	layers_snapshot_name(w->disk, y->path, name, sizeof(name));
	if (w->json) {
		disk_print_json(json_pack("{s:s,s:s,s:s,s:s?,s:I,s:I,s:I,s:b,s:b,s:b}", "type",
					  "layer", "name", name, "path", y->path, "below",
					  y->below < 0 ? NULL : w->layers.list[y->below].path,
					  "size", (json_int_t)y->size, "used", (json_int_t)y->used,
					  "changed", (json_int_t)y->changed, "disk",
					  index == w->layers.disk, "leaving", y->leaving, "unclear",
					  y->unclear));
		return;
	}
	snprintf(notes, sizeof(notes), "%s%s%s", index == w->layers.disk ? "  the disk" : "",
		 y->leaving ? "  being merged: finish it" : "",
		 y->unclear ? "  cannot be read" : "");
	disk_show_row(&(struct disk_layer_row){.name = name,
					       .depth = depth,
					       .size = y->size,
					       .used = y->used,
					       .when = y->changed,
					       .notes = notes});
}

static void show_tree(const struct work *w, int root, unsigned depth)
{
	show_layer(w, root, depth);
	if (depth >= QCOW2_CHAIN_MAX)
		return;
	for (unsigned i = 0; i < w->layers.nr; i++)
		if (w->layers.list[i].below == root && (int)i != root)
			show_tree(w, (int)i, depth + 1);
}

static int list(struct work *w, const char *name, struct pgr_error *err)
{
	(void)name;
	show_tree(w, root_of(w), 0);
	return is_raw(w) ? disk_show_snapshots(w->loop, &reflink_ops, w->disk, w->json, err) : 0;
}

int disk_list(int argc, char **argv)
{
	struct work w = {.disk = NULL};
	const struct option_spec options[] = {
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk list [OPTIONS] DISK",
		"The layers that the disk stands on, and what else stands on them: name, size, room that the file takes up, last change.",
		options, 1, 1};

	return act(&w, &usage, argc, argv, list, NULL);
}

/* ---- a new empty layer in the place of the disk ---- */

/* Over `below`, with that size. The disk's file is locked by the caller. */
static int put_new_layer(struct work *w, const struct layer *below, uint64_t size,
			 struct pgr_error *err)
{
	struct qcow2_layer y = {.image = w->disk,
				.like = w->disk,
				.backing = below->path,
				.backing_format = below->raw ? "raw" : "qcow2",
				.size = size};
	struct block *file;
	char *partial;
	int ret;

	if (asprintf(&partial, "%s.partial", w->disk) < 0)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	unlink(partial); /* of one that was killed: we have the disk's lock */
	y.path = partial;
	ret = qcow2_layer_make(w->loop, &y, &file, err);
	if (!ret) {
		ret = block_close(file, err);
		if (!ret && rename(partial, w->disk))
			ret = pgr_fail_errno(err, -errno, "%s: cannot be replaced", w->disk);
		if (ret)
			unlink(partial);
	}
	if (!ret)
		ret = disk_sync_folder(w->disk, err);
	free(partial);
	return ret;
}

static int check_is_image(const struct work *w, struct pgr_error *err)
{
	if (!is_raw(w))
		return 0;
	return pgr_fail(err, -EINVAL,
			"%s: a raw disk has no layers; its snapshots are files of their own",
			w->disk);
}

/* ---- revert ---- */

static int revert_raw(struct work *w, const char *name, struct pgr_error *err)
{
	struct snapshot_work sw = {.loop = w->loop, .disk = w->disk, .name = name};
	int ret = disk_check_stood_on(w->loop, w->disk, err);

	if (!ret)
		ret = reflink_ops.revert(&sw, err);
	if (!ret)
		tell(w, "reverted to", sw.path);
	free(sw.path);
	return ret;
}

static int revert(struct work *w, const char *name, struct pgr_error *err)
{
	struct block *lock;
	int index, ret;

	if (is_raw(w))
		return revert_raw(w, name, err);
	index = layers_find(&w->layers, w->disk, name, err);
	if (index < 0)
		return index;
	ret = layers_check_whole(w->layers.list[index].path, err);
	if (!ret && index == w->layers.disk)
		ret = pgr_fail(err, -EINVAL, "%s: is the disk itself, and no snapshot", w->disk);
	if (!ret && w->layers.list[index].unclear)
		ret = qcow2_layer_header(w->loop, w->layers.list[index].path,
					 &(struct qcow2_header){.size = 0}, err);
	if (!ret)
		ret = block_open_file(w->loop, w->disk, NULL, &lock, err);
	if (ret)
		return ret;
	ret = put_new_layer(w, &w->layers.list[index], w->layers.list[index].size, err);
	block_close(lock, NULL);
	if (!ret)
		tell(w, "reverted to", w->layers.list[index].path);
	return ret;
}

int disk_revert(int argc, char **argv)
{
	struct work w = {.disk = NULL};
	const struct option_spec options[] = {
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk revert [OPTIONS] DISK NAME",
		"Make the disk what it was at that snapshot. What was written since the last snapshot is lost; the snapshots stay.",
		options, 2, 2};

	return act(&w, &usage, argc, argv, revert, &as_revert);
}

/* ---- merging ---- */

static int load_again(struct work *w, struct pgr_error *err)
{
	layers_free(&w->layers);
	return layers_load(w->loop, w->disk, &w->layers, err);
}

static int remove_merged(struct work *w, struct pgr_error *err)
{
	int ret = live_remove_merged(w->loop, w->disk, &w->layers, err);

	return ret == 1 ? load_again(w, err) : ret;
}

struct merge {
	int upper, lower;
	struct block *from, *to; /* open and locked until merge_end() */
};

static int open_merge(struct work *w, struct merge *m, struct pgr_error *err)
{
	const struct layer *upper = &w->layers.list[m->upper], *lower = &w->layers.list[m->lower];
	const struct block_options reading = {.read_only = true}, writing = {.read_only = false};
	int ret;

	m->from = m->to = NULL;
	ret = disk_open(w->loop, lower->path, lower->raw ? "raw" : "qcow2", &writing, &m->to, err);
	if (!ret)
		ret = block_open_qcow2_alone(w->loop, upper->path, &reading, &m->from, err);
	return ret;
}

static int close_merge(struct merge *m, struct pgr_error *err)
{
	int ret = block_close(m->to, err);

	block_close(m->from, NULL);
	return ret;
}

/* Everything that `from` says itself is in `to`, durably; may_shrink: to gets its size. */
static int run_merge(struct work *w, struct merge *m, bool may_shrink, struct pgr_error *err)
{
	struct disk_copy c = {.from = m->from, .to = m->to, .what = COPY_OWN, .rate = w->rate};
	uint64_t size = block_info(m->from)->size, has = block_info(m->to)->size;
	int ret;

	interrupt_catch();
	ret = layers_begin_merge(w->layers.list[m->lower].path, err);
	if (ret)
		return ret;
	if (size > has || (size < has && may_shrink))
		ret = block_resize(m->to, size, err);
	if (!ret)
		ret = disk_copy_watched(&c, w->json, err);
	return ret == -ECANCELED ? layers_fail_stopped(w->disk, err) : ret;
}

/* ---- commit ---- */

static void on_progress(void *ctx, uint64_t done, uint64_t size)
{
	disk_progress_show(ctx, done, size);
}

/* A commit that was begun while the disk was in use, and stopped, has put a layer between the disk's own and the one that is merged into. */
static bool is_half_committed(const struct work *w)
{
	int upper = w->layers.list[w->layers.disk].below;
	int lower = upper < 0 ? -1 : w->layers.list[upper].below;

	return lower >= 0 && w->layers.list[lower].leaving &&
	       live_is_merging(w->disk, &w->layers.list[upper]);
}

static int commit_as_in_use(struct work *w, struct pgr_error *err)
{
	struct disk_progress progress = {.json = w->json};
	const struct live_work work = {.rate = w->rate,
				       .stop = interrupt_catch(),
				       .progress = on_progress,
				       .ctx = &progress};
	struct live_local local = {.held_at = 0};
	const struct live_disk d = {
		.path = w->disk, .loop = w->loop, .ops = &live_local_ops, .ctx = &local};
	char *into = NULL;
	int ret = disk_open(w->loop, w->disk, "qcow2", &(struct block_options){.read_only = false},
			    &local.disk, err),
	    ret2;

	if (ret)
		return ret;
	ret = live_commit(&d, &work, &into, err);
	disk_progress_end(&progress);
	ret2 = block_close(local.disk, ret ? NULL : err);
	free(into);
	if (!ret)
		ret = ret2;
	return ret ? ret : load_again(w, err);
}

static int commit(struct work *w, const char *name, struct pgr_error *err)
{
	struct merge m;
	uint64_t size;
	struct block *lock = NULL;
	int ret = check_is_image(w, err), ret2;

	(void)name;
	if (!ret)
		ret = remove_merged(w, err);
	/* And then the disk's own layer. */
	if (!ret && is_half_committed(w))
		ret = commit_as_in_use(w, err);
	if (ret)
		return ret;
	m = (struct merge){.upper = w->layers.disk, .lower = w->layers.list[w->layers.disk].below};
	size = w->layers.list[w->layers.disk].size;
	if (m.lower < 0)
		return pgr_fail(err, -EINVAL, "%s: stands on nothing that it could be merged into",
				w->disk);
	ret = layers_child(&w->layers, m.lower, err);
	if (ret == -EEXIST)
		return ret;
	ret = open_merge(w, &m, err);
	if (!ret)
		ret = run_merge(w, &m, false, err);
	ret2 = close_merge(&m, ret ? NULL : err);
	if (!ret)
		ret = ret2;
	/* Whoever came in between, it reads the same. */
	if (!ret)
		ret = block_open_file(w->loop, w->disk, NULL, &lock, err);
	if (!ret)
		ret = put_new_layer(w, &w->layers.list[m.lower], size, err);
	block_close(lock, NULL);
	if (!ret)
		layers_set_leaving(w->layers.list[m.lower].path, false);
	if (!ret)
		tell(w, "committed into", w->layers.list[m.lower].path);
	return ret;
}

#define OPTION_RATE_OF(value)                                                                     \
	{                                                                                         \
		"rate", OPTION_RATE, (value), "RATE", "at most so many bytes a second (100M)", 0, \
			0                                                                         \
	}

int disk_commit(int argc, char **argv)
{
	struct work w = {.disk = NULL};
	const struct option_spec options[] = {
		OPTION_RATE_OF(&w.rate),
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk commit [OPTIONS] DISK",
		"Write what the disk's own layer holds into the one below it, which is no snapshot of the time before any more. Stopped or killed, say it again.",
		options, 1, 1};

	return act(&w, &usage, argc, argv, commit, &as_commit);
}

/* ---- delete ---- */

/* The lower file gets the place of the upper one, which it now holds all of. */
static int take_place(struct work *w, const struct merge *m, struct pgr_error *err)
{
	const char *upper = w->layers.list[m->upper].path, *lower = w->layers.list[m->lower].path;

	if (rename(lower, upper))
		return pgr_fail_errno(err, -errno, "%s: cannot get the name %s", lower, upper);
	layers_set_leaving(lower, false);
	return disk_sync_folder(upper, err);
}

static int delete_merged(struct work *w, int index, int child, struct pgr_error *err)
{
	struct merge m = {.upper = child, .lower = index};
	int ret, ret2;

	if (w->layers.list[index].raw)
		return pgr_fail(
			err, -EINVAL,
			"%s: is a raw disk, and what stands on it is qcow2; merge into it with pagurus disk commit, or copy: pagurus disk convert",
			w->layers.list[index].path);
	ret = open_merge(w, &m, err);
	if (!ret)
		ret = run_merge(w, &m, true, err);
	/* Under the locks of both. */
	if (!ret)
		ret = take_place(w, &m, err);
	ret2 = close_merge(&m, ret ? NULL : err);
	return ret ? ret : ret2;
}

static int delete_leaf(struct work *w, int index, struct pgr_error *err)
{
	const char *path = w->layers.list[index].path;
	int ret = layers_remove(w->loop, path, err);

	if (!ret)
		layers_set_leaving(path, false);
	return ret;
}

/* False: it is none of a raw disk's. */
static bool delete_raw(struct work *w, const char *name, int *ret, struct pgr_error *err)
{
	struct snapshot_work sw = {.loop = w->loop, .disk = w->disk, .name = name};
	char *path = layers_snapshot_path(w->disk, name);
	bool is = path && reflink_is_snapshot(w->disk, path);

	if (is)
		*ret = disk_check_stood_on(w->loop, path, err);
	if (is && !*ret)
		*ret = reflink_ops.remove(&sw, err);
	if (is && !*ret)
		tell(w, "deleted", sw.path);
	free(sw.path);
	free(path);
	return is;
}

static int delete_snapshot(struct work *w, const char *name, struct pgr_error *err)
{
	int index, child, ret;

	if (is_raw(w) && delete_raw(w, name, &ret, err))
		return ret;
	ret = remove_merged(w, err);
	if (ret)
		return ret;
	index = layers_find(&w->layers, w->disk, name, err);
	if (index < 0)
		return index;
	if (index == w->layers.disk)
		return pgr_fail(err, -EINVAL, "%s: is the disk itself, and no snapshot", w->disk);
	child = layers_child(&w->layers, index, err);
	if (child == -EEXIST)
		return child;
	if (!layers_stands_on(&w->layers, index, root_of(w)))
		return pgr_fail(err, -EINVAL, "%s: is no layer of %s", w->layers.list[index].path,
				w->disk);
	ret = child < 0 ? delete_leaf(w, index, err) : delete_merged(w, index, child, err);
	if (!ret)
		tell(w, "deleted", w->layers.list[index].path);
	return ret;
}

int disk_remove_snapshot(const char *disk, const char *name, bool json, struct pgr_error *err)
{
	struct work w = {.json = json, .quiet = true};
	json_t *result = NULL;
	int ret = ask(&w, request_about(&as_delete, disk, name), &result, err);

	json_decref(result);
	if (ret)
		return ret > 0 ? 0 : ret;
	ret = begin(&w, disk, err);
	if (!ret)
		ret = delete_snapshot(&w, name, err);
	release(&w);
	return ret;
}

int disk_delete(int argc, char **argv)
{
	struct work w = {.disk = NULL};
	const struct option_spec options[] = {
		OPTION_RATE_OF(&w.rate),
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk delete [OPTIONS] DISK NAME",
		"Remove a snapshot; what stands on it keeps what it holds. Stopped or killed, say it again: the snapshot is void once this has begun.",
		options, 2, 2};

	return act(&w, &usage, argc, argv, delete_snapshot, &as_delete);
}
