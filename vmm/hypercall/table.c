/* SPDX-License-Identifier: MIT */
/* Which number is which hypercall, how one is begun again, and several at once. */
#include "vmm/hypercall/table.h"

#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/page_type.h"

#define SYSCALL_BYTES 2 /* of the instruction */
#define NR_ARGUMENTS  6

/* The multicall whose call runs on this CPU. */
static struct {
	bool active;
	multicall_entry_t call;
} multicall[MAX_CPUS];

bool hypercall_preempt_check(void)
{
	return READ_ONCE(this_cpu()->pending) != 0;
}

bool may_preempt(void)
{
	return !current->domain->idle && hypercall_preempt_check();
}

void hypercall_set_argument(unsigned n, arg_t value)
{
	struct cpu_user_regs *r = guest_frame();
	uint64_t *const argument[NR_ARGUMENTS] = {&r->rdi, &r->rsi, &r->rdx,
						  &r->r10, &r->r8,  &r->r9};
	unsigned cpu = this_cpu()->id;

	BUG_ON(n >= NR_ARGUMENTS);
	if (multicall[cpu].active)
		multicall[cpu].call.args[n] = value;
	else
		*argument[n] = value;
}

/* r: rax has the number, the others the arguments. */
static long dispatch(const struct cpu_user_regs *r)
{
	/* Of all, the most frequent by far. */
	switch (__builtin_expect((long)r->rax, __HYPERVISOR_mmu_update)) {
	case __HYPERVISOR_mmu_update:
		return do_mmu_update(r->rdi, r->rsi, r->rdx, r->r10);
	case __HYPERVISOR_update_va_mapping:
		return do_update_va_mapping(r->rdi, r->rsi, r->rdx);
	case __HYPERVISOR_mmuext_op:
		return do_mmuext_op(r->rdi, r->rsi, r->rdx, r->r10);
	case __HYPERVISOR_stack_switch:
		return do_stack_switch(r->rdi, r->rsi);
	case __HYPERVISOR_fpu_taskswitch:
		return do_fpu_taskswitch(r->rdi);
	case __HYPERVISOR_set_segment_base:
		return do_set_segment_base(r->rdi, r->rsi);
	case __HYPERVISOR_event_channel_op:
		return do_event_channel_op(r->rdi, r->rsi);
	case __HYPERVISOR_sched_op:
		return do_sched_op(r->rdi, r->rsi);
	case __HYPERVISOR_vcpu_op:
		return do_vcpu_op(r->rdi, r->rsi, r->rdx);
	case __HYPERVISOR_set_timer_op:
		return do_set_timer_op(r->rdi);
	case __HYPERVISOR_update_descriptor:
		return do_update_descriptor(r->rdi, r->rsi);
	case __HYPERVISOR_physdev_op:
		return do_physdev_op(r->rdi, r->rsi);
	case __HYPERVISOR_grant_table_op:
		return do_grant_table_op(r->rdi, r->rsi, r->rdx);
	case __HYPERVISOR_memory_op:
		return do_memory_op(r->rdi, r->rsi);
	case __HYPERVISOR_console_io:
		return do_console_io(r->rdi, r->rsi, r->rdx);
	case __HYPERVISOR_xen_version:
		return do_xen_version(r->rdi, r->rsi);
	case __HYPERVISOR_set_trap_table:
		return do_set_trap_table(r->rdi);
	case __HYPERVISOR_set_gdt:
		return do_set_gdt(r->rdi, r->rsi);
	case __HYPERVISOR_set_debugreg:
		return do_set_debugreg(r->rdi, r->rsi);
	case __HYPERVISOR_get_debugreg:
		return do_get_debugreg(r->rdi);
	case __HYPERVISOR_update_va_mapping_otherdomain:
		return do_update_va_mapping_otherdomain(r->rdi, r->rsi, r->rdx, r->r10);
	case __HYPERVISOR_vm_assist:
		return do_vm_assist(r->rdi, r->rsi);
	case __HYPERVISOR_callback_op:
		return do_callback_op(r->rdi, r->rsi);
	case __HYPERVISOR_platform_op:
		return do_platform_op(r->rdi);
	case __HYPERVISOR_sysctl:
		return do_sysctl(r->rdi);
	case __HYPERVISOR_domctl:
		return do_domctl(r->rdi);
	case __HYPERVISOR_multicall:
		return do_multicall(r->rdi, r->rsi);
	default:
		return -ENOSYS;
	}
}

void hypercall(struct cpu_user_regs *r)
{
	long rc;

	irq_enable();
	if (r->rax == __HYPERVISOR_iret) {
		do_iret(); /* sets all registers */
		return;
	}
	rc = dispatch(r);
	if (unlikely(rc == -ERESTART))
		r->rip -= SYSCALL_BYTES; /* rax still has the number */
	else
		r->rax = (uint64_t)rc;
}

long do_multicall(arg_t calls, arg_t count)
{
	unsigned cpu = this_cpu()->id;
	long rc = 0;

	if (multicall[cpu].active)
		return -EINVAL;
	while (count) {
		multicall_entry_t *c = &multicall[cpu].call;
		struct cpu_user_regs r;
		long result;

		if (copy_from_guest(c, GUEST_VA(calls), sizeof(*c)))
			return -EFAULT;
		r.rax = c->op;
		r.rdi = c->args[0];
		r.rsi = c->args[1];
		r.rdx = c->args[2];
		r.r10 = c->args[3];
		r.r8 = c->args[4];
		r.r9 = c->args[5];
		multicall[cpu].active = true;
		result = dispatch(&r);
		multicall[cpu].active = false;
		if (result == -ERESTART) {
			if (copy_to_guest(GUEST_VA(calls), c, sizeof(*c)))
				return -EFAULT;
			rc = -ERESTART;
			break;
		}
		if (copy_to_guest(GUEST_VA(calls + offsetof(multicall_entry_t, result)), &result,
				  sizeof(result)))
			return -EFAULT;
		calls += sizeof(*c);
		count--;
		if (count && hypercall_preempt_check()) {
			rc = -ERESTART;
			break;
		}
	}
	if (rc == -ERESTART) {
		hypercall_set_argument(0, calls);
		hypercall_set_argument(1, count);
	}
	return rc;
}

static const uint8_t call_code[] = {
	0x51,		     /* push %rcx */
	0x41, 0x53,	     /* push %r11 */
	0xb8, 0,    0, 0, 0, /* mov $number, %eax */
	0x0f, 0x05,	     /* syscall */
	0x41, 0x5b,	     /* pop %r11 */
	0x59,		     /* pop %rcx */
	0xc3,		     /* ret */
};
#define CALL_NUMBER_AT 4

/* Leaves the beginning of struct iret_context on the stack. */
static const uint8_t iret_code[] = {
	0x51,	    /* push %rcx */
	0x41, 0x53, /* push %r11 */
	0x50,	    /* push %rax */
	0xb8, __HYPERVISOR_iret,
	0,    0,
	0,	    /* mov $iret, %eax */
	0x0f, 0x05, /* syscall */
};

void hypercall_page_fill(void *page)
{
	for (unsigned i = 0; i < PAGE_SIZE / 32; i++) {
		uint8_t *at = (uint8_t *)page + i * 32;

		memset(at, 0xcc, 32);
		if (i == __HYPERVISOR_iret) {
			memcpy(at, iret_code, sizeof(iret_code));
			continue;
		}
		memcpy(at, call_code, sizeof(call_code));
		at[CALL_NUMBER_AT] = (uint8_t)i;
	}
}
