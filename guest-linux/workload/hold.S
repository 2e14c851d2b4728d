/* SPDX-License-Identifier: MIT */
/*
 * hold_registers - loads every register a thread owns from an image, waits, stores them all.
 *
 * int hold_registers(const struct register_image *in, struct register_image *out,
 *                    uint64_t spins, const struct timespec *sleep, unsigned int level);
 *
 * Between load and store the thread either counts @spins down (its state is then saved only when the
 * processor is taken from it) or, when @sleep is not NULL, is inside nanosleep (its state is then in
 * the kernel's hands). Nothing in between touches the registers under test: all vector registers, the
 * x87 stack and control word, MXCSR, and rbx rbp r8-r10 r12-r15. The kernel keeps all of these over a
 * system call; rcx and r11 it does not, rax is the result, and rdi, rsi, rdx, rsp carry the loop.
 *
 * From hold_registers_held to hold_registers_kept all of them are loaded and none is stored yet.
 *
 * The offsets are asserted in verify_registers.c.
 */
#define IN_GENERAL 0
#define IN_X87 72
#define IN_X87_CONTROL 152
#define IN_MXCSR 156
#define IN_MASK 160
#define IN_VECTOR 256

#define NR_NANOSLEEP 35

	.text
	.globl	hold_registers
	.globl	hold_registers_held
	.globl	hold_registers_kept
	.type	hold_registers, @function
	.balign	16
hold_registers:
	push	%rbx
	push	%rbp
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	sub	$24, %rsp
	stmxcsr	8(%rsp)
	fnstcw	12(%rsp)
	mov	%rsi, (%rsp)		/* out */
	mov	%r8d, 16(%rsp)		/* level */
	mov	%rdi, %rax		/* in */
	mov	%rcx, %rdi		/* sleep: first argument of nanosleep, NULL: spin */

	/* x87: eight values, the first in the image ends at the bottom of the stack. */
	fninit
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	fldt	IN_X87 + 10 * \n(%rax)
	.endr
	fldcw	IN_X87_CONTROL(%rax)
	ldmxcsr	IN_MXCSR(%rax)

	cmp	$1, %r8d
	je	1f
	ja	2f
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	IN_VECTOR + 64 * \n(%rax), %xmm\n
	.endr
	jmp	3f
1:	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	IN_VECTOR + 64 * \n(%rax), %ymm\n
	.endr
	jmp	3f
2:	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	IN_VECTOR + 64 * \n(%rax), %zmm\n
	.endr
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vmovups	IN_VECTOR + 64 * \n(%rax), %zmm\n
	.endr
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovw	IN_MASK + 8 * \n(%rax), %k\n
	.endr
3:
	mov	IN_GENERAL + 0(%rax), %rbx
	mov	IN_GENERAL + 8(%rax), %rbp
	mov	IN_GENERAL + 16(%rax), %r8
	mov	IN_GENERAL + 24(%rax), %r9
	mov	IN_GENERAL + 32(%rax), %r10
	mov	IN_GENERAL + 40(%rax), %r12
	mov	IN_GENERAL + 48(%rax), %r13
	mov	IN_GENERAL + 56(%rax), %r14
	mov	IN_GENERAL + 64(%rax), %r15

hold_registers_held:
	test	%rdi, %rdi
	jnz	5f
4:	dec	%rdx
	jnz	4b
	jmp	6f
5:	mov	$NR_NANOSLEEP, %eax
	xor	%esi, %esi
	syscall
6:
hold_registers_kept:
	mov	(%rsp), %rax		/* out */
	mov	%rbx, IN_GENERAL + 0(%rax)
	mov	%rbp, IN_GENERAL + 8(%rax)
	mov	%r8, IN_GENERAL + 16(%rax)
	mov	%r9, IN_GENERAL + 24(%rax)
	mov	%r10, IN_GENERAL + 32(%rax)
	mov	%r12, IN_GENERAL + 40(%rax)
	mov	%r13, IN_GENERAL + 48(%rax)
	mov	%r14, IN_GENERAL + 56(%rax)
	mov	%r15, IN_GENERAL + 64(%rax)
	stmxcsr	IN_MXCSR(%rax)
	fnstcw	IN_X87_CONTROL(%rax)

	mov	16(%rsp), %ecx		/* level */
	cmp	$1, %ecx
	je	1f
	ja	2f
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movups	%xmm\n, IN_VECTOR + 64 * \n(%rax)
	.endr
	jmp	3f
1:	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	%ymm\n, IN_VECTOR + 64 * \n(%rax)
	.endr
	vzeroupper
	jmp	3f
2:	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	vmovups	%zmm\n, IN_VECTOR + 64 * \n(%rax)
	.endr
	.irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
	vmovups	%zmm\n, IN_VECTOR + 64 * \n(%rax)
	.endr
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7
	kmovw	%k\n, IN_MASK + 8 * \n(%rax)
	.endr
	vzeroupper
3:
	.irp n, 7, 6, 5, 4, 3, 2, 1, 0
	fstpt	IN_X87 + 10 * \n(%rax)
	.endr
	fninit
	fldcw	12(%rsp)
	ldmxcsr	8(%rsp)
	xor	%eax, %eax
	add	$24, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbp
	pop	%rbx
	ret
	.size	hold_registers, . - hold_registers

	.section .note.GNU-stack, "", @progbits
