// SPDX-License-Identifier: MIT
/* The log of a guest's console after its domain got another name: a process in xenconsoled's place that misses signals. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "migrate/xen_console_log.h"
#include "tests/unit/unit.h"

static char path[] = "/tmp/test_xen_console_log.XXXXXX";

/* Has the file open until so many SIGHUPs came; -1: for good. */
static pid_t keeper(int signals)
{
	int ready[2];
	char byte;
	pid_t pid;

	CHECK(!pipe2(ready, O_CLOEXEC));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		int fd = open(path, O_WRONLY | O_CLOEXEC), got;
		sigset_t hup;

		sigemptyset(&hup);
		sigaddset(&hup, SIGHUP);
		sigprocmask(SIG_BLOCK, &hup, NULL);
		if (fd < 0 || write(ready[1], "", 1) != 1)
			_exit(1);
		for (int i = 0; i != signals; i++)
			sigwait(&hup, &got);
		close(fd);
		for (;;)
			pause();
	}
	CHECK_EQ(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static bool lets_go(int signals)
{
	int fd = mkstemp(path);
	bool went;
	pid_t pid;

	CHECK(fd >= 0);
	close(fd);
	pid = keeper(signals);
	went = xen_console_log_let_go(pid, path);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	CHECK(!unlink(path));
	memset(path + sizeof(path) - 7, 'X', 6);
	return went;
}

static void signals_that_are_lost_are_sent_again(void)
{
	CHECK(lets_go(0));
	CHECK(lets_go(1));
	CHECK(lets_go(3));
}

static void what_stays_open_is_said(void)
{
	CHECK(!lets_go(-1));
}

static void what_nobody_has_open(void)
{
	CHECK(xen_console_log_let_go(getpid(), "/nonexistent/guest-x.log"));
	CHECK(xen_console_log_let_go(getpid(), "/etc/passwd"));
	/* A process that is gone. */
	CHECK(xen_console_log_let_go(0x3fffffff, "/etc/passwd"));
}

UNIT_MAIN(TEST(signals_that_are_lost_are_sent_again), TEST(what_stays_open_is_said),
	  TEST(what_nobody_has_open))
