// SPDX-License-Identifier: MIT
/*
 * The process that libxl starts as its save helper: hands its descriptors to the restoring process
 * and waits to be told how to end.
 */
#include "migrate/xen_save_helper.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "migrate/guest_xen.h"

#define RESTORE_VERB "--restore-domain"

bool guest_xen_is_save_helper(int argc, char **argv)
{
	return argc > 1 && !strcmp(argv[1], RESTORE_VERB);
}

/* libxl may have left the socket non-blocking. */
static void wait_for(int fd, short events)
{
	struct pollfd p = {.fd = fd, .events = events};

	poll(&p, 1, -1);
}

static int send_hello(int stream, const struct xen_helper_hello *hello)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control = {.room = {0}};
	struct iovec iov = {.iov_base = (void *)(uintptr_t)hello, .iov_len = sizeof(*hello)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = control.room,
			   .msg_controllen = sizeof(control.room)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	const int fds[2] = {STDIN_FILENO, STDOUT_FILENO};
	ssize_t n;

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(c), fds, sizeof(fds));
	while ((n = sendmsg(stream, &m, MSG_NOSIGNAL)) < 0 && (errno == EAGAIN || errno == EINTR))
		wait_for(stream, POLLOUT);
	return n == (ssize_t)sizeof(*hello) ? 0 : -1;
}

static int wait_for_status(int stream)
{
	uint8_t status = 1;
	ssize_t n;

	while ((n = read(stream, &status, 1)) < 0 && (errno == EAGAIN || errno == EINTR))
		wait_for(stream, POLLIN);
	/* The other end is gone: so is the restore. */
	return n == 1 ? status : 1;
}

static bool number(const char *text, uint32_t *n)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	*n = (uint32_t)v;
	return text[0] >= '0' && text[0] <= '9' && !*end && !errno && v <= UINT32_MAX;
}

int guest_xen_save_helper(int argc, char **argv)
{
	struct xen_helper_hello h = {.magic = XEN_HELPER_MAGIC};
	uint32_t stream;

	/*
	 * verb stream back-channel domain store-port store-domain console-port console-domain
	 * callbacks stream-type
	 */
	if (argc != 11 || !number(argv[2], &stream) || !number(argv[4], &h.domid) ||
	    !number(argv[5], &h.store_port) || !number(argv[6], &h.store_domid) ||
	    !number(argv[7], &h.console_port) || !number(argv[8], &h.console_domid) ||
	    !number(argv[9], &h.callbacks) || !number(argv[10], &h.stream)) {
		fputs("pagurus: this is a save helper for libxl 4.17, which starts it with 10 arguments; this is another libxl\n",
		      stderr);
		return 1;
	}
	if (send_hello((int)stream, &h)) {
		perror("pagurus: save helper: the restoring process does not answer");
		return 1;
	}
	return wait_for_status((int)stream);
}
