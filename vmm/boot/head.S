/* SPDX-License-Identifier: MIT */
/*
 * From the boot loader (multiboot 1 or 2: 32-bit protected mode, paging off) to C in long mode, and the way up of further CPUs.
 *
 * The tables here map the first 4 GiB one to one and at DIRECT_BASE, and the first GiB at IMAGE_BASE; map.c replaces them. Further CPUs pass through
 * them again.
 */
#include "vmm/mm/layout.h"

#define PHYS(symbol) ((symbol) - IMAGE_BASE)
#define MB1_FLAGS    0x00010003
#define MB2_MAGIC    0xe85250d6

#define CR0_PE_PG_WP_NE_ET_MP 0x80010033
#define CR4_PAE	     0x20
#define MSR_EFER     0xc0000080
#define EFER_LME_NX  0x900
#define EFER_LME     0x100
#define PTE_TABLE    0x3
#define PTE_LARGE    0x83
#define STACK_PAGES  (STACK_SIZE / 4096)

	.section .multiboot, "ax"
	.globl boot_headers
boot_headers:
	.align 4
multiboot1:
	.long 0x1badb002
	.long MB1_FLAGS
	.long -(0x1badb002 + MB1_FLAGS)
	.long PHYS(multiboot1)
	.long PHYS(image_start)
	.long PHYS(data_end)
	.long PHYS(image_end)
	.long PHYS(boot_entry)

	.align 8
multiboot2:
	.long MB2_MAGIC
	.long 0
	.long multiboot2_end - multiboot2
	.long -(MB2_MAGIC + 0 + (multiboot2_end - multiboot2))
	/* information that must be there: memory map, modules, command line */
	.align 8
	.short 1, 0
	.long 8 + 3 * 4
	.long 6, 3, 1
	.align 8
	.short 2, 0
	.long 24
	.long PHYS(multiboot2)
	.long PHYS(image_start)
	.long PHYS(data_end)
	.long PHYS(image_end)
	.align 8
	.short 3, 0
	.long 12
	.long PHYS(boot_entry)
	.align 8
	.short 6, 0 /* modules on pages */
	.long 8
	.align 8
	.short 0, 0
	.long 8
multiboot2_end:

	.section .boot.text, "ax"
	.code32
	.globl boot_entry
boot_entry:
	cli
	cld
	mov %eax, PHYS(boot_magic)
	mov %ebx, PHYS(boot_pointer)
	mov $PHYS(boot_stack) + STACK_SIZE - 64, %esp

	mov $0x80000000, %eax
	cpuid
	cmp $0x80000001, %eax
	jb no_long_mode
	mov $0x80000001, %eax
	cpuid
	bt $29, %edx
	jnc no_long_mode

	/* 4 GiB in 2 MiB pages */
	mov $PHYS(boot_l2), %edi
	mov $PTE_LARGE, %eax
	mov $(4 * 512), %ecx
1:	mov %eax, (%edi)
	movl $0, 4(%edi)
	add $0x200000, %eax
	add $8, %edi
	loop 1b
	/* four tables of them */
	mov $PHYS(boot_l3), %edi
	mov $PHYS(boot_l2) + PTE_TABLE, %eax
	mov $4, %ecx
1:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	loop 1b
	movl $(PHYS(boot_l2) + PTE_TABLE), PHYS(boot_l3_image)
	movl $(PHYS(boot_l3) + PTE_TABLE), PHYS(boot_l4)
	movl $(PHYS(boot_l3_image) + PTE_TABLE), PHYS(boot_l4) + 8 * 261
	/* the first CPU's stack and the page behind it, in its window */
	movl $(PHYS(boot_l2_window) + PTE_TABLE), PHYS(boot_l3_image) + 8
	movl $(PHYS(boot_l1_stack) + PTE_TABLE), PHYS(boot_l2_window)
	movl $(PHYS(boot_l1_frame) + PTE_TABLE), PHYS(boot_l2_window) + 8
	movl $(PHYS(boot_stack) + STACK_SIZE + PTE_TABLE), PHYS(boot_l1_frame)
	mov $(PHYS(boot_l1_stack) + 4096 - 8 * STACK_PAGES), %edi
	mov $(PHYS(boot_stack) + PTE_TABLE), %eax
	mov $STACK_PAGES, %ecx
