// SPDX-License-Identifier: MIT
#include "migrate/xen_console_log.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS	       10000000L
#define LOOKS	       200u
#define LOOKS_A_SIGNAL 20u

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

/* The process number of xenconsoled, or 0. */
static pid_t xenconsoled(void)
{
	long pid = 0;

	for (unsigned i = 0; !pid && i < sizeof(pid_files) / sizeof(pid_files[0]); i++) {
		FILE *f = fopen(pid_files[i], "re");

		if (!f)
			continue;
		if (fscanf(f, "%ld", &pid) != 1 || pid <= 1 || !is_xenconsoled(pid))
			pid = 0;
		fclose(f);
	}
	return (pid_t)pid;
}

/* The path of a guest's log; false for a name with a slash, which would be another folder's file: no guest's name has one. */
static bool log_path(char *path, size_t size, const char *name)
{
	return !strchr(name, '/') &&
	       snprintf(path, size, "/var/log/xen/console/guest-%s.log", name) < (int)size;
}

/* Whether the process has that file open, as far as we may know. */
static bool has_open(pid_t pid, const struct stat *file)
{
	const struct dirent *e;
	bool has = false;
	char path[64];
	struct stat st;
	DIR *d;

	snprintf(path, sizeof(path), "/proc/%ld/fd", (long)pid);
	d = opendir(path);
	while (d && !has && (e = readdir(d)))
		has = !fstatat(dirfd(d), e->d_name, &st, 0) && st.st_dev == file->st_dev &&
		      st.st_ino == file->st_ino;
	if (d)
		closedir(d);
	return has;
}

bool xen_console_log_let_go(pid_t pid, const char *path)
{
	struct timespec look = {.tv_nsec = LOOK_NS};
	struct stat st;

	if (stat(path, &st))
		return true;
	for (unsigned i = 1; has_open(pid, &st); i++) {
		if (i > LOOKS)
			return false;
		if (i % LOOKS_A_SIGNAL == 0)
			kill(pid, SIGHUP);
		nanosleep(&look, NULL);
	}
	return true;
}

void xen_console_log_remove(const char *name)
{
	char path[512];

	if (log_path(path, sizeof(path), name))
		unlink(path);
}

void xen_console_log_leave(const char *name)
{
	pid_t pid = xenconsoled();
	char path[512];

	if (log_path(path, sizeof(path), name) && (!pid || xen_console_log_let_go(pid, path)))
		unlink(path);
}

void xen_console_log_reopen(void)
{
	pid_t pid = xenconsoled();

	if (pid)
		kill(pid, SIGHUP);
}
