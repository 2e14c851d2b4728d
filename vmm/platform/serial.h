/* SPDX-License-Identifier: MIT */
/* A 16550 UART for the console: polled output, input by polling from a timer. */
#ifndef VMM_PLATFORM_SERIAL_H
#define VMM_PLATFORM_SERIAL_H

#include "vmm/lib/types.h"

/* From com1=/com2=: BAUD[,DPS[,IO-BASE[,IRQ]]]. Safe before anything else is set up. */
void serial_init(unsigned port_number, const char *setting);
bool serial_present(void);
void serial_write(const char *text, size_t length);
/* A byte that was typed, or -1. */
int serial_read(void);

#endif
