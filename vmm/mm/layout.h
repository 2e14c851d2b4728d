/* SPDX-License-Identifier: MIT */
/*
 * Where things are in the address space. The ABI gives the hypervisor 16 slots of the top-level table, HYPERVISOR_VIRT_START to
 * HYPERVISOR_VIRT_END (xen/arch-x86/xen-x86_64.h); everything else is the guest's.
 *
 *   slot 256       machine-to-physical table, readable by guests
 *   slot 258       frame table
 *   slot 260       mappings made at run time
 *   slot 261       the image, at IMAGE_BASE + its physical address; 1 GiB above it each CPU's window
 *   slot 262..271  all of RAM, at DIRECT_BASE + physical address
 */
#pragma once

#define HV_FIRST_SLOT 256
#define HV_LAST_SLOT  271
#define HV_START      0xffff800000000000
#define HV_END	      0xffff880000000000
#define M2P_BASE      0xffff800000000000
#define M2P_SLOT      256
#define FRAMES_BASE   0xffff810000000000
#define IMAGE_BASE    0xffff828000000000
#define REMAP_BASE    0xffff820000000000
#define REMAP_END     (REMAP_BASE + 0x40000000)
#define WINDOW_BASE   (IMAGE_BASE + 0x40000000) /* a direct jump reaches the image from there */
#define DIRECT_BASE   0xffff830000000000
#define DIRECT_BYTES  (HV_END - DIRECT_BASE)

/*
 * Each CPU's window: its stack, which ends where the second half begins; in that half what the processor needs to get from a guest into the hypervisor,
 * and no more: guests see it too when their tables are isolated (mm/xpti.c).
 */
#define WINDOW_STRIDE 0x400000
#define WINDOW_FRAME  0x200000 /* struct stack_top and the TSS */
#define WINDOW_STUB   0x201000 /* SYSCALL comes here */
#define WINDOW_IDT    0x202000
#define WINDOW_IST \
	0x210000 /* stacks of the exceptions that have their own, each at the end of its part */
#define WINDOW_GDT 0x220000
#define WINDOW_LDT 0x230000

#define STACK_SIZE 0x8000
#define IST_STRIDE 0x4000
#define IST_BYTES  0x2000 /* the rest is never mapped */
#define MAX_CPUS   64
