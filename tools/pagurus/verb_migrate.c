/* SPDX-License-Identifier: MIT */
/*
 * `pagurus migrate`: asks the daemon and shows how it goes. The daemon does the work, so a terminal that is lost (SIGHUP) ends this
 * command and not the migration; Ctrl-C and SIGTERM cancel it and wait for the outcome.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/pagurus/client.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/move_request.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/verbs.h"
#include "tools/pagurus/view.h"

struct migrate_options {
	struct paths paths;
	struct move_request request;
	bool dry_run, json, detach;
};

struct conversation {
	int fd, signals;
	const struct migrate_options *o;
	struct view view;
	char session[64];
	bool cancelled, moved; /* moved: the rest is figures */
	int status;	       /* -1: not over */
};

/* An end that the daemon did not report as a result. */
static void end_with(struct conversation *c, enum pgr_exit status, int code, const char *text)
{
	struct session_result res = {.outcome = status == EXIT_OK	 ? SESSION_MOVED
						: status == EXIT_UNKNOWN ? SESSION_UNKNOWN
									 : SESSION_STAYED};
	json_t *result = report_result(&res, code, text);

	view_show(&c->view, result);
	json_decref(result);
	c->status = status;
}

/* From here on it goes its way without us: the precheck has passed. */
static bool is_under_way(const json_t *message)
{
	const char *phase = message_text(message, "phase");

	return !strcmp(message_text(message, "type"), "progress") &&
	       (!strcmp(phase, "disks") || !strcmp(phase, "rounds") || !strcmp(phase, "stop"));
}

static void take(struct conversation *c, const json_t *message)
{
	const char *type = message_text(message, "type");
	char line[200];

	if (!strcmp(type, "error")) {
		if (!c->session[0])
			end_with(c, EXIT_FAILED, -EIO, message_text(message, "text"));
		else
			view_note(&c->view, message_text(message, "text"));
		return;
	}
	if (!strcmp(type, "accepted"))
		snprintf(c->session, sizeof(c->session), "%s", message_text(message, "session"));
	view_show(&c->view, message);
	if (!strcmp(type, "mark") && !strcmp(message_text(message, "mark"), "moved"))
		c->moved = true;
	if (!strcmp(type, "result"))
		c->status = (int)message_number(message, "exit");
	if (c->o->detach && is_under_way(message) && c->status < 0) {
		snprintf(line, sizeof(line),
			 "session %s goes on in the background; `pagurus status` shows it",
			 c->session);
		view_note(&c->view, line);
		c->status = EXIT_OK;
	}
}

static void on_signal(struct conversation *c)
{
	struct signalfd_siginfo info;
	json_t *request;

	if (read(c->signals, &info, sizeof(info)) != sizeof(info))
		return;
	if (c->cancelled) {
		view_note(&c->view, "still waiting for the outcome of the cancelled move");
		return;
	}
	c->cancelled = true;
	view_note(&c->view, "cancelling");
	request = json_pack("{ss}", "request", "cancel");
	line_write(c->fd, request);
	json_decref(request);
}

static void listen_to_both(struct conversation *c)
{
	struct pollfd polls[2] = {{.fd = c->fd, .events = POLLIN},
				  {.fd = c->signals, .events = POLLIN}};
	struct line_reader reader = {.data = NULL};
	json_t *message;
	bool bad = false;
	int rc = 0;

	while (c->status < 0) {
		if (poll(polls, 2, -1) < 0)
			continue;
		if (polls[1].revents)
			on_signal(c);
		if (!polls[0].revents)
			continue;
		rc = line_fill(&reader, c->fd);
		while (!rc && c->status < 0 && ((message = line_next(&reader, &bad)) || bad)) {
			if (message)
				take(c, message);
			json_decref(message);
		}
		if (rc && rc != -EINTR && c->status < 0 && c->moved)
			end_with(c, EXIT_OK, 0, "");
		else if (rc && rc != -EINTR && c->status < 0)
			end_with(
				c, EXIT_UNKNOWN, -EIO,
				"the daemon ended while it moved the guest; when it runs again it puts things right, and `pagurus status` shows how");
	}
	line_free(&reader);
}

static int converse(const struct migrate_options *o, const char *guest, const char *host)
{
	struct conversation c = {.fd = -1, .signals = -1, .o = o, .status = -1};
	struct pgr_error err = PGR_ERROR_NONE;
	json_t *request;
	sigset_t set;
	int rc;

	view_init(&c.view, o->json, o->dry_run ? "check" : "move", guest, host);
	rc = client_open(o->paths.control, &c.fd, &err);
	if (rc) {
		end_with(&c, EXIT_FAILED, rc, err.text);
		return c.status;
	}
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	c.signals = signalfd(-1, &set, SFD_CLOEXEC);
	request = move_request_json(&o->request, guest, host, o->dry_run);
	rc = request ? line_write(c.fd, request) : -ENOMEM;
	json_decref(request);
	if (rc)
		end_with(&c, EXIT_FAILED, rc, "the daemon did not take the request");
	else
		listen_to_both(&c);
	close(c.signals);
	close(c.fd);
	return c.status;
}

int verb_migrate(int argc, char **argv)
{
	struct migrate_options o = {.request = MOVE_REQUEST_DEFAULT};
	const struct option_spec options[] = {
		MOVE_REQUEST_OPTIONS(&o.request),
		{"dry-run", OPTION_FLAG, &o.dry_run, NULL,
		 "ask whether the host would take it, move nothing", 0, 0},
		{"detach", OPTION_FLAG, &o.detach, NULL, "return as soon as the move is under way",
		 0, 0},
		{"json", OPTION_FLAG, &o.json, NULL, "one JSON object a line", 0, 0},
		PATHS_OPTION_CONTROL(&o.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus migrate [OPTIONS] GUEST HOST[:PORT]",
		"Move a running guest to another host that is trusted here. Ctrl-C cancels: the guest stays as it was.",
		options, 2, 2};
	int count, status;

	paths_init(&o.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (!move_request_check(&o.request, &usage, &status))
		return status;
	return converse(&o, argv[0], argv[1]);
}
