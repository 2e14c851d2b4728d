// SPDX-License-Identifier: MIT
/*
 * Disks on NBD servers (block_nbd.h), with nbdkit as the server: what it does, what it cannot, and what is left when it is killed. Its memory plugin
 * forgets everything when it ends, like a server whose host lost power.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/block_nbd.h"
#include "storage/block_nbd_keep.h"
#include "storage/nbd_dial.h"
#include "tests/unit/unit.h"

#define SIZE (8u << 20)

static struct loop *loop;
static struct block *disk;
static struct pgr_error err;
static pid_t server;
static char folder[] = "/tmp/pagurus-nbd-disk.XXXXXX";
static char path[sizeof(folder) + 8], uri[sizeof(folder) + 64];

/* ---- the server ---- */

/* With these words behind `nbdkit -f -U SOCKET`. Returns when it listens. */
static void serve(const char *words)
{
	char command[512], ready[sizeof(path) + 8];

	snprintf(command, sizeof(command), "exec nbdkit -f --exit-with-parent -P %s.pid -U %s %s",
		 path, path, words);
	snprintf(ready, sizeof(ready), "%s.pid", path);
	unlink(ready);
	unlink(path);
	server = fork();
	if (!server) {
		execl("/bin/sh", "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	while (access(ready, F_OK)) {
		CHECK_MSG(waitpid(server, NULL, WNOHANG) == 0, "nbdkit %s ended", words);
		usleep(5000);
	}
}

static void kill_server(void)
{
	kill(server, SIGKILL);
	waitpid(server, NULL, 0);
}

static int try_open(struct block_options o)
{
	err = PGR_ERROR_NONE;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	return block_open_nbd(loop, uri, &o, &disk, &err);
}

static void setup(const char *words, struct block_options o)
{
	int ret;

	serve(words);
	ret = try_open(o);
	CHECK_MSG(!ret, "%s", err.text);
}

static void teardown(void)
{
	CHECK_EQ(block_close(disk, &err), 0);
	loop_free(loop);
	kill_server();
}

static void refused(struct block_options o, int code, const char *part)
{
	CHECK_EQ(try_open(o), code);
	CHECK_HAS(err.text, part);
	loop_free(loop);
}

/* ---- reading and writing ---- */

static void random_requests(const char *words)
{
	uint8_t *model = calloc(1, SIZE), *data = malloc(SIZE), *back = malloc(SIZE);
	uint64_t random = unit_seed();

	setup(words, (struct block_options){.read_only = false});
	CHECK_EQ(block_info(disk)->size, SIZE);
	for (int i = 0; i < 400; i++) {
		uint64_t offset = unit_below(&random, SIZE);
		uint64_t length = 1 + unit_below(&random, 1u << unit_below(&random, 22));
		uint32_t flags = unit_below(&random, 2) ? BLOCK_FUA : 0;

		if (length > SIZE - offset)
			length = SIZE - offset;
		switch (unit_below(&random, 5)) {
		case 0:
			flags |= unit_below(&random, 2) ? BLOCK_UNMAP : 0;
			CHECK_EQ(block_zero(disk, offset, length, flags, &err), 0);
			memset(model + offset, 0, length);
			break;
		case 1:
			CHECK_EQ(block_read(disk, offset, data, length, &err), 0);
			CHECK_MEM(data, model + offset, length);
			break;
		case 2:
			CHECK_EQ(block_flush(disk, &err), 0);
			break;
		default:
			unit_fill_random(&random, data, length);
			CHECK_EQ(block_write(disk, offset, data, length, flags, &err), 0);
			memcpy(model + offset, data, length);
		}
	}
	CHECK_EQ(block_read(disk, 0, back, SIZE, &err), 0);
	CHECK_MEM(back, model, SIZE);
	teardown();
	free(model);
	free(data);
	free(back);
}

static void holds_what_was_written(void)
{
	random_requests("memory 8M");
}

static void servers_that_can_less(void)
{
	random_requests(
		"--filter=nozero --filter=fua --filter=noextents memory 8M zeromode=none fuamode=emulate");
	random_requests(
		"--filter=blocksize-policy memory 8M blocksize-minimum=4096 "
		"blocksize-preferred=64K blocksize-maximum=2M blocksize-error-policy=error");
}

struct call {
	struct block_request r;
	struct iovec iov[3];
	bool over;
	int result;
};

static void call_done(struct block_request *r, const struct pgr_error *e)
{
	struct call *c = (struct call *)r;

	c->over = true;
	c->result = e ? e->code : 0;
}

static void submit(struct call *c, enum block_op op, uint64_t offset, void *data, uint64_t length)
{
	*c = (struct call){.r = {.op = op,
				 .offset = offset,
				 .length = length,
				 .iov = c->iov,
				 .nr_iov = 3,
				 .done = call_done}};
	c->iov[0] = (struct iovec){data, length / 3};
	c->iov[1] = (struct iovec){(uint8_t *)data + length / 3, 1};
	c->iov[2] = (struct iovec){(uint8_t *)data + length / 3 + 1, length - length / 3 - 1};
	block_submit(disk, &c->r);
}

static void wait_for_call(struct call *c)
{
	while (!c->over)
		loop_turn(loop, true);
}

static void many_at_once_in_pieces(void)
{
	static struct call c[64];
	static uint8_t data[64][70000], back[64][70000];
	uint64_t random = unit_seed();

	setup("memory 8M", (struct block_options){.read_only = false});
	for (unsigned i = 0; i < 64; i++) {
		unit_fill_random(&random, data[i], sizeof(data[i]));
		submit(&c[i], BLOCK_WRITE, i * sizeof(data[i]), data[i], sizeof(data[i]));
	}
	for (unsigned i = 0; i < 64; i++) {
		wait_for_call(&c[i]);
		CHECK_EQ(c[i].result, 0);
	}
	for (unsigned i = 0; i < 64; i++)
		submit(&c[i], BLOCK_READ, i * sizeof(data[i]), back[i], sizeof(back[i]));
	for (unsigned i = 0; i < 64; i++) {
		wait_for_call(&c[i]);
		CHECK_MEM(back[i], data[i], sizeof(data[i]));
	}
	teardown();
}

static void says_where_data_is(void)
{
	static uint8_t data[65536];
	struct block_extent e;

	setup("memory 8M", (struct block_options){.read_only = false});
	memset(data, 1, sizeof(data));
	CHECK_EQ(block_write(disk, 1 << 20, data, sizeof(data), 0, &err), 0);
	CHECK_EQ(block_status(disk, 0, SIZE, &e, &err), 0);
	CHECK(e.length == 1 << 20 && e.flags == (BLOCK_EXTENT_ZERO | BLOCK_EXTENT_HERE));
	CHECK_EQ(block_status(disk, 1 << 20, SIZE - (1 << 20), &e, &err), 0);
	CHECK(e.length == sizeof(data) && e.flags == (BLOCK_EXTENT_DATA | BLOCK_EXTENT_HERE));
	CHECK_EQ(block_discard(disk, 1 << 20, sizeof(data), &err), 0);
	CHECK_EQ(block_status(disk, 1 << 20, 100, &e, &err), 0);
	CHECK(e.length == 100 && e.flags & BLOCK_EXTENT_ZERO);
	teardown();
	setup("--filter=noextents memory 8M", (struct block_options){.read_only = true});
	CHECK_EQ(block_status(disk, 0, SIZE, &e, &err), 0);
	CHECK(e.length == SIZE && e.flags & BLOCK_EXTENT_DATA);
	teardown();
}

static void says_what_is_wrong(void)
{
	const struct block_options read = {.read_only = true}, write = {.read_only = false};
	char good[sizeof(uri)];
	uint8_t byte;

	unlink(path);
	refused(read, -ENOENT, path);
	serve("-r memory 8M");
	refused(write, -EROFS, "lets nobody write");
	kill_server();
	refused(read, -ECONNREFUSED, "refused");
	serve("eval get_size='echo 8M' pread='exit 1' pwrite='exit 0' can_flush='exit 3' can_write='exit 0'");
	refused(write, -EOPNOTSUPP, "no flush");
	kill_server();
	snprintf(good, sizeof(good), "%s", uri);
	snprintf(uri, sizeof(uri), "http://somewhere/");
	refused(read, -EINVAL, "nbd+unix:///EXPORT");
	memcpy(uri, good, sizeof(uri));
	setup("--filter=error memory 8M error-pread=EIO error-rate=100%", write);
	CHECK_EQ(block_read(disk, 0, &byte, 1, &err), -EIO);
	CHECK_HAS(err.text, "failed on the server");
	CHECK_EQ(block_read(disk, SIZE, &byte, 1, &err), -ERANGE);
	CHECK_EQ(block_snapshot(disk, "x", &err), -EOPNOTSUPP);
	CHECK_EQ(block_resize(disk, SIZE / 2, &err), -EOPNOTSUPP);
	teardown();
}

/* ---- a server that goes away ---- */

/* Requests under way when it is killed are done when it is there again. */
static void requests_under_way_are_sent_again(void)
{
	static uint8_t data[8][4096], back[4096];
	static struct call c[8];

	setup("--filter=delay memory 8M delay-write=20",
	      (struct block_options){.read_only = false});
	for (unsigned i = 0; i < 8; i++) {
		memset(data[i], (int)i + 1, sizeof(data[i]));
		submit(&c[i], BLOCK_WRITE, i * 4096, data[i], 4096);
	}
	for (int i = 0; i < 20; i++)
		loop_turn(loop, false);
	kill_server();
	serve("memory 8M");
	for (unsigned i = 0; i < 8; i++) {
		wait_for_call(&c[i]);
		CHECK_EQ(c[i].result, 0);
		CHECK_EQ(block_read(disk, i * 4096, back, 4096, &err), 0);
		CHECK_MEM(back, data[i], 4096);
	}
	teardown();
}

static void check_bytes(uint64_t offset, uint8_t value)
{
	static uint8_t back[65536];

	CHECK_EQ(block_read(disk, offset, back, sizeof(back), &err), 0);
	for (size_t i = 0; i < sizeof(back); i++)
		CHECK_EQ(back[i], value);
}

static void fill(uint64_t offset, uint8_t value, uint32_t flags)
{
	static uint8_t data[65536];

	memset(data, value, sizeof(data));
	CHECK_EQ(block_write(disk, offset, data, sizeof(data), flags, &err), 0);
}

/* The server forgets everything: what had not been flushed comes from here, the latest of each. */
static void what_was_not_flushed_comes_back(void)
{
	setup("memory 8M", (struct block_options){.read_only = false});
	fill(0, 1, 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	fill(1 << 20, 2, 0);
	fill(1 << 20, 3, 0);
	fill(2 << 20, 4, 0);
	CHECK_EQ(block_zero(disk, 2 << 20, 65536, BLOCK_UNMAP, &err), 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	fill(3 << 20, 5, BLOCK_FUA);
	fill(1 << 20, 2, 0);
	fill(1 << 20, 3, 0);
	fill(2 << 20, 4, 0);
	CHECK_EQ(block_zero(disk, 2 << 20, 65536, BLOCK_UNMAP, &err), 0);
	/* Durable, but what is older and is not must not come back over it. */
	fill(4 << 20, 6, 0);
	fill(4 << 20, 7, BLOCK_FUA);
	fill(5 << 20, 8, 0);
	CHECK_EQ(block_zero(disk, 5 << 20, 65536, BLOCK_UNMAP | BLOCK_FUA, &err), 0);
	fill(6 << 20, 9, 0);
	CHECK_EQ(block_discard(disk, 6 << 20, 65536, &err), 0);
	kill_server();
	serve("memory 8M");
	check_bytes(1 << 20, 3);
	check_bytes(2 << 20, 0);
	check_bytes(4 << 20, 7);
	check_bytes(5 << 20, 0);
	check_bytes(6 << 20, 0);
	/* These had been promised by the server, which lied. */
	check_bytes(0, 0);
	check_bytes(3 << 20, 0);
	CHECK_EQ(block_flush(disk, &err), 0);
	kill_server();
	serve("memory 8M");
	check_bytes(1 << 20, 0);
	teardown();
}

/* What is kept is bounded, and the last of it is there. */
static void what_is_kept_is_bounded(void)
{
	setup("memory 64M", (struct block_options){.read_only = false});
	for (unsigned i = 0; i < 1000; i++)
		fill(i * 65536, (uint8_t)(i % 250 + 1), 0);
	kill_server();
	serve("memory 64M");
	check_bytes(999 * 65536, 999 % 250 + 1);
	check_bytes(0, 0);
	teardown();
}

static void patience_ends(void)
{
	uint8_t byte = 1;

	setup("memory 8M", (struct block_options){.patience_ms = 100});
	kill_server();
	CHECK_EQ(block_read(disk, 0, &byte, 1, &err), -ENOTCONN);
	CHECK_HAS(err.text, "look at the server");
	CHECK_EQ(block_read(disk, 0, &byte, 1, &err), -ENOTCONN);
	serve("memory 8M");
	while (block_read(disk, 0, &byte, 1, &err))
		loop_turn(loop, true);
	CHECK_EQ(byte, 0);
	CHECK_EQ(block_write(disk, 0, &byte, 1, 0, &err), 0);
	teardown();
}

/* While requests wait for a server that may come back. One that is there and silent: tests/tools/test_disk.py. */
static void stopped_without_a_server(void)
{
	static uint8_t data[4096];
	static atomic_bool stop;
	struct call c;

	setup("memory 8M", (struct block_options){.stop = &stop});
	CHECK_EQ(block_write(disk, 0, data, sizeof(data), 0, &err), 0);
	kill_server();
	submit(&c, BLOCK_WRITE, 0, data, sizeof(data));
	for (int i = 0; i < 20; i++)
		loop_turn(loop, false);
	CHECK(!c.over);
	atomic_store(&stop, true);
	wait_for_call(&c);
	CHECK_EQ(c.result, -ECANCELED);
	/* For good. */
	atomic_store(&stop, false);
	serve("memory 8M");
	CHECK_EQ(block_read(disk, 0, data, 1, &err), -ECANCELED);
	CHECK_EQ(block_close(disk, &err), -ECANCELED);
	loop_free(loop);
	kill_server();
	/* Nor is a connection made. */
	atomic_store(&stop, true);
	serve("memory 8M");
	CHECK_EQ(try_open((struct block_options){.stop = &stop}), -ECANCELED);
	loop_free(loop);
	kill_server();
}

static void another_disk_is_refused(void)
{
	uint8_t byte = 1;

	setup("memory 8M", (struct block_options){.read_only = false});
	kill_server();
	serve("memory 9M");
	CHECK_EQ(block_read(disk, 0, &byte, 1, &err), -ESTALE);
	CHECK_HAS(err.text, "not the same disk");
	CHECK_EQ(block_close(disk, &err), -ESTALE);
	loop_free(loop);
	kill_server();
}

/* Closed while there is no server and the keeper tries: it ends, and a request that waits gets its answer. */
static void closing_without_a_server(void)
{
	static uint8_t data[4096];
	struct call c, close_it = {.r = {.op = BLOCK_CLOSE, .done = call_done}};

	setup("memory 8M", (struct block_options){.patience_ms = 300});
	submit(&c, BLOCK_WRITE, 0, data, sizeof(data));
	kill_server();
	block_submit(disk, &close_it.r);
	wait_for_call(&close_it);
	CHECK(c.over);
	loop_free(loop);
}

/* A socket that somebody else has connected: there is no other when it is lost, and nobody waits for one. */
static void over_a_socket(void)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char data[16] = "";

	serve("memory 8M");
	snprintf(at.sun_path, sizeof(at.sun_path), "%s", path);
	CHECK_EQ(connect(fd, (const struct sockaddr *)&at, sizeof(at)), 0);
	CHECK_EQ(loop_create(&loop, NULL), 0);
	CHECK_EQ(block_open_nbd_socket(loop, fd, "mirror", NULL, &disk, &err), 0);
	CHECK_EQ(block_info(disk)->size, SIZE);
	CHECK_STR(block_info(disk)->name, "mirror");
	CHECK_EQ(block_write(disk, 4096, "by a socket", 12, BLOCK_FUA, &err), 0);
	CHECK_EQ(block_read(disk, 4096, data, 12, &err), 0);
	CHECK_STR(data, "by a socket");
	kill_server();
	CHECK_EQ(block_read(disk, 4096, data, 12, &err), -ESTALE);
	CHECK_EQ(block_flush(disk, &err), -ESTALE);
	block_close(disk, NULL);
	loop_free(loop);
	/* Something that is no server. */
	CHECK_EQ(loop_create(&loop, NULL), 0);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	CHECK(block_open_nbd_socket(loop, fd, "mirror", NULL, &disk, &err) < 0);
	loop_free(loop);
}

/* ---- made again by somebody else ---- */

struct dialler {
	unsigned times, failures;
};

static int dial(void *ctx, const char *to, int *socket, struct pgr_error *e)
{
	struct dialler *d = ctx;

	CHECK(!strcmp(to, uri));
	d->times++;
	if (d->failures) {
		d->failures--;
		return pgr_fail(e, -ECONNREFUSED, "not yet");
	}
	return nbd_dial(to, socket, e);
}

static void somebody_else_connects_again(void)
{
	struct dialler d = {.failures = 2};
	const struct block_dial by = {.connect = dial, .ctx = &d};
	char written[4096], got[4096];

	memset(written, 'w', sizeof(written));
	setup("memory 8M", (struct block_options){.dial = &by});
	CHECK_EQ(d.times, 0);
	CHECK_EQ(block_write(disk, 4096, written, sizeof(written), 0, &err), 0);
	kill_server();
	serve("memory 8M");
	/* It has forgotten what was not flushed. */
	CHECK_EQ(block_read(disk, 4096, got, sizeof(got), &err), 0);
	CHECK_MEM(got, written, sizeof(got));
	CHECK(d.times >= 3);
	CHECK_EQ(block_flush(disk, &err), 0);
	teardown();
}

static void what_is_dialled(void)
{
	static const char *const wrong[] = {"nbd+unix:///",
					    "nbd+unix:///?socket=",
					    "nbd+unix:///?socket=a%0",
					    "nbd+unix:///?socket=a%00b",
					    "nbd+unix:///?nosocket=/tmp/x",
					    "nbd://",
					    "nbd://[::1",
					    "nbd://[::1]x/",
					    "nbd://a@b/",
					    "nbd://a:1234567/",
					    "http://a/"};
	char long_name[600] = "nbd://";
	int fd;

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		CHECK_MSG(nbd_dial(wrong[i], &fd, &err) == -EINVAL && fd < 0, "%s", wrong[i]);
	memset(long_name + 6, 'a', sizeof(long_name) - 7);
	CHECK_EQ(nbd_dial(long_name, &fd, &err), -EINVAL);
	CHECK_EQ(nbd_dial("nbds://localhost/", &fd, &err), -EOPNOTSUPP);
	CHECK_EQ(nbd_dial("nbd+unix:///x?socket=/tmp/pagurus%2dnobody%2Fat.all", &fd, &err),
		 -ENOENT);
	CHECK(strstr(err.text, "cannot be reached"));
	CHECK_EQ(nbd_dial("nbd://[::ffff:127.0.0.1]:1/", &fd, &err), -ECONNREFUSED);
	CHECK_EQ(nbd_dial("nbd://127.0.0.1:1?x", &fd, &err), -ECONNREFUSED);
	CHECK_EQ(fd, -1);
}

int main(int argc, char **argv)
{
	static const struct unit_test tests[] = {
		TEST(holds_what_was_written),
		TEST(servers_that_can_less),
		TEST(many_at_once_in_pieces),
		TEST(says_where_data_is),
		TEST(says_what_is_wrong),
		TEST(requests_under_way_are_sent_again),
		TEST(what_was_not_flushed_comes_back),
		TEST(what_is_kept_is_bounded),
		TEST(patience_ends),
		TEST(stopped_without_a_server),
		TEST(another_disk_is_refused),
		TEST(closing_without_a_server),
		TEST(over_a_socket),
		TEST(somebody_else_connects_again),
		TEST(what_is_dialled),
	};
	int status;

	if (system("nbdkit --version >/dev/null 2>&1") != 0) {
		printf("SKIP nbd_disk: needs nbdkit\n");
		return 77;
	}
	if (!mkdtemp(folder))
		return 1;
	snprintf(path, sizeof(path), "%s/s", folder);
	snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s", path);
	status = unit_main(__FILE__, tests, sizeof(tests) / sizeof(tests[0]), argc, argv);
	unlink(path);
	snprintf(uri, sizeof(uri), "%s.pid", path);
	unlink(uri);
	rmdir(folder);
	return status;
}