1:	mov %eax, (%edi)
	add $0x1000, %eax
	add $8, %edi
	loop 1b
	movl $(PHYS(boot_l3) + PTE_TABLE), PHYS(boot_l4) + 8 * 262

	call enable_long_mode
	lgdt PHYS(boot_gdt_pointer)
	ljmp $8, $PHYS(boot_64)

/* Paging on with boot_l4; clobbers eax, ecx, edx, ebx. */
enable_long_mode:
	mov $0x80000001, %eax
	cpuid
	mov %edx, %ebx
	mov %cr4, %eax
	or $CR4_PAE, %eax
	mov %eax, %cr4
	mov $PHYS(boot_l4), %eax
	mov %eax, %cr3
	mov $MSR_EFER, %ecx
	rdmsr
	or $EFER_LME, %eax
	bt $20, %ebx
	jnc 1f
	or $EFER_LME_NX, %eax
1:	wrmsr
	mov $CR0_PE_PG_WP_NE_ET_MP, %eax
	mov %eax, %cr0
	ret

no_long_mode:
	mov $PHYS(text_no_long_mode), %esi
	mov $0x3f8, %dx
1:	lodsb
	test %al, %al
	jz 2f
	outb %al, %dx
	jmp 1b
2:	hlt
	jmp 2b

	.code64
boot_64:
	movabs $boot_high, %rax
	jmp *%rax
boot_high:
	xor %eax, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	mov $16, %eax
	mov %eax, %ss
	movabs $(WINDOW_BASE + WINDOW_FRAME), %rsp
	mov boot_magic(%rip), %edi
	mov boot_pointer(%rip), %esi
	xor %ebp, %ebp
	call start
	ud2

/*
 * Further CPUs begin here, copied to a page below 1 MiB (ap_trampoline .. ap_trampoline_end), in real mode with CS = page >> 4.
 */
	.code16
	.globl ap_trampoline, ap_trampoline_end
	.align 16
ap_trampoline:
	cli
	cld
	mov %cs, %ax
	mov %ax, %ds
	lgdtl ap_gdt_pointer - ap_trampoline
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $24, $PHYS(ap_32)
	.align 8
ap_gdt_pointer:
	.short boot_gdt_end - boot_gdt - 1
	.long PHYS(boot_gdt)
ap_trampoline_end:

	.code32
ap_32:
	mov $32, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %ss
	mov $PHYS(ap_stack_32) + 64, %esp
	call enable_long_mode
	ljmp $8, $PHYS(ap_64)
	.code64
ap_64:
	movabs $ap_high, %rax
	jmp *%rax
ap_high:
	xor %eax, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	mov $16, %eax
	mov %eax, %ss
	mov ap_l4(%rip), %rax
	mov %rax, %cr3
	mov ap_stack(%rip), %rsp
	xor %ebp, %ebp
	call start_ap
	ud2

	.section .rodata
text_no_long_mode:
	.asciz "Pagurus: this processor has no 64-bit mode, which is needed; halted.\r\n"

	.section .data
	.align 16
	.globl boot_gdt
boot_gdt:
	.quad 0
	.quad 0x00af9b000000ffff /* 8: 64-bit code */
	.quad 0x00cf93000000ffff /* 16: data */
	.quad 0x00cf9b000000ffff /* 24: 32-bit code */
	.quad 0x00cf93000000ffff /* 32: data */
boot_gdt_end:
boot_gdt_pointer:
	.short boot_gdt_end - boot_gdt - 1
	.quad PHYS(boot_gdt)
	.align 8
boot_magic:
	.long 0
boot_pointer:
	.long 0
	.globl ap_stack, ap_l4
ap_stack:
	.quad 0
ap_l4:
	.quad 0

	.section .bss.aligned, "aw", @nobits
	.align 4096
	.globl boot_stack
boot_stack:
	.skip STACK_SIZE + 4096
	.globl boot_l4
boot_l4:
	.skip 4096
boot_l3:
	.skip 4096
boot_l3_image:
	.skip 4096
boot_l2_window:
	.skip 4096
boot_l1_stack:
	.skip 4096
boot_l1_frame:
	.skip 4096
boot_l2:
	.skip 4 * 4096
ap_stack_32:
	.skip 64
