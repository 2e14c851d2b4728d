// SPDX-License-Identifier: MIT
/*
 * Ways out of a paravirtualised guest that other hypervisors have had, after their public security advisories (docs/attacks.md names them), as far as no
 * other guest tries them: instructions at the ends of the address space, kernel entry by SYSENTER, breakpoints that come due behind MOV SS, changes of
 * an entry's flags alone, tables that lead to themselves, tables exchanged under a stale translation, every MSR, event words that are nonsense,
 * bits set far from where an instruction points, string I/O into the hypervisor.
 */
#include "tests/guests/lib/guest.h"

#include <xen/event_channel.h>
#include <xen/physdev.h>

#define SCRATCH	  0x48000000000ull
#define LAST_LOW  0x7ffffffff000ull /* the last page below the hole */
#define LAST_HIGH 0xfffffffffffff000ull
#define HOLE	  0x800000000000ull
#define IMAGE_MFN 0x200ull
#define PTE_G	  0x100ull
#define PTE_CACHE 0x18ull

static void refused(const char *what, long rc)
{
	CHECK(rc == -EINVAL || rc == -EPERM, "%s: %ld", what, rc);
}

static uint64_t *entry_of(uint64_t va)
{
	if (!entry_at(l4_mfn(), va, 1))
		map_at(l4_mfn(), va, 0);
	return entry_at(l4_mfn(), va, 1);
}

/* ---- XSA-7, XSA-186: SYSCALL and what is emulated, in the last bytes that there are ---- */

KERNEL_CODE(call_at, "mov $17, %eax; xor %edi, %edi; jmp *%r8");
KERNEL_CODE(jump_there, "mov %rdi, %r8; jmp call_at");

static void at_the_end(uint64_t page_va, const char *code, unsigned bytes, uint64_t rip)
{
	uint8_t *page = page_alloc();

	memset(page, 0x90, PAGE_SIZE);
	memcpy(page + PAGE_SIZE - bytes, code, bytes);
	CHECK_EQ("map", set_entry(entry_of(page_va), pte(page, RW)), 0);
	CHECK(!no_fault(jump_there, page_va + PAGE_SIZE - bytes), "it went on behind the end");
	/* An incomplete prefix of forced emulation is what it begins with: UD2. */
	CHECK(caught.vector == 13 || caught.vector == 14 || (caught.vector == 6 && code[1] == 0x0b),
	      "vector %llu", (unsigned long long)caught.vector);
	CHECK(caught.rip == rip || caught.rip == page_va + PAGE_SIZE - bytes, "rip %llx",
	      (unsigned long long)caught.rip);
	CHECK_EQ("unmap", set_mapping((void *)page_va, 0), 0);
}

static void last_instructions(void)
{
	static const struct {
		const char *code;
		unsigned bytes;
	} some[] = {{"\x0f\x05", 2},		/* syscall */
		    {"\x0f\x32", 2},		/* rdmsr */
		    {"\x0f\x20\xc0", 3},	/* mov %cr0, %rax */
		    {"\xec", 1},		/* in */
		    {"\xcd\x80", 2},		/* int $0x80 */
		    {"\x0f", 1},		/* half of one */
		    {"\x0f\x0bxen\x0f\xa2", 7}, /* forced emulation of CPUID */
		    {"\x0f\x0bxe", 4}};

	for (unsigned i = 0; i < ARRAY_SIZE(some); i++) {
		at_the_end(LAST_LOW, some[i].code, some[i].bytes, HOLE);
		at_the_end(LAST_HIGH, some[i].code, some[i].bytes, 0);
	}
}

/* ---- XSA-44, XSA-339: SYSENTER, with flags that the hypervisor must not keep ---- */

KERNEL_CODE(sysenter, AT(at_sysenter, "sysenter"));
LABEL(at_sysenter);
USER_CODE(user_sysenter, "sysenter; ud2");

static void sysenters(void)
{
	static const uint64_t flags[] = {0, 0x4000, 0x100, 0x40000, 0x44500};

	CHECK(!no_fault(sysenter, 0), "SYSENTER did something");
	CHECK(caught.vector == 13 || caught.vector == 6, "vector %llu",
	      (unsigned long long)caught.vector);
	CHECK_EQ("rip", caught.rip, VA(at_sysenter));
	user_init();
	for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
		struct regs r = user_regs(USER_CODE_AT(user_sysenter));

		r.rflags |= flags[i];
		run_user(&r, 0);
		CHECK(r.vector == 13 || r.vector == 6 || r.vector == 1, "flags %llx: vector %llu",
		      (unsigned long long)flags[i], (unsigned long long)r.vector);
	}
}

