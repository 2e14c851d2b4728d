// SPDX-License-Identifier: MIT
/*
 * A kernel that writes its own page tables tries to get at what is not its own: a writable mapping of a table (directly, by a second
 * mapping, by pinning what is mapped writable), every frame of RAM that belongs to somebody else, the hypervisor's slots of an L4, tables at the
 * wrong level, superpages. Each is refused and nothing is changed. The numbers are those of the invariants in vmm/mm/page_type.c.
 */
#include "tests/guests/lib/guest.h"

#include <xen/grant_table.h>
#include <xen/memory.h>

#define FIRST_SLOT 256u
#define LAST_SLOT  271u
#define IMAGE_MFN  0x200ull /* the hypervisor's first page: it is loaded at 2 MiB */
#define SCRATCH	   0x10000000000ull

static volatile uint64_t *const scratch = (void *)SCRATCH;

/* A fresh table: all zero, mapped read-only. */
static uint64_t *new_table(void)
{
	uint64_t *t = page_alloc();

	if (protect(t, false))
		error("protect");
	return t;
}

static uint64_t *new_pinned(unsigned command)
{
	uint64_t *t = new_table();
	long rc = mmuext(command, mfn_of(t), 0);

	if (rc)
		error("pin: %ld", rc);
	return t;
}

/* The L1 entry by which SCRATCH is mapped; its tables exist from then on. */
static uint64_t *scratch_entry(void)
{
	if (!(*entry_at(l4_mfn(), SCRATCH, 4) & PTE_P))
		map_at(l4_mfn(), SCRATCH, 0);
	return entry_at(l4_mfn(), SCRATCH, 1);
}

static void refused(const char *what, long rc)
{
	CHECK(rc == -EINVAL || rc == -EPERM, "%s: %ld", what, rc);
}

/* Invariant 1: a frame that is a table is writable nowhere. */
static void writable_table(void)
{
	uint64_t *t = new_pinned(MMUEXT_PIN_L1_TABLE), *e = scratch_entry();

	refused("its own mapping", set_mapping(t, pte(t, RW)));
	refused("a second mapping", set_entry(e, pte(t, RW)));
	CHECK_EQ("scratch", *e, 0);
	CHECK_EQ("reading it", set_entry(e, pte(t, RO)), 0);
	refused("making that writable", set_entry(e, pte(t, RW)));
	refused("by update_va_mapping", set_mapping((void *)SCRATCH, pte(t, RW)));
	CHECK_EQ("scratch", *e & PTE_W, 0);
	CHECK_EQ("unmapping", set_entry(e, 0), 0);
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(t), 0), 0);
	CHECK_EQ("no table any more", protect(t, true), 0);
	t[0] = 1;
}

/* And the reverse: what is writable somewhere becomes no table. */
static void writable_page(void)
{
	static const unsigned commands[] = {MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE,
					    MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE};
	void *page = page_alloc();
	uint64_t *e = scratch_entry();

	for (unsigned i = 0; i < ARRAY_SIZE(commands); i++)
		refused("pin", mmuext(commands[i], mfn_of(page), 0));
	refused("new base", mmuext(MMUEXT_NEW_BASEPTR, mfn_of(page), 0));
	refused("new user base", mmuext(MMUEXT_NEW_USER_BASEPTR, mfn_of(page), 0));
	refused("as an L3", set_entry(entry_at(l4_mfn(), SCRATCH, 4) + 1, pte(page, RW)));
	CHECK_EQ("second mapping", set_entry(e, pte(page, RW)), 0);
	CHECK_EQ("protect", protect(page, false), 0);
	refused("pin with the second mapping left", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0));
	CHECK_EQ("unmapping", set_entry(e, 0), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0), 0);
	refused("as an L2", mmuext(MMUEXT_PIN_L2_TABLE, mfn_of(page), 0));
	refused("as an L4", mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(page), 0));
	refused("a second pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0));
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page), 0), 0);
	refused("unpin again", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page), 0));
}

/* ---- writes to a table that become updates ---- */

