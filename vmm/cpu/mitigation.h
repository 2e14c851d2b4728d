/* SPDX-License-Identifier: MIT */
/*
 * What is done against processors that give away in speculation what they may not give. What to do for which is decided by a pure function out of what the
 * processor says of itself and the command line; what is not known to be safe is taken to be vulnerable.
 */
#pragma once

#include "vmm/boot/boot.h"
#include "vmm/lib/types.h"

struct processor {
	bool amd; /* or Hygon */
	unsigned family, model;
	bool smep, ibrs, ibpb, stibp, ssbd, auto_ibrs, md_clear, rtm;
	uint64_t arch_caps; /* IA32_ARCH_CAPABILITIES; 0: there is none */
};

struct mitigations {
	bool retpolines;   /* indirect branches are made by returns */
	bool xpti;	   /* isolated page tables (mm/xpti.c) */
	bool l1tf;	   /* guests' entries that are not present must not point to memory */
	bool ibrs_entry;   /* switched on and off on the way in and out */
	bool ibrs_always;  /* switched on for good: the processor does the rest */
	bool rsb_entry;	   /* return predictions of guests are overwritten on the way in */
	bool ibpb;	   /* predictions are forgotten when another vCPU comes */
	bool verw;	   /* buffers are cleared on the way out */
	bool stibp, ssbd;  /* on for good, as asked */
	bool mds_unhelped; /* what VERW would be for, but the microcode is too old */
};
extern struct mitigations mitigations;

struct mitigations mitigation_choose(const struct processor *p, const struct boot_options *o);
/* First CPU, after cpu_features_init and before map_init: choose and say what. */
void mitigation_init(void);
/* Text is still writable: the code that the choice asks for. */
void mitigation_patch(void);
void mitigation_init_cpu(void);
/* Another vCPU than the last one comes to this CPU. */
void mitigation_switch(void);
