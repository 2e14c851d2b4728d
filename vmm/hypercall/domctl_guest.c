/* SPDX-License-Identifier: MIT */
/* See domctl_guest.h. What they are given is dom0's, and is checked as if it were a guest's: it becomes state of one. */
#include "vmm/hypercall/domctl_guest.h"

#include <xen/sched.h>

#include "protocol-spec/dirty_log.h"
#include "vmm/cpu/policy.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/hypercall/sysctl_cpu.h"
#include "vmm/hypercall/table.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define PAGE_INFO_AT_ONCE 64u
#define MSRS_MOST	  64u

/* The TSC is never emulated: the modes in which that is right. (xen's asm-x86/time.h is not public.) */
#define TSC_DEFAULT 0u
#define TSC_NATIVE  2u

/* ---- making ---- */

long domctl_create(struct xen_domctl *op)
{
	const struct xen_domctl_createdomain *c = &op->u.createdomain;
	domid_t wanted = op->domain < DOMID_FIRST_RESERVED ? op->domain : 0;
	struct domain *d;
	long rc;

	/* PV guests without any extra, and grants of version 1 (or the best that there is). */
	if (c->flags || c->iommu_opts || c->vmtrace_size || c->arch.emulation_flags ||
	    c->arch.misc_flags & ~(uint32_t)XEN_X86_MSR_RELAXED || c->max_vcpus == 0 ||
	    c->max_vcpus > MAX_VCPUS || c->cpupool_id != 0)
		return -EINVAL;
	rc = domain_create(wanted ? wanted : DOMID_INVALID, false, c->max_grant_frames,
			   c->max_maptrack_frames, &d);
	if (rc)
		return rc;
	d->max_vcpus = c->max_vcpus;
	memcpy(d->uuid, c->handle, sizeof(d->uuid));
	op->domain = d->id;
	return 0;
}

static long hypercall_page(struct domain *d, uint64_t gmfn)
{
	if (mfn_get_both(MFN(gmfn), d, TYPE_WRITABLE))
		return -EACCES;
	hypercall_page_fill(mfn_to_ptr(MFN(gmfn)));
	frame_put_both(mfn_frame(MFN(gmfn)));
	return 0;
}

/* ---- vCPUs ---- */

static long set_vcpu_context(struct domain *d, const struct xen_domctl_vcpucontext *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);
	struct vcpu_guest_context context;
	long rc;

	if (!v)
		return -EINVAL;
	if (from_guest(&context, op->ctxt, 0))
		return -EFAULT;
	/* Stopped, so that it does not do the same to another of its vCPUs. */
	domain_pause(d);
	rc = vcpu_set_context(v, &context);
	if (!rc)
		v->down = !(context.flags & VGCF_online);
	/* Who builds a domain clears its shared page. */
	if (!rc && v->id == 0)
		domain_update_wallclock(d);
	domain_unpause(d);
	return rc;
}

static long ext_state(struct domain *d, struct xen_domctl_vcpuextstate *op, bool set)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);
	uint64_t bytes = fpu_extended_bytes();
	long rc = 0;

	if (!v)
		return -ESRCH;
	if (!set) {
		op->xfeature_mask = cpu_features.xsave ? cpu_features.xcr0 : 0;
		if (op->size && op->size < bytes)
			return -EINVAL;
	}
	if (!set && (!op->size || !bytes)) {
		op->size = bytes;
		return 0;
	}
	domain_pause(d);
	rc = set ? fpu_set_extended(v, GUEST_VA(op->buffer.p), op->size)
		 : fpu_get_extended(v, GUEST_VA(op->buffer.p));
	domain_unpause(d);
	if (!set)
		op->size = bytes;
	return rc;
}

/* The MSRs that PV guests may have values in are none that we have: those of AMD's breakpoint masks. Zeroes can be given to us. */
static long vcpu_msrs(struct domain *d, struct xen_domctl_vcpu_msrs *op, bool set)
{
	if (!domain_vcpu(d, op->vcpu))
		return -EINVAL;
	for (uint32_t i = 0; set && i < op->msr_count; i++) {
		struct xen_domctl_vcpu_msr m;

		if (i == MSRS_MOST || from_guest(&m, op->msrs, i))
			return i == MSRS_MOST ? -E2BIG : -EFAULT;
		if (m.value || m.reserved) {
			op->msr_count = i;
			return -EINVAL;
		}
	}
	if (!set)
		op->msr_count = 0;
	return 0;
}

