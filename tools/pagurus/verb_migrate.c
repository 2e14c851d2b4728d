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
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/verbs.h"
#include "tools/pagurus/view.h"

struct migrate_options {
	struct paths paths;
	const char *compress;
	uint64_t downtime_ms, bandwidth, channels, max_rounds, max_time_ms, throttle, delta_cache;
	uint64_t reconnect_ms, suspend_timeout_ms;
	bool verify, dry_run, json, detach;
};

struct conversation {
	int fd, signals;
	const struct migrate_options *o;
	struct view view;
	char session[64];
	bool cancelled;
	int status; /* -1: not over */
};

static json_t *make_request(const struct migrate_options *o, const char *guest, const char *host)
{
	return json_pack(
		"{ss so so ss sI sI sI sI sI sI sI sI sI sb sb}", "request", "migrate", "guest",
		message_string(guest), "host", message_string(host), "compress", o->compress,
		"downtime_ms", (json_int_t)o->downtime_ms, "bandwidth", (json_int_t)o->bandwidth,
		"channels", (json_int_t)o->channels, "max_rounds", (json_int_t)o->max_rounds,
		"max_time_ms", (json_int_t)o->max_time_ms, "throttle", (json_int_t)o->throttle,
		"delta_cache", (json_int_t)o->delta_cache, "reconnect_ms",
		(json_int_t)o->reconnect_ms, "suspend_timeout_ms",
		(json_int_t)o->suspend_timeout_ms, "verify", o->verify, "dry_run", o->dry_run);
}

/* An end that the daemon did not report as a result. */
static void end_with(struct conversation *c, enum pgr_exit status, int code, const char *text)
{
	struct session_result res = {.outcome = status == EXIT_UNKNOWN ? SESSION_UNKNOWN
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
	       (!strcmp(phase, "rounds") || !strcmp(phase, "stop"));
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
		if (rc && rc != -EINTR && c->status < 0)
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
	request = make_request(o, guest, host);
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
	struct migrate_options o = {.compress = "lz4",
				    .downtime_ms = 300,
				    .channels = 1,
				    .throttle = 100,
				    .reconnect_ms = 30000,
				    .suspend_timeout_ms = 60000,
				    .delta_cache = 64u << 20};
	const struct option_spec options[] = {
		{"downtime", OPTION_MS, &o.downtime_ms, "TIME",
		 "longest stop of the guest (default 300ms; 0: as short as possible)", 0, 86400000},
		{"bandwidth", OPTION_RATE, &o.bandwidth, "RATE",
		 "most to send a second, as 100M or 1Gbit (default: no limit)", 0, 0},
		{"channels", OPTION_COUNT, &o.channels, "N", "connections, 1 to 16 (default 1)", 1,
		 PGR_CHANNELS_MAX},
		{"compress", OPTION_STRING, &o.compress, "METHOD", "lz4 (default), zstd or none", 0,
		 0},
		{"delta-cache", OPTION_SIZE, &o.delta_cache, "SIZE",
		 "memory to remember sent pages in, for sending differences (default 64M; 0: none)",
		 0, 1ull << 36},
		{"verify", OPTION_FLAG, &o.verify, NULL, "send everything twice and compare", 0, 0},
		{"max-rounds", OPTION_COUNT, &o.max_rounds, "N",
		 "give up copying while it runs after so many rounds (default 30)", 0, 1000},
		{"max-time", OPTION_MS, &o.max_time_ms, "TIME", "give up after this long", 0,
		 604800000},
		{"throttle", OPTION_COUNT, &o.throttle, "PERCENT",
		 "slow the guest down to this much of its speed if needed (default 100: never)", 1,
		 100},
		{"reconnect", OPTION_MS, &o.reconnect_ms, "TIME",
		 "try so long to get a lost connection back, a third of it once the guest is stopped (default 30s)",
		 3, 3600000},
		{"suspend-timeout", OPTION_MS, &o.suspend_timeout_ms, "TIME",
		 "give up when the guest does not stop by then (default 60s)", 1, 3600000},
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
	if (strcmp(o.compress, "lz4") && strcmp(o.compress, "zstd") && strcmp(o.compress, "none"))
		return options_complain(&usage, "--compress %s: lz4, zstd or none", o.compress);
	return converse(&o, argv[0], argv[1]);
}
