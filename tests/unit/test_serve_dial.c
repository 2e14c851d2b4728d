// SPDX-License-Identifier: MIT
/* How a disk's process gets a connection to its NBD server from the keeper: while the disk is opened, and later; the hypervisor is not needed for that. */
#include <fcntl.h>
#include <sys/socket.h>

#include "tests/unit/unit.h"
#include "tools/blk/serve.c" /* NOLINT(bugprone-suspicious-include) */

#define URI	 "nbds://b/disk"
#define FREE_FDS 10 /* from there on */

/* ---- what is elsewhere in the program ---- */

const struct pv_guest_ops pv_xen_ops;

int pv_xen_open(uint32_t domid, struct pv_xen **out, struct pgr_error *e)
{
	(void)domid;
	(void)out;
	return pgr_fail(e, -ENODEV, "no hypervisor");
}

int pv_xen_event_fd(const struct pv_xen *x)
{
	(void)x;
	return -1;
}

uint32_t pv_xen_event(struct pv_xen *x)
{
	(void)x;
	return PV_PORT_NONE;
}

int confine_user(uid_t uid, struct pgr_error *e)
{
	(void)uid;
	return pgr_fail(e, -EPERM, "not in a test");
}

int confine_calls(struct loop *l, struct pgr_error *e)
{
	(void)l;
	return pgr_fail(e, -EPERM, "not in a test");
}

/* ---- the keeper's end ---- */

static struct server s;
static struct pgr_error err;
static int keeper;

static void setup(const char *path)
{
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	keeper = fcntl(pair[0], F_DUPFD_CLOEXEC, FREE_FDS);
	if (pair[1] != CONTROL_FD)
		CHECK_EQ(dup2(pair[1], CONTROL_FD), CONTROL_FD);
	for (unsigned i = 0; i < 2; i++)
		if (pair[i] != CONTROL_FD)
			close(pair[i]);
	s = (struct server){.loop = NULL};
	err = PGR_ERROR_NONE;
	CHECK_EQ(loop_create(&s.loop, &err), 0);
	set_dial(&s, path);
}

static void teardown(void)
{
	if (s.listening)
		loop_unwatch(s.loop, &s.control);
	loop_free(s.loop);
	close(keeper);
	close(CONTROL_FD);
}

static void expect_asked(void)
{
	struct control_message m;

	CHECK_EQ(control_receive(keeper, &m, NULL), 0);
	CHECK_EQ(m.kind, CONTROL_DIAL);
}

static void expect_silence(void)
{
	struct control_message m;

	CHECK(recv(keeper, &m, sizeof(m), MSG_DONTWAIT) < 0 && errno == EAGAIN);
}

static void answer(int fd, int code, const char *text)
{
	struct control_message m = {.kind = CONTROL_DIALLED, .failure = {.code = code}};

	snprintf(m.failure.text, sizeof(m.failure.text), "%s", text);
	CHECK_EQ(control_send_fd(keeper, &m, fd), 0);
}

/* The other end of a stream, as the keeper passes it on; it is still one. */
static void answer_with_stream(int *other)
{
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	answer(pair[1], 0, "");
	close(pair[1]);
	*other = pair[0];
}

static void check_stream(int fd, int other)
{
	char byte = 0;

	CHECK_EQ(write(fd, "x", 1), 1);
	CHECK_EQ(read(other, &byte, 1), 1);
	CHECK_EQ(byte, 'x');
	close(fd);
	close(other);
}

/* ---- tests ---- */

static void which_are_made_by_the_keeper(void)
{
	setup(URI);
	CHECK(s.dial.first);
	set_dial(&s, "nbd://b/disk");
	CHECK(!s.dial.first && s.dial.connect);
	set_dial(&s, "nbds://b/disk?tls-certificates=/x");
	CHECK(!s.dial.first && s.dial.connect);
	teardown();
}

static void while_the_disk_is_opened(void)
{
	int fd, other;

	setup(URI);
	answer_with_stream(&other);
	CHECK_EQ(s.dial.connect(s.dial.ctx, URI, &fd, &err), 0);
	expect_asked();
	check_stream(fd, other);
	/* The keeper's reason; without one that is an error there is one. */
	answer(-1, -EACCES, "it is not trusted here");
	CHECK_EQ(s.dial.connect(s.dial.ctx, URI, &fd, &err), -EACCES);
	CHECK_STR(err.text, "it is not trusted here");
	expect_asked();
	answer(-1, 7, "");
	CHECK_EQ(s.dial.connect(s.dial.ctx, URI, &fd, &err), -ENOTCONN);
	expect_asked();
	teardown();
}

/* One that only looked whether the disk could be opened may be told meanwhile to open it. */
static void what_is_said_meanwhile_is_heard_later(void)
{
	struct control_message m = {.kind = CONTROL_OPEN, .open = {.path = URI, .format = "raw"}};
	struct pv_open o;
	int fd, other;

	setup(URI);
	CHECK_EQ(control_send(keeper, &m), 0);
	answer_with_stream(&other);
	CHECK_EQ(s.dial.connect(s.dial.ctx, URI, &fd, &err), 0);
	expect_asked();
	check_stream(fd, other);
	CHECK_EQ(learn_disk(&s, &o, &err), 0);
	CHECK_STR(o.path, URI);
	CHECK(!s.has_told);
	expect_silence();
	teardown();
}

static void what_is_not_made(void)
{
	int fd;

	setup(URI);
	CHECK_EQ(s.dial.connect(s.dial.ctx, "nbds://another/disk", &fd, &err), -ESTALE);
	set_dial(&s, "nbds://b/?tls-psk-file=x");
	CHECK_EQ(s.dial.connect(s.dial.ctx, s.path, &fd, &err), -ESTALE);
	CHECK_HAS(err.text, "detach and attach");
	expect_silence();
	/* An answer that nobody waits for is closed. */
	on_dialled(&s, &(struct control_failure){.code = 0}, dup(keeper));
	on_dialled(&s, &(struct control_failure){.code = 0}, -1);
	teardown();
}

static int dialled, result;

static void lose(void *ctx)
{
	const struct block_dial *d = ctx;

	result = d->connect(d->ctx, URI, &dialled, &err);
}

/* When it is open, the loop goes on and hears the answer among other things. */
static void later_from_the_loop(void)
{
	int other;

	setup(URI);
	s.control = (struct loop_watch){.fd = CONTROL_FD, .ready = on_control};
	CHECK_EQ(loop_watch(s.loop, &s.control, EPOLLIN, &err), 0);
	s.listening = true;
	result = 1;
	CHECK_EQ(fiber_start(s.loop, lose, &s.dial), 0);
	expect_asked();
	CHECK_EQ(result, 1);
	CHECK_EQ(control_send(keeper, &(struct control_message){.kind = CONTROL_LAYER_STOP}), 0);
	answer_with_stream(&other);
	while (result == 1)
		loop_turn(s.loop, true);
	CHECK_EQ(result, 0);
	CHECK(atomic_load(&s.stop));
	check_stream(dialled, other);
	expect_silence();
	teardown();
}

UNIT_MAIN(TEST(which_are_made_by_the_keeper), TEST(while_the_disk_is_opened),
	  TEST(what_is_said_meanwhile_is_heard_later), TEST(what_is_not_made),
	  TEST(later_from_the_loop))
