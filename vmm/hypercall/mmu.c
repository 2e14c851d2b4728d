/* SPDX-License-Identifier: MIT */
/* mmu_update, mmuext_op, update_va_mapping: a guest's page tables. What may stand in a table is decided in mm/page_type.c alone. */
#include <stddef.h>

#include "vmm/cpu/desc.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/walk.h"

#define CONTINUED     0x80000000u /* in a count: *done counts from an earlier try on */
#define LOOK_EVERY    16u
#define PTR_KIND_MASK 3ull

/*
 * Whose frames a guest wants to map: itself, or when it may, another domain or what is no domain's. A domain that is returned has a reference
 * to give back with subject_put().
 */
static inline int subject_get(struct domain *self, domid_t id, struct domain **out)
{
	*out = self;
	if (id == DOMID_SELF || id == self->id)
		return 0;
	if (!self->privileged)
		return -EPERM;
	if (id == DOMID_IO)
		return 0; /* device memory needs no owner */
	if (id == DOMID_XEN) {
		*out = &hypervisor_domain;
		return 0;
	}
	*out = domain_get(id);
	return *out ? 0 : -ESRCH;
}

static inline void subject_put(const struct domain *self, struct domain *d)
{
	if (unlikely(d != self) && d != &hypervisor_domain)
		domain_put(d);
}

/* A page that the guest uses as no table, or not yet. */
static int write_plain(struct frame *f, unsigned index, uint64_t value)
{
	int rc = frame_get_type(f, TYPE_WRITABLE);

	if (rc)
		return rc;
	WRITE_ONCE(((uint64_t *)mfn_to_ptr(frame_mfn(f)))[index], value);
	shadow_mark(f->owner, frame_mfn(f));
	frame_put_type(f);
	return 0;
}

static inline __attribute__((always_inline)) int update_entry(struct domain *d, uint64_t ptr,
							      uint64_t value, bool preserve_ad,
							      struct domain *subject, bool logged)
{
	mfn_t m = MFN(ptr >> PAGE_SHIFT);
	unsigned index = (unsigned)(ptr & (PAGE_SIZE - 1)) / 8;
	struct frame *f;
	uint64_t word;
	int rc;

	if (!mfn_valid(m))
		return -EPERM;
	m.v = array_nospec(m.v, frame_max);
	if (!frame_get(mfn_frame(m), d))
		return -EPERM;
	f = mfn_frame(m);
	word = READ_ONCE(f->type);
	if (!(word & TYPE_COUNT_MASK) || !(word & TYPE_VALID))
		rc = write_plain(f, index, value);
	else if (logged)
		rc = pt_update_any(f, type_of(word) - TYPE_L1 + 1, index, value, preserve_ad,
				   subject);
	else
		rc = pt_update(f, type_of(word) - TYPE_L1 + 1, index, value, preserve_ad, subject);
	frame_put(f);
	return rc;
}

static int update_m2p(uint64_t ptr, uint64_t pfn, struct domain *subject)
{
	mfn_t m = MFN(ptr >> PAGE_SHIFT);

	if (!mfn_valid(m) || !frame_get(mfn_frame(m), subject))
		return -EPERM;
	m2p_set(m, pfn);
	shadow_mark(subject, m);
	frame_put(mfn_frame(m));
	return 0;
}

static inline __attribute__((always_inline)) int
one_update(struct domain *d, uint64_t ptr, uint64_t value, struct domain *subject, bool logged)
{
	unsigned kind = ptr & PTR_KIND_MASK;

	if (kind == MMU_MACHPHYS_UPDATE)
		return update_m2p(ptr & ~PTR_KIND_MASK, value, subject);
	return update_entry(d, ptr & ~7ull, value, kind == MMU_PT_UPDATE_PRESERVE_AD, subject,
			    logged);
}

/* When the domain's page_work says so. */
static __attribute__((noinline)) int one_update_and_more(struct domain *d, uint64_t ptr,
							 uint64_t value, struct domain *subject)
{
	int rc = page_lock_again(d);

	return rc ? rc : one_update(d, ptr, value, subject, true);
}

