// SPDX-License-Identifier: MIT
/*
 * Every exception that a kernel and a user program can raise arrives at its handler, with the frame that the ABI promises: vector, error code,
 * instruction, selectors, flags, stack and all general registers; for a page fault its address. And what a program may not raise by INT n
 * arrives as the #GP that the processor would have made of it.
 */
#include "tests/guests/lib/guest.h"

#define IF_FLAG		 0x200ull
#define TF_FLAG		 0x100ull
#define AC_FLAG		 0x40000ull
#define IDT_CODE(vector) ((vector)*8u | 2u)

/* ---- raised by the kernel ---- */

LABEL(at_div);
LABEL(at_int3);
LABEL(at_ud2);
LABEL(at_read);
LABEL(at_write);
LABEL(at_jump);
LABEL(at_stack);
LABEL(at_gp);
LABEL(at_ds);
LABEL(at_icebp);
LABEL(at_fpu);
LABEL(at_simd);
LABEL(at_ts);
KERNEL_CODE(do_div, "xor %edx, %edx; mov $1, %eax; xor %ecx, %ecx\n" AT(at_div, "div %ecx"));
KERNEL_CODE(do_int3, AT(at_int3, "int3"));
KERNEL_CODE(do_ud2, AT(at_ud2, "ud2"));
KERNEL_CODE(do_read, AT(at_read, "mov (%rdi), %al"));
KERNEL_CODE(do_write, AT(at_write, "movb $0, (%rdi)"));
KERNEL_CODE(do_jump, AT(at_jump, "jmp *%rdi"));
KERNEL_CODE(do_rbp, "push %rbp; mov %rdi, %rbp\n" AT(at_stack, "mov (%rbp), %rax") "pop %rbp");
KERNEL_CODE(do_noncanonical, AT(at_gp, "mov (%rdi), %rax"));
KERNEL_CODE(do_ds, AT(at_ds, "mov %edi, %ds"));
KERNEL_CODE(do_icebp, AT(at_icebp, ".byte 0xf1"));
KERNEL_CODE(do_fpu, "fninit; push $0x340; fldcw (%rsp); pop %rax\n"
		    "fldz; fld1; fdivp\n" AT(at_fpu, "fwait") "fninit");
KERNEL_CODE(do_simd,
	    "push $0; ldmxcsr (%rsp); xorps %xmm0, %xmm0; mov $1, %eax; cvtsi2ss %eax, %xmm1\n" AT(
		    at_simd, "divss %xmm0, %xmm1") "pop %rax");
KERNEL_CODE(do_ts, AT(at_ts, "movaps %xmm0, %xmm0"));

/* What every exception of the kernel has: privilege 0 in cs, the flat stack, IF as the events' mask has it. */
static void check_kernel_frame(unsigned vector, uint64_t error, uint64_t rip)
{
	CHECK_EQ("vector", caught.vector, vector);
	CHECK_EQ("error code", caught.error, error);
	CHECK_EQ("rip", caught.rip, rip);
	CHECK_EQ("cs", (uint32_t)caught.cs, FLAT_KERNEL_CS & ~3u);
	CHECK_EQ("saved mask", caught.cs >> 32, 1);
	CHECK_EQ("ss", caught.ss, FLAT_KERNEL_SS);
	CHECK_EQ("IF", caught.rflags & IF_FLAG, 0);
}

static void expect(void (*fn)(uint64_t), uint64_t arg, unsigned vector, uint64_t error,
		   const char *label)
{
	CHECK(!no_fault(fn, arg), "nothing happened");
	check_kernel_frame(vector, error, VA(label));
}

static void divide(void)
{
	expect(do_div, 0, 0, 0, at_div);
}

static void breakpoint(void)
{
	expect(do_int3, 0, 3, 0, at_int3 + 1);
}

static void invalid_opcode(void)
{
	expect(do_ud2, 0, 6, 0, at_ud2);
}

static void icebp(void)
{
	expect(do_icebp, 0, 1, 0, at_icebp + 1);
}