/* It shut down to be suspended and goes on here after all. */
static long resume(struct domain *d)
{
	if (!d->shut_down || d->shutdown_code != SHUTDOWN_suspend)
		return -EINVAL;
	domain_pause(d);
	d->shut_down = false;
	d->shutdown_code = 0;
	domain_unpause(d);
	return 0;
}

static long ext_vcpu_context(struct domain *d, struct xen_domctl_ext_vcpucontext *op, bool set)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);

	if (!v)
		return -ESRCH;
	if (!set) {
		uint32_t vcpu = op->vcpu;

		memset(op, 0, sizeof(*op));
		op->vcpu = vcpu;
		op->size = sizeof(*op);
		op->syscall32_callback_eip = v->syscall32_entry;
		op->sysenter_callback_eip = v->sysenter_entry;
		op->syscall32_disables_events = v->syscall32_disables_events;
		op->sysenter_disables_events = v->sysenter_disables_events;
		return 0;
	}
	if (op->size < offsetof(struct xen_domctl_ext_vcpucontext, mcg_cap) ||
	    !guest_address_ok(op->syscall32_callback_eip) ||
	    !guest_address_ok(op->sysenter_callback_eip))
		return -EINVAL;
	v->syscall32_entry = op->syscall32_callback_eip;
	v->sysenter_entry = op->sysenter_callback_eip;
	v->syscall32_disables_events = op->syscall32_disables_events;
	v->sysenter_disables_events = op->sysenter_disables_events;
	return 0;
}

/* Buttons that a PV guest does not have are refused as Xen does. */
static long send_trigger(struct domain *d, const struct xen_domctl_sendtrigger *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);

	if (!v || op->trigger == XEN_DOMCTL_SENDTRIGGER_POWER ||
	    op->trigger == XEN_DOMCTL_SENDTRIGGER_SLEEP)
		return -EINVAL;
	if (op->trigger != XEN_DOMCTL_SENDTRIGGER_NMI)
		return -ENOSYS;
	vcpu_send_nmi(v);
	return 0;
}

/* ---- memory ---- */

/* How each frame is used, as those who save a domain want to know: in place of its number, with the number's low bits dropped. */
static uint64_t page_info(struct domain *d, uint64_t gmfn)
{
	struct frame *f = mfn_valid(MFN(gmfn)) ? mfn_frame(MFN(gmfn)) : NULL;
	uint64_t word, type;

	if (!f || !frame_get(f, d))
		return XEN_DOMCTL_PFINFO_XTAB;
	word = READ_ONCE(f->type);
	/* One that is PARTIAL is none yet, or no longer: nobody walks it. */
	type = type_of(word) >= TYPE_L1 && type_of(word) <= TYPE_L4 && (word & TYPE_COUNT_MASK)
		       ? (uint64_t)(type_of(word) - TYPE_L1 + 1) << XEN_DOMCTL_PFINFO_LTAB_SHIFT
		       : 0;
	if (type && (word & TYPE_PINNED))
		type |= XEN_DOMCTL_PFINFO_LPINTAB;
	frame_put(f);
	return type;
}

static long page_infos(struct domain *d, struct xen_domctl_getpageframeinfo3 *op)
{
	for (uint64_t i = 0; i < op->num; i++) {
		xen_pfn_t value;

		if (from_guest(&value, op->array, i))
			return -EFAULT;
		value = page_info(d, value);
		if (to_guest(op->array, i, &value))
			return -EFAULT;
		if (i % PAGE_INFO_AT_ONCE == PAGE_INFO_AT_ONCE - 1 && i + 1 < op->num &&
		    hypercall_preempt_check()) {
			op->num -= i + 1;
			op->array.p += i + 1;
			return -ERESTART;
		}
	}
	return 0;
}

/* ---- dirty pages ---- */

_Static_assert(PGR_LOG_PART_PFNS == LOG_PFNS && PGR_LOG_PART_NONE == LOG_NONE,
	       "a page of the log is a part");

