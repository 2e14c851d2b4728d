/* SPDX-License-Identifier: MIT */
/*
 * A channel through TLS 1.3 over another channel.
 *
 * Full duplex. An SSL object must not be used by two threads at once, and one thread writes while another reads. So there is
 * one lock around every use of it, and nobody waits for the network with the lock held: OpenSSL never sees the channel below.
 * It is given whole records that arrived (`in`), and what it wants to send lands in memory (`out`).
 *
 *   writer: lock; encrypt up to TLS_BATCH bytes into `out`; exchange `out` and `sending`; unlock; write `sending` below
 *   reader: read below what has come, at least a record; lock; publish the whole records of `in`; decrypt; unlock
 *
 * What that buys against a non-blocking socket in OpenSSL's hands: the lock is held for the ciphering only (some 15 µs a batch)
 * and not for system calls; one system call sends eight full records instead of one, and one fetches as many; and any channel can
 * be below, so that tests put a faulty one there. What it costs is one copy at each end, between our buffers and OpenSSL's, within
 * the cache. In the bulk direction a thread is busy with one core's worth of ciphering plus sending; the acknowledgements of the
 * other direction wait for at most one batch. Both directions in bulk share one core's ciphering: who wants more opens more
 * channels. The cipher itself: tls_gcm.c.
 *
 * Order. Only the writer sends. What reading makes OpenSSL say (an alert) is put into `out` under the lock and goes with the next
 * batch, or with close(). `in` holds, in this order, what OpenSSL has used (up to in_start), what is published (up to in_end) and
 * what else has come (up to in_filled), perhaps a record in part. The reader fills it outside of the lock and moves in_end under
 * it, over whole records only; and it looks for more, and moves what is left to the front, only when OpenSSL has asked for bytes
 * and found none, so when all that was published is used. Nobody else publishes: OpenSSL in the writer's hands never sees a record
 * in part, nor one that is being moved. During the handshake records are published singly, so that there each step sees one.
 * `out` cannot overflow: a batch is begun only with room for it, and OpenSSL is told to try again when there is none.
 *
 * Keys are changed every TLS_REKEY bytes; AES-GCM allows 2^24.5 full records, about 388 GB, under one key (RFC 8446, 5.5).
 *
 * Who is there. tls_identity.c accepts a certificate, byte for byte, or not. In TLS 1.3 a client is done before the server has
 * looked at its certificate. So after the handshake each side sends one byte, TLS_CONFIRM, and waits for the other's: when
 * channel_tls() returns 0, both have accepted; when it fails, the alert that the other side sent instead says why. A side that
 * refuses keeps reading for a moment before it closes, as TCP would otherwise throw its alert away.
 *
 * An end without a close_notify alert is a cut (-EPIPE), never an orderly end (-ENODATA).
 */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>

#include "migrate/channel.h"
#include "migrate/channel_fd.h"
#include "migrate/channel_io.h"
#include "common/tls_identity.h"

#define TLS_HEADER 5u		     /* RFC 8446, 5.1 */
#define TLS_PLAIN  16384u	     /* longest plaintext of a record */
#define TLS_CIPHER (TLS_PLAIN + 256) /* longest ciphertext, 5.2 */
#define TLS_BATCH  (8 * TLS_PLAIN)
/* A record grows by its header, content type and tag. Beside a batch there is room for a key update and alerts. */
#define TLS_GROWTH 64u
#define TLS_OUT	   (TLS_BATCH + 8 * TLS_GROWTH + TLS_CIPHER + 2048)
/* A batch of the other end, so that one system call fetches what one sent. */
#define TLS_IN (TLS_BATCH + 8 * TLS_GROWTH + TLS_CIPHER)

#define TLS_REKEY	 (UINT64_C(256) << 20)
#define TLS_HANDSHAKE_MS 30000u
/* Far more than a handshake has; a stranger cannot keep us longer by sending empty ones. */
#define TLS_HANDSHAKE_RECORDS 64
#define TLS_LINGER_MS	      1000u
#define TLS_GOODBYE_MS	      1000u
#define TLS_CONFIRM	      'P'

struct channel_tls {
	struct channel c;
	struct channel *inner;
	pthread_mutex_t lock; /* ssl, in_start, in_end, out, out_used, until_rekey */
	SSL *ssl;
	unsigned char
		in[TLS_IN]; /* the reader's but for in_start..in_end: published and not yet used */
	size_t in_start;
	size_t in_end;
	size_t in_filled; /* the reader's: where what came ends */
	unsigned char *out;
	size_t out_used;
	unsigned char *sending;		/* the writer's */
	unsigned char stage[TLS_PLAIN]; /* the writer's: small pieces become one record */
	uint64_t until_rekey;
	bool broken; /* no goodbye */
};