/* The page lock is held, and is again in the end. *done counts. */
static int locked_updates(struct domain *d, uint64_t updates, uint64_t n, struct domain *subject,
			  uint64_t *done)
{
	uint64_t i = 0;
	int rc = 0;

	if (!guest_range_ok(GUEST_VA(updates), n * sizeof(mmu_update_t)))
		return -EFAULT;
	for (; i < n; i++) {
		const mmu_update_t *u = (const mmu_update_t *)updates + i;
		uint64_t ptr, value;

		rc = -ERESTART;
		if (i && i % LOOK_EVERY == 0 &&
		    (hypercall_preempt_check() || spin_is_contended(&d->page_lock)))
			break;
		guest_access_begin();
		guest_get_word(&u->ptr, ptr, fault);
		guest_get_word(&u->val, value, fault);
		guest_access_end();
		if (likely(!d->page_work))
			rc = one_update(d, ptr, value, subject, false);
		else
			rc = one_update_and_more(d, ptr, value, subject);
		if (rc)
			break;
	}
	*done = i;
	return rc;
fault:
	guest_access_end();
	*done = i;
	return -EFAULT;
}

/* How many were done, over all tries of the hypercall. */
static int report_done(arg_t done, bool continued, uint64_t now)
{
	uint32_t before = 0, sum;

	if (continued && copy_from_guest(&before, GUEST_VA(done), sizeof(before)))
		return -EFAULT;
	sum = before + (uint32_t)now;
	return copy_to_guest(GUEST_VA(done), &sum, sizeof(sum));
}

static void continue_with(arg_t next, uint64_t left)
{
	hypercall_set_argument(0, next);
	hypercall_set_argument(1, left | CONTINUED);
}

long do_mmu_update(arg_t updates, arg_t count, arg_t done, arg_t domain)
{
	struct domain *d = current->domain, *subject;
	bool continued = count & CONTINUED;
	uint64_t n = (uint32_t)count & ~CONTINUED, i = 0;
	int rc, bad;

	/* The upper half names whose tables: our own only. */
	if (domain >> 16 && (domid_t)((domain >> 16) - 1) != d->id &&
	    (domid_t)((domain >> 16) - 1) != DOMID_SELF)
		return -EPERM;
	rc = subject_get(d, (domid_t)domain, &subject);
	if (rc)
		return rc;
	/* Each update looks for what is unfinished, as page_lock() does. */
	spin_lock(&d->page_lock);
	rc = locked_updates(d, updates, n, subject, &i);
	spin_unlock(&d->page_lock);
	subject_put(d, subject);
	if (rc == -ERESTART)
		continue_with(updates + i * sizeof(mmu_update_t), n - i);
	bad = done ? report_done(done, continued, i) : 0;
	return rc ? rc : bad;
}

/* ---- flushing ---- */

/* The CPUs on which the vCPUs of the guest's mask run now. A vCPU that does not run loads its tables when it does. */
static int cpus_of_mask(uint64_t mask_va, uint64_t *cpus)
{
	const struct domain *d = current->domain;
	uint64_t mask = 0;

	if (copy_from_guest(&mask, GUEST_VA(mask_va), (d->nr_vcpus + 7) / 8))
		return -EFAULT;
	*cpus = 0;
	for (unsigned i = 0; i < d->nr_vcpus; i++)
		if ((mask >> i & 1) && d->vcpu[i] && READ_ONCE(d->vcpu[i]->running))
			*cpus |= 1ull << d->vcpu[i]->processor->id;
	return 0;
}

static int flush_for_update(uint64_t va, uint64_t flags)
{
	const struct domain *d = current->domain;
	uint64_t pointer = flags & ~(uint64_t)UVMF_FLUSHTYPE_MASK, cpus = 1ull << this_cpu()->id;
	int rc = 0;

	if (pointer == UVMF_ALL)
		cpus = READ_ONCE(d->dirty_cpus);
	else if (pointer)
		rc = cpus_of_mask(pointer, &cpus);
	if (rc)
		return rc;
	switch (flags & UVMF_FLUSHTYPE_MASK) {
	case UVMF_NONE:
		return 0;
	case UVMF_TLB_FLUSH:
		tlb_flush_cpus(cpus);
		return 0;
	case UVMF_INVLPG:
		if (guest_address_ok(va))
			tlb_flush_page(cpus, va);
		return 0;
	default:
		return -EINVAL;
	}
}

