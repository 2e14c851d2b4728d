// SPDX-License-Identifier: MIT
#include "storage/block_nbd_link.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "storage/block_nbd_tls.h"
#include "storage/nbd_address.h"
#include "storage/nbd_dial.h"
#include "storage/offload.h"

#define NS_PER_MS	 UINT64_C(1000000)
#define CONNECT_NS	 (20000 * NS_PER_MS) /* a connection with its handshake */
#define GOODBYE_NS	 (2000 * NS_PER_MS)
#define FIRST_PAUSE_NS	 (50 * NS_PER_MS)
#define LONGEST_PAUSE_NS (10000 * NS_PER_MS)
#define SILENT_LOOKS	 8u
#define ASK_NS		 (100 * NS_PER_MS)

int nbd_link_fail(const struct nbd_link *k, const char *what, struct pgr_error *err)
{
	const char *text = nbd_get_error();
	int code = nbd_get_errno();

	return pgr_fail(err, code > 0 ? -code : -EIO, "%s: %s: %s", k->name, what,
			text ? text : "no reason given");
}

/* ---- the socket in the loop ---- */

static void progressed(struct nbd_link *k)
{
	struct wait *w = k->progress;

	k->progress = NULL;
	if (w)
		wait_end(w);
}

static void on_time(struct loop_timer *t)
{
	struct nbd_link *k = (struct nbd_link *)((char *)t - offsetof(struct nbd_link, timer));

	k->in_time = false;
	progressed(k);
}

/* Until something moved; false: it took too long. */
static bool wait_progress(struct nbd_link *k, uint64_t deadline_ns)
{
	struct wait w;

	wait_begin(&w, k->loop);
	/* It is taken back before this function returns. */
	k->progress = &w; // cppcheck-suppress autoVariables
	k->in_time = true;
	k->timer.fire = on_time;
	loop_arm(k->loop, &k->timer, deadline_ns);
	wait_for(&w);
	loop_disarm(k->loop, &k->timer);
	return k->in_time;
}

static void on_ready(struct loop_watch *w, uint32_t events)
{
	struct nbd_link *k = (struct nbd_link *)((char *)w - offsetof(struct nbd_link, watch));
	unsigned direction = nbd_aio_get_direction(k->h);
	int ret = 0;

	k->looks = 0;
	if (events & ~(uint32_t)EPOLLOUT && direction & LIBNBD_AIO_DIRECTION_READ)
		ret = nbd_aio_notify_read(k->h);
	else if (direction & LIBNBD_AIO_DIRECTION_WRITE)
		ret = nbd_aio_notify_write(k->h);
	if (ret)
		nbd_link_fail(k, "the connection was lost", &k->why);
	nbd_link_step(k);
}

/*
 * What is watched is a descriptor of our own for the socket: libnbd closes its own when it likes, and where another process has the socket as well, as the one that passed it,
 * the kernel would go on telling of a number that cannot be taken back any more.
 */
static void unwatch(struct nbd_link *k)
{
	if (k->watched)
		loop_unwatch(k->loop, &k->watch);
	if (k->watched)
		close(k->watch.fd);
	k->watched = false;
}

/* While it connects, libnbd may close its socket and make another of the same number, so it is watched anew each time. */
static int watch(struct nbd_link *k, struct pgr_error *err)
{
	unsigned direction = nbd_aio_get_direction(k->h);
	int fd;
	uint32_t events = (direction & LIBNBD_AIO_DIRECTION_READ ? EPOLLIN : 0) |
			  (direction & LIBNBD_AIO_DIRECTION_WRITE ? EPOLLOUT : 0);
	int ret;

	if (k->watched && k->connected && events == k->events)
		return 0;
	if (k->watched && k->connected) {
		loop_rewatch(k->loop, &k->watch, events);
		k->events = events;
		return 0;
	}
	unwatch(k);
	fd = nbd_aio_get_fd(k->h);
	if (fd < 0)
		return 0;
	k->watch = (struct loop_watch){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0), .ready = on_ready};
	if (k->watch.fd < 0)
		return pgr_fail_errno(err, -errno, "%s: its socket cannot be watched", k->name);
	ret = loop_watch(k->loop, &k->watch, events, err);
	if (ret)
		close(k->watch.fd);
	k->watched = !ret;
	k->events = events;
	return ret;
}