static struct channel_tls *to_tls(struct channel *c)
{
	return (struct channel_tls *)c;
}

/* ---- OpenSSL's view of the network: memory ---- */

static int mem_write(BIO *bio, const char *data, int length)
{
	struct channel_tls *t = BIO_get_data(bio);

	BIO_clear_retry_flags(bio);
	if ((size_t)length > TLS_OUT - t->out_used) {
		BIO_set_retry_write(bio);
		return -1;
	}
	memcpy(t->out + t->out_used, data, (size_t)length);
	t->out_used += (size_t)length;
	return length;
}

static int mem_read(BIO *bio, char *data, int length)
{
	struct channel_tls *t = BIO_get_data(bio);
	size_t n = t->in_end - t->in_start;

	BIO_clear_retry_flags(bio);
	if (n == 0) {
		BIO_set_retry_read(bio);
		return -1;
	}
	if (n > (size_t)length)
		n = (size_t)length;
	memcpy(data, t->in + t->in_start, n);
	t->in_start += n;
	return (int)n;
}

static long mem_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	(void)bio;
	(void)num;
	(void)ptr;
	return cmd == BIO_CTRL_FLUSH;
}

static BIO_METHOD *mem_method;
static pthread_once_t mem_once = PTHREAD_ONCE_INIT;

static void mem_init(void)
{
	BIO_METHOD *m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "pagurus");

	if (m && BIO_meth_set_write(m, mem_write) && BIO_meth_set_read(m, mem_read) &&
	    BIO_meth_set_ctrl(m, mem_ctrl)) {
		mem_method = m;
		return;
	}
	BIO_meth_free(m);
}

static bool tls_attach(struct channel_tls *t)
{
	BIO *bio;

	pthread_once(&mem_once, mem_init);
	bio = mem_method ? BIO_new(mem_method) : NULL;
	if (!bio)
		return false;
	BIO_set_data(bio, t);
	BIO_set_init(bio, 1);
	SSL_set_bio(t->ssl, bio, bio);
	return true;
}

/* ---- records ---- */

/* Send what is in `out`. The writer only; the lock is free. */
static int tls_send(struct channel_tls *t, struct pgr_error *err)
{
	struct iovec iov;

	pthread_mutex_lock(&t->lock);
	iov = (struct iovec){.iov_base = t->out, .iov_len = t->out_used};
	t->out = t->sending;
	t->sending = iov.iov_base;
	t->out_used = 0;
	pthread_mutex_unlock(&t->lock);
	return iov.iov_len ? t->inner->ops->write(t->inner, &iov, 1, err) : 0;
}

/* The length of the record whose header is at p, 0: that is none. */
static size_t tls_record(const unsigned char *p)
{
	size_t length = (size_t)p[3] << 8 | p[4];

	/* 20 to 23: change_cipher_spec, alert, handshake, application_data; the version is 3.x (RFC 8446, 5.1). */
	if (p[0] < 20 || p[0] > 23 || p[1] != 3 || length == 0 || length > TLS_CIPHER)
		return 0;
	return TLS_HEADER + length;
}

/* Step *at over the whole records that are here, at most `most`. How long what comes then must be to tell more, 0: no TLS. */
static size_t tls_scan(const struct channel_tls *t, size_t *at, unsigned most)
{
	size_t want = TLS_HEADER;

	while (t->in_filled - *at >= want) {
		if (want == TLS_HEADER) {
			want = tls_record(t->in + *at);
			if (want == 0)
				return 0;
		} else {
			*at += want;
			want = TLS_HEADER;
			if (--most == 0)
				break;
		}
	}
	return want;
}

/* Read until `want` bytes are here, and what comes along with them. */
static int tls_fill(struct channel_tls *t, size_t want, struct pgr_error *err)
{
	struct channel *inner = t->inner;
	const bool within = t->in_filled > 0;
	size_t got;
	int ret = channel_fd_read_some(inner, t->in + t->in_filled, want - t->in_filled,
				       TLS_IN - t->in_filled, &got, err);

	if (ret == -ENODATA)
		return pgr_fail(
			err, -EPIPE,
			within ? "%s: the connection ended within a TLS record; look into the other end's log, then retry"
			       : "%s: the connection ended without a goodbye, so it was cut or the other end died; look into its log, then retry",
			inner->peer);
	if (!ret)
		t->in_filled += got;
	return ret;
}