/* ---- XSA-260, XSA-204: a breakpoint that waits behind MOV SS, or a step, and then a way into the kernel ---- */

static uint64_t watched_ss;

#define BEHIND_MOV_SS(name, text) KERNEL_CODE(name, "mov $16, %eax; mov (%rdi), %ss; " text)
BEHIND_MOV_SS(mov_ss_syscall, "syscall");
BEHIND_MOV_SS(mov_ss_int3, "int3");
BEHIND_MOV_SS(mov_ss_icebp, ".byte 0xf1");
BEHIND_MOV_SS(mov_ss_int80, "int $0x80");
BEHIND_MOV_SS(mov_ss_ud2, "ud2");
KERNEL_CODE(step_syscall, "mov $16, %eax; pushf; orl $0x100, (%rsp); popf; syscall; nop");
KERNEL_CODE(step_int3, "pushf; orl $0x100, (%rsp); popf; int3; nop");

static void debug_behind(void)
{
	static void (*const code[])(uint64_t) = {mov_ss_syscall, mov_ss_int3, mov_ss_icebp,
						 mov_ss_int80,	 mov_ss_ud2,  step_syscall,
						 step_int3};
	long rc;

	watched_ss = FLAT_KERNEL_SS;
	CHECK_EQ("address", hypercall2(__HYPERVISOR_set_debugreg, 0, VA(&watched_ss)), 0);
	CHECK_EQ("control", hypercall2(__HYPERVISOR_set_debugreg, 7, 0xb0003), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(code); i++)
		if (!no_fault(code[i], VA(&watched_ss)))
			CHECK(caught.vector == 1 || caught.vector == 3 || caught.vector == 6 ||
				      caught.vector == 13,
			      "%u: vector %llu", i, (unsigned long long)caught.vector);
	rc = hypercall2(__HYPERVISOR_set_debugreg, 7, 0);
	CHECK_EQ("control", rc, 0);
	CHECK_EQ("address", hypercall2(__HYPERVISOR_set_debugreg, 0, 0), 0);
}

/* ---- XSA-183: the flag that lifts SMAP is the guest's, not the hypervisor's ---- */

KERNEL_CODE(raise_ac, "pushf; orl $0x40000, (%rsp); popf");
KERNEL_CODE(clear_ac, "pushf; andl $~0x40000, (%rsp); popf");
KERNEL_CODE(ud2, "ud2");

static void alignment_flag(void)
{
	uint64_t flags;

	no_fault(raise_ac, 0);
	CHECK_EQ("a hypercall that writes there",
		 hypercall2(__HYPERVISOR_xen_version, 1, 0xffff830000200000), -EFAULT);
	CHECK(!no_fault(ud2, 0) && caught.vector == 6, "an exception");
	CHECK_EQ("a hypercall", hypercall2(__HYPERVISOR_xen_version, 0, 0), 4 << 16 | 17);
	__asm__ volatile("pushf; pop %0" : "=r"(flags));
	CHECK(flags & 0x40000, "the guest's flag is gone");
	CHECK((flags & 0x3200) == 0x200, "flags %llx", (unsigned long long)flags);
	no_fault(clear_ac, 0);
}

/* ---- XSA-148, XSA-182: flags of an entry that stays ---- */

KERNEL_CODE(or_entry, "lock orq $0x80, (%rdi)");
KERNEL_CODE(or_cache, "lock orq $0x18, (%rdi)");
KERNEL_CODE(bts_entry, "lock btsq $7, (%rdi)");
KERNEL_CODE(store_byte, "movb $0xe7, (%rdi)");

