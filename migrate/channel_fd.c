/* SPDX-License-Identifier: MIT */
/*
 * A channel over a stream socket, a pipe or a terminal.
 *
 * Every call first tries the system call without blocking and only then waits, in one place, for the descriptor or for the
 * eventfd that shutdown() makes readable and nobody ever empties: so every present and future wait ends. Sockets are also
 * shut down, so that the peer learns of it at once. Sockets are used with MSG_DONTWAIT and keep their flags; a pipe or
 * terminal may be shared with other processes (standard input), so it is opened again to have an O_NONBLOCK of our own.
 */
#include "migrate/channel_fd.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/channel_io.h"

#define FD_AHEAD       (128u << 10)
#define FD_SOCK_BUFFER (1 << 20)
#define FD_PIPE_BUFFER (1 << 20)

struct channel_fd {
	struct channel c;
	int fd;
	int wake; /* eventfd, readable from shutdown() on */
	bool is_socket;
	bool restore_flags; /* O_NONBLOCK was set on a description that others may share */
	unsigned timeout_ms;
	int64_t limit_ns; /* see channel_fd_limit */
	atomic_bool cancelled;
	struct channel_ahead ahead; /* the reader's */
};

static struct channel_fd *to_fd(struct channel *c)
{
	return (struct channel_fd *)c;
}

static int fd_fail(struct channel_fd *f, int code, const char *what, struct pgr_error *err)
{
	const char *peer = f->c.peer;

	switch (code) {
	case -ECANCELED:
		return pgr_fail(err, code, "%s: %s was cancelled on this side", peer, what);
	case -ETIMEDOUT:
		return pgr_fail(
			err, code,
			"%s: %s made no progress within the limit: the other end hangs or the network is cut; check that it runs and can be reached, then retry",
			peer, what);
	case -EPIPE:
	case -ECONNRESET:
		return pgr_fail_errno(
			err, code,
			"%s: %s failed, the other end is gone; look for the reason in its log, then retry",
			peer, what);
	default:
		return pgr_fail_errno(err, code, "%s: %s failed", peer, what);
	}
}

static int fd_wait(struct channel_fd *f, short events)
{
	int64_t deadline = f->limit_ns;

	if (f->timeout_ms != CHANNEL_TIMEOUT_NONE) {
		int64_t end = channel_now_ns() + (int64_t)f->timeout_ms * 1000000;

		if (end < deadline)
			deadline = end;
	}
	return channel_wait(f->fd, events, f->wake, deadline);
}

/* What to do after a system call gave n: 0 again, or the error to return. */
static int fd_again(struct channel_fd *f, ssize_t n, short events)
{
	if (atomic_load(&f->cancelled))
		return -ECANCELED;
	if (n == -EINTR || n >= 0)
		return 0;
	if (n == -EAGAIN || n == -EWOULDBLOCK)
		return fd_wait(f, events);
	return (int)n;
}

static ssize_t fd_send(struct channel_fd *f, struct iovec *iov, unsigned nr)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = nr};
	ssize_t n;

	if (!f->is_socket)
		return channel_writev_quiet(f->fd, iov, nr);
	n = sendmsg(f->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	return n < 0 ? -errno : n;
}

static ssize_t fd_receive(struct channel_fd *f, struct iovec *iov, unsigned nr)
{
	struct msghdr msg = {.msg_iov = iov, .msg_iovlen = nr};
	ssize_t n;

	if (f->is_socket)
		n = recvmsg(f->fd, &msg, MSG_DONTWAIT);
	else
		n = readv(f->fd, iov, (int)nr);
	return n < 0 ? -errno : n;
}

