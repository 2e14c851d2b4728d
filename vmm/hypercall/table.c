/* SPDX-License-Identifier: MIT */
/* Which number is which hypercall, how one is begun again, and several at once. */
#include "vmm/hypercall/table.h"

#include "vmm/cpu/pcpu.h"
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
	unsigned cpu = this_cpu()->id;

	BUG_ON(n >= NR_ARGUMENTS);
	if (multicall[cpu].active) {
		multicall[cpu].call.args[n] = value;
		return;
	}
	switch (n) {
	case 0:
		r->rdi = value;
		break;
	case 1:
		r->rsi = value;
		break;
	case 2:
		r->rdx = value;
		break;
	case 3:
		r->r10 = value;
		break;
	case 4:
		r->r8 = value;
		break;
	default:
		r->r9 = value;
	}
}

static long dispatch(uint64_t number, const arg_t *a)
{
	switch (number) {
	case __HYPERVISOR_mmu_update:
		return do_mmu_update(a[0], a[1], a[2], a[3]);
	case __HYPERVISOR_update_va_mapping:
		return do_update_va_mapping(a[0], a[1], a[2]);
	case __HYPERVISOR_mmuext_op:
		return do_mmuext_op(a[0], a[1], a[2], a[3]);
	case __HYPERVISOR_stack_switch:
		return do_stack_switch(a[0], a[1]);
	case __HYPERVISOR_fpu_taskswitch:
		return do_fpu_taskswitch(a[0]);
	case __HYPERVISOR_set_segment_base:
		return do_set_segment_base(a[0], a[1]);
	case __HYPERVISOR_event_channel_op:
		return do_event_channel_op(a[0], a[1]);
	case __HYPERVISOR_sched_op:
		return do_sched_op(a[0], a[1]);
	case __HYPERVISOR_vcpu_op:
		return do_vcpu_op(a[0], a[1], a[2]);
	case __HYPERVISOR_set_timer_op:
		return do_set_timer_op(a[0]);
	case __HYPERVISOR_update_descriptor:
		return do_update_descriptor(a[0], a[1]);
	case __HYPERVISOR_physdev_op:
		return do_physdev_op(a[0], a[1]);
	case __HYPERVISOR_grant_table_op:
		return do_grant_table_op(a[0], a[1], a[2]);
	case __HYPERVISOR_memory_op:
		return do_memory_op(a[0], a[1]);
	case __HYPERVISOR_console_io:
		return do_console_io(a[0], a[1], a[2]);
	case __HYPERVISOR_xen_version:
		return do_xen_version(a[0], a[1]);
	case __HYPERVISOR_set_trap_table:
		return do_set_trap_table(a[0]);
	case __HYPERVISOR_set_gdt:
		return do_set_gdt(a[0], a[1]);
	case __HYPERVISOR_set_debugreg:
		return do_set_debugreg(a[0], a[1]);
	case __HYPERVISOR_get_debugreg:
		return do_get_debugreg(a[0]);
	case __HYPERVISOR_update_va_mapping_otherdomain:
		return do_update_va_mapping_otherdomain(a[0], a[1], a[2], a[3]);
	case __HYPERVISOR_vm_assist:
		return do_vm_assist(a[0], a[1]);
	case __HYPERVISOR_callback_op:
		return do_callback_op(a[0], a[1]);
	case __HYPERVISOR_nmi_op:
		return do_nmi_op(a[0], a[1]);
	case __HYPERVISOR_platform_op:
		return do_platform_op(a[0]);
	case __HYPERVISOR_sysctl:
		return do_sysctl(a[0]);
	case __HYPERVISOR_domctl:
		return do_domctl(a[0]);
	case __HYPERVISOR_multicall:
		return do_multicall(a[0], a[1]);
	default:
		return -ENOSYS;
	}
}

/* Apart, so that iret does not pass through it. */
static __attribute__((noinline)) void call(struct cpu_user_regs *r)
{
	const arg_t arguments[NR_ARGUMENTS] = {r->rdi, r->rsi, r->rdx, r->r10, r->r8, r->r9};
	long rc = dispatch(r->rax, arguments);

	if (unlikely(rc == -ERESTART))
		r->rip -= SYSCALL_BYTES; /* rax still has the number */
	else
		r->rax = (uint64_t)rc;
}

void hypercall(struct cpu_user_regs *r)
{
	if (r->rax == __HYPERVISOR_iret)
		do_iret(); /* sets all registers */
	else
		call(r);
}

long do_multicall(arg_t calls, arg_t count)
{
	unsigned cpu = this_cpu()->id;
	long rc = 0;

	if (multicall[cpu].active)
		return -EINVAL;
	while (count) {
		multicall_entry_t *c = &multicall[cpu].call;
		arg_t arguments[NR_ARGUMENTS];
		long result;

		if (copy_from_guest(c, GUEST_VA(calls), sizeof(*c)))
			return -EFAULT;
		memcpy(arguments, c->args, sizeof(arguments));
		multicall[cpu].active = true;
		result = dispatch(c->op, arguments);
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
