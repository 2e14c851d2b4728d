/* SPDX-License-Identifier: MIT */
/*
 * The source's connections: making them, listening to the target on them, making them again.
 *
 * A connection that fails marks the session `lost`; the threads that fill the lanes notice nothing but a full ring. Whoever waits in
 * source_wait() (the session's main thread) then ends all connections and makes them again with PGR_PURPOSE_RESUME: for each lane the
 * target names the first record that did not take effect, and the lane goes on from there.
 */
#include "migrate/source_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/text.h"

#define RECONNECT_DEFAULT_MS	     30000u
#define RECONNECT_STOPPED_DEFAULT_MS 10000u
/* The target logs each try: the first comes at once, for most losses are short, the later ones ever more slowly. */
#define RECONNECT_PAUSE_NS     100000000ull
#define RECONNECT_PAUSE_MAX_NS 2000000000ull
#define ABORT_PATIENCE_NS      3000000000ull
#define STALL_DEFAULT_MS       120000u

void source_fail(struct source *s, const struct pgr_error *err)
{
	pthread_mutex_lock(&s->lock);
	if (!s->failed) {
		s->failed = err->code;
		s->error = *err;
	}
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->nr; i++)
		lane_cancel(&s->lanes[i].lane);
}

/* A connection is gone, or (a code that no reconnecting mends) the session is. */
static void link_failed(struct source *s, const struct pgr_error *err)
{
	bool on_purpose;

	pthread_mutex_lock(&s->lock);
	on_purpose = s->stopping_threads;
	pthread_mutex_unlock(&s->lock);
	if (on_purpose)
		return;
	if (s->file || !session_is_loss(err->code)) {
		source_fail(s, err);
		return;
	}
	pthread_mutex_lock(&s->lock);
	if (!s->lost) {
		s->lost = true;
		s->lost_error = *err;
	}
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void lane_lost(void *ctx, struct lane *l)
{
	link_failed(ctx, &l->error);
}

static void lane_written(void *ctx, struct lane *l)
{
	struct source *s = ctx;

	(void)l;
	pthread_mutex_lock(&s->lock);
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

int source_lane_open(struct source *s, unsigned i, size_t ring, bool one_way, struct pgr_error *err)
{
	struct source_lane *sl = &s->lanes[i];
	struct encode_options encode = s->p->encode;
	int rc;

	sl->s = s;
	rc = lane_init(&sl->lane, i, ring, err);
	if (rc)
		return rc;
	s->res->peak_buffers += ring;
	sl->lane.one_way = one_way;
	sl->lane.limit = s->limit;
	sl->lane.on_lost = lane_lost;
	sl->lane.on_drained = lane_written;
	sl->lane.ctx = s;
	/* The stream header is written to each connection by itself; END counts it once. */
	sl->lane.writer.bytes = sizeof(struct pgr_stream_header);
	if (s->p->capture_dir) {
		char path[4096];

		snprintf(path, sizeof(path), "%s/source-%u.bin", s->p->capture_dir, i);
		sl->lane.capture = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
		if (sl->lane.capture < 0)
			return pgr_fail_errno(err, -errno, "cannot create %s to capture channel %u",
					      path, i);
	}
	encode.cache_bytes = s->d.info.can_log_dirty ? s->p->encode.cache_bytes / s->nr : 0;
	s->res->peak_buffers += encode.cache_bytes;
	rc = encoder_create(&encode, &sl->encoder, err);
	return rc;
}

/* The first bytes of a capture: the stream header, as the target got it. */
static int capture_header(struct source_lane *sl, const struct pgr_stream_header *h,
			  struct pgr_error *err)
{
	if (sl->lane.capture < 0 || lseek(sl->lane.capture, 0, SEEK_END) != 0)
		return 0;
	if (write(sl->lane.capture, h, sizeof(*h)) != (ssize_t)sizeof(*h))
		return pgr_fail_errno(err, -errno, "cannot write the capture of channel %u",
				      sl->lane.index);
	return 0;
}

struct header_tap {
	struct channel *channel;
	struct pgr_stream_header header;
};

static int tap_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct header_tap *t = ctx;

	if (nr == 1 && iov[0].iov_len == sizeof(t->header))
		memcpy(&t->header, iov[0].iov_base, sizeof(t->header));
	return t->channel->ops->write(t->channel, iov, nr, err);
}

/* Open a connection for the lane and say who we are. The channel is the caller's. */
static int greet(struct source *s, unsigned i, enum pgr_purpose purpose, unsigned channels,
		 struct channel **out, struct pgr_error *err)
{
	struct source_lane *sl = &s->lanes[i];
	struct header_tap tap = {0};
	struct stream_writer w;
	struct channel *c;
	int rc;

	rc = s->p->connect(s->p->connect_ctx, i, purpose, &c, err);
	if (rc)
		return rc;
	tap.channel = c;
	stream_writer_init(&w, tap_write, &tap);
	rc = stream_write_header(&w, PGR_KIND_MIGRATE, s->p->session, i, channels, err);
	if (!rc && purpose != PGR_PURPOSE_RESUME)
		rc = capture_header(sl, &tap.header, err);
	if (!rc && purpose == PGR_PURPOSE_RESUME) {
		struct pgr_resume resume = {.next_sequence = lane_next_sequence(&sl->lane)};

		rc = stream_write_body(&w, PGR_REC_RESUME, &resume, sizeof(resume), err);
	}
	if (rc) {
		c->ops->close(c);
		return rc;
	}
	*out = c;
	return 0;
}

static void note_precheck(struct source *s, const struct stream_record *rec)
{
	struct pgr_precheck p;
	const char *text = (const char *)rec->body + sizeof(p);
	size_t left = rec->length - sizeof(p);

	memcpy(&p, rec->body, sizeof(p));
	s->refusals.nr = 0;
	for (unsigned n = 0; n < p.refusals && n < GUEST_REFUSALS_MAX && left; n++) {
		const char *end = memchr(text, '\n', left);
		size_t length = end ? (size_t)(end - text) : left;
		char line[sizeof(s->refusals.text[0])];

		text_plain(line, sizeof(line), text, length);
		guest_refuse(&s->refusals, "%s", line);
		if (!end)
			break;
		text = end + 1;
		left -= length + 1;
	}
	s->have_precheck = true;
	s->refusals_total = p.refusals;
}

static int hear(struct source_lane *sl, const struct stream_record *rec, struct pgr_error *err)
{
	struct source *s = sl->s;
	struct pgr_ack ack;
	char who[160];
	int rc = 0;

	switch (rec->type) {
	case PGR_REC_ACK:
		memcpy(&ack, rec->body, sizeof(ack));
		rc = lane_ack(&sl->lane, ack.sequence, err);
		break;
	case PGR_REC_ABORT:
		snprintf(who, sizeof(who), "the target %s", sl->in->peer);
		rc = session_abort_error(err, who, rec);
		/* At once: where the connection is being given up as lost, what ends the listener is not looked at. */
		source_fail(s, err);
		return rc;
	default:
		break;
	}
	pthread_mutex_lock(&s->lock);
	sl->heard_ns = session_now_ns();
	switch (rec->type) {
	case PGR_REC_HELLO_REPLY:
		memcpy(&s->reply, rec->body, sizeof(s->reply));
		s->have_reply = true;
		break;
	case PGR_REC_PRECHECK:
		note_precheck(s, rec);
		break;
	case PGR_REC_READY:
		memcpy(&s->ready, rec->body, sizeof(s->ready));
		s->have_ready = true;
		break;
	case PGR_REC_RUNNING:
		s->have_running = true;
		break;
	case PGR_REC_CONNECTED:
		memcpy(&s->connected, rec->body, sizeof(s->connected));
		s->have_connected = true;
		break;
	default:
		break;
	}
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static void *listener_main(void *arg)
{
	struct source_lane *sl = arg;
	struct source *s = sl->s;
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_record rec;
	int rc = 0;

	if (sl->reader.offset == 0) {
		struct pgr_stream_header h;

		rc = stream_read_header(&sl->reader, &h, &err);
		if (!rc && (h.channel != sl->lane.index ||
			    memcmp(h.session, s->p->session, sizeof(h.session))))
			rc = pgr_fail(&err, -EPROTO, "%s answers for another session or channel",
				      sl->in->peer);
	}
	while (!rc) {
		rc = stream_read(&sl->reader, &rec, &err);
		if (!rc)
			rc = stream_order_next(&sl->order, &rec, &err);
		if (!rc)
			rc = hear(sl, &rec, &err);
	}
	link_failed(s, &err);
	return NULL;
}

/* Take c into use for lane i. On failure c is closed. */
static int lane_link(struct source *s, unsigned i, struct channel *c, struct pgr_error *err)
{
	struct source_lane *sl = &s->lanes[i];
	int rc;

	sl->in = c;
	pthread_mutex_lock(&s->lock);
	sl->heard_ns = session_now_ns();
	pthread_mutex_unlock(&s->lock);
	rc = lane_start(&sl->lane, c, err);
	if (rc)
		return rc;
	rc = -pthread_create(&sl->listener, NULL, listener_main, sl);
	if (rc)
		return pgr_fail_errno(err, rc, "cannot start the listening thread of channel %u",
				      i);
	sl->listener_running = true;
	return 0;
}

/* What the target sends begins anew on each connection. */
static void listen_to(struct source_lane *sl, struct channel *c)
{
	stream_reader_free(&sl->reader);
	stream_reader_init(&sl->reader, session_channel_read, c);
	stream_order_init(&sl->order, STREAM_FROM_TARGET, PGR_KIND_MIGRATE, sl->lane.index);
}

static int link_one(struct source *s, unsigned i, enum pgr_purpose purpose, struct pgr_error *err)
{
	struct channel *c;
	int rc;

	rc = greet(s, i, purpose, s->p->channels, &c, err);
	if (rc)
		return rc;
	listen_to(&s->lanes[i], c);
	return lane_link(s, i, c, err);
}

int source_link_first(struct source *s, struct pgr_error *err)
{
	return link_one(s, 0, PGR_PURPOSE_NEW, err);
}

void source_unlink(struct source *s)
{
	pthread_mutex_lock(&s->lock);
	s->stopping_threads = true;
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->nr; i++) {
		struct source_lane *sl = &s->lanes[i];

		if (!sl->lane.channel)
			continue;
		/* A file is its caller's, who commits it when it is good; nothing that failed may wait for a slow reader of it. */
		if (!s->file || s->failed)
			sl->lane.channel->ops->shutdown(sl->lane.channel);
		if (sl->listener_running)
			pthread_join(sl->listener, NULL);
		sl->listener_running = false;
		lane_stop(&sl->lane);
		sl->in = NULL;
	}
	pthread_mutex_lock(&s->lock);
	s->stopping_threads = false;
	pthread_mutex_unlock(&s->lock);
}

static int resume_one(struct source *s, unsigned i, struct pgr_error *err)
{
	struct source_lane *sl = &s->lanes[i];
	struct pgr_stream_header h;
	struct stream_record rec = {0};
	struct pgr_resume reply;
	struct channel *c;
	int rc;

	rc = greet(s, i, PGR_PURPOSE_RESUME, s->p->channels, &c, err);
	if (rc)
		return rc;
	listen_to(sl, c);
	rc = stream_read_header(&sl->reader, &h, err);
	if (!rc)
		rc = stream_read(&sl->reader, &rec, err);
	if (!rc)
		rc = stream_order_next(&sl->order, &rec, err);
	if (!rc && rec.type == PGR_REC_ABORT)
		rc = session_abort_error(err, c->peer, &rec);
	else if (!rc && rec.type != PGR_REC_RESUME_REPLY)
		rc = pgr_fail(err, -EPROTO, "%s answered %s to RESUME", c->peer,
			      stream_type_name(rec.type));
	if (!rc) {
		memcpy(&reply, rec.body, sizeof(reply));
		rc = lane_rewind(&sl->lane, reply.next_sequence, err);
	}
	if (rc) {
		c->ops->close(c);
		return rc;
	}
	return lane_link(s, i, c, err);
}

static uint64_t taken(struct source *s)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < s->nr; i++)
		sum += lane_acked(&s->lanes[i].lane);
	return sum;
}

