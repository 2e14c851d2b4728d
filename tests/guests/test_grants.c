// SPDX-License-Identifier: MIT
/*
 * Grants of a domain to itself, which go the same way as those to another: what is granted is mapped, written, copied and given back, and what is not
 * is refused: after it was revoked, twice given back, more than was granted, a page table, a frame of nobody's, copies across a page's end.
 */
#include "tests/guests/lib/grants.h"

static domid_t self;

static void table_map(void)
{
	grants_init();
	self = own_domid();
}

static void grant(uint32_t ref, uint64_t mfn, uint16_t flags)
{
	grant_to(self, ref, mfn, flags);
}

static int map(uint32_t ref, unsigned page, uint32_t flags, uint32_t *handle)
{
	return grant_map(DOMID_SELF, ref, page, flags, handle);
}

static int copy(bool from_ref, uint64_t from, unsigned from_offset, bool to_ref, uint64_t to,
		unsigned to_offset, unsigned bytes)
{
	return grant_copy((struct copy_side){DOMID_SELF, from_ref, from, from_offset},
			  (struct copy_side){DOMID_SELF, to_ref, to, to_offset}, bytes);
}

static void poke(uint64_t va)
{
	*(volatile uint64_t *)va = 0x5555;
}

static void sizes_and_versions(void)
{
	struct gnttab_query_size size = {.dom = DOMID_SELF};
	struct gnttab_get_version version = {.dom = DOMID_SELF};
	struct gnttab_set_version set = {.version = 1};

	table_map();
	CHECK_EQ("query_size", grant_op(GNTTABOP_query_size, &size, 1), 0);
	CHECK_EQ("frames", size.nr_frames, 1);
	CHECK(size.max_nr_frames >= 32, "%u frames at most", size.max_nr_frames);
	CHECK_EQ("get_version", grant_op(GNTTABOP_get_version, &version, 1), 0);
	CHECK_EQ("version", version.version, 1);
	CHECK_EQ("set_version 1", grant_op(GNTTABOP_set_version, &set, 1), 0);
	set.version = 2;
	CHECK_EQ("set_version 2", grant_op(GNTTABOP_set_version, &set, 1), -ENOSYS);
	CHECK_EQ("transfer", grant_op(GNTTABOP_transfer, &size, 1), -ENOSYS);
	CHECK_EQ("no such operation", grant_op(77, &size, 1), -ENOSYS);
	CHECK_EQ("a table in the hypervisor",
		 grant_op(GNTTABOP_query_size, (void *)0xffff820000000000, 1), -EFAULT);
}

static void map_write_unmap(void)
{
	volatile uint64_t *page = page_alloc();
	uint32_t handle, second;

	table_map();
	grant(FIRST, mfn_of((void *)(uintptr_t)page), GRANTED);
	CHECK_EQ("map", map(FIRST, 0, 0, &handle), GNTST_okay);
	CHECK_EQ("flags", grant_table[FIRST].flags, GRANTED | GTF_reading | GTF_writing);
	poke(WINDOW);
	CHECK_EQ("what was written", page[0], 0x5555);
	CHECK_EQ("map again, by its entry", map(FIRST, 1, GNTMAP_contains_pte, &second),
		 GNTST_okay);
	CHECK(second != handle, "both mappings have the same handle");
	CHECK_EQ("by the second", *(volatile uint64_t *)(WINDOW + 4096), 0x5555);
	CHECK_EQ("the wrong place", grant_unmap(handle, WINDOW + 2 * 4096ull), GNTST_bad_virt_addr);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
	CHECK_EQ("flags while one is left", grant_table[FIRST].flags,
		 GRANTED | GTF_reading | GTF_writing);
	CHECK(!no_fault(poke, WINDOW), "it is mapped still");
	CHECK_EQ("unmap twice", grant_unmap(handle, WINDOW), GNTST_bad_handle);
	CHECK_EQ("unmap", grant_unmap(second, machine_address(window_entry(1))), GNTST_okay);
	CHECK_EQ("flags", grant_table[FIRST].flags, GRANTED);
	CHECK_EQ("no such handle", grant_unmap(0xfffffff0, WINDOW), GNTST_bad_handle);
}

