/* SPDX-License-Identifier: MIT */
/*
 * Into the hypervisor and out again. The frame is struct cpu_user_regs (xen/arch-x86/xen-x86_64.h); from a guest it lies in the page behind the
 * CPU's stack (struct stack_top), and C has that stack for itself.
 *
 * Section .entry is all that runs while a guest's tables are loaded. When those are isolated (mm/xpti.c) it sees, besides itself, only the second half of
 * the CPU's window until entry_extra has loaded the hypervisor's tables, and again once exit_extra has loaded the guest's.
 */
#include "vmm/cpu/desc.h"
#include "vmm/cpu/patch.h"
#include "vmm/cpu/pcpu.h"

/* struct cpu_user_regs; checked by traps.c */
#define R_rax	 80
#define R_rcx	 88
#define R_rdx	 96
#define R_rsi	 104
#define R_rdi	 112
#define R_error	 120
#define R_vector 124
#define R_rip	 128
#define R_cs	 136
#define R_rflags 144
#define R_rsp	 152
#define R_ss	 160
#define FRAME_BYTES 168 /* up to ss */

#define MSR_SPEC_CTRL	    0x48
#define RFLAGS_SET	    0x202   /* IF, and the one that is always set */
#define RFLAGS_SYSRET_CLEAR 0x10100 /* RF, TF: only IRET restores them as they should be */
#define RFLAGS_GUEST_CLEAR  0x27000 /* VM, NT, IOPL: no guest has them */
#define RFLAGS_KERNEL_CLEAR 0x37100 /* and RF, TF: nor a kernel that is entered */
#define RFLAGS_IF_BIT	    9
#define PF_USER		    4
#define TI_IF_BIT	    2
#define VGCF_in_syscall	    256
#define HYPERCALL_IRET	    23

	.macro SAVE_FIRST
	push %rdi
	push %rsi
	push %rdx
	push %rcx
	push %rax
	.endm

	.macro SAVE_REST
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

	.macro SAVE
	SAVE_FIRST
	SAVE_REST
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

	/* At the site, when the feature is on: that many bytes of code, six at most. */
	.macro PATCH site, feature, bytes, code:vararg
	.pushsection .patches, "a"
	.quad \site
	.byte \feature, \bytes, \code
	.balign 8
	.popsection
	.endm

	.macro CLAC_IF_SMAP
	PATCH 771f, PATCH_SMAP, 3, 0x0f, 0x01, 0xca
771:	.byte 0x0f, 0x1f, 0x00
	.endm

	.macro STAC_IF_SMAP
	PATCH 771f, PATCH_SMAP, 3, 0x0f, 0x01, 0xcb
771:	.byte 0x0f, 0x1f, 0x00
	.endm

	/* What follows up to the label is passed over, unless the feature is on. */
	.macro UNLESS feature, label
	PATCH 772f, \feature, 2, 0x66, 0x90
772:	.byte 0xeb, \label - 773f
773:
	.endm

	/* The frame of an entry from a guest is complete. */
	.macro FROM_GUEST function
	UNLESS PATCH_ENTRY, 774f
	call entry_extra
774:	mov %rsp, %rdi
	and $-4096, %rsp
	call \function
	jmp guest_exit
	.endm

	.macro FIXUP from, to
	.pushsection .fixup_table, "a"
	.quad \from, \to
	.popsection
	.endm

	.section .entry, "ax"

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
	.if (vector == 8) || (vector == 18)
	jmp ist_entry
	.elseif (vector == 1) || (vector == 2)
	jmp moving_entry
	.elseif vector == 14
	jmp page_fault_entry
	.else
	jmp trap_entry
	.endif
	vector = vector + 1
	.endr
	.align 16

trap_entry:
	SAVE_FIRST
trap_slow:
	SAVE_REST
	cld
	CLAC_IF_SMAP
	testb $3, R_cs(%rsp)
	jz 1f
	FROM_GUEST trap_from_guest
	/* Of ours only the last IRET runs on the guest's tables. */
