// SPDX-License-Identifier: MIT
/*
 * The NBD server byte by byte: what a client that is not to be trusted may send, and what it gets. Over a disk in memory, the client in the same loop.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "storage/fiber.h"
#include "storage/nbd_internal.h"
#include "tests/storage/tape.h"
#include "tests/unit/unit.h"

#define SIZE (256u << 10)

static struct loop *loop;
static struct tape *tape;
static struct block *disk;
static struct dirty *dirty;
static struct nbd_server *server;
static struct pgr_error err;
static char logged[4096];
static int client = -1;
static const char *in_file; /* the disk is there, and not in memory */

static void on_log(void *ctx, const char *text)
{
	size_t n = strlen(logged);

	(void)ctx;
	snprintf(logged + n, sizeof(logged) - n, "%s\n", text);
}

static void connect_client(void)
{
	int fds[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
	client = fds[0];
	CHECK_EQ(nbd_server_accept(server, fds[1], &err), 0);
}

static void setup(const struct tape_options *t, const struct nbd_options *given)
{
	struct nbd_options o = given ? *given : (struct nbd_options){.identity = NULL};

	signal(SIGPIPE, SIG_IGN);
	err = PGR_ERROR_NONE;
	logged[0] = '\0';
	o.log = on_log;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	tape = tape_new(NULL, SIZE);
	if (in_file)
		CHECK_EQ(block_open_file(loop, in_file, NULL, &disk, &err), 0);
	else
		disk = tape_open(tape, loop, t ? t : &(struct tape_options){.seed = 1});
	CHECK_EQ(dirty_create(SIZE, 4096, &dirty, &err), 0);
	dirty_attach(dirty, disk);
	CHECK_EQ(nbd_server_create(loop, &o, &server, &err), 0);
	CHECK_EQ(nbd_server_export(server,
				   &(struct nbd_export){.name = "disk",
							.description = "a disk in memory",
							.disk = disk,
							.dirty = dirty},
				   &err),
		 0);
	connect_client();
}

static void teardown(void)
{
	if (client >= 0)
		close(client);
	client = -1;
	nbd_server_free(server);
	dirty_free(dirty);
	CHECK_EQ(block_close(disk, NULL), 0);
	tape_free(tape);
	loop_free(loop);
}

/* ---- the client ---- */

static void put(const void *data, size_t length)
{
	const uint8_t *p = data;

	while (length) {
		ssize_t n = send(client, p, length, MSG_NOSIGNAL);

		if (n < 0) {
			CHECK_EQ(errno, EAGAIN);
			loop_turn(loop, false);
			continue;
		}
		p += n;
		length -= (size_t)n;
	}
}

/* How many bytes came before the end, at most length. */
static size_t get_some(void *to, size_t length)
{
	size_t got = 0;

	while (got < length) {
		ssize_t n = recv(client, (uint8_t *)to + got, length - got, 0);

		if (n > 0) {
			got += (size_t)n;
		} else if (n == 0 || errno == ECONNRESET) {
			break;
		} else {
			CHECK_EQ(errno, EAGAIN);
			loop_turn(loop, true);
		}
	}
	return got;
}

static void get(void *to, size_t length)
{
	CHECK_EQ(get_some(to, length), length);
}

static void expect_end(void)
{
	uint8_t byte;

	CHECK_EQ(get_some(&byte, 1), 0);
	while (nbd_server_connections(server))
		loop_turn(loop, true);
}

static void greet(uint32_t flags)
{
	struct nbd_greeting g;
	uint32_t wire = htobe32(flags);

	get(&g, sizeof(g));
	CHECK_EQ(be64toh(g.magic), NBD_MAGIC);
	CHECK_EQ(be64toh(g.option_magic), NBD_OPTION_MAGIC);
	CHECK_EQ(be16toh(g.flags), NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	put(&wire, sizeof(wire));
}

static void put_option(uint32_t option, const void *data, uint32_t length)
{
	const struct nbd_option o = {.magic = htobe64(NBD_OPTION_MAGIC),
				     .option = htobe32(option),
				     .length = htobe32(length)};

	put(&o, sizeof(o));
	put(data, length);
}

/* The type of the next answer to that option; its content in text, terminated. */
static uint32_t get_reply(uint32_t option, char text[512], uint32_t *length)
{
	struct nbd_option_reply r;

	get(&r, sizeof(r));
	CHECK_EQ(be64toh(r.magic), NBD_REPLY_MAGIC);
	CHECK_EQ(be32toh(r.option), option);
	*length = be32toh(r.length);
	CHECK(*length < 512);
	get(text, *length);
	text[*length] = '\0';
	return be32toh(r.type);
}

static void expect_reply(uint32_t option, uint32_t type)
{
	char text[512];
	uint32_t length;

	CHECK_EQ(get_reply(option, text, &length), type);
	if (type & 1u << 31)
		CHECK(length > 0); /* a sentence */
}

/* A name, then what follows it. */
static uint32_t with_name(uint8_t *to, const char *name, const void *more, size_t length)
{
	uint32_t n = (uint32_t)strlen(name), wire = htobe32(n);

	memcpy(to, &wire, 4);
	memcpy(to + 4, name, n + 1);
	memcpy(to + 4 + n, more, length);
	return (uint32_t)(4 + n + length);
}

static void go(void)
{
	uint8_t data[64];

	put_option(NBD_OPT_GO, data, with_name(data, "disk", "\0", 2));
	expect_reply(NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(NBD_OPT_GO, NBD_REP_INFO);
	expect_reply(NBD_OPT_GO, NBD_REP_ACK);
}

static void go_structured(void)
{
	put_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	go();
}

static void start(bool structured)
{
	greet(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	if (structured)
		go_structured();
	else
		go();
}

static void put_request(uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset,
			uint32_t length)
{
	const struct nbd_request r = {.magic = htobe32(NBD_REQUEST_MAGIC),
				      .flags = htobe16(flags),
				      .type = htobe16(type),
				      .cookie = cookie,
				      .offset = htobe64(offset),
				      .length = htobe32(length)};

	put(&r, sizeof(r));
}

static uint32_t get_simple(uint64_t cookie)
{
	struct nbd_simple_reply r;

	get(&r, sizeof(r));
	CHECK_EQ(be32toh(r.magic), NBD_SIMPLE_MAGIC);
	CHECK_EQ(r.cookie, cookie);
	return be32toh(r.error);
}

/* The next chunk; its content in `to`. */
static struct nbd_chunk get_chunk(uint64_t cookie, void *to, size_t size)
{
	struct nbd_chunk c;

	get(&c, sizeof(c));
	CHECK_EQ(be32toh(c.magic), NBD_STRUCTURED_MAGIC);
	CHECK_EQ(c.cookie, cookie);
	c.length = be32toh(c.length);
	c.type = be16toh(c.type);
	c.flags = be16toh(c.flags);
	CHECK(c.length <= size);
	get(to, c.length);
	return c;
}

/* An answer that is one chunk with an error: its number. */
static uint32_t get_error(uint64_t cookie)
{
	uint8_t content[1024];
	struct nbd_chunk c = get_chunk(cookie, content, sizeof(content));
	struct nbd_chunk_error e;

	CHECK_EQ(c.type, NBD_CHUNK_ERROR);
	CHECK_EQ(c.flags, NBD_CHUNK_DONE);
	memcpy(&e, content, sizeof(e));
	CHECK_EQ(be16toh(e.text_length) + sizeof(e), c.length);
	CHECK(e.text_length);
	return be32toh(e.error);
}

/* ---- the handshake ---- */

static void options_that_lie_about_their_length(void)
{
	static const struct {
		uint32_t option;
		const char *data;
		uint32_t length;
	} lies[] = {
		{NBD_OPT_GO, "", 0},
		{NBD_OPT_GO, "\0\0\0\4dis\0\0", 9},
		{NBD_OPT_GO,
		 "\xff\xff\xff\xff"
		 "disk\0\0",
		 10},
		{NBD_OPT_GO, "\0\0\0\4disk\0\2\0\0", 12},
		{NBD_OPT_INFO, "\0\0\0\4disk\0\0\0", 11},
		{NBD_OPT_LIST, "x", 1},
		{NBD_OPT_STRUCTURED_REPLY, "x", 1},
		{NBD_OPT_SET_META_CONTEXT, "\0\0\0\4disk", 8}, /* no structured replies yet */
	};

	setup(NULL, NULL);
	greet(NBD_FIXED_NEWSTYLE);
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		put_option(lies[i].option, lies[i].data, lies[i].length);
		expect_reply(lies[i].option, NBD_REP_ERR_INVALID);
	}
	put_option(NBD_OPT_GO, "\0\0\0\4diss\0\0", 10);
	expect_reply(NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
	put_option(NBD_OPT_STARTTLS, NULL, 0);
	expect_reply(NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY);
	put_option(4711, "what", 4);
	expect_reply(4711, NBD_REP_ERR_UNSUP);
	/* And then it goes on as if nothing had been. */
	put_option(NBD_OPT_LIST, NULL, 0);
	expect_reply(NBD_OPT_LIST, NBD_REP_SERVER);
	expect_reply(NBD_OPT_LIST, NBD_REP_ACK);
	go_structured();
	put_option(NBD_OPT_ABORT, "what is no request", 18);
	expect_end();
	teardown();
}

static void contexts_that_lie(void)
{
	static const struct {
		const char *data;
		uint32_t length;
	} lies[] = {
		{"\0\0\0\4disk", 8},
		{"\0\0\0\4disk\0\0\0\1", 12},
		{"\0\0\0\4disk\xff\xff\xff\xff", 12},
		{"\0\0\0\4disk\0\0\0\1\0\0\0\5base", 20},
		{"\0\0\0\4disk\0\0\0\1\0\0\0\4base?", 21},
		{"\xff\xff\xff\xf0", 4},
	};
	uint8_t data[128];
	uint32_t length;

	setup(NULL, NULL);
	greet(NBD_FIXED_NEWSTYLE);
	put_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		put_option(NBD_OPT_SET_META_CONTEXT, lies[i].data, lies[i].length);
		expect_reply(NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID);
	}
	length = with_name(data, "none", "\0\0\0\0", 4);
	put_option(NBD_OPT_LIST_META_CONTEXT, data, length);
	expect_reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_ERR_UNKNOWN);
	/* A name space means all that is in it when listing, and nothing when setting. */
	length = with_name(data, "disk", "\0\0\0\1\0\0\0\10pagurus:", 16);
	put_option(NBD_OPT_LIST_META_CONTEXT, data, length);
	expect_reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect_reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
	put_option(NBD_OPT_SET_META_CONTEXT, data, length);
	expect_reply(NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	length = with_name(data, "disk", "\0\0\0\0", 4);
	put_option(NBD_OPT_LIST_META_CONTEXT, data, length);
	expect_reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect_reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect_reply(NBD_OPT_LIST_META_CONTEXT, NBD_REP_ACK);
	teardown();
}

static void what_is_not_the_protocol_ends_the_connection(void)
{
	static const char nonsense[] = "GET / HTTP/1.0\r\n\r\n and some more";
	struct nbd_option o = {.magic = htobe64(NBD_OPTION_MAGIC),
			       .option = htobe32(NBD_OPT_GO),
			       .length = 0xffffffff};

	setup(NULL, NULL);
	greet(1u << 5);
	expect_end();
	CHECK_HAS(logged, "wants features");
	close(client);
	connect_client();
	greet(NBD_FIXED_NEWSTYLE);
	put(nonsense, sizeof(nonsense));
	expect_end();
	CHECK_HAS(logged, "no option");
	close(client);
	connect_client();
	greet(NBD_FIXED_NEWSTYLE);
	put(&o, sizeof(o));
	expect_end();
	close(client);
	connect_client();
	greet(NBD_FIXED_NEWSTYLE);
	put_option(NBD_OPT_EXPORT_NAME, "none", 4);
	expect_end();
	close(client);
	connect_client();
	start(false);
	put(nonsense, sizeof(nonsense));
	expect_end();
	CHECK_HAS(logged, "no request");
	close(client);
	connect_client();
	start(false);
	put_request(NBD_CMD_WRITE, 0, 1, 0, NBD_LENGTH_MAX + 1);
	expect_end();
	teardown();
}

static void an_option_that_is_too_long_is_skipped(void)
{
	char *data = calloc(1, 100000);

	setup(NULL, NULL);
	greet(NBD_FIXED_NEWSTYLE);
	put_option(NBD_OPT_INFO, data, 100000);
	expect_reply(NBD_OPT_INFO, NBD_REP_ERR_TOO_BIG);
	go();
	free(data);
	teardown();
}

static void a_handshake_has_an_end(void)
{
	setup(NULL, &(struct nbd_options){.handshake_ms = 20});
	greet(NBD_FIXED_NEWSTYLE);
	put("IHAVE", 5);
	expect_end();
	CHECK_HAS(logged, "did not come to an end");
	teardown();
}

static void the_old_way_in(void)
{
	struct nbd_export_name_reply r;

	setup(NULL, NULL);
	greet(NBD_FIXED_NEWSTYLE);
	put_option(NBD_OPT_EXPORT_NAME, NULL, 0); /* no name: the only one */
	get(&r, sizeof(r));
	CHECK_EQ(be64toh(r.size), SIZE);
	put_request(NBD_CMD_FLUSH, 0, 7, 0, 0);
	CHECK_EQ(get_simple(7), 0);
	put_request(NBD_CMD_DISC, 0, 8, 0, 0);
	expect_end();
	close(client);
	connect_client();
	greet(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
	put_option(NBD_OPT_EXPORT_NAME, "disk", 4);
	get(&r, sizeof(r) - sizeof(r.zeros));
	put_request(NBD_CMD_FLUSH, 0, 7, 0, 0);
	CHECK_EQ(get_simple(7), 0);
	teardown();
}

/* ---- requests ---- */

static void requests_that_are_refused(void)
{
	static uint8_t zeros[512];

	setup(NULL, NULL);
	start(true);
	put_request(NBD_CMD_READ, 0, 1, SIZE, 1);
	CHECK_EQ(get_error(1), NBD_EINVAL);
	put_request(NBD_CMD_READ, 0, 2, ~0ull, 512);
	CHECK_EQ(get_error(2), NBD_EINVAL);
	put_request(NBD_CMD_READ, 0, 3, 1, SIZE);
	CHECK_EQ(get_error(3), NBD_EINVAL);
	put_request(NBD_CMD_WRITE, 0, 4, SIZE - 511, 512);
	put(zeros, 512);
	CHECK_EQ(get_error(4), NBD_ENOSPC);
	put_request(NBD_CMD_WRITE, NBD_CMD_FLAG_DF, 5, 0, 512);
	put(zeros, 512);
	CHECK_EQ(get_error(5), NBD_EINVAL);
	put_request(NBD_CMD_TRIM, 1 << 14, 6, 0, 512);
	CHECK_EQ(get_error(6), NBD_EINVAL);
	put_request(NBD_CMD_CACHE, 0, 7, 0, 512);
	CHECK_EQ(get_error(7), NBD_EINVAL);
	put_request(99, 0, 8, 0, 0);
	CHECK_EQ(get_error(8), NBD_EINVAL);
	put_request(NBD_CMD_BLOCK_STATUS, 0, 9, 0, 512); /* no context */
	CHECK_EQ(get_error(9), NBD_EINVAL);
	put_request(NBD_CMD_FLUSH, 0, 10, 5, 0);
	CHECK_EQ(get_error(10), NBD_EINVAL);
	CHECK_EQ(tape_count(tape, TAPE_WRITE), 0);
	put_request(NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 11, 0, 512);
	put(zeros, 512);
	CHECK_EQ(get_simple(11), 0);
	CHECK_EQ(tape_count(tape, TAPE_WRITE), 1);
	teardown();
}

static void errors_of_the_disk_come_through(void)
{
	static const struct {
		enum tape_op op;
		int code;
		uint32_t number;
	} cases[] = {
		{TAPE_READ, -EIO, NBD_EIO},	  {TAPE_WRITE, -ENOSPC, NBD_ENOSPC},
		{TAPE_ZERO, -EDQUOT, NBD_ENOSPC}, {TAPE_DISCARD, -ENOMEM, NBD_ENOMEM},
		{TAPE_WRITE, -ENXIO, NBD_EIO},	  {TAPE_FLUSH, -ENOSPC, NBD_ENOSPC},
	};
	static const uint16_t commands[] = {
		[TAPE_READ] = NBD_CMD_READ,	    [TAPE_WRITE] = NBD_CMD_WRITE,
		[TAPE_ZERO] = NBD_CMD_WRITE_ZEROES, [TAPE_DISCARD] = NBD_CMD_TRIM,
		[TAPE_FLUSH] = NBD_CMD_FLUSH,
	};
	static uint8_t data[4096];

	for (int structured = 0; structured < 2; structured++) {
		setup(NULL, NULL);
		start(structured);
		for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
			bool flush = cases[i].op == TAPE_FLUSH;

			tape_fail(tape, cases[i].op, 1, cases[i].code);
			put_request(commands[cases[i].op], 0, i, 0, flush ? 0 : 4096);
			if (cases[i].op == TAPE_WRITE)
				put(data, sizeof(data));
			CHECK_EQ(structured ? get_error(i) : get_simple(i), cases[i].number);
		}
		teardown();
	}
}

/* Each answer is there once, whatever the order. */
static void many_at_once(void)
{
	static uint8_t data[200][512], content[512 + 8];
	uint64_t seen = 0, random = unit_seed();

	setup(NULL, NULL);
	start(true);
	for (unsigned i = 0; i < 200; i++) {
		unit_fill_random(&random, data[i], 512);
		put_request(NBD_CMD_WRITE, 0, i, i * 512, 512);
		put(data[i], 512);
	}
	for (unsigned i = 0; i < 200; i++) {
		struct nbd_simple_reply r;

		get(&r, sizeof(r));
		CHECK_EQ(r.error, 0);
		seen += r.cookie;
	}
	CHECK_EQ(seen, 199 * 200 / 2);
	for (unsigned i = 0; i < 200; i++)
		put_request(NBD_CMD_READ, 0, i, i * 512, 512);
	for (unsigned i = 0; i < 200; i++) {
		struct nbd_chunk c;
		uint64_t at;

		get(&c, sizeof(c));
		get(content, be32toh(c.length));
		CHECK_EQ(be16toh(c.flags), NBD_CHUNK_DONE);
		memcpy(&at, content, 8);
		CHECK_EQ(be64toh(at), c.cookie * 512);
		CHECK_MEM(content + 8, data[c.cookie], 512);
	}
	teardown();
}

static void a_dirty_bitmap_is_a_context(void)
{
	uint8_t data[128], content[256];
	struct nbd_extent e[3];
	struct nbd_chunk c;
	uint32_t length;

	setup(NULL, NULL);
	greet(NBD_FIXED_NEWSTYLE);
	put_option(NBD_OPT_STRUCTURED_REPLY, NULL, 0);
	expect_reply(NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK);
	length = with_name(data, "disk", "\0\0\0\1\0\0\0\15pagurus:dirty", 21);
	put_option(NBD_OPT_SET_META_CONTEXT, data, length);
	expect_reply(NBD_OPT_SET_META_CONTEXT, NBD_REP_META_CONTEXT);
	expect_reply(NBD_OPT_SET_META_CONTEXT, NBD_REP_ACK);
	go();
	put_request(NBD_CMD_WRITE_ZEROES, 0, 1, 8192, 5000);
	CHECK_EQ(get_simple(1), 0);
	put_request(NBD_CMD_BLOCK_STATUS, 0, 2, 0, SIZE);
	c = get_chunk(2, content, sizeof(content));
	CHECK_EQ(c.type, NBD_CHUNK_BLOCK_STATUS);
	CHECK_EQ(c.flags, NBD_CHUNK_DONE);
	CHECK_EQ(c.length, 4 + sizeof(e));
	memcpy(e, content + 4, sizeof(e));
	CHECK_EQ(be32toh(e[0].length), 8192);
	CHECK_EQ(be32toh(e[0].flags), 0);
	CHECK_EQ(be32toh(e[1].length), 8192);
	CHECK_EQ(be32toh(e[1].flags), NBD_STATE_DIRTY);
	CHECK_EQ(be32toh(e[2].length), SIZE - 16384);
	CHECK_EQ(be32toh(e[2].flags), 0);
	put_request(NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 3, 10000, 10000);
	c = get_chunk(3, content, sizeof(content));
	CHECK_EQ(c.length, 4 + sizeof(e[0]));
	memcpy(e, content + 4, sizeof(e[0]));
	CHECK_EQ(be32toh(e[0].length), 16384 - 10000);
	CHECK_EQ(be32toh(e[0].flags), NBD_STATE_DIRTY);
	teardown();
}

/* ---- the end ---- */

static void a_server_that_ends_finishes_what_it_has(void)
{
	static uint8_t data[64 * 512];
	uint64_t random = 3, size;

	setup(NULL, NULL);
	start(false);
	unit_fill_random(&random, data, sizeof(data));
	for (unsigned i = 0; i < 64; i++) {
		put_request(NBD_CMD_WRITE, 0, i, i * 512, 512);
		put(data + i * 512, 512);
	}
	put_request(NBD_CMD_WRITE, 0, 64, 0, 4096); /* whose data never comes */
	loop_turn(loop, false);
	nbd_server_free(server);
	for (unsigned i = 0; i < 64; i++) {
		struct nbd_simple_reply r;

		get(&r, sizeof(r));
		CHECK_EQ(r.error, 0);
	}
	CHECK_EQ(get_some(data, 1), 0);
	CHECK_MEM(tape_contents(tape, &size), data, 1);
	server = NULL;
	teardown();
}

static void a_client_that_vanishes_leaves_nothing(void)
{
	static uint8_t data[4096];

	for (unsigned turns = 0; turns < 30; turns++) {
		setup(NULL, NULL);
		start(turns % 2);
		put_request(NBD_CMD_WRITE, 0, 1, 0, 4096);
		put(data, turns * 100);
		put_request(NBD_CMD_READ, 0, 2, 0, SIZE);
		for (unsigned i = 0; i < turns; i++)
			loop_turn(loop, false);
		close(client);
		client = -1;
		while (nbd_server_connections(server))
			loop_turn(loop, true);
		teardown();
	}
}

/* The n-th allocation fails, for every n: an error or the end of the connection, and nothing is lost or kept. */
static void without_memory(void)
{
	char path[] = "/tmp/test_nbd_server.XXXXXX";
	static uint8_t data[4096];
	int fd = mkstemp(path);
	bool failed = true;

	CHECK_EQ(ftruncate(fd, SIZE), 0);
	close(fd);
	in_file = path;
	for (unsigned n = 1; failed; n++) {
		struct nbd_simple_reply r;
		unsigned answers = 0;

		setup(NULL, NULL);
		start(false);
		put_request(NBD_CMD_WRITE, 0, 1, 0, 4096);
		put(data, sizeof(data));
		put_request(NBD_CMD_FLUSH, 0, 2, 0, 0);
		put_request(NBD_CMD_DISC, 0, 3, 0, 0);
		unit_fail_alloc(n);
		failed = false;
		while (get_some(&r, sizeof(r)) == sizeof(r)) {
			CHECK(r.error == 0 || be32toh(r.error) == NBD_ENOMEM);
			failed |= r.error != 0;
			answers++;
		}
		failed |= answers < 2 || unit_fail_alloc(0) >= n;
		expect_end();
		teardown();
		CHECK(n < 100);
	}
	in_file = NULL;
	unlink(path);
}

static void names_of_exports(void)
{
	struct nbd_export e = {.name = "disk", .disk = NULL};

	setup(NULL, NULL);
	e.disk = disk;
	CHECK_EQ(nbd_server_export(server, &e, &err), -EEXIST);
	e.name = "other";
	CHECK_EQ(nbd_server_export(server, &e, &err), 0);
	greet(NBD_FIXED_NEWSTYLE);
	put_option(NBD_OPT_GO, "\0\0\0\0\0\0", 6); /* which one? */
	expect_reply(NBD_OPT_GO, NBD_REP_ERR_UNKNOWN);
	go();
	teardown();
}

/* Another client than `client`, at a socket's path. */
static int knock(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	memcpy(a.sun_path, path, strlen(path) + 1);
	CHECK_EQ(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	return fd;
}

static void only_so_many_connections(void)
{
	char path[] = "/tmp/test_nbd_server.XXXXXX";
	int listener, second, third;
	uint8_t byte;

	setup(NULL, &(struct nbd_options){.max_connections = 2});
	close(mkstemp(path));
	CHECK_EQ(nbd_listen_unix(path, &listener, &err), -EEXIST); /* a file, not ours to remove */
	unlink(path);
	CHECK_EQ(nbd_listen_unix(path, &listener, &err), 0);
	CHECK_EQ(nbd_server_listen(server, listener, &err), 0);
	CHECK_EQ(nbd_listen_unix(path, &listener, &err), -EADDRINUSE);
	second = knock(path);
	while (nbd_server_connections(server) < 2)
		loop_turn(loop, true);
	third = knock(path);
	for (unsigned i = 0; i < 20; i++)
		loop_turn(loop, false);
	CHECK_EQ(nbd_server_connections(server), 2);
	CHECK_EQ(recv(third, &byte, 1, 0), -1);
	close(second);
	while (recv(third, &byte, 1, 0) != 1)
		loop_turn(loop, true);
	CHECK_EQ(nbd_server_connections(server), 2);
	close(third);
	teardown();
	unlink(path);
}

UNIT_MAIN(TEST(options_that_lie_about_their_length), TEST(contexts_that_lie),
	  TEST(what_is_not_the_protocol_ends_the_connection),
	  TEST(an_option_that_is_too_long_is_skipped), TEST(a_handshake_has_an_end),
	  TEST(the_old_way_in), TEST(requests_that_are_refused),
	  TEST(errors_of_the_disk_come_through), TEST(many_at_once),
	  TEST(a_dirty_bitmap_is_a_context), TEST(a_server_that_ends_finishes_what_it_has),
	  TEST(a_client_that_vanishes_leaves_nothing), TEST(without_memory), TEST(names_of_exports),
	  TEST(only_so_many_connections))
