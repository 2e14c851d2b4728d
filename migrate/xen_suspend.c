// SPDX-License-Identifier: MIT
#include "migrate/xen_suspend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenstore.h>

#include "migrate/xen_store.h"

#define REQUEST "suspend"
/* Xenstore announces every domain that shuts down; this is for an announcement that got lost. */
#define POLL_MS 250

static uint64_t now_ms(void)
{
	return xen_now_ns() / 1000000;
}

enum standing { RUNNING, SUSPENDED, OFF };

static int standing(struct xen_calls *calls, uint32_t domid, enum standing *how)
{
	struct xen_domctl_getdomaininfo info;
	int rc = xen_domain_info(calls, domid, &info);

	if (rc)
		return rc;
	if (info.flags & XEN_DOMINF_dying)
		return -ENOENT;
	if (!(info.flags & XEN_DOMINF_shutdown))
		*how = RUNNING;
	else if ((info.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask) ==
		 SHUTDOWN_suspend)
		*how = SUSPENDED;
	else
		*how = OFF;
	return 0;
}

int xen_is_suspended(struct xen_calls *calls, uint32_t domid, bool *suspended)
{
	enum standing how = RUNNING;
	int rc = standing(calls, domid, &how);

	*suspended = !rc && how == SUSPENDED;
	return rc;
}

/* 0: suspended; -ETIMEDOUT: still running at the deadline. */
static int wait_suspended(struct xen_calls *calls, struct xs_handle *xs, uint32_t domid,
			  uint64_t deadline, struct pgr_error *err)
{
	enum standing how = RUNNING;
	uint64_t now;
	int rc;

	for (;;) {
		rc = standing(calls, domid, &how);
		if (rc)
			return pgr_fail_errno(err, rc, "the guest (domain %u) is gone", domid);
		if (how == SUSPENDED)
			return 0;
		if (how == OFF)
			return pgr_fail(
				err, -ESHUTDOWN,
				"the guest (domain %u) shut down or crashed instead of suspending: see its console",
				domid);
		now = now_ms();
		if (now >= deadline)
			return -ETIMEDOUT;
		xen_store_wait(xs, deadline - now < POLL_MS ? (int)(deadline - now) : POLL_MS);
	}
}

/* Take the request back unless the guest has begun. */
static int take_back(struct xs_handle *xs, const char *path, bool *begun, struct pgr_error *err)
{
	xs_transaction_t tr;
	unsigned length;
	char *value;
	bool done = false;

	while (!done) {
		tr = xs_transaction_start(xs);
		if (tr == XBT_NULL)
			return pgr_fail_errno(err, -EIO, "Xenstore does not answer");
		length = 0;
		value = xs_read(xs, tr, path, &length);
		*begun = !value || strcmp(value, REQUEST) != 0;
		free(value);
		if (!*begun)
			xs_write(xs, tr, path, "", 0);
		done = xs_transaction_end(xs, tr, *begun);
		if (!done && errno != EAGAIN)
			return pgr_fail_errno(err, -EIO, "Xenstore does not answer");
	}
	return 0;
}

static int ask(struct xen_calls *calls, struct xs_handle *xs, uint32_t domid, unsigned timeout_ms,
	       struct pgr_error *err)
{
	char path[64];
	bool begun = false;
	int rc;

	snprintf(path, sizeof(path), "/local/domain/%u/control/shutdown", domid);
	if (!xs_watch(xs, "@releaseDomain", "suspend") ||
	    !xs_write(xs, XBT_NULL, path, REQUEST, strlen(REQUEST)))
		return pgr_fail_errno(err, -EIO, "Xenstore does not take %s", path);
	rc = wait_suspended(calls, xs, domid, now_ms() + timeout_ms, err);
	if (rc != -ETIMEDOUT)
		return rc;
	rc = take_back(xs, path, &begun, err);
	if (rc)
		return rc;
	if (!begun)
		return pgr_fail(
			err, -ETIMEDOUT,
			"the guest (domain %u) did not react to the request to suspend within %u ms and runs on: is it paused, still booting, or without Xenstore?",
			domid, timeout_ms);
	rc = wait_suspended(calls, xs, domid, now_ms() + timeout_ms, err);
	if (rc != -ETIMEDOUT)
		return rc;
	return pgr_fail(
		err, -ECONNABORTED,
		"the guest (domain %u) began to suspend and did not stop within %u ms: see its console for a driver that refuses; should it stop yet, it is resumed",
		domid, timeout_ms);
}

int xen_suspend(struct xen_calls *calls, uint32_t domid, unsigned timeout_ms, struct pgr_error *err)
{
	struct xs_handle *xs;
	bool suspended;
	int rc = xen_is_suspended(calls, domid, &suspended);

	if (rc)
		return pgr_fail_errno(err, rc, "the guest (domain %u) is gone", domid);
	if (suspended)
		return 0;
	xs = xs_open(0);
	if (!xs)
		return pgr_fail_errno(err, -EIO, "Xenstore cannot be reached");
	rc = ask(calls, xs, domid, timeout_ms, err);
	xs_close(xs);
	return rc;
}
