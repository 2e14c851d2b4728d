// SPDX-License-Identifier: MIT
/*
 * Both ways are gone through again and again for as long as something moves (run()); what then is waited for is what the last call of each way wanted. A buffer is
 * filled only when it is empty, so a write that OpenSSL wants to have again comes with the same bytes.
 *
 * A side that has hung up is watched no more, since that event never stops: reading from it then does not wait for anything, and writing to it fails.
 */
#include "storage/nbd_relay.h"

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <openssl/err.h>

#include "storage/fiber.h"
#include "storage/nbd_proto.h"

#define NS_PER_MS 1000000ull
#define ROUNDS	  64u /* before other callbacks of the loop get their turn */
/* AES-GCM allows 2^24.5 full records under one key, about 388 GB (RFC 8446, 5.5). */
#ifndef REKEY_BYTES
#define REKEY_BYTES (UINT64_C(64) << 30)
#endif

struct side {
	struct loop_watch watch;
	uint32_t wants, armed;
	bool hung_up; /* not watched any more */
};

/* One way, from a side to the other. */
struct way {
	uint8_t data[NBD_RELAY_BUFFER];
	size_t start, end;
	bool ended; /* nothing more comes from the one side */
	bool over;  /* nor goes to the other */
};

struct nbd_relay {
	struct loop *loop;
	struct side server, client;
	SSL *ssl;
	struct way up, down;  /* to the server, to the client */
	uint64_t until_rekey; /* bytes */
	uint32_t flags; /* what the client has to answer to the greeting, as it is on the wire */
	size_t greeted; /* bytes of that which have come */
	struct loop_task again;
	struct loop_timer goodbye;
	bool finished;
	void (*finish)(void *ctx);
	void *ctx;
};

/* Room for what is read next; 0: the buffer is not empty. */
static size_t room(const struct way *y)
{
	return y->start == y->end && !y->ended ? sizeof(y->data) : 0;
}

/* What nobody takes is dropped. */
static void filled(struct way *y, size_t n)
{
	y->start = y->over ? n : 0;
	y->end = n;
}

/* ---- the server's side ---- */