KERNEL_CODE(store8, "mov (%rdi), %rax; mov 8(%rdi), %rcx; mov %rax, (%rcx)");
KERNEL_CODE(store4, "mov (%rdi), %rax; mov 8(%rdi), %rcx; mov %eax, (%rcx)");
KERNEL_CODE(store1, "mov (%rdi), %rax; mov 8(%rdi), %rcx; mov %al, (%rcx)");
KERNEL_CODE(exchange, "mov (%rdi), %rax; mov 8(%rdi), %rcx; xchg %rax, (%rcx); mov %rax, (%rdi)");
KERNEL_CODE(set_bit, "mov 8(%rdi), %rcx; lock btsq $1, (%rcx)");
KERNEL_CODE(clear_bit, "mov 8(%rdi), %rcx; lock andq $~2, (%rcx)");
KERNEL_CODE(swap, "mov (%rdi), %rdx; mov 8(%rdi), %rcx; mov 16(%rdi), %rax\n"
		  "lock cmpxchg %rdx, (%rcx); sete %al; movzbl %al, %eax; mov %rax, 16(%rdi)");
KERNEL_CODE(store_unaligned, "mov (%rdi), %rax; mov 8(%rdi), %rcx; mov %rax, 4(%rcx)");
KERNEL_CODE(store_sse, "mov 8(%rdi), %rcx; movups %xmm0, (%rcx)");

struct store {
	uint64_t value;
	volatile uint64_t *at;
	uint64_t expected;
};

static bool stores(void (*how)(uint64_t), struct store *s)
{
	bool fine = no_fault(how, VA(s));

	CHECK(fine || caught.vector == 14, "vector %llu", (unsigned long long)caught.vector);
	CHECK(fine || caught.error == 3, "error code %llx", (unsigned long long)caught.error);
	CHECK(fine || caught_cr2 - VA(s->at) < 8, "cr2 %llx", (unsigned long long)caught_cr2);
	return fine;
}

static void table_writes(void)
{
	uint64_t *e = scratch_entry(), *page = page_alloc(),
		 *table = (uint64_t *)(VA(e) & PAGE_MASK);
	struct store s = {pte(page, RW), e, 0};

	CHECK(stores(store8, &s), "a fair entry");
	CHECK_EQ("the entry", *e, pte(page, RW));
	scratch[0] = 0x1234;
	CHECK_EQ("what was written through it", page[0], 0x1234);
	s.value = pte(page, RO);
	CHECK(stores(exchange, &s), "exchange");
	CHECK_EQ("what it was", s.value & ~(PTE_A | PTE_D), pte(page, RW) & ~(PTE_A | PTE_D));
	CHECK(stores(set_bit, &s), "set the writable bit");
	CHECK(*e & PTE_W, "the bit is not set");
	CHECK(stores(clear_bit, &s), "clear the writable bit");
	CHECK(!(*e & PTE_W), "the bit is still set");
	s.expected = *e;
	s.value = pte(page, RW);
	CHECK(stores(swap, &s), "compare and exchange");
	CHECK(s.expected == 1 && *e == pte(page, RW), "it did not exchange");
	s.expected = 0x77;
	s.value = 0;
	CHECK(stores(swap, &s), "compare and exchange");
	CHECK(s.expected == 0 && *e == pte(page, RW), "it did exchange");
	s.value = 0;
	CHECK(stores(store4, &s), "the lower half");
	CHECK_EQ("the entry", *e, pte(page, RW) >> 32 << 32);
	CHECK(stores(store1, &s), "a byte");
	CHECK(stores(store8, &s), "nothing");
	/* And what must not stand there. */
	s.value = pte(table, RW);
	CHECK(!stores(store8, &s), "the table maps itself writable");
	s.value = IMAGE_MFN << PAGE_SHIFT | RO;
	CHECK(!stores(store8, &s), "the hypervisor's image is mapped");
	CHECK(!stores(exchange, &s), "the hypervisor's image is mapped");
	s.expected = 0;
	CHECK(!stores(swap, &s), "the hypervisor's image is mapped");
	s.value = pte(page, RW);
	CHECK(!stores(store_unaligned, &s), "one write to two entries");
	CHECK(!stores(store_sse, &s), "one write to two entries");
	CHECK_EQ("the entry", *e, 0);
}

