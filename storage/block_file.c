// SPDX-License-Identifier: MIT
/*
 * A regular file or a block device: asynchronous direct I/O.
 *
 * O_DIRECT keeps the host's page cache out of the way: a guest caches for itself, and what is written is with the device when the request is
 * done. Where the file system refuses it the same requests go through the page cache; the kernel then works them off within io_submit(), so
 * they hold up the loop, and info.note says so. The same for a raw file whose size is not a multiple of the direct I/O unit: its last bytes
 * cannot be written directly without making the file longer.
 *
 * What a read finds beyond the end of the file is zeros: only files of image formats (`grows`) are asked for that, in whole units.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "storage/aio.h"
#include "storage/block_driver.h"
#include "storage/file_lock.h"
#include "storage/offload.h"
#include "storage/reflink.h"

#define PIECES_AT_ONCE 128u /* on a fiber's stack */
#define ALIGN_UNKNOWN  4096u

struct block_file {
	struct block b;
	char *path;
	int fd;
	bool device;
	bool unlocked;
	bool direct;
	bool no_async_sync; /* the kernel has no asynchronous fdatasync for it */
	bool no_zero_range;
};

static struct block_file *to_file(struct block *b)
{
	return (struct block_file *)b;
}

static int fail_io(struct block_file *f, int code, const char *what, uint64_t length,
		   uint64_t offset, struct pgr_error *err)
{
	if (code == -ENOSPC || code == -EDQUOT)
		return pgr_fail_errno(
			err, code, "%s: no room for %llu bytes at %llu; make room and try again",
			f->b.info.name, (unsigned long long)length, (unsigned long long)offset);
	return pgr_fail_errno(err, code, "%s: %s %llu bytes at %llu failed", f->b.info.name, what,
			      (unsigned long long)length, (unsigned long long)offset);
}

/* ---- reading and writing ---- */

/* The first pieces of d, at most `length` bytes; how many bytes they are. */
static size_t some_pieces(struct block_data d, size_t length, struct iovec *out, unsigned *nr)
{
	while (length && !(*nr = block_data_pieces(d, length, out, PIECES_AT_ONCE)))
		length = (length / 2 + ALIGN_UNKNOWN - 1) & ~(size_t)(ALIGN_UNKNOWN - 1);
	return length;
}

static int file_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		     struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	struct iovec iov[PIECES_AT_ONCE];
	struct aio_job job = {.op = AIO_READ, .fd = f->fd, .iov = iov};

	while (length) {
		size_t n = some_pieces(to, length, iov, &job.nr_iov);
		int64_t got;

		job.offset = offset;
		got = aio(b->loop, &job);
		if (got < 0)
			return fail_io(f, (int)got, "reading", n, offset, err);
		/* The end of the file, and in the middle of a unit when it is direct. */
		if (!got || got & (b->align - 1)) {
			block_data_zero(block_data_skip(to, (size_t)got), length - (uint64_t)got);
			return 0;
		}
		to = block_data_skip(to, (size_t)got);
		offset += (uint64_t)got;
		length -= (uint64_t)got;
	}
	return 0;
}

static int file_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
		      uint32_t flags, struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	struct iovec iov[PIECES_AT_ONCE];
	struct aio_job job = {
		.op = AIO_WRITE, .fd = f->fd, .iov = iov, .durable = flags & BLOCK_FUA};

	while (length) {
		size_t n = some_pieces(from, length, iov, &job.nr_iov);
		int64_t put;

		job.offset = offset;
		put = aio(b->loop, &job);
		if (put < 0)
			return fail_io(f, (int)put, "writing", n, offset, err);
		put &= ~(int64_t)(b->align - 1);
		if (!put)
			return fail_io(f, -EIO, "writing", n, offset, err);
		from = block_data_skip(from, (size_t)put);
		offset += (uint64_t)put;
		length -= (uint64_t)put;
		if (b->grows && offset > b->info.size)
			b->info.size = offset;
	}
	return 0;
}

/* ---- what has no asynchronous form ---- */

struct range_job {
	struct block_file *f;
	uint64_t offset, length;
	int mode;
	bool durable;
	struct block_extent *extent;
};

static int do_sync(void *ctx)
{
	struct block_file *f = ctx;

	return fdatasync(f->fd) ? -errno : 0;
}

static int file_flush(struct block *b, struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	const struct aio_job job = {.op = AIO_SYNC, .fd = f->fd};
	int64_t ret = f->no_async_sync ? -EINVAL : aio(b->loop, &job);

	if (ret == -EINVAL || ret == -ENOSYS) {
		f->no_async_sync = true;
		ret = offload(b->loop, do_sync, f);
	}
	if (!ret)
		return 0;
	return pgr_fail_errno(err, (int)ret, "%s: making it durable failed", b->info.name);
}