static void page_faults(void)
{
	static const uint64_t nowhere[] = {0x10, 0x7ffffffff000, 0xffff880000000000,
					   0xffffffffffffffff};
	void *page = page_alloc();

	for (unsigned i = 0; i < ARRAY_SIZE(nowhere); i++) {
		expect(do_read, nowhere[i], 14, 0, at_read);
		CHECK_EQ("cr2", caught_cr2, nowhere[i]);
		expect(do_write, nowhere[i], 14, 2, at_write);
		CHECK_EQ("cr2", caught_cr2, nowhere[i]);
	}
	expect(do_jump, 0x7ffffffff000, 14, 16, (const char *)0x7ffffffff000);
	CHECK_EQ("set_mapping", set_mapping(page, pte(page, RO | PTE_NX)), 0);
	expect(do_write, VA(page), 14, 3, at_write);
	CHECK_EQ("cr2", caught_cr2, VA(page));
	expect(do_jump, VA(page), 14, 17, page);
}

/* The hypervisor's part: as if something were there that only it may use. */
static void hypervisor_addresses(void)
{
	static const uint64_t there[] = {0xffff808000000000, 0xffff810000000000,
					 0xffff820000000000, 0xffff828000200000,
					 0xffff830000000000, 0xffff87ffffffffff};

	for (unsigned i = 0; i < ARRAY_SIZE(there); i++) {
		expect(do_read, there[i], 14, 1, at_read);
		CHECK_EQ("cr2", caught_cr2, there[i]);
		expect(do_write, there[i], 14, 3, at_write);
		CHECK(!no_fault(do_jump, there[i]), "it runs");
		CHECK_EQ("vector", caught.vector, 14);
		CHECK_EQ("rip", caught.rip, there[i]);
	}
	/* The machine-to-physical table may be read and no more. */
	CHECK(no_fault(do_read, VA(M2P)), "the M2P is not readable");
	CHECK(!no_fault(do_write, VA(M2P)), "the M2P is writable");
	CHECK_EQ("vector", caught.vector, 14);
	CHECK_EQ("error code", caught.error, 3);
}

static void non_canonical(void)
{
	expect(do_noncanonical, 0x800000000000, 13, 0, at_gp);
	expect(do_noncanonical, 0xffff7fffffffffff, 13, 0, at_gp);
	/* By the stack's registers it is #SS; QEMU's emulation makes #GP of it. */
	CHECK(!no_fault(do_rbp, 0x800000000000), "nothing happened");
	check_kernel_frame(caught.vector == 13 ? 13 : 12, 0, VA(at_stack));
}

static void selectors(void)
{
	/* Beyond the tables; the hypervisor's code, data and TSS; nothing there. */
	expect(do_ds, 0xfff8, 13, 0xfff8, at_ds);
	expect(do_ds, 0x8, 13, 0x8, at_ds);
	for (unsigned selector = 0xe000; selector < 0xf000; selector += 8) {
		bool fine = no_fault(do_ds, selector | 3);

		CHECK(fine || caught.vector == 13 || caught.vector == 11,
		      "selector %x: vector %llu", selector, (unsigned long long)caught.vector);
		CHECK(fine || caught.error == selector, "selector %x: error code %llx", selector,
		      (unsigned long long)caught.error);
	}
	CHECK(no_fault(do_ds, 0), "the null selector");
}

static void floating_point(void)
{
	if (no_fault(do_fpu, 0))
		skip("the processor has no FPU exceptions");
	check_kernel_frame(16, 0, VA(at_fpu));
	__asm__ volatile("fninit");
}

static void simd(void)
{
	if (no_fault(do_simd, 0))
		skip("the processor has no SIMD exceptions");
	check_kernel_frame(19, 0, VA(at_simd));
	__asm__ volatile("push $0x1f80; ldmxcsr (%%rsp); pop %%rax" ::: "rax", "memory");
}

