// SPDX-License-Identifier: MIT
/*
 * A domain that is being put together.
 *
 *	EMPTY --create--> CREATED --finish--> FINISHED --start--> STARTED
 *	  ^------------------destroy---------------'
 *
 * CREATED: libxl has made the domain under a provisional name; it has its devices already, or libxl
 * still waits for its memory; the hypervisor never ran it. FINISHED: libxl is through and the guest
 * is whole; the domain is paused. In both destroy() leaves nothing.
 */
#include "migrate/guest_xen_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/guest_xen.h"
#include "migrate/page_scan.h"
#include "migrate/pv_table.h"
#include "migrate/xen_console_log.h"
#include "migrate/xen_disks.h"
#include "migrate/xen_start.h"

static struct xen_sink *of(struct guest_sink *g)
{
	return (struct xen_sink *)g;
}

unsigned guest_xen_sink_domid(const struct guest_sink *g)
{
	return ((const struct xen_sink *)g)->made.domid;
}

uint64_t xen_sink_frame(const struct xen_sink *s, uint64_t pfn)
{
	return pfn < s->nr_pfns
		       ? atomic_load_explicit(&s->frame_plus_1[pfn], memory_order_relaxed) - 1
		       : PV_FRAME_NONE;
}

const char *xen_sink_name(const struct xen_sink *s, const struct guest_description *d)
{
	return s->rename[0] ? s->rename : d->info.name;
}

/* ---- life ---- */

