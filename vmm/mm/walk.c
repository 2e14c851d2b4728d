/* SPDX-License-Identifier: MIT */
/* See walk.h. */
#include "vmm/mm/walk.h"

#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"

static int walk(mfn_t table, uint64_t va, uint64_t *l1e, mfn_t *l1_table)
{
	if (!guest_address_ok(va))
		return -EFAULT;
	for (unsigned level = 4;; level--) {
		uint64_t pte;

		if (!mfn_valid(table) || (mfn_frame(table)->ref & REF_IO))
			return -EFAULT;
		pte = READ_ONCE(((uint64_t *)mfn_to_ptr(table))[pt_index(va, level)]);
		if (level == 1) {
			*l1e = pte;
			*l1_table = table;
			return 0;
		}
		if (!(pte & PTE_P) || (pte & PTE_PSE))
			return -EFAULT;
		table = pte_mfn(pte);
	}
}

int guest_walk(uint64_t va, uint64_t *l1e, mfn_t *l1_table)
{
	const struct vcpu *v = current;

	return walk(v->kernel_mode ? v->table_kernel : v->table_user, va, l1e, l1_table);
}

int guest_walk_kernel(uint64_t va, uint64_t *l1e, mfn_t *l1_table)
{
	return walk(current->table_kernel, va, l1e, l1_table);
}