/* CR0.TS by hypercall: one exception, which clears it. */
static void task_switched(void)
{
	CHECK_EQ("fpu_taskswitch", hypercall1(__HYPERVISOR_fpu_taskswitch, 1), 0);
	expect(do_ts, 0, 7, 0, at_ts);
	CHECK(no_fault(do_ts, 0), "TS is still set after its exception");
	CHECK_EQ("fpu_taskswitch", hypercall1(__HYPERVISOR_fpu_taskswitch, 1), 0);
	CHECK_EQ("fpu_taskswitch", hypercall1(__HYPERVISOR_fpu_taskswitch, 0), 0);
	CHECK(no_fault(do_ts, 0), "TS is set after it was cleared");
}

LABEL(at_step);
KERNEL_CODE(do_step, "pushf; orl $0x100, (%rsp); popf\n"
		     "nop\n" AT(at_step, "nop") "pushf; andl $~0x100, (%rsp); popf");

/* The trap comes behind the first instruction that began with TF set, and the handler runs without TF. */
static void single_step(void)
{
	expect(do_step, 0, 1, 0, at_step);
	CHECK(caught.rflags & TF_FLAG, "no TF in the frame's flags");
}

/* ---- INT n ---- */

static unsigned int_flags(unsigned vector)
{
	/* By the vector: 0 to 3, and bit 2 of half of them. */
	return vector & 3;
}

typedef const char int_code[256][16];
/* 256 pieces of code, 16 bytes each: INT n; RET. */
#define INT_TABLE(section, name, ending)                                                      \
	extern int_code name;                                                                 \
	__asm__(".pushsection " section ", \"ax\"\n.globl " #name "\n.align 16\n" #name ":\n" \
		"n = 0\n.rept 256\n.align 16\n.byte 0xcd, n\n" ending "\nn = n + 1\n.endr\n"  \
		".popsection\n")
INT_TABLE(".text.ints", kernel_int, "ret");
INT_TABLE(".user", user_int, "ud2");

static bool pushes_error(unsigned vector)
{
	return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
}

/* INT n pushes no error code, whatever the vector: seen at those that would have one by the frame that would be shifted. */
static void check_int(const struct regs *r, unsigned vector, bool allowed, uint64_t rip)
{
	if (!allowed) {
		CHECK(r->vector == 13, "INT %u: vector %llu, not 13", vector,
		      (unsigned long long)r->vector);
		CHECK(r->error == IDT_CODE(vector), "INT %u: error code %llx, not %x", vector,
		      (unsigned long long)r->error, IDT_CODE(vector));
		CHECK(r->rip == rip, "INT %u: rip %llx, not at the instruction %llx", vector,
		      (unsigned long long)r->rip, (unsigned long long)rip);
		return;
	}
	CHECK(r->vector == vector, "INT %u: vector %llu", vector, (unsigned long long)r->vector);
	CHECK(r->rip == rip + 2, "INT %u: rip %llx, not behind the instruction at %llx%s", vector,
	      (unsigned long long)r->rip, (unsigned long long)rip,
	      pushes_error(vector) ? " (an error code, which INT does not push?)" : "");
	CHECK(r->error == 0, "INT %u: error code %llx", vector, (unsigned long long)r->error);
}

static void every_int(bool user, bool with_error)
{
	for (unsigned vector = 0; vector < 256; vector++) {
		unsigned dpl = int_flags(vector);
		bool allowed = dpl >= (user ? 3 : 1);
		struct regs r = user_regs(USER_CODE_AT(user_int[vector]));

		/* Its own gate is open to all, and no #GP. */
		if (vector == 3 || vector == 4)
			allowed = true;
		if (with_error != (pushes_error(vector) && allowed) || vector == 2)
			continue;
		if (user) {
			run_user(&r, 0);
			check_int(&r, vector, allowed, USER_CODE_AT(user_int[vector]));
		} else {
			CHECK(!no_fault((void (*)(uint64_t))VA(kernel_int[vector]), 0),
			      "INT %u: nothing", vector);
			check_int(&caught, vector, allowed, VA(kernel_int[vector]));
		}
	}
}

static void kernel_ints(void)
{
	install_traps(int_flags);
	every_int(false, false);
}

static void user_ints(void)
{
	user_init();
	install_traps(int_flags);
	every_int(true, false);
}

