// SPDX-License-Identifier: MIT
#include "storage/nbd_dial.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PATIENCE_MS 10000
#define PORT	    "10809"
#define HOST_MAX    256u

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

static int not_an_address(const char *uri, struct pgr_error *err)
{
	return pgr_fail(
		err, -EINVAL,
		"%s: not the address of a server: nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH",
		uri);
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

/* ---- by TCP ---- */

/* Host and port of "HOST:PORT/..." or "[HOST]:PORT/...". */
static bool split(const char *at, char host[HOST_MAX], char port[8])
{
	const char *end = at + strcspn(at, "/?#"), *colon, *stop;

	/* What is in front of it would be a user's name, which NBD does not know. */
	if (memchr(at, '@', (size_t)(end - at)))
		return false;
	if (*at == '[') {
		at++;
		stop = memchr(at, ']', (size_t)(end - at));
		colon = stop ? stop + 1 : end;
	} else {
		colon = memchr(at, ':', (size_t)(end - at));
		colon = stop = colon ? colon : end;
	}
	if (!stop || stop == at || (size_t)(stop - at) >= HOST_MAX ||
	    (colon != end && (*colon != ':' || end - colon > 6)))
		return false;
	memcpy(host, at, (size_t)(stop - at));
	host[stop - at] = '\0';
	snprintf(port, 8, "%s", PORT);
	if (colon != end && end - colon > 1) {
		memcpy(port, colon + 1, (size_t)(end - colon) - 1);
		port[end - colon - 1] = '\0';
	}
	return true;
}

static int dial_host(const char *uri, const char *at, int *out, struct pgr_error *err)
{
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct addrinfo *found, *a;
	char host[HOST_MAX], port[8];
	int ret;

	if (!split(at, host, port))
		return not_an_address(uri, err);
	ret = getaddrinfo(host, port, &hints, &found);
	if (ret)
		return pgr_fail(err, -EHOSTUNREACH, "%s: %s: %s", uri, host, gai_strerror(ret));
	ret = -EHOSTUNREACH;
	for (a = found; a && ret; a = a->ai_next)
		ret = try_one(a->ai_family, a->ai_addr, a->ai_addrlen, out);
	freeaddrinfo(found);
	if (ret)
		return pgr_fail_errno(err, ret, "%s: cannot be reached", uri);
	nbd_dial_keepalive(*out);
	return 0;
}

/* ---- by a Unix socket ---- */

static int nibble(char c)
{
	const char *digits = "0123456789abcdef", *at = c ? strchr(digits, c | 0x20) : NULL;

	return at ? (int)(at - digits) : -1;
}

/* The letters until the end of this part of the address; false: too many, or an escape that is none. */
static bool unescape(const char *at, char *to, size_t room)
{
	for (; *at && *at != '&' && *at != ';' && *at != '#'; at++) {
		int high, low;

		if (room-- <= 1)
			return false;
		if (*at != '%') {
			*to++ = *at;
			continue;
		}
		high = nibble(at[1]);
		low = high < 0 ? -1 : nibble(at[2]);
		if (low < 0 || !(high | low))
			return false;
		*to++ = (char)(high << 4 | low);
		at += 2;
	}
	*to = '\0';
	return true;
}

static int dial_unix(const char *uri, int *out, struct pgr_error *err)
{
	static const char word[] = "socket=";
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const char *at = strchr(uri, '?');
	int ret;

	while (at && strncmp(at + 1, word, sizeof(word) - 1) != 0)
		at = strpbrk(at + 1, "&;");
	if (!at || !unescape(at + sizeof(word), a.sun_path, sizeof(a.sun_path)) || !a.sun_path[0])
		return not_an_address(uri, err);
	ret = try_one(AF_UNIX, (const struct sockaddr *)&a, sizeof(a), out);
	return ret ? pgr_fail_errno(err, ret, "%s: cannot be reached", uri) : 0;
}

int nbd_dial(const char *uri, int *out, struct pgr_error *err)
{
	static const char tcp[] = "nbd://", local[] = "nbd+unix://";

	*out = -1;
	if (!strncmp(uri, "nbds", 4))
		return pgr_fail(err, -EOPNOTSUPP,
				"%s: a connection with TLS cannot be made again from here", uri);
	if (!strncmp(uri, tcp, sizeof(tcp) - 1))
		return dial_host(uri, uri + sizeof(tcp) - 1, out, err);
	if (!strncmp(uri, local, sizeof(local) - 1))
		return dial_unix(uri, out, err);
	return not_an_address(uri, err);
}
