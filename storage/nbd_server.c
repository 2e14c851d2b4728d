// SPDX-License-Identifier: MIT
/*
 * Who comes and who goes.
 *
 * Each connection is a fiber that shakes hands, transmits, and frees it. When all places are taken, or the process has no more descriptors, nobody is
 * accepted until one has gone, or for a moment; who waits is in the kernel's queue and costs nothing here.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/text.h"
#include "storage/nbd_internal.h"

#define REST_NS	      (500u * 1000000ull)
#define ACCEPT_A_TURN 16

void nbd_log(const struct nbd_connection *c, const char *fmt, ...)
{
	const struct nbd_options *o = &c->server->o;
	char text[400], line[500];
	va_list args;

	if (!o->log)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	snprintf(line, sizeof(line), "connection %u%s%s: %s", c->number, c->peer[0] ? " of " : "",
		 c->peer, text);
	text_plain(line, sizeof(line), line, strlen(line));
	o->log(o->log_ctx, line);
}

/* ---- exports ---- */

const struct nbd_exported *nbd_find_export(const struct nbd_server *s, const char *name,
					   size_t length)
{
	const struct nbd_exported *e = s->exports;

	if (!length && e && !e->next)
		return e;
	for (; e; e = e->next)
		if (strlen(e->e.name) == length && !memcmp(e->e.name, name, length))
			return e;
	return NULL;
}

uint16_t nbd_export_flags(const struct nbd_exported *e)
{
	uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN |
			 NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA;

	if (e->e.read_only || block_info(e->e.disk)->read_only)
		return flags | NBD_FLAG_READ_ONLY;
	return flags | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
}

static void export_free(struct nbd_exported *e)
{
	free((void *)e->e.name);
	free((void *)e->e.description);
	free((void *)e->e.dirty_name);
	free(e);
}

int nbd_server_export(struct nbd_server *s, const struct nbd_export *e, struct pgr_error *err)
{
	struct nbd_exported **at = &s->exports, *new;

	if (strlen(e->name) > NBD_NAME_MAX ||
	    (e->description && strlen(e->description) > NBD_NAME_MAX))
		return pgr_fail(err, -EINVAL, "the name of an export has at most %u bytes",
				NBD_NAME_MAX);
	for (; *at; at = &(*at)->next)
		if (!strcmp((*at)->e.name, e->name))
			return pgr_fail(err, -EEXIST,
					"two exports of the name \"%s\"; choose another for one",
					e->name);
	new = calloc(1, sizeof(*new));
	if (!new)
		return pgr_fail(err, -ENOMEM, "no memory for an export");
	new->e = *e;
	new->e.name = strdup(e->name);
	new->e.description = e->description ? strdup(e->description) : NULL;
	new->e.dirty_name = e->dirty_name ? strdup(e->dirty_name) : NULL;
	if (!new->e.name || (e->description && !new->e.description) ||
	    (e->dirty_name && !new->e.dirty_name)) {
		export_free(new);
		return pgr_fail(err, -ENOMEM, "no memory for an export");
	}
	*at = new;
	return 0;
}

/* ---- connections ---- */

static void rest(struct nbd_server *s, bool resting)
{
	if (s->resting == resting)
		return;
	s->resting = resting;
	for (struct nbd_listener *k = s->listeners; k; k = k->next)
		loop_rewatch(s->loop, &k->watch, resting ? 0 : EPOLLIN);
}

static void rested(struct loop_timer *t)
{
	struct nbd_server *s = (struct nbd_server *)((char *)t - offsetof(struct nbd_server, rest));

	rest(s, s->nr_connections >= s->o.max_connections);
}

static void connection_run(void *ctx)
{
	struct nbd_connection *c = ctx;
	struct nbd_server *s = c->server;

	if (!nbd_handshake(c)) {
		nbd_log(c, "uses \"%s\"%s", c->export->e.name, c->stream.ssl ? " through TLS" : "");
		nbd_transmit(c);
		nbd_log(c, "has ended");
	}
	nbd_stream_close(&c->stream);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	free(c);
	s->nr_connections--;
	if (!s->rest.link)
		rest(s, false);
	wait_queue_wake_all(&s->gone);
}

