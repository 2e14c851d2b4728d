// SPDX-License-Identifier: MIT
/*
 * Memory that is given back while it is still in use: mapped, a table, a page of descriptors, shared with the hypervisor. It stays what it is until
 * the last use ends, and is nobody's afterwards; whatever the order, the hypervisor's counts come out even.
 */
#include "tests/guests/lib/guest.h"

#include <xen/memory.h>
#include <xen/vcpu.h>

#define SCRATCH	  0x30000000000ull
#define IMAGE_MFN 0x200ull

/* How many of the frames were taken. */
static long give_back(const xen_pfn_t *frames, unsigned long count, unsigned order)
{
	struct xen_memory_reservation r = {
		.nr_extents = count, .extent_order = order, .domid = DOMID_SELF};

	set_xen_guest_handle(r.extent_start, (xen_pfn_t *)(uintptr_t)frames);
	return hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, VA(&r));
}

static long give_one(uint64_t mfn)
{
	xen_pfn_t frame = mfn;

	return give_back(&frame, 1, 0);
}

static long reservation(void)
{
	domid_t self = DOMID_SELF;

	return hypercall2(__HYPERVISOR_memory_op, XENMEM_current_reservation, VA(&self));
}

static uint64_t *scratch_entry(void)
{
	if (!(*entry_at(l4_mfn(), SCRATCH, 4) & PTE_P))
		map_at(l4_mfn(), SCRATCH, 0);
	return entry_at(l4_mfn(), SCRATCH, 1);
}

static void mapped_page(void)
{
	volatile uint64_t *page = page_alloc();
	uint64_t mfn = mfn_of((void *)(uintptr_t)page), *e = scratch_entry();
	long before = reservation();

	page[0] = 77;
	CHECK_EQ("given back", give_one(mfn), 1);
	CHECK_EQ("given back twice", give_one(mfn), 0);
	CHECK_EQ("what is in it", page[0], 77);
	page[0] = 78;
	CHECK_EQ("a second mapping", set_entry(e, mfn << PAGE_SHIFT | RW), 0);
	CHECK_EQ("unmapped", set_mapping((void *)(uintptr_t)page, 0), 0);
	CHECK_EQ("reservation while a mapping is left", reservation(), before);
	CHECK_EQ("by the second mapping", *(volatile uint64_t *)SCRATCH, 78);
	CHECK_EQ("unmapped", set_entry(e, 0), 0);
	CHECK_EQ("reservation", reservation(), before - 1);
	CHECK_EQ("mapped again", set_entry(e, mfn << PAGE_SHIFT | RO), -EPERM);
	CHECK_EQ("given back once more", give_one(mfn), 0);
}

static void table(void)
{
	uint64_t *t = page_alloc(), *leaf = page_alloc(), mfn = mfn_of(t);

	t[3] = pte(leaf, RW);
	CHECK_EQ("protect", protect(t, false), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), 0);
	CHECK_EQ("given back", give_one(mfn), 1);
	CHECK_EQ("its leaf given back", give_one(mfn_of(leaf)), 1);
	CHECK_EQ("unmapped", set_mapping(t, 0) | set_mapping(leaf, 0), 0);
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), 0);
	CHECK_EQ("unpin again", mmuext(MMUEXT_UNPIN_TABLE, mfn, 0), -EPERM);
	CHECK_EQ("pin again", mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), -EPERM);
}

/* The table in use, and all below it: they stay until another one is loaded, which is never here. */
static void table_in_use(void)
{
	uint64_t *l4 = page_alloc();

	CHECK_EQ("own base given back", give_one(l4_mfn()), 1);
	CHECK_EQ("twice", give_one(l4_mfn()), 0);
	CHECK_EQ("still there", protect(l4, false), 0);
	CHECK_EQ("user base", mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(l4), 0), 0);
	CHECK_EQ("given back", give_one(mfn_of(l4)), 1);
	CHECK_EQ("unmapped", set_mapping(l4, 0), 0);
	CHECK_EQ("no user base", mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0), 0);
	CHECK_EQ("gone", mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(l4), 0), -EPERM);
}

