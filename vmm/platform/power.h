/* SPDX-License-Identifier: MIT */
/* The end of the machine. Any context. */
#pragma once

/* Reset: by ACPI's register, the chipset's, the keyboard controller, at last a triple fault. */
void machine_restart(void) __attribute__((noreturn));
/* The same, or machine_halt with the option `noreboot`, which is about errors only. */
void machine_restart_after_error(void) __attribute__((noreturn));
/* Stop this CPU for good; what the machine did is left to be looked at. Power-off is dom0's, by platform_op. */
void machine_halt(void) __attribute__((noreturn));
