/* SPDX-License-Identifier: MIT */
/*
 * TCP: finding and connecting a peer, and listening. What is connected becomes a channel with channel_from_fd().
 *
 * getaddrinfo() can neither be interrupted nor given a limit, so a name (not an address) is looked up by a thread of its own,
 * which the caller may leave behind: the last of the two frees what they share.
 */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <fcntl.h>
#include <unistd.h>

#include "migrate/channel.h"
#include "migrate/channel_io.h"

/* A dead link is noticed 15 + 6 * 5 = 45 s after the last sign of life, so that a cut of some seconds is not. */
#define TCP_IDLE_S     15
#define TCP_INTERVAL_S 5
#define TCP_PROBES     6

#define TCP_BACKLOG    64
#define TCP_PORT_TRIES 16
#define TCP_LISTEN_MAX 4

struct lookup {
	atomic_int owners;
	int done; /* eventfd */
	int status;
	char *host;
	char port[8];
	struct addrinfo *list;
};

static void lookup_put(struct lookup *l)
{
	if (atomic_fetch_sub(&l->owners, 1) > 1)
		return;
	if (l->list)
		freeaddrinfo(l->list);
	if (l->done >= 0)
		close(l->done);
	free(l->host);
	free(l);
}

static int tcp_getaddrinfo(const char *host, const char *port, int flags, struct addrinfo **list)
{
	const struct addrinfo hints = {
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = flags | AI_NUMERICSERV,
	};

	return getaddrinfo(host, port, &hints, list);
}

static void *lookup_thread(void *arg)
{
	struct lookup *l = arg;

	l->status = tcp_getaddrinfo(l->host, l->port, 0, &l->list);
	eventfd_write(l->done, 1);
	lookup_put(l);
	return NULL;
}

static int tcp_fail_lookup(const char *host, int status, struct pgr_error *err)
{
	return pgr_fail(err, status == EAI_MEMORY ? -ENOMEM : -EADDRNOTAVAIL,
			"%s: no such host (%s); check the name, or give its address", host,
			gai_strerror(status));
}

/* Look up a name with a limit. The caller has the result until lookup_put(). */
static int tcp_lookup(const char *host, const char *port, int cancel_fd, int64_t deadline_ns,
		      struct lookup **out, struct pgr_error *err)
{
	struct lookup *l = calloc(1, sizeof(*l));
	pthread_t thread;
	eventfd_t answered;
	int ret;

	*out = NULL;
	if (!l)
		return pgr_fail(err, -ENOMEM, "%s: no memory to look it up", host);
	atomic_init(&l->owners, 1);
	snprintf(l->port, sizeof(l->port), "%s", port);
	l->done = eventfd(0, EFD_CLOEXEC);
	l->host = strdup(host);
	if (l->done < 0 || !l->host) {
		ret = pgr_fail(err, -ENOMEM, "%s: cannot be looked up here", host);
		goto out;
	}
	/* An address needs nobody's answer. */
	ret = tcp_getaddrinfo(host, port, AI_NUMERICHOST, &l->list);
	if (ret == 0)
		goto out;
	atomic_store(&l->owners, 2);
	ret = -pthread_create(&thread, NULL, lookup_thread, l);
	if (ret) {
		atomic_store(&l->owners, 1);
		pgr_fail_errno(err, ret, "%s: no thread to look it up", host);
		goto out;
	}
	pthread_detach(thread);
	ret = channel_wait(l->done, POLLIN, cancel_fd, deadline_ns);
	/* Reading it is what orders the thread's stores before our loads. */
	if (!ret && eventfd_read(l->done, &answered))
		ret = -errno;
	if (ret)
		pgr_fail_errno(
			err, ret,
			"%s: looking up its address; check the name service, or give its address",
			host);
	else if (l->status)
		ret = tcp_fail_lookup(host, l->status, err);
out:
	if (ret)
		lookup_put(l);
	else
		*out = l;
	return ret;
}

/* Best effort: a socket without these works too, it only notices a dead peer later. */
static void tcp_keepalive(int fd)
{
	const int on = 1;
	const int idle = TCP_IDLE_S;
	const int interval = TCP_INTERVAL_S;
	const int probes = TCP_PROBES;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

/* Connect to one address; a descriptor (blocking, as a fresh socket) or a negative errno. */
static int tcp_connect_one(const struct addrinfo *ai, int cancel_fd, int64_t deadline_ns)
{
	int error = 0;
	socklen_t len = sizeof(error);
	int ret;
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, ai->ai_protocol);

	if (fd < 0)
		return -errno;
	tcp_keepalive(fd);
	ret = connect(fd, ai->ai_addr, ai->ai_addrlen) ? -errno : 0;
	/* An interrupted connect goes on by itself. */
	if (ret == -EINPROGRESS || ret == -EINTR) {
		ret = channel_wait(fd, POLLOUT, cancel_fd, deadline_ns);
		if (!ret && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len))
			error = errno;
		if (!ret)
			ret = -error;
	}
	if (!ret && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK))
		ret = -errno;
	if (ret)
		close(fd);
	return ret ? ret : fd;
}

