/* SPDX-License-Identifier: MIT */
/*
 * Short-lived workers: what became of a session (QUERY), is this host ready (CHECK), repair after a crash.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/check.h"
#include "tools/pagurus/connect.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/recover.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/worker.h"

/* How long a question waits for the process that is at work on the session; the source asks again anyway. */
#define BUSY_TRIES    50u
#define BUSY_PAUSE_NS 100000000l

/* A session that this host never had, or forgot before it began: from now on it can never start here. */
static int bury(struct worker *w, const char *peer, struct pgr_error *err)
{
	struct journal *j = &w->journal;
	int rc = journal_trim(w->paths.state, peer, err);

	if (rc)
		return rc;
	*j = (struct journal){.role = JOURNAL_TARGET, .mark = SESSION_MARK_RETURNED, .done = true};
	memcpy(j->session, w->session, sizeof(j->session));
	snprintf(j->peer, sizeof(j->peer), "%s", peer);
	return journal_create(w->paths.state, j, &w->journal_file, err);
}

static int settle(struct worker *w, const char *peer, struct pgr_error *err)
{
	struct timespec pause = {.tv_nsec = BUSY_PAUSE_NS};
	char said[256] = "";
	unsigned tries;
	int rc;

	for (tries = 0; tries < BUSY_TRIES; tries++) {
		rc = journal_take(w->paths.state, w->session, &w->journal, &w->journal_file, err);
		if (rc == -ENOENT)
			return bury(w, peer, err);
		if (rc != -EBUSY)
			break;
		nanosleep(&pause, NULL);
	}
	if (rc)
		return rc;
	if (w->journal.role != JOURNAL_TARGET || strcmp(w->journal.peer, peer))
		return pgr_fail(err, -EACCES, "host %s asked about a session that is not its own",
				peer);
	rc = recover_local(&w->journal, w->journal_file, said, err);
	if (!rc && said[0])
		worker_say(w, SESSION_INFO, "%s", said);
	return rc;
}

/* Authenticate whoever asks, answer, report. */
static int serve(struct worker *w, int (*answer)(struct worker *w, struct channel *c,
						 const char *peer, struct pgr_error *err))
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct channel *c = NULL;
	char peer[256];
	int rc;

	rc = connect_from(w->first.fd, w->id, NULL, peer, &c, &err);
	if (!rc) {
		worker_say_peer(w, peer);
		rc = answer(w, c, peer, &err);
	}
	if (c)
		c->ops->close(c);
	journal_close(w->journal_file);
	worker_send(w, report_result(NULL, rc, err.text), true);
	return report_exit(NULL, rc);
}

static int answer_query(struct worker *w, struct channel *c, const char *peer,
			struct pgr_error *err)
{
	int rc = settle(w, peer, err);

	return rc ? rc : target_answer(c, w->session, recover_state(&w->journal), err);
}

static int answer_check(struct worker *w, struct channel *c, const char *peer,
			struct pgr_error *err)
{
	(void)peer;
	return check_answer(c, w->allow_sim, message_number(w->request, "sim_free"), err);
}

int worker_answer(struct worker *w)
{
	return serve(w, answer_query);
}

int worker_check(struct worker *w)
{
	return serve(w, answer_check);
}

int worker_recover(struct worker *w)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct connect_link link = {.id = w->id, .cancel_fd = w->cancel_fd};
	char said[256] = "";
	int rc;

	rc = journal_take(w->paths.state, w->session, &w->journal, &w->journal_file, &err);
	if (!rc)
		rc = recover_local(&w->journal, w->journal_file, said, &err);
	if (rc == -EAGAIN) {
		struct journal j = w->journal;

		memcpy(link.session, w->session, sizeof(link.session));
		rc = hosts_find(w->paths.config, j.peer, &link.host, &err);
		if (!rc)
			rc = recover_ask(&j, w->journal_file, NULL, &link, &w->owner, said, &err);
	}
	if (!rc && said[0])
		worker_say(w, SESSION_INFO, "recovered: %s", said);
	worker_send(w, report_result(NULL, rc, err.text), true);
	journal_close(w->journal_file);
	return report_exit(NULL, rc);
}
