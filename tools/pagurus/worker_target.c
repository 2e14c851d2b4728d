/* SPDX-License-Identifier: MIT */
/*
 * A guest arrives from another host. docs/one-owner.md says why the steps are in this order.
 *
 * Connections: the daemon passes each with its preamble read. The first is the session's channel 0; every other one does its TLS
 * handshake on a thread of its own, so that a stranger who is slow at it holds up nobody, and is queued when it has proved to
 * be the same peer. Handshakes are bounded in number, where a newcomer may take the place of one that waits, and in time. They
 * are over before the process ends: exit() takes away what OpenSSL needs.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/connect.h"
#include "tools/pagurus/crowd.h"
#include "tools/pagurus/disks_arrive.h"
#include "tools/pagurus/guests.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/recover.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/worker.h"

#define HANDSHAKES_MAX 32u

struct arrived {
	struct arrived *next;
	struct channel *channel;
	unsigned number;
	enum pgr_purpose purpose;
};

struct handshake {
	bool used;  /* has a thread to join */
	bool ended; /* which has nothing more to do */
	pthread_t thread;
	struct arrivals *a;
	struct worker_connection
		c; /* its descriptor is the thread's, which closes it when it likes */
	int fd;	   /* the same connection, for who ends the handshake from outside */
	uint64_t since_ms;
	uint8_t network[CROWD_NETWORK];
};

struct arrivals {
	struct worker *w;
	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	bool over; /* whoever comes is sent away */
	struct arrived *first;
	struct handshake handshakes[HANDSHAKES_MAX];
	char peer[256]; /* set before the first of the others comes; constant */
};

static void queue(struct arrivals *a, struct arrived *item)
{
	struct arrived **end;

	pthread_mutex_lock(&a->lock);
	for (end = &a->first; *end; end = &(*end)->next)
		;
	*end = item;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
}

static int authenticate(struct arrivals *a, const struct worker_connection *c, const char *expect,
			char peer[256], struct pgr_error *err)
{
	struct arrived *item = calloc(1, sizeof(*item));
	int rc;

	if (!item) {
		close(c->fd);
		return pgr_fail(err, -ENOMEM, "no memory for a connection");
	}
	item->number = c->channel;
	item->purpose = c->purpose;
	rc = connect_from(c->fd, a->w->id, expect, peer, &item->channel, err);
	if (rc)
		free(item);
	else
		queue(a, item);
	return rc;
}

static void *handshake(void *ctx)
{
	struct handshake *h = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	char peer[256];
	int rc = authenticate(h->a, &h->c, h->a->peer, peer, &err);
	bool over;

	pthread_mutex_lock(&h->a->lock);
	over = h->a->over;
	pthread_mutex_unlock(&h->a->lock);
	if (rc && !over)
		worker_say(h->a->w, SESSION_WARNING, "a connection was refused: %s", err.text);
	pthread_mutex_lock(&h->a->lock);
	close(h->fd);
	h->ended = true;
	pthread_cond_broadcast(&h->a->changed);
	pthread_mutex_unlock(&h->a->lock);
	return NULL;
}

/* Their threads notice and end. Caller holds lock. */
static void end_slow_handshakes(struct arrivals *a)
{
	uint64_t now = units_now_ms();

	for (unsigned i = 0; i < HANDSHAKES_MAX; i++)
		if (a->handshakes[i].used && !a->handshakes[i].ended &&
		    now - a->handshakes[i].since_ms >= CONNECT_STRANGER_MS)
			shutdown(a->handshakes[i].fd, SHUT_RDWR);
}

/* Its thread ends without the lock. Caller holds it. */
static void reap(struct handshake *h)
{
	if (h->used && h->ended) {
		pthread_join(h->thread, NULL);
		h->used = false;
	}
}

/* A place for another handshake. Caller holds lock. */
static struct handshake *make_room(struct arrivals *a)
{
	struct crowd_member crowd[HANDSHAKES_MAX];
	struct handshake *h;

