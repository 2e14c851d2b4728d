/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/text.h"
#include "migrate/channel.h"
#include "tools/pagurus/ready.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

static void log_line(const char *fmt, va_list ap)
{
	char text[1400];

	vsnprintf(text, sizeof(text), fmt, ap);
	/* What a peer or guest is called must not make lines of its own. */
	text_plain(text, sizeof(text), text, strlen(text));
	fprintf(stderr, "pagurus: %s\n", text);
}

void daemon_log(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	log_line(fmt, ap);
	va_end(ap);
}

static void refill_log(struct daemon *d)
{
	unsigned suppressed = log_limit_refill(&d->log_limit);

	if (suppressed)
		daemon_log("%u more lines about connections were left out", suppressed);
}

void daemon_log_stranger(struct daemon *d, const char *fmt, ...)
{
	va_list ap;

	refill_log(d);
	if (!log_limit_pass(&d->log_limit))
		return;
	va_start(ap, fmt);
	log_line(fmt, ap);
	va_end(ap);
}

void daemon_watch(struct daemon *d, int fd, short events,
		  void (*ready)(struct daemon *d, void *object), void *object)
{
	if (d->nr_watches == DAEMON_WATCHES_MAX)
		abort(); /* the tables' sizes add up to less */
	d->polls[d->nr_watches] = (struct pollfd){.fd = fd, .events = events};
	d->watches[d->nr_watches++] = (struct daemon_watch){.ready = ready, .object = object};
}

void daemon_wake_at(struct daemon *d, uint64_t ms)
{
	if (ms < d->wake_ms)
		d->wake_ms = ms;
}

static void start_stopping(struct daemon *d)
{
	if (d->stopping)
		return;
	daemon_log("ending: sessions that can be cancelled are cancelled");
	d->stopping = true;
	d->stop_deadline_ms = units_now_ms() + DAEMON_STOP_MS;
	for (int i = 0; i < d->nr_listeners; i++)
		close(d->listeners[i]);
	d->nr_listeners = 0;
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++)
		if (d->tasks[i].pid)
			daemon_task_cancel(&d->tasks[i]);
}

static void signal_ready(struct daemon *d, void *object)
{
	struct signalfd_siginfo info;

	(void)object;
	while (read(d->signals, &info, sizeof(info)) == sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			daemon_task_reap(d);
		else if (info.ssi_signo != SIGHUP)
			start_stopping(d);
	}
}

static int wait_time(const struct daemon *d)
{
	uint64_t now = units_now_ms();

	return d->wake_ms <= now	    ? 0
	       : d->wake_ms - now > INT_MAX ? INT_MAX
					    : (int)(d->wake_ms - now);
}

static void turn(struct daemon *d)
{
	uint64_t now = units_now_ms();
	int n;

	if (d->log_limit.suppressed)
		refill_log(d);
	daemon_accept_expire(d, now);
	daemon_task_expire(d, now);
	if (now >= d->next_scan_ms)
		daemon_scan(d);
	d->nr_watches = 0;
	d->wake_ms = d->stopping ? d->stop_deadline_ms : d->next_scan_ms;
	daemon_watch(d, d->signals, POLLIN, signal_ready, NULL);
	daemon_control_watch(d);
	daemon_accept_watch(d);
	daemon_task_watch(d);
	n = poll(d->polls, d->nr_watches, wait_time(d));
	if (n <= 0)
		return;
	/* A handler may free another's object: each looks whether its own is still there. */
	for (unsigned i = 0; i < d->nr_watches; i++)
		if (d->polls[i].revents)
			d->watches[i].ready(d, d->watches[i].object);
}

static int open_signals(struct daemon *d, struct pgr_error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	d->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return d->signals < 0 ? pgr_fail_errno(err, -errno, "no signal descriptor") : 0;
}

/* Two daemons on one journal would repair each other's sessions. */
static int lock_state(struct daemon *d, struct pgr_error *err)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char path[PATH_MAX];
	int rc;

	rc = paths_make_dir(d->paths.state, err);
	if (rc)
		return rc;
	snprintf(path, sizeof(path), "%s/daemon.lock", d->paths.state);
	d->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (d->lock < 0)
		return pgr_fail_errno(err, -errno, "cannot open %s", path);
	if (!fcntl(d->lock, F_SETLK, &whole))
		return 0;
	if (errno == EACCES || errno == EAGAIN)
		return pgr_fail(err, -EBUSY, "another daemon works with %s already",
				d->paths.state);
	return pgr_fail_errno(err, -errno, "cannot lock %s", path);
}

