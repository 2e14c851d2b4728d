// SPDX-License-Identifier: MIT
/*
 * A disk on an NBD server with TLS, by way of a relay: addresses, the handshake with good servers and bad ones, and what is passed on. Our server and libnbd are at
 * the ends, over a disk in memory; keys change all the time.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/ssl.h>

static unsigned rekeyed;

static int count_key_update(SSL *ssl, int kind)
{
	rekeyed++;
	return SSL_key_update(ssl, kind);
}

/* Often, but OpenSSL takes no more than 32 of the other side's without data between them. */
#define REKEY_BYTES    (UINT64_C(1) << 20)
#define SSL_key_update count_key_update
#include "storage/nbd_relay.c" /* NOLINT(bugprone-suspicious-include) */

#include "storage/block_nbd.h"
#include "storage/nbd_address.h"
#include "storage/nbd_dial.h"
#include "storage/nbd_server.h"
#include "storage/nbd_starttls.h"
#include "storage/offload.h"
#include "tests/storage/tape.h"
#include "tests/unit/tls_hosts.h"
#include "tests/unit/unit.h"

#define SIZE	   (8u << 20)
#define PATIENT_NS UINT64_C(60000000000) /* only reached by a hang */

static struct loop *loop;
static struct tape *tape;
static struct block *disk;
static struct nbd_server *server;
static struct tls_identity *ours, *theirs; /* of a, the client's host, and b */
static struct pgr_error err;

/* ---- addresses ---- */

static void addresses_are_taken_apart(void)
{
	static const struct {
		const char *uri, *host, *port, *path, *export;
		bool tls, identity;
	} good[] = {
		{"nbd://b/disk", "b", "10809", "", "disk", false, false},
		{"nbds://b.example:1/", "b.example", "1", "", "", true, true},
		{"nbds://b", "b", "10809", "", "", true, true},
		{"nbds://b:/x?y", "b", "10809", "", "x", true, true},
		{"nbds://[::1]:65535//a/b", "::1", "65535", "", "/a/b", true, true},
		{"nbd://[fe80::1]#x/y", "fe80::1", "10809", "", "", false, false},
		{"nbds://b/a%20%2f%3fb?tls-certificates=/x", "b", "10809", "", "a /?b", true,
		 false},
		{"nbds://b/tls-psk-file=x", "b", "10809", "", "tls-psk-file=x", true, true},
		{"nbds://b/?x=1;tls%2Dpsk-file=y", "b", "10809", "", "", true, false},
		{"nbds://b/?x=1#&tls-psk-file=y", "b", "10809", "", "", true, true},
		{"nbd+unix:///d?socket=/a%20b", "", "10809", "/a b", "d", false, false},
		{"nbds+unix://b/d?x&socket=/s;y", "b", "10809", "/s", "d", true, true},
	};

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		struct nbd_address a;

		CHECK_MSG(!nbd_address_parse(good[i].uri, &a, &err), "%s", err.text);
		CHECK(nbd_address_is(good[i].uri));
		CHECK_STR(a.host, good[i].host);
		CHECK_STR(a.port, good[i].port);
		CHECK_STR(a.path, good[i].path);
		CHECK_STR(a.export, good[i].export);
		CHECK_EQ(a.tls, good[i].tls);
		CHECK_EQ(nbd_address_takes_identity(good[i].uri), good[i].identity);
	}
}