static void descriptor_page(void)
{
	uint64_t *gdt = page_alloc(), frames[1] = {mfn_of(gdt)};

	CHECK_EQ("protect", protect(gdt, false), 0);
	CHECK_EQ("set_gdt", hypercall2(__HYPERVISOR_set_gdt, VA(frames), 512), 0);
	CHECK_EQ("given back", give_one(frames[0]), 1);
	CHECK_EQ("unmapped", set_mapping(gdt, 0), 0);
	CHECK_EQ("an entry", hypercall2(__HYPERVISOR_update_descriptor, frames[0] << PAGE_SHIFT, 0),
		 0);
	CHECK_EQ("no GDT", hypercall2(__HYPERVISOR_set_gdt, 0, 0), 0);
	CHECK_EQ("gone", hypercall2(__HYPERVISOR_set_gdt, VA(frames), 512) < 0, 1);
}

#define DATA32 0x00cff3000000ffffull
KERNEL_CODE(load_es, "mov %edi, %es");

/* What a segment register was loaded from goes, and comes back as data: the processor reads nothing there that was not looked at. */
static void local_table(void)
{
	uint64_t *ldt = page_alloc(), mfn = mfn_of(ldt), *e = scratch_entry();
	long before = reservation();

	for (unsigned i = 0; i < 512; i++)
		ldt[i] = DATA32;
	CHECK_EQ("protect", protect(ldt, false), 0);
	CHECK_EQ("set_ldt", mmuext(MMUEXT_SET_LDT, VA(ldt), 512), 0);
	CHECK(no_fault(load_es, 7 * 8 | 7), "a selector of it");
	CHECK_EQ("writable", protect(ldt, true), -EINVAL);
	CHECK_EQ("a second mapping, writable", set_entry(e, mfn << PAGE_SHIFT | RW), -EINVAL);
	CHECK_EQ("as a table of pages", mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), -EINVAL);
	CHECK_EQ("given back", give_one(mfn), 1);
	CHECK_EQ("unmapped", set_mapping(ldt, 0), 0);
	CHECK(no_fault(load_es, 8 * 8 | 7), "a selector of what is still loaded");
	CHECK_EQ("reservation while it is loaded", reservation(), before);
	CHECK_EQ("the same again", mmuext(MMUEXT_SET_LDT, VA(ldt), 512), 0);
	CHECK_EQ("reservation", reservation(), before - 1);
	CHECK(!no_fault(load_es, 9 * 8 | 7), "a selector of what is not mapped");
	CHECK_EQ("no LDT", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	CHECK(!no_fault(load_es, 9 * 8 | 7), "a selector of nothing");
	CHECK_EQ("vector", caught.vector, 13);
	CHECK_EQ("mapped again", set_entry(e, mfn << PAGE_SHIFT | RW), -EPERM);
}

/* The page is the hypervisor's own: it is not the guest's to give. */
static void shared_page(void)
{
	uint64_t mfn = start_info->shared_info >> PAGE_SHIFT, *e;
	long before = reservation();

	CHECK_EQ("shared info given back", give_one(mfn), 0);
	e = entry_at(l4_mfn(), VA(shared_info), 1);
	CHECK_EQ("unmapped", set_entry(e, 0), 0);
	CHECK_EQ("mapped again", set_entry(e, mfn << PAGE_SHIFT | RW), 0);
	CHECK_EQ("reservation", reservation(), before);
	CHECK_EQ("as a table", mmuext(MMUEXT_PIN_L1_TABLE, mfn, 0), -EINVAL);
}

static void vcpu_info_page(void)
{
	void *page = page_alloc();
	struct vcpu_register_vcpu_info op = {.mfn = mfn_of(page), .offset = 4096 - 8};
	uint64_t mfn = op.mfn;

	CHECK_EQ("across the page's end",
		 hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, VA(&op)), -EINVAL);
	op.offset = 0;
	op.mfn = IMAGE_MFN;
	CHECK_EQ("the hypervisor's",
		 hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, VA(&op)), -EPERM);
	op.mfn = l4_mfn();
	CHECK_EQ("a table", hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, VA(&op)),
		 -EINVAL);
	op.mfn = ~0ull;
	CHECK_EQ("no frame",
		 hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, VA(&op)), -EINVAL);
	CHECK_EQ("given back", give_one(mfn), 1);
}

static void not_ours(void)
{
	static const uint64_t frames[] = {IMAGE_MFN, 0,		 0xfee00,   0xfec00,
					  ~0ull,     1ull << 52, 1ull << 40};

	for (unsigned i = 0; i < ARRAY_SIZE(frames); i++)
		CHECK(give_one(frames[i]) == 0, "frame %llx was taken",
		      (unsigned long long)frames[i]);
	CHECK(give_back((const xen_pfn_t *)0xffff830000000000, 1, 0) == 0,
	      "a list in the hypervisor");
	CHECK(give_back(frames, 1ull << 60, 0) == 0, "a very long list");
	CHECK(give_back(frames, 1, 63) < 1, "a very large extent");
	CHECK(give_back(frames, 1, 1u << 31) < 1, "a very large extent");
}

