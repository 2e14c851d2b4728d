/* SPDX-License-Identifier: MIT */
/* The toolstack's operations on the whole host; only dom0 has them. */
#include "vmm/hypercall/debug_key.h"
#include "vmm/hypercall/domctl.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/hypercall/sysctl_cpu.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/heap.h"
#include "vmm/sched/sched.h"

#define CHUNK	    1024u
#define KEYS_MAX    64u
#define DEVICES_MAX 1024u
#define SLICE_MS    (uint32_t)(SCHED_SLICE_NS / 1000000)
#define NEAR	    10u /* ACPI's distance of a node to itself */

static long read_console(struct xen_sysctl_readconsole *op)
{
	uint32_t index = op->incremental ? op->index : 0, done = 0;
	char part[CHUNK];

	while (done < op->count) {
		size_t n = log_read(&index, part, MIN(op->count - done, CHUNK));

		if (n == 0)
			break;
		if (copy_to_guest(GUEST_VA((uint64_t)op->buffer.p + done), part, n))
			return -EFAULT;
		done += (uint32_t)n;
	}
	if (op->clear)
		log_clear();
	op->count = done;
	op->index = index;
	return 0;
}

static void physinfo(struct xen_sysctl_physinfo *op)
{
	memset(op, 0, sizeof(*op));
	physinfo_cpus(op);
	op->nr_nodes = 1;
	op->capabilities =
		XEN_SYSCTL_PHYSCAP_pv | XEN_SYSCTL_PHYSCAP_shadow | XEN_SYSCTL_PHYSCAP_gnttab_v1;
	op->total_pages = ram_frames;
	op->free_pages = heap_free_frames();
	op->max_mfn = frame_max - 1;
}

static long domain_info_list(struct xen_sysctl_getdomaininfolist *op)
{
	struct xen_domctl_getdomaininfo info;
	uint32_t n = 0;
	long rc = 0;

	spin_lock(&domain_list_lock);
	for (struct domain *d = domain_list; d && n < op->max_domains; d = d->next) {
		if (d->idle || d->id < op->first_domain)
			continue;
		domain_info(d, &info);
		if (to_guest(op->buffer, n, &info)) {
			rc = -EFAULT;
			break;
		}
		n++;
	}
	spin_unlock(&domain_list_lock);
	op->num_domains = n;
	return rc;
}

static long debug_keys(const struct xen_sysctl_debug_keys *op)
{
	char keys[KEYS_MAX];

	if (op->nr_keys > KEYS_MAX)
		return -E2BIG;
	if (copy_from_guest(keys, GUEST_VA(op->keys.p), op->nr_keys))
		return -EFAULT;
	for (uint32_t i = 0; i < op->nr_keys; i++)
		debug_key(keys[i]);
	return 0;
}

static long cpu_info(struct xen_sysctl_getcpuinfo *op)
{
	uint32_t n = MIN(op->max_cpus, nr_cpus);

	for (uint32_t i = 0; i < n; i++) {
		struct vcpu_runstate_info idle;
		struct xen_sysctl_cpuinfo out;

		vcpu_runstate(pcpus[i].idle, &idle);
		out.idletime = idle.time[RUNSTATE_running];
		if (to_guest(op->info, i, &out))
			return -EFAULT;
	}
	op->nr_cpus = n;
	return 0;
}

/* One node with everything. */
static long numa_info(struct xen_sysctl_numainfo *op)
{
	struct xen_sysctl_meminfo memory = {
		.memsize = ram_frames << PAGE_SHIFT,
		.memfree = heap_free_frames() << PAGE_SHIFT,
	};
	uint32_t distance = NEAR;

	if (op->num_nodes && op->meminfo.p && to_guest(op->meminfo, 0, &memory))
		return -EFAULT;
	if (op->num_nodes && op->distance.p && to_guest(op->distance, 0, &distance))
		return -EFAULT;
	op->num_nodes = 1;
	return 0;
}

