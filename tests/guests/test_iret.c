// SPDX-License-Identifier: MIT
/*
 * A kernel returns, by the iret hypercall, to what cannot be: addresses that are not canonical or not its own, selectors of every kind, flags that
 * would give it more than ring 3 has. Each ends in an exception of the guest or in ring 3, never in the hypervisor's; and SYSRET, which the
 * hypervisor may use instead, loses nothing.
 */
#include "tests/guests/lib/guest.h"

#include <xen/sched.h>

#define IF_FLAG	   0x200ull
#define IOPL_FLAGS 0x3000ull
#define NT_FLAG	   0x4000ull
#define VM_FLAG	   0x20000ull
#define DF_FLAG	   0x400ull
#define ID_FLAG	   0x200000ull
#define IN_SYSCALL 256
#define AWAY_MS	   20
#define PATTERN(n) (0x0101010101010101ull * (n))

USER_CODE(stop, "ud2");
USER_CODE(flags, "pushf; pop %rax; ud2");
USER_CODE(selectors, "mov %cs, %eax; mov %ss, %edx; ud2");
USER_CODE(call_kernel, "syscall; ud2");
USER_CODE(load_es, "mov %edi, %es; ud2");
USER_CODE(gs_selector, "xor %eax, %eax; mov %gs, %ax; ud2");
USER_CODE(load_gs, "mov %gs:0, %rax; mov %fs:0, %rdx; ud2");
USER_CODE(gs_everything, "xor %eax, %eax; mov %gs, %ax; mov %gs:0, %rdx; ud2");

static void bad_addresses(void)
{
	static const uint64_t rips[] = {0x800000000000,	    0x8000000000000000, 0xffff7fffffffffff,
					0xffff800000000000, 0xffff810000000000, 0xffff828000200000,
					0xffff830000000000, 0x7fffffffffff,	0xffffffffffffffff,
					0x7ffffffffffe,	    VIRT_BASE};

	user_init();
	for (unsigned i = 0; i < ARRAY_SIZE(rips); i++)
		for (unsigned in_syscall = 0; in_syscall <= IN_SYSCALL; in_syscall += IN_SYSCALL) {
			struct regs r = user_regs(rips[i]);

			run_user(&r, in_syscall);
			CHECK(r.vector == 13 || r.vector == 14, "rip %llx: vector %llu",
			      (unsigned long long)rips[i], (unsigned long long)r.vector);
			CHECK((r.cs & 3) == 3, "rip %llx: cs %llx", (unsigned long long)rips[i],
			      (unsigned long long)r.cs);
		}
}

/* Every selector of the GDT as cs and as ss, with both indicators: it runs in ring 3, or it is an exception. */
static void every_selector(void)
{
	user_init();
	for (unsigned s = 0; s < 0x10000; s += 4) {
		struct regs r = user_regs(USER_CODE_AT(stop));

		if (s >= 64 && s < 0xdfc0)
			continue; /* an empty GDT: more of the same */
		r.cs = s | 3;
		run_user(&r, 0);
		CHECK(r.vector == 6 || (r.vector >= 10 && r.vector <= 14), "cs %x: vector %llu",
		      s | 3, (unsigned long long)r.vector);
		CHECK((r.cs & 3) == 3, "cs %x has become %llx", s | 3, (unsigned long long)r.cs);
		r = user_regs(USER_CODE_AT(stop));
		r.ss = s;
		run_user(&r, 0);
		CHECK(r.vector == 6 || (r.vector >= 10 && r.vector <= 14), "ss %x: vector %llu", s,
		      (unsigned long long)r.vector);
	}
}