static void *reserve(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void drop_memory(struct xen_sink *s)
{
	if (s->frame_plus_1)
		munmap((void *)s->frame_plus_1, s->nr_pfns * sizeof(uint64_t));
	if (s->type)
		munmap(s->type, s->nr_pfns);
	xen_calls_free(&s->calls, s->populate);
	s->frame_plus_1 = NULL;
	s->type = NULL;
	s->populate = NULL;
	s->nr_pfns = 0;
	atomic_store(&s->populated, 0);
}

static int take_memory(struct xen_sink *s, const struct guest_description *d, struct pgr_error *err)
{
	if (!d->info.nr_pfns || d->info.nr_pfns > PGR_PFNS_MAX || !d->info.vcpus ||
	    d->info.vcpus > PGR_VCPUS_MAX)
		return pgr_fail(err, -EPROTO,
				"a guest of %" PRIu64 " pages and %u vCPUs cannot be taken",
				d->info.nr_pfns, d->info.vcpus);
	s->nr_pfns = d->info.nr_pfns;
	s->vcpus = d->info.vcpus;
	s->frame_plus_1 = reserve(s->nr_pfns * sizeof(uint64_t));
	s->type = reserve(s->nr_pfns);
	s->populate = xen_calls_alloc(&s->calls, PGR_BATCH_MAX * sizeof(*s->populate));
	if (!s->frame_plus_1 || !s->type || !s->populate)
		return pgr_fail(err, -ENOMEM, "no memory to keep account of %" PRIu64 " pages",
				s->nr_pfns);
	return 0;
}

static void drop_config(struct xen_sink *s)
{
	if (s->has_config)
		libxl_domain_config_dispose(&s->config);
	s->has_config = false;
}

int xen_sink_parse(struct xen_sink *s, const struct guest_description *d,
		   libxl_domain_config *config, struct pgr_error *err)
{
	int rc;

	libxl_domain_config_init(config);
	if (d->info.kind != PGR_GUEST_PV64 || d->config_format != PGR_CONFIG_LIBXL_JSON ||
	    !d->config)
		return pgr_fail(err, -EPROTO,
				"this is not a paravirtual guest with a configuration of libxl's");
	xen_toolstack_begin(s->tools);
	rc = libxl_domain_config_from_json(xen_toolstack_ctx(s->tools), config, d->config);
	if (rc) {
		xen_toolstack_failed(s->tools, rc, err,
				     "the guest's configuration is not one that libxl reads");
		return err ? (err->code = -EPROTO) : -EPROTO;
	}
	if (config->c_info.type != LIBXL_DOMAIN_TYPE_PV)
		return pgr_fail(err, -EPROTO, "the guest's configuration is not for a PV guest");
	return 0;
}

static int configure(struct xen_sink *s, const struct guest_description *d, struct pgr_error *err)
{
	const char *name = xen_sink_name(s, d);
	int rc;

	s->has_config = true;
	rc = xen_sink_parse(s, d, &s->config, err);
	if (rc)
		return rc;
	if (xen_sink_name_fault(name))
		return pgr_fail(err, -EINVAL, "the guest's name %s", xen_sink_name_fault(name));
	snprintf(s->name, sizeof(s->name), "%s", name);
	snprintf(s->incoming, sizeof(s->incoming), "%s%s", name, GUEST_XEN_INCOMING);
	free(s->config.c_info.name);
	s->config.c_info.name = strdup(s->incoming);
	if (!s->config.c_info.name)
		return pgr_fail(err, -ENOMEM, "no memory for a name");
	/*
	 * The session knows the guest by the uuid of its description; a configuration with another
	 * must not pass.
	 */
	memcpy(libxl_uuid_bytearray(&s->config.c_info.uuid), d->info.uuid, sizeof(d->info.uuid));
	return 0;
}

static int sink_destroy(struct guest_sink *g, struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	struct xen_domctl_getdomaininfo info;
	int rc = 0;

	/* Before its domain goes: libxl removes it itself. */
	xen_restore_abort(s->restore);
	s->restore = NULL;
	xen_connected_close(s->connected);
	s->connected = NULL;
	if (s->made.domid && s->stage != SINK_EMPTY &&
	    !xen_domain_info(&s->calls, s->made.domid, &info) &&
	    !memcmp(info.handle, libxl_uuid_bytearray(&s->config.c_info.uuid),
		    sizeof(info.handle)) &&
	    !(info.flags & XEN_DOMINF_dying)) {
		xen_toolstack_begin(s->tools);
		rc = xen_toolstack_failed(
			s->tools,
			libxl_domain_destroy(xen_toolstack_ctx(s->tools), s->made.domid, NULL), err,
			"domain %u (%s) cannot be destroyed", s->made.domid, s->incoming);
	}
	if (rc)
		return rc;
	if (s->made.domid) {
		xen_console_log_remove(s->incoming);
		xen_disks_forget(s->made.domid);
	}
	s->stage = SINK_EMPTY;
	s->made = (struct xen_made){0};
	xen_state_free(&s->in);
	drop_memory(s);
	drop_config(s);
	return 0;
}

/* libxl's part: Xenstore, console, devices. */
static int complete(struct xen_sink *s, struct pgr_error *err)
{
	int rc = xen_restore_complete(s->restore, s->store_frame, s->console_frame, err);

	if (rc)
		return rc;
	s->restore = NULL;
	/* Before it runs, so that nothing is missed; without it the guest starts all the same. */
	xen_connected_open(s->made.domid, &s->connected, &s->why_not);
	return 0;
}

/*
 * Let libxl make the devices while the guest still runs elsewhere, where that may be. A network
 * interface that nobody has connected to does nothing, and our own disks are not used before
 * start(); another disk that is opened too early may leave old blocks in this host's cache, for the
 * other host is writing to it.
 */
static int make_devices_early(struct xen_sink *s, struct pgr_error *err)
{
	int rc;

	if (!xen_disks_are_ours(&s->config))
		return 0;
	rc = s->config.num_disks ? xen_disks_hold(s->made.domid, err) : 0;
	return rc ? rc : complete(s, err);
}

static int sink_create(struct guest_sink *g, const struct guest_description *d,
		       struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	int rc;

	if (s->stage != SINK_EMPTY)
		return pgr_fail(err, -EINVAL, "this sink has a guest already");
	rc = take_memory(s, d, err);
	if (!rc)
		rc = configure(s, d, err);
	if (!rc)
		rc = xen_restore_begin(s->tools, &s->config, d->nr_leaves > 0, &s->restore,
				       &s->made, err);
	if (!rc) {
		s->stage = SINK_CREATED;
		rc = xen_sink_cpu(s, d, err);
	}
	if (!rc)
		rc = xen_shared_pages_make(s, err);
	if (!rc)
		rc = make_devices_early(s, err);
	if (rc)
		sink_destroy(g, NULL);
	return rc;
}

static int sink_finish(struct guest_sink *g, struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	int rc;

	if (s->stage != SINK_CREATED)
		return pgr_fail(err, -EINVAL, "there is no guest to finish");
	rc = xen_sink_assemble(s, err);
	if (!rc && s->restore)
		rc = complete(s, err);
	if (!rc)
		s->stage = SINK_FINISHED;
	return rc;
}

static int sink_start(struct guest_sink *g, struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	const char *step;
	int rc;

	if (s->stage != SINK_FINISHED)
		return pgr_fail(err, -EINVAL, "there is no finished guest to start");
	xen_toolstack_begin(s->tools);
	rc = xen_start(xen_toolstack_ctx(s->tools), s->made.domid, s->incoming, s->name, !s->paused,
		       &step);
	if (rc)
		return xen_toolstack_failed(s->tools, rc, err, "could not %s domain %u (%s)", step,
					    s->made.domid, s->name);
	if (s->connected)
		xen_connected_start(s->connected);
	s->stage = SINK_STARTED;
	return 0;
}

static int sink_connected(struct guest_sink *g, unsigned timeout_ms, struct pgr_connected *out,
			  struct pgr_error *err)
{
	struct xen_sink *s = of(g);

	if (s->stage != SINK_STARTED)
		return pgr_fail(err, -EINVAL, "there is no started guest to look at");
	if (!s->connected) {
		*out = (struct pgr_connected){.devices = 0};
		*err = s->why_not;
		return err->code;
	}
	if (xen_connected_wait(s->connected, timeout_ms, out))
		return pgr_fail(err, -ETIMEDOUT, "the devices of domain %u are not connected yet",
				s->made.domid);
	return 0;
}

static int sink_precheck(struct guest_sink *g, const struct guest_description *d,
			 struct guest_refusals *r, struct pgr_error *err)
{
	return xen_sink_precheck(of(g), d, r, err);
}

static int sink_state(struct guest_sink *g, uint32_t type, const void *body, size_t length,
		      struct pgr_error *err)
{
	struct xen_sink *s = of(g);

	if (s->stage != SINK_CREATED)
		return pgr_fail(err, -EINVAL, "there is no guest to take state");
	return xen_sink_state(s, type, body, length, err);
}

/* ---- memory ---- */

static int check_pfns(const struct xen_sink *s, const uint64_t *pfns, unsigned nr,
		      struct pgr_error *err)
{
	unsigned i;

	if (s->stage != SINK_CREATED)
		return pgr_fail(err, -EINVAL, "there is no guest whose memory could be filled");
	if (nr > PGR_BATCH_MAX)
		return pgr_fail(err, -EINVAL, "%u pages are too many for a batch", nr);
	for (i = 0; i < nr; i++)
		if (pfns[i] >= s->nr_pfns)
			return pgr_fail(err, -EPROTO,
					"page %" PRIu64 " is beyond the guest's %" PRIu64 " pages",
					pfns[i], s->nr_pfns);
	return 0;
}

/* Give memory to those of the pfns that have none; fresh[i] says which. */
static int populate(struct xen_sink *s, const uint64_t *pfns, unsigned nr, bool *fresh,
		    struct pgr_error *err)
{
	unsigned i, n = 0;
	uint64_t pfn[PGR_BATCH_MAX];
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	for (i = 0; i < nr; i++) {
		fresh[i] = !s->frame_plus_1[pfns[i]];
		if (!fresh[i])
			continue;
		/* Marked, so that a pfn that is named twice gets one frame. */
		s->frame_plus_1[pfns[i]] = UINT64_MAX;
		s->populate[n] = pfns[i];
		pfn[n++] = pfns[i];
	}
	if (n)
		rc = xen_populate(&s->calls, s->made.domid, s->populate, n);
	for (i = 0; i < n; i++)
		s->frame_plus_1[pfn[i]] = rc ? 0 : s->populate[i] + 1;
	pthread_mutex_unlock(&s->lock);
	if (rc)
		return pgr_fail_errno(
			err, rc,
			"the hypervisor gives domain %u no more memory after %" PRIu64
			" pages: the guest has more than its configuration says, or the host has no more",
			s->made.domid, (uint64_t)s->populated);
	atomic_fetch_add(&s->populated, n);
	return 0;
}

static void sink_unmap(struct guest_sink *g, unsigned worker, struct guest_batch *b)
{
	(void)worker;
	xen_unmap(&of(g)->calls, b->base, b->nr);
	b->base = NULL;
	b->nr = 0;
}

static int sink_map(struct guest_sink *g, unsigned worker, const uint64_t *pfns, unsigned nr,
		    struct guest_batch *b, struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	xen_pfn_t frames[PGR_BATCH_MAX];
	bool fresh[PGR_BATCH_MAX];
	unsigned i;
	int rc = check_pfns(s, pfns, nr, err);

	(void)worker;
	*b = (struct guest_batch){.nr = 0};
	if (!rc)
		rc = populate(s, pfns, nr, fresh, err);
	if (rc)
		return rc;
	for (i = 0; i < nr; i++)
		frames[i] = xen_sink_frame(s, pfns[i]);
	b->base = xen_map(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, nr, frames, NULL);
	if (!b->base)
		return pgr_fail_errno(err, -errno, "pages of domain %u cannot be mapped",
				      s->made.domid);
	b->nr = nr;
	for (i = 0; i < nr; i++) {
		b->page[i] = b->base + (size_t)i * XEN_PAGE_SIZE;
		b->type[i] = s->type[pfns[i]];
		/*
		 * The hypervisor scrubs pages, but need not with zeroes; looking is cheaper than
		 * writing.
		 */
		if (fresh[i] && !page_is_zero(b->page[i]))
			memset(b->page[i], 0, XEN_PAGE_SIZE);
	}
	return 0;
}

static int sink_set_types(struct guest_sink *g, unsigned worker, const uint64_t *pfns,
			  const uint8_t *types, unsigned nr, struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	unsigned i;
	int rc = check_pfns(s, pfns, nr, err);

	(void)worker;
	for (i = 0; i < nr && !rc; i++) {
		if ((types[i] & PGR_TYPE_LEVEL_MASK) > PGR_TYPE_L4 ||
		    types[i] > (PGR_TYPE_PINNED | PGR_TYPE_L4) || types[i] == PGR_TYPE_PINNED)
			return pgr_fail(err, -EPROTO, "page %" PRIu64 " has the unknown type %u",
					pfns[i], types[i]);
		/* Most pages are ordinary: their part of the array stays unwritten. */
		if (s->type[pfns[i]] != types[i])
			s->type[pfns[i]] = types[i];
	}
	return rc;
}

static int sink_discard(struct guest_sink *g, unsigned worker, const uint64_t *pfns, unsigned nr,
			struct pgr_error *err)
{
	struct xen_sink *s = of(g);
	unsigned i, n = 0;
	int rc = check_pfns(s, pfns, nr, err);

	(void)worker;
	if (rc)
		return rc;
	pthread_mutex_lock(&s->lock);
	for (i = 0; i < nr; i++) {
		if (s->type[pfns[i]])
			s->type[pfns[i]] = PGR_TYPE_ORDINARY;
		if (!s->frame_plus_1[pfns[i]])
			continue;
		s->populate[n++] = s->frame_plus_1[pfns[i]] - 1;
		s->frame_plus_1[pfns[i]] = 0;
	}
	if (n)
		rc = xen_depopulate(&s->calls, s->made.domid, s->populate, n);
	pthread_mutex_unlock(&s->lock);
	atomic_fetch_sub(&s->populated, n);
	if (rc)
		return pgr_fail_errno(err, rc, "pages of domain %u cannot be given back",
				      s->made.domid);
	return 0;
}

/* ---- opening and closing ---- */

static void sink_close(struct guest_sink *g)
{
	struct xen_sink *s = of(g);

	if (s->stage != SINK_STARTED)
		sink_destroy(g, NULL);
	xen_connected_close(s->connected);
	xen_state_free(&s->in);
	drop_memory(s);
	drop_config(s);
	xen_toolstack_close(s->tools);
	xen_calls_close(&s->calls);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static const struct guest_sink_ops ops = {
	.name = "xen",
	.precheck = sink_precheck,
	.create = sink_create,
	.map = sink_map,
	.unmap = sink_unmap,
	.set_types = sink_set_types,
	.discard = sink_discard,
	.state = sink_state,
	.finish = sink_finish,
	.start = sink_start,
	.connected = sink_connected,
	.destroy = sink_destroy,
	.close = sink_close,
};

int guest_xen_sink_open(const struct guest_xen_sink_options *o, struct guest_sink **out,
			struct pgr_error *err)
{
	struct xen_sink *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a guest");
	s->sink.ops = &ops;
	pthread_mutex_init(&s->lock, NULL);
	if (o) {
		s->paused = o->paused;
		if (o->rename)
			snprintf(s->rename, sizeof(s->rename), "%s", o->rename);
	}
	rc = o && o->rename && strlen(o->rename) > XEN_NAME_MAX
		     ? pgr_fail(err, -EINVAL, "a guest's name has at most %u bytes", XEN_NAME_MAX)
		     : xen_calls_open(&s->calls, err);
	if (!rc)
		rc = xen_toolstack_open(&s->tools, err);
	if (rc) {
		sink_close(&s->sink);
		return rc;
	}
	*out = &s->sink;
	return 0;
}
