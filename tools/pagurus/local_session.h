/* SPDX-License-Identifier: MIT */
/*
 * A session that a command runs itself, without the daemon: save and restore. It keeps the same journal, so that a crash in the
 * middle is repaired by the daemon or by `pagurus recover`.
 */
#ifndef PAGURUS_LOCAL_SESSION_H
#define PAGURUS_LOCAL_SESSION_H

#include "migrate/session.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/view.h"

struct local_session {
	const char *state;
	struct view *view;
	struct journal journal; /* filled in by the caller, then begun */
	struct journal_file *file;
	struct session_owner owner;
	int guest_lock;
};

/* A fresh session number; the owner's callbacks; nothing on disk yet. Ctrl-C cancels from now on. */
int local_session_init(struct local_session *l, const char *state, enum journal_role role,
		       struct view *view, struct pgr_error *err);
/* Write the journal for the first time. */
int local_session_begin(struct local_session *l, struct pgr_error *err);
/* Take note of the guest and write the journal, when it exists; holds the guest's lock until the end. */
int local_session_guest(struct local_session *l, const struct guest_info *info,
			struct pgr_error *err);
/* The session is over at that mark: written, unlocked. */
void local_session_end(struct local_session *l, enum session_mark mark);
/* The guest stayed and is not as it was; the repair does the rest. may_stop: as in the journal. */
void local_session_leave(struct local_session *l, bool may_stop);
/* Release everything and leave the journal as it is. */
void local_session_close(struct local_session *l);

#endif
