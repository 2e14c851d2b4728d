/* SPDX-License-Identifier: MIT */
/* memory_op: how much memory a domain has, getting more, giving some back, and exchanging it for contiguous frames. */
#include "vmm/lib/xen.h"

#include <xen/memory.h>

#include "vmm/boot/boot.h"
#include "vmm/cpu/pcpu.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/grant_table.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/mm/access.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/layout.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"

/* The upper bits of the command tell a try that goes on where it was. */
#define COMMAND_BITS   6
#define COMMAND_MASK   ((1u << COMMAND_BITS) - 1)
#define ORDER_DOM0     10u
#define ORDER_OTHERS   0u
#define MACHPHYS_PIECE 512ul /* frames */

typedef struct xen_memory_reservation reservation_t;

static long again(arg_t command, uint64_t done)
{
	hypercall_set_argument(0, (command & COMMAND_MASK) | done << COMMAND_BITS);
	return -ERESTART;
}

/* Others have no devices, which would need large extents at low addresses; those are looked for one by one. 32 bits: a zone of the heap. */
static bool extent_ok(unsigned order, unsigned bits)
{
	if (current->domain->privileged)
		return order <= ORDER_DOM0;
	return order <= ORDER_OTHERS && (!bits || bits == 32 || bits >= 52);
}

/* 2^order frames for the domain. False: not there, or it has as many as it may. The lock keeps its other vCPUs from getting the same last ones. */
static bool give(struct domain *d, unsigned order, unsigned bits, mfn_t *out)
{
	*out = MFN_NONE;
	spin_lock(&d->lock);
	if (!d->dying && d->pages + (1ull << order) <= d->pages_max)
		*out = heap_alloc(order, bits);
	for (uint64_t i = 0; !mfn_eq(*out, MFN_NONE) && i < 1ull << order; i++)
		domain_add_frame(d, mfn_frame(MFN(out->v + i)));
	spin_unlock(&d->lock);
	return !mfn_eq(*out, MFN_NONE);
}

static bool drop_extent(struct domain *d, uint64_t first, unsigned order, bool unused)
{
	for (uint64_t i = 0; i < 1ull << order; i++) {
		struct frame *f = mfn_valid(MFN(first + i)) ? mfn_frame(MFN(first + i)) : NULL;

		if (!f || !(unused ? domain_drop_unused(d, f) : domain_drop_frame(d, f)))
			return false;
	}
	return true;
}

/* One more extent; populate_physmap says for which of the domain's own frames. False: not done. */
static bool grow_one(struct domain *d, const reservation_t *r, uint64_t n, bool populate)
{
	guest_va_t at = GUEST_VA((uint64_t)r->extent_start.p + n * sizeof(xen_pfn_t));
	xen_pfn_t pfn = 0;
	mfn_t m;

	if (populate && copy_from_guest(&pfn, at, sizeof(pfn)))
		return false;
	if (!give(d, r->extent_order, XENMEMF_get_address_bits(r->mem_flags), &m))
		return false;
	for (uint64_t i = 0; populate && i < 1ull << r->extent_order; i++) {
		m2p_set(MFN(m.v + i), pfn + i);
		shadow_mark(d, MFN(m.v + i));
	}
	return (!populate && !r->extent_start.p) || !copy_to_guest(at, &m.v, sizeof(m.v));
}

static bool shrink_one(struct domain *d, const reservation_t *r, uint64_t n)
{
	xen_pfn_t mfn;

	return !from_guest(&mfn, r->extent_start, n) && drop_extent(d, mfn, r->extent_order, false);
}

/*
 * increase_reservation, populate_physmap, decrease_reservation. Returns the number of extents done, as the ABI has it, also when there were no more.
 */
static long change(arg_t command, arg_t arg, uint64_t done)
{
	unsigned what = command & COMMAND_MASK;
	bool shrinks = what == XENMEM_decrease_reservation, good;
	reservation_t r;
	struct domain *d;
	int rc;

	if (copy_from_guest(&r, GUEST_VA(arg), sizeof(r)))
		return -EFAULT;
	good = shrinks ? r.extent_order <= ORDER_DOM0
		       : extent_ok(r.extent_order, XENMEMF_get_address_bits(r.mem_flags));
	if (!good || done > r.nr_extents)
		return shrinks ? -EINVAL : -EPERM;
	rc = domain_subject(current->domain, r.domid, &d);
	if (rc)
		return rc;
	for (; done < r.nr_extents; done++) {
		if (hypercall_preempt_check() && done) {
			domain_put(d);
			return again(command, done);
		}
		if (!(shrinks ? shrink_one(d, &r, done)
			      : grow_one(d, &r, done, what == XENMEM_populate_physmap)))
			break;
	}
	domain_put(d);
	return (long)done;
}

/* ---- exchange ---- */

/* Nobody but the owner refers to the frame: nothing maps it. */
static bool is_unused(const struct frame *f, const struct domain *d)
{
	return f->owner == d && READ_ONCE(f->ref) == (REF_ALLOCATED | 1) &&
	       !(READ_ONCE(f->type) & (TYPE_COUNT_MASK | TYPE_PARTIAL));
}

