/* SPDX-License-Identifier: MIT */
/* Between irq.c, which knows which domain wants what, and those who program the hardware. irq.h is what others use. */
#pragma once

#include "vmm/platform/irq.h"

/* ---- irq.c ---- */
void irq_init(void);
/* The irq's vector; it is given one if it has none. -EINVAL: there is no such irq, -ENOSPC: no vector is left. */
int irq_vector(unsigned irq);
/* Nobody has it bound any more, and its vector is free again. */
void irq_forget(unsigned irq);
/* Write to the hardware again what it should have. */
void irq_reprogram(unsigned irq);
bool irq_bound(unsigned irq);

/* ---- ioapic.c and msi.c; the irq's lock is held. A vector of 0: none yet, it stays masked. ---- */
void ioapic_route(unsigned gsi, uint8_t vector, uint32_t apic_id, bool masked);
void ioapic_mask(unsigned gsi, bool masked);
bool gsi_is_level(unsigned gsi);

bool msi_exists(unsigned irq);
void msi_route(unsigned irq, uint8_t vector, uint32_t apic_id, bool masked);
void msi_mask(unsigned irq, bool masked);
