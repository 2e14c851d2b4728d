// SPDX-License-Identifier: MIT
/* The command line: what is understood, and that what is not is named once and changes nothing. */
#define VMM_HOSTED
#include "vmm/boot/options.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"
#include "tests/unit/vmm_log.h"

static const struct boot_options *parse(const char *line)
{
	logged[0] = 0;
	log_console_level = LOG_INFO;
	memset(&boot_options, 0xee, sizeof(boot_options));
	options_parse(line);
	return &boot_options;
}

static void nothing_is_the_default(void)
{
	const struct boot_options *o = parse("");

	CHECK_STR(o->console, "com1");
	CHECK_STR(o->com[0], "");
	CHECK_EQ(o->dom0_mem, 0);
	CHECK_EQ(o->dom0_mem_min, 0);
	CHECK_EQ(o->dom0_mem_max, 0);
	CHECK_EQ(o->dom0_vcpus_min, 0);
	CHECK_EQ(o->dom0_vcpus_max, COUNT_MAX);
	CHECK_EQ(o->maxcpus, 0);
	CHECK_EQ(o->smep, -1);
	CHECK_EQ(o->smap, -1);
	CHECK_EQ(o->xpti, -1);
	CHECK_EQ(o->spec_ctrl, -1);
	CHECK(!o->noreboot && !o->sync_console && !o->tsc_unstable && !o->fault_injection);
	CHECK_EQ(log_console_level, LOG_INFO);
	CHECK_STR(logged, "");
}

static void takes_a_usual_line(void)
{
	const struct boot_options *o = parse(
		"  console=vga,com2 com1=115200,8n1 com2=9600,8n1,0x2f8 dom0_max_vcpus=2 maxcpus=4"
		"  loglvl=all guest_loglvl=all/all noreboot sync_console no-real-mode edd=off ");

	CHECK_STR(o->console, "com2");
	CHECK_STR(o->com[0], "115200,8n1");
	CHECK_STR(o->com[1], "9600,8n1,0x2f8");
	CHECK_EQ(o->dom0_vcpus_min, 2);
	CHECK_EQ(o->dom0_vcpus_max, 2);
	CHECK_EQ(o->maxcpus, 4);
	CHECK(o->noreboot && o->sync_console);
	CHECK_EQ(log_console_level, LOG_DEBUG);
	CHECK_STR(logged, "");
}

static void sizes_have_units(void)
{
	CHECK_EQ(parse("dom0_mem=512M")->dom0_mem, 512ull << 20);
	CHECK_EQ(parse("dom0_mem=1048576")->dom0_mem, 1ull << 30);
	CHECK_EQ(parse("dom0_mem=4096b")->dom0_mem, 4096);
	CHECK_EQ(parse("dom0_mem=0x10g")->dom0_mem, 16ull << 30);
	CHECK_EQ(parse("dom0_mem=2t")->dom0_mem, 2ull << 40);
	CHECK_EQ(parse("dom0_mem=1G,max:2G")->dom0_mem_max, 2ull << 30);
	CHECK_EQ(boot_options.dom0_mem, 1ull << 30);
	CHECK_EQ(parse("dom0_mem=min:64m,max:128m")->dom0_mem_min, 64ull << 20);
	CHECK_EQ(boot_options.dom0_mem_max, 128ull << 20);
	CHECK_EQ(boot_options.dom0_mem, 0);
	CHECK_STR(logged, "");
}

static void numbers_that_are_none_are_named(void)
{
	static const char *const bad[] = {
		"dom0_mem=",
		"dom0_mem=M",
		"dom0_mem=1X",
		"dom0_mem=1MM",
		"dom0_mem=-1G",
		"dom0_mem=0x",
		"dom0_mem=16777216t",
		"maxcpus=0",
		"dom0_mem=18446744073709551616b",
		"maxcpus=four",
		"dom0_max_vcpus=65536",
		"dom0_max_vcpus=",
		"dom0_max_vcpus=0",
		"dom0_max_vcpus=3-2",
		"dom0_max_vcpus=2-0",
		"dom0_max_vcpus=2-65536",
		"dom0_max_vcpus=2-4-",
		"dom0_max_vcpus=-x",
		"com1=",
		"com1=pci",
		"com1=115200/3686400",
		"com2=fast,8n1",
		"com2=9600;8n1",
	};

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		char want[120];

		parse(bad[i]);
		snprintf(want, sizeof(want), "option \"%s\" has a value", bad[i]);
		CHECK_HAS(logged, want);
		CHECK_EQ(boot_options.dom0_mem, 0);
		CHECK_EQ(boot_options.maxcpus, 0);
		CHECK_EQ(boot_options.dom0_vcpus_min, 0);
		CHECK_EQ(boot_options.dom0_vcpus_max, COUNT_MAX);
		CHECK_STR(boot_options.com[0], "");
		CHECK_STR(boot_options.com[1], "");
	}
}

static void processors_of_dom0_have_bounds(void)
{
	CHECK_EQ(parse("dom0_max_vcpus=1-8")->dom0_vcpus_min, 1);
	CHECK_EQ(boot_options.dom0_vcpus_max, 8);
	CHECK_EQ(parse("dom0_max_vcpus=-3")->dom0_vcpus_min, 0);
	CHECK_EQ(boot_options.dom0_vcpus_max, 3);
	CHECK_EQ(parse("dom0_max_vcpus=4-")->dom0_vcpus_min, 4);
	CHECK_EQ(boot_options.dom0_vcpus_max, COUNT_MAX);
	CHECK_STR(logged, "");
}

