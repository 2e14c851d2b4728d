/* SPDX-License-Identifier: MIT */
/* Exceptions: from a guest, mostly handed on to it; from the hypervisor, fixed up or the end. */
#pragma once

#include "vmm/domain/domain.h"

/*
 * Make the current vCPU take an exception when it is entered: a frame on its kernel's stack, its handler in rip. It crashes when it has no
 * handler or no stack. address: for a page fault.
 */
void deliver_trap(struct cpu_user_regs *regs, unsigned vector, uint32_t error_code);
void deliver_page_fault(struct cpu_user_regs *regs, uint64_t address, uint32_t error_code);

/* The kernel of the current vCPU runs next, or its user mode: tables and GS base. */
void toggle_guest_mode(struct vcpu *v);

/* SOFT_NMI: an NMI came to this CPU. */
void nmi_run(void);

/* Where execution goes on after a fault at this address of the hypervisor, or 0. */
uint64_t fixup_find(uint64_t rip);

/* Leave for the guest whose registers are in the frame at the end of the stack. */
void enter_guest(void) __attribute__((noreturn));
void enter_idle(void) __attribute__((noreturn));

/* The end: tell what is known, stop the other CPUs, reboot or halt as asked. */
void panic_stop(void) __attribute__((noreturn));
void dump_registers(const struct cpu_user_regs *regs);

int load_selector_ds(unsigned selector);
int load_selector_es(unsigned selector);
int load_selector_fs(unsigned selector);
int load_selector_gs(unsigned selector);
