/* SPDX-License-Identifier: MIT */
/*
 * A libxl context that remembers what libxl complained about, so that a failure can be told in one
 * sentence.
 *
 * Threads: libxl's context has a lock of its own; the functions here may be called by any thread.
 * One context an object: contexts do not know of each other, and each reaps only its own children.
 */
#ifndef PAGURUS_XEN_TOOLSTACK_H
#define PAGURUS_XEN_TOOLSTACK_H

#include <libxl.h>

#include "common/error.h"

struct xen_toolstack;

/* -ENOTSUP: libxl does not answer; -ENOMEM. */
int xen_toolstack_open(struct xen_toolstack **out, struct pgr_error *err);
void xen_toolstack_close(struct xen_toolstack *t);

libxl_ctx *xen_toolstack_ctx(struct xen_toolstack *t);

/* Forget earlier complaints: call before an operation. */
void xen_toolstack_begin(struct xen_toolstack *t);

/*
 * Turn a libxl error into a negative errno and "WHAT: libxl's first complaint". rc 0: 0.
 */
int xen_toolstack_failed(struct xen_toolstack *t, int rc, struct pgr_error *err, const char *what,
			 ...) __attribute__((format(printf, 4, 5)));

#endif
