/* SPDX-License-Identifier: MIT */
/* The last step of an arrival, for the session that does it and for the repair of one that died before. */
#ifndef PAGURUS_XEN_START_H
#define PAGURUS_XEN_START_H

#include <libxl.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * Give the domain its name instead of its incoming one (NULL: it has its name), have its console logged under it, and let it run if
 * `run`. Returns libxl's error; *step then says what could not be done, as in "could not STEP domain 7", and the domain has its incoming
 * name again and has not run.
 */
int xen_start(libxl_ctx *ctx, uint32_t domid, const char *incoming, const char *name, bool run,
	      const char **step);

#endif
