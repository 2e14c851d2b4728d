/* SPDX-License-Identifier: MIT */
/*
 * The control socket: commands of this host's administrator, one JSON object a line.
 *
 *   {"request":"migrate", "guest":..., "host":..., ...}   "accepted", then what the worker says, "result" last
 *   {"request":"cancel"}                                   the session that this connection started
 *   {"request":"cancel","which":SESSION or GUEST}          "ok" or "error"
 *   {"request":"release","which":SESSION}                  stop asking for the outcome: the user decides; "ok" or "error"
 *   {"request":"status"}                                   "status"
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/pagurus/daemon.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/units.h"

/* A command that does not read: progress is left out beyond the first, the connection ended beyond the second. */
#define OUT_PROGRESS (64u << 10)
#define OUT_MAX	     (1u << 20)
#define RELEASE_MS   60000u

static void end_client(struct client *c)
{
	if (c->task)
		c->task->client = NULL;
	close(c->fd);
	line_free(&c->in);
	free(c->out);
	*c = (struct client){.fd = -1};
}

int daemon_control_open(struct daemon *d, struct pgr_error *err)
{
	struct sockaddr_un a;
	char dir[PATH_MAX], *slash;
	mode_t before;
	int rc;

	for (unsigned i = 0; i < DAEMON_CLIENTS_MAX; i++)
		d->clients[i].fd = -1;
	rc = paths_socket(d->paths.control, &a, err);
	if (rc)
		return rc;
	snprintf(dir, sizeof(dir), "%s", d->paths.control);
	slash = strrchr(dir, '/');
	if (slash && slash != dir) {
		*slash = 0;
		rc = paths_make_dir(dir, err);
		if (rc)
			return rc;
	}
	d->control = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (d->control < 0)
		return pgr_fail_errno(err, -errno, "no control socket");
	/* The lock on the state folder says that no other daemon uses it. */
	unlink(a.sun_path);
	before = umask(0177);
	rc = bind(d->control, (struct sockaddr *)&a, sizeof(a)) || listen(d->control, 16) ? -errno
											  : 0;
	umask(before);
	if (rc)
		return pgr_fail_errno(err, rc, "cannot listen on %s", d->paths.control);
	return 0;
}

