/* SPDX-License-Identifier: MIT */
/*
 * A channel over a regular file.
 *
 * Writing: a file is either complete under its name or not there under its name.
 *
 *   create   PATH.partial, O_EXCL, 0600, locked with flock(2) for as long as its writer lives
 *   commit   fsync of the file, rename to PATH (without overwrite: a rename that refuses to replace), fsync of the folder
 *   close    without a commit: PATH.partial is removed
 *
 * A writer that was killed leaves PATH.partial without a lock. The next writer may therefore remove it; while the lock is held
 * it may not. Between opening and locking somebody else may do so, so after locking the name is compared with what was opened.
 *
 * The folder stays open: what is renamed and synced is in the folder that was checked, whatever happens to its name.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/channel.h"
#include "migrate/channel_io.h"

#define FILE_AHEAD	(128u << 10)
#define FILE_WRITE_STEP (8u << 20) /* between two looks at the cancellation */
#define FILE_SUFFIX	".partial"
#define FILE_TRIES	8

struct channel_file {
	struct channel c;
	int fd;
	int dir;       /* writing only, else -1 */
	char *name;    /* in dir */
	char *partial; /* in dir; NULL once committed */
	bool overwrite;
	uint64_t offset; /* reading: of the byte after those in ahead */
	struct channel_ahead ahead;
	atomic_bool cancelled;
};

static struct channel_file *to_file(struct channel *c)
{
	return (struct channel_file *)c;
}

static int file_cancelled(struct channel_file *f, struct pgr_error *err)
{
	if (!atomic_load(&f->cancelled))
		return 0;
	return pgr_fail(err, -ECANCELED, "%s: cancelled on this side", f->c.peer);
}

static int file_fail_write(struct channel_file *f, int code, struct pgr_error *err)
{
	if (code == -ENOSPC || code == -EDQUOT || code == -EFBIG)
		return pgr_fail_errno(
			err, code,
			"%s: no room after %llu bytes; free space, raise the limit, or choose another folder, then retry",
			f->c.peer, (unsigned long long)f->c.written);
	return pgr_fail_errno(err, code, "%s: writing failed after %llu bytes", f->c.peer,
			      (unsigned long long)f->c.written);
}

static int file_write(struct channel *c, const struct iovec *iov, unsigned nr,
		      struct pgr_error *err)
{
	struct channel_file *f = to_file(c);
	struct iovec copy[CHANNEL_IOV_MAX];
	struct iovec *next = copy;
	size_t total;
	unsigned left;
	int ret;

	if (f->dir < 0)
		return pgr_fail(err, -EBADF, "%s: opened for reading, cannot be written", c->peer);
	ret = channel_iov_copy(copy, iov, nr, &total, err);
	if (ret < 0)
		return ret;
	left = (unsigned)ret;
	ret = file_cancelled(f, err);
	while (left > 0 && !ret) {
		size_t whole = next->iov_len;
		ssize_t n;

		/* A piece that is larger than a step goes alone. */
		if (whole > FILE_WRITE_STEP)
			next->iov_len = FILE_WRITE_STEP;
		n = channel_writev_quiet(f->fd, next, whole > FILE_WRITE_STEP ? 1 : left);
		next->iov_len = whole;
		if (n > 0)
			channel_iov_advance(&next, &left, (size_t)n);
		else if (n != -EINTR)
			return file_fail_write(f, n ? (int)n : -EIO, err);
		ret = file_cancelled(f, err);
	}
	if (!ret)
		channel_count(&c->written, total);
	return ret;
}

