// SPDX-License-Identifier: MIT
/*
 * The cache of sent pages: see encode_cache.h.
 *
 * Slots hold pages; an index of twice as many entries (a power of two) finds them by pfn, with
 * linear probing and removal by shifting back, so there are no tombstones and a look-up ends at the
 * first empty entry. Eviction is a clock: a hand goes over the slots, a page that was used since
 * the hand's last visit is spared once. A page that is inserted counts as not used: pages that are
 * sent only once go before those that were sent again.
 */
#include "migrate/encode_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "protocol-spec/stream.h"

#define NO_SLOT	  UINT32_MAX
#define NO_PFN	  UINT64_MAX
#define HUGE_PAGE ((size_t)2 << 20)
/* An index entry is 4 bytes; there are 2 to 4 for a slot. */
#define SLOT_COST (PGR_PAGE_SIZE + sizeof(uint64_t) + 1 + 4 * sizeof(uint32_t))

struct encode_cache {
	uint8_t *pages;
	uint64_t *pfn; /* of each slot, NO_PFN: free */
	uint8_t *used; /* since the hand's last visit */
	uint32_t *index;
	uint32_t mask;	 /* entries of the index - 1 */
	uint32_t slots;	 /* in all */
	uint32_t filled; /* slots below were used at some time */
	uint32_t
		free; /* head of the list of freed slots, linked through their pages; NO_SLOT: none */
	uint32_t hand;
};

static uint8_t *page_of(const struct encode_cache *c, uint32_t slot)
{
	return c->pages + (size_t)slot * PGR_PAGE_SIZE;
}

/* Neighbouring pfns are sent together: a multiplication spreads them, the high bits choose. */
static uint32_t home(const struct encode_cache *c, uint64_t pfn)
{
	return (uint32_t)(pfn * 0x9e3779b97f4a7c15u >> 32) & c->mask;
}

int encode_cache_create(size_t bytes, struct encode_cache **out)
{
	size_t slots = bytes / SLOT_COST;
	uint32_t entries = 2;
	struct encode_cache *c;

	*out = NULL;
	if (!slots)
		return 0;
	if (slots > PGR_PFNS_MAX)
		slots = PGR_PFNS_MAX;
	while (entries < 2 * slots)
		entries *= 2;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->slots = (uint32_t)slots;
	c->mask = entries - 1;
	c->pages = aligned_alloc(HUGE_PAGE,
				 (slots * PGR_PAGE_SIZE + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
	c->pfn = malloc(slots * sizeof(*c->pfn));
	c->used = calloc(slots, 1);
	c->index = malloc(entries * sizeof(*c->index));
	if (!c->pages || !c->pfn || !c->used || !c->index) {
		encode_cache_free(c);
		return -ENOMEM;
	}
	/* It is filled within the first seconds, and a fault for each page costs more than the copies. */
	(void)madvise(c->pages, slots * PGR_PAGE_SIZE, MADV_HUGEPAGE);
	encode_cache_clear(c);
	*out = c;
	return 0;
}

void encode_cache_free(struct encode_cache *c)
{
	if (!c)
		return;
	free(c->pages);
	free(c->pfn);
	free(c->used);
	free(c->index);
	free(c);
}

void encode_cache_clear(struct encode_cache *c)
{
	memset(c->index, 0xff, ((size_t)c->mask + 1) * sizeof(*c->index));
	c->filled = 0;
	c->free = NO_SLOT;
	c->hand = 0;
}

/* The index entry that holds pfn, or the empty one where it would go. */
static uint32_t entry_of(const struct encode_cache *c, uint64_t pfn)
{
	uint32_t i = home(c, pfn);

	while (c->index[i] != NO_SLOT && c->pfn[c->index[i]] != pfn)
		i = (i + 1) & c->mask;
	return i;
}

uint8_t *encode_cache_find(struct encode_cache *c, uint64_t pfn)
{
	uint32_t slot = c->index[entry_of(c, pfn)];

	if (slot == NO_SLOT)
		return NULL;
	c->used[slot] = 1;
	return page_of(c, slot);
}

/* Empty an entry and close the gap: each follower that may move towards its home does. */
static void unlink_entry(struct encode_cache *c, uint32_t gap)
{
	for (uint32_t i = (gap + 1) & c->mask; c->index[i] != NO_SLOT; i = (i + 1) & c->mask) {
		uint32_t h = home(c, c->pfn[c->index[i]]);

		if (((i - h) & c->mask) >= ((i - gap) & c->mask)) {
			c->index[gap] = c->index[i];
			gap = i;
		}
	}
	c->index[gap] = NO_SLOT;
}

static uint32_t evict_slot(struct encode_cache *c)
{
	for (;;) {
		uint32_t slot = c->hand;

		c->hand = slot + 1 == c->slots ? 0 : slot + 1;
		if (!c->used[slot]) {
			unlink_entry(c, entry_of(c, c->pfn[slot]));
			return slot;
		}
		c->used[slot] = 0;
	}
}

uint8_t *encode_cache_insert(struct encode_cache *c, uint64_t pfn, bool evict)
{
	uint32_t slot;

	if (c->free != NO_SLOT) {
		slot = c->free;
		memcpy(&c->free, page_of(c, slot), sizeof(c->free));
	} else if (c->filled < c->slots) {
		slot = c->filled++;
	} else if (evict) {
		slot = evict_slot(c);
	} else {
		return NULL;
	}
	c->pfn[slot] = pfn;
	c->used[slot] = 0;
	c->index[entry_of(c, pfn)] = slot;
	return page_of(c, slot);
}

void encode_cache_remove(struct encode_cache *c, uint64_t pfn)
{
	uint32_t entry = entry_of(c, pfn), slot = c->index[entry];

	if (slot == NO_SLOT)
		return;
	unlink_entry(c, entry);
	memcpy(page_of(c, slot), &c->free, sizeof(c->free));
	c->pfn[slot] = NO_PFN;
	c->used[slot] = 0;
	c->free = slot;
}
