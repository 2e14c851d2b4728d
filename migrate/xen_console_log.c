// SPDX-License-Identifier: MIT
#include "migrate/xen_console_log.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* Where Debian's and upstream's start scripts have it write its process number. */
static const char *const pid_files[] = {"/run/xenconsoled.pid", "/run/xen/xenconsoled.pid"};

/* A number in an old file may be another process by now. */
static bool is_xenconsoled(long pid)
{
	char path[64], name[32] = "";
	bool is = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%ld/comm", pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (fgets(name, sizeof(name), f))
		is = !strcmp(name, "xenconsoled\n");
	fclose(f);
	return is;
}

void xen_console_log_remove(const char *name)
{
	char path[512];

	/* A name with a slash would be another folder's file; no guest's name has one. */
	if (strchr(name, '/'))
		return;
	snprintf(path, sizeof(path), "/var/log/xen/console/guest-%s.log", name);
	unlink(path);
}

void xen_console_log_reopen(void)
{
	unsigned i;
	long pid;
	FILE *f;

	for (i = 0; i < sizeof(pid_files) / sizeof(pid_files[0]); i++) {
		f = fopen(pid_files[i], "re");
		if (!f)
			continue;
		pid = 0;
		if (fscanf(f, "%ld", &pid) == 1 && pid > 1 && is_xenconsoled(pid))
			kill((pid_t)pid, SIGHUP);
		fclose(f);
	}
}