static int file_read(struct channel *c, void *data, size_t length, struct pgr_error *err)
{
	struct channel_file *f = to_file(c);
	size_t got;
	int ret;

	if (f->dir >= 0)
		return pgr_fail(err, -EBADF, "%s: opened for writing, cannot be read", c->peer);
	ret = file_cancelled(f, err);
	if (ret)
		return ret;
	got = channel_ahead_take(&f->ahead, data, length);
	while (got < length) {
		struct iovec iov[2];
		ssize_t n;

		channel_ahead_iov(&f->ahead, (char *)data + got, length - got, iov);
		n = preadv(f->fd, iov, 2, (off_t)f->offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return pgr_fail_errno(err, -errno, "%s: reading failed at byte %llu",
					      c->peer, (unsigned long long)f->offset);
		if (n == 0 && got == 0)
			return pgr_fail(err, -ENODATA, "%s: ends at byte %llu", c->peer,
					(unsigned long long)f->offset);
		if (n == 0)
			return pgr_fail(
				err, -EPIPE,
				"%s: ends at byte %llu where %zu more bytes are expected: the file is cut short, use another copy",
				c->peer, (unsigned long long)f->offset, length - got);
		f->offset += (size_t)n;
		got += channel_ahead_got(&f->ahead, length - got, (size_t)n);
		ret = file_cancelled(f, err);
		if (ret)
			return ret;
	}
	channel_count(&c->read, length);
	return 0;
}

static int file_sync(struct channel *c, struct pgr_error *err)
{
	struct channel_file *f = to_file(c);

	if (f->dir >= 0 && fsync(f->fd))
		return pgr_fail_errno(err, -errno, "%s: cannot be made durable", c->peer);
	return 0;
}

static void file_shutdown(struct channel *c)
{
	atomic_store(&to_file(c)->cancelled, true);
}

static void file_close(struct channel *c)
{
	struct channel_file *f = to_file(c);

	/* Before the lock goes with the descriptor: afterwards the name may be another writer's. */
	if (f->partial && f->fd >= 0)
		unlinkat(f->dir, f->partial, 0);
	if (f->fd >= 0)
		close(f->fd);
	if (f->dir >= 0)
		close(f->dir);
	channel_ahead_free(&f->ahead);
	free(f->name);
	free(f->partial);
	free(f);
}

static const struct channel_ops file_ops = {
	.write = file_write,
	.read = file_read,
	.sync = file_sync,
	.shutdown = file_shutdown,
	.close = file_close,
};

static struct channel_file *file_new(const char *path)
{
	struct channel_file *f = calloc(1, sizeof(*f));

	if (!f)
		return NULL;
	f->c.ops = &file_ops;
	f->fd = -1;
	f->dir = -1;
	channel_name(&f->c, "file ", path);
	return f;
}

/* Open the folder of path and split off the name. */
static int file_folder(struct channel_file *f, const char *path, struct pgr_error *err)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	char *folder;
	int ret = 0;

	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return pgr_fail(err, -EISDIR, "%s: is a folder, give the name of a file",
				f->c.peer);
	folder = slash ? strndup(path, (size_t)(name - path)) : strdup(".");
	f->name = strdup(name);
	if (folder && f->name && asprintf(&f->partial, "%s" FILE_SUFFIX, name) < 0)
		f->partial = NULL;
	if (!folder || !f->partial) {
		ret = pgr_fail(err, -ENOMEM, "%s: no memory for its name", f->c.peer);
		goto out;
	}
	f->dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (f->dir < 0)
		ret = pgr_fail_errno(err, -errno,
				     "%s: its folder cannot be opened; make it, then retry",
				     f->c.peer);
out:
	free(folder);
	return ret;
}

/* Whether the final name may be taken; asked early so that a person learns of it before the data are written. */
static int file_check_target(struct channel_file *f, struct pgr_error *err)
{
	struct stat st;

	if (fstatat(f->dir, f->name, &st, AT_SYMLINK_NOFOLLOW)) {
		if (errno == ENOENT)
			return 0;
		return pgr_fail_errno(err, -errno, "%s: cannot be looked at", f->c.peer);
	}
	if (!S_ISREG(st.st_mode))
		return pgr_fail(err, -EINVAL,
				"%s: exists and is not a regular file; choose another name",
				f->c.peer);
	if (!f->overwrite)
		return pgr_fail(
			err, -EEXIST,
			"%s: exists; choose another name, remove it, or allow overwriting it",
			f->c.peer);
	return 0;
}

