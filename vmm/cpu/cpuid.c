// SPDX-License-Identifier: MIT
/*
 * CPUID as a PV guest is to see it. Of features it gets those on the lists here and nothing else: a bit that nobody has thought about may promise
 * state that is not switched or an instruction that is not a guest's.
 *
 * Only guests' kernels ask us (forced-emulation prefix); plain CPUID shows programs the processor, so what is hidden must be harmless for them.
 * Hidden although harmless: RDTSCP and RDPID (TSC_AUX is not switched), FSGSBASE (the bases are the hypervisor's to know),
 * machine checks and MTRRs (the hypervisor's).
 */
#include "vmm/lib/xen.h"
#include <xen/arch-x86/cpufeatureset.h>
#include <xen/arch-x86/cpuid.h>
#include <xen/version.h>

#include "vmm/cpu/policy.h"
#include "vmm/lib/string.h"
#include "vmm/platform/time.h"

#define BIT(name) (1u << (XEN_X86_FEATURE_##name % 32))

#define LEAF_LAST	   0xdu
#define EXTENDED_FIRST	   0x80000000u
#define EXTENDED_LAST	   0x80000008u
#define EXTENDED_LAST_AMD  0x80000021u
#define PAGURUS_LEAF	   0x40000100u
#define ABI_VERSION	   (4u << 16 | 17u)
#define TSC_RELIABLE	   (1u << 1)
#define CACHE_TYPE_AND_USE 0x3fffu /* leaf 4 without the topology of the real machine */

static const struct cpuid nothing;

static const uint32_t features_1c = BIT(SSE3) | BIT(PCLMULQDQ) | BIT(SSSE3) | BIT(FMA) | BIT(CX16) |
				    BIT(SSE4_1) | BIT(SSE4_2) | BIT(MOVBE) | BIT(POPCNT) |
				    BIT(AESNI) | BIT(XSAVE) | BIT(AVX) | BIT(F16C) | BIT(RDRAND);
static const uint32_t features_1d = BIT(FPU) | BIT(DE) | BIT(TSC) | BIT(MSR) | BIT(PAE) | BIT(CX8) |
				    BIT(APIC) | BIT(SEP) | BIT(CMOV) | BIT(PAT) | BIT(CLFLUSH) |
				    BIT(ACPI) | BIT(MMX) | BIT(FXSR) | BIT(SSE) | BIT(SSE2) |
				    BIT(SS);
static const uint32_t features_7b =
	BIT(BMI1) | BIT(AVX2) | BIT(FDP_EXCP_ONLY) | BIT(BMI2) | BIT(ERMS) | BIT(NO_FPU_SEL) |
	BIT(AVX512F) | BIT(AVX512DQ) | BIT(RDSEED) | BIT(ADX) | BIT(AVX512_IFMA) | BIT(CLFLUSHOPT) |
	BIT(CLWB) | BIT(AVX512CD) | BIT(SHA) | BIT(AVX512BW) | BIT(AVX512VL);
static const uint32_t features_7c = BIT(PREFETCHWT1) | BIT(AVX512_VBMI) | BIT(AVX512_VBMI2) |
				    BIT(GFNI) | BIT(VAES) | BIT(VPCLMULQDQ) | BIT(AVX512_VNNI) |
				    BIT(AVX512_BITALG) | BIT(AVX512_VPOPCNTDQ) | BIT(CLDEMOTE);
static const uint32_t features_7d = BIT(AVX512_4VNNIW) | BIT(AVX512_4FMAPS) | BIT(FSRM) |
				    BIT(MD_CLEAR) | BIT(SERIALIZE) | BIT(AVX512_FP16) |
				    BIT(ARCH_CAPS);
static const uint32_t features_71a =
	BIT(AVX_VNNI) | BIT(AVX512_BF16) | BIT(FZRM) | BIT(FSRS) | BIT(FSRCS);
static const uint32_t features_da = BIT(XSAVEOPT) | BIT(XSAVEC) | BIT(XGETBV1);
static const uint32_t features_e1c = BIT(LAHF_LM) | BIT(ABM) | BIT(SSE4A) | BIT(MISALIGNSSE) |
				     BIT(3DNOWPREFETCH) | BIT(XOP) | BIT(FMA4) | BIT(TBM);
static const uint32_t features_e1d =
	BIT(SYSCALL) | BIT(NX) | BIT(MMXEXT) | BIT(FFXSR) | BIT(LM) | BIT(3DNOWEXT) | BIT(3DNOW);
/* AMD repeats these of leaf 1 there. */
static const uint32_t repeated_1d = BIT(FPU) | BIT(DE) | BIT(TSC) | BIT(MSR) | BIT(PAE) | BIT(CX8) |
				    BIT(APIC) | BIT(CMOV) | BIT(PAT) | BIT(MMX) | BIT(FXSR);
