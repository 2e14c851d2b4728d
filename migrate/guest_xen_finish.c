// SPDX-License-Identifier: MIT
/*
 * Putting the guest together in the new domain's frames.
 *
 * The order matters to the hypervisor. While a frame is mapped writable by anybody it cannot become
 * a page table, and once it is one nobody maps it writable; so every write to the guest's memory
 * comes first (tables, the guest's own P2M, start_info), then the tables are pinned, then the vCPUs
 * get registers that point to them.
 *
 * The stream's frame numbers are pfns. Each is looked up in what this domain was really given: a
 * number without memory ends the restore, so nothing built here names a frame of anybody else - and
 * the hypervisor checks every table entry again when it is pinned.
 */
#include "migrate/guest_xen_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/pv_table.h"

#define ENTRIES	    (XEN_PAGE_SIZE / (unsigned)sizeof(uint64_t))
#define THREADS_MAX 8u
/* Pfns that a thread takes at a time when it looks for page tables. */
#define STRIDE 4096u
/* Operations in one hypercall. */
#define PIN_BATCH 256u

/* An entry of Linux's P2M that is the same on every host: bit 63 foreign, bit 62 identity. */
#define P2M_FOREIGN  (1ull << 63)
#define P2M_IDENTITY (1ull << 62)
#define P2M_NONE     UINT64_MAX

/* ---- what the records name ---- */

int xen_sink_page(const struct xen_sink *s, uint64_t pfn, unsigned level, const char *what,
		  uint64_t *frame, struct pgr_error *err)
{
	*frame = xen_sink_frame(s, pfn);
	if (*frame == PV_FRAME_NONE)
		return pgr_fail(err, -EPROTO, "%s is page %" PRIu64 ", which holds no memory", what,
				pfn);
	if ((s->type[pfn] & PGR_TYPE_LEVEL_MASK) != level)
		return pgr_fail(err, -EPROTO, "%s is page %" PRIu64 ", which has type %u", what,
				pfn, s->type[pfn]);
	return 0;
}

static int check_complete(const struct xen_sink *s, struct pgr_error *err)
{
	const struct xen_state_in *in = &s->in;

	if (!in->has_info || in->table_filled != in->nr_table || !in->has_shared_info ||
	    !in->vcpu[0])
		return pgr_fail(
			err, -EPROTO,
			"the guest's state is not complete: PV_INFO, all of PV_P2M_FRAMES, vCPU 0 and PV_SHARED_INFO are needed");
	return 0;
}

/* ---- page tables, by several threads ---- */

struct tables {
	struct xen_sink *s;
	_Atomic uint64_t next; /* pfn */
	_Atomic bool stop;
	pthread_mutex_t lock;
	struct pgr_error err; /* the first; under the lock */
};

static void tables_fail(struct tables *t, const struct pgr_error *err)
{
	pthread_mutex_lock(&t->lock);
	if (!t->err.code)
		t->err = *err;
	pthread_mutex_unlock(&t->lock);
	atomic_store(&t->stop, true);
}

/*
 * A pv_frame_fn. The hypervisor would refuse a table that is writable or out of place as well, but
 * Xen 4.17 then keeps a reference to a page, and what is left of the domain can never be removed.
 */
static uint64_t entry_to_frame(const void *sink, uint64_t pfn, unsigned level, uint64_t entry)
{
	const struct xen_sink *s = sink;
	uint64_t frame = xen_sink_frame(s, pfn);
	unsigned named;

	if (frame == PV_FRAME_NONE)
		return frame;
	named = s->type[pfn] & PGR_TYPE_LEVEL_MASK;
	if (level == 1)
		return named && (entry & PV_ENTRY_WRITE) ? PV_FRAME_KIND : frame;
	/* A table may show a table of its own level to itself, read-only (NetBSD does). */
	if (named == level && !(entry & PV_ENTRY_WRITE))
		return frame;
	return named == level - 1 ? frame : PV_FRAME_KIND;
}

static int localise(struct xen_sink *s, uint64_t *page, uint64_t pfn, struct pgr_error *err)
{
	unsigned level = s->type[pfn] & PGR_TYPE_LEVEL_MASK;
	struct pv_table_error e;

	if (!pv_table_translate(page, page, level, entry_to_frame, s, &e))
		return 0;
	return pgr_fail(err, -EPROTO,
			"page %" PRIu64 " is a page table of level %u whose entry %u (%#" PRIx64
			", a page number in the place of the frame) %s",
			pfn, level, e.slot, e.entry, pv_table_fault_text(e.fault));
}

