/* SPDX-License-Identifier: MIT */
/* `pagurus disk convert`: a disk, with everything below it, into a new file, or over a device or a disk elsewhere. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "storage/lvm_name.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/disk_target.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

struct conversion {
	struct loop *loop;
	struct block *from, *to;
	const char *target_format;
	bool json;
	uint64_t size;
};

static int copy_all(struct conversion *c, enum disk_copy_what what, const char *stopped,
		    struct pgr_error *err)
{
	struct disk_copy copy = {.from = c->from, .to = c->to, .what = what};
	int ret = disk_copy_watched(&copy, c->json, err);

	return ret == -ECANCELED ? pgr_fail(err, ret, "%s", stopped) : ret;
}

static bool is_device(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISBLK(st.st_mode);
}

/* A device that is mounted, or that another device stands on, is not written over: O_EXCL says so. */
static int open_device(struct conversion *c, const char *target, struct pgr_error *err)
{
	int fd = open(target, O_RDWR | O_EXCL | O_CLOEXEC | O_NOCTTY);
	const struct block_options o = {.descriptor = &fd};

	if (fd < 0 && errno == EBUSY)
		return pgr_fail(
			err, -EBUSY,
			"%s: is mounted, or another device stands on it (lsblk shows which), so it is not written over",
			target);
	if (fd < 0)
		return pgr_fail_errno(err, -errno, "%s: cannot be opened for writing", target);
	return block_open_file(c->loop, target, &o, &c->to, err);
}

static int open_there(struct conversion *c, const char *target, struct pgr_error *err)
{
	struct block_options o = {.stop = interrupt_flag()};
	struct paths paths;

	if (!disk_is_address(target))
		return open_device(c, target, err);
	paths_init(&paths);
	o.identity = paths.config;
	return disk_open(c->loop, target, "raw", &o, &c->to, err);
}

/* Over a disk that is there. */
static int convert_onto(struct conversion *c, const char *target, bool overwrite,
			struct pgr_error *err)
{
	int ret, ret2;

	if (!overwrite)
		return disk_target_fail_exists(target, err);
	if (strcmp(c->target_format, "raw") != 0)
		return pgr_fail(err, -EINVAL,
				"%s: an image can only be made in a file; say --target-format raw",
				target);
	ret = open_there(c, target, err);
	if (ret)
		return ret;
	if (block_info(c->to)->size < c->size)
		ret = pgr_fail(err, -ENOSPC, "%s: has %llu bytes, and the disk %llu", target,
			       (unsigned long long)block_info(c->to)->size,
			       (unsigned long long)c->size);
	if (!ret)
		ret = copy_all(c, COPY_ALL, "stopped; the target is half done", err);
	ret2 = block_close(c->to, ret ? NULL : err);
	return ret ? ret : ret2;
}

static int convert(struct conversion *c, const char *target, bool overwrite, struct pgr_error *err)
{
	struct disk_target t = {.loop = c->loop,
				.path = target,
				.format = c->target_format,
				.size = c->size,
				.overwrite = overwrite};
	int ret = disk_target_begin(&t, err);

	c->to = t.to;
	if (!ret)
		ret = copy_all(c, COPY_DATA, "stopped; nothing was made", err);
	return disk_target_end(&t, ret, err);
}

int disk_convert(int argc, char **argv)
{
	struct conversion c = {.loop = NULL};
	const char *format = NULL;
	char device[LVM_DEVICE];
	const char *target;
	bool json = false, overwrite = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&format),
		{"target-format", OPTION_STRING, &c.target_format, "FORMAT",
		 "raw or qcow2 (default: what the end of its name says)", 0, 0},
		{"overwrite", OPTION_FLAG, &overwrite, NULL,
		 "replace the target, or what it holds, when it is there", 0, 0},
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk convert [OPTIONS] DISK TARGET",
		"Copy a disk, with everything below it, into a new raw file or qcow2 image without its zeros, or over a block device or a disk on an NBD server or Ceph.",
		options, 2, 2};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	c.json = json;
	target = lvm_device(argv[1], device);
	interrupt_catch();
	/* A target that is there is going to be replaced, whatever it looks like. */
	if (!c.target_format)
		c.target_format = disk_format_of_name(target);
	if (disk_format(target, c.target_format, &c.target_format, &err) ||
	    disk_open_to_read(argv[0], format, false, &c.loop, &c.from, &err))
		return disk_fail(&err, json);
	c.size = block_info(c.from)->size;
	ret = (disk_is_address(target) || is_device(target) ? convert_onto
							    : convert)(&c, target, overwrite, &err);
	disk_done(c.loop, c.from);
	if (ret)
		return disk_fail(&err, json);
	if (json)
		disk_print_json(
			json_pack("{s:s,s:I}", "type", "result", "size", (json_int_t)c.size));
	return EXIT_OK;
}