static bool is_over(struct nbd_link *k)
{
	return nbd_aio_is_dead(k->h) || nbd_aio_is_closed(k->h);
}

static void start_keeper(struct loop_timer *t);

static void keeper_soon(struct nbd_link *k)
{
	if (k->keeping || k->closing)
		return;
	k->retry.fire = start_keeper;
	loop_arm(k->loop, &k->retry, loop_now_ns());
}

void nbd_link_step(struct nbd_link *k)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (!k->h)
		return;
	if (!is_over(k)) {
		if (watch(k, &err)) {
			k->why = err;
			nbd_link_cut(k);
		}
	} else {
		unwatch(k);
		if (!k->why.code)
			pgr_fail(&k->why, -ENOTCONN, "%s: the server ended the connection",
				 k->name);
		if (k->up)
			k->lost_ns = loop_now_ns();
		if (k->connected)
			keeper_soon(k);
		k->connected = k->up = false;
	}
	progressed(k);
}

void nbd_link_cut(struct nbd_link *k)
{
	int fd = k->h ? nbd_aio_get_fd(k->h) : -1;

	if (k->up)
		k->lost_ns = loop_now_ns();
	k->up = false;
	/* libnbd reads the end then, and gives back what is under way. */
	if (fd >= 0)
		shutdown(fd, SHUT_RDWR);
}

/* ---- one that is there and says nothing ---- */

/* Bytes count, and not only answers: a slow connection is not a silent one. And looks, not the clock: this process may have stood still itself. */
static void on_look(struct loop_timer *t)
{
	struct nbd_link *k = (struct nbd_link *)((char *)t - offsetof(struct nbd_link, look));

	if (!k->in_flight)
		return;
	if (++k->looks <= SILENT_LOOKS) {
		loop_arm(k->loop, &k->look, loop_now_ns() + k->silence_ns / SILENT_LOOKS);
		return;
	}
	k->silent = true;
	nbd_link_cut(k);
}

void nbd_link_begun(struct nbd_link *k)
{
	if (k->in_flight++ == 0)
		k->looks = 0;
	if (!k->silence_ns || k->look.link)
		return;
	k->look.fire = on_look;
	loop_arm(k->loop, &k->look, loop_now_ns());
}

/* ---- one that nobody wants any more ---- */

static void on_ask(struct loop_timer *t)
{
	struct nbd_link *k = (struct nbd_link *)((char *)t - offsetof(struct nbd_link, ask));

	if (!atomic_load(k->stop)) {
		loop_arm(k->loop, &k->ask, loop_now_ns() + ASK_NS);
		return;
	}
	k->stopped = true;
	/* One that is not there yet may be another thread's; whoever waits for it looks. */
	if (k->connected)
		nbd_link_cut(k);
	progressed(k);
	wait_queue_wake_all(&k->waiting);
}

static int say_stopped(const struct nbd_link *k, struct pgr_error *err)
{
	return pgr_fail(err, -ECANCELED, "%s: stopped", k->name);
}

/* ---- connecting ---- */

struct connecting {
	struct nbd_link *k;
	struct pgr_error *err;
};

/* Looking up a host's name waits, so this is not for the loop's thread. Nobody else uses the handle meanwhile. */
static int do_connect(void *ctx)
{
	struct connecting *c = ctx;
	struct nbd_link *k = c->k;

	k->socket_taken = k->socket >= 0;
	if (k->socket >= 0 ? !nbd_aio_connect_socket(k->h, k->socket)
			   : !nbd_aio_connect_uri(k->h, k->uri))
		return 0;
	return nbd_link_fail(c->k, "cannot be reached", c->err);
}

/* What the server calls the disk: what it said itself, or the address does. */
static int set_export(struct nbd_link *k, struct pgr_error *err)
{
	struct nbd_address a;
	int ret = k->export ? 0 : nbd_address_parse(k->uri, &a, err);

	if (!ret && nbd_set_export_name(k->h, k->export ? k->export : a.export))
		ret = nbd_link_fail(k, "its name", err);
	return ret;
}

