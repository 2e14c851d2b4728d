// SPDX-License-Identifier: MIT
/*
 * Freezing a guest's file systems for a snapshot, by two nodes in the guest's part of Xenstore; guest-linux/freeze/pagurus-freeze.c has the other side. What the
 * guest says there is its own matter: at worst it says that it is frozen and is not.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/blk/keeper_internal.h"

#define FOLDER	    "/local/domain/%u/data/pagurus-freeze/%s"
#define FROZEN_MS   10000u /* at most */
#define PATIENCE_NS 5000000000ull
#define LOOK_NS	    20000000ull

static char *state_of(struct keeper *k)
{
	char path[96];

	snprintf(path, sizeof(path), FOLDER, k->domid, "state");
	return xs_read(k->store, XBT_NULL, path, NULL);
}

/* "frozen ID" and the like. */
static bool is(const char *state, const char *what, const struct freeze *f)
{
	size_t n = strlen(what), length = strlen(f->id);

	return !strncmp(state, what, n) && state[n] == ' ' &&
	       !strncmp(state + n + 1, f->id, length) &&
	       (state[n + 1 + length] == '\0' || state[n + 1 + length] == ' ');
}

bool keeper_freeze(struct keeper *k, struct freeze *f)
{
	uint64_t end = loop_now_ns() + PATIENCE_NS;
	char there[64], wish[64], *state = state_of(k);
	struct store_value v = {.value = wish};
	bool frozen = false, over = !state;

	free(state);
	if (over)
		return false;
	snprintf(f->id, sizeof(f->id), "%d-%llu", (int)getpid(), (unsigned long long)loop_now_ns());
	snprintf(there, sizeof(there), "/local/domain/%u", k->domid);
	snprintf(v.path, sizeof(v.path), FOLDER, k->domid, "wish");
	snprintf(wish, sizeof(wish), "%s %u", f->id, FROZEN_MS);
	if (!keeper_store_write(k, there, &v, 1))
		return false;
	while (!frozen && !over && loop_now_ns() < end) {
		fiber_sleep_until(k->loop, loop_now_ns() + LOOK_NS);
		state = state_of(k);
		frozen = state && is(state, "frozen", f);
		over = !state || is(state, "failed", f);
		free(state);
	}
	if (frozen)
		return true;
	fprintf(stderr, "pagurus-blk: the guest's file systems could not be frozen\n");
	keeper_thaw(k, f);
	return false;
}

bool keeper_thaw(struct keeper *k, const struct freeze *f)
{
	char path[96], *state = state_of(k);
	bool frozen = state && is(state, "frozen", f);

	free(state);
	snprintf(path, sizeof(path), FOLDER, k->domid, "wish");
	xs_rm(k->store, XBT_NULL, path);
	return frozen;
}
