// SPDX-License-Identifier: MIT
/*
 * pagurus-freeze - runs in a guest, and freezes its file systems while the host takes a snapshot of its disks.
 *
 * Below data/pagurus-freeze in the guest's part of Xenstore:
 *
 *   wish    by the host: "ID MILLISECONDS"; taken away when the snapshot is there
 *   state   by this program: "ready", then "frozen ID", "thawed ID", "late ID" (the time was over first) or "failed ID WHY"
 *
 * Nothing stays frozen longer than the wish says, nor longer than LIMIT_MS. A second process holds the same file systems and thaws them when the time is
 * over or when this one has died.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <xen/io/xs_wire.h>

#define FOLDER	  "data/pagurus-freeze"
#define LIMIT_MS  30000u
#define MOUNTS	  64u
#define VALUE_MAX 128u

static int store;

/* ---- Xenstore ---- */

static void must(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "pagurus-freeze: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void get(void *to, size_t length)
{
	for (char *at = to; length;) {
		ssize_t n = read(store, at, length);

		if (n < 0 && errno == EINTR)
			continue;
		must(n > 0, "/dev/xen/xenbus cannot be read");
		at += n;
		length -= (size_t)n;
	}
}

/* The next message; its type. What does not fit body is left out. */
static uint32_t next_message(char *body, size_t size)
{
	struct xsd_sockmsg m;

	get(&m, sizeof(m));
	for (uint32_t i = 0; i < m.len; i++) {
		char c;

		get(&c, 1);
		if (i + 1 < size)
			body[i] = c;
	}
	body[m.len < size ? m.len : size - 1] = '\0';
	return m.type;
}

static int missed; /* an event came in between: look again */

/* 0, or -1: the answer is an error. */
static int ask(uint32_t type, const char *data, size_t length, char *body, size_t size)
{
	char message[sizeof(struct xsd_sockmsg) + 512];
	struct xsd_sockmsg m = {.type = type, .len = (uint32_t)length};
	uint32_t got;

	memcpy(message, &m, sizeof(m));
	memcpy(message + sizeof(m), data, length);
	must(write(store, message, sizeof(m) + length) == (ssize_t)(sizeof(m) + length),
	     "/dev/xen/xenbus cannot be written");
	while ((got = next_message(body, size)) == XS_WATCH_EVENT)
		missed = 1;
	return got == XS_ERROR ? -1 : 0;
}

static void say(const char *state, const char *id, const char *why)
{
	char data[2 * VALUE_MAX + 256], body[64];
	int n = snprintf(data, sizeof(data), FOLDER "/state%c%s%s%s%s%.80s", '\0', state,
			 id[0] ? " " : "", id, why[0] ? " " : "", why);

	ask(XS_WRITE, data, (size_t)n, body, sizeof(body));
}

/* "" when there is none. */
static void read_wish(char *out)
{
	if (ask(XS_READ, FOLDER "/wish", sizeof(FOLDER "/wish"), out, VALUE_MAX))
		out[0] = '\0';
}

/* ---- file systems ---- */

static int mounts[MOUNTS];
static unsigned nr_mounts;

/* Open the root of every file system on a disk that is written, once; what was mounted later comes later. */
static void open_mounts(void)
{
	FILE *f = fopen("/proc/self/mounts", "re");
	char line[1024], source[256], place[512], type[64], options[256];
	dev_t seen[MOUNTS];

	nr_mounts = 0;
	while (f && nr_mounts < MOUNTS && fgets(line, sizeof(line), f)) {
		struct stat st;
		int fd;

		if (sscanf(line, "%255s %511s %63s %255s", source, place, type, options) != 4 ||
		    strncmp(source, "/dev/", 5) != 0 || strncmp(options, "rw", 2) != 0)
			continue;
		fd = open(place, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd < 0 || fstat(fd, &st)) {
			close(fd);
			continue;
		}
		for (unsigned i = 0; i < nr_mounts && fd >= 0; i++)
			if (seen[i] == st.st_dev) {
				close(fd);
				fd = -1;
			}
		if (fd < 0)
			continue;
		seen[nr_mounts] = st.st_dev;
		mounts[nr_mounts++] = fd;
	}
	if (f)
		fclose(f);
}

static void close_mounts(void)
{
	while (nr_mounts)
		close(mounts[--nr_mounts]);
}

static void thaw(void)
{
	for (unsigned i = 0; i < nr_mounts; i++)
		ioctl(mounts[i], FITHAW, 0);
}

/* What was mounted last first. 0 or -1, and none is frozen then. */
static int freeze(void)
{
	for (unsigned i = nr_mounts; i-- > 0;) {
		int code;

		if (!ioctl(mounts[i], FIFREEZE, 0) || errno == EOPNOTSUPP)
			continue;
		code = errno;
		thaw();
		errno = code;
		return -1;
	}
	return 0;
}

/* ---- the one that thaws when all else fails ---- */

static pid_t guard;
static int guarded; /* closed: it may go */

static int start_guard(int ms)
{
	int ends[2];
	char c;

	if (pipe2(ends, O_CLOEXEC))
		return -1;
	guard = fork();
	if (!guard) {
		struct pollfd p = {.fd = ends[0], .events = POLLIN};

		close(ends[1]);
		/* A letter says that all is well; the end of the pipe, or of the time, that it is not. */
		if (poll(&p, 1, ms) != 1 || read(ends[0], &c, 1) != 1)
			thaw();
		_exit(0);
	}
	close(ends[0]);
	if (guard > 0) {
		guarded = ends[1];
		return 0;
	}
	close(ends[1]);
	return -1;
}

static void end_guard(void)
{
	if (write(guarded, "x", 1) < 0)
		kill(guard, SIGKILL);
	close(guarded);
	waitpid(guard, NULL, 0);
}

/* ---- what happens ---- */

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static char frozen[VALUE_MAX]; /* the id, or "" */
static char last[VALUE_MAX];
static uint64_t until_ms;

static void end(const char *state)
{
	thaw();
	end_guard();
	close_mounts();
	say(state, frozen, "");
	frozen[0] = '\0';
}

static void begin(const char *id, unsigned ms)
{
	snprintf(last, sizeof(last), "%s", id);
	if (ms > LIMIT_MS)
		ms = LIMIT_MS;
	/* As the guard's, which may thaw from then on: writing out what is dirty counts. */
	until_ms = now_ms() + ms;
	open_mounts();
	if (start_guard((int)ms)) {
		say("failed", id, strerror(errno));
		close_mounts();
		return;
	}
	if (freeze()) {
		int code = errno;

		end_guard();
		close_mounts();
		say("failed", id, strerror(code));
		return;
	}
	snprintf(frozen, sizeof(frozen), "%s", id);
	if (now_ms() < until_ms)
		say("frozen", id, "");
	else
		end("late");
}

static void look(void)
{
	char wish[VALUE_MAX], id[VALUE_MAX];
	unsigned ms = 0;

	read_wish(wish);
	if (sscanf(wish, "%100s %u", id, &ms) != 2)
		id[0] = '\0';
	if (frozen[0] && strcmp(id, frozen) != 0)
		end("thawed");
	if (!frozen[0] && id[0] && strcmp(id, last) != 0)
		begin(id, ms);
}

int main(int argc, char **argv)
{
	static const char watch[] = FOLDER "/wish\0w";
	char body[512];

	if (argc > 1) {
		puts("Usage: pagurus-freeze\n"
		     "Freezes this guest's file systems for the moment in which its host takes a snapshot of\n"
		     "its disks. Start it once, as root, and leave it running.");
		return strcmp(argv[1], "--help") ? 2 : 0;
	}
	signal(SIGPIPE, SIG_IGN);
	store = open("/dev/xen/xenbus", O_RDWR | O_CLOEXEC);
	must(store >= 0, "/dev/xen/xenbus cannot be opened");
	must(!mlockall(MCL_CURRENT | MCL_FUTURE), "its memory cannot be locked");
	must(!ask(XS_WATCH, watch, sizeof(watch), body, sizeof(body)), "Xenstore refuses a watch");
	say("ready", "", "");
	for (;;) {
		struct pollfd p = {.fd = store, .events = POLLIN};
		uint64_t now = now_ms();
		int wait = !frozen[0] ? -1 : until_ms > now ? (int)(until_ms - now) : 0;

		if (poll(&p, 1, wait) > 0)
			next_message(body, sizeof(body));
		if (frozen[0] && now_ms() >= until_ms)
			end("late");
		do {
			missed = 0;
			look();
		} while (missed);
	}
}
