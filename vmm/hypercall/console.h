/* SPDX-License-Identifier: MIT */
/* The serial line's input: polled, for dom0 (VIRQ_CONSOLE, CONSOLEIO_read) or, after three Ctrl-A, for the debug keys. */
#pragma once

/* Boot, once dom0 exists. */
void console_input_start(void);