static void only_flags(void)
{
	for (unsigned level = 2; level <= 4; level++) {
		uint64_t *e, before;
		struct mmu_update u;

		entry_of(SCRATCH);
		e = entry_at(l4_mfn(), SCRATCH, level);
		before = *e;
		refused("PS", set_entry(e, before | PTE_PS));
		refused("caches", set_entry(e, before | PTE_CACHE));
		u = (struct mmu_update){machine_address(e) | MMU_PT_UPDATE_PRESERVE_AD,
					before | PTE_PS};
		refused("PS, preserving",
			hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF));
		CHECK(!no_fault(or_entry, VA(e)), "PS by OR");
		CHECK(!no_fault(or_cache, VA(e)), "PCD by OR");
		CHECK(!no_fault(bts_entry, VA(e)), "PS by BTS");
		CHECK(!no_fault(store_byte, VA(e)), "PS by a byte");
		CHECK_EQ("entry", *e & ~(PTE_A | PTE_D), before & ~(PTE_A | PTE_D));
		CHECK_EQ("not the user's", set_entry(e, before & ~PTE_U), 0);
		CHECK(*e & PTE_U, "level %u is the kernel's", level);
	}
	{
		uint64_t *page = page_alloc(), *table = page_alloc(), *e = entry_of(SCRATCH);

		CHECK_EQ("global", set_entry(e, pte(page, RW | PTE_G)), 0);
		CHECK(!(*e & PTE_G), "a global page");
		CHECK_EQ("global, flags only", set_entry(e, pte(page, RW | PTE_G)), 0);
		CHECK(!(*e & PTE_G), "a global page");
		CHECK_EQ("protect", protect(table, false), 0);
		CHECK_EQ("pin", mmuext(MMUEXT_PIN_L2_TABLE, mfn_of(table), 0), 0);
		CHECK_EQ("read-only", set_entry(e, pte(table, RO)), 0);
		refused("writable, flags only", set_entry(e, pte(table, RO) | PTE_W));
		CHECK(no_fault(or_cache, VA(&watched_ss)), "an OR elsewhere");
		CHECK_EQ("none", set_entry(e, 0), 0);
	}
}

/* ---- XSA-185, XSA-240, XSA-286: tables that lead to themselves, if only to be read ---- */

static void linear_tables(void)
{
	static const unsigned pins[] = {MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE,
					MMUEXT_PIN_L4_TABLE};

	for (unsigned i = 0; i < ARRAY_SIZE(pins); i++) {
		uint64_t *a = page_alloc(), *b = page_alloc();

		CHECK_EQ("protect", protect(a, false) | protect(b, false), 0);
		CHECK_EQ("pin", mmuext(pins[i], mfn_of(a), 0) | mmuext(pins[i], mfn_of(b), 0), 0);
		refused("itself", set_entry(a, pte(a, RO)));
		refused("another of its level", set_entry(a, pte(b, RO)));
		CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(a), 0), 0);
		CHECK_EQ("writable", protect(a, true), 0);
		a[17] = pte(a, RO);
		CHECK_EQ("protect", protect(a, false), 0);
		refused("itself, when it is pinned", mmuext(pins[i], mfn_of(a), 0));
		CHECK_EQ("writable", protect(a, true), 0);
		a[17] = 0;
	}
}

/* ---- XSA-241, XSA-401: a table is replaced and becomes data while the processor may still know it ---- */

static void stale_table(void)
{
	uint64_t *old = page_alloc(), *fresh = page_alloc(), *one = page_alloc(),
		 *two = page_alloc(), *l2e;
	volatile uint64_t *at = (void *)SCRATCH;

	entry_of(SCRATCH);
	l2e = entry_at(l4_mfn(), SCRATCH, 2);
	old[0] = pte(one, RW);
	old[1] = pte(one, RO);
	fresh[0] = pte(two, RW);
	CHECK_EQ("protect", protect(old, false) | protect(fresh, false), 0);
	for (unsigned round = 0; round < 50; round++) {
		CHECK_EQ("the old one", set_entry(l2e, pte(old, RW)), 0);
		at[0] = 1;
		CHECK_EQ("what is read", at[512], 1);
		CHECK_EQ("the new one", set_entry(l2e, pte(fresh, RW)), 0);
		/* No flush: as data it is the guest's, and says what it must not say as a table. */
		CHECK_EQ("writable", protect(old, true), 0);
		old[0] = old[1] = IMAGE_MFN << PAGE_SHIFT | RW;
		two[0] = round;
		CHECK_EQ("by the new one", at[0], round);
		old[0] = pte(one, RW);
		old[1] = pte(one, RO);
		CHECK_EQ("protect", protect(old, false), 0);
	}
}

/* ---- XSA-333 and others: every MSR read, and written with what it had, zeroes and ones ---- */

