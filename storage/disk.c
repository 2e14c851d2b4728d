// SPDX-License-Identifier: MIT
#include "storage/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "storage/block_nbd.h"
#include "storage/block_qcow2.h"
#include "storage/block_rbd.h"
#include "storage/lvm.h"
#include "storage/nbd_address.h"
#include "storage/qcow2.h"
#include "storage/rbd_name.h"

static bool ends_with(const char *path, const char *end)
{
	size_t length = strlen(path), n = strlen(end);

	return length > n && !strcmp(path + length - n, end);
}

static bool looks_like_qcow2(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	uint8_t first[4];
	bool is = fd >= 0 && pread(fd, first, sizeof(first), 0) == (ssize_t)sizeof(first) &&
		  qcow2_is_image(first, sizeof(first));

	if (fd >= 0)
		close(fd);
	return is;
}

bool disk_is_address(const char *name)
{
	return nbd_address_is(name) || rbd_name_is(name);
}

const struct snapshots_ops *disk_snapshots_of(const char *name)
{
	struct lvm_name volume;

	if (rbd_name_is(name))
		return &block_rbd_snapshots;
	return !nbd_address_is(name) && lvm_find(name, &volume) ? &lvm_snapshots : NULL;
}

const char *disk_format_of_name(const char *path)
{
	return ends_with(path, ".qcow2") && !disk_is_address(path) ? "qcow2" : "raw";
}

int disk_format(const char *path, const char *format, const char **out, struct pgr_error *err)
{
	*out = disk_format_of_name(path);
	if (format) {
		*out = !strcmp(format, "qcow2") ? "qcow2" : "raw";
		if (strcmp(format, *out) != 0)
			return pgr_fail(err, -EINVAL,
					"the format \"%s\" is not known; raw and qcow2 are",
					format);
		return 0;
	}
	if (!strcmp(*out, "raw") && looks_like_qcow2(path))
		return pgr_fail(
			err, -EINVAL,
			"%s: begins like a qcow2 image, but is not called .qcow2; if it is one, say --format qcow2, and if a guest wrote that, --format raw",
			path);
	return 0;
}

int disk_open(struct loop *l, const char *path, const char *format, const struct block_options *o,
	      struct block **out, struct pgr_error *err)
{
	char device[LVM_DEVICE];
	const char *found;
	int ret;

	path = lvm_device(path, device);
	ret = disk_format(path, format, &found, err);
	if (ret)
		return ret;
	if (disk_is_address(path)) {
		if (strcmp(found, "raw") != 0)
			return pgr_fail(
				err, -EOPNOTSUPP,
				"%s: images can only be in files; a disk with an address is raw",
				path);
		return rbd_name_is(path) ? block_open_rbd(l, path, o, out, err)
					 : block_open_nbd(l, path, o, out, err);
	}
	return !strcmp(found, "qcow2") ? block_open_qcow2(l, path, o, out, err)
				       : block_open_file(l, path, o, out, err);
}
