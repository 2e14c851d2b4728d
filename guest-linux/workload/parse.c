// SPDX-License-Identifier: MIT
#include "parse.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MIB (1ULL << 20)

extern char *program_invocation_short_name;

_Noreturn void usage_error(const char *format, ...)
{
	const char *name = program_invocation_short_name;
	va_list args;

	va_start(args, format);
	fprintf(stderr, "%s: ", name);
	vfprintf(stderr, format, args);
	fprintf(stderr, "; see %s --help\n", name);
	va_end(args);
	exit(EXIT_USAGE);
}

/* Like parse_size, and says in *@suffixed whether there was a suffix. */
static int parse_suffixed(const char *text, uint64_t *value, bool *suffixed)
{
	static const char suffixes[] = "KMG";
	const char *suffix;
	unsigned int shift;
	uint64_t number;
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	*suffixed = *end != '\0';
	if (*suffixed) {
		suffix = strchr(suffixes, *end);
		if (!suffix || end[1] != '\0')
			return -EINVAL;
		shift = 10 * (unsigned int)(suffix - suffixes + 1);
		if (number > UINT64_MAX >> shift)
			return -ERANGE;
		number <<= shift;
	}
	*value = number;
	return 0;
}

int parse_size(const char *text, uint64_t *value)
{
	bool suffixed;

	return parse_suffixed(text, value, &suffixed);
}

uint64_t need_number(const char *option, const char *text, uint64_t min, uint64_t max)
{
	uint64_t value;
	bool suffixed;

	if (parse_suffixed(text, &value, &suffixed) || suffixed || value < min || value > max)
		usage_error("%s got '%s', expects a number from %" PRIu64 " to %" PRIu64, option,
			    text, min, max);
	return value;
}

uint64_t need_mebibytes(const char *option, const char *text, uint64_t min, uint64_t max)
{
	uint64_t value;
	bool suffixed;

	if (parse_suffixed(text, &value, &suffixed) || (!suffixed && value > UINT64_MAX / MIB))
		usage_error("%s got '%s', expects MiB or a size such as 512K, 32M or 1G", option,
			    text);
	if (!suffixed)
		value *= MIB;
	if (value < min || value > max)
		usage_error("%s got '%s', expects %" PRIu64 " to %" PRIu64 " bytes", option, text,
			    min, max);
	return value;
}

unsigned int need_choice(const char *option, const char *text, const char *const *names)
{
	char list[128] = "";
	size_t used = 0;
	unsigned int i;

	for (i = 0; names[i]; i++) {
		if (!strcmp(names[i], text))
			return i;
		used += (size_t)snprintf(list + used, sizeof(list) - used, " %s", names[i]);
		if (used >= sizeof(list))
			used = sizeof(list) - 1;
	}
	usage_error("%s got '%s', expects one of:%s", option, text, list);
}