/*
 * One extent of the larger order, given in extents of the smaller: from `in` to `out`. New frames first, so that failing changes nothing. They become the
 * domain's when as many old ones have gone for good: its other vCPUs may have changed the list, given them back or mapped them meanwhile, and nobody gets
 * more that way.
 */
static int exchange_chunk(struct domain *d, const struct xen_memory_exchange *x, uint64_t chunk,
			  unsigned big)
{
	uint64_t in_each = 1ull << (big - x->in.extent_order);
	uint64_t out_each = 1ull << (big - x->out.extent_order);
	unsigned bits = XENMEMF_get_address_bits(x->out.mem_flags);
	mfn_t fresh[1u << ORDER_DOM0];
	uint64_t got = 0;
	int rc = 0;

	for (uint64_t i = 0; !rc && i < in_each; i++) {
		xen_pfn_t mfn;

		if (from_guest(&mfn, x->in.extent_start, chunk * in_each + i))
			rc = -EFAULT;
		for (uint64_t k = 0; !rc && k < 1ull << x->in.extent_order; k++)
			if (!mfn_valid(MFN(mfn + k)) || !is_unused(mfn_frame(MFN(mfn + k)), d))
				rc = -EINVAL;
	}
	for (; !rc && got < out_each; got++) {
		fresh[got] = heap_alloc(x->out.extent_order, bits);
		if (mfn_eq(fresh[got], MFN_NONE)) {
			rc = -ENOMEM;
			break;
		}
	}
	spin_lock(&d->lock);
	for (uint64_t i = 0; !rc && i < in_each; i++) {
		xen_pfn_t mfn;

		if (from_guest(&mfn, x->in.extent_start, chunk * in_each + i) ||
		    !drop_extent(d, mfn, x->in.extent_order, true))
			rc = -EINVAL;
	}
	if (rc) {
		spin_unlock(&d->lock);
		while (got--)
			heap_free(fresh[got], x->out.extent_order);
		return rc;
	}
	for (uint64_t i = 0; i < out_each; i++) {
		xen_pfn_t pfn = M2P_INVALID;

		if (from_guest(&pfn, x->out.extent_start, chunk * out_each + i))
			rc = -EFAULT;
		for (uint64_t k = 0; k < 1ull << x->out.extent_order; k++) {
			domain_add_frame(d, mfn_frame(MFN(fresh[i].v + k)));
			if (!rc)
				m2p_set(MFN(fresh[i].v + k), pfn + k);
			shadow_mark(d, MFN(fresh[i].v + k));
		}
		if (to_guest(x->out.extent_start, chunk * out_each + i, &fresh[i].v))
			rc = -EFAULT;
	}
	spin_unlock(&d->lock);
	return rc;
}

static long exchange(arg_t command, arg_t arg)
{
	struct domain *d = current->domain;
	struct xen_memory_exchange x;
	unsigned big;
	int rc = 0;

	if (copy_from_guest(&x, GUEST_VA(arg), sizeof(x)))
		return -EFAULT;
	big = MAX(x.in.extent_order, x.out.extent_order);
	if (x.in.domid != DOMID_SELF || x.out.domid != DOMID_SELF || big > ORDER_DOM0 ||
	    x.in.nr_extents >> 40 || x.out.nr_extents >> 40 ||
	    x.in.nr_extents << x.in.extent_order != x.out.nr_extents << x.out.extent_order ||
	    (x.in.nr_extents << x.in.extent_order) % (1ul << big) ||
	    x.nr_exchanged > x.in.nr_extents)
		return -EINVAL;
	if (!extent_ok(big, XENMEMF_get_address_bits(x.out.mem_flags)))
		return -EPERM;
	while (!rc && x.nr_exchanged < x.in.nr_extents) {
		uint64_t in_each = 1ull << (big - x.in.extent_order);

		if (hypercall_preempt_check() && x.nr_exchanged) {
			rc = -ERESTART;
			break;
		}
		rc = exchange_chunk(d, &x, x.nr_exchanged / in_each, big);
		if (!rc)
			x.nr_exchanged += in_each;
	}
	if (copy_to_guest(GUEST_VA(arg), &x, sizeof(x)))
		return -EFAULT;
	return rc == -ERESTART ? again(command, 0) : rc;
}

/* ---- facts ---- */

/* A number of pages that a domain has, may have, or says that it uses numbers for: the last pseudo-physical one then. */
static long reservation(arg_t arg, unsigned command)
{
	struct domain *d;
	domid_t id;
	long pages;
	int rc;

	if (copy_from_guest(&id, GUEST_VA(arg), sizeof(id)))
		return -EFAULT;
	rc = domain_subject(current->domain, id, &d);
	if (rc)
		return rc;
	if (command == XENMEM_current_reservation)
		pages = (long)d->pages;
	else if (command == XENMEM_maximum_reservation)
		pages = (long)d->pages_max;
	else
		pages = (long)MAX(READ_ONCE(d->shared_info->arch.max_pfn), 1ul) - 1;
	domain_put(d);
	return pages;
}

