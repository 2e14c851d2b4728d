// SPDX-License-Identifier: MIT
#include "migrate/cpu_features.h"

#include <stdio.h>
#include <string.h>

#define NO_SUBLEAF UINT32_MAX

enum reg { EAX, EBX, ECX, EDX };
static const char *const reg_name[] = {"eax", "ebx", "ecx", "edx"};

/*
 * Registers of CPUID whose every bit is a feature, but for those in `except`, which say how the
 * processor is built or used.
 */
static const struct word {
	uint32_t leaf, subleaf;
	enum reg reg;
	uint32_t except;
} words[] = {
	{0x1, NO_SUBLEAF, ECX, 1u << 27 | 1u << 31}, /* OSXSAVE, hypervisor */
	{0x1, NO_SUBLEAF, EDX, 1u << 28},	     /* HTT */
	{0x7, 0, EBX, 0},
	{0x7, 0, ECX, 1u << 4 | 0x1fu << 17}, /* OSPKE, MAWAU */
	{0x7, 0, EDX, 0},
	{0x7, 1, EAX, 0},
	{0xd, 1, EAX, 0},
	{0x80000001, NO_SUBLEAF, ECX, 1u << 1},	   /* CMP_LEGACY */
	{0x80000001, NO_SUBLEAF, EDX, 0x0183f3ff}, /* AMD repeats leaf 1 there */
	{0x80000007, NO_SUBLEAF, EDX, 0},
	{0x80000008, NO_SUBLEAF, EBX, 0},
};

/* Those that people know by name. */
static const struct name {
	uint32_t leaf;
	enum reg reg;
	unsigned bit;
	const char *name;
} names[] = {
	{0x1, ECX, 0, "sse3"},
	{0x1, ECX, 1, "pclmulqdq"},
	{0x1, ECX, 9, "ssse3"},
	{0x1, ECX, 12, "fma"},
	{0x1, ECX, 13, "cx16"},
	{0x1, ECX, 17, "pcid"},
	{0x1, ECX, 19, "sse4.1"},
	{0x1, ECX, 20, "sse4.2"},
	{0x1, ECX, 22, "movbe"},
	{0x1, ECX, 23, "popcnt"},
	{0x1, ECX, 25, "aes"},
	{0x1, ECX, 26, "xsave"},
	{0x1, ECX, 28, "avx"},
	{0x1, ECX, 29, "f16c"},
	{0x1, ECX, 30, "rdrand"},
	{0x7, EBX, 0, "fsgsbase"},
	{0x7, EBX, 3, "bmi1"},
	{0x7, EBX, 4, "hle"},
	{0x7, EBX, 5, "avx2"},
	{0x7, EBX, 7, "smep"},
	{0x7, EBX, 8, "bmi2"},
	{0x7, EBX, 9, "erms"},
	{0x7, EBX, 10, "invpcid"},
	{0x7, EBX, 11, "rtm"},
	{0x7, EBX, 16, "avx512f"},
	{0x7, EBX, 17, "avx512dq"},
	{0x7, EBX, 18, "rdseed"},
	{0x7, EBX, 19, "adx"},
	{0x7, EBX, 20, "smap"},
	{0x7, EBX, 23, "clflushopt"},
	{0x7, EBX, 24, "clwb"},
	{0x7, EBX, 28, "avx512cd"},
	{0x7, EBX, 29, "sha"},
	{0x7, EBX, 30, "avx512bw"},
	{0x7, EBX, 31, "avx512vl"},
	{0x7, ECX, 8, "gfni"},
	{0x7, ECX, 9, "vaes"},
	{0x7, ECX, 10, "vpclmulqdq"},
	{0x7, ECX, 22, "rdpid"},
	{0x7, EDX, 26, "ibrsb"},
	{0x7, EDX, 27, "stibp"},
	{0x7, EDX, 31, "ssbd"},
	{0x80000001, ECX, 5, "lzcnt"},
	{0x80000001, ECX, 6, "sse4a"},
	{0x80000001, ECX, 11, "xop"},
	{0x80000001, ECX, 16, "fma4"},
	{0x80000001, EDX, 26, "1-GiB pages"},
	{0x80000001, EDX, 27, "rdtscp"},
};

static uint32_t value(const struct pgr_cpu_leaf *l, enum reg reg)
{
	switch (reg) {
	case EAX:
		return l->eax;
	case EBX:
		return l->ebx;
	case ECX:
		return l->ecx;
	case EDX:
		break;
	}
	return l->edx;
}

static uint32_t look_up(struct cpu_leaves l, const struct word *w)
{
	uint32_t i;

	for (i = 0; i < l.nr; i++)
		if (l.leaf[i].leaf == w->leaf && l.leaf[i].subleaf == w->subleaf)
			return value(&l.leaf[i], w->reg);
	return 0;
}

static void name_of(const struct word *w, unsigned bit, char text[64])
{
	size_t i;

	snprintf(text, 64, "leaf %#x %s bit %u", w->leaf, reg_name[w->reg], bit);
	if (w->leaf == 0x7 && w->subleaf)
		return;
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].leaf == w->leaf && names[i].reg == w->reg && names[i].bit == bit)
			snprintf(text, 64, "%s", names[i].name);
}

bool cpu_lacking(struct cpu_leaves guest, struct cpu_leaves host, char *text, size_t size)
{
	unsigned found = 0, told = 0, bit;
	size_t w, used = 0;
	uint32_t lacking;
	char name[64];

	text[0] = '\0';
	for (w = 0; w < sizeof(words) / sizeof(words[0]); w++) {
		lacking = look_up(guest, &words[w]) & ~look_up(host, &words[w]) & ~words[w].except;
		for (; lacking; lacking &= lacking - 1) {
			bit = (unsigned)__builtin_ctz(lacking);
			found++;
			name_of(&words[w], bit, name);
			/* Leave room for "and N more". */
			if (told + 1 < found || used + strlen(name) + 20 > size)
				continue;
			used += (size_t)snprintf(text + used, size - used, "%s%s", told ? ", " : "",
						 name);
			told++;
		}
	}
	if (told < found)
		snprintf(text + used, size - used, ", and %u more", found - told);
	return found > 0;
}
