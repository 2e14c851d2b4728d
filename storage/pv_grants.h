/* SPDX-License-Identifier: MIT */
/*
 * The pages of a guest that stay mapped ("feature-persistent"): a front end that offers this uses the same pages again and again, and each is mapped
 * once. When there are too many, the one that was not used for the longest time goes; a page in use stays. One thread.
 */
#ifndef PAGURUS_PV_GRANTS_H
#define PAGURUS_PV_GRANTS_H

#include "storage/pv_guest.h"

#define PV_GRANTS_MAX 1056u /* of a disk */

struct pv_grants;

/* -ENOMEM. ops and ctx stay the caller's, until pv_grants_free(). max: 1 to PV_GRANTS_MAX. */
int pv_grants_new(const struct pv_guest_ops *ops, void *ctx, unsigned max, struct pv_grants **out);
/* Unmaps all. No page is in use. NULL is allowed. */
void pv_grants_free(struct pv_grants *g);

/* The page, in use until as many pv_grants_put(); NULL: it cannot be mapped, or all places are in use. */
void *pv_grants_get(struct pv_grants *g, uint32_t ref);
void pv_grants_put(struct pv_grants *g, uint32_t ref);
/* Mapped now. */
unsigned pv_grants_count(const struct pv_grants *g);

#endif