static void no_addresses(void)
{
	static const char *const bad[] = {"",
					  "nbd:/",
					  "NBD://a/",
					  "http://a/",
					  "nbd+tcp://a/",
					  "nbds://",
					  "nbds:///x",
					  "nbds://:1/",
					  "nbds://[]/",
					  "nbds://[::1/",
					  "nbds://[::1]1/",
					  "nbds://user@b/",
					  "nbds://b:0/",
					  "nbds://b:65536/",
					  "nbds://b:-1/",
					  "nbds://b:1x/",
					  "nbds://b:000001/",
					  "nbds://b/%",
					  "nbds://b/%4",
					  "nbds://b/%4?2",
					  "nbds://b/%zz",
					  "nbds://b/a%00b",
					  "nbds+unix://b/",
					  "nbds+unix:///?socket=",
					  "nbds+unix:///?socket",
					  "nbds+unix:///?Socket=/x",
					  "nbds+unix:///#?socket=/x",
					  "nbds+unix:///x?socket=a%0"};
	static const char *const heads[] = {"nbds://",	 "nbds://b/", "nbds+unix:///?socket=/",
					    "nbds://b:", "nbds://[",  "nbds+unix://"};
	static char text[3 * NBD_NAME_MAX];
	struct nbd_address a;

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		CHECK_MSG(nbd_address_parse(bad[i], &a, &err) == -EINVAL, "%s", bad[i]);
		CHECK_HAS(err.text, "nbds://");
	}
	for (unsigned i = 0; i < sizeof(heads) / sizeof(heads[0]); i++) {
		memset(text, '1', sizeof(text) - 1);
		memcpy(text, heads[i], strlen(heads[i]));
		CHECK_EQ(nbd_address_parse(text, &a, &err), -EINVAL);
	}
	/* As long as it may be, and one more. */
	snprintf(text, sizeof(text), "nbds://b/%0*u", (int)NBD_NAME_MAX, 1u);
	CHECK_EQ(nbd_address_parse(text, &a, &err), 0);
	snprintf(text, sizeof(text), "nbds://b/%0*u", (int)NBD_NAME_MAX + 1, 1u);
	CHECK_EQ(nbd_address_parse(text, &a, &err), -EINVAL);
	CHECK(!nbd_address_takes_identity("/disks/nbds://x"));
}

/* ---- a server with TLS in this loop ---- */

static void setup(bool tls)
{
	struct nbd_options o = {.identity = NULL};

	signal(SIGPIPE, SIG_IGN);
	err = PGR_ERROR_NONE;
	hosts_make_two();
	ours = host_load("a");
	theirs = host_load("b");
	if (tls)
		o.identity = theirs;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	tape = tape_new(NULL, SIZE);
	disk = tape_open(tape, loop, &(struct tape_options){.seed = 1});
	CHECK_EQ(nbd_server_create(loop, &o, &server, &err), 0);
	CHECK_EQ(nbd_server_export(server, &(struct nbd_export){.name = "a disk", .disk = disk},
				   &err),
		 0);
}

static void teardown(void)
{
	nbd_server_free(server);
	CHECK_EQ(block_close(disk, NULL), 0);
	tape_free(tape);
	loop_free(loop);
	tls_identity_free(ours);
	tls_identity_free(theirs);
}

static void make_pair(int pair[2])
{
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
}

/* ---- the handshake ---- */

struct handshake {
	struct nbd_starttls o;
	int fd;
	SSL *ssl;
	uint16_t flags;
	struct pgr_error err;
};

static int shake(void *ctx)
{
	struct handshake *h = ctx;

	return nbd_starttls(h->fd, &h->o, &h->ssl, &h->flags, &h->err);
}

/* In a thread, since it waits; on failure fd is closed. */
static int meet_at(struct handshake *h, int fd, const struct tls_identity *id, const char *expect,
		   const char *export)
{
	int ret;

	*h = (struct handshake){.o = {.name = "nbds://b/disk",
				      .identity = id,
				      .expect = expect,
				      .export = export,
				      .deadline_ns = loop_now_ns() + PATIENT_NS},
				.fd = fd};
	ret = offload(loop, shake, h);
	CHECK_EQ(ret, h->err.code);
	if (ret)
		close(fd);
	CHECK_EQ(h->ssl != NULL, !ret && id);
	return ret;
}

static int meet(struct handshake *h, const struct tls_identity *id, const char *expect,
		const char *export)
{
	int pair[2];

	make_pair(pair);
	CHECK_EQ(nbd_server_accept(server, pair[1], &err), 0);
	return meet_at(h, pair[0], id, expect, export);
}

static void part(struct handshake *h)
{
	SSL_free(h->ssl);
	close(h->fd);
}

