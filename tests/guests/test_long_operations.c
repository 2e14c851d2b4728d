// SPDX-License-Identifier: MIT
/*
 * Operations whose length a guest chooses (invariant 6): they are interrupted, begun again, and come to the same end. A timer that comes each
 * millisecond sees to the interruptions; its upcalls show that the guest was let in.
 */
#include "tests/guests/lib/guest.h"

#include <xen/event_channel.h>
#include <xen/vcpu.h>

#define UPDATES	  100000u
#define TABLES	  128u
#define SCRATCH	  0x20000000000ull
#define PERIOD_NS 1000000ull
#define CALLS	  20000u

/* Events stay masked while a part works: they are pending then, which is all that interrupts a hypercall. */
static void start_timer(void)
{
	struct evtchn_bind_virq bind = {.virq = VIRQ_TIMER, .vcpu = 0};
	struct evtchn_unmask unmask;
	struct vcpu_set_periodic_timer timer = {.period_ns = PERIOD_NS};
	static bool started;

	if (started)
		return;
	started = true;
	if (hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, VA(&bind)))
		error("bind_virq");
	unmask.port = bind.port;
	if (hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_unmask, VA(&unmask)) ||
	    hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_set_periodic_timer, 0, VA(&timer)))
		error("timer");
}

/* With upcalls let through, wait for one more. */
static void see_upcall(void)
{
	uint64_t before = upcalls;

	events_allow(true);
	while (upcalls == before)
		hypercall2(__HYPERVISOR_sched_op, 0, 0);
	events_allow(false);
}

static void timer(void)
{
	start_timer();
	for (unsigned i = 0; i < 5; i++)
		see_upcall();
}

static struct mmu_update updates[UPDATES];

static void many_updates(void)
{
	uint64_t *entry, *page = page_alloc(), before = upcalls;
	uint32_t done = 7;

	start_timer();
	map_at(l4_mfn(), SCRATCH, 0);
	entry = entry_at(l4_mfn(), SCRATCH, 1);
	for (unsigned i = 0; i < UPDATES; i++)
		updates[i] = (struct mmu_update){machine_address(entry + i % 512),
						 i % 2 ? pte(page, RW) : pte(page, RO)};
	events_allow(true);
	CHECK_EQ("mmu_update",
		 hypercall4(__HYPERVISOR_mmu_update, VA(updates), UPDATES, VA(&done), DOMID_SELF),
		 0);
	events_allow(false);
	CHECK_EQ("done", done, UPDATES);
	for (unsigned i = 0; i < 512; i++)
		CHECK_EQ("entry", entry[i] & ~(PTE_A | PTE_D),
			 (i % 2 ? pte(page, RW) : pte(page, RO)) & ~(PTE_A | PTE_D));
	CHECK(upcalls > before, "no upcall came in meanwhile");
	/* One that is refused, far behind: the count says where. */
	updates[UPDATES - 5].ptr = 0x200000;
	done = 0;
	CHECK_EQ("mmu_update with a bad one",
		 hypercall4(__HYPERVISOR_mmu_update, VA(updates), UPDATES, VA(&done), DOMID_SELF),
		 -EPERM);
	CHECK_EQ("done", done, UPDATES - 5);
	for (unsigned i = 0; i < 512; i++)
		updates[i].val = 0;
	CHECK_EQ("clean", hypercall4(__HYPERVISOR_mmu_update, VA(updates), 512, 0, DOMID_SELF), 0);
	CHECK_EQ("writable nowhere else: protect", protect(page, false), 0);
	CHECK_EQ("pin", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0), 0);
	CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page), 0), 0);
}

static void refused_writable(void *table)
{
	CHECK_EQ("a table writable", protect(table, true), -EINVAL);
}

