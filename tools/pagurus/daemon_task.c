/* SPDX-License-Identifier: MIT */
/*
 * The daemon's workers: starting, listening to, passing connections to, reaping; and finding sessions that lost theirs.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/connect.h"
#include "tools/pagurus/daemon.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/recover.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/worker.h"

/* After a repair that failed, and after a user took a session over. */
#define RETRY_MS 10000u

static const char *const job_names[] = {"source", "target", "answer", "check", "recover"};

void daemon_task_init(struct daemon *d)
{
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++)
		d->tasks[i] = (struct task){.pid = 0, .socket = -1};
}

static const char *job_constant(const char *job)
{
	for (unsigned i = 0; i < sizeof(job_names) / sizeof(job_names[0]); i++)
		if (!strcmp(job_names[i], job))
			return job_names[i];
	abort();
}

static void become_worker(int socket, pid_t parent, const char *job, const char *hex)
{
	sigset_t none;

	/* Dies with the daemon; the parent may be gone before this was asked for. */
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)
		_exit(127);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (socket != WORKER_SOCKET && dup2(socket, WORKER_SOCKET) < 0)
		_exit(127);
	fcntl(WORKER_SOCKET, F_SETFD, 0);
	close_range(WORKER_SOCKET + 1, ~0u, 0);
	execl("/proc/self/exe", "pagurus", "worker", job, hex, (char *)NULL);
	_exit(127);
}

static int spawn(struct task *t, const char *job, struct pgr_error *err)
{
	char hex[UNITS_HEX16];
	pid_t parent = getpid();
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return pgr_fail_errno(err, -errno, "no socket for a worker");
	units_hex16(t->session, hex);
	t->pid = fork();
	if (!t->pid)
		become_worker(pair[1], parent, job, hex);
	close(pair[1]);
	if (t->pid < 0) {
		t->pid = 0;
		close(pair[0]);
		return pgr_fail_errno(err, -errno, "no process for a worker");
	}
	t->socket = pair[0];
	fcntl(t->socket, F_SETFL, O_NONBLOCK); /* the daemon's end only */
	return 0;
}

static struct task *free_task(struct daemon *d)
{
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++)
		if (!d->tasks[i].pid)
			return &d->tasks[i];
	return NULL;
}

struct task *daemon_task_start(struct daemon *d, const char *job,
			       const uint8_t session[PGR_SESSION_SIZE], json_t *request, int fd,
			       bool stranger, struct pgr_error *err)
{
	struct task *t = free_task(d);
	char hex[UNITS_HEX16];
	int rc;

	if (!t) {
		pgr_fail(err, -EBUSY, "%d sessions are at work already", DAEMON_TASKS_MAX);
		goto out;
	}
	*t = (struct task){.socket = -1, .stranger = stranger, .started = time(NULL)};
	t->job = job_constant(job);
	t->deadline_ms = units_now_ms() + CONNECT_STRANGER_MS;
	if (stranger)
		crowd_network(fd, t->network);
	memcpy(t->session, session, sizeof(t->session));
	json_object_set_new(request, "job", json_string(job));
	json_object_set_new(request, "session", json_string(units_hex16(session, hex)));
	json_object_set_new(request, "config", json_string(d->paths.config));
	json_object_set_new(request, "state", json_string(d->paths.state));
	json_object_set_new(request, "allow_sim", json_boolean(d->allow_sim));
	json_object_set_new(request, "sim_free", json_integer((json_int_t)d->sim_free));
	json_object_set_new(request, "sim_run_ms", json_integer((json_int_t)d->sim_run_ms));
	json_object_set_new(request, "resume_wait_ms", json_integer((json_int_t)d->resume_wait_ms));
	rc = spawn(t, job, err);
	if (rc) {
		t = NULL;
		goto out;
	}
	rc = packet_send(t->socket, request, fd, false);
	if (rc) {
		pgr_fail_errno(err, rc, "a worker did not take its job");
		kill(t->pid, SIGKILL); /* reaped as any other */
		t = NULL;
	}
out:
	json_decref(request);
	if (fd >= 0)
		close(fd);
	return t;
}

struct task *daemon_task_find(struct daemon *d, const char *job,
			      const uint8_t session[PGR_SESSION_SIZE])
{
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++) {
		struct task *t = &d->tasks[i];

		if (t->pid && (!job || !strcmp(t->job, job)) &&
		    !memcmp(t->session, session, PGR_SESSION_SIZE))
			return t;
	}
	return NULL;
}

bool daemon_task_any(const struct daemon *d)
{
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++)
		if (d->tasks[i].pid)
			return true;
	return false;
}

void daemon_task_pass(struct daemon *d, struct task *t, const struct pgr_preamble *p, int fd)
{
	json_t *message = json_pack("{ss si si}", "type", "connection", "channel", p->channel,
				    "purpose", p->purpose);
	int rc = t->socket < 0 || !message ? -EPIPE : packet_send(t->socket, message, fd, false);

	if (rc)
		daemon_log_stranger(d, "a connection of guest %s could not be passed on: %s",
				    t->guest, strerror(-rc));
	json_decref(message);
	close(fd);
}

