// SPDX-License-Identifier: MIT
/*
 * verifier - a program that knows what its memory and registers must hold, and keeps looking.
 *
 * Worker threads walk their pages, check each, and rewrite some (verify_pages.h); one thread churns
 * mappings and children (verify_churn.h); two hold values in registers, one with GS set by arch_prctl,
 * one by the LDT (verify_registers.h). The main thread reports once a second. The first finding of any
 * thread ends the program.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "clock.h"
#include "options.h"
#include "parse.h"
#include "prng.h"
#include "verify_churn.h"
#include "verify_fail.h"
#include "verify_pages.h"
#include "verify_registers.h"
#include "verify_selftest.h"

#define MAX_THREADS	     64
#define HOLDERS		     2
#define PAGES_BETWEEN_PAUSES 16
#define CHURN_PAGES	     32
#define HOLD_SPINS	     (1 << 20)
#define HOLD_SLEEP_NS	     (20 * NS_PER_MS)
/* For what is wrong with this machine rather than with its memory. */
#define EXIT_TROUBLE 3

struct settings {
	uint64_t bytes, seed;
	unsigned int threads, rewrite_percent, cpu_percent;
	int64_t report_ns;
	uint64_t count;
};

struct worker {
	struct page_set set; /* copied to the thread's stack; the count lives there */
	_Atomic uint64_t passes, generations, steps;
};

static struct settings settings = {
	.bytes = 32 << 20,
	.seed = 1,
	.threads = 2,
	.rewrite_percent = 10,
	.cpu_percent = 50,
	.report_ns = NS_PER_S,
};
static struct worker workers[MAX_THREADS];
static _Atomic uint64_t churns, holds[HOLDERS];

static void fail_if_found(const struct finding *finding)
{
	if (finding->kind != FINDING_NONE)
		verify_fail(finding);
}

static _Noreturn void trouble(const char *what, int error)
{
	fprintf(stderr, "VERIFIER ERROR cannot %s: %s\n", what, strerror(error));
	_exit(EXIT_TROUBLE);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct page_set set = worker->set;
	struct prng prng = {.state = prng_mix(settings.seed) + set.first};
	struct finding finding;
	int64_t since = 0;
	uint64_t i;

	for (;;) {
		for (i = 0; i < set.count; i++) {
			finding = pages_check(&set, i);
			fail_if_found(&finding);
			if (prng_below(&prng, 100) < settings.rewrite_percent)
				pages_rewrite(&set, i);
			atomic_fetch_add(&worker->steps, 1);
			if (i % PAGES_BETWEEN_PAUSES == 0)
				clock_share(&since, settings.cpu_percent);
		}
		finding = pages_check_sum(&set);
		fail_if_found(&finding);
		atomic_store(&worker->generations, set.generations);
		atomic_fetch_add(&worker->passes, 1);
	}
	return NULL;
}

static void *churn(void *unused)
{
	struct finding finding;
	int64_t since = 0;
	uint64_t turn;
	int rc;

	(void)unused;
	for (turn = 0;; turn++) {
		rc = churn_turn(prng_mix(settings.seed) ^ turn, CHURN_PAGES, &finding);
		if (rc)
			trouble("map memory or fork", -rc);
		fail_if_found(&finding);
		atomic_fetch_add(&churns, 1);
		clock_share(&since, settings.cpu_percent);
	}
	return NULL;
}

static void *hold(void *argument)
{
	const struct timespec nap = {.tv_nsec = HOLD_SLEEP_NS};
	uintptr_t number = (uintptr_t)argument;
	bool segment;
	struct finding finding;
	int64_t since = 0;
	uint64_t turn;
	int rc;

	rc = segment_set(number % 2 == 1);
	if (rc && rc != -ENOSYS)
		trouble("set the GS segment", -rc);
	segment = !rc;
	for (turn = 0;; turn++) {
		finding = registers_hold(prng_mix(settings.seed + number) ^ turn, HOLD_SPINS,
					 turn % 2 ? &nap : NULL);
		fail_if_found(&finding);
		if (segment) {
			finding = segment_check();
			fail_if_found(&finding);
		}
		atomic_fetch_add(&holds[number], 1);
		clock_share(&since, settings.cpu_percent);
	}
	return NULL;
}

static void start(void *(*function)(void *), void *argument)
{
	pthread_t thread;
	int rc = pthread_create(&thread, NULL, function, argument);

	if (rc)
		trouble("start a thread", rc);
}

static void *map(uint64_t bytes)
{
	void *memory =
		mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		trouble("map the working set", errno);
	return memory;
}

