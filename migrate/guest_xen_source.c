// SPDX-License-Identifier: MIT
/*
 * A running domain as a source.
 *
 * Reading: the frames of a batch are looked up, the hypervisor says what each is used for, ordinary
 * pages are handed out as they are mapped, page tables as translated copies. Everything the guest
 * could have forged ends as "absent" or as an error that names the page; nothing is mapped that the
 * guest does not own, for the hypervisor refuses.
 *
 * While the guest runs, a table may change between its type and its contents, and may hold frames
 * that leave the guest before it stops (its shared_info page, for one). A table that cannot be
 * translated then is absent for now and is reported as written by the next log_clean(). Once the
 * guest stands still there is no such excuse.
 */
#include "migrate/guest_xen_source.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <libxl_utils.h>

#include "migrate/guest_xen.h"
#include "migrate/pv_table.h"
#include "migrate/xen_disks.h"
#include "migrate/xen_quiet.h"
#include "migrate/xen_suspend.h"
#include "migrate/xen_toolstack.h"
#include "protocol-spec/dirty_log.h"

static struct xen_source *of(struct guest_source *g)
{
	return (struct xen_source *)g;
}

unsigned guest_xen_source_domid(const struct guest_source *g)
{
	return ((const struct xen_source *)g)->domid;
}

/* ---- frames ---- */

/* A guest that ballons changes its table; it is soon done. */
#define LOAD_TRIES 50

static int load_frames(struct xen_source *s, struct pgr_error *err)
{
	const struct timespec moment = {.tv_nsec = 2000000};
	unsigned tries;
	int rc = -EAGAIN;

	for (tries = 0; rc == -EAGAIN && tries < LOAD_TRIES; tries++) {
		if (tries)
			nanosleep(&moment, NULL);
		rc = xen_frames_load(&s->frames, s->shared_info, s->again, err);
	}
	if (rc)
		return rc;
	if (s->told_pfns && s->frames.nr_pfns != s->told_pfns)
		return pgr_fail(err, -EAGAIN,
				"the guest's memory was enlarged from %" PRIu64 " to %" PRIu64
				" pages while it was being moved: try again",
				s->told_pfns, s->frames.nr_pfns);
	return 0;
}

static int source_describe(struct guest_source *g, struct guest_description *d,
			   struct pgr_error *err)
{
	struct xen_source *s = of(g);
	int rc = load_frames(s, err);

	if (rc)
		return rc;
	rc = xen_source_describe(s, d, err);
	if (!rc)
		s->told_pfns = s->frames.nr_pfns;
	return rc;
}

/* ---- the dirty log ---- */

static int shadow_op(struct xen_source *s, struct xen_domctl_shadow_op *what)
{
	struct xen_domctl op = {
		.cmd = XEN_DOMCTL_shadow_op, .domain = (domid_t)s->domid, .u.shadow_op = *what};
	int rc;

	if (what->pages)
		set_xen_guest_handle(op.u.shadow_op.dirty_bitmap, (uint8_t *)s->log);
	rc = xen_domctl(&s->calls, &op);
	*what = op.u.shadow_op;
	return rc;
}

/* One without a bitmap. */
static int plain_shadow_op(struct xen_source *s, uint32_t what)
{
	return shadow_op(s, &(struct xen_domctl_shadow_op){.op = what});
}

static int source_log_stop(struct guest_source *g, struct pgr_error *err)
{
	struct xen_source *s = of(g);
	int rc = 0;

	if (s->logging)
		rc = plain_shadow_op(s, XEN_DOMCTL_SHADOW_OP_OFF);
	s->logging = false;
	if (rc)
		return pgr_fail_errno(err, rc, "write logging of domain %u cannot be switched off",
				      s->domid);
	return 0;
}

/* Whoever has suspended it may be saving it, and has the log of its writes. */
static int refuse_standing(struct xen_source *s, struct pgr_error *err)
{
	bool stands = false;

	if (s->asked || xen_is_suspended(&s->calls, s->domid, &stands) || !stands)
		return 0;
	return pgr_fail(
		err, -EBUSY,
		"the guest (domain %u) stands suspended already: somebody else saves or moves it (xl save, xl migrate); wait for that, then say it again",
		s->domid);
}