static void higher_tables_written(void)
{
	uint64_t *l2e = entry_at(l4_mfn(), SCRATCH, 2), *l1 = new_table();
	struct store s = {pte(l1, RW), l2e + 1, 0};

	CHECK(stores(store8, &s), "a table for the next 2 MiB");
	CHECK_EQ("entry", *s.at, pte(l1, RW));
	refused("that table writable", protect(l1, true));
	s.value = pte(page_alloc(), RW);
	CHECK(!stores(store8, &s), "a page that is writable as a table");
	s.value = IMAGE_MFN << PAGE_SHIFT | RW;
	CHECK(!stores(store8, &s), "the hypervisor's page as a table");
	s.value = pte(l1, RW | PTE_PS);
	CHECK(!stores(store8, &s), "a superpage");
	s.at = (uint64_t *)start_info->pt_base + FIRST_SLOT;
	s.value = 0;
	CHECK(!stores(store8, &s), "a hypervisor slot of the L4");
	s.at = l2e + 1;
	CHECK(stores(store8, &s), "nothing");
	CHECK_EQ("no table any more", protect(l1, true), 0);
}

/* Who reads only is no table yet: a write there is the guest's own fault. */
static void read_only_page(void)
{
	uint64_t *page = page_alloc();
	struct store s = {1, page, 0};

	CHECK_EQ("protect", protect(page, false), 0);
	CHECK(!stores(store8, &s), "a read-only page was written");
	CHECK_EQ("page", page[0], 0);
}

/* ---- frames of others ---- */

/* The one frame of the domain's grant table. */
static uint64_t grant_table_mfn(void)
{
	struct gnttab_setup_table op = {.dom = DOMID_SELF, .nr_frames = 1};
	xen_pfn_t frame = 0;

	set_xen_guest_handle(op.frame_list, &frame);
	hypercall3(__HYPERVISOR_grant_table_op, GNTTABOP_setup_table, VA(&op), 1);
	return frame;
}

/* Invariant 2, for every frame of the machine's RAM: mapped only when it is the domain's own. */
static void frames_of_others(void)
{
	uint64_t *e = scratch_entry(), own = 0, others = 0, grants = grant_table_mfn();
	long last = hypercall2(__HYPERVISOR_memory_op, XENMEM_maximum_ram_page, 0);

	CHECK(last > 0x4000, "maximum_ram_page: %ld", last);
	/* Below 1 MiB there are firmware and its tables, which a dom0 reads. */
	for (uint64_t mfn = privileged() ? 0x100 : 0; mfn <= (uint64_t)last; mfn++) {
		bool mine = M2P[mfn] < start_info->nr_pages &&
			    mfn_of((void *)(VIRT_BASE + (M2P[mfn] << PAGE_SHIFT))) == mfn;
		long rc = set_entry(e, mfn << PAGE_SHIFT | RO);

		if (mine || mfn == grants || mfn << PAGE_SHIFT == start_info->shared_info) {
			CHECK(rc == 0, "own frame %llx: %ld", (unsigned long long)mfn, rc);
			own++;
			continue;
		}
		if (rc == 0 && privileged() && mfn >= (uint64_t)last - 64)
			continue; /* the firmware's ACPI tables */
		CHECK(rc == -EPERM, "frame %llx of somebody else, to be read: %ld",
		      (unsigned long long)mfn, rc);
		rc = set_entry(e, mfn << PAGE_SHIFT | RW);
		CHECK(rc == -EPERM, "frame %llx of somebody else, to be written: %ld",
		      (unsigned long long)mfn, rc);
		others++;
	}
	CHECK(own > 16000 && others > 16000, "%llu own, %llu others", (unsigned long long)own,
	      (unsigned long long)others);
	CHECK_EQ("unmap", set_entry(e, 0), 0);
}

static void interrupt_controllers(void)
{
	uint64_t *e = scratch_entry();

	CHECK_EQ("local APIC", set_entry(e, 0xfee00000 | RO), -EPERM);
	CHECK_EQ("local APIC", set_entry(e, 0xfee00000 | RW), -EPERM);
	CHECK_EQ("end of the range of messages", set_entry(e, 0xfeeff000 | RW), -EPERM);
	CHECK_EQ("I/O APIC", set_entry(e, 0xfec00000 | RW), -EPERM);
	CHECK_EQ("beyond all addresses", set_entry(e, 1ull << 51 | RW), -EPERM);
	CHECK_EQ("entry", *e, 0);
}

