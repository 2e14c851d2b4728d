/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/view.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "common/text.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

#define PLAIN_MS     2000u
#define PAGE_BYTES   4096u
#define LINE_MAX_LEN 400

bool view_terminal(bool json)
{
	const char *term = getenv("TERM");

	return !json && isatty(STDOUT_FILENO) && term && strcmp(term, "dumb");
}

void view_init(struct view *v, bool json, const char *verb, const char *guest, const char *where)
{
	*v = (struct view){.json = json, .verb = verb, .where = where};
	snprintf(v->guest, sizeof(v->guest), "%s", guest);
	v->terminal = view_terminal(json);
}

unsigned view_columns(void)
{
	struct winsize w;

	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) || w.ws_col < 20)
		return 80;
	return w.ws_col;
}

/* Take our lines off the screen. */
static void erase(struct view *v)
{
	for (; v->drawn; v->drawn--)
		fputs(v->drawn > 1 ? "\r\033[K\033[A" : "\r\033[K", stdout);
}

/* Text from elsewhere (a peer, a guest's name) must not drive the terminal. */
static void print_clean(FILE *to, const char *text)
{
	char plain[2048];

	text_plain(plain, sizeof(plain), text, strlen(text));
	fputs(plain, to);
}

void view_note(struct view *v, const char *text)
{
	if (v->json) {
		json_t *message = message_text_object("message", text);

		view_show(v, message);
		json_decref(message);
		return;
	}
	erase(v);
	print_clean(stdout, text);
	fputc('\n', stdout);
	fflush(stdout);
}