long do_update_va_mapping_otherdomain(arg_t va, arg_t value, arg_t flags, arg_t domain)
{
	struct domain *d = current->domain, *subject;
	uint64_t old;
	mfn_t table;
	int rc = subject_get(d, (domid_t)domain, &subject);

	if (rc)
		return rc;
	rc = page_lock(d);
	if (!rc) {
		rc = guest_walk(va, &old, &table) ? -EINVAL : 0;
		if (!rc)
			rc = pt_update_any(mfn_frame(table), 1, pt_index(va, 1), value, false,
					   subject);
		page_unlock(d);
	}
	subject_put(d, subject);
	return rc ? rc : flush_for_update(va, flags);
}

long do_update_va_mapping(arg_t va, arg_t value, arg_t flags)
{
	return do_update_va_mapping_otherdomain(va, value, flags, DOMID_SELF);
}

/* ---- mmuext_op ---- */

static int pin(struct domain *d, mfn_t m, enum page_type type)
{
	int rc;

	/* What a domain that ends holds is given up already. */
	if (d->dying)
		return -EINVAL;
	if (!mfn_valid(m) || !frame_get(mfn_frame(m), d))
		return -EPERM;
	rc = frame_pin(mfn_frame(m), type);
	frame_put(mfn_frame(m));
	return rc;
}

static int unpin(struct domain *d, mfn_t m)
{
	int rc;

	if (!mfn_valid(m) || !frame_get(mfn_frame(m), d))
		return -EPERM;
	rc = frame_unpin(mfn_frame(m));
	frame_put(mfn_frame(m));
	return rc;
}

static int new_base(mfn_t *place, mfn_t *root, mfn_t m, bool none_allowed)
{
	struct vcpu *v = current;
	mfn_t old = *place;
	int rc = 0;

	if (m.v == 0 && none_allowed)
		m = MFN_NONE;
	else if (mfn_valid(m) && mfn_eq(m, old))
		return 0;
	else
		rc = mfn_get_both(m, v->domain, TYPE_L4);
	if (rc)
		return rc;
	*place = m;
	if (likely(!v->domain->shadow))
		*root = m;
	else
		shadow_roots(v);
	/* Before the old one may go. */
	if (place == &v->table_kernel)
		tlb_load_new(v);
	else
		tlb_user_changed();
	vcpu_put_table(&old);
	return 0;
}

static int set_ldt(uint64_t base, unsigned entries)
{
	struct vcpu *v = current;

	if (entries > 8192 ||
	    (entries && (base % PAGE_SIZE || !guest_range_ok(GUEST_VA(base), entries * 8ull))))
		return -EINVAL;
	desc_ldt_drop(v);
	v->ldt_base = base;
	v->ldt_entries = entries;
	desc_load(v);
	return 0;
}

static int copy_page(mfn_t to, const mfn_t *from)
{
	struct domain *d = current->domain;
	int rc;

	if (!mfn_valid(to) || (from && !mfn_valid(*from)))
		return -EINVAL;
	if (from && !frame_get(mfn_frame(*from), d))
		return -EPERM;
	rc = frame_get_both(mfn_frame(to), d, TYPE_WRITABLE);
	if (!rc && from)
		memcpy(mfn_to_ptr(to), mfn_to_ptr(*from), PAGE_SIZE);
	else if (!rc)
		memset(mfn_to_ptr(to), 0, PAGE_SIZE);
	if (!rc) {
		shadow_mark(d, to);
		frame_put_both(mfn_frame(to));
	}
	if (from)
		frame_put(mfn_frame(*from));
	return rc;
}