/* Operations on frames by number, instead of entries. */
static void operations_on_others(void)
{
	struct mmu_update u = {.ptr = IMAGE_MFN << PAGE_SHIFT, .val = 0};
	uint64_t before = M2P[IMAGE_MFN];
	void *page = page_alloc();

	CHECK_EQ("update", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF), -EPERM);
	u.ptr |= MMU_MACHPHYS_UPDATE;
	CHECK_EQ("M2P", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF), -EPERM);
	CHECK_EQ("M2P entry", M2P[IMAGE_MFN], before);
	refused("clear", mmuext(MMUEXT_CLEAR_PAGE, IMAGE_MFN, 0));
	refused("copy to", mmuext(MMUEXT_COPY_PAGE, IMAGE_MFN, mfn_of(page)));
	refused("copy from", mmuext(MMUEXT_COPY_PAGE, mfn_of(page), IMAGE_MFN));
	refused("pin", mmuext(MMUEXT_PIN_L1_TABLE, IMAGE_MFN, 0));
	refused("unpin", mmuext(MMUEXT_UNPIN_TABLE, IMAGE_MFN, 0));
	refused("new base", mmuext(MMUEXT_NEW_BASEPTR, IMAGE_MFN, 0));
	refused("new user base", mmuext(MMUEXT_NEW_USER_BASEPTR, IMAGE_MFN, 0));
	refused("no frame", mmuext(MMUEXT_PIN_L1_TABLE, ~0ull, 0));
	refused("clear a table", mmuext(MMUEXT_CLEAR_PAGE, l4_mfn(), 0));
	CHECK_EQ("descriptor",
		 hypercall2(__HYPERVISOR_update_descriptor, IMAGE_MFN << PAGE_SHIFT, 0), -EPERM);
	refused("descriptor in a table",
		hypercall2(__HYPERVISOR_update_descriptor, l4_mfn() << PAGE_SHIFT, 0));
	for (unsigned i = 0; i < 512; i++)
		CHECK(((uint64_t *)page)[i] == 0, "something was copied");
}

/* ---- levels ---- */

static void levels(void)
{
	uint64_t *l4e = entry_at(l4_mfn(), SCRATCH, 4) + 1, *l3, *l2, *l1, *l4;

	l1 = new_pinned(MMUEXT_PIN_L1_TABLE);
	l2 = new_pinned(MMUEXT_PIN_L2_TABLE);
	l3 = new_pinned(MMUEXT_PIN_L3_TABLE);
	l4 = new_pinned(MMUEXT_PIN_L4_TABLE);
	refused("L4 to L1", set_entry(l4e, pte(l1, RW)));
	refused("L4 to L2", set_entry(l4e, pte(l2, RW)));
	refused("L4 to L4", set_entry(l4e, pte(l4, RW)));
	refused("L4 to itself", set_entry(l4e, l4_mfn() << PAGE_SHIFT | RW));
	refused("L3 to L1", set_entry(l3, pte(l1, RW)));
	refused("L3 to itself", set_entry(l3, pte(l3, RW)));
	refused("L3 to L4", set_entry(l3, pte(l4, RW)));
	refused("L2 to itself", set_entry(l2, pte(l2, RW)));
	refused("L2 to L3", set_entry(l2, pte(l3, RW)));
	refused("L1 to itself, writable", set_entry(l1, pte(l1, RW)));
	refused("L1 to L4, writable", set_entry(l1, pte(l4, RW)));
	CHECK_EQ("L1 to itself", set_entry(l1, pte(l1, RO)), 0);
	CHECK_EQ("L3 to L2", set_entry(l3, pte(l2, RW)), 0);
	CHECK_EQ("L2 to L1", set_entry(l2, pte(l1, RW)), 0);
	refused("2 MiB", set_entry(l2 + 1, pte(l1, RW | PTE_PS)));
	refused("1 GiB", set_entry(l3 + 1, pte(l2, RW | PTE_PS)));
	refused("bit 7 of an L4 entry", set_entry(l4e, pte(l3, RW | PTE_PS)));
	refused("base is an L3", mmuext(MMUEXT_NEW_BASEPTR, mfn_of(l3), 0));
	/* Held by the one above, they stay tables when their pins go. */
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(l1), 0), 0);
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(l2), 0), 0);
	refused("L1 writable", protect(l1, true));
	refused("L2 writable", protect(l2, true));
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(l3), 0), 0);
	CHECK_EQ("L2 writable", protect(l2, true), 0);
	CHECK_EQ("L1 writable", protect(l1, true), 0);
}