static int source_log_start(struct guest_source *g, struct pgr_error *err)
{
	struct xen_source *s = of(g);
	int rc = refuse_standing(s, err);

	if (rc)
		return rc;
	if (!s->log) {
		s->log_bytes = (s->frames.nr_pfns + PGR_LOG_PART_PFNS - 1) / PGR_LOG_PART_PFNS *
			       (PGR_LOG_PART_PFNS / 8);
		s->log = xen_calls_alloc(&s->calls, s->log_bytes);
		if (!s->log)
			return pgr_fail(err, -ENOMEM, "no memory for the log of written pages");
	}
	rc = plain_shadow_op(s, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);
	/* It is on: whoever moved the guest before was killed. */
	if (rc == -EINVAL && !plain_shadow_op(s, XEN_DOMCTL_SHADOW_OP_OFF))
		rc = plain_shadow_op(s, XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY);
	if (rc == -EINVAL || rc == -EOPNOTSUPP)
		return pgr_fail(
			err, -EOPNOTSUPP,
			"this hypervisor cannot log the writes of a paravirtual guest: it was built without shadow paging");
	if (rc)
		return pgr_fail_errno(err, rc, "write logging of domain %u cannot be switched on",
				      s->domid);
	s->logging = true;
	xen_speed_put_back(&s->speed);
	xen_speed_measure(&s->speed);
	return 0;
}

/* Bits that are new in a part of the caller's bitmap; what is beyond the guest's last page stays out. */
static uint64_t take_bits(const struct xen_source *s, uint64_t *bitmap, uint64_t first,
			  const uint64_t *bits, uint64_t words)
{
	uint64_t all = (s->frames.nr_pfns + 63) / 64, count = 0, i;

	for (i = 0; i < words && first + i < all; i++) {
		uint64_t fresh = bits[i] & ~bitmap[first + i];

		if (first + i == all - 1 && s->frames.nr_pfns % 64)
			fresh &= (1ull << s->frames.nr_pfns % 64) - 1;
		bitmap[first + i] |= fresh;
		count += (uint64_t)__builtin_popcountll(fresh);
	}
	return count;
}

/* protocol-spec/dirty_log.md. -EINVAL: the hypervisor gives out its log as a whole only. */
static int clean_parts(struct xen_source *s, uint64_t *bitmap, uint64_t *count)
{
	struct xen_domctl_shadow_op op = {.mb = 0};
	int rc;

	do {
		uint64_t part = op.mb;

		op.op = XEN_DOMCTL_SHADOW_OP_CLEAN;
		op.mode = PGR_LOG_PART;
		op.pages = PGR_LOG_PART_PFNS;
		rc = shadow_op(s, &op);
		if (rc)
			return rc;
		*count += take_bits(s, bitmap, part * (PGR_LOG_PART_PFNS / 64), s->log,
				    PGR_LOG_PART_PFNS / 64);
	} while (op.mb != PGR_LOG_PART_NONE);
	return 0;
}

static int clean_whole(struct xen_source *s, uint64_t *bitmap, uint64_t *count)
{
	struct xen_domctl_shadow_op op = {.op = XEN_DOMCTL_SHADOW_OP_CLEAN,
					  .pages = s->frames.nr_pfns};
	int rc;

	memset(s->log, 0, s->log_bytes);
	rc = shadow_op(s, &op);
	if (!rc)
		*count += take_bits(s, bitmap, 0, s->log, s->log_bytes / 8);
	return rc;
}

static int source_log_clean(struct guest_source *g, uint64_t *bitmap, uint64_t *count,
			    struct pgr_error *err)
{
	struct xen_source *s = of(g);
	uint64_t words = (s->frames.nr_pfns + 63) / 64, i;
	int rc = -EINVAL;

	if (!s->logging)
		return pgr_fail(err, -EINVAL, "write logging is not switched on");
	*count = 0;
	if (!s->log_whole) {
		rc = clean_parts(s, bitmap, count);
		s->log_whole = rc == -EINVAL;
	}
	if (s->log_whole)
		rc = clean_whole(s, bitmap, count);
	if (rc)
		return pgr_fail_errno(
			err, rc, "the log of written pages of domain %u cannot be read", s->domid);
	for (i = 0; i < words; i++) {
		uint64_t again = atomic_exchange(&s->again[i], 0);

		*count += take_bits(s, bitmap, i, &again, 1);
	}
	return 0;
}

static int source_throttle(struct guest_source *g, unsigned percent, struct pgr_error *err)
{
	return xen_speed_set(&of(g)->speed, percent, err);
}

/* ---- stopping and going on ---- */

static int source_let_go(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err)
{
	return xen_disks_let_go(of(g)->domid, timeout_ms, err);
}