/* A connection that is made again only to be lost again, with nothing done in between, is still the same loss. */
static uint64_t retry_until(struct source *s, uint64_t patience_ns, bool *again)
{
	uint64_t now = session_now_ns(), sum = taken(s);

	*again = s->retry_to && sum == s->retry_taken && now - s->retry_ns <= patience_ns;
	if (!*again)
		s->retry_to = now + patience_ns;
	s->retry_taken = sum;
	return s->retry_to;
}

/* What the session failed of, if it did. Caller holds lock. */
static int failure(const struct source *s, struct pgr_error *err)
{
	if (s->failed)
		*err = s->error;
	return s->failed;
}

/* Until then, or until the user wants it no more. */
static void sleep_until(struct source *s, uint64_t until_ns)
{
	const struct timespec slice = {.tv_nsec = 50000000};

	while (session_now_ns() < until_ns && !reporter_cancelled(&s->reporter))
		nanosleep(&slice, NULL);
}

/* Make all connections again. */
static int reconnect(struct source *s, struct pgr_error *err)
{
	unsigned patience = s->suspended ? s->p->reconnect_stopped_ms : s->p->reconnect_ms;
	uint64_t until, pause_ns = RECONNECT_PAUSE_NS;
	struct pgr_error why;
	enum session_phase phase;
	bool again;
	int rc;

	if (!patience)
		patience = s->suspended ? RECONNECT_STOPPED_DEFAULT_MS : RECONNECT_DEFAULT_MS;
	pthread_mutex_lock(&s->reporter.lock);
	phase = s->reporter.progress.phase;
	pthread_mutex_unlock(&s->reporter.lock);
	until = retry_until(s, patience * 1000000ull, &again);
	pthread_mutex_lock(&s->lock);
	why = s->lost_error;
	pthread_mutex_unlock(&s->lock);
	/* A resume repeats READY but not PRECHECK: one whose answer was lost begins anew. */
	if (!(s->reply.features & PGR_FEATURE_RESUME) || !s->have_precheck) {
		*err = why;
		return pgr_fail_prefix(err, "the connection was lost in phase %s",
				       session_phase_name(phase));
	}
	reporter_message(&s->reporter, SESSION_WARNING,
			 "connection lost in phase %s (%s); trying to get it back for %u s",
			 session_phase_name(phase), why.text, (patience + 999) / 1000);
	reporter_phase(&s->reporter, SESSION_RECONNECT);
	for (;;) {
		struct pgr_error last = PGR_ERROR_NONE;
		source_unlink(s);
		pthread_mutex_lock(&s->lock);
		s->lost = false;
		rc = failure(s, err);
		pthread_mutex_unlock(&s->lock);
		/* The target's last word, heard while its connection went away. */
		if (rc)
			return rc;
		for (unsigned i = 0; !rc && i < s->nr; i++)
			rc = resume_one(s, i, &last);
		/* One that comes back late has come back. */
		if (!rc && (!again || session_now_ns() <= until))
			break;
		if (!rc)
			rc = pgr_fail(&last, -ETIMEDOUT, "it was lost again each time");
		if (!session_is_loss(rc)) {
			*err = last;
			return pgr_fail_prefix(
				err,
				"the connection was lost in phase %s (%s) and could not be resumed",
				session_phase_name(phase), why.text);
		}
		if (reporter_cancelled(&s->reporter) && !s->committed)
			return pgr_fail(err, -ECANCELED,
					"cancelled while the connection was lost (%s)", why.text);
		if (session_now_ns() > until)
			return pgr_fail(
				err, -ETIMEDOUT,
				"the connection was lost in phase %s (%s) and did not come back within %u s (%s); check the network and the target's daemon, then try again",
				session_phase_name(phase), why.text, (patience + 999) / 1000,
				last.text);
		sleep_until(s, session_now_ns() + pause_ns < until ? session_now_ns() + pause_ns
								   : until);
		pause_ns = pause_ns * 2 < RECONNECT_PAUSE_MAX_NS ? pause_ns * 2
								 : RECONNECT_PAUSE_MAX_NS;
	}
	s->res->reconnects++;
	s->retry_ns = session_now_ns();
	reporter_message(&s->reporter, SESSION_INFO, "connection resumed");
	reporter_phase(&s->reporter, phase);
	return 0;
}

