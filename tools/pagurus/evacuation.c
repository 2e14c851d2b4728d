/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/evacuation.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Beside its memory a guest needs page tables, shared pages and what the hypervisor keeps of it. */
#define OVERHEAD_SHARE 64u
#define OVERHEAD_BYTES (8u << 20)
#define MOST_SESSIONS  2u

int evacuation_add(struct evacuation *e, const char *asked, const struct guest_here *g,
		   struct pgr_error *err)
{
	struct evacuee *more = realloc(e->guests, (e->nr_guests + 1) * sizeof(*more));

	if (!more)
		return pgr_fail(err, -ENOMEM, "no memory for %u guests", e->nr_guests + 1);
	e->guests = more;
	more += e->nr_guests++;
	*more = (struct evacuee){.guest = *g, .host = -1};
	snprintf(more->asked, sizeof(more->asked), "%s", asked);
	return 0;
}

static int compare(const void *a, const void *b)
{
	const struct evacuee *x = a, *y = b;

	if (x->guest.memory != y->guest.memory)
		return x->guest.memory < y->guest.memory ? 1 : -1;
	return strcmp(x->guest.name, y->guest.name);
}

void evacuation_sort(struct evacuation *e)
{
	if (e->nr_guests)
		qsort(e->guests, e->nr_guests, sizeof(e->guests[0]), compare);
}

static uint64_t need(const struct evacuee *g)
{
	return g->guest.memory + g->guest.memory / OVERHEAD_SHARE + OVERHEAD_BYTES;
}

static bool could_take(const struct evacuation *e, unsigned host, const struct evacuee *g)
{
	const struct refuge *h = &e->hosts[host];

	return !(g->tried & (1u << host)) && (!h->known || h->left >= need(g));
}

bool evacuation_place(struct evacuation *e, struct evacuee *g)
{
	g->host = -1;
	if (g->failed >= MOST_SESSIONS)
		return false;
	for (unsigned i = 0; i < e->nr_hosts; i++)
		if (could_take(e, i, g) &&
		    (g->host < 0 || e->hosts[i].left > e->hosts[g->host].left))
			g->host = (int)i;
	if (g->host >= 0 && e->hosts[g->host].known)
		e->hosts[g->host].left -= need(g);
	return g->host >= 0;
}

void evacuation_displace(struct evacuation *e, struct evacuee *g)
{
	if (e->hosts[g->host].known)
		e->hosts[g->host].left += need(g);
	g->tried |= 1u << g->host;
	g->host = -1;
}

unsigned evacuation_count(const struct evacuation *e, enum evacuee_state state)
{
	unsigned count = 0;

	for (unsigned i = 0; i < e->nr_guests; i++)
		count += e->guests[i].state == state;
	return count;
}

enum pgr_exit evacuation_exit(const struct evacuation *e)
{
	if (evacuation_count(e, EVACUEE_UNKNOWN))
		return EXIT_UNKNOWN;
	if (e->interrupted)
		return EXIT_CANCELLED;
	return evacuation_count(e, EVACUEE_MOVED) == e->nr_guests ? EXIT_OK : EXIT_FAILED;
}

void evacuation_free(struct evacuation *e)
{
	for (unsigned i = 0; i < e->nr_guests; i++) {
		json_decref(e->guests[i].progress);
		json_decref(e->guests[i].result);
	}
	free(e->guests);
	e->guests = NULL;
	e->nr_guests = 0;
}