static int source_resume(struct guest_source *g, struct pgr_error *err)
{
	struct xen_source *s = of(g);
	bool suspended = false;
	int rc = xen_is_suspended(&s->calls, s->domid, &suspended);

	xen_quiet_end(s->domid);
	xen_disks_use(s->domid);
	if (rc)
		return pgr_fail_errno(err, rc, "the guest (domain %u) is gone", s->domid);
	s->suspended = false;
	if (!suspended && s->begun)
		return pgr_fail(err, -EINPROGRESS,
				"the guest (domain %u) had begun to suspend and may stop yet",
				s->domid);
	/* One that somebody else has suspended is his to resume. */
	if (!suspended || !s->asked)
		return 0;
	xen_toolstack_begin(s->tools);
	rc = xen_toolstack_failed(
		s->tools, libxl_domain_resume(xen_toolstack_ctx(s->tools), s->domid, 1, NULL), err,
		"domain %u cannot be resumed", s->domid);
	if (!rc)
		s->begun = s->asked = false;
	return rc;
}

static int source_suspend(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err)
{
	struct xen_source *s = of(g);
	int rc = refuse_standing(s, err);

	if (rc)
		return rc;
	s->asked = true;
	/* Before, so that what the backend has already is with the guest by then. */
	xen_quiet_begin(s->domid);
	rc = xen_suspend(&s->calls, s->domid, timeout_ms, err);
	s->begun = rc == -ECONNABORTED;
	if (rc)
		return rc;
	s->suspended = true;
	/* The balloon may have moved since: what has another frame counts as written. */
	return load_frames(s, err);
}

static int source_destroy(struct guest_source *g, struct pgr_error *err)
{
	struct xen_source *s = of(g);
	unsigned i;

	/* A mapped frame keeps the dead domain's memory. */
	for (i = 0; i < GUEST_WORKERS_MAX; i++) {
		xen_unmap(&s->calls, s->reader[i].map, s->reader[i].map_pages);
		s->reader[i].map = NULL;
	}
	xen_unmap(&s->calls, s->shared_info, 1);
	s->shared_info = NULL;
	s->logging = false;
	xen_toolstack_begin(s->tools);
	return xen_toolstack_failed(
		s->tools, libxl_domain_destroy(xen_toolstack_ctx(s->tools), s->domid, NULL), err,
		"domain %u cannot be destroyed", s->domid);
}

/* ---- reading ---- */

static int reader_prepare(struct xen_source *s, unsigned worker, struct pgr_error *err)
{
	struct xen_reader *r = &s->reader[worker];

	if (worker >= GUEST_WORKERS_MAX)
		return pgr_fail(err, -EINVAL, "there are at most %u readers", GUEST_WORKERS_MAX);
	if (!r->info)
		r->info = xen_calls_alloc(&s->calls, PGR_BATCH_MAX * sizeof(*r->info));
	if (!r->info)
		return pgr_fail(err, -ENOMEM, "no memory for reading the guest");
	return 0;
}

/*
 * What the hypervisor says of a frame, as enum pgr_page_type; false: not readable memory of the
 * guest.
 */
static bool page_type(uint64_t info, uint8_t *type)
{
	uint64_t tab = info & XEN_DOMCTL_PFINFO_LTAB_MASK;

	if (tab == XEN_DOMCTL_PFINFO_XTAB || tab == XEN_DOMCTL_PFINFO_XALLOC ||
	    tab == XEN_DOMCTL_PFINFO_BROKEN)
		return false;
	*type = (uint8_t)((info & XEN_DOMCTL_PFINFO_LTABTYPE_MASK) >> XEN_DOMCTL_PFINFO_LTAB_SHIFT);
	if (*type && (info & XEN_DOMCTL_PFINFO_LPINTAB))
		*type |= PGR_TYPE_PINNED;
	return (*type & PGR_TYPE_LEVEL_MASK) <= PGR_TYPE_L4;
}

/* Set b->type, and frames[i] to those that hold memory; returns how many. */
static int find_pages(struct xen_source *s, struct xen_reader *r, const uint64_t *pfns,
		      struct guest_batch *b, xen_pfn_t *frames, uint8_t *index, unsigned *nr_frames,
		      struct pgr_error *err)
{
	unsigned i, n = 0, kept = 0;
	uint64_t frame;
	int rc;

	for (i = 0; i < b->nr; i++) {
		frame = xen_frame_of(&s->frames, pfns[i]);
		if (frame == PV_FRAME_NONE)
			continue;
		r->info[n] = frame;
		frames[n] = frame;
		index[n++] = (uint8_t)i;
	}
	if (n) {
		rc = xen_page_info(&s->calls, s->domid, r->info, n);
		if (rc)
			return pgr_fail_errno(err, rc,
					      "the types of pages of domain %u cannot be read",
					      s->domid);
	}
	for (i = 0; i < n; i++) {
		if (!page_type(r->info[i], &b->type[index[i]]))
			continue;
		frames[kept] = frames[i];
		index[kept++] = index[i];
	}
	*nr_frames = kept;
	return 0;
}

