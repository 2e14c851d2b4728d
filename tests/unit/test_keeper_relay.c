// SPDX-License-Identifier: MIT
/* The keeper and its relays, which are played by children: one at a time, what they say, and how they end. */
#include <fcntl.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/unit/unit.h"
#include "tools/blk/keeper_relay.c" /* NOLINT(bugprone-suspicious-include) */

#define PLAYED 40 /* what stands for a process of the disk */

static struct keeper keeper;
static struct disk disk;
static struct pgr_error err;
static unsigned started;
static void (*play)(int control, int stream);

/* Instead of the program. */
pid_t process_start_relay(const char *uri, int stream, uid_t uid, int *control, struct pgr_error *e)
{
	int pair[2];
	pid_t pid;

	CHECK_STR(uri, "nbds://b/disk");
	CHECK_EQ(uid, 1000 + RELAY_USERS);
	/* The one before has been ended, and that is known. */
	CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
	if (!play)
		return pgr_fail(e, -EAGAIN, "no more processes");
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	pid = fork();
	if (!pid) {
		close(pair[0]);
		play(pair[1], stream);
		_exit(0);
	}
	close(pair[1]);
	*control = pair[0];
	started++;
	return pid;
}

static void say(int control, int code, const char *text)
{
	struct control_message m = {.kind = CONTROL_DIALLED, .failure = {.code = code}};

	strncpy(m.failure.text, text, sizeof(m.failure.text) - 1);
	CHECK_EQ(control_send(control, &m), 0);
}

/* ---- relays ---- */

static void __attribute__((noreturn)) stay(void)
{
	for (;;)
		pause();
}

static void good(int control, int stream)
{
	say(control, 0, "");
	CHECK_EQ(write(stream, "hello", 5), 5);
	stay();
}

static void refused(int control, int stream)
{
	(void)stream;
	say(control, -EACCES, "it is not trusted here");
	stay();
}

static void odd(int control, int stream)
{
	(void)stream;
	say(control, 7, "odd");
	stay();
}

static void silent(int control, int stream)
{
	(void)control;
	(void)stream;
}

static void mad(int control, int stream)
{
	(void)stream;
	CHECK_EQ(write(control, "mad", 3), 3);
	stay();
}

static void slow(int control, int stream)
{
	(void)control;
	(void)stream;
	stay();
}

/* ---- the keeper ---- */

struct dialling {
	int socket, result;
	bool over;
};

static void dial(void *ctx)
{
	struct dialling *x = ctx;

	x->socket = -1;
	err = PGR_ERROR_NONE;
	x->result = keeper_relay(&disk, "nbds://b/disk", &x->socket, &err);
	x->over = true;
}

/* As on SIGCHLD. */
static void reap(void)
{
	pid_t pid = waitpid(-1, NULL, WNOHANG);

	if (pid > 0) {
		CHECK(!keeper_relay_reaped(&disk.relay, pid + 1));
		CHECK(keeper_relay_reaped(&disk.relay, pid));
		CHECK_EQ(disk.relay.pid, 0);
	}
}

static void begin(struct dialling *x, void (*how)(int control, int stream))
{
	play = how;
	*x = (struct dialling){.over = false};
	CHECK_EQ(fiber_start(keeper.loop, dial, x), 0);
}

static int finish(struct dialling *x)
{
	while (!x->over) {
		reap();
		usleep(1000);
		loop_turn(keeper.loop, false);
	}
	CHECK_EQ(x->socket >= 0, !x->result);
	return x->result;
}

static int connect_by(void (*how)(int control, int stream), int *socket)
{
	struct dialling x;
	int ret;

	begin(&x, how);
	ret = finish(&x);
	*socket = x.socket;
	return ret;
}

static void setup(void)
{
	CHECK_EQ(loop_create(&keeper.loop, &err), 0);
	disk = (struct disk){.keeper = &keeper, .uid = 1000, .pid = PLAYED, .asked = PLAYED};
	started = 0;
}

static void teardown(void)
{
	keeper_relay_end(&disk.relay);
	while (disk.relay.pid) {
		reap();
		usleep(1000);
	}
	keeper_relay_end(&disk.relay);
	loop_free(keeper.loop);
}

/* ---- tests ---- */

static void one_after_the_other(void)
{
	setup();
	for (unsigned i = 1; i <= 3; i++) {
		char text[6] = "";
		int fd;

		CHECK_EQ(connect_by(good, &fd), 0);
		CHECK_EQ(started, i);
		CHECK(disk.relay.pid > 0);
		while (read(fd, text, 5) < 0)
			CHECK_EQ(errno, EAGAIN);
		CHECK_STR(text, "hello");
		/* Its stream is the disk's alone: with that, or with the relay, it ends. */
		close(fd);
	}
	teardown();
}

static void those_that_fail(void)
{
	int fd;

	setup();
	CHECK_EQ(connect_by(refused, &fd), -EACCES);
	CHECK_STR(err.text, "it is not trusted here");
	CHECK_EQ(connect_by(odd, &fd), -EIO);
	CHECK_EQ(connect_by(silent, &fd), -ECONNABORTED);
	CHECK_HAS(err.text, "ended before it was connected");
	CHECK_EQ(connect_by(mad, &fd), -ECONNABORTED);
	CHECK_EQ(started, 4);
	CHECK_EQ(connect_by(NULL, &fd), -EAGAIN);
	CHECK_STR(err.text, "no more processes");
	CHECK_EQ(disk.relay.pid, 0);
	teardown();
}

/* Nobody waits for the connection of a process that has died, and none is begun for it. */
static void the_process_dies_meanwhile(void)
{
	struct dialling x;
	int fd;

	setup();
	begin(&x, slow);
	CHECK(!x.over && disk.relay.pid > 0);
	disk.pid = disk.asked = 0;
	keeper_relay_end(&disk.relay);
	CHECK_EQ(finish(&x), -ECONNABORTED);
	CHECK_EQ(connect_by(good, &fd), -ECANCELED);
	disk.pid = PLAYED + 1;
	CHECK_EQ(connect_by(good, &fd), -ECANCELED);
	CHECK_EQ(started, 1);
	disk.asked = disk.pid;
	CHECK_EQ(connect_by(good, &fd), 0);
	close(fd);
	teardown();
}

UNIT_MAIN(TEST(one_after_the_other), TEST(those_that_fail), TEST(the_process_dies_meanwhile))
