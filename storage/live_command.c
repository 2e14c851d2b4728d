// SPDX-License-Identifier: MIT
#include "storage/live_command.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/layers.h"

#define PROGRESS_NS 500000000ull

void live_put(struct line_client *c, json_t *o)
{
	char *text = o ? json_dumps(o, JSON_COMPACT) : NULL, *line = NULL;

	if (text && asprintf(&line, "%s\n", text) >= 0) {
		line_put(c, line);
		free(line);
	} else {
		line_end(c);
	}
	free(text);
	json_decref(o);
}

void live_put_error(struct line_client *c, const struct pgr_error *err)
{
	live_put(c, json_pack("{ss si ss}", "type", "error", "code", err->code, "text", err->text));
}

const char *live_text(const json_t *request, const char *key)
{
	const char *text = json_string_value(json_object_get(request, key));

	return text ? text : "";
}

struct watcher {
	struct line_client *client;
	uint64_t next_ns;
};

static void report(void *ctx, uint64_t done, uint64_t size)
{
	struct watcher *w = ctx;
	uint64_t now = loop_now_ns();

	if (now < w->next_ns)
		return;
	w->next_ns = now + PROGRESS_NS;
	live_put(w->client, json_pack("{ss sI sI}", "type", "progress", "done", (json_int_t)done,
				      "size", (json_int_t)size));
}

static int do_snapshot(const json_t *request, const struct live_disk *disks, unsigned nr,
		       json_t **result, struct pgr_error *err)
{
	const char *name = live_text(request, "name");
	json_t *paths = json_array();
	uint64_t held;
	int ret = name[0] && nr ? live_snapshot(disks, nr, name, &held, err)
				: pgr_fail(err, -EINVAL,
					   nr ? "a snapshot needs a name"
					      : "there is no disk that is written");

	for (unsigned i = 0; i < nr && !ret; i++) {
		char *path = layers_snapshot_path(disks[i].path, name);

		json_array_append_new(paths, json_string(path ? path : ""));
		free(path);
	}
	if (!ret)
		*result = json_pack("{ss sO sI}", "type", "result", "paths", paths, "held_ns",
				    (json_int_t)held);
	json_decref(paths);
	return ret;
}

static int do_merge(const json_t *request, const struct live_disk *d, struct line_client *client,
		    json_t **result, struct pgr_error *err)
{
	struct watcher watcher = {.client = client};
	json_int_t rate = json_integer_value(json_object_get(request, "rate"));
	const struct live_work w = {.rate = rate > 0 ? (uint64_t)rate : 0,
				    .stop = line_gone(client),
				    .progress = report,
				    .ctx = &watcher};
	const char *name = live_text(request, "name");
	char *path = NULL;
	int ret;

	if (strcmp(live_text(request, "request"), "delete") != 0) {
		ret = live_commit(d, &w, &path, err);
	} else {
		path = layers_snapshot_path(d->path, name);
		ret = live_delete(d, name, &w, err);
	}
	if (!ret)
		*result = json_pack("{ss s[s]}", "type", "result", "paths", path ? path : "");
	free(path);
	return ret;
}

static int do_look(const struct live_disk *d, bool check, json_t **result, struct pgr_error *err)
{
	struct live_look k;
	int ret = d->ops->look(d->ctx, check, &k, err);

	if (!ret)
		*result = json_pack("{ss ss ss sI sI sI sI sI sI sI sI sI ss}", "type", "result",
				    "path", d->path, "driver", k.driver, "size", (json_int_t)k.size,
				    "block_size", (json_int_t)k.block_size, "here",
				    (json_int_t)k.here, "below", (json_int_t)k.below, "zeros",
				    (json_int_t)k.zeros, "clusters", (json_int_t)k.clusters, "used",
				    (json_int_t)k.used, "leaks", (json_int_t)k.leaks, "damages",
				    (json_int_t)k.damages, "finding", k.finding);
	return ret;
}

int live_command(const json_t *request, const struct live_disk *disks, unsigned nr,
		 struct line_client *client, json_t **result, struct pgr_error *err)
{
	const char *what = live_text(request, "request");

	if (!strcmp(what, "snapshot"))
		return do_snapshot(request, disks, nr, result, err);
	if (!strcmp(what, "revert"))
		return pgr_fail(
			err, -EBUSY,
			"%s: is in use, and who uses it would not expect other contents; shut the guest down, or end the server, first",
			nr ? disks[0].path : "the disk");
	if ((!strcmp(what, "info") || !strcmp(what, "check")) && nr == 1)
		return do_look(disks, !strcmp(what, "check"), result, err);
	if (strcmp(what, "delete") != 0 && strcmp(what, "commit") != 0)
		return 1;
	return nr == 1 ? do_merge(request, disks, client, result, err)
		       : pgr_fail(err, -EINVAL, "that is for one disk");
}
