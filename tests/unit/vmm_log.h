/* SPDX-License-Identifier: MIT */
/* For host-compiled tests of the hypervisor's files: its log, kept as text. Included by one file of each test program. */
#ifndef TESTS_UNIT_VMM_LOG_H
#define TESTS_UNIT_VMM_LOG_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/lib/print.h"

enum log_level log_console_level = LOG_INFO;
static char logged[8192];

void log_print(enum log_level level, const char *format, ...)
{
	size_t used = strlen(logged);
	char line[512];
	va_list args;

	(void)level;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	snprintf(logged + used, sizeof(logged) - used, "%s\n", line);
}

static inline unsigned lines_logged(void)
{
	unsigned n = 0;

	for (const char *p = logged; *p; p++)
		n += *p == '\n';
	return n;
}

void bug(const char *file, int line, const char *what)
{
	fprintf(stderr, "%s:%d: %s\n", file, line, what);
	abort();
}

#endif