/* The hypervisor's own selectors, with privilege 0 in them, and the null selector. */
static void privileges(void)
{
	struct regs r;

	user_init();
	r = user_regs(USER_CODE_AT(selectors));
	r.ss = FLAT_USER_SS & ~3ull;
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, 6);
	CHECK_EQ("cs", r.rax, FLAT_USER_CS);
	CHECK_EQ("ss", r.rdx & 3, 3);
	r = user_regs(USER_CODE_AT(selectors));
	r.ss = 0;
	run_user(&r, 0);
	CHECK(r.vector == 6 || r.vector == 13 || r.vector == 12, "ss 0: vector %llu",
	      (unsigned long long)r.vector);
	r = user_regs(USER_CODE_AT(selectors));
	r.cs = FLAT_USER_CS32;
	run_user(&r, 0);
	CHECK_EQ("32-bit code: vector", r.vector, 6);
	CHECK_EQ("32-bit code: cs", (uint32_t)r.cs, FLAT_USER_CS32);
}

static void bad_flags(void)
{
	static const uint64_t added[] = {IOPL_FLAGS, NT_FLAG, VM_FLAG, DF_FLAG,	  ID_FLAG,
					 1ull << 63, 1 << 19, 1 << 20, ~0x100ull, 0};

	user_init();
	for (unsigned i = 0; i < ARRAY_SIZE(added); i++)
		for (unsigned in_syscall = 0; in_syscall <= IN_SYSCALL; in_syscall += IN_SYSCALL) {
			struct regs r = user_regs(USER_CODE_AT(flags));

			r.rflags |= added[i];
			/* The alignment of the stack is as it should be. */
			run_user(&r, in_syscall);
			CHECK_EQ("vector", r.vector, 6);
			CHECK(!(r.rax & (IOPL_FLAGS | VM_FLAG)), "flags %llx give %llx",
			      (unsigned long long)added[i], (unsigned long long)r.rax);
			CHECK(r.rax & IF_FLAG, "interrupts are off in user mode");
			CHECK_EQ("DF", r.rax & DF_FLAG, added[i] & DF_FLAG);
		}
}

/* IF is the events' mask: clear, the program runs with events masked, and the kernel is told. */
static void events_mask(void)
{
	struct regs r;

	user_init();
	r = user_regs(USER_CODE_AT(flags));
	r.rflags &= ~IF_FLAG;
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, 6);
	CHECK_EQ("IF while masked", r.rflags & IF_FLAG, 0);
	CHECK_EQ("saved mask", r.cs >> 32, 1);
	r = user_regs(USER_CODE_AT(flags));
	run_user(&r, 0);
	CHECK_EQ("IF while not masked", r.rflags & IF_FLAG, IF_FLAG);
	CHECK_EQ("saved mask", r.cs >> 32, 0);
}

/* All registers go in, and come out by an exception and by SYSCALL. */
static void registers(void)
{
	const char *const code[] = {stop, call_kernel};

	user_init();
	for (unsigned i = 0; i < 4; i++) {
		struct regs r = user_regs(USER_CODE_AT(code[i & 1]));
		unsigned in_syscall = i & 2 ? IN_SYSCALL : 0;
		uint64_t *word = r.general;

		for (unsigned k = 0; k < 15; k++)
			word[k] = PATTERN(k + 1);
		run_user(&r, in_syscall);
		CHECK_EQ("vector", r.vector, i & 1 ? VECTOR_SYSCALL : 6);
		for (unsigned k = 0; k < 15; k++) {
			/* By SYSRET or SYSCALL, rcx and r11 are the processor's. */
			if ((k == 6 || k == 11) && i)
				continue;
			CHECK(word[k] == PATTERN(k + 1), "way %u: register %u is %llx", i, k,
			      (unsigned long long)word[k]);
		}
	}
}

