/* SPDX-License-Identifier: MIT */
/* Control registers of each CPU, and code that depends on what the processor has. */
#ifndef VMM_CPU_SETUP_H
#define VMM_CPU_SETUP_H

/* Once, before anything touches guest memory: put STAC and CLAC where they belong if SMAP is used. Text is writable still. */
void patch_smap(void);
/* Every CPU: CR0, CR4, EFER, PAT. Features are known. */
void cpu_setup(void);

#endif
