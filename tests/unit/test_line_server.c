// SPDX-License-Identifier: MIT
/* Commands over a Unix socket: in pieces, several at a time, from clients that go in the middle of one or never read. */
#include "storage/line_server.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "common/passed.h"
#include "storage/fiber.h"
#include "tests/unit/unit.h"

static struct loop *loop;
static struct line_server *server;
static char folder[32], path[64];
static unsigned slow;  /* commands that wait for their client to go */
static unsigned lines; /* that came */

static void on_line(void *ctx, struct line_client *c, char *line)
{
	char out[128];

	CHECK(ctx == &slow);
	lines++;
	if (!strcmp(line, "quit")) {
		line_end(c);
	} else if (!strcmp(line, "slow")) {
		slow++;
		while (!atomic_load(line_gone(c)))
			fiber_sleep_until(loop, loop_now_ns() + 1000);
		slow--;
	} else if (!strcmp(line, "take")) {
		int fd = line_take_descriptor(c);

		line_put(c, fd < 0 ? "none\n" : "one\n");
		if (fd >= 0)
			close(fd);
	} else {
		fiber_yield(loop);
		snprintf(out, sizeof(out), "%.100s!\n", line);
		line_put(c, out);
	}
}

static bool objects;

static void setup(const char *greeting)
{
	struct line_server_options o = {
		.greeting = greeting, .objects = objects, .line = on_line, .ctx = &slow};

	snprintf(folder, sizeof(folder), "/tmp/lines-XXXXXX");
	CHECK(mkdtemp(folder) != NULL);
	snprintf(path, sizeof(path), "%s/s", folder);
	o.path = path;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	CHECK_EQ(line_server_start(loop, &o, &server, NULL), 0);
}

static void teardown(void)
{
	line_server_stop(server);
	CHECK_EQ(slow, 0);
	CHECK(access(path, F_OK) != 0);
	loop_free(loop);
	rmdir(folder);
}

static int client(void)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

	snprintf(at.sun_path, sizeof(at.sun_path), "%s", path);
	CHECK_EQ(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	return fd;
}

static void turn(unsigned times)
{
	while (times--)
		loop_turn(loop, false);
}

static void say(int fd, const char *text)
{
	CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
	turn(20);
}

static void heard(int fd, const char *wanted)
{
	char got[256];
	ssize_t n;

	turn(20);
	n = recv(fd, got, sizeof(got) - 1, 0);
	got[n > 0 ? n : 0] = '\0';
	CHECK_STR(got, wanted);
}

static void lines_are_answered(void)
{
	int a, b;

	setup("hello\n");
	a = client();
	b = client();
	heard(a, "hello\n");
	say(a, "on");
	heard(a, "");
	say(a, "e\ntwo\nthr");
	heard(a, "one!\ntwo!\n");
	say(b, "b\n");
	heard(b, "hello\nb!\n");
	say(a, "ee\nquit\nnever\n");
	heard(a, "three!\n");
	CHECK_EQ(recv(a, path, 0, 0), 0);
	close(a);
	close(b);
	teardown();
}

/* As programs speak with QEMU: some end their lines, some do not. */
static void objects_need_no_end(void)
{
	int a;

	objects = true;
	setup(NULL);
	objects = false;
	a = client();
	say(a, "{ \"a\": {\"}\\\"\": ");
	heard(a, "");
	say(a, "1} }");
	heard(a, "{ \"a\": {\"}\\\"\": 1} }!\n");
	say(a, "\r\n{}\r\n{}{\"b\":1}  \r\nnone\n");
	heard(a, "{}!\n{}!\n{\"b\":1}!\nnone!\n");
	close(a);
	teardown();
}