static int fd_write(struct channel *c, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct channel_fd *f = to_fd(c);
	struct iovec copy[CHANNEL_IOV_MAX];
	struct iovec *next = copy;
	size_t total;
	unsigned left;
	int ret;

	ret = channel_iov_copy(copy, iov, nr, &total, err);
	if (ret < 0)
		return ret;
	left = (unsigned)ret;
	ret = atomic_load(&f->cancelled) ? -ECANCELED : 0;
	while (left > 0 && !ret) {
		ssize_t n = fd_send(f, next, left);

		if (n > 0)
			channel_iov_advance(&next, &left, (size_t)n);
		ret = fd_again(f, n, POLLOUT);
	}
	if (ret)
		return fd_fail(f, ret, "sending", err);
	channel_count(&c->written, total);
	return 0;
}

/* Bytes that nobody asked for are read ahead, unless there is room for them at data. */
static int fd_fill(struct channel_fd *f, void *data, size_t least, size_t most, size_t *got,
		   struct pgr_error *err)
{
	int ret = atomic_load(&f->cancelled) ? -ECANCELED : 0;

	if (ret)
		return fd_fail(f, ret, "receiving", err);
	*got = channel_ahead_take(&f->ahead, data, most);
	while (*got < least && !ret) {
		struct iovec iov[2];
		ssize_t n;

		channel_ahead_iov(&f->ahead, (char *)data + *got, most - *got, iov);
		n = fd_receive(f, iov, most > least ? 1 : 2);
		if (n > 0)
			*got += channel_ahead_got(&f->ahead, most - *got, (size_t)n);
		ret = fd_again(f, n, POLLIN);
		if (n == 0 && !ret) {
			if (*got == 0)
				return pgr_fail(err, -ENODATA,
						"%s: the other end closed the connection",
						f->c.peer);
			return pgr_fail(
				err, -EPIPE,
				"%s: the other end closed the connection after %zu of %zu expected bytes; look for the reason in its log, then retry",
				f->c.peer, *got, least);
		}
	}
	if (ret)
		return fd_fail(f, ret, "receiving", err);
	channel_count(&f->c.read, *got);
	return 0;
}

static int fd_read(struct channel *c, void *data, size_t length, struct pgr_error *err)
{
	size_t got;

	return fd_fill(to_fd(c), data, length, length, &got, err);
}

static int fd_sync(struct channel *c, struct pgr_error *err)
{
	(void)c;
	(void)err;
	return 0;
}

static void fd_shutdown(struct channel *c)
{
	struct channel_fd *f = to_fd(c);
	const uint64_t one = 1;
	ssize_t n;

	atomic_store(&f->cancelled, true);
	/* The counter holds 2^64 - 2 shutdowns: it cannot be full. */
	do
		n = write(f->wake, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
	if (f->is_socket)
		shutdown(f->fd, SHUT_RDWR);
}

static void fd_close(struct channel *c)
{
	struct channel_fd *f = to_fd(c);

	if (f->restore_flags)
		fcntl(f->fd, F_SETFL, fcntl(f->fd, F_GETFL) & ~O_NONBLOCK);
	close(f->fd);
	if (f->wake >= 0)
		close(f->wake);
	channel_ahead_free(&f->ahead);
	free(f);
}

static const struct channel_ops fd_ops = {
	.write = fd_write,
	.read = fd_read,
	.sync = fd_sync,
	.shutdown = fd_shutdown,
	.close = fd_close,
};

/*
 * Setting a socket's buffer by SO_SNDBUF is capped by wmem_max, and ends the kernel's own tuning, which may go higher: so only
 * the forced form, for which the daemon has the right. A Unix socket has no such tuning: there take what is given.
 */
static void fd_socket_buffer(int fd, int forced, int plain)
{
	const int size = FD_SOCK_BUFFER;
	int domain = 0;
	socklen_t len = sizeof(domain);

	if (!setsockopt(fd, SOL_SOCKET, forced, &size, sizeof(size)))
		return;
	if (!getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) && domain == AF_UNIX)
		setsockopt(fd, SOL_SOCKET, plain, &size, sizeof(size));
}

