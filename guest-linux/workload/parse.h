/* SPDX-License-Identifier: MIT */
/*
 * parse - numbers and sizes from a command line, checked.
 *
 * The need_* functions are for main(): on a bad value they print to standard error which option of
 * which program got what and what it expects, and exit with EXIT_USAGE. Main thread only.
 */
#ifndef WORKLOAD_PARSE_H
#define WORKLOAD_PARSE_H

#include <stdint.h>

/* Exit status for a wrong command line. */
#define EXIT_USAGE 2

/*
 * Reads a decimal number with an optional suffix K, M or G (powers of 1024) into *@value.
 * Returns 0; -EINVAL when @text is not such a number; -ERANGE when it does not fit 64 bits.
 */
int parse_size(const char *text, uint64_t *value);

/* A plain number, @min to @max, given as @option. */
uint64_t need_number(const char *option, const char *text, uint64_t min, uint64_t max);

/* Bytes, @min to @max, given as @option; a number without a suffix counts MiB. */
uint64_t need_mebibytes(const char *option, const char *text, uint64_t min, uint64_t max);

/* The index of @text in @names, which ends with NULL, given as @option. */
unsigned int need_choice(const char *option, const char *text, const char *const *names);

/* Says what is wrong with the command line and how to get help; does not return. */
_Noreturn void usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
