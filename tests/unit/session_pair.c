/* SPDX-License-Identifier: MIT */
#include "tests/unit/session_pair.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/unit/unit.h"

/* Long enough for a machine that is busy with something else; every fault that makes a reader wait costs as much. */
#define PAIR_TIMEOUT_MS 1500u

static void on_message(void *ctx, enum session_log level, const char *text)
{
	struct pair_end *e = ctx;
	size_t n = strlen(e->messages);

	snprintf(e->messages + n, sizeof(e->messages) - n, "%s%s\n",
		 level == SESSION_WARNING ? "warning: " : "", text);
}

static void on_progress(void *ctx, const struct session_progress *p)
{
	struct pair_end *e = ctx;

	if (e->nr_phases == 0 || (e->phases[e->nr_phases - 1] != p->phase && e->nr_phases < 64))
		e->phases[e->nr_phases++] = p->phase;
	if (e->cancel_at == p->phase)
		atomic_store(&e->cancel, true);
}

static int on_mark(void *ctx, enum session_mark mark, struct pgr_error *err)
{
	struct pair_end *e = ctx;

	if (e->mark_fails && e->nr_marks + 1 == e->mark_fails) {
		e->mark_fails = 0;
		e->mark_failed = mark;
		return pgr_fail(err, -ENOSPC, "injected: no room for the journal");
	}
	CHECK(e->nr_marks < PAIR_MARKS_MAX);
	e->marks[e->nr_marks++] = mark;
	return 0;
}

static void on_moved(void *ctx)
{
	struct pair_end *e = ctx;

	e->moved++;
	/* That it moved is true as well where the journal has no room to say so. */
	CHECK((e->nr_marks && e->marks[e->nr_marks - 1] == SESSION_MARK_MOVED) ||
	      e->mark_failed == SESSION_MARK_MOVED);
}

static void end_init(struct pair_end *e, enum session_phase cancel_at, unsigned mark_fails)
{
	memset(e, 0, sizeof(*e));
	e->cancel_at = cancel_at == SESSION_CONNECT ? SESSION_FAILED : cancel_at;
	e->mark_fails = mark_fails;
	e->owner = (struct session_owner){.ctx = e,
					  .progress = on_progress,
					  .message = on_message,
					  .mark = on_mark,
					  .moved = on_moved,
					  .cancel = &e->cancel};
}

static bool has_mark(const struct pair_end *e, enum session_mark mark)
{
	for (unsigned i = 0; i < e->nr_marks; i++)
		if (e->marks[i] == mark)
			return true;
	return false;
}

struct answer {
	struct pair *p;
	struct channel *c;
};

/* What a daemon does for a session whose process is gone: answer from what was durable. */
static void *answer_main(void *arg)
{
	struct answer *a = arg;
	struct pgr_error err;

	target_answer(a->c, a->p->o.source.session,
		      has_mark(&a->p->target, SESSION_MARK_MOVED) ? PGR_STATE_RUNNING
								  : PGR_STATE_NOT_STARTED,
		      &err);
	a->c->ops->close(a->c);
	free(a);
	return NULL;
}

/* The faulty channel belongs to the session, which closes it: see then whether its fault struck. One pair runs at a time. */
static struct pair *watching;
static const struct channel_ops *fault_ops;
static struct channel_ops watched_ops;

static void watched_close(struct channel *c)
{
	if (channel_fault_fired(c))
		watching->fault_fired = true;
	fault_ops->close(c);
}

static void watch_fault(struct pair *p, struct channel *c)
{
	watching = p;
	fault_ops = c->ops;
	watched_ops = *c->ops;
	watched_ops.close = watched_close;
	c->ops = &watched_ops;
}

/*
 * The target's first connection: PRECHECK arrives, the source goes on, the connection is cut (by the fault), and only then does the target
 * learn what became of its sending: that it was cancelled.
 */
static const struct channel_ops *answer_ops;
static struct channel_ops late_ops;
static atomic_bool answer_cut;

static int late_write(struct channel *c, const struct iovec *iov, unsigned nr,
		      struct pgr_error *err)
{
	const struct pgr_record *h = iov[0].iov_base;
	const struct timespec pause = {.tv_nsec = 1000000};
	int rc = answer_ops->write(c, iov, nr, err);

	if (rc || iov[0].iov_len != sizeof(*h) || h->type != PGR_REC_PRECHECK)
		return rc;
	while (!atomic_load(&answer_cut))
		nanosleep(&pause, NULL);
	return pgr_fail(err, -ECANCELED, "injected: cut while the answer was sent");
}