	for (unsigned i = 0; i < HANDSHAKES_MAX; i++) {
		h = &a->handshakes[i];
		reap(h);
		if (!h->used)
			return h;
		crowd[i] = (struct crowd_member){.waits = true, .since_ms = h->since_ms};
		memcpy(crowd[i].network, h->network, CROWD_NETWORK);
	}
	h = &a->handshakes[crowd_choose(crowd, HANDSHAKES_MAX)];
	shutdown(h->fd, SHUT_RDWR);
	while (h->used && !h->ended)
		pthread_cond_wait(&a->changed, &a->lock);
	reap(h);
	return h;
}

static void further_connection(struct worker *w, const struct worker_connection *c)
{
	struct arrivals *a = w->connection_ctx;
	struct handshake *h;
	int fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 0);

	if (fd < 0) {
		close(c->fd);
		return;
	}
	pthread_mutex_lock(&a->lock);
	end_slow_handshakes(a);
	h = make_room(a);
	*h = (struct handshake){
		.used = true, .a = a, .c = *c, .fd = fd, .since_ms = units_now_ms()};
	crowd_network(fd, h->network);
	/* Making room waits, meanwhile it may be over. */
	if (a->over || pthread_create(&h->thread, NULL, handshake, h)) {
		close(c->fd);
		close(fd);
		h->used = false;
	}
	pthread_mutex_unlock(&a->lock);
}

/* Whoever is in the midst of a handshake, or waits to be taken, goes, and nobody else comes. */
static void end_arrivals(struct arrivals *a)
{
	struct arrived *item;

	pthread_mutex_lock(&a->lock);
	a->over = true;
	for (unsigned i = 0; i < HANDSHAKES_MAX; i++) {
		struct handshake *h = &a->handshakes[i];

		if (h->used && !h->ended)
			shutdown(h->fd, SHUT_RDWR);
	}
	for (unsigned i = 0; i < HANDSHAKES_MAX; i++) {
		while (a->handshakes[i].used && !a->handshakes[i].ended)
			pthread_cond_wait(&a->changed, &a->lock);
		reap(&a->handshakes[i]);
	}
	while ((item = a->first)) {
		a->first = item->next;
		item->channel->ops->close(item->channel);
		free(item);
	}
	pthread_mutex_unlock(&a->lock);
}

static int accept_next(void *ctx, unsigned timeout_ms, unsigned *channel, enum pgr_purpose *purpose,
		       struct channel **out, struct pgr_error *err)
{
	struct arrivals *a = ctx;
	struct arrived *item;
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000l;
	if (until.tv_nsec >= 1000000000l) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000l;
	}
	pthread_mutex_lock(&a->lock);
	end_slow_handshakes(a);
	while (!a->first && !rc)
		rc = pthread_cond_timedwait(&a->changed, &a->lock, &until);
	item = a->first;
	if (item)
		a->first = item->next;
	pthread_mutex_unlock(&a->lock);
	if (!item)
		return pgr_fail(err, -ETIMEDOUT, "no connection from %s came within %u ms", a->peer,
				timeout_ms);
	*channel = item->number;
	*purpose = item->purpose;
	*out = item->channel;
	free(item);
	return 0;
}

static void note_guest(struct journal *j, void *ctx)
{
	journal_note_guest(j, ctx);
}

/* Before anything of the guest is made here, the journal knows what to remove. */
static int guest_seen(void *ctx, const struct guest_description *d, struct pgr_error *err)
{
	struct worker *w = ctx;
	struct guest_info info = d->info;
	int rc = journal_guest_is_free(w->paths.state, info.uuid, w->session, err);

	if (rc)
		return rc;
	worker_send(w,
		    json_pack("{ss so so si}", "type", "guest", "guest", message_string(info.name),
			      "peer", message_string(w->journal.peer), "vcpus", (int)info.vcpus),
		    true);
	return worker_journal(w, note_guest, &info, err);
}

struct disks_note {
	const struct disk_made *made;
	unsigned nr;
};

static void set_disks(struct journal *j, void *ctx)
{
	const struct disks_note *n = ctx;

	memcpy(j->disks, n->made, n->nr * sizeof(j->disks[0]));
	j->nr_disks = n->nr;
}

