// SPDX-License-Identifier: MIT
/*
 * Model-specific and control registers of PV guests. Reads give what a kernel needs to find its way; writes are accepted where they change
 * nothing or go to state of the guest's own. Everything else is #GP, which kernels expect of registers that a processor lacks.
 */
#include "vmm/lib/xen.h"
#include <xen/arch-x86/cpufeatureset.h>

#include "vmm/cpu/policy.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/print.h"

#define MSR_PLATFORM_ID		0x17u
#define MSR_MICROCODE		0x8bu
#define MSR_PLATFORM_INFO	0xceu
#define MSR_MTRR_CAP		0xfeu
#define MSR_MISC_FEATURES	0x140u
#define MSR_DEBUG_CONTROL	0x1d9u
#define MSR_MTRR_FIRST		0x200u
#define MSR_MTRR_LAST		0x26fu
#define MSR_MTRR_DEFAULT	0x2ffu
#define MSR_AMD_SYSCFG		0xc0010010u
#define MSR_AMD_HWCR		0xc0010015u
#define MSR_AMD_NB_CFG		0xc001001fu
#define MSR_AMD_DE_CFG		0xc0011029u
#define APIC_BASE_ADDRESS	0xfee00000ull
#define APIC_BASE_ENABLED	0x800ull
#define APIC_BASE_FIRST_CPU	0x100ull
#define MISC_ENABLE_NO_TRACE	0x1800ull  /* neither branch trace nor PEBS */
#define MISC_ENABLE_MWAIT	0x40000ull /* MONITOR is there */
#define HWCR_TSC_AT_P0		(1ull << 24)
#define DE_CFG_LFENCE_SERIALISE 0x2ull
#define EFER_VISIBLE		(EFER_SCE | EFER_LME | EFER_LMA | EFER_NX)
#define CR4_GUEST		(CR4_TSD | CR4_DE | CR4_OSXSAVE)
#define CR4_FIXED		(CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT)

/* The memory types that PAT numbers 0 to 7 mean in a guest's page tables: WB, WT, UC-, UC, WC, WP, UC, UC. mm/ loads the same. */

#define BIT(name) (1ull << (XEN_X86_FEATURE_##name % 32))

static const uint64_t arch_caps_visible =
	BIT(RDCL_NO) | BIT(RSBA) | BIT(INTEL_SSB_NO) | BIT(MDS_NO) | BIT(IF_PSCHANGE_MC_NO) |
	BIT(TAA_NO) | BIT(SBDR_SSDP_NO) | BIT(FBSDP_NO) | BIT(PSDP_NO) | BIT(FB_CLEAR) |
	BIT(RRSBA) | BIT(BHI_NO) | BIT(GDS_NO) | BIT(RFDS_NO) | BIT(RFDS_CLEAR);

/* Counters that kernels look for: they read as zero and count nothing. */
static bool is_performance(uint32_t msr)
{
	static const struct {
		uint32_t first, last;
	} range[] = {
		{0xc1, 0xc8},	{0x186, 0x18d}, {0x309, 0x30c},		  {0x345, 0x345},
		{0x38d, 0x390}, {0x3f1, 0x3f1}, {0xc0010000, 0xc0010007}, {0xc0010200, 0xc001020b},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(range); i++)
		if (msr >= range[i].first && msr <= range[i].last)
			return true;
	return false;
}

static bool is_mtrr(uint32_t msr)
{
	return msr == MSR_MTRR_CAP || msr == MSR_MTRR_DEFAULT ||
	       (msr >= MSR_MTRR_FIRST && msr <= MSR_MTRR_LAST);
}

static int read_real(uint32_t msr, uint64_t *value)
{
	return rdmsr_safe(msr, value) ? -EPERM : 0;
}

static int read_misc_enable(uint64_t *value)
{
	int rc = cpu_features.amd ? -EPERM : read_real(MSR_MISC_ENABLE, value);

	if (!rc)
		*value = (*value | MISC_ENABLE_NO_TRACE) & ~MISC_ENABLE_MWAIT;
	return rc;
}

static int read_amd(const struct vcpu *v, uint32_t msr, uint64_t *value)
{
	if (!cpu_features.amd)
		return -EPERM;
	switch (msr) {
	case MSR_AMD_HWCR:
		*value = HWCR_TSC_AT_P0;
		return 0;
	case MSR_AMD_DE_CFG:
		if (read_real(msr, value))
			*value = 0;
		*value &= DE_CFG_LFENCE_SERIALISE;
		return 0;
	default:
		return v->domain->privileged ? read_real(msr, value) : -EPERM;
	}
}

