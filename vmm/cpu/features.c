// SPDX-License-Identifier: MIT
/* What the processor has, as far as the hypervisor itself cares. Bits of CPUID by their names in Xen's list of them. */
#include "vmm/lib/xen.h"
#include <xen/arch-x86/cpufeatureset.h>

#include "vmm/boot/boot.h"
#include "vmm/cpu/policy.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"

#define HAS(word, name) ((word) >> (XEN_X86_FEATURE_##name % 32) & 1)

struct cpu_features cpu_features;

/* Only what has its registers in the area that fpu.c saves: no protection keys, no shadow stacks, nothing that it does not know. */
static void find_extended_state(struct cpu_features *f)
{
	struct cpuid d = cpuid_leaf(0xd, 0);

	f->xcr0 = d.a & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
	if ((f->xcr0 & XCR0_AVX512) != XCR0_AVX512 || !(f->xcr0 & XCR0_AVX))
		f->xcr0 &= ~XCR0_AVX512;
	if ((f->xcr0 & (XCR0_X87 | XCR0_SSE)) != (XCR0_X87 | XCR0_SSE)) {
		f->xsave = false;
		f->xcr0 = 0;
		return;
	}
	f->xsave_bytes = 512 + 64;
	for (unsigned i = 2; i < 32; i++) {
		if (!(f->xcr0 >> i & 1))
			continue;
		d = cpuid_leaf(0xd, i);
		f->xsave_bytes = MAX(f->xsave_bytes, d.a + d.b);
	}
	d = cpuid_leaf(0xd, 1);
	f->xsaveopt = HAS(d.a, XSAVEOPT);
}

static void find_brand(char *brand)
{
	for (unsigned i = 0; i < 3; i++) {
		struct cpuid r = cpuid_leaf(0x80000002 + i, 0);

		memcpy(brand + 16 * i, &r, 16);
	}
	brand[48] = '\0';
	while (*brand == ' ')
		memmove(brand, brand + 1, strlen(brand));
}

static bool vendor_is(const char *name)
{
	struct cpuid r = cpuid_leaf(0, 0);

	return !memcmp(&r.b, name, 4) && !memcmp(&r.d, name + 4, 4) && !memcmp(&r.c, name + 8, 4);
}

static void show(const struct cpu_features *f)
{
	const struct {
		bool on;
		const char *name;
	} list[] = {
		{f->smep, "SMEP"},
		{f->smap, "SMAP"},
		{f->pcid, "PCID"},
		{f->invpcid, "INVPCID"},
		{f->xsave, "XSAVE"},
		{f->xsaveopt, "XSAVEOPT"},
		{f->x2apic, "x2APIC"},
		{f->tsc_deadline, "TSC-deadline"},
		{f->invariant_tsc, "invariant-TSC"},
		{f->ibrs, "IBRS"},
		{f->ibpb, "IBPB"},
		{f->stibp, "STIBP"},
	};
	char text[200] = "";
	size_t at = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(list); i++)
		if (list[i].on)
			at += (size_t)format_string(text + at, sizeof(text) - at, " %s",
						    list[i].name);
	log_info("processor: %s, %u address bits, extended state %lx in %u bytes;%s",
		 f->brand[0] ? f->brand : "unnamed", f->phys_bits, f->xcr0, f->xsave_bytes, text);
}

/* What every 64-bit processor has, unless somebody switched it off, and is used without asking again. */
static void require(uint32_t basic, uint32_t extended)
{
	const struct {
		bool there;
		const char *name;
	} list[] = {
		{HAS(basic, APIC), "APIC"}, {HAS(basic, MCE), "MCE"},
		{HAS(basic, PAT), "PAT"},   {HAS(basic, PGE), "PGE"},
		{HAS(basic, FXSR), "FXSR"}, {HAS(basic, SSE2), "SSE2"},
		{HAS(extended, NX), "NX"},  {HAS(extended, SYSCALL), "SYSCALL"},
	};

	for (unsigned i = 0; i < ARRAY_SIZE(list); i++)
		if (!list[i].there)
			give_up("the processor has no %s, which is needed; switch it on in the firmware's setup, or give the virtual machine another processor",
				list[i].name);
}

void cpu_features_init(void)
{
	struct cpu_features *f = &cpu_features;
	struct cpuid basic = cpuid_leaf(1, 0), seven = cpuid_leaf(7, 0),
		     extended = cpuid_leaf(0x80000001, 0);
	struct cpuid power = cpuid_leaf(0x80000007, 0), sizes = cpuid_leaf(0x80000008, 0);

	require(basic.d, extended.d);
	f->amd = vendor_is("AuthenticAMD") || vendor_is("HygonGenuine");
	f->pcid = HAS(basic.c, PCID) && boot_options.pcid;
	f->x2apic = HAS(basic.c, X2APIC);
	f->tsc_deadline = HAS(basic.c, TSC_DEADLINE);
	f->xsave = HAS(basic.c, XSAVE);
	f->smep = HAS(seven.b, SMEP) && boot_options.smep;
	f->smap = HAS(seven.b, SMAP) && boot_options.smap;
	f->invpcid = HAS(seven.b, INVPCID);
	f->arch_caps = HAS(seven.d, ARCH_CAPS);
	f->invariant_tsc = HAS(power.d, ITSC);
	f->ibrs = HAS(seven.d, IBRSB) || HAS(sizes.b, IBRS);
	f->ibpb = HAS(seven.d, IBRSB) || HAS(sizes.b, IBPB);
	f->stibp = HAS(seven.d, STIBP) || HAS(sizes.b, AMD_STIBP);
	f->phys_bits = sizes.a & 0xff ? sizes.a & 0xff : 36;
	if (f->xsave)
		find_extended_state(f);
	find_brand(f->brand);
	show(f);
}
