/* SPDX-License-Identifier: MIT */
/*
 * Keeping frames from a guest that is about to stand still. The network's backend would go on writing what comes into the pages that the guest has
 * given it for that, so that its memory changed while it is compared (--verify); and what is delivered then is lost in any case, since its driver begins
 * anew where it runs again.
 *
 * The guest's interfaces in this host get a queue that drops everything (blackhole). One whose owner has put a queue of his own there keeps that.
 */
#ifndef PAGURUS_XEN_QUIET_H
#define PAGURUS_XEN_QUIET_H

#include <stdint.h>

/* Both do what they can: without it the move goes on. Repeated calls are fine. */
void xen_quiet_begin(uint32_t domid);
void xen_quiet_end(uint32_t domid);

#endif
