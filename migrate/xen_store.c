/* SPDX-License-Identifier: MIT */
#include "migrate/xen_store.h"

#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <xenstore.h>

uint64_t xen_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

void xen_store_drain(struct xs_handle *xs)
{
	char **event;

	while ((event = xs_check_watch(xs)))
		free(event);
}

void xen_store_wait(struct xs_handle *xs, int timeout_ms)
{
	struct pollfd p = {.fd = xs_fileno(xs), .events = POLLIN};

	if (poll(&p, 1, timeout_ms) > 0)
		xen_store_drain(xs);
}

void xen_store_remove(const char *path)
{
	struct xs_handle *xs = xs_open(0);

	if (!xs)
		return;
	xs_rm(xs, XBT_NULL, path);
	xs_close(xs);
}
