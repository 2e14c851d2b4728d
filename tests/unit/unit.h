/* SPDX-License-Identifier: MIT */
/*
 * The unit tests' frame: a table of tests, checks that name what they saw, one line of output a
 * test.
 *
 *	static void adds(void) { CHECK_EQ(1 + 1, 2); }
 *	UNIT_MAIN(TEST(adds))
 *
 * prints `PASS file.adds` or `FAIL file.adds: why`, where file is the source's name without test_
 * and .c; exit status 0 or 1. An argument runs only the tests whose name contains it; a filter that
 * no test matches is a failure, as is a test that made no check.
 *
 * A failed check ends its test (longjmp, so it may stand in a helper; what the test held is
 * leaked). In another thread than the test's it prints the failure and ends the program with 1.
 */
#ifndef PAGURUS_UNIT_H
#define PAGURUS_UNIT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct unit_test {
	const char *name;
	void (*run)(void);
};

#define TEST(fn)                         \
	{                                \
		.name = #fn, .run = (fn) \
	}

#define UNIT_MAIN(...)                                                                             \
	int main(int argc, char **argv)                                                            \
	{                                                                                          \
		static const struct unit_test unit_tests[] = {__VA_ARGS__};                        \
		return unit_main(__FILE__, unit_tests, sizeof(unit_tests) / sizeof(unit_tests[0]), \
				 argc, argv);                                                      \
	}

int unit_main(const char *file, const struct unit_test *tests, size_t nr, int argc, char **argv);

/* One check was made (counted; thread-safe). */
void unit_checked(void);
/* The check on that line failed: end the test. */
void unit_fail(const char *file, int line, const char *fmt, ...)
	__attribute__((noreturn, format(printf, 3, 4)));

#define CHECK(cond)                                                               \
	do {                                                                      \
		unit_checked();                                                   \
		if (!(cond))                                                      \
			unit_fail(__FILE__, __LINE__, "%s does not hold", #cond); \
	} while (0)

/* CHECK with an explanation, printf style. */
#define CHECK_MSG(cond, ...)                                        \
	do {                                                        \
		unit_checked();                                     \
		if (!(cond))                                        \
			unit_fail(__FILE__, __LINE__, __VA_ARGS__); \
	} while (0)

/* Integers of any type up to 64 bits. */
#define CHECK_EQ(a, b)                                                                       \
	do {                                                                                 \
		long long unit_a = (long long)(a), unit_b = (long long)(b);                  \
		unit_checked();                                                              \
		if (unit_a != unit_b)                                                        \
			unit_fail(__FILE__, __LINE__,                                        \
				  "%s is %lld (0x%llx), not %s = %lld (0x%llx)", #a, unit_a, \
				  (unsigned long long)unit_a, #b, unit_b,                    \
				  (unsigned long long)unit_b);                               \
	} while (0)

#define CHECK_STR(a, b)                                                                       \
	do {                                                                                  \
		const char *unit_a = (a), *unit_b = (b);                                      \
		unit_checked();                                                               \
		if (strcmp(unit_a, unit_b) != 0)                                              \
			unit_fail(__FILE__, __LINE__, "%s is \"%s\", not \"%s\"", #a, unit_a, \
				  unit_b);                                                    \
	} while (0)

/* The text contains the part: for messages. */
#define CHECK_HAS(text, part)                                                               \
	do {                                                                                \
		const char *unit_t = (text), *unit_p = (part);                              \
		unit_checked();                                                             \
		if (!strstr(unit_t, unit_p))                                                \
			unit_fail(__FILE__, __LINE__, "\"%s\" does not say \"%s\"", unit_t, \
				  unit_p);                                                  \
	} while (0)

#define CHECK_MEM(a, b, length)                                                               \
	do {                                                                                  \
		unit_checked();                                                               \
		size_t unit_at = unit_differ((a), (b), (length));                             \
		if (unit_at < (size_t)(length))                                               \
			unit_fail(__FILE__, __LINE__, "%s and %s differ at byte %zu", #a, #b, \
				  unit_at);                                                   \
	} while (0)

/* The first byte that differs, or length. */
size_t unit_differ(const void *a, const void *b, size_t length);

/*
 * Numbers for property tests: repeatable, seeded by UNIT_SEED in the environment (default 1); a
 * failure prints the seed. unit_random: 64 bits of *state's sequence. unit_below: 0 .. n-1.
 */
uint64_t unit_seed(void);
uint64_t unit_random(uint64_t *state);
uint64_t unit_below(uint64_t *state, uint64_t n);
void unit_fill_random(uint64_t *state, void *data, size_t length);

/*
 * Make the n-th allocation of this thread from now on fail (1: the next one; malloc, calloc,
 * realloc, aligned_alloc, posix_memalign); 0: none. Returns how many were made since the last call.
 * Fails one allocation only.
 */
unsigned long unit_fail_alloc(unsigned long n);

#endif
