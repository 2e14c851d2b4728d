// SPDX-License-Identifier: MIT
/* What a disk's process may say to its keeper: whole messages, and as many as it likes, a few at a time. */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "tests/unit/unit.h"
#include "tools/blk/control.c" /* NOLINT(bugprone-suspicious-include) */

#define MOST 16u

static int pair[2];
static unsigned taken;

static void setup(void)
{
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	taken = 0;
}

static void teardown(void)
{
	close(pair[0]);
	close(pair[1]);
}

static void take(void *ctx, const struct control_message *m)
{
	CHECK_EQ(ctx, pair);
	CHECK_EQ(m->kind, CONTROL_SAY);
	CHECK(strnlen(m->text, sizeof(m->text)) < sizeof(m->text));
	taken++;
}

/* As many as the socket holds: each turn takes its part, and what is sent meanwhile waits. */
static void a_flood_is_taken_in_parts(void)
{
	unsigned sent = 0;

	setup();
	while (!control_say(pair[1], CONTROL_SAY, "again"))
		sent++;
	CHECK(sent > 2 * MOST);
	CHECK_EQ(control_take(pair[0], MOST, take, pair), 0);
	CHECK_EQ(taken, MOST);
	for (unsigned more = 0; more < MOST; more++)
		sent += !control_say(pair[1], CONTROL_SAY, "again");
	CHECK_EQ(control_take(pair[0], MOST, take, pair), 0);
	CHECK_EQ(taken, 2 * MOST);
	while (!control_take(pair[0], MOST, take, pair))
		;
	CHECK_EQ(taken, sent);
	CHECK_EQ(control_take(pair[0], MOST, take, pair), -EAGAIN);
	CHECK_EQ(control_take(pair[0], 0, take, pair), 0);
	teardown();
}

static void no_message(void)
{
	struct control_message m = {.kind = CONTROL_SAY};

	setup();
	/* A text without an end has one. */
	memset(m.text, 'x', sizeof(m.text));
	CHECK_EQ(control_send(pair[1], &m), 0);
	CHECK_EQ(control_take(pair[0], MOST, take, pair), -EAGAIN);
	CHECK_EQ(taken, 1);
	for (size_t length = 1; length < sizeof(m); length += sizeof(m) / 7) {
		CHECK_EQ(send(pair[1], &m, length, 0), (ssize_t)length);
		CHECK_EQ(control_take(pair[0], MOST, take, pair), -EPROTO);
	}
	/* A descriptor that nobody wants is closed by the kernel. */
	CHECK_EQ(control_send_fd(pair[1], &m, STDERR_FILENO), 0);
	CHECK_EQ(control_take(pair[0], MOST, take, pair), -EAGAIN);
	CHECK_EQ(taken, 2);
	close(pair[1]);
	CHECK_EQ(control_take(pair[0], MOST, take, pair), -ENOTCONN);
	pair[1] = -1;
	teardown();
}

UNIT_MAIN(TEST(a_flood_is_taken_in_parts), TEST(no_message))