static int do_fallocate(void *ctx)
{
	struct range_job *j = ctx;

	while (fallocate(j->f->fd, j->mode, (off_t)j->offset, (off_t)j->length))
		if (errno != EINTR)
			return -errno;
	return j->durable ? do_sync(j->f) : 0;
}

static int do_device_discard(void *ctx)
{
	struct range_job *j = ctx;
	uint64_t range[2] = {j->offset, j->length};

	return ioctl(j->f->fd, BLKDISCARD, range) ? -errno : 0;
}

static bool is_unsupported(int ret)
{
	return ret == -EOPNOTSUPP || ret == -ENOSYS || ret == -ENOTTY || ret == -EINVAL ||
	       ret == -ENODEV;
}

static int file_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	struct range_job j = {.f = f,
			      .offset = offset,
			      .length = length,
			      .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE};
	int ret;

	if (!b->info.can_discard)
		return 0;
	ret = offload(b->loop, f->device ? do_device_discard : do_fallocate, &j);
	if (is_unsupported(ret)) {
		b->info.can_discard = false;
		return 0;
	}
	return ret ? fail_io(f, ret, "discarding", length, offset, err) : 0;
}

static int file_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		     struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	struct range_job j = {
		.f = f, .offset = offset, .length = length, .durable = flags & BLOCK_FUA};
	bool longer = b->grows && offset + length > b->info.size;
	int ret = -EOPNOTSUPP;

	if (flags & BLOCK_UNMAP && !longer && b->info.can_discard) {
		j.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
		ret = offload(b->loop, do_fallocate, &j);
		if (is_unsupported(ret))
			ret = -EOPNOTSUPP;
	}
	if (ret == -EOPNOTSUPP && !f->no_zero_range) {
		j.mode = FALLOC_FL_ZERO_RANGE | (longer ? 0 : FALLOC_FL_KEEP_SIZE);
		ret = offload(b->loop, do_fallocate, &j);
		if (is_unsupported(ret)) {
			f->no_zero_range = true;
			ret = -EOPNOTSUPP;
		}
	}
	if (!ret && longer && b->info.size < offset + length)
		b->info.size = offset + length;
	/* The layer above writes zeros then. */
	return ret && ret != -EOPNOTSUPP ? fail_io(f, ret, "zeroing", length, offset, err) : ret;
}

static int do_status(void *ctx)
{
	struct range_job *j = ctx;
	off_t data = lseek(j->f->fd, (off_t)j->offset, SEEK_DATA);
	off_t hole;

	*j->extent = (struct block_extent){.length = j->length,
					   .flags = BLOCK_EXTENT_ZERO | BLOCK_EXTENT_HERE};
	if (data < 0 && errno == ENXIO)
		return 0;
	if (data > (off_t)j->offset) {
		if ((uint64_t)data - j->offset < j->length)
			j->extent->length = (uint64_t)data - j->offset;
		return 0;
	}
	j->extent->flags = BLOCK_EXTENT_DATA | BLOCK_EXTENT_HERE | BLOCK_EXTENT_AT;
	j->extent->at = j->offset;
	/* A file system that knows nothing of holes, or a device: all of it is data. */
	hole = data < 0 ? -1 : lseek(j->f->fd, (off_t)j->offset, SEEK_HOLE);
	if (hole > (off_t)j->offset && (uint64_t)hole - j->offset < j->length)
		j->extent->length = (uint64_t)hole - j->offset;
	return 0;
}

static int file_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		       struct pgr_error *err)
{
	struct range_job j = {.f = to_file(b), .offset = offset, .length = length, .extent = out};
	int ret = offload(b->loop, do_status, &j);

	return ret ? fail_io(j.f, ret, "looking for holes in", length, offset, err) : 0;
}

/* ---- size ---- */

static int size_of(int fd, bool device, uint64_t *size)
{
	struct stat st;

	if (device)
		return ioctl(fd, BLKGETSIZE64, size) ? -errno : 0;
	if (fstat(fd, &st))
		return -errno;
	*size = (uint64_t)st.st_size;
	return 0;
}

static int do_resize(void *ctx)
{
	struct range_job *j = ctx;

	if (ftruncate(j->f->fd, (off_t)j->length) || fsync(j->f->fd))
		return -errno;
	return 0;
}

