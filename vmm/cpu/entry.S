/* SPDX-License-Identifier: MIT */
/*
 * Into the hypervisor and out again. The frame is struct cpu_user_regs (xen/arch-x86/xen-x86_64.h); from a guest it lies at the end of
 * the stack (struct stack_top).
 */
#include "vmm/cpu/desc.h"
#include "vmm/mm/layout.h"

/* struct cpu_user_regs; checked by traps.c */
#define R_r15	 0
#define R_r11	 48
#define R_rcx	 88
#define R_error	 120
#define R_vector 124
#define R_rip	 128
#define R_cs	 136
#define R_rflags 144
#define R_rsp	 152
#define R_ss	 160
#define FRAME_BYTES 168 /* up to ss */

#define RFLAGS_SYSRET_CLEAR 0x10100 /* RF, TF: only IRET restores them as they should be */

	.macro SAVE
	push %rdi
	push %rsi
	push %rdx
	push %rcx
	push %rax
	push %r8
	push %r9
	push %r10
	push %r11
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	.endm

	.macro RESTORE
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rax
	pop %rcx
	pop %rdx
	pop %rsi
	pop %rdi
	.endm

	.macro CLAC_IF_SMAP
	.pushsection .smap_clac, "a"
	.quad 771f
	.popsection
771:	.byte 0x0f, 0x1f, 0x00
	.endm

	.macro FIXUP from, to
	.pushsection .fixup_table, "a"
	.quad \from, \to
	.popsection
	.endm

	.text

/* 256 stubs of 16 bytes: make the error code where the processor gives none, note the vector. */
	.globl trap_stubs
	.align 16
trap_stubs:
	vector = 0
	.rept 256
	.align 16
	.if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
	.else
	push $0
	.endif
	movl $vector, 4(%rsp)
	.if (vector == 2) || (vector == 8) || (vector == 18)
	jmp ist_entry
	.elseif vector == 1
	jmp debug_entry
	.else
	jmp trap_entry
	.endif
	vector = vector + 1
	.endr
	.align 16

trap_entry:
	cld
	SAVE
	CLAC_IF_SMAP
	mov %rsp, %rdi
	testb $3, R_cs(%rsp)
	jz 1f
	call trap_from_guest
	jmp guest_exit
1:	call trap_from_hypervisor
	RESTORE
	add $8, %rsp
	iretq

/* NMI, double fault, machine check: on stacks of their own, whatever they interrupted. */
ist_entry:
	cld
	SAVE
	CLAC_IF_SMAP
	mov %rsp, %rdi
	call trap_on_own_stack
	RESTORE
	add $8, %rsp
	iretq

/*
 * #DB: a guest can have one come due in the first instruction behind SYSCALL, where the stack is still the guest's (MOV SS holds it back until
 * then). So it has a stack of its own, and when it comes from the guest as such its frame moves to where the others are. The last
 * 16 bytes of the stack say where that is.
 */
debug_entry:
	cld
	SAVE
	CLAC_IF_SMAP
	testb $3, R_cs(%rsp)
	jz 1f
	mov %rsp, %rsi
	mov %rsp, %rax
	or $(IST_BYTES - 1), %rax
	mov 1 - 16(%rax), %rdi
	sub $FRAME_BYTES, %rdi
	mov %rdi, %rdx
	mov $(FRAME_BYTES / 8), %ecx
	rep movsq
	mov %rdx, %rsp
	mov %rsp, %rdi
	call trap_from_guest
	jmp guest_exit
1:	mov %rsp, %rdi
	call trap_on_own_stack
	RESTORE
	add $8, %rsp
	iretq

/* C comes here with the registers of the vCPU to enter in the frame at the end of the stack: does not return. */
	.globl enter_guest
enter_guest:
	mov %rsp, %rax
	or $(STACK_SIZE - 1), %rax
	lea 1 - 216(%rax), %rsp
	/* fall through */