/* A pv_frame_fn. What the guest may put where, the hypervisor has seen to. */
static uint64_t entry_to_pfn(const void *frames, uint64_t frame, unsigned level, uint64_t entry)
{
	(void)level;
	(void)entry;
	return xen_pfn_of(frames, frame);
}

static int read_table(struct xen_source *s, struct xen_reader *r, uint64_t pfn,
		      struct guest_batch *b, unsigned i, struct pgr_error *err)
{
	struct pv_table_error e;
	uint64_t *copy;

	if (!r->tables)
		r->tables = aligned_alloc(XEN_PAGE_SIZE, (size_t)PGR_BATCH_MAX * XEN_PAGE_SIZE);
	if (!r->tables)
		return pgr_fail(err, -ENOMEM, "no memory for page tables");
	copy = (uint64_t *)(r->tables + (size_t)i * XEN_PAGE_SIZE);
	if (!pv_table_translate(copy, (const uint64_t *)b->page[i],
				b->type[i] & PGR_TYPE_LEVEL_MASK, entry_to_pfn, &s->frames, &e)) {
		b->page[i] = (uint8_t *)copy;
		return 0;
	}
	b->page[i] = NULL;
	if (!s->suspended) {
		b->type[i] = PGR_TYPE_ORDINARY;
		atomic_fetch_or(&s->again[pfn / 64], 1ull << pfn % 64);
		return 0;
	}
	return pgr_fail(err, -EINVAL,
			"page %" PRIu64
			" of the guest is a page table of level %u whose entry %u (%#" PRIx64
			") %s: detach passed-through devices and foreign mappings first",
			pfn, b->type[i] & PGR_TYPE_LEVEL_MASK, e.slot, e.entry,
			pv_table_fault_text(e.fault));
}

static void source_release(struct guest_source *g, unsigned worker, struct guest_batch *b)
{
	struct xen_source *s = of(g);
	struct xen_reader *r = &s->reader[worker];

	xen_unmap(&s->calls, r->map, r->map_pages);
	r->map = NULL;
	b->nr = 0;
	b->base = NULL;
}

static int source_read(struct guest_source *g, unsigned worker, const uint64_t *pfns, unsigned nr,
		       struct guest_batch *b, struct pgr_error *err)
{
	struct xen_source *s = of(g);
	struct xen_reader *r = &s->reader[worker];
	xen_pfn_t frames[PGR_BATCH_MAX];
	int errors[PGR_BATCH_MAX];
	uint8_t index[PGR_BATCH_MAX];
	unsigned i, n = 0;
	int rc = reader_prepare(s, worker, err);

	*b = (struct guest_batch){.nr = nr};
	if (!rc && nr > PGR_BATCH_MAX)
		rc = pgr_fail(err, -EINVAL, "%u pages are too many for a batch", nr);
	if (!rc)
		rc = find_pages(s, r, pfns, b, frames, index, &n, err);
	if (rc || !n)
		return rc;
	r->map = xen_map(&s->calls, s->domid, PROT_READ, n, frames, errors);
	r->map_pages = n;
	if (!r->map)
		return pgr_fail_errno(err, -errno, "pages of domain %u cannot be mapped", s->domid);
	b->base = n == nr ? r->map : NULL;
	for (i = 0; i < n && !rc; i++) {
		if (errors[i]) {
			/* The guest gave the page away between the look-up and now. */
			b->base = NULL;
			b->type[index[i]] = PGR_TYPE_ORDINARY;
			continue;
		}
		b->page[index[i]] = (uint8_t *)r->map + (size_t)i * XEN_PAGE_SIZE;
		if (b->type[index[i]]) {
			b->base = NULL;
			rc = read_table(s, r, pfns[index[i]], b, index[i], err);
		}
	}
	if (rc)
		source_release(g, worker, b);
	return rc;
}

static int source_state(struct guest_source *g, guest_state_fn *emit, void *ctx,
			struct pgr_error *err)
{
	return xen_source_state(of(g), emit, ctx, err);
}

/* ---- opening and closing ---- */

static void source_close(struct guest_source *g)
{
	struct xen_source *s = of(g);
	unsigned i;

	source_log_stop(g, NULL);
	for (i = 0; i < GUEST_WORKERS_MAX; i++) {
		xen_unmap(&s->calls, s->reader[i].map, s->reader[i].map_pages);
		xen_calls_free(&s->calls, s->reader[i].info);
		free(s->reader[i].tables);
	}
	xen_calls_free(&s->calls, s->log);
	xen_unmap(&s->calls, s->shared_info, 1);
	if (s->frames.calls)
		xen_frames_close(&s->frames);
	xen_toolstack_close(s->tools);
	if (s->calls.call)
		xen_calls_close(&s->calls);
	free(s->again);
	free(s);
}