static void late_shutdown(struct channel *c)
{
	atomic_store(&answer_cut, true);
	answer_ops->shutdown(c);
}

static void lose_answer_late(struct channel *c)
{
	atomic_store(&answer_cut, false);
	answer_ops = c->ops;
	late_ops = *c->ops;
	late_ops.write = late_write;
	late_ops.shutdown = late_shutdown;
	c->ops = &late_ops;
}

/* What the target says after RUNNING does not arrive. */
static bool is_older;

static int short_write(struct channel *c, const struct iovec *iov, unsigned nr,
		       struct pgr_error *err)
{
	const struct pgr_record *h = iov[0].iov_base;
	bool record = iov[0].iov_len == sizeof(*h);
	int rc;

	if (record && is_older && h->type == PGR_REC_CONNECTED)
		return 0;
	rc = answer_ops->write(c, iov, nr, err);
	if (record && !is_older && h->type == PGR_REC_RUNNING)
		answer_ops->shutdown(c);
	return rc;
}

static void lose_last_words(struct channel *c, bool older)
{
	is_older = older;
	answer_ops = c->ops;
	late_ops = *c->ops;
	late_ops.write = short_write;
	c->ops = &late_ops;
}

/* The main thread adds records while the session fails, however fast it is otherwise. */
static const struct guest_source_ops *source_ops;
static struct guest_source_ops watched_source_ops;

static int endless_state(struct guest_source *g, guest_state_fn *emit, void *ctx,
			 struct pgr_error *err)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	int rc = source_ops->state(g, emit, ctx, err);

	while (!rc) {
		nanosleep(&pause, NULL);
		rc = emit(ctx, PGR_REC_KEEPALIVE, NULL, 0, err);
	}
	return rc;
}

static int watched_throttle(struct guest_source *g, unsigned percent, struct pgr_error *err)
{
	watching->speed = percent;
	if (percent < watching->lowest_speed)
		watching->lowest_speed = percent;
	return source_ops->throttle(g, percent, err);
}

static int watched_suspend(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err)
{
	watching->speed_at_stop = watching->speed;
	return source_ops->suspend(g, timeout_ms, err);
}

static void watch_source(struct pair *p, bool endless)
{
	watching = p;
	p->speed = p->lowest_speed = 100;
	source_ops = p->g->ops;
	watched_source_ops = *p->g->ops;
	watched_source_ops.throttle = watched_throttle;
	watched_source_ops.suspend = watched_suspend;
	if (p->o.let_go)
		watched_source_ops.let_go = p->o.let_go;
	if (endless)
		watched_source_ops.state = endless_state;
	p->g->ops = &watched_source_ops;
}

static int pair_connect(void *ctx, unsigned channel, enum pgr_purpose purpose, struct channel **out,
			struct pgr_error *err)
{
	struct pair *p = ctx;
	struct channel *mine, *theirs;
	int fd[2];
	bool over, refuse;

	pthread_mutex_lock(&p->lock);
	p->connections++;
	refuse = p->o.refuse_after && p->connections > p->o.refuse_after &&
		 (!p->o.refuse_number || p->connections <= p->o.refuse_after + p->o.refuse_number);
	over = p->target_over;
	pthread_mutex_unlock(&p->lock);
	if (refuse || (over && (p->o.target_dies_silently || purpose != PGR_PURPOSE_QUERY)))
		return pgr_fail(err, -ECONNREFUSED, "injected: nobody listens");
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd))
		return pgr_fail_errno(err, -errno, "socketpair");
	if (channel_from_fd(fd[0], PAIR_TIMEOUT_MS, "target", &mine, err)) {
		close(fd[1]);
		return err->code;
	}
	if (channel_from_fd(fd[1], PAIR_TIMEOUT_MS, "source", &theirs, err)) {
		mine->ops->close(mine);
		return err->code;
	}
	pthread_mutex_lock(&p->lock);
	if (purpose != PGR_PURPOSE_QUERY && channel == p->o.fault_channel &&
	    p->made[channel]++ == p->o.fault_connection && p->o.fault.kind != FAULT_NONE) {
		CHECK_EQ(channel_fault_wrap(mine, &p->o.fault, &mine, err), 0);
		watch_fault(p, mine);
	}
	if (p->o.answer_lost_late && purpose == PGR_PURPOSE_NEW)
		lose_answer_late(theirs);
	if ((p->o.target_is_older || p->o.cut_after_running) && purpose == PGR_PURPOSE_NEW)
		lose_last_words(theirs, p->o.target_is_older);
	pthread_mutex_unlock(&p->lock);
	if (purpose == PGR_PURPOSE_JOIN && p->o.lose_join == channel) {
		p->lost = theirs;
		*out = mine;
		return 0;
	}
	if (over) {
		struct answer *a = malloc(sizeof(*a));
		pthread_t t;

		CHECK(a != NULL);
		*a = (struct answer){.p = p, .c = theirs};
		CHECK_EQ(pthread_create(&t, NULL, answer_main, a), 0);
		pthread_detach(t);
	} else {
		pthread_mutex_lock(&p->lock);
		CHECK(p->nr_waiting < 64);
		p->waiting[p->nr_waiting++] = (struct pair_waiting){channel, purpose, theirs};
		pthread_cond_broadcast(&p->changed);
		pthread_mutex_unlock(&p->lock);
	}
	*out = mine;
	return 0;
}

