// SPDX-License-Identifier: MIT
#include "storage/pv_grants.h"

#include <errno.h>
#include <stdlib.h>

#define BUCKETS 1024u /* a power of two */
#define NONE	UINT16_MAX

struct page {
	void *at;
	uint32_t ref;
	uint32_t users;
	uint16_t next;	       /* in its bucket, or in the list of free places */
	uint16_t older, newer; /* by their last use */
};

struct pv_grants {
	const struct pv_guest_ops *ops;
	void *ctx;
	unsigned count;
	uint16_t bucket[BUCKETS];
	uint16_t free, oldest, newest;
	struct page page[PV_GRANTS_MAX];
};

/* A guest that chooses its references so that all are in one bucket makes only its own disk slow, by PV_GRANTS_MAX steps a page. */
static uint16_t *bucket_of(struct pv_grants *g, uint32_t ref)
{
	return &g->bucket[ref & (BUCKETS - 1)];
}

int pv_grants_new(const struct pv_guest_ops *ops, void *ctx, unsigned max, struct pv_grants **out)
{
	struct pv_grants *g = calloc(1, sizeof(*g));

	if (!g)
		return -ENOMEM;
	g->ops = ops;
	g->ctx = ctx;
	g->free = g->oldest = g->newest = NONE;
	for (unsigned i = 0; i < BUCKETS; i++)
		g->bucket[i] = NONE;
	for (unsigned i = max; i-- > 0;) {
		g->page[i].next = g->free;
		g->free = (uint16_t)i;
	}
	*out = g;
	return 0;
}

static void list_remove(struct pv_grants *g, uint16_t i)
{
	struct page *p = &g->page[i];

	*(p->older == NONE ? &g->oldest : &g->page[p->older].newer) = p->newer;
	*(p->newer == NONE ? &g->newest : &g->page[p->newer].older) = p->older;
}

static void list_add_newest(struct pv_grants *g, uint16_t i)
{
	struct page *p = &g->page[i];

	p->older = g->newest;
	p->newer = NONE;
	*(g->newest == NONE ? &g->oldest : &g->page[g->newest].newer) = i;
	g->newest = i;
}

static void drop(struct pv_grants *g, uint16_t i)
{
	struct page *p = &g->page[i];
	uint16_t *at = bucket_of(g, p->ref);

	while (*at != i)
		at = &g->page[*at].next;
	*at = p->next;
	list_remove(g, i);
	g->ops->unmap(g->ctx, p->at, 1);
	p->next = g->free;
	g->free = i;
	g->count--;
}

/* A free place; NONE: all are in use. */
static uint16_t make_room(struct pv_grants *g)
{
	uint16_t i = g->oldest;

	if (g->free != NONE)
		return g->free;
	while (i != NONE && g->page[i].users)
		i = g->page[i].newer;
	if (i != NONE)
		drop(g, i);
	return g->free;
}

static uint16_t find(struct pv_grants *g, uint32_t ref)
{
	uint16_t i = *bucket_of(g, ref);

	while (i != NONE && g->page[i].ref != ref)
		i = g->page[i].next;
	return i;
}

static uint16_t add(struct pv_grants *g, uint32_t ref)
{
	uint16_t i = make_room(g);
	uint16_t *bucket = bucket_of(g, ref);
	void *at;

	if (i == NONE)
		return NONE;
	at = g->ops->map(g->ctx, &ref, 1);
	if (!at)
		return NONE;
	g->free = g->page[i].next;
	g->page[i] = (struct page){.at = at, .ref = ref, .next = *bucket};
	*bucket = i;
	list_add_newest(g, i);
	g->count++;
	return i;
}

void *pv_grants_get(struct pv_grants *g, uint32_t ref)
{
	uint16_t i = find(g, ref);

	if (i == NONE)
		i = add(g, ref);
	if (i == NONE)
		return NULL;
	list_remove(g, i);
	list_add_newest(g, i);
	g->page[i].users++;
	return g->page[i].at;
}

void pv_grants_put(struct pv_grants *g, uint32_t ref)
{
	g->page[find(g, ref)].users--;
}

unsigned pv_grants_count(const struct pv_grants *g)
{
	return g->count;
}

void pv_grants_free(struct pv_grants *g)
{
	if (!g)
		return;
	while (g->oldest != NONE)
		drop(g, g->oldest);
	free(g);
}
