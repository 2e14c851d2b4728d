/* SPDX-License-Identifier: MIT */
/*
 * Domains as libxl sees them: finding, resuming, starting and removing whole ones. What is in them is migrate/guest_xen's.
 *
 * Each function opens and closes its own libxl context. Errors: -ENOTSUP no Xen here; -ENOENT no such domain; -EIO libxl says no.
 */
#ifndef PAGURUS_GUESTS_XEN_H
#define PAGURUS_GUESTS_XEN_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "common/error.h"
#include "migrate/guest.h"
#include "tools/pagurus/guests.h"

int guests_xen_source(const char *name, struct guest_source **out, struct pgr_error *err);
int guests_xen_sink(bool paused, const char *rename, struct guest_sink **out,
		    struct pgr_error *err);

/* Start the keeper process of the domain that has this uuid, if it has none; later: somebody else may look after it as well. */
int guests_xen_watch(const uint8_t uuid[16], bool later, struct pgr_error *err);

/* guests.h explains these. */
int guests_xen_make_run(const uint8_t uuid[16], bool *stood, bool stopped, struct pgr_error *err);
int guests_xen_remove_incoming(const uint8_t uuid[16], struct pgr_error *err);
int guests_xen_start_incoming(const uint8_t uuid[16], struct pgr_error *err);
int guests_xen_remove_suspended(const uint8_t uuid[16], struct pgr_error *err);
/* A source whose only operations are resume, destroy and close: what source_recover() needs. */
int guests_xen_open_suspended(const uint8_t uuid[16], struct guest_source **out,
			      struct pgr_error *err);

int guests_xen_each(int (*each)(void *ctx, const struct guest_here *g), void *ctx,
		    struct pgr_error *err);
int guests_xen_look(const char *name, struct guest_here *g, struct pgr_error *err);

/* Add what is known to the object. */
void guests_xen_facts(json_t *facts);

#endif