/* False: the client is gone. */
static bool flush_client(struct client *c)
{
	ssize_t n;

	while (c->out_used) {
		n = send(c->fd, c->out, c->out_used, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->out_used -= (size_t)n;
		memmove(c->out, c->out + n, c->out_used);
	}
	return true;
}

void daemon_client_send(struct daemon *d, struct client *c, const json_t *message)
{
	char *text, *more;
	size_t length;

	(void)d;
	if (c->fd < 0 ||
	    (c->out_used > OUT_PROGRESS && !strcmp(message_text(message, "type"), "progress")))
		return;
	text = json_dumps(message, JSON_COMPACT);
	length = text ? strlen(text) + 1 : 0;
	more = text && c->out_used + length <= OUT_MAX ? realloc(c->out, c->out_used + length)
						       : NULL;
	if (!more) {
		free(text);
		shutdown(c->fd, SHUT_RDWR); /* ended by the loop, not under the caller's feet */
		return;
	}
	c->out = more;
	memcpy(c->out + c->out_used, text, length - 1);
	c->out[c->out_used + length - 1] = '\n';
	c->out_used += length;
	free(text);
	if (!flush_client(c))
		shutdown(c->fd, SHUT_RDWR);
}

static void send_text(struct daemon *d, struct client *c, const char *type, const char *text)
{
	json_t *message = message_text_object(type, text);

	daemon_client_send(d, c, message);
	json_decref(message);
}

static void start_migration(struct daemon *d, struct client *c, json_t *request)
{
	struct pgr_error err = PGR_ERROR_NONE;
	uint8_t session[PGR_SESSION_SIZE];
	char hex[UNITS_HEX16];
	struct task *t;
	json_t *answer;

	if (c->task || d->stopping) {
		send_text(d, c, "error",
			  c->task ? "this connection has a session already"
				  : "the daemon is about to end: try again when it runs");
		return;
	}
	if (getrandom(session, sizeof(session), 0) != sizeof(session)) {
		send_text(d, c, "error", "no random numbers for a session");
		return;
	}
	t = daemon_task_start(d, "source", session, json_deep_copy(request), -1, false, &err);
	if (!t) {
		send_text(d, c, "error", err.text);
		return;
	}
	snprintf(t->guest, sizeof(t->guest), "%s", message_text(request, "guest"));
	snprintf(t->peer, sizeof(t->peer), "%s", message_text(request, "host"));
	answer = json_pack("{ss ss}", "type", "accepted", "session", units_hex16(session, hex));
	daemon_client_send(d, c, answer);
	json_decref(answer);
	t->client = c;
	c->task = t;
}

static struct task *find_task(struct daemon *d, const char *which)
{
	uint8_t session[PGR_SESSION_SIZE];
	bool is_session = !units_parse_hex16(which, session);

	for (unsigned i = 0; i < DAEMON_TASKS_MAX; i++) {
		struct task *t = &d->tasks[i];

		if (!t->pid || !which[0])
			continue;
		if (is_session ? !memcmp(t->session, session, sizeof(session))
			       : !strcmp(t->guest, which))
			return t;
	}
	return NULL;
}

static void cancel(struct daemon *d, struct client *c, const char *which)
{
	struct task *t = which[0] ? find_task(d, which) : c->task;
	char text[512];

	if (!t) {
		snprintf(text, sizeof(text),
			 "no session %.200s is at work here; `pagurus status` shows those that are",
			 which);
		send_text(d, c, "error", text);
		return;
	}
	if (which[0] && (!strcmp(t->mark, "commit") || !strcmp(t->mark, "moved") ||
			 !strcmp(t->job, "recover"))) {
		snprintf(
			text, sizeof(text),
			"guest %.200s was handed over already; it cannot be cancelled any more, only found out where it runs",
			t->guest);
		send_text(d, c, "error", text);
		return;
	}
	daemon_task_cancel(t);
	send_text(d, c, "ok", t->guest);
}

static void release(struct daemon *d, struct client *c, const char *which)
{
	uint8_t session[PGR_SESSION_SIZE];
	struct task *t;

	if (units_parse_hex16(which, session)) {
		send_text(d, c, "error", "that is no session number");
		return;
	}
	daemon_hold(d, session, RELEASE_MS);
	t = daemon_task_find(d, NULL, session);
	if (t)
		daemon_task_cancel(t);
	send_text(d, c, "ok", "");
}

static void send_status(struct daemon *d, struct client *c)
{
	json_t *list = json_array();
	json_t *answer = json_pack("{ss ss so}", "type", "status", "version", PAGURUS_VERSION,
				   "sessions", list);

	for (unsigned i = 0; answer && i < DAEMON_TASKS_MAX; i++)
		if (d->tasks[i].pid && strcmp(d->tasks[i].job, "check") &&
		    strcmp(d->tasks[i].job, "answer"))
			json_array_append_new(list, daemon_task_status(&d->tasks[i]));
	if (answer)
		daemon_client_send(d, c, answer);
	json_decref(answer);
}

static void serve(struct daemon *d, struct client *c, json_t *request)
{
	const char *what = message_text(request, "request");

	if (!strcmp(what, "migrate"))
		start_migration(d, c, request);
	else if (!strcmp(what, "cancel"))
		cancel(d, c, message_text(request, "which"));
	else if (!strcmp(what, "release"))
		release(d, c, message_text(request, "which"));
	else if (!strcmp(what, "status"))
		send_status(d, c);
	else
		send_text(d, c, "error",
			  "unknown request: are the command and the daemon of the same version?");
}

static void client_ready(struct daemon *d, void *object)
{
	struct client *c = object;
	json_t *request;
	bool bad;
	int rc;

	if (c->fd < 0)
		return;
	if (!flush_client(c)) {
		end_client(c);
		return;
	}
	rc = line_fill(&c->in, c->fd);
	if (rc == -EAGAIN || rc == -EINTR)
		return;
	while (!rc && ((request = line_next(&c->in, &bad)) || bad)) {
		if (request)
			serve(d, c, request);
		else
			send_text(d, c, "error", "that line is no JSON object");
		json_decref(request);
	}
	if (rc)
		end_client(c);
}

static void accept_client(struct daemon *d, void *object)
{
	struct ucred who;
	socklen_t length = sizeof(who);
	int fd = accept4(d->control, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	(void)object;
	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) ||
	    (who.uid && who.uid != geteuid())) {
		close(fd);
		return;
	}
	for (unsigned i = 0; i < DAEMON_CLIENTS_MAX; i++) {
		if (d->clients[i].fd >= 0)
			continue;
		d->clients[i] = (struct client){.fd = fd};
		return;
	}
	daemon_log("more than %d commands at once: one was turned away", DAEMON_CLIENTS_MAX);
	close(fd);
}

void daemon_control_watch(struct daemon *d)
{
	daemon_watch(d, d->control, POLLIN, accept_client, NULL);
	for (unsigned i = 0; i < DAEMON_CLIENTS_MAX; i++)
		if (d->clients[i].fd >= 0)
			daemon_watch(d, d->clients[i].fd,
				     d->clients[i].out_used ? POLLIN | POLLOUT : POLLIN,
				     client_ready, &d->clients[i]);
}