static int localise_batch(struct xen_sink *s, const uint64_t *pfns, unsigned nr,
			  struct pgr_error *err)
{
	xen_pfn_t frames[PGR_BATCH_MAX] = {0};
	unsigned i;
	uint8_t *map;
	int rc = 0;

	for (i = 0; i < nr && !rc; i++)
		rc = xen_sink_page(s, pfns[i], s->type[pfns[i]] & PGR_TYPE_LEVEL_MASK,
				   "a page table", &frames[i], err);
	if (rc)
		return rc;
	map = xen_map(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, nr, frames, NULL);
	if (!map)
		return pgr_fail_errno(err, -errno, "page tables of domain %u cannot be mapped",
				      s->made.domid);
	for (i = 0; i < nr && !rc; i++)
		rc = localise(s, (uint64_t *)(map + (size_t)i * XEN_PAGE_SIZE), pfns[i], err);
	xen_unmap(&s->calls, map, nr);
	return rc;
}

static void *tables_thread(void *arg)
{
	struct tables *t = arg;
	struct xen_sink *s = t->s;
	uint64_t pfns[PGR_BATCH_MAX], first, pfn, end;
	struct pgr_error err = PGR_ERROR_NONE;
	unsigned nr = 0;
	int rc = 0;

	while (!rc && !atomic_load(&t->stop)) {
		first = atomic_fetch_add(&t->next, STRIDE);
		if (first >= s->nr_pfns)
			break;
		end = first + STRIDE < s->nr_pfns ? first + STRIDE : s->nr_pfns;
		for (pfn = first; pfn < end && !rc; pfn++) {
			if (!(s->type[pfn] & PGR_TYPE_LEVEL_MASK))
				continue;
			pfns[nr++] = pfn;
			if (nr == PGR_BATCH_MAX) {
				rc = localise_batch(s, pfns, nr, &err);
				nr = 0;
			}
		}
	}
	if (!rc && nr)
		rc = localise_batch(s, pfns, nr, &err);
	if (rc)
		tables_fail(t, &err);
	return NULL;
}