/* Get one record or more, at most `most`, and publish them. The reader only, when all others are used; the lock is free. */
static int tls_receive(struct channel_tls *t, unsigned most, struct pgr_error *err)
{
	size_t from = t->in_end;
	size_t to = from;
	size_t want = tls_scan(t, &to, most);
	int ret = 0;

	if (to == from && from > 0) {
		/* OpenSSL finds nothing here in between. */
		pthread_mutex_lock(&t->lock);
		t->in_start = 0;
		t->in_end = 0;
		pthread_mutex_unlock(&t->lock);
		t->in_filled -= from;
		memmove(t->in, t->in + from, t->in_filled);
		from = 0;
		to = 0;
	}
	while (to == from && want > 0 && !ret) {
		ret = tls_fill(t, want, err);
		if (!ret)
			want = tls_scan(t, &to, most);
	}
	if (ret)
		return ret;
	if (to == from)
		return pgr_fail(
			err, -EPROTO,
			"%s: the other end does not speak TLS (it sent %02x %02x %02x %02x %02x); is a `pagurus daemon` on that port?",
			t->inner->peer, t->in[0], t->in[1], t->in[2], t->in[3], t->in[4]);
	pthread_mutex_lock(&t->lock);
	t->in_end = to;
	pthread_mutex_unlock(&t->lock);
	return 0;
}

/* OpenSSL's call returned with error for a reason that is not wanting bytes. The lock is held. */
static int tls_fail(struct channel_tls *t, const char *what, struct pgr_error *err)
{
	unsigned long e = ERR_peek_last_error();

	t->broken = true;
	if (ERR_GET_REASON(e) == SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC)
		return pgr_fail(
			err, -EBADMSG,
			"%s: %s: a TLS record was changed on its way; retry, and if it happens again look for faulty memory or a faulty network device",
			t->c.peer, what);
	return pgr_fail(err, -EPROTO, "%s: %s: TLS failed (%s); retry", t->c.peer, what,
			tls_reason());
}

/* ---- data ---- */

/* Take up to one record's worth of bytes, in place when they are in one piece, else gathered. */
static size_t tls_gather(struct channel_tls *t, struct iovec **next, unsigned *left,
			 const void **data)
{
	size_t n = 0;

	if ((*next)->iov_len >= TLS_PLAIN) {
		*data = (*next)->iov_base;
		channel_iov_advance(next, left, TLS_PLAIN);
		return TLS_PLAIN;
	}
	while (*left > 0 && n < TLS_PLAIN) {
		size_t part = (*next)->iov_len < TLS_PLAIN - n ? (*next)->iov_len : TLS_PLAIN - n;

		memcpy(t->stage + n, (*next)->iov_base, part);
		n += part;
		channel_iov_advance(next, left, part);
	}
	*data = t->stage;
	return n;
}

/* Encrypt until the batch is full or nothing is left. The lock is held. */
static int tls_encrypt(struct channel_tls *t, struct iovec **next, unsigned *left,
		       struct pgr_error *err)
{
	ERR_clear_error();
	while (*left > 0 && t->out_used < TLS_BATCH) {
		const void *data;
		size_t n = tls_gather(t, next, left, &data);
		size_t done = 0;

		/* OpenSSL writes all or, when `out` is full (which it is not) or a handshake message is half here, nothing. */
		if (SSL_write_ex(t->ssl, data, n, &done) != 1 || done != n)
			return tls_fail(t, "sending", err);
		if (t->until_rekey > n) {
			t->until_rekey -= n;
			continue;
		}
		t->until_rekey = TLS_REKEY;
		if (SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1 ||
		    SSL_do_handshake(t->ssl) != 1)
			return tls_fail(t, "changing keys", err);
	}
	return 0;
}

static int tls_write(struct channel *c, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct channel_tls *t = to_tls(c);
	struct iovec copy[CHANNEL_IOV_MAX];
	struct iovec *next = copy;
	size_t total;
	unsigned left;
	int ret = channel_iov_copy(copy, iov, nr, &total, err);

	if (ret < 0)
		return ret;
	left = (unsigned)ret;
	ret = 0;
	while (left > 0 && !ret) {
		pthread_mutex_lock(&t->lock);
		ret = tls_encrypt(t, &next, &left, err);
		pthread_mutex_unlock(&t->lock);
		if (!ret)
			ret = tls_send(t, err);
	}
	if (!ret)
		channel_count(&c->written, total);
	return ret;
}

