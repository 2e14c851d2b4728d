/* SPDX-License-Identifier: MIT */
/*
 * TLS channels and identities: against each other, against OpenSSL's own client and server, and against peers that cheat.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <openssl/evp.h>
#include <openssl/pem.h>

#include "migrate/channel.h"
#include "migrate/channel_fault.h"
#include "migrate/channel_io.h"
#include "common/tls_gcm.h"
#include "common/tls_identity.h"
#include "tests/unit/channel_pump.h"
#include "tests/unit/tls_hosts.h"
#include "tests/unit/unit.h"

#define BULK	(64u << 20)
#define PATIENT 60000u /* ms: only reached by a hang */
#define DAY	(24 * 60 * 60)

static struct pgr_error err;

/* Replace host's key and certificate by ones that are valid in that time, and make whom trust them unchecked. */
static void make_dated(const char *host, const char *whom, time_t from, time_t until)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert;
	FILE *f;

	CHECK_EQ(tls_certificate_make(key, host, from, until, &cert), 0);
	f = fopen(host_path(host, "key.pem"), "w");
	CHECK(f && PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL));
	fclose(f);
	f = fopen(host_path(host, "cert.pem"), "w");
	CHECK(f && PEM_write_X509(f, cert));
	fclose(f);
	if (whom) {
		char file[80];

		snprintf(file, sizeof(file), "trusted/%s.pem", host);
		f = fopen(host_path(whom, file), "w");
		CHECK(f && PEM_write_X509(f, cert));
		fclose(f);
	}
	X509_free(cert);
	EVP_PKEY_free(key);
}

/* ---- connections ---- */

struct end {
	struct channel *raw;
	struct channel *c; /* NULL when it failed */
	enum tls_role role;
	const struct tls_identity *id;
	const char *expect;
	char name[256];
	struct pgr_error err;
	int ret;
};

static void *handshake(void *arg)
{
	struct end *e = arg;

	e->ret = channel_tls(e->raw, e->role, e->id, e->expect, e->name, &e->c, &e->err);
	return NULL;
}

static struct channel *wrap(int fd, unsigned timeout_ms)
{
	struct channel *c;

	CHECK_MSG(!channel_from_fd(fd, timeout_ms, "peer", &c, &err), "%s", err.text);
	return c;
}

/* e[0]: a, client; e[1]: b, server; over a socket pair, perhaps with a planned fault at the client's end below TLS. */
static void meet_with(struct end e[2], const struct tls_identity *a, const struct tls_identity *b,
		      const char *a_expects, const char *b_expects, const char *fault)
{
	struct fault_plan plan;
	pthread_t t;
	int fd[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	e[0] = (struct end){
		.raw = wrap(fd[0], PATIENT), .role = TLS_CLIENT, .id = a, .expect = a_expects};
	e[1] = (struct end){
		.raw = wrap(fd[1], PATIENT), .role = TLS_SERVER, .id = b, .expect = b_expects};
	CHECK_EQ(channel_fault_parse(fault, &plan, &err), 0);
	if (plan.kind != FAULT_NONE)
		CHECK_EQ(channel_fault_wrap(e[0].raw, &plan, &e[0].raw, &err), 0);
	CHECK_EQ(pthread_create(&t, NULL, handshake, &e[1]), 0);
	handshake(&e[0]);
	pthread_join(t, NULL);
}

/* Load both hosts' identities as they are now, and connect. */
static void meet(struct end e[2], const char *a_expects, const char *b_expects)
{
	struct tls_identity *a = host_load("a");
	struct tls_identity *b = host_load("b");

	meet_with(e, a, b, a_expects, b_expects, "none");
	/* The channels must live on without them. */
	tls_identity_free(a);
	tls_identity_free(b);
}

static void part(struct end e[2])
{
	for (int i = 0; i < 2; i++) {
		if (e[i].c)
			e[i].c->ops->close(e[i].c);
	}
}

static void meet_well(struct end e[2])
{
	meet(e, "b", "a");
	CHECK_MSG(!e[0].ret, "%s", e[0].err.text);
	CHECK_MSG(!e[1].ret, "%s", e[1].err.text);
}

static int put(struct channel *c, const void *data, size_t n)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};

	return c->ops->write(c, &iov, 1, &err);
}

static int get(struct channel *c, void *data, size_t n)
{
	return c->ops->read(c, data, n, &err);
}

/* Both ends failed, with -EACCES and these words. */
static void refused(struct end e[2], const char *a_says, const char *b_says)
{
	part(e);
	CHECK_EQ(e[0].ret, -EACCES);
	CHECK_EQ(e[1].ret, -EACCES);
	CHECK(!e[0].c && !e[1].c);
	CHECK_HAS(e[0].err.text, a_says);
	CHECK_HAS(e[1].err.text, b_says);
}

static void hosts_that_trust_each_other_meet(void)
{
	struct end e[2];
	char b;

	hosts_make_two();
	meet_well(e);
	CHECK_STR(e[0].name, "b");
	CHECK_STR(e[1].name, "a");
	CHECK_HAS(e[0].c->peer, "peer (TLSv1.3, ");
	CHECK_HAS(e[1].c->peer, "GCM)");
	CHECK_EQ(put(e[0].c, "x", 1), 0);
	CHECK_EQ(get(e[1].c, &b, 1), 0);
	CHECK_EQ(b, 'x');
	CHECK_EQ(e[1].c->read, 1);
	CHECK_EQ(e[0].c->ops->sync(e[0].c, &err), 0);
	e[0].c->ops->close(e[0].c);
	CHECK_EQ(get(e[1].c, &b, 1), -ENODATA);
	e[1].c->ops->close(e[1].c);
	meet(e, NULL, NULL);
	CHECK_EQ(e[0].ret, 0);
	CHECK_STR(e[1].name, "a");
	part(e);
}

static void bulk_goes_both_ways_at_once(void)
{
	struct channel *c[2];
	struct end e[2];

	hosts_make_two();
	meet_well(e);
	c[0] = e[0].c;
	c[1] = e[1].c;
	pump_both(c, BULK, 3);
	part(e);
}

