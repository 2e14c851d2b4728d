// SPDX-License-Identifier: MIT
/*
 * dirtier - writes memory at a known rate, in a known pattern, with known content.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "clock.h"
#include "content.h"
#include "options.h"
#include "parse.h"

/* How long it sleeps when it is ahead of its rate. */
#define SLICE_NS (5 * NS_PER_MS)
/* After a standstill longer than this it does not catch up with the rest. */
#define MOST_DEBT_NS (100 * NS_PER_MS)

#define PAGES_BETWEEN_LOOKS 64

enum pattern {
	PATTERN_SEQ,
	PATTERN_RANDOM,
	PATTERN_HOT,
};

static const char *const pattern_names[] = {"seq", "random", "hot", NULL};

struct settings {
	uint64_t pages, pages_per_s; /* rate 0: as fast as possible */
	enum pattern pattern;
	enum content_kind kind;
	unsigned int random_percent, cpu_percent;
	uint64_t touch; /* bytes written in each page */
	uint64_t seed, count;
	int64_t report_ns;
};

/*
 * Rank r of the hot pattern is drawn with probability proportional to 1/r (Zipf's law): the
 * logarithm of the rank is uniform. An odd factor modulo a power of two spreads the hot pages over
 * memory; a result past the end is taken again, which keeps it a permutation.
 */
static uint64_t hot_page(const struct settings *settings, struct prng *prng)
{
	uint64_t page = (uint64_t)exp2(prng_unit(prng) * log2((double)settings->pages + 1)) - 1;
	uint64_t mask = settings->pages - 1;
	unsigned int shift;

	for (shift = 1; shift < 64; shift <<= 1)
		mask |= mask >> shift;
	do
		page = (page * PRNG_GOLDEN + settings->seed) & mask;
	while (page >= settings->pages);
	return page;
}

static uint64_t next_page(const struct settings *settings, struct prng *prng, uint64_t done)
{
	switch (settings->pattern) {
	case PATTERN_RANDOM:
		return prng_below(prng, settings->pages);
	case PATTERN_HOT:
		return hot_page(settings, prng);
	case PATTERN_SEQ:
	default:
		return done % settings->pages;
	}
}

/* When, after the start, page number @pages may be written. */
static int64_t due_ns(const struct settings *settings, uint64_t pages)
{
	if (settings->pages_per_s == 0)
		return 0;
	return (int64_t)((double)pages * NS_PER_S / (double)settings->pages_per_s);
}

static void report(const struct settings *settings, uint64_t pages, uint64_t pages_before,
		   int64_t elapsed_ns)
{
	double mib = CONTENT_PAGE_SIZE / 1048576.0;
	uint64_t since = pages - pages_before;

	printf("DIRTIER written_mb=%.1f rate_mbs=%.1f pages=%" PRIu64 " laps=%.2f set_mb=%.1f"
	       " pattern=%s content=%s\n",
	       (double)pages * mib, (double)since * mib * NS_PER_S / (double)elapsed_ns, pages,
	       (double)pages / (double)settings->pages, (double)settings->pages * mib,
	       pattern_names[settings->pattern], content_names[settings->kind]);
	fflush(stdout);
}

static void run(const struct settings *settings, uint8_t *memory)
{
	/* Not the sequence that filled the set, or the first lap would write what is there. */
	struct prng prng = {.state = prng_mix(settings->seed + 1)};
	int64_t now = clock_ns(CLOCK_MONOTONIC), start = now, reported = now, since = 0;
	uint64_t pages = 0, pages_reported = 0, reports = 0;
	unsigned int i;

	while (settings->count == 0 || reports < settings->count) {
		if (now - start - due_ns(settings, pages) > MOST_DEBT_NS)
			start = now - due_ns(settings, pages) - MOST_DEBT_NS;
		for (i = 0; i < PAGES_BETWEEN_LOOKS; i++) {
			uint64_t page;

			if (start + due_ns(settings, pages) > now)
				break;
			page = next_page(settings, &prng, pages);
			content_fill(memory + page * CONTENT_PAGE_SIZE, settings->touch,
				     settings->kind, settings->random_percent, &prng);
			pages++;
		}
		if (i < PAGES_BETWEEN_LOOKS)
			sleep_until_ns(now + SLICE_NS);
		else
			clock_share(&since, settings->cpu_percent);
		now = clock_ns(CLOCK_MONOTONIC);
		if (now - reported >= settings->report_ns) {
			report(settings, pages, pages_reported, now - reported);
			pages_reported = pages;
			reported = now;
			reports++;
		}
	}
}

