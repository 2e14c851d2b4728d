/* SPDX-License-Identifier: MIT */
/*
 * A processor and its stack.
 *
 * There is one hypervisor stack for each CPU, not one for each vCPU: whoever enters from a guest starts at its top, and a vCPU's registers
 * are in the frame there while it runs and in struct vcpu while it does not. So code that waits must not exist: long
 * operations return -ERESTART and are begun again (hypercall_restart).
 */
#pragma once

#include "vmm/mm/layout.h"

/* Offsets in struct stack_top, for entry.S. */
#define TOP_FRAME     72
#define TOP_FRAME_END (TOP_FRAME + 168)
#define TOP_CPU	      272
#define TOP_HV_CR3    280
#define TOP_GUEST_CR3 288
#define TOP_GUEST_RSP 296
/* And in struct pcpu, struct vcpu and struct vcpu_info. */
#define PCPU_PENDING	   16
#define PCPU_VCPU	   24
#define PCPU_TABLES	   44
#define PCPU_FRESH	   45
#define VCPU_INFO	   8
#define VCPU_ROOT_KERNEL   16
#define VCPU_ROOT_USER	   24
#define VCPU_SYSCALL_ENTRY 32
#define VCPU_KERNEL_SP	   40
#define VCPU_IOPL	   48
#define VCPU_MODE	   52 /* four flags, all at once; of a kernel to which nothing special happens: */
#define MODE_KERNEL	   1
#define VCPU_NMI_PENDING   (VCPU_MODE + 1)
#define VCPU_SYSCALL_MASKS 56
#define VCPU_PF_FLAGS	   (64 + 14 * 16 + 10)
#define VCPU_CR2	   (64 + 256 * 16 + 2 * 8)
#define VCPU_PF_ENTRY	   (64 + 256 * 16 + 8 * 8)
#define INFO_PENDING	   0
#define INFO_MASK	   1
#define INFO_CR2	   16

#ifndef __ASSEMBLY__
#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"

struct vcpu;

/* Reasons to look around before a guest is entered again; bits of pcpu.pending. */
enum soft_event {
	SOFT_SCHEDULE, /* another vCPU may have to run */
	SOFT_TIMER,    /* timers may be due */
	SOFT_NMI,      /* one came */
	SOFT_AREAS,    /* what is told to the vCPU could not be written (domain/vcpu_time.h) */
};

struct pcpu {
	unsigned id;
	uint32_t apic_id;
	uint32_t acpi_id;
	bool online;
	uint32_t pending;  /* 1 << enum soft_event; set atomically by anyone */
	struct vcpu *vcpu; /* that runs here: `current` */
	struct vcpu *idle;
	uint32_t tlb_clock; /* value of the TLB clock at the last full flush of this CPU */
	uint8_t tables; /* which address space is loaded, and which need no flush when they are: mm/tlb.c */
	uint8_t fresh;
	uint64_t last_tag; /* of the last vCPU that was no idle one */
};

/* The page behind a CPU's stack. */
struct stack_top {
	uint64_t room[TOP_FRAME / 8]; /* an exception of IRET pushes its frame over the one below */
	struct cpu_user_regs guest;   /* the frame of the last entry from a guest */
	struct pcpu *cpu;
	uint64_t hv_cr3,
		guest_cr3;  /* to load on the way in and out, when guests' tables are isolated */
	uint64_t guest_rsp; /* for a moment, in SYSCALL's stub */
};
_Static_assert(offsetof(struct stack_top, guest.es) % 16 == 0,
	       "TSS.rsp0 is &guest.es, and the processor aligns its stack to 16 bytes");

extern struct pcpu pcpus[MAX_CPUS];
extern unsigned nr_cpus; /* started */

static inline struct stack_top *stack_top(void)
{
	uint64_t sp;

	__asm__("mov %%rsp, %0" : "=r"(sp));
	return (struct stack_top *)((sp & ~(WINDOW_STRIDE - 1ul)) + WINDOW_FRAME);
}

#define this_cpu()    (stack_top()->cpu)
#define current	      (this_cpu()->vcpu)
#define guest_frame() (&stack_top()->guest)

static inline void raise_soft(struct pcpu *c, enum soft_event e)
{
	__atomic_fetch_or(&c->pending, 1u << e, __ATOMIC_SEQ_CST);
}

#endif /* __ASSEMBLY__ */