static void *send_much(void *arg)
{
	struct channel *c = arg;

	/* Past three changes of keys. */
	for (int i = 0; i < 13; i++)
		CHECK_EQ(put(c, pump_data(BULK), BULK), 0);
	return NULL;
}

static void change_keys(struct end e[2])
{
	static char back[1 << 20];
	pthread_t t;

	pump_data(BULK);
	CHECK_EQ(pthread_create(&t, NULL, send_much, e[0].c), 0);
	for (size_t i = 0; i < 13 * (BULK / sizeof(back)); i++) {
		CHECK_MSG(!get(e[1].c, back, sizeof(back)), "%s", err.text);
		CHECK(!memcmp(back, pump_data(BULK) + i * sizeof(back) % BULK, sizeof(back)));
		/* Answers while the keys change. */
		CHECK_EQ(put(e[1].c, back, 1), 0);
	}
	pthread_join(t, NULL);
	for (size_t i = 0; i < 13 * (BULK / sizeof(back)); i++)
		CHECK_EQ(get(e[0].c, back, 1), 0);
}

static void keys_change_on_the_way(void)
{
	struct end e[2];

	hosts_make_two();
	meet_well(e);
	change_keys(e);
	part(e);
}

/* ---- AES-GCM by our provider and by OpenSSL's own ---- */

static struct tls_identity *load_with(const char *host, enum tls_gcm_use use, const char *suite)
{
	struct tls_identity *id;

	tls_gcm_use(use);
	id = host_load(host);
	tls_gcm_use(TLS_GCM_WHERE_FAST);
	CHECK_EQ(SSL_CTX_set_ciphersuites(id->ctx, suite), 1);
	return id;
}

/* Where each of a and b takes AES-GCM from, and who must then have done it how often: a cipher for each direction. */
static const struct {
	enum tls_gcm_use use[2];
	unsigned contexts;
} sides[] = {
	{{TLS_GCM_ALWAYS, TLS_GCM_ALWAYS}, 4},
	{{TLS_GCM_ALWAYS, TLS_GCM_NEVER}, 2},
	{{TLS_GCM_NEVER, TLS_GCM_ALWAYS}, 2},
	{{TLS_GCM_NEVER, TLS_GCM_NEVER}, 0},
};

static const char *const suites[][2] = {
	{"TLS_AES_128_GCM_SHA256", "AES-128-GCM"},
	{"TLS_AES_256_GCM_SHA384", "AES-256-GCM"},
};

static void meet_sides(struct end e[2], size_t side, size_t suite)
{
	struct tls_identity *a = load_with("a", sides[side].use[0], suites[suite][0]);
	struct tls_identity *b = load_with("b", sides[side].use[1], suites[suite][0]);

	meet_with(e, a, b, "b", "a", "none");
	CHECK_MSG(!e[0].ret && !e[1].ret, "%s; %s", e[0].err.text, e[1].err.text);
	CHECK_HAS(e[0].c->peer, suites[suite][1]);
	CHECK_EQ(tls_gcm_contexts(), sides[side].contexts);
	tls_identity_free(a);
	tls_identity_free(b);
}

static void each_provider_understands_the_other(void)
{
	struct channel *c[2];
	struct end e[2];

	hosts_make_two();
	for (size_t suite = 0; suite < 2; suite++) {
		for (size_t side = 0; side < sizeof(sides) / sizeof(sides[0]); side++) {
			char byte;

			meet_sides(e, side, suite);
			c[0] = e[0].c;
			c[1] = e[1].c;
			pump_both(c, 8u << 20, side);
			e[0].c->ops->close(e[0].c);
			CHECK_EQ(get(e[1].c, &byte, 1), -ENODATA);
			e[1].c->ops->close(e[1].c);
			/* Every key is wiped and given back. */
			CHECK_EQ(tls_gcm_contexts(), 0);
		}
	}
}

static void keys_change_between_providers(void)
{
	struct end e[2];

	hosts_make_two();
	for (size_t side = 1; side < 3; side++) {
		meet_sides(e, side, side - 1);
		change_keys(e);
		part(e);
	}
}

static void the_provider_is_used_where_it_is_fast(void)
{
	struct tls_identity *id;
	struct end e[2];
	unsigned contexts;

	hosts_make_two();
	meet_well(e);
	contexts = tls_gcm_contexts();
	CHECK_EQ(contexts, tls_gcm_properties() ? 4 : 0);
	part(e);
	id = host_load("a");
	/* What decides whom we can talk to is as it was: three suites, AES-128 first where the processor has AES. */
	CHECK(sk_SSL_CIPHER_num(SSL_CTX_get_ciphers(id->ctx)) >= 3);
	CHECK_STR(SSL_CIPHER_get_name(sk_SSL_CIPHER_value(SSL_CTX_get_ciphers(id->ctx), 0)),
		  __builtin_cpu_supports("aes") ? "TLS_AES_128_GCM_SHA256"
						: "TLS_CHACHA20_POLY1305_SHA256");
	tls_identity_free(id);
}

static void an_unknown_client_is_refused(void)
{
	struct end e[2];

	hosts_make_two();
	CHECK_EQ(unlink(host_path("b", "trusted/a.pem")), 0);
	meet(e, "b", NULL);
	refused(e, "the other end refused this host's certificate SHA256:",
		"run `pagurus host trust a` on this host");
}

static void an_unknown_server_is_refused(void)
{
	struct end e[2];

	hosts_make_two();
	CHECK_EQ(tls_identity_create(host_path("b", NULL), "b", true, &err), 0);
	meet(e, "b", NULL);
	refused(e, "run `pagurus host trust b` on this host", "it is not trusted there");
}