static int localise_tables(struct xen_sink *s, struct pgr_error *err)
{
	struct tables t = {.s = s, .lock = PTHREAD_MUTEX_INITIALIZER};
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned want = cpus < 1 ? 1 : cpus > THREADS_MAX ? THREADS_MAX : (unsigned)cpus, i, n = 0;
	pthread_t thread[THREADS_MAX];

	/* This thread is one of them; fewer than wanted is slower, not wrong. */
	for (i = 1; i < want; i++)
		if (!pthread_create(&thread[n], NULL, tables_thread, &t))
			n++;
	tables_thread(&t);
	for (i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	if (t.err.code && err)
		*err = t.err;
	return t.err.code;
}

/* ---- the guest's own table ---- */

static uint64_t p2m_entry(const struct xen_sink *s, uint64_t pfn, uint64_t old)
{
	uint64_t frame = xen_sink_frame(s, pfn);

	if (frame != PV_FRAME_NONE)
		return frame;
	/*
	 * "This pfn is the frame of the same number" holds on any host; everything else was about
	 * frames of the other.
	 */
	if ((old & P2M_IDENTITY) && !(old & P2M_FOREIGN))
		return old;
	return P2M_NONE;
}

static int fill_p2m(struct xen_sink *s, struct pgr_error *err)
{
	const struct xen_state_in *in = &s->in;
	uint64_t i, frame, pfn, *page;
	unsigned e;
	int rc;

	for (i = 0; i < in->nr_table; i++) {
		rc = xen_sink_page(s, in->table_pfns[i], PGR_TYPE_ORDINARY,
				   "a page of the guest's P2M", &frame, err);
		if (rc)
			return rc;
		page = xen_map_one(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, frame);
		if (!page)
			return pgr_fail_errno(
				err, -errno, "page %" PRIu64 " of the guest's P2M cannot be mapped",
				i);
		for (e = 0; e < ENTRIES; e++) {
			pfn = i * ENTRIES + e;
			page[e] = p2m_entry(s, pfn, page[e]);
		}
		xen_unmap(&s->calls, page, 1);
	}
	return 0;
}

/* ---- start_info and shared_info ---- */

static int fill_start_info(struct xen_sink *s, uint64_t shared_info_frame, uint64_t *start_frame,
			   struct pgr_error *err)
{
	struct start_info *si;
	int rc = xen_sink_page(s, s->in.start_info_pfn, PGR_TYPE_ORDINARY, "start_info",
			       start_frame, err);

	if (rc)
		return rc;
	si = xen_map_one(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, *start_frame);
	if (!si)
		return pgr_fail_errno(err, -errno, "start_info of the guest cannot be mapped");
	si->nr_pages = s->populated;
	si->shared_info = shared_info_frame << 12;
	/*
	 * How the tools read its P2M was settled when it booted; the rest is for domains with
	 * rights.
	 */
	si->flags &= SIF_VIRT_P2M_4TOOLS;
	si->store_mfn = s->store_frame;
	si->store_evtchn = s->made.store_port;
	si->console.domU.mfn = s->console_frame;
	si->console.domU.evtchn = s->made.console_port;
	xen_unmap(&s->calls, si, 1);
	return 0;
}

static int fill_shared_info(struct xen_sink *s, uint64_t frame, struct pgr_error *err)
{
	const struct shared_info *from = (const struct shared_info *)s->in.shared_info;
	struct shared_info *to;
	uint64_t table = 0;
	unsigned i;
	int rc = 0;

	if (from->arch.p2m_cr3)
		rc = xen_sink_page(s, xen_cr3_to_pfn(from->arch.p2m_cr3), PGR_TYPE_L4,
				   "the top table of the guest's P2M", &table, err);
	if (rc)
		return rc;
	to = xen_map_one(&s->calls, s->made.domid, PROT_READ | PROT_WRITE, frame);
	if (!to)
		return pgr_fail_errno(err, -errno, "shared_info of domain %u cannot be mapped",
				      s->made.domid);
	/* Time is this host's; events do not travel: every channel is made anew. */
	for (i = 0; i < XEN_LEGACY_MAX_VCPUS; i++) {
		to->vcpu_info[i].evtchn_upcall_pending = from->vcpu_info[i].evtchn_upcall_pending;
		to->vcpu_info[i].evtchn_upcall_mask = from->vcpu_info[i].evtchn_upcall_mask;
		to->vcpu_info[i].evtchn_pending_sel = 0;
		to->vcpu_info[i].arch.cr2 = from->vcpu_info[i].arch.cr2;
	}
	memset(to->evtchn_pending, 0, sizeof(to->evtchn_pending));
	memset(to->evtchn_mask, 0xff, sizeof(to->evtchn_mask));
	to->arch.max_pfn = from->arch.max_pfn;
	to->arch.pfn_to_mfn_frame_list_list = 0;
	to->arch.nmi_reason = from->arch.nmi_reason;
	to->arch.p2m_cr3 = table << 12;
	to->arch.p2m_vaddr = from->arch.p2m_vaddr;
	to->arch.p2m_generation = from->arch.p2m_generation;
	xen_unmap(&s->calls, to, 1);
	return 0;
}

/* ---- pinning ---- */

static int pin_batch(struct xen_sink *s, struct mmuext_op *ops, const uint64_t *pfns, unsigned nr,
		     struct pgr_error *err)
{
	unsigned done = 0;
	int rc = xen_mmuext(&s->calls, s->made.domid, ops, nr, &done);

	if (!rc)
		return 0;
	if (done >= nr)
		done = nr - 1;
	return pgr_fail_errno(
		err, rc,
		"the hypervisor refuses page %" PRIu64
		" as a page table of level %u, or a table under it (its log says why: xl dmesg)",
		pfns[done], s->type[pfns[done]] & PGR_TYPE_LEVEL_MASK);
}

static int pin_tables(struct xen_sink *s, struct pgr_error *err)
{
	static const unsigned cmd[5] = {0, MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE,
					MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE};
	struct mmuext_op *ops = xen_calls_alloc(&s->calls, PIN_BATCH * sizeof(*ops));
	uint64_t pfns[PIN_BATCH], pfn;
	unsigned nr = 0;
	int rc = 0;

	if (!ops)
		return pgr_fail(err, -ENOMEM, "no memory for pinning page tables");
	for (pfn = 0; pfn < s->nr_pfns && !rc; pfn++) {
		if (!(s->type[pfn] & PGR_TYPE_PINNED))
			continue;
		ops[nr].cmd = cmd[s->type[pfn] & PGR_TYPE_LEVEL_MASK];
		ops[nr].arg1.mfn = xen_sink_frame(s, pfn);
		pfns[nr++] = pfn;
		if (nr == PIN_BATCH) {
			rc = pin_batch(s, ops, pfns, nr, err);
			nr = 0;
		}
	}
	if (!rc && nr)
		rc = pin_batch(s, ops, pfns, nr, err);
	xen_calls_free(&s->calls, ops);
	return rc;
}

/* ---- vCPUs ---- */

static int localise_context(struct xen_sink *s, struct vcpu_guest_context *c, uint64_t start_frame,
			    unsigned id, struct pgr_error *err)
{
	uint64_t frame;
	unsigned i;
	int rc;

	if (c->gdt_ents > FIRST_RESERVED_GDT_ENTRY)
		return pgr_fail(err, -EPROTO, "vCPU %u has %lu GDT entries", id, c->gdt_ents);
	for (i = 0; i < (c->gdt_ents + 511) / 512; i++) {
		rc = xen_sink_page(s, c->gdt_frames[i], PGR_TYPE_ORDINARY, "a page of a GDT",
				   &frame, err);
		if (rc)
			return rc;
		c->gdt_frames[i] = frame;
	}
	rc = xen_sink_page(s, xen_cr3_to_pfn(c->ctrlreg[3]), PGR_TYPE_L4, "a kernel's top table",
			   &frame, err);
	if (rc)
		return rc;
	c->ctrlreg[3] = xen_pfn_to_cr3(frame);
	if (c->ctrlreg[1]) {
		rc = xen_sink_page(s, xen_cr3_to_pfn(c->ctrlreg[1]), PGR_TYPE_L4,
				   "a user's top table", &frame, err);
		if (rc)
			return rc;
		c->ctrlreg[1] = xen_pfn_to_cr3(frame);
	}
	if (id == 0) {
		if (c->user_regs.rdx != s->in.start_info_pfn)
			return pgr_fail(err, -EPROTO,
					"vCPU 0 did not suspend with start_info as its argument");
		c->user_regs.rdx = start_frame;
		/* What its suspend hypercall returns: 0 is "in a new domain". */
		c->user_regs.rax = 0;
	}
	return 0;
}

static int set_context(struct xen_sink *s, const struct vcpu_guest_context *c, unsigned id,
		       struct pgr_error *err)
{
	struct vcpu_guest_context *shared = xen_calls_alloc(&s->calls, sizeof(*shared));
	struct xen_domctl op = {.cmd = XEN_DOMCTL_setvcpucontext, .domain = (domid_t)s->made.domid};
	int rc;

	if (!shared)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU");
	*shared = *c;
	op.u.vcpucontext.vcpu = id;
	set_xen_guest_handle(op.u.vcpucontext.ctxt, shared);
	rc = xen_domctl(&s->calls, &op);
	xen_calls_free(&s->calls, shared);
	if (rc)
		return pgr_fail_errno(err, rc, "the hypervisor refuses the registers of vCPU %u",
				      id);
	return 0;
}

static int set_extended(struct xen_sink *s, const struct xen_vcpu_in *v, unsigned id,
			struct pgr_error *err)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_set_ext_vcpucontext,
				.domain = (domid_t)s->made.domid};
	int rc;

	op.u.ext_vcpucontext = v->extended;
	op.u.ext_vcpucontext.vcpu = id;
	rc = xen_domctl(&s->calls, &op);
	if (rc)
		return pgr_fail_errno(err, rc,
				      "the hypervisor refuses the extended state of vCPU %u", id);
	return 0;
}

