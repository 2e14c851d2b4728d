/* SPDX-License-Identifier: MIT */
/* `pagurus disk info|map|convert`: disks without a guest. verb_disk_convert.c has the last. */
#include "tools/pagurus/verb_disk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tools/pagurus/options.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

void disk_print_json(json_t *o)
{
	if (o)
		json_dumpf(o, stdout, JSON_COMPACT);
	fputc('\n', stdout);
	json_decref(o);
}

int disk_fail(const struct pgr_error *err, bool json)
{
	if (json)
		disk_print_json(json_pack("{s:s,s:i,s:s}", "type", "error", "code", err->code,
					  "text", err->text));
	else
		fprintf(stderr, "pagurus: %s\n", err->text);
	return EXIT_FAILED;
}

int disk_open_to_read(const char *path, const char *format, bool unlocked, struct loop **l,
		      struct block **b, struct pgr_error *err)
{
	const struct block_options o = {.read_only = true, .unlocked = unlocked};
	int ret = loop_create(l, err);

	if (ret)
		return ret;
	ret = disk_open(*l, path, format, &o, b, err);
	if (ret)
		loop_free(*l);
	return ret;
}

void disk_done(struct loop *l, struct block *b)
{
	block_close(b, NULL);
	loop_free(l);
}

/* ---- map ---- */

static const char *what_is_there(uint32_t flags)
{
	if (flags & BLOCK_EXTENT_ZERO)
		return "zeros";
	return flags & BLOCK_EXTENT_COMPRESSED ? "packed" : "data";
}

static void show_extent(uint64_t at, const struct block_extent *e, bool json)
{
	json_t *o;

	if (!json) {
		printf("%16llu %16llu  %-6s  %s\n", (unsigned long long)at,
		       (unsigned long long)e->length, what_is_there(e->flags),
		       e->flags & BLOCK_EXTENT_HERE ? "here" : "below");
		return;
	}
	o = json_pack("{s:s,s:I,s:I,s:s,s:b}", "type", "extent", "offset", (json_int_t)at, "length",
		      (json_int_t)e->length, "holds", what_is_there(e->flags), "here",
		      (e->flags & BLOCK_EXTENT_HERE) != 0);
	if (o && e->flags & BLOCK_EXTENT_AT)
		json_object_set_new(o, "at", json_integer((json_int_t)e->at));
	disk_print_json(o);
}

typedef void extent_fn(void *ctx, uint64_t at, const struct block_extent *e);

/* Call fn for each extent of the disk; those that follow each other and say the same are one. */
static int each_extent(struct block *b, extent_fn *fn, void *ctx, struct pgr_error *err)
{
	uint64_t size = block_info(b)->size, at = 0, begin = 0;
	struct block_extent last = {.length = 0};

	while (at < size) {
		struct block_extent e;
		int ret = block_status(b, at, size - at, &e, err);

		if (ret)
			return ret;
		if (last.length && last.flags == e.flags &&
		    (!(e.flags & BLOCK_EXTENT_AT) || last.at + last.length == e.at)) {
			last.length += e.length;
		} else {
			if (last.length)
				fn(ctx, begin, &last);
			begin = at;
			last = e;
		}
		at += e.length;
	}
	if (last.length)
		fn(ctx, begin, &last);
	return 0;
}

static void map_extent(void *ctx, uint64_t at, const struct block_extent *e)
{
	show_extent(at, e, *(bool *)ctx);
}

int disk_map(int argc, char **argv)
{
	const char *format = NULL;
	bool json = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&format),
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk map [OPTIONS] DISK",
		"Which parts of a disk hold data: offset, length, what is there, and whether this file or one below it says so.",
		options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	struct loop *l;
	struct block *b;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (disk_open_to_read(argv[0], format, false, &l, &b, &err))
		return disk_fail(&err, json);
	ret = each_extent(b, map_extent, &json, &err);
	disk_done(l, b);
	return ret ? disk_fail(&err, json) : EXIT_OK;
}

/* ---- info ---- */

struct sums {
	uint64_t here, below, zeros;
};

static void add_extent(void *ctx, uint64_t at, const struct block_extent *e)
{
	struct sums *s = ctx;

	(void)at;
	if (e->flags & BLOCK_EXTENT_ZERO)
		s->zeros += e->length;
	else if (e->flags & BLOCK_EXTENT_HERE)
		s->here += e->length;
	else
		s->below += e->length;
}

static void show_info(const struct block_info *i, const struct sums *s)
{
	char size[UNITS_TEXT], here[UNITS_TEXT], below[UNITS_TEXT];

	printf("disk      %s\n", i->name);
	printf("format    %s\n", !strcmp(i->driver, "file") ? "raw" : i->driver);
	printf("size      %s (%llu bytes, blocks of %u)\n", units_show_size(i->size, size),
	       (unsigned long long)i->size, i->block_size);
	printf("data      %s here, %s below\n", units_show_size(s->here, here),
	       units_show_size(s->below, below));
	if (i->note[0])
		printf("note      %s\n", i->note);
}

int disk_info(int argc, char **argv)
{
	const char *format = NULL;
	bool json = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&format),
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk info [OPTIONS] DISK",
		"What a disk is, and how much of it holds data. Also of one in use.", options, 1,
		1};
	struct pgr_error err = PGR_ERROR_NONE;
	const struct block_info *i;
	struct sums s = {0};
	struct loop *l;
	struct block *b;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (disk_open_to_read(argv[0], format, true, &l, &b, &err))
		return disk_fail(&err, json);
	ret = each_extent(b, add_extent, &s, &err);
	i = block_info(b);
	if (!ret && json)
		disk_print_json(json_pack(
			"{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:s}", "type", "disk", "path", i->name,
			"format", !strcmp(i->driver, "file") ? "raw" : i->driver, "size",
			(json_int_t)i->size, "block_size", (json_int_t)i->block_size, "data_here",
			(json_int_t)s.here, "data_below", (json_int_t)s.below, "zeros",
			(json_int_t)s.zeros, "note", i->note));
	else if (!ret)
		show_info(i, &s);
	disk_done(l, b);
	return ret ? disk_fail(&err, json) : EXIT_OK;
}

/* ---- the verb ---- */

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *about;
} actions[] = {
	{"info", disk_info, "what a disk is"},
	{"map", disk_map, "which parts of it hold data"},
	{"convert", disk_convert, "copy it into a raw file"},
};
#define NR_ACTIONS (sizeof(actions) / sizeof(actions[0]))

static int disk_help(FILE *to, int status)
{
	fputs("Usage: pagurus disk ACTION [OPTIONS] ...\n\n", to);
	for (unsigned i = 0; i < NR_ACTIONS; i++)
		fprintf(to, "  %-8s %s\n", actions[i].name, actions[i].about);
	return status;
}

int verb_disk(int argc, char **argv)
{
	if (argc >= 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
		return disk_help(stdout, EXIT_OK);
	for (unsigned i = 0; argc >= 2 && i < NR_ACTIONS; i++)
		if (!strcmp(argv[1], actions[i].name))
			return actions[i].run(argc - 1, argv + 1);
	return disk_help(stderr, EXIT_USAGE);
}
