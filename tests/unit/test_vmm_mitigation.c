// SPDX-License-Identifier: MIT
/* What is done for which processor, and what the command line makes of it. */
#define VMM_HOSTED
#include "vmm/cpu/mitigation.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"

struct cpu_features cpu_features;
struct boot_options boot_options;

/* What the functions that are not tried here need. */
int rdmsr_safe(uint32_t msr, uint64_t *value)
{
	(void)msr;
	(void)value;
	return -1;
}
int wrmsr_safe(uint32_t msr, uint64_t value)
{
	(void)msr;
	(void)value;
	return -1;
}
void patch_text(uint32_t features)
{
	(void)features;
}
void stuff_rsb(void)
{
}
void xpti_init_cpu(void)
{
}
void log_print(enum log_level level, const char *format, ...)
{
	(void)level;
	(void)format;
}

static const struct boot_options defaults = {
	.xpti = -1, .pv_l1tf = -1, .spec_ctrl = -1, .ibrs = -1, .ibpb = -1, .rsb = -1, .verw = -1};

#define INTEL(m, ...)                                                \
	{                                                            \
		.family = 6, .model = (m), .smep = true, __VA_ARGS__ \
	}
#define AMD(f, ...)                                     \
	{                                               \
		.amd = true, .family = (f), __VA_ARGS__ \
	}
#define NEW_MSRS .ibrs = true, .ibpb = true, .stibp = true, .ssbd = true, .md_clear = true

static const struct {
	const char *name;
	struct processor p;
	/* xpti and l1tf, IBRS: '-', 'e'ntry, 'a'lways, rsb_entry, ibpb, verw, mds_unhelped */
	bool meltdown;
	char ibrs;
	bool rsb, ibpb, verw, unhelped;
} table[] = {
	{"Nehalem, old microcode",
	 {.family = 6, .model = 0x1a},
	 true,
	 '-',
	 true,
	 false,
	 false,
	 true},
	{"Haswell, old microcode", INTEL(0x3c), true, '-', false, false, false, true},
	{"Haswell", INTEL(0x3c, NEW_MSRS, .rtm = true), true, '-', false, true, true, false},
	{"Broadwell server", INTEL(0x4f, NEW_MSRS), true, '-', false, true, true, false},
	{"Skylake client", INTEL(0x5e, NEW_MSRS, .rtm = true), true, 'e', false, true, true, false},
	{"Skylake server", INTEL(0x55, NEW_MSRS), true, 'e', false, true, true, false},
	{"Atom that says RSBA", INTEL(0x5c, NEW_MSRS, .arch_caps = CAP(RSBA)), true, 'e', false,
	 true, true, false},
	{"Cascade Lake, TSX on",
	 INTEL(0x55, NEW_MSRS, .rtm = true, .arch_caps = CAP(RDCL_NO) | CAP(EIBRS) | CAP(MDS_NO)),
	 false, 'a', false, true, true, false},
	{"Cascade Lake, TSX off",
	 INTEL(0x55, NEW_MSRS, .arch_caps = CAP(RDCL_NO) | CAP(EIBRS) | CAP(MDS_NO)), false, 'a',
	 false, true, false, false},
	{"Ice Lake with FB_CLEAR",
	 INTEL(0x6a, NEW_MSRS,
	       .arch_caps = CAP(RDCL_NO) | CAP(EIBRS) | CAP(MDS_NO) | CAP(TAA_NO) | CAP(FB_CLEAR)),
	 false, 'a', false, true, true, false},
	{"Sapphire Rapids",
	 INTEL(0x8f, NEW_MSRS, .rtm = true,
	       .arch_caps = CAP(RDCL_NO) | CAP(EIBRS) | CAP(MDS_NO) | CAP(TAA_NO) | CAP(RRSBA)),
	 false, 'a', false, true, false, false},
	{"Gracemont with RFDS_CLEAR",
	 INTEL(0xbe, NEW_MSRS,
	       .arch_caps =
		       CAP(RDCL_NO) | CAP(EIBRS) | CAP(MDS_NO) | CAP(TAA_NO) | CAP(RFDS_CLEAR)),
	 false, 'a', false, true, true, false},
	{"a processor of no known maker",
	 {.family = 6, .model = 0xf},
	 true,
	 '-',
	 true,
	 false,
	 false,
	 true},
	{"K10", AMD(0x10), false, '-', true, false, false, false},
	{"Zen 1", AMD(0x17, .smep = true, .ibpb = true), false, '-', false, true, false, false},
	{"Zen 3", AMD(0x19, .smep = true, NEW_MSRS), false, '-', false, true, false, false},
	{"Zen 4", AMD(0x19, .smep = true, .ibpb = true, .ibrs = true, .auto_ibrs = true), false,
	 'a', false, true, false, false},
};

