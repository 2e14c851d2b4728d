/* SPDX-License-Identifier: MIT */
/*
 * What a session tells, as JSON: between the processes of a host, to a program that reads --json, and to the display. Field names
 * are stable; the man page pagurus-migrate(1) lists them.
 */
#ifndef PAGURUS_REPORT_H
#define PAGURUS_REPORT_H

#include <jansson.h>

#include "migrate/session.h"
#include "tools/pagurus/verbs.h"

/* {"type":"progress", ...}. Owned by the caller; NULL without memory. */
json_t *report_progress(const struct session_progress *p);

/*
 * {"type":"result", "exit":..., "outcome":..., ...}: code 0 or negative errno with text. res may be NULL when no session came about.
 */
json_t *report_result(const struct session_result *res, int code, const char *text);

/* The exit status that fits. */
enum pgr_exit report_exit(const struct session_result *res, int code);

/* {"type":"message","level":"info"|"warning","text":...} */
json_t *report_message(enum session_log level, const char *text);

#endif
