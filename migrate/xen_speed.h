/* SPDX-License-Identifier: MIT */
/*
 * xen_speed - slows a guest by the cap of the scheduler, and gives it back the one that it had.
 *
 * A cap says how much of a processor a guest may have, not how much slower it becomes: one that
 * writes memory all the time with a tenth of a processor does not feel a cap of half of one. So
 * what it used before it was slowed is measured, and the cap is a part of that.
 *
 * The cap that the guest had is kept in Xenstore, below "/pagurus", as long as another one is in
 * force: whoever moves or repairs the guest next gives it back when its mover was killed.
 *
 * Threads: one caller at a time.
 */
#ifndef PAGURUS_XEN_SPEED_H
#define PAGURUS_XEN_SPEED_H

#include <stdbool.h>
#include <stdint.h>

#include "migrate/xen_calls.h"
#include "migrate/xen_toolstack.h"

struct xen_speed {
	struct xen_calls *calls;
	struct xen_toolstack *tools;
	uint32_t domid;
	uint8_t uuid[16];
	uint64_t cpu_ns, at_ns; /* what it had used at that time; at_ns 0: not measured */
	unsigned used;		/* percent of one processor, from the first slowing on */
	int cap;		/* its own, percent of one processor; 0: none */
	bool slowed;
};

void xen_speed_open(struct xen_speed *s, struct xen_calls *calls, struct xen_toolstack *tools,
		    uint32_t domid);
/*
 * Give back what a mover that was killed took. By whoever alone is at work on the guest: another one's note is the same. Errors are not told: the guest
 * can be moved as well.
 */
void xen_speed_put_back(struct xen_speed *s);

/* What the guest uses counts from now on. */
void xen_speed_measure(struct xen_speed *s);

/* 100: its own cap again. -EIO or what libxl says. */
int xen_speed_set(struct xen_speed *s, unsigned percent, struct pgr_error *err);

#endif