guest_exit:
	mov %rsp, %rdi
	call exit_work /* returns with interrupts off and nothing left to do */
	cmpl $ENTRY_SYSCALL, R_vector(%rsp)
	jne 1f
	/* SYSRET: only to what SYSCALL could have come from. */
	mov R_rip(%rsp), %rcx
	mov R_rflags(%rsp), %r11
	cmpw $SEL_RING3_64, R_cs(%rsp)
	jne 1f
	cmpw $SEL_RING3_SS, R_ss(%rsp)
	jne 1f
	test $RFLAGS_SYSRET_CLEAR, %r11d
	jnz 1f
	mov %rcx, %rax
	sar $47, %rax
	add $1, %eax
	cmp $1, %eax
	ja 1f
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	add $8, %rsp
	pop %r10
	pop %r9
	pop %r8
	pop %rax
	add $8, %rsp
	pop %rdx
	pop %rsi
	pop %rdi
	mov 8 + R_rsp - R_rip(%rsp), %rsp
	sysretq

1:	RESTORE
	add $8, %rsp
	.globl guest_iret
guest_iret:
	iretq

/*
 * SYSCALL: this page is mapped in every CPU's window, and the page behind it is the CPU's: 0 the guest's stack pointer, 8 the hypervisor's.
 */
	.macro ENTRY_STUB name, selector, vector, target
	.globl \name
\name:
	mov %rsp, (4096 + stub_page)(%rip)
	mov (4096 + stub_page + 8)(%rip), %rsp
	push $SEL_RING3_SS
	push (4096 + stub_page)(%rip)
	push %r11
	push $\selector
	push %rcx
	push $0
	movl $\vector, 4(%rsp)
	push %rax
	movabs $\target, %rax
	jmp *%rax
	.endm

	.section .stub, "ax"
	ENTRY_STUB syscall_stub, SEL_RING3_64, ENTRY_SYSCALL, syscall_entry
	/* From compatibility mode: the 32-bit selector, and never back by SYSRET. */
	ENTRY_STUB syscall32_stub, SEL_RING3_32, 0, syscall32_entry

	.text
syscall_entry:
	pop %rax
	SAVE
	CLAC_IF_SMAP
	mov %rsp, %rdi
	call syscall_from_guest
	jmp guest_exit

syscall32_entry:
	pop %rax
	SAVE
	CLAC_IF_SMAP
	mov %rsp, %rdi
	call syscall32_from_guest
	jmp guest_exit

/* void enter_idle(void): idle_loop() on an empty stack. */
	.globl enter_idle
enter_idle:
	mov %rsp, %rax
	or $(STACK_SIZE - 1), %rax
	lea 1 - 216(%rax), %rsp
	xor %ebp, %ebp
	call idle_loop
	ud2

/* int load_selector_X(unsigned selector): 0, or 1: it cannot be loaded and is null now. */
	.macro LOAD_SELECTOR name
	.globl load_selector_\name
load_selector_\name:
1:	mov %edi, %\name
	xor %eax, %eax
	ret
2:	xor %eax, %eax
	mov %eax, %\name
	inc %eax
	ret
	FIXUP 1b, 2b
	.endm
	LOAD_SELECTOR ds
	LOAD_SELECTOR es
	LOAD_SELECTOR fs
	LOAD_SELECTOR gs

/* int rdmsr_safe(uint32_t msr, uint64_t *value) */
	.globl rdmsr_safe
rdmsr_safe:
	mov %edi, %ecx
1:	rdmsr
	shl $32, %rdx
	or %rdx, %rax
	mov %rax, (%rsi)
	xor %eax, %eax
	ret
2:	mov $-1, %eax
	ret
	FIXUP 1b, 2b

/* int wrmsr_safe(uint32_t msr, uint64_t value) */
	.globl wrmsr_safe
wrmsr_safe:
	mov %edi, %ecx
	mov %rsi, %rax
	mov %rsi, %rdx
	shr $32, %rdx
1:	wrmsr
	xor %eax, %eax
	ret
2:	mov $-1, %eax
	ret
	FIXUP 1b, 2b

	.section .note.GNU-stack, "", @progbits