static int set_xsave(struct xen_sink *s, const struct xen_vcpu_in *v, unsigned id,
		     struct pgr_error *err)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_setvcpuextstate,
				.domain = (domid_t)s->made.domid};
	uint64_t *shared = xen_calls_alloc(&s->calls, v->xsave_bytes);
	int rc;

	if (!shared)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU's XSAVE state");
	memcpy(shared, v->xsave, v->xsave_bytes);
	op.u.vcpuextstate.vcpu = id;
	op.u.vcpuextstate.size = v->xsave_bytes;
	set_xen_guest_handle(op.u.vcpuextstate.buffer, shared);
	rc = xen_domctl(&s->calls, &op);
	xen_calls_free(&s->calls, shared);
	if (rc)
		return pgr_fail_errno(
			err, rc,
			"the hypervisor refuses the XSAVE state of vCPU %u: does this processor lack a feature that the guest uses?",
			id);
	return 0;
}

static int set_msrs(struct xen_sink *s, const struct xen_vcpu_in *v, unsigned id,
		    struct pgr_error *err)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_set_vcpu_msrs, .domain = (domid_t)s->made.domid};
	xen_domctl_vcpu_msr_t *shared = xen_calls_alloc(&s->calls, v->nr_msrs * sizeof(*shared));
	uint32_t i;
	int rc;

	if (!shared)
		return pgr_fail(err, -ENOMEM, "no memory for a vCPU's MSRs");
	for (i = 0; i < v->nr_msrs; i++) {
		shared[i].index = v->msrs[i].index;
		shared[i].value = v->msrs[i].value;
	}
	op.u.vcpu_msrs.vcpu = id;
	op.u.vcpu_msrs.msr_count = v->nr_msrs;
	set_xen_guest_handle(op.u.vcpu_msrs.msrs, shared);
	rc = xen_domctl(&s->calls, &op);
	xen_calls_free(&s->calls, shared);
	if (rc)
		return pgr_fail_errno(err, rc, "the hypervisor refuses MSR %#x of vCPU %u",
				      op.u.vcpu_msrs.msr_count < v->nr_msrs
					      ? v->msrs[op.u.vcpu_msrs.msr_count].index
					      : 0,
				      id);
	return 0;
}

