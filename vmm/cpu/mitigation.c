// SPDX-License-Identifier: MIT
/*
 * See mitigation.h. Where the parts are:
 *
 *   Spectre 1       array_nospec() on indices that a guest gives and whose element leads on to other memory
 *   Spectre 2       thunks for indirect branches (entry.S; gcc calls them); IBRS where returns are predicted like those; IBPB and a full return buffer
 *                   when another vCPU comes; nothing of it needs the guests' help
 *   Meltdown        mm/xpti.c
 *   L1TF            mm/page_type.c refuses entries; dom0 is trusted with them
 *   MDS and the like  VERW at the last moment before the guest
 *
 * Hyperthreads share most of what is cleared here, and the scheduler puts vCPUs of different domains side by side: see CAVEATS.
 */
#include "vmm/cpu/mitigation.h"

#include "vmm/lib/xen.h"
#include <xen/arch-x86/cpufeatureset.h>

#include "vmm/cpu/patch.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/print.h"
#include "vmm/mm/xpti.h"

#define CAP(name)	(1ull << (XEN_X86_FEATURE_##name % 32))
#define HAS(word, name) ((word) >> (XEN_X86_FEATURE_##name % 32) & 1)

#define SPEC_CTRL_IBRS	1u
#define SPEC_CTRL_STIBP 2u
#define SPEC_CTRL_SSBD	4u
#define PRED_CMD_IBPB	1u
#define EFER_AUTO_IBRS	(1ull << 21)

struct mitigations mitigations;
/* SPEC_CTRL for entry.S. */
uint32_t spec_ctrl_inside, spec_ctrl_outside;

void stuff_rsb(void);

/* Intel's since Skylake predict returns like other branches when the return buffer is empty (Retpoline: A Branch Target Injection Mitigation, 5.1). */
static bool returns_are_safe(const struct processor *p)
{
	static const uint8_t unsafe[] = {0x4e, 0x5e, 0x55, 0x66, 0x8e, 0x9e, 0xa5, 0xa6};

	if (p->amd)
		return true;
	if (p->arch_caps & (CAP(RSBA) | CAP(RRSBA)))
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(unsafe); i++)
		if (p->family == 6 && p->model == unsafe[i])
			return false;
	return true;
}

static bool leaks_buffers(const struct processor *p)
{
	if (p->amd)
		return false;
	return !(p->arch_caps & CAP(MDS_NO)) || (p->rtm && !(p->arch_caps & CAP(TAA_NO))) ||
	       (p->arch_caps & (CAP(FB_CLEAR) | CAP(RFDS_CLEAR)));
}

/* The option, or else what is best, unless all is off. */
static bool wanted(int option, bool best, const struct boot_options *o)
{
	return option >= 0 ? option : best && o->spec_ctrl != 0;
}

struct mitigations mitigation_choose(const struct processor *p, const struct boot_options *o)
{
	bool reads_anything = !p->amd && !(p->arch_caps & CAP(RDCL_NO));
	bool ibrs_all = p->auto_ibrs || (p->ibrs && (p->arch_caps & CAP(EIBRS)));
	struct mitigations m = {0};

	m.retpolines = o->spec_ctrl != 0;
	m.xpti = wanted(o->xpti, reads_anything, o);
	m.l1tf = wanted(o->pv_l1tf, reads_anything, o);
	m.ibrs_always = ibrs_all && wanted(o->ibrs, true, o);
	m.ibrs_entry = p->ibrs && !ibrs_all && wanted(o->ibrs, !returns_are_safe(p), o);
	m.rsb_entry = wanted(o->rsb, !p->smep, o);
	m.ibpb = p->ibpb && wanted(o->ibpb, true, o);
	m.verw = p->md_clear && wanted(o->verw, leaks_buffers(p), o);
	m.mds_unhelped = leaks_buffers(p) && !p->md_clear;
	m.stibp = p->stibp && o->stibp > 0;
	m.ssbd = p->ssbd && o->ssbd > 0;
	return m;
}

