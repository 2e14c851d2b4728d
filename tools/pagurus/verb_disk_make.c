// SPDX-License-Identifier: MIT
/* `pagurus disk create`, `resize` and `check`: one file each. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/block_rbd.h"
#include "storage/lvm.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_layer.h"
#include "storage/rbd_name.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

static int result_size(const char *path, const char *format, uint64_t size, bool json)
{
	char text[UNITS_TEXT];

	if (json)
		disk_print_json(json_pack("{s:s,s:s,s:s,s:I}", "type", "result", "path", path,
					  "format", format, "size", (json_int_t)size));
	else
		printf("%s: %s, %s (%llu bytes)\n", path, format, units_show_size(size, text),
		       (unsigned long long)size);
	return EXIT_OK;
}

/* ---- create ---- */

struct creation {
	const char *path, *format, *backing, *backing_format, *pool;
	uint64_t size, cluster_size;
	bool has_size;
};

static int create_raw(const struct creation *c, struct pgr_error *err)
{
	int fd, ret = 0;

	if (c->size & (BLOCK_SECTOR - 1))
		return pgr_fail(err, -EINVAL, "%s: a size has to be a multiple of %u bytes",
				c->path, BLOCK_SECTOR);
	fd = open(c->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return pgr_fail_errno(err, -errno, "%s: cannot be made", c->path);
	if (ftruncate(fd, (off_t)c->size) || fsync(fd))
		ret = pgr_fail_errno(err, -errno, "%s: cannot get %llu bytes", c->path,
				     (unsigned long long)c->size);
	close(fd);
	if (ret)
		unlink(c->path);
	return ret;
}

/* What the new image is to stand on, opened once to see that it can be: its size is that of the image, when that was not said. */
static int look_below(struct loop *l, struct creation *c, struct pgr_error *err)
{
	const struct block_options o = {.read_only = true, .unlocked = true};
	struct block *below;
	int ret;

	if (disk_is_address(c->backing))
		return pgr_fail(err, -EINVAL, "%s: an image can only stand on a file or a device",
				c->backing);
	ret = disk_format(c->backing, c->backing_format, &c->backing_format, err);

	if (!ret)
		ret = disk_open(l, c->backing, c->backing_format, &o, &below, err);
	if (ret)
		return ret;
	if (!c->has_size)
		c->size = block_info(below)->size;
	block_close(below, NULL);
	return 0;
}

static int create_qcow2(struct loop *l, struct creation *c, struct pgr_error *err)
{
	struct qcow2_layer y = {.path = c->path, .image = c->path};
	struct block *file;
	int ret = c->backing ? look_below(l, c, err) : 0;

	if (ret)
		return ret;
	y.size = c->size;
	y.cluster_size = (uint32_t)c->cluster_size;
	y.backing = c->backing;
	y.backing_format = c->backing_format;
	ret = qcow2_layer_make(l, &y, &file, err);
	if (!ret)
		ret = block_close(file, err);
	return ret;
}

static int fail_layered(const struct creation *c, struct pgr_error *err)
{
	return pgr_fail(err, -EINVAL,
			"%s: a raw disk has no backing file and no clusters; call it .qcow2",
			c->path);
}

/* Where there is a name, but no file. */
static int create_elsewhere(struct creation *c, struct pgr_error *err)
{
	struct loop *l;
	int ret;

	if (c->backing || c->cluster_size || strcmp(c->format, "raw") != 0)
		return fail_layered(c, err);
	ret = loop_create(&l, err);
	if (ret)
		return ret;
	ret = rbd_name_is(c->path) ? block_rbd_create(l, c->path, c->size, err)
				   : lvm_create(l, c->path, &c->size, c->pool, err);
	loop_free(l);
	return ret;
}

static int create(struct creation *c, struct pgr_error *err)
{
	struct lvm_name volume;
	struct loop *l;
	int ret = disk_format(c->path, c->format, &c->format, err);

	if (ret)
		return ret;
	if (c->pool && !lvm_find(c->path, &volume))
		return pgr_fail(err, -EINVAL, "%s: is no volume of LVM, VG/LV, and needs no pool",
				c->path);
	if (rbd_name_is(c->path) || lvm_find(c->path, &volume))
		return create_elsewhere(c, err);
	if (!strcmp(c->format, "raw")) {
		if (c->backing || c->cluster_size)
			return fail_layered(c, err);
		ret = create_raw(c, err);
	} else {
		ret = loop_create(&l, err);
		if (ret)
			return ret;
		ret = create_qcow2(l, c, err);
		loop_free(l);
	}
	return ret ? ret : disk_sync_folder(c->path, err);
}

int disk_create(int argc, char **argv)
{
	struct creation c = {.path = NULL};
	bool json = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&c.format),
		{"backing", OPTION_STRING, &c.backing, "FILE", "what the image is to stand on", 0,
		 0},
		{"backing-format", OPTION_STRING, &c.backing_format, "FORMAT",
		 "raw or qcow2 (default: what the end of its name says)", 0, 0},
		{"cluster-size", OPTION_SIZE, &c.cluster_size, "SIZE",
		 "qcow2: 512 bytes to 2 MiB (default: 64 KiB)", 512, 2u << 20},
		{"pool", OPTION_STRING, &c.pool, "POOL",
		 "LVM: a thin volume in that pool of the group", 0, 0},
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk create [OPTIONS] DISK [SIZE]",
		"Make a new disk of SIZE (100M, 20G), which takes up no room yet, but for a classic volume of LVM. With --backing it shows what that file holds.",
		options, 1, 2};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	c.path = argv[0];
	c.has_size = count == 2;
	if (!c.has_size && !c.backing)
		return options_complain(&usage, "a disk needs a size, for example 20G");
	if (c.has_size && units_size(argv[1], &c.size))
		return options_complain(&usage, "\"%s\" is no size; say 100M or 20G", argv[1]);
	if (create(&c, &err))
		return disk_fail(&err, json);
	return result_size(c.path, c.format, c.size, json);
}