1:	UNLESS PATCH_XPTI, 2f
	lea guest_iret(%rip), %rax
	cmp %rax, R_rip(%rsp)
	jne 2f
	call entry_extra
2:	mov %rsp, %rdi
	call trap_from_hypervisor
	RESTORE
	add $8, %rsp
	iretq

/*
 * Exceptions that have stacks of their own, since they come at any time: in SYSCALL's first instructions, too, where the stack is still the guest's.
 * #DB does when MOV SS has held it back until then. What comes from a guest as such goes on where all others do, except for the fatal ones.
 */
moving_entry:
	cld
	SAVE
	CLAC_IF_SMAP
	testb $3, R_cs(%rsp)
	jz own_stack
	mov %rsp, %rsi
	mov %rsp, %rdi
	and $-WINDOW_STRIDE, %rdi
	add $(WINDOW_FRAME + TOP_FRAME), %rdi
	mov %rdi, %rax
	mov $(FRAME_BYTES / 8), %ecx
	rep movsq
	mov %rax, %rsp
	FROM_GUEST trap_from_guest

ist_entry:
	cld
	SAVE
	CLAC_IF_SMAP
own_stack:
	/* Whatever tables were loaded, and are again behind it. */
	UNLESS PATCH_XPTI, 1f
	mov %cr3, %rbx
	mov %rsp, %rax
	and $-WINDOW_STRIDE, %rax
	mov WINDOW_FRAME + TOP_HV_CR3(%rax), %rax
	mov %rax, %cr3
1:	mov %rsp, %rdi
	call trap_on_own_stack
	UNLESS PATCH_XPTI, 1f
	mov %rbx, %cr3
1:	RESTORE
	add $8, %rsp
	iretq

/* C comes here with the registers of the vCPU to enter in the frame behind the stack: does not return. */
	.globl enter_guest
enter_guest:
	and $-WINDOW_STRIDE, %rsp
	add $WINDOW_FRAME, %rsp
	/* fall through */

guest_exit:
	cli
	mov TOP_CPU(%rsp), %rax
	cmpl $0, PCPU_PENDING(%rax)
	jne 1f
	mov PCPU_VCPU(%rax), %rax
	cmpb $0, VCPU_NMI_PENDING(%rax)
	jne 1f
	mov VCPU_INFO(%rax), %rax
	cmpb $0, INFO_PENDING(%rax)
	je 2f
1:	lea TOP_FRAME(%rsp), %rdi
	call exit_work /* returns with interrupts off and nothing left to do */
2:	UNLESS PATCH_XPTI, 3f
	call exit_tables
3:	add $TOP_FRAME, %rsp
	/* Whatever a guest put there: ring 3, interrupts on, no way to I/O. */
	orb $3, R_cs(%rsp)
	orb $3, R_ss(%rsp)
	mov R_rflags(%rsp), %r11
	and $~RFLAGS_GUEST_CLEAR, %r11
	or $RFLAGS_SET, %r11
	mov %r11, R_rflags(%rsp)
	UNLESS PATCH_EXIT, 1f
	call exit_extra
1:	cmpl $ENTRY_SYSCALL, R_vector(%rsp)
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
 * The two turning points, when anything has to be done there (cpu/mitigation.c). All registers of the guest are in the frame; the stack is what is
 * below it in the same page.
 */
entry_extra:
	UNLESS PATCH_XPTI, 1f
	mov %rsp, %rax
	and $-4096, %rax
	mov TOP_HV_CR3(%rax), %rax
	mov %rax, %cr3
1:	UNLESS PATCH_IBRS, 1f
	mov $MSR_SPEC_CTRL, %ecx
	mov spec_ctrl_inside(%rip), %eax
	xor %edx, %edx
	wrmsr
1:	UNLESS PATCH_RSB, 1f
	jmp stuff_rsb
1:	ret

exit_extra:
	UNLESS PATCH_IBRS, 1f
	mov $MSR_SPEC_CTRL, %ecx
	mov spec_ctrl_outside(%rip), %eax
	xor %edx, %edx
	wrmsr