static int pair_accept(void *ctx, unsigned timeout_ms, unsigned *channel, enum pgr_purpose *purpose,
		       struct channel **out, struct pgr_error *err)
{
	struct pair *p = ctx;
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += timeout_ms % 1000 * 1000000l;
	if (until.tv_nsec >= 1000000000l) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000l;
	}
	pthread_mutex_lock(&p->lock);
	while (!p->nr_waiting && !p->source_over && rc != ETIMEDOUT)
		rc = pthread_cond_timedwait(&p->changed, &p->lock, &until);
	if (p->nr_waiting) {
		*channel = p->waiting[0].channel;
		*purpose = p->waiting[0].purpose;
		*out = p->waiting[0].c;
		memmove(p->waiting, p->waiting + 1, --p->nr_waiting * sizeof(p->waiting[0]));
		rc = 0;
	} else {
		rc = pgr_fail(err, -ETIMEDOUT, "no connection came");
	}
	pthread_mutex_unlock(&p->lock);
	return rc;
}

static void *target_main(void *arg)
{
	struct pair *p = arg;

	p->target.rc = target_run(p->s, &p->o.target, &p->target.owner, &p->target.result,
				  &p->target.error);
	pthread_mutex_lock(&p->lock);
	p->target_over = true;
	for (unsigned i = 0; i < p->nr_waiting; i++)
		p->waiting[i].c->ops->close(p->waiting[i].c);
	p->nr_waiting = 0;
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

void pair_defaults(struct pair_options *o)
{
	memset(o, 0, sizeof(*o));
	o->guest.name = "moving";
	o->guest.seed = 7;
	memcpy(o->guest.uuid, "pagurus-session", 16);
	o->guest.memory = 16u << 20;
	o->guest.absent_permille = 20;
	o->guest.page_table_pages = 8;
	o->guest.vcpus = 2;
	o->guest.workload.working_set = 1u << 20;
	o->guest.workload.rate = 4u << 20;
	o->guest.workload.write_bytes = 64;
	o->source.channels = 2;
	o->source.encode.method = ENCODE_LZ4;
	o->source.encode.cache_bytes = 4u << 20;
	o->source.policy.downtime_ns = 0;
	o->source.policy.max_rounds = 6;
	o->source.reconnect_ms = 3000;
	o->source.reconnect_stopped_ms = 3000;
	o->source.suspend_timeout_ms = 5000;
	o->target.resume_wait_ms = 4000;
	o->source.silence_ms = o->target.silence_ms = 3000;
	o->source.connected_ms = 2000;
	for (unsigned i = 0; i < PGR_SESSION_SIZE; i++)
		o->source.session[i] = (uint8_t)(i * 17 + 3);
}

void pair_run(struct pair *p, const struct pair_options *o)
{
	static uint32_t number;
	struct pgr_error err = PGR_ERROR_NONE;
	pthread_t thread;

	memset(p, 0, sizeof(*p));
	p->o = *o;
	/* A test that failed leaves its guests behind; they are not the next one's. */
	number++;
	memcpy(p->o.guest.uuid, &number, sizeof(number));
	p->overlaps = guest_sim_overlaps();
	p->allocated = guest_sim_allocated();
	p->o.source.connect = pair_connect;
	p->o.source.connect_ctx = p;
	p->o.target.accept = pair_accept;
	p->o.target.accept_ctx = p;
	strcpy(p->capture, "/tmp/pagurus-session-XXXXXX");
	CHECK(mkdtemp(p->capture) != NULL);
	p->o.source.capture_dir = p->capture;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->changed, NULL);
	end_init(&p->source, o->source_cancel, o->source_mark_fails);
	end_init(&p->target, o->target_cancel, o->target_mark_fails);
	CHECK_MSG(!guest_sim_create(&p->o.guest, &p->guest, &err), "%s", err.text);
	CHECK_MSG(!guest_sim_source_open(p->guest, o->source_fault.point ? &o->source_fault : NULL,
					 o->source_fault.point ? 1 : 0, &p->g, &err),
		  "%s", err.text);
	watch_source(p, o->state_without_end);
	CHECK_MSG(!guest_sim_sink_open(&o->sink, o->sink_fault.point ? &o->sink_fault : NULL,
				       o->sink_fault.point ? 1 : 0, &p->s, &err),
		  "%s", err.text);
	CHECK_EQ(pthread_create(&thread, NULL, target_main, p), 0);
	if (o->source_alloc_fails)
		unit_fail_alloc(o->source_alloc_fails);
	p->source.rc = source_run(p->g, &p->o.source, &p->source.owner, &p->source.result,
				  &p->source.error);
	unit_fail_alloc(0);
	pthread_mutex_lock(&p->lock);
	p->source_over = true;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	pthread_join(thread, NULL);
}