static int set_vcpu(struct xen_sink *s, struct xen_vcpu_in *v, unsigned id, uint64_t start_frame,
		    struct pgr_error *err)
{
	int rc = localise_context(s, &v->context, start_frame, id, err);

	if (!rc)
		rc = set_context(s, &v->context, id, err);
	if (!rc && v->has_extended)
		rc = set_extended(s, v, id, err);
	if (!rc && v->xsave)
		rc = set_xsave(s, v, id, err);
	if (!rc && v->msrs)
		rc = set_msrs(s, v, id, err);
	return rc;
}

static int set_clock(struct xen_sink *s, struct pgr_error *err)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_settscinfo, .domain = (domid_t)s->made.domid};
	int rc;

	op.u.tsc_info.tsc_mode = s->in.tsc.mode;
	op.u.tsc_info.gtsc_khz = s->in.tsc.khz;
	op.u.tsc_info.elapsed_nsec = s->in.tsc.nsec;
	op.u.tsc_info.incarnation = s->in.tsc.incarnation;
	rc = xen_domctl(&s->calls, &op);
	if (rc)
		return pgr_fail_errno(err, rc, "the hypervisor refuses the guest's clock");
	return 0;
}

int xen_sink_assemble(struct xen_sink *s, struct pgr_error *err)
{
	struct xen_domctl_getdomaininfo info;
	uint64_t start_frame = 0;
	unsigned i;
	int rc = check_complete(s, err);

	if (rc)
		return rc;
	rc = xen_domain_info(&s->calls, s->made.domid, &info);
	if (rc)
		return pgr_fail_errno(err, rc, "the new domain %u is gone", s->made.domid);
	/* First: it changes which frames the tables have to name. */
	rc = xen_shared_pages_place(s, err);
	if (!rc)
		rc = localise_tables(s, err);
	if (!rc)
		rc = fill_p2m(s, err);
	if (!rc)
		rc = fill_start_info(s, info.shared_info_frame, &start_frame, err);
	if (!rc)
		rc = fill_shared_info(s, info.shared_info_frame, err);
	if (!rc)
		rc = pin_tables(s, err);
	for (i = 0; i < PGR_VCPUS_MAX && !rc; i++)
		if (s->in.vcpu[i])
			rc = set_vcpu(s, s->in.vcpu[i], i, start_frame, err);
	if (!rc && s->in.has_tsc)
		rc = set_clock(s, err);
	return rc;
}