KERNEL_CODE(read_msr, "mov %edi, %ecx; rdmsr; mov %eax, msr_low; mov %edx, msr_high");
KERNEL_CODE(write_msr, "mov %edi, %ecx; mov msr_low, %eax; mov msr_high, %edx; wrmsr");
uint32_t msr_low, msr_high;

static void every_msr(void)
{
	static const struct {
		uint32_t first, last;
	} range[] = {{0, 0x2000},
		     {0x40000000, 0x40000200},
		     {0xc0000000, 0xc0000400},
		     {0xc0010000, 0xc0012000},
		     {0xfffffff0, 0xffffffff}};
	static const uint32_t values[] = {0, ~0u, 0x80000000};

	for (unsigned i = 0; i < ARRAY_SIZE(range); i++)
		for (uint32_t msr = range[i].first;; msr++) {
			bool readable = no_fault(read_msr, msr);

			CHECK(readable || caught.vector == 13, "MSR %x: vector %llu", msr,
			      (unsigned long long)caught.vector);
			if (readable)
				no_fault(write_msr, msr);
			for (unsigned k = 0; k < ARRAY_SIZE(values); k++) {
				msr_low = msr_high = values[k];
				CHECK(no_fault(write_msr, msr) || caught.vector == 13,
				      "MSR %x: vector %llu", msr,
				      (unsigned long long)caught.vector);
			}
			if (msr == range[i].last)
				break;
		}
	/* XSA-193: bases that are not canonical, or the hypervisor's. */
	for (unsigned which = 0; which < 3; which++) {
		static const uint64_t bad[] = {HOLE, 1ull << 63, 0xffff830000000000,
					       0xffff7fffffffffff};

		for (unsigned k = 0; k < ARRAY_SIZE(bad); k++)
			refused("a base", hypercall2(__HYPERVISOR_set_segment_base, which, bad[k]));
		CHECK_EQ("none", hypercall2(__HYPERVISOR_set_segment_base, which, 0), 0);
	}
}

/* ---- XSA-195: bits that are set far from where an instruction points ---- */

KERNEL_CODE(far_bit, "mov (%rdi), %rcx; mov 8(%rdi), %rax; lock btsq %rax, (%rcx)");

static void far_bits(void)
{
	uint64_t *page = page_alloc(), *e = entry_of(SCRATCH + 64 * PAGE_SIZE);
	struct {
		uint64_t at;
		int64_t bit;
	} arg;

	CHECK_EQ("map", set_entry(e, pte(page, RO) & ~PTE_A), 0);
	/* From 100 entries below, and above: only this one changes. */
	for (int far = -100; far <= 100; far += 200) {
		arg.at = VA(e - far);
		arg.bit = (int64_t)far * 64 + 5;
		CHECK_EQ("without A", set_entry(e, pte(page, RO) & ~PTE_A), 0);
		CHECK(no_fault(far_bit, VA(&arg)), "a bit of an entry: vector %llu cr2 %llx",
		      (unsigned long long)caught.vector, (unsigned long long)caught_cr2);
		CHECK_EQ("entry", *e, pte(page, RO));
		CHECK(!e[-far], "another entry is %llx", (unsigned long long)e[-far]);
	}
	/* Into the hypervisor, from the guest's own page. */
	arg.at = VA(page);
	arg.bit = (int64_t)(0xffff830000000000 - VA(page)) * 8;
	CHECK(!no_fault(far_bit, VA(&arg)), "a bit of the hypervisor's");
	CHECK_EQ("none", set_entry(e, 0), 0);
}

/* ---- XSA-195, XSA-202: strings of ports, to and from the hypervisor ---- */

KERNEL_CODE(string_in, "mov $0x71, %edx; mov $4, %ecx; rep insb");
KERNEL_CODE(string_out, "mov %rdi, %rsi; mov $0x80, %edx; mov $4, %ecx; rep outsb");

static void strings(void)
{
	struct physdev_set_iopl op = {.iopl = 1};
	const uint64_t bad[] = {0xffff830000000000 + (mfn_of(page_alloc()) << PAGE_SHIFT),
				0xffff800000000000,
				0xffff828000200000,
				HOLE,
				HOLE - 2,
				0xfffffffffffffffe,
				VA(start_info->pt_base)};

	CHECK_EQ("set_iopl", hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, VA(&op)), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		CHECK(!no_fault(string_in, bad[i]), "ports were read to %llx",
		      (unsigned long long)bad[i]);
		CHECK_EQ("vector", caught.vector, 14);
		if (i < 6)
			CHECK(!no_fault(string_out, bad[i]), "ports were written from %llx",
			      (unsigned long long)bad[i]);
	}
}

