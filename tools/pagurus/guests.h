/* SPDX-License-Identifier: MIT */
/*
 * From what a user or a peer names to a guest object: a Xen guest by name or number, or a simulated one for tests
 * ("sim:memory=64M,rate=20M").
 */
#ifndef PAGURUS_GUESTS_H
#define PAGURUS_GUESTS_H

#include <stdbool.h>

#include <jansson.h>

#include "common/error.h"
#include "migrate/guest.h"
#include "tools/pagurus/journal.h"

/* A guest that runs here. -ENOENT: no such guest; -ENOTSUP: no hypervisor here; -EINVAL: "sim:" options. */
int guests_open_source(const char *name, struct guest_source **out, struct pgr_error *err);

/* What arrives. The kind of guest is known only when its description comes, so the sink is chosen in precheck. */
struct guests_sink_options {
	bool allow_sim;	    /* take simulated guests (tests) */
	bool paused;	    /* start() leaves it paused */
	const char *rename; /* another name for it here, NULL: its own; the caller keeps it valid */
	/* The description as soon as it is known, before anything is made; an error ends the session. NULL: not wanted. */
	int (*seen)(void *ctx, const struct guest_description *d, struct pgr_error *err);
	void *ctx;
};
/* The options are copied. -ENOMEM. */
int guests_open_sink(const struct guests_sink_options *o, struct guest_sink **out,
		     struct pgr_error *err);

/* After a guest was started here: what its life needs from now on (Xen: a keeper process; simulated: it runs for run_ms and is
 * verified, for it ends with this process). -EBADMSG: its memory is wrong. */
int guests_started(struct guest_sink *s, unsigned run_ms, struct pgr_error *err);

/* A guest that stayed: simulated ones prove that they run on and are whole (-EBADMSG, -ESHUTDOWN); others are left alone. */
int guests_check_source(struct guest_source *g, enum pgr_guest_kind kind, struct pgr_error *err);

/*
 * One that may have nobody who looks after it, or somebody: one that stood still and goes on here, which whoever did may have taken for its end; one that was
 * started here, perhaps long ago, and made anew by somebody since.
 */
void guests_look_after(enum pgr_guest_kind kind, const uint8_t uuid[16]);

/* ---- repair after a crash, by what the journal says; each idempotent ---- */

/* The guest runs here as if nothing had been tried; *stood: it stood still before, because of the session. -ENOENT: there is no such guest here any more. */
int guests_make_run(const struct journal *j, bool *stood, struct pgr_error *err);
/* Nothing of a guest that was arriving is left. */
int guests_remove_incoming(const struct journal *j, struct pgr_error *err);
/* Start one that had arrived completely. -ENOENT: it is not here. */
int guests_start_incoming(const struct journal *j, struct pgr_error *err);
/* Remove what is left of one that runs elsewhere or is in its file: only a domain that stands suspended. */
int guests_remove_suspended(const struct journal *j, struct pgr_error *err);
/* The suspended guest of a session whose answer is outstanding, for source_recover(). -ENOENT: it is gone. */
int guests_open_suspended(const struct journal *j, struct guest_source **out,
			  struct pgr_error *err);

/* A guest that lives here, as another might be asked to take it. */
struct guest_here {
	char name[256];
	uint8_t uuid[16];
	uint64_t memory; /* bytes that it has now */
	uint32_t vcpus;
	bool arriving; /* not one yet: it is on its way here */
};
/* Call each() for every guest here, simulated ones excepted; the first non-zero of each() ends it. -ENOTSUP, -EIO. */
int guests_each(int (*each)(void *ctx, const struct guest_here *g), void *ctx,
		struct pgr_error *err);
/* The one that is called so, or has that number. Errors: guests_open_source's. Disturbs no session that moves it. */
int guests_look(const char *name, struct guest_here *g, struct pgr_error *err);

/*
 * Facts about this host for `pagurus host check`: hypervisor, memory, processor. Never fails: says what it could not find out.
 * sim_free: bytes that are free for simulated guests, 0: not said.
 */
json_t *guests_host_facts(bool allow_sim, uint64_t sim_free);

#endif