1:	UNLESS PATCH_XPTI, 1f
	mov %rsp, %rax
	and $-4096, %rax
	mov TOP_GUEST_CR3(%rax), %rax
	mov %rax, %cr3
1:	UNLESS PATCH_VERW, 1f
	verw verw_operand(%rip)
1:	ret
verw_operand:
	.short SEL_HV_DATA

/*
 * The short ways: a program's system call or page fault to its kernel, and the kernel's iret hypercall to a program, when nothing else is to be done. All
 * else, and what C would refuse, leaves for the long way before anything has changed that is not set again there, and gets the same checks there; but a
 * stack that cannot be written is the end of the guest in either. Interrupts stay off. Only SAVE_FIRST's registers are in the frame and free.
 *
 * No RET and no indirect branch is in them, so nothing that a guest has taught the predictor is asked here. With isolated tables there
 * are no short ways: the vCPU cannot be seen from there.
 */
#define SAVED	   R_rax /* of the frame are below rsp after SAVE_FIRST */
#define F(x)	   ((x) - SAVED)(%rsp)
#define T(x)	   ((x) - TOP_FRAME - SAVED)(%rsp)

	/* rdi: the vCPU, eax: its mode; nothing waits for the CPU. */
	.macro FIND_VCPU slow
	mov T(TOP_CPU), %rdi
	cmpl $0, PCPU_PENDING(%rdi)
	jne \slow
	mov PCPU_VCPU(%rdi), %rdi
	mov VCPU_MODE(%rdi), %eax
	.endm

	.macro PUT reg, at
778:	mov \reg, \at(%rdx)
	FIXUP 778b, stack_is_bad
	.endm

	.macro GET at, reg
779:	mov \at(%rdx), \reg
	FIXUP 779b, syscall_slow
	.endm

	/* The other tables: \reg has the frame of the top-level one (mm/tlb.c: tlb_load). */
	.macro LOAD_TABLES reg, kernel
	swapgs
	movb $\kernel, VCPU_MODE(%rdi)
	shl $12, \reg
	UNLESS PATCH_PCID, 777f
	mov T(TOP_CPU), %rdi
	or $(\kernel + 1), \reg
	testb $(1 << \kernel), PCPU_FRESH(%rdi)
	jz 776f
	bts $63, \reg
776:	orb $(1 << \kernel), PCPU_FRESH(%rdi)
	movb $\kernel, PCPU_TABLES(%rdi)
	mov PCPU_VCPU(%rdi), %rdi
777:	mov \reg, %cr3
	.endm

	/* rdi: a vCPU in user mode, rcx: where its kernel is entered. masks: what says that events are masked there, in that bit. */
	.macro TO_KERNEL masks, bit, error, slow
	mov VCPU_INFO(%rdi), %rsi
	cmpw $0, INFO_PENDING(%rsi) /* nor masked so far */
	jne \slow
	mov VCPU_KERNEL_SP(%rdi), %rdx
	and $-16, %rdx
	cmp lowest_stack(%rip), %rdx
	jb \slow
	mov VCPU_ROOT_KERNEL(%rdi), %rax
	LOAD_TABLES %rax, 1
	STAC_IF_SMAP
	movzwl F(R_ss), %eax
	PUT %rax, -8
	mov F(R_rsp), %rax
	PUT %rax, -16
	mov VCPU_IOPL(%rdi), %eax
	shl $12, %eax
	or F(R_rflags), %rax
	PUT %rax, -24
	movzwl F(R_cs), %eax
	PUT %rax, -32
	mov F(R_rip), %rax
	PUT %rax, -40
	.if \error
	mov F(R_error), %eax
	or $PF_USER, %eax
	PUT %rax, -48
	.endif
	PUT %r11, (-48-8*\error)
	mov F(R_rcx), %rax
	PUT %rax, (-56-8*\error)
	CLAC_IF_SMAP
	movzbl \masks(%rdi), %eax
	.if \bit
	shr $\bit, %eax
	and $1, %eax
	.endif
	mov %al, INFO_MASK(%rsi)
	mov F(R_rflags), %r11
	and $~RFLAGS_KERNEL_CLEAR, %r11
	or $RFLAGS_SET, %r11
	lea (-56-8*\error)(%rdx), %rax
	mov %rax, F(R_rsp)
	UNLESS PATCH_VERW, 780f
	verw verw_operand(%rip)
