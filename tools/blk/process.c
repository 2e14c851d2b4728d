// SPDX-License-Identifier: MIT
#include "tools/blk/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/blk/control.h"

#define OUT_OF_THE_WAY 10

int process_make_folder(struct pgr_error *err)
{
	if ((mkdir("/run/pagurus", 0755) && errno != EEXIST) ||
	    (mkdir(PROCESS_JOURNALS, 0700) && errno != EEXIST))
		return pgr_fail_errno(err, -errno, PROCESS_JOURNALS ": cannot be made");
	return 0;
}

int process_journal_open(struct process_journal *j, uint32_t domid, unsigned devid,
			 struct pgr_error *err)
{
	*j = (struct process_journal){.fd = -1, .memory = MAP_FAILED};
	snprintf(j->path, sizeof(j->path), PROCESS_JOURNALS "/%u-%u", domid, devid);
	if (process_make_folder(err))
		return err->code;
	j->fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (j->fd >= 0 && ftruncate(j->fd, (off_t)pv_journal_size()) == 0)
		j->memory = mmap(NULL, pv_journal_size(), PROT_READ, MAP_SHARED, j->fd, 0);
	if (j->memory != MAP_FAILED)
		return 0;
	pgr_fail_errno(err, -errno, "%s: cannot be used", j->path);
	if (j->fd >= 0)
		close(j->fd);
	return err->code;
}

uint64_t process_journal_generation(const struct process_journal *j)
{
	return pv_journal_peek_generation(j->memory);
}

void process_journal_remove(struct process_journal *j)
{
	munmap(j->memory, pv_journal_size());
	close(j->fd);
	unlink(j->path);
}

static void __attribute__((noreturn)) become(int control, int second, char *const argv[])
{
	sigset_t none;
	/* Neither may be where the other has to go. */
	int c = fcntl(control, F_DUPFD, OUT_OF_THE_WAY), j = fcntl(second, F_DUPFD, OUT_OF_THE_WAY);

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (c >= 0 && j >= 0 && dup2(c, CONTROL_FD) >= 0 && dup2(j, SECOND_FD) >= 0) {
		close(c);
		close(j);
		execv("/proc/self/exe", argv);
	}
	_exit(127);
}

/* With a socket to it in *control, and `second`, which stays the caller's, as its SECOND_FD. */
static pid_t start(char *const argv[], int second, const char *name, int *control,
		   struct pgr_error *err)
{
	int pair[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return pgr_fail_errno(err, -errno, "%s: no socket for its process", name);
	pid = fork();
	if (!pid)
		become(pair[1], second, argv);
	if (pid < 0)
		pgr_fail_errno(err, -errno, "%s: its process cannot be started", name);
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		return err->code;
	}
	*control = pair[0];
	return pid;
}

/* exec() takes the words of both without const. */
pid_t process_start(const struct process_journal *j, uint32_t domid, uid_t uid, const char *name,
		    int *control, struct pgr_error *err)
{
	char domid_text[16], uid_text[16];
	char *const argv[] = {
		(char *)"pagurus-blk", (char *)"--serve", domid_text, uid_text, (char *)name, NULL};

	snprintf(domid_text, sizeof(domid_text), "%u", domid);
	snprintf(uid_text, sizeof(uid_text), "%u", (unsigned)uid);
	return start(argv, j->fd, name, control, err);
}

pid_t process_start_relay(const char *uri, int disk, uid_t uid, int *control, struct pgr_error *err)
{
	char uid_text[16];
	char *const argv[] = {(char *)"pagurus-blk", (char *)"--relay", uid_text, (char *)uri,
			      NULL};

	snprintf(uid_text, sizeof(uid_text), "%u", (unsigned)uid);
	return start(argv, disk, uri, control, err);
}
