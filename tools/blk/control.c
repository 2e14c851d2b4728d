// SPDX-License-Identifier: MIT
#include "tools/blk/control.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/passed.h"
#include "common/text.h"

int control_send_fd(int fd, const struct control_message *m, int passed)
{
	/* sendmsg() takes it without const. */
	struct iovec iov = {.iov_base = (void *)m, .iov_len = sizeof(*m)};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	struct passed room;
	ssize_t n;

	passed_attach(&h, &room, passed);
	do
		n = sendmsg(fd, &h, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

int control_send(int fd, const struct control_message *m)
{
	return control_send_fd(fd, m, -1);
}

int control_receive(int fd, struct control_message *m, int *passed)
{
	struct iovec iov = {.iov_base = m, .iov_len = sizeof(*m)};
	struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1};
	struct passed room;
	ssize_t n;

	if (passed)
		passed_expect(&h, &room);
	do
		n = recvmsg(fd, &h, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	if (passed)
		*passed = passed_take(&h);
	if (n != (ssize_t)sizeof(*m)) {
		if (passed && *passed >= 0)
			close(*passed);
		return n ? -EPROTO : -ENOTCONN;
	}
	/* The last byte of each text that it may hold; a path is as long as a text. */
	m->text[sizeof(m->text) - 1] = '\0';
	m->open.format[sizeof(m->open.format) - 1] = '\0';
	return 0;
}

void control_put_error(struct control_message *m, const struct pgr_error *err)
{
	m->failure.code = err->code;
	text_plain(m->failure.text, sizeof(m->failure.text), err->text, strlen(err->text));
}

int control_answer(int fd, uint32_t call, struct control_message *m, const struct pgr_error *err)
{
	struct control_message failed = {.kind = CONTROL_FAILED, .call = call};

	m->kind = CONTROL_DONE;
	m->call = call;
	if (!err->code)
		return control_send(fd, m);
	control_put_error(&failed, err);
	return control_send(fd, &failed);
}

int control_say(int fd, enum control_kind kind, const char *text)
{
	struct control_message m = {.kind = kind};

	snprintf(m.text, sizeof(m.text), "%s", text);
	return control_send(fd, &m);
}

int control_take(int fd, unsigned most, control_fn *fn, void *ctx)
{
	struct control_message m;
	int ret = 0;

	while (most-- && !(ret = control_receive(fd, &m, NULL)))
		fn(ctx, &m);
	return ret;
}