/* ---- resize ---- */

static int new_size(const char *text, uint64_t now, uint64_t *out)
{
	bool more = text[0] == '+';
	int ret = units_size(text + more, out);

	if (!ret && more && *out > BLOCK_SIZE_MAX - now)
		return -ERANGE;
	if (!ret && more)
		*out += now;
	return ret;
}

/* *b is closed, and NULL, when LVM has to change what is below it. */
static int resize_to(struct loop *l, const char *path, const char *format, struct block **b,
		     uint64_t *size, struct pgr_error *err)
{
	uint64_t from = block_info(*b)->size;
	struct lvm_name volume;
	struct block *disk = *b;
	int ret;

	if ((format && strcmp(format, "raw") != 0) || rbd_name_is(path) || !lvm_find(path, &volume))
		return block_resize(disk, *size, err);
	*b = NULL;
	ret = block_close(disk, err);
	return ret ? ret : lvm_resize(l, path, from, size, err);
}

int disk_resize(int argc, char **argv)
{
	const char *format = NULL;
	bool json = false, may_shrink = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&format),
		{"shrink", OPTION_FLAG, &may_shrink, NULL,
		 "make it smaller, and lose what is behind the new end", 0, 0},
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk resize [OPTIONS] DISK SIZE|+SIZE",
		"Give a disk that is not in use another size. New bytes are zeros.", options, 2, 2};
	struct pgr_error err = PGR_ERROR_NONE;
	struct loop *l;
	struct block *b;
	uint64_t size = 0;
	int count, status, ret, ret2;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (disk_open_to_write(argv[0], format, &l, &b, &err))
		return disk_fail(&err, json);
	ret = new_size(argv[1], block_info(b)->size, &size);
	if (ret)
		pgr_fail(&err, ret, "\"%s\" is no size; say 20G, or +5G for so much more", argv[1]);
	else if (size < block_info(b)->size && !may_shrink)
		ret = pgr_fail(
			&err, -EINVAL,
			"%s: has %llu bytes, and what is behind %llu would be lost; say --shrink if that is meant",
			argv[0], (unsigned long long)block_info(b)->size, (unsigned long long)size);
	else
		ret = resize_to(l, argv[0], format, &b, &size, &err);
	ret2 = block_close(b, ret ? NULL : &err);
	loop_free(l);
	if (ret || ret2)
		return disk_fail(&err, json);
	return result_size(argv[0], disk_format(argv[0], format, &format, NULL) ? "raw" : format,
			   size, json);
}