/* The same by somebody else, who only connects. */
static int dial(struct nbd_link *k, struct pgr_error *err)
{
	int socket = -1, ret = set_export(k, err);

	if (!ret)
		ret = k->dial->connect(k->dial->ctx, k->uri, &socket, err);
	if (ret)
		return ret;
	/* From now on it is libnbd's. */
	return nbd_aio_connect_socket(k->h, socket) ? nbd_link_fail(k, "cannot be reached", err)
						    : 0;
}

static int prepare(struct nbd_link *k, const struct nbd_tls_folder *tls, struct pgr_error *err)
{
	k->h = nbd_create();
	if (!k->h)
		return pgr_fail(err, -ENOMEM, "%s: no memory to connect", k->name);
	if (nbd_set_uri_allow_transports(k->h, LIBNBD_ALLOW_TRANSPORT_TCP |
						       LIBNBD_ALLOW_TRANSPORT_UNIX) ||
	    nbd_set_uri_allow_local_file(k->h, true) || nbd_set_pread_initialize(k->h, false) ||
	    nbd_add_meta_context(k->h, LIBNBD_CONTEXT_BASE_ALLOCATION) ||
	    (tls->path[0] && nbd_set_tls_certificates(k->h, tls->path)))
		return nbd_link_fail(k, "cannot be set up", err);
	return 0;
}

/* Until the handshake is over, one way or the other. */
static int shake_hands(struct nbd_link *k, struct pgr_error *err)
{
	uint64_t deadline = loop_now_ns() + CONNECT_NS;
	int ret;

	k->why = PGR_ERROR_NONE;
	ret = watch(k, err);
	while (!ret && !nbd_aio_is_ready(k->h)) {
		if (is_over(k)) {
			nbd_link_step(k);
			*err = k->why;
			ret = err->code;
		} else if (k->stopped) {
			ret = say_stopped(k, err);
		} else if (!wait_progress(k, deadline) || k->closing) {
			ret = pgr_fail(err, -ETIMEDOUT, "%s: the server does not answer", k->name);
		}
	}
	return ret;
}

static int check_facts(struct nbd_link *k, struct pgr_error *err)
{
	int64_t size = nbd_get_size(k->h);

	if (size < 0)
		return nbd_link_fail(k, "its size is not known", err);
	if (k->known && k->size != (uint64_t)size)
		return pgr_fail(
			err, -ESTALE,
			"%s: the server came back with a disk of %lld bytes, and it had %llu: not the same disk",
			k->name, (long long)size, (unsigned long long)k->size);
	if (k->to_write && nbd_is_read_only(k->h) != 0)
		return pgr_fail(err, k->known ? -ESTALE : -EROFS,
				"%s: the server lets nobody write it; open it for reading",
				k->name);
	if (k->to_write && nbd_can_flush(k->h) != 1)
		return pgr_fail(
			err, k->known ? -ESTALE : -EOPNOTSUPP,
			"%s: the server has no flush, so nothing that is written could be promised to last; open it for reading",
			k->name);
	if (!k->known)
		k->export = nbd_get_export_name(k->h);
	if (!k->export)
		return nbd_link_fail(k, "its name is not known", err);
	k->size = (uint64_t)size;
	k->known = true;
	return 0;
}

/* Free the handle. Nothing is under way any more. */
static void drop(struct nbd_link *k)
{
	unwatch(k);
	k->connected = false;
	nbd_close(k->h);
	k->h = NULL;
}

static int connect_once(struct nbd_link *k, struct pgr_error *err)
{
	struct connecting c = {.k = k, .err = err};
	struct nbd_tls_folder tls = {.path = ""};
	bool dialled = k->dial && (k->known || k->dial->first);
	int ret;

	if (k->stopped)
		return say_stopped(k, err);
	if (k->socket_taken && k->silent)
		return pgr_fail(
			err, -ESTALE,
			"%s: nothing was answered for %llu s, so it was given up; look at the storage there",
			k->name, (unsigned long long)(k->silence_ns / NS_PER_MS / 1000));
	if (k->socket_taken)
		return pgr_fail(err, -ESTALE, "%s: the connection was lost", k->name);
	ret = dialled ? 0 : nbd_tls_folder_make(&tls, k->uri, k->identity, err);
	if (ret)
		return ret;
	ret = prepare(k, &tls, err);
	if (!ret)
		ret = dialled ? dial(k, err) : offload(k->loop, do_connect, &c);
	if (ret && err && !err->code)
		pgr_fail_errno(err, ret, "%s: cannot be reached", k->name);
	if (!ret)
		ret = shake_hands(k, err);
	nbd_tls_folder_remove(&tls);
	if (!ret)
		ret = check_facts(k, err);
	if (ret) {
		drop(k);
		return ret;
	}
	nbd_dial_keepalive(nbd_aio_get_fd(k->h));
	k->connected = true;
	nbd_link_step(k);
	return 0;
}

