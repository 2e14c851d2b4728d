/* SPDX-License-Identifier: MIT */
/* See context.h. Everything is saved and loaded at each switch: no state of one vCPU stays in the processor for another to find. */
#include "vmm/cpu/context.h"

#include "vmm/cpu/desc.h"
#include "vmm/cpu/mitigation.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/lib/string.h"
#include "vmm/mm/tlb.h"
#include "vmm/sched/sched.h"

void save_segment_bases(struct vcpu *v)
{
	uint64_t active = rdmsr(MSR_GS_BASE), other = rdmsr(MSR_KERNEL_GS_BASE);

	v->fs_base = rdmsr(MSR_FS_BASE);
	v->gs_base_kernel = v->kernel_mode ? active : other;
	v->gs_base_user = v->kernel_mode ? other : active;
}

static void save_selectors(struct cpu_user_regs *r)
{
	__asm__ volatile("mov %%ds, %0" : "=m"(r->ds));
	__asm__ volatile("mov %%es, %0" : "=m"(r->es));
	__asm__ volatile("mov %%fs, %0" : "=m"(r->fs));
	__asm__ volatile("mov %%gs, %0" : "=m"(r->gs));
}

/*
 * Selectors first: loading one changes its base. One that cannot be loaded any more becomes null; but a kernel changes its LDT while FS and GS still have what
 * the last program took out of the old one, and saves that later.
 */
static void load_segments(const struct vcpu *v)
{
	load_selector_ds(v->regs.ds);
	load_selector_es(v->regs.es);
	if (load_selector_fs(v->regs.fs))
		desc_load_lost(v->regs.fs, false);
	if (load_selector_gs(v->regs.gs))
		desc_load_lost(v->regs.gs, true);
	wrmsr(MSR_FS_BASE, v->fs_base);
	wrmsr(MSR_GS_BASE, v->kernel_mode ? v->gs_base_kernel : v->gs_base_user);
	wrmsr(MSR_KERNEL_GS_BASE, v->kernel_mode ? v->gs_base_user : v->gs_base_kernel);
}

#define LOAD_DR(n, value) __asm__ volatile("mov %0, %%dr" #n ::"r"((uint64_t)(value)))
#define DR7_ENABLED	  0xffull

void load_debug_registers(const struct vcpu *v)
{
	LOAD_DR(7, 0);
	if (!(v->debugreg[7] & DR7_ENABLED))
		return;
	LOAD_DR(0, v->debugreg[0]);
	LOAD_DR(1, v->debugreg[1]);
	LOAD_DR(2, v->debugreg[2]);
	LOAD_DR(3, v->debugreg[3]);
	LOAD_DR(7, v->debugreg[7]);
}

static void save(struct vcpu *v)
{
	v->regs = *guest_frame();
	save_selectors(&v->regs);
	save_segment_bases(v);
	fpu_save(v);
}

/* Nothing of `from` is in use on this CPU then: its tables may go away, or another CPU may run it. */
static void replace_tables(const struct vcpu *from, const struct vcpu *to)
{
	uint64_t me = 1ull << this_cpu()->id;

	if (to->domain->idle) {
		tlb_load_none();
		desc_load(NULL);
	} else {
		__atomic_fetch_or(&to->domain->dirty_cpus, me, __ATOMIC_SEQ_CST);
		tlb_load_new(to);
		desc_load(to);
	}
	if (!from->domain->idle && from->domain != to->domain)
		__atomic_fetch_and(&from->domain->dirty_cpus, ~me, __ATOMIC_SEQ_CST);
}

static void load(struct vcpu *v)
{
	struct pcpu *c = this_cpu();

	if (c->last_tag != v->tag)
		mitigation_switch();
	c->last_tag = v->tag;
	load_segments(v);
	load_debug_registers(v);
	fpu_restore(v);
	if (v->ts)
		write_cr0(read_cr0() | CR0_TS);
	*guest_frame() = v->regs;
	vcpu_time_update(v);
	vcpu_runstate_update(v);
}

void context_switch(struct vcpu *from, struct vcpu *to)
{
	uint64_t flags;

	if (from == to)
		return;
	flags = irq_save();
	if (!from->domain->idle)
		save(from);
	this_cpu()->vcpu = to;
	replace_tables(from, to);
	sched_switched(from);
	if (!to->domain->idle)
		load(to);
	irq_restore(flags);
	if (to->domain->idle)
		enter_idle();
	enter_guest();
}
