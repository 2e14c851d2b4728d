// SPDX-License-Identifier: MIT
/*
 * Isolated page tables. Every top-level table of a guest holds the hypervisor's slots, and a processor with Meltdown lets ring 3 read what they map. So
 * on such a processor CR3 never points to that table while the guest's code runs, but to a copy of it with other slots of the hypervisor's: they show
 *
 *   - the machine-to-physical table, which guests may read anyhow,
 *   - section .entry of the text, which is no secret,
 *   - the second half of this CPU's window: the registers of the vCPU it runs, its descriptor tables, IDT, TSS, and the stacks of NMI and the like.
 *
 * Nothing else of the hypervisor's is global, so nothing else is in the TLB under the guest's PCID (or at all, without PCIDs). entry.S loads the
 * guest's full table on the way in and the copy on the way out; in between all is as without isolation.
 *
 * A CPU has two copies, for its vCPU's kernel and user tables. Why they are as good as the originals:
 *
 *  1. A copy is made on the way out to the guest when the one there is of another table (of != root). It is marked first, then filled, under
 *     its CPU's lock.
 *  2. Whoever changes an entry of a top-level table calls xpti_entry_changed() afterwards, which takes each CPU's lock and writes the entry, read anew, to
 *     copies so marked. Whichever comes second under the lock has the new entry. It returns before what the old entry mapped is given up, so invariant 3 holds
 *     for copies as for originals: no processor can walk to a table that nobody holds. Flushes are as without copies (invariant 5).
 *  3. A table that ceased to be one keeps no entry up to date. Its copies are marked void when the frame becomes a top-level table again; until then no
 *     CPU uses them, since CR3 follows a vCPU's tables only, which are held.
 *
 * The accessed bits that the processor sets in a copy are not seen in the original: nothing needs them.
 */
#include "vmm/mm/xpti.h"

#include "vmm/cpu/mitigation.h"
#include "vmm/lib/lock.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"

static struct view {
	spinlock_t lock; /* a leaf; no interrupt handler takes it */
	mfn_t of[2];	 /* of user and kernel tables; MFN_NONE: void */
	uint64_t *l4[2]; /* NULL: the CPU is not there */
} views[MAX_CPUS];

extern char entry_start[], stub_page[];

/* The view's entry of the level for va becomes the hypervisor's. */
static void show(uint64_t *table, uint64_t va, unsigned level)
{
	const uint64_t *real = hv_l4;

	for (unsigned l = 4; l > level; l--) {
		unsigned i = pt_index(va, l);

		if (!(table[i] & PTE_P)) {
			void *fresh = heap_alloc_pages(0);

			BUG_ON(!fresh);
			table[i] = pte_make(ptr_to_mfn(fresh), PTE_P | PTE_RW | PTE_A);
		}
		table = maddr_to_ptr(table[i] & PTE_ADDR);
		real = maddr_to_ptr(real[i] & PTE_ADDR);
	}
	table[pt_index(va, level)] = real[pt_index(va, level)];
}

void xpti_init_cpu(void)
{
	unsigned cpu = this_cpu()->id;
	struct view *v = &views[cpu];
	uint64_t *l4 = heap_alloc_pages(0), *other = heap_alloc_pages(0);

	BUG_ON(!l4 || !other);
	show(l4, M2P_BASE, 4);
	for (uint64_t at = (uint64_t)entry_start; at < (uint64_t)stub_page; at += PAGE_SIZE)
		show(l4, at, 1);
	show(l4, WINDOW_BASE + (uint64_t)cpu * WINDOW_STRIDE + WINDOW_FRAME, 2);
	memcpy(other, l4, PAGE_SIZE);
	v->of[0] = v->of[1] = MFN_NONE;
	v->l4[1] = other;
	__atomic_store_n(&v->l4[0], l4, __ATOMIC_SEQ_CST);
}

mfn_t xpti_root(const struct vcpu *v)
{
	struct view *view = &views[this_cpu()->id];
	unsigned mode = v->kernel_mode;
	mfn_t root = mode ? v->root_kernel : v->root_user;
	const uint64_t *from = mfn_to_ptr(root);
	uint64_t *to = view->l4[mode];

	/* Nobody else marks it as of a table that is in use, or void while it is. */
	if (!mfn_eq(view->of[mode], root)) {
		spin_lock(&view->lock);
		view->of[mode] = root;
		memcpy(to, from, HV_FIRST_SLOT * sizeof(*to));
		memcpy(to + HV_LAST_SLOT + 1, from + HV_LAST_SLOT + 1,
		       (PT_ENTRIES - HV_LAST_SLOT - 1) * sizeof(*to));
		spin_unlock(&view->lock);
	}
	return ptr_to_mfn(to);
}

static void each_copy(mfn_t l4, unsigned index, bool forget)
{
	for (unsigned i = 0; i < 2 * MAX_CPUS; i++) {
		struct view *v = &views[i / 2];

		if (!__atomic_load_n(&v->l4[0], __ATOMIC_SEQ_CST))
			continue;
		spin_lock(&v->lock);
		if (mfn_eq(v->of[i % 2], l4) && forget)
			v->of[i % 2] = MFN_NONE;
		else if (mfn_eq(v->of[i % 2], l4))
			WRITE_ONCE(v->l4[i % 2][index],
				   READ_ONCE(((uint64_t *)mfn_to_ptr(l4))[index]));
		spin_unlock(&v->lock);
	}
}

void xpti_entry_changed(mfn_t l4, unsigned index)
{
	if (mitigations.xpti)
		each_copy(l4, index, false);
}

void xpti_forget(mfn_t l4)
{
	if (mitigations.xpti)
		each_copy(l4, 0, true);
}