static void who_goes_ends_its_command(void)
{
	int fd[LINE_SERVER_CLIENTS], more;

	setup(NULL);
	for (unsigned i = 0; i < LINE_SERVER_CLIENTS; i++) {
		fd[i] = client();
		say(fd[i], "slow\n");
	}
	CHECK_EQ(slow, LINE_SERVER_CLIENTS);
	/* All places are taken. */
	more = client();
	turn(20);
	CHECK_EQ(recv(more, path, 0, 0), 0);
	close(more);
	for (unsigned i = 1; i < LINE_SERVER_CLIENTS; i++)
		close(fd[i]);
	turn(20);
	CHECK_EQ(slow, 1);
	more = client();
	say(more, "again\n");
	heard(more, "again!\n");
	/* The server's end ends the last one. */
	teardown();
	close(more);
	close(fd[0]);
}

/* Both come at once when the server was held up: it is connected to or not, and nobody waits for what it does. */
static void who_has_gone_wants_nothing(void)
{
	int a, b;

	setup(NULL);
	a = client();
	turn(20);
	b = client();
	lines = 0;
	CHECK_EQ(send(a, "one\n", 4, MSG_NOSIGNAL), 4);
	CHECK_EQ(send(b, "one\n", 4, MSG_NOSIGNAL), 4);
	close(a);
	close(b);
	turn(20);
	CHECK_EQ(lines, 0);
	a = client();
	say(a, "one\n");
	heard(a, "one!\n");
	CHECK_EQ(lines, 1);
	close(a);
	teardown();
}

static void bad_clients_are_hung_up(void)
{
	static char line[LINE_SERVER_LENGTH + 1];
	int fd;

	setup(NULL);
	fd = client();
	memset(line, 'x', LINE_SERVER_LENGTH);
	say(fd, line);
	turn(20);
	CHECK(recv(fd, path + 60, 1, 0) <= 0);
	close(fd);
	/* One that does not read. */
	fd = client();
	for (unsigned i = 0; i < LINE_SERVER_LENGTH - 1; i += 2)
		memcpy(line + i, "y\n", 2);
	line[LINE_SERVER_LENGTH - 2] = '\0';
	for (unsigned i = 0; i < 200; i++) {
		if (send(fd, line, strlen(line), MSG_NOSIGNAL) < 0)
			break;
		turn(20);
	}
	CHECK(send(fd, "y\n", 2, MSG_NOSIGNAL) < 0);
	close(fd);
	teardown();
}

/* text, with the end of a new socket pair; the other end. */
static int pass(int fd, const char *text)
{
	struct iovec iov = {.iov_base = strdup(text), .iov_len = strlen(text)};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	struct passed room;
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
	passed_attach(&h, &room, pair[1]);
	CHECK_EQ(sendmsg(fd, &h, MSG_NOSIGNAL), strlen(text));
	close(pair[1]);
	free(iov.iov_base);
	turn(20);
	return pair[0];
}

/* Nobody has the other end any more; and it closes this one. */
static bool is_closed(int fd)
{
	char byte;
	bool over = recv(fd, &byte, 1, 0) == 0;

	close(fd);
	return over;
}

static void descriptors_come_along(void)
{
	int a, one, two, three;

	setup(NULL);
	a = client();
	say(a, "take\n");
	heard(a, "none\n");
	/* Also with the first part of its line. */
	one = pass(a, "ta");
	say(a, "ke\ntake\n");
	heard(a, "one\nnone\n");
	CHECK(is_closed(one));
	/* The last one counts, and none stays behind. */
	one = pass(a, "hello\n");
	two = pass(a, "take\n");
	heard(a, "hello!\none\n");
	CHECK(is_closed(one));
	CHECK(is_closed(two));
	one = pass(a, "x\n");
	two = pass(a, "y\n");
	CHECK(is_closed(one));
	CHECK_EQ(recv(two, path + 60, 1, 0), -1);
	close(a);
	turn(20);
	CHECK(is_closed(two));
	a = client();
	three = pass(a, "left behind\n");
	teardown();
	CHECK(is_closed(three));
	close(a);
}

UNIT_MAIN(TEST(lines_are_answered), TEST(objects_need_no_end), TEST(who_goes_ends_its_command),
	  TEST(who_has_gone_wants_nothing), TEST(bad_clients_are_hung_up),
	  TEST(descriptors_come_along))