static void an_expired_certificate_is_refused(void)
{
	struct end e[2];
	struct tls_identity *id;
	struct tls_identity *other;
	time_t now = time(NULL);

	hosts_make_two();
	/* Its own host does not even load it; here it expires between loading and meeting. */
	make_dated("a", "b", now - 2 * DAY, now - DAY);
	CHECK_EQ(tls_identity_load(host_path("a", NULL), &id, &err), -EKEYEXPIRED);
	CHECK(!id);
	CHECK_HAS(err.text, "pagurus host init --force");
	now = time(NULL);
	make_dated("a", "b", now - DAY, now + 5);
	id = host_load("a");
	while (time(NULL) <= now + 5)
		usleep(50000);
	other = host_load("b");
	meet_with(e, id, other, "b", NULL, "none");
	refused(e, "it has expired", "it has expired");
	CHECK_HAS(e[0].err.text, "the other end refused");
	CHECK_HAS(e[1].err.text, "this host refused");
	meet_with(e, other, id, NULL, NULL, "none");
	refused(e, "this host refused", "the other end refused");
	tls_identity_free(id);
	tls_identity_free(other);
}

static void a_certificate_of_the_future_is_refused(void)
{
	struct end e[2];
	time_t now = time(NULL);

	hosts_make_two();
	make_dated("a", "b", now + DAY, now + 2 * DAY);
	meet(e, "b", NULL);
	refused(e, "set both clocks", "set the clocks");
}

static void another_trusted_host_is_refused(void)
{
	struct end e[2];

	hosts_make_two();
	host_make("c");
	host_trust("a", "c");
	meet(e, "c", NULL);
	refused(e, "it is that of b, not of c", "expects another host");
	meet(e, NULL, "c");
	refused(e, "expects another host", "it is that of a, not of c");
}

/* ---- OpenSSL's own programs ---- */

struct program {
	pid_t pid;
	int in;
	int out;
};

