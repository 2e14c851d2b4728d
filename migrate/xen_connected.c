// SPDX-License-Identifier: MIT
#include "migrate/xen_connected.h"

#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <xenstore.h>

#include "migrate/xen_store.h"

/* XenbusStateConnected of Xen's io/xenbus.h, as Xenstore has it. */
#define CONNECTED "4"
/* A kernel announces itself as soon as its interface is connected; one without an address says nothing. */
#define QUIET_NS   3000000000ull
#define MS_NS	   1000000ull
#define EVENTS_MAX 16

struct device {
	char *state; /* the node of its backend's state */
	bool connected;
	int frames; /* packet socket, -1: none */
};

struct xen_connected {
	struct xs_handle *xs;
	int news; /* epoll: something changed in Xenstore, or a frame came */
	struct device *device;
	unsigned nr, waiting, listening;
	uint64_t started_ns, connected_ns; /* CLOCK_MONOTONIC; 0: not yet */
	uint64_t announced_ns;		   /* after started_ns; 0: not yet */
};

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

/* ---- what the guest has ---- */

static char *read_node(struct xen_connected *c, const char *folder, const char *name)
{
	char path[512];
	unsigned length;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return xs_read(c->xs, XBT_NULL, path, &length);
}

static int tell_of(struct xen_connected *c, int fd)
{
	struct epoll_event e = {.events = EPOLLIN};

	return epoll_ctl(c->news, EPOLL_CTL_ADD, fd, &e);
}

/* A socket that has what comes out of the interface; -1: there is no such interface here, or no socket. */
static int listen_on(struct xen_connected *c, const char *name)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = (int)if_nametoindex(name),
	};
	const int on = 1;
	int fd;

	if (!address.sll_ifindex)
		return -1;
	/* Without a protocol: nothing comes before it is bound. What dom0 sends to the guest is not the guest's word. */
	fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)) ||
	    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) ||
	    bind(fd, (const struct sockaddr *)&address, sizeof(address)) || tell_of(c, fd)) {
		close(fd);
		return -1;
	}
	c->listening++;
	return fd;
}

static int add_device(struct xen_connected *c, uint32_t domid, const char *number,
		      const char *backend, bool network, struct pgr_error *err)
{
	struct device *more = realloc(c->device, (c->nr + 1) * sizeof(*more)), *d;
	char *name;

	if (!more)
		return pgr_fail(err, -ENOMEM, "no memory for %u devices", c->nr + 1);
	c->device = more;
	d = &more[c->nr];
	*d = (struct device){.frames = -1};
	if (asprintf(&d->state, "%s/state", backend) < 0)
		return pgr_fail(err, -ENOMEM, "no memory for %u devices", c->nr + 1);
	c->nr++;
	if (!xs_watch(c->xs, d->state, "connected"))
		return pgr_fail_errno(err, -EIO, "Xenstore does not watch %s", d->state);
	if (!network)
		return 0;
	name = read_node(c, backend, "vifname");
	if (!name && asprintf(&name, "vif%u.%s", domid, number) < 0)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	d->frames = listen_on(c, name);
	free(name);
	return 0;
}

static int add_devices(struct xen_connected *c, uint32_t domid, const char *kind,
		       struct pgr_error *err)
{
	char folder[64], device[128];
	unsigned nr = 0;
	char **number;
	int rc = 0;

	snprintf(folder, sizeof(folder), "/libxl/%u/device/%s", domid, kind);
	/* None of that kind: no such folder. */
	number = xs_directory(c->xs, XBT_NULL, folder, &nr);
	for (unsigned i = 0; number && !rc && i < nr; i++) {
		char *backend;

		snprintf(device, sizeof(device), "%s/%s", folder, number[i]);
		backend = read_node(c, device, "backend");
		if (backend)
			rc = add_device(c, domid, number[i], backend, !strcmp(kind, "vif"), err);
		free(backend);
	}
	free(number);
	return rc;
}

int xen_connected_open(uint32_t domid, struct xen_connected **out, struct pgr_error *err)
{
	struct xen_connected *c = calloc(1, sizeof(*c));
	int rc = 0;

	if (!c)
		return pgr_fail(err, -ENOMEM, "no memory to look at devices");
	c->xs = xs_open(0);
	c->news = epoll_create1(EPOLL_CLOEXEC);
	if (!c->xs)
		rc = pgr_fail(err, -EIO, "Xenstore cannot be reached");
	else if (c->news < 0 || tell_of(c, xs_fileno(c->xs)))
		rc = pgr_fail_errno(err, -errno, "Xenstore cannot be waited for");
	if (!rc)
		rc = add_devices(c, domid, "vif", err);
	if (!rc)
		rc = add_devices(c, domid, "vbd", err);
	if (rc) {
		xen_connected_close(c);
		return rc;
	}
	c->waiting = c->nr;
	*out = c;
	return 0;
}