static void segment_bases(void)
{
	struct regs r;
	uint64_t *data = (uint64_t *)USER_DATA;

	user_init();
	data[0] = 0xaaaa;
	data[1] = 0xbbbb;
	CHECK_EQ("user GS", hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER, USER_DATA),
		 0);
	CHECK_EQ("FS", hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_FS, USER_DATA + 8), 0);
	CHECK_EQ("kernel GS",
		 hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_KERNEL, VA(start_info)), 0);
	for (unsigned i = 0; i < 3; i++) {
		uint64_t own;

		r = user_regs(USER_CODE_AT(load_gs));
		run_user(&r, i == 1 ? IN_SYSCALL : 0);
		CHECK_EQ("vector", r.vector, 6);
		CHECK_EQ("user's GS", r.rax, 0xaaaa);
		CHECK_EQ("user's FS", r.rdx, 0xbbbb);
		__asm__ volatile("mov %%gs:0, %0" : "=r"(own));
		CHECK_EQ("the kernel's GS", own, *(const uint64_t *)start_info);
	}
	for (unsigned which = 0; which < 3; which++) {
		CHECK_EQ("not canonical",
			 hypercall2(__HYPERVISOR_set_segment_base, which, 0x800000000000), -EINVAL);
		CHECK(hypercall2(__HYPERVISOR_set_segment_base, which, 0xffff830000000000) <= 0,
		      "the hypervisor's");
	}
	CHECK(hypercall2(__HYPERVISOR_set_segment_base, 4, 0) < 0, "an unknown one");
	for (unsigned s = 0; s < 0x10000; s += 4)
		CHECK(hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, s) <= 0,
		      "selector");
	hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0);
	hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_FS, 0);
}

/* ---- the local descriptor table ---- */

#define CODE64 0x00affb000000ffffull
#define DATA32 0x00cff3000000ffffull
#define LDT(n) ((n)*8u | 7u)

static uint64_t *ldt_page;

static void set_ldt(void)
{
	if (!ldt_page) {
		ldt_page = page_alloc();
		ldt_page[1] = CODE64;
		ldt_page[2] = DATA32;
		ldt_page[4] = DATA32 | (USER_DATA >> 16) << 32;
		/* The second page of the table is not there. */
		CHECK_EQ("protect", protect(ldt_page, false), 0);
	}
	CHECK_EQ("set_ldt", mmuext(MMUEXT_SET_LDT, VA(ldt_page), 512), 0);
}

KERNEL_CODE(load_es_null, "xor %eax, %eax; mov %eax, %es");
KERNEL_CODE(load_ds, "mov %edi, %ds");

static void ldt_by_instruction(void)
{
	set_ldt();
	CHECK(no_fault(load_ds, LDT(2)), "data: vector %llu", (unsigned long long)caught.vector);
	CHECK(!no_fault(load_ds, LDT(3)), "nothing there");
	CHECK_EQ("vector", caught.vector, 13);
	CHECK_EQ("error code", caught.error, LDT(3) & ~3u);
	CHECK(!no_fault(load_ds, LDT(600)), "beyond the table");
	CHECK_EQ("vector", caught.vector, 13);
	CHECK_EQ("error code", caught.error, LDT(600) & ~3u);
	no_fault(load_ds, 0);
	CHECK_EQ("no LDT", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	CHECK(!no_fault(load_ds, LDT(2)), "there is no LDT");
}

/* The pages of an LDT are mapped when they are used; the first use may be an IRET's as well. */
static void ldt_by_iret(void)
{
	struct regs r;

	user_init();
	set_ldt();
	r = user_regs(USER_CODE_AT(stop));
	r.cs = LDT(1);
	run_user(&r, 0);
	CHECK(r.vector == 6, "cs of the LDT: vector %llu error %llx", (unsigned long long)r.vector,
	      (unsigned long long)r.error);
	CHECK_EQ("cs", (uint16_t)r.cs, LDT(1));
	set_ldt();
	r = user_regs(USER_CODE_AT(stop));
	r.ss = LDT(2);
	run_user(&r, 0);
	CHECK(r.vector == 6, "ss of the LDT: vector %llu error %llx", (unsigned long long)r.vector,
	      (unsigned long long)r.error);
	set_ldt();
	r = user_regs(USER_CODE_AT(stop));
	r.cs = LDT(3);
	run_user(&r, 0);
	CHECK_EQ("nothing there: vector", r.vector, 13);
}

/* Or a program's, whose tables do not have the page. */
static void ldt_by_program(void)
{
	struct regs r;

	user_init();
	set_ldt();
	r = user_regs(USER_CODE_AT(load_es));
	r.rdi = LDT(2);
	run_user(&r, 0);
	CHECK(r.vector == 6, "es of the LDT: vector %llu error %llx", (unsigned long long)r.vector,
	      (unsigned long long)r.error);
	no_fault(load_es_null, 0);
}

/* And the hypervisor's own, when it loads GS for the guest. */
static void ldt_by_hypercall(void)
{
	struct regs r;

	user_init();
	set_ldt();
	CHECK_EQ("GS", hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, LDT(2)), 0);
	r = user_regs(USER_CODE_AT(gs_selector));
	run_user(&r, 0);
	CHECK_EQ("user's GS selector", r.rax, LDT(2));
	hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0);
}

