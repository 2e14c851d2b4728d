// SPDX-License-Identifier: MIT
/*
 * The ways between a program and its kernel, with everything that sends them along another path than the usual one: events masked or waiting, entries
 * that mask them or not, IOPL, stacks in the lower half or not aligned. In all of them the kernel sees the same. Option end=N: the guest's end by a stack or
 * a frame that cannot be, one a boot:
 *
 * Ends 1: system call, and its kernel stack cannot be written
 * Ends 2: page fault, and its kernel stack cannot be written
 * Ends 3: system call, and its kernel stack cannot be written
 * Ends 4: page fault, and its kernel stack cannot be written
 * Ends 5: system call, and its kernel stack cannot be written
 * Ends 6: page fault, and its kernel stack cannot be written
 * Ends 7: it returns from an exception with a stack at ffffffff8.* that cannot be read
 * Ends 8: it returns from an exception with a stack at ffff8300.* that cannot be read
 * Ends 9: it returns from an exception with a stack at ffffffffffffffc0 that cannot be read
 * Ends 10: page fault with error code 4, for which it has no handler
 * Ends 11: it returns to user mode without tables for it
 */
#include "tests/guests/lib/guest.h"

#include <xen/callback.h>
#include <xen/physdev.h>

#define IF_FLAG	       0x200ull
#define IN_SYSCALL     256
#define TRAP_MASKS     4
#define IOPL_SHIFT     12
#define PATTERN(n)     (0x0101010101010101ull * (n))
#define RDI	       14
#define HYPERVISOR     0xffff830000001000ull
#define NOWHERE	       0x10
#define LOW_STACK      USER_STACK /* which the kernel's tables have, too */
#define LOW_STACK_USED (USER_STACK - 2048)

USER_CODE(call, "syscall; ud2");
USER_CODE(touch, "mov (%rdi), %al; ud2");
USER_CODE(stop, "ud2");

static unsigned fault_flags;

static unsigned flags_of(unsigned vector)
{
	return vector == 14 ? fault_flags : 0;
}

static void entries_mask(bool mask)
{
	struct callback_register c = {.type = CALLBACKTYPE_syscall,
				      .flags = mask ? CALLBACKF_mask_events : 0,
				      .address = trap_entry(VECTOR_SYSCALL)};

	if (hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, VA(&c)))
		error("callback");
	fault_flags = mask ? TRAP_MASKS : 0;
	install_traps(flags_of);
}

/* A system call, or a fault at NOWHERE, with a pattern in all registers; everything in the frame is as it should be. */
static void enter(bool fault, bool masked, unsigned iopl)
{
	const char *code = fault ? touch : call;
	struct regs r = user_regs(USER_CODE_AT(code));

	for (unsigned i = 0; i < ARRAY_SIZE(r.general); i++)
		r.general[i] = PATTERN(i + 1);
	r.rdi = NOWHERE;
	r.rsp = LOW_STACK_USED;
	if (masked)
		r.rflags &= ~IF_FLAG;
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, fault ? 14 : VECTOR_SYSCALL);
	CHECK_EQ("error code", r.error, fault ? 4 : 0);
	CHECK_EQ("rip", r.rip, USER_CODE_AT(code) + (fault ? 0 : 2));
	CHECK_EQ("rsp", r.rsp, LOW_STACK_USED);
	CHECK_EQ("cs", (uint32_t)r.cs, FLAT_USER_CS);
	CHECK_EQ("saved mask", r.cs >> 32, masked);
	CHECK_EQ("ss", r.ss, FLAT_USER_SS);
	CHECK_EQ("IF", r.rflags & IF_FLAG, masked ? 0 : IF_FLAG);
	CHECK_EQ("IOPL", r.rflags >> IOPL_SHIFT & 3, iopl);
	if (fault)
		CHECK_EQ("cr2", caught_cr2, NOWHERE);
	for (unsigned i = 0; i < ARRAY_SIZE(r.general); i++) {
		bool by_syscall = !fault && (&r.general[i] == &r.rcx || &r.general[i] == &r.r11);

		CHECK(i == RDI || by_syscall || r.general[i] == PATTERN(i + 1),
		      "register %u is %llx", i, (unsigned long long)r.general[i]);
	}
}