static void readonly(void)
{
	volatile uint64_t *page = page_alloc();
	uint32_t handle;

	table_map();
	page[0] = 7;
	grant(FIRST, mfn_of((void *)(uintptr_t)page), READONLY);
	CHECK_EQ("to write", map(FIRST, 0, 0, &handle), GNTST_permission_denied);
	CHECK_EQ("flags", grant_table[FIRST].flags, READONLY);
	CHECK_EQ("to read", map(FIRST, 0, GNTMAP_readonly, &handle), GNTST_okay);
	CHECK_EQ("flags", grant_table[FIRST].flags, READONLY | GTF_reading);
	CHECK(!no_fault(poke, WINDOW), "it can be written");
	CHECK_EQ("what is in it", page[0], 7);
	/* Making that entry writable would be taking what was not given; the frame is its own, so here it is allowed. */
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
	CHECK_EQ("flags", grant_table[FIRST].flags, READONLY);
}

static void revoked(void)
{
	uint64_t mfn = mfn_of(page_alloc());
	uint32_t handle;

	table_map();
	CHECK_EQ("an empty entry", map(FIRST, 0, 0, &handle), GNTST_bad_gntref);
	CHECK_EQ("behind the table", map(GRANT_ENTRIES * 64, 0, 0, &handle), GNTST_bad_gntref);
	grant(FIRST, mfn, GRANTED);
	CHECK_EQ("map", map(FIRST, 0, 0, &handle), GNTST_okay);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
	grant(FIRST, mfn, REVOKED);
	CHECK_EQ("after it was revoked", map(FIRST, 0, 0, &handle), GNTST_bad_gntref);
	grant(FIRST, mfn, GRANTED);
	grant_table[FIRST].domid = 77;
	CHECK_EQ("another's", map(FIRST, 0, 0, &handle), GNTST_bad_gntref);
	grant(FIRST, mfn, GTF_accept_transfer);
	CHECK_EQ("of another kind", map(FIRST, 0, 0, &handle), GNTST_bad_gntref);
	grant(FIRST, mfn, GRANTED | GTF_PCD);
	CHECK_EQ("past the caches", map(FIRST, 0, 0, &handle), GNTST_bad_gntref);
}

/* While it is used the frame in the table is only a number. */
static void frame_changed_while_mapped(void)
{
	volatile uint64_t *page = page_alloc(), *other = page_alloc();
	uint32_t handle, second;

	table_map();
	page[0] = 1;
	other[0] = 2;
	grant(FIRST, mfn_of((void *)(uintptr_t)page), GRANTED);
	CHECK_EQ("map", map(FIRST, 0, 0, &handle), GNTST_okay);
	grant_table[FIRST].frame = (uint32_t)mfn_of((void *)(uintptr_t)other);
	CHECK_EQ("map again", map(FIRST, 1, 0, &second), GNTST_okay);
	CHECK_EQ("the second is the first", *(volatile uint64_t *)(WINDOW + 4096), 1);
	CHECK_EQ("unmap", grant_unmap(second, WINDOW + 4096), GNTST_okay);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
	CHECK_EQ("map", map(FIRST, 0, 0, &handle), GNTST_okay);
	CHECK_EQ("the new one", *(volatile uint64_t *)WINDOW, 2);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
}

static void what_is_no_page(void)
{
	uint64_t *page = page_alloc();
	uint32_t handle;

	table_map();
	grant(FIRST, 0x200, GRANTED);
	CHECK_EQ("the hypervisor's", map(FIRST, 0, 0, &handle), GNTST_bad_page);
	grant(FIRST, 0xfffffff0, GRANTED);
	CHECK_EQ("nobody's", map(FIRST, 0, 0, &handle), GNTST_bad_page);
	grant(FIRST, l4_mfn(), GRANTED);
	CHECK_EQ("a page table, to write", map(FIRST, 0, 0, &handle), GNTST_bad_page);
	CHECK_EQ("flags", grant_table[FIRST].flags, GRANTED);
	CHECK_EQ("a page table, to read", map(FIRST, 0, GNTMAP_readonly, &handle), GNTST_okay);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
	/* And the reverse: what may be written becomes no table. */
	grant(FIRST, mfn_of(page), GRANTED);
	CHECK_EQ("map", map(FIRST, 0, 0, &handle), GNTST_okay);
	CHECK_EQ("its own mapping", protect(page, false), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0), -EINVAL);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW), GNTST_okay);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0), 0);
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page), 0), 0);
}

