/* SPDX-License-Identifier: MIT */
/*
 * libxl's restore with this program as the one that fills the memory.
 *
 * libxl_domain_create_restore() runs in a thread of its own. It reads a libxl stream that has
 * nothing in it but "here comes the memory" from a socket, makes the domain, and starts its save
 * helper - this program again - with that socket as the stream. The helper sends what libxl told it
 * and its own standard input and output through the socket, and waits for a byte that is its exit
 * status. From then on this process speaks libxl's helper protocol itself:
 *
 *	this process                 the helper                   libxl's thread
 *	xen_restore_begin                                         makes the domain, starts the helper
 *	                        <-   hello, descriptors
 *	static data done                 ->  (descriptors)  ->    applies defaults, or not
 *	... memory, state ...
 *	xen_restore_complete: results, complete   ->              Xenstore, console
 *	                        ->   exit 0
 *	end of stream                    ->                       devices; returns
 *
 * The protocol on the helper's descriptors is private to libxl 4.17: 16-bit length, 16-bit number,
 * then fixed fields of 32 and 64 bits; number 8 (static data done: mask of what is missing) and 10
 * (complete: result, errno) are answered with 32 bits, number 9 (results: Xenstore's and the
 * console's frame) is not. xen_calls_open() has checked the release; the helper checks its
 * arguments.
 *
 * Threads: one at a time for each restore.
 */
#ifndef PAGURUS_XEN_RESTORE_H
#define PAGURUS_XEN_RESTORE_H

#include <stdbool.h>
#include <stdint.h>

#include <libxl.h>

#include "common/error.h"
#include "migrate/xen_toolstack.h"

struct xen_restore;

/* What libxl made. */
struct xen_made {
	uint32_t domid;
	uint32_t store_port, store_domid;
	uint32_t console_port, console_domid;
};

/*
 * Make the domain of config (kept until the end of the restore). with_policy: the caller sets the
 * CPU policy, libxl must not. Returns when the domain is there, paused, without memory. -EIO and
 * others: libxl's complaint; nothing is left.
 */
int xen_restore_begin(struct xen_toolstack *tools, libxl_domain_config *config, bool with_policy,
		      struct xen_restore **out, struct xen_made *made, struct pgr_error *err);

/*
 * The memory is in: let libxl finish. On success the domain is whole and paused, and r is freed; on
 * failure r has still to be aborted.
 */
int xen_restore_complete(struct xen_restore *r, uint64_t store_frame, uint64_t console_frame,
			 struct pgr_error *err);

/* Give up: libxl removes the domain. Frees r; NULL is allowed. */
void xen_restore_abort(struct xen_restore *r);

#endif