int nbd_link_open(struct nbd_link *k, struct pgr_error *err)
{
	struct pgr_error own = PGR_ERROR_NONE;
	int ret;

	k->ask.fire = on_ask;
	if (k->stop)
		loop_arm(k->loop, &k->ask, loop_now_ns());
	ret = connect_once(k, &own);
	if (ret && err)
		*err = own;
	k->up = !ret;
	return ret;
}

/* What requests get that wait no longer. */
static int refuse(const struct nbd_link *k, struct pgr_error *err)
{
	if (k->stopped)
		return say_stopped(k, err);
	if (k->broken)
		return pgr_fail(err, -ESTALE, "%s", k->why.text);
	return pgr_fail(
		err, -ENOTCONN,
		"%s; for %llu s no connection could be made: look at the server and the network; it is tried for as long as the disk is open",
		k->why.text, (unsigned long long)((loop_now_ns() - k->lost_ns) / NS_PER_MS / 1000));
}

int nbd_link_await(struct nbd_link *k, struct pgr_error *err)
{
	while (!k->up) {
		if (k->given_up || k->broken || k->stopped || k->closing)
			return refuse(k, err);
		wait_queue_join(&k->waiting, k->loop);
	}
	return 0;
}

void nbd_link_landed(struct nbd_link *k)
{
	if (--k->in_flight == 0)
		wait_queue_wake_all(&k->waiting);
}

/* ---- keeping it ---- */

static void wait_for_calls(struct nbd_link *k)
{
	while (k->in_flight)
		wait_queue_join(&k->waiting, k->loop);
}

/* One try; why says what was wrong with it. */
static int try_again(struct nbd_link *k)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int ret;

	wait_for_calls(k);
	drop(k);
	ret = connect_once(k, &err);
	if (!ret && k->restore)
		ret = k->restore(k, &err);
	if (!ret && !k->connected)
		ret = k->why.code;
	else
		k->why = err;
	return ret;
}

static void keep(void *ctx)
{
	struct nbd_link *k = ctx;
	uint64_t pause = FIRST_PAUSE_NS;
	int ret = try_again(k);

	while (ret && ret != -ESTALE && !k->stopped && !k->closing) {
		if (loop_now_ns() - k->lost_ns > k->patience_ns) {
			k->given_up = true;
			wait_queue_wake_all(&k->waiting);
		}
		wait_progress(k, loop_now_ns() + pause);
		pause = pause * 2 < LONGEST_PAUSE_NS ? pause * 2 : LONGEST_PAUSE_NS;
		if (!k->stopped && !k->closing)
			ret = try_again(k);
	}
	k->up = !ret;
	k->broken = ret == -ESTALE;
	k->given_up = false;
	k->keeping = false;
	wait_queue_wake_all(&k->waiting);
}

static void start_keeper(struct loop_timer *t)
{
	struct nbd_link *k = (struct nbd_link *)((char *)t - offsetof(struct nbd_link, retry));

	k->keeping = true;
	if (!fiber_start(k->loop, keep, k))
		return;
	k->keeping = false;
	loop_arm(k->loop, &k->retry, loop_now_ns() + LONGEST_PAUSE_NS);
}

void nbd_link_close(struct nbd_link *k)
{
	uint64_t deadline = loop_now_ns() + GOODBYE_NS;

	k->closing = true;
	loop_disarm(k->loop, &k->retry);
	loop_disarm(k->loop, &k->look);
	loop_disarm(k->loop, &k->ask);
	progressed(k);
	while (k->keeping)
		wait_queue_join(&k->waiting, k->loop);
	k->up = false;
	if (k->connected && !nbd_aio_disconnect(k->h, 0)) {
		nbd_link_step(k);
		while (k->connected && wait_progress(k, deadline))
			;
	}
	drop(k);
}