static void ints_without_error_code(void)
{
	user_init();
	install_plain_traps(int_flags);
	every_int(false, true);
	every_int(true, true);
}

/* A vector without a handler: INT n there is a #GP, not the end of the guest. */
static void no_handler(void)
{
	struct trap_info gp[2] = {{.vector = 13, .cs = FLAT_KERNEL_CS, .address = trap_entry(13)},
				  {0}};

	CHECK_EQ("set_trap_table", hypercall1(__HYPERVISOR_set_trap_table, 0), 0);
	CHECK_EQ("set_trap_table", hypercall1(__HYPERVISOR_set_trap_table, VA(gp)), 0);
	CHECK(!no_fault((void (*)(uint64_t))VA(kernel_int[0x90]), 0), "nothing happened");
	check_int(&caught, 0x90, false, VA(kernel_int[0x90]));
	install_traps(int_flags);
}

/* ---- raised by user mode ---- */

USER_CODE(user_div, "xor %ecx, %ecx; div %ecx");
USER_CODE(user_int3, "int3");
USER_CODE(user_ud2, "ud2");
USER_CODE(user_read, "mov (%rdi), %al; ud2");
USER_CODE(user_write, "movb $0, (%rdi); ud2");
USER_CODE(user_jump, "jmp *%rdi");
USER_CODE(user_hlt, "hlt");
USER_CODE(user_cli, "cli");
USER_CODE(user_in, "in $0x70, %al");
USER_CODE(user_msr, "rdmsr");
USER_CODE(user_cr0, "mov %cr0, %rax");
USER_CODE(user_unaligned, "mov 1(%rdi), %eax; ud2");
USER_CODE(user_icebp, ".byte 0xf1");
USER_CODE(user_syscall, "syscall; ud2");
USER_CODE(user_lgdt, "lgdt (%rdi)");
USER_CODE(user_spin, "1: jmp 1b");

#define PATTERN(n) (0x1111111111111111ull * (n))

static void set_pattern(struct regs *r)
{
	uint64_t *word = r->general;

	for (unsigned i = 0; i < 15; i++)
		word[i] = PATTERN(i + 1);
}

/* Of the 15 registers, those whose bit is set in `but` may have changed. */
static void check_pattern(const struct regs *r, unsigned but)
{
	const uint64_t *word = r->general;

	for (unsigned i = 0; i < 15; i++)
		CHECK((but >> i & 1) || word[i] == PATTERN(i + 1),
		      "register %u of the frame is %llx", i, (unsigned long long)word[i]);
}

static void user_expect(const char *code, unsigned offset, unsigned vector, uint64_t error)
{
	struct regs r = user_regs(USER_CODE_AT(code));

	set_pattern(&r);
	run_user(&r, 0);
	CHECK(r.vector == vector, "%llx: vector %llu, not %u",
	      (unsigned long long)USER_CODE_AT(code), (unsigned long long)r.vector, vector);
	CHECK_EQ("error code", r.error, error);
	CHECK_EQ("rip", r.rip, USER_CODE_AT(code) + offset);
	CHECK_EQ("cs", r.cs, FLAT_USER_CS);
	CHECK_EQ("ss", r.ss, FLAT_USER_SS);
	CHECK_EQ("rsp", r.rsp, USER_STACK);
	CHECK_EQ("IF", r.rflags & IF_FLAG, IF_FLAG);
	check_pattern(&r, code == user_div ? 1u << 11 : 0);
}

static void user_exceptions(void)
{
	user_init();
	user_expect(user_div, 2, 0, 0);
	user_expect(user_int3, 1, 3, 0);
	user_expect(user_ud2, 0, 6, 0);
	user_expect(user_icebp, 1, 1, 0);
}

/* What only a kernel may do is a #GP for a program, at the instruction. */
static void user_privileged(void)
{
	user_init();
	user_expect(user_hlt, 0, 13, 0);
	user_expect(user_cli, 0, 13, 0);
	user_expect(user_in, 0, 13, 0);
	user_expect(user_msr, 0, 13, 0);
	user_expect(user_cr0, 0, 13, 0);
	user_expect(user_lgdt, 0, 13, 0);
}