static const uint32_t features_e8b =
	BIT(CLZERO) | BIT(RSTR_FP_ERR_PTRS) | BIT(SSB_NO) | BIT(BTC_NO);
static const uint32_t features_e21a = BIT(LFENCE_DISPATCH) | BIT(NSCB) | BIT(SRSO_NO);

/* Features that need what the extended state that we allow does not have. */
static uint32_t without_state_1c(void)
{
	if (!cpu_features.xsave)
		return BIT(XSAVE) | BIT(AVX) | BIT(F16C) | BIT(FMA);
	return cpu_features.xcr0 & XCR0_AVX ? 0 : BIT(AVX) | BIT(F16C) | BIT(FMA);
}

static uint32_t without_state_7b(void)
{
	const uint32_t wide = BIT(AVX512F) | BIT(AVX512DQ) | BIT(AVX512_IFMA) | BIT(AVX512CD) |
			      BIT(AVX512BW) | BIT(AVX512VL);

	if (!(cpu_features.xcr0 & XCR0_AVX))
		return wide | BIT(AVX2);
	return cpu_features.xcr0 & XCR0_AVX512 ? 0 : wide;
}

static struct cpuid basic_features(struct cpuid r)
{
	/* CLFLUSH's size. The APIC's number is 0, which is what Linux's PV driver for it says of every vCPU. */
	r.b &= 0xff00;
	r.c &= features_1c & ~without_state_1c();
	/* The processor's own is on for all: programs see it with plain CPUID, so the kernel has to know. */
	if (r.c & BIT(XSAVE))
		r.c |= BIT(OSXSAVE);
	r.c |= BIT(HYPERVISOR);
	r.d &= features_1d;
	return r;
}

static struct cpuid structured_features(struct cpuid r, uint32_t subleaf)
{
	switch (subleaf) {
	case 0:
		r.a = MIN(r.a, 1u);
		r.b &= features_7b & ~without_state_7b();
		r.c &= features_7c;
		r.d &= features_7d;
		return r;
	case 1:
		return (struct cpuid){r.a & features_71a, 0, 0, 0};
	default:
		return nothing;
	}
}

/* The sizes that depend on XCR0 are the processor's, which has the guest's XCR0 while the guest asks. */
static struct cpuid extended_state(struct cpuid r, uint32_t subleaf)
{
	if (!cpu_features.xsave || subleaf > 63)
		return nothing;
	switch (subleaf) {
	case 0:
		return (struct cpuid){(uint32_t)cpu_features.xcr0, r.b, cpu_features.xsave_bytes,
				      (uint32_t)(cpu_features.xcr0 >> 32)};
	case 1:
		return (struct cpuid){r.a & features_da, r.b, 0, 0};
	default:
		if (!(cpu_features.xcr0 >> subleaf & 1))
			return nothing;
		return (struct cpuid){r.a, r.b, r.c & 2, 0};
	}
}

static struct cpuid basic_leaf(uint32_t leaf, uint32_t subleaf)
{
	struct cpuid r = cpuid(leaf, subleaf);

	switch (leaf) {
	case 0:
		r.a = MIN(r.a, LEAF_LAST);
		return r;
	case 1:
		return basic_features(r);
	case 2:
		return r;
	case 4:
		r.a &= CACHE_TYPE_AND_USE;
		return r;
	case 7:
		return structured_features(r, subleaf);
	case 0xd:
		return extended_state(r, subleaf);
	default:
		return nothing;
	}
}

static struct cpuid extended_features(struct cpuid r)
{
	uint32_t allowed = features_e1d | (cpu_features.amd ? repeated_1d : 0);

	r.b = 0;
	r.c &= features_e1c;
	if (!(cpu_features.xcr0 & XCR0_AVX))
		r.c &= ~(BIT(XOP) | BIT(FMA4));
	r.d &= allowed;
	/* Some processors show it only where it can be used from. */
	r.d |= BIT(SYSCALL);
	return r;
}

static struct cpuid extended_leaf(const struct domain *d, uint32_t leaf)
{
	struct cpuid r = cpuid(leaf, 0);

	switch (leaf) {
	case EXTENDED_FIRST:
		r.a = MIN(r.a, cpu_features.amd ? EXTENDED_LAST_AMD : EXTENDED_LAST);
		return r;
	case 0x80000001:
		return extended_features(r);
	case 0x80000002:
	case 0x80000003:
	case 0x80000004:
	case 0x80000005:
	case 0x80000006:
		return r;
	case 0x80000007:
		/* Other guests may move to where the TSC runs at another rate. */
		return (struct cpuid){0, 0, 0, d->privileged ? r.d & BIT(ITSC) : 0};
	case 0x80000008:
		r.b &= features_e8b;
		r.b |= cpu_features.ibpb ? BIT(IBPB) : 0;
		return (struct cpuid){r.a & 0xffff, r.b, 0, 0};
	case 0x80000021:
		return (struct cpuid){cpu_features.amd ? r.a & features_e21a : 0, 0, 0, 0};
	default:
		return nothing;
	}
}

