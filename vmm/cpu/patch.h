/* SPDX-License-Identifier: MIT */
/*
 * Code that depends on the processor or the command line: at boot, before any guest runs, its first bytes are replaced where the feature is on. Each
 * such place has an entry in the table `patches`.
 */
#pragma once

#define PATCH_SMAP	0
#define PATCH_ENTRY	1 /* anything to do on the way in: one of the next three */
#define PATCH_EXIT	2 /* or out */
#define PATCH_XPTI	3
#define PATCH_IBRS	4
#define PATCH_RSB	5
#define PATCH_VERW	6
#define PATCH_THUNK_JMP 7
#define PATCH_SHORT	8 /* not PATCH_XPTI */
#define PATCH_PCID	9

#ifndef __ASSEMBLY__
#include "vmm/lib/types.h"

struct patch {
	uint64_t site;
	uint8_t feature, bytes, code[6];
};
_Static_assert(sizeof(struct patch) == 16, "the macro in entry.S, and access.c");

/* Text is writable still. features: bits 1 << PATCH_*. */
void patch_text(uint32_t features);
#endif
