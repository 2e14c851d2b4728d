// SPDX-License-Identifier: MIT
#include "migrate/xen_quiet.h"

#include <linux/netlink.h>
#include <linux/pkt_sched.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define KIND "blackhole"
/* By which our queue is known. */
#define HANDLE	  0x50470000u
#define ANSWER_MS 1000

struct request {
	struct nlmsghdr head;
	struct tcmsg tc;
	struct rtattr kind;
	char name[RTA_ALIGN(sizeof(KIND))];
};

static int open_netlink(void)
{
	const struct timeval patience = {.tv_sec = ANSWER_MS / 1000};
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	return fd;
}

/* Whatever the answer is, it is done when that has come. */
static void change_queue(int fd, uint16_t type, uint16_t flags, unsigned interface)
{
	struct request r = {
		.head = {.nlmsg_len = sizeof(r),
			 .nlmsg_type = type,
			 .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags)},
		.tc = {.tcm_family = AF_UNSPEC,
		       .tcm_ifindex = (int)interface,
		       .tcm_parent = TC_H_ROOT,
		       .tcm_handle = HANDLE},
		.kind = {.rta_len = RTA_LENGTH(sizeof(KIND)), .rta_type = TCA_KIND},
		.name = KIND,
	};
	char answer[512];

	if (send(fd, &r, sizeof(r), 0) == (ssize_t)sizeof(r))
		(void)recv(fd, answer, sizeof(answer), 0);
}

static void change_all(uint32_t domid, uint16_t type, uint16_t flags)
{
	struct if_nameindex *all = if_nameindex();
	int fd = open_netlink(), length;
	char begin[16];

	length = snprintf(begin, sizeof(begin), "vif%u.", domid);
	for (struct if_nameindex *i = all; fd >= 0 && i && i->if_index; i++)
		if (!strncmp(i->if_name, begin, (size_t)length))
			change_queue(fd, type, flags, i->if_index);
	if (all)
		if_freenameindex(all);
	if (fd >= 0)
		close(fd);
}

void xen_quiet_begin(uint32_t domid)
{
	change_all(domid, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL);
}

void xen_quiet_end(uint32_t domid)
{
	change_all(domid, RTM_DELQDISC, 0);
}
