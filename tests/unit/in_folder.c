// SPDX-License-Identifier: MIT
#include "tests/unit/in_folder.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "tests/unit/unit.h"

int in_folder(const char *folder, const char *format, ...)
{
	char command[2048];
	va_list ap;
	int n, status;

	n = snprintf(command, sizeof(command), "cd %s && exec </dev/null >log 2>&1 && ", folder);
	va_start(ap, format);
	vsnprintf(command + n, sizeof(command) - (size_t)n, format, ap);
	va_end(ap);
	status = system(command); /* NOLINT(cert-env33-c): the command is the test's own */
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

bool in_folder_has_qemu(const char *folder)
{
	CHECK(folder[0] != '\0');
	return in_folder(folder, "command -v qemu-img && command -v qemu-io") == 0;
}
