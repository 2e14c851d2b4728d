/* SPDX-License-Identifier: MIT */
/*
 * Interrupts of devices: vectors, the local APIC, I/O APICs and MSI, and the way to the domain that has bound one (dom0).
 *
 * An irq here is a GSI (below nr_gsis) or a number given to an MSI. Level-triggered ones are masked or left unacknowledged until the guest says
 * that it is done (irq_guest_eoi); edge-triggered ones and MSIs are acknowledged at once.
 */
#pragma once

#include "vmm/lib/types.h"

struct domain;

#define VECTOR_FIRST	0x30
#define VECTOR_LAST	0xdf
#define VECTOR_SPURIOUS 0xff
#define VECTOR_TIMER	0xf0
#define VECTOR_EVENT	0xf1 /* look at pcpu.pending */
#define VECTOR_CALL	0xf2 /* run a function: call_on_cpus */
#define VECTOR_ERROR	0xf3
#define VECTOR_LEGACY	0x20 /* the PICs', masked; spurious ones may come */

/* ---- local APIC ---- */
void apic_init(void);	  /* the first CPU; x2APIC when the firmware left it on */
void apic_init_cpu(void); /* every CPU */
uint32_t apic_id(void);
void apic_eoi(void);
void apic_send(unsigned cpu, uint8_t vector);
void apic_start_cpu(uint32_t apic_id, uint32_t start_maddr); /* INIT, SIPI, SIPI */
void apic_send_nmi_others(void);
/* The handlers of VECTOR_CALL and VECTOR_ERROR, from traps.c with interrupts off. Unlike irq_dispatch they leave apic_eoi to it. */
void apic_call_handler(void);
void apic_error_handler(void);
/* The one-shot timer: interrupt VECTOR_TIMER when the TSC reaches this value; 0: never. */
void apic_timer_set(uint64_t tsc_deadline);

/*
 * Run fn(arg), with interrupts off, on the online CPUs of the mask (this one too, when it is in it) and wait until all have. Not from a handler
 * and not with a lock held that is taken with interrupts off; interrupts may be off during boot.
 */
void call_on_cpus(uint64_t cpus, void (*fn)(void *), void *arg);

/* ---- I/O APICs ---- */
void ioapic_init(void);
extern unsigned nr_gsis;
/* The guest's view of the registers: PHYSDEVOP_apic_read. */
int ioapic_guest_read(uint64_t base, uint32_t reg, uint32_t *value);
/* PHYSDEVOP_setup_gsi: trigger and polarity. 0, -EINVAL, -EEXIST (set up before). */
int gsi_setup(unsigned gsi, bool level, bool active_low);

/* ---- MSI and MSI-X ---- */
struct msi_request {
	uint16_t segment;
	uint8_t bus, devfn;
	uint16_t entry;	     /* of the MSI-X table */
	uint64_t table_base; /* MSI-X: 0 for MSI */
};
/* Give the device a vector and program its capability. Returns the irq, >= nr_gsis, or negative. */
int msi_map(const struct msi_request *r);
int msi_unmap(unsigned irq);
/* PHYSDEVOP_restore_msi_ext: write the capability again. */
int msi_restore(uint16_t segment, uint8_t bus, uint8_t devfn);

/* ---- the way to a guest ---- */
/*
 * The domain gets the irq as an event on its pirq; 0, -EBUSY, -EINVAL. Sharing is among the devices of one domain, whose kernel sorts that out; there is no
 * other owner of devices.
 */
int irq_guest_bind(struct domain *d, unsigned irq);
void irq_guest_unbind(struct domain *d, unsigned irq);
/* The guest has dealt with it. */
void irq_guest_eoi(struct domain *d, unsigned irq);
/* True when the guest must say so. */
bool irq_needs_eoi(unsigned irq);
/* Choose the CPU: where the vCPU that handles it runs. */
void irq_set_cpu(unsigned irq, unsigned cpu);
/* From entry.S through traps.c: an interrupt VECTOR_FIRST .. VECTOR_LAST. */
void irq_dispatch(uint8_t vector);