static void start(struct program *p, const char *const argv[])
{
	int in[2], out[2];
	int null;

	CHECK_EQ(pipe2(in, O_CLOEXEC), 0);
	CHECK_EQ(pipe2(out, O_CLOEXEC), 0);
	p->pid = fork();
	if (p->pid == 0) {
		null = open("/dev/null", O_WRONLY);
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(null, 2);
		execvp(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	CHECK(p->pid > 0);
	close(in[0]);
	close(out[1]);
	p->in = in[1];
	p->out = out[0];
}

static void stop(struct program *p)
{
	close(p->in);
	close(p->out);
	kill(p->pid, SIGKILL);
	CHECK_EQ(waitpid(p->pid, NULL, 0), p->pid);
}

static struct sockaddr_un unix_address(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	snprintf(a.sun_path, sizeof(a.sun_path), "%.100s", host_path("sock", NULL));
	return a;
}

/* b as the server of one `openssl s_client` with these further arguments; input goes to its input first. */
static int serve_openssl(struct end *e, struct program *p, const char *const more[],
			 const char *input)
{
	struct sockaddr_un a = unix_address();
	const char *argv[24] = {"openssl", "s_client", "-quiet", "-unix", a.sun_path};
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct tls_identity *id = host_load("b");

	for (int i = 0; more[i]; i++)
		argv[5 + i] = more[i];
	unlink(a.sun_path);
	CHECK_EQ(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
	CHECK_EQ(listen(listener, 1), 0);
	start(p, argv);
	CHECK_EQ(write(p->in, input, strlen(input)), (ssize_t)strlen(input));
	*e = (struct end){.role = TLS_SERVER, .id = id};
	e->raw = wrap(accept4(listener, NULL, NULL, SOCK_CLOEXEC), PATIENT);
	handshake(e);
	close(listener);
	tls_identity_free(id);
	return e->ret;
}

static void openssl_client_with_the_right_certificate(void)
{
	const char *more[] = {"-cert", host_path("a", "cert.pem"), "-key",
			      host_path("a", "key.pem"), NULL};
	struct program p;
	struct end e;
	char buf[8];

	hosts_make_two();
	more[1] = host_path("a", "cert.pem");
	more[3] = host_path("a", "key.pem");
	/* P: what our side's confirmation is. */
	CHECK_MSG(!serve_openssl(&e, &p, more, "Phello"), "%s", e.err.text);
	CHECK_STR(e.name, "a");
	CHECK_EQ(get(e.c, buf, 5), 0);
	CHECK_MEM(buf, "hello", 5);
	CHECK_EQ(put(e.c, "world", 5), 0);
	for (size_t n = 0; n < 6;) {
		ssize_t got = read(p.out, buf + n, 6 - n);

		CHECK(got > 0);
		n += (size_t)got;
	}
	CHECK_MEM(buf, "Pworld", 6);
	/* Killed, it says no goodbye. */
	kill(p.pid, SIGKILL);
	CHECK_EQ(get(e.c, buf, 1), -EPIPE);
	CHECK_HAS(err.text, "without a goodbye");
	stop(&p);
	e.c->ops->close(e.c);
}

static void openssl_clients_that_are_refused(void)
{
	const char *none[] = {NULL};
	const char *wrong[] = {"-cert", NULL, "-key", NULL, NULL};
	const char *old[] = {"-tls1_2", "-cert", NULL, "-key", NULL, NULL};
	struct program p;
	struct end e;

	hosts_make_two();
	host_make("c");
	CHECK_EQ(serve_openssl(&e, &p, none, "P"), -EACCES);
	CHECK_HAS(e.err.text, "sent no certificate");
	stop(&p);
	wrong[1] = host_path("c", "cert.pem");
	wrong[3] = host_path("c", "key.pem");
	CHECK_EQ(serve_openssl(&e, &p, wrong, "P"), -EACCES);
	CHECK_HAS(e.err.text, "pagurus host trust c");
	stop(&p);
	old[2] = host_path("a", "cert.pem");
	old[4] = host_path("a", "key.pem");
	CHECK_EQ(serve_openssl(&e, &p, old, "P"), -EPROTO);
	CHECK_HAS(e.err.text, "TLS 1.3");
	stop(&p);
	make_dated("a", "b", time(NULL) - 2 * DAY, time(NULL) - DAY);
	wrong[1] = host_path("a", "cert.pem");
	wrong[3] = host_path("a", "key.pem");
	CHECK_EQ(serve_openssl(&e, &p, wrong, "P"), -EACCES);
	CHECK_HAS(e.err.text, "it has expired");
	stop(&p);
}

/* a as the client of an `openssl s_server` that uses host's certificate. */
static int visit_openssl(struct end *e, struct program *p, const char *host, const char *option,
			 const char *input)
{
	struct sockaddr_un a = unix_address();
	const char *argv[] = {"openssl",  "s_server",
			      "-quiet",	  "-unix",
			      a.sun_path, "-unlink",
			      "-cert",	  host_path(host, "cert.pem"),
			      "-key",	  host_path(host, "key.pem"),
			      "-Verify",  "1",
			      "-CAfile",  host_path("a", "cert.pem"),
			      option,	  NULL};
	struct tls_identity *id = host_load("a");
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int64_t end = channel_now_ns() + (int64_t)PATIENT * 1000000;

	unlink(a.sun_path);
	start(p, argv);
	while (connect(fd, (struct sockaddr *)&a, sizeof(a))) {
		CHECK_MSG(channel_now_ns() < end, "openssl s_server does not listen");
		usleep(10000);
	}
	CHECK_EQ(write(p->in, input, strlen(input)), (ssize_t)strlen(input));
	*e = (struct end){.role = TLS_CLIENT, .id = id, .raw = wrap(fd, PATIENT)};
	handshake(e);
	tls_identity_free(id);
	return e->ret;
}

static void openssl_server_with_the_right_certificate(void)
{
	struct program p;
	struct end e;
	char buf[8];

	hosts_make_two();
	CHECK_MSG(!visit_openssl(&e, &p, "b", NULL, "Phello"), "%s", e.err.text);
	CHECK_STR(e.name, "b");
	CHECK_EQ(get(e.c, buf, 5), 0);
	CHECK_MEM(buf, "hello", 5);
	e.c->ops->close(e.c);
	stop(&p);
}

static void openssl_servers_that_are_refused(void)
{
	struct program p;
	struct end e;

	hosts_make_two();
	host_make("c");
	CHECK_EQ(visit_openssl(&e, &p, "c", NULL, "P"), -EACCES);
	CHECK_HAS(e.err.text, "pagurus host trust c");
	stop(&p);
	CHECK_EQ(visit_openssl(&e, &p, "b", "-tls1_2", "P"), -EPROTO);
	CHECK_HAS(e.err.text, "TLS 1.3");
	stop(&p);
	make_dated("b", "a", time(NULL) - 2 * DAY, time(NULL) - DAY);
	CHECK_EQ(visit_openssl(&e, &p, "b", NULL, "P"), -EACCES);
	CHECK_HAS(e.err.text, "it has expired");
	stop(&p);
}

/* ---- peers that cheat ---- */

static int serve_bytes(const void *data, size_t n, bool end, unsigned timeout_ms, struct end *e)
{
	struct tls_identity *id = host_load("b");
	int fd[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	CHECK_EQ(write(fd[0], data, n), (ssize_t)n);
	if (end)
		shutdown(fd[0], SHUT_WR);
	*e = (struct end){.raw = wrap(fd[1], timeout_ms), .role = TLS_SERVER, .id = id};
	handshake(e);
	close(fd[0]);
	tls_identity_free(id);
	CHECK(!e->c);
	return e->ret;
}

static void garbage_is_refused(void)
{
	static const unsigned char half[] = {22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3};
	static const unsigned char huge[] = {22, 3, 1, 0xff, 0xff, 1};
	static const unsigned char early[] = {23, 3, 3, 0, 5, 1, 2, 3, 4, 5};
	static const unsigned char empty[] = {22, 3, 1, 0, 0};
	struct end e;

	hosts_make_two();
	CHECK_EQ(serve_bytes("GET / HTTP/1.0\r\n\r\n", 18, true, PATIENT, &e), -EPROTO);
	CHECK_HAS(e.err.text, "does not speak TLS");
	CHECK_EQ(serve_bytes(huge, sizeof(huge), true, PATIENT, &e), -EPROTO);
	CHECK_EQ(serve_bytes(early, sizeof(early), true, PATIENT, &e), -EPROTO);
	CHECK_EQ(serve_bytes(empty, sizeof(empty), true, PATIENT, &e), -EPROTO);
	CHECK_EQ(serve_bytes(half, sizeof(half), true, PATIENT, &e), -EPIPE);
	CHECK_EQ(serve_bytes("", 0, true, PATIENT, &e), -EPIPE);
	CHECK_EQ(serve_bytes(half, sizeof(half), false, 100, &e), -ETIMEDOUT);
	CHECK_EQ(serve_bytes("", 0, false, 100, &e), -ETIMEDOUT);
}

static void *drip(void *arg)
{
	static const unsigned char head[] = {22, 3, 1, 0x40, 0};
	int fd = *(int *)arg;

	/* A record that would take minutes to come, each byte well within the timeout; and then an end, which is no timeout. */
	for (int i = 0; i < 16000; i++) {
		if (send(fd, i < 5 ? (const void *)&head[i] : "", 1, MSG_NOSIGNAL) < 0)
			return NULL;
		usleep(10000);
	}
	shutdown(fd, SHUT_WR);
	return NULL;
}

/* The limit is one for the whole handshake, not for each wait. */
static void a_dripping_stranger_is_bounded(void)
{
	struct tls_identity *id;
	struct end e;
	pthread_t t;
	int fd[2];

	hosts_make_two();
	id = host_load("b");
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	CHECK_EQ(pthread_create(&t, NULL, drip, &fd[0]), 0);
	e = (struct end){.raw = wrap(fd[1], 2000), .role = TLS_SERVER, .id = id};
	handshake(&e);
	CHECK_EQ(e.ret, -ETIMEDOUT);
	pthread_join(t, NULL);
	close(fd[0]);
	tls_identity_free(id);
}

/* Every bit of the handshake counts, and losing the connection at any of its calls ends both sides. */
static void a_fault_at_every_call_of_the_handshake(void)
{
	static const char *const kinds[] = {"write-cut", "write-short", "write-flip", "write-fail",
					    "read-cut",	 "read-short",	"read-flip",  "read-fail"};
	struct tls_identity *a, *b;
	int met = 0;

	hosts_make_two();
	a = host_load("a");
	b = host_load("b");
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		for (unsigned n = 1;; n++) {
			struct end e[2];
			char fault[64];
			bool fired;

			snprintf(fault, sizeof(fault), "%s@call:%u", kinds[k], n);
			meet_with(e, a, b, "b", "a", fault);
			fired = !e[0].c || channel_fault_fired(e[0].raw);
			part(e);
			if (!fired) {
				CHECK_EQ(e[0].ret, 0);
				CHECK_EQ(e[1].ret, 0);
				met++;
				break;
			}
			CHECK_MSG(e[0].ret < 0 || e[1].ret < 0, "%s: both sides met", fault);
			/* The client may be satisfied only when the server was. */
			CHECK_MSG(e[0].ret < 0 || strstr(fault, "flip"), "%s: the client met",
				  fault);
			CHECK_MSG(n < 50, "%s: there is no end", fault);
		}
	}
	CHECK_EQ(met, 8);
	tls_identity_free(a);
	tls_identity_free(b);
}

static void run_fault(const char *fault, struct end e[2], struct tls_identity *a,
		      struct tls_identity *b, int *sent, int *received)
{
	static char back[1 << 20];
	struct iovec iov = {.iov_base = pump_data(sizeof(back)), .iov_len = sizeof(back)};

	meet_with(e, a, b, "b", "a", fault);
	CHECK_EQ(e[0].ret, 0);
	CHECK_EQ(e[1].ret, 0);
	/* The socket holds what is sent; no thread is needed. */
	*sent = e[0].c->ops->write(e[0].c, &iov, 1, &e[0].err);
	e[0].c->ops->close(e[0].c);
	*received = e[1].c->ops->read(e[1].c, back, sizeof(back), &e[1].err);
	e[1].c->ops->close(e[1].c);
}

static void notice_faults(enum tls_gcm_use use)
{
	struct tls_identity *a = load_with("a", use, suites[0][0]);
	struct tls_identity *b = load_with("b", use, suites[0][0]);
	struct end e[2];
	int sent, received;

	run_fault("none", e, a, b, &sent, &received);
	CHECK_EQ(sent, 0);
	CHECK_EQ(received, 0);
	run_fault("write-flip@byte:100000", e, a, b, &sent, &received);
	CHECK_EQ(sent, 0);
	CHECK_EQ(received, -EBADMSG);
	CHECK_HAS(e[1].err.text, "changed on its way");
	run_fault("write-cut@byte:500000", e, a, b, &sent, &received);
	CHECK_EQ(sent, -ECONNRESET);
	CHECK_EQ(received, -EPIPE);
	run_fault("write-short@byte:500000", e, a, b, &sent, &received);
	CHECK_EQ(sent, -EPIPE);
	CHECK_EQ(received, -EPIPE);
	run_fault("write-drop@byte:500000", e, a, b, &sent, &received);
	CHECK_EQ(sent, 0);
	CHECK(received == -EBADMSG || received == -EPROTO);
	tls_identity_free(a);
	tls_identity_free(b);
}

static void faults_in_the_data_are_noticed(void)
{
	hosts_make_two();
	notice_faults(TLS_GCM_ALWAYS);
	notice_faults(TLS_GCM_NEVER);
}

/* Ends that have met, and the descriptors below them. */
static void meet_bare(struct end e[2], int fd[2])
{
	pthread_t t;
	struct tls_identity *a = host_load("a"), *b = host_load("b");

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	e[0] = (struct end){.raw = wrap(fd[0], PATIENT), .role = TLS_CLIENT, .id = a};
	e[1] = (struct end){.raw = wrap(fd[1], PATIENT), .role = TLS_SERVER, .id = b};
	CHECK_EQ(pthread_create(&t, NULL, handshake, &e[1]), 0);
	handshake(&e[0]);
	pthread_join(t, NULL);
	CHECK_MSG(!e[0].ret && !e[1].ret, "%s; %s", e[0].err.text, e[1].err.text);
	tls_identity_free(a);
	tls_identity_free(b);
}

/* Records and what follows them arrive at once: the records count. */
static void what_came_before_the_fault_is_delivered(void)
{
	static const struct {
		const char *bytes;
		size_t n;
		int ret;
		const char *says;
	} ends[] = {
		{"GET / HTTP", 10, -EPROTO, "does not speak TLS (it sent 47 45 54 20 2f)"},
		{"\x17\x03\x03", 3, -EPIPE, "within a TLS record"},
		{"\x17\x03\x03\x01\x00", 5, -EPIPE, "within a TLS record"},
		{"\x17\x03\x03\x01\x00?", 6, -EPIPE, "within a TLS record"},
		{"", 0, -EPIPE, "without a goodbye"},
		{"\x17\x03\x03\x00\x14?????????????????????", 25, -EBADMSG, "changed on its way"},
	};
	static char back[100000];

	hosts_make_two();
	for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
		struct end e[2];
		int fd[2];

		meet_bare(e, fd);
		/* The socket holds all of it. */
		CHECK_EQ(put(e[0].c, pump_data(sizeof(back)), sizeof(back)), 0);
		CHECK_EQ(write(fd[0], ends[i].bytes, ends[i].n), (ssize_t)ends[i].n);
		CHECK_EQ(shutdown(fd[0], SHUT_WR), 0);
		CHECK_EQ(get(e[1].c, back, sizeof(back)), 0);
		CHECK_MEM(back, pump_data(sizeof(back)), sizeof(back));
		CHECK_EQ(get(e[1].c, back, 1), ends[i].ret);
		CHECK_HAS(err.text, ends[i].says);
		part(e);
	}
}

#define RELAY_MAX 300000u

struct relay {
	int from, to;
	uint64_t random;
	pthread_t thread;
};

/* Hand on what comes in pieces that have nothing to do with how it was sent. */
static void *relay(void *arg)
{
	static const size_t most[] = {1, 7, 100, 5000, 40000, RELAY_MAX};
	struct relay *r = arg;
	char *buf = malloc(RELAY_MAX);
	ssize_t n;

	CHECK(buf);
	while ((n = read(r->from, buf, most[unit_below(&r->random, 6)])) > 0) {
		for (ssize_t at = 0, done; at < n; at += done) {
			done = send(r->to, buf + at, (size_t)(n - at), MSG_NOSIGNAL);
			/* The other end has all that it wanted; else it says what is missing. */
			if (done <= 0)
				goto out;
		}
	}
out:
	shutdown(r->to, SHUT_WR);
	free(buf);
	return NULL;
}

static void records_may_arrive_in_any_pieces(void)
{
	struct tls_identity *a, *b;
	struct channel *c[2];
	struct relay r[2];
	pthread_t server;
	struct end e[2];
	int fd[2][2];

	hosts_make_two();
	a = host_load("a");
	b = host_load("b");
	for (int i = 0; i < 2; i++)
		CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd[i]), 0);
	for (int i = 0; i < 2; i++) {
		r[i] = (struct relay){
			.from = fd[i][1], .to = fd[1 - i][1], .random = unit_seed() + (uint64_t)i};
		CHECK_EQ(pthread_create(&r[i].thread, NULL, relay, &r[i]), 0);
	}
	e[0] = (struct end){.raw = wrap(fd[0][0], PATIENT), .role = TLS_CLIENT, .id = a};
	e[1] = (struct end){.raw = wrap(fd[1][0], PATIENT), .role = TLS_SERVER, .id = b};
	CHECK_EQ(pthread_create(&server, NULL, handshake, &e[1]), 0);
	handshake(&e[0]);
	pthread_join(server, NULL);
	CHECK_MSG(!e[0].ret && !e[1].ret, "%s; %s", e[0].err.text, e[1].err.text);
	c[0] = e[0].c;
	c[1] = e[1].c;
	pump_both(c, 16u << 20, 5);
	part(e);
	for (int i = 0; i < 2; i++) {
		pthread_join(r[i].thread, NULL);
		close(fd[i][1]);
	}
	tls_identity_free(a);
	tls_identity_free(b);
}