/* The operations that change references, and what is no operation: under the page lock. d: whose tables. */
static int locked_op(const struct mmuext_op *o, struct domain *d)
{
	mfn_t m = MFN(o->arg1.mfn), source = MFN(o->arg2.src_mfn);
	int rc = page_lock(d);

	if (rc)
		return rc;
	switch (o->cmd) {
	case MMUEXT_PIN_L1_TABLE ... MMUEXT_PIN_L4_TABLE:
		rc = pin(d, m, (enum page_type)(TYPE_L1 + o->cmd - MMUEXT_PIN_L1_TABLE));
		break;
	case MMUEXT_UNPIN_TABLE:
		rc = unpin(d, m);
		break;
	case MMUEXT_NEW_BASEPTR:
		rc = new_base(&current->table_kernel, &current->root_kernel, m, false);
		break;
	case MMUEXT_NEW_USER_BASEPTR:
		rc = new_base(&current->table_user, &current->root_user, m, true);
		break;
	case MMUEXT_CLEAR_PAGE:
		rc = copy_page(m, NULL);
		break;
	case MMUEXT_COPY_PAGE:
		rc = copy_page(m, &source);
		break;
	case MMUEXT_SET_LDT:
		rc = set_ldt(o->arg1.linear_addr, o->arg2.nr_ents);
		break;
	default:
		rc = -EOPNOTSUPP;
	}
	page_unlock(d);
	return rc;
}

static bool is_pinning(unsigned command)
{
	_Static_assert(MMUEXT_PIN_L1_TABLE == 0 && MMUEXT_PIN_L4_TABLE == 3 &&
			       MMUEXT_UNPIN_TABLE == 4,
		       "all that come first");
	return command <= MMUEXT_UNPIN_TABLE;
}

static int one_op(const struct mmuext_op *o, struct domain *subject)
{
	const struct domain *d = current->domain;
	uint64_t cpus = 1ull << this_cpu()->id, va = o->arg1.linear_addr;
	bool va_ok = guest_address_ok(va);
	int rc = 0;

	/* For another domain: nothing but its tables, for who builds or restores it. */
	if (subject != d && (!is_pinning(o->cmd) || subject == &hypervisor_domain))
		return -EPERM;
	switch (o->cmd) {
	case MMUEXT_TLB_FLUSH_LOCAL:
		tlb_flush_local();
		return 0;
	case MMUEXT_INVLPG_LOCAL:
		if (va_ok)
			invlpg(va);
		return 0;
	case MMUEXT_TLB_FLUSH_MULTI:
	case MMUEXT_INVLPG_MULTI:
		rc = cpus_of_mask((uint64_t)o->arg2.vcpumask.p, &cpus);
		if (!rc && o->cmd == MMUEXT_TLB_FLUSH_MULTI)
			tlb_flush_cpus(cpus);
		else if (!rc && va_ok)
			tlb_flush_page(cpus, va);
		return rc;
	case MMUEXT_TLB_FLUSH_ALL:
		tlb_flush_cpus(READ_ONCE(d->dirty_cpus));
		return 0;
	case MMUEXT_INVLPG_ALL:
		if (va_ok)
			tlb_flush_page(READ_ONCE(d->dirty_cpus), va);
		return 0;
	default:
		return locked_op(o, subject);
	}
}

long do_mmuext_op(arg_t ops, arg_t count, arg_t done, arg_t domain)
{
	bool continued = count & CONTINUED;
	uint64_t n = (uint32_t)count & ~CONTINUED, i = 0;
	struct domain *d = current->domain, *subject;
	int rc = subject_get(d, (domid_t)domain, &subject), bad;

	if (rc)
		return rc;
	while (!rc && i < n) {
		struct mmuext_op o;

		if (i && hypercall_preempt_check())
			rc = -ERESTART;
		else if (copy_from_guest(&o, GUEST_VA(ops + i * sizeof(o)), sizeof(o)))
			rc = -EFAULT;
		else
			rc = one_op(&o, subject);
		if (!rc)
			i++;
	}
	subject_put(d, subject);
	if (rc == -ERESTART)
		continue_with(ops + i * sizeof(struct mmuext_op), n - i);
	bad = done ? report_done(done, continued, i) : 0;
	return rc ? rc : bad;
}