/* Whether PATH.partial still names what fd has open. */
static bool file_is_named(struct channel_file *f, int fd)
{
	struct stat here;
	struct stat there;

	return !fstat(fd, &here) && !fstatat(f->dir, f->partial, &there, AT_SYMLINK_NOFOLLOW) &&
	       here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

/* Remove the PATH.partial of a writer that died. 0: gone, try again; -EBUSY: its writer lives. */
static int file_remove_stale(struct channel_file *f)
{
	struct stat st;
	int fd = openat(f->dir, f->partial, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (fstat(fd, &st))
		ret = -errno;
	else if (!S_ISREG(st.st_mode) || st.st_uid != geteuid())
		ret = -EEXIST;
	else if (flock(fd, LOCK_EX | LOCK_NB))
		ret = errno == EWOULDBLOCK ? -EBUSY : -errno;
	else if (file_is_named(f, fd) && unlinkat(f->dir, f->partial, 0))
		ret = -errno;
	close(fd);
	return ret;
}

static int file_create_partial(struct channel_file *f, struct pgr_error *err)
{
	int ret = -EBUSY;

	for (int i = 0; i < FILE_TRIES; i++) {
		f->fd = openat(f->dir, f->partial,
			       O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
		if (f->fd >= 0) {
			if (!flock(f->fd, LOCK_EX | LOCK_NB) && file_is_named(f, f->fd))
				return 0;
			/* Taken for a dead writer's in the moment before the lock: it is not ours any more. */
			close(f->fd);
			f->fd = -1;
			continue;
		}
		ret = -errno;
		if (ret == -EEXIST)
			ret = file_remove_stale(f);
		if (ret)
			break;
		ret = -EBUSY;
	}
	if (ret == -EBUSY)
		return pgr_fail(
			err, ret,
			"%s: another process is writing it now; wait for it, or choose another name",
			f->c.peer);
	if (ret == -EEXIST)
		return pgr_fail(err, ret,
				"%s: there is a " FILE_SUFFIX
				" beside it that is not ours; remove it, or choose another name",
				f->c.peer);
	return pgr_fail_errno(err, ret, "%s: cannot be created", f->c.peer);
}

int channel_file_create(const char *path, bool overwrite, struct channel **out,
			struct pgr_error *err)
{
	struct channel_file *f = file_new(path);
	int ret;

	*out = NULL;
	if (!f)
		return pgr_fail(err, -ENOMEM, "no memory for a file channel");
	f->overwrite = overwrite;
	ret = file_folder(f, path, err);
	if (!ret)
		ret = file_check_target(f, err);
	if (!ret)
		ret = file_create_partial(f, err);
	if (ret)
		file_close(&f->c);
	else
		*out = &f->c;
	return ret;
}

int channel_file_commit(struct channel *c, struct pgr_error *err)
{
	struct channel_file *f = to_file(c);
	int ret;

	if (c->ops != &file_ops || !f->partial)
		return pgr_fail(err, -EINVAL, "%s: nothing to commit", c->peer);
	ret = file_cancelled(f, err);
	if (!ret)
		ret = file_sync(c, err);
	if (!ret)
		ret = file_check_target(f, err);
	if (ret)
		return ret;
	if (f->overwrite)
		ret = renameat(f->dir, f->partial, f->dir, f->name);
	else
		ret = renameat2(f->dir, f->partial, f->dir, f->name, RENAME_NOREPLACE);
	if (ret && !f->overwrite && errno == EINVAL) {
		/* A file system without that rename: a second name refuses to replace as well. */
		ret = linkat(f->dir, f->partial, f->dir, f->name, 0);
		if (!ret)
			unlinkat(f->dir, f->partial, 0);
	}
	if (ret)
		return pgr_fail_errno(err, -errno, "%s: is complete but cannot get its name",
				      c->peer);
	free(f->partial);
	f->partial = NULL;
	if (fsync(f->dir))
		return pgr_fail_errno(err, -errno,
				      "%s: is complete, but its folder cannot be made durable",
				      c->peer);
	return 0;
}

int channel_file_open(const char *path, struct channel **out, struct pgr_error *err)
{
	struct channel_file *f = file_new(path);
	struct stat st;
	int ret = 0;

	*out = NULL;
	if (!f)
		return pgr_fail(err, -ENOMEM, "no memory for a file channel");
	/* Without O_NONBLOCK, opening a named pipe would wait for its writer. */
	f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (f->fd < 0 || fstat(f->fd, &st)) {
		ret = pgr_fail_errno(err, -errno, "%s: cannot be opened", f->c.peer);
		goto out;
	}
	if (!S_ISREG(st.st_mode)) {
		ret = pgr_fail(err, -EINVAL,
			       "%s: is not a regular file; give the file that was saved",
			       f->c.peer);
		goto out;
	}
	if (channel_ahead_init(&f->ahead, FILE_AHEAD)) {
		ret = pgr_fail(err, -ENOMEM, "%s: no memory for reading it", f->c.peer);
		goto out;
	}
	posix_fadvise(f->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	*out = &f->c;
out:
	if (ret)
		file_close(&f->c);
	return ret;
}

int channel_file_seek(struct channel *c, uint64_t offset, uint64_t *size, struct pgr_error *err)
{
	struct channel_file *f = to_file(c);
	struct stat st;

	if (c->ops != &file_ops || f->dir >= 0)
		return pgr_fail(err, -ESPIPE, "%s: has no positions to go to", c->peer);
	if (offset > INT64_MAX)
		return pgr_fail(err, -EINVAL, "%s: no file has a byte %llu", c->peer,
				(unsigned long long)offset);
	if (size) {
		if (fstat(f->fd, &st))
			return pgr_fail_errno(err, -errno, "%s: its size is not known", c->peer);
		*size = (uint64_t)st.st_size;
	}
	f->offset = offset;
	f->ahead.start = 0;
	f->ahead.end = 0;
	return 0;
}
