/* SPDX-License-Identifier: MIT */
/*
 * `pagurus disk convert`: a disk, with everything below it, into a raw file.
 *
 * The copy is TARGET.partial until it is whole and durable; then it gets its name. Ctrl-C and failures remove it. Killed, it stays, and the next
 * convert to the same target begins anew: the lock of the file says that nobody is at work on it.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/fiber.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

#define CHUNK	  (1u << 20)
#define COPIERS	  4u
#define REPORT_MS 1000u

struct copy {
	struct loop *loop;
	struct block *from, *to;
	const atomic_bool *interrupted;
	bool json;
	uint64_t size, next, done; /* bytes */
	uint64_t reported_ms;
	unsigned left; /* copiers at work */
	int result;
	struct pgr_error err;
};

static void report(struct copy *c)
{
	uint64_t now = units_now_ms();

	if (now - c->reported_ms < REPORT_MS)
		return;
	c->reported_ms = now;
	if (c->json)
		disk_print_json(json_pack("{s:s,s:I,s:I}", "type", "progress", "done",
					  (json_int_t)c->done, "size", (json_int_t)c->size));
	else if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r%3u %%", (unsigned)(c->size ? c->done * 100 / c->size : 100));
}

static bool is_zero(const uint8_t *data, size_t length)
{
	return !data[0] && !memcmp(data, data + 1, length - 1);
}

/* The next part; zeros are left out, for the target is new. */
static int copy_part(struct copy *c, uint8_t *buffer, struct pgr_error *err)
{
	struct block_extent e;
	uint64_t at = c->next, n = c->size - at;
	int ret;

	/* Taken before the first wait, so that no other copier takes it. */
	if (n > CHUNK)
		n = CHUNK;
	c->next += n;
	for (uint64_t end = at + n; at < end; at += e.length) {
		ret = block_status(c->from, at, end - at, &e, err);
		if (!ret && !(e.flags & BLOCK_EXTENT_ZERO)) {
			ret = block_read(c->from, at, buffer, e.length, err);
			if (!ret && !is_zero(buffer, e.length))
				ret = block_write(c->to, at, buffer, e.length, 0, err);
		}
		if (ret)
			return ret;
	}
	c->done += n;
	return 0;
}

static void copier(void *ctx)
{
	struct copy *c = ctx;
	uint8_t *buffer = aligned_alloc(4096, CHUNK);
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = buffer ? 0 : pgr_fail(&err, -ENOMEM, "no memory for a buffer");

	while (!ret && !c->result && c->next < c->size) {
		ret = atomic_load(c->interrupted)
			      ? pgr_fail(&err, -ECANCELED, "stopped; nothing was made")
			      : copy_part(c, buffer, &err);
		report(c);
	}
	if (ret && !c->result) {
		c->result = ret;
		c->err = err;
	}
	free(buffer);
	c->left--;
}

static int copy_all(struct copy *c)
{
	for (unsigned i = 0; i < COPIERS; i++) {
		c->left++;
		if (fiber_start(c->loop, copier, c)) {
			c->left--;
			c->result = pgr_fail(&c->err, -ENOMEM, "no memory to copy");
		}
	}
	while (c->left)
		loop_turn(c->loop, true);
	if (!c->json && isatty(STDERR_FILENO))
		fputs("\r      \r", stderr);
	return c->result;
}

/* Open what is to become the target, empty and locked. */
static int open_target(struct copy *c, const char *partial, struct pgr_error *err)
{
	int fd = open(partial, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int ret;

	if (fd < 0)
		return pgr_fail_errno(err, -errno, "%s: cannot be made", partial);
	close(fd);
	ret = block_open_file(c->loop, partial, &(struct block_options){.read_only = false}, &c->to,
			      err);
	if (!ret)
		ret = block_resize(c->to, 0, err);
	if (!ret)
		ret = block_resize(
			c->to, (c->size + BLOCK_SECTOR - 1) & ~(uint64_t)(BLOCK_SECTOR - 1), err);
	return ret;
}

static int sync_folder(const char *path, struct pgr_error *err)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	int ret = 0;

	if (fd < 0 || fsync(fd))
		ret = pgr_fail_errno(err, -errno, "the folder of %s cannot be made durable", path);
	if (fd >= 0)
		close(fd);
	free(copy);
	return ret;
}

static int give_name(const char *partial, const char *target, bool overwrite, struct pgr_error *err)
{
	if (renameat2(AT_FDCWD, partial, AT_FDCWD, target, overwrite ? 0 : RENAME_NOREPLACE) == 0)
		return sync_folder(target, err);
	if (errno == EEXIST)
		return pgr_fail(err, -EEXIST,
				"%s: is there already; choose another name, or say --overwrite",
				target);
	return pgr_fail_errno(err, -errno, "%s: cannot get its name", target);
}

static int convert(struct copy *c, const char *target, bool overwrite, struct pgr_error *err)
{
	char *partial;
	bool ours;
	int ret, ret2;

	if (!overwrite && access(target, F_OK) == 0)
		return pgr_fail(err, -EEXIST,
				"%s: is there already; choose another name, or say --overwrite",
				target);
	if (asprintf(&partial, "%s.partial", target) < 0)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	ret = open_target(c, partial, err);
	ours = c->to != NULL;
	if (!ret) {
		ret = copy_all(c);
		if (ret)
			*err = c->err;
	}
	ret2 = block_close(c->to, ret ? NULL : err);
	if (!ret)
		ret = ret2;
	if (!ret)
		ret = give_name(partial, target, overwrite, err);
	if (ret && ours)
		unlink(partial);
	free(partial);
	return ret;
}

int disk_convert(int argc, char **argv)
{
	const char *format = NULL;
	bool json = false, overwrite = false;
	const struct option_spec options[] = {
		DISK_OPTION_FORMAT(&format),
		{"overwrite", OPTION_FLAG, &overwrite, NULL, "replace the target when it is there",
		 0, 0},
		DISK_OPTION_JSON(&json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk convert [OPTIONS] DISK TARGET",
		"Copy a disk, with everything below it, into a raw file without its zeros.",
		options, 2, 2};
	struct copy c = {.interrupted = interrupt_catch()};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, ret;

	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	c.json = json;
	if (disk_open_to_read(argv[0], format, false, &c.loop, &c.from, &err))
		return disk_fail(&err, json);
	c.size = block_info(c.from)->size;
	ret = convert(&c, argv[1], overwrite, &err);
	disk_done(c.loop, c.from);
	if (ret) {
		disk_fail(&err, json);
		return ret == -ECANCELED ? EXIT_CANCELLED : EXIT_FAILED;
	}
	if (json)
		disk_print_json(
			json_pack("{s:s,s:I}", "type", "result", "size", (json_int_t)c.size));
	return EXIT_OK;
}
