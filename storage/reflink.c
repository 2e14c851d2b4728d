// SPDX-License-Identifier: MIT
#include "storage/reflink.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "common/file.h"
#include "storage/layers.h"
#include "storage/offload.h"

#define PARTIAL ".partial"

/* ---- one file that shares the blocks of another ---- */

struct copy {
	int from;
	const char *to;
	const char *mark; /* NULL: it is no snapshot */
	const struct stat *like;
	bool replace; /* what has the name */
};

static bool cannot_share(int error)
{
	return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == EINVAL ||
	       error == EXDEV;
}

static int fill(const struct copy *c, int fd)
{
	if (ioctl(fd, FICLONE, c->from))
		return cannot_share(errno) ? -EOPNOTSUPP : -errno;
	if (c->mark && fsetxattr(fd, REFLINK_MARK, c->mark, strlen(c->mark), 0))
		return -errno;
	if ((c->like->st_uid != geteuid() || c->like->st_gid != getegid()) &&
	    fchown(fd, c->like->st_uid, c->like->st_gid))
		return -errno;
	return fchmod(fd, c->like->st_mode & 0777) || fsync(fd) ? -errno : 0;
}

/* Under its name only when it is whole: made without a name, where the file system can, would need /proc for its name; so by rename. */
static int copy(const struct copy *c)
{
	char partial[PATH_MAX];
	int fd, ret;

	if (snprintf(partial, sizeof(partial), "%s" PARTIAL, c->to) >= (int)sizeof(partial))
		return -ENAMETOOLONG;
	/* Of one that was killed: the caller has the disk's lock. */
	unlink(partial);
	fd = open(partial, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return -errno;
	ret = fill(c, fd);
	close(fd);
	if (!ret &&
	    renameat2(AT_FDCWD, partial, AT_FDCWD, c->to, c->replace ? 0 : RENAME_NOREPLACE))
		ret = -errno;
	if (ret)
		unlink(partial);
	return ret ? ret : file_sync_folder_of(c->to);
}

static const char *file_name(const char *path)
{
	return path + file_folder_length(path);
}

int reflink_keep(int fd, const char *disk, const char *path)
{
	struct stat st;
	const struct copy c = {.from = fd, .to = path, .mark = file_name(disk), .like = &st};

	return fstat(fd, &st) ? -errno : copy(&c);
}

bool reflink_is_snapshot(const char *disk, const char *path)
{
	char mark[NAME_MAX + 1];
	ssize_t n = getxattr(path, REFLINK_MARK, mark, sizeof(mark));

	return n > 0 && (size_t)n == strlen(file_name(disk)) &&
	       !memcmp(mark, file_name(disk), (size_t)n);
}

/* ---- those of a disk ---- */

static int add_snapshot(const char *disk, char *path, struct snapshots *out, struct pgr_error *err)
{
	struct stat st;
	char name[NAME_MAX + 1];

	if (stat(path, &st) || !S_ISREG(st.st_mode)) {
		free(path);
		return 0;
	}
	layers_snapshot_name(disk, path, name, sizeof(name));
	return snapshots_add(out,
			     (struct snapshot){.name = strdup(name),
					       .path = path,
					       .size = (uint64_t)st.st_size,
					       .used = (uint64_t)st.st_blocks * 512,
					       .made = st.st_mtime},
			     err);
}

static bool is_partial(const char *path)
{
	size_t length = strlen(path);

	return length > strlen(PARTIAL) && !strcmp(path + length - strlen(PARTIAL), PARTIAL);
}

static int look_at(const char *disk, size_t folder, const char *name, struct snapshots *out,
		   struct pgr_error *err)
{
	char *path;

	if (asprintf(&path, "%.*s%s", (int)folder, disk, name) < 0)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	if (!is_partial(path) && reflink_is_snapshot(disk, path))
		return add_snapshot(disk, path, out, err);
	free(path);
	return 0;
}

static int list(struct snapshot_work *w, struct snapshots *out, struct pgr_error *err)
{
	size_t folder = file_folder_length(w->disk);
	char *name = folder ? strndup(w->disk, folder) : strdup(".");
	struct dirent *e;
	int ret = 0;
	DIR *d;

	if (!name)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	d = opendir(name);
	if (!d)
		ret = pgr_fail_errno(err, -errno, "%s: cannot be read", name);
	free(name);
	if (!d)
		return ret;
	while (!ret && (e = readdir(d)))
		ret = look_at(w->disk, folder, e->d_name, out, err);
	closedir(d);
	snapshots_sort(out);
	return ret;
}

/* w->path is that of the snapshot that is meant. */
static int find(struct snapshot_work *w, struct pgr_error *err)
{
	w->path = layers_snapshot_path(w->disk, w->name);
	if (!w->path)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	if (access(w->path, F_OK))
		return pgr_fail(
			err, -ENOENT,
			"%s: has no snapshot \"%s\" (there is no file %s); pagurus disk list shows those that it has",
			w->disk, w->name, w->path);
	if (reflink_is_snapshot(w->disk, w->path))
		return 0;
	return pgr_fail(
		err, -EINVAL,
		"%s: is not marked as a snapshot of %s, and may be a disk of its own; if it is a snapshot, say so: setfattr -n " REFLINK_MARK
		" -v %s %s",
		w->path, w->disk, file_name(w->disk), w->path);
}

struct put_back {
	const char *disk, *path;
};

static int do_put_back(void *ctx)
{
	const struct put_back *p = ctx;
	struct stat st;
	struct copy c = {.from = open(p->path, O_RDONLY | O_CLOEXEC),
			 .to = p->disk,
			 .like = &st,
			 .replace = true};
	int ret;

	if (c.from < 0)
		return -errno;
	ret = stat(p->disk, &st) ? -errno : copy(&c);
	close(c.from);
	return ret;
}

/* A new file in the place of the disk: one rename, so that a cut leaves the one or the other. */
static int revert(struct snapshot_work *w, struct pgr_error *err)
{
	const struct block_options reading = {.read_only = true};
	struct block *lock = NULL, *from = NULL;
	struct put_back p = {.disk = w->disk};
	int ret = find(w, err);

	if (!ret)
		ret = block_open_file(w->loop, w->disk, NULL, &lock, err);
	if (!ret)
		ret = block_open_file(w->loop, w->path, &reading, &from, err);
	if (!ret) {
		p.path = w->path;
		ret = offload(w->loop, do_put_back, &p);
		if (ret)
			pgr_fail_errno(err, ret, "%s: cannot be made what %s is", w->disk, w->path);
	}
	block_close(from, NULL);
	block_close(lock, NULL);
	return ret;
}

static int remove_one(struct snapshot_work *w, struct pgr_error *err)
{
	struct block *lock = NULL;
	int ret = find(w, err);

	if (!ret)
		ret = block_open_file(w->loop, w->path, NULL, &lock, err);
	if (!ret && unlink(w->path))
		ret = pgr_fail_errno(err, -errno, "%s: cannot be removed", w->path);
	block_close(lock, NULL);
	if (!ret) {
		ret = file_sync_folder_of(w->path);
		if (ret)
			pgr_fail_errno(err, ret, "the folder of %s cannot be made durable",
				       w->path);
	}
	return ret;
}

const struct snapshots_ops reflink_ops = {.list = list, .revert = revert, .remove = remove_one};
