/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/options.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

static const struct option_spec *find(const struct usage *u, const char *name, size_t length)
{
	const struct option_spec *o;

	for (o = u->options; o && o->name; o++)
		if (strlen(o->name) == length && !memcmp(o->name, name, length))
			return o;
	return NULL;
}

static void print_help(const struct usage *u)
{
	const struct option_spec *o;
	char left[64];

	printf("Usage: %s\n\n%s\n", u->synopsis, u->about);
	puts("\nOptions:");
	for (o = u->options; o && o->name; o++) {
		snprintf(left, sizeof(left), "--%s%s%s", o->name, o->argument ? " " : "",
			 o->argument ? o->argument : "");
		printf("  %-24s %s\n", left, o->help);
	}
	printf("  %-24s %s\n", "--help", "show this text");
}

int options_complain(const struct usage *u, const char *fmt, ...)
{
	va_list ap;

	fputs("pagurus: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nUsage: %s\n", u->synopsis);
	return EXIT_USAGE;
}

static int set_number(const struct usage *u, const struct option_spec *o, const char *text,
		      int (*parse)(const char *, uint64_t *), const char *like)
{
	uint64_t value;
	int rc = parse(text, &value);

	if (rc == -ERANGE)
		return options_complain(u, "--%s %s: the number is too large", o->name, text);
	if (rc)
		return options_complain(u, "--%s %s: not understood; write it like %s", o->name,
					text, like);
	if (value < o->min)
		return options_complain(u, "--%s %s: too small", o->name, text);
	if (o->max && value > o->max)
		return options_complain(u, "--%s %s: too large, at most %llu", o->name, text,
					(unsigned long long)o->max);
	*(uint64_t *)o->value = value;
	return 0;
}

static int set_value(const struct usage *u, const struct option_spec *o, const char *text)
{
	switch (o->kind) {
	case OPTION_FLAG:
		*(bool *)o->value = true;
		return 0;
	case OPTION_STRING:
		*(const char **)o->value = text;
		return 0;
	case OPTION_COUNT:
		return set_number(u, o, text, units_count, "4");
	case OPTION_SIZE:
		return set_number(u, o, text, units_size, "100M or 1.5G");
	case OPTION_RATE:
		return set_number(u, o, text, units_rate, "100M (bytes a second) or 1Gbit");
	case OPTION_MS:
		return set_number(u, o, text, units_ms, "300ms or 2s");
	}
	return EXIT_USAGE;
}

bool options_parse(const struct usage *u, int argc, char **argv, int *count, int *status)
{
	const struct option_spec *o;
	const char *name, *value;
	size_t length;
	bool only_arguments = false;
	int i, n = 0;

	for (i = 1; i < argc; i++) {
		if (only_arguments || argv[i][0] != '-' || !argv[i][1]) {
			argv[n++] = argv[i];
			continue;
		}
		if (!strcmp(argv[i], "--")) {
			only_arguments = true;
			continue;
		}
		if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			print_help(u);
			*status = EXIT_OK;
			return false;
		}
		name = argv[i] + 1 + (argv[i][1] == '-');
		length = strcspn(name, "=");
		o = argv[i][1] == '-' ? find(u, name, length) : NULL;
		if (!o) {
			*status = options_complain(u, "there is no option %s", argv[i]);
			return false;
		}
		value = name[length] ? name + length + 1 : NULL;
		if (o->kind == OPTION_FLAG && value) {
			*status = options_complain(u, "--%s takes no value", o->name);
			return false;
		}
		if (o->kind != OPTION_FLAG && !value) {
			if (i + 1 == argc) {
				*status = options_complain(u, "--%s needs a value: %s", o->name,
							   o->argument);
				return false;
			}
			value = argv[++i];
		}
		*status = set_value(u, o, value);
		if (*status)
			return false;
	}
	if (n < (int)u->min_arguments || n > (int)u->max_arguments) {
		*status = options_complain(u,
					   n < (int)u->min_arguments
						   ? "something is missing on the command line"
						   : "too much on the command line: %s",
					   n > 0 ? argv[n - 1] : "");
		return false;
	}
	*count = n;
	return true;
}

static int list_actions(const struct option_action *actions, unsigned nr, const char *verb,
			FILE *to, int status)
{
	fprintf(to, "Usage: pagurus %s ACTION [OPTIONS] ...\n\n", verb);
	for (unsigned i = 0; i < nr; i++)
		fprintf(to, "  %-8s %s\n", actions[i].name, actions[i].about);
	return status;
}

int options_run_action(const struct option_action *actions, unsigned nr, int argc, char **argv)
{
	if (argc >= 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
		return list_actions(actions, nr, argv[0], stdout, EXIT_OK);
	for (unsigned i = 0; argc >= 2 && i < nr; i++)
		if (!strcmp(argv[1], actions[i].name))
			return actions[i].run(argc - 1, argv + 1);
	return list_actions(actions, nr, argv[0], stderr, EXIT_USAGE);
}
