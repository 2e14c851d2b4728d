/* SPDX-License-Identifier: MIT */
/* Control registers of each CPU, and code that depends on what the processor has. */
#ifndef VMM_CPU_SETUP_H
#define VMM_CPU_SETUP_H

/* Every CPU: CR0, CR4, EFER, PAT. Features are known. */
void cpu_setup(void);

#endif
