/* SPDX-License-Identifier: MIT */
/*
 * cmdline - values of parameters on the kernel command line.
 *
 * Any thread.
 */
#ifndef WORKLOAD_CMDLINE_H
#define WORKLOAD_CMDLINE_H

/* COMMAND_LINE_SIZE of Linux on x86: no value with its end is longer. */
#define CMDLINE_MAX 2048

/*
 * Copies the value of the first "@name=value" in the command line @text to @value. The value ends at a
 * blank, or at the closing quote when a quote stands before the value or before the name (the kernel
 * allows both). Returns 0; -ENOENT when there is none; -E2BIG when the value is too long.
 */
int cmdline_find(const char *text, const char *name, char value[CMDLINE_MAX]);

/* The same, of the running kernel; also returns the errors of opening /proc/cmdline. */
int cmdline_value(const char *name, char value[CMDLINE_MAX]);

#endif
