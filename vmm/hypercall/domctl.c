/* SPDX-License-Identifier: MIT */
/* The toolstack's operations on one domain; only dom0 has them. */
#include "vmm/hypercall/domctl.h"

#include "vmm/domain/vcpu_time.h"
#include "vmm/hypercall/domctl_guest.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

#define PAGES_PER_KB_SHIFT (PAGE_SHIFT - 10)

/* One at a time: each may then look at a domain's counters and change them. */
static spinlock_t domctl_lock = SPINLOCK_INIT;

/* ---- shared with sysctl ---- */

int bitmap_from_guest(const struct xenctl_bitmap *b, uint64_t *bits)
{
	unsigned nr = MIN(b->nr_bits, 64u);

	*bits = 0;
	if (copy_from_guest(bits, GUEST_VA(b->bitmap.p), (nr + 7) / 8))
		return -EFAULT;
	if (nr < 64)
		*bits &= (1ull << nr) - 1;
	return 0;
}

int bitmap_to_guest(const struct xenctl_bitmap *b, uint64_t bits)
{
	unsigned bytes = MIN(b->nr_bits, 64u) / 8 + (b->nr_bits % 8 && b->nr_bits < 64);
	uint64_t all = ((uint64_t)b->nr_bits + 7) / 8;

	if (copy_to_guest(GUEST_VA(b->bitmap.p), &bits, bytes))
		return -EFAULT;
	/* No tool has a map of more than a page; what is behind one's end is not ours to write. */
	if (all > PAGE_SIZE)
		return -EFAULT;
	return clear_guest(GUEST_VA((uint64_t)b->bitmap.p + bytes), all - bytes);
}

static uint64_t running_time(struct vcpu *v)
{
	struct vcpu_runstate_info r;

	vcpu_runstate(v, &r);
	return r.time[RUNSTATE_running];
}

void domain_info(struct domain *d, struct xen_domctl_getdomaininfo *out)
{
	bool blocked = true, running = false;

	memset(out, 0, sizeof(*out));
	out->domain = d->id;
	out->max_vcpu_id = XEN_INVALID_MAX_VCPU_ID;
	for (unsigned i = 0; i < MAX_VCPUS; i++) {
		struct vcpu *v = d->vcpu[i];

		if (!v)
			continue;
		out->max_vcpu_id = i;
		out->cpu_time += running_time(v);
		if (v->down)
			continue;
		out->nr_online_vcpus++;
		blocked = blocked && v->blocked;
		running = running || v->running;
	}
	out->flags = (d->dying ? XEN_DOMINF_dying : 0) | (d->shut_down ? XEN_DOMINF_shutdown : 0) |
		     (d->pause_count ? XEN_DOMINF_paused : 0) | (blocked ? XEN_DOMINF_blocked : 0) |
		     (running ? XEN_DOMINF_running : 0) |
		     (uint32_t)d->shutdown_code << XEN_DOMINF_shutdownshift;
	out->tot_pages = d->pages;
	out->max_pages = d->pages_max;
	out->shared_info_frame = d->dying ? MFN_NONE.v : ptr_to_mfn(d->shared_info).v;
	memcpy(out->handle, d->uuid, sizeof(out->handle));
}

/* ---- vCPUs ---- */

static long get_vcpu_info(struct domain *d, struct xen_domctl_getvcpuinfo *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);

	if (!v)
		return -ESRCH;
	op->online = !v->down;
	op->blocked = v->blocked;
	op->running = v->running;
	op->cpu_time = running_time(v);
	op->cpu = v->processor->id;
	return 0;
}

/* Of another domain only: a vCPU that waited for one of its own domain, which waits for it, would wait for ever. */
static long get_vcpu_context(struct domain *d, const struct xen_domctl_vcpucontext *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);
	struct vcpu_guest_context context;

	if (d == current->domain)
		return -EINVAL;
	if (!v)
		return -ESRCH;
	if (!v->initialised)
		return -ENODATA;
	__atomic_fetch_add(&v->pause_count, 1, __ATOMIC_SEQ_CST);
	vcpu_sleep_sync(v);
	memset(&context, 0, sizeof(context));
	vcpu_get_context(v, &context);
	__atomic_fetch_sub(&v->pause_count, 1, __ATOMIC_SEQ_CST);
	vcpu_wake(v);
	return to_guest(op->ctxt, 0, &context);
}

static long max_vcpus(struct domain *d, unsigned max)
{
	struct vcpu *v;
	long rc = 0;

	if (d == current->domain || d->dying || max == 0 || max > d->max_vcpus || max < d->nr_vcpus)
		return -EINVAL;
	for (unsigned id = 0; id < max && !rc; id++) {
		if (!d->vcpu[id])
			rc = vcpu_create(d, id, &v);
	}
	return rc;
}

/* There is no soft affinity: all CPUs that the hard one allows are as good. */
static long set_affinity(struct domain *d, struct xen_domctl_vcpuaffinity *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);
	uint64_t hard, soft;

	if (!v)
		return -EINVAL;
	if (op->flags & XEN_VCPUAFFINITY_FORCE)
		v->affinity_saved = 0;
	hard = v->affinity;
	if (op->flags & XEN_VCPUAFFINITY_HARD) {
		if (bitmap_from_guest(&op->cpumap_hard, &hard))
			return -EFAULT;
		if (!(hard & all_cpus()))
			return -EINVAL;
		vcpu_set_affinity(v, hard);
		if (bitmap_to_guest(&op->cpumap_hard, hard & all_cpus()))
			return -EFAULT;
	}
	if (op->flags & XEN_VCPUAFFINITY_SOFT) {
		if (bitmap_from_guest(&op->cpumap_soft, &soft))
			return -EFAULT;
		return bitmap_to_guest(&op->cpumap_soft, soft & hard & all_cpus());
	}
	return 0;
}

