// SPDX-License-Identifier: MIT
#include "storage/pv_xen.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <xenevtchn.h>
#include <xentoollog.h>

#include <xengnttab.h>

#define COPIES_AT_ONCE 64u

struct pv_xen {
	uint32_t domid;
	xengnttab_handle *grants;
	xenevtchn_handle *events;
};

static void say_nothing(struct xentoollog_logger *logger, xentoollog_level level, int errnoval,
			const char *context, const char *format, va_list al)
{
	(void)logger;
	(void)level;
	(void)errnoval;
	(void)context;
	(void)format;
	(void)al;
}

static void keep(struct xentoollog_logger *logger)
{
	(void)logger;
}

static struct xentoollog_logger silence = {.vmessage = say_nothing, .destroy = keep};

int pv_xen_open(uint32_t domid, struct pv_xen **out, struct pgr_error *err)
{
	struct pv_xen *x = calloc(1, sizeof(*x));
	int code;

	if (!x)
		return pgr_fail(err, -ENOMEM, "no memory for a guest's connection");
	x->domid = domid;
	x->grants = xengnttab_open(&silence, 0);
	if (x->grants)
		x->events = xenevtchn_open(&silence, 0);
	if (x->events && xenevtchn_restrict(x->events, (domid_t)domid) == 0) {
		*out = x;
		return 0;
	}
	code = -errno;
	pv_xen_close(x);
	return pgr_fail_errno(
		err, code,
		"cannot use the guest's memory and events; is this a host's control domain, with the modules xen-gntdev and xen-evtchn?");
}

void pv_xen_close(struct pv_xen *x)
{
	if (!x)
		return;
	if (x->events)
		xenevtchn_close(x->events);
	if (x->grants)
		xengnttab_close(x->grants);
	free(x);
}

static void *xen_map(void *ctx, const uint32_t *refs, unsigned nr)
{
	struct pv_xen *x = ctx;

	/* The library takes them without const, and leaves them alone. */
	return xengnttab_map_domain_grant_refs(x->grants, nr, x->domid, (uint32_t *)refs,
					       PROT_READ | PROT_WRITE);
}

static void xen_unmap(void *ctx, void *pages, unsigned nr)
{
	xengnttab_unmap(((struct pv_xen *)ctx)->grants, pages, nr);
}

static int copy_some(struct pv_xen *x, bool to_guest, const struct pv_copy *copies, unsigned nr)
{
	struct xengnttab_grant_copy_segment s[COPIES_AT_ONCE];

	for (unsigned i = 0; i < nr; i++) {
		const struct pv_copy *c = &copies[i];
		union xengnttab_copy_ptr here = {.virt = c->data};
		union xengnttab_copy_ptr guest = {.foreign = {.ref = c->ref,
							      .offset = c->offset,
							      .domid = (uint16_t)x->domid}};

		s[i] = (struct xengnttab_grant_copy_segment){
			.source = to_guest ? here : guest,
			.dest = to_guest ? guest : here,
			.len = c->length,
			.flags = to_guest ? GNTCOPY_dest_gref : GNTCOPY_source_gref,
			.status = GNTST_general_error};
	}
	if (xengnttab_grant_copy(x->grants, nr, s))
		return -errno;
	for (unsigned i = 0; i < nr; i++)
		if (s[i].status != GNTST_okay)
			return -EFAULT;
	return 0;
}

static int xen_copy(void *ctx, bool to_guest, const struct pv_copy *copies, unsigned nr)
{
	int ret = 0;

	for (unsigned at = 0; at < nr && !ret; at += COPIES_AT_ONCE)
		ret = copy_some(ctx, to_guest, copies + at,
				nr - at < COPIES_AT_ONCE ? nr - at : COPIES_AT_ONCE);
	return ret;
}

static uint32_t xen_bind(void *ctx, uint32_t remote)
{
	struct pv_xen *x = ctx;
	xenevtchn_port_or_error_t port = xenevtchn_bind_interdomain(x->events, x->domid, remote);

	return port < 0 ? PV_PORT_NONE : (uint32_t)port;
}

static void xen_unbind(void *ctx, uint32_t port)
{
	xenevtchn_unbind(((struct pv_xen *)ctx)->events, port);
}

static void xen_notify(void *ctx, uint32_t port)
{
	xenevtchn_notify(((struct pv_xen *)ctx)->events, port);
}

const struct pv_guest_ops pv_xen_ops = {
	.map = xen_map,
	.unmap = xen_unmap,
	.copy = xen_copy,
	.bind = xen_bind,
	.unbind = xen_unbind,
	.notify = xen_notify,
};

int pv_xen_event_fd(const struct pv_xen *x)
{
	return xenevtchn_fd(x->events);
}

uint32_t pv_xen_event(struct pv_xen *x)
{
	xenevtchn_port_or_error_t port = xenevtchn_pending(x->events);

	if (port < 0)
		return PV_PORT_NONE;
	/* First: an event that comes while this one is looked after is another. */
	xenevtchn_unmask(x->events, (evtchn_port_t)port);
	return (uint32_t)port;
}
