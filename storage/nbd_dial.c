// SPDX-License-Identifier: MIT
#include "storage/nbd_dial.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_MS 10000

void nbd_dial_keepalive(int fd)
{
	static const struct {
		int level, name, value;
	} options[] = {
		{SOL_SOCKET, SO_KEEPALIVE, 1},		{IPPROTO_TCP, TCP_KEEPIDLE, 10},
		{IPPROTO_TCP, TCP_KEEPINTVL, 5},	{IPPROTO_TCP, TCP_KEEPCNT, 4},
		{IPPROTO_TCP, TCP_USER_TIMEOUT, 30000},
	};

	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		setsockopt(fd, options[i].level, options[i].name, &options[i].value,
			   sizeof(options[i].value));
}

static int connected(int fd, const struct sockaddr *a, socklen_t length)
{
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	int code = 0, n;
	socklen_t size = sizeof(code);

	if (!connect(fd, a, length))
		return 0;
	/* A Unix socket whose server has no room for more says EAGAIN. */
	if (errno != EINPROGRESS)
		return -errno;
	do
		n = poll(&p, 1, PATIENCE_MS);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n < 0 ? -errno : -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size))
		return -errno;
	return -code;
}

static int try_one(int family, const struct sockaddr *a, socklen_t length, int *out)
{
	int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), ret;

	if (fd < 0)
		return -errno;
	ret = connected(fd, a, length);
	if (ret)
		close(fd);
	else
		*out = fd;
	return ret;
}

static int dial_host(const struct nbd_address *a, int *out, struct pgr_error *err)
{
	static const int on = 1;
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct addrinfo *found;
	int ret = getaddrinfo(a->host, a->port, &hints, &found);

	if (ret)
		return pgr_fail(err, -EHOSTUNREACH, "%s: %s", a->host, gai_strerror(ret));
	ret = -EHOSTUNREACH;
	for (const struct addrinfo *i = found; i && ret; i = i->ai_next)
		ret = try_one(i->ai_family, i->ai_addr, i->ai_addrlen, out);
	freeaddrinfo(found);
	if (ret)
		return ret;
	nbd_dial_keepalive(*out);
	/* A small request does not wait for the answer to the one before it. */
	setsockopt(*out, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return 0;
}

static int dial_path(const struct nbd_address *a, int *out)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};

	memcpy(at.sun_path, a->path, sizeof(at.sun_path));
	return try_one(AF_UNIX, (const struct sockaddr *)&at, sizeof(at), out);
}

int nbd_dial_address(const struct nbd_address *a, const char *uri, int *out, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	int ret;

	*out = -1;
	ret = a->path[0] ? dial_path(a, out) : dial_host(a, out, &why);
	if (why.code)
		return pgr_fail(err, ret, "%s: %s", uri, why.text);
	return ret ? pgr_fail_errno(err, ret, "%s: cannot be reached", uri) : 0;
}

int nbd_dial(const char *uri, int *out, struct pgr_error *err)
{
	struct nbd_address a;
	int ret = nbd_address_parse(uri, &a, err);

	*out = -1;
	if (!ret && a.tls)
		ret = pgr_fail(err, -EOPNOTSUPP,
			       "%s: a connection with TLS cannot be made again from here", uri);
	return ret ? ret : nbd_dial_address(&a, uri, out, err);
}
