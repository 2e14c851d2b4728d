/* SPDX-License-Identifier: MIT */
/*
 * When a guest that was just started has its devices at this host, and when its first frame came out of one of its network
 * interfaces. Figures for people: whatever fails here, the guest is none the worse for it.
 *
 * Its disks and interfaces are those that libxl has written down under /libxl, where no guest can write; that one is connected
 * is the word of its backend, in Xenstore. Frames are seen by a packet socket on each interface (vifDOMID.N, or the name that the
 * configuration gives it), opened before the guest runs so that none is missed; the kernel says when a frame came.
 *
 * Threads: one at a time for each.
 */
#ifndef PAGURUS_XEN_CONNECTED_H
#define PAGURUS_XEN_CONNECTED_H

#include <stdint.h>

#include "common/error.h"
#include "protocol-spec/stream.h"

struct xen_connected;

/* Before the guest is started, when libxl has made its devices. -ENOMEM; -EIO: Xenstore; or no descriptor. */
int xen_connected_open(uint32_t domid, struct xen_connected **out, struct pgr_error *err);

/* It has been started: times count from now. */
void xen_connected_start(struct xen_connected *c);

/*
 * Wait up to timeout_ms for what is missing; out says what is known. 0: there is nothing more to wait for. -ETIMEDOUT: there is, call
 * again. An interface from which nothing comes within seconds after all devices were connected is not waited for.
 */
int xen_connected_wait(struct xen_connected *c, unsigned timeout_ms, struct pgr_connected *out);

/* NULL is allowed. */
void xen_connected_close(struct xen_connected *c);

#endif
