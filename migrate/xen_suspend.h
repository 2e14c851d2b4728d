/* SPDX-License-Identifier: MIT */
/*
 * Asking a PV guest to suspend itself: Xenstore's control/shutdown.
 *
 * "suspend" is written; the guest empties the node when it begins, and later shuts down with the
 * reason "suspend". Until it has emptied the node the request can be taken back without a trace.
 */
#ifndef PAGURUS_XEN_SUSPEND_H
#define PAGURUS_XEN_SUSPEND_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "migrate/xen_calls.h"

/*
 * Returns when the domain stands suspended (at once when it does already). -ETIMEDOUT: it did not
 * within timeout_ms; it runs on. A guest that has begun gets the same time once more, for then
 * nothing can be taken back. -ECONNABORTED: it began and did not stop, and
 * nobody resumes it when it does; -ENOENT: it is gone;
 * -ESHUTDOWN: it powered off or crashed; -EIO: Xenstore.
 */
int xen_suspend(struct xen_calls *calls, uint32_t domid, unsigned timeout_ms,
		struct pgr_error *err);

/* Whether the domain stands suspended. -ENOENT. */
int xen_is_suspended(struct xen_calls *calls, uint32_t domid, bool *suspended);

#endif
