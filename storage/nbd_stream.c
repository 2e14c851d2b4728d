// SPDX-License-Identifier: MIT
/*
 * Descriptors are watched level-triggered. EPOLLIN stays armed while requests come, so that a busy connection costs no epoll_ctl(): it is disarmed
 * only when bytes have come that nobody waits for. When the other side has gone for good nothing is watched any more, for that event never stops;
 * reading then goes on without waiting until it has everything that was sent before.
 *
 * Whoever reads bytes faster than they are worked off must not keep the loop for itself: after GREED bytes without a wait it lets the others run.
 */
#include "storage/nbd_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/err.h>

#include "common/tls_identity.h"

#define GREED	 (1u << 20)
#define IOV_MOST 128u

static void set_events(struct nbd_stream *s, uint32_t events)
{
	if (s->hung_up || s->armed == events)
		return;
	s->armed = events;
	loop_rewatch(s->loop, &s->watch, events);
}

/* ---- waiting ---- */

static int why_not(const struct nbd_stream *s)
{
	if (s->timed_out)
		return -ETIMEDOUT;
	return s->cancelled ? -ECANCELED : 0;
}

static void wake_reader(struct nbd_stream *s)
{
	if (s->reader)
		wait_end(s->reader);
	s->reader = NULL;
}

/* Until one of the events, or something that makes waiting pointless. */
static int wait_events(struct nbd_stream *s, uint32_t events)
{
	struct wait w;

	s->greed = 0;
	if (!why_not(s) && !s->hung_up) {
		set_events(s, s->armed | events);
		wait_begin(&w, s->loop);
		s->reader = &w; // cppcheck-suppress autoVariables
		s->reader_wants = events;
		wait_for(&w);
	}
	return why_not(s);
}

static void take_turn(struct loop_task *t)
{
	wake_reader((struct nbd_stream *)((char *)t - offsetof(struct nbd_stream, turn)));
}

/* Go once through everything else that the loop has to do. */
static int let_others_run(struct nbd_stream *s)
{
	struct wait w;

	s->greed = 0;
	wait_begin(&w, s->loop);
	s->reader = &w; // cppcheck-suppress autoVariables
	s->reader_wants = 0;
	loop_post(s->loop, &s->turn);
	wait_for(&w);
	return why_not(s);
}

/* ---- sending ---- */

static void drop_all(struct nbd_stream *s)
{
	while (s->first) {
		struct nbd_out *o = s->first;

		s->first = o->next;
		o->sent(o);
	}
	s->end = &s->first;
	s->skip = 0;
	s->blocked = false;
	wait_queue_wake_all(&s->drained);
}

/* So many bytes of the queue have gone. */
static void sent_bytes(struct nbd_stream *s, size_t n)
{
	s->skip += n;
	while (s->first && s->skip >= s->first->iov[0].iov_len + s->first->iov[1].iov_len) {
		struct nbd_out *o = s->first;

		s->skip -= o->iov[0].iov_len + o->iov[1].iov_len;
		s->first = o->next;
		if (!s->first)
			s->end = &s->first;
		o->sent(o);
	}
}

/* What is queued as pieces of memory, as many as fit. */
static unsigned queued_pieces(const struct nbd_stream *s, struct iovec *iov)
{
	size_t skip = s->skip;
	unsigned nr = 0;

	for (const struct nbd_out *o = s->first; o && nr + 2 <= IOV_MOST; o = o->next) {
		for (unsigned i = 0; i < 2; i++) {
			const struct iovec *v = &o->iov[i];
			size_t by = skip < v->iov_len ? skip : v->iov_len;

			skip -= by;
			if (v->iov_len > by)
				iov[nr++] = (struct iovec){.iov_base = (char *)v->iov_base + by,
							   .iov_len = v->iov_len - by};
		}
	}
	return nr;
}