/* Decrypt what is here. 0: go on with *got, -EAGAIN: another record is needed, or an error. The lock is held. */
static int tls_decrypt(struct channel_tls *t, void *data, size_t length, size_t *got,
		       struct pgr_error *err)
{
	ERR_clear_error();
	while (*got < length) {
		size_t n = 0;

		if (SSL_read_ex(t->ssl, (char *)data + *got, length - *got, &n) == 1) {
			*got += n;
			continue;
		}
		switch (SSL_get_error(t->ssl, 0)) {
		case SSL_ERROR_WANT_READ:
			return -EAGAIN;
		case SSL_ERROR_ZERO_RETURN:
			if (*got == 0)
				return pgr_fail(err, -ENODATA,
						"%s: the other end closed the connection",
						t->c.peer);
			return pgr_fail(
				err, -EPIPE,
				"%s: the other end closed the connection after %zu of %zu expected bytes; look for the reason in its log, then retry",
				t->c.peer, *got, length);
		default:
			return tls_fail(t, "receiving", err);
		}
	}
	return 0;
}

static int tls_read(struct channel *c, void *data, size_t length, struct pgr_error *err)
{
	struct channel_tls *t = to_tls(c);
	size_t got = 0;
	int ret = length ? -EAGAIN : 0;

	while (ret == -EAGAIN) {
		pthread_mutex_lock(&t->lock);
		ret = tls_decrypt(t, data, length, &got, err);
		pthread_mutex_unlock(&t->lock);
		if (ret != -EAGAIN)
			break;
		ret = tls_receive(t, UINT_MAX, err);
		if (!ret)
			ret = -EAGAIN;
	}
	if (!ret)
		channel_count(&c->read, length);
	return ret;
}

static int tls_sync(struct channel *c, struct pgr_error *err)
{
	struct channel *inner = to_tls(c)->inner;

	return inner->ops->sync(inner, err);
}

static void tls_shutdown(struct channel *c)
{
	struct channel *inner = to_tls(c)->inner;

	inner->ops->shutdown(inner);
}

static void tls_free(struct channel_tls *t)
{
	SSL_free(t->ssl);
	t->inner->ops->close(t->inner);
	pthread_mutex_destroy(&t->lock);
	free(t->out);
	free(t->sending);
	free(t);
}

static void tls_close(struct channel *c)
{
	struct channel_tls *t = to_tls(c);
	struct pgr_error ignored;

	if (!t->broken) {
		/* The goodbye is a courtesy: the other end may be gone, or not reading. */
		ERR_clear_error();
		SSL_shutdown(t->ssl);
		channel_fd_limit(t->inner, TLS_GOODBYE_MS);
	}
	tls_send(t, &ignored);
	ERR_clear_error();
	tls_free(t);
}

static const struct channel_ops tls_ops = {
	.write = tls_write,
	.read = tls_read,
	.sync = tls_sync,
	.shutdown = tls_shutdown,
	.close = tls_close,
};

/* ---- the handshake ---- */

/* The three steps; each is tried again when another record has come. 1: done, 0: needs a record, -1: failed. */
static int step_handshake(struct channel_tls *t)
{
	return SSL_do_handshake(t->ssl);
}

static int step_confirm(struct channel_tls *t)
{
	const char confirm = TLS_CONFIRM;

	return SSL_write(t->ssl, &confirm, 1);
}

static int step_confirmed(struct channel_tls *t)
{
	char confirm;
	int ret = SSL_read(t->ssl, &confirm, 1);

	if (ret == 1 && confirm != TLS_CONFIRM) {
		ERR_raise(ERR_LIB_SSL, SSL_R_UNEXPECTED_MESSAGE);
		return -1;
	}
	return ret;
}