static void masks(void)
{
	user_init();
	for (unsigned way = 0; way < 8; way++) {
		entries_mask(way & 1);
		enter(way & 2, way & 4, 0);
		CHECK_EQ("events are masked", mask_on_entry, (way & 5) != 0);
	}
	entries_mask(false);
}

static void privilege_of_io(void)
{
	struct physdev_set_iopl set = {0};

	user_init();
	for (set.iopl = 0; set.iopl <= 3; set.iopl++) {
		CHECK_EQ("set_iopl",
			 hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, VA(&set)), 0);
		enter(false, false, set.iopl);
		enter(true, false, set.iopl);
	}
	set.iopl = 0;
	hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, VA(&set));
}

static void set_stack(uint64_t sp)
{
	if (hypercall2(__HYPERVISOR_stack_switch, FLAT_KERNEL_SS, sp))
		error("stack_switch");
}

/* An event waits while the kernel returns: it is told at the program's first instruction, unless that runs with events masked. */
static void event_at_return(void)
{
	struct vcpu_info *v = &shared_info->vcpu_info[0];

	user_init();
	for (unsigned way = 0; way < 4; way++) {
		bool masked = way & 1;
		struct regs r = user_regs(USER_CODE_AT(call));
		uint64_t before = upcalls;

		if (masked)
			r.rflags &= ~IF_FLAG;
		__atomic_store_n(&v->evtchn_upcall_pending, 1, __ATOMIC_SEQ_CST);
		run_user(&r, way & 2 ? IN_SYSCALL : 0);
		CHECK_EQ("vector", r.vector, VECTOR_SYSCALL);
		CHECK_EQ("rip", r.rip, USER_CODE_AT(call) + 2);
		CHECK_EQ("upcalls", upcalls - before, !masked);
		CHECK(masked || upcall_rip == USER_CODE_AT(call), "the upcall came at %llx",
		      (unsigned long long)upcall_rip);
		CHECK_EQ("still waits", v->evtchn_upcall_pending, masked);
		__atomic_store_n(&v->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
	}
}

/* Not aligned, and in the lower half; the event's handler returns from there. */
static void stacks(void)
{
	static const uint64_t sp[] = {1, 8, 15};

	user_init();
	for (unsigned i = 0; i < ARRAY_SIZE(sp); i++) {
		set_stack(kernel_entry_stack - sp[i]);
		enter(false, false, 0);
		enter(true, false, 0);
		event_at_return();
		set_stack(LOW_STACK - sp[i]);
		enter(false, false, 0);
		enter(true, false, 0);
		event_at_return();
	}
	set_stack(kernel_entry_stack);
}

KERNEL_CODE(iret_from, "mov %rdi, %rsp; mov $23, %eax; syscall");

/* A stack of which the last words are there and the first are not. */
static uint64_t half_stack(void)
{
	char *pages = page_alloc(), *next = page_alloc();

	if (next != pages + PAGE_SIZE || set_mapping(pages, 0))
		error("no two pages");
	return VA(next) + 32;
}

static void end(void)
{
	uint64_t way = option("end", 0);
	struct regs r;

	if (!way)
		skip("not asked for");
	user_init();
	r = user_regs(USER_CODE_AT(way % 2 ? call : touch));
	r.rdi = NOWHERE;
	switch (way) {
	case 1:
	case 2:
		set_stack(half_stack());
		break;
	case 3:
	case 4:
		set_stack(HYPERVISOR);
		break;
	case 5:
	case 6:
		set_stack(16); /* its frame would begin at the other end of the address space */
		break;
	case 7:
		iret_from(half_stack() - 56);
		break;
	case 8:
		iret_from(HYPERVISOR);
		break;
	case 9:
		iret_from(-64ull);
		break;
	case 10: {
		struct trap_info gp[2] = {
			{.vector = 13, .cs = FLAT_KERNEL_CS, .address = trap_entry(13)}, {0}};

		hypercall1(__HYPERVISOR_set_trap_table, 0);
		hypercall1(__HYPERVISOR_set_trap_table, VA(gp));
		break;
	}
	default:
		mmuext(MMUEXT_NEW_USER_BASEPTR, 0, 0);
	}
	run_user(&r, 0);
	failure("it goes on with vector %llu", (unsigned long long)r.vector);
}

const struct part parts[] = {{"masks", masks},
			     {"privilege-of-io", privilege_of_io},
			     {"event-at-return", event_at_return},
			     {"stacks", stacks},
			     {"end", end},
			     {NULL, NULL}};
