// SPDX-License-Identifier: MIT
#include "storage/qcow2_layer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/file.h"
#include "storage/layers.h"
#include "storage/offload.h"
#include "storage/qcow2_create.h"

/* ---- names ---- */

char *qcow2_layer_path(const char *image, const char *backing)
{
	char *out;

	if (!strncmp(backing, "file:", 5))
		backing += 5;
	if (backing[0] == '/')
		return strdup(backing);
	return asprintf(&out, "%.*s%s", (int)file_folder_length(image), image, backing) < 0 ? NULL
											    : out;
}

bool qcow2_layer_is_file(const char *backing)
{
	size_t scheme = strcspn(backing, ":/");

	return backing[scheme] != ':' || !strncmp(backing, "file:", 5);
}

char *qcow2_layer_name(const char *image, const char *path)
{
	size_t folder = file_folder_length(path);
	const char *base = path + folder;
	char *full, *out;

	if (folder == file_folder_length(image) && !strncmp(path, image, folder)) {
		/* What looks like "scheme:name" is none. */
		return asprintf(&out, "%s%s", qcow2_layer_is_file(base) ? "" : "./", base) < 0
			       ? NULL
			       : out;
	}
	full = realpath(path, NULL);
	return full ? full : strdup(path);
}

/* ---- making ---- */

int qcow2_layer_header(struct loop *l, const char *path, struct qcow2_header *h,
		       struct pgr_error *err)
{
	const struct block_options o = {.read_only = true, .unlocked = true, .grows = true};
	struct block *file;
	int ret = block_open_file(l, path, &o, &file, err);

	if (ret)
		return ret;
	ret = qcow2_header_load(file, h, err);
	block_close(file, NULL);
	return ret;
}

/*
 * Whether the file is what a cut in the middle of a snapshot may leave: an image that stands on itself, for its name and that of the disk were to be
 * exchanged. It has no contents, and nobody has it open.
 */
static bool is_unfinished(struct loop *l, const char *path)
{
	struct qcow2_header h;
	struct block *file;
	struct stat a, b;
	char *below;
	bool is;

	if (qcow2_layer_header(l, path, &h, NULL) || !h.backing[0])
		return false;
	below = qcow2_layer_path(path, h.backing);
	is = below && !stat(path, &a) && !stat(below, &b) && a.st_dev == b.st_dev &&
	     a.st_ino == b.st_ino;
	free(below);
	if (!is || block_open_file(l, path, NULL, &file, NULL))
		return false;
	block_close(file, NULL);
	return true;
}

/* Of a new file, or -errno. *named: it has its name already. */
static int make_new(const char *path, bool *named)
{
	const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW;
	size_t folder = file_folder_length(path);
	char *in = folder ? strndup(path, folder) : strdup(".");
	int fd = in ? open(in, flags | O_TMPFILE, 0600) : -1;

	free(in);
	*named = fd < 0;
	if (fd < 0)
		fd = open(path, flags | O_CREAT | O_EXCL, 0600);
	return fd < 0 ? -errno : fd;
}

static int fail_exists(const char *path, struct pgr_error *err)
{
	return pgr_fail(err, -EEXIST, "%s: is there already; choose another name", path);
}

/* Open, with the owner and mode that it is to have. */
static int make_file(struct loop *l, const struct qcow2_layer *y, bool *named,
		     struct pgr_error *err)
{
	struct stat st;
	int fd, ret = 0;

	if (y->like && stat(y->like, &st))
		return pgr_fail_errno(err, -errno, "%s: cannot be looked at", y->like);
	if (!access(y->path, F_OK) && (!is_unfinished(l, y->path) || unlink(y->path)))
		return fail_exists(y->path, err);
	fd = make_new(y->path, named);
	if (fd == -EEXIST)
		return fail_exists(y->path, err);
	if (fd < 0)
		return pgr_fail_errno(err, fd, "%s: cannot be made", y->path);
	if (y->like && ((st.st_uid != geteuid() || st.st_gid != getegid()) &&
			fchown(fd, st.st_uid, st.st_gid)))
		ret = -errno;
	if (y->like && !ret && fchmod(fd, st.st_mode & 07777))
		ret = -errno;
	if (!ret)
		return fd;
	close(fd);
	if (*named)
		unlink(y->path);
	return pgr_fail_errno(err, ret, "%s: cannot get the owner and mode of %s", y->path,
			      y->like);
}