static int tls_step(struct channel_tls *t, int (*step)(struct channel_tls *t),
		    const struct tls_check *k, int *records, struct pgr_error *err)
{
	struct pgr_error sent = PGR_ERROR_NONE;

	for (;;) {
		int ret;
		int why;

		ERR_clear_error();
		ret = step(t);
		why = ret == 1 ? SSL_ERROR_NONE : SSL_get_error(t->ssl, ret);
		if (why == SSL_ERROR_ZERO_RETURN)
			return pgr_fail(
				err, -EPIPE,
				"%s: the other end closed the connection during the TLS handshake; look into its log",
				t->c.peer);
		if (ret != 1 && why != SSL_ERROR_WANT_READ) {
			struct pgr_error ignored;

			ret = tls_fail_handshake(t->c.peer, k, err);
			/* Our alert. Whether it can still be sent changes nothing here. */
			tls_send(t, &ignored);
			return ret;
		}
		if (!sent.code)
			tls_send(t, &sent);
		if (ret == 1 && !sent.code)
			return 0;
		/*
		 * Sending fails when the other end has refused us and closed: why lies in what it sent before. So go on reading
		 * until its alert comes; nothing else can make this a success any more.
		 */
		if (sent.code && sent.code != -EPIPE && sent.code != -ECONNRESET) {
			*err = sent;
			pgr_fail_prefix(err, "TLS handshake");
			return sent.code;
		}
		if (sent.code)
			step = step_confirmed;
		if ((*records)++ == TLS_HANDSHAKE_RECORDS)
			return pgr_fail(err, -EPROTO,
					"%s: the TLS handshake does not end after %d records",
					t->c.peer, TLS_HANDSHAKE_RECORDS);
		ret = tls_receive(t, 1, err);
		if (ret && sent.code) {
			*err = sent;
			ret = sent.code;
		}
		if (ret) {
			pgr_fail_prefix(err, "TLS handshake");
			return ret;
		}
	}
}

static int tls_handshake(struct channel_tls *t, enum tls_role role, struct tls_check *k,
			 struct pgr_error *err)
{
	char label[64];
	int records = 0;
	int ret;

	if (role == TLS_CLIENT)
		SSL_set_connect_state(t->ssl);
	else
		SSL_set_accept_state(t->ssl);
	channel_fd_limit(t->inner, TLS_HANDSHAKE_MS);
	ret = tls_step(t, step_handshake, k, &records, err);
	if (!ret)
		ret = tls_step(t, step_confirm, k, &records, err);
	if (!ret)
		ret = tls_step(t, step_confirmed, k, &records, err);
	if (ret)
		return ret;
	channel_fd_limit(t->inner, 0);
	/* Nothing gets here unverified; if OpenSSL were ever told otherwise, this still holds. */
	if (!k->found || k->refusal != REFUSED_NOT || SSL_get_verify_result(t->ssl) != X509_V_OK)
		return tls_fail_refused(t->c.peer, k, err);
	snprintf(label, sizeof(label), " (%s, %s)", SSL_get_version(t->ssl),
		 tls_cipher_label(SSL_get_cipher_name(t->ssl)));
	/* A long name is cut, not what it is protected by. */
	t->c.peer[sizeof(t->c.peer) - 1 - strlen(label)] = '\0';
	memcpy(t->c.peer + strlen(t->c.peer), label, strlen(label) + 1);
	return 0;
}

static struct channel_tls *tls_new(struct channel *inner, struct tls_check *k)
{
	struct channel_tls *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->c.ops = &tls_ops;
	t->inner = inner;
	t->until_rekey = TLS_REKEY;
	pthread_mutex_init(&t->lock, NULL);
	channel_name(&t->c, "", inner->peer);
	t->out = malloc(TLS_OUT);
	t->sending = malloc(TLS_OUT);
	t->ssl = SSL_new(k->id->ctx);
	if (t->out && t->sending && t->ssl && tls_attach(t) && SSL_set_app_data(t->ssl, k)) {
		SSL_set_verify(t->ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
		return t;
	}
	SSL_free(t->ssl);
	free(t->out);
	free(t->sending);
	pthread_mutex_destroy(&t->lock);
	free(t);
	ERR_clear_error();
	return NULL;
}

int channel_tls(struct channel *c, enum tls_role role, const struct tls_identity *id,
		const char *expect, char peer_name[256], struct channel **out,
		struct pgr_error *err)
{
	struct tls_check k = {.id = id, .expect = expect};
	struct pgr_error own = PGR_ERROR_NONE;
	struct channel_tls *t = tls_new(c, &k);
	int ret;

	*out = NULL;
	err = err ? err : &own;
	if (!t) {
		ret = pgr_fail(err, -ENOMEM, "%s: no memory for TLS", c->peer);
		c->ops->close(c);
		return ret;
	}
	ret = tls_handshake(t, role, &k, err);
	SSL_set_app_data(t->ssl, NULL); /* k ends here */
	if (ret) {
		channel_fd_linger(c, TLS_LINGER_MS);
		tls_free(t);
		return ret;
	}
	if (peer_name)
		snprintf(peer_name, 256, "%s", k.found->name);
	*out = &t->c;
	return 0;
}