static void each_processor_gets_its_own(void)
{
	for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
		struct mitigations m = mitigation_choose(&table[i].p, &defaults);
		char ibrs = m.ibrs_always ? 'a' : m.ibrs_entry ? 'e' : '-';

		CHECK_MSG(m.retpolines && m.xpti == table[i].meltdown &&
				  m.l1tf == table[i].meltdown,
			  "%s: retpolines %d, xpti %d, l1tf %d", table[i].name, m.retpolines,
			  m.xpti, m.l1tf);
		CHECK_MSG(ibrs == table[i].ibrs && !(m.ibrs_always && m.ibrs_entry), "%s: IBRS %c",
			  table[i].name, ibrs);
		CHECK_MSG(m.rsb_entry == table[i].rsb && m.ibpb == table[i].ibpb,
			  "%s: RSB %d, IBPB %d", table[i].name, m.rsb_entry, m.ibpb);
		CHECK_MSG(m.verw == table[i].verw && m.mds_unhelped == table[i].unhelped,
			  "%s: VERW %d, unhelped %d", table[i].name, m.verw, m.mds_unhelped);
		CHECK(!m.stibp && !m.ssbd);
	}
}

static void off_is_off_on_all(void)
{
	struct boot_options o = defaults;

	o.spec_ctrl = 0;
	for (unsigned i = 0; i < ARRAY_SIZE(table); i++) {
		struct mitigations m = mitigation_choose(&table[i].p, &o);

		CHECK(!m.retpolines && !m.xpti && !m.l1tf && !m.ibrs_always && !m.ibrs_entry &&
		      !m.rsb_entry);
		CHECK(!m.ibpb && !m.verw && !m.stibp && !m.ssbd);
	}
}

static void a_word_goes_before_the_whole(void)
{
	struct processor p = INTEL(0x5e, NEW_MSRS);
	struct boot_options o = defaults;
	struct mitigations m;

	o.spec_ctrl = 0;
	o.xpti = o.ibpb = o.ssbd = o.stibp = 1;
	m = mitigation_choose(&p, &o);
	CHECK(m.xpti && m.ibpb && m.ssbd && m.stibp);
	CHECK(!m.retpolines);
	CHECK(!m.l1tf && !m.ibrs_entry && !m.verw);
	o = defaults;
	o.xpti = o.ibrs = o.verw = 0;
	m = mitigation_choose(&p, &o);
	CHECK(!m.xpti && !m.ibrs_entry && !m.verw && m.l1tf && m.ibpb);
}

/* Isolated tables and a full return buffer work on any processor; registers that are not there are not written. */
static void what_is_lacking_is_not_used(void)
{
	struct processor p = AMD(0x10);
	struct boot_options o = defaults;
	struct mitigations m;

	o.xpti = o.ibrs = o.ibpb = o.verw = o.ssbd = o.stibp = o.rsb = 1;
	m = mitigation_choose(&p, &o);
	CHECK(m.xpti && m.rsb_entry);
	CHECK(!m.ibrs_always && !m.ibrs_entry && !m.ibpb && !m.verw && !m.ssbd && !m.stibp);
}

UNIT_MAIN(TEST(each_processor_gets_its_own), TEST(off_is_off_on_all),
	  TEST(a_word_goes_before_the_whole), TEST(what_is_lacking_is_not_used))