static long shadow_on(struct domain *d, bool log)
{
	/* Frames' numbers are the guest's to say, but not at any cost. */
	uint64_t most = 4 * d->pages_max + LOG_PFNS;
	uint64_t pfns = MAX(d->pages_max, MIN(READ_ONCE(d->shared_info->arch.max_pfn), most));
	long rc;

	if (d->shadow)
		return -EINVAL;
	if (pfns > LOG_PFNS_MOST)
		return -E2BIG;
	domain_pause(d);
	rc = shadow_enable(d, log, d->shadow_wish ? d->shadow_wish : shadow_pages_default(d), pfns);
	domain_unpause(d);
	return rc;
}

static long shadow_off(struct domain *d)
{
	domain_pause(d);
	shadow_disable(d);
	domain_unpause(d);
	return 0;
}

/* See protocol-spec/dirty_log.md. */
static long shadow_read_part(struct domain *d, struct xen_domctl_shadow_op *op)
{
	const uint64_t *log;
	long rc = 0;

	if (!d->shadow || op->pages != PGR_LOG_PART_PFNS)
		return -EINVAL;
	if (op->mb == 0) {
		shadow_log_begin(d);
		rc = shadow_log_protect(d);
	}
	log = shadow_log_old(d, op->mb);
	if (rc || !log)
		return rc ? rc : -EINVAL;
	rc = copy_to_guest(GUEST_VA((uint64_t)op->dirty_bitmap.p), log, PAGE_SIZE);
	if (rc)
		return rc;
	shadow_log_counts(d, true, &op->stats.fault_count, &op->stats.dirty_count);
	op->mb = shadow_log_next(d, op->mb);
	return 0;
}

static long shadow_read(struct domain *d, struct xen_domctl_shadow_op *op, bool clean)
{
	uint64_t bytes = (op->pages + 7) / 8, n = 0;
	long rc = 0;

	if (clean && op->mode & PGR_LOG_PART)
		return shadow_read_part(d, op);
	if (!d->shadow || op->pages > LOG_PFNS_MOST ||
	    op->mode & ~(uint32_t)XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL)
		return -EINVAL;
	if (clean) {
		shadow_log_begin(d);
		rc = shadow_log_protect(d);
		if (rc)
			return rc;
	}
	for (; op->dirty_bitmap.p && n * PAGE_SIZE < bytes; n++) {
		const uint64_t *log = clean ? shadow_log_old(d, n) : shadow_log_now(d, n);
		uint64_t part = MIN(bytes - n * PAGE_SIZE, PAGE_SIZE);
		guest_va_t at = GUEST_VA((uint64_t)op->dirty_bitmap.p + n * PAGE_SIZE);

		rc = log ? copy_to_guest(at, log, part) : clear_guest(at, part);
		if (rc)
			break;
	}
	shadow_log_counts(d, clean, &op->stats.fault_count, &op->stats.dirty_count);
	if (clean)
		shadow_log_end(d, n, rc);
	return rc;
}

static long shadow_op(struct domain *d, struct xen_domctl_shadow_op *op)
{
	const unsigned pages_of_mb = 20 - PAGE_SHIFT;

	switch (op->op) {
	case XEN_DOMCTL_SHADOW_OP_OFF:
		return shadow_off(d);
	case XEN_DOMCTL_SHADOW_OP_ENABLE:
		return op->mode == XEN_DOMCTL_SHADOW_ENABLE_LOG_DIRTY ? shadow_on(d, true)
								      : -EINVAL;
	case XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY:
		return shadow_on(d, true);
	case XEN_DOMCTL_SHADOW_OP_ENABLE_TEST:
		return shadow_on(d, false);
	case XEN_DOMCTL_SHADOW_OP_CLEAN:
		return shadow_read(d, op, true);
	case XEN_DOMCTL_SHADOW_OP_PEEK:
		return shadow_read(d, op, false);
	case XEN_DOMCTL_SHADOW_OP_GET_ALLOCATION:
		op->mb = (uint32_t)((shadow_pages(d) + (1u << pages_of_mb) - 1) >> pages_of_mb);
		return 0;
	case XEN_DOMCTL_SHADOW_OP_SET_ALLOCATION:
		d->shadow_wish = (uint64_t)op->mb << pages_of_mb;
		return d->shadow ? shadow_resize(d, d->shadow_wish) : 0;
	default:
		return -EINVAL;
	}
}