static void places(void)
{
	struct gnttab_map_grant_ref op = {
		.flags = GNTMAP_host_map, .ref = FIRST, .dom = DOMID_SELF};
	static const uint64_t bad[] = {0x7fffffffe000ull, 0xffff820000000000ull,
				       0xffff800000000000ull, WINDOW + 4, 0x123456789abcdef0ull};
	uint64_t table_maddr = machine_address(entry_at(l4_mfn(), WINDOW, 3));

	table_map();
	grant(FIRST, mfn_of(page_alloc()), GRANTED);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		op.host_addr = bad[i];
		CHECK_EQ("map", grant_op(GNTTABOP_map_grant_ref, &op, 1), 0);
		CHECK(op.status == GNTST_bad_virt_addr, "at %lx: %d", bad[i], op.status);
	}
	op.flags |= GNTMAP_contains_pte;
	op.host_addr = table_maddr;
	CHECK_EQ("map", grant_op(GNTTABOP_map_grant_ref, &op, 1), 0);
	CHECK_EQ("in a table of a higher level", op.status, GNTST_bad_virt_addr);
	op.host_addr = 0x200000;
	CHECK_EQ("map", grant_op(GNTTABOP_map_grant_ref, &op, 1), 0);
	CHECK_EQ("in the hypervisor", op.status, GNTST_bad_virt_addr);
	CHECK_EQ("nothing is used", grant_table[FIRST].flags, GRANTED);
}

static void copies(void)
{
	uint8_t *from = page_alloc(), *to = page_alloc();

	table_map();
	memset(from, 0xab, 4096);
	grant(FIRST, mfn_of(from), READONLY);
	grant(FIRST + 1, mfn_of(to), GRANTED);
	CHECK_EQ("copy", copy(true, FIRST, 16, true, FIRST + 1, 32, 100), GNTST_okay);
	CHECK(to[31] == 0 && to[32] == 0xab && to[131] == 0xab && to[132] == 0, "other bytes");
	CHECK_EQ("flags", grant_table[FIRST].flags, READONLY);
	CHECK_EQ("flags", grant_table[FIRST + 1].flags, GRANTED);
	CHECK_EQ("into what is read-only", copy(true, FIRST + 1, 0, true, FIRST, 0, 8),
		 GNTST_permission_denied);
	CHECK_EQ("across the source's end", copy(true, FIRST, 4090, true, FIRST + 1, 0, 8),
		 GNTST_bad_copy_arg);
	CHECK_EQ("across the destination's end", copy(true, FIRST, 0, true, FIRST + 1, 4090, 8),
		 GNTST_bad_copy_arg);
	CHECK_EQ("a whole page", copy(false, mfn_of(from), 0, false, mfn_of(to), 0, 4096),
		 GNTST_okay);
	CHECK(to[0] == 0xab && to[4095] == 0xab, "the page");
	CHECK_EQ("into a page table", copy(false, mfn_of(from), 0, false, l4_mfn(), 0, 8),
		 GNTST_bad_page);
	CHECK_EQ("from the hypervisor", copy(false, 0x200, 0, false, mfn_of(to), 0, 8),
		 GNTST_bad_page);
	CHECK_EQ("an entry that is not there", copy(true, 400, 0, false, mfn_of(to), 0, 8),
		 GNTST_bad_gntref);
}

#define SIDE_REF(n)                               \
	{                                         \
		.domid = DOMID_SELF, .u.ref = (n) \
	}
#define SIDE_FRAME(p)                                    \
	{                                                \
		.domid = DOMID_SELF, .u.gmfn = mfn_of(p) \
	}
#define SOURCE GNTCOPY_source_gref
#define DEST   GNTCOPY_dest_gref
#define BOTH   (SOURCE | DEST)

