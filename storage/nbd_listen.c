// SPDX-License-Identifier: MIT
/* Sockets that a server listens at. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "storage/nbd_server.h"

#define BACKLOG 64

static int fail_path(const char *path, int fd, struct pgr_error *err)
{
	int ret = pgr_fail_errno(err, -errno, "%s: cannot listen there", path);

	if (fd >= 0)
		close(fd);
	return ret;
}

/* A socket whose server has died is in the way; one with a living server is not ours to take. */
static int remove_dead(const struct sockaddr_un *a, struct pgr_error *err)
{
	struct stat st;
	bool dead;
	int fd;

	if (lstat(a->sun_path, &st))
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return pgr_fail(err, -EEXIST, "%s: is there already, and no socket", a->sun_path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail_path(a->sun_path, fd, err);
	dead = connect(fd, (const struct sockaddr *)a, sizeof(*a)) && errno == ECONNREFUSED;
	close(fd);
	if (!dead)
		return pgr_fail(err, -EADDRINUSE, "%s: another server listens there", a->sun_path);
	unlink(a->sun_path);
	return 0;
}

int nbd_listen_unix(const char *path, int *out, struct pgr_error *err)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	mode_t before;
	int fd, ret;

	if (strlen(path) >= sizeof(a.sun_path))
		return pgr_fail(err, -ENAMETOOLONG, "%s: a socket's path has at most %zu bytes",
				path, sizeof(a.sun_path) - 1);
	memcpy(a.sun_path, path, strlen(path) + 1);
	ret = remove_dead(&a, err);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return fail_path(path, fd, err);
	before = umask(0177);
	ret = bind(fd, (const struct sockaddr *)&a, sizeof(a));
	umask(before);
	if (ret || listen(fd, BACKLOG))
		return fail_path(path, fd, err);
	*out = fd;
	return 0;
}

static int listen_at(const struct addrinfo *a)
{
	static const int on = 1;
	int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -errno;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, BACKLOG)) {
		int ret = -errno;

		close(fd);
		return ret;
	}
	return fd;
}

int nbd_listen_tcp(const char *address, uint16_t *port, int *out, struct pgr_error *err)
{
	const char *host = address ? address : "127.0.0.1";
	const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct sockaddr_in6 bound = {.sin6_port = 0};
	socklen_t length = sizeof(bound);
	struct addrinfo *list;
	char service[8];
	int fd, ret;

	snprintf(service, sizeof(service), "%u", *port);
	ret = getaddrinfo(host, service, &hints, &list);
	if (ret)
		return pgr_fail(err, -EADDRNOTAVAIL, "%s: no address of this host (%s)", host,
				gai_strerror(ret));
	fd = listen_at(list);
	freeaddrinfo(list);
	if (fd < 0)
		return pgr_fail_errno(err, fd, "%s port %u: cannot listen there", host, *port);
	/* The port is in the same place in both families. */
	if (!getsockname(fd, (struct sockaddr *)&bound, &length))
		*port = ntohs(bound.sin6_port);
	*out = fd;
	return 0;
}
