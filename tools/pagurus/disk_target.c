// SPDX-License-Identifier: MIT
#include "tools/pagurus/disk_target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/qcow2_layer.h"
#include "tools/pagurus/verb_disk.h"

static int open_raw(struct disk_target *t, struct pgr_error *err)
{
	int fd = open(t->partial, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	int ret;

	if (fd < 0)
		return pgr_fail_errno(err, -errno, "%s: cannot be made", t->partial);
	close(fd);
	ret = block_open_file(t->loop, t->partial, &(struct block_options){.read_only = false},
			      &t->to, err);
	t->ours = !ret;
	if (!ret)
		ret = block_resize(t->to, 0, err);
	if (!ret)
		ret = block_resize(
			t->to, (t->size + BLOCK_SECTOR - 1) & ~(uint64_t)(BLOCK_SECTOR - 1), err);
	return ret;
}

/* The lock says whether somebody is at work on what is there under the name already. */
static int remove_old(struct disk_target *t, struct pgr_error *err)
{
	struct block *old;
	int ret;

	if (access(t->partial, F_OK))
		return 0;
	ret = block_open_file(t->loop, t->partial, NULL, &old, err);
	if (ret)
		return ret;
	ret = unlink(t->partial) ? pgr_fail_errno(err, -errno, "%s: cannot be removed", t->partial)
				 : 0;
	block_close(old, NULL);
	return ret;
}

static int open_qcow2(struct disk_target *t, struct pgr_error *err)
{
	const struct qcow2_layer y = {.path = t->partial, .image = t->partial, .size = t->size};
	const struct block_options o = {.read_only = false};
	struct block *file;
	int ret = remove_old(t, err);

	if (!ret)
		ret = qcow2_layer_make(t->loop, &y, &file, err);
	t->ours = !ret;
	return ret ? ret : block_open_qcow2_over(file, NULL, &o, &t->to, err);
}

int disk_target_open(struct disk_target *t, struct pgr_error *err)
{
	return !strcmp(t->format, "qcow2") ? open_qcow2(t, err) : open_raw(t, err);
}

int disk_target_fail_exists(const char *path, struct pgr_error *err)
{
	return pgr_fail(err, -EEXIST,
			"%s: is there already; choose another name, or say --overwrite", path);
}

int disk_target_begin(struct disk_target *t, struct pgr_error *err)
{
	t->to = NULL;
	t->partial = NULL;
	t->ours = false;
	if (!t->overwrite && access(t->path, F_OK) == 0)
		return disk_target_fail_exists(t->path, err);
	if (asprintf(&t->partial, "%s.partial", t->path) < 0) {
		t->partial = NULL;
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	}
	return disk_target_open(t, err);
}

static int give_name(const struct disk_target *t, struct pgr_error *err)
{
	if (renameat2(AT_FDCWD, t->partial, AT_FDCWD, t->path,
		      t->overwrite ? 0 : RENAME_NOREPLACE) == 0)
		return disk_sync_folder(t->path, err);
	if (errno == EEXIST)
		return disk_target_fail_exists(t->path, err);
	return pgr_fail_errno(err, -errno, "%s: cannot get its name", t->path);
}

int disk_target_end(struct disk_target *t, int ret, struct pgr_error *err)
{
	int closed = block_close(t->to, ret ? NULL : err);

	if (!ret)
		ret = closed;
	if (!ret)
		ret = give_name(t, err);
	if (ret && t->ours)
		unlink(t->partial);
	free(t->partial);
	t->to = NULL;
	t->partial = NULL;
	return ret;
}