/* A file without a name gets it. */
static int give_name(int fd, const char *path, struct pgr_error *err)
{
	char by_number[32];

	snprintf(by_number, sizeof(by_number), "/proc/self/fd/%d", fd);
	if (!linkat(AT_FDCWD, by_number, AT_FDCWD, path, AT_SYMLINK_FOLLOW))
		return 0;
	return errno == EEXIST ? fail_exists(path, err)
			       : pgr_fail_errno(err, -errno, "%s: cannot get its name", path);
}

/* Of a file of that name that was merged into and has gone, with a kill before its mark went. */
static int forget_mark(const char *path, struct pgr_error *err)
{
	int ret = layers_is_leaving(path) ? layers_set_leaving(path, false) : 0;

	return ret ? pgr_fail_errno(err, ret,
				    "%s: the mark beside it, of another file, cannot be removed",
				    path)
		   : 0;
}

int qcow2_layer_make(struct loop *l, const struct qcow2_layer *y, struct block **file,
		     struct pgr_error *err)
{
	struct qcow2_creation c = {.size = y->size,
				   .cluster_size = y->cluster_size,
				   .backing_format = y->backing_format};
	bool named = false;
	char *name = NULL;
	int ret = 0, fd, opened;

	if (y->backing) {
		name = qcow2_layer_name(y->image, y->backing);
		if (!name)
			return pgr_fail(err, -ENOMEM, "%s: no memory for a name", y->path);
		c.backing = name;
	}
	fd = make_file(l, y, &named, err);
	if (fd < 0) {
		free(name);
		return fd;
	}
	opened = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (opened < 0)
		ret = pgr_fail_errno(err, -errno, "%s: no descriptor for it", y->path);
	else
		ret = block_open_file(l, y->path,
				      &(struct block_options){.grows = true, .descriptor = &opened},
				      file, err);
	if (!ret) {
		ret = qcow2_create(*file, &c, err);
		if (!ret && !named)
			ret = give_name(fd, y->path, err);
		if (!ret)
			ret = forget_mark(y->path, err);
		if (ret)
			block_close(*file, NULL);
	}
	if (ret && named)
		unlink(y->path);
	close(fd);
	free(name);
	return ret;
}

/* ---- exchanging names ---- */

struct names {
	const char *image, *name;
	bool exchanged;
};

static int exchange(void *ctx)
{
	struct names *n = ctx;
	int ret;

	if (renameat2(AT_FDCWD, n->image, AT_FDCWD, n->name, RENAME_EXCHANGE))
		return -errno;
	n->exchanged = true;
	ret = file_sync_folder_of(n->image);
	return ret ? ret : file_sync_folder_of(n->name);
}

int qcow2_layer_exchange(struct loop *l, const char *image, const char *name, bool *done,
			 struct pgr_error *err)
{
	struct names n = {.image = image, .name = name};
	int ret = offload(l, exchange, &n);

	*done = n.exchanged;
	if (ret && n.exchanged)
		return pgr_fail_errno(err, ret, "%s: the snapshot %s is there, but not durable yet",
				      image, name);
	if (ret == -EINVAL || ret == -EXDEV)
		return pgr_fail(
			err, ret,
			"%s: its file system cannot exchange the names of two files, or %s is on another one; choose a name in the same folder",
			image, name);
	return ret ? pgr_fail_errno(err, ret, "%s: cannot exchange its name with %s", image, name)
		   : 0;
}