/* ---- exchange ---- */

static long exchange(const xen_pfn_t *in, unsigned long nr_in, unsigned order_in, xen_pfn_t *out,
		     unsigned long nr_out, unsigned order_out)
{
	struct xen_memory_exchange x = {
		.in = {.nr_extents = nr_in, .extent_order = order_in, .domid = DOMID_SELF},
		.out = {.nr_extents = nr_out, .extent_order = order_out, .domid = DOMID_SELF}};

	set_xen_guest_handle(x.in.extent_start, (xen_pfn_t *)(uintptr_t)in);
	set_xen_guest_handle(x.out.extent_start, out);
	return hypercall2(__HYPERVISOR_memory_op, XENMEM_exchange, VA(&x));
}

static void exchanges(void)
{
	void *page = page_alloc(), *other = page_alloc(), *table = page_alloc();
	xen_pfn_t in[2] = {mfn_of(page), mfn_of(other)}, out[2] = {M2P[in[0]], M2P[in[1]]};
	uint64_t *entry = entry_at(l4_mfn(), VA(page), 1), *next = entry_at(l4_mfn(), VA(other), 1);
	long before = reservation();

	CHECK_EQ("a mapped page", exchange(in, 1, 0, out, 1, 0), -EINVAL);
	CHECK_EQ("protect", protect(table, false), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(table), 0), 0);
	in[1] = mfn_of(table);
	CHECK_EQ("a table", exchange(in + 1, 1, 0, out, 1, 0), -EINVAL);
	in[1] = IMAGE_MFN;
	CHECK_EQ("the hypervisor's", exchange(in + 1, 1, 0, out, 1, 0), -EINVAL);
	in[1] = start_info->shared_info >> PAGE_SHIFT;
	CHECK_EQ("the shared page", exchange(in + 1, 1, 0, out, 1, 0), -EINVAL);
	CHECK_EQ("less than is given", exchange(in, 2, 0, out, 1, 0), -EINVAL);
	CHECK_EQ("sums that wrap", exchange(in, 1ull << 63, 1, out, 0, 0), -EINVAL);
	CHECK_EQ("orders beyond all", exchange(in, 1, 64, out, 1, 64) < 0, 1);
	in[1] = mfn_of(other);
	CHECK_EQ("unmap", set_entry(entry, 0) | set_entry(next, 0), 0);
	/* Who has no devices needs none, and could break memory into pieces for all others. */
	CHECK_EQ("two for one of twice the size", exchange(in, 2, 0, out, 1, 1),
		 privileged() ? 0 : -EPERM);
	if (!privileged())
		CHECK_EQ("one for one", exchange(in, 1, 0, out, 1, 0), 0);
	CHECK_EQ("aligned", privileged() ? out[0] % 2 : 0, 0);
	CHECK_EQ("M2P", M2P[out[0]], (VA(page) - VIRT_BASE) >> PAGE_SHIFT);
	CHECK_EQ("reservation", reservation(), before);
	CHECK_EQ("the old one is gone", set_entry(entry, in[0] << PAGE_SHIFT | RW), -EPERM);
	CHECK_EQ("the new one is mapped", set_entry(entry, out[0] << PAGE_SHIFT | RW), 0);
	for (unsigned i = 0; i < 512; i++)
		CHECK(((volatile uint64_t *)page)[i] == 0, "somebody's data in the new page");
	/* The same page twice: it must not be given back twice. */
	in[0] = in[1] = privileged() ? out[0] + 1 : in[1];
	out[0] = out[1] = 1;
	CHECK(exchange(in, 2, 0, out, privileged() ? 1 : 2, privileged()) < 0, "one page as two");
}