static void a_killed_peer_is_noticed(void)
{
	static char back[1 << 20];
	struct tls_identity *a, *b;
	struct end e;
	int fd[2];
	pid_t pid;
	int ret;

	hosts_make_two();
	a = host_load("a");
	b = host_load("b");
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	pid = fork();
	if (pid == 0) {
		close(fd[0]);
		e = (struct end){.raw = wrap(fd[1], PATIENT), .role = TLS_SERVER, .id = b};
		handshake(&e);
		if (!e.ret && !get(e.c, back, sizeof(back)))
			raise(SIGKILL);
		_exit(1);
	}
	close(fd[1]);
	e = (struct end){.raw = wrap(fd[0], PATIENT), .role = TLS_CLIENT, .id = a};
	handshake(&e);
	CHECK_MSG(!e.ret, "%s", e.err.text);
	while (!(ret = put(e.c, back, sizeof(back))))
		;
	CHECK(ret == -EPIPE || ret == -ECONNRESET);
	CHECK_HAS(err.text, "the other end is gone");
	ret = get(e.c, back, 1);
	CHECK(ret == -EPIPE || ret == -ECONNRESET);
	e.c->ops->close(e.c);
	CHECK_EQ(waitpid(pid, &ret, 0), pid);
	CHECK(WIFSIGNALED(ret) && WTERMSIG(ret) == SIGKILL);
	tls_identity_free(a);
	tls_identity_free(b);
}

