/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/local_session.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "tools/pagurus/fault.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/report.h"

static void show(struct local_session *l, json_t *message)
{
	view_show(l->view, message);
	json_decref(message);
}

static void on_progress(void *ctx, const struct session_progress *p)
{
	show(ctx, report_progress(p));
}

static void on_message(void *ctx, enum session_log level, const char *text)
{
	show(ctx, report_message(level, text));
}

static int on_mark(void *ctx, enum session_mark mark, struct pgr_error *err)
{
	struct local_session *l = ctx;
	int rc;

	journal_fault(l->journal.role, mark, false);
	l->journal.mark = mark;
	rc = l->file ? journal_write(l->file, &l->journal, err) : 0;
	if (!rc)
		journal_fault(l->journal.role, mark, true);
	return rc;
}

int local_session_init(struct local_session *l, const char *state, enum journal_role role,
		       struct view *view, struct pgr_error *err)
{
	memset(l, 0, sizeof(*l));
	l->guest_lock = -1;
	l->state = state;
	l->view = view;
	l->journal.role = role;
	l->journal.mark = SESSION_MARK_BEGIN;
	l->owner = (struct session_owner){
		.ctx = l,
		.progress = on_progress,
		.message = on_message,
		.mark = on_mark,
		.cancel = interrupt_catch(),
	};
	if (getrandom(l->journal.session, PGR_SESSION_SIZE, 0) != PGR_SESSION_SIZE)
		return pgr_fail(err, -EIO, "no random numbers for a session");
	return 0;
}

int local_session_begin(struct local_session *l, struct pgr_error *err)
{
	return journal_create(l->state, &l->journal, &l->file, err);
}

int local_session_guest(struct local_session *l, const struct guest_info *info,
			struct pgr_error *err)
{
	int rc;

	if (l->guest_lock < 0) {
		rc = journal_lock_guest(l->state, info->uuid, l->journal.session, &l->guest_lock,
					err);
		if (rc)
			return rc;
	}
	journal_note_guest(&l->journal, info);
	return l->file ? journal_write(l->file, &l->journal, err) : 0;
}

void local_session_end(struct local_session *l, enum session_mark mark)
{
	struct pgr_error err = PGR_ERROR_NONE;

	l->journal.mark = mark;
	l->journal.done = true;
	if (l->file && journal_write(l->file, &l->journal, &err))
		show(l, report_message(SESSION_WARNING, err.text));
	local_session_close(l);
}

void local_session_leave(struct local_session *l, bool may_stop)
{
	struct pgr_error err = PGR_ERROR_NONE;

	l->journal.may_stop = may_stop;
	if (may_stop && l->file && journal_write(l->file, &l->journal, &err))
		show(l, report_message(SESSION_WARNING, err.text));
	local_session_close(l);
}

void local_session_close(struct local_session *l)
{
	journal_close(l->file);
	l->file = NULL;
	if (l->guest_lock >= 0)
		close(l->guest_lock);
	l->guest_lock = -1;
}
