/* SPDX-License-Identifier: MIT */
/*
 * What the hypervisor says: to the serial console and into a ring that `xl dmesg` reads. Any context, any CPU; lines of one call
 * stay together. Formats: %d %u %x, with l, ll or z, %s, %.*s and %%; widths, with 0 before them.
 */
#pragma once

#include <stdarg.h>

#include "vmm/lib/types.h"

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };
#define LOG_RING_BYTES (64u << 10)

/* What is printed to the console; the ring gets more: all but LOG_DEBUG. From the command line's loglvl=. */
extern enum log_level log_console_level;

/* One line or several; a missing newline is added. */
void log_print(enum log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
#define log_error(...)	 log_print(LOG_ERROR, __VA_ARGS__)
#define log_warning(...) log_print(LOG_WARNING, __VA_ARGS__)
#define log_info(...)	 log_print(LOG_INFO, __VA_ARGS__)
#define log_debug(...)	 log_print(LOG_DEBUG, __VA_ARGS__)

/* Bytes of a guest's console, as they are: to the serial console, not into the ring. */
void log_raw(const char *text, size_t length);

/* The hypervisor dies: from here on nobody waits for the log's lock for long. Before the first line of a panic. */
void log_force(void);
/* What bug() and give_up() end with (cpu/traps.c): halt or restart the machine. */
void panic_stop(void) __attribute__((noreturn, cold));
/* It cannot go on for a reason that is not its own fault: one line, which says what is wrong and what to do. */
void give_up(const char *format, ...) __attribute__((noreturn, cold, format(printf, 1, 2)));
/* The console has come up: print what was said before. */
void log_replay(void);

/*
 * Copy what the ring holds from position *index on (0: from its oldest byte); returns the number of bytes copied and moves *index behind
 * them. For sysctl readconsole.
 */
size_t log_read(uint32_t *index, char *out, size_t size);
void log_clear(void);

int format_string(char *out, size_t size, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
int format_string_v(char *out, size_t size, const char *format, va_list args)
	__attribute__((format(printf, 3, 0)));
