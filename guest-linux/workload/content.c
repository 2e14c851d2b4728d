// SPDX-License-Identifier: MIT
#include "content.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* 1 MiB a kind: more than a compressor's window, so that pages are not copies of one another. */
#define TEMPLATE_BYTES (1 << 20)
#define STAMP_BYTES    8

const char *const content_names[CONTENT_KINDS + 1] = {"zero",	"text",	 "binary",
						      "random", "mixed", NULL};

static uint8_t *templates[CONTENT_KINDS];

static void random_bytes(uint8_t *to, size_t bytes, struct prng *prng)
{
	uint64_t word;
	size_t part;

	while (bytes) {
		part = bytes < sizeof(word) ? bytes : sizeof(word);
		word = prng_next(prng);
		memcpy(to, &word, part);
		to += part;
		bytes -= part;
	}
}

/* Words of random letters, drawn with the frequencies of natural language (Zipf), and numbers. */
static void make_text(uint8_t *to, struct prng *prng)
{
	enum { WORDS = 4096, LONGEST = 11 };
	static char words[WORDS][LONGEST + 1];
	static const char letters[] = "eeeeeeeeeeeetttttttttaaaaaaaaoooooooiiiiiiinnnnnnn"
				      "sssssshhhhhhrrrrrrddddllllcccuuummmwwffggyyppbbvkxjqz";
	size_t used = 0, i, length;

	for (i = 0; i < WORDS; i++) {
		length = 2 + prng_below(prng, LONGEST - 1);
		words[i][length] = '\0';
		while (length--)
			words[i][length] = letters[prng_below(prng, sizeof(letters) - 1)];
	}
	while (used < TEMPLATE_BYTES) {
		/* A product of uniform numbers prefers small ones, as rank does in language. */
		size_t rank = (size_t)(prng_unit(prng) * prng_unit(prng) * prng_unit(prng) * WORDS);
		const char *space = prng_below(prng, 12) ? " " : prng_below(prng, 4) ? ", " : ".\n";

		length = strlen(words[rank]);
		for (i = 0; i < length && used < TEMPLATE_BYTES; i++)
			to[used++] = (uint8_t)words[rank][i];
		for (i = 0; space[i] && used < TEMPLATE_BYTES; i++)
			to[used++] = (uint8_t)space[i];
	}
}

/* Records of a few shapes: a tag, small numbers, a pointer into a small heap, padding, a hash. */
static void make_binary(uint8_t *to, struct prng *prng)
{
	struct record {
		uint32_t tag;
		uint16_t length, flags;
		uint64_t pointer;
		uint32_t small[2];
		uint64_t hash;
	} record;
	size_t used = 0, part;

	_Static_assert(sizeof(struct record) == 32, "no hidden padding in what is copied");
	while (used < TEMPLATE_BYTES) {
		record.tag = 0x8b480000 | (uint32_t)prng_below(prng, 24);
		record.length = (uint16_t)prng_below(prng, 512);
		record.flags = (uint16_t)(1U << prng_below(prng, 4));
		record.pointer = 0x7f3a5c000000 + 16 * prng_below(prng, 1 << 16);
		record.small[0] = (uint32_t)prng_below(prng, 1000);
		record.small[1] = 0;
		record.hash = prng_below(prng, 2) ? 0 : prng_next(prng);
		part = TEMPLATE_BYTES - used < sizeof(record) ? TEMPLATE_BYTES - used
							      : sizeof(record);
		memcpy(to + used, &record, part);
		used += part;
	}
}

int content_init(uint64_t seed)
{
	struct prng prng = {.state = seed};
	enum content_kind kind;

	for (kind = CONTENT_ZERO; kind < CONTENT_MIXED; kind++) {
		templates[kind] = calloc(1, TEMPLATE_BYTES);
		if (!templates[kind])
			return -ENOMEM;
	}
	make_text(templates[CONTENT_TEXT], &prng);
	make_binary(templates[CONTENT_BINARY], &prng);
	random_bytes(templates[CONTENT_RANDOM], TEMPLATE_BYTES, &prng);
	return 0;
}

/*
 * A cut at a random place makes one page unlike another. For incompressible content that is not enough
 * against a deduplicating or long-window compressor: each word is changed too.
 */
void content_fill(uint8_t *page, size_t bytes, enum content_kind kind, unsigned int random_percent,
		  struct prng *prng)
{
	size_t random = bytes * random_percent / 100, plain = bytes - random, at, i;

	if (kind == CONTENT_MIXED)
		kind = (enum content_kind)prng_below(prng, CONTENT_MIXED);
	if (kind == CONTENT_RANDOM) {
		plain = 0;
		random = bytes;
	}
	if (kind == CONTENT_ZERO) {
		memset(page, 0, plain);
	} else {
		/* Eight-byte steps keep the records of a binary aligned as in memory. */
		at = 8 * prng_below(prng, (TEMPLATE_BYTES - CONTENT_PAGE_SIZE) / 8);
		memcpy(page, templates[kind] + at, plain);
		/* Of many cuts some fall on the same place. */
		random_bytes(page, plain < STAMP_BYTES ? plain : STAMP_BYTES, prng);
	}
	if (random) {
		uint64_t mask = prng_next(prng), word;
		const uint8_t *from = templates[CONTENT_RANDOM] +
				      prng_below(prng, TEMPLATE_BYTES - CONTENT_PAGE_SIZE);

		for (i = 0; i + sizeof(word) <= random; i += sizeof(word)) {
			memcpy(&word, from + i, sizeof(word));
			word ^= mask;
			mask += PRNG_GOLDEN;
			memcpy(page + plain + i, &word, sizeof(word));
		}
		random_bytes(page + plain + i, random - i, prng);
	}
}
