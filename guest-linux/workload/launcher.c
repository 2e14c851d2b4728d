// SPDX-License-Identifier: MIT
/*
 * launcher - starts the workload programs that the kernel command line asks for.
 *
 * Every line that a program prints is passed on as one write with the program's name before it, so that
 * the lines of several do not mix on a console. A program that ends is reported, not started again.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmdline.h"
#include "options.h"
#include "parse.h"

#define PARAMETER    "pagurus.run"
#define MAX_PROGRAMS 16
#define MAX_WORDS    32
#define MAX_NAME     40
#define MAX_LINE     512

struct program {
	char name[MAX_NAME];
	char *words[MAX_WORDS + 1]; /* into the specification */
	pid_t pid;
	int fd;		     /* its output, -1 after its end */
	size_t prefix, used; /* of line: the name and what was collected after it */
	char line[MAX_NAME + 2 + MAX_LINE + 1];
};

static struct program programs[MAX_PROGRAMS];
static unsigned int count;

/* The second program of a name is called name.2, and so on. */
static void set_name(struct program *program)
{
	unsigned int same = 1, i;

	for (i = 0; i < count; i++)
		same += !strcmp(programs[i].words[0], program->words[0]);
	if (same == 1)
		snprintf(program->name, sizeof(program->name), "%.32s", program->words[0]);
	else
		snprintf(program->name, sizeof(program->name), "%.32s.%u", program->words[0], same);
}

/* Splits "name word word; name word" in place into programs[]. */
static void parse_spec(char *spec)
{
	char *command, *word, *rest, *inner;
	unsigned int words;

	for (command = strtok_r(spec, ";", &rest); command; command = strtok_r(NULL, ";", &rest)) {
		struct program *program = &programs[count];

		if (count == MAX_PROGRAMS)
			usage_error("more than %d programs in '" PARAMETER "'", MAX_PROGRAMS);
		words = 0;
		for (word = strtok_r(command, " \t\n", &inner); word;
		     word = strtok_r(NULL, " \t\n", &inner)) {
			if (words == MAX_WORDS)
				usage_error("more than %d words for '%s'", MAX_WORDS,
					    program->words[0]);
			program->words[words++] = word;
		}
		if (words == 0)
			continue;
		if (strchr(program->words[0], '/'))
			usage_error(
				"'%s' is a path, expects the name of a program beside the launcher",
				program->words[0]);
		set_name(program);
		count++;
	}
}

/* Where this program is, and so the others. */
static int find_directory(char *directory, size_t size)
{
	ssize_t n = readlink("/proc/self/exe", directory, size - 1);
	char *slash;

	if (n < 0)
		return -errno;
	directory[n] = '\0';
	slash = strrchr(directory, '/');
	if (!slash)
		return -ENOENT;
	*slash = '\0';
	return 0;
}

static int start(struct program *program, const char *directory)
{
	char path[4096];
	int output[2], null;

	snprintf(path, sizeof(path), "%s/%s", directory, program->words[0]);
	if (pipe2(output, O_CLOEXEC))
		return -errno;
	program->pid = fork();
	if (program->pid < 0) {
		close(output[0]);
		close(output[1]);
		return -errno;
	}
	if (program->pid == 0) {
		null = open("/dev/null", O_RDONLY);
		if (null >= 0)
			dup2(null, STDIN_FILENO);
		dup2(output[1], STDOUT_FILENO);
		dup2(output[1], STDERR_FILENO);
		execv(path, program->words);
		dprintf(STDERR_FILENO, "LAUNCHER cannot run %s: %s\n", path, strerror(errno));
		_exit(127);
	}
	close(output[1]);
	program->fd = output[0];
	program->used = 0;
	program->prefix = strlen(program->name) + 2;
	memcpy(program->line, program->name, program->prefix - 2);
	memcpy(program->line + program->prefix - 2, ": ", 2);
	return 0;
}

/* Console errors are nothing that could be told to anybody: they are passed over. */
static void write_all(const char *text, size_t length)
{
	ssize_t n;

	while (length) {
		n = write(STDOUT_FILENO, text, length);
		if (n < 0 && errno != EINTR)
			return;
		if (n > 0) {
			text += n;
			length -= (size_t)n;
		}
	}
}

