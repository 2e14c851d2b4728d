// SPDX-License-Identifier: MIT
#include "storage/nbd_starttls.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <openssl/err.h>

#include "common/text.h"
#include "common/tls_identity.h"
#include "storage/loop.h"
#include "storage/nbd_proto.h"

#define NS_PER_MS   1000000u
#define REPLY_MAX   (2 * NBD_NAME_MAX) /* bytes of an answer to an option */
#define REPLIES_MAX 64u		       /* answers to one option */
#define TEXT_MAX    200u	       /* of a server's sentence, in ours */

struct wire {
	const struct nbd_starttls *o;
	int fd;
	SSL *ssl; /* NULL: not yet */
	struct tls_check check;
	struct pgr_error *err;
};

static int no_nbd(const struct wire *w)
{
	return pgr_fail(w->err, -EPROTO,
			"%s: what answers there is no NBD server; look at host and port",
			w->o->name);
}

static int nonsense(const struct wire *w)
{
	return pgr_fail(w->err, -EPROTO, "%s: the server breaks the rules of the protocol",
			w->o->name);
}

/* ---- bytes ---- */

/* 0: the event is there. */
static int wait_event(const struct wire *w, short event)
{
	struct pollfd p = {.fd = w->fd, .events = event};
	uint64_t now;

	while ((now = loop_now_ns()) < w->o->deadline_ns) {
		int n = poll(&p, 1, (int)((w->o->deadline_ns - now) / NS_PER_MS + 1));

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return pgr_fail_errno(w->err, -errno, "%s: its socket cannot be waited for",
					      w->o->name);
	}
	return pgr_fail(w->err, -ETIMEDOUT,
			"%s: the server does not answer; is an NBD server at that address?",
			w->o->name);
}

static int ended(const struct wire *w)
{
	return pgr_fail(w->err, -ECONNRESET,
			"%s: the server ended the connection; its log may say why", w->o->name);
}

/* A call of OpenSSL returned that. -EAGAIN: the event has come, call again. */
static int tls_step(const struct wire *w, int ret)
{
	switch (SSL_get_error(w->ssl, ret)) {
	case SSL_ERROR_WANT_READ:
		ret = wait_event(w, POLLIN);
		return ret ? ret : -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		ret = wait_event(w, POLLOUT);
		return ret ? ret : -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
	case SSL_ERROR_SYSCALL:
		return ended(w);
	default:
		return tls_fail_handshake(w->o->name, &w->check, w->err);
	}
}

/* The same for read() and write(); n > 0 is nothing for it. */
static int plain_step(const struct wire *w, ssize_t n, short event)
{
	int ret;

	if (!n || (errno != EAGAIN && errno != EINTR))
		return ended(w);
	ret = errno == EINTR ? 0 : wait_event(w, event);
	return ret ? ret : -EAGAIN;
}

/* Some of it, from `data` or into it. */
static int move_some(const struct wire *w, bool out, void *data, size_t length, size_t *moved)
{
	ssize_t n;
	int ret;

	if (w->ssl) {
		ERR_clear_error();
		ret = out ? SSL_write_ex(w->ssl, data, length, moved)
			  : SSL_read_ex(w->ssl, data, length, moved);
		return ret == 1 ? 0 : tls_step(w, ret);
	}
	n = out ? write(w->fd, data, length) : read(w->fd, data, length);
	if (n <= 0)
		return plain_step(w, n, out ? POLLOUT : POLLIN);
	*moved = (size_t)n;
	return 0;
}

static int move(const struct wire *w, bool out, void *data, size_t length)
{
	size_t done = 0, n = 0;

	while (done < length) {
		int ret = move_some(w, out, (uint8_t *)data + done, length - done, &n);

		if (!ret)
			done += n;
		else if (ret != -EAGAIN)
			return ret;
	}
	return 0;
}

static int get(const struct wire *w, void *to, size_t length)
{
	return move(w, false, to, length);
}

static int put(const struct wire *w, void *from, size_t length)
{
	int ret = move(w, true, from, length);

	/* Who refuses us has said why before it closed: that is read next. */
	return ret == -ECONNRESET && w->ssl ? 0 : ret;
}

/* ---- options ---- */

/* data has room for the option's head, and `length` bytes of content behind it. */
static int put_option(const struct wire *w, uint32_t option, uint8_t *data, uint32_t length)
{
	const struct nbd_option head = {.magic = htobe64(NBD_OPTION_MAGIC),
					.option = htobe32(option),
					.length = htobe32(length)};

	memcpy(data, &head, sizeof(head));
	return put(w, data, sizeof(head) + length);
}

/* The next answer to that option, what it carries in data; its length in *length. */
static int get_reply(const struct wire *w, uint32_t option, uint32_t *type, uint8_t data[REPLY_MAX],
		     uint32_t *length)
{
	struct nbd_option_reply head;
	int ret = get(w, &head, sizeof(head));

	if (ret)
		return ret;
	*type = be32toh(head.type);
	*length = be32toh(head.length);
	if (be64toh(head.magic) != NBD_REPLY_MAGIC || be32toh(head.option) != option ||
	    *length > REPLY_MAX)
		return nonsense(w);
	return get(w, data, *length);
}

/* What a server says to a refusal, fit for a sentence of ours. */
static const char *reason(char text[TEXT_MAX], const uint8_t *data, uint32_t length)
{
	text_plain(text, TEXT_MAX, (const char *)data, length);
	return text[0] ? text : "it gives no reason";
}

