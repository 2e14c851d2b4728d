/* SPDX-License-Identifier: MIT */
/* Where the guest begins, how exceptions come in, and the ways out of them. */
#include <xen/elfnote.h>

#define HYPERCALL_IRET 23

#define NOTE(type, value)             \
	.pushsection .note.Xen, "a", @note; \
	.align 4;                           \
	.long 4, 2f - 1f, type;             \
	.asciz "Xen";                       \
1:	value;                              \
2:	.align 4;                           \
	.popsection

	NOTE(XEN_ELFNOTE_GUEST_OS, .asciz "test")
	NOTE(XEN_ELFNOTE_XEN_VERSION, .asciz "xen-3.0")
	NOTE(XEN_ELFNOTE_LOADER, .asciz "generic")
	NOTE(XEN_ELFNOTE_VIRT_BASE, .quad VIRT_BASE)
	NOTE(XEN_ELFNOTE_PADDR_OFFSET, .quad 0)
	NOTE(XEN_ELFNOTE_ENTRY, .quad guest_entry)
	NOTE(XEN_ELFNOTE_HYPERCALL_PAGE, .quad hypercall_page)

	.section .hypercalls, "ax"
	.globl hypercall_page
hypercall_page:
	.skip 4096, 0xcc

	.text
	.globl guest_entry
guest_entry:
	cld
	mov $first_stack_end, %rsp
	mov %rsi, %rdi
	xor %ebp, %ebp
	call guest_main
	ud2

/*
 * An entry: on the stack are rcx and r11, the error code where there is one, and what IRET takes. Bring all of them into one form: vector, error
 * code, the rest.
 */
	.macro ENTRY number, has_error
	.align 32
	mov (%rsp), %rcx
	mov 8(%rsp), %r11
	.if \has_error
	add $16, %rsp
	.else
	add $8, %rsp
	movq $0, (%rsp)
	.endif
	pushq $\number
	jmp entry_common
	.endm

	.globl entries
	.align 32
entries:
	number = 0
	.rept 259
	.if (number == 8) || (number >= 10 && number <= 14) || (number == 17)
	ENTRY number, 1
	.else
	ENTRY number, 0
	.endif
	number = number + 1
	.endr

/* The same without an error code for those numbers: what INT n brings. */
	.globl entries_plain
	.align 32
entries_plain:
	number = 0
	.rept 32
	ENTRY number, 0
	number = number + 1
	.endr

	.macro PUSH_ALL
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

	.macro POP_ALL
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

entry_common:
	PUSH_ALL
	cld
	mov %rsp, %rdi
	mov %rsp, %rbx
	and $~15, %rsp
	call trap
	mov %rbx, %rsp
	POP_ALL
	add $16, %rsp
	pushq $0
/* With the flags of struct iret_context on the stack: its other words, and the hypercall. */
iret_return:
	jmp hypercall_page + HYPERCALL_IRET * 32

	.macro SAVE_CALLEE
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	.endm

/* int guarded(void (*fn)(uint64_t), uint64_t arg, uint64_t *place): 0 when fn has returned, what land() says otherwise. */
	.globl guarded
guarded:
	SAVE_CALLEE
	mov %rsp, (%rdx)
	mov %rdi, %rax
	mov %rsi, %rdi
	sub $8, %rsp
	call *%rax
	add $8, %rsp
	xor %eax, %eax
	jmp landed

/* void land(uint64_t place, int value): guarded() returns. */
	.globl land
land:
	mov %rdi, %rsp
	mov %esi, %eax
landed:
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

/* int leave_kernel(const struct regs *r, uint64_t flags, uint64_t *place): by IRET; returns when somebody lands. */
	.globl leave_kernel
leave_kernel:
	SAVE_CALLEE
	mov %rsp, (%rdx)
	mov %rsi, %rax
	mov %rdi, %rsi
	sub $176, %rsp
	mov %rsp, %rdi
	mov $176 / 8, %ecx
	rep movsq
	/* The flags go where the error code was, above the registers. */
	mov %rax, 128(%rsp)
	POP_ALL
	add $8, %rsp
	jmp iret_return

	.bss
	.align 4096
	.skip 32768
	.globl first_stack_end
first_stack_end:

	.section .note.GNU-stack, "", @progbits
