// SPDX-License-Identifier: MIT
/*
 * The state records of a suspended domain, in the order of stream.md: what is not in its memory.
 *
 * Register contents are the guest's business and travel as they are; frame numbers in them are
 * checked and become pfns.
 */
#include "migrate/guest_xen_source.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "migrate/pv_table.h"

_Static_assert(sizeof(struct vcpu_guest_context) == 5168, "stream.md 7.4");
_Static_assert(offsetof(struct vcpu_guest_context, gdt_frames) == 4832, "stream.md 7.4");
_Static_assert(offsetof(struct vcpu_guest_context, ctrlreg) == 4984, "stream.md 7.4");
_Static_assert(sizeof(struct xen_domctl_ext_vcpucontext) == 64, "stream.md 7.5");
_Static_assert(offsetof(struct shared_info, arch.pfn_to_mfn_frame_list_list) == 3096,
	       "stream.md 7.8");
_Static_assert(offsetof(struct shared_info, arch.p2m_cr3) == 3112, "stream.md 7.8");

/* Pfns in one PV_P2M_FRAMES record. */
#define P2M_PER_RECORD 32768u

struct emitter {
	struct xen_source *s;
	guest_state_fn *emit;
	void *ctx;
	struct pgr_error *err;
};

static int emit(const struct emitter *e, uint32_t type, const void *body, size_t length)
{
	return e->emit(e->ctx, type, body, length, e->err);
}

/* A frame number in a register of the guest to its pfn. */
static int to_pfn(const struct emitter *e, uint64_t frame, uint64_t *pfn, unsigned vcpu,
		  const char *what)
{
	*pfn = xen_pfn_of(&e->s->frames, frame);
	if (*pfn != PV_FRAME_NONE)
		return 0;
	return pgr_fail(e->err, -EINVAL,
			"%s of vCPU %u of the guest is frame %#" PRIx64
			", which is not the guest's: it did not suspend as the PV interface says",
			what, vcpu, frame);
}

static int is_online(const struct emitter *e, unsigned vcpu, bool *online)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_getvcpuinfo, .domain = (domid_t)e->s->domid};
	int rc;

	op.u.getvcpuinfo.vcpu = vcpu;
	rc = xen_domctl(&e->s->calls, &op);
	/* A hole in the numbers. */
	if (rc == -ESRCH && vcpu)
		return 0;
	if (rc)
		return pgr_fail_errno(e->err, rc, "vCPU %u of the guest cannot be looked at", vcpu);
	*online = op.u.getvcpuinfo.online;
	return 0;
}

static int get_context(const struct emitter *e, unsigned vcpu, struct vcpu_guest_context *to)
{
	struct xen_calls *calls = &e->s->calls;
	struct xen_domctl op = {.cmd = XEN_DOMCTL_getvcpucontext, .domain = (domid_t)e->s->domid};
	struct vcpu_guest_context *shared = xen_calls_alloc(calls, sizeof(*shared));
	int rc;

	if (!shared)
		return pgr_fail(e->err, -ENOMEM, "no memory for a vCPU");
	op.u.vcpucontext.vcpu = vcpu;
	set_xen_guest_handle(op.u.vcpucontext.ctxt, shared);
	rc = xen_domctl(calls, &op);
	memcpy(to, shared, sizeof(*to));
	xen_calls_free(calls, shared);
	if (rc)
		return pgr_fail_errno(e->err, rc, "vCPU %u of the guest cannot be read", vcpu);
	return 0;
}

static int emit_context(const struct emitter *e, unsigned vcpu, uint64_t start_info_pfn)
{
	struct {
		struct pgr_vcpu head;
		struct vcpu_guest_context c;
	} * r;
	unsigned i, frames;
	uint64_t pfn = 0;
	int rc;

	r = calloc(1, sizeof(*r));
	if (!r)
		return pgr_fail(e->err, -ENOMEM, "no memory for a vCPU");
	r->head.vcpu = vcpu;
	rc = get_context(e, vcpu, &r->c);
	if (rc)
		goto out;
	if (vcpu == 0)
		r->c.user_regs.rdx = start_info_pfn;
	if (r->c.gdt_ents > FIRST_RESERVED_GDT_ENTRY) {
		rc = pgr_fail(e->err, -EINVAL, "vCPU %u of the guest has %lu GDT entries", vcpu,
			      r->c.gdt_ents);
		goto out;
	}
	frames = (unsigned)((r->c.gdt_ents + 511) / 512);
	for (i = 0; i < 16; i++) {
		pfn = 0;
		if (i < frames)
			rc = to_pfn(e, r->c.gdt_frames[i], &pfn, vcpu, "a page of the GDT");
		if (rc)
			goto out;
		r->c.gdt_frames[i] = pfn;
	}
	rc = to_pfn(e, xen_cr3_to_pfn(r->c.ctrlreg[3]), &pfn, vcpu, "the kernel's top page table");
	if (rc)
		goto out;
	r->c.ctrlreg[3] = xen_pfn_to_cr3(pfn);
	if (r->c.ctrlreg[1]) {
		rc = to_pfn(e, xen_cr3_to_pfn(r->c.ctrlreg[1]), &pfn, vcpu,
			    "the user's top page table");
		if (rc)
			goto out;
		r->c.ctrlreg[1] = xen_pfn_to_cr3(pfn);
	}
	rc = emit(e, PGR_REC_VCPU_CONTEXT, r, sizeof(*r));
out:
	free(r);
	return rc;
}

