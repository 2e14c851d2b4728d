// SPDX-License-Identifier: MIT
#include "migrate/xen_calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/*
 * The interface of these numbers is private to a release, and so are the messages of libxl's save
 * helper.
 */
#define XEN_RELEASE_MAJOR 4
#define XEN_RELEASE_MINOR 17

static int answer(int rc)
{
	return rc < 0 ? -errno : 0;
}

/* Copy in, call, copy back: for arguments of a fixed size. */
static int call_with(struct xen_calls *x, unsigned op, int cmd, void *arg, size_t size)
{
	void *shared = xencall_alloc_buffer(x->call, size);
	int rc;

	if (!shared)
		return -ENOMEM;
	memcpy(shared, arg, size);
	if (cmd < 0)
		rc = xencall1(x->call, op, (uint64_t)(uintptr_t)shared);
	else
		rc = xencall2(x->call, op, (uint64_t)cmd, (uint64_t)(uintptr_t)shared);
	/* Memory operations return counts. */
	rc = rc < 0 ? -errno : rc;
	memcpy(arg, shared, size);
	xencall_free_buffer(x->call, shared);
	return rc;
}

static int check_release(struct xen_calls *x, struct pgr_error *err)
{
	int version = xencall2(x->call, __HYPERVISOR_xen_version, XENVER_version, 0);
	struct xen_domctl op = {.cmd = XEN_DOMCTL_getdomaininfo};
	int rc;

	if (version < 0)
		return pgr_fail_errno(
			err, -ENOTSUP,
			"the hypervisor does not answer: is this the control domain?");
	if (version >> 16 != XEN_RELEASE_MAJOR || (version & 0xffff) != XEN_RELEASE_MINOR)
		return pgr_fail(
			err, -ENOTSUP,
			"this hypervisor is release %d.%d, and this program was made for %d.%d: install the build for it",
			version >> 16, version & 0xffff, XEN_RELEASE_MAJOR, XEN_RELEASE_MINOR);
	rc = xen_domctl(x, &op);
	if (rc == -EACCES)
		return pgr_fail(
			err, -ENOTSUP,
			"the hypervisor has another control interface than this program (%#x): install the build for it",
			XEN_DOMCTL_INTERFACE_VERSION);
	if (rc)
		return pgr_fail_errno(
			err, -ENOTSUP,
			"the hypervisor refuses control: this is not the control domain");
	return 0;
}

int xen_calls_open(struct xen_calls *x, struct pgr_error *err)
{
	int rc;

	*x = (struct xen_calls){.call = NULL};
	if (access("/dev/xen/privcmd", R_OK | W_OK) && access("/proc/xen/privcmd", R_OK | W_OK))
		return pgr_fail(
			err, -ENOTSUP,
			"this host does not run under Xen or Pagurus, or you are not root: /dev/xen/privcmd cannot be opened");
	x->call = xencall_open(NULL, 0);
	x->foreign = xenforeignmemory_open(NULL, 0);
	if (!x->call || !x->foreign)
		rc = pgr_fail_errno(err, -ENOTSUP, "/dev/xen/privcmd cannot be opened");
	else
		rc = check_release(x, err);
	if (rc)
		xen_calls_close(x);
	return rc;
}

void xen_calls_close(struct xen_calls *x)
{
	if (x->call)
		xencall_close(x->call);
	if (x->foreign)
		xenforeignmemory_close(x->foreign);
	*x = (struct xen_calls){.call = NULL};
}

void *xen_calls_alloc(struct xen_calls *x, size_t size)
{
	size_t pages = (size + XEN_PAGE_SIZE - 1) / XEN_PAGE_SIZE;
	/* One page in front remembers the size, so that freeing needs no more than the pointer. */
	uint64_t *head = xencall_alloc_buffer_pages(x->call, pages + 1);

	if (!head)
		return NULL;
	memset(head, 0, (pages + 1) * XEN_PAGE_SIZE);
	head[0] = pages + 1;
	return (char *)head + XEN_PAGE_SIZE;
}

void xen_calls_free(struct xen_calls *x, void *shared)
{
	uint64_t *head;

	if (!shared)
		return;
	head = (uint64_t *)((char *)shared - XEN_PAGE_SIZE);
	xencall_free_buffer_pages(x->call, head, head[0]);
}

int xen_domctl(struct xen_calls *x, struct xen_domctl *op)
{
	op->interface_version = XEN_DOMCTL_INTERFACE_VERSION;
	return call_with(x, __HYPERVISOR_domctl, -1, op, sizeof(*op));
}

int xen_sysctl(struct xen_calls *x, struct xen_sysctl *op)
{
	op->interface_version = XEN_SYSCTL_INTERFACE_VERSION;
	return call_with(x, __HYPERVISOR_sysctl, -1, op, sizeof(*op));
}

int xen_domain_info(struct xen_calls *x, uint32_t domid, struct xen_domctl_getdomaininfo *info)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_getdomaininfo, .domain = (domid_t)domid};
	int rc = xen_domctl(x, &op);

	if (rc == -ESRCH)
		return -ENOENT;
	if (rc)
		return rc;
	/* The hypervisor answers with the next domain when there is none of this number. */
	if (op.u.getdomaininfo.domain != domid)
		return -ENOENT;
	*info = op.u.getdomaininfo;
	return 0;
}

