/* SPDX-License-Identifier: MIT */
/* Each move is a session of the daemon's on a connection of its own: if this command dies they go on, and the next one finds them. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tools/pagurus/client.h"
#include "tools/pagurus/evacuation.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/units.h"

#define TURN_MS 500
#define LOOK_MS 1000u

struct move {
	int fd; /* -1: free */
	struct line_reader reader;
	struct evacuee *g;
	bool moved; /* the rest is figures */
};

struct run {
	struct evacuation *e;
	struct move moves[EVACUATION_MOVES_MAX];
	int signals;
	uint64_t look_ms;
};

static void settle(struct evacuation *e, struct evacuee *g, enum evacuee_state state,
		   const char *text)
{
	g->state = state;
	if (text)
		snprintf(g->text, sizeof(g->text), "%.599s", text);
	if (state == EVACUEE_MOVED || state == EVACUEE_STAYS || state == EVACUEE_UNKNOWN)
		evacuation_show_end(e, g);
}

/* ---- sessions that are not ours ---- */

static const json_t *session_of(const json_t *sessions, const struct evacuee *g)
{
	const json_t *one;
	size_t i;

	json_array_foreach(sessions, i, one)
	{
		const char *job = message_text(one, "job");

		if ((!strcmp(job, "source") || !strcmp(job, "recover")) &&
		    !strcmp(message_text(one, "guest"), g->guest.name))
			return one;
	}
	return NULL;
}

/* Its session is over. Gone from here, it was moved. */
static void take_back(struct evacuation *e, struct evacuee *g)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct guest_here now;

	if (guests_look(g->asked, &now, &err) == -ENOENT)
		settle(e, g, EVACUEE_MOVED, NULL);
	else
		g->state = EVACUEE_WAITS;
}

static void look_at(struct evacuation *e, const json_t *sessions, struct evacuee *g)
{
	const json_t *one = session_of(sessions, g);

	if (!one && g->state == EVACUEE_LEAVES)
		take_back(e, g);
	if (!one)
		return;
	if (!strcmp(message_text(one, "job"), "recover")) {
		settle(e, g, EVACUEE_UNKNOWN,
		       "it was handed over earlier, and it is not known yet whether it runs there");
		return;
	}
	g->state = EVACUEE_LEAVES;
	snprintf(g->text, sizeof(g->text), "%.200s", message_text(one, "peer"));
	json_decref(g->progress);
	g->progress = json_incref(json_object_get(one, "progress"));
}

int evacuation_look(struct evacuation *e, struct pgr_error *err)
{
	json_t *answer;
	int rc = client_ask(e->control, json_pack("{ss}", "request", "status"), &answer, err);

	if (rc)
		return rc;
	for (unsigned i = 0; i < e->nr_guests; i++)
		if (e->guests[i].state == EVACUEE_WAITS || e->guests[i].state == EVACUEE_LEAVES)
			look_at(e, json_object_get(answer, "sessions"), &e->guests[i]);
	json_decref(answer);
	return 0;
}

/* ---- the plan ---- */

/* Whether the host it is given to would take it: 0, or 1 with the reason in its text. -errno: the daemon does not answer. */
static int would_take(struct evacuation *e, struct evacuee *g, struct pgr_error *err)
{
	const char *host = e->hosts[g->host].name;
	struct pgr_error why = PGR_ERROR_NONE;
	json_t *answer;
	int refused = 1, rc;

	rc = client_ask_for(e->control, move_request_json(&e->request, g->asked, host, true),
			    "result", &answer, &why);
	if (rc && rc != -EINVAL) {
		*err = why;
		return rc;
	}
	if (!rc)
		refused = message_number(answer, "exit") != 0;
	if (refused)
		snprintf(g->text, sizeof(g->text), "%.256s: %.300s", host,
			 rc ? why.text : message_text(answer, "text"));
	json_decref(answer);
	return refused;
}

static int plan_one(struct evacuation *e, struct evacuee *g, struct pgr_error *err)
{
	int rc;

	snprintf(g->text, sizeof(g->text), "no host has enough memory left");
	while (evacuation_place(e, g)) {
		rc = would_take(e, g, err);
		if (rc <= 0) {
			g->text[0] = 0;
			return rc;
		}
		evacuation_displace(e, g);
	}
	g->state = EVACUEE_STAYS;
	return 0;
}