/* An L4, L3 and L2 of their own with TABLES full tables below, which are pinned and unpinned as a whole. */
static void big_tree(void)
{
	uint64_t *l4 = page_alloc(), *l3 = page_alloc(), *l2 = page_alloc(), *page = page_alloc();
	uint64_t *l1[TABLES];

	start_timer();
	for (unsigned i = 0; i < TABLES; i++) {
		l1[i] = page_alloc();
		for (unsigned k = 0; k < 512; k++)
			l1[i][k] = pte(page, RW);
		l2[i * 3] = pte(l1[i], RW);
		CHECK_EQ("protect", protect(l1[i], false), 0);
	}
	l3[5] = pte(l2, RW);
	l4[300] = pte(l3, RW);
	CHECK_EQ("protect", protect(l2, false) | protect(l3, false) | protect(l4, false), 0);
	for (unsigned round = 0; round < 10; round++) {
		uint64_t before = upcalls;

		see_upcall();
		events_allow(true);
		CHECK_EQ("pin", mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(l4), 0), 0);
		events_allow(false);
		CHECK(upcalls > before, "no upcall");
		refused_writable(l1[0]);
		refused_writable(l1[TABLES - 1]);
		events_allow(true);
		CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(l4), 0), 0);
		events_allow(false);
		CHECK_EQ("writable again", protect(l1[TABLES - 1], true), 0);
		l1[TABLES - 1][round] = 0;
		CHECK_EQ("protect", protect(l1[TABLES - 1], false), 0);
	}
	/* With something that must not be there at the very end: all that was held is given up again. */
	CHECK_EQ("writable again", protect(l1[TABLES - 1], true), 0);
	l1[TABLES - 1][511] = 0x200000 | RO;
	CHECK_EQ("protect", protect(l1[TABLES - 1], false), 0);
	for (unsigned round = 0; round < 10; round++) {
		long rc;

		see_upcall();
		events_allow(true);
		rc = mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(l4), 0);
		events_allow(false);
		CHECK(rc == -EINVAL || rc == -EPERM, "a tree with a bad leaf: %ld", rc);
	}
	for (unsigned i = 0; i < TABLES; i++)
		CHECK_EQ("free again", protect(l1[i], true), 0);
	CHECK_EQ("free again", protect(l2, true) | protect(l3, true) | protect(l4, true), 0);
}

/* One long multicall, whose calls have answers each, and one within another, which is refused. */
static void many_calls(void)
{
	static struct multicall_entry calls[CALLS], inner[2];
	void *page = page_alloc();
	uint64_t before = upcalls;

	page_alloc(); /* the next one */

	start_timer();
	for (unsigned i = 0; i < CALLS; i++) {
		calls[i] = (struct multicall_entry){.op = __HYPERVISOR_xen_version};
		calls[i].result = 99;
	}
	calls[1].op = 63;
	calls[2].op = __HYPERVISOR_multicall;
	calls[2].args[0] = VA(inner);
	calls[2].args[1] = 2;
	/* IRET has no business in there: its frame is the stack's. */
	calls[3].op = __HYPERVISOR_iret;
	calls[4].op = __HYPERVISOR_mmu_update;
	calls[4].args[0] = VA(updates);
	calls[4].args[1] = 512;
	calls[4].args[3] = DOMID_SELF;
	events_allow(true);
	CHECK_EQ("multicall", hypercall2(__HYPERVISOR_multicall, VA(calls), CALLS), 0);
	events_allow(false);
	CHECK(upcalls > before, "no upcall came in meanwhile");
	CHECK_EQ("unknown", calls[1].result, -ENOSYS);
	CHECK((long)calls[2].result < 0, "a multicall within: %ld", (long)calls[2].result);
	CHECK((long)calls[3].result < 0, "iret within: %ld", (long)calls[3].result);
	CHECK_EQ("a long call within", calls[4].result, 0);
	for (unsigned i = 5; i < CALLS; i++)
		CHECK(calls[i].result == (4 << 16 | 17), "call %u: %lx", i, calls[i].result);
	/* As many as fit before what is not mapped; what stood behind an array of ours would be taken for calls, too. */
	memcpy(page, calls + 5, PAGE_SIZE);
	CHECK_EQ("unmap", set_mapping((void *)(VA(page) + PAGE_SIZE), 0), 0);
	CHECK_EQ("too many", hypercall2(__HYPERVISOR_multicall, VA(page), ~0ull), -EFAULT);
	CHECK_EQ("the hypervisor's", hypercall2(__HYPERVISOR_multicall, 0xffff830000000000, 1),
		 -EFAULT);
}

static void console(void)
{
	static char text[50000];

	start_timer();
	memset(text, '\0', sizeof(text));
	/* NULs: a lot to write and nothing to see. */
	CHECK_EQ("console",
		 hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write, sizeof(text), VA(text)), 0);
	pass_time(privileged() ? 0 : 1100);
	say(" ");
	CHECK_EQ("beyond what is mapped",
		 hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write, 16, 0xfffffffffffffff8ull),
		 -EFAULT);
}

const struct part parts[] = {{"timer", timer},	     {"many-updates", many_updates},
			     {"big-tree", big_tree}, {"many-calls", many_calls},
			     {"console", console},   {NULL, NULL}};