780:	mov F(R_rax), %rax
	mov F(R_rdx), %rdx
	mov F(R_rsi), %rsi
	mov F(R_rdi), %rdi
	mov F(R_rsp), %rsp
	/* Canonical: whoever sets an entry point is asked for a guest's address. */
	sysretq
	.endm

syscall_slow:
	SAVE_REST
	CLAC_IF_SMAP
	FROM_GUEST syscall_from_guest

hypercall_entry:
	SAVE_REST
	FROM_GUEST hypercall

syscall_entry:
	SAVE_FIRST
	UNLESS PATCH_SHORT, syscall_slow
	FIND_VCPU syscall_slow
	test %eax, %eax
	jnz 1f
	mov VCPU_SYSCALL_ENTRY(%rdi), %rcx
	test %rcx, %rcx
	jz syscall_slow
	TO_KERNEL VCPU_SYSCALL_MASKS, 0, 0, syscall_slow

1:	cmp $MODE_KERNEL, %eax
	jne syscall_slow
	cmpq $HYPERCALL_IRET, F(R_rax)
	jne hypercall_entry
	cmpq $-1, VCPU_ROOT_USER(%rdi)
	je syscall_slow
	/* struct iret_context. Until all of it is read, the frame's rax, rcx and rsp stay: the long way begins with them. */
	mov F(R_rsp), %rdx
	lea 72(%rdx), %rax
	cmp lowest_context_end(%rip), %rax
	jb syscall_slow
	STAC_IF_SMAP
	GET 24, %rax
	test $VGCF_in_syscall, %eax
	jnz syscall_slow
	GET 40, %rax
	mov %eax, %ecx
	not %ecx
	test $3, %cl
	jnz syscall_slow /* to the kernel itself */
	mov %ax, F(R_cs)
	GET 64, %rax
	or $3, %eax
	mov %ax, F(R_ss)
	GET 48, %rax
	mov %eax, %ecx
	and $~RFLAGS_GUEST_CLEAR, %rax
	or $RFLAGS_SET, %rax
	mov %rax, F(R_rflags)
	not %ecx
	shr $RFLAGS_IF_BIT, %ecx
	and $1, %ecx
	mov VCPU_INFO(%rdi), %rsi
	mov %cl, INFO_MASK(%rsi)
	cmpb $0, INFO_PENDING(%rsi)
	jne syscall_slow
	GET 32, %rax
	mov %rax, F(R_rip)
	GET 8, %r11
	GET 16, %rcx
	GET 56, %rsi
	GET 0, %rax
	CLAC_IF_SMAP
	mov %rsi, F(R_rsp)
	mov VCPU_ROOT_USER(%rdi), %rsi
	LOAD_TABLES %rsi, 0
	UNLESS PATCH_VERW, 2f
	verw verw_operand(%rip)
2:	mov F(R_rdx), %rdx
	mov F(R_rsi), %rsi
	mov F(R_rdi), %rdi
	add $(R_rip - SAVED), %rsp
	jmp guest_iret

page_fault_slow:
	jmp trap_slow
page_fault_entry:
	SAVE_FIRST
	UNLESS PATCH_SHORT, page_fault_slow
	testb $3, F(R_cs)
	jz page_fault_slow
	FIND_VCPU page_fault_slow
	test %eax, %eax
	jnz page_fault_slow
	mov VCPU_PF_ENTRY(%rdi), %rcx
	test %rcx, %rcx
	jz page_fault_slow
	mov %cr2, %rax
	test %rax, %rax
	js page_fault_slow /* perhaps the hypervisor's, or the LDT */
	mov VCPU_INFO(%rdi), %rsi
	mov %rax, VCPU_CR2(%rdi)
	mov %rax, INFO_CR2(%rsi)
	TO_KERNEL VCPU_PF_FLAGS, TI_IF_BIT, 1, page_fault_slow