/* What stands in a page before it is pinned is looked at as well. */
static void bad_before_pinned(void)
{
	uint64_t *t = page_alloc();

	t[511] = IMAGE_MFN << PAGE_SHIFT | RO;
	t[0] = pte(page_alloc(), RW);
	CHECK_EQ("protect", protect(t, false), 0);
	refused("an L1 with the hypervisor's frame", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(t), 0));
	CHECK_EQ("writable again", protect(t, true), 0);
	t[511] = pte(t, RW);
	CHECK_EQ("protect", protect(t, false), 0);
	refused("an L1 that maps itself", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(t), 0));
	CHECK_EQ("writable again", protect(t, true), 0);
	t[0] = t[511] = 0;
	t[17] = pte(page_alloc(), RW | PTE_PS);
	CHECK_EQ("protect", protect(t, false), 0);
	refused("an L2 with a superpage", mmuext(MMUEXT_PIN_L2_TABLE, mfn_of(t), 0));
	refused("an L3 with a superpage", mmuext(MMUEXT_PIN_L3_TABLE, mfn_of(t), 0));
}

static void hypervisor_slots(void)
{
	const uint64_t *in_use = (const uint64_t *)start_info->pt_base;
	uint64_t *t = page_alloc(), before;

	for (unsigned i = FIRST_SLOT; i <= LAST_SLOT; i++) {
		before = in_use[i];
		refused("empty a slot", set_entry(&in_use[i], 0));
		refused("fill a slot", set_entry(&in_use[i], pte(new_table(), RW)));
		CHECK(in_use[i] == before, "slot %u has changed", i);
		t[i] = IMAGE_MFN << PAGE_SHIFT | RW;
	}
	CHECK_EQ("protect", protect(t, false), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(t), 0), 0);
	for (unsigned i = FIRST_SLOT; i <= LAST_SLOT; i++)
		CHECK(t[i] == in_use[i], "slot %u of a fresh L4 is %llx", i,
		      (unsigned long long)t[i]);
	refused("mapping", set_mapping((void *)0xffff828000200000, pte(t, RO)));
	refused("mapping", set_mapping((void *)0xffff800000000000, pte(t, RO)));
	refused("no tables there", set_mapping((void *)0x30000000000, pte(t, RO)));
	refused("not canonical", set_mapping((void *)0x800000000000, pte(t, RO)));
}

/* The L4 that is in use: its pin may go and come, it stays a table. */
static void table_in_use(void)
{
	void *l4 = (void *)start_info->pt_base;

	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, l4_mfn(), 0), 0);
	refused("writable", protect(l4, true));
	refused("as an L3", mmuext(MMUEXT_PIN_L3_TABLE, l4_mfn(), 0));
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L4_TABLE, l4_mfn(), 0), 0);
	CHECK_EQ("base", mmuext(MMUEXT_NEW_BASEPTR, l4_mfn(), 0), 0);
}

const struct part parts[] = {{"writable-table", writable_table},
			     {"writable-page", writable_page},
			     {"table-writes", table_writes},
			     {"higher-tables-written", higher_tables_written},
			     {"read-only-page", read_only_page},
			     {"frames-of-others", frames_of_others},
			     {"interrupt-controllers", interrupt_controllers},
			     {"operations-on-others", operations_on_others},
			     {"levels", levels},
			     {"bad-before-pinned", bad_before_pinned},
			     {"hypervisor-slots", hypervisor_slots},
			     {"table-in-use", table_in_use},
			     {NULL, NULL}};
