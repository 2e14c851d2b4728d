// SPDX-License-Identifier: MIT
#include "tests/guests/lib/grants.h"

struct grant_entry_v1 *grant_table;

long grant_op(unsigned command, void *op, unsigned count)
{
	return hypercall3(__HYPERVISOR_grant_table_op, command, VA(op), count);
}

uint64_t *window_entry(unsigned page)
{
	if (!(*entry_at(l4_mfn(), WINDOW, 4) & PTE_P))
		map_at(l4_mfn(), WINDOW, 0);
	return entry_at(l4_mfn(), WINDOW_VA(page), 1);
}

void grants_init(void)
{
	struct gnttab_setup_table op = {.dom = DOMID_SELF, .nr_frames = 1};
	xen_pfn_t frame = 0;

	if (!grant_table) {
		set_xen_guest_handle(op.frame_list, &frame);
		CHECK_EQ("setup_table", grant_op(GNTTABOP_setup_table, &op, 1), 0);
		CHECK_EQ("its status", op.status, GNTST_okay);
		CHECK_EQ("the table", set_entry(window_entry(WINDOW_PAGES), frame << 12 | RW), 0);
		grant_table = (void *)WINDOW_VA(WINDOW_PAGES);
	}
	memset(grant_table, 0, 4096);
}

void grant_to(domid_t who, uint32_t ref, uint64_t mfn, uint16_t flags)
{
	grant_table[ref].domid = who;
	grant_table[ref].frame = (uint32_t)mfn;
	__atomic_store_n(&grant_table[ref].flags, flags, __ATOMIC_SEQ_CST);
}

int grant_map(domid_t whose, uint32_t ref, unsigned page, uint32_t flags, uint32_t *handle)
{
	struct gnttab_map_grant_ref op = {.host_addr = WINDOW_VA(page),
					  .flags = GNTMAP_host_map | flags,
					  .ref = ref,
					  .dom = whose};

	if (flags & GNTMAP_contains_pte)
		op.host_addr = machine_address(window_entry(page));
	CHECK_EQ("map_grant_ref", grant_op(GNTTABOP_map_grant_ref, &op, 1), 0);
	*handle = op.handle;
	return op.status;
}

int grant_unmap(uint32_t handle, uint64_t host_addr)
{
	struct gnttab_unmap_grant_ref op = {.host_addr = host_addr, .handle = handle};

	CHECK_EQ("unmap_grant_ref", grant_op(GNTTABOP_unmap_grant_ref, &op, 1), 0);
	return op.status;
}

#define COPY_END(end, side)                                     \
	do {                                                    \
		(end).domid = (side).whose;                     \
		(end).offset = (uint16_t)(side).offset;         \
		if ((side).is_ref)                              \
			(end).u.ref = (grant_ref_t)(side).what; \
		else                                            \
			(end).u.gmfn = (side).what;             \
	} while (0)

int grant_copy(struct copy_side from, struct copy_side to, unsigned bytes)
{
	struct gnttab_copy op = {.len = (uint16_t)bytes};

	COPY_END(op.source, from);
	COPY_END(op.dest, to);
	op.flags = (uint16_t)((from.is_ref ? GNTCOPY_source_gref : 0) |
			      (to.is_ref ? GNTCOPY_dest_gref : 0));
	CHECK_EQ("copy", grant_op(GNTTABOP_copy, &op, 1), 0);
	return op.status;
}
