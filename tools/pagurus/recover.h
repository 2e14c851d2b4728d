/* SPDX-License-Identifier: MIT */
/*
 * Ending a session whose process died: what is done follows from the journal alone. The table and the argument are in
 * docs/one-owner.md.
 *
 * Idempotent: a crash in the middle of a repair is repaired by the next one. One thread.
 */
#ifndef PAGURUS_RECOVER_H
#define PAGURUS_RECOVER_H

#include "common/error.h"
#include "migrate/session.h"
#include "tools/pagurus/connect_link.h"
#include "tools/pagurus/journal.h"

/* A source that never heard may not ask after so long: the target has forgotten by RECOVER_KEEP_STARTED_S. */
#define RECOVER_ASK_S	       (180ll * 24 * 3600)
#define RECOVER_KEEP_STARTED_S (400ll * 24 * 3600)
#define RECOVER_KEEP_S	       (7ll * 24 * 3600)
/* For so long a guest that had begun to suspend is looked after. One that did not stop by then has given it up. */
#define RECOVER_MAY_STOP_S 600

/*
 * Everything that this host can decide alone. *j is what the open journal f says; both are brought up to date. 0: finished, said gets
 * one sentence about what was done. -EAGAIN: only the other host knows (a source after COMMIT): recover_ask(). Others: try later.
 */
int recover_local(struct journal *j, struct journal_file *f, char said[256], struct pgr_error *err);

/*
 * A source after COMMIT: ask the target until it answers or owner->cancel is set. g: the suspended guest, opened already by the
 * session that was committed, or NULL: it is looked for. 0 and said as above; -ECANCELED: still unknown.
 */
int recover_ask(struct journal *j, struct journal_file *f, struct guest_source *g,
		struct connect_link *link, const struct session_owner *owner, char said[256],
		struct pgr_error *err);

/* The user knows better (the target is lost for ever): the guest of a source after COMMIT runs here. Never automatic. */
int recover_run_here(struct journal *j, struct journal_file *f, char said[256],
		     struct pgr_error *err);

/* What a QUERY gets for a finished journal. */
enum pgr_session_state recover_state(const struct journal *j);

/* Whether a finished journal is old enough to be forgotten. */
bool recover_forget(const struct journal *j, int64_t now);

#endif
