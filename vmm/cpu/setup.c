/* SPDX-License-Identifier: MIT */
/* See setup.h. */
#include "vmm/cpu/setup.h"

#include "vmm/boot/boot.h"
#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/string.h"
#include "vmm/mm/frame.h"
#include "vmm/mm/layout.h"

extern const uint64_t smap_stac_start[], smap_stac_end[], smap_clac_start[], smap_clac_end[];

/* Through the direct map: the image's own mapping of text cannot be written. */
static void patch(const uint64_t *from, const uint64_t *to, const uint8_t code[3])
{
	for (; from < to; from++)
		memcpy(maddr_to_ptr(*from - IMAGE_BASE), code, 3);
}

void patch_smap(void)
{
	static const uint8_t stac[3] = {0x0f, 0x01, 0xcb}, clac[3] = {0x0f, 0x01, 0xca};

	if (!cpu_features.smap)
		return;
	patch(smap_stac_start, smap_stac_end, stac);
	patch(smap_clac_start, smap_clac_end, clac);
}

void cpu_setup(void)
{
	struct pcpu *c = this_cpu();

	c->cr4 = CR4_PAE | CR4_DE | CR4_MCE | CR4_OSFXSR | CR4_OSXMMEXCPT |
		 (cpu_features.pge ? CR4_PGE : 0) | (cpu_features.xsave ? CR4_OSXSAVE : 0) |
		 (cpu_features.smep ? CR4_SMEP : 0) | (cpu_features.smap ? CR4_SMAP : 0);
	write_cr4(c->cr4);
	write_cr0(CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG);
	wrmsr_safe(MSR_PAT, PAT_ABI);
}