static int open_listeners(struct daemon *d, const char *listen, struct pgr_error *err)
{
	char host[256] = "";
	uint16_t port = PATHS_PORT;
	int n;

	if (listen[0] == ':') {
		uint64_t number;

		if (units_count(listen + 1, &number) || !number || number > 65535)
			return pgr_fail(err, -EINVAL, "--listen %s: not a port", listen);
		port = (uint16_t)number;
	} else if (listen[0] && units_host_port(listen, host, sizeof(host), &port)) {
		return pgr_fail(
			err, -EINVAL,
			"--listen %s: write ADDRESS, ADDRESS:PORT, [ADDRESS6]:PORT or :PORT",
			listen);
	}
	n = channel_tcp_listen(host[0] ? host : NULL, &port, d->listeners, err);
	if (n < 0)
		return n;
	d->nr_listeners = n;
	for (int i = 0; i < n; i++)
		fcntl(d->listeners[i], F_SETFL, fcntl(d->listeners[i], F_GETFL) | O_NONBLOCK);
	daemon_log("version %s listens on %s%sport %u", PAGURUS_VERSION, host, host[0] ? " " : "",
		   port);
	return 0;
}

static int open_all(struct daemon *d, const char *listen, struct pgr_error *err)
{
	struct tls_identity *id;
	int rc;

	/* Only to complain at once and not at the first connection; the workers read it anew. */
	rc = tls_identity_load(d->paths.config, &id, err);
	if (rc)
		return rc;
	tls_identity_free(id);
	rc = lock_state(d, err);
	if (!rc)
		rc = open_signals(d, err);
	if (!rc)
		rc = daemon_control_open(d, err);
	if (!rc)
		rc = open_listeners(d, listen, err);
	return rc;
}

/* The parent waits for one byte, "it listens", and leaves; the child goes on without a terminal. */
static int go_to_background(int *ready)
{
	int pair[2], status = EXIT_FAILED;
	char byte;
	pid_t child;

	if (pipe2(pair, O_CLOEXEC))
		return -errno;
	child = fork();
	if (child < 0)
		return -errno;
	if (child) {
		close(pair[1]);
		if (read(pair[0], &byte, 1) == 1)
			status = EXIT_OK;
		exit(status);
	}
	close(pair[0]);
	setsid();
	*ready = pair[1];
	return 0;
}

/* Without a terminal: the log goes to STATE/daemon.log, so that nobody who started it waits for the end of a pipe. */
static void tell_parent(const struct daemon *d, int ready)
{
	char path[PATH_MAX];
	int null, log;

	if (ready < 0)
		return;
	snprintf(path, sizeof(path), "%s/daemon.log", d->paths.state);
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (log < 0)
		daemon_log("cannot write %s: %s; nothing is logged", path, strerror(errno));
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	dup2(log < 0 ? null : log, STDERR_FILENO);
	close(null);
	if (log >= 0)
		close(log);
	if (write(ready, "1", 1) != 1)
		daemon_log("nobody waits for this daemon to be ready");
	close(ready);
}

int verb_daemon(int argc, char **argv)
{
	static struct daemon d = {.control = -1,
				  .signals = -1,
				  .lock = -1,
				  .sim_run_ms = 1000,
				  .resume_wait_ms = 60000};
	const char *listen = "";
	bool foreground = false;
	const struct option_spec options[] = {
		{"listen", OPTION_STRING, &listen, "ADDR:PORT",
		 "where other hosts connect (default: any address, port 7117)", 0, 0},
		PATHS_OPTION_STATE(&d.paths),
		PATHS_OPTION_CONFIG(&d.paths),
		PATHS_OPTION_CONTROL(&d.paths),
		{"resume-wait", OPTION_MS, &d.resume_wait_ms, "TIME",
		 "keep what arrived of a guest for a source that went away (default 60s)", 1,
		 3600000},
		{"foreground", OPTION_FLAG, &foreground, NULL, "stay in the foreground", 0, 0},
		{"allow-sim", OPTION_FLAG, &d.allow_sim, NULL,
		 "also move simulated guests (for tests)", 0, 0},
		{"sim-free", OPTION_SIZE, &d.sim_free, "SIZE",
		 "tests: say that so much memory is free for simulated guests", 0, INT64_MAX},
		{"sim-run", OPTION_MS, &d.sim_run_ms, "TIME",
		 "how long a simulated guest runs here before it is verified and ended", 0,
		 3600000},
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus daemon [OPTIONS]",
		"The host daemon: takes guests from hosts that are trusted, and moves this host's to them.\nWithout --foreground it goes to the background once it listens, and logs to daemon.log in the state folder.",
		options, 0, 0};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, ready = -1, rc;

	paths_init(&d.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	rc = foreground ? 0 : go_to_background(&ready);
	if (rc)
		pgr_fail_errno(&err, rc, "cannot go to the background");
	daemon_accept_init(&d);
	daemon_task_init(&d);
	if (!rc)
		rc = open_all(&d, listen, &err);
	if (rc) {
		daemon_log("%s", err.text);
		return EXIT_FAILED;
	}
	ready_tell();
	tell_parent(&d, ready);
	while (!d.stopping || (daemon_task_any(&d) && units_now_ms() < d.stop_deadline_ms))
		turn(&d);
	unlink(d.paths.control);
	daemon_log("ended");
	return EXIT_OK;
}
