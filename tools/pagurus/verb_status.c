/* SPDX-License-Identifier: MIT */
/* `pagurus status` and `pagurus cancel`: what the daemon is at, and stopping it. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/client.h"
#include "tools/pagurus/disk_server.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

struct status {
	struct paths paths;
	bool json, watch, all;
	json_t *journals;
};

static bool at_work(const json_t *sessions, const char *hex)
{
	json_t *one;
	size_t i;

	json_array_foreach(sessions, i,
			   one) if (!strcmp(message_text(one, "session"), hex)) return true;
	return false;
}

static int add_journal(void *ctx, const struct journal *j)
{
	struct status *s = ctx;
	char hex[UNITS_HEX16];

	if (j->done && !s->all)
		return 0;
	json_array_append_new(
		s->journals,
		json_pack("{ss ss ss sb sb so so so sI}", "session", units_hex16(j->session, hex),
			  "role", journal_role_name(j->role), "mark", journal_mark_name(j->mark),
			  "done", j->done, "process", journal_is_locked(s->paths.state, j->session),
			  "guest", message_string(j->guest), "peer", message_string(j->peer),
			  "file", message_string(j->file), "changed", (json_int_t)j->changed));
	return 0;
}

static void bad_journal(void *ctx, const char *text)
{
	(void)ctx;
	fprintf(stderr, "pagurus: %s\n", text);
}

static void add_disk(void *ctx, const json_t *disk)
{
	if (!strcmp(message_text(disk, "type"), "disk"))
		json_array_append_new(ctx, json_deep_copy(disk));
	else if (!strcmp(message_text(disk, "type"), "silent"))
		disk_server_warn(message_text(disk, "server"));
}

/* What the daemon says plus what the journals and the servers of disks say. */
static json_t *collect(struct status *s, struct pgr_error *err)
{
	json_t *answer = NULL, *sessions, *one, *disks = json_array();
	size_t i;

	client_ask(s->paths.control, json_pack("{ss}", "request", "status"), &answer, err);
	if (!answer)
		answer = json_pack("{ss s[]}", "type", "status", "sessions");
	json_object_set_new(answer, "daemon", json_boolean(!err->code));
	sessions = json_object_get(answer, "sessions");
	s->journals = json_array();
	journal_each(s->paths.state, add_journal, bad_journal, s);
	/* A session that is at work is shown once. */
	for (i = json_array_size(s->journals); i-- > 0;) {
		one = json_array_get(s->journals, i);
		if (at_work(sessions, message_text(one, "session")))
			json_array_remove(s->journals, i);
	}
	json_object_set_new(answer, "journals", s->journals);
	disk_servers_each(s->paths.disks, json_pack("{ss}", "request", "status"), add_disk, disks);
	json_object_set_new(answer, "disks", disks);
	return answer;
}

static void show_session(const json_t *one)
{
	const json_t *p = json_object_get(one, "progress");
	char rate[UNITS_TEXT], sent[UNITS_TEXT], left[UNITS_TEXT];

	printf("%s  %s %s %s %s", message_text(one, "session"), message_text(one, "guest"),
	       !strcmp(message_text(one, "job"), "target") ? "from" : "to",
	       message_text(one, "peer")[0] ? message_text(one, "peer") : "?",
	       !strcmp(message_text(one, "job"), "recover") ? "(finding out what became of it)"
							    : "");
	if (p)
		printf("  %s, round %llu, %s at %s", message_text(p, "phase"),
		       message_number(p, "round") + 1,
		       units_show_size(message_number(p, "bytes"), sent),
		       units_show_rate(message_number(p, "rate"), rate));
	if (message_number(p, "left_ns"))
		printf(", %s left", units_show_ns(message_number(p, "left_ns"), left));
	putchar('\n');
}

static void show_journal(const json_t *one)
{
	const char *state = json_is_true(json_object_get(one, "done")) ? "over"
			    : message_flag(one, "process") ? "a process is at work on it"
							   : "interrupted, to be repaired";

	printf("%s  %s: %s %s%s, at %s, %s\n", message_text(one, "session"),
	       message_text(one, "guest"), message_text(one, "role"), message_text(one, "peer"),
	       message_text(one, "file"), message_text(one, "mark"), state);
}

