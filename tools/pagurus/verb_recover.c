/* SPDX-License-Identifier: MIT */
/*
 * `pagurus recover`: what the daemon does by itself, by hand: for a host whose daemon does not run, and for the one question that only a
 * person can answer (the other host is lost for ever).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "tools/pagurus/client.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/recover.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

#define RELEASE_TRIES 100

struct repair {
	struct paths paths;
	bool run_here, yes;
	unsigned done, open, failed;
	struct journal_file *file; /* of the one being repaired */
	struct journal journal;
};

static int on_mark(void *ctx, enum session_mark mark, struct pgr_error *err)
{
	struct repair *r = ctx;

	r->journal.mark = mark;
	return journal_write(r->file, &r->journal, err);
}

static void on_message(void *ctx, enum session_log level, const char *text)
{
	(void)ctx;
	(void)level;
	fprintf(stderr, "pagurus: %s\n", text);
}

static int ask_peer(struct repair *r, char said[256], struct pgr_error *err)
{
	struct session_owner owner = {
		.ctx = r, .mark = on_mark, .message = on_message, .cancel = interrupt_catch()};
	struct connect_link link = {.cancel_fd = -1};
	struct tls_identity *id;
	int rc = tls_identity_load(r->paths.config, &id, err);

	if (rc)
		return rc;
	link.id = id;
	memcpy(link.session, r->journal.session, sizeof(link.session));
	rc = hosts_find(r->paths.config, r->journal.peer, &link.host, err);
	if (!rc)
		rc = recover_ask(&r->journal, r->file, NULL, &link, &owner, said, err);
	tls_identity_free(id);
	return rc;
}

static int repair(void *ctx, const struct journal *found)
{
	struct repair *r = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	char said[256] = "", hex[UNITS_HEX16];
	int rc;

	if (found->done)
		return 0;
	units_hex16(found->session, hex);
	rc = journal_take(r->paths.state, found->session, &r->journal, &r->file, &err);
	if (rc == -EBUSY) {
		printf("%s: a process is at work on it\n", hex);
		r->open++;
		return 0;
	}
	if (!rc)
		rc = recover_local(&r->journal, r->file, said, &err);
	if (rc == -EAGAIN)
		rc = ask_peer(r, said, &err);
	if (rc) {
		fprintf(stderr, "pagurus: session %s: %s\n", hex, err.text);
		r->failed++;
	} else {
		printf("%s: %s\n", hex, said);
		r->done++;
	}
	journal_close(r->file);
	r->file = NULL;
	return 0;
}

static void bad_journal(void *ctx, const char *text)
{
	struct repair *r = ctx;

	r->failed++;
	fprintf(stderr, "pagurus: %s\n", text);
}

/* Take the session from the daemon's worker, which is asking the other host all the time. */
static int take_over(struct repair *r, const char *hex, const uint8_t session[PGR_SESSION_SIZE],
		     struct pgr_error *err)
{
	const struct timespec pause = {.tv_nsec = 100000000};
	json_t *answer = NULL;
	int rc, tries;

	rc = client_ask(r->paths.control, json_pack("{ss ss}", "request", "release", "which", hex),
			&answer, err);
	json_decref(answer);
	if (rc && rc != -ENOENT && rc != -ECONNREFUSED)
		return rc;
	for (tries = 0; tries < RELEASE_TRIES; tries++) {
		rc = journal_take(r->paths.state, session, &r->journal, &r->file, err);
		if (rc != -EBUSY)
			return rc;
		nanosleep(&pause, NULL);
	}
	return pgr_fail(err, -EBUSY, "a process is still at work on session %s: try again", hex);
}

static int run_here(struct repair *r, const char *hex)
{
	uint8_t session[PGR_SESSION_SIZE];
	struct pgr_error err = PGR_ERROR_NONE;
	char said[256] = "";
	int rc = 0;

	if (units_parse_hex16(hex, session))
		rc = pgr_fail(&err, -EINVAL,
			      "\"%s\" is no session number; `pagurus status` shows them", hex);
	if (!rc)
		rc = take_over(r, hex, session, &err);
	if (!rc)
		rc = recover_run_here(&r->journal, r->file, said, &err);
	journal_close(r->file);
	if (rc)
		fprintf(stderr, "pagurus: %s\n", err.text);
	else
		puts(said);
	return rc ? EXIT_FAILED : EXIT_OK;
}

int verb_recover(int argc, char **argv)
{
	struct repair r = {.done = 0};
	const struct option_spec options[] = {
		{"run-here", OPTION_FLAG, &r.run_here, NULL,
		 "let the guest of SESSION run here: only when the other host is lost for ever", 0,
		 0},
		{"other-host-is-lost", OPTION_FLAG, &r.yes, NULL,
		 "you have made sure that the guest does not and will not run there", 0, 0},
		PATHS_OPTION_STATE(&r.paths),
		PATHS_OPTION_CONFIG(&r.paths),
		PATHS_OPTION_CONTROL(&r.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus recover [--run-here --other-host-is-lost SESSION]",
		"Put right what a crash interrupted. The daemon does it by itself; this is for a host without one.",
		options, 0, 1};
	int count, status;

	paths_init(&r.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (r.run_here != (count == 1) || r.run_here != r.yes)
		return options_complain(
			&usage,
			"--run-here, --other-host-is-lost and SESSION go together: two running copies of a guest destroy its disks");
	if (r.run_here)
		return run_here(&r, argv[0]);
	journal_each(r.paths.state, repair, bad_journal, &r);
	if (!r.done && !r.open && !r.failed)
		puts("Nothing was interrupted.");
	return r.failed ? EXIT_FAILED : EXIT_OK;
}