KERNEL_CODE(load_fs, "mov %edi, %fs");

/* The vCPU leaves its processor for a moment. */
static void go_away(void)
{
	const struct vcpu_time_info *t = &shared_info->vcpu_info[0].time;
	uint64_t ms = (ticks_now() - t->tsc_timestamp) / ticks_of(1);
	struct sched_poll op = {.timeout = t->system_time + (ms + AWAY_MS) * 1000000};

	CHECK_EQ("poll", hypercall2(__HYPERVISOR_sched_op, SCHEDOP_poll, VA(&op)), 0);
}

/*
 * A kernel changes the LDT before it saves what the last program had loaded out of the old one. The processor keeps that; so does a vCPU that has to wait
 * in between.
 */
static void ldt_changes(void)
{
	struct regs r;
	uint16_t fs;

	user_init();
	set_ldt();
	CHECK_EQ("GS", hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, LDT(4)), 0);
	CHECK(no_fault(load_fs, LDT(4)), "FS: vector %llu", (unsigned long long)caught.vector);
	*(uint64_t *)USER_DATA = PATTERN(3);
	CHECK_EQ("no LDT", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	for (unsigned i = 0; i < 2; i++) {
		go_away();
		__asm__ volatile("mov %%fs, %0" : "=r"(fs));
		CHECK_EQ("the kernel's FS selector", fs, LDT(4));
		r = user_regs(USER_CODE_AT(gs_everything));
		run_user(&r, 0);
		CHECK_EQ("vector", r.vector, 6);
		CHECK_EQ("user's GS selector", r.rax, LDT(4));
		CHECK_EQ("what is there", r.rdx, PATTERN(3));
		/* The page is not mapped yet when the selector is loaded again. */
		set_ldt();
	}
	hypercall2(__HYPERVISOR_set_segment_base, SEGBASE_GS_USER_SEL, 0);
	no_fault(load_fs, 0);
}

static void ldt_misuse(void)
{
	uint64_t *page = page_alloc();

	CHECK_EQ("not at a page", mmuext(MMUEXT_SET_LDT, VA(page) + 8, 1), -EINVAL);
	CHECK_EQ("too long", mmuext(MMUEXT_SET_LDT, VA(page), 8193), -EINVAL);
	CHECK_EQ("the hypervisor's", mmuext(MMUEXT_SET_LDT, 0xffff830000000000, 1), -EINVAL);
	CHECK_EQ("up to the hypervisor's", mmuext(MMUEXT_SET_LDT, 0x7ffffffff000, 8192), -EINVAL);
	/* Writable: it is no table of descriptors. */
	page[1] = DATA32;
	CHECK_EQ("set_ldt", mmuext(MMUEXT_SET_LDT, VA(page), 512), 0);
	CHECK(!no_fault(load_ds, LDT(1)), "it is used while it is writable");
	CHECK_EQ("vector", caught.vector, 13);
	CHECK_EQ("no LDT", mmuext(MMUEXT_SET_LDT, 0, 0), 0);
	CHECK_EQ("and nothing was kept", protect(page, false) | protect(page, true), 0);
	CHECK_EQ("in use, writable again", protect(ldt_page, true), 0);
	CHECK_EQ("protect", protect(ldt_page, false), 0);
}

/* ---- the global descriptor table ---- */

