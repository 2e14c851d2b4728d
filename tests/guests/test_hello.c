// SPDX-License-Identifier: MIT
/*
 * The least that a kernel needs: the start-of-day state is as the ABI says, hypercalls answer, both by the SYSCALL instruction and by the
& hypervisor filled, and keep all registers but the one with the answer.
 */
#include "tests/guests/lib/guest.h"

#include <xen/memory.h>
#include <xen/version.h>

LABEL(hypercall_page);

static void start_of_day(void)
{
	const struct start_info *s = start_info;

	CHECK(!strncmp(s->magic, "xen-3.0-x86_64", 15), "magic %.*s", 20, s->magic);
	CHECK(!s->flags || s->flags == (SIF_PRIVILEGED | SIF_INITDOMAIN), "flags %x", s->flags);
	CHECK(s->nr_pages >= 64 << 8, "%lu pages", s->nr_pages);
	CHECK(VA(s) % PAGE_SIZE == 0 && VA(s) < s->pt_base, "start_info at %llx, tables at %llx",
	      (unsigned long long)VA(s), (unsigned long long)s->pt_base);
	for (uint64_t pfn = 0; pfn < s->nr_pages; pfn++) {
		uint64_t mfn = ((const uint64_t *)s->mfn_list)[pfn];

		CHECK(M2P[mfn] == pfn, "pfn %llu has mfn %llx, whose pfn is %llu",
		      (unsigned long long)pfn, (unsigned long long)mfn,
		      (unsigned long long)M2P[mfn]);
	}
	for (uint64_t i = 0; i < s->nr_pt_frames; i++) {
		uint64_t va = s->pt_base + i * PAGE_SIZE, *e = entry_at(l4_mfn(), va, 1);

		CHECK(e && (*e & PTE_P) && !(*e & PTE_W), "table page %llu is mapped as %llx",
		      (unsigned long long)i, e ? (unsigned long long)*e : 0ull);
	}
	CHECK(shared_info->vcpu_info[0].evtchn_upcall_mask, "events are not masked");
}

static void version(void)
{
	xen_extraversion_t extra = "";
	long v = hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0);

	CHECK_EQ("version", v, 4 << 16 | 17);
	CHECK_EQ("extraversion",
		 hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, VA(extra)), 0);
	CHECK(extra[0] == '-', "extraversion %.*s", 16, extra);
	CHECK_EQ("reservation",
		 hypercall2(__HYPERVISOR_memory_op, XENMEM_current_reservation,
			    VA(&(domid_t){DOMID_SELF})),
		 start_info->nr_pages);
}

/* All registers get a pattern, which stands there afterwards. way: SYSCALL here, or CALL into the page. */
#define KEEPS_REGISTERS(name, way)                                                     \
	extern uint64_t name(void);                                                    \
	__asm__(".pushsection .text." #name ", \"ax\"\n" #name ":\n"                   \
		"push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"   \
		"mov $0x1001, %ebx; mov $0x1002, %ebp; mov $0x1003, %r12d\n"           \
		"mov $0x1004, %r13d; mov $0x1005, %r14d; mov $0x1006, %r15d\n"         \
		"xor %edi, %edi; mov $0x1007, %esi; mov $0x1008, %edx\n"               \
		"mov $0x1009, %r10d; mov $0x100a, %r8d; mov $0x100b, %r9d\n"           \
		"mov $17, %eax\n" way "\n"                                             \
		"cmp $0x40011, %eax; jne 1f\n"                                         \
		"sub $0x1001, %rbx; sub $0x1002, %rbp; or %rbp, %rbx\n"                \
		"sub $0x1003, %r12; or %r12, %rbx; sub $0x1004, %r13; or %r13, %rbx\n" \
		"sub $0x1005, %r14; or %r14, %rbx; sub $0x1006, %r15; or %r15, %rbx\n" \
		"or %rdi, %rbx; sub $0x1007, %rsi; or %rsi, %rbx\n"                    \
		"sub $0x1008, %rdx; or %rdx, %rbx; sub $0x1009, %r10; or %r10, %rbx\n" \
		"sub $0x100a, %r8; or %r8, %rbx; sub $0x100b, %r9; or %r9, %rbx\n"     \
		"mov %rbx, %rax; jmp 2f\n"                                             \
		"1: mov $-1, %rax\n"                                                   \
		"2: pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx; ret\n" \
		".popsection\n")
KEEPS_REGISTERS(by_syscall, "syscall");
KEEPS_REGISTERS(by_page, "call hypercall_page + 17 * 32");

static void registers(void)
{
	CHECK_EQ("registers changed by SYSCALL", by_syscall(), 0);
	CHECK_EQ("registers changed by the hypercall page", by_page(), 0);
}

/* Numbers without a meaning, or with one that is not offered: -ENOSYS. */
static void unknown_numbers(void)
{
	static const uint16_t unknown[] = {11, 27, 34, 37, 38, 42,  46,
					   47, 49, 50, 63, 64, 127, 1000};

	for (unsigned i = 0; i < ARRAY_SIZE(unknown); i++) {
		long rc = hypercall3(unknown[i], 0, 0, 0);

		CHECK(rc == -ENOSYS, "hypercall %u: %ld", unknown[i], rc);
	}
	CHECK_EQ("hypercall 2^64 - 1", hypercall3(~0ull, 0, 0, 0), -ENOSYS);
	CHECK_EQ("hypercall 2^32 + 17", hypercall3((1ull << 32) + 17, 0, 0, 0), -ENOSYS);
}

const struct part parts[] = {{"start-of-day", start_of_day},
			     {"version", version},
			     {"registers", registers},
			     {"unknown-numbers", unknown_numbers},
			     {NULL, NULL}};
