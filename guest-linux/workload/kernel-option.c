// SPDX-License-Identifier: MIT
/*
 * kernel-option - prints the value of a parameter on the kernel command line, for the guests' scripts.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmdline.h"
#include "parse.h"

int main(int argc, char **argv)
{
	char value[CMDLINE_MAX];
	int rc;

	if (argc == 2 && !strcmp(argv[1], "--help")) {
		puts("Usage: kernel-option NAME [TEXT]\n"
		     "Prints the value of NAME=value or NAME=\"a value\" on the kernel command line, or in\n"
		     "TEXT. The exit status is 1 when there is none.");
		return 0;
	}
	if (argc != 2 && argc != 3)
		usage_error("expects one NAME");
	if (argc == 3)
		rc = cmdline_find(argv[2], argv[1], value);
	else
		rc = cmdline_value(argv[1], value);
	if (rc == -ENOENT)
		return 1;
	if (rc) {
		fprintf(stderr, "kernel-option: cannot read %s: %s\n", argv[1], strerror(-rc));
		return 1;
	}
	puts(value);
	return 0;
}
