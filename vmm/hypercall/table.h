/* SPDX-License-Identifier: MIT */
/* From a guest kernel's SYSCALL to the hypercall. */
#pragma once

#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"

/* The current vCPU's kernel asks for something; the answer goes into rax. */
void hypercall(struct cpu_user_regs *regs);

/* The code by which kernels make hypercalls (XEN_ELFNOTE_HYPERCALL_PAGE): 32 bytes for each number. */
void hypercall_page_fill(void *page);