static void user_fault_at(const char *code, uint64_t address, uint64_t error)
{
	struct regs r = user_regs(USER_CODE_AT(code));

	r.rdi = address;
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, 14);
	CHECK(r.error == error, "at %llx: error code %llx, not %llx", (unsigned long long)address,
	      (unsigned long long)r.error, (unsigned long long)error);
	CHECK_EQ("cr2", caught_cr2, address);
}

static void user_page_faults(void)
{
	static const uint64_t hypervisor[] = {0xffff808000000000, 0xffff810000000000,
					      0xffff820000000000, 0xffff828000200000,
					      0xffff830000000000};

	user_init();
	user_fault_at(user_read, 0x10, 4);
	user_fault_at(user_write, 0x10, 6);
	user_fault_at(user_jump, 0x7ffffffff000, 20);
	/* The kernel's addresses are not in user mode's tables. */
	user_fault_at(user_read, VIRT_BASE, 4);
	for (unsigned i = 0; i < ARRAY_SIZE(hypervisor); i++) {
		user_fault_at(user_read, hypervisor[i], 5);
		user_fault_at(user_write, hypervisor[i], 7);
	}
	user_fault_at(user_write, VA(M2P), 7);
}

static void alignment(void)
{
	struct regs r;

	user_init();
	r = user_regs(USER_CODE_AT(user_unaligned));
	r.rdi = USER_DATA;
	r.rflags |= AC_FLAG;
	run_user(&r, 0);
	if (r.vector == 6)
		skip("the processor does not check alignment");
	CHECK_EQ("vector", r.vector, 17);
	CHECK_EQ("error code", r.error, 0);
	CHECK_EQ("rip", r.rip, USER_CODE_AT(user_unaligned));
}

static void user_single_step(void)
{
	struct regs r;

	user_init();
	r = user_regs(USER_CODE_AT(user_spin));
	r.rflags |= TF_FLAG;
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, 1);
	CHECK_EQ("rip", r.rip, USER_CODE_AT(user_spin));
	CHECK(r.rflags & TF_FLAG, "no TF in the frame's flags");
}

/* SYSCALL: the kernel's entry, with the address behind it in rip, and rcx and r11 as the processor leaves them. */
static void user_system_call(void)
{
	const uint64_t flags[] = {0, 256}; /* by IRET and by what may be SYSRET */

	user_init();
	for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
		struct regs r = user_regs(USER_CODE_AT(user_syscall));

		set_pattern(&r);
		run_user(&r, flags[i]);
		CHECK_EQ("vector", r.vector, VECTOR_SYSCALL);
		CHECK_EQ("rip", r.rip, USER_CODE_AT(user_syscall) + 2);
		CHECK_EQ("rcx", r.rcx, USER_CODE_AT(user_syscall) + 2);
		CHECK_EQ("r11", r.r11 & ~2ull, IF_FLAG);
		CHECK_EQ("rsp", r.rsp, USER_STACK);
		CHECK_EQ("cs", r.cs, FLAT_USER_CS);
		check_pattern(&r, 1u << 6 | 1u << 11); /* r11 and rcx */
	}
}

const struct part parts[] = {{"divide", divide},
			     {"breakpoint", breakpoint},
			     {"invalid-opcode", invalid_opcode},
			     {"icebp", icebp},
			     {"single-step", single_step},
			     {"task-switched", task_switched},
			     {"page-faults", page_faults},
			     {"hypervisor-addresses", hypervisor_addresses},
			     {"non-canonical", non_canonical},
			     {"selectors", selectors},
			     {"floating-point", floating_point},
			     {"simd", simd},
			     {"user-exceptions", user_exceptions},
			     {"user-privileged", user_privileged},
			     {"user-page-faults", user_page_faults},
			     {"user-single-step", user_single_step},
			     {"user-system-call", user_system_call},
			     {"alignment", alignment},
			     {"kernel-ints", kernel_ints},
			     {"user-ints", user_ints},
			     {"ints-without-error-code", ints_without_error_code},
			     {"no-handler", no_handler},
			     {NULL, NULL}};