/* ---- check ---- */

static void show_finding(void *ctx, const char *sentence)
{
	if (*(bool *)ctx)
		disk_print_json(json_pack("{s:s,s:s}", "type", "finding", "text", sentence));
	else
		printf("%s\n", sentence);
}

static int check_status(const struct qcow2_check *c)
{
	if (c->damages || c->dirty)
		return EXIT_DAMAGED;
	return c->leaks ? EXIT_LEAKS : EXIT_OK;
}

static void show_check(const struct qcow2_check *c, uint64_t repaired, bool json)
{
	if (json) {
		disk_print_json(json_pack("{s:s,s:I,s:I,s:I,s:I,s:I,s:b}", "type", "result",
					  "clusters", (json_int_t)c->clusters, "used",
					  (json_int_t)c->used, "leaks", (json_int_t)c->leaks,
					  "damages", (json_int_t)c->damages, "repaired",
					  (json_int_t)repaired, "dirty", c->dirty));
		return;
	}
	if (repaired)
		printf("repaired: %llu\n", (unsigned long long)repaired);
	if (!c->damages && !c->leaks && !c->dirty)
		printf("sound: %llu of %llu clusters are used\n", (unsigned long long)c->used,
		       (unsigned long long)c->clusters);
	if (c->dirty)
		printf("not closed by the program that wrote it; --repair counts again\n");
	if (c->leaks)
		printf("%llu leaks: they only take up room; --repair gives it back\n",
		       (unsigned long long)c->leaks);
	if (c->damages)
		printf("%llu damages: copy what can be read with pagurus disk convert\n",
		       (unsigned long long)c->damages);
}

/* By the server that has it open. True: it did, or said why not. */
static bool check_served(const char *path, bool json, int *status)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct qcow2_check c = {.repair = false};
	json_t *o = NULL;
	int ret = disk_ask_server("check", path, &o, &err);

	if (ret > 0) {
		c.clusters = message_number(o, "clusters");
		c.used = message_number(o, "used");
		c.leaks = message_number(o, "leaks");
		c.damages = message_number(o, "damages");
		if (message_text(o, "finding")[0])
			show_finding(&json, message_text(o, "finding"));
		show_check(&c, 0, json);
		*status = check_status(&c);
	} else if (ret < 0) {
		*status = disk_fail(&err, json);
	}
	json_decref(o);
	return ret != 0;
}

/* With repairs twice: what is still wrong afterwards is what counts. */
static int check(struct loop *l, const char *path, bool repair, bool json, int *status,
		 struct pgr_error *err)
{
	const struct block_options o = {.read_only = !repair, .grows = true};
	struct qcow2_check c = {.repair = repair, .found = show_finding, .ctx = &json};
	struct block *file;
	uint64_t repaired;
	int ret = block_open_file(l, path, &o, &file, err), ret2;

	if (ret)
		return ret;
	ret = qcow2_check(file, &c, err);
	repaired = c.repaired;
	if (!ret && repaired) {
		c.repair = false;
		c.found = NULL;
		ret = qcow2_check(file, &c, err);
	}
	ret2 = block_close(file, ret ? NULL : err);
	if (ret || ret2)
		return ret ? ret : ret2;
	show_check(&c, repaired, json);
	*status = check_status(&c);
	return 0;
}

int disk_check(int argc, char **argv)
{
	const char *format = NULL;
	bool json = false, repair = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&format),
		{"repair", OPTION_FLAG, &repair, NULL,
		 "give back what leaks, and count again what was counted wrongly", 0, 0},
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk check [OPTIONS] DISK",
		"Whether the tables of a qcow2 image are sound; of this file, not of those below it.",
		options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	struct loop *l;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	ret = disk_format(argv[0], format, &format, &err);
	if (!ret && strcmp(format, "qcow2") != 0)
		ret = pgr_fail(&err, -EINVAL, "%s: a raw disk has no tables that could be checked",
			       argv[0]);
	if (!ret && !repair && check_served(argv[0], json, &status))
		return status;
	if (!ret)
		ret = loop_create(&l, &err);
	if (ret)
		return disk_fail(&err, json);
	ret = check(l, argv[0], repair, json, &status, &err);
	loop_free(l);
	return ret ? disk_fail(&err, json) : status;
}
