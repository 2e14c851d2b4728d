// SPDX-License-Identifier: MIT
/*
 * `pagurus disk export`: what a disk holds at one moment, with everything below it, as one file or on standard output.
 *
 *   not in use            it is locked for reading until it is copied
 *   a snapshot of it      the same; nobody writes it, whether the disk is in use or not
 *   in use                its server makes a snapshot, which is copied and deleted again
 *
 * The last one takes milliseconds of the disk's time. A server that read the old contents before each write, in place of a snapshot, would make the
 * guest wait for every first write, and a server that dies would take the copy along.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/layers.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/disk_stream.h"
#include "tools/pagurus/disk_target.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

struct export
{
	const char *disk, *format, *snapshot, *target, *target_format;
	bool json, overwrite, to_stdout;
	struct loop *loop;
	struct block *from;
	char *path;	     /* of the snapshot that is copied; NULL: the disk itself */
	char kept[PATH_MAX]; /* the snapshot that was made for it; "": none */
	unsigned long long held_ns;
	bool frozen;
	uint64_t size;
};

/* ---- what is copied ---- */

static int find_snapshot(struct export *x, struct pgr_error *err)
{
	char *real = realpath(x->disk, NULL);
	int ret = 0;

	if (!real)
		return pgr_fail_errno(err, -errno, "%s: cannot be found", x->disk);
	x->path = layers_snapshot_path(real, x->snapshot);
	if (!x->path)
		ret = pgr_fail(err, -ENOMEM, "no memory for a name");
	else if (access(x->path, F_OK))
		ret = pgr_fail(
			err, -ENOENT,
			"%s: has no snapshot \"%s\" (there is no file %s); pagurus disk list shows those that it has",
			x->disk, x->snapshot, x->path);
	free(real);
	return ret;
}

static int open_here(struct export *x, const char *path, struct pgr_error *err)
{
	int ret = disk_open_to_read(path, x->format, false, &x->loop, &x->from, err);

	if (ret || disk_is_address(path))
		return ret;
	/* Nobody can begin to merge into it any more. */
	ret = layers_check_whole(path, err);
	if (ret) {
		disk_done(x->loop, x->from);
		x->from = NULL;
	}
	return ret;
}

/* Somebody has the disk: by a snapshot, if that is a server of ours. *err is what opening it said. */
static int open_kept(struct export *x, struct pgr_error *err)
{
	struct pgr_error asked = PGR_ERROR_NONE;
	json_t *result = NULL;
	const char *path;
	char name[32];
	int ret;

	snprintf(name, sizeof(name), "export-%d", (int)getpid());
	ret = disk_keep_moment(x->disk, name, &result, &asked);
	if (ret > 0) {
		path = json_string_value(json_array_get(json_object_get(result, "paths"), 0));
		snprintf(x->kept, sizeof(x->kept), "%s", path ? path : "");
		x->held_ns = message_number(result, "held_ns");
		x->frozen = message_flag(result, "frozen");
		*err = PGR_ERROR_NONE;
		ret = x->kept[0] ? open_here(x, x->kept, err)
				 : pgr_fail(err, -EPROTO, "the server of the disk said nonsense");
	} else if (ret < 0) {
		*err = asked;
	} else {
		ret = err->code;
	}
	json_decref(result);
	return ret;
}

static int open_source(struct export *x, struct pgr_error *err)
{
	int ret = x->snapshot ? find_snapshot(x, err) : 0;

	if (!ret)
		ret = open_here(x, x->path ? x->path : x->disk, err);
	if (ret == -EAGAIN && !x->snapshot && !disk_is_address(x->disk))
		ret = open_kept(x, err);
	if (!ret)
		x->size = block_info(x->from)->size;
	return ret;
}

/* A raw disk has clones, and nothing stands on them. */
static int remove_kept(struct export *x, struct pgr_error *err)
{
	const char *format;
	int ret = disk_format(x->kept, x->format, &format, err);

	/* Ctrl-C was about the copy. A second one stops this as well. */
	interrupt_forget();
	if (!ret && !strcmp(format, "raw"))
		ret = unlink(x->kept) ? pgr_fail_errno(err, -errno, "cannot be removed") : 0;
	else if (!ret)
		ret = disk_remove_snapshot(x->disk, x->kept, x->json, err);
	return ret;
}