/* What a call of OpenSSL that did not work waits for; false: nothing, that side is no good any more. */
static bool server_wants(struct nbd_relay *r, int ret)
{
	switch (SSL_get_error(r->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		r->server.wants |= EPOLLIN;
		break;
	case SSL_ERROR_WANT_WRITE:
		r->server.wants |= EPOLLOUT;
		break;
	default:
		return false;
	}
	return !r->server.hung_up;
}

/*
 * So many bytes have been sent. After a while there is another key for what is sent, beginning with what is next. The server is not asked for the same: OpenSSL's may
 * be in the middle of sending, and then does not survive that.
 */
static void count(struct nbd_relay *r, size_t n)
{
	if (r->until_rekey > n)
		r->until_rekey -= n;
	else if (SSL_key_update(r->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1)
		r->until_rekey = REKEY_BYTES;
}

static bool read_server(struct nbd_relay *r)
{
	struct way *y = &r->down;
	size_t n = 0, most = room(y);
	int ret;

	if (!most)
		return false;
	ERR_clear_error();
	ret = SSL_read_ex(r->ssl, y->data, most, &n);
	if (ret == 1) {
		filled(y, n);
		return true;
	}
	y->ended = !server_wants(r, ret);
	return y->ended;
}

static bool write_server(struct nbd_relay *r)
{
	struct way *y = &r->up;
	size_t n = 0;
	int ret;

	if (y->over || y->start == y->end)
		return false;
	ERR_clear_error();
	ret = SSL_write_ex(r->ssl, y->data + y->start, y->end - y->start, &n);
	if (ret == 1) {
		y->start += n;
		count(r, n);
		return true;
	}
	/* What it had sent before may still come. */
	y->over = !server_wants(r, ret);
	return y->over;
}

/* The client has said everything: so has this side, which still hears. */
static bool end_server(struct nbd_relay *r)
{
	struct way *y = &r->up;
	int ret;

	if (y->over || !y->ended || y->start != y->end)
		return false;
	ERR_clear_error();
	ret = SSL_shutdown(r->ssl);
	y->over = ret >= 0 || !server_wants(r, ret);
	return y->over;
}

/* ---- the client's side ---- */

/* What a read() or write() that did not work waits for; false: nothing, that side is no good any more. */
static bool client_wants(struct nbd_relay *r, uint32_t event)
{
	if (errno != EAGAIN && errno != EINTR)
		return false;
	r->client.wants |= event;
	return !r->client.hung_up;
}

/* Its answer to the greeting, which goes no further. With another one than the server got it is no client any more. */
static ssize_t read_flags(struct nbd_relay *r)
{
	uint8_t *at = r->up.data + r->greeted;
	ssize_t n = read(r->client.watch.fd, at, sizeof(r->flags) - r->greeted);

	if (n <= 0)
		return n;
	r->greeted += (size_t)n;
	if (r->greeted < sizeof(r->flags) || !memcmp(r->up.data, &r->flags, sizeof(r->flags)))
		return n;
	r->down.over = true;
	return 0;
}

static bool read_client(struct nbd_relay *r)
{
	struct way *y = &r->up;
	size_t most = room(y);
	bool greeting = r->greeted < sizeof(r->flags);
	ssize_t n;

	if (!most)
		return false;
	n = greeting ? read_flags(r) : read(r->client.watch.fd, y->data, most);
	if (n > 0 && !greeting)
		filled(y, (size_t)n);
	else if (n == 0)
		y->ended = true;
	else if (n < 0)
		y->ended = !client_wants(r, EPOLLIN);
	return n > 0 || y->ended;
}

static bool write_client(struct nbd_relay *r)
{
	struct way *y = &r->down;
	ssize_t n;

	if (y->over || y->start == y->end)
		return false;
	n = write(r->client.watch.fd, y->data + y->start, y->end - y->start);
	if (n > 0)
		y->start += (size_t)n;
	else
		y->over = !client_wants(r, EPOLLOUT);
	return n > 0 || y->over;
}

/* ---- going on ---- */

static void unwatch(struct nbd_relay *r, struct side *s)
{
	if (!s->hung_up)
		loop_unwatch(r->loop, &s->watch);
	s->hung_up = true;
}

/* The server has ended, and the client has what came before; or the client takes nothing any more, and the server has what had come from there. */
static bool is_finished(const struct nbd_relay *r)
{
	const struct way *down = &r->down;

	if (down->over && r->up.over)
		return true;
	return down->ended && (down->over || down->start == down->end);
}

static void finish(struct nbd_relay *r)
{
	r->finished = true;
	loop_disarm(r->loop, &r->goodbye);
	unwatch(r, &r->server);
	unwatch(r, &r->client);
	r->finish(r->ctx);
}

static void on_goodbye(struct loop_timer *t)
{
	finish((struct nbd_relay *)((char *)t - offsetof(struct nbd_relay, goodbye)));
}

static void arm(struct nbd_relay *r, struct side *s)
{
	if (!s->hung_up && s->armed != s->wants)
		loop_rewatch(r->loop, &s->watch, s->wants);
	s->armed = s->wants;
}

static void run(struct nbd_relay *r)
{
	unsigned rounds = 0;
	bool moved = true;

	while (moved && rounds++ < ROUNDS) {
		r->server.wants = r->client.wants = 0;
		moved = read_client(r);
		moved |= write_server(r);
		moved |= end_server(r);
		moved |= read_server(r);
		moved |= write_client(r);
		if (is_finished(r)) {
			finish(r);
			return;
		}
	}
	if (r->down.over && !r->goodbye.link)
		loop_arm(r->loop, &r->goodbye, loop_now_ns() + NBD_RELAY_GOODBYE_MS * NS_PER_MS);
	arm(r, &r->server);
	arm(r, &r->client);
	if (moved)
		loop_post(r->loop, &r->again);
}

static void on_again(struct loop_task *t)
{
	struct nbd_relay *r = (struct nbd_relay *)((char *)t - offsetof(struct nbd_relay, again));

	if (!r->finished)
		run(r);
}

static void on_server(struct loop_watch *w, uint32_t events)
{
	struct nbd_relay *r =
		(struct nbd_relay *)((char *)w - offsetof(struct nbd_relay, server.watch));

	if (events & (EPOLLHUP | EPOLLERR))
		unwatch(r, &r->server);
	run(r);
}

static void on_client(struct loop_watch *w, uint32_t events)
{
	struct nbd_relay *r =
		(struct nbd_relay *)((char *)w - offsetof(struct nbd_relay, client.watch));

	if (events & (EPOLLHUP | EPOLLERR)) {
		unwatch(r, &r->client);
		/* Nobody takes the answers. */
		r->down.over = true;
		r->down.start = r->down.end;
	}
	run(r);
}

/* ---- coming and going ---- */

static void close_both(SSL *server, int client)
{
	int fd = SSL_get_fd(server);

	ERR_clear_error();
	SSL_free(server);
	close(fd);
	close(client);
}

static void greet(struct nbd_relay *r, uint16_t flags)
{
	const struct nbd_greeting hello = {.magic = htobe64(NBD_MAGIC),
					   .option_magic = htobe64(NBD_OPTION_MAGIC),
					   .flags = htobe16(flags)};

	memcpy(r->down.data, &hello, sizeof(hello));
	filled(&r->down, sizeof(hello));
	r->flags = htobe32(flags);
}

int nbd_relay_new(struct loop *l, SSL *server, int client, uint16_t flags, void (*over)(void *ctx),
		  void *ctx, struct nbd_relay **out, struct pgr_error *err)
{
	struct nbd_relay *r = calloc(1, sizeof(*r));
	int ret = r ? 0 : pgr_fail(err, -ENOMEM, "no memory to pass on what an NBD server says");

	if (ret)
		goto out;
	r->loop = l;
	r->ssl = server;
	r->again.run = on_again;
	r->goodbye.fire = on_goodbye;
	r->until_rekey = REKEY_BYTES;
	r->finish = over;
	r->ctx = ctx;
	/* The client's socket can be written to, which begins it. */
	r->client.armed = EPOLLIN | EPOLLOUT;
	r->client.watch = (struct loop_watch){.fd = client, .ready = on_client};
	r->server.watch = (struct loop_watch){.fd = SSL_get_fd(server), .ready = on_server};
	greet(r, flags);
	ret = loop_watch(l, &r->client.watch, r->client.armed, err);
	if (ret)
		goto out;
	ret = loop_watch(l, &r->server.watch, 0, err);
	if (ret)
		loop_unwatch(l, &r->client.watch);
out:
	if (ret) {
		close_both(server, client);
		free(r);
	} else {
		*out = r;
	}
	return ret;
}

void nbd_relay_free(struct nbd_relay *r)
{
	if (!r)
		return;
	loop_disarm(r->loop, &r->goodbye);
	unwatch(r, &r->server);
	unwatch(r, &r->client);
	/* A task cannot be taken back, and it is at hand. */
	while (r->again.queued)
		fiber_yield(r->loop);
	ERR_clear_error();
	SSL_shutdown(r->ssl);
	close_both(r->ssl, r->client.watch.fd);
	free(r);
}