/* ---- rights ---- */

static long permit(struct rangeset *s, const struct rangeset *mine, uint64_t first, uint64_t nr,
		   bool allow)
{
	if (!nr || first + nr - 1 < first)
		return -EINVAL;
	if (!rangeset_contains(mine, first, first + nr - 1))
		return -EPERM;
	return allow ? rangeset_add(s, first, first + nr - 1)
		     : rangeset_remove(s, first, first + nr - 1);
}

/* ---- time ---- */

static long tsc_info(struct domain *d, struct xen_domctl_tsc_info *op, bool set)
{
	if (set)
		return op->tsc_mode == TSC_DEFAULT || op->tsc_mode == TSC_NATIVE ? 0 : -EOPNOTSUPP;
	*op = (struct xen_domctl_tsc_info){.tsc_mode = TSC_NATIVE,
					   .gtsc_khz = (uint32_t)d->tsc_khz};
	return 0;
}

long domctl_guest(struct domain *d, struct xen_domctl *op, bool *answers)
{
	const struct domain *self = current->domain;

	/* None of these is for a domain that is ending, but its end. */
	if (d == self || (d->dying && op->cmd != XEN_DOMCTL_destroydomain))
		return -EINVAL;
	*answers = true;
	switch (op->cmd) {
	case XEN_DOMCTL_destroydomain:
		return domain_destroy(d);
	case XEN_DOMCTL_hypercall_init:
		return hypercall_page(d, op->u.hypercall_init.gmfn);
	case XEN_DOMCTL_setvcpucontext:
		return set_vcpu_context(d, &op->u.vcpucontext);
	case XEN_DOMCTL_getvcpuextstate:
	case XEN_DOMCTL_setvcpuextstate:
		return ext_state(d, &op->u.vcpuextstate, op->cmd == XEN_DOMCTL_setvcpuextstate);
	case XEN_DOMCTL_get_vcpu_msrs:
	case XEN_DOMCTL_set_vcpu_msrs:
		return vcpu_msrs(d, &op->u.vcpu_msrs, op->cmd == XEN_DOMCTL_set_vcpu_msrs);
	case XEN_DOMCTL_resumedomain:
		return resume(d);
	case XEN_DOMCTL_get_ext_vcpucontext:
	case XEN_DOMCTL_set_ext_vcpucontext:
		return ext_vcpu_context(d, &op->u.ext_vcpucontext,
					op->cmd == XEN_DOMCTL_set_ext_vcpucontext);
	case XEN_DOMCTL_sendtrigger:
		return send_trigger(d, &op->u.sendtrigger);
	case XEN_DOMCTL_get_cpu_policy:
		return cpu_policy_get(d, &op->u.cpu_policy);
	case XEN_DOMCTL_set_cpu_policy:
		return cpu_policy_set(d, &op->u.cpu_policy);
	case XEN_DOMCTL_gettscinfo:
	case XEN_DOMCTL_settscinfo:
		return tsc_info(d, &op->u.tsc_info, op->cmd == XEN_DOMCTL_settscinfo);
	case XEN_DOMCTL_getpageframeinfo3:
		return page_infos(d, &op->u.getpageframeinfo3);
	case XEN_DOMCTL_shadow_op:
		return shadow_op(d, &op->u.shadow_op);
	case XEN_DOMCTL_setnodeaffinity:
		return 0; /* there is one node */
	case XEN_DOMCTL_getnodeaffinity:
		return bitmap_to_guest(&op->u.nodeaffinity.nodemap, 1);
	case XEN_DOMCTL_ioport_permission:
		return permit(&d->io_ports, &self->io_ports, op->u.ioport_permission.first_port,
			      op->u.ioport_permission.nr_ports,
			      op->u.ioport_permission.allow_access);
	case XEN_DOMCTL_iomem_permission:
		return permit(&d->io_frames, &self->io_frames, op->u.iomem_permission.first_mfn,
			      op->u.iomem_permission.nr_mfns, op->u.iomem_permission.allow_access);
	case XEN_DOMCTL_irq_permission:
		return permit(&d->irqs, &self->irqs, op->u.irq_permission.pirq, 1,
			      op->u.irq_permission.allow_access);
	default:
		return -ENOSYS;
	}
}
