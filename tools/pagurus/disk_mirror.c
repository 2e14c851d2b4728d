/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/disk_mirror.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "common/file.h"
#include "storage/disk.h"
#include "storage/lvm_name.h"
#include "tools/pagurus/interrupt.h"

/* An empty file of that name; *made says whether it was not there before. */
static int make_file(const char *path, bool overwrite, bool *made, struct pgr_error *err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int ret;

	*made = fd >= 0;
	if (fd >= 0) {
		close(fd);
		ret = file_sync_folder_of(path);
		return ret ? pgr_fail_errno(err, ret, "%s: cannot be made durable", path) : 0;
	}
	if (errno != EEXIST)
		return pgr_fail_errno(err, -errno, "%s: cannot be made", path);
	return overwrite
		       ? 0
		       : pgr_fail(err, -EEXIST,
				  "%s: is there already; choose another, or say --overwrite", path);
}

static int open_file(struct loop *l, const char *path, uint64_t size, bool made, struct block **out,
		     struct pgr_error *err)
{
	const uint64_t sectors = (size + BLOCK_SECTOR - 1) & ~(uint64_t)(BLOCK_SECTOR - 1);
	int ret = block_open_file(l, path, &(struct block_options){.read_only = false}, out, err);

	return ret || !made ? ret : block_resize(*out, sectors, err);
}

int disk_mirror_over(struct loop *l, struct block **disk, const char *target, bool overwrite,
		     const char *identity, uint64_t rate, struct pgr_error *err)
{
	const struct block_options remote = {.identity = identity, .stop = interrupt_flag()};
	struct mirror_options o = {.rate = rate};
	struct block *to = NULL, *mirror;
	char device[LVM_DEVICE];
	int ret;

	target = lvm_device(target, device);
	if (disk_is_address(target)) {
		ret = overwrite ? disk_open(l, target, "raw", &remote, &to, err)
				: pgr_fail(err, -EEXIST,
					   "%s: what it holds would be lost; say --overwrite",
					   target);
	} else {
		ret = make_file(target, overwrite, &o.zeroed, err);
		if (!ret)
			ret = open_file(l, target, block_info(*disk)->size, o.zeroed, &to, err);
	}
	if (!ret)
		ret = mirror_open(*disk, to, &o, &mirror, err);
	if (!ret) {
		*disk = mirror;
		return 0;
	}
	block_close(to, NULL);
	if (o.zeroed)
		unlink(target);
	return ret;
}
