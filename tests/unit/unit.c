// SPDX-License-Identifier: MIT
/* The unit tests' frame: see unit.h. */
#include "tests/unit/unit.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static atomic_ulong checks;
static _Thread_local jmp_buf *escape; /* set in the thread that runs tests, while it runs one */
static char failure[2048];

void unit_checked(void)
{
	atomic_fetch_add_explicit(&checks, 1, memory_order_relaxed);
}

void unit_fail(const char *file, int line, const char *fmt, ...)
{
	const char *slash = strrchr(file, '/');
	char text[2048];
	va_list ap;
	int n;

	unit_fail_alloc(0);
	n = snprintf(text, sizeof(text), "%s:%d: ", slash ? slash + 1 : file, line);
	va_start(ap, fmt);
	vsnprintf(text + n, sizeof(text) - (size_t)n, fmt, ap);
	va_end(ap);
	if (!escape) {
		printf("FAIL (in a thread): %s (UNIT_SEED=%llu)\n", text,
		       (unsigned long long)unit_seed());
		fflush(stdout);
		_Exit(1);
	}
	memcpy(failure, text, sizeof(failure));
	longjmp(*escape, 1);
}

/* tests/unit/test_stream.c -> stream */
static void suite_name(const char *file, char *out, size_t size)
{
	const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
	char *dot;

	if (strncmp(name, "test_", 5) == 0)
		name += 5;
	snprintf(out, size, "%s", name);
	dot = strrchr(out, '.');
	if (dot)
		*dot = '\0';
}

static bool run_one(const char *suite, const struct unit_test *t)
{
	unsigned long before = atomic_load(&checks);
	jmp_buf here;

	failure[0] = '\0';
	if (setjmp(here) == 0) {
		escape = &here;
		t->run();
	}
	escape = NULL;
	unit_fail_alloc(0);
	if (!failure[0] && atomic_load(&checks) == before)
		snprintf(failure, sizeof(failure), "made no check");
	if (failure[0])
		printf("FAIL %s.%s: %s (UNIT_SEED=%llu)\n", suite, t->name, failure,
		       (unsigned long long)unit_seed());
	else
		printf("PASS %s.%s\n", suite, t->name);
	fflush(stdout);
	return !failure[0];
}

int unit_main(const char *file, const struct unit_test *tests, size_t nr, int argc, char **argv)
{
	const char *filter = argc > 1 ? argv[1] : "";
	size_t ran = 0, failed = 0;
	char suite[128];

	suite_name(file, suite, sizeof(suite));
	for (size_t i = 0; i < nr; i++) {
		if (!strstr(tests[i].name, filter))
			continue;
		ran++;
		if (!run_one(suite, &tests[i]))
			failed++;
	}
	if (!ran) {
		printf("FAIL %s: no test's name contains \"%s\"\n", suite, filter);
		return 1;
	}
	return failed ? 1 : 0;
}

size_t unit_differ(const void *a, const void *b, size_t length)
{
	const uint8_t *x = a, *y = b;

	for (size_t i = 0; i < length; i++) {
		if (x[i] != y[i])
			return i;
	}
	return length;
}

uint64_t unit_seed(void)
{
	const char *text = getenv("UNIT_SEED");

	return text ? strtoull(text, NULL, 0) : 1;
}

uint64_t unit_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

uint64_t unit_below(uint64_t *state, uint64_t n)
{
	return unit_random(state) % n;
}

void unit_fill_random(uint64_t *state, void *data, size_t length)
{
	uint8_t *p = data;

	while (length) {
		uint64_t x = unit_random(state);
		size_t n = length < sizeof(x) ? length : sizeof(x);

		memcpy(p, &x, n);
		p += n;
		length -= n;
	}
}
