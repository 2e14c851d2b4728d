// SPDX-License-Identifier: MIT
#include "common/passed.h"

#include <string.h>

void passed_expect(struct msghdr *h, struct passed *p)
{
	memset(p, 0, sizeof(*p));
	h->msg_control = p->room;
	h->msg_controllen = sizeof(p->room);
}

void passed_attach(struct msghdr *h, struct passed *p, int fd)
{
	struct cmsghdr *c;

	if (fd < 0)
		return;
	passed_expect(h, p);
	c = CMSG_FIRSTHDR(h);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
}

int passed_take(struct msghdr *h)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(h);
	int fd;

	if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS ||
	    c->cmsg_len != CMSG_LEN(sizeof(int)))
		return -1;
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}
