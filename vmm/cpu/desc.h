/* SPDX-License-Identifier: MIT */
/* Descriptor tables: the hypervisor's own and the windows on the guest's. */
#pragma once

/* Selectors in page 14 of every GDT; the ring 3 ones are the ABI's (xen/arch-x86/xen-x86_64.h). */
#define SEL_HV_CODE  0xe008
#define SEL_HV_DATA  0xe010
#define SEL_RING3_32 0xe023
#define SEL_RING3_SS 0xe02b
#define SEL_RING3_64 0xe033
#define SEL_TSS	     0xe040
#define SEL_LDT	     0xe050
#define GDT_BYTES    0xe060
#define SELECTOR_LDT 4 /* it is one of the LDT */

/* Number of the "vector" in a frame that comes from SYSCALL. */
#define ENTRY_SYSCALL 0x100

#ifndef __ASSEMBLY__
#include "vmm/domain/domain.h"

/* This CPU's GDT, TSS, IDT and SYSCALL entry; its windows are mapped (map_cpu). */
void desc_init_cpu(void);
/* The vCPU that is loaded on this CPU: its GDT pages and LDT into the windows. NULL: none of a guest's. */
void desc_load(const struct vcpu *v);
/* A selector of the LDT is used, by the guest or for it: map the page that has it. False: there is none, or it is mapped. Interrupts are on. */
bool desc_ldt_fault(struct vcpu *v, uint64_t offset);
/* Load FS or GS with a selector of the LDT that cannot be loaded as things are: it is flat data of ring 3. The vCPU is current. */
void desc_load_lost(unsigned selector, bool gs);
/* Give up all LDT pages of the vCPU, which is current or does not run. */
void desc_ldt_drop(struct vcpu *v);
#endif