int xen_page_info(struct xen_calls *x, uint32_t domid, uint64_t *shared, unsigned nr)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_getpageframeinfo3, .domain = (domid_t)domid};

	op.u.getpageframeinfo3.num = nr;
	set_xen_guest_handle(op.u.getpageframeinfo3.array, (xen_pfn_t *)shared);
	return xen_domctl(x, &op);
}

static int reservation(struct xen_calls *x, int cmd, uint32_t domid, xen_pfn_t *shared, unsigned nr)
{
	struct xen_memory_reservation r = {.nr_extents = nr, .domid = (domid_t)domid};

	set_xen_guest_handle(r.extent_start, shared);
	return call_with(x, __HYPERVISOR_memory_op, cmd, &r, sizeof(r));
}

int xen_depopulate(struct xen_calls *x, uint32_t domid, xen_pfn_t *shared, unsigned nr)
{
	int rc = reservation(x, XENMEM_decrease_reservation, domid, shared, nr);

	if (rc < 0)
		return rc;
	return (unsigned)rc == nr ? 0 : -EBUSY;
}

int xen_populate(struct xen_calls *x, uint32_t domid, xen_pfn_t *shared, unsigned nr)
{
	int rc = reservation(x, XENMEM_populate_physmap, domid, shared, nr);

	if (rc < 0)
		return rc;
	if ((unsigned)rc == nr)
		return 0;
	if (rc > 0)
		xen_depopulate(x, domid, shared, (unsigned)rc);
	return -ENOMEM;
}

int xen_set_pfn(struct xen_calls *x, uint32_t domid, uint64_t frame, uint64_t pfn)
{
	struct mmu_update *update = xencall_alloc_buffer(x->call, sizeof(*update));
	int rc;

	if (!update)
		return -ENOMEM;
	update->ptr = frame << 12 | MMU_MACHPHYS_UPDATE;
	update->val = pfn;
	rc = answer(xencall4(x->call, __HYPERVISOR_mmu_update, (uint64_t)(uintptr_t)update, 1, 0,
			     domid));
	xencall_free_buffer(x->call, update);
	return rc;
}

int xen_mmuext(struct xen_calls *x, uint32_t domid, struct mmuext_op *shared, unsigned nr,
	       unsigned *done)
{
	unsigned *count = xencall_alloc_buffer(x->call, sizeof(*count));
	int rc;

	if (!count)
		return -ENOMEM;
	*count = 0;
	rc = answer(xencall4(x->call, __HYPERVISOR_mmuext_op, (uint64_t)(uintptr_t)shared, nr,
			     (uint64_t)(uintptr_t)count, domid));
	if (done)
		*done = *count;
	xencall_free_buffer(x->call, count);
	return rc;
}

int xen_max_frame(struct xen_calls *x, uint64_t *max)
{
	long rc = xencall2L(x->call, __HYPERVISOR_memory_op, XENMEM_maximum_ram_page, 0);

	if (rc < 0)
		return -errno;
	*max = (uint64_t)rc + 1;
	return 0;
}

int xen_m2p_frames(struct xen_calls *x, xen_pfn_t *shared, unsigned *nr)
{
	struct xen_machphys_mfn_list list = {.max_extents = *nr};
	int rc;

	set_xen_guest_handle(list.extent_start, shared);
	rc = call_with(x, __HYPERVISOR_memory_op, XENMEM_machphys_mfn_list, &list, sizeof(list));
	if (rc < 0)
		return rc;
	*nr = list.nr_extents;
	return 0;
}

void xen_cpu_policy_free(struct xen_cpu_policy *p)
{
	free(p->leaves);
	free(p->msrs);
	*p = (struct xen_cpu_policy){.leaves = NULL};
}

/* The stream has the hypervisor's layout. */
_Static_assert(sizeof(xen_cpuid_leaf_t) == sizeof(struct pgr_cpu_leaf) &&
		       offsetof(xen_cpuid_leaf_t, d) == offsetof(struct pgr_cpu_leaf, edx),
	       "stream.md CPU_POLICY");

struct cpu_leaves xen_policy_leaves(const struct xen_cpu_policy *p)
{
	return (struct cpu_leaves){.leaf = (const struct pgr_cpu_leaf *)p->leaves,
				   .nr = p->nr_leaves};
}

static int copy_policy(struct xen_cpu_policy *p, const xen_cpuid_leaf_t *leaves, uint32_t nr_leaves,
		       const xen_msr_entry_t *msrs, uint32_t nr_msrs)
{
	p->leaves = calloc(nr_leaves ? nr_leaves : 1, sizeof(*p->leaves));
	p->msrs = calloc(nr_msrs ? nr_msrs : 1, sizeof(*p->msrs));
	if (!p->leaves || !p->msrs) {
		xen_cpu_policy_free(p);
		return -ENOMEM;
	}
	memcpy(p->leaves, leaves, nr_leaves * sizeof(*leaves));
	memcpy(p->msrs, msrs, nr_msrs * sizeof(*msrs));
	p->nr_leaves = nr_leaves;
	p->nr_msrs = nr_msrs;
	return 0;
}