/* ---- XSA-343, XSA-344, XSA-358, XSA-359: event words and their pages ---- */

#define EVENT(command, arg) hypercall2(__HYPERVISOR_event_channel_op, command, VA(arg))

static void event_words(void)
{
	struct evtchn_init_control init = {.vcpu = 0};
	struct evtchn_expand_array expand;
	struct evtchn_reset reset = {.dom = DOMID_SELF};
	struct evtchn_bind_ipi ipi[8];
	uint32_t *words = page_alloc(), *control = page_alloc(), *table = page_alloc();
	uint64_t frames[] = {IMAGE_MFN, ~0ull, 1ull << 40, l4_mfn()};

	for (unsigned i = 0; i < ARRAY_SIZE(frames); i++) {
		init.control_gfn = frames[i];
		refused("control block", EVENT(EVTCHNOP_init_control, &init));
	}
	init.control_gfn = mfn_of(control);
	init.offset = 4;
	refused("control block not aligned", EVENT(EVTCHNOP_init_control, &init));
	init.offset = 4096 - 8;
	refused("control block across the end", EVENT(EVTCHNOP_init_control, &init));
	init.offset = 0;
	CHECK_EQ("control block", EVENT(EVTCHNOP_init_control, &init), 0);
	refused("a second one", EVENT(EVTCHNOP_init_control, &init));
	for (unsigned i = 0; i < ARRAY_SIZE(frames); i++) {
		expand.array_gfn = frames[i];
		refused("event words", EVENT(EVTCHNOP_expand_array, &expand));
	}
	expand.array_gfn = mfn_of(words);
	CHECK_EQ("event words", EVENT(EVTCHNOP_expand_array, &expand), 0);
	/* Both are held: no tables. */
	CHECK_EQ("protect", protect(words, false) | protect(control, false), 0);
	refused("words as a table", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(words), 0));
	refused("control as a table", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(control), 0));
	CHECK_EQ("protect", protect(words, true) | protect(control, true), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(ipi); i++) {
		ipi[i].vcpu = 0;
		CHECK_EQ("bind", EVENT(EVTCHNOP_bind_ipi, &ipi[i]), 0);
	}
	/* Links to nowhere, in a circle, and bits of all kinds, and again while they are sent. */
	for (unsigned round = 0; round < 400; round++) {
		uint32_t port = ipi[round % ARRAY_SIZE(ipi)].port;
		struct evtchn_send send = {.port = port};
		struct evtchn_unmask unmask = {.port = port};

		for (unsigned i = 0; i < 16; i++) {
			static const uint32_t kinds[] = {0,	     ~0u,	 0x20000000,
							 0x9fffffff, 0xc0000001, 0x40000002,
							 0x30000003, 0x80000000};

			words[i] = kinds[(round + i * 3) % ARRAY_SIZE(kinds)] + (round & 7);
			control[i] = round % 3 ? ~0u : i;
		}
		CHECK_EQ("send", EVENT(EVTCHNOP_send, &send), 0);
		CHECK_EQ("unmask", EVENT(EVTCHNOP_unmask, &unmask), 0);
	}
	CHECK_EQ("reset", EVENT(EVTCHNOP_reset, &reset), 0);
	CHECK(EVENT(EVTCHNOP_send, &(struct evtchn_send){ipi[0].port}) < 0, "a port is left");
	memset(words, 0, PAGE_SIZE);
	memset(control, 0, PAGE_SIZE);
	/* Given back: they may be tables. */
	CHECK_EQ("protect", protect(words, false) | protect(control, false) | protect(table, false),
		 0);
	CHECK_EQ("words as a table", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(words), 0), 0);
	CHECK_EQ("control as a table", mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(control), 0), 0);
}

const struct part parts[] = {{"last-instructions", last_instructions},
			     {"sysenters", sysenters},
			     {"debug-behind", debug_behind},
			     {"alignment-flag", alignment_flag},
			     {"only-flags", only_flags},
			     {"linear-tables", linear_tables},
			     {"stale-table", stale_table},
			     {"every-msr", every_msr},
			     {"far-bits", far_bits},
			     {"strings", strings},
			     {"event-words", event_words},
			     {NULL, NULL}};
