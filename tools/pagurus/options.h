/* SPDX-License-Identifier: MIT */
/*
 * A verb's command line: one table says what it accepts, and the same table is its --help.
 */
#ifndef PAGURUS_OPTIONS_H
#define PAGURUS_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>

enum option_kind {
	OPTION_FLAG,   /* bool */
	OPTION_STRING, /* const char *, into argv */
	OPTION_COUNT,  /* uint64_t between min and max */
	OPTION_SIZE,   /* uint64_t, bytes */
	OPTION_RATE,   /* uint64_t, bytes a second */
	OPTION_MS,     /* uint64_t, milliseconds */
};

struct option_spec {
	const char *name; /* without the dashes; NULL ends the table */
	enum option_kind kind;
	void *value;	      /* what kind says; set only when the option is given */
	const char *argument; /* how --help names it, NULL for a flag */
	const char *help;
	uint64_t min, max; /* numbers; max 0: no bound */
};

struct usage {
	const char *synopsis; /* "pagurus migrate [OPTIONS] GUEST HOST[:PORT]" */
	const char *about;    /* a few lines */
	const struct option_spec *options;
	unsigned min_arguments, max_arguments;
};

/*
 * Sort argv[1..] into options (anywhere, "--name=value" or "--name value", "--" ends them) and arguments, which are left in
 * argv[0 .. *count-1] in their order. True: go on. False: *status is the exit status (--help was shown, or the complaint).
 */
bool options_parse(const struct usage *u, int argc, char **argv, int *count, int *status);

/* What comes after a verb that has several: `pagurus host ACTION`. */
struct option_action {
	const char *name;
	int (*run)(int argc, char **argv); /* argv[0] is its name; the exit status */
	const char *about;
};

/* Run the one that argv[1] names, argv[0] being the verb's own; else their list: asked for by --help, or with EXIT_USAGE. */
int options_run_action(const struct option_action *actions, unsigned nr, int argc, char **argv);

/* "pagurus: " TEXT and where to look, on standard error. Returns EXIT_USAGE. */
int options_complain(const struct usage *u, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
