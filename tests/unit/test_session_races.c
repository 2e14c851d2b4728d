/* SPDX-License-Identifier: MIT */
/*
 * Peers that keep a connection alive and do nothing, lanes whose first connection never arrives, windows of one record, guests that can be
 * neither resumed nor started: what once waited for ever, or left a guest that nobody answered for.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "migrate/stream.h"
#include "tests/unit/session_pair.h"
#include "tests/unit/unit.h"

static void small(struct pair_options *o)
{
	pair_defaults(o);
	o->guest.memory = 1u << 20;
	o->guest.workload.working_set = 64u << 10;
	o->guest.workload.rate = 1u << 20;
	o->source.policy.max_rounds = 3;
}

/* ---- a target that agrees to everything, reads everything, and never says that anything took effect ---- */

#define NEARLY_THE_RING (6u << 20)

struct deaf {
	struct channel *c;
	pthread_t thread;
	atomic_bool *cancel; /* set when what came nearly fills the source's ring */
};

static int say(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->write(c, iov, nr, err);
}

static int listen_to(void *ctx, void *data, size_t length, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->read(c, data, length, err);
}

static void *deaf_main(void *arg)
{
	struct deaf *d = arg;
	struct pgr_hello_reply reply = {
		.version = PGR_VERSION, .features = 7, .channels = 1, .window = 8192};
	struct pgr_precheck yes = {.refusals = 0};
	struct pgr_error err = PGR_ERROR_NONE;
	struct pgr_stream_header h;
	struct stream_record rec;
	struct stream_reader r;
	struct stream_writer w;
	const struct timespec pause = {.tv_nsec = 300000000};
	uint64_t came = 0;
	int rc;

	stream_reader_init(&r, listen_to, d->c);
	stream_writer_init(&w, say, d->c);
	rc = stream_read_header(&r, &h, &err);
	if (!rc)
		rc = stream_write_header(&w, PGR_KIND_MIGRATE, h.session, 0, h.channels, &err);
	while (!rc) {
		rc = stream_read(&r, &rec, &err);
		if (rc || rec.type == PGR_REC_ABORT)
			break;
		if (rec.type == PGR_REC_OPEN) {
			rc = stream_write_body(&w, PGR_REC_HELLO_REPLY, &reply, sizeof(reply),
					       &err);
			if (!rc)
				rc = stream_write_body(&w, PGR_REC_PRECHECK, &yes, sizeof(yes),
						       &err);
		} else {
			came += rec.length;
			if (d->cancel && came > NEARLY_THE_RING && !atomic_load(d->cancel)) {
				/* Time for the worker to find the ring full. */
				nanosleep(&pause, NULL);
				atomic_store(d->cancel, true);
			}
			rc = stream_write(&w, PGR_REC_KEEPALIVE, NULL, 0, &err);
		}
	}
	stream_reader_free(&r);
	d->c->ops->close(d->c);
	return NULL;
}

static int deaf_connect(void *ctx, unsigned channel, enum pgr_purpose purpose, struct channel **out,
			struct pgr_error *err)
{
	struct deaf *d = ctx;
	int fd[2];

	if (channel || purpose != PGR_PURPOSE_NEW)
		return pgr_fail(err, -ECONNREFUSED, "nobody listens");
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	CHECK_EQ(channel_from_fd(fd[0], 20000, "deaf", out, err), 0);
	CHECK_EQ(channel_from_fd(fd[1], 20000, "source", &d->c, err), 0);
	CHECK_EQ(pthread_create(&d->thread, NULL, deaf_main, d), 0);
	return 0;
}

/* Runs a source against it; the guest must run on here. */
static int run_deaf(struct deaf *d, struct source_params *p, const struct session_owner *o,
		    unsigned stall_ms, struct pgr_error *err)
{
	struct pair_options defaults;
	struct session_result res;
	struct guest_source *g;
	struct guest_sim *guest;
	int rc;

	small(&defaults);
	/* More than the ring holds, so that a worker waits for room that never comes. */
	defaults.guest.memory = 32u << 20;
	defaults.guest.region[0].content = GUEST_SIM_RANDOM;
	defaults.guest.region[0].share = 1;
	defaults.guest.nr_regions = 1;
	CHECK_MSG(!guest_sim_create(&defaults.guest, &guest, err), "%s", err->text);
	CHECK_MSG(!guest_sim_source_open(guest, NULL, 0, &g, err), "%s", err->text);
	*p = defaults.source;
	p->channels = 1;
	p->stall_ms = stall_ms;
	p->connect = deaf_connect;
	p->connect_ctx = d;
	rc = source_run(g, p, o, &res, err);
	pthread_join(d->thread, NULL);
	CHECK_EQ(res.outcome, SESSION_STAYED);
	CHECK_EQ(guest_sim_running(defaults.guest.uuid), 1);
	g->ops->close(g);
	guest_sim_destroy(guest);
	return rc;
}

