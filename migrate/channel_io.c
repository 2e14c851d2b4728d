/* SPDX-License-Identifier: MIT */
#include "migrate/channel_io.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/channel.h"

int64_t channel_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int channel_wait(int fd, short events, int cancel_fd, int64_t deadline_ns)
{
	/* poll(2) ignores a negative descriptor. */
	struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = cancel_fd, .events = POLLIN}};

	for (;;) {
		struct timespec left = {0};
		int n;

		if (deadline_ns != INT64_MAX) {
			int64_t ns = deadline_ns - channel_now_ns();

			if (ns < 0)
				ns = 0;
			left.tv_sec = ns / 1000000000;
			left.tv_nsec = ns % 1000000000;
		}
		n = ppoll(p, 2, deadline_ns == INT64_MAX ? NULL : &left, NULL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -ETIMEDOUT;
		return p[1].revents ? -ECANCELED : 0;
	}
}

/* Take the signal away if the call just made raised it, that is, if it was not pending before. */
static void swallow(const sigset_t *pending_before, int sig)
{
	const struct timespec now = {0};
	sigset_t set;

	if (sigismember(pending_before, sig))
		return;
	sigemptyset(&set);
	sigaddset(&set, sig);
	while (sigtimedwait(&set, NULL, &now) < 0 && errno == EINTR)
		;
}

ssize_t channel_writev_quiet(int fd, const struct iovec *iov, unsigned nr)
{
	sigset_t block;
	sigset_t old;
	sigset_t pending;
	ssize_t n;

	/* A process-wide SIG_IGN would be a decision of the program, not of a library; a mask is the thread's own. */
	sigemptyset(&block);
	sigaddset(&block, SIGPIPE);
	sigaddset(&block, SIGXFSZ);
	sigpending(&pending);
	pthread_sigmask(SIG_BLOCK, &block, &old);
	n = writev(fd, iov, (int)nr);
	if (n < 0)
		n = -errno;
	if (n == -EPIPE)
		swallow(&pending, SIGPIPE);
	if (n == -EFBIG)
		swallow(&pending, SIGXFSZ);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return n;
}

int channel_iov_copy(struct iovec copy[CHANNEL_IOV_MAX], const struct iovec *iov, unsigned nr,
		     size_t *total, struct pgr_error *err)
{
	int n = 0;

	*total = 0;
	if (nr > CHANNEL_IOV_MAX)
		return pgr_fail(err, -EINVAL, "a write of %u pieces, at most %u are allowed", nr,
				CHANNEL_IOV_MAX);
	for (unsigned i = 0; i < nr; i++) {
		if (iov[i].iov_len == 0)
			continue;
		copy[n++] = iov[i];
		*total += iov[i].iov_len;
	}
	return n;
}

void channel_iov_advance(struct iovec **iov, unsigned *nr, size_t n)
{
	while (*nr > 0 && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*nr)--;
	}
	if (n > 0 && *nr > 0) {
		(*iov)->iov_base = (char *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

int channel_ahead_init(struct channel_ahead *a, size_t size)
{
	*a = (struct channel_ahead){.base = malloc(size), .size = size};
	return a->base ? 0 : -ENOMEM;
}

void channel_ahead_free(struct channel_ahead *a)
{
	free(a->base);
	a->base = NULL;
}

size_t channel_ahead_take(struct channel_ahead *a, void *data, size_t length)
{
	size_t n = a->end - a->start;

	if (n > length)
		n = length;
	if (n > 0)
		memcpy(data, a->base + a->start, n);
	a->start += n;
	return n;
}

void channel_ahead_iov(struct channel_ahead *a, void *data, size_t length, struct iovec iov[2])
{
	a->start = 0;
	a->end = 0;
	iov[0] = (struct iovec){.iov_base = data, .iov_len = length};
	iov[1] = (struct iovec){.iov_base = a->base, .iov_len = a->size};
}

size_t channel_ahead_got(struct channel_ahead *a, size_t length, size_t n)
{
	if (n <= length)
		return n;
	a->end = n - length;
	return length;
}

void channel_name(struct channel *c, const char *prefix, const char *name)
{
	snprintf(c->peer, sizeof(c->peer), "%s%s", prefix, name);
	for (char *p = c->peer; *p; p++) {
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
	}
}

void channel_count(uint64_t *counter, uint64_t n)
{
	__atomic_store_n(counter, *counter + n, __ATOMIC_RELAXED);
}