/* Take a connection that has gone silent for lost. Caller holds lock. */
static void watch_silence(struct source *s)
{
	unsigned limit = s->p->silence_ms ? s->p->silence_ms : SESSION_SILENCE_DEFAULT_MS;

	for (unsigned i = 0; i < s->nr && !s->file && !s->lost; i++) {
		struct source_lane *sl = &s->lanes[i];

		if (!sl->listener_running || session_now_ns() - sl->heard_ns < limit * 1000000ull)
			continue;
		s->lost = true;
		pgr_fail(&s->lost_error, -ETIMEDOUT, "%s: nothing was heard on channel %u for %u s",
			 sl->in->peer, i, (limit + 999) / 1000);
	}
}

/* A target that lives but takes nothing would hold the guest for ever. Caller holds lock. */
static int watch_stall(struct source *s, struct pgr_error *err)
{
	uint64_t limit = (s->p->stall_ms ? s->p->stall_ms : STALL_DEFAULT_MS) * 1000000ull;
	uint64_t now = session_now_ns(), sum = taken(s);
	bool idle = true;

	for (unsigned i = 0; i < s->nr; i++)
		idle = idle && lane_drained(&s->lanes[i].lane);
	if (s->file || s->committed || idle || s->lost || sum != s->taken || !s->taken_ns) {
		s->taken = sum;
		s->taken_ns = now;
		return 0;
	}
	if (now - s->taken_ns < limit)
		return 0;
	return pgr_fail(
		err, -ETIMEDOUT,
		"the target is there but has taken nothing for %llu s; see its daemon's log for what it waits for, then try again",
		(unsigned long long)(limit / 1000000000ull));
}