static long get_affinity(struct domain *d, const struct xen_domctl_vcpuaffinity *op)
{
	struct vcpu *v = domain_vcpu(d, op->vcpu);

	if (!v)
		return -EINVAL;
	if (op->flags & XEN_VCPUAFFINITY_HARD && bitmap_to_guest(&op->cpumap_hard, v->affinity))
		return -EFAULT;
	if (op->flags & XEN_VCPUAFFINITY_SOFT && bitmap_to_guest(&op->cpumap_soft, ~0ull))
		return -EFAULT;
	return 0;
}

static long scheduler_op(struct domain *d, struct xen_domctl_scheduler_op *op)
{
	unsigned weight, cap;

	if (op->sched_id != XEN_SCHEDULER_CREDIT)
		return -EINVAL;
	sched_get_share(d, &weight, &cap);
	switch (op->cmd) {
	case XEN_DOMCTL_SCHEDOP_getinfo:
		op->u.credit.weight = (uint16_t)weight;
		op->u.credit.cap = (uint16_t)cap;
		return 0;
	case XEN_DOMCTL_SCHEDOP_putinfo:
		/* The interface's "leave it": weight 0, cap all ones. */
		if (op->u.credit.weight)
			weight = op->u.credit.weight;
		if (op->u.credit.cap != UINT16_MAX)
			cap = op->u.credit.cap;
		sched_set_share(d, weight, cap);
		return 0;
	default:
		return -EINVAL;
	}
}

/* ---- domains ---- */

/* Which domain an operation means: the one of that number; getdomaininfo, with which tools go through all: the next. */
static struct domain *named(const struct xen_domctl *op)
{
	domid_t id = DOMID_INVALID;

	if (op->domain >= DOMID_FIRST_RESERVED && op->domain != DOMID_SELF)
		return NULL;
	if (op->cmd != XEN_DOMCTL_getdomaininfo || op->domain == DOMID_SELF)
		return domain_get(op->domain);
	spin_lock(&domain_list_lock);
	for (const struct domain *d = domain_list; d; d = d->next) {
		if (!d->idle && d->id >= op->domain && d->id < id)
			id = d->id;
	}
	spin_unlock(&domain_list_lock);
	return id == DOMID_INVALID ? NULL : domain_get(id);
}

/* *answers: the structure is written back when all went well. */
static long perform(struct domain *d, struct xen_domctl *op, bool *answers)
{
	switch (op->cmd) {
	case XEN_DOMCTL_getdomaininfo:
		*answers = true;
		op->domain = d->id;
		domain_info(d, &op->u.getdomaininfo);
		return 0;
	case XEN_DOMCTL_getvcpuinfo:
		*answers = true;
		return get_vcpu_info(d, &op->u.getvcpuinfo);
	case XEN_DOMCTL_getvcpucontext:
		return get_vcpu_context(d, &op->u.vcpucontext);
	case XEN_DOMCTL_max_vcpus:
		return max_vcpus(d, op->u.max_vcpus.max);
	case XEN_DOMCTL_max_mem:
		d->pages_max = op->u.max_mem.max_memkb >> PAGES_PER_KB_SHIFT;
		return 0;
	case XEN_DOMCTL_pausedomain:
		if (d == current->domain)
			return -EINVAL;
		domain_pause(d);
		return 0;
	case XEN_DOMCTL_unpausedomain:
		if (!d->pause_count)
			return -EINVAL;
		domain_unpause(d);
		return 0;
	case XEN_DOMCTL_scheduler_op:
		*answers = true;
		return scheduler_op(d, &op->u.scheduler_op);
	case XEN_DOMCTL_setvcpuaffinity:
		return set_affinity(d, &op->u.vcpuaffinity);
	case XEN_DOMCTL_getvcpuaffinity:
		return get_affinity(d, &op->u.vcpuaffinity);
	case XEN_DOMCTL_setdomainhandle:
		memcpy(d->uuid, op->u.setdomainhandle.handle, sizeof(d->uuid));
		return 0;
	case XEN_DOMCTL_settimeoffset:
		d->time_offset = op->u.settimeoffset.time_offset_seconds;
		domain_update_wallclock(d);
		return 0;
	case XEN_DOMCTL_get_address_size:
		*answers = true;
		op->u.address_size.size = 64;
		return 0;
	case XEN_DOMCTL_set_address_size:
		return op->u.address_size.size == 64 ? 0 : -EINVAL;
	case XEN_DOMCTL_gethvmcontext:
	case XEN_DOMCTL_gethvmcontext_partial:
	case XEN_DOMCTL_sethvmcontext:
		return -EINVAL;
	default:
		return domctl_guest(d, op, answers);
	}
}

long do_domctl(arg_t arg)
{
	struct xen_domctl op;
	struct domain *d;
	bool answers = false;
	long rc;

	if (!current->domain->privileged)
		return -EPERM;
	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.interface_version != XEN_DOMCTL_INTERFACE_VERSION)
		return -EACCES;
	if (op.cmd == XEN_DOMCTL_createdomain)
		d = NULL;
	else if (!(d = named(&op)))
		return -ESRCH;
	if (spin_trylock(&domctl_lock)) {
		answers = !d;
		rc = d ? perform(d, &op, &answers) : domctl_create(&op);
		spin_unlock(&domctl_lock);
	} else {
		rc = -ERESTART;
	}
	if (d)
		domain_put(d);
	/* One that goes on later has its progress in there, some that fail have where. */
	if (rc != -EFAULT && answers && copy_to_guest(GUEST_VA(arg), &op, sizeof(op)))
		rc = -EFAULT;
	return rc;
}