static long pci_topology(struct xen_sysctl_pcitopoinfo *op)
{
	uint32_t n = MIN(op->num_devs, DEVICES_MAX), node = 0;

	if (!op->nodes.p)
		return -EINVAL;
	for (uint32_t i = 0; i < n; i++) {
		if (to_guest(op->nodes, i, &node))
			return -EFAULT;
	}
	op->num_devs = n;
	return 0;
}

/* One pool with all CPUs. */
static long pool_op(struct xen_sysctl_cpupool_op *op)
{
	switch (op->op) {
	case XEN_SYSCTL_CPUPOOL_OP_INFO:
		if (op->cpupool_id != 0)
			return -ENOENT;
		op->sched_id = XEN_SCHEDULER_CREDIT;
		op->n_dom = 0;
		spin_lock(&domain_list_lock);
		for (const struct domain *d = domain_list; d; d = d->next)
			op->n_dom += !d->idle;
		spin_unlock(&domain_list_lock);
		return bitmap_to_guest(&op->cpumap, all_cpus());
	case XEN_SYSCTL_CPUPOOL_OP_MOVEDOMAIN:
		return op->cpupool_id == 0 ? 0 : -ENOENT;
	case XEN_SYSCTL_CPUPOOL_OP_FREEINFO:
		return bitmap_to_guest(&op->cpumap, 0);
	default:
		return -EOPNOTSUPP;
	}
}

static long scheduler_op(struct xen_sysctl_scheduler_op *op)
{
	if (op->cpupool_id != 0)
		return -ESRCH;
	if (op->sched_id != XEN_SCHEDULER_CREDIT)
		return -EINVAL;
	if (op->cmd != XEN_SYSCTL_SCHEDOP_getinfo)
		return -EOPNOTSUPP;
	op->u.sched_credit = (struct xen_sysctl_credit_schedule){
		.tslice_ms = SLICE_MS, .ratelimit_us = SCHED_RATELIMIT_NS / 1000};
	return 0;
}

static long perform(struct xen_sysctl *op)
{
	switch (op->cmd) {
	case XEN_SYSCTL_readconsole:
		return read_console(&op->u.readconsole);
	case XEN_SYSCTL_physinfo:
		physinfo(&op->u.physinfo);
		return 0;
	case XEN_SYSCTL_sched_id:
		op->u.sched_id.sched_id = XEN_SCHEDULER_CREDIT;
		return 0;
	case XEN_SYSCTL_getdomaininfolist:
		return domain_info_list(&op->u.getdomaininfolist);
	case XEN_SYSCTL_debug_keys:
		return debug_keys(&op->u.debug_keys);
	case XEN_SYSCTL_getcpuinfo:
		return cpu_info(&op->u.getcpuinfo);
	case XEN_SYSCTL_availheap:
		op->u.availheap.avail_bytes =
			op->u.availheap.node > 0 ? 0 : heap_free_frames() << PAGE_SHIFT;
		return 0;
	case XEN_SYSCTL_cputopoinfo:
		return cpu_topology(&op->u.cputopoinfo);
	case XEN_SYSCTL_numainfo:
		return numa_info(&op->u.numainfo);
	case XEN_SYSCTL_pcitopoinfo:
		return pci_topology(&op->u.pcitopoinfo);
	case XEN_SYSCTL_cpupool_op:
		return pool_op(&op->u.cpupool_op);
	case XEN_SYSCTL_scheduler_op:
		return scheduler_op(&op->u.scheduler_op);
	case XEN_SYSCTL_get_cpu_levelling_caps:
		op->u.cpu_levelling_caps.caps = 0;
		return 0;
	case XEN_SYSCTL_get_cpu_featureset:
		return cpu_featureset(&op->u.cpu_featureset);
	case XEN_SYSCTL_get_cpu_policy:
		return cpu_policy(&op->u.cpu_policy);
	default:
		return -ENOSYS;
	}
}

long do_sysctl(arg_t arg)
{
	struct xen_sysctl op;
	long rc;

	if (!current->domain->privileged)
		return -EPERM;
	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.interface_version != XEN_SYSCTL_INTERFACE_VERSION)
		return -EACCES;
	rc = perform(&op);
	if (!rc && copy_to_guest(GUEST_VA(arg), &op, sizeof(op)))
		rc = -EFAULT;
	return rc;
}
