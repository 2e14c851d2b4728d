// SPDX-License-Identifier: MIT
#include "storage/lvm_command.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "storage/command.h"
#include "storage/lvm.h"

#define ARGUMENTS_MAX 24u
#define VOLUMES_MAX   65536u

/* ---- commands ---- */

static const char *program(void)
{
	const char *other = getenv("PAGURUS_LVM");

	return other && other[0] ? other : LVM_PROGRAM;
}

static int run(const char *const *argv, char **out, struct pgr_error *err)
{
	int ret = command_run(argv, out, err);

	if (ret == -ENOENT)
		return pgr_fail(
			err, -ENOPKG,
			"volumes of LVM need its commands, and there is no %s: apt-get install lvm2",
			argv[0]);
	return ret;
}

int lvm_run_words(struct pgr_error *err, const char *const *words)
{
	const char *argv[ARGUMENTS_MAX + 2] = {program()};

	for (unsigned i = 0; i < ARGUMENTS_MAX && words[i]; i++)
		argv[i + 1] = words[i];
	return run(argv, NULL, err);
}

/* ---- reports ---- */

static const char *text_of(const json_t *o, const char *key)
{
	const char *text = json_string_value(json_object_get(o, key));

	return text ? text : "";
}

/* A number that LVM says as text; anything else is 0. */
static uint64_t number_of(const json_t *o, const char *key)
{
	const char *text = text_of(o, key);
	char *end;
	unsigned long long value;

	errno = 0;
	value = strtoull(text, &end, 10);
	return text[0] >= '0' && text[0] <= '9' && !*end && !errno ? value : 0;
}

static double filled_of(const json_t *o)
{
	const char *text = text_of(o, "data_percent");
	char *end;
	double value = strtod(text, &end);

	return text[0] && !*end && value >= 0 && value <= 100 ? value : -1;
}

/* A name in a report, which is in brackets when LVM hides it, as a snapshot that is merged. */
static void name_of(const json_t *o, const char *key, char *out)
{
	const char *text = text_of(o, key);
	size_t length = strlen(text);

	if (length > 2 && text[0] == '[' && text[length - 1] == ']') {
		text++;
		length -= 2;
	}
	out[0] = 0;
	if (length >= LVM_NAME)
		return;
	memcpy(out, text, length);
	out[length] = 0;
	if (!lvm_name_is_valid(out))
		out[0] = 0;
}

static void take_tags(const char *tags, struct lvm_volume *v)
{
	while (*tags) {
		size_t length = strcspn(tags, ","), mark = strlen(LVM_MARK);

		if (length > mark && length - mark < LVM_NAME && !memcmp(tags, LVM_MARK, mark)) {
			memcpy(v->of, tags + mark, length - mark);
			v->of[length - mark] = 0;
		}
		tags += length + (tags[length] == ',');
	}
}

static void take_volume(const json_t *o, struct lvm_group *g)
{
	struct lvm_volume *v = &g->list[g->nr];

	*v = (struct lvm_volume){.size = number_of(o, "lv_size"),
				 .origin_size = number_of(o, "origin_size"),
				 .filled = filled_of(o),
				 .made = (int64_t)number_of(o, "lv_time"),
				 .open = number_of(o, "lv_device_open") == 1,
				 .merging = number_of(o, "lv_merging") == 1,
				 .invalid = number_of(o, "lv_snapshot_invalid") == 1};
	name_of(o, "lv_name", v->name);
	name_of(o, "origin", v->origin);
	name_of(o, "pool_lv", v->pool);
	take_tags(text_of(o, "lv_tags"), v);
	if (v->name[0])
		g->nr++;
}

static int take_report(const char *text, struct lvm_group *g, struct pgr_error *err)
{
	json_error_t why;
	json_t *report = json_loads(text, JSON_REJECT_DUPLICATES, &why), *o;
	const json_t *list =
		json_object_get(json_array_get(json_object_get(report, "report"), 0), "lv");
	size_t i, nr = json_array_size(list);
	int ret = 0;

	if (!json_is_array(list) || nr > VOLUMES_MAX)
		ret = pgr_fail(err, -EPROTO, "what LVM reports is no list of volumes: %s",
			       report ? "other fields" : why.text);
	if (!ret) {
		g->list = calloc(nr ? nr : 1, sizeof(*g->list));
		ret = g->list ? 0 : pgr_fail(err, -ENOMEM, "no memory for a list of volumes");
	}
	if (!ret)
		json_array_foreach(list, i, o) take_volume(o, g);
	json_decref(report);
	return ret;
}

int lvm_load(const char *group, struct lvm_group *out, struct pgr_error *err)
{
	const char *const argv[] = {
		program(),
		"lvs",
		"--all",
		"--reportformat",
		"json",
		"--units",
		"b",
		"--nosuffix",
		"--binary",
		"--config",
		"report/time_format=\"%s\"",
		"-o",
		"lv_name,origin,origin_size,lv_size,pool_lv,data_percent,lv_time,lv_device_open,lv_merging,lv_snapshot_invalid,lv_tags",
		group,
		NULL};
	char *text = NULL;
	int ret = run(argv, &text, err);

	*out = (struct lvm_group){.list = NULL};
	if (!ret)
		ret = take_report(text, out, err);
	free(text);
	return ret;
}

void lvm_free(struct lvm_group *g)
{
	free(g->list);
	*g = (struct lvm_group){.list = NULL};
}

const struct lvm_volume *lvm_volume_of(const struct lvm_group *g, const char *name)
{
	for (unsigned i = 0; i < g->nr; i++)
		if (!strcmp(g->list[i].name, name))
			return &g->list[i];
	return NULL;
}
