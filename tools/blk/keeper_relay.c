// SPDX-License-Identifier: MIT
/*
 * A disk with TLS has one relay (relay.h) at most. The one before is ended, and its end awaited, before the next is started: what it still has of the guest's writes must
 * not reach the server after what is sent again on the new connection.
 */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/blk/keeper_internal.h"

/* A relay limits itself: this is for one that does not. Looking up a name may take long. */
#define ANSWER_NS UINT64_C(120000000000)
/* A disk's process that asks again and again is not to keep dom0 busy with that. */
#define APART_NS UINT64_C(200000000)

/* Waiting for a relay's word. */
struct hearing {
	struct relay *relay;
	struct loop_watch watch;
	struct loop_timer late;
	struct wait wait;
	struct control_message said;
	int result; /* of control_receive() */
};

static void on_said(struct loop_watch *w, uint32_t events)
{
	struct hearing *h = (struct hearing *)((char *)w - offsetof(struct hearing, watch));

	(void)events;
	h->result = control_receive(w->fd, &h->said, NULL);
	loop_unwatch(h->wait.loop, w);
	wait_end(&h->wait);
}

static void on_late(struct loop_timer *t)
{
	struct hearing *h = (struct hearing *)((char *)t - offsetof(struct hearing, late));

	keeper_relay_end(h->relay);
}

static int hear(struct loop *l, struct relay *y, int control, struct pgr_error *err)
{
	struct hearing h = {
		.relay = y, .watch = {.fd = control, .ready = on_said}, .late = {.fire = on_late}};
	int ret = loop_watch(l, &h.watch, EPOLLIN, err);

	if (ret)
		return ret;
	wait_begin(&h.wait, l);
	loop_arm(l, &h.late, loop_now_ns() + ANSWER_NS);
	wait_for(&h.wait);
	loop_disarm(l, &h.late);
	if (h.result || h.said.kind != CONTROL_DIALLED)
		return pgr_fail(
			err, -ECONNABORTED,
			"the process that does TLS for the disk ended before it was connected");
	if (!h.said.failure.code)
		return 0;
	return pgr_fail(err, h.said.failure.code < 0 ? h.said.failure.code : -EIO, "%s",
			h.said.failure.text);
}

/* The one before, if there is one. */
static void wait_for_end(struct loop *l, struct relay *y)
{
	while (y->pid) {
		keeper_relay_end(y);
		wait_queue_join(&y->gone, l);
	}
	if (y->started_ns && loop_now_ns() - y->started_ns < APART_NS)
		fiber_sleep_until(l, y->started_ns + APART_NS);
	y->started_ns = loop_now_ns();
}

int keeper_relay(struct disk *d, const char *uri, int *socket, struct pgr_error *err)
{
	struct loop *l = d->keeper->loop;
	struct relay *y = &d->relay;
	int pair[2], control, ret = 0;
	pid_t pid;

	wait_for_end(l, y);
	if (!d->pid || d->asked != d->pid)
		return pgr_fail(err, -ECANCELED, "%s: nobody wants it any more", uri);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair))
		return pgr_fail_errno(err, -errno, "%s: no socket for its relay", uri);
	pid = process_start_relay(uri, pair[1], d->uid + RELAY_USERS, &control, err);
	close(pair[1]);
	if (pid > 0) {
		y->pid = pid;
		ret = hear(l, y, control, err);
		close(control);
	} else {
		ret = (int)pid;
	}
	if (ret) {
		keeper_relay_end(y);
		close(pair[0]);
		return ret;
	}
	*socket = pair[0];
	return 0;
}

void keeper_relay_end(struct relay *y)
{
	if (y->pid)
		kill(y->pid, SIGKILL);
}

bool keeper_relay_reaped(struct relay *y, pid_t pid)
{
	if (y->pid != pid)
		return false;
	y->pid = 0;
	wait_queue_wake_all(&y->gone);
	return true;
}
