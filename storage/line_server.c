// SPDX-License-Identifier: MIT
#include "storage/line_server.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/passed.h"
#include "storage/fiber.h"

struct line_client {
	struct loop_watch watch;
	struct line_server *server;
	bool used, running; /* running: a fiber has it */
	int passed;	    /* a descriptor that came along and was not taken yet; -1: none */
	atomic_bool gone;
	size_t have;
	char line[LINE_SERVER_LENGTH + 1];
};

struct line_server {
	struct loop *loop;
	struct loop_watch listener;
	void (*line)(void *ctx, struct line_client *c, char *line);
	void *ctx;
	char *greeting;
	bool objects;
	char path[sizeof(((struct sockaddr_un *)NULL)->sun_path)];
	unsigned running;
	struct wait_queue idle;
	struct line_client client[LINE_SERVER_CLIENTS];
};

static void drop_passed(struct line_client *c)
{
	if (c->passed >= 0)
		close(c->passed);
	c->passed = -1;
}

/* The place is free again when nobody uses it any more. */
static void hang_up(struct line_client *c)
{
	drop_passed(c);
	atomic_store(&c->gone, true);
	if (c->watch.fd >= 0) {
		loop_unwatch(c->server->loop, &c->watch);
		close(c->watch.fd);
		c->watch.fd = -1;
	}
	if (!c->running)
		c->used = false;
}

void line_put(struct line_client *c, const char *text)
{
	size_t length = strlen(text);

	if (c->watch.fd >= 0 &&
	    send(c->watch.fd, text, length, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)length)
		hang_up(c);
}

void line_end(struct line_client *c)
{
	hang_up(c);
}

int line_take_descriptor(struct line_client *c)
{
	int fd = c->passed;

	c->passed = -1;
	return fd;
}

const atomic_bool *line_gone(const struct line_client *c)
{
	return &c->gone;
}

/* Where a JSON object ends; 0: not here yet, or it is none. */
static size_t object_length(const char *text, size_t have)
{
	bool quoted = false;
	unsigned depth = 0;

	for (size_t i = 0; i < have; i++) {
		char c = text[i];

		if (quoted && c == '\\')
			i++;
		else if (c == '"')
			quoted = !quoted;
		else if (!quoted && c == '{')
			depth++;
		else if (!quoted && c == '}' && depth && --depth == 0)
			return i + 1;
		else if (c == '\n' && !depth)
			return 0;
	}
	return 0;
}

/* Of the first line that is whole, with its end; 0: there is none. */
static size_t line_length(const struct line_client *c)
{
	const char *end = memchr(c->line, '\n', c->have);
	size_t length = c->server->objects ? object_length(c->line, c->have) : 0;

	if (!length && end)
		length = (size_t)(end + 1 - c->line);
	return length;
}

static bool is_blank(const char *text)
{
	return text[strspn(text, " \t\r")] == '\0';
}

/* All lines that are there, and that come meanwhile. */
static void run_lines(void *ctx)
{
	struct line_client *c = ctx;
	struct line_server *s = c->server;
	size_t used;

	while (!atomic_load(&c->gone) && (used = line_length(c))) {
		char *line = strndup(c->line, used - (c->line[used - 1] == '\n'));

		c->have -= used;
		memmove(c->line, c->line + used, c->have);
		if (!line)
			hang_up(c);
		else if (!s->objects || !is_blank(line))
			s->line(s->ctx, c, line);
		free(line);
	}
	c->running = false;
	if (atomic_load(&c->gone))
		c->used = false;
	else if (c->have == LINE_SERVER_LENGTH)
		hang_up(c);
	else
		loop_rewatch(s->loop, &c->watch, EPOLLIN | EPOLLRDHUP);
	if (--s->running == 0)
		wait_queue_wake_all(&s->idle);
}

static void start_lines(struct line_client *c)
{
	c->running = true;
	c->server->running++;
	/* Until it is done only the end of the connection is of interest. */
	loop_rewatch(c->server->loop, &c->watch, EPOLLRDHUP);
	if (fiber_start(c->server->loop, run_lines, c) == 0)
		return;
	c->running = false;
	c->server->running--;
	hang_up(c);
}

