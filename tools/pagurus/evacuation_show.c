/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <string.h>

#include "common/text.h"
#include "tools/pagurus/evacuation.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/view.h"

#define PLAIN_MS    2000u
#define TERMINAL_MS 200u
#define LINE_LENGTH 1000

static void erase(struct evacuation *e)
{
	if (e->drawn)
		fputs("\r\033[K", stdout);
	e->drawn = false;
}

/* Text from elsewhere (a peer, a guest's name) must not drive the terminal. */
static void print_line(struct evacuation *e, const char *text)
{
	char plain[2 * LINE_LENGTH];

	erase(e);
	text_plain(plain, sizeof(plain), text, strlen(text));
	puts(plain);
	fflush(stdout);
}

static void print_json(json_t *message)
{
	json_dumpf(message, stdout, JSON_COMPACT);
	putchar('\n');
	fflush(stdout);
	json_decref(message);
}

static const char *host_of(const struct evacuation *e, const struct evacuee *g)
{
	return g->state == EVACUEE_LEAVES ? g->text : g->host < 0 ? "" : e->hosts[g->host].name;
}

static const char *state_name(enum evacuee_state state)
{
	static const char *const names[] = {
		[EVACUEE_WAITS] = "waits", [EVACUEE_LEAVES] = "leaves",
		[EVACUEE_MOVES] = "moves", [EVACUEE_MOVED] = "moved",
		[EVACUEE_STAYS] = "stays", [EVACUEE_UNKNOWN] = "unknown",
	};

	return names[state];
}

static json_t *guest_json(const struct evacuation *e, const struct evacuee *g)
{
	return json_pack("{so sI si ss so so}", "guest", message_string(g->guest.name),
			 "memory_bytes", (json_int_t)g->guest.memory, "vcpus", (int)g->guest.vcpus,
			 "state", state_name(g->state), "host", message_string(host_of(e, g)),
			 "text", message_string(g->state == EVACUEE_LEAVES ? "" : g->text));
}

static json_t *guests_json(const struct evacuation *e)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < e->nr_guests; i++)
		json_array_append_new(list, guest_json(e, &e->guests[i]));
	return list;
}

void evacuation_show_plan(struct evacuation *e)
{
	char line[LINE_LENGTH], size[UNITS_TEXT];

	if (e->json) {
		print_json(json_pack("{ss so}", "type", "plan", "guests", guests_json(e)));
		return;
	}
	for (unsigned i = 0; i < e->nr_guests; i++) {
		const struct evacuee *g = &e->guests[i];
		const char *words = g->state == EVACUEE_WAITS	 ? "to"
				    : g->state == EVACUEE_LEAVES ? "is on its way to"
								 : "stays:";

		snprintf(line, sizeof(line), "%-20s %10s, %u vCPU%s  %s %s", g->guest.name,
			 units_show_size(g->guest.memory, size), g->guest.vcpus,
			 g->guest.vcpus == 1 ? " " : "s", words,
			 g->state == EVACUEE_WAITS ? host_of(e, g) : g->text);
		print_line(e, line);
	}
}

void evacuation_note(struct evacuation *e, const struct evacuee *g, const char *text)
{
	char line[LINE_LENGTH];

	if (e->json) {
		json_t *message = message_text_object("message", text);

		if (g)
			json_object_set_new(message, "guest", message_string(g->guest.name));
		print_json(message);
		return;
	}
	snprintf(line, sizeof(line), "%s%s%s", g ? g->guest.name : "", g ? ": " : "", text);
	print_line(e, line);
}

static void describe_progress(const struct evacuation *e, char line[LINE_LENGTH])
{
	size_t used;

	snprintf(line, LINE_LENGTH, "%u of %u have left", evacuation_count(e, EVACUEE_MOVED),
		 e->nr_guests);
	for (unsigned i = 0; i < e->nr_guests; i++) {
		const struct evacuee *g = &e->guests[i];
		unsigned long long total = message_number(g->progress, "pages_total"), done;
		char rate[UNITS_TEXT];

		if (g->state != EVACUEE_MOVES && g->state != EVACUEE_LEAVES)
			continue;
		used = strlen(line);
		done = message_number(g->progress, "pages_done");
		if (done > total)
			done = total;
		snprintf(line + used, LINE_LENGTH - used,
			 "; %.64s to %.64s: round %llu, %llu %% at %s", g->guest.name,
			 host_of(e, g), message_number(g->progress, "round") + 1,
			 total ? done * 100 / total : 0,
			 units_show_rate(message_number(g->progress, "rate"), rate));
	}
}

