/* SPDX-License-Identifier: MIT */
/*
 * What a person sees while a session runs: on a terminal two lines that are redrawn, elsewhere a line at each change of phase and at
 * most every two seconds, with --json the objects themselves, one a line. At the end a summary in words.
 *
 * Takes the objects of report.h. One thread at a time.
 */
#ifndef PAGURUS_VIEW_H
#define PAGURUS_VIEW_H

#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

struct view {
	bool json;
	bool terminal;
	const char *verb;  /* "move", "save", "restore" */
	char guest[256];   /* as the user named it, then as it is called */
	const char *where; /* host or file */
	unsigned drawn;	   /* lines on the screen that are ours */
	char phase[32];
	uint64_t shown_ms;
};

/* Whether a person looks at standard output, on a terminal that can go back in a line, and how wide that is. */
bool view_terminal(bool json);
unsigned view_columns(void);

/* verb and where stay the caller's and must live as long as the view. */
void view_init(struct view *v, bool json, const char *verb, const char *guest, const char *where);
/* Any object of a session: progress, message, mark, guest, accepted, result. The result ends the display. */
void view_show(struct view *v, const json_t *message);
/* A line of ours, between the others. */
void view_note(struct view *v, const char *text);

#endif