static void usage(void)
{
	puts("Usage: dirtier [OPTION]... [SIZE]\n"
	     "Writes into a working set of SIZE (default 64M), page by page.\n"
	     "\n"
	     "  --rate SIZE       dirtied memory a second, whole pages counted (20M; 0: no limit)\n"
	     "  --pattern P       seq, random, or hot: few pages often, by Zipf's law (seq)\n"
	     "  --content KIND    zero, text, binary, random or mixed (text)\n"
	     "  --random PCT      how much of each page is random bytes instead (0)\n"
	     "  --touch BYTES     bytes written in each page (4096)\n"
	     "  --cpu PCT         how much of a processor it may use (100)\n"
	     "  --seed N          another sequence (1)\n"
	     "  --report MS       time between reports (1000)\n"
	     "  --count N         exit after N reports (0: never)\n"
	     "\n"
	     "A SIZE without a suffix is in MiB; suffixes are K, M and G. The whole set is filled\n"
	     "before the first report.\n"
	     "  DIRTIER start set_mb=F base=0x...\n"
	     "  DIRTIER written_mb=F rate_mbs=F pages=N laps=F set_mb=F pattern=P content=KIND\n"
	     "rate_mbs is since the last report; MB are MiB.");
}

int main(int argc, char **argv)
{
	struct settings settings = {
		.pattern = PATTERN_SEQ,
		.kind = CONTENT_TEXT,
		.cpu_percent = 100,
		.touch = CONTENT_PAGE_SIZE,
		.seed = 1,
		.report_ns = NS_PER_S,
	};
	uint64_t bytes = 64 << 20, rate = 20 << 20, i;
	const struct option_row options[] = {
		{OPTION_BYTES, "--rate", &rate, 0, 1ULL << 40, NULL},
		{OPTION_CHOICE, "--pattern", &settings.pattern, 0, 0, pattern_names},
		{OPTION_CHOICE, "--content", &settings.kind, 0, 0, content_names},
		{OPTION_SMALL, "--random", &settings.random_percent, 0, 100, NULL},
		{OPTION_NUMBER, "--touch", &settings.touch, 1, CONTENT_PAGE_SIZE, NULL},
		OPTION_CPU(&settings.cpu_percent),
		OPTION_SEED(&settings.seed),
		OPTION_REPORT(&settings.report_ns),
		OPTION_COUNT(&settings.count),
		OPTION_ROWS_END,
	};
	struct prng prng;
	uint8_t *memory;
	int next = options_read(argc, argv, options, usage);

	if (next < argc)
		bytes = need_mebibytes("SIZE", argv[next++], CONTENT_PAGE_SIZE, 1ULL << 40);
	if (next != argc)
		usage_error("unexpected '%s'", argv[next]);
	if (rate && rate < CONTENT_PAGE_SIZE)
		usage_error("--rate got %" PRIu64 " bytes, expects 0 or at least a page (4K)",
			    rate);

	settings.pages = bytes / CONTENT_PAGE_SIZE;
	settings.pages_per_s = rate / CONTENT_PAGE_SIZE;
	memory = mmap(NULL, settings.pages * CONTENT_PAGE_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (!settings.pages || memory == MAP_FAILED || content_init(settings.seed)) {
		perror("dirtier: cannot get the working set; give a smaller SIZE");
		return 1;
	}
	prng.state = settings.seed;
	for (i = 0; i < settings.pages; i++)
		content_fill(memory + i * CONTENT_PAGE_SIZE, CONTENT_PAGE_SIZE, settings.kind,
			     settings.random_percent, &prng);
	printf("DIRTIER start set_mb=%.1f base=0x%" PRIxPTR "\n", (double)bytes / 1048576.0,
	       (uintptr_t)memory);
	fflush(stdout);
	run(&settings, memory);
	return 0;
}
