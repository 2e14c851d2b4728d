// SPDX-License-Identifier: MIT
#include "storage/file_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>

enum { DO_READ = 0, DO_WRITE = 1, DO_RESIZE = 3 };
#define DOES	      100
#define DOES_NOT_WANT 200

static int lock_byte(int fd, off_t byte, short type)
{
	struct flock k = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &k) ? -errno : 0;
}

/* Whether another open file holds the byte. */
static int held_by_other(int fd, off_t byte)
{
	struct flock k = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	if (fcntl(fd, F_OFD_GETLK, &k))
		return -errno;
	return k.l_type == F_UNLCK ? 0 : -EAGAIN;
}

int file_lock(int fd, bool writer, const char *path, struct pgr_error *err)
{
	static const int does[] = {DO_READ, DO_WRITE, DO_RESIZE};
	int ret = 0;

	for (unsigned i = 0; i < sizeof(does) / sizeof(does[0]) && !ret; i++) {
		bool mine = does[i] == DO_READ || writer;

		ret = lock_byte(fd, DOES + does[i], mine ? F_RDLCK : F_UNLCK);
		if (!ret)
			ret = lock_byte(fd, DOES_NOT_WANT + does[i],
					does[i] == DO_READ ? F_UNLCK : F_RDLCK);
	}
	for (unsigned i = 0; i < sizeof(does) / sizeof(does[0]) && !ret; i++) {
		if (does[i] == DO_READ || writer)
			ret = held_by_other(fd, DOES_NOT_WANT + does[i]);
		if (!ret && does[i] != DO_READ)
			ret = held_by_other(fd, DOES + does[i]);
	}
	if (ret == -EAGAIN || ret == -EACCES)
		return pgr_fail(
			err, -EAGAIN,
			writer ? "%s: in use by another process (lsof names it); a disk has one writer and then no readers, so end that process first"
			       : "%s: being written by another process (lsof names it); end that process first, or ask for a snapshot of it",
			path);
	if (ret)
		return pgr_fail_errno(err, ret, "%s: cannot be locked", path);
	return 0;
}

void file_unlock(int fd)
{
	struct flock k = {
		.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = DOES, .l_len = 2 * DOES};

	fcntl(fd, F_OFD_SETLK, &k);
}