static const char *phase_words(const char *phase)
{
	static const char *const words[][2] = {
		{"connect", "connecting"},
		{"precheck", "asking whether it can be taken"},
		{"disks", "copying its disks while it runs"},
		{"rounds", "copying while it runs"},
		{"receive", "reading its memory"},
		{"stop", "it stands still, copying the rest"},
		{"finish", "putting it together"},
		{"verify", "sending everything again to compare"},
		{"wait", "waiting until it is put together"},
		{"ready", "ready to start"},
		{"commit", "handing it over"},
		{"cleanup", "tidying up"},
		{"done", "done"},
		{"failed", "giving up"},
		{"reconnect", "connection lost, making it again"},
	};

	for (unsigned i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (!strcmp(words[i][0], phase))
			return words[i][1];
	return phase;
}

static void first_line(char out[LINE_MAX_LEN], const json_t *m)
{
	unsigned long long total = message_number(m, "pages_total");
	unsigned long long done = message_number(m, "pages_done");
	char rate[UNITS_TEXT], memory[UNITS_TEXT], sent[UNITS_TEXT], round[32] = "", share[32] = "";

	if (!strcmp(message_text(m, "phase"), "disks")) {
		snprintf(out, LINE_MAX_LEN, "%s, %s copied, %s left", phase_words("disks"),
			 units_show_size(message_number(m, "disk_bytes"), sent),
			 units_show_size(message_number(m, "disk_left"), memory));
		return;
	}
	if (!strcmp(message_text(m, "phase"), "rounds"))
		snprintf(round, sizeof(round), ", round %llu", message_number(m, "round") + 1);
	if (total)
		snprintf(share, sizeof(share), ", %llu %%",
			 done >= total ? 100 : done * 100 / total);
	snprintf(out, LINE_MAX_LEN, "%s%s%s, %s sent at %s (%s of memory)",
		 phase_words(message_text(m, "phase")), round, share,
		 units_show_size(message_number(m, "bytes"), sent),
		 units_show_rate(message_number(m, "rate"), rate),
		 units_show_rate(message_number(m, "memory_rate"), memory));
}

static void append(char out[LINE_MAX_LEN], const char *what, const char *value)
{
	size_t used = strlen(out);

	snprintf(out + used, LINE_MAX_LEN - used, "%s%s %s", used ? ", " : "", what, value);
}

static void second_line(char out[LINE_MAX_LEN], const json_t *m)
{
	const json_t *e = json_object_get(m, "encode");
	char text[UNITS_TEXT];

	out[0] = 0;
	append(out, "saved by zero pages", units_show_size(message_number(e, "saved_zero"), text));
	append(out, "by delta", units_show_size(message_number(e, "saved_delta"), text));
	append(out, "by compression", units_show_size(message_number(e, "saved_compress"), text));
	if (message_number(m, "dirty_pages_rate"))
		append(out, "the guest writes",
		       units_show_rate(message_number(m, "dirty_pages_rate") * PAGE_BYTES, text));
	if (message_number(m, "predicted_downtime_ns"))
		append(out, "stop would take",
		       units_show_ns(message_number(m, "predicted_downtime_ns"), text));
	if (message_number(m, "left_ns"))
		append(out, "left", units_show_ns(message_number(m, "left_ns"), text));
}

static void draw(struct view *v, const json_t *m)
{
	char one[LINE_MAX_LEN], two[LINE_MAX_LEN];
	int width = (int)view_columns() - 1;

	first_line(one, m);
	second_line(two, m);
	erase(v);
	printf("%.*s\n%.*s", width, one, width, two);
	fflush(stdout);
	v->drawn = 2;
}

static void show_progress(struct view *v, const json_t *m)
{
	char one[LINE_MAX_LEN], two[LINE_MAX_LEN];
	const char *phase = message_text(m, "phase");
	bool changed = strcmp(v->phase, phase);
	uint64_t now = units_now_ms();

	snprintf(v->phase, sizeof(v->phase), "%s", phase);
	if (v->terminal) {
		draw(v, m);
		return;
	}
	if (!changed && now - v->shown_ms < PLAIN_MS)
		return;
	v->shown_ms = now;
	first_line(one, m);
	second_line(two, m);
	printf("%s\n", one);
	if (message_number(json_object_get(m, "encode"), "pages"))
		printf("  %s\n", two);
	fflush(stdout);
}

/* ---- the end, in words ---- */

/* The rest of the sentence: when it had its devices. */
static void tell_connected(const json_t *stop)
{
	unsigned long long devices = message_number(stop, "devices");
	unsigned long long waiting = message_number(stop, "devices_waiting");
	char text[UNITS_TEXT];

	/* It has none, or nobody told. */
	if (!devices)
		return;
	units_show_ns(message_number(stop, "devices_ns"), text);
	if (waiting)
		printf("; %llu of its %llu devices had not connected %s after it ran again",
		       waiting, devices, text);
	else
		printf("; its devices were connected %s after it ran again", text);
	if (message_number(stop, "announced_ns"))
		printf(", its first packet left after %s",
		       units_show_ns(message_number(stop, "announced_ns"), text));
}

static void tell_stop(const json_t *m)
{
	static const struct {
		const char *key, *words;
	} parts[] = {
		{"suspend_ns", "to suspend it"},    {"disks_ns", "to flush and close its disks"},
		{"pages_ns", "for its last pages"}, {"state_ns", "for its state"},
		{"verify_ns", "to verify"},	    {"build_ns", "to put it together"},
		{"start_ns", "to start it"},
	};
	const json_t *stop = json_object_get(m, "stop");
	char text[UNITS_TEXT];
	const char *comma = ": ";

	if (!message_number(stop, "total_ns"))
		return;
	printf("It stood still for %s", units_show_ns(message_number(stop, "total_ns"), text));
	for (unsigned i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (!message_number(stop, parts[i].key))
			continue;
		printf("%s%s %s", comma, units_show_ns(message_number(stop, parts[i].key), text),
		       parts[i].words);
		comma = ", ";
	}
	tell_connected(stop);
	puts(".");
}

static void tell_memory(const json_t *m)
{
	const json_t *e = json_object_get(m, "encode");
	char memory[UNITS_TEXT], bytes[UNITS_TEXT], zero[UNITS_TEXT], delta[UNITS_TEXT];
	char packed[UNITS_TEXT];
	unsigned long long rounds = message_number(m, "rounds");

	printf("%s of memory went as %s",
	       units_show_size(message_number(m, "memory_bytes"), memory),
	       units_show_size(message_number(m, "bytes"), bytes));
	if (rounds > 1)
		printf(" in %llu rounds", rounds);
	printf("; zero pages saved %s, delta %s, compression %s.\n",
	       units_show_size(message_number(e, "saved_zero"), zero),
	       units_show_size(message_number(e, "saved_delta"), delta),
	       units_show_size(message_number(e, "saved_compress"), packed));
	if (message_number(m, "disk_bytes"))
		printf("Its disks went along: %s were copied.\n",
		       units_show_size(message_number(m, "disk_bytes"), bytes));
	if (message_number(m, "digest_pages"))
		printf("Digest of the memory: %s over %llu pages%s.\n", message_text(m, "digest"),
		       message_number(m, "digest_pages"),
		       json_is_true(json_object_get(m, "verified"))
			       ? "; everything was sent twice and compared"
			       : "");
	if (message_number(m, "reconnects"))
		printf("The connection was lost and made again %llu times.\n",
		       message_number(m, "reconnects"));
}

static void show_success(struct view *v, const json_t *m)
{
	static const char *const done[][2] = {{"move", "moved to"},
					      {"save", "was saved in"},
					      {"restore", "was restored from"},
					      {"check", "would be taken by"}};
	const char *words = "is with";
	char text[UNITS_TEXT];

	for (unsigned i = 0; i < sizeof(done) / sizeof(done[0]); i++)
		if (!strcmp(done[i][0], v->verb))
			words = done[i][1];
	printf("Guest %s %s %s", v->guest, words, v->where);
	/* Without figures: who had them died when it was done. */
	if (!message_number(m, "elapsed_ns")) {
		puts(".");
		return;
	}
	printf(" in %s.\n", units_show_ns(message_number(m, "elapsed_ns"), text));
	if (!strcmp(v->verb, "check"))
		return;
	tell_stop(m);
	tell_memory(m);
}

static void show_result(struct view *v, const json_t *m)
{
	int status = (int)message_number(m, "exit");
	const char *after =
		status == EXIT_UNKNOWN
			? "Do not start it anywhere by hand: `pagurus status` tells when it is known where it runs."
		: !strcmp(v->verb, "restore") ? "Nothing of it is left here; the file is as it was."
					      : "The guest runs here as before.";

	erase(v);
	if (!status) {
		show_success(v, m);
		fflush(stdout);
		return;
	}
	fflush(stdout);
	fputs("pagurus: ", stderr);
	print_clean(stderr, message_text(m, "text"));
	if (message_number(m, "no_guest"))
		fputc('\n', stderr);
	else
		fprintf(stderr, "\n%s\n", after);
}

void view_show(struct view *v, const json_t *m)
{
	const char *type = message_text(m, "type");
	char line[1300];

	if (!strcmp(type, "guest"))
		snprintf(v->guest, sizeof(v->guest), "%s", message_text(m, "guest"));
	if (v->json) {
		json_dumpf(m, stdout, JSON_COMPACT);
		fputc('\n', stdout);
		fflush(stdout);
	} else if (!strcmp(type, "progress")) {
		show_progress(v, m);
	} else if (!strcmp(type, "message")) {
		snprintf(line, sizeof(line), "%s%s",
			 strcmp(message_text(m, "level"), "warning") ? "" : "note: ",
			 message_text(m, "text"));
		view_note(v, line);
	} else if (!strcmp(type, "result")) {
		show_result(v, m);
	}
}