static const struct guest_source_ops ops = {
	.name = "xen",
	.describe = source_describe,
	.log_start = source_log_start,
	.log_clean = source_log_clean,
	.log_stop = source_log_stop,
	.throttle = source_throttle,
	.suspend = source_suspend,
	.let_go = source_let_go,
	.resume = source_resume,
	.read = source_read,
	.release = source_release,
	.state = source_state,
	.destroy = source_destroy,
	.close = source_close,
};

static int find_domain(struct xen_source *s, const char *name, struct pgr_error *err)
{
	const char *c = name;
	char *end;
	unsigned long number;

	while (isdigit((unsigned char)*c))
		c++;
	if (c != name && !*c) {
		number = strtoul(name, &end, 10);
		if (strlen(name) > 5 || number >= DOMID_FIRST_RESERVED)
			return pgr_fail(err, -ENOENT, "there is no domain with the number %s",
					name);
		s->domid = (uint32_t)number;
	} else if (libxl_name_to_domid(xen_toolstack_ctx(s->tools), name, &s->domid)) {
		return pgr_fail(err, -ENOENT, "there is no guest called '%s' here: see `xl list`",
				name);
	}
	return s->domid ? 0
			: pgr_fail(err, -EPERM, "domain 0 is this host itself and cannot be moved");
}

static int check_domain(struct xen_source *s, const char *name, struct pgr_error *err)
{
	struct xen_domctl_getdomaininfo info;
	struct xen_domctl width = {.cmd = XEN_DOMCTL_get_address_size, .domain = (domid_t)s->domid};
	int rc = xen_domain_info(&s->calls, s->domid, &info);

	if (rc)
		return pgr_fail_errno(err, rc, "there is no domain with the number %u", s->domid);
	if (info.flags & XEN_DOMINF_dying)
		return pgr_fail(err, -ENOENT, "guest '%s' (domain %u) is being destroyed", name,
				s->domid);
	if (info.flags & XEN_DOMINF_hvm_guest)
		return pgr_fail(
			err, -ENOTSUP,
			"guest '%s' (domain %u) is an HVM or PVH guest; only PV guests can be moved",
			name, s->domid);
	rc = xen_domctl(&s->calls, &width);
	if (rc || width.u.address_size.size != 64)
		return pgr_fail(
			err, -ENOTSUP,
			"guest '%s' (domain %u) is a 32-bit guest; only 64-bit PV guests can be moved",
			name, s->domid);
	s->shared_info =
		xen_map_one(&s->calls, s->domid, PROT_READ, (xen_pfn_t)info.shared_info_frame);
	if (!s->shared_info)
		return pgr_fail_errno(err, -errno, "shared_info of domain %u cannot be mapped",
				      s->domid);
	return 0;
}

void guest_xen_put_aids_away(unsigned domid)
{
	struct pgr_error ignored = PGR_ERROR_NONE;
	struct guest_source *g;
	char number[16];

	snprintf(number, sizeof(number), "%u", domid);
	if (guest_xen_source_open(number, &g, &ignored))
		return;
	/* It need not be on. */
	plain_shadow_op(of(g), XEN_DOMCTL_SHADOW_OP_OFF);
	xen_speed_put_back(&of(g)->speed);
	g->ops->close(g);
}

int guest_xen_source_open(const char *name, struct guest_source **out, struct pgr_error *err)
{
	struct xen_source *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a guest");
	s->source.ops = &ops;
	rc = xen_calls_open(&s->calls, err);
	if (!rc)
		rc = xen_toolstack_open(&s->tools, err);
	if (!rc)
		rc = find_domain(s, name, err);
	if (!rc)
		rc = check_domain(s, name, err);
	if (!rc) {
		xen_speed_open(&s->speed, &s->calls, s->tools, s->domid);
		rc = xen_frames_open(&s->frames, &s->calls, s->domid, err);
	}
	if (!rc)
		rc = load_frames(s, err);
	if (!rc) {
		s->again = calloc(s->frames.nr_pfns / 64 + 1, sizeof(*s->again));
		s->told_pfns = s->frames.nr_pfns;
		if (!s->again)
			rc = pgr_fail(err, -ENOMEM, "no memory for a guest of %" PRIu64 " pages",
				      s->frames.nr_pfns);
	}
	if (rc) {
		source_close(&s->source);
		return rc;
	}
	*out = &s->source;
	return 0;
}
