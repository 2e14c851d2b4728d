/* SPDX-License-Identifier: MIT */
/*
 * A processor and its stack.
 *
 * There is one hypervisor stack for each CPU, not one for each vCPU: whoever enters from a guest starts at its top, and a vCPU's registers
 * are in the frame there while it runs and in struct vcpu while it does not. So code that waits must not exist: long
 * operations return -ERESTART and are begun again (hypercall_restart).
 */
#ifndef VMM_CPU_PCPU_H
#define VMM_CPU_PCPU_H

#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"
#include "vmm/mm/layout.h"

struct vcpu;

/* Reasons to look around before a guest is entered again; bits of pcpu.pending. */
enum soft_event {
	SOFT_SCHEDULE, /* another vCPU may have to run */
	SOFT_TIMER,    /* timers may be due */
};

struct pcpu {
	unsigned id;
	uint32_t apic_id;
	uint32_t acpi_id;
	bool online;
	uint32_t pending;  /* 1 << enum soft_event; set atomically by anyone */
	struct vcpu *vcpu; /* that runs here: `current` */
	struct vcpu *idle;
	uint64_t cr4;
	uint64_t stack_top;
	uint32_t tlb_clock; /* value of the TLB clock at the last full flush of this CPU */
	uint64_t nmi_count, irq_count;
};

/* The end of a stack: what entry.S finds there. */
struct stack_top {
	struct cpu_user_regs guest; /* the frame of the last entry from a guest */
	struct pcpu *cpu;
	uint64_t reserved;
};
_Static_assert((sizeof(struct stack_top) - offsetof(struct stack_top, guest.es)) % 16 == 0,
	       "TSS.rsp0 is &guest.es, and the processor aligns its stack to 16 bytes");

extern struct pcpu pcpus[MAX_CPUS];
extern unsigned nr_cpus; /* started */

static inline struct stack_top *stack_top(void)
{
	uint64_t sp;

	__asm__("mov %%rsp, %0" : "=r"(sp));
	return (struct stack_top *)((sp | (STACK_SIZE - 1)) + 1) - 1;
}

#define this_cpu()    (stack_top()->cpu)
#define current	      (this_cpu()->vcpu)
#define guest_frame() (&stack_top()->guest)

static inline void raise_soft(struct pcpu *c, enum soft_event e)
{
	__atomic_fetch_or(&c->pending, 1u << e, __ATOMIC_SEQ_CST);
}

#endif
