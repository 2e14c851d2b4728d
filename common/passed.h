/* SPDX-License-Identifier: MIT */
/* A descriptor that goes along with a message over a Unix socket (SCM_RIGHTS); one at most. */
#ifndef PAGURUS_PASSED_H
#define PAGURUS_PASSED_H

#include <stdalign.h>
#include <sys/socket.h>

struct passed {
	alignas(struct cmsghdr) char room[CMSG_SPACE(sizeof(int))];
};

/* Before sendmsg(): fd goes along and stays the caller's; -1: none. p has to stay until then. */
void passed_attach(struct msghdr *h, struct passed *p, int fd);
/* Before recvmsg(), with MSG_CMSG_CLOEXEC: there is room for one; the kernel closes further ones. */
void passed_expect(struct msghdr *h, struct passed *p);
/* After recvmsg(): the caller's from now on, or -1. */
int passed_take(struct msghdr *h);

#endif