static int emit_extended(const struct emitter *e, unsigned vcpu)
{
	struct {
		struct pgr_vcpu head;
		struct xen_domctl_ext_vcpucontext c;
	} r = {.head.vcpu = vcpu};
	struct xen_domctl op = {.cmd = XEN_DOMCTL_get_ext_vcpucontext,
				.domain = (domid_t)e->s->domid};
	int rc;

	op.u.ext_vcpucontext.vcpu = vcpu;
	rc = xen_domctl(&e->s->calls, &op);
	if (rc)
		return pgr_fail_errno(e->err, rc, "the extended state of vCPU %u cannot be read",
				      vcpu);
	r.c = op.u.ext_vcpucontext;
	return emit(e, PGR_REC_VCPU_EXTENDED, &r, sizeof(r));
}

static int get_xsave(const struct emitter *e, unsigned vcpu, void *shared,
		     struct xen_domctl_vcpuextstate *x)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_getvcpuextstate, .domain = (domid_t)e->s->domid};
	int rc;

	op.u.vcpuextstate.vcpu = vcpu;
	op.u.vcpuextstate.size = x->size;
	op.u.vcpuextstate.xfeature_mask = x->xfeature_mask;
	set_xen_guest_handle(op.u.vcpuextstate.buffer, shared);
	rc = xen_domctl(&e->s->calls, &op);
	*x = op.u.vcpuextstate;
	if (rc)
		return pgr_fail_errno(e->err, rc, "the XSAVE state of vCPU %u cannot be read",
				      vcpu);
	return 0;
}

static int emit_xsave(const struct emitter *e, unsigned vcpu)
{
	struct xen_domctl_vcpuextstate x = {.vcpu = vcpu};
	struct {
		struct pgr_vcpu head;
		uint64_t xfeature_mask, size;
	} *r = NULL;
	struct xen_calls *calls = &e->s->calls;
	void *shared = NULL;
	int rc = get_xsave(e, vcpu, NULL, &x);

	/* A processor without XSAVE has nothing to add to the context. */
	if (rc || !x.size)
		return rc;
	shared = xen_calls_alloc(calls, x.size);
	r = malloc(sizeof(*r) + x.size);
	if (!shared || !r) {
		rc = pgr_fail(e->err, -ENOMEM, "no memory for a vCPU's XSAVE state");
		goto out;
	}
	rc = get_xsave(e, vcpu, shared, &x);
	if (rc)
		goto out;
	r->head = (struct pgr_vcpu){.vcpu = vcpu};
	r->xfeature_mask = x.xfeature_mask;
	r->size = x.size;
	memcpy(r + 1, shared, x.size);
	rc = emit(e, PGR_REC_VCPU_XSAVE, r, sizeof(*r) + x.size);
out:
	xen_calls_free(calls, shared);
	free(r);
	return rc;
}

static int emit_msrs(const struct emitter *e, unsigned vcpu)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_get_vcpu_msrs, .domain = (domid_t)e->s->domid};
	struct xen_calls *calls = &e->s->calls;
	xen_domctl_vcpu_msr_t *shared = NULL;
	struct pgr_vcpu *r = NULL;
	struct pgr_msr *msr;
	uint32_t i, room;
	int rc;

	op.u.vcpu_msrs.vcpu = vcpu;
	rc = xen_domctl(calls, &op);
	room = op.u.vcpu_msrs.msr_count;
	if (rc)
		return pgr_fail_errno(e->err, rc, "the MSRs of vCPU %u cannot be counted", vcpu);
	if (!room)
		return 0;
	shared = xen_calls_alloc(calls, room * sizeof(*shared));
	r = calloc(1, sizeof(*r) + room * sizeof(*msr));
	if (!shared || !r) {
		rc = pgr_fail(e->err, -ENOMEM, "no memory for a vCPU's MSRs");
		goto out;
	}
	set_xen_guest_handle(op.u.vcpu_msrs.msrs, shared);
	rc = xen_domctl(calls, &op);
	if (rc || op.u.vcpu_msrs.msr_count > room) {
		rc = pgr_fail_errno(e->err, rc ? rc : -EIO, "the MSRs of vCPU %u cannot be read",
				    vcpu);
		goto out;
	}
	r->vcpu = vcpu;
	msr = (struct pgr_msr *)(r + 1);
	for (i = 0; i < op.u.vcpu_msrs.msr_count; i++)
		msr[i] = (struct pgr_msr){.index = shared[i].index, .value = shared[i].value};
	if (i)
		rc = emit(e, PGR_REC_VCPU_MSRS, r, sizeof(*r) + i * sizeof(*msr));