static void a_target_that_takes_nothing_is_left(void)
{
	struct deaf d = {.c = NULL};
	struct source_params p;
	struct pgr_error err = PGR_ERROR_NONE;

	CHECK_EQ(run_deaf(&d, &p, NULL, 700, &err), -ETIMEDOUT);
	CHECK_HAS(err.text, "taken nothing");
}

static void cancelling_needs_no_room_in_the_ring(void)
{
	atomic_bool cancel = false;
	struct session_owner o = {.cancel = &cancel};
	struct deaf d = {.cancel = &cancel};
	struct source_params p;
	struct pgr_error err = PGR_ERROR_NONE;

	/* However late this machine is, it is the cancelling that ends it. */
	CHECK_EQ(run_deaf(&d, &p, &o, 600000, &err), -ECANCELED);
}

/* ---- a source that floods ---- */

struct flood {
	struct guest_sink sink; /* first */
	struct guest_sink *real;
	struct guest_sink_ops ops;
	struct channel *theirs;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool creating, go_on, taken;
};

static struct flood *flood;

static int slow_create(struct guest_sink *s, const struct guest_description *d,
		       struct pgr_error *err)
{
	(void)s;
	(void)d;
	pthread_mutex_lock(&flood->lock);
	flood->creating = true;
	pthread_cond_broadcast(&flood->changed);
	while (!flood->go_on)
		pthread_cond_wait(&flood->changed, &flood->lock);
	pthread_mutex_unlock(&flood->lock);
	/* Not ENOMEM: that would be the flood itself. */
	return pgr_fail(err, -ENOSPC, "no room after all");
}

static int any_precheck(struct guest_sink *s, const struct guest_description *d,
			struct guest_refusals *r, struct pgr_error *err)
{
	(void)s;
	(void)d;
	(void)r;
	(void)err;
	return 0;
}

static int nothing_to_destroy(struct guest_sink *s, struct pgr_error *err)
{
	(void)s;
	(void)err;
	return 0;
}

static int one_connection(void *ctx, unsigned timeout_ms, unsigned *channel,
			  enum pgr_purpose *purpose, struct channel **out, struct pgr_error *err)
{
	struct flood *f = ctx;
	struct timespec pause = {.tv_nsec = 20000000};

	if (f->taken) {
		(void)timeout_ms;
		nanosleep(&pause, NULL);
		return pgr_fail(err, -ETIMEDOUT, "nobody else comes");
	}
	f->taken = true;
	*channel = 0;
	*purpose = PGR_PURPOSE_NEW;
	*out = f->theirs;
	return 0;
}

static void *flooded_main(void *arg)
{
	struct flood *f = arg;
	struct target_params p = {.accept = one_connection, .accept_ctx = f};
	struct session_result res;
	struct pgr_error err = PGR_ERROR_NONE;

	CHECK_MSG(target_run(&f->sink, &p, NULL, &res, &err) == -ENOSPC, "%s", err.text);
	return NULL;
}

struct bytes {
	uint8_t data[4096];
	size_t used;
};

static int collect(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct bytes *b = ctx;

	(void)err;
	for (unsigned i = 0; i < nr; i++) {
		CHECK(b->used + iov[i].iov_len <= sizeof(b->data));
		memcpy(b->data + b->used, iov[i].iov_base, iov[i].iov_len);
		b->used += iov[i].iov_len;
	}
	return 0;
}