static struct cpuid tsc_leaf(uint32_t subleaf)
{
	uint32_t mul, khz = (uint32_t)time_tsc_khz();
	int8_t shift;

	switch (subleaf) {
	case 0:
		return (struct cpuid){cpu_features.invariant_tsc ? TSC_RELIABLE : 0, 0, khz, 0};
	case 1:
		time_scale(&mul, &shift);
		return (struct cpuid){0, 0, mul, (uint32_t)(int32_t)shift};
	case 2:
		return (struct cpuid){khz, 0, 0, 0};
	default:
		return nothing;
	}
}

/* xen/arch-x86/cpuid.h: its comments count the leaves from 1. */
static struct cpuid hypervisor_leaf(uint32_t leaf, uint32_t subleaf)
{
	switch (leaf) {
	case XEN_CPUID_LEAF(0):
		return (struct cpuid){XEN_CPUID_LEAF(XEN_CPUID_MAX_NUM_LEAVES),
				      XEN_CPUID_SIGNATURE_EBX, XEN_CPUID_SIGNATURE_ECX,
				      XEN_CPUID_SIGNATURE_EDX};
	case XEN_CPUID_LEAF(1):
		return (struct cpuid){ABI_VERSION, 0, 0, 0};
	case XEN_CPUID_LEAF(2):
		return (struct cpuid){1, XEN_CPUID_FIRST_LEAF,
				      XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0};
	case XEN_CPUID_LEAF(3):
		return tsc_leaf(subleaf);
	case XEN_CPUID_LEAF(5):
		return subleaf ? nothing : (struct cpuid){0, cpu_features.phys_bits & 0xff, 0, 0};
	default:
		return nothing;
	}
}

/* Pagurus' own: a signature as the others have it, and behind it the version as text. */
static struct cpuid pagurus_leaf(uint32_t leaf)
{
	static const char signature[12] = "PagurusVMM", version[16] = PAGURUS_VERSION;
	struct cpuid r = nothing;

	if (leaf == PAGURUS_LEAF) {
		r.a = PAGURUS_LEAF + 1;
		memcpy(&r.b, signature, sizeof(signature));
	} else if (leaf == PAGURUS_LEAF + 1) {
		memcpy(&r, version, sizeof(version));
	}
	return r;
}

const struct feature_word feature_words[NR_FEATURE_WORDS] = {
	{1, 0, 'd'},
	{1, 0, 'c'},
	{0x80000001, 0, 'd'},
	{0x80000001, 0, 'c'},
	{0xd, 1, 'a'},
	{7, 0, 'b'},
	{7, 0, 'c'},
	{0x80000007, 0, 'd'},
	{0x80000008, 0, 'b'},
	{7, 0, 'd'},
	{7, 1, 'a'},
	{0x80000021, 0, 'a'},
	{7, 1, 'b'},
	{7, 2, 'd'},
	{7, 1, 'c'},
	{7, 1, 'd'},
	{0, 0, 0},
	{0, 0, 0},
	{0x80000021, 0, 'c'},
};

uint32_t *cpuid_register(struct cpuid *r, char reg)
{
	uint32_t *const named[] = {&r->a, &r->b, &r->c, &r->d};

	return named[reg - 'a'];
}

/* Without what the domain's policy hides. */
static struct cpuid limited(const struct domain *d, uint32_t leaf, uint32_t subleaf, struct cpuid r)
{
	for (unsigned w = 0; w < NR_FEATURE_WORDS; w++) {
		const struct feature_word *f = &feature_words[w];
		/* Not features but what is so: see basic_features(). */
		uint32_t stays = f->leaf == 1 && f->reg == 'c' ? BIT(OSXSAVE) | BIT(HYPERVISOR) : 0;

		if (f->reg && f->leaf == leaf && f->subleaf == subleaf)
			*cpuid_register(&r, f->reg) &= ~d->feature_hidden[w] | stays;
	}
	return r;
}

struct cpuid policy_cpuid(const struct domain *d, uint32_t leaf, uint32_t subleaf)
{
	switch (leaf >> 8) {
	case XEN_CPUID_FIRST_LEAF >> 8:
		return hypervisor_leaf(leaf, subleaf);
	case PAGURUS_LEAF >> 8:
		return pagurus_leaf(leaf);
	case 0:
		return leaf <= MIN(cpuid(0, 0).a, LEAF_LAST)
			       ? limited(d, leaf, subleaf, basic_leaf(leaf, subleaf))
			       : nothing;
	case EXTENDED_FIRST >> 8:
		return leaf <= cpuid(EXTENDED_FIRST, 0).a
			       ? limited(d, leaf, 0, extended_leaf(d, leaf))
			       : nothing;
	default:
		return nothing;
	}
}