static void flush_line(struct program *program)
{
	program->line[program->prefix + program->used] = '\n';
	write_all(program->line, program->prefix + program->used + 1);
	program->used = 0;
}

/* Returns false at the end of the program's output. */
static bool pass_on(struct program *program)
{
	char chunk[4096];
	ssize_t n, i;

	n = read(program->fd, chunk, sizeof(chunk));
	if (n < 0)
		return errno == EINTR;
	for (i = 0; i < n; i++) {
		if (chunk[i] != '\n')
			program->line[program->prefix + program->used++] = chunk[i];
		if (chunk[i] == '\n' || program->used == MAX_LINE)
			flush_line(program);
	}
	return n > 0;
}

/* Says how the program ended; returns whether it ended well. */
static bool bury(struct program *program)
{
	char line[MAX_NAME + 64];
	int status, n;

	if (program->used)
		flush_line(program);
	close(program->fd);
	program->fd = -1;
	while (waitpid(program->pid, &status, 0) < 0)
		if (errno != EINTR)
			return false;
	if (WIFEXITED(status))
		n = snprintf(line, sizeof(line), "%s: EXITED status=%d\n", program->name,
			     WEXITSTATUS(status));
	else
		n = snprintf(line, sizeof(line), "%s: KILLED signal=%d\n", program->name,
			     WTERMSIG(status));
	write_all(line, (size_t)n);
	return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int watch(void)
{
	struct pollfd slots[MAX_PROGRAMS];
	unsigned int running = count, i;
	bool good = true;

	while (running) {
		for (i = 0; i < count; i++)
			slots[i] = (struct pollfd){.fd = programs[i].fd, .events = POLLIN};
		if (poll(slots, count, -1) < 0) {
			if (errno == EINTR)
				continue;
			perror("launcher: cannot wait for output");
			return 1;
		}
		for (i = 0; i < count; i++) {
			if (!slots[i].revents || pass_on(&programs[i]))
				continue;
			good &= bury(&programs[i]);
			running--;
		}
	}
	return good ? 0 : 1;
}

static void usage(void)
{
	puts("Usage: launcher [SPEC]\n"
	     "Starts the programs of SPEC, or of pagurus.run on the kernel command line, and passes\n"
	     "on what they print, with their names before each line.\n"
	     "\n"
	     "  pagurus.run=\"ticker; verifier 32M; dirtier --rate 10M 16M\"\n"
	     "\n"
	     "Programs are separated by semicolons, words by blanks; the programs are those beside\n"
	     "the launcher. The second of a name is called name.2. The end of one is told as\n"
	     "'name: EXITED status=N' or 'name: KILLED signal=N'; the launcher ends with the last,\n"
	     "with status 0 when all ended with 0. Without pagurus.run it does nothing.");
}

int main(int argc, char **argv)
{
	static const struct option_row options[] = {OPTION_ROWS_END};
	static char spec[CMDLINE_MAX];
	char directory[2048];
	unsigned int i;
	int word = options_read(argc, argv, options, usage), rc;

	if (word + 1 < argc)
		usage_error("unexpected '%s'", argv[word + 1]);
	if (word < argc) {
		size_t length = strlen(argv[word]);

		if (length >= sizeof(spec))
			usage_error("SPEC is longer than %d characters", CMDLINE_MAX - 1);
		memcpy(spec, argv[word], length + 1);
	} else {
		rc = cmdline_value(PARAMETER, spec);
		if (rc == -ENOENT)
			return 0;
		if (rc) {
			fprintf(stderr,
				"launcher: cannot read pagurus.run from /proc/cmdline: %s\n",
				strerror(-rc));
			return 1;
		}
	}
	parse_spec(spec);
	rc = find_directory(directory, sizeof(directory));
	for (i = 0; !rc && i < count; i++)
		rc = start(&programs[i], directory);
	if (rc) {
		fprintf(stderr, "launcher: cannot start the programs: %s\n", strerror(-rc));
		return 1;
	}
	return watch();
}