static void remove_capture(struct pair *p)
{
	for (unsigned i = 0; i < PGR_CHANNELS_MAX; i++) {
		char path[128];

		snprintf(path, sizeof(path), "%s/source-%u.bin", p->capture, i);
		unlink(path);
	}
	rmdir(p->capture);
}

void pair_verify_capture(struct pair *p)
{
	char command[512];

	snprintf(command, sizeof(command),
		 "/usr/bin/python3 protocol-spec/verify_stream.py --quiet --dir %s", p->capture);
	CHECK_EQ(system(command), 0);
}

void pair_check_and_free(struct pair *p)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct guest_sim *runs;
	struct guest_sim_status st;

	CHECK_MSG(guest_sim_overlaps() == p->overlaps, "two guests ran at once");
	CHECK_MSG(guest_sim_running(p->o.guest.uuid) == 1,
		  "%u guests run; source: %d %s; target: %d %s; %s%s",
		  guest_sim_running(p->o.guest.uuid), p->source.rc, p->source.error.text,
		  p->target.rc, p->target.error.text, p->source.messages, p->target.messages);
	runs = guest_sim_find_running(p->o.guest.uuid);
	guest_sim_status(runs, &st);
	CHECK_MSG(st.mismatches == 0, "%s", st.mismatch);
	CHECK_MSG(!guest_sim_verify(runs, &err), "%s", err.text);
	CHECK_EQ(st.speed, 100);
	/* Where it runs is where both ends say it does. */
	CHECK_EQ(p->source.rc == 0, p->source.result.outcome == SESSION_MOVED);
	CHECK_EQ(runs != p->guest || guest_sim_of_source(p->g) == runs, 1);
	if (p->source.result.outcome == SESSION_MOVED) {
		CHECK(runs == guest_sim_of_sink(p->s));
		CHECK_EQ(p->target.result.outcome, SESSION_MOVED);
	} else {
		CHECK_MSG(p->source.error.text[0] != 0 && p->source.error.code == p->source.rc,
			  "no reason was given: %d", p->source.rc);
	}
	if (p->source.result.outcome == SESSION_STAYED) {
		CHECK(runs == guest_sim_of_source(p->g));
		CHECK_EQ(p->target.result.outcome, SESSION_STAYED);
		CHECK(p->target.rc < 0);
	}
	p->g->ops->close(p->g);
	p->s->ops->close(p->s);
	CHECK_EQ(guest_sim_count(p->o.guest.uuid),
		 p->source.result.outcome == SESSION_UNKNOWN ? 2 : 1);
	while (guest_sim_find_running(p->o.guest.uuid))
		guest_sim_destroy(guest_sim_find_running(p->o.guest.uuid));
	if (p->source.result.outcome != SESSION_UNKNOWN) {
		CHECK_EQ(guest_sim_count(p->o.guest.uuid), 0);
		CHECK_EQ(guest_sim_allocated(), p->allocated);
	}
	if (p->lost)
		p->lost->ops->close(p->lost);
	remove_capture(p);
	pthread_cond_destroy(&p->changed);
	pthread_mutex_destroy(&p->lock);
}