void daemon_task_cancel(struct task *t)
{
	json_t *message = json_pack("{ss}", "type", "cancel");

	if (t->socket >= 0 && message)
		packet_send(t->socket, message, -1, false);
	json_decref(message);
}

json_t *daemon_task_status(const struct task *t)
{
	char hex[UNITS_HEX16];

	return json_pack("{ss ss so so ss sI sO?}", "session", units_hex16(t->session, hex), "job",
			 t->job, "guest", message_string(t->guest), "peer", message_string(t->peer),
			 "mark", t->mark, "started", (json_int_t)t->started, "progress",
			 t->progress);
}

/* ---- what they say ---- */

static void copy_field(char *to, size_t size, const json_t *message, const char *key)
{
	snprintf(to, size, "%s", message_text(message, key));
}

/* Any host that is trusted may ask as often as it likes. */
static bool is_question(const struct task *t)
{
	return !strcmp(t->job, "answer") || !strcmp(t->job, "check");
}

static void take_message(struct daemon *d, struct task *t, json_t *message)
{
	const char *type = message_text(message, "type");
	const char *subject = t->guest[0] ? t->guest : t->job;

	if (!strcmp(type, "progress")) {
		json_decref(t->progress);
		t->progress = json_incref(message);
	} else if (!strcmp(type, "mark")) {
		copy_field(t->mark, sizeof(t->mark), message, "mark");
	} else if (!strcmp(type, "guest")) {
		copy_field(t->guest, sizeof(t->guest), message, "guest");
		copy_field(t->peer, sizeof(t->peer), message, "peer");
	} else if (!strcmp(type, "authenticated")) {
		t->stranger = false;
		copy_field(t->peer, sizeof(t->peer), message, "peer");
	} else if (!strcmp(type, "message")) {
		if (t->stranger || is_question(t))
			daemon_log_stranger(d, "%s: %s", subject, message_text(message, "text"));
		else
			daemon_log("%s: %s", subject, message_text(message, "text"));
	} else if (!strcmp(type, "result")) {
		t->has_result = true;
		if (message_text(message, "text")[0] && (t->stranger || is_question(t)))
			daemon_log_stranger(d, "%s: %s", subject, message_text(message, "text"));
		else if (message_text(message, "text")[0])
			daemon_log("%s: %s: %s", subject, message_text(message, "outcome"),
				   message_text(message, "text"));
		else if (!is_question(t))
			daemon_log("%s: %s", subject, message_text(message, "outcome"));
	}
	if (t->client)
		daemon_client_send(d, t->client, message);
}

/* False when the other end has closed. */
static bool take_messages(struct daemon *d, struct task *t)
{
	json_t *message;
	int rc, fd;

	for (;;) {
		rc = packet_receive(t->socket, &message, &fd);
		if (fd >= 0)
			close(fd);
		if (rc == -EPROTO)
			continue;
		if (rc)
			return rc == -EAGAIN || rc == -EINTR;
		take_message(d, t, message);
		json_decref(message);
	}
}

static void close_socket(struct task *t)
{
	if (t->socket >= 0)
		close(t->socket);
	t->socket = -1;
}

static void task_ready(struct daemon *d, void *object)
{
	struct task *t = object;

	if (t->socket >= 0 && !take_messages(d, t))
		close_socket(t);
}

void daemon_task_watch(struct daemon *d)
{
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++) {
		struct task *t = &d->tasks[i];

		if (!t->pid)
			continue;
		if (t->socket >= 0)
			daemon_watch(d, t->socket, POLLIN, task_ready, t);
		if (t->stranger)
			daemon_wake_at(d, t->deadline_ms);
	}
}

/* Its place is free when it has been reaped, as any other's; it is none of those who wait any more. */
static void dismiss(struct task *t)
{
	kill(t->pid, SIGKILL);
	t->stranger = false;
	t->dismissed = true;
}

void daemon_task_expire(struct daemon *d, uint64_t now_ms)
{
	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++) {
		struct task *t = &d->tasks[i];

		if (!t->pid || !t->stranger || now_ms < t->deadline_ms)
			continue;
		/* It may have proved who it is while this process slept. */
		task_ready(d, t);
		if (!t->stranger)
			continue;
		daemon_log_stranger(d, "a host did not say who it is in time");
		dismiss(t);
	}
}

void daemon_task_make_room(struct daemon *d)
{
	struct crowd_member crowd[DAEMON_TASKS_MAX];
	unsigned strangers = 0;
	struct task *t;

	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++) {
		t = &d->tasks[i];
		/* It may have proved who it is meanwhile. */
		if (t->pid && t->stranger)
			task_ready(d, t);
		crowd[i] = (struct crowd_member){.waits = t->pid && t->stranger,
						 .since_ms = t->deadline_ms};
		memcpy(crowd[i].network, t->network, CROWD_NETWORK);
		strangers += crowd[i].waits;
	}
	if (strangers < DAEMON_STRANGERS_MAX)
		return;
	t = &d->tasks[crowd_choose(crowd, DAEMON_TASKS_MAX)];
	daemon_log_stranger(
		d, "too many connections at once from hosts not known yet: one was dropped");
	dismiss(t);
}