static void fd_tune_socket(int fd)
{
	const int on = 1;

	fd_socket_buffer(fd, SO_SNDBUFFORCE, SO_SNDBUF);
	fd_socket_buffer(fd, SO_RCVBUFFORCE, SO_RCVBUF);
	/* Fails on what is not TCP, which has no such delay. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* Give f a descriptor that does not block; the one it had is closed when it is replaced. */
static int fd_unblock(struct channel_fd *f)
{
	int flags = fcntl(f->fd, F_GETFL);
	char path[32];
	int own;

	if (flags < 0)
		return -errno;
	if (flags & O_NONBLOCK)
		return 0;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", f->fd);
	own = open(path, (flags & O_ACCMODE) | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (own >= 0) {
		close(f->fd);
		f->fd = own;
		return 0;
	}
	/* No /proc, or a kind that cannot be opened again: borrow the shared flag and give it back in close(). */
	if (fcntl(f->fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	f->restore_flags = true;
	return 0;
}

int channel_from_fd(int fd, unsigned timeout_ms, const char *peer, struct channel **out,
		    struct pgr_error *err)
{
	struct channel_fd *f = calloc(1, sizeof(*f));
	struct stat st;
	int type = 0;
	socklen_t len = sizeof(type);
	int ret;

	*out = NULL;
	if (!f) {
		if (fd >= 0)
			close(fd);
		return pgr_fail(err, -ENOMEM, "%s: no memory for a channel", peer);
	}
	f->c.ops = &fd_ops;
	f->fd = fd;
	f->wake = -1;
	f->timeout_ms = timeout_ms;
	f->limit_ns = INT64_MAX;
	channel_name(&f->c, "", peer);
	ret = fstat(fd, &st) ? -errno : 0;
	if (ret) {
		f->fd = -1;
		goto out;
	}
	f->is_socket = S_ISSOCK(st.st_mode);
	if (f->is_socket) {
		/* Datagrams would be cut silently. */
		if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) || type != SOCK_STREAM) {
			ret = -EPROTOTYPE;
			goto out;
		}
		fd_tune_socket(fd);
	} else if (!S_ISREG(st.st_mode)) {
		/* (A regular file never blocks, and opened again it would lose its position.) */
		ret = fd_unblock(f);
		if (ret)
			goto out;
		if (S_ISFIFO(st.st_mode))
			fcntl(f->fd, F_SETPIPE_SZ, FD_PIPE_BUFFER);
	}
	f->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ret = f->wake < 0 ? -errno : channel_ahead_init(&f->ahead, FD_AHEAD);
	if (!ret)
		*out = &f->c;
out:
	if (ret) {
		pgr_fail_errno(err, ret, "%s: descriptor %d cannot be made a channel", f->c.peer,
			       fd);
		fd_close(&f->c);
	}
	return ret;
}

int channel_fd_read_some(struct channel *c, void *data, size_t least, size_t most, size_t *got,
			 struct pgr_error *err)
{
	if (c->ops == &fd_ops)
		return fd_fill(to_fd(c), data, least, most, got, err);
	*got = least;
	return c->ops->read(c, data, least, err);
}

void channel_fd_limit(struct channel *c, unsigned ms)
{
	struct channel_fd *f = to_fd(c);

	if (c->ops != &fd_ops)
		return;
	if (f->timeout_ms != CHANNEL_TIMEOUT_NONE && ms > f->timeout_ms)
		ms = f->timeout_ms;
	f->limit_ns = ms ? channel_now_ns() + (int64_t)ms * 1000000 : INT64_MAX;
}

void channel_fd_linger(struct channel *c, unsigned ms)
{
	struct channel_fd *f = to_fd(c);
	int64_t end = channel_now_ns() + (int64_t)ms * 1000000;

	if (c->ops != &fd_ops || !f->is_socket || shutdown(f->fd, SHUT_WR))
		return;
	for (;;) {
		struct iovec iov[2];
		ssize_t n;

		channel_ahead_iov(&f->ahead, NULL, 0, iov);
		n = fd_receive(f, iov + 1, 1);
		/* The deadline is looked at also while bytes keep coming. */
		if (n > 0 && channel_now_ns() < end)
			continue;
		if (n != -EAGAIN || channel_wait(f->fd, POLLIN, f->wake, end))
			break;
	}
}