/* Room for any policy: the hypervisor's own serialised form has some hundred leaves at most. */
#define POLICY_LEAVES 1024u
#define POLICY_MSRS   256u

static int read_policy(struct xen_calls *x, bool host, uint32_t which, struct xen_cpu_policy *p)
{
	xen_cpuid_leaf_t *leaves = xen_calls_alloc(x, POLICY_LEAVES * sizeof(*leaves));
	xen_msr_entry_t *msrs = xen_calls_alloc(x, POLICY_MSRS * sizeof(*msrs));
	struct xen_sysctl sys = {.cmd = XEN_SYSCTL_get_cpu_policy};
	struct xen_domctl dom = {.cmd = XEN_DOMCTL_get_cpu_policy};
	int rc = -ENOMEM;

	*p = (struct xen_cpu_policy){.leaves = NULL};
	if (!leaves || !msrs)
		goto out;
	if (host) {
		sys.u.cpu_policy.index = which;
		sys.u.cpu_policy.nr_leaves = POLICY_LEAVES;
		sys.u.cpu_policy.nr_msrs = POLICY_MSRS;
		set_xen_guest_handle(sys.u.cpu_policy.leaves, leaves);
		set_xen_guest_handle(sys.u.cpu_policy.msrs, msrs);
		rc = xen_sysctl(x, &sys);
		dom.u.cpu_policy.nr_leaves = sys.u.cpu_policy.nr_leaves;
		dom.u.cpu_policy.nr_msrs = sys.u.cpu_policy.nr_msrs;
	} else {
		dom.domain = (domid_t)which;
		dom.u.cpu_policy.nr_leaves = POLICY_LEAVES;
		dom.u.cpu_policy.nr_msrs = POLICY_MSRS;
		set_xen_guest_handle(dom.u.cpu_policy.leaves, leaves);
		set_xen_guest_handle(dom.u.cpu_policy.msrs, msrs);
		rc = xen_domctl(x, &dom);
	}
	if (!rc)
		rc = copy_policy(p, leaves, dom.u.cpu_policy.nr_leaves, msrs,
				 dom.u.cpu_policy.nr_msrs);
out:
	xen_calls_free(x, leaves);
	xen_calls_free(x, msrs);
	return rc;
}

int xen_domain_cpu_policy(struct xen_calls *x, uint32_t domid, struct xen_cpu_policy *p)
{
	return read_policy(x, false, domid, p);
}

int xen_host_cpu_policy(struct xen_calls *x, uint32_t index, struct xen_cpu_policy *p)
{
	return read_policy(x, true, index, p);
}

int xen_set_cpu_policy(struct xen_calls *x, uint32_t domid, const struct xen_cpu_policy *p,
		       uint32_t bad[3])
{
	xen_cpuid_leaf_t *leaves = xen_calls_alloc(x, (p->nr_leaves + 1) * sizeof(*leaves));
	xen_msr_entry_t *msrs = xen_calls_alloc(x, (p->nr_msrs + 1) * sizeof(*msrs));
	struct xen_domctl op = {.cmd = XEN_DOMCTL_set_cpu_policy, .domain = (domid_t)domid};
	int rc = -ENOMEM;

	if (!leaves || !msrs)
		goto out;
	memcpy(leaves, p->leaves, p->nr_leaves * sizeof(*leaves));
	memcpy(msrs, p->msrs, p->nr_msrs * sizeof(*msrs));
	op.u.cpu_policy.nr_leaves = p->nr_leaves;
	op.u.cpu_policy.nr_msrs = p->nr_msrs;
	set_xen_guest_handle(op.u.cpu_policy.leaves, leaves);
	set_xen_guest_handle(op.u.cpu_policy.msrs, msrs);
	op.u.cpu_policy.err_leaf = op.u.cpu_policy.err_subleaf = op.u.cpu_policy.err_msr = ~0u;
	rc = xen_domctl(x, &op);
	if (bad) {
		bad[0] = op.u.cpu_policy.err_leaf;
		bad[1] = op.u.cpu_policy.err_subleaf;
		bad[2] = op.u.cpu_policy.err_msr;
	}
out:
	xen_calls_free(x, leaves);
	xen_calls_free(x, msrs);
	return rc;
}

void *xen_map(struct xen_calls *x, uint32_t domid, int prot, unsigned nr, const xen_pfn_t *frames,
	      int *errors)
{
	return xenforeignmemory_map(x->foreign, domid, prot, nr, frames, errors);
}

void *xen_map_one(struct xen_calls *x, uint32_t domid, int prot, xen_pfn_t frame)
{
	/* Without an error array the library maps all or nothing. */
	return xenforeignmemory_map(x->foreign, domid, prot, 1, &frame, NULL);
}

void xen_unmap(struct xen_calls *x, void *addr, unsigned nr)
{
	if (addr)
		xenforeignmemory_unmap(x->foreign, addr, nr);
}