static void who_is_there(void)
{
	struct tls_identity *third;
	struct handshake h;

	setup(true);
	CHECK_MSG(!meet(&h, ours, "b", "a disk"), "%s", h.err.text);
	CHECK_EQ(h.flags, NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	part(&h);
	/* By whatever name; the export that there is. */
	CHECK_EQ(meet(&h, ours, NULL, ""), 0);
	part(&h);
	CHECK_EQ(meet(&h, ours, "c", "a disk"), -EACCES);
	CHECK_HAS(h.err.text, "it is that of b, not of c");
	CHECK_EQ(meet(&h, ours, "b", "another"), -ENOENT);
	CHECK_HAS(h.err.text, "nbds://b/disk: the server has no such export (there is no export");
	/* It trusts b, and is not trusted there; and the other way round. */
	host_make("c");
	host_trust("c", "b");
	third = host_load("c");
	CHECK_EQ(meet(&h, third, "b", "a disk"), -EACCES);
	CHECK_HAS(h.err.text, "the other end refused this host's certificate");
	tls_identity_free(third);
	host_make("d");
	third = host_load("d");
	CHECK_EQ(meet(&h, third, "b", "a disk"), -EACCES);
	CHECK_HAS(h.err.text, "it is not trusted here");
	CHECK_HAS(h.err.text, "pagurus host trust b");
	tls_identity_free(third);
	teardown();
}

static void a_server_without_tls(void)
{
	struct handshake h;

	setup(false);
	CHECK_EQ(meet(&h, ours, "b", "a disk"), -EOPNOTSUPP);
	CHECK_HAS(h.err.text, "the server does no TLS (this server has no TLS)");
	CHECK_EQ(meet(&h, NULL, NULL, "a disk"), 0);
	close(h.fd);
	teardown();
}

/* ---- servers that are none ---- */

#define GREETING   "NBDMAGICIHAVEOPT\0\3"
#define REPLY	   "\0\3\xe8\x89\4\x55\x65\xa9\0\0\0"
#define STARTTLS   GREETING REPLY "\5\0\0\0"
#define INFO	   GREETING REPLY "\6"
#define BYTES(...) __VA_ARGS__, sizeof(__VA_ARGS__) - 1

/* It says this, and nothing more; with an end or without. */
static int meet_raw(struct handshake *h, const struct tls_identity *id, const void *said,
		    size_t length, bool end)
{
	int pair[2], ret;

	make_pair(pair);
	CHECK_EQ(send(pair[1], said, length, MSG_NOSIGNAL), (ssize_t)length);
	if (end)
		shutdown(pair[1], SHUT_WR);
	ret = meet_at(h, pair[0], id, "b", "a disk");
	if (!ret)
		part(h);
	close(pair[1]);
	return ret;
}

/* What a server says, and what becomes of it. */
struct said {
	const char *said;
	size_t length;
	int code;
	const char *text;
};

static void check_said(const struct said *list, size_t nr, const struct tls_identity *id)
{
	struct handshake h;

	for (size_t i = 0; i < nr; i++) {
		int ret = meet_raw(&h, id, list[i].said, list[i].length, true);

		CHECK_MSG(ret == list[i].code, "%zu: %d: %s", i, ret, h.err.text);
		CHECK_HAS(h.err.text, list[i].text);
	}
}

static void servers_that_are_none(void)
{
	static const struct said bad[] = {
		{BYTES("SSH-2.0-OpenSSH_9.2p1\r\n"), -EPROTO, "no NBD server"},
		{BYTES("\x16\3\1\2\0\1\0\1\xfc\3\3"), -EPROTO, "no NBD server"},
		{BYTES(""), -ECONNRESET, "ended the connection"},
		{BYTES("NBDMAGIC\0\0\x42\2\x81\x86\x12\x53\0\0"), -EOPNOTSUPP,
		 "before there was TLS"},
		{BYTES("NBDMAGICIHAVEOPT\0\2"), -EOPNOTSUPP, "before there was TLS"},
		{BYTES("NBDMAGICIHAVE"), -ECONNRESET, "ended the connection"},
		{BYTES(GREETING), -ECONNRESET, "ended the connection"},
		{BYTES(GREETING "IHAVEOPT\0\0\0\5\0\0\0\1\0\0\0\0"), -EPROTO, "breaks the rules"},
		/* The answer to something else; too long; with something in it. */
		{BYTES(GREETING REPLY "\6\0\0\0\1\0\0\0\0"), -EPROTO, "breaks the rules"},
		{BYTES(STARTTLS "\1\xff\xff\xff\xff"), -EPROTO, "breaks the rules"},
		{BYTES(STARTTLS "\1\0\0\0\1x"), -EPROTO, "breaks the rules"},
		{BYTES(GREETING REPLY "\5\x80\0\0\1\0\0\0\4no\033!"), -EOPNOTSUPP, "no TLS (no?!)"},
		{BYTES(GREETING REPLY "\5\x80\0\0\2\0\0\0\0"), -EOPNOTSUPP, "it gives no reason"},
		/* In the clear, where TLS should begin. */
		{BYTES(STARTTLS "\1\0\0\0\0" REPLY "\6\0\0\0\1\0\0\0\0"), -EPROTO, "TLS"},
		{BYTES(STARTTLS "\1\0\0\0\0"), -EPROTO, "TLS"},
	};

	setup(true);
	check_said(bad, sizeof(bad) / sizeof(bad[0]), ours);
	teardown();
}

/* What is said to the question for the export. */
static void answers_about_the_export(void)
{
	static const struct said answers[] = {
		{BYTES(INFO "\0\0\0\1\0\0\0\0"), 0, ""},
		{BYTES(INFO "\0\0\0\3\0\0\0\2xy" REPLY "\6\0\0\0\1\0\0\0\0"), 0, ""},
		{BYTES(INFO "\x80\0\0\1\0\0\0\0"), 0, ""},
		{BYTES(INFO "\x80\0\0\x08\0\0\0\0"), 0, ""},
		{BYTES(INFO "\x80\0\0\2\0\0\0\5never"), -EPERM, "refuses this export (never)"},
		{BYTES(INFO "\x80\0\0\6\0\0\0\0"), -ENOENT, "no such export"},
		{BYTES(INFO "\0\0\0\2\0\0\0\0"), -EPROTO, "breaks the rules"},
		{BYTES(INFO "\0\0\0\3\0\0\x20\1"), -EPROTO, "breaks the rules"},
		{BYTES(INFO "\0\0\0\3\0\0\0\2x"), -ECONNRESET, "ended the connection"},
	};
	static char endless[sizeof(GREETING) + 65 * 20] = GREETING;
	struct handshake h;

	setup(false);
	check_said(answers, sizeof(answers) / sizeof(answers[0]), NULL);
	for (unsigned i = 0; i < 65; i++)
		memcpy(endless + sizeof(GREETING) - 1 + 20 * i, REPLY "\6\0\0\0\3\0\0\0", 20);
	CHECK_EQ(meet_raw(&h, NULL, endless, sizeof(GREETING) - 1 + 65 * 20, false), -EPROTO);
	CHECK_HAS(h.err.text, "breaks the rules");
	teardown();
}

/* One that stalls, at each of its bytes before TLS, is not waited for for ever. */
static void servers_that_stall(void)
{
	static const char said[] = STARTTLS "\1\0\0\0";
	int pair[2];

	setup(true);
	for (size_t length = 0; length < sizeof(said); length += 3) {
		struct handshake h = {.o = {.name = "it",
					    .identity = ours,
					    .export = "",
					    .deadline_ns = loop_now_ns() + 20000000}};

		make_pair(pair);
		h.fd = pair[0];
		CHECK_EQ(send(pair[1], said, length, 0), (ssize_t)length);
		CHECK_EQ(shake(&h), -ETIMEDOUT);
		CHECK_HAS(h.err.text, "it: the server does not answer");
		close(pair[0]);
		close(pair[1]);
	}
	teardown();
}

/* ---- passing on ---- */

static struct nbd_relay *relay; /* NULL: none */
static unsigned overs;
static int server_fd; /* our end of the server's connection */

static void on_over(void *ctx)
{
	CHECK_EQ(ctx, &relay);
	overs++;
	/* What the end of its process does. */
	shutdown(relay->client.watch.fd, SHUT_RDWR);
}

/* A relay to our server; the client's socket. */
static int pass_on(void)
{
	struct handshake h;
	int pair[2];

	CHECK_MSG(!meet(&h, ours, "b", "a disk"), "%s", h.err.text);
	make_pair(pair);
	overs = 0;
	server_fd = h.fd;
	CHECK_EQ(nbd_relay_new(loop, h.ssl, pair[1], h.flags, on_over, &relay, &relay, &err), 0);
	return pair[0];
}

static void wait_for_over(void)
{
	while (!overs)
		loop_turn(loop, true);
	nbd_relay_free(relay);
	relay = NULL;
	CHECK_EQ(overs, 1);
	while (nbd_server_connections(server))
		loop_turn(loop, true);
}

static void libnbd_through_a_relay(void)
{
	uint8_t *model = calloc(1, SIZE), *data = malloc(SIZE);
	uint64_t random = unit_seed();
	struct block *b;

	setup(true);
	CHECK_MSG(!block_open_nbd_socket(loop, pass_on(), "it", NULL, &b, &err), "%s", err.text);
	CHECK_EQ(block_info(b)->size, SIZE);
	for (int i = 0; i < 300; i++) {
		uint64_t offset = unit_below(&random, SIZE);
		uint64_t length = 1 + unit_below(&random, 1u << unit_below(&random, 23));

		if (length > SIZE - offset)
			length = SIZE - offset;
		if (unit_below(&random, 2)) {
			unit_fill_random(&random, data, length);
			CHECK_EQ(block_write(b, offset, data, length, 0, &err), 0);
			memcpy(model + offset, data, length);
		} else {
			CHECK_EQ(block_read(b, offset, data, length, &err), 0);
			CHECK_MEM(data, model + offset, length);
		}
	}
	CHECK_EQ(block_flush(b, &err), 0);
	CHECK_EQ(block_read(disk, 0, data, SIZE, &err), 0);
	CHECK_MEM(data, model, SIZE);
	CHECK_EQ(block_close(b, &err), 0);
	wait_for_over();
	CHECK(rekeyed > 16);
	teardown();
	free(model);
	free(data);
}

/* ---- a disk whose connections are all made by somebody else ---- */

static unsigned dialled, unreachable;

static int dial(void *ctx, const char *uri, int *socket, struct pgr_error *e)
{
	(void)ctx;
	CHECK_STR(uri, "nbds://b/a%20disk");
	dialled++;
	nbd_relay_free(relay);
	relay = NULL;
	if (unreachable) {
		unreachable--;
		return pgr_fail(e, -EACCES, "its certificate has expired");
	}
	*socket = pass_on();
	return 0;
}

struct writing {
	struct block_request r;
	struct iovec iov;
	uint8_t data[65536];
	bool over;
	int result;
};

static void written(struct block_request *r, const struct pgr_error *e)
{
	struct writing *w = (struct writing *)r;

	w->over = true;
	w->result = e ? e->code : 0;
}

static void submit(struct block *b, struct writing *w, uint64_t offset, uint64_t *random)
{
	unit_fill_random(random, w->data, sizeof(w->data));
	w->over = false;
	w->iov = (struct iovec){w->data, sizeof(w->data)};
	w->r = (struct block_request){.op = BLOCK_WRITE,
				      .offset = offset,
				      .length = sizeof(w->data),
				      .iov = &w->iov,
				      .nr_iov = 1,
				      .done = written};
	block_submit(b, &w->r);
}

/* The connection is cut while writes are under way, at the server's side and at the client's; each of them is done at last, and what it wrote is there. */
static void cut_in_the_middle(void)
{
	const struct block_dial by = {.first = true, .connect = dial};
	const struct block_options o = {.dial = &by};
	static struct writing w[16];
	static uint8_t back[65536];
	uint64_t random = unit_seed();
	struct block *b;

	setup(true);
	dialled = 0;
	unreachable = 1;
	CHECK_EQ(block_open_nbd(loop, "nbds://b/a%20disk", &o, &b, &err), -EACCES);
	CHECK_STR(err.text, "its certificate has expired");
	CHECK_MSG(!block_open_nbd(loop, "nbds://b/a%20disk", &o, &b, &err), "%s", err.text);
	CHECK_EQ(dialled, 2);
	for (unsigned round = 0; round < 12; round++) {
		uint64_t offset = unit_below(&random, SIZE / sizeof(back) - 16) * sizeof(back);

		for (unsigned i = 0; i < 16; i++)
			submit(b, &w[i], offset + i * sizeof(back), &random);
		for (uint64_t turns = unit_below(&random, 40); turns; turns--)
			loop_turn(loop, false);
		unreachable = round % 3;
		shutdown(round % 2 ? server_fd : relay->client.watch.fd, SHUT_RDWR);
		for (unsigned i = 0; i < 16; i++) {
			while (!w[i].over)
				loop_turn(loop, true);
			CHECK_EQ(w[i].result, 0);
			CHECK_EQ(block_read(b, offset + i * sizeof(back), back, sizeof(back), &err),
				 0);
			CHECK_MEM(back, w[i].data, sizeof(back));
		}
	}
	CHECK(dialled > 12);
	CHECK_EQ(block_close(b, &err), 0);
	wait_for_over();
	teardown();
}

/* ---- a client byte by byte ---- */

static void put(int fd, const void *data, size_t length)
{
	for (const uint8_t *p = data; length;) {
		ssize_t n = send(fd, p, length, MSG_NOSIGNAL);

		if (n < 0) {
			CHECK_EQ(errno, EAGAIN);
			loop_turn(loop, true);
			continue;
		}
		p += n;
		length -= (size_t)n;
	}
}

/* How many bytes came before the end, at most length. */
static size_t get(int fd, void *to, size_t length)
{
	size_t got = 0;

	while (got < length) {
		ssize_t n = recv(fd, (uint8_t *)to + got, length - got, 0);

		if (n > 0)
			got += (size_t)n;
		else if (n == 0 || errno == ECONNRESET)
			break;
		else
			loop_turn(loop, true);
	}
	return got;
}

static void expect_end(int fd)
{
	uint8_t byte;

	wait_for_over();
	CHECK_EQ(get(fd, &byte, 1), 0);
	close(fd);
}

static const uint8_t choose[] = "\0\0\0\3IHAVEOPT\0\0\0\1\0\0\0\0";

/* Greeted, the export chosen in the old way. */
static int connect_client(void)
{
	struct nbd_greeting hello;
	struct nbd_export_name_reply facts;
	int fd = pass_on();

	CHECK_EQ(get(fd, &hello, sizeof(hello)), sizeof(hello));
	CHECK_EQ(be64toh(hello.magic), NBD_MAGIC);
	CHECK_EQ(be64toh(hello.option_magic), NBD_OPTION_MAGIC);
	CHECK_EQ(be16toh(hello.flags), NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	/* A few bytes at a time. */
	for (size_t i = 0; i < sizeof(choose) - 1; i++) {
		put(fd, choose + i, 1);
		loop_turn(loop, true);
	}
	CHECK_EQ(get(fd, &facts, sizeof(facts) - sizeof(facts.zeros)),
		 sizeof(facts) - sizeof(facts.zeros));
	CHECK_EQ(be64toh(facts.size), SIZE);
	return fd;
}

static void ask_to_read(int fd, uint64_t offset, uint32_t length)
{
	const struct nbd_request r = {.magic = htobe32(NBD_REQUEST_MAGIC),
				      .type = htobe16(NBD_CMD_READ),
				      .cookie = offset,
				      .offset = htobe64(offset),
				      .length = htobe32(length)};

	put(fd, &r, sizeof(r));
}

static void hear_read(int fd, uint32_t length)
{
	static uint8_t data[1 << 20];
	struct nbd_simple_reply r;
	uint64_t offset;

	CHECK_EQ(get(fd, &r, sizeof(r)), sizeof(r));
	CHECK_EQ(be32toh(r.magic), NBD_SIMPLE_MAGIC);
	CHECK_EQ(r.error, 0);
	CHECK_EQ(get(fd, data, length), length);
	memcpy(&offset, &r.cookie, sizeof(offset));
	CHECK_MEM(data, (const uint8_t *)tape_contents(tape, &(uint64_t){0}) + offset, length);
}

static void fill_disk(void)
{
	uint64_t random = unit_seed();
	uint8_t *data = malloc(SIZE);

	unit_fill_random(&random, data, SIZE);
	CHECK_EQ(block_write(disk, 0, data, SIZE, 0, &err), 0);
	free(data);
}

/* Who has said all still gets all answers, and then the end. */
static void half_closed(void)
{
	int fd;

	setup(true);
	fill_disk();
	fd = connect_client();
	for (unsigned i = 0; i < 8; i++)
		ask_to_read(fd, i << 20, 1 << 20);
	shutdown(fd, SHUT_WR);
	for (unsigned i = 0; i < 8; i++)
		hear_read(fd, 1 << 20);
	expect_end(fd);
	teardown();
}

/* Who reads nothing has nothing more read for it; when it reads, all of it is there. */
static void a_client_that_does_not_read(void)
{
	int fd;

	setup(true);
	fill_disk();
	fd = connect_client();
	for (unsigned i = 0; i < 32; i++)
		ask_to_read(fd, (i % 8) << 20, 1 << 20);
	for (unsigned i = 0; i < 2000; i++)
		loop_turn(loop, false);
	CHECK(relay->client.wants & EPOLLOUT);
	CHECK_EQ(relay->server.wants, 0);
	for (unsigned i = 0; i < 32; i++)
		hear_read(fd, 1 << 20);
	/* One that goes while much is on its way to it. */
	for (unsigned i = 0; i < 32; i++)
		ask_to_read(fd, 0, 1 << 20);
	for (unsigned i = 0; i < 20; i++)
		loop_turn(loop, false);
	close(fd);
	wait_for_over();
	teardown();
}

/* What a client sent before it was closed still arrives. */
static void a_client_that_goes(void)
{
	const struct nbd_request w = {.magic = htobe32(NBD_REQUEST_MAGIC),
				      .type = htobe16(NBD_CMD_WRITE),
				      .offset = htobe64(4096),
				      .length = htobe32(1 << 20)};
	static uint8_t data[1 << 20], back[1 << 20];
	int fd;

	setup(true);
	memset(data, 'w', sizeof(data));
	fd = connect_client();
	put(fd, &w, sizeof(w));
	put(fd, data, sizeof(data));
	close(fd);
	wait_for_over();
	CHECK_EQ(block_read(disk, 4096, back, sizeof(back), &err), 0);
	CHECK_MEM(back, data, sizeof(back));
	/* At each byte of its beginning. */
	for (size_t i = 0; i < sizeof(choose); i++) {
		fd = pass_on();
		put(fd, choose, i);
		close(fd);
		wait_for_over();
	}
	teardown();
}

static void a_server_that_goes(void)
{
	int fd;

	setup(true);
	fill_disk();
	fd = connect_client();
	ask_to_read(fd, 4096, 1 << 20);
	hear_read(fd, 1 << 20);
	/* What is no request ends the connection there. */
	put(fd, "what is no request at all, it is", 28);
	expect_end(fd);
	fd = connect_client();
	shutdown(server_fd, SHUT_RDWR);
	expect_end(fd);
	teardown();
}

/* What the client says to the greeting has to be what the server was told. */
static void a_client_with_other_flags(void)
{
	static const uint8_t others[][4] = {{0, 0, 0, 0}, {0, 0, 0, 1}, {0, 0, 0, 7}, {3, 0, 0, 0}};

	setup(true);
	for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		int fd = pass_on();

		put(fd, others[i], 4);
		put(fd, choose + 4, sizeof(choose) - 5);
		wait_for_over();
		close(fd);
	}
	teardown();
}

/* By TCP, as the relay's process does it. */
static void by_tcp(void)
{
	struct nbd_address a = {.host = "127.0.0.1", .export = "a disk"};
	struct handshake h;
	uint16_t port = 0;
	int fd;

	setup(true);
	CHECK_EQ(nbd_listen_tcp(NULL, &port, &fd, &err), 0);
	CHECK_EQ(nbd_server_listen(server, fd, &err), 0);
	snprintf(a.port, sizeof(a.port), "%u", port);
	CHECK_MSG(!nbd_dial_address(&a, "it", &fd, &err), "%s", err.text);
	CHECK_MSG(!meet_at(&h, fd, ours, "b", a.export), "%s", h.err.text);
	part(&h);
	teardown();
}

UNIT_MAIN(TEST(addresses_are_taken_apart), TEST(no_addresses), TEST(who_is_there),
	  TEST(a_server_without_tls), TEST(servers_that_are_none), TEST(answers_about_the_export),
	  TEST(servers_that_stall), TEST(libnbd_through_a_relay), TEST(cut_in_the_middle),
	  TEST(half_closed), TEST(a_client_that_does_not_read), TEST(a_client_that_goes),
	  TEST(a_server_that_goes), TEST(a_client_with_other_flags), TEST(by_tcp))
