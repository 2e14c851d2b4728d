/* SPDX-License-Identifier: MIT */
/*
 * The host daemon: one thread, one poll loop, no guest data. It accepts connections, starts workers and passes connections to them,
 * relays what they say to the commands that asked, and has sessions repaired whose worker died.
 *
 * Everything here belongs to that one thread. Objects live in fixed tables; a slot is free when its descriptor is -1 (tasks: pid 0).
 */
#ifndef PAGURUS_DAEMON_H
#define PAGURUS_DAEMON_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <jansson.h>

#include "protocol-spec/stream.h"
#include "tools/pagurus/crowd.h"
#include "tools/pagurus/log_limit.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/paths.h"

/* Bounds. Strangers can fill only the first two; what they fill empties itself by the time limits, and for newcomers by crowd.h. */
#define DAEMON_PENDING_MAX   64 /* connections whose preamble is not complete */
#define DAEMON_STRANGERS_MAX 16 /* workers whose peer has not proved who it is */
#define DAEMON_TASKS_MAX     64
#define DAEMON_CLIENTS_MAX   32
#define DAEMON_HELD_MAX	     64
#define DAEMON_WATCHES_MAX   (8 + DAEMON_PENDING_MAX + DAEMON_TASKS_MAX + DAEMON_CLIENTS_MAX)

#define DAEMON_PREAMBLE_MS 5000
#define DAEMON_SCAN_MS	   5000
#define DAEMON_STOP_MS	   20000

struct daemon;
struct client;

/* A connection that has not said yet what it is for. */
struct pending {
	int fd;
	size_t got;
	uint64_t deadline_ms;
	uint8_t network[CROWD_NETWORK];
	union {
		struct pgr_preamble preamble;
		uint8_t bytes[sizeof(struct pgr_preamble)];
	} u;
};

/* A worker process. */
struct task {
	pid_t pid;
	int socket;	/* -1: closed by the other end */
	bool stranger;	/* took a connection whose peer is not known yet */
	bool dismissed; /* a stranger that was killed: it was slow, or another one came */
	bool has_result;
	bool exited;
	int status;
	uint64_t deadline_ms;		/* a stranger's */
	uint8_t network[CROWD_NETWORK]; /* the same */
	time_t started;
	const char *job; /* a constant: "source" ... */
	uint8_t session[PGR_SESSION_SIZE];
	char mark[16];
	char guest[256];
	char peer[256];
	json_t *progress;
	struct client *client; /* the command that asked, NULL: none or gone */
};

/* A command on the control socket. */
struct client {
	int fd;
	struct line_reader in;
	char *out;
	size_t out_used;
	struct task *task;
};

/* A session that is left alone for a while. */
struct held {
	uint8_t session[PGR_SESSION_SIZE];
	uint64_t until_ms;
};

struct daemon_watch {
	void (*ready)(struct daemon *d, void *object);
	void *object;
};

struct daemon {
	struct paths paths;
	bool allow_sim;
	uint64_t sim_run_ms;
	uint64_t sim_free; /* bytes that are said to be free, 0: nothing is said */
	uint64_t
		resume_wait_ms; /* how long a guest that was arriving waits for a source that went away */
	int listeners[4];
	int nr_listeners;
	int control;
	int signals;
	int lock;
	bool stopping;
	uint64_t stop_deadline_ms;
	uint64_t next_scan_ms;
	struct pending pending[DAEMON_PENDING_MAX];
	struct task tasks[DAEMON_TASKS_MAX];
	struct client clients[DAEMON_CLIENTS_MAX];
	struct held held[DAEMON_HELD_MAX];
	struct log_limit log_limit;
	struct pollfd polls[DAEMON_WATCHES_MAX];
	struct daemon_watch watches[DAEMON_WATCHES_MAX];
	unsigned nr_watches;
	uint64_t wake_ms; /* of this turn of the loop */
};

/* ---- daemon.c ---- */
void daemon_log(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* The same for what strangers cause: a few lines a second, then only their number. */
void daemon_log_stranger(struct daemon *d, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
/* In this turn of the loop: call ready(object) when fd has one of the events. */
void daemon_watch(struct daemon *d, int fd, short events,
		  void (*ready)(struct daemon *d, void *object), void *object);
/* In this turn: be back by then. */
void daemon_wake_at(struct daemon *d, uint64_t ms);

/* ---- daemon_accept.c ---- */
void daemon_accept_init(struct daemon *d);
void daemon_accept_watch(struct daemon *d);
void daemon_accept_expire(struct daemon *d, uint64_t now_ms);

/* ---- daemon_task.c ---- */
void daemon_task_init(struct daemon *d);
void daemon_task_watch(struct daemon *d);
void daemon_task_expire(struct daemon *d, uint64_t now_ms);
/*
 * Start a worker. request is extended by what every worker needs; both it and fd (-1: none) are taken over. NULL: *err says why.
 * stranger: it will talk to a peer that nobody knows yet.
 */
struct task *daemon_task_start(struct daemon *d, const char *job,
			       const uint8_t session[PGR_SESSION_SIZE], json_t *request, int fd,
			       bool stranger, struct pgr_error *err);
struct task *daemon_task_find(struct daemon *d, const char *job,
			      const uint8_t session[PGR_SESSION_SIZE]);
/* Before another stranger's worker is started: see to it that there are not too many. */
void daemon_task_make_room(struct daemon *d);
/* Pass a connection on; fd is taken over. */
void daemon_task_pass(struct daemon *d, struct task *t, const struct pgr_preamble *p, int fd);
void daemon_task_cancel(struct task *t);
bool daemon_task_any(const struct daemon *d);
/* Some child has ended. */
void daemon_task_reap(struct daemon *d);
/* What `pagurus status` shows of it. */
json_t *daemon_task_status(const struct task *t);
/* Look for sessions that nobody works on. */
void daemon_scan(struct daemon *d);
/* Leave a session alone for so long. */
void daemon_hold(struct daemon *d, const uint8_t session[PGR_SESSION_SIZE], uint64_t ms);

/* ---- daemon_control.c ---- */
int daemon_control_open(struct daemon *d, struct pgr_error *err);
void daemon_control_watch(struct daemon *d);
/* message stays the caller's. */
void daemon_client_send(struct daemon *d, struct client *c, const json_t *message);

#endif
