/* SPDX-License-Identifier: MIT */
/*
 * Errors that a person can act on.
 *
 * Every function that can fail returns a negative errno and fills a struct pgr_error given by the caller with one sentence:
 * what failed, where, why, what to do. The caller owns the structure; no function keeps it. Not thread-safe: one per thread.
 */
#ifndef PAGURUS_ERROR_H
#define PAGURUS_ERROR_H

struct pgr_error {
	int code;	 /* negative errno, 0: none */
	char text[1024]; /* one line without newline, UTF-8 */
};

#define PGR_ERROR_NONE ((struct pgr_error){0})

/* Record CODE (negative errno) and the formatted text; returns CODE. A null err is allowed. */
int pgr_fail(struct pgr_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The same, appending ": " and strerror(-code). */
int pgr_fail_errno(struct pgr_error *err, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* Put "PREFIX: " before the text that is there (what the caller was doing); returns err->code. */
int pgr_fail_prefix(struct pgr_error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#ifdef __clang_analyzer__
/* It reads one file at a time: tell it that what comes back is CODE. */
#define pgr_fail(err, code, ...)       ((void)(pgr_fail)(err, code, __VA_ARGS__), (code))
#define pgr_fail_errno(err, code, ...) ((void)(pgr_fail_errno)(err, code, __VA_ARGS__), (code))
#endif

#endif