static int note_disks(void *ctx, const struct disk_made *made, unsigned nr, struct pgr_error *err)
{
	struct disks_note n = {.made = made, .nr = nr};

	return worker_journal(ctx, set_disks, &n, err);
}

static int begin_journal(struct worker *w, const char *peer, struct pgr_error *err)
{
	struct journal *j = &w->journal;
	int rc = journal_trim(w->paths.state, peer, err);

	if (rc)
		return rc;
	memcpy(j->session, w->session, sizeof(j->session));
	j->role = JOURNAL_TARGET;
	j->mark = SESSION_MARK_BEGIN;
	snprintf(j->peer, sizeof(j->peer), "%s", peer);
	return journal_create(w->paths.state, j, &w->journal_file, err);
}

static void init_arrivals(struct arrivals *a, struct worker *w)
{
	pthread_condattr_t clock;

	a->w = w;
	pthread_mutex_init(&a->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&a->changed, &clock);
	pthread_condattr_destroy(&clock);
}

/* It runs here: see to its life, tell the daemon, stay while it needs this process. */
static void after_start(struct worker *w, struct guest_sink *sink)
{
	struct pgr_error err = PGR_ERROR_NONE;
	unsigned run_ms = (unsigned)message_number(w->request, "sim_run_ms");

	if (guests_started(sink, run_ms, &err))
		worker_say(w, SESSION_WARNING, "guest %s: %s", w->journal.guest, err.text);
	else if (w->journal.kind == PGR_GUEST_SIM)
		worker_say(w, SESSION_INFO, "guest %s: ran here and its memory is right",
			   w->journal.guest);
}

int worker_target(struct worker *w)
{
	static struct arrivals
		arrivals; /* the thread that reads from the daemon may outlive this function */
	struct guests_sink_options options = {
		.allow_sim = w->allow_sim, .seen = guest_seen, .ctx = w};
	struct target_params params = {.accept = accept_next, .accept_ctx = &arrivals};
	struct session_result res = {.outcome = SESSION_STAYED};
	struct pgr_error err = PGR_ERROR_NONE;
	struct guest_sink *sink = NULL;
	struct disks_arrive_options come = {.note = note_disks, .ctx = w};
	struct disks_arrive *disks = NULL;
	struct target_disks disks_ops;
	int rc;

	params.disks = &disks_ops;
	memcpy(come.session, w->session, sizeof(come.session));
	params.resume_wait_ms = (unsigned)message_number(w->request, "resume_wait_ms");
	init_arrivals(&arrivals, w);
	rc = authenticate(&arrivals, &w->first, NULL, arrivals.peer, &err);
	if (!rc) {
		worker_say_peer(w, arrivals.peer);
		rc = begin_journal(w, arrivals.peer, &err);
	}
	if (!rc)
		rc = disks_arrive_new(&come, &disks, &disks_ops, &err);
	if (!rc)
		rc = guests_open_sink(&options, &sink, &err);
	if (!rc) {
		w->connection_ctx = &arrivals;
		w->connection = further_connection;
		rc = target_run(sink, &params, &w->owner, &res, &err);
	}
	w->connection = NULL;
	end_arrivals(&arrivals);
	disks_arrive_free(disks);
	if (res.unfinished) {
		/* The journal stays open and whatever there is of the guest stays as it is: the repair takes it from here. */
		worker_send(w, report_result(&res, rc, err.text), true);
		return report_exit(&res, rc);
	}
	if (sink && res.outcome == SESSION_STAYED) {
		struct pgr_error why = PGR_ERROR_NONE;

		/* What stays behind is found by the journal, which then says that it is not over. */
		if (sink->ops->destroy(sink, &why)) {
			worker_say(w, SESSION_WARNING, "%s", why.text);
			return EXIT_FAILED;
		}
	}
	if (w->journal_file)
		worker_journal_done(w, res.outcome == SESSION_MOVED ? SESSION_MARK_MOVED
								    : SESSION_MARK_RETURNED);
	worker_send(w, report_result(&res, rc, err.text), true);
	if (res.outcome == SESSION_MOVED)
		after_start(w, sink);
	if (sink)
		sink->ops->close(sink);
	journal_close(w->journal_file);
	return report_exit(&res, rc);
}
