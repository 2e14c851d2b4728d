// SPDX-License-Identifier: MIT
#include "storage/command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/text.h"

#define PIECE 4096u

/* ---- what it says ---- */

struct text {
	int fd;
	char *data; /* and a 0 at its end */
	size_t length, room;
	int error;
};

/* Twice as much each time, so that little of it is copied often. */
static void add(struct text *t, const char *piece, size_t length)
{
	if (t->length + length > COMMAND_OUTPUT_MAX)
		t->error = -EFBIG;
	if (!t->error && t->length + length + 1 > t->room) {
		size_t room = 2 * t->room + length + 1;
		char *more = realloc(t->data, room);

		if (more) {
			t->data = more;
			t->room = room;
		} else {
			t->error = -ENOMEM;
		}
	}
	if (t->error)
		return;
	memcpy(t->data + t->length, piece, length);
	t->length += length;
	t->data[t->length] = 0;
}

/* What is there now; false: nothing more will come. */
static bool take(struct text *t)
{
	for (;;) {
		char piece[PIECE];
		ssize_t n = read(t->fd, piece, sizeof(piece));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 && errno == EAGAIN;
		add(t, piece, (size_t)n);
	}
}

/* Until the program has ended: what it has started may have its output for longer. */
static void listen_to(struct text *out, struct text *said, int process)
{
	struct pollfd fds[] = {{.fd = out->fd, .events = POLLIN},
			       {.fd = said->fd, .events = POLLIN},
			       {.fd = process, .events = POLLIN}};

	do {
		if (poll(fds, 3, -1) < 0 && errno != EINTR)
			break;
		if (fds[0].fd >= 0 && !take(out))
			fds[0].fd = -1;
		if (fds[1].fd >= 0 && !take(said))
			fds[1].fd = -1;
	} while (!(fds[2].revents & POLLIN));
	take(out);
	take(said);
}

/* ---- starting it ---- */

struct pipes {
	int out[2], said[2];
};

static void close_pipes(struct pipes *p)
{
	const int all[] = {p->out[0], p->out[1], p->said[0], p->said[1]};

	for (unsigned i = 0; i < 4; i++)
		if (all[i] >= 0)
			close(all[i]);
}

static int prepare(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes,
		   const struct pipes *p)
{
	sigset_t none, all;
	int ret;

	sigemptyset(&none);
	sigfillset(&all);
	ret = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
	if (!ret)
		ret = posix_spawn_file_actions_adddup2(actions, p->out[1], 1);
	if (!ret)
		ret = posix_spawn_file_actions_adddup2(actions, p->said[1], 2);
	if (!ret)
		ret = posix_spawn_file_actions_addclosefrom_np(actions, 3);
	if (!ret)
		ret = posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETPGROUP |
								   POSIX_SPAWN_SETSIGMASK |
								   POSIX_SPAWN_SETSIGDEF);
	if (!ret)
		ret = posix_spawnattr_setsigmask(attributes, &none);
	if (!ret)
		ret = posix_spawnattr_setsigdefault(attributes, &all);
	return ret;
}

/* Ours, in the language C. *out has to be freed, and nothing in it. */
static int environment(char ***out)
{
	static char language[] = "LC_ALL=C";
	size_t nr = 0, k = 0;

	while (environ[nr])
		nr++;
	*out = calloc(nr + 2, sizeof(**out));
	if (!*out)
		return ENOMEM;
	for (size_t i = 0; i < nr; i++)
		if (strncmp(environ[i], "LC_ALL=", 7) != 0)
			(*out)[k++] = environ[i];
	(*out)[k] = language;
	return 0;
}

static int start(const char *const *argv, const struct pipes *p, pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	char **env = NULL;
	int ret;

	posix_spawn_file_actions_init(&actions);
	posix_spawnattr_init(&attributes);
	ret = prepare(&actions, &attributes, p);
	if (!ret)
		ret = environment(&env);
	if (!ret)
		ret = posix_spawn(pid, argv[0], &actions, &attributes, (char *const *)argv, env);
	free(env);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return -ret;
}

/* ---- how it ended ---- */

/* The last line of what it said that says something, for a message. */
static void last_words(const struct text *said, char *out, size_t size)
{
	size_t end = said->length, begin;

	while (end && (said->data[end - 1] == '\n' || said->data[end - 1] == ' '))
		end--;
	for (begin = end; begin && said->data[begin - 1] != '\n'; begin--)
		;
	while (begin < end && said->data[begin] == ' ')
		begin++;
	text_plain(out, size, end ? said->data + begin : "it does not say why",
		   end ? end - begin : strlen("it does not say why"));
}

static int judge(const char *const *argv, int status, const struct text *out,
		 const struct text *said, struct pgr_error *err)
{
	char words[600];

	if (WIFEXITED(status) && !WEXITSTATUS(status) && !out->error)
		return 0;
	if (out->error)
		return pgr_fail_errno(err, out->error, "%s: its output cannot be read", argv[0]);
	if (WIFSIGNALED(status))
		return pgr_fail(err, -EIO, "%s %s: ended by signal %d", argv[0],
				argv[1] ? argv[1] : "", WTERMSIG(status));
	last_words(said, words, sizeof(words));
	return pgr_fail(err, -EIO, "%s %s: %s", argv[0], argv[1] ? argv[1] : "", words);
}

static int wait_for_end(pid_t pid, struct text *out, struct text *said, int *status)
{
	int process = pidfd_open(pid, 0), ret = process < 0 ? -errno : 0;

	if (!ret) {
		listen_to(out, said, process);
		close(process);
	} else {
		kill(pid, SIGKILL);
	}
	while (waitpid(pid, status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return ret;
}

int command_run(const char *const *argv, char **out, struct pgr_error *err)
{
	struct pipes p = {{-1, -1}, {-1, -1}};
	struct text text = {.fd = -1}, said = {.fd = -1};
	int status = 0, ret = 0;
	pid_t pid = 0;

	if (pipe2(p.out, O_CLOEXEC) || pipe2(p.said, O_CLOEXEC) ||
	    fcntl(p.out[0], F_SETFL, O_NONBLOCK) || fcntl(p.said[0], F_SETFL, O_NONBLOCK))
		ret = -errno;
	if (!ret)
		ret = start(argv, &p, &pid);
	if (ret) {
		close_pipes(&p);
		return pgr_fail_errno(err, ret, "%s: cannot be started", argv[0]);
	}
	close(p.out[1]);
	close(p.said[1]);
	p.out[1] = p.said[1] = -1;
	text.fd = p.out[0];
	said.fd = p.said[0];
	ret = wait_for_end(pid, &text, &said, &status);
	close_pipes(&p);
	if (ret)
		pgr_fail_errno(err, ret, "%s: cannot be waited for", argv[0]);
	else
		ret = judge(argv, status, &text, &said, err);
	free(said.data);
	if (!ret && out) {
		*out = text.data ? text.data : strdup("");
		return *out ? 0 : pgr_fail(err, -ENOMEM, "%s: no memory for its output", argv[0]);
	}
	free(text.data);
	return ret;
}