/* ---- waiting ---- */

static void *blocked_read(void *arg)
{
	struct pgr_error mine;
	struct channel *c = arg;
	char b;

	return (void *)(intptr_t)c->ops->read(c, &b, 1, &mine);
}

static void *blocked_write(void *arg)
{
	struct pgr_error mine;
	struct iovec iov = {.iov_base = pump_data(BULK), .iov_len = BULK};
	struct channel *c = arg;

	return (void *)(intptr_t)c->ops->write(c, &iov, 1, &mine);
}

static void cancel_wakes_both_threads(void)
{
	struct end e[2];
	pthread_t r, w;
	void *ret;

	hosts_make_two();
	meet_well(e);
	pump_data(BULK);
	CHECK_EQ(pthread_create(&r, NULL, blocked_read, e[0].c), 0);
	CHECK_EQ(pthread_create(&w, NULL, blocked_write, e[0].c), 0);
	usleep(50000);
	e[0].c->ops->shutdown(e[0].c);
	pthread_join(r, &ret);
	CHECK_EQ((intptr_t)ret, -ECANCELED);
	pthread_join(w, &ret);
	CHECK_EQ((intptr_t)ret, -ECANCELED);
	part(e);
}

static void silence_times_out(void)
{
	struct tls_identity *a, *b;
	struct end e[2];
	pthread_t t;
	int fd[2];
	char byte;

	hosts_make_two();
	a = host_load("a");
	b = host_load("b");
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	e[0] = (struct end){.raw = wrap(fd[0], 1000), .role = TLS_CLIENT, .id = a};
	e[1] = (struct end){.raw = wrap(fd[1], PATIENT), .role = TLS_SERVER, .id = b};
	CHECK_EQ(pthread_create(&t, NULL, handshake, &e[1]), 0);
	handshake(&e[0]);
	pthread_join(t, NULL);
	CHECK_MSG(!e[0].ret && !e[1].ret, "%s", e[0].err.text);
	CHECK_EQ(get(e[0].c, &byte, 1), -ETIMEDOUT);
	CHECK_EQ(put(e[0].c, pump_data(BULK), BULK), -ETIMEDOUT);
	part(e);
	tls_identity_free(a);
	tls_identity_free(b);
}