static int send_plain(struct nbd_stream *s)
{
	struct iovec iov[IOV_MOST];
	struct msghdr m = {.msg_iov = iov};
	ssize_t n;

	m.msg_iovlen = queued_pieces(s, iov);
	n = sendmsg(s->watch.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	sent_bytes(s, (size_t)n);
	return 0;
}

/* Why OpenSSL's call did not work: -EAGAIN with the event that it waits for, 0: the other side has said goodbye. */
static int tls_why(struct nbd_stream *s, int ret, uint32_t *event)
{
	switch (SSL_get_error(s->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		*event = EPOLLIN;
		return -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		*event = EPOLLOUT;
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	default:
		return -EPROTO;
	}
}

/* A record at a time: small replies share one. When OpenSSL could not write it, the same bytes come again. */
static int send_tls(struct nbd_stream *s)
{
	struct iovec iov[IOV_MOST];
	uint32_t event;
	size_t done;
	int ret;

	if (!s->staged) {
		unsigned nr = queued_pieces(s, iov);

		for (unsigned i = 0; i < nr && s->staged < NBD_STREAM_STAGE; i++) {
			size_t n = iov[i].iov_len, room = NBD_STREAM_STAGE - s->staged;

			n = n < room ? n : room;
			memcpy(s->stage + s->staged, iov[i].iov_base, n);
			s->staged += n;
		}
	}
	ERR_clear_error();
	ret = SSL_write_ex(s->ssl, s->stage, s->staged, &done);
	if (ret != 1) {
		ret = tls_why(s, ret, &event);
		return ret ? ret : -EPIPE;
	}
	s->staged = 0;
	sent_bytes(s, done);
	return 0;
}

static void flush(struct loop_task *t)
{
	struct nbd_stream *s =
		(struct nbd_stream *)((char *)t - offsetof(struct nbd_stream, flush));
	int ret = s->error;

	while (!ret && s->first)
		ret = s->ssl ? send_tls(s) : send_plain(s);
	if (ret == -EAGAIN && !s->hung_up) {
		s->blocked = true;
		set_events(s, s->armed | EPOLLOUT);
		return;
	}
	s->blocked = false;
	if (ret && !s->error)
		s->error = ret;
	if (s->error)
		drop_all(s);
	if (!s->first)
		wait_queue_wake_all(&s->drained);
}

void nbd_stream_send(struct nbd_stream *s, struct nbd_out *o)
{
	o->next = NULL;
	*s->end = o;
	s->end = &o->next;
	if (!s->blocked)
		loop_defer(s->loop, &s->flush);
}

int nbd_stream_drain(struct nbd_stream *s)
{
	while (s->first && !why_not(s))
		wait_queue_join(&s->drained, s->loop);
	return s->error ? s->error : why_not(s);
}

/* ---- receiving ---- */

/* Some bytes, or 0 at the end, -EAGAIN when none are there. */
static ssize_t receive(struct nbd_stream *s, void *to, size_t length, uint32_t *event)
{
	size_t n;
	ssize_t got;
	int ret;

	*event = EPOLLIN;
	if (!s->ssl) {
		/* A full buffer tells nothing, and who has hung up may have sent before that. */
		if (s->dry && !s->hung_up) {
			s->dry = false;
			return -EAGAIN;
		}
		got = recv(s->watch.fd, to, length, MSG_DONTWAIT);
		s->dry = got > 0 && (size_t)got < length;
		return got < 0 ? -errno : got;
	}
	ERR_clear_error();
	ret = SSL_read_ex(s->ssl, to, length, &n);
	return ret == 1 ? (ssize_t)n : tls_why(s, ret, event);
}

static ssize_t receive_waiting(struct nbd_stream *s, void *to, size_t length)
{
	uint32_t event;

	for (;;) {
		int ret = s->greed > GREED ? let_others_run(s) : why_not(s);
		ssize_t n = ret ? ret : receive(s, to, length, &event);

		if (n > 0)
			s->greed += (size_t)n;
		if (n == -EAGAIN && s->hung_up)
			return 0;
		if (n == -EAGAIN)
			n = wait_events(s, event);
		else if (n != -EINTR)
			return n;
		if (n < 0 && n != -EINTR)
			return n;
	}
}

bool nbd_stream_has_more(const struct nbd_stream *s)
{
	return s->in_start < s->in_end;
}

/* Bytes into `to`, which may be NULL: then they are thrown away. */
static int take(struct nbd_stream *s, uint8_t *to, uint64_t length)
{
	uint64_t left = length;

	/* Whose answers cannot be sent need not be heard any more. */
	if (s->error)
		return s->error;
	while (left) {
		size_t here = s->in_end - s->in_start;
		ssize_t n;

		if (here) {
			here = here < left ? here : (size_t)left;
			if (to)
				memcpy(to, s->in + s->in_start, here);
			s->in_start += here;
			n = (ssize_t)here;
		} else if (to && left >= sizeof(s->in) / 2) {
			n = receive_waiting(s, to, (size_t)left);
		} else {
			n = receive_waiting(s, s->in, sizeof(s->in));
			s->in_start = 0;
			s->in_end = n > 0 ? (size_t)n : 0;
			if (n > 0)
				continue;
		}
		if (n <= 0)
			return n < 0 ? (int)n : left == length ? -ENODATA : -EPIPE;
		to = to ? to + n : NULL;
		left -= (size_t)n;
	}
	return 0;
}

int nbd_stream_read(struct nbd_stream *s, void *to, size_t length)
{
	return take(s, to, length);
}

int nbd_stream_skip(struct nbd_stream *s, uint64_t length)
{
	int ret = take(s, NULL, length);

	return ret == -ENODATA ? -EPIPE : ret;
}

/* ---- events ---- */

static void on_ready(struct loop_watch *w, uint32_t events)
{
	struct nbd_stream *s =
		(struct nbd_stream *)((char *)w - offsetof(struct nbd_stream, watch));

	if (events & (EPOLLHUP | EPOLLERR)) {
		s->hung_up = true;
		loop_unwatch(s->loop, w);
	}
	if (s->reader && (s->hung_up || events & s->reader_wants)) {
		if (s->reader_wants)
			wake_reader(s);
	} else if (events & EPOLLIN) {
		set_events(s, s->armed & ~EPOLLIN);
	}
	if (events & EPOLLOUT)
		set_events(s, s->armed & ~EPOLLOUT);
	/* TLS may have waited for either. */
	if (s->first)
		flush(&s->flush);
}

void nbd_stream_cancel(struct nbd_stream *s)
{
	s->cancelled = true;
	if (s->reader_wants)
		wake_reader(s);
	wait_queue_wake_all(&s->drained);
}

static void on_time(struct loop_timer *t)
{
	struct nbd_stream *s =
		(struct nbd_stream *)((char *)t - offsetof(struct nbd_stream, timer));

	s->timed_out = true;
	s->error = -ETIMEDOUT;
	if (s->reader_wants)
		wake_reader(s);
	drop_all(s);
}

void nbd_stream_limit(struct nbd_stream *s, uint64_t at_ns)
{
	if (at_ns)
		loop_arm(s->loop, &s->timer, at_ns);
	else
		loop_disarm(s->loop, &s->timer);
}

/* ---- opening and closing ---- */

int nbd_stream_open(struct nbd_stream *s, struct loop *l, int fd, struct pgr_error *err)
{
	int ret;

	s->loop = l;
	s->end = &s->first;
	s->flush.run = flush;
	s->turn.run = take_turn;
	s->timer.fire = on_time;
	s->armed = EPOLLIN;
	s->watch = (struct loop_watch){.fd = fd, .ready = on_ready};
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	ret = loop_watch(l, &s->watch, s->armed, err);
	if (ret)
		close(fd);
	return ret;
}

void nbd_stream_close(struct nbd_stream *s)
{
	if (!s->error)
		s->error = -ECANCELED;
	drop_all(s);
	loop_disarm(s->loop, &s->timer);
	/* A task cannot be taken back. */
	while (s->flush.queued)
		fiber_yield(s->loop);
	if (!s->hung_up)
		loop_unwatch(s->loop, &s->watch);
	if (s->ssl) {
		ERR_clear_error();
		SSL_shutdown(s->ssl); /* a goodbye, if it can go at once */
		ERR_clear_error();
		SSL_free(s->ssl);
	}
	free(s->stage);
	close(s->watch.fd);
}

/* ---- TLS ---- */

static int fail_tls(const struct tls_check *k, struct pgr_error *err)
{
	static const char *const why[] = {
		[REFUSED_UNKNOWN] =
			"it is not trusted here; if it is the right one, `pagurus host trust` on this host makes it so",
		[REFUSED_EXPIRED] = "it has expired",
		[REFUSED_EARLY] = "it is not valid yet; look at both clocks",
		[REFUSED_NAME] = "it is another host's",
	};

	if (k->refusal != REFUSED_NOT)
		return pgr_fail(err, -EACCES, "its certificate %s (\"%s\") was refused: %s",
				k->fingerprint, k->name, why[k->refusal]);
	return pgr_fail(err, -EPROTO, "the TLS handshake failed (%s)", tls_reason());
}

static int shake_hands(struct nbd_stream *s, const struct tls_check *k, struct pgr_error *err)
{
	uint32_t event;
	int ret;

	for (;;) {
		ERR_clear_error();
		ret = SSL_accept(s->ssl);
		if (ret == 1)
			break;
		if (tls_why(s, ret, &event) != -EAGAIN || s->hung_up)
			return fail_tls(k, err);
		ret = wait_events(s, event);
		if (ret)
			return pgr_fail_errno(err, ret, "the TLS handshake was broken off");
	}
	return k->found && SSL_get_verify_result(s->ssl) == X509_V_OK ? 0 : fail_tls(k, err);
}

int nbd_stream_tls(struct nbd_stream *s, const struct tls_identity *id, char peer[80],
		   struct pgr_error *err)
{
	struct tls_check k = {.id = id};
	int ret;

	s->stage = malloc(NBD_STREAM_STAGE);
	s->ssl = SSL_new(id->ctx);
	if (!s->stage || !s->ssl || SSL_set_fd(s->ssl, s->watch.fd) != 1 ||
	    !SSL_set_app_data(s->ssl, &k))
		return pgr_fail(err, -ENOMEM, "no memory for TLS");
	SSL_set_verify(s->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	SSL_set_mode(s->ssl, SSL_MODE_RELEASE_BUFFERS);
	ret = shake_hands(s, &k, err);
	SSL_set_app_data(s->ssl, NULL);
	if (!ret)
		snprintf(peer, 80, "%s", k.found->name);
	return ret;
}