void xen_connected_start(struct xen_connected *c)
{
	c->started_ns = clock_ns(CLOCK_MONOTONIC);
}

/* ---- what became of it ---- */

static void look_at_devices(struct xen_connected *c)
{
	if (c->connected_ns)
		return;
	c->waiting = 0;
	for (unsigned i = 0; i < c->nr; i++) {
		struct device *d = &c->device[i];
		unsigned length;
		char *state = d->connected ? NULL : xs_read(c->xs, XBT_NULL, d->state, &length);

		if (state && !strcmp(state, CONNECTED))
			d->connected = true;
		free(state);
		c->waiting += !d->connected;
	}
	if (!c->waiting)
		c->connected_ns = clock_ns(CLOCK_MONOTONIC);
}

/* How long ago the frame came that waits in the socket; false: none does. */
static bool take_frame(int fd, uint64_t *age_ns)
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(struct timespec))];
	} control;
	char byte;
	struct iovec iov = {.iov_base = &byte, .iov_len = sizeof(byte)};
	struct msghdr m = {.msg_iov = &iov,
			   .msg_iovlen = 1,
			   .msg_control = &control,
			   .msg_controllen = sizeof(control)};
	struct timespec t;
	uint64_t now, came;

	if (recvmsg(fd, &m, MSG_DONTWAIT) < 0)
		return false;
	now = came = clock_ns(CLOCK_REALTIME);
	for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SO_TIMESTAMPNS)
			continue;
		memcpy(&t, CMSG_DATA(h), sizeof(t));
		came = (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
	}
	*age_ns = now > came ? now - came : 0;
	return true;
}

static void stop_listening(struct xen_connected *c)
{
	for (unsigned i = 0; i < c->nr; i++) {
		if (c->device[i].frames >= 0)
			close(c->device[i].frames);
		c->device[i].frames = -1;
	}
	c->listening = 0;
}

static void look_for_frames(struct xen_connected *c)
{
	for (unsigned i = 0; i < c->nr; i++) {
		uint64_t came, age;

		if (c->device[i].frames < 0 || !take_frame(c->device[i].frames, &age))
			continue;
		/* The clock may have been set meanwhile: never before the start. */
		came = clock_ns(CLOCK_MONOTONIC) - c->started_ns;
		came = age < came ? came - age : 1;
		if (!c->announced_ns || came < c->announced_ns)
			c->announced_ns = came;
	}
	/* The first is all that is wanted, and those that follow would be news for ever. */
	if (c->announced_ns)
		stop_listening(c);
}

static bool is_quiet(const struct xen_connected *c)
{
	return !c->listening || clock_ns(CLOCK_MONOTONIC) - c->connected_ns >= QUIET_NS;
}

static void wait_for_news(struct xen_connected *c, uint64_t ns)
{
	struct epoll_event events[EVENTS_MAX];

	epoll_wait(c->news, events, EVENTS_MAX, (int)(ns / MS_NS + 1));
	xen_store_drain(c->xs);
}

int xen_connected_wait(struct xen_connected *c, unsigned timeout_ms, struct pgr_connected *out)
{
	uint64_t until = clock_ns(CLOCK_MONOTONIC) + timeout_ms * MS_NS, now;

	for (;;) {
		look_at_devices(c);
		look_for_frames(c);
		now = clock_ns(CLOCK_MONOTONIC);
		*out = (struct pgr_connected){
			.announced_ns = c->announced_ns,
			.devices = c->nr,
			.waiting = c->waiting,
		};
		if (c->nr)
			out->devices_ns = (c->connected_ns ? c->connected_ns : now) - c->started_ns;
		if (c->connected_ns && is_quiet(c))
			return 0;
		if (now >= until)
			return -ETIMEDOUT;
		wait_for_news(c, until - now);
	}
}

void xen_connected_close(struct xen_connected *c)
{
	if (!c)
		return;
	stop_listening(c);
	for (unsigned i = 0; i < c->nr; i++)
		free(c->device[i].state);
	free(c->device);
	if (c->news >= 0)
		close(c->news);
	if (c->xs)
		xs_close(c->xs);
	free(c);
}