static struct processor find_processor(void)
{
	struct cpuid basic = cpuid(1, 0), seven = cpuid_leaf(7, 0);
	struct cpuid eight = cpuid_leaf(0x80000008, 0), e21 = cpuid_leaf(0x80000021, 0);
	struct processor p = {
		.amd = cpu_features.amd,
		.family = (basic.a >> 8 & 0xf) +
			  ((basic.a >> 8 & 0xf) == 0xf ? basic.a >> 20 & 0xff : 0),
		.model = (basic.a >> 4 & 0xf) | (basic.a >> 12 & 0xf0),
		.smep = cpu_features.smep,
		.ibrs = cpu_features.ibrs,
		.ibpb = cpu_features.ibpb,
		.stibp = cpu_features.stibp,
		.ssbd = HAS(seven.d, SSBD) || HAS(eight.b, AMD_SSBD),
		.auto_ibrs = cpu_features.amd && HAS(e21.a, AUTO_IBRS),
		.md_clear = HAS(seven.d, MD_CLEAR),
		.rtm = HAS(seven.b, RTM),
	};

	if (cpu_features.arch_caps && rdmsr_safe(MSR_ARCH_CAPS, &p.arch_caps))
		p.arch_caps = 0;
	return p;
}

void mitigation_init(void)
{
	const struct processor p = find_processor();
	struct mitigations *m = &mitigations;

	*m = mitigation_choose(&p, &boot_options);
	spec_ctrl_outside = (m->stibp ? SPEC_CTRL_STIBP : 0) | (m->ssbd ? SPEC_CTRL_SSBD : 0) |
			    (m->ibrs_always && !p.auto_ibrs ? SPEC_CTRL_IBRS : 0);
	spec_ctrl_inside = spec_ctrl_outside | SPEC_CTRL_IBRS;
	log_info(
		"speculation: indirect branches %s, page tables %s, IBRS %s, IBPB %s, return buffer %s, VERW %s, STIBP %s, SSBD %s, L1TF entries %s%s",
		m->retpolines ? "retpoline" : "plain", m->xpti ? "isolated" : "shared",
		m->ibrs_always	? "always"
		: m->ibrs_entry ? "on entry"
				: "off",
		m->ibpb ? "between vCPUs" : "off", m->rsb_entry ? "filled on entry" : "as it is",
		m->verw ? "on exit" : "off", m->stibp ? "on" : "off", m->ssbd ? "on" : "off",
		m->l1tf ? "refused" : "taken",
		m->mds_unhelped ? "; MDS: the microcode has nothing for it" : "");
}

void mitigation_patch(void)
{
	const struct mitigations *m = &mitigations;
	const bool on[] = {
		[PATCH_SMAP] = cpu_features.smap,
		[PATCH_ENTRY] = m->xpti || m->ibrs_entry || m->rsb_entry,
		[PATCH_EXIT] = m->xpti || m->ibrs_entry || m->verw,
		[PATCH_XPTI] = m->xpti,
		[PATCH_IBRS] = m->ibrs_entry,
		[PATCH_RSB] = m->rsb_entry,
		[PATCH_VERW] = m->verw,
		[PATCH_THUNK_JMP] = !m->retpolines,
		[PATCH_SHORT] = !m->xpti,
		[PATCH_PCID] = cpu_features.pcid,
	};
	uint32_t features = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(on); i++)
		features |= (uint32_t)on[i] << i;
	patch_text(features);
}

void mitigation_init_cpu(void)
{
	const struct mitigations *m = &mitigations;

	if (m->ibrs_always && cpu_features.amd)
		wrmsr_safe(MSR_EFER, rdmsr(MSR_EFER) | EFER_AUTO_IBRS);
	if (spec_ctrl_outside)
		wrmsr_safe(MSR_SPEC_CTRL, spec_ctrl_outside);
	if (m->xpti)
		xpti_init_cpu();
}

void mitigation_switch(void)
{
	if (mitigations.ibpb)
		wrmsr(MSR_PRED_CMD, PRED_CMD_IBPB);
	/* Not everywhere does IBPB forget predicted returns. */
	if (mitigations.retpolines || mitigations.rsb_entry)
		stuff_rsb();
}
