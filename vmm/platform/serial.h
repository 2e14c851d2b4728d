/* SPDX-License-Identifier: MIT */
/* A 16550 UART for the console: polled output, input by polling from a timer. */
#pragma once

#include "vmm/lib/types.h"

#define SERIAL_PORTS 8 /* a UART has this many */

/* From com1=/com2= (port_number 1 or 2): BAUD|auto[,DPS[,IO-BASE[,IRQ]]]. Safe before anything else is set up. */
void serial_init(unsigned port_number, const char *setting);
bool serial_present(void);
/* The first of its I/O ports, which no guest may use; 0: there is no UART. */
uint16_t serial_base(void);
/* The caller serialises calls. */
void serial_write(const char *text, size_t length);
/* A byte that was typed, or -1. */
int serial_read(void);