/* Records without a body cost the receiver memory too: it must stop reading, however many come. */
static void empty_records_are_bounded_too(void)
{
	static const struct pgr_hello hello = {
		.guest_kind = PGR_GUEST_SIM, .nr_pfns = 16, .populated = 16, .vcpus = 1, .live = 1};
	static const char identity[17] = "0123456789abcdefg";
	static const struct {
		struct pgr_config head;
		char text[8];
	} config = {.head = {.format = PGR_CONFIG_SIM}, .text = "{     }"};
	const struct pgr_round_end end = {.round = 0};
	const size_t most = 4u << 20; /* twice what the buffers of a socket pair hold */
	struct flood f = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_writer w;
	struct bytes b = {.used = 0};
	pthread_t thread;
	uint8_t session[PGR_SESSION_SIZE] = {1};
	size_t sent = 0;
	int fd[2], idle = 0;

	(void)end;
	flood = &f;
	f.ops = (struct guest_sink_ops){.name = "flooded",
					.precheck = any_precheck,
					.create = slow_create,
					.destroy = nothing_to_destroy};
	f.sink.ops = &f.ops;
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	CHECK_EQ(channel_from_fd(fd[1], 20000, "source", &f.theirs, &err), 0);
	stream_writer_init(&w, collect, &b);
	CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 0, 1, &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_HELLO, &hello, sizeof(hello), &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_IDENTITY, identity, sizeof(identity), &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_CONFIG, &config, sizeof(config) - 1, &err), 0);
	CHECK_EQ(stream_write(&w, PGR_REC_OPEN, NULL, 0, &err), 0);
	CHECK_EQ(stream_write(&w, PGR_REC_ROUND_END, &(struct iovec){(void *)&end, sizeof(end)}, 1,
			      &err),
		 0);
	CHECK_EQ(stream_write(&w, PGR_REC_STOP, &(struct iovec){(void *)session, 8}, 1, &err), 0);
	CHECK_EQ(stream_write_body(&w, PGR_REC_SIM_STATE, session, sizeof(session), &err), 0);
	CHECK_EQ(pthread_create(&thread, NULL, flooded_main, &f), 0);
	CHECK_EQ(send(fd[0], b.data, b.used, 0), (ssize_t)b.used);
	pthread_mutex_lock(&f.lock);
	while (!f.creating)
		pthread_cond_wait(&f.changed, &f.lock);
	pthread_mutex_unlock(&f.lock);
	/* Half a second without room means that nobody reads any more. */
	while (sent < most && idle < 50) {
		struct pollfd p = {.fd = fd[0], .events = POLLOUT};

		b.used = 0;
		while (b.used + sizeof(struct pgr_record) <= sizeof(b.data))
			CHECK_EQ(stream_write(&w, PGR_REC_KEEPALIVE, NULL, 0, &err), 0);
		for (size_t done = 0; done < b.used && idle < 50;) {
			ssize_t n = send(fd[0], b.data + done, b.used - done,
					 MSG_DONTWAIT | MSG_NOSIGNAL);

			idle = n > 0 ? 0 : idle + !poll(&p, 1, 10);
			done += n > 0 ? (size_t)n : 0;
			sent += n > 0 ? (size_t)n : 0;
		}
	}
	CHECK_MSG(sent < most, "%zu bytes of empty records were taken", sent);
	pthread_mutex_lock(&f.lock);
	f.go_on = true;
	pthread_cond_broadcast(&f.changed);
	pthread_mutex_unlock(&f.lock);
	close(fd[0]);
	pthread_join(thread, NULL);
}

/* ---- both ends, as they are ---- */

/* A window of one record: what ends a session must not wait behind it where nobody mends the connection. */
static void cut_everywhere(enum fault_side side)
{
	bool fired = true;

	for (unsigned at = 1; fired; at += 1 + at / 10) {
		struct pair_options o;
		struct pair p;

		small(&o);
		o.guest.memory = 512u << 10;
		o.guest.page_table_pages = 2;
		o.target.window = 1;
		o.fault = (struct fault_plan){
			.kind = FAULT_CUT, .side = side, .unit = FAULT_CALL, .at = at};
		pair_run(&p, &o);
		fired = p.fault_fired;
		if (at > 8)
			CHECK_MSG(p.source.rc == 0, "place %u: %s; target: %s", at,
				  p.source.error.text, p.target.error.text);
		pair_check_and_free(&p);
	}
}

static void a_cut_with_a_window_of_one(void)
{
	cut_everywhere(FAULT_WRITE);
	cut_everywhere(FAULT_READ);
}

/* The source believes in a connection that never reached the target, as when it is cut within the handshake. */
static void a_further_channel_that_never_arrived_is_resumed(void)
{
	struct pair_options o;
	struct pair p;

	small(&o);
	o.lose_join = 1;
	o.source.silence_ms = 1000;
	pair_run(&p, &o);
	CHECK_MSG(p.source.rc == 0, "%s; target: %s", p.source.error.text, p.target.error.text);
	CHECK(p.source.result.reconnects >= 1);
	pair_check_and_free(&p);
}

