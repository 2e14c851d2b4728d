// SPDX-License-Identifier: MIT
/*
 * Pages are corrupted in memory; registers are corrupted while they are held, by a signal handler that
 * changes the interrupted thread's saved state, which the kernel then loads back.
 */
#include "verify_selftest.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <ucontext.h>

#include "verify_churn.h"
#include "verify_pages.h"
#include "verify_registers.h"

#define PAGES	    16
#define SEED	    20240607
#define WARM_PASSES 3

/* Layout of the signal frame's extended state (Intel SDM volume 1, 13.4; Linux sigcontext.h). */
#define XSTATE_SOFTWARE 464
#define XSTATE_MAGIC	0x46505853
#define XSTATE_HEADER	512
#define XSTATE_AVX_BIT	4
#define XSTATE_AVX	576

/* Long enough for the alarm to come while the registers are held. */
#define HOLD_NS	 200000000
#define ALARM_US 20000

/* Places in hold.S: between them the registers are held. */
extern const char hold_registers_held[], hold_registers_kept[];

static uint64_t memory[PAGES][VERIFY_PAGE_WORDS] __attribute__((aligned(VERIFY_PAGE_SIZE)));
static struct page_entry table[PAGES];
static int failures;

static void verdict(const char *name, bool good, const char *why)
{
	if (good)
		printf("PASS %s\n", name);
	else
		printf("FAIL %s: %s\n", name, why);
	failures += !good;
}

/* One pass as the running program makes it, without rewriting. */
static struct finding pass(const struct page_set *set)
{
	struct finding finding;
	uint64_t i;

	for (i = 0; i < set->count; i++) {
		finding = pages_check(set, i);
		if (finding.kind != FINDING_NONE)
			return finding;
	}
	return pages_check_sum(set);
}

static struct page_set fresh_set(void)
{
	struct page_set set = {
		.pages = memory,
		.table = table,
		.count = PAGES,
		.first = 7,
		.seed = SEED,
	};
	uint64_t i;
	int round;

	pages_init(&set);
	for (round = 0; round < WARM_PASSES; round++)
		for (i = 0; i < PAGES; i++)
			pages_rewrite(&set, i);
	return set;
}

static void expect(const char *name, const struct page_set *set, enum finding_kind kind)
{
	struct finding finding = pass(set);
	char why[96];

	snprintf(why, sizeof(why), "expected finding '%s', got '%s'", finding_name(kind),
		 finding_name(finding.kind));
	verdict(name, finding.kind == kind, why);
}

static void test_clean(void)
{
	struct page_set set = fresh_set();

	expect("clean pages pass", &set, FINDING_NONE);
}

/* Every single bit of a page, each alone. */
static void test_every_bit(void)
{
	struct page_set set = fresh_set();
	unsigned int missed = 0, misplaced = 0;
	size_t word, bit;
	char why[96];

	for (word = 0; word < VERIFY_PAGE_WORDS; word++) {
		for (bit = 0; bit < 64; bit++) {
			struct finding finding;

			memory[5][word] ^= 1ULL << bit;
			finding = pages_check(&set, 5);
			missed += finding.kind == FINDING_NONE;
			misplaced += finding.address != (uintptr_t)&memory[5][word] ||
				     (finding.expected ^ finding.found) != 1ULL << bit;
			memory[5][word] ^= 1ULL << bit;
		}
	}
	snprintf(why, sizeof(why), "%u not noticed, %u at a wrong address", missed, misplaced);
	verdict("each of the 32768 bits of a page", missed + misplaced == 0, why);
	expect("put back, the page passes", &set, FINDING_NONE);
}

static void test_swap(void)
{
	struct page_set set = fresh_set();
	uint64_t saved[VERIFY_PAGE_WORDS];

	memcpy(saved, memory[3], sizeof(saved));
	memcpy(memory[3], memory[9], sizeof(saved));
	memcpy(memory[9], saved, sizeof(saved));
	expect("two pages swapped", &set, FINDING_FOREIGN);
}

static void test_stale(void)
{
	struct page_set set = fresh_set();
	struct page_entry old_entry = table[2];
	uint64_t old[VERIFY_PAGE_WORDS];

	memcpy(old, memory[2], sizeof(old));
	pages_rewrite(&set, 2);
	expect("a rewritten page passes", &set, FINDING_NONE);
	memcpy(memory[2], old, sizeof(old));
	expect("an older generation of a page", &set, FINDING_STALE);
	table[2] = old_entry;
	expect("an older generation with its table entry", &set, FINDING_COUNT);
}

static void test_torn(void)
{
	struct page_set set = fresh_set();
	uint64_t old[VERIFY_PAGE_WORDS];

	memcpy(old, memory[4], sizeof(old));
	pages_rewrite(&set, 4);
	memcpy(memory[4], old, sizeof(old) / 2);
	expect("half of a page old, half new", &set, FINDING_CONTENT);
}

static void test_zero(void)
{
	struct page_set set = fresh_set();

	memset(memory[15], 0, sizeof(memory[15]));
	expect("a page lost to zero", &set, FINDING_ZERO);
}

static void test_table(void)
{
	struct page_set set = fresh_set();

	table[8].checksum ^= 1ULL << 63;
	expect("a bit of a checksum", &set, FINDING_CHECKSUM);
	table[8].checksum ^= 1ULL << 63;
	table[8].generation ^= 1;
	expect("a bit of a generation", &set, FINDING_STALE);
	table[8].generation ^= 1;
	expect("the table put back passes", &set, FINDING_NONE);
}

