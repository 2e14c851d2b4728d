/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pagurus/fault.h"
#include "tools/pagurus/guests.h"
#include "tools/pagurus/local_session.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/verbs.h"

struct save {
	struct paths paths;
	const char *compress;
	enum encode_method method;
	uint64_t bandwidth, downtime_ms, max_rounds;
	bool overwrite, keep, live, json;
	const char *guest_name;
	char path[PATH_MAX];
	struct view view;
	struct local_session session;
	struct guest_source *guest;
	struct guest_info info;
	struct channel *file;
	struct session_result res;
};

/* The journal needs a name that holds in any folder; the file need not exist yet, its folder must. */
static int absolute(const char *path, char out[PATH_MAX], struct pgr_error *err)
{
	char copy[PATH_MAX], folder[PATH_MAX], *slash;
	const char *name = path;

	if (!path[0] || snprintf(copy, sizeof(copy), "%s", path) >= (int)sizeof(copy))
		return pgr_fail(err, -ENAMETOOLONG, "\"%s\" is no usable file name", path);
	slash = strrchr(copy, '/');
	if (slash) {
		name = path + (slash - copy) + 1;
		*(slash == copy ? slash + 1 : slash) = 0;
	}
	if (!realpath(slash ? copy : ".", folder))
		return pgr_fail_errno(err, -errno, "cannot find the folder of %s", path);
	if (snprintf(out, PATH_MAX, "%s/%s", strcmp(folder, "/") ? folder : "", name) >= PATH_MAX)
		return pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long", path);
	return 0;
}

static int open_guest(struct save *s, struct pgr_error *err)
{
	struct guest_description d = {.config = NULL};
	int rc = guests_open_source(s->guest_name, &s->guest, err);

	if (!rc)
		rc = s->guest->ops->describe(s->guest, &d, err);
	if (!rc && s->live && !d.info.can_log_dirty)
		rc = pgr_fail(
			err, -EOPNOTSUPP,
			"%s: so it cannot be saved while it runs; without --live it stands still meanwhile",
			d.info.why_not);
	s->info = d.info;
	if (!rc)
		rc = local_session_guest(&s->session, &d.info, err);
	guest_description_free(&d);
	return rc;
}

/* The file's final name is the point of no return: recover.c decides by it. */
static int finish(struct save *s, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	int rc = channel_file_commit(s->file, err);

	if (rc) {
		if (!s->keep && s->guest->ops->resume(s->guest, &why)) {
			view_note(&s->view, why.text);
			s->res.unfinished = true;
		}
		s->res.outcome = SESSION_STAYED;
		return rc;
	}
	fault_point("save-committed");
	if (s->keep)
		return 0;
	rc = s->session.owner.mark(s->session.owner.ctx, SESSION_MARK_MOVED, &why);
	if (!rc)
		rc = s->guest->ops->destroy(s->guest, &why);
	if (rc) {
		/* The journal is not closed: what is left is removed later. */
		view_note(&s->view, why.text);
		local_session_close(&s->session);
	}
	return 0;
}

static int run(struct save *s, const char *path, struct pgr_error *err)
{
	struct source_params p = {
		.channels = 1, .bandwidth = s->bandwidth, .keep = s->keep, .stop_first = !s->live};
	int rc = absolute(path, s->path, err);

	if (!rc)
		rc = local_session_init(&s->session, s->paths.state, JOURNAL_SAVE, &s->view, err);
	if (rc)
		return rc;
	memcpy(p.session, s->session.journal.session, sizeof(p.session));
	p.encode.method = s->method;
	p.policy.min_speed = 100;
	p.policy.downtime_ns = s->downtime_ms * 1000000;
	p.policy.max_rounds = (unsigned)s->max_rounds;
	s->session.journal.keep = s->keep;
	memcpy(s->session.journal.file, s->path, sizeof(s->path));
	rc = open_guest(s, err);
	if (!rc)
		rc = channel_file_create(s->path, s->overwrite, &s->file, err);
	if (rc == -EEXIST && !s->file)
		pgr_fail(err, rc, "%s exists: choose another name, or say --overwrite", s->path);
	if (!rc)
		rc = local_session_begin(&s->session, err);
	if (!rc)
		rc = source_save(s->guest, s->file, &p, &s->session.owner, &s->res, err);
	if (!rc)
		rc = finish(s, err);
	return rc;
}

int verb_save(int argc, char **argv)
{
	static struct save s = {
		.compress = "lz4", .downtime_ms = 300, .session = {.guest_lock = -1}};
	const struct option_spec options[] = {
		{"overwrite", OPTION_FLAG, &s.overwrite, NULL, "replace FILE when it is there", 0,
		 0},
		{"keep-running", OPTION_FLAG, &s.keep, NULL, "let the guest go on afterwards", 0,
		 0},
		{"live", OPTION_FLAG, &s.live, NULL,
		 "write while it runs: it stands still only for the last of it, and goes on", 0, 0},
		{"downtime", OPTION_MS, &s.downtime_ms, "TIME",
		 "with --live: longest stop (default 300ms; 0: as short as possible)", 0, 86400000},
		{"max-rounds", OPTION_COUNT, &s.max_rounds, "N",
		 "with --live: give up after so many rounds (default 30)", 0, 1000},
		{"compress", OPTION_STRING, &s.compress, "METHOD", "lz4 (default), zstd or none", 0,
		 0},
		{"bandwidth", OPTION_RATE, &s.bandwidth, "RATE",
		 "most to write a second, as 100M (default: no limit)", 0, 0},
		{"json", OPTION_FLAG, &s.json, NULL, "one JSON object a line", 0, 0},
		PATHS_OPTION_STATE(&s.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus save [OPTIONS] GUEST FILE",
		"Stop a guest (or not: --live) and put it into a file, from which `pagurus restore` brings it back. Ctrl-C cancels: the guest runs on.",
		options, 2, 2};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, rc;
	json_t *result;

	paths_init(&s.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (!encode_method_parse(s.compress, &s.method))
		return options_complain(&usage, "--compress %s: lz4, zstd or none", s.compress);
	s.keep |= s.live;
	s.guest_name = argv[0];
	view_init(&s.view, s.json, "save", argv[0], argv[1]);
	rc = run(&s, argv[1], &err);
	status = report_exit(&s.res, rc);
	/* A guest that could not be resumed is the repair's. */
	if (s.res.unfinished)
		local_session_leave(&s.session, s.res.may_stop);
	else
		local_session_end(&s.session,
				  rc || s.keep ? SESSION_MARK_RETURNED : SESSION_MARK_MOVED);
	if ((rc || s.keep) && s.res.stop.suspend && !s.res.unfinished)
		guests_look_after(s.info.kind, s.info.uuid);
	if (s.file)
		s.file->ops->close(s.file);
	result = report_result(&s.res, rc, err.text);
	view_show(&s.view, result);
	json_decref(result);
	if (s.guest)
		s.guest->ops->close(s.guest);
	return status;
}