int policy_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	*value = 0;
	switch (msr) {
	case MSR_TSC:
		*value = rdtsc();
		return 0;
	case MSR_FS_BASE:
	case MSR_GS_BASE:
	case MSR_KERNEL_GS_BASE:
		*value = rdmsr(msr);
		return 0;
	case MSR_EFER:
		*value = rdmsr(MSR_EFER) & EFER_VISIBLE;
		return 0;
	case MSR_APIC_BASE:
		*value = APIC_BASE_ADDRESS | APIC_BASE_ENABLED | (v->id ? 0 : APIC_BASE_FIRST_CPU);
		return 0;
	case MSR_PAT:
		*value = PAT_ABI;
		return 0;
	case MSR_ARCH_CAPS:
		if (!cpu_features.arch_caps || read_real(msr, value))
			return -EPERM;
		*value &= arch_caps_visible;
		return 0;
	case MSR_MISC_ENABLE:
		return read_misc_enable(value);
	case MSR_MICROCODE:
		return read_real(msr, value);
	case MSR_PLATFORM_ID:
		return cpu_features.amd ? -EPERM : read_real(msr, value);
	case MSR_PLATFORM_INFO:
	case MSR_MISC_FEATURES:
	case MSR_DEBUG_CONTROL:
		return 0;
	case MSR_AMD_SYSCFG:
	case MSR_AMD_HWCR:
	case MSR_AMD_NB_CFG:
	case MSR_AMD_DE_CFG:
		return read_amd(v, msr, value);
	}
	if (is_performance(msr))
		return 0;
	if (is_mtrr(msr) && v->domain->privileged)
		return read_real(msr, value);
	log_debug("d%uv%u reads MSR %x, which it does not have", v->domain->id, v->id, msr);
	return -EPERM;
}

/* Nothing changes when the register is written with what is in it. */
static int write_same(struct vcpu *v, uint32_t msr, uint64_t value)
{
	uint64_t now;

	return policy_rdmsr(v, msr, &now) || now != value ? -EPERM : 0;
}

static int write_base(uint32_t which, uint64_t value)
{
	return do_set_segment_base(which, value) ? -EPERM : 0;
}

static int write_pred_cmd(uint64_t value)
{
	if (!cpu_features.ibpb || value > 1)
		return -EPERM;
	if (value)
		wrmsr(MSR_PRED_CMD, value);
	return 0;
}

int policy_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value)
{
	switch (msr) {
	case MSR_FS_BASE:
		return write_base(SEGBASE_FS, value);
	case MSR_GS_BASE:
		return write_base(SEGBASE_GS_KERNEL, value);
	case MSR_KERNEL_GS_BASE:
		return write_base(SEGBASE_GS_USER, value);
	case MSR_PRED_CMD:
		return write_pred_cmd(value);
	case MSR_MICROCODE:
		/* What Intel's processors want before they say their revision. */
		return value ? -EPERM : 0;
	case MSR_MISC_ENABLE:
	case MSR_DEBUG_CONTROL:
		/* Ignored: kernels write back what they read with a bit or two of their liking. */
		return 0;
	case MSR_EFER:
	case MSR_APIC_BASE:
	case MSR_PAT:
	case MSR_MISC_FEATURES:
	case MSR_AMD_HWCR:
	case MSR_AMD_DE_CFG:
		return write_same(v, msr, value);
	}
	if (is_performance(msr))
		return 0;
	log_debug("d%uv%u writes %lx to MSR %x, which it does not have", v->domain->id, v->id,
		  value, msr);
	return -EPERM;
}

/* ---- control registers ---- */

uint64_t policy_read_cr(struct vcpu *v, unsigned cr)
{
	switch (cr) {
	case 0:
		return CR0_PG | CR0_AM | CR0_WP | CR0_NE | CR0_ET | CR0_MP | CR0_PE |
		       (v->ts ? CR0_TS : 0);
	case 2:
		return v->info->arch.cr2;
	case 3:
		return v->table_kernel.v << PAGE_SHIFT;
	case 4:
		return CR4_FIXED | (v->ctrlreg[4] & CR4_GUEST);
	default:
		return 0;
	}
}

/* CR0: only TS is the guest's. CR4: it may switch on what it likes; the rest it never sees. CR3 has its hypercall. */
int policy_write_cr(struct vcpu *v, unsigned cr, uint64_t value)
{
	switch (cr) {
	case 0:
		if ((value ^ policy_read_cr(v, 0)) & ~CR0_TS)
			return -EPERM;
		return (int)do_fpu_taskswitch(value & CR0_TS ? 1 : 0);
	case 2:
		v->info->arch.cr2 = value;
		return 0;
	case 4:
		if (value & CR4_OSXSAVE && !cpu_features.xsave)
			return -EPERM;
		v->ctrlreg[4] = value & CR4_GUEST;
		return 0;
	default:
		return -EPERM;
	}
}
