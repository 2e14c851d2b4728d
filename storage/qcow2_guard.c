// SPDX-License-Identifier: MIT
/* A hash table with open addressing; at most half of it is used. Places hold number + 1, 0 when they are empty. */
#include "storage/qcow2_guard.h"

#include <errno.h>
#include <stdlib.h>

#define FIRST_SIZE 64u
#define REMOVED	   UINT64_MAX

/* Where a number is, or the empty place where it would be. */
static size_t place_of(const struct qcow2_guard *g, uint64_t cluster)
{
	size_t at = (size_t)((cluster * 0x9e3779b97f4a7c15ull) >> 20) & (g->size - 1);

	while (g->place[at] && g->place[at] != cluster + 1)
		at = (at + 1) & (g->size - 1);
	return at;
}

static int grow(struct qcow2_guard *g)
{
	struct qcow2_guard larger = {.size = g->size ? g->size * 2 : FIRST_SIZE};

	larger.place = calloc(larger.size, sizeof(*larger.place));
	if (!larger.place)
		return -ENOMEM;
	for (size_t i = 0; i < g->size; i++)
		if (g->place[i] && g->place[i] != REMOVED) {
			larger.place[place_of(&larger, g->place[i] - 1)] = g->place[i];
			larger.used++;
		}
	free(g->place);
	*g = larger;
	return 0;
}

int qcow2_guard_add(struct qcow2_guard *g, uint64_t cluster)
{
	size_t at;

	if (2 * g->used >= g->size && grow(g))
		return -ENOMEM;
	at = place_of(g, cluster);
	if (g->place[at])
		return -EEXIST;
	g->place[at] = cluster + 1;
	g->used++;
	return 0;
}

bool qcow2_guard_has(const struct qcow2_guard *g, uint64_t cluster)
{
	return g->size && g->place[place_of(g, cluster)];
}

void qcow2_guard_remove(struct qcow2_guard *g, uint64_t cluster)
{
	size_t at = g->size ? place_of(g, cluster) : 0;

	if (g->size && g->place[at])
		g->place[at] = REMOVED;
}

void qcow2_guard_free(struct qcow2_guard *g)
{
	free(g->place);
	*g = (struct qcow2_guard){.place = NULL};
}
