// SPDX-License-Identifier: MIT
#include "cmdline.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define BLANKS " \t\n"

/* Whether @at is "@name="; then *@value is what follows. */
static bool is_parameter(const char *at, const char *name, const char **value)
{
	size_t length = strlen(name);

	if (strncmp(at, name, length) != 0 || at[length] != '=')
		return false;
	*value = at + length + 1;
	return true;
}

int cmdline_find(const char *text, const char *name, char value[CMDLINE_MAX])
{
	const char *at = text, *from;
	size_t length;
	bool quoted;

	for (;;) {
		at += strspn(at, BLANKS);
		if (*at == '\0')
			return -ENOENT;
		quoted = *at == '"';
		at += quoted;
		if (is_parameter(at, name, &from))
			break;
		for (; *at && (quoted || !strchr(BLANKS, *at)); at++)
			if (*at == '"')
				quoted = !quoted;
	}
	if (!quoted && *from == '"') {
		quoted = true;
		from++;
	}
	length = strcspn(from, quoted ? "\"" : BLANKS);
	if (length >= CMDLINE_MAX)
		return -E2BIG;
	memcpy(value, from, length);
	value[length] = '\0';
	return 0;
}

int cmdline_value(const char *name, char value[CMDLINE_MAX])
{
	char text[CMDLINE_MAX + 1];
	FILE *file = fopen("/proc/cmdline", "re");
	size_t n;

	if (!file)
		return -errno;
	n = fread(text, 1, CMDLINE_MAX, file);
	text[n] = '\0';
	fclose(file);
	return cmdline_find(text, name, value);
}
