// SPDX-License-Identifier: MIT
/* Errors that a person can act on: see error.h. */
#include "common/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/*
 * A message is one line whatever a peer put into it: control characters would also reach the user's
 * terminal.
 */
static void make_one_line(char *text)
{
	for (; *text; text++) {
		if ((unsigned char)*text < 0x20 || *text == 0x7f)
			*text = ' ';
	}
}

static void set_text(struct pgr_error *err, int code, const char *fmt, va_list ap)
{
	char text[sizeof(err->text)]; /* an argument may point into err->text */

	vsnprintf(text, sizeof(text), fmt, ap);
	make_one_line(text);
	err->code = code;
	memcpy(err->text, text, strlen(text) + 1);
}

/* In parentheses: error.h has macros of these names for the analyser. */
int(pgr_fail)(struct pgr_error *err, int code, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return code;
	va_start(ap, fmt);
	set_text(err, code, fmt, ap);
	va_end(ap);
	return code;
}

int(pgr_fail_errno)(struct pgr_error *err, int code, const char *fmt, ...)
{
	char reason[128];
	va_list ap;
	size_t n;

	if (!err)
		return code;
	va_start(ap, fmt);
	set_text(err, code, fmt, ap);
	va_end(ap);
	n = strlen(err->text);
	snprintf(err->text + n, sizeof(err->text) - n, ": %s",
		 strerror_r(code < 0 ? -code : code, reason, sizeof(reason)));
	return code;
}

int pgr_fail_prefix(struct pgr_error *err, const char *fmt, ...)
{
	char old[sizeof(err->text)];
	va_list ap;
	size_t n;

	if (!err)
		return 0;
	memcpy(old, err->text, sizeof(old));
	va_start(ap, fmt);
	set_text(err, err->code, fmt, ap);
	va_end(ap);
	n = strlen(err->text);
	snprintf(err->text + n, sizeof(err->text) - n, "%s%s", n ? ": " : "", old);
	return err->code;
}