/* ret: how the copying ended. */
static int close_source(struct export *x, int ret, struct pgr_error *err)
{
	struct pgr_error left = PGR_ERROR_NONE;

	if (x->from)
		disk_done(x->loop, x->from);
	if (x->kept[0] && remove_kept(x, &left)) {
		const char *copy = ret ? err->text : "the copy is whole";
		char text[sizeof(left.text)];

		snprintf(text, sizeof(text), "%s", copy);
		ret = pgr_fail(
			err, ret ? ret : left.code,
			"%.200s; but the snapshot %s, made for it, is left (%.200s); remove it: pagurus disk delete",
			text, x->kept, left.text);
	}
	free(x->path);
	return ret;
}

/* ---- copying ---- */

static int export_file(struct export *x, struct pgr_error *err)
{
	struct disk_target t = {.loop = x->loop,
				.path = x->target,
				.format = x->target_format,
				.size = x->size,
				.overwrite = x->overwrite};
	int ret = disk_target_begin(&t, err);

	if (!ret) {
		struct disk_copy copy = {.from = x->from, .to = t.to, .what = COPY_DATA};

		ret = disk_copy_watched(&copy, x->json, err);
	}
	if (ret == -ECANCELED)
		pgr_fail(err, ret, "stopped; nothing was made");
	return disk_target_end(&t, ret, err);
}

static void tell(const struct export *x)
{
	FILE *to = x->to_stdout ? stderr : stdout;
	char size[UNITS_TEXT];

	if (x->json) {
		disk_print_json(json_pack("{ss ss ss sI sI sb}", "type", "result", "path",
					  x->target, "format", x->target_format, "size",
					  (json_int_t)x->size, "held_ns", (json_int_t)x->held_ns,
					  "frozen", x->frozen));
		return;
	}
	if (!x->to_stdout)
		printf("%s: %s, %s (%llu bytes)\n", x->target, x->target_format,
		       units_show_size(x->size, size), (unsigned long long)x->size);
	if (x->held_ns)
		fprintf(to, "in use: requests waited for %.1f ms%s\n", (double)x->held_ns / 1e6,
			x->frozen ? ", the guest's file systems were frozen" : "");
}

/* What is wrong with the target is said before the disk is touched. */
static int check_target(struct export *x, struct pgr_error *err)
{
	struct stat st;

	if (x->to_stdout) {
		if (!x->target_format)
			x->target_format = "raw";
		if (strcmp(x->target_format, "raw") != 0)
			return pgr_fail(
				err, -EINVAL,
				"on standard output a disk is raw: the tables of a qcow2 image are known last; name a file for that");
		return isatty(STDOUT_FILENO)
			       ? pgr_fail(
					 err, -EINVAL,
					 "standard output is a terminal; name a file, or a program that reads it: ... - | zstd")
			       : 0;
	}
	if (disk_is_address(x->target) || (!stat(x->target, &st) && !S_ISREG(st.st_mode)))
		return pgr_fail(
			err, -EINVAL,
			"%s: is no file; pagurus disk convert and mirror copy onto devices and disks elsewhere",
			x->target);
	if (!x->overwrite && !access(x->target, F_OK))
		return disk_target_fail_exists(x->target, err);
	if (!x->target_format)
		x->target_format = disk_format_of_name(x->target);
	return disk_format(x->target, x->target_format, &x->target_format, err);
}

int disk_export(int argc, char **argv)
{
	struct export x = {.loop = NULL};
	const struct option_spec options[] = {
		{"snapshot", OPTION_STRING, &x.snapshot, "NAME",
		 "what the disk held then: a name of pagurus disk list, or a path", 0, 0},
		DISK_OPTION_FORMAT(&x.format),
		{"target-format", OPTION_STRING, &x.target_format, "FORMAT",
		 "raw or qcow2 (default: what the end of the file's name says; raw for -)", 0, 0},
		{"overwrite", OPTION_FLAG, &x.overwrite, NULL, "replace FILE when it is there", 0,
		 0},
		DISK_OPTION_JSON(&x.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk export [OPTIONS] DISK FILE|-",
		"Write what the disk holds at one moment, with everything below it, into one file, or raw to standard output (-). The disk may be in use.",
		options, 2, 2};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	x.disk = argv[0];
	x.target = argv[1];
	x.to_stdout = !strcmp(x.target, "-");
	if (x.to_stdout && x.json)
		return options_complain(&usage, "--json needs standard output; name a file");
	interrupt_catch();
	ret = check_target(&x, &err);
	if (!ret) {
		ret = open_source(&x, &err);
		if (!ret)
			ret = x.to_stdout ? disk_stream(x.from, STDOUT_FILENO, &err)
					  : export_file(&x, &err);
		ret = close_source(&x, ret, &err);
	}
	if (ret)
		return disk_fail(&err, x.json);
	tell(&x);
	return EXIT_OK;
}
