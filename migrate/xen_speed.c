/* SPDX-License-Identifier: MIT */
#include "migrate/xen_speed.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenstore.h>

#include "migrate/speed_cap.h"
#include "migrate/xen_store.h"

/* ---- the note ---- */

#define PATH_BYTES 48

/* By its UUID: numbers of domains are used again. */
static void note_path(const uint8_t uuid[16], char path[PATH_BYTES])
{
	int n = snprintf(path, PATH_BYTES, "/pagurus/cap/");

	for (unsigned i = 0; i < 16; i++)
		n += snprintf(path + n, PATH_BYTES - (size_t)n, "%02x", uuid[i]);
}

static bool note_write(const uint8_t uuid[16], int cap)
{
	struct xs_handle *xs = xs_open(0);
	char path[PATH_BYTES], text[16];
	bool good;

	if (!xs)
		return false;
	note_path(uuid, path);
	snprintf(text, sizeof(text), "%d", cap);
	good = xs_write(xs, XBT_NULL, path, text, (unsigned)strlen(text));
	xs_close(xs);
	return good;
}

static void note_remove(const uint8_t uuid[16])
{
	char path[PATH_BYTES];

	note_path(uuid, path);
	xen_store_remove(path);
}

/* Only dom0 can write there. -1: none. */
static int note_read(const uint8_t uuid[16])
{
	struct xs_handle *xs = xs_open(0);
	char path[PATH_BYTES], *text, *end;
	unsigned length;
	long cap = -1;

	if (!xs)
		return -1;
	note_path(uuid, path);
	text = xs_read(xs, XBT_NULL, path, &length);
	if (text) {
		cap = strtol(text, &end, 10);
		if (end == text || *end || cap < 0 || cap > SPEED_CAP_MAX)
			cap = -1;
	}
	free(text);
	xs_close(xs);
	return (int)cap;
}

/* ---- the cap ---- */

static int own_cap(struct xen_speed *s, int *cap)
{
	libxl_domain_sched_params p;
	int rc;

	libxl_domain_sched_params_init(&p);
	rc = libxl_domain_sched_params_get(xen_toolstack_ctx(s->tools), s->domid, &p);
	*cap = rc || p.cap < 0 || p.cap > SPEED_CAP_MAX ? 0 : p.cap;
	libxl_domain_sched_params_dispose(&p);
	return rc;
}

static int put_cap(struct xen_speed *s, int cap)
{
	libxl_domain_sched_params p;
	int rc;

	libxl_domain_sched_params_init(&p);
	p.sched = LIBXL_SCHEDULER_UNKNOWN;
	p.cap = cap;
	xen_toolstack_begin(s->tools);
	rc = libxl_domain_sched_params_set(xen_toolstack_ctx(s->tools), s->domid, &p);
	libxl_domain_sched_params_dispose(&p);
	return rc;
}

void xen_speed_open(struct xen_speed *s, struct xen_calls *calls, struct xen_toolstack *tools,
		    uint32_t domid)
{
	struct xen_domctl_getdomaininfo info;

	*s = (struct xen_speed){.calls = calls, .tools = tools, .domid = domid};
	if (!xen_domain_info(calls, domid, &info))
		memcpy(s->uuid, info.handle, sizeof(s->uuid));
}

void xen_speed_put_back(struct xen_speed *s)
{
	int cap = note_read(s->uuid);

	if (cap >= 0 && !put_cap(s, cap))
		note_remove(s->uuid);
}

void xen_speed_measure(struct xen_speed *s)
{
	struct xen_domctl_getdomaininfo info;

	s->at_ns = 0;
	if (xen_domain_info(s->calls, s->domid, &info))
		return;
	s->cpu_ns = info.cpu_time;
	s->at_ns = xen_now_ns();
}

/* Percent of one processor since xen_speed_measure(), and how many processors the guest has. */
static void look(struct xen_speed *s, unsigned *vcpus)
{
	struct xen_domctl_getdomaininfo info;
	unsigned used;

	*vcpus = 1;
	if (xen_domain_info(s->calls, s->domid, &info))
		return;
	*vcpus = info.nr_online_vcpus;
	if (s->slowed || !s->at_ns || info.cpu_time < s->cpu_ns)
		return;
	used = speed_used(info.cpu_time - s->cpu_ns, xen_now_ns() - s->at_ns);
	if (used)
		s->used = used;
}

static int failed(struct xen_speed *s, int rc, unsigned percent, struct pgr_error *err)
{
	return xen_toolstack_failed(s->tools, rc, err, "domain %u cannot be slowed to %u percent",
				    s->domid, percent);
}

int xen_speed_set(struct xen_speed *s, unsigned percent, struct pgr_error *err)
{
	unsigned vcpus;
	int rc;

	if (percent < 1 || percent > 100)
		return pgr_fail(err, -EINVAL, "a guest's speed is 1 to 100 percent, not %u",
				percent);
	if (percent == 100) {
		rc = s->slowed ? put_cap(s, s->cap) : 0;
		if (rc)
			return failed(s, rc, percent, err);
		if (s->slowed)
			note_remove(s->uuid);
		s->slowed = false;
		return 0;
	}
	look(s, &vcpus);
	if (!s->slowed) {
		rc = own_cap(s, &s->cap);
		if (rc)
			return failed(s, rc, percent, err);
		if (!note_write(s->uuid, s->cap))
			return pgr_fail(err, -EIO,
					"domain %u is not slowed: Xenstore does not take a note",
					s->domid);
	}
	rc = put_cap(s, speed_cap(s->used, s->cap, vcpus, percent));
	if (rc) {
		if (!s->slowed)
			note_remove(s->uuid);
		return failed(s, rc, percent, err);
	}
	s->slowed = true;
	return 0;
}