static int file_resize(struct block *b, uint64_t size, struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	struct range_job j = {.f = f, .length = size};
	uint64_t now = 0;
	int ret;

	if (f->device) {
		/* Somebody else changes it, for example lvextend; what it is now is taken over. */
		ret = size_of(f->fd, true, &now);
		if (!ret && now != size)
			return pgr_fail(
				err, -EPERM,
				"%s: the device has %llu bytes and not %llu; change it with its own tool (lvextend), then ask again",
				b->info.name, (unsigned long long)now, (unsigned long long)size);
	} else {
		if (!b->grows && size & (b->align - 1))
			return pgr_fail(err, -EINVAL, "%s: a size has to be a multiple of %u bytes",
					b->info.name, b->align);
		ret = offload(b->loop, do_resize, &j);
	}
	if (ret)
		return pgr_fail_errno(err, ret, "%s: changing its size to %llu bytes failed",
				      b->info.name, (unsigned long long)size);
	b->info.size = size;
	return 0;
}

/* ---- snapshot: another file that shares all blocks with this one ---- */

struct clone_job {
	struct block_file *f;
	const char *path;
};

static int do_clone(void *ctx)
{
	struct clone_job *j = ctx;

	return reflink_keep(j->f->fd, j->f->path, j->path);
}

static int file_snapshot(struct block *b, const char *name, struct pgr_error *err)
{
	struct clone_job j = {.f = to_file(b), .path = name};
	int ret = offload(b->loop, do_clone, &j);

	if (ret == -EOPNOTSUPP)
		return pgr_fail(
			err, ret,
			"%s: its file system cannot share blocks between files (XFS and btrfs can) or %s is on another; put a qcow2 overlay over it instead, and use that: pagurus disk create --backing %s OVERLAY.qcow2",
			b->info.name, name, b->info.name);
	if (ret == -EEXIST)
		return pgr_fail(err, ret,
				"%s: is there already; choose another name for the snapshot", name);
	return ret ? pgr_fail_errno(err, ret, "%s: cannot make the snapshot %s", b->info.name, name)
		   : 0;
}

/* ---- opening and closing ---- */

static int file_close(struct block *b, struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	int ret = 0;

	/* A request of libaio that is over may still hold the open file for some milliseconds, with its lock. */
	if (f->fd >= 0 && !f->unlocked)
		file_unlock(f->fd);
	if (f->fd >= 0 && close(f->fd))
		ret = pgr_fail_errno(err, -errno, "%s: closing failed", b->info.name);
	free(f->path);
	return ret;
}

static const struct block_ops file_ops = {
	.read = file_read,
	.write = file_write,
	.discard = file_discard,
	.zero = file_zero,
	.flush = file_flush,
	.status = file_status,
	.resize = file_resize,
	.close = file_close,
};

static const struct block_ops file_ops_regular = {
	.read = file_read,
	.write = file_write,
	.discard = file_discard,
	.zero = file_zero,
	.flush = file_flush,
	.status = file_status,
	.resize = file_resize,
	.snapshot = file_snapshot,
	.close = file_close,
};

struct open_job {
	struct block_file *f;
	const struct block_options *o;
	struct pgr_error *err;
};

/* The unit of direct I/O; 0: there is none. */
static uint32_t direct_unit(const struct block_file *f)
{
	struct statx stx = {0};
	int sector = 0;

	if (f->device && ioctl(f->fd, BLKSSZGET, &sector) == 0 && sector >= (int)BLOCK_SECTOR)
		return (uint32_t)sector;
	if (statx(f->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx) ||
	    !(stx.stx_mask & STATX_DIOALIGN))
		return ALIGN_UNKNOWN;
	return stx.stx_dio_offset_align > stx.stx_dio_mem_align ? stx.stx_dio_offset_align
								: stx.stx_dio_mem_align;
}

static bool is_power_of_two(uint64_t value)
{
	return value && !(value & (value - 1));
}

/* Switch to direct I/O when that is possible. */
static void set_direct(struct block_file *f, const struct block_options *o)
{
	struct block_info *info = &f->b.info;
	uint32_t unit;

	if (o->cached)
		return;
	unit = direct_unit(f);
	if (!is_power_of_two(unit) || fcntl(f->fd, F_SETFL, O_DIRECT)) {
		snprintf(
			info->note, sizeof(info->note),
			"its file system refuses direct I/O: it goes through the page cache, and each request holds up the others");
		return;
	}
	if (!o->grows && info->size & (unit - 1)) {
		fcntl(f->fd, F_SETFL, 0);
		snprintf(
			info->note, sizeof(info->note),
			"its size is not a multiple of %u bytes, so it goes through the page cache, and each request holds up the others",
			unit);
		return;
	}
	f->direct = true;
	f->b.align = f->b.memory_align = unit > BLOCK_SECTOR ? unit : BLOCK_SECTOR;
}

