/* SPDX-License-Identifier: MIT */
/* What a guest sees of the processor: CPUID, MSRs, control registers, extended state. */
#pragma once

#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"

/* What this processor has and the hypervisor uses; filled in at boot, shown in the log. */
struct cpu_features {
	bool smep, smap, pcid, invpcid, xsave, xsaveopt;
	bool x2apic, tsc_deadline, invariant_tsc, ibpb, stibp, ibrs, arch_caps;
	bool amd; /* or Hygon */
	unsigned phys_bits;
	uint64_t xcr0; /* all that the processor has and we allow */
	uint32_t xsave_bytes;
	char brand[49];
};
extern struct cpu_features cpu_features;
void cpu_features_init(void);

/* The words of a feature set (xen/arch-x86/cpufeatureset.h): 'a' .. 'd' of a leaf, 0: an MSR, which is not told. */
struct feature_word {
	uint32_t leaf, subleaf;
	char reg;
};
extern const struct feature_word feature_words[NR_FEATURE_WORDS];
/* reg: 'a' .. 'd'. */
uint32_t *cpuid_register(struct cpuid *r, char reg);

/* CPUID as a domain sees it, hypervisor leaves (0x40000000) included. */
struct cpuid policy_cpuid(const struct domain *d, uint32_t leaf, uint32_t subleaf);
/* 0, or -EPERM: the guest gets #GP. */
int policy_rdmsr(struct vcpu *v, uint32_t msr, uint64_t *value);
int policy_wrmsr(struct vcpu *v, uint32_t msr, uint64_t value);
/* CR0 and CR4 writes of a guest: what of them counts; 0 or -EPERM. */
uint64_t policy_read_cr(struct vcpu *v, unsigned cr);
int policy_write_cr(struct vcpu *v, unsigned cr, uint64_t value);

/* ---- extended state (fpu.c) ---- */

/* MSR PAT, which PV guests may read and not change: WB WT UC- UC WC WP UC UC, as the ABI has it. */
#define PAT_ABI 0x0000050100070406ull

#define XCR0_X87    0x1ull
#define XCR0_SSE    0x2ull
#define XCR0_AVX    0x4ull
#define XCR0_AVX512 0xe0ull

void fpu_init(void);	 /* first CPU; does what fpu_init_cpu does, too */
void fpu_init_cpu(void); /* every CPU, after cpu_setup; sets CR0 for it */
int fpu_vcpu_init(struct vcpu *v);
void fpu_vcpu_free(struct vcpu *v);
/* Both clear CR0.TS: who enters a guest sets it again where v->ts says so. Interrupts may be on. */
void fpu_save(struct vcpu *v);	  /* out of the processor */
void fpu_restore(struct vcpu *v); /* into it; nothing of another vCPU remains */
/* XSETBV of a guest: 0 or -EPERM. */
int fpu_xsetbv(struct vcpu *v, uint32_t index, uint64_t value);
/* The legacy 512 bytes, for vcpu_guest_context; of a vCPU whose state is not in a processor. */
void fpu_get_legacy(const struct vcpu *v, void *out512);
void fpu_set_legacy(struct vcpu *v, const void *in512);
/* The same with all of it, as domctl's extstate has it: XCR0, what XCR0 may have been, the area in the standard format. 0 bytes: there is no XSAVE. */
uint64_t fpu_extended_bytes(void);
int fpu_get_extended(const struct vcpu *v, guest_va_t to);
int fpu_set_extended(
	struct vcpu *v, guest_va_t from,
	uint64_t
		bytes); /* -EINVAL: nothing that this processor can load; the state is the initial one then */