int source_wait(struct source *s, bool (*done)(struct source *s), uint64_t until_ns,
		struct pgr_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&s->lock);
	for (;;) {
		uint64_t wake = session_now_ns() + 100000000ull;

		/* RUNNING is the last word: whatever goes wrong on the connection after it changes nothing. */
		rc = s->have_running ? 0 : failure(s, err);
		if (rc)
			break;
		if (done(s))
			break;
		watch_silence(s);
		if (reporter_cancelled(&s->reporter) && !s->committed) {
			rc = pgr_fail(err, -ECANCELED, "cancelled");
			break;
		}
		rc = watch_stall(s, err);
		if (rc)
			break;
		if (s->lost) {
			pthread_mutex_unlock(&s->lock);
			/* After COMMIT only an answer counts: source.c asks. */
			rc = s->committed
				     ? pgr_fail(
					       err, -ENOTCONN,
					       "the connection was lost after the guest had been handed over (%s)",
					       s->lost_error.text)
				     : reconnect(s, err);
			pthread_mutex_lock(&s->lock);
			if (rc)
				break;
			continue;
		}
		if (until_ns && session_now_ns() >= until_ns) {
			rc = pgr_fail(err, -ETIMEDOUT, "no answer in time");
			break;
		}
		if (until_ns && wake > until_ns)
			wake = until_ns;
		session_cond_wait_until(&s->changed, &s->lock, wake);
	}
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static bool first_is_lost(struct source *s)
{
	return s->lost;
}

