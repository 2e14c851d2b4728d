// SPDX-License-Identifier: MIT
/*
 * The two pages that a guest shares with this host's Xenstore and console.
 *
 * Both services map them when libxl introduces the domain, by the grants that every domain is born
 * with. Which pfns they are is known only when the guest has stopped (start_info says), and
 * introducing the domain - with making its devices - is the slowest part of a restore. So their
 * frames are made first, whatever their pfns: libxl can finish while the guest still runs
 * elsewhere, and the frames get their places in the guest's memory at the end.
 */
#include "migrate/guest_xen_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/pv_table.h"

/*
 * Of Xenstore's page: both rings with their indices; what follows was said by this host's Xenstore
 * when it took the page.
 */
#define STORE_RINGS_BYTES offsetof(struct xenstore_domain_interface, server_features)

static int clear_frame(struct xen_sink *s, uint64_t frame, struct pgr_error *err)
{
	void *page = xen_map_one(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, frame);

	if (!page)
		return pgr_fail_errno(err, -errno, "a new page of domain %u cannot be mapped",
				      s->made.domid);
	memset(page, 0, XEN_PAGE_SIZE);
	xen_unmap(&s->calls, page, 1);
	return 0;
}

static int grant_frames(struct xen_sink *s, struct pgr_error *err)
{
	const struct {
		unsigned ref;
		uint64_t frame;
		uint32_t domid;
	} grants[] = {
		{GNTTAB_RESERVED_CONSOLE, s->console_frame, s->made.console_domid},
		{GNTTAB_RESERVED_XENSTORE, s->store_frame, s->made.store_domid},
	};
	xenforeignmemory_resource_handle *handle;
	grant_entry_v1_t *table;
	void *map = NULL;
	unsigned i;

	handle = xenforeignmemory_map_resource(
		s->calls.foreign, (domid_t)s->made.domid, XENMEM_resource_grant_table,
		XENMEM_resource_grant_table_id_shared, 0, 1, &map, PROT_READ | PROT_WRITE, 0);
	if (!handle)
		return pgr_fail_errno(err, -errno, "the grant table of domain %u cannot be mapped",
				      s->made.domid);
	table = map;
	for (i = 0; i < sizeof(grants) / sizeof(grants[0]); i++) {
		table[grants[i].ref].domid = (domid_t)grants[i].domid;
		table[grants[i].ref].frame = (uint32_t)grants[i].frame;
		/* The flags make the entry valid. */
		__atomic_store_n(&table[grants[i].ref].flags, GTF_permit_access, __ATOMIC_RELEASE);
	}
	xenforeignmemory_unmap_resource(s->calls.foreign, handle);
	return 0;
}

int xen_shared_pages_make(struct xen_sink *s, struct pgr_error *err)
{
	int rc;

	/* Any pfns will do until they get their own. */
	s->populate[0] = 0;
	s->populate[1] = 1;
	rc = xen_populate(&s->calls, s->made.domid, s->populate, 2);
	if (rc)
		return pgr_fail_errno(err, rc, "the hypervisor gives domain %u no memory",
				      s->made.domid);
	s->store_frame = s->populate[0];
	s->console_frame = s->populate[1];
	rc = clear_frame(s, s->store_frame, err);
	if (!rc)
		rc = clear_frame(s, s->console_frame, err);
	if (!rc)
		rc = grant_frames(s, err);
	return rc;
}

/*
 * Make frame the memory of pfn, with the first bytes of what was there, and give what was there
 * back.
 */
static int place(struct xen_sink *s, uint64_t pfn, uint64_t frame, size_t bytes, const char *what,
		 struct pgr_error *err)
{
	uint64_t old;
	void *from, *to;
	int rc = xen_sink_page(s, pfn, PGR_TYPE_ORDINARY, what, &old, err);

	if (rc)
		return rc;
	from = xen_map_one(&s->calls, s->made.domid, PROT_READ, old);
	to = xen_map_one(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, frame);
	if (from && to)
		memcpy(to, from, bytes);
	else
		rc = pgr_fail_errno(err, -errno, "%s cannot be mapped", what);
	xen_unmap(&s->calls, from, 1);
	xen_unmap(&s->calls, to, 1);
	if (rc)
		return rc;
	rc = xen_set_pfn(&s->calls, s->made.domid, frame, pfn);
	if (rc)
		return pgr_fail_errno(err, rc, "%s cannot be put at page %" PRIu64, what, pfn);
	atomic_store(&s->frame_plus_1[pfn], frame + 1);
	s->populate[0] = old;
	rc = xen_depopulate(&s->calls, s->made.domid, s->populate, 1);
	if (rc)
		return pgr_fail_errno(err, rc, "a page of domain %u cannot be given back",
				      s->made.domid);
	return 0;
}

int xen_shared_pages_place(struct xen_sink *s, struct pgr_error *err)
{
	uint64_t start_frame, store_pfn, console_pfn;
	const struct start_info *si;
	int rc = xen_sink_page(s, s->in.start_info_pfn, PGR_TYPE_ORDINARY, "start_info",
			       &start_frame, err);

	if (rc)
		return rc;
	si = xen_map_one(&s->calls, s->made.domid, PROT_READ, start_frame);
	if (!si)
		return pgr_fail_errno(err, -errno, "start_info of the guest cannot be mapped");
	/* A guest that suspends has put pfns there. */
	store_pfn = si->store_mfn;
	console_pfn = si->console.domU.mfn;
	xen_unmap(&s->calls, (void *)(uintptr_t)si, 1);
	if (store_pfn == console_pfn || store_pfn == s->in.start_info_pfn ||
	    console_pfn == s->in.start_info_pfn)
		return pgr_fail(err, -EPROTO,
				"start_info (page %" PRIu64 "), Xenstore's page (%" PRIu64
				") and the console's (%" PRIu64 ") are not three pages",
				s->in.start_info_pfn, store_pfn, console_pfn);
	rc = place(s, store_pfn, s->store_frame, STORE_RINGS_BYTES, "Xenstore's page in start_info",
		   err);
	if (!rc)
		rc = place(s, console_pfn, s->console_frame, XEN_PAGE_SIZE,
			   "the console's page in start_info", err);
	return rc;
}