/* ---- memory ---- */

/* The next one to fail: each of the first 64, then every 64th part further, as there are thousands. */
static unsigned long next_allocation(unsigned long n)
{
	return n + 1 + n / 64;
}

static void no_memory_while_loading(void)
{
	struct tls_identity *id;
	unsigned long n = 1;
	unsigned failed = 0;
	bool struck;

	hosts_make_two();
	do {
		int ret;

		unit_fail_alloc(n);
		ret = tls_identity_load(host_path("a", NULL), &id, &err);
		struck = unit_fail_alloc(0) >= n;
		CHECK_EQ(ret == 0, id != NULL);
		CHECK(!ret || err.code == ret);
		failed += ret != 0;
		/* OpenSSL can do without some; what was loaded must be whole all the same. */
		CHECK(ret || (id->nr_trusted == 1 && id->ctx && id->cert));
		tls_identity_free(id);
		n = next_allocation(n);
	} while (struck);
	CHECK(failed > 10);
}

static void no_memory_while_meeting(void)
{
	struct tls_identity *a, *b;
	struct end e[2];
	unsigned long n = 1;
	unsigned failed = 0;
	bool struck;

	hosts_make_two();
	a = host_load("a");
	b = host_load("b");
	do {
		pthread_t t;
		int fd[2];

		CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
		e[0] = (struct end){.raw = wrap(fd[0], PATIENT), .role = TLS_CLIENT, .id = a};
		e[1] = (struct end){.raw = wrap(fd[1], PATIENT), .role = TLS_SERVER, .id = b};
		CHECK_EQ(pthread_create(&t, NULL, handshake, &e[1]), 0);
		unit_fail_alloc(n);
		handshake(&e[0]);
		struck = unit_fail_alloc(0) >= n;
		pthread_join(t, NULL);
		CHECK_EQ(e[0].ret == 0, e[0].c != NULL);
		CHECK_MSG(e[0].ret || !e[1].ret, "allocation %lu: only the client met: %s", n,
			  e[1].err.text);
		part(e);
		failed += e[0].ret != 0;
		n = next_allocation(n);
	} while (struck);
	CHECK(failed > 10);
	tls_identity_free(a);
	tls_identity_free(b);
}

/* ---- identities ---- */

static mode_t mode_of(const char *host, const char *file)
{
	struct stat st;

	CHECK_EQ(stat(host_path(host, file), &st), 0);
	return st.st_mode & 07777;
}

static void an_identity_is_made_once(void)
{
	char before[65536];

	hosts_remove();
	host_make("a");
	CHECK_EQ(mode_of("a", NULL), 0700);
	CHECK_EQ(mode_of("a", "key.pem"), 0600);
	snprintf(before, sizeof(before), "%s", host_read(host_path("a", "key.pem")));
	CHECK_EQ(tls_identity_create(host_path("a", NULL), "a", false, &err), -EEXIST);
	CHECK_HAS(err.text, "--force");
	CHECK_STR(host_read(host_path("a", "key.pem")), before);
	CHECK_EQ(tls_identity_create(host_path("a", NULL), "a", true, &err), 0);
	CHECK(strcmp(host_read(host_path("a", "key.pem")), before) != 0);
	CHECK(access(host_path("a", ".key.pem.new"), F_OK) &&
	      access(host_path("a", ".cert.pem.new"), F_OK));
	CHECK_EQ(tls_identity_create(host_path("no/such", NULL), "a", false, &err), -ENOENT);
	CHECK_HAS(err.text, "make the folder");
}

static void *make_at_once(void *arg)
{
	struct pgr_error mine;

	return (void *)(intptr_t)tls_identity_create(arg, "a", false, &mine);
}

static void of_many_makers_one_makes(void)
{
	pthread_t t[4];
	char dir[512];
	void *ret;
	int made = 0;

	hosts_remove();
	snprintf(dir, sizeof(dir), "%s", host_path("a", NULL));
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&t[i], NULL, make_at_once, dir), 0);
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], &ret);
		CHECK((intptr_t)ret == 0 || (intptr_t)ret == -EEXIST);
		made += (intptr_t)ret == 0;
	}
	CHECK_EQ(made, 1);
	tls_identity_free(host_load("a"));
}

static void check_load(int ret, const char *says)
{
	struct tls_identity *id;

	CHECK_EQ(tls_identity_load(host_path("a", NULL), &id, &err), ret);
	CHECK(!id);
	CHECK_HAS(err.text, says);
}

static void what_cannot_be_relied_on_is_not_loaded(void)
{
	hosts_remove();
	check_load(-ENOENT, "run `pagurus host init`");
	host_make("a");
	CHECK_EQ(chmod(host_path("a", "key.pem"), 0640), 0);
	check_load(-EPERM, "chmod 600");
	CHECK_EQ(chmod(host_path("a", "key.pem"), 0600), 0);
	CHECK_EQ(chmod(host_path("a", NULL), 0770), 0);
	check_load(-EPERM, "chmod 700");
	CHECK_EQ(chmod(host_path("a", NULL), 0700), 0);
	CHECK_EQ(rename(host_path("a", "key.pem"), host_path("a", "k")), 0);
	check_load(-ENOENT, "run `pagurus host init`");
	CHECK_EQ(symlink("k", host_path("a", "key.pem")), 0);
	check_load(-ELOOP, "key.pem");
	CHECK_EQ(unlink(host_path("a", "key.pem")), 0);
	CHECK_EQ(close(open(host_path("a", "key.pem"), O_CREAT | O_WRONLY, 0600)), 0);
	check_load(-EINVAL, "key.pem");
	CHECK_EQ(truncate(host_path("a", "key.pem"), 100), 0);
	check_load(-EINVAL, "is not a private key");
	host_make("b");
	CHECK_EQ(rename(host_path("b", "key.pem"), host_path("a", "key.pem")), 0);
	check_load(-EKEYREJECTED, "do not belong together");
	CHECK_EQ(rename(host_path("a", "k"), host_path("a", "key.pem")), 0);
	CHECK_EQ(truncate(host_path("b", "cert.pem"), 100), 0);
	CHECK_EQ(rename(host_path("b", "cert.pem"), host_path("a", "trusted/b.pem")), 0);
	check_load(-EINVAL, "b: is not a certificate");
	CHECK_EQ(unlink(host_path("a", "trusted/b.pem")), 0);
	tls_identity_free(host_load("a"));
}