int source_link_more(struct source *s, unsigned channels, struct pgr_error *err)
{
	struct pgr_error why;
	int rc = 0;

	for (unsigned i = 1; !rc && i < channels; i++)
		rc = link_one(s, i, PGR_PURPOSE_JOIN, err);
	/* A target that gives up takes no further connection; why, it says on the first. */
	if (rc && session_is_loss(rc) &&
	    source_wait(s, first_is_lost, session_now_ns() + ABORT_PATIENCE_NS, &why)) {
		pthread_mutex_lock(&s->lock);
		if (failure(s, err))
			rc = err->code;
		pthread_mutex_unlock(&s->lock);
	}
	return rc;
}

static bool have_room(struct source *s)
{
	return lane_has_room(&s->lanes[s->want_lane].lane, s->want_type, s->want_bytes);
}

int source_append(struct source *s, unsigned lane, uint32_t type, const struct iovec *parts,
		  unsigned nr, struct pgr_error *err)
{
	int rc;

	s->want_lane = lane;
	s->want_type = type;
	s->want_bytes = session_record_bytes(parts, nr);
	do {
		rc = lane_try_append(&s->lanes[lane].lane, type, parts, nr, err);
		if (rc == -ECANCELED) {
			int failed;

			/* A lane is cancelled because the session has failed, and that is what the user wants to know. */
			pthread_mutex_lock(&s->lock);
			failed = failure(s, err);
			pthread_mutex_unlock(&s->lock);
			return failed ? failed : rc;
		}
		if (rc != -EAGAIN)
			return rc;
		rc = source_wait(s, have_room, 0, err);
	} while (!rc);
	return rc;
}