/* What came, and the last descriptor that came along. */
static ssize_t receive(struct line_client *c)
{
	struct iovec iov = {.iov_base = c->line + c->have, .iov_len = LINE_SERVER_LENGTH - c->have};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	struct passed room;
	ssize_t n;
	int fd;

	passed_expect(&h, &room);
	n = recvmsg(c->watch.fd, &h, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	fd = n > 0 ? passed_take(&h) : -1;
	if (fd >= 0) {
		drop_passed(c);
		c->passed = fd;
	}
	return n;
}

static void on_line(struct loop_watch *w, uint32_t events)
{
	struct line_client *c =
		(struct line_client *)((char *)w - offsetof(struct line_client, watch));
	ssize_t n;

	if (c->running) {
		if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
			hang_up(c);
		return;
	}
	/* Whoever has gone does not want any more what he asked for while nobody listened. */
	if (events & (EPOLLHUP | EPOLLERR)) {
		hang_up(c);
		return;
	}
	n = receive(c);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	c->have += n > 0 ? (size_t)n : 0;
	if (n <= 0)
		hang_up(c);
	else if (line_length(c))
		start_lines(c);
	else if (c->have == LINE_SERVER_LENGTH)
		hang_up(c);
}

static bool may_connect(int fd)
{
	struct ucred who;
	socklen_t length = sizeof(who);

	return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) &&
	       (!who.uid || who.uid == geteuid());
}

static void on_connect(struct loop_watch *w, uint32_t events)
{
	struct line_server *s =
		(struct line_server *)((char *)w - offsetof(struct line_server, listener));
	int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC);
	struct line_client *c = s->client;

	(void)events;
	if (fd < 0)
		return;
	while (c < s->client + LINE_SERVER_CLIENTS && c->used)
		c++;
	if (c == s->client + LINE_SERVER_CLIENTS || !may_connect(fd)) {
		close(fd);
		return;
	}
	c->watch = (struct loop_watch){.fd = fd, .ready = on_line};
	c->server = s;
	c->have = 0;
	c->passed = -1;
	atomic_store(&c->gone, false);
	c->used = true;
	if (loop_watch(s->loop, &c->watch, EPOLLIN | EPOLLRDHUP, NULL)) {
		close(fd);
		c->used = false;
	} else if (s->greeting) {
		line_put(c, s->greeting);
	}
}

static int bind_to(const char *path, struct pgr_error *err)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	int fd, ret;

	if (strlen(path) >= sizeof(at.sun_path))
		return pgr_fail(err, -ENAMETOOLONG, "%s: too long for a socket", path);
	snprintf(at.sun_path, sizeof(at.sun_path), "%s", path);
	unlink(path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&at, sizeof(at)) && !chmod(path, 0600) &&
	    !listen(fd, LINE_SERVER_CLIENTS))
		return fd;
	ret = pgr_fail_errno(err, -errno, "%s: cannot listen there", path);
	if (fd >= 0)
		close(fd);
	return ret;
}

int line_server_start(struct loop *l, const struct line_server_options *o, struct line_server **out,
		      struct pgr_error *err)
{
	struct line_server *s = calloc(1, sizeof(*s));
	int ret;

	if (!s || (o->greeting && !(s->greeting = strdup(o->greeting)))) {
		free(s);
		return pgr_fail(err, -ENOMEM, "no memory for %s", o->path);
	}
	s->loop = l;
	s->line = o->line;
	s->ctx = o->ctx;
	s->objects = o->objects;
	for (unsigned i = 0; i < LINE_SERVER_CLIENTS; i++)
		s->client[i].watch.fd = s->client[i].passed = -1;
	ret = bind_to(o->path, err);
	if (ret >= 0) {
		s->listener = (struct loop_watch){.fd = ret, .ready = on_connect};
		snprintf(s->path, sizeof(s->path), "%s", o->path);
		ret = loop_watch(l, &s->listener, EPOLLIN, err);
		if (ret)
			close(s->listener.fd);
	}
	if (ret) {
		free(s->greeting);
		free(s);
		return ret;
	}
	*out = s;
	return 0;
}

void line_server_stop(struct line_server *s)
{
	if (!s)
		return;
	loop_unwatch(s->loop, &s->listener);
	close(s->listener.fd);
	unlink(s->path);
	for (unsigned i = 0; i < LINE_SERVER_CLIENTS; i++)
		if (s->client[i].used)
			hang_up(&s->client[i]);
	while (s->running)
		wait_queue_join(&s->idle, s->loop);
	free(s->greeting);
	free(s);
}