static void show_disk(const json_t *one)
{
	char read[UNITS_TEXT], written[UNITS_TEXT], whose[32] = "";

	if (message_number(one, "domain"))
		snprintf(whose, sizeof(whose), "guest %llu ", message_number(one, "domain"));
	printf("%s%s  %s, %llu layer%s: %llu reads (%s), %llu writes (%s), %llu flushes", whose,
	       message_text(one, "name"), message_text(one, "path"), message_number(one, "layers"),
	       message_number(one, "layers") == 1 ? "" : "s", message_number(one, "reads"),
	       units_show_size(message_number(one, "read_bytes"), read),
	       message_number(one, "writes"),
	       units_show_size(message_number(one, "written_bytes"), written),
	       message_number(one, "flushes"));
	if (message_number(one, "errors"))
		printf(", %llu errors", message_number(one, "errors"));
	if (message_number(one, "restarts"))
		printf(", %llu restarts", message_number(one, "restarts"));
	putchar('\n');
}

static int show(struct status *s)
{
	struct pgr_error err = PGR_ERROR_NONE;
	json_t *answer = collect(s, &err), *one;
	const json_t *sessions = json_object_get(answer, "sessions");
	size_t i;

	if (s->json) {
		json_dumpf(answer, stdout, JSON_COMPACT);
		putchar('\n');
	} else {
		json_array_foreach(sessions, i, one) show_session(one);
		json_array_foreach(s->journals, i, one) show_journal(one);
		json_array_foreach(json_object_get(answer, "disks"), i, one) show_disk(one);
		if (!json_array_size(sessions) && !json_array_size(s->journals))
			puts("No session is at work.");
	}
	fflush(stdout);
	json_decref(answer);
	if (!err.code)
		return EXIT_OK;
	fprintf(stderr, "pagurus: %s\n", err.text);
	return EXIT_FAILED;
}

int verb_status(int argc, char **argv)
{
	struct status s = {.json = false};
	const struct option_spec options[] = {
		{"watch", OPTION_FLAG, &s.watch, NULL, "again every second, until Ctrl-C", 0, 0},
		{"all", OPTION_FLAG, &s.all, NULL, "also sessions that are over", 0, 0},
		{"json", OPTION_FLAG, &s.json, NULL, "one JSON object", 0, 0},
		PATHS_OPTION_STATE(&s.paths),
		PATHS_OPTION_CONTROL(&s.paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus status [OPTIONS]",
		"Sessions at work on this host, those that wait for something, and disks that are served.",
		options, 0, 0};
	const struct timespec second = {.tv_sec = 1};
	const atomic_bool *stop;
	int count, status;

	paths_init(&s.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	stop = s.watch ? interrupt_catch() : NULL;
	do {
		if (s.watch && !s.json && isatty(STDOUT_FILENO))
			fputs("\033[H\033[J", stdout);
		status = show(&s);
	} while (s.watch && !nanosleep(&second, NULL) && !atomic_load(stop));
	return status;
}

int verb_cancel(int argc, char **argv)
{
	struct paths paths;
	const struct option_spec options[] = {
		PATHS_OPTION_CONTROL(&paths),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus cancel [OPTIONS] SESSION|GUEST",
		"Stop moving a guest: it stays where it runs, and nothing of it is left on the other host.",
		options, 1, 1};
	struct pgr_error err = PGR_ERROR_NONE;
	json_t *answer;
	int count, status;

	paths_init(&paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (client_ask(paths.control,
		       json_pack("{ss so}", "request", "cancel", "which", message_string(argv[0])),
		       &answer, &err)) {
		fprintf(stderr, "pagurus: %s\n", err.text);
		return EXIT_FAILED;
	}
	printf("The move of guest %s is being cancelled.\n", message_text(answer, "text"));
	json_decref(answer);
	return EXIT_OK;
}
