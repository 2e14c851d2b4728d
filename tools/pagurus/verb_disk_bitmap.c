// SPDX-License-Identifier: MIT
/* `pagurus disk bitmap add`, `list`, `remove` and `clear`: what was written since, for incremental backups. */
#include <stdio.h>

#include "storage/qcow2_bitmaps.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

#define GRANULARITY (64u << 10)

struct bitmap_work {
	const char *format;
	bool json;
	uint64_t granularity;
};

typedef int bitmap_fn(struct block *disk, const char *name, const struct bitmap_work *w,
		      struct pgr_error *err);

static int change(struct bitmap_work *w, const struct usage *usage, int argc, char **argv,
		  const char *told, bitmap_fn *fn)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct block *disk;
	struct loop *l;
	int count, status, ret, ret2;

	if (!options_parse(usage, argc, argv, &count, &status))
		return status;
	if (disk_open_to_write(argv[0], w->format, &l, &disk, &err))
		return disk_fail(&err, w->json);
	ret = fn(disk, argv[1], w, &err);
	ret2 = block_close(disk, ret ? NULL : &err);
	loop_free(l);
	if (ret || ret2)
		return disk_fail(&err, w->json);
	if (w->json)
		disk_print_json(json_pack("{ss ss ss ss}", "type", "result", "action", told, "disk",
					  argv[0], "name", argv[1]));
	else
		printf("%s: %s\n", told, argv[1]);
	return EXIT_OK;
}

static int add(struct block *disk, const char *name, const struct bitmap_work *w,
	       struct pgr_error *err)
{
	return qcow2_bitmap_add(disk, name, (uint32_t)w->granularity, err);
}

static int bitmap_add(int argc, char **argv)
{
	struct bitmap_work w = {.granularity = GRANULARITY};
	const struct option_spec options[] = {
		{"granularity", OPTION_SIZE, &w.granularity, "SIZE",
		 "what a bit is about: a power of two, 512 bytes to 2 GiB (default: 64 KiB)", 512,
		 1u << 31},
		DISK_OPTION_FORMAT(&w.format),
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk bitmap add [OPTIONS] DISK NAME",
		"Record from now on which parts of a qcow2 image are written, by every program that knows bitmaps. The disk must not be in use.",
		options, 2, 2};

	return change(&w, &usage, argc, argv, "added", add);
}

static int remove_one(struct block *disk, const char *name, const struct bitmap_work *w,
		      struct pgr_error *err)
{
	(void)w;
	return qcow2_bitmap_remove(disk, name, err);
}

static int clear(struct block *disk, const char *name, const struct bitmap_work *w,
		 struct pgr_error *err)
{
	(void)w;
	return qcow2_bitmap_clear(disk, name, err);
}

static int simple(int argc, char **argv, const char *synopsis, const char *about, const char *told,
		  bitmap_fn *fn)
{
	struct bitmap_work w = {.format = NULL};
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&w.format),
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {synopsis, about, options, 2, 2};

	return change(&w, &usage, argc, argv, told, fn);
}

static int bitmap_remove(int argc, char **argv)
{
	return simple(argc, argv, "pagurus disk bitmap remove [OPTIONS] DISK NAME",
		      "Remove a bitmap, also one that is inconsistent.", "removed", remove_one);
}

static int bitmap_clear(int argc, char **argv)
{
	return simple(argc, argv, "pagurus disk bitmap clear [OPTIONS] DISK NAME",
		      "Forget what a bitmap has recorded so far: after a backup.", "cleared",
		      clear);
}

static void show(const struct qcow2_bitmap *m, bool json)
{
	const char *state = !m->dirty ? "inconsistent" : m->recording ? "recording" : "kept";
	char size[UNITS_TEXT], dirty[UNITS_TEXT];
	uint64_t bytes = m->dirty ? dirty_bytes(m->dirty) : 0;

	if (json)
		disk_print_json(json_pack("{ss so sI sI ss}", "type", "bitmap", "name",
					  json_string(m->name), "granularity",
					  (json_int_t)m->granularity, "dirty", (json_int_t)bytes,
					  "state", state));
	else
		printf("%-32s  %10s  %10s  %s\n", m->name, units_show_size(m->granularity, size),
		       m->dirty ? units_show_size(bytes, dirty) : "-", state);
}

static int bitmap_list(int argc, char **argv)
{
	struct bitmap_work w = {.format = NULL};
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&w.format),
		DISK_OPTION_JSON(&w.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk bitmap list [OPTIONS] DISK",
		"The bitmaps of a qcow2 image that is not in use: name, what a bit is about, how much was written, and whether it records, is kept as it is, or is inconsistent.",
		options, 1, 1};
	const struct qcow2_bitmaps *all = NULL;
	struct pgr_error err = PGR_ERROR_NONE;
	struct block *disk;
	struct loop *l;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (disk_open_to_read(argv[0], w.format, false, &l, &disk, &err))
		return disk_fail(&err, w.json);
	ret = qcow2_bitmaps(disk, &all, &err);
	for (uint32_t i = 0; !ret && i < all->nr; i++)
		show(&all->list[i], w.json);
	disk_done(l, disk);
	return ret ? disk_fail(&err, w.json) : EXIT_OK;
}

int disk_bitmap(int argc, char **argv)
{
	static const struct option_action actions[] = {
		{"add", bitmap_add, "begin to record what is written"},
		{"list", bitmap_list, "those that the image has"},
		{"remove", bitmap_remove, "have one no more"},
		{"clear", bitmap_clear, "forget what it has recorded"},
	};

	argv[0] = (char *)"disk bitmap";
	return options_run_action(actions, sizeof(actions) / sizeof(actions[0]), argc, argv);
}
