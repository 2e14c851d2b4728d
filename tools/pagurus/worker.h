/* SPDX-License-Identifier: MIT */
/*
 * A worker: the process that does one session's work, or answers one question, for the daemon.
 *
 * The daemon starts it with a packet socket as descriptor WORKER_SOCKET and sends the job as the first packet; connections of
 * the session and "cancel" follow. The worker sends progress, messages, marks and one result. It holds the session's
 * journal lock while it lives and dies with the daemon (PR_SET_PDEATHSIG), so that a daemon that starts anew finds nobody at work.
 *
 * Threads: the main thread runs the session; one thread reads the socket; short-lived threads do TLS handshakes.
 */
#ifndef PAGURUS_WORKER_H
#define PAGURUS_WORKER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include <jansson.h>

#include "migrate/session.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/paths.h"

#define WORKER_SOCKET 3

struct worker;

/* A connection that the daemon passed on, after its preamble. */
struct worker_connection {
	int fd;
	unsigned channel;
	enum pgr_purpose purpose;
};

struct worker {
	const char *job;		/* "source", "target", "answer", "check", "recover" */
	json_t *request;		/* the first packet */
	struct worker_connection first; /* that came with it; fd -1: none */
	struct paths paths;
	bool allow_sim;
	struct tls_identity *id;
	uint8_t session[PGR_SESSION_SIZE];

	atomic_bool cancel;
	int cancel_fd; /* readable from then on */

	/* Called by the reading thread for a further connection; takes fd over. NULL: closed. */
	void (*_Atomic connection)(struct worker *w, const struct worker_connection *c);
	void *connection_ctx;

	pthread_mutex_t journal_lock;
	struct journal journal;
	struct journal_file *journal_file; /* NULL: none */
	struct session_owner owner;	   /* tells the daemon, writes the journal */
};

/* Send to the daemon; takes the message over. Any thread. wait false: dropped when the daemon is slow. */
void worker_send(struct worker *w, json_t *message, bool wait);
/* A line for the log and for whoever asked. Any thread. */
void worker_say(struct worker *w, enum session_log level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/* The other host has proved who it is: the daemon's time limit for strangers does not hold any more. */
void worker_say_peer(struct worker *w, const char *peer);

/* Update the journal under its lock: change() edits, then it is written. */
int worker_journal(struct worker *w, void (*change)(struct journal *j, void *ctx), void *ctx,
		   struct pgr_error *err);
/* The session is over: durable, lock released at the process's end. */
void worker_journal_done(struct worker *w, enum session_mark mark);

/* Forget an earlier cancel. */
void worker_rearm(struct worker *w);

/* The jobs: each returns the exit status of the process. */
int worker_source(struct worker *w);
int worker_target(struct worker *w);
int worker_answer(struct worker *w);
int worker_check(struct worker *w);
int worker_recover(struct worker *w);

#endif