int source_append_body(struct source *s, unsigned lane, uint32_t type, const void *body,
		       size_t length, struct pgr_error *err)
{
	struct iovec part = {.iov_base = (void *)(uintptr_t)body, .iov_len = length};

	return source_append(s, lane, type, &part, length ? 1 : 0, err);
}

void source_send_abort(struct source *s, const struct pgr_error *why)
{
	uint8_t body[sizeof(struct pgr_abort) + sizeof(why->text)];
	struct iovec part = {.iov_base = body};
	struct lane *l = &s->lanes[0].lane;
	struct pgr_error err;
	uint64_t until = session_now_ns() + ABORT_PATIENCE_NS;

	bool lost;

	if (s->file || !s->nr || !l->channel)
		return;
	pthread_mutex_lock(&l->lock);
	lost = l->lost;
	pthread_mutex_unlock(&l->lock);
	if (lost)
		return;
	lane_abandon(l);
	part.iov_len = session_abort_body(body, why);
	if (!lane_try_append(l, PGR_REC_ABORT, &part, 1, &err))
		lane_wait_sent(l, until);
}

int source_query(const struct source_params *p, enum pgr_session_state *state,
		 struct pgr_error *err)
{
	struct pgr_stream_header h;
	struct stream_reader r;
	struct stream_writer w;
	struct stream_record rec = {0};
	struct pgr_status status;
	struct channel *c;
	int rc;

	rc = p->connect(p->connect_ctx, 0, PGR_PURPOSE_QUERY, &c, err);
	if (rc)
		return rc;
	stream_writer_init(&w, session_channel_write, c);
	stream_reader_init(&r, session_channel_read, c);
	rc = stream_write_header(&w, PGR_KIND_MIGRATE, p->session, 0, p->channels, err);
	if (!rc)
		rc = stream_write(&w, PGR_REC_QUERY, NULL, 0, err);
	if (!rc)
		rc = stream_read_header(&r, &h, err);
	if (!rc && memcmp(h.session, p->session, sizeof(h.session)))
		rc = pgr_fail(err, -EPROTO, "%s answers for another session", c->peer);
	if (!rc)
		rc = stream_read(&r, &rec, err);
	if (!rc && rec.type != PGR_REC_STATUS)
		rc = pgr_fail(err, -EPROTO, "%s answered %s to QUERY", c->peer,
			      stream_type_name(rec.type));
	if (!rc) {
		memcpy(&status, rec.body, sizeof(status));
		*state = status.state;
	}
	stream_reader_free(&r);
	c->ops->close(c);
	return rc;
}