static void test_image(void)
{
	struct register_image in, out;
	unsigned int missed = 0;
	size_t i, bit;

	registers_fill(&in, SEED, registers_level());
	out = in;
	for (i = 0; i < sizeof(in); i++) {
		for (bit = 0; bit < 8; bit++) {
			((uint8_t *)&out)[i] ^= (uint8_t)(1U << bit);
			missed += registers_compare(&in, &out).kind == FINDING_NONE;
			((uint8_t *)&out)[i] ^= (uint8_t)(1U << bit);
		}
	}
	verdict("each bit of a register image", missed == 0, "some were not noticed");
}

enum corruption {
	CORRUPT_NOTHING,
	CORRUPT_GENERAL,
	CORRUPT_X87,
	CORRUPT_MXCSR,
	CORRUPT_XMM,
	CORRUPT_YMM,
};

static volatile sig_atomic_t corruption;
static volatile sig_atomic_t corrupted;

static void corrupt(int signal, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	uint8_t *state = (uint8_t *)uc->uc_mcontext.fpregs;
	uintptr_t at = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP];
	uint32_t magic;

	(void)signal;
	(void)info;
	/* On a machine that stood still the alarm may come before the registers are loaded, and again when they were corrupted. */
	if (corrupted || at < (uintptr_t)hold_registers_held || at > (uintptr_t)hold_registers_kept)
		return;
	switch (corruption) {
	case CORRUPT_GENERAL:
		uc->uc_mcontext.gregs[REG_R12] ^= 1;
		break;
	case CORRUPT_X87:
		uc->uc_mcontext.fpregs->_st[6].significand[0] ^= 1;
		break;
	case CORRUPT_MXCSR:
		uc->uc_mcontext.fpregs->mxcsr ^= 1U << 15;
		break;
	case CORRUPT_XMM:
		uc->uc_mcontext.fpregs->_xmm[13].element[3] ^= 1U << 31;
		break;
	case CORRUPT_YMM:
		memcpy(&magic, state + XSTATE_SOFTWARE, sizeof(magic));
		if (magic != XSTATE_MAGIC || !(state[XSTATE_HEADER] & XSTATE_AVX_BIT))
			return;
		state[XSTATE_AVX + 7] ^= 1;
		break;
	default:
		break;
	}
	corrupted = 1;
}

static void hold(const char *name, enum corruption what, bool sleeping)
{
	const struct timespec nap = {.tv_nsec = HOLD_NS};
	const struct itimerval alarm = {{0, ALARM_US}, {0, ALARM_US}}, silence = {{0, 0}, {0, 0}};
	enum finding_kind expected = what == CORRUPT_NOTHING ? FINDING_NONE : FINDING_REGISTER;
	uint64_t spins = 1 << 20;
	struct finding finding;
	char why[96];

	/* The spin grows until the alarm falls into it, however fast this machine is. */
	do {
		corruption = what;
		corrupted = 0;
		setitimer(ITIMER_REAL, &alarm, NULL);
		finding = registers_hold(SEED, spins, sleeping ? &nap : NULL);
		spins *= 4;
		setitimer(ITIMER_REAL, &silence, NULL);
	} while (!corrupted && spins < 1ULL << 40);
	snprintf(why, sizeof(why), "alarm %s, expected '%s', got '%s'",
		 corrupted ? "came" : "never came", finding_name(expected),
		 finding_name(finding.kind));
	verdict(name, corrupted && finding.kind == expected, why);
}

static void test_registers(void)
{
	struct sigaction action = {.sa_sigaction = corrupt, .sa_flags = SA_SIGINFO};

	sigaction(SIGALRM, &action, NULL);
	hold("registers spinning, untouched", CORRUPT_NOTHING, false);
	hold("registers sleeping, untouched", CORRUPT_NOTHING, true);
	hold("a general register", CORRUPT_GENERAL, false);
	hold("an x87 register", CORRUPT_X87, false);
	hold("the SSE control register", CORRUPT_MXCSR, false);
	hold("an XMM register", CORRUPT_XMM, false);
	hold("an XMM register of a sleeper", CORRUPT_XMM, true);
	if (registers_level() >= VECTOR_AVX)
		hold("the upper half of a YMM register", CORRUPT_YMM, false);
}

static void test_segments(void)
{
	int rc = segment_set(false);

	verdict("GS by arch_prctl", !rc && segment_check().kind == FINDING_NONE, "word not found");
	rc = segment_set(true);
	/* A kernel without modify_ldt has nothing to keep. */
	if (rc != -ENOSYS)
		verdict("GS by the LDT", !rc && segment_check().kind == FINDING_NONE,
			"word not found");
}

static void test_churn(void)
{
	struct finding finding;
	char why[96];
	int rc;

	rc = churn_turn(SEED, 32, &finding);
	snprintf(why, sizeof(why), "returned %d, finding '%s'", rc, finding_name(finding.kind));
	verdict("a turn of churn", !rc && finding.kind == FINDING_NONE, why);
}

int verify_selftest(void)
{
	test_clean();
	test_every_bit();
	test_swap();
	test_stale();
	test_torn();
	test_zero();
	test_table();
	test_image();
	test_registers();
	test_segments();
	test_churn();
	fflush(stdout);
	return failures ? 1 : 0;
}
