/* SPDX-License-Identifier: MIT */
/*
 * The hypercalls. Each takes its arguments as the registers have them (rdi, rsi, rdx, r10, r8, in that order; those that are not named are
 * ignored) and returns what goes into rax: 0 or more, or a negative errno. Every argument is the guest's: hostile until checked.
 *
 * -ERESTART is never seen by a guest: the instruction is begun again. An operation that has a state to keep puts it into its arguments with
 * hypercall_set_argument() first, in a form that is checked as any other argument when it comes back.
 */
#pragma once

#include "vmm/lib/errno.h"
#include "vmm/lib/types.h"

typedef uint64_t arg_t;

long do_set_trap_table(arg_t traps);
long do_mmu_update(arg_t updates, arg_t count, arg_t done, arg_t domain);
long do_set_gdt(arg_t frames, arg_t entries);
long do_stack_switch(arg_t ss, arg_t sp);
long do_fpu_taskswitch(arg_t set);
long do_platform_op(arg_t op);
long do_set_debugreg(arg_t reg, arg_t value);
long do_get_debugreg(arg_t reg);
long do_update_descriptor(arg_t maddr, arg_t descriptor);
long do_memory_op(arg_t command, arg_t arg);
long do_multicall(arg_t calls, arg_t count);
long do_update_va_mapping(arg_t va, arg_t value, arg_t flags);
long do_update_va_mapping_otherdomain(arg_t va, arg_t value, arg_t flags, arg_t domain);
long do_set_timer_op(arg_t when);
long do_xen_version(arg_t command, arg_t arg);
long do_console_io(arg_t command, arg_t count, arg_t buffer);
long do_grant_table_op(arg_t command, arg_t arg, arg_t count);
long do_vm_assist(arg_t command, arg_t type);
long do_iret(void);
long do_vcpu_op(arg_t command, arg_t vcpu, arg_t arg);
long do_set_segment_base(arg_t which, arg_t base);
long do_mmuext_op(arg_t ops, arg_t count, arg_t done, arg_t domain);
long do_sched_op(arg_t command, arg_t arg);
long do_callback_op(arg_t command, arg_t arg);
long do_event_channel_op(arg_t command, arg_t arg);
long do_physdev_op(arg_t command, arg_t arg);
long do_sysctl(arg_t op);
long do_domctl(arg_t op);

/* The argument (0 ..) of the hypercall that runs, for when it is begun again. Works within a multicall, too. */
void hypercall_set_argument(unsigned n, arg_t value);
/* Something waits for this CPU: a long operation shall return -ERESTART. */
bool hypercall_preempt_check(void);
