/* SPDX-License-Identifier: MIT */
/* `pagurus disk`: disks without a guest. info and map are here, the rest is in verb_disk_*.c. */
#include "tools/pagurus/verb_disk.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/file.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
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
	return err->code == -ECANCELED ? EXIT_CANCELLED : EXIT_FAILED;
}

int disk_sync_folder(const char *path, struct pgr_error *err)
{
	int ret = file_sync_folder_of(path);

	return ret ? pgr_fail_errno(err, ret, "the folder of %s cannot be made durable", path) : 0;
}

static int open_with(struct block_options o, const char *path, const char *format, struct loop **l,
		     struct block **b, struct pgr_error *err)
{
	struct paths paths;
	int ret = loop_create(l, err);

	if (ret)
		return ret;
	paths_init(&paths);
	o.identity = paths.config;
	o.stop = interrupt_flag();
	ret = disk_open(*l, path, format, &o, b, err);
	if (ret)
		loop_free(*l);
	return ret;
}

int disk_open_to_read(const char *path, const char *format, bool unlocked, struct loop **l,
		      struct block **b, struct pgr_error *err)
{
	const struct block_options o = {.read_only = true, .unlocked = unlocked};

	return open_with(o, path, format, l, b, err);
}

int disk_open_to_write(const char *path, const char *format, struct loop **l, struct block **b,
		       struct pgr_error *err)
{
	return open_with((struct block_options){.read_only = false}, path, format, l, b, err);
}

void disk_done(struct loop *l, struct block *b)
{
	block_close(b, NULL);
	loop_free(l);
}

/* What info and map begin with: they have the same options, and one disk. */
struct look {
	const char *format;
	bool json;
	struct loop *loop;
	struct block *disk;
	bool (*served)(const char *path, bool json); /* NULL, or it is all done when this is true */
};

/* True: it is open. False: *status is the exit status. */
static bool look_at(struct look *k, const char *synopsis, const char *about, bool unlocked,
		    int argc, char **argv, int *status)
{
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&k->format),
		DISK_OPTION_JSON(&k->json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {synopsis, about, options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	int count;

	if (!options_parse(&usage, argc, argv, &count, status))
		return false;
	if (k->served && !k->format && k->served(argv[0], k->json)) {
		*status = EXIT_OK;
		return false;
	}
	if (!disk_open_to_read(argv[0], k->format, unlocked, &k->loop, &k->disk, &err))
		return true;
	*status = disk_fail(&err, k->json);
	return false;
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
	struct pgr_error err = PGR_ERROR_NONE;
	struct look k = {.format = NULL};
	int status, ret;

	if (!look_at(
		    &k, "pagurus disk map [OPTIONS] DISK",
		    "Which parts of a disk hold data: offset, length, what is there, and whether this file or one below it says so.",
		    false, argc, argv, &status))
		return status;
	ret = each_extent(k.disk, map_extent, &k.json, &err);
	disk_done(k.loop, k.disk);
	return ret ? disk_fail(&err, k.json) : EXIT_OK;
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

static const char *format_of(const struct block_info *i)
{
	return !strcmp(i->driver, "file") ? "raw" : i->driver;
}

static void show_info(const struct block_info *i, const struct sums *s)
{
	char size[UNITS_TEXT], here[UNITS_TEXT], below[UNITS_TEXT];

	printf("disk      %s\n", i->name);
	printf("format    %s\n", format_of(i));
	printf("size      %s (%llu bytes, blocks of %u)\n", units_show_size(i->size, size),
	       (unsigned long long)i->size, i->block_size);
	printf("data      %s here, %s below\n", units_show_size(s->here, here),
	       units_show_size(s->below, below));
	if (i->note[0])
		printf("note      %s\n", i->note);
}

static void print_info(const struct block_info *i, const struct sums *s)
{
	disk_print_json(json_pack("{s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:s}", "type", "disk", "path",
				  i->name, "format", format_of(i), "size", (json_int_t)i->size,
				  "block_size", (json_int_t)i->block_size, "data_here",
				  (json_int_t)s->here, "data_below", (json_int_t)s->below, "zeros",
				  (json_int_t)s->zeros, "note", i->note));
}

/* What the server says that has it open. False: there is none, or it does not say. */
static bool info_served(const char *path, bool json)
{
	struct pgr_error err = PGR_ERROR_NONE;
	json_t *o = NULL;
	bool is = disk_ask_server("info", path, &o, &err) > 0;

	if (is) {
		const struct sums s = {.here = message_number(o, "here"),
				       .below = message_number(o, "below"),
				       .zeros = message_number(o, "zeros")};
		struct block_info i = {.driver = message_text(o, "driver"),
				       .size = message_number(o, "size"),
				       .block_size = (uint32_t)message_number(o, "block_size"),
				       .note = "in use"};

		snprintf(i.name, sizeof(i.name), "%s", path);
		(json ? print_info : show_info)(&i, &s);
	}
	json_decref(o);
	return is;
}

int disk_info(int argc, char **argv)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct look k = {.format = NULL, .served = info_served};
	struct sums s = {0};
	int status, ret;

	if (!look_at(&k, "pagurus disk info [OPTIONS] DISK",
		     "What a disk is, and how much of it holds data. Also of one in use.", true,
		     argc, argv, &status))
		return status;
	ret = each_extent(k.disk, add_extent, &s, &err);
	if (!ret)
		(k.json ? print_info : show_info)(block_info(k.disk), &s);
	disk_done(k.loop, k.disk);
	return ret ? disk_fail(&err, k.json) : EXIT_OK;
}

/* ---- the verb ---- */

int verb_disk(int argc, char **argv)
{
	static const struct option_action actions[] = {
		{"info", disk_info, "what a disk is"},
		{"map", disk_map, "which parts of it hold data"},
		{"create", disk_create, "make a new one"},
		{"check", disk_check, "whether a qcow2 image is sound"},
		{"resize", disk_resize, "give it another size"},
		{"convert", disk_convert, "copy it, with everything below it, into another one"},
		{"export", disk_export,
		 "a copy of it as it is now, or was at a snapshot, also in use"},
		{"bitmap", disk_bitmap, "what was written since, for incremental backups"},
		{"snapshot", disk_snapshot, "keep what it holds now"},
		{"list", disk_list, "its snapshots and other layers"},
		{"revert", disk_revert, "make it what it was at a snapshot"},
		{"commit", disk_commit, "merge its own layer into the one below"},
		{"delete", disk_delete, "remove a snapshot"},
		{"mirror", disk_mirror, "make another disk the same"},
		{"serve", disk_serve, "offer it to others over NBD"},
	};

	return options_run_action(actions, sizeof(actions) / sizeof(actions[0]), argc, argv);
}
