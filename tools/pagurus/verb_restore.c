/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pagurus/guests.h"
#include "tools/pagurus/local_session.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/verbs.h"

struct restore {
	struct paths paths;
	const char *name;
	uint64_t sim_run_ms;
	bool paused, json, allow_sim;
	struct view view;
	struct local_session session;
	struct guest_sink *sink;
	struct channel *file;
	struct session_result res;
};

static int seen(void *ctx, const struct guest_description *d, struct pgr_error *err)
{
	struct restore *r = ctx;
	struct guest_info info = d->info;

	if (r->name)
		snprintf(info.name, sizeof(info.name), "%s", r->name);
	snprintf(r->view.guest, sizeof(r->view.guest), "%s", info.name);
	return local_session_guest(&r->session, &info, err);
}

static int run(struct restore *r, const char *path, struct pgr_error *err)
{
	struct guests_sink_options options = {.allow_sim = r->allow_sim,
					      .paused = r->paused,
					      .rename = r->name,
					      .seen = seen,
					      .ctx = r};
	int rc;

	rc = local_session_init(&r->session, r->paths.state, JOURNAL_RESTORE, &r->view, err);
	if (!rc)
		rc = channel_file_open(path, &r->file, err);
	if (rc)
		return rc;
	if (!realpath(path, r->session.journal.file))
		return pgr_fail_errno(err, -errno, "cannot find %s", path);
	rc = guests_open_sink(&options, &r->sink, err);
	if (!rc)
		rc = local_session_begin(&r->session, err);
	if (!rc)
		rc = target_restore(r->sink, r->file, true, &r->session.owner, &r->res, err);
	return rc;
}

/* Leaves nothing behind, or an open journal by which somebody else will. */
static void undo(struct restore *r)
{
	struct pgr_error why = PGR_ERROR_NONE;

	if (r->sink && r->sink->ops->destroy(r->sink, &why)) {
		view_note(&r->view, why.text);
		local_session_close(&r->session);
		return;
	}
	local_session_end(&r->session, SESSION_MARK_RETURNED);
}

int verb_restore(int argc, char **argv)
{
	static struct restore r = {.sim_run_ms = 1000, .session = {.guest_lock = -1}};
	const struct option_spec options[] = {
		{"paused", OPTION_FLAG, &r.paused, NULL,
		 "leave it paused (`xl unpause` lets it run)", 0, 0},
		{"name", OPTION_STRING, &r.name, "NAME", "another name for it here", 0, 0},
		{"allow-sim", OPTION_FLAG, &r.allow_sim, NULL,
		 "also restore simulated guests (for tests)", 0, 0},
		{"sim-run", OPTION_MS, &r.sim_run_ms, "TIME",
		 "how long a simulated guest runs before it is verified and ended", 0, 3600000},
		{"json", OPTION_FLAG, &r.json, NULL, "one JSON object a line", 0, 0},
		PATHS_OPTION_STATE(&r.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus restore [OPTIONS] FILE",
		"Bring back the guest that `pagurus save` put into FILE. The file stays. Ctrl-C cancels: nothing is left.",
		options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, rc;
	json_t *result;

	paths_init(&r.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	view_init(&r.view, r.json, "restore", "?", argv[0]);
	rc = run(&r, argv[0], &err);
	status = report_exit(&r.res, rc);
	if (rc)
		undo(&r);
	else
		local_session_end(&r.session, SESSION_MARK_MOVED);
	result = report_result(&r.res, rc, err.text);
	view_show(&r.view, result);
	json_decref(result);
	/* A paused one is watched as well, for the day it is let go; a simulated one cannot outlive this process. */
	if (!rc && !(r.paused && r.session.journal.kind == PGR_GUEST_SIM) &&
	    guests_started(r.sink, (unsigned)r.sim_run_ms, &err)) {
		view_note(&r.view, err.text);
		status = EXIT_FAILED;
	}
	if (r.sink)
		r.sink->ops->close(r.sink);
	if (r.file)
		r.file->ops->close(r.file);
	return status;
}
