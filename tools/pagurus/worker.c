/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tools/pagurus/message.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verbs.h"

void worker_send(struct worker *w, json_t *message, bool wait)
{
	(void)w;
	if (!message)
		return;
	/* A daemon that is gone takes this process along; there is nobody to tell. */
	packet_send(WORKER_SOCKET, message, -1, wait);
	json_decref(message);
}

void worker_say(struct worker *w, enum session_log level, const char *fmt, ...)
{
	char text[1200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	worker_send(w, report_message(level, text), true);
}

void worker_say_peer(struct worker *w, const char *peer)
{
	worker_send(w, json_pack("{ss so}", "type", "authenticated", "peer", message_string(peer)),
		    true);
}

int worker_journal(struct worker *w, void (*change)(struct journal *j, void *ctx), void *ctx,
		   struct pgr_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&w->journal_lock);
	change(&w->journal, ctx);
	if (w->journal_file)
		rc = journal_write(w->journal_file, &w->journal, err);
	pthread_mutex_unlock(&w->journal_lock);
	return rc;
}

static void set_done(struct journal *j, void *ctx)
{
	j->mark = *(enum session_mark *)ctx;
	j->done = true;
}

void worker_journal_done(struct worker *w, enum session_mark mark)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (worker_journal(w, set_done, &mark, &err))
		worker_say(w, SESSION_WARNING, "%s; it will be looked at again", err.text);
}

static void on_progress(void *ctx, const struct session_progress *p)
{
	worker_send(ctx, report_progress(p), false);
}

static void on_message(void *ctx, enum session_log level, const char *text)
{
	worker_say(ctx, level, "%s", text);
}

static void set_mark(struct journal *j, void *ctx)
{
	j->mark = *(enum session_mark *)ctx;
}

static int on_mark(void *ctx, enum session_mark mark, struct pgr_error *err)
{
	struct worker *w = ctx;
	int rc;

	journal_fault(w->journal.role, mark, false);
	rc = worker_journal(w, set_mark, &mark, err);
	if (rc)
		return rc;
	worker_send(w, json_pack("{ss ss}", "type", "mark", "mark", journal_mark_name(mark)), true);
	journal_fault(w->journal.role, mark, true);
	return 0;
}

void worker_rearm(struct worker *w)
{
	uint64_t count;

	atomic_store(&w->cancel, false);
	while (read(w->cancel_fd, &count, sizeof(count)) > 0)
		;
}

static void cancel(struct worker *w)
{
	uint64_t one = 1;

	atomic_store(&w->cancel, true);
	if (write(w->cancel_fd, &one, sizeof(one)) < 0)
		return; /* full: readable already */
}

static void take_connection(struct worker *w, const json_t *message, int fd)
{
	struct worker_connection c = {
		.fd = fd,
		.channel = (unsigned)message_number(message, "channel"),
		.purpose = (enum pgr_purpose)message_number(message, "purpose"),
	};

	void (*take)(struct worker *, const struct worker_connection *) = w->connection;

	if (fd >= 0 && take)
		take(w, &c);
	else if (fd >= 0)
		close(fd);
}

static void *read_daemon(void *ctx)
{
	struct worker *w = ctx;
	json_t *message;
	int fd, rc;

	for (;;) {
		rc = packet_receive(WORKER_SOCKET, &message, &fd);
		if (rc == -EPROTO)
			continue;
		if (rc)
			break;
		if (!strcmp(message_text(message, "type"), "cancel"))
			cancel(w);
		else if (!strcmp(message_text(message, "type"), "connection"))
			take_connection(w, message, fd);
		else if (fd >= 0)
			close(fd);
		json_decref(message);
	}
	cancel(w);
	return NULL;
}

/* The job, as the daemon's first packet says. */
static int receive_job(struct worker *w, struct pgr_error *err)
{
	int rc, fd;

	rc = packet_receive(WORKER_SOCKET, &w->request, &fd);
	if (rc)
		return pgr_fail_errno(err, rc, "no job came from the daemon");
	w->job = message_text(w->request, "job");
	w->first = (struct worker_connection){
		.fd = fd,
		.channel = (unsigned)message_number(w->request, "channel"),
		.purpose = (enum pgr_purpose)message_number(w->request, "purpose"),
	};
	paths_init(&w->paths);
	w->paths.config = message_text(w->request, "config");
	w->paths.state = message_text(w->request, "state");
	w->allow_sim = message_flag(w->request, "allow_sim");
	if (message_text(w->request, "session")[0] &&
	    units_parse_hex16(message_text(w->request, "session"), w->session))
		return pgr_fail(err, -EINVAL, "the job has a bad session number");
	return tls_identity_load(w->paths.config, &w->id, err);
}

static const struct {
	const char *name;
	int (*run)(struct worker *w);
} jobs[] = {
	{"source", worker_source}, {"target", worker_target},	{"answer", worker_answer},
	{"check", worker_check},   {"recover", worker_recover},
};

int verb_worker(int argc, char **argv)
{
	static struct worker worker; /* the reading thread may outlive this function */
	struct worker *w = &worker;
	struct pgr_error err = PGR_ERROR_NONE;
	pthread_t reader;
	int rc, status = EXIT_FAILED;

	(void)argc;
	(void)argv;
	/* What this process starts (hotplug scripts, keepers) has no business with the daemon. */
	fcntl(WORKER_SOCKET, F_SETFD, FD_CLOEXEC);
	w->first.fd = -1;
	pthread_mutex_init(&w->journal_lock, NULL);
	w->owner = (struct session_owner){
		.ctx = w,
		.progress = on_progress,
		.message = on_message,
		.mark = on_mark,
		.cancel = &w->cancel,
	};
	w->cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = w->cancel_fd < 0 ? pgr_fail_errno(&err, -errno, "no event descriptor")
			      : receive_job(w, &err);
	if (!rc && pthread_create(&reader, NULL, read_daemon, w))
		rc = pgr_fail(&err, -EAGAIN, "no thread to listen to the daemon");
	if (rc) {
		worker_send(w, report_result(NULL, rc, err.text), true);
		return EXIT_FAILED;
	}
	pthread_detach(reader);
	for (unsigned i = 0; i < sizeof(jobs) / sizeof(jobs[0]); i++)
		if (!strcmp(jobs[i].name, w->job))
			status = jobs[i].run(w);
	return status;
}