int evacuation_plan(struct evacuation *e, struct pgr_error *err)
{
	int rc = 0;

	for (unsigned i = 0; !rc && i < e->nr_guests; i++)
		if (e->guests[i].state == EVACUEE_WAITS)
			rc = plan_one(e, &e->guests[i], err);
	return rc;
}

/* ---- moving ---- */

static void end_move(struct move *m)
{
	close(m->fd);
	line_free(&m->reader);
	*m = (struct move){.fd = -1};
}

/* This host does not take it; perhaps another one does. */
static void try_another(struct run *r, struct evacuee *g, const char *why)
{
	char text[sizeof(g->text)];

	snprintf(text, sizeof(text), "%.256s: %.300s", r->e->hosts[g->host].name, why);
	evacuation_displace(r->e, g);
	if (!r->e->interrupted && evacuation_place(r->e, g)) {
		evacuation_note(r->e, g, text);
		g->state = EVACUEE_WAITS;
		return;
	}
	settle(r->e, g, EVACUEE_STAYS, text);
}

static void take_result(struct run *r, struct evacuee *g, const json_t *message)
{
	const char *text = message_text(message, "text");

	json_decref(g->result);
	g->result = json_incref((json_t *)message);
	switch (message_number(message, "exit")) {
	case EXIT_OK:
		settle(r->e, g, EVACUEE_MOVED, NULL);
		return;
	case EXIT_UNKNOWN:
		settle(r->e, g, EVACUEE_UNKNOWN, text);
		return;
	case EXIT_CANCELLED:
		settle(r->e, g, EVACUEE_STAYS, text);
		return;
	case EXIT_FAILED:
		g->failed++;
		break;
	default:
		break;
	}
	try_another(r, g, text);
}

/* True: the move is over. */
static bool take_message(struct run *r, struct move *m, const json_t *message)
{
	const char *type = message_text(message, "type");
	struct evacuee *g = m->g;

	if (!strcmp(type, "mark"))
		m->moved = !strcmp(message_text(message, "mark"), "moved");

	if (!strcmp(type, "result")) {
		take_result(r, g, message);
		return true;
	}
	if (!strcmp(type, "error")) {
		try_another(r, g, message_text(message, "text"));
		return true;
	}
	if (!strcmp(type, "progress")) {
		json_decref(g->progress);
		g->progress = json_incref((json_t *)message);
	}
	evacuation_show_message(r->e, g, message);
	return false;
}

static void cancel_one(struct run *r, struct move *m)
{
	json_t *request = json_pack("{ss}", "request", "cancel");

	if (!request || line_write(m->fd, request))
		evacuation_note(r->e, m->g, "the daemon did not take the request to cancel it");
	json_decref(request);
}

static void start(struct run *r, struct move *m, struct evacuee *g)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct move_request request = r->e->request;
	json_t *message;
	int rc = client_open(r->e->control, &m->fd, &err);

	if (rc) {
		m->fd = -1;
		settle(r->e, g, EVACUEE_STAYS, err.text);
		return;
	}
	/* What one of them does not use the others do not get: the limit holds whatever they do. */
	if (request.bandwidth)
		request.bandwidth =
			request.bandwidth / r->e->at_once ? request.bandwidth / r->e->at_once : 1;
	message = move_request_json(&request, g->asked, r->e->hosts[g->host].name, false);
	rc = message ? line_write(m->fd, message) : -ENOMEM;
	json_decref(message);
	m->g = g;
	g->state = EVACUEE_MOVES;
	if (rc) {
		settle(r->e, g, EVACUEE_STAYS, "the daemon did not take the request");
		end_move(m);
	}
}

static void start_more(struct run *r)
{
	unsigned next = 0;

	for (unsigned i = 0; i < r->e->at_once; i++) {
		if (r->moves[i].fd >= 0)
			continue;
		while (next < r->e->nr_guests && r->e->guests[next].state != EVACUEE_WAITS)
			next++;
		if (next == r->e->nr_guests)
			return;
		if (r->e->guests[next].host < 0 && !evacuation_place(r->e, &r->e->guests[next]))
			settle(r->e, &r->e->guests[next], EVACUEE_STAYS,
			       "no host has enough memory left");
		else
			start(r, &r->moves[i], &r->e->guests[next]);
	}
}