/* As many as it may have, and then all back. */
static void populate(void)
{
	static xen_pfn_t frames[512];
	struct xen_memory_reservation r = {
		.nr_extents = 512, .extent_order = 0, .domid = DOMID_SELF};
	long before = reservation(), most, got;
	domid_t self = DOMID_SELF;

	most = hypercall2(__HYPERVISOR_memory_op, XENMEM_maximum_reservation, VA(&self)) - before;
	for (unsigned i = 0; i < 512; i++)
		frames[i] = start_info->nr_pages + i;
	set_xen_guest_handle(r.extent_start, frames);
	got = hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, VA(&r));
	CHECK_EQ("populated", got, MIN(most, 512));
	CHECK_EQ("reservation", reservation(), before + got);
	for (unsigned i = 0; i < got; i++) {
		CHECK_EQ("M2P", M2P[frames[i]], start_info->nr_pages + i);
		scratch_entry();
		CHECK_EQ("map", set_mapping((void *)SCRATCH, frames[i] << PAGE_SHIFT | RW), 0);
		for (unsigned k = 0; k < 512; k++)
			CHECK(((volatile uint64_t *)SCRATCH)[k] == 0,
			      "somebody's data in a new page");
		((volatile uint64_t *)SCRATCH)[1] = 0xdada;
	}
	CHECK_EQ("unmap", set_mapping((void *)SCRATCH, 0), 0);
	CHECK_EQ("given back", give_back(frames, (unsigned long)got, 0), got);
	CHECK_EQ("reservation", reservation(), before);
}

/* ---- invariant 5: translations that the guest did not flush ---- */

KERNEL_CODE(poke, "movq $0x666, (%rdi)");

/* A page is given back while the TLB still has it; when it is somebody's again, nothing comes in by the old way. */
static void stale_after_free(void)
{
	static xen_pfn_t frames[64];
	struct xen_memory_reservation r = {.nr_extents = 64, .domid = DOMID_SELF};
	uint64_t *e = scratch_entry(), *page = page_alloc(), mfn = mfn_of(page);
	unsigned again = 64;

	CHECK_EQ("unmap", set_mapping(page, 0), 0);
	CHECK_EQ("map", set_mapping((void *)SCRATCH, mfn << PAGE_SHIFT | RW), 0);
	*(volatile uint64_t *)SCRATCH = 1;
	CHECK_EQ("unmap without a flush", set_entry(e, 0), 0);
	CHECK_EQ("given back", give_one(mfn), 1);
	no_fault(poke, SCRATCH);
	for (unsigned i = 0; i < 64; i++)
		frames[i] = start_info->nr_pages + i;
	set_xen_guest_handle(r.extent_start, frames);
	CHECK_EQ("populate", hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, VA(&r)),
		 64);
	no_fault(poke, SCRATCH + 8);
	for (unsigned i = 0; i < 64; i++)
		again = frames[i] == mfn ? i : again;
	CHECK_EQ("map",
		 set_entry(entry_at(l4_mfn(), SCRATCH + PAGE_SIZE, 1),
			   frames[again % 64] << PAGE_SHIFT | RW),
		 0);
	for (unsigned i = 0; i < 512; i++)
		CHECK(((volatile uint64_t *)(SCRATCH + PAGE_SIZE))[i] == 0, "word %u was written",
		      i);
	CHECK_EQ("unmap", set_mapping((void *)(SCRATCH + PAGE_SIZE), 0), 0);
	CHECK_EQ("given back", give_back(frames, 64, 0), 64);
	if (again == 64)
		skip("the page went elsewhere");
}

/* A page becomes a table while the TLB still has it writable. */
static void stale_after_pin(void)
{
	uint64_t *e = scratch_entry(), *page = page_alloc();

	CHECK_EQ("map", set_mapping((void *)SCRATCH, pte(page, RW)), 0);
	*(volatile uint64_t *)SCRATCH = 0;
	*(volatile uint64_t *)page = 0;
	CHECK_EQ("unmap without a flush", set_entry(e, 0), 0);
	CHECK_EQ("protect without a flush",
		 set_entry(entry_at(l4_mfn(), VA(page), 1), pte(page, RO)), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0), 0);
	CHECK(!no_fault(poke, SCRATCH), "the table was written through an old translation");
	/* 0x666 is not present: by the read-only mapping it is an update of the table, and allowed. */
	CHECK_EQ("the table", page[0], 0);
	CHECK(no_fault(poke, VA(page)), "an entry that is not present");
	CHECK_EQ("the table", page[0], 0x666);
}

const struct part parts[] = {{"mapped-page", mapped_page},
			     {"table", table},
			     {"table-in-use", table_in_use},
			     {"descriptor-page", descriptor_page},
			     {"local-table", local_table},
			     {"vcpu-info-page", vcpu_info_page},
			     {"not-ours", not_ours},
			     {"exchanges", exchanges},
			     {"populate", populate},
			     {"stale-after-free", stale_after_free},
			     {"stale-after-pin", stale_after_pin},
			     {"shared-page", shared_page},
			     {NULL, NULL}};