/* Memory is given when it is asked for, and nobody is promised any: a claim is good while there is enough. */
static long claim_pages(arg_t arg)
{
	reservation_t r;

	if (!current->domain->privileged)
		return -EPERM;
	if (copy_from_guest(&r, GUEST_VA(arg), sizeof(r)))
		return -EFAULT;
	if (r.extent_order || r.mem_flags || r.extent_start.p)
		return -EINVAL;
	return r.nr_extents > heap_free_frames() ? -ENOMEM : 0;
}

static long machphys_mapping(arg_t arg)
{
	struct xen_machphys_mapping m = {
		.v_start = M2P_BASE, .v_end = M2P_BASE + frame_max * 8, .max_mfn = frame_max - 1};

	return copy_to_guest(GUEST_VA(arg), &m, sizeof(m));
}

/* The table's frames in pieces of 2 MiB, for who maps them itself. */
static long machphys_frames(arg_t arg)
{
	struct xen_machphys_mfn_list op;
	mfn_t first;
	uint64_t nr = map_m2p(&first) / MACHPHYS_PIECE;

	if (!current->domain->privileged)
		return -EPERM;
	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	op.nr_extents = (unsigned)MIN(nr, op.max_extents);
	for (unsigned i = 0; i < op.nr_extents; i++) {
		xen_pfn_t mfn = first.v + i * MACHPHYS_PIECE;

		if (to_guest(op.extent_start, i, &mfn))
			return -EFAULT;
	}
	return copy_to_guest(GUEST_VA(arg), &op, sizeof(op));
}

/* Frames of a domain's grant table for a tool that maps them; no frames and no list: how many there can be. */
static long acquire_resource(arg_t arg)
{
	struct xen_mem_acquire_resource op;
	struct domain *d;
	xen_pfn_t mfn;
	int rc;

	if (!current->domain->privileged)
		return -EPERM;
	if (copy_from_guest(&op, GUEST_VA(arg), sizeof(op)))
		return -EFAULT;
	if (op.pad)
		return -EINVAL;
	if (op.type != XENMEM_resource_grant_table)
		return -EOPNOTSUPP;
	if (op.id != XENMEM_resource_grant_table_id_shared || !op.nr_frames != !op.frame_list.p)
		return -EINVAL;
	rc = domain_subject(current->domain, op.domid, &d);
	if (rc)
		return rc;
	if (!op.nr_frames) {
		op.nr_frames = grants_max_frames(d);
		rc = copy_to_guest(GUEST_VA(arg), &op, sizeof(op));
	}
	/* Ends at the last frame that there can be at the latest. */
	for (uint32_t i = 0; !rc && op.frame_list.p && i < op.nr_frames; i++) {
		rc = grants_frame(d, op.frame + i, &mfn);
		if (!rc && to_guest(op.frame_list, i, &mfn))
			rc = -EFAULT;
	}
	domain_put(d);
	return rc;
}

struct e820_entry {
	uint64_t start, bytes;
	uint32_t type;
} __attribute__((packed));

static long machine_memory_map(arg_t arg)
{
	struct xen_memory_map m;
	unsigned i;

	if (!current->domain->privileged)
		return -EPERM;
	if (copy_from_guest(&m, GUEST_VA(arg), sizeof(m)))
		return -EFAULT;
	for (i = 0; i < boot_info.nr_ranges && i < m.nr_entries; i++) {
		const struct boot_range *r = &boot_info.range[i];
		struct e820_entry e = {r->start, r->end - r->start, r->type};

		if (copy_to_guest(GUEST_VA((uint64_t)m.buffer.p + i * sizeof(e)), &e, sizeof(e)))
			return -EFAULT;
	}
	m.nr_entries = i;
	return copy_to_guest(GUEST_VA(arg), &m, sizeof(m));
}

long do_memory_op(arg_t command, arg_t arg)
{
	uint64_t done = command >> COMMAND_BITS;

	switch (command & COMMAND_MASK) {
	case XENMEM_increase_reservation:
	case XENMEM_populate_physmap:
	case XENMEM_decrease_reservation:
		return change(command, arg, done);
	case XENMEM_exchange:
		return exchange(command, arg);
	case XENMEM_maximum_ram_page:
		return (long)frame_max - 1;
	case XENMEM_current_reservation:
	case XENMEM_maximum_reservation:
	case XENMEM_maximum_gpfn:
		return reservation(arg, command & COMMAND_MASK);
	case XENMEM_claim_pages:
		return claim_pages(arg);
	case XENMEM_acquire_resource:
		return acquire_resource(arg);
	case XENMEM_get_vnumainfo: /* no domain has virtual nodes */
		return -EOPNOTSUPP;
	case XENMEM_machphys_mfn_list:
		return machphys_frames(arg);
	case XENMEM_machphys_mapping:
		return machphys_mapping(arg);
	case XENMEM_machine_memory_map:
		return machine_memory_map(arg);
	default:
		return -ENOSYS;
	}
}