/* The PEM text of a self-signed certificate for such a key. */
static const char *cert_for(EVP_PKEY *key, time_t from, time_t until)
{
	BIO *bio = BIO_new(BIO_s_mem());
	static char text[8192];
	X509 *cert;
	int n;

	CHECK(key);
	CHECK_EQ(tls_certificate_make(key, "k", from, until, &cert), 0);
	CHECK(PEM_write_bio_X509(bio, cert));
	n = BIO_read(bio, text, sizeof(text) - 1);
	CHECK(n > 0);
	text[n] = '\0';
	BIO_free(bio);
	X509_free(cert);
	EVP_PKEY_free(key);
	return text;
}

static void check_trust(const char *name, const char *pem, int ret, const char *says)
{
	CHECK_MSG(tls_identity_trust(host_path("a", NULL), name, pem, &err) == ret, "%s: %d, %s",
		  name, err.code, err.text);
	CHECK_HAS(ret ? err.text : "", says);
}

static void only_good_certificates_are_trusted(void)
{
	static const char *const names[] = {
		"",
		".",
		"..",
		"../x",
		"a/b",
		"-x",
		".x",
		"a b",
		"a\n",
		"ü",
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
	time_t now = time(NULL);
	char two[16384];
	size_t length;
	struct tls_identity *id;

	hosts_remove();
	host_make("a");
	check_trust("k", "", -EINVAL, "not a certificate");
	check_trust("k", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", -EINVAL,
		    "not a certificate");
	check_trust("k", host_read(host_path("a", "key.pem")), -EINVAL, "not a certificate");
	check_trust("k", cert_for(EVP_EC_gen("P-224"), now - 1, now + DAY), -EINVAL, "weaker");
	check_trust("k", cert_for(EVP_RSA_gen(2048), now - 1, now + DAY), -EINVAL, "weaker");
	check_trust("k", cert_for(EVP_EC_gen("P-256"), now - DAY, now - 1), -EKEYEXPIRED,
		    "expired");
	check_trust("k", cert_for(EVP_EC_gen("P-256"), now + DAY, now + 2 * DAY), -EKEYREJECTED,
		    "not valid yet");
	snprintf(two, sizeof(two), "%s", cert_for(EVP_EC_gen("P-384"), now - 1, now + DAY));
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		check_trust(names[i], two, -EINVAL, "choose another name");
	check_trust("k", two, 0, "");
	check_trust("k.lan_2", two, 0, "");
	length = strlen(two);
	snprintf(two + length, sizeof(two) - length, "%s",
		 cert_for(EVP_EC_gen("P-256"), now - 1, now + DAY));
	check_trust("k", two, -EINVAL, "more than one");
	id = host_load("a");
	CHECK_EQ(id->nr_trusted, 2);
	tls_identity_free(id);
	CHECK_EQ(tls_identity_trust(host_path("none", NULL), "k",
				    cert_for(EVP_EC_gen("P-256"), now - 1, now + DAY), &err),
		 -ENOENT);
	CHECK_HAS(err.text, "pagurus host init");
}

static void fingerprints_are_those_of_openssl(void)
{
	char fingerprint[128];
	char theirs[256] = "";
	struct program p = {0};
	const char *argv[] = {"openssl", "x509", "-noout", "-fingerprint",
			      "-sha256", "-in",	 NULL,	   NULL};

	hosts_remove();
	host_make("a");
	argv[6] = host_path("a", "cert.pem");
	CHECK_EQ(tls_fingerprint(host_read(host_path("a", "cert.pem")), fingerprint, &err), 0);
	start(&p, argv);
	for (size_t n = 0; n < sizeof(theirs) - 1;) {
		ssize_t got = read(p.out, theirs + n, sizeof(theirs) - 1 - n);

		if (got <= 0)
			break;
		n += (size_t)got;
	}
	stop(&p);
	CHECK_HAS(fingerprint, "SHA256:");
	CHECK_HAS(theirs, fingerprint + strlen("SHA256:"));
	CHECK_EQ(tls_fingerprint("x", fingerprint, &err), -EINVAL);
	hosts_remove();
}

UNIT_MAIN(TEST(hosts_that_trust_each_other_meet), TEST(bulk_goes_both_ways_at_once),
	  TEST(keys_change_on_the_way), TEST(each_provider_understands_the_other),
	  TEST(keys_change_between_providers), TEST(the_provider_is_used_where_it_is_fast),
	  TEST(an_unknown_client_is_refused), TEST(an_unknown_server_is_refused),
	  TEST(an_expired_certificate_is_refused), TEST(a_certificate_of_the_future_is_refused),
	  TEST(another_trusted_host_is_refused), TEST(openssl_client_with_the_right_certificate),
	  TEST(openssl_clients_that_are_refused), TEST(openssl_server_with_the_right_certificate),
	  TEST(openssl_servers_that_are_refused), TEST(garbage_is_refused),
	  TEST(a_dripping_stranger_is_bounded), TEST(a_fault_at_every_call_of_the_handshake),
	  TEST(faults_in_the_data_are_noticed), TEST(what_came_before_the_fault_is_delivered),
	  TEST(records_may_arrive_in_any_pieces), TEST(a_killed_peer_is_noticed),
	  TEST(cancel_wakes_both_threads), TEST(silence_times_out), TEST(no_memory_while_loading),
	  TEST(no_memory_while_meeting), TEST(an_identity_is_made_once),
	  TEST(of_many_makers_one_makes), TEST(what_cannot_be_relied_on_is_not_loaded),
	  TEST(only_good_certificates_are_trusted), TEST(fingerprints_are_those_of_openssl))
