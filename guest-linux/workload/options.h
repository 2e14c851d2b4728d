/* SPDX-License-Identifier: MIT */
/*
 * options - the long options of a program, as a table.
 *
 * For main(), before there are threads: what is wrong is told on standard error, with exit status EXIT_USAGE.
 */
#ifndef WORKLOAD_OPTIONS_H
#define WORKLOAD_OPTIONS_H

#include <stdint.h>

enum option_kind {
	OPTION_END,    /* of the table */
	OPTION_FLAG,   /* bool: becomes true; the only kind without an argument */
	OPTION_SMALL,  /* unsigned int, min to max */
	OPTION_NUMBER, /* uint64_t, min to max */
	OPTION_TIME,   /* int64_t nanoseconds; milliseconds from min to max are given */
	OPTION_BYTES,  /* uint64_t, min to max, as need_mebibytes reads them */
	OPTION_CHOICE, /* an enumeration: the index in names */
};

struct option_row {
	enum option_kind kind;
	const char *name; /* with its dashes */
	void *value;	  /* keeps what it has when the option is not given */
	uint64_t min, max;
	const char *const *names;
};

/* What several programs have, said once. */
#define OPTION_CPU(percent)                                    \
	{                                                      \
		OPTION_SMALL, "--cpu", (percent), 1, 100, NULL \
	}
#define OPTION_SEED(seed)                                            \
	{                                                            \
		OPTION_NUMBER, "--seed", (seed), 0, UINT64_MAX, NULL \
	}
#define OPTION_REPORT(ns)                                       \
	{                                                       \
		OPTION_TIME, "--report", (ns), 1, 3600000, NULL \
	}
#define OPTION_COUNT(count)                                            \
	{                                                              \
		OPTION_NUMBER, "--count", (count), 0, UINT32_MAX, NULL \
	}
#define OPTION_INTERVAL(ns)                                     \
	{                                                       \
		OPTION_TIME, "--interval", (ns), 1, 10000, NULL \
	}
#define OPTION_PORT(port)                                           \
	{                                                           \
		OPTION_SMALL, "--port", (port), 1, UINT16_MAX, NULL \
	}
#define OPTION_ROWS_END                            \
	{                                          \
		OPTION_END, NULL, NULL, 0, 0, NULL \
	}

/*
 * Reads the options of the table (at most 15) and --help, which calls usage() and exits with 0. Returns the index of the first word that
 * is no option.
 */
int options_read(int argc, char **argv, const struct option_row *rows, void (*usage)(void));

#endif