static bool marked(const struct pair_end *e, enum session_mark mark)
{
	for (unsigned i = 0; i < e->nr_marks; i++)
		if (e->marks[i] == mark)
			return true;
	return false;
}

/* A guest that cannot be resumed has not returned: the journal must stay open for the repair. */
static void a_guest_that_cannot_be_resumed_is_not_forgotten(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct pair_options o;
	struct pair p;

	small(&o);
	o.sink_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_FINISH};
	o.source_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_RESUME};
	pair_run(&p, &o);
	CHECK(p.source.rc < 0);
	CHECK_EQ(p.source.result.outcome, SESSION_STAYED);
	CHECK(p.source.result.unfinished);
	CHECK(!p.source.result.may_stop);
	CHECK(!marked(&p.source, SESSION_MARK_RETURNED));
	CHECK_HAS(p.source.messages, "cannot resume");
	/* As the repair does. */
	CHECK_EQ(p.g->ops->resume(p.g, &err), 0);
	pair_check_and_free(&p);
}

/* One that had begun to suspend when its time was over: it runs, and the repair has to look after it. */
static void a_guest_that_may_stop_yet_is_not_forgotten(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct pair_options o;
	struct pair p;

	small(&o);
	o.sink_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_FINISH};
	o.source_fault =
		(struct guest_sim_fault){.point = GUEST_SIM_FAULT_RESUME, .code = -EINPROGRESS};
	pair_run(&p, &o);
	CHECK(p.source.rc < 0);
	CHECK(p.source.result.unfinished);
	CHECK(p.source.result.may_stop);
	CHECK(!marked(&p.source, SESSION_MARK_RETURNED));
	CHECK_HAS(p.source.messages, "looked after");
	CHECK_EQ(p.g->ops->resume(p.g, &err), 0);
	pair_check_and_free(&p);
}

static void a_copy_that_cannot_be_removed_is_not_forgotten(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct pair_options o;
	struct pair p;

	small(&o);
	o.source_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_DESTROY};
	pair_run(&p, &o);
	CHECK_EQ(p.source.rc, 0);
	CHECK(p.source.result.unfinished);
	/* Durable before it was tried, so that the repair need not ask. */
	CHECK(marked(&p.source, SESSION_MARK_MOVED));
	CHECK_EQ(p.g->ops->destroy(p.g, &err), 0);
	pair_check_and_free(&p);
}

/* COMMIT in a journal without a guest means that it ran: so the journal goes back before the guest does. */
static void a_start_that_fails_is_taken_back_first(void)
{
	static const enum session_mark expected[] = {SESSION_MARK_BEGIN, SESSION_MARK_COMMIT,
						     SESSION_MARK_BEGIN, SESSION_MARK_RETURNED};
	struct pair_options o;
	struct pair p;

	small(&o);
	o.sink_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_START};
	pair_run(&p, &o);
	CHECK_EQ(p.source.rc, -ESTALE);
	CHECK_EQ(p.target.nr_marks, 4);
	for (unsigned i = 0; i < 4; i++)
		CHECK_EQ(p.target.marks[i], expected[i]);
	pair_check_and_free(&p);
}

/* When it cannot go back, the guest stays: whole, not started, for the repair to start. */
static void a_start_that_fails_without_a_journal_keeps_the_guest(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct pair_options o;
	struct pair p;

	small(&o);
	o.sink_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_START};
	o.target_mark_fails = 3;
	pair_run(&p, &o);
	CHECK_EQ(p.target.result.outcome, SESSION_UNKNOWN);
	CHECK(p.target.result.unfinished);
	CHECK(guest_sim_of_sink(p.s) != NULL);
	/* The stand-in for the daemon said NOT_STARTED, which it may once this is done. */
	CHECK_EQ(p.s->ops->destroy(p.s, &err), 0);
	p.target.result.outcome = SESSION_STAYED;
	pair_check_and_free(&p);
}

UNIT_MAIN(TEST(a_target_that_takes_nothing_is_left), TEST(cancelling_needs_no_room_in_the_ring),
	  TEST(empty_records_are_bounded_too), TEST(a_cut_with_a_window_of_one),
	  TEST(a_further_channel_that_never_arrived_is_resumed),
	  TEST(a_guest_that_cannot_be_resumed_is_not_forgotten),
	  TEST(a_guest_that_may_stop_yet_is_not_forgotten),
	  TEST(a_copy_that_cannot_be_removed_is_not_forgotten),
	  TEST(a_start_that_fails_is_taken_back_first),
	  TEST(a_start_that_fails_without_a_journal_keeps_the_guest))