static int do_open(void *ctx)
{
	struct open_job *j = ctx;
	struct block_file *f = j->f;
	struct block_info *info = &f->b.info;
	struct stat st;
	int ret;

	/* O_NONBLOCK: a FIFO would wait for its other end. */
	if (f->fd < 0)
		f->fd = open(f->path, (j->o->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC |
					      O_NONBLOCK | O_NOCTTY);
	if (f->fd < 0 || fstat(f->fd, &st))
		return pgr_fail_errno(j->err, -errno, "%s: cannot be opened for %s", info->name,
				      j->o->read_only ? "reading" : "reading and writing");
	f->device = S_ISBLK(st.st_mode);
	if (!f->device && !S_ISREG(st.st_mode))
		return pgr_fail(j->err, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL,
				"%s: neither a regular file nor a block device", info->name);
	f->unlocked = j->o->unlocked;
	if (!f->unlocked) {
		ret = file_lock(f->fd, !j->o->read_only, info->name, j->err);
		if (ret)
			return ret;
	}
	ret = size_of(f->fd, f->device, &info->size);
	if (ret)
		return pgr_fail_errno(j->err, ret, "%s: its size cannot be found out", info->name);
	if (info->size > BLOCK_SIZE_MAX)
		return pgr_fail(j->err, -EFBIG, "%s: larger than a disk can be", info->name);
	fcntl(f->fd, F_SETFL, 0);
	set_direct(f, j->o);
	info->granularity = st.st_blksize > 0 && is_power_of_two((uint64_t)st.st_blksize)
				    ? (uint32_t)st.st_blksize
				    : BLOCK_SECTOR;
	return 0;
}

static int check_options(const char *path, const struct block_options *o, struct pgr_error *err)
{
	if (o->block_size && o->block_size != BLOCK_SECTOR && o->block_size != 4096)
		return pgr_fail(err, -EINVAL, "%s: a disk's blocks have 512 or 4096 bytes, not %u",
				path, o->block_size);
	if (o->max_requests > BLOCK_REQUESTS_MAX)
		return pgr_fail(err, -EINVAL, "%s: at most %u requests may be under way, not %u",
				path, BLOCK_REQUESTS_MAX, o->max_requests);
	return 0;
}

int block_open_file(struct loop *l, const char *path, const struct block_options *o,
		    struct block **out, struct pgr_error *err)
{
	static const struct block_options defaults;
	struct open_job j = {.o = o ? o : &defaults, .err = err};
	struct block_file *f;
	struct block *b;
	int fd = j.o->descriptor ? *j.o->descriptor : -1, ret = check_options(path, j.o, err);

	f = ret ? NULL : calloc(1, sizeof(*f));
	if (!f) {
		if (fd >= 0)
			close(fd);
		return ret ? ret : pgr_fail(err, -ENOMEM, "%s: no memory to open it", path);
	}
	b = &f->b;
	block_init(b, l, &file_ops, j.o);
	b->info.driver = "file";
	b->info.can_discard = true;
	b->fua = true;
	text_plain(b->info.name, sizeof(b->info.name), path, strlen(path));
	f->fd = fd;
	f->path = strdup(path);
	j.f = f;
	ret = f->path ? offload(l, do_open, &j) : -ENOMEM;
	if (ret) {
		if (err && !err->code)
			pgr_fail_errno(err, ret, "%s: cannot be opened", b->info.name);
		file_close(b, NULL);
		free(f);
		return ret;
	}
	if (!f->device) {
		b->ops = &file_ops_regular;
		b->info.can_snapshot = true;
	}
	if (b->info.block_size < b->align)
		b->info.block_size = b->align;
	if (b->info.granularity < b->info.block_size)
		b->info.granularity = b->info.block_size;
	*out = b;
	return 0;
}

void block_file_freeze(struct block *b)
{
	struct block_file *f = to_file(b);

	b->info.read_only = true;
	/* Giving a lock up cannot fail but for reasons that keep it. */
	if (!f->unlocked)
		file_lock(f->fd, false, b->info.name, NULL);
}

int block_file_thaw(struct block *b, int fd, struct pgr_error *err)
{
	struct block_file *f = to_file(b);
	struct stat is, was;
	int ret = 0;

	if (fstat(fd, &is) || fstat(f->fd, &was) || is.st_dev != was.st_dev ||
	    is.st_ino != was.st_ino)
		ret = pgr_fail(err, -EINVAL, "%s: is another file meanwhile", b->info.name);
	else if (f->direct && fcntl(fd, F_SETFL, O_DIRECT))
		ret = pgr_fail_errno(err, -errno, "%s: cannot be written directly", b->info.name);
	if (!ret && !f->unlocked) {
		/* Our own lock for reading is in the way. */
		file_unlock(f->fd);
		ret = file_lock(fd, true, b->info.name, err);
		if (ret)
			file_lock(f->fd, false, b->info.name, NULL);
	}
	if (ret) {
		close(fd);
		return ret;
	}
	close(f->fd);
	f->fd = fd;
	b->info.read_only = false;
	return 0;
}