/* No other one is begun. */
static void end_waiting(struct run *r, const char *why)
{
	for (unsigned i = 0; i < r->e->nr_guests; i++)
		if (r->e->guests[i].state == EVACUEE_WAITS)
			settle(r->e, &r->e->guests[i], EVACUEE_STAYS, why);
}

static void listen_to(struct run *r, struct move *m)
{
	struct evacuee *g = m->g;
	json_t *message;
	bool bad = false, over = false;
	int rc = line_fill(&m->reader, m->fd);

	while (!rc && !over && ((message = line_next(&m->reader, &bad)) || bad)) {
		if (message)
			over = take_message(r, m, message);
		json_decref(message);
	}
	if (!over && rc && rc != -EINTR && rc != -EAGAIN) {
		if (m->moved)
			settle(r->e, g, EVACUEE_MOVED, NULL);
		else
			settle(r->e, g, EVACUEE_UNKNOWN,
			       "the daemon ended while it moved the guest; when it runs again it puts things right");
		end_waiting(r, "the daemon ended before its turn came");
		over = true;
	}
	if (over)
		end_move(m);
}

static void on_signal(struct run *r)
{
	struct signalfd_siginfo info;

	if (read(r->signals, &info, sizeof(info)) != sizeof(info))
		return;
	if (r->e->interrupted) {
		evacuation_note(r->e, NULL,
				"still waiting for what becomes of the moves that were cancelled");
		return;
	}
	r->e->interrupted = true;
	evacuation_note(
		r->e, NULL,
		"cancelling: guests that have moved stay where they are now, the others stay here");
	for (unsigned i = 0; i < EVACUATION_MOVES_MAX; i++)
		if (r->moves[i].fd >= 0)
			cancel_one(r, &r->moves[i]);
	end_waiting(r, "its turn had not come");
	for (unsigned i = 0; i < r->e->nr_guests; i++)
		if (r->e->guests[i].state == EVACUEE_LEAVES)
			settle(r->e, &r->e->guests[i], EVACUEE_STAYS,
			       "another command is moving it: that goes on");
}

static void turn(struct run *r)
{
	struct pollfd polls[EVACUATION_MOVES_MAX + 1];

	for (unsigned i = 0; i < EVACUATION_MOVES_MAX; i++)
		polls[i] = (struct pollfd){.fd = r->moves[i].fd, .events = POLLIN};
	polls[EVACUATION_MOVES_MAX] = (struct pollfd){.fd = r->signals, .events = POLLIN};
	if (poll(polls, EVACUATION_MOVES_MAX + 1, TURN_MS) < 0)
		return;
	for (unsigned i = 0; i < EVACUATION_MOVES_MAX; i++)
		if (polls[i].revents)
			listen_to(r, &r->moves[i]);
	if (polls[EVACUATION_MOVES_MAX].revents)
		on_signal(r);
}

static bool any(const struct evacuation *e)
{
	return evacuation_count(e, EVACUEE_WAITS) || evacuation_count(e, EVACUEE_MOVES) ||
	       evacuation_count(e, EVACUEE_LEAVES);
}

static int work(struct run *r, struct pgr_error *err)
{
	int rc = 0;

	while (!rc && any(r->e)) {
		start_more(r);
		turn(r);
		evacuation_show_progress(r->e);
		if (!evacuation_count(r->e, EVACUEE_LEAVES) ||
		    units_now_ms() - r->look_ms < LOOK_MS)
			continue;
		r->look_ms = units_now_ms();
		rc = evacuation_look(r->e, err);
	}
	return rc;
}

int evacuation_run(struct evacuation *e, struct pgr_error *err)
{
	struct run r = {.e = e, .look_ms = units_now_ms()};
	sigset_t set, before;
	int rc;

	for (unsigned i = 0; i < EVACUATION_MOVES_MAX; i++)
		r.moves[i].fd = -1;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, &before);
	signal(SIGPIPE, SIG_IGN);
	r.signals = signalfd(-1, &set, SFD_CLOEXEC);
	rc = r.signals < 0 ? pgr_fail_errno(err, -errno, "no descriptor for signals")
			   : work(&r, err);
	for (unsigned i = 0; i < EVACUATION_MOVES_MAX; i++)
		if (r.moves[i].fd >= 0)
			end_move(&r.moves[i]);
	if (r.signals >= 0)
		close(r.signals);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return rc;
}