static void bad_descriptors(void)
{
	static const struct {
		const char *what;
		uint64_t low, high;
	} bad[] = {{"a call gate of privilege 3", 0x0000ec00e0080000, 0},
		   {"an interrupt gate", 0x0000ee00e0080000, 0},
		   {"a trap gate", 0x0000ef00e0080000, 0},
		   {"a task segment", 0x0000890000000067, 0},
		   {"a busy task segment", 0x00008b0000000067, 0},
		   {"a local table", 0x000082000000ffff, 0},
		   {"conforming code of privilege 0", 0x00af9f000000ffff, 0}};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		uint64_t *gdt = page_alloc(), frame = mfn_of(gdt);

		gdt[5] = bad[i].low;
		gdt[6] = bad[i].high;
		CHECK_EQ("protect", protect(gdt, false), 0);
		CHECK(hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512) < 0, "%s in a GDT",
		      bad[i].what);
		CHECK_EQ("writable", protect(gdt, true), 0);
		gdt[5] = gdt[6] = 0;
		CHECK_EQ("protect", protect(gdt, false), 0);
		CHECK_EQ("set_gdt", hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512), 0);
		CHECK(hypercall2(__HYPERVISOR_update_descriptor, (frame << PAGE_SHIFT) + 40,
				 bad[i].low) < 0,
		      "%s by update_descriptor", bad[i].what);
		CHECK_EQ("entry", gdt[5], 0);
		CHECK(protect(gdt, true) < 0, "a GDT in use becomes writable");
		CHECK_EQ("no GDT", hypercall2(__HYPERVISOR_set_gdt, 0, 0), 0);
		CHECK_EQ("writable again", protect(gdt, true), 0);
	}
}

/* Code and data of privilege 0 get privilege 3. */
static void raised_descriptors(void)
{
	uint64_t *gdt = page_alloc(), frame = mfn_of(gdt);
	struct regs r;

	user_init();
	gdt[1] = CODE64 & ~(3ull << 45);
	gdt[2] = DATA32 & ~(3ull << 45);
	CHECK_EQ("protect", protect(gdt, false), 0);
	CHECK_EQ("set_gdt", hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512), 0);
	CHECK_EQ("code", gdt[1] >> 45 & 3, 3);
	CHECK_EQ("data", gdt[2] >> 45 & 3, 3);
	r = user_regs(USER_CODE_AT(selectors));
	r.cs = 8;
	r.ss = 16;
	/* Without privilege 3 in it cs says that it is the kernel that goes on. */
	r.cs |= 3;
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, 6);
	CHECK_EQ("cs", r.rax, 8 | 3);
	CHECK_EQ("ss", r.rdx, 16 | 3);
	CHECK_EQ("no GDT", hypercall2(__HYPERVISOR_set_gdt, 0, 0), 0);
	CHECK_EQ("more than there can be",
		 hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 14 * 512 + 1), -EINVAL);
	CHECK(hypercall2(__HYPERVISOR_set_gdt, VA(&frame), ~0ull) < 0, "very many");
	frame = l4_mfn();
	CHECK(hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512) < 0, "a page table");
	frame = 0x200;
	CHECK(hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512) < 0, "the hypervisor's page");
	frame = mfn_of(page_alloc());
	CHECK(hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512) < 0, "a page that is writable");
}

const struct part parts[] = {{"bad-addresses", bad_addresses},
			     {"every-selector", every_selector},
			     {"privileges", privileges},
			     {"bad-flags", bad_flags},
			     {"events-mask", events_mask},
			     {"registers", registers},
			     {"segment-bases", segment_bases},
			     {"ldt-by-instruction", ldt_by_instruction},
			     {"ldt-by-iret", ldt_by_iret},
			     {"ldt-by-program", ldt_by_program},
			     {"ldt-by-hypercall", ldt_by_hypercall},
			     {"ldt-changes", ldt_changes},
			     {"ldt-misuse", ldt_misuse},
			     {"bad-descriptors", bad_descriptors},
			     {"raised-descriptors", raised_descriptors},
			     {NULL, NULL}};
