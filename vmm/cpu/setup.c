/* SPDX-License-Identifier: MIT */
/* See setup.h. */
#include "vmm/cpu/setup.h"

#include "vmm/cpu/patch.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/string.h"
#include "vmm/mm/frame.h"
#include "vmm/mm/layout.h"

extern const struct patch patches_start[], patches_end[];

/* Through the direct map: the image's own mapping of text cannot be written. */
void patch_text(uint32_t features)
{
	for (const struct patch *p = patches_start; (uint64_t)p < (uint64_t)patches_end; p++)
		if (features >> p->feature & 1)
			memcpy(maddr_to_ptr(p->site - IMAGE_BASE), p->code, p->bytes);
}

void cpu_setup(void)
{
	write_cr4(CR4_PAE | CR4_DE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_PGE |
		  (cpu_features.xsave ? CR4_OSXSAVE : 0) | (cpu_features.smep ? CR4_SMEP : 0) |
		  (cpu_features.smap ? CR4_SMAP : 0) | (cpu_features.pcid ? CR4_PCIDE : 0));
	write_cr0(CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG);
	wrmsr_safe(MSR_PAT, PAT_ABI);
}