/* ---- their end ---- */

/* The command that waits gets an answer also when the worker could not give one. */
static void answer_for_dead(struct daemon *d, struct task *t)
{
	bool committed = !strcmp(t->mark, "commit"), moved = !strcmp(t->mark, "moved");
	struct session_result res = {.outcome = moved	    ? SESSION_MOVED
						: committed ? SESSION_UNKNOWN
							    : SESSION_STAYED};
	json_t *result;
	char text[512];

	snprintf(
		text, sizeof(text),
		committed
			? "the process that moved guest %.200s died after the guest was handed over; `pagurus status` shows when it is known where it runs"
			: "the process that moved guest %.200s died; the guest is put back to run here",
		t->guest);
	result = report_result(&res, moved ? 0 : -EIO, text);
	daemon_client_send(d, t->client, result);
	json_decref(result);
}

static void end_task(struct daemon *d, struct task *t)
{
	if (t->socket >= 0)
		take_messages(d, t);
	close_socket(t);
	if (WIFSIGNALED(t->status) && !t->dismissed)
		daemon_log("%s: its process was ended by signal %d (%s)",
			   t->guest[0] ? t->guest : t->job, WTERMSIG(t->status),
			   strsignal(WTERMSIG(t->status)));
	if (t->client) {
		if (!t->has_result)
			answer_for_dead(d, t);
		t->client->task = NULL;
	}
	if (!strcmp(t->job, "recover") && (!WIFEXITED(t->status) || WEXITSTATUS(t->status)))
		daemon_hold(d, t->session, RETRY_MS);
	json_decref(t->progress);
	/* Anybody may begin and end as many of the others as he likes, and a scan reads every journal. */
	if (!t->stranger && !t->dismissed && !is_question(t))
		d->next_scan_ms = 0;
	*t = (struct task){.pid = 0, .socket = -1};
}

void daemon_task_reap(struct daemon *d)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++) {
			if (d->tasks[i].pid != pid)
				continue;
			d->tasks[i].status = status;
			end_task(d, &d->tasks[i]);
		}
	}
}

/* ---- sessions without a worker ---- */

void daemon_hold(struct daemon *d, const uint8_t session[PGR_SESSION_SIZE], uint64_t ms)
{
	struct held *h = &d->held[0];

	for (unsigned i = 0; i < DAEMON_HELD_MAX; i++) {
		if (!memcmp(d->held[i].session, session, PGR_SESSION_SIZE)) {
			h = &d->held[i];
			break;
		}
		if (d->held[i].until_ms < h->until_ms)
			h = &d->held[i];
	}
	memcpy(h->session, session, PGR_SESSION_SIZE);
	h->until_ms = units_now_ms() + ms;
}

static bool is_held(const struct daemon *d, const uint8_t session[PGR_SESSION_SIZE])
{
	uint64_t now = units_now_ms();

	for (unsigned i = 0; i < DAEMON_HELD_MAX; i++)
		if (d->held[i].until_ms > now &&
		    !memcmp(d->held[i].session, session, PGR_SESSION_SIZE))
			return true;
	return false;
}

static int scan_one(void *ctx, const struct journal *j)
{
	struct daemon *d = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	struct task *t;

	if (j->done) {
		if (recover_forget(j, (int64_t)time(NULL)))
			journal_remove(d->paths.state, j->session, &err);
		return 0;
	}
	if (daemon_task_find(d, NULL, j->session) || is_held(d, j->session) ||
	    journal_is_locked(d->paths.state, j->session))
		return 0;
	daemon_log("guest %s: its %s was interrupted at %s; repairing",
		   j->guest[0] ? j->guest : "(not named yet)", journal_role_name(j->role),
		   journal_mark_name(j->mark));
	t = daemon_task_start(d, "recover", j->session, json_object(), -1, false, &err);
	if (!t) {
		daemon_log("%s; trying again later", err.text);
		return -EAGAIN;
	}
	snprintf(t->guest, sizeof(t->guest), "%s", j->guest);
	snprintf(t->peer, sizeof(t->peer), "%s", j->peer);
	snprintf(t->mark, sizeof(t->mark), "%s", journal_mark_name(j->mark));
	return 0;
}

static void scan_bad(void *ctx, const char *text)
{
	(void)ctx;
	daemon_log("%s; move that file away when you know what became of its guest", text);
}

void daemon_scan(struct daemon *d)
{
	if (!d->stopping)
		journal_each(d->paths.state, scan_one, scan_bad, d);
	d->next_scan_ms = units_now_ms() + DAEMON_SCAN_MS;
}
