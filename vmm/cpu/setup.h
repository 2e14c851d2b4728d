/* SPDX-License-Identifier: MIT */
/* Control registers of each CPU, and code that depends on what the processor has. */
#pragma once

/* Every CPU: CR0, CR4, EFER, PAT. Features are known. */
void cpu_setup(void);
