// SPDX-License-Identifier: MIT
/*
 * The content is the high half folded onto the low of a linear congruential sequence (Knuth's MMIX
 * multiplier), started at a mix of seed, page and generation: one multiplication a word, because the
 * guest may run under an emulator, and folding is a bijection, so a word says which state it came from.
 *
 * The checksum takes each word with two bijections (xor, odd multiplication) and a rotation: two
 * pages that differ in one word never have the same.
 */
#include "verify_pages.h"

#include <stdbool.h>

#include "prng.h"

#define LCG_FACTOR	6364136223846793005ULL
#define LCG_STEP	1442695040888963407ULL
#define CHECKSUM_FACTOR 0xff51afd7ed558ccdULL
#define CHECKSUM_ROTATE 23

/* How many older generations are tried when a wrong page is explained; only words the message. */
#define STALE_DEPTH 4096

static uint64_t start(uint64_t seed, uint64_t number, uint64_t generation)
{
	return prng_mix(prng_mix(prng_mix(seed + PRNG_GOLDEN) + number) + generation);
}

static uint64_t next_word(uint64_t *state)
{
	*state = *state * LCG_FACTOR + LCG_STEP;
	return *state ^ *state >> 32;
}

static uint64_t checksum_add(uint64_t sum, uint64_t word)
{
	sum = (sum ^ word) * CHECKSUM_FACTOR;
	return sum << CHECKSUM_ROTATE | sum >> (64 - CHECKSUM_ROTATE);
}

uint64_t page_write(uint64_t page[VERIFY_PAGE_WORDS], uint64_t seed, uint64_t number,
		    uint64_t generation)
{
	uint64_t state = start(seed, number, generation), sum = 0;
	size_t i;

	for (i = 0; i < VERIFY_PAGE_WORDS; i++) {
		page[i] = next_word(&state);
		sum = checksum_add(sum, page[i]);
	}
	return sum;
}

size_t page_compare(const uint64_t page[VERIFY_PAGE_WORDS], uint64_t seed, uint64_t number,
		    uint64_t generation)
{
	uint64_t state = start(seed, number, generation);
	size_t i;

	for (i = 0; i < VERIFY_PAGE_WORDS; i++)
		if (page[i] != next_word(&state))
			break;
	return i;
}

uint64_t page_word(uint64_t seed, uint64_t number, uint64_t generation, size_t index)
{
	uint64_t state = start(seed, number, generation), word = 0;
	size_t i;

	for (i = 0; i <= index; i++)
		word = next_word(&state);
	return word;
}

static uint64_t checksum(const uint64_t page[VERIFY_PAGE_WORDS])
{
	uint64_t sum = 0;
	size_t i;

	for (i = 0; i < VERIFY_PAGE_WORDS; i++)
		sum = checksum_add(sum, page[i]);
	return sum;
}

void pages_init(struct page_set *set)
{
	uint64_t i;

	set->generations = set->count;
	for (i = 0; i < set->count; i++) {
		set->table[i].generation = 1;
		set->table[i].checksum = page_write(set->pages[i], set->seed, set->first + i, 1);
	}
}

static bool is_zero(const uint64_t page[VERIFY_PAGE_WORDS])
{
	uint64_t any = 0;
	size_t i;

	for (i = 0; i < VERIFY_PAGE_WORDS; i++)
		any |= page[i];
	return any == 0;
}

/* Says which page the wrong one is instead, if it is one that we know. */
static void explain(const struct page_set *set, uint64_t index, struct finding *finding)
{
	const uint64_t *page = set->pages[index];
	uint64_t generation = set->table[index].generation, number = set->first + index, i;

	if (is_zero(page)) {
		finding->kind = FINDING_ZERO;
		return;
	}
	for (i = 1; i <= STALE_DEPTH && i <= generation; i++) {
		if (page_compare(page, set->seed, number, generation - i) == VERIFY_PAGE_WORDS) {
			finding->kind = FINDING_STALE;
			finding->detail = generation - i;
			return;
		}
	}
	for (i = 0; i < set->count; i++) {
		if (page_compare(page, set->seed, set->first + i, set->table[i].generation) ==
		    VERIFY_PAGE_WORDS) {
			finding->kind = FINDING_FOREIGN;
			finding->detail = set->first + i;
			return;
		}
	}
}

struct finding pages_check(const struct page_set *set, uint64_t index)
{
	const struct page_entry *entry = &set->table[index];
	const uint64_t *page = set->pages[index];
	uint64_t state = start(set->seed, set->first + index, entry->generation);
	uint64_t difference = 0, sum = 0;
	struct finding finding = {.kind = FINDING_NONE};
	size_t i;

	for (i = 0; i < VERIFY_PAGE_WORDS; i++) {
		difference |= page[i] ^ next_word(&state);
		sum = checksum_add(sum, page[i]);
	}
	if (!difference && sum == entry->checksum)
		return finding;

	finding.page = set->first + index;
	i = page_compare(page, set->seed, finding.page, entry->generation);
	if (i == VERIFY_PAGE_WORDS) {
		finding.kind = FINDING_CHECKSUM;
		finding.address = (uintptr_t)&entry->checksum;
		finding.expected = checksum(page);
		finding.found = entry->checksum;
		return finding;
	}
	finding.kind = FINDING_CONTENT;
	finding.address = (uintptr_t)&page[i];
	finding.expected = page_word(set->seed, finding.page, entry->generation, i);
	finding.found = page[i];
	explain(set, index, &finding);
	return finding;
}

void pages_rewrite(struct page_set *set, uint64_t index)
{
	struct page_entry *entry = &set->table[index];

	entry->generation++;
	entry->checksum =
		page_write(set->pages[index], set->seed, set->first + index, entry->generation);
	set->generations++;
}

struct finding pages_check_sum(const struct page_set *set)
{
	struct finding finding = {.kind = FINDING_NONE};
	uint64_t sum = 0, i;

	for (i = 0; i < set->count; i++)
		sum += set->table[i].generation;
	if (sum == set->generations)
		return finding;
	finding.kind = FINDING_COUNT;
	finding.address = (uintptr_t)set->table;
	finding.page = set->first;
	finding.expected = set->generations;
	finding.found = sum;
	return finding;
}