/* ---- the steps ---- */

static int greet(const struct wire *w, uint16_t *flags)
{
	struct nbd_greeting hello;
	uint32_t answer;
	int ret = get(w, &hello, sizeof(hello.magic));

	if (ret)
		return ret;
	if (be64toh(hello.magic) != NBD_MAGIC)
		return no_nbd(w);
	ret = get(w, (uint8_t *)&hello + sizeof(hello.magic), sizeof(hello) - sizeof(hello.magic));
	if (ret)
		return ret;
	*flags = be16toh(hello.flags) & (NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	if (be64toh(hello.option_magic) != NBD_OPTION_MAGIC || !(*flags & NBD_FIXED_NEWSTYLE))
		return pgr_fail(
			w->err, -EOPNOTSUPP,
			"%s: the server greets as it was done before there was TLS; use another server, or nbd:// and no TLS",
			w->o->name);
	answer = htobe32(*flags);
	return put(w, &answer, sizeof(answer));
}

static int ask_for_tls(const struct wire *w)
{
	uint8_t data[REPLY_MAX];
	char text[TEXT_MAX];
	uint32_t type, length;
	int ret = put_option(w, NBD_OPT_STARTTLS, data, 0);

	if (!ret)
		ret = get_reply(w, NBD_OPT_STARTTLS, &type, data, &length);
	if (ret)
		return ret;
	if (type == NBD_REP_ACK)
		return length ? nonsense(w) : 0;
	return pgr_fail(w->err, -EOPNOTSUPP,
			"%s: the server does no TLS (%s); start it with TLS, or use nbd://",
			w->o->name, reason(text, data, length));
}

static int shake_hands(struct wire *w)
{
	int ret;

	w->ssl = SSL_new(w->o->identity->ctx);
	if (!w->ssl || SSL_set_fd(w->ssl, w->fd) != 1 || !SSL_set_app_data(w->ssl, &w->check))
		return pgr_fail(w->err, -ENOMEM, "%s: no memory for TLS", w->o->name);
	SSL_set_verify(w->ssl, SSL_VERIFY_PEER, NULL);
	SSL_set_mode(w->ssl, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
				     SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	do {
		ERR_clear_error();
		ret = SSL_connect(w->ssl);
		ret = ret == 1 ? 0 : tls_step(w, ret);
	} while (ret == -EAGAIN);
	if (!ret && (!w->check.found || SSL_get_verify_result(w->ssl) != X509_V_OK))
		ret = tls_fail_refused(w->o->name, &w->check, w->err);
	return ret;
}

/* The last of the answers to NBD_OPT_INFO. */
static int judge(const struct wire *w, uint32_t type, const uint8_t *data, uint32_t length)
{
	char text[TEXT_MAX];

	switch (type) {
	case NBD_REP_ACK:
	/* A server that is asked in another way answers then. */
	case NBD_REP_ERR_UNSUP:
	case NBD_REP_ERR_SIZES:
		return 0;
	case NBD_REP_ERR_UNKNOWN:
		return pgr_fail(w->err, -ENOENT, "%s: the server has no such export (%s)",
				w->o->name, reason(text, data, length));
	default:
		if (!(type & NBD_REP_ERROR(0)))
			return nonsense(w);
		return pgr_fail(w->err, -EPERM, "%s: the server refuses this export (%s)",
				w->o->name, reason(text, data, length));
	}
}

static int ask_for_export(const struct wire *w)
{
	uint8_t data[REPLY_MAX], *content = data + sizeof(struct nbd_option);
	const uint32_t n = (uint32_t)strlen(w->o->export), wire = htobe32(n);
	uint32_t type, length;
	int ret;

	if (n > NBD_NAME_MAX)
		return pgr_fail(w->err, -EINVAL, "%s: the name of an export has at most %u bytes",
				w->o->name, NBD_NAME_MAX);
	memcpy(content, &wire, sizeof(wire));
	memcpy(content + sizeof(wire), w->o->export, n);
	/* No information beyond what is told anyhow. */
	memset(content + sizeof(wire) + n, 0, sizeof(uint16_t));
	ret = put_option(w, NBD_OPT_INFO, data, (uint32_t)sizeof(wire) + n + sizeof(uint16_t));
	for (unsigned i = 0; !ret && i < REPLIES_MAX; i++) {
		ret = get_reply(w, NBD_OPT_INFO, &type, data, &length);
		if (!ret && type != NBD_REP_INFO)
			return judge(w, type, data, length);
	}
	return ret ? ret : nonsense(w);
}

int nbd_starttls(int fd, const struct nbd_starttls *o, SSL **out, uint16_t *flags,
		 struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	struct wire w = {
		.o = o, .fd = fd, .check = {.id = o->identity, .expect = o->expect}, .err = &why};
	int ret = greet(&w, flags);

	if (!ret && o->identity)
		ret = ask_for_tls(&w);
	if (!ret && o->identity)
		ret = shake_hands(&w);
	if (!ret)
		ret = ask_for_export(&w);
	if (w.ssl)
		SSL_set_app_data(w.ssl, NULL);
	*out = ret ? NULL : w.ssl;
	if (!ret)
		return 0;
	SSL_free(w.ssl);
	return pgr_fail(err, ret, "%s", why.text);
}