void evacuation_show_progress(struct evacuation *e)
{
	char line[LINE_LENGTH], plain[2 * LINE_LENGTH];
	bool terminal = view_terminal(e->json);
	uint64_t now = units_now_ms();

	/* Programs get what the sessions say, as it comes. */
	if (e->json || now - e->shown_ms < (terminal ? TERMINAL_MS : PLAIN_MS))
		return;
	e->shown_ms = now;
	describe_progress(e, line);
	if (!terminal) {
		print_line(e, line);
		return;
	}
	erase(e);
	text_plain(plain, sizeof(plain), line, strlen(line));
	printf("%.*s", (int)view_columns() - 1, plain);
	fflush(stdout);
	e->drawn = true;
}

void evacuation_show_message(struct evacuation *e, const struct evacuee *g, const json_t *message)
{
	json_t *copy;

	if (e->json) {
		copy = json_copy((json_t *)message);
		json_object_set_new(copy, "guest", message_string(g->guest.name));
		json_object_set_new(copy, "host", message_string(host_of(e, g)));
		print_json(copy);
	} else if (!strcmp(message_text(message, "type"), "message")) {
		evacuation_note(e, g, message_text(message, "text"));
	}
}

void evacuation_show_end(struct evacuation *e, const struct evacuee *g)
{
	char line[LINE_LENGTH], time[UNITS_TEXT], stop[UNITS_TEXT], bytes[UNITS_TEXT];

	if (e->json) {
		json_t *message = guest_json(e, g);

		json_object_set_new(message, "type", json_string("left"));
		if (g->result)
			json_object_set(message, "result", g->result);
		print_json(message);
		return;
	}
	if (g->state == EVACUEE_UNKNOWN)
		snprintf(line, sizeof(line), "%s: %s", g->guest.name, g->text);
	else if (g->state == EVACUEE_STAYS)
		snprintf(line, sizeof(line), "%s stays here: %s", g->guest.name, g->text);
	else if (!g->result)
		snprintf(line, sizeof(line), "%s has left, moved by another command",
			 g->guest.name);
	else
		snprintf(line, sizeof(line), "%s moved to %s in %s, stood still for %s, %s sent",
			 g->guest.name, host_of(e, g),
			 units_show_ns(message_number(g->result, "elapsed_ns"), time),
			 units_show_ns(
				 message_number(json_object_get(g->result, "stop"), "total_ns"),
				 stop),
			 units_show_size(message_number(g->result, "bytes"), bytes));
	print_line(e, line);
}

static uint64_t sum(const struct evacuation *e, const char *key)
{
	uint64_t total = 0;

	for (unsigned i = 0; i < e->nr_guests; i++)
		total += message_number(e->guests[i].result, key);
	return total;
}

static uint64_t longest_stop(const struct evacuation *e)
{
	uint64_t longest = 0, one;

	for (unsigned i = 0; i < e->nr_guests; i++) {
		if (e->guests[i].state != EVACUEE_MOVED)
			continue;
		one = message_number(json_object_get(e->guests[i].result, "stop"), "total_ns");
		longest = one > longest ? one : longest;
	}
	return longest;
}

void evacuation_show_report(struct evacuation *e)
{
	unsigned moved = evacuation_count(e, EVACUEE_MOVED),
		 unknown = evacuation_count(e, EVACUEE_UNKNOWN);
	char line[LINE_LENGTH], bytes[UNITS_TEXT], stop[UNITS_TEXT];
	enum pgr_exit status = evacuation_exit(e);

	if (e->json) {
		print_json(json_pack("{ss si si si si sI sI so}", "type", "result", "exit",
				     (int)status, "moved", (int)moved, "stayed",
				     (int)(e->nr_guests - moved - unknown), "unknown", (int)unknown,
				     "bytes", (json_int_t)sum(e, "bytes"), "longest_stop_ns",
				     (json_int_t)longest_stop(e), "guests", guests_json(e)));
		return;
	}
	snprintf(line, sizeof(line),
		 "%u of %u guests have left this host; %s sent, the longest stood still for %s.",
		 moved, e->nr_guests, units_show_size(sum(e, "bytes"), bytes),
		 units_show_ns(longest_stop(e), stop));
	print_line(e, line);
	if (unknown)
		puts("Do not start those that are not accounted for by hand: `pagurus status` tells when it is known where they run.");
	else if (status != EXIT_OK)
		puts("The others run here as before. The same command goes on with them.");
	fflush(stdout);
}