/* One call whose copies have sides in common, or not, and some of which fail: each is as if it were alone, and nothing is held afterwards. */
static void copies_of_one_call(void)
{
	uint64_t *from = page_alloc(), *other = page_alloc(), *to = page_alloc();
	const struct {
		struct gnttab_copy op; /* and what its status is afterwards */
		uint64_t brings;
	} tried[] = {
		{{SIDE_REF(FIRST), SIDE_FRAME(to), 8, SOURCE, GNTST_okay}, 1},
		{{SIDE_REF(FIRST), SIDE_FRAME(to), 8, SOURCE, GNTST_okay}, 1},
		{{SIDE_REF(FIRST + 1), SIDE_FRAME(to), 8, SOURCE, GNTST_okay}, 2},
		{{SIDE_REF(400), SIDE_FRAME(to), 8, SOURCE, GNTST_bad_gntref}, 0},
		{{SIDE_REF(400), SIDE_FRAME(to), 8, SOURCE, GNTST_bad_gntref}, 0},
		{{SIDE_REF(FIRST), SIDE_FRAME(to), 8, SOURCE, GNTST_okay}, 1},
		{{SIDE_REF(FIRST), SIDE_REF(FIRST), 8, BOTH, GNTST_permission_denied}, 0},
		{{SIDE_FRAME(other), SIDE_FRAME(to), 8, 0, GNTST_okay}, 2},
		{{SIDE_FRAME(other), SIDE_REF(FIRST + 1), 8, DEST, GNTST_okay}, 0},
		{{SIDE_REF(FIRST), SIDE_FRAME(to), 8, SOURCE, GNTST_okay}, 1},
	};
	static struct gnttab_copy ops[ARRAY_SIZE(tried)];

	table_map();
	from[0] = 1;
	other[0] = 2;
	grant(FIRST, mfn_of(from), READONLY);
	grant(FIRST + 1, mfn_of(other), GRANTED);
	for (unsigned i = 0; i < ARRAY_SIZE(tried); i++) {
		ops[i] = tried[i].op;
		ops[i].status = 99;
		ops[i].dest.offset = (uint16_t)(ops[i].flags & GNTCOPY_dest_gref ? 8 : i * 8);
	}
	CHECK_EQ("copies", grant_op(GNTTABOP_copy, ops, ARRAY_SIZE(ops)), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(tried); i++) {
		CHECK_EQ("status", ops[i].status, tried[i].op.status);
		CHECK_EQ("what it brings", to[i], tried[i].brings);
	}
	CHECK_EQ("by the grant", other[1], 2);
	CHECK_EQ("flags", grant_table[FIRST].flags, READONLY);
	CHECK_EQ("flags", grant_table[FIRST + 1].flags, GRANTED);
}

/* An entry that is overwritten takes nothing away from anybody; its handle can be given back without it. */
static void overwritten(void)
{
	uint64_t mfn = mfn_of(page_alloc());
	uint32_t handle;

	table_map();
	grant(FIRST, mfn, GRANTED);
	CHECK_EQ("map", map(FIRST, 0, 0, &handle), GNTST_okay);
	CHECK_EQ("overwrite", set_entry(window_entry(0), 0), 0);
	CHECK_EQ("unmap what is not there", grant_unmap(handle, WINDOW), GNTST_bad_virt_addr);
	CHECK_EQ("still used", grant_table[FIRST].flags, GRANTED | GTF_reading | GTF_writing);
}

/* As many as there are handles, in one hypercall that is interrupted, and back again. */
static void many(void)
{
	static struct gnttab_map_grant_ref maps[500];
	static struct gnttab_unmap_grant_ref unmaps[500];
	uint64_t mfn = mfn_of(page_alloc());

	table_map();
	for (unsigned i = 0; i < 500; i++) {
		grant(FIRST + i, mfn, GRANTED);
		maps[i] = (struct gnttab_map_grant_ref){.host_addr = WINDOW + i * 4096ull,
							.flags = GNTMAP_host_map,
							.ref = FIRST + i,
							.dom = DOMID_SELF};
	}
	window_entry(0);
	CHECK_EQ("map", grant_op(GNTTABOP_map_grant_ref, maps, 500), 0);
	for (unsigned i = 0; i < 500; i++) {
		CHECK_EQ("status", maps[i].status, GNTST_okay);
		unmaps[i] = (struct gnttab_unmap_grant_ref){.host_addr = WINDOW + i * 4096ull,
							    .handle = maps[i].handle};
	}
	*(volatile uint64_t *)(WINDOW + 499 * 4096ull) = 9;
	CHECK_EQ("the first", *(volatile uint64_t *)WINDOW, 9);
	CHECK_EQ("unmap", grant_op(GNTTABOP_unmap_grant_ref, unmaps, 500), 0);
	for (unsigned i = 0; i < 500; i++) {
		CHECK_EQ("status", unmaps[i].status, GNTST_okay);
		CHECK_EQ("flags", grant_table[FIRST + i].flags, GRANTED);
	}
}

const struct part parts[] = {{"sizes-and-versions", sizes_and_versions},
			     {"map-write-unmap", map_write_unmap},
			     {"readonly", readonly},
			     {"revoked", revoked},
			     {"frame-changed-while-mapped", frame_changed_while_mapped},
			     {"what-is-no-page", what_is_no_page},
			     {"places", places},
			     {"copies", copies},
			     {"copies-of-one-call", copies_of_one_call},
			     {"many", many},
			     {"overwritten", overwritten},
			     {NULL, NULL}};
