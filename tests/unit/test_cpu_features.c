// SPDX-License-Identifier: MIT
/* Which processor features a guest would miss, and how they are told. */
#include "migrate/cpu_features.h"

#include "tests/unit/unit.h"

static char text[160];

#define LEAVES(...)                                                                              \
	(struct cpu_leaves)                                                                      \
	{                                                                                        \
		.leaf = (const struct pgr_cpu_leaf[]){__VA_ARGS__},                              \
		.nr = sizeof((struct pgr_cpu_leaf[]){__VA_ARGS__}) / sizeof(struct pgr_cpu_leaf) \
	}
#define LEAF1(c, d)                                                      \
	{                                                                \
		.leaf = 1, .subleaf = UINT32_MAX, .ecx = (c), .edx = (d) \
	}
#define LEAF7(b, c)                                             \
	{                                                       \
		.leaf = 7, .subleaf = 0, .ebx = (b), .ecx = (c) \
	}

static void a_host_with_more_is_enough(void)
{
	CHECK(!cpu_lacking(LEAVES(LEAF1(0x1, 0x3), LEAF7(0x20, 0)),
			   LEAVES(LEAF7(0x3ff, 0xff), LEAF1(0xf, 0xf)), text, sizeof(text)));
	CHECK_STR(text, "");
}

static void what_is_lacking_is_named(void)
{
	CHECK(cpu_lacking(LEAVES(LEAF1(1u << 28, 0), LEAF7(1u << 5, 0)),
			  LEAVES(LEAF1(0, 0), LEAF7(0, 0)), text, sizeof(text)));
	CHECK_STR(text, "avx, avx2");
}

static void a_bit_without_a_name_has_a_place(void)
{
	CHECK(cpu_lacking(LEAVES(LEAF7(0, 1u << 28)), LEAVES(LEAF7(0, 0)), text, sizeof(text)));
	CHECK_STR(text, "leaf 0x7 ecx bit 28");
}

static void a_missing_leaf_has_no_features(void)
{
	CHECK(cpu_lacking(LEAVES(LEAF7(1u << 3, 0)), LEAVES(LEAF1(~0u, ~0u)), text, sizeof(text)));
	CHECK_STR(text, "bmi1");
}

static void another_subleaf_is_another_leaf(void)
{
	struct pgr_cpu_leaf sub = {.leaf = 7, .subleaf = 1, .ebx = ~0u, .eax = ~0u};
	struct cpu_leaves host = {.leaf = &sub, .nr = 1};

	CHECK(cpu_lacking(LEAVES(LEAF7(1u << 3, 0)), host, text, sizeof(text)));
}

static void bits_that_are_no_promise_are_left_out(void)
{
	/* OSXSAVE, the hypervisor's mark, HTT, OSPKE. */
	CHECK(!cpu_lacking(LEAVES(LEAF1(1u << 27 | 1u << 31, 1u << 28), LEAF7(0, 1u << 4)),
			   LEAVES(LEAF1(0, 0)), text, sizeof(text)));
}

static void many_are_counted(void)
{
	CHECK(cpu_lacking(LEAVES(LEAF1(~0u, ~0u), LEAF7(~0u, ~0u)), LEAVES(LEAF1(0, 0)), text,
			  sizeof(text)));
	CHECK(strlen(text) < sizeof(text));
	CHECK(strstr(text, " more") != NULL);
	/* The smallest text still says how many. */
	CHECK(cpu_lacking(LEAVES(LEAF1(~0u, ~0u), LEAF7(~0u, ~0u)), LEAVES(LEAF1(0, 0)), text, 64));
	CHECK(strlen(text) < 64);
	CHECK(strstr(text, " more") != NULL);
}

UNIT_MAIN(TEST(a_host_with_more_is_enough), TEST(what_is_lacking_is_named),
	  TEST(a_bit_without_a_name_has_a_place), TEST(a_missing_leaf_has_no_features),
	  TEST(another_subleaf_is_another_leaf), TEST(bits_that_are_no_promise_are_left_out),
	  TEST(many_are_counted))
