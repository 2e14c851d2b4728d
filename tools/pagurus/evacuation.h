/* SPDX-License-Identifier: MIT */
/*
 * Emptying a host: which guest goes where (evacuation.c), moving them (evacuation_run.c), and what a person or a program sees of it
 * (evacuation_show.c). verb_evacuate.c finds out which guests and hosts there are. One thread.
 */
#ifndef PAGURUS_EVACUATION_H
#define PAGURUS_EVACUATION_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

#include "tools/pagurus/guests.h"
#include "tools/pagurus/move_request.h"
#include "tools/pagurus/verbs.h"

/* Hosts are bits of a word; moves have connections to the daemon, which serves 32. */
#define EVACUATION_HOSTS_MAX 32u
#define EVACUATION_MOVES_MAX 16u

enum evacuee_state {
	EVACUEE_WAITS,	/* for its turn */
	EVACUEE_LEAVES, /* by a session that is not ours */
	EVACUEE_MOVES,	/* by ours */
	EVACUEE_MOVED,
	EVACUEE_STAYS,	 /* no host takes it, or it failed: text says why */
	EVACUEE_UNKNOWN, /* handed over, and the other host has not answered */
};

struct evacuee {
	char asked[256]; /* what the daemon knows it by */
	struct guest_here guest;
	enum evacuee_state state;
	int host;	 /* where it goes or went: an index, -1: nowhere */
	uint32_t tried;	 /* hosts that refused it or failed, by bit */
	unsigned failed; /* sessions that failed, not refusals */
	char text[600];
	json_t *progress, *result; /* of its session, NULL: none yet */
};

struct refuge {
	char name[256];
	uint64_t left; /* bytes of memory that no guest of the plan has been given */
	bool known;    /* left holds; else its own precheck is the judge */
};

struct evacuation {
	struct evacuee *guests;
	unsigned nr_guests;
	struct refuge hosts[EVACUATION_HOSTS_MAX];
	unsigned nr_hosts;
	const char *control; /* the daemon's socket */
	struct move_request request;
	unsigned at_once;
	bool json, dry_run, interrupted;
	/* ---- evacuation_show.c ---- */
	bool drawn;
	uint64_t shown_ms;
};

/* ---- evacuation.c ---- */

/* Add a guest. -ENOMEM. */
int evacuation_add(struct evacuation *e, const char *asked, const struct guest_here *g,
		   struct pgr_error *err);
/* The largest first: it takes longest and is the hardest to find a place for. */
void evacuation_sort(struct evacuation *e);
/* Give it a place with the host that has most memory left, and take that memory from it. False: no host that has not been tried can. */
bool evacuation_place(struct evacuation *e, struct evacuee *g);
/* That host does not take it: give the memory back. */
void evacuation_displace(struct evacuation *e, struct evacuee *g);
unsigned evacuation_count(const struct evacuation *e, enum evacuee_state state);
/* The exit status that fits to where the guests are now. */
enum pgr_exit evacuation_exit(const struct evacuation *e);
void evacuation_free(struct evacuation *e);

/* ---- evacuation_run.c ---- */

/* Which of them other sessions move already. -errno: the daemon does not answer. */
int evacuation_look(struct evacuation *e, struct pgr_error *err);
/* Place every guest that waits, each where the host says that it would be taken. Touches no guest. -errno: the daemon does not answer. */
int evacuation_plan(struct evacuation *e, struct pgr_error *err);
/* Move them; returns when none waits, leaves or moves any more. SIGINT and SIGTERM cancel the moves and wait for what becomes of them. */
int evacuation_run(struct evacuation *e, struct pgr_error *err);

/* ---- evacuation_show.c ---- */

void evacuation_show_plan(struct evacuation *e);
/* A line about one guest (NULL: about all). */
void evacuation_note(struct evacuation *e, const struct evacuee *g, const char *text);
/* How far the moves are; as often as one likes. */
void evacuation_show_progress(struct evacuation *e);
/* This guest's session said this. */
void evacuation_show_message(struct evacuation *e, const struct evacuee *g, const json_t *message);
/* This guest is where it will be. */
void evacuation_show_end(struct evacuation *e, const struct evacuee *g);
void evacuation_show_report(struct evacuation *e);

#endif