out:
	xen_calls_free(calls, shared);
	free(r);
	return rc;
}

/*
 * A vCPU that is switched off is not sent. By the interface a guest that resumes in a new domain takes
 * every vCPU that was off for one that was never started, and starts it anew (Linux has a BUG() for
 * one that exists already).
 */
static int emit_vcpu(const struct emitter *e, unsigned vcpu, uint64_t start_info_pfn)
{
	bool online = false;
	int rc = is_online(e, vcpu, &online);

	if (rc)
		return rc;
	if (!online && vcpu == 0)
		return pgr_fail(
			e->err, -EINVAL,
			"vCPU 0 of the guest is switched off: a guest has to suspend on vCPU 0");
	if (!online)
		return 0;
	rc = emit_context(e, vcpu, start_info_pfn);
	if (!rc)
		rc = emit_extended(e, vcpu);
	if (!rc)
		rc = emit_xsave(e, vcpu);
	if (!rc)
		rc = emit_msrs(e, vcpu);
	return rc;
}

static int emit_p2m(const struct emitter *e)
{
	const struct xen_frames *f = &e->s->frames;
	struct pgr_pv_p2m_frames *r;
	uint64_t first, count;
	int rc = 0;

	r = malloc(sizeof(*r) + P2M_PER_RECORD * sizeof(uint64_t));
	if (!r)
		return pgr_fail(e->err, -ENOMEM, "no memory for the list of P2M pages");
	for (first = 0; first < f->nr_table && !rc; first += count) {
		count = f->nr_table - first < P2M_PER_RECORD ? f->nr_table - first : P2M_PER_RECORD;
		r->first = (uint32_t)first;
		r->count = (uint32_t)count;
		memcpy(r + 1, f->table_pfns + first, count * sizeof(uint64_t));
		rc = emit(e, PGR_REC_PV_P2M_FRAMES, r, sizeof(*r) + count * sizeof(uint64_t));
	}
	free(r);
	return rc;
}

static int emit_tsc(const struct emitter *e)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_gettscinfo, .domain = (domid_t)e->s->domid};
	struct pgr_tsc_info r = {0};
	int rc = xen_domctl(&e->s->calls, &op);

	if (rc)
		return pgr_fail_errno(e->err, rc, "the guest's clock cannot be read");
	r.mode = op.u.tsc_info.tsc_mode;
	r.khz = op.u.tsc_info.gtsc_khz;
	r.nsec = op.u.tsc_info.elapsed_nsec;
	r.incarnation = op.u.tsc_info.incarnation;
	return emit(e, PGR_REC_TSC_INFO, &r, sizeof(r));
}

static int emit_shared_info(const struct emitter *e)
{
	uint8_t page[XEN_PAGE_SIZE];
	struct shared_info *s = (struct shared_info *)page;
	uint64_t pfn;

	_Static_assert(sizeof(*s) <= sizeof(page), "shared_info is one page");
	memcpy(page, e->s->shared_info, sizeof(page));
	s->arch.pfn_to_mfn_frame_list_list = 0;
	if (s->arch.p2m_cr3) {
		pfn = xen_pfn_of(&e->s->frames, xen_cr3_to_pfn(s->arch.p2m_cr3));
		s->arch.p2m_cr3 = pfn == PV_FRAME_NONE ? 0 : xen_pfn_to_cr3(pfn);
	}
	return emit(e, PGR_REC_PV_SHARED_INFO, page, sizeof(page));
}

int xen_source_state(struct xen_source *s, guest_state_fn *fn, void *ctx, struct pgr_error *err)
{
	const struct emitter e = {.s = s, .emit = fn, .ctx = ctx, .err = err};
	struct pgr_pv_info info = {.word_size = 8, .levels = 4, .nr_pfns = s->frames.nr_pfns};
	struct vcpu_guest_context *c = calloc(1, sizeof(*c));
	struct xen_domctl_getdomaininfo d;
	unsigned vcpu;
	int rc;

	if (!c)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU");
	rc = xen_domain_info(&s->calls, s->domid, &d);
	if (rc)
		pgr_fail_errno(err, rc, "domain %u cannot be looked at", s->domid);
	if (!rc)
		rc = get_context(&e, 0, c);
	/* The suspend hypercall has the frame of start_info as its third argument. */
	if (!rc)
		rc = to_pfn(&e, c->user_regs.rdx, &info.start_info_pfn, 0, "start_info");
	if (!rc)
		rc = emit(&e, PGR_REC_PV_INFO, &info, sizeof(info));
	if (!rc)
		rc = emit_p2m(&e);
	if (!rc)
		rc = emit_tsc(&e);
	for (vcpu = 0; !rc && vcpu <= d.max_vcpu_id; vcpu++)
		rc = emit_vcpu(&e, vcpu, info.start_info_pfn);
	if (!rc)
		rc = emit_shared_info(&e);
	free(c);
	return rc;
}
