/* SPDX-License-Identifier: MIT */
/* The processor's registers and instructions, by their names in the manuals (AMD64 APM vol. 2 and 3, Intel SDM vol. 3). */
#pragma once

#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"

#define EFLAGS_CF   0x1u
#define EFLAGS_TF   0x100u
#define EFLAGS_IF   0x200u
#define EFLAGS_DF   0x400u
#define EFLAGS_IOPL 0x3000u
#define EFLAGS_NT   0x4000u
#define EFLAGS_RF   0x10000u
#define EFLAGS_VM   0x20000u
#define EFLAGS_AC   0x40000u

#define CR0_PE 0x1ul
#define CR0_MP 0x2ul
#define CR0_EM 0x4ul
#define CR0_TS 0x8ul
#define CR0_ET 0x10ul
#define CR0_NE 0x20ul
#define CR0_WP 0x10000ul
#define CR0_AM 0x40000ul
#define CR0_PG 0x80000000ul

#define CR4_TSD	       0x4ul
#define CR4_DE	       0x8ul
#define CR4_PAE	       0x20ul
#define CR4_MCE	       0x40ul
#define CR4_PGE	       0x80ul
#define CR4_OSFXSR     0x200ul
#define CR4_OSXMMEXCPT 0x400ul
#define CR4_PCIDE      0x20000ul
#define CR4_OSXSAVE    0x40000ul
#define CR4_SMEP       0x100000ul
#define CR4_SMAP       0x200000ul

#define MSR_TSC		   0x10u
#define MSR_APIC_BASE	   0x1bu
#define MSR_SPEC_CTRL	   0x48u
#define MSR_PRED_CMD	   0x49u
#define MSR_ARCH_CAPS	   0x10au
#define MSR_TSC_DEADLINE   0x6e0u
#define MSR_PAT		   0x277u
#define MSR_MISC_ENABLE	   0x1a0u
#define MSR_EFER	   0xc0000080u
#define MSR_STAR	   0xc0000081u
#define MSR_LSTAR	   0xc0000082u
#define MSR_CSTAR	   0xc0000083u
#define MSR_SYSCALL_MASK   0xc0000084u
#define MSR_FS_BASE	   0xc0000100u
#define MSR_GS_BASE	   0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u

#define EFER_SCE 0x1ul
#define EFER_LME 0x100ul
#define EFER_LMA 0x400ul
#define EFER_NX	 0x800ul

enum {
	TRAP_DEBUG = 1,
	TRAP_NMI = 2,
	TRAP_INT3 = 3,
	TRAP_OVERFLOW = 4,
	TRAP_INVALID_OP = 6,
	TRAP_NO_DEVICE = 7,
	TRAP_DOUBLE_FAULT = 8,
	TRAP_INVALID_TSS = 10,
	TRAP_GP = 13,
	TRAP_PAGE_FAULT = 14,
	TRAP_ALIGNMENT = 17,
	TRAP_MACHINE_CHECK = 18,
};

#define PF_PRESENT 1u
#define PF_WRITE   2u
#define PF_USER	   4u
#define PF_RSVD	   8u
#define PF_FETCH   16u

static inline uint64_t rdmsr(uint32_t msr)
{
	uint32_t low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return (uint64_t)high << 32 | low;
}

static inline void wrmsr(uint32_t msr, uint64_t value)
{
	__asm__ volatile("wrmsr" ::"c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32))
			 : "memory");
}

/* With #GP caught: 0 or -1. */
int rdmsr_safe(uint32_t msr, uint64_t *value);
int wrmsr_safe(uint32_t msr, uint64_t value);

static inline uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
	return (uint64_t)high << 32 | low;
}

struct cpuid {
	uint32_t a, b, c, d;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r;

	__asm__ volatile("cpuid"
			 : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d)
			 : "a"(leaf), "c"(subleaf));
	return r;
}

/* Zeroes for a leaf that it does not have: it would answer with another. */
static inline struct cpuid cpuid_leaf(uint32_t leaf, uint32_t subleaf)
{
	uint32_t range = leaf & 0xffff0000, last = cpuid(range, 0).a;

	if (leaf > last || last >> 16 != range >> 16)
		return (struct cpuid){0, 0, 0, 0};
	return cpuid(leaf, subleaf);
}

#define DEFINE_CR(n)                                                        \
	static inline uint64_t read_cr##n(void)                             \
	{                                                                   \
		uint64_t v;                                                 \
		__asm__ volatile("mov %%cr" #n ", %0" : "=r"(v)::"memory"); \
		return v;                                                   \
	}                                                                   \
	static inline void write_cr##n(uint64_t v)                          \
	{                                                                   \
		__asm__ volatile("mov %0, %%cr" #n ::"r"(v) : "memory");    \
	}
DEFINE_CR(0)
DEFINE_CR(2)
DEFINE_CR(3)
DEFINE_CR(4)

static inline void invlpg(uint64_t va)
{
	__asm__ volatile("invlpg (%0)" ::"r"(va) : "memory");
}

static inline void invpcid(uint64_t type, uint64_t pcid, uint64_t va)
{
	const uint64_t descriptor[2] = {pcid, va};

	__asm__ volatile("invpcid %0, %1" ::"m"(descriptor), "r"(type) : "memory");
}

#define DEFINE_PORT(suffix, type)                                                \
	static inline void out##suffix(uint16_t port, type v)                    \
	{                                                                        \
		__asm__ volatile("out" #suffix " %0, %1" ::"a"(v), "Nd"(port));  \
	}                                                                        \
	static inline type in##suffix(uint16_t port)                             \
	{                                                                        \
		type v;                                                          \
		__asm__ volatile("in" #suffix " %1, %0" : "=a"(v) : "Nd"(port)); \
		return v;                                                        \
	}
DEFINE_PORT(b, uint8_t)
DEFINE_PORT(w, uint16_t)
DEFINE_PORT(l, uint32_t)

/* The same with the size as a number: 1, 2 or 4 bytes. */
static inline uint32_t port_read(unsigned port, unsigned bytes)
{
	switch (bytes) {
	case 1:
		return inb((uint16_t)port);
	case 2:
		return inw((uint16_t)port);
	default:
		return inl((uint16_t)port);
	}
}

static inline void port_write(unsigned port, unsigned bytes, uint32_t value)
{
	switch (bytes) {
	case 1:
		outb((uint16_t)port, (uint8_t)value);
		break;
	case 2:
		outw((uint16_t)port, (uint16_t)value);
		break;
	default:
		outl((uint16_t)port, value);
		break;
	}
}

static inline void irq_disable(void)
{
	__asm__ volatile("cli" ::: "memory");
}
static inline void irq_enable(void)
{
	__asm__ volatile("sti" ::: "memory");
}
