/* SPDX-License-Identifier: MIT */
/*
 * Where things are in the address space. The ABI gives the hypervisor 16 slots of the top-level table, HYPERVISOR_VIRT_START to
 * HYPERVISOR_VIRT_END (xen/arch-x86/xen-x86_64.h); everything else is the guest's.
 *
 *   slot 256       machine-to-physical table, readable by guests
 *   slot 258       frame table
 *   slot 260       each CPU's window: the descriptor tables of the vCPU that it runs
 *   slot 261       the image, at IMAGE_BASE + its physical address; above it mappings made at run time and the CPUs' stacks
 *   slot 262..271  all of RAM, at DIRECT_BASE + physical address
 */
#ifndef VMM_MM_LAYOUT_H
#define VMM_MM_LAYOUT_H

#define SLOT_BYTES    0x8000000000
#define HV_FIRST_SLOT 256
#define HV_LAST_SLOT  271
#define HV_START      0xffff800000000000
#define HV_END	      0xffff880000000000
#define M2P_BASE      0xffff800000000000
#define M2P_SLOT      256
#define FRAMES_BASE   0xffff810000000000
#define WINDOW_BASE   0xffff820000000000
#define IMAGE_BASE    0xffff828000000000
#define IMAGE_LOAD    0x200000 /* physical, where the boot loader puts the image */
#define REMAP_BASE    (IMAGE_BASE + 0x40000000)
#define REMAP_END     (IMAGE_BASE + 0x80000000)
#define STACKS_BASE   (IMAGE_BASE + 0x80000000)
#define DIRECT_BASE   0xffff830000000000
#define DIRECT_BYTES  (HV_END - DIRECT_BASE)

/* Each CPU's window: 16 pages of GDT, 16 of LDT, its SYSCALL stub and that stub's data. */
#define WINDOW_STRIDE  0x40000
#define WINDOW_GDT     0
#define WINDOW_LDT     0x10000
#define WINDOW_STUB    0x20000 /* the same code for all */
#define WINDOW_SCRATCH 0x21000

#define STACK_SIZE   0x8000
#define STACK_STRIDE 0x10000 /* the other half is never mapped */
#define MAX_CPUS     64

#endif
