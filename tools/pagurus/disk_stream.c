// SPDX-License-Identifier: MIT
#include "tools/pagurus/disk_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/block_driver.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/units.h"

#define CHUNK	 (1u << 20)
#define ZEROS	 (64u << 10)
#define FIRST_MS 2000u

struct stream {
	struct block *from;
	int fd;
	bool is_file; /* nothing is behind where we are: what is left out reads as zeros */
	off_t begin;
	const atomic_bool *stop;
	struct disk_progress progress;
	uint8_t *data;
};

static bool is_empty_file(int fd, off_t *at)
{
	struct stat st;

	*at = lseek(fd, 0, SEEK_CUR);
	return !fstat(fd, &st) && S_ISREG(st.st_mode) && *at >= st.st_size &&
	       !(fcntl(fd, F_GETFL) & O_APPEND);
}

static int check_stop(const struct stream *s, struct pgr_error *err)
{
	return atomic_load(s->stop) ? pgr_fail(err, -ECANCELED, "stopped; the copy is not whole")
				    : 0;
}

/* No more at once than a pipe takes that is said to be ready: a write that waits would not hear of Ctrl-C. */
static int put(struct stream *s, const uint8_t *data, size_t length, struct pgr_error *err)
{
	const size_t most = s->is_file ? CHUNK : PIPE_BUF;

	while (length) {
		struct pollfd p = {.fd = s->fd, .events = POLLOUT};
		size_t now = length < most ? length : most;
		ssize_t n;
		int ret = check_stop(s, err);

		if (ret)
			return ret;
		if (poll(&p, 1, -1) < 0)
			continue; /* a signal */
		n = write(s->fd, data, now);
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return pgr_fail_errno(err, -errno, "standard output cannot be written");
		data += n > 0 ? n : 0;
		length -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static int put_zeros(struct stream *s, uint64_t length, struct pgr_error *err)
{
	static const uint8_t zeros[ZEROS];
	int ret = check_stop(s, err);

	if (s->is_file)
		return !ret && lseek(s->fd, (off_t)length, SEEK_CUR) < 0
			       ? pgr_fail_errno(err, -errno, "standard output cannot be written")
			       : ret;
	while (!ret && length) {
		size_t now = length < ZEROS ? (size_t)length : ZEROS;

		ret = put(s, zeros, now, err);
		length -= now;
	}
	return ret;
}

static int put_data(struct stream *s, uint64_t at, size_t length, struct pgr_error *err)
{
	int ret = block_read(s->from, at, s->data, length, err);

	if (ret)
		return ret;
	return s->is_file && block_is_zero(s->data, length) ? put_zeros(s, length, err)
							    : put(s, s->data, length, err);
}

static int put_all(struct stream *s, struct pgr_error *err)
{
	const uint64_t size = block_info(s->from)->size, rest = -size & (BLOCK_SECTOR - 1);

	for (uint64_t at = 0; at < size;) {
		struct block_extent e;
		int ret = block_status(s->from, at, size - at, &e, err);

		if (!ret && e.flags & BLOCK_EXTENT_ZERO) {
			ret = put_zeros(s, e.length, err);
		} else if (!ret) {
			e.length = e.length < CHUNK ? e.length : CHUNK;
			ret = put_data(s, at, (size_t)e.length, err);
		}
		if (ret)
			return ret;
		at += e.length;
		disk_progress_show(&s->progress, at, size);
	}
	if (s->is_file)
		return ftruncate(s->fd, s->begin + (off_t)(size + rest))
			       ? pgr_fail_errno(err, -errno, "standard output cannot be written")
			       : 0;
	return put_zeros(s, rest, err);
}

int disk_stream(struct block *from, int fd, struct pgr_error *err)
{
	struct stream s = {.from = from,
			   .fd = fd,
			   .stop = interrupt_catch(),
			   .progress = {.next_ms = units_now_ms() + FIRST_MS},
			   .data = block_memory(CHUNK)};
	int ret;

	s.is_file = is_empty_file(fd, &s.begin);
	ret = s.data ? put_all(&s, err) : pgr_fail(err, -ENOMEM, "no memory for a buffer");
	disk_progress_end(&s.progress);
	if (ret && s.is_file && !ftruncate(fd, s.begin))
		lseek(fd, s.begin, SEEK_SET);
	free(s.data);
	return ret;
}