stack_is_bad:
	SAVE_REST
	cld
	CLAC_IF_SMAP
	FROM_GUEST stack_fault

lowest_stack:
	.quad HV_END + 4096
lowest_context_end:
	.quad HV_END + 72

syscall32_entry:
	SAVE
	CLAC_IF_SMAP
	FROM_GUEST syscall32_from_guest

/*
 * SYSCALL: each CPU has a copy of this page, behind the page with its frame, which is how it is found while all registers are the guest's. desc.c
 * mends the jumps in the copy.
 */
	.macro ENTRY_STUB name, selector, vector, target
	.globl \name, \name\()_end
\name:
	mov %rsp, (stub_page - 4096 + TOP_GUEST_RSP)(%rip)
	lea (stub_page - 4096 + TOP_FRAME_END)(%rip), %rsp
	push $SEL_RING3_SS
	push (stub_page - 4096 + TOP_GUEST_RSP)(%rip)
	push %r11
	push $\selector
	push %rcx
	push $0
	movl $\vector, 4(%rsp)
	.byte 0xe9 /* jmp, always with 32 bits */
	.long \target - \name\()_end
\name\()_end:
	.endm

	.section .stub, "ax"
	ENTRY_STUB syscall_stub, SEL_RING3_64, ENTRY_SYSCALL, syscall_entry
	/* From compatibility mode: the 32-bit selector, and never back by SYSRET. */
	ENTRY_STUB syscall32_stub, SEL_RING3_32, 0, syscall32_entry
	.globl stub_end
stub_end:

	.text
/* void stuff_rsb(void): what returned before predicts no return from here on. */
	.globl stuff_rsb
stuff_rsb:
	.rept 32
	call 1f
2:	pause
	lfence
	jmp 2b
1:
	.endr
	add $(32 * 8), %rsp
	ret

/* void enter_idle(void): idle_loop() on an empty stack. */
	.globl enter_idle
enter_idle:
	and $-WINDOW_STRIDE, %rsp
	add $WINDOW_FRAME, %rsp
	xor %ebp, %ebp
	call idle_loop
	ud2

/* What gcc calls for an indirect jump (-mindirect-branch): a return whose prediction leads into a loop that does nothing. */
	.macro THUNK reg
	.globl __x86_indirect_thunk_\reg
__x86_indirect_thunk_\reg:
	call 2f
1:	pause
	lfence
	jmp 1b
2:	mov %\reg, (%rsp)
	ret
	int3
	.endm
	.macro THUNK_LOW reg, code
	PATCH __x86_indirect_thunk_\reg, PATCH_THUNK_JMP, 2, 0xff, \code
	THUNK \reg
	.endm
	.macro THUNK_HIGH reg, code
	PATCH __x86_indirect_thunk_\reg, PATCH_THUNK_JMP, 3, 0x41, 0xff, \code
	THUNK \reg
	.endm
	THUNK_LOW rax, 0xe0
	THUNK_LOW rcx, 0xe1
	THUNK_LOW rdx, 0xe2
	THUNK_LOW rbx, 0xe3
	THUNK_LOW rbp, 0xe5
	THUNK_LOW rsi, 0xe6
	THUNK_LOW rdi, 0xe7
	THUNK_HIGH r8, 0xe0
	THUNK_HIGH r9, 0xe1
	THUNK_HIGH r10, 0xe2
	THUNK_HIGH r11, 0xe3
	THUNK_HIGH r12, 0xe4
	THUNK_HIGH r13, 0xe5
	THUNK_HIGH r14, 0xe6
	THUNK_HIGH r15, 0xe7

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