int nbd_server_accept(struct nbd_server *s, int fd, struct pgr_error *err)
{
	static const int on = 1;
	struct nbd_connection *c = calloc(1, sizeof(*c));
	int ret;

	if (!c) {
		close(fd);
		return pgr_fail(err, -ENOMEM, "no memory for a connection");
	}
	/* They fail where they mean nothing. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	c->server = s;
	c->number = ++s->last_number;
	ret = nbd_stream_open(&c->stream, s->loop, fd, err);
	if (ret) {
		free(c);
		return ret;
	}
	c->next = s->connections;
	if (c->next)
		c->next->link = &c->next;
	c->link = &s->connections;
	s->connections = c;
	s->nr_connections++;
	if (!fiber_start(s->loop, connection_run, c))
		return 0;
	loop_unwatch(s->loop, &c->stream.watch);
	close(fd);
	s->connections = c->next;
	if (c->next)
		c->next->link = &s->connections;
	s->nr_connections--;
	free(c);
	return pgr_fail(err, -ENOMEM, "no memory for a connection");
}

unsigned nbd_server_connections(const struct nbd_server *s)
{
	return s->nr_connections;
}

/* ---- listening ---- */

static void on_knock(struct loop_watch *w, uint32_t events)
{
	struct nbd_listener *k =
		(struct nbd_listener *)((char *)w - offsetof(struct nbd_listener, watch));
	struct nbd_server *s = k->server;

	(void)events;
	for (int i = 0; i < ACCEPT_A_TURN && !s->resting; i++) {
		int fd = accept4(w->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0 && (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED))
			return;
		if (fd < 0 || nbd_server_accept(s, fd, NULL)) {
			/* No descriptors or no memory, now. */
			rest(s, true);
			loop_arm(s->loop, &s->rest, loop_now_ns() + REST_NS);
		} else if (s->nr_connections >= s->o.max_connections) {
			rest(s, true);
		}
	}
}

int nbd_server_listen(struct nbd_server *s, int fd, struct pgr_error *err)
{
	struct nbd_listener *k = calloc(1, sizeof(*k));
	int ret;

	if (!k) {
		close(fd);
		return pgr_fail(err, -ENOMEM, "no memory to listen");
	}
	k->server = s;
	k->watch = (struct loop_watch){.fd = fd, .ready = on_knock};
	ret = loop_watch(s->loop, &k->watch, s->resting ? 0 : EPOLLIN, err);
	if (ret) {
		close(fd);
		free(k);
		return ret;
	}
	k->next = s->listeners;
	s->listeners = k;
	return 0;
}

/* ---- the server ---- */

int nbd_server_create(struct loop *l, const struct nbd_options *o, struct nbd_server **out,
		      struct pgr_error *err)
{
	struct nbd_server *s = calloc(1, sizeof(*s));

	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a server");
	s->loop = l;
	if (o)
		s->o = *o;
	if (!s->o.max_connections)
		s->o.max_connections = NBD_CONNECTIONS;
	if (!s->o.handshake_ms)
		s->o.handshake_ms = NBD_HANDSHAKE_MS;
	s->rest.fire = rested;
	*out = s;
	return 0;
}

void nbd_server_free(struct nbd_server *s)
{
	if (!s)
		return;
	while (s->listeners) {
		struct nbd_listener *k = s->listeners;

		s->listeners = k->next;
		loop_unwatch(s->loop, &k->watch);
		close(k->watch.fd);
		free(k);
	}
	loop_disarm(s->loop, &s->rest);
	for (struct nbd_connection *c = s->connections; c; c = c->next) {
		nbd_stream_cancel(&c->stream);
		nbd_stream_limit(&c->stream, loop_now_ns() + NBD_GOODBYE_MS * 1000000ull);
	}
	while (s->nr_connections)
		wait_queue_join(&s->gone, s->loop);
	while (s->exports) {
		struct nbd_exported *e = s->exports;

		s->exports = e->next;
		export_free(e);
	}
	nbd_free_kept(s);
	free(s);
}
