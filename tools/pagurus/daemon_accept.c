/* SPDX-License-Identifier: MIT */
/*
 * Connections from other hosts until it is known what they are for: the 32 bytes in clear, nothing more is read. Bounded in number
 * (a newcomer may take the place of one that waits) and time; what is no preamble is closed with a line in the log.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/pagurus/connect.h"
#include "tools/pagurus/daemon.h"
#include "tools/pagurus/journal.h"
#include "tools/pagurus/units.h"

static void drop(struct pending *p)
{
	close(p->fd);
	p->fd = -1;
}

void daemon_accept_init(struct daemon *d)
{
	for (unsigned i = 0; i < DAEMON_PENDING_MAX; i++)
		d->pending[i].fd = -1;
}

/* A worker of its own for a connection that no session has a claim to. */
static void start_for(struct daemon *d, const char *job, const struct pgr_preamble *p, int fd)
{
	struct pgr_error err = PGR_ERROR_NONE;
	json_t *request = json_object();

	json_object_set_new(request, "channel", json_integer(p->channel));
	json_object_set_new(request, "purpose", json_integer(p->purpose));
	daemon_task_make_room(d);
	if (!daemon_task_start(d, job, p->session, request, fd, true, &err))
		daemon_log_stranger(d, "connection dropped: %s", err.text);
}

static void start_session(struct daemon *d, const struct pgr_preamble *p, int fd, const char *from)
{
	struct journal known;
	char hex[UNITS_HEX16];

	if (d->stopping || daemon_task_find(d, NULL, p->session) ||
	    journal_read(d->paths.state, p->session, &known, NULL) != -ENOENT) {
		daemon_log_stranger(d, "%s: session %s exists or existed here: dropped", from,
				    units_hex16(p->session, hex));
		close(fd);
		return;
	}
	start_for(d, "target", p, fd);
}

static void dispatch(struct daemon *d, const struct pgr_preamble *p, int fd)
{
	struct task *target = daemon_task_find(d, "target", p->session);
	char address[CONNECT_ORIGIN], hex[UNITS_HEX16];
	const char *from = connect_origin(fd, address);

	switch (p->purpose) {
	case PGR_PURPOSE_NEW:
		start_session(d, p, fd, from);
		return;
	case PGR_PURPOSE_CHECK:
		start_for(d, "check", p, fd);
		return;
	default:
		break;
	}
	if (target) {
		daemon_task_pass(d, target, p, fd);
	} else if (p->purpose == PGR_PURPOSE_QUERY) {
		start_for(d, "answer", p, fd);
	} else {
		daemon_log_stranger(d, "%s: nobody here works on session %s: dropped", from,
				    units_hex16(p->session, hex));
		close(fd);
	}
}

static void read_preamble(struct daemon *d, void *object)
{
	struct pending *p = object;
	struct pgr_error err = PGR_ERROR_NONE;
	char address[CONNECT_ORIGIN];
	ssize_t n;
	int fd;

	if (p->fd < 0)
		return;
	n = recv(p->fd, p->u.bytes + p->got, sizeof(p->u) - p->got, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		daemon_log_stranger(d, "%s: left without saying what it wants",
				    connect_origin(p->fd, address));
		drop(p);
		return;
	}
	p->got += (size_t)n;
	if (p->got < sizeof(p->u))
		return;
	if (connect_check_preamble(&p->u.preamble, &err)) {
		daemon_log_stranger(d, "%s: dropped: %s", connect_origin(p->fd, address), err.text);
		drop(p);
		return;
	}
	fd = p->fd;
	p->fd = -1;
	dispatch(d, &p->u.preamble, fd);
}

/* A slot for another connection; somebody who waits may have to leave it. */
static struct pending *make_room(struct daemon *d)
{
	struct crowd_member crowd[DAEMON_PENDING_MAX];
	char address[CONNECT_ORIGIN];
	struct pending *p;

	for (unsigned i = 0; i < DAEMON_PENDING_MAX; i++) {
		p = &d->pending[i];
		if (p->fd < 0)
			return p;
		crowd[i] = (struct crowd_member){.waits = true, .since_ms = p->deadline_ms};
		memcpy(crowd[i].network, p->network, CROWD_NETWORK);
	}
	p = &d->pending[crowd_choose(crowd, DAEMON_PENDING_MAX)];
	daemon_log_stranger(d, "%s: dropped: %d connections wait already",
			    connect_origin(p->fd, address), DAEMON_PENDING_MAX);
	drop(p);
	return p;
}

static void accept_one(struct daemon *d, void *object)
{
	struct pending *p;
	int fd = accept4(*(int *)object, NULL, NULL, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	p = make_room(d);
	memset(p, 0, sizeof(*p));
	p->fd = fd;
	p->deadline_ms = units_now_ms() + DAEMON_PREAMBLE_MS;
	crowd_network(fd, p->network);
}

void daemon_accept_watch(struct daemon *d)
{
	for (int i = 0; i < d->nr_listeners; i++)
		daemon_watch(d, d->listeners[i], POLLIN, accept_one, &d->listeners[i]);
	for (unsigned i = 0; i < DAEMON_PENDING_MAX; i++) {
		if (d->pending[i].fd < 0)
			continue;
		daemon_watch(d, d->pending[i].fd, POLLIN, read_preamble, &d->pending[i]);
		daemon_wake_at(d, d->pending[i].deadline_ms);
	}
}

void daemon_accept_expire(struct daemon *d, uint64_t now_ms)
{
	char address[CONNECT_ORIGIN];

	for (unsigned i = 0; i < DAEMON_PENDING_MAX; i++) {
		struct pending *p = &d->pending[i];

		if (p->fd < 0 || now_ms < p->deadline_ms)
			continue;
		daemon_log_stranger(d, "%s: dropped: said nothing in time",
				    connect_origin(p->fd, address));
		drop(p);
	}
}
