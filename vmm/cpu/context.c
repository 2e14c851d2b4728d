/* SPDX-License-Identifier: MIT */
/* See context.h. Everything is saved and loaded at each switch: no state of one vCPU stays in the processor for another to find. */
#include "vmm/cpu/context.h"

#include "vmm/cpu/desc.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/lib/string.h"
#include "vmm/mm/map.h"
#include "vmm/mm/tlb.h"
#include "vmm/sched/sched.h"

void load_guest_cr3(struct vcpu *v)
{
	v->cr3 = (v->kernel_mode ? v->table_kernel.v : v->table_user.v) << PAGE_SHIFT;
	write_cr3(v->cr3);
}

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

/* Selectors first: loading one changes its base. One that cannot be loaded any more becomes null. */
static void load_segments(const struct vcpu *v)
{
	load_selector_ds(v->regs.ds);
	load_selector_es(v->regs.es);
	load_selector_fs(v->regs.fs);
	load_selector_gs(v->regs.gs);
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

static void load(struct vcpu *v)
{
	struct pcpu *c = this_cpu();
	uint32_t clock = tlb_flush_begin();

	__atomic_fetch_or(&v->domain->dirty_cpus, 1ull << c->id, __ATOMIC_SEQ_CST);
	load_guest_cr3(v);
	tlb_flush_end(clock);
	desc_load(v);
	load_segments(v);
	load_debug_registers(v);
	fpu_restore(v);
	if (v->ts)
		write_cr0(read_cr0() | CR0_TS);
	*guest_frame() = v->regs;
	vcpu_time_update(v);
	vcpu_runstate_update(v);
}

/* No guest's tables: they may go away while this CPU idles. */
static void leave_guest_tables(struct domain *d)
{
	uint32_t clock = tlb_flush_begin();

	write_cr3(map_hv_l4().v << PAGE_SHIFT);
	tlb_flush_end(clock);
	__atomic_fetch_and(&d->dirty_cpus, ~(1ull << this_cpu()->id), __ATOMIC_SEQ_CST);
}

void context_switch(struct vcpu *from, struct vcpu *to)
{
	struct pcpu *c = this_cpu();
	uint64_t flags;

	if (from == to)
		return;
	flags = irq_save();
	if (!from->domain->idle) {
		save(from);
		leave_guest_tables(from->domain);
		desc_load(NULL);
	}
	c->vcpu = to;
	sched_switched(from);
	if (to->domain->idle) {
		irq_restore(flags);
		enter_idle();
	}
	load(to);
	irq_restore(flags);
	enter_guest();
}