int channel_tcp_connect(const char *host, uint16_t port, unsigned timeout_ms, int cancel_fd,
			int *out_fd, struct pgr_error *err)
{
	int64_t deadline = INT64_MAX;
	struct lookup *l;
	char text[8];
	int left = 0;
	int ret;

	*out_fd = -1;
	if (timeout_ms != CHANNEL_TIMEOUT_NONE)
		deadline = channel_now_ns() + (int64_t)timeout_ms * 1000000;
	snprintf(text, sizeof(text), "%u", port);
	ret = tcp_lookup(host, text, cancel_fd, deadline, &l, err);
	if (ret)
		return ret;
	for (struct addrinfo *ai = l->list; ai; ai = ai->ai_next)
		left++;
	ret = -EADDRNOTAVAIL;
	for (struct addrinfo *ai = l->list; ai && *out_fd < 0; ai = ai->ai_next, left--) {
		int64_t now = channel_now_ns();
		int64_t end = deadline;

		/* An address that does not answer must leave time for the next ones. */
		if (deadline != INT64_MAX)
			end = now + (deadline - now) / left;
		ret = tcp_connect_one(ai, cancel_fd, end);
		if (ret >= 0)
			*out_fd = ret;
		if (ret == -ECANCELED)
			break;
	}
	lookup_put(l);
	if (*out_fd >= 0)
		return 0;
	if (ret == -ECANCELED)
		return pgr_fail(err, ret, "%s:%u: connecting was cancelled", host, port);
	if (ret == -ECONNREFUSED)
		return pgr_fail(
			err, ret,
			"%s:%u: connection refused: nothing listens there; start `pagurus daemon` on that host, then retry",
			host, port);
	return pgr_fail_errno(
		err, ret,
		"%s:%u: cannot connect; check that the host runs and that no firewall is between",
		host, port);
}

static int tcp_listen_one(const struct addrinfo *ai, uint16_t *port)
{
	struct sockaddr_storage addr;
	socklen_t len = ai->ai_addrlen;
	const int on = 1;
	int ret = 0;
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, ai->ai_protocol);

	if (fd < 0)
		return -errno;
	memcpy(&addr, ai->ai_addr, len);
	/* sin_port and sin6_port are at the same place, but saying which is free. */
	if (ai->ai_family == AF_INET6)
		((struct sockaddr_in6 *)&addr)->sin6_port = htons(*port);
	else
		((struct sockaddr_in *)&addr)->sin_port = htons(*port);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (ai->ai_family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)))
		ret = -errno;
	if (!ret && (bind(fd, (struct sockaddr *)&addr, len) || listen(fd, TCP_BACKLOG)))
		ret = -errno;
	len = sizeof(addr);
	if (!ret && getsockname(fd, (struct sockaddr *)&addr, &len))
		ret = -errno;
	if (ret) {
		close(fd);
		return ret;
	}
	*port = ntohs(ai->ai_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
						: ((struct sockaddr_in *)&addr)->sin_port);
	return fd;
}

/* Listen on every address of the list with one port; how many, or the first error. */
static int tcp_listen_all(const struct addrinfo *list, uint16_t *port, int fds[TCP_LISTEN_MAX])
{
	int nr = 0;
	int ret = -EADDRNOTAVAIL;

	for (const struct addrinfo *ai = list; ai && nr < TCP_LISTEN_MAX; ai = ai->ai_next) {
		if (ai->ai_family != AF_INET && ai->ai_family != AF_INET6)
			continue;
		ret = tcp_listen_one(ai, port);
		if (ret >= 0)
			fds[nr++] = ret;
		/* A kernel without one family is served by the other. */
		else if (ret != -EAFNOSUPPORT && ret != -EADDRNOTAVAIL)
			break;
		else
			ret = nr ? nr : ret;
	}
	if (nr > 0 && ret >= 0)
		return nr;
	while (nr > 0)
		close(fds[--nr]);
	return ret;
}

int channel_tcp_listen(const char *host, uint16_t *port, int fds[TCP_LISTEN_MAX],
		       struct pgr_error *err)
{
	struct addrinfo *list = NULL;
	const char *shown = host ? host : "any address";
	const uint16_t wanted = *port;
	int ret;

	ret = tcp_getaddrinfo(host, "0", AI_PASSIVE, &list);
	if (ret)
		return tcp_fail_lookup(shown, ret, err);
	for (int i = 0; i < TCP_PORT_TRIES; i++) {
		*port = wanted;
		ret = tcp_listen_all(list, port, fds);
		/* A port that was free for one address may be taken for the other. */
		if (ret != -EADDRINUSE || wanted)
			break;
	}
	freeaddrinfo(list);
	if (ret >= 0)
		return ret;
	*port = wanted;
	if (ret == -EADDRINUSE)
		return pgr_fail_errno(
			err, ret,
			"%s: port %u cannot be listened on; stop the program that has it (`ss -ltnp`), or choose another port",
			shown, wanted);
	return pgr_fail_errno(err, ret, "%s: port %u cannot be listened on", shown, wanted);
}