static void switches_have_many_words(void)
{
	CHECK_EQ(parse("smep")->smep, 1);
	CHECK_EQ(parse("smep=on")->smep, 1);
	CHECK_EQ(parse("smep=0")->smep, 0);
	CHECK_EQ(parse("smap=hvm")->smap, 0);
	CHECK_EQ(parse("no-smep smap=false")->smep, 0);
	CHECK_EQ(boot_options.smap, 0);
	CHECK_EQ(parse("xpti=no")->xpti, 0);
	CHECK_EQ(parse("xpti=default")->xpti, -1);
	CHECK_EQ(parse("noreboot=no")->noreboot, false);
	CHECK_EQ(parse("fault-injection")->fault_injection, true);
	CHECK_EQ(parse("tsc=unstable")->tsc_unstable, true);
	CHECK_STR(logged, "");
	CHECK_EQ(parse("smep=maybe")->smep, -1);
	CHECK_HAS(logged, "\"smep=maybe\" has a value");
}

static void mitigations_have_words(void)
{
	const struct boot_options *o =
		parse("spec-ctrl=no-ibrs,ibpb=no,stibp,ssbd=on,rsb=1,verw=0,eager-fpu "
		      "pcid=no pv-l1tf xpti=1");

	CHECK_EQ(o->ibrs, 0);
	CHECK_EQ(o->ibpb, 0);
	CHECK_EQ(o->stibp, 1);
	CHECK_EQ(o->ssbd, 1);
	CHECK_EQ(o->rsb, 1);
	CHECK_EQ(o->verw, 0);
	CHECK_EQ(o->pcid, 0);
	CHECK_EQ(o->pv_l1tf, 1);
	CHECK_EQ(o->xpti, 1);
	CHECK_EQ(o->spec_ctrl, -1);
	CHECK_STR(logged, "");
}

static void words_for_mitigations_that_are_none_are_named(void)
{
	CHECK_EQ(parse("spec-ctrl=no")->spec_ctrl, 0);
	CHECK_EQ(parse("spec-ctrl=yes")->spec_ctrl, 1);
	CHECK_STR(logged, "");
	CHECK_EQ(parse("spec-ctrl=ibpbs=no,off,msr-sc,bti-thunk=fast,ibrs=perhaps")->spec_ctrl, 0);
	CHECK_HAS(logged, "\"ibpbs=no\"");
	CHECK_HAS(logged, "\"msr-sc\"");
	CHECK_HAS(logged, "\"bti-thunk=fast\"");
	CHECK_HAS(logged, "\"ibrs=perhaps\"");
	CHECK_EQ(lines_logged(), 4);
	CHECK_EQ(boot_options.ibpb, -1);
	CHECK_EQ(boot_options.ibrs, -1);
}

static void levels_are_ordered(void)
{
	parse("loglvl=none");
	CHECK_EQ(log_console_level, LOG_ERROR);
	parse("loglvl=warning/all");
	CHECK_EQ(log_console_level, LOG_WARNING);
	parse("loglvl=debug");
	CHECK_EQ(log_console_level, LOG_DEBUG);
	parse("loglvl=loud");
	CHECK_EQ(log_console_level, LOG_INFO);
	CHECK_HAS(logged, "loglvl=loud");
}

static void unknown_ones_are_named_once_each(void)
{
	const struct boot_options *o = parse("foo no-bar baz=1 smep=no no-spam=1 console=com3");

	CHECK_HAS(logged, "option \"foo\" is not known");
	CHECK_HAS(logged, "option \"no-bar\" is not known");
	CHECK_HAS(logged, "option \"baz=1\" is not known");
	CHECK_HAS(logged, "option \"no-spam=1\" is not known");
	CHECK_HAS(logged, "\"console=com3\" has a value");
	CHECK_EQ(lines_logged(), 5);
	CHECK_EQ(o->smep, 0);
	CHECK_STR(o->console, "com1");
}

static void long_words_are_cut(void)
{
	static const char *const starts[] = {"", "com1=", "loglvl=", "console=", "dom0_mem="};
	char line[4000], start[16];

	for (unsigned i = 0; i < ARRAY_SIZE(starts); i++) {
		snprintf(line, sizeof(line), "%s%03500d", starts[i], 7);
		parse(line);
		snprintf(start, sizeof(start), "option \"%s0", starts[i]);
		CHECK_HAS(logged, start);
		CHECK_HAS(logged, "ignored");
		CHECK_STR(boot_options.com[0], "");
		CHECK_STR(boot_options.console, "com1");
	}
}

UNIT_MAIN(TEST(nothing_is_the_default), TEST(takes_a_usual_line), TEST(sizes_have_units),
	  TEST(numbers_that_are_none_are_named), TEST(processors_of_dom0_have_bounds),
	  TEST(switches_have_many_words), TEST(mitigations_have_words),
	  TEST(words_for_mitigations_that_are_none_are_named), TEST(levels_are_ordered),
	  TEST(unknown_ones_are_named_once_each), TEST(long_words_are_cut))