static void start_all(uint64_t pages)
{
	uint64_t(*memory)[VERIFY_PAGE_WORDS] = map(pages * VERIFY_PAGE_SIZE);
	struct page_entry *table = map(pages * sizeof(*table));
	uint64_t first = 0, share = pages / settings.threads;
	uintptr_t i;

	printf("VERIFIER start pages=%" PRIu64 " base=0x%" PRIxPTR " table=0x%" PRIxPTR
	       " threads=%u vectors=%s\n",
	       pages, (uintptr_t)memory, (uintptr_t)table, settings.threads,
	       registers_level_name(registers_level()));
	fflush(stdout);
	for (i = 0; i < settings.threads; i++) {
		struct page_set *set = &workers[i].set;

		set->pages = memory + first;
		set->table = table + first;
		set->first = first;
		set->count = i + 1 < settings.threads ? share : pages - first;
		set->seed = settings.seed;
		pages_init(set);
		first += share;
	}
	for (i = 0; i < settings.threads; i++)
		start(work, &workers[i]);
	start(churn, NULL);
	for (i = 0; i < HOLDERS; i++)
		start(hold, (void *)i);
}

/* True when *@counter moved since *@seen, which is brought up to date. */
static bool moved(_Atomic uint64_t *counter, uint64_t *seen)
{
	uint64_t now = atomic_load(counter);
	bool changed = now != *seen;

	*seen = now;
	return changed;
}

static void report(uint64_t pages)
{
	static uint64_t seen_steps[MAX_THREADS], seen_holds[HOLDERS], seen_churns;
	uint64_t passes = UINT64_MAX, generations = 0, held = 0;
	unsigned int stalled = 0, i;

	for (i = 0; i < settings.threads; i++) {
		uint64_t done = atomic_load(&workers[i].passes);

		passes = done < passes ? done : passes;
		generations += atomic_load(&workers[i].generations);
		stalled += !moved(&workers[i].steps, &seen_steps[i]);
	}
	stalled += !moved(&churns, &seen_churns);
	for (i = 0; i < HOLDERS; i++) {
		stalled += !moved(&holds[i], &seen_holds[i]);
		held += seen_holds[i];
	}
	printf("VERIFIER ok pages=%" PRIu64 " generations=%" PRIu64 " passes=%" PRIu64
	       " errors=0 churns=%" PRIu64 " holds=%" PRIu64 " stalled=%u\n",
	       pages, generations, passes, seen_churns, held, stalled);
	fflush(stdout);
}

static void usage(void)
{
	puts("Usage: verifier [OPTION]... [SIZE]\n"
	     "Fills SIZE (default 32M) of memory with pages whose content it knows, keeps rewriting\n"
	     "and checking them, and holds known values in registers; says so once a second.\n"
	     "\n"
	     "  --threads N     threads that walk the pages (2)\n"
	     "  --rewrite PCT   how many of the pages a pass rewrites (10)\n"
	     "  --cpu PCT       how much of a processor each thread uses (50)\n"
	     "  --seed N        another content (1)\n"
	     "  --report MS     time between reports (1000)\n"
	     "  --count N       exit after N reports (0: never)\n"
	     "  --self-test     corrupt itself on purpose in every way, and notice\n"
	     "\n"
	     "  VERIFIER ok pages=N generations=N passes=N errors=0 churns=N holds=N stalled=N\n"
	     "passes: how often all pages were checked; generations: page contents written;\n"
	     "churns, holds: turns of the mapping and register threads; stalled: threads that made no\n"
	     "step since the last report.\n"
	     "  VERIFIER FAILED addr=0x... kind=KIND page=N expected=0x... found=0x... detail=N\n"
	     "KIND is content, stale (detail: which older generation), foreign (detail: which other\n"
	     "page), zero, checksum, count, register (addr: offset in the register image) or churn;\n"
	     "the exit status is then 1. Status 3 with VERIFIER ERROR: out of memory or threads.");
}

int main(int argc, char **argv)
{
	bool self_test = false;
	const struct option_row options[] = {
		{OPTION_SMALL, "--threads", &settings.threads, 1, MAX_THREADS, NULL},
		{OPTION_SMALL, "--rewrite", &settings.rewrite_percent, 0, 100, NULL},
		OPTION_CPU(&settings.cpu_percent),
		OPTION_SEED(&settings.seed),
		OPTION_REPORT(&settings.report_ns),
		OPTION_COUNT(&settings.count),
		{OPTION_FLAG, "--self-test", &self_test, 0, 0, NULL},
		OPTION_ROWS_END,
	};
	uint64_t pages, done;
	int64_t next;
	int word = options_read(argc, argv, options, usage);

	if (self_test)
		return verify_selftest();
	if (word < argc)
		settings.bytes = need_mebibytes("SIZE", argv[word++],
						MAX_THREADS * VERIFY_PAGE_SIZE, 1ULL << 40);
	if (word != argc)
		usage_error("unexpected '%s'", argv[word]);

	pages = settings.bytes / VERIFY_PAGE_SIZE;
	start_all(pages);
	next = clock_ns(CLOCK_MONOTONIC);
	for (done = 0; settings.count == 0 || done < settings.count; done++) {
		next += settings.report_ns;
		sleep_until_ns(next);
		report(pages);
	}
	return 0;
}
