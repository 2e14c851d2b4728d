/* SPDX-License-Identifier: MIT */
/* pv_guest.h on a hypervisor, by libxengnttab and libxenevtchn. Their messages go nowhere: a guest could fill the log. */
#ifndef PAGURUS_PV_XEN_H
#define PAGURUS_PV_XEN_H

#include "common/error.h"
#include "storage/pv_guest.h"

struct pv_xen;

/*
 * For the guest domid. Needs root: opens the devices, and restricts the events to that guest, for good. Nothing later needs any right. -errno, with a
 * sentence.
 */
int pv_xen_open(uint32_t domid, struct pv_xen **out, struct pgr_error *err);
/* What is mapped and bound ends with it. NULL is allowed. */
void pv_xen_close(struct pv_xen *x);
/* The ctx is the struct pv_xen. */
extern const struct pv_guest_ops pv_xen_ops;

/* Readable when there was an event; pv_xen_event() then says which port's, PV_PORT_NONE: none. */
int pv_xen_event_fd(const struct pv_xen *x);
uint32_t pv_xen_event(struct pv_xen *x);

#endif
