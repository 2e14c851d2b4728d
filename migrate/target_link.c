/* SPDX-License-Identifier: MIT */
/*
 * The target's connections.
 *
 * For each lane a receiver reads records (decrypting and checking them) into a bounded queue and an applier makes them take effect, in order. When a
 * connection ends, what was received completely still takes effect; `applied` then says exactly where the source has to go on. The
 * acceptor takes whatever connections come for this session at any time: JOIN and RESUME go to the main thread through
 * `arrived`, a QUERY is answered on the spot.
 */
#include "migrate/target_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RESUME_WAIT_DEFAULT_MS 60000u
#define ACCEPT_SLICE_MS	       200u
/* Bodies up to here are copied into a buffer of their size; the reader's buffer is passed on with longer ones. */
#define COPY_MAX (64u << 10)
/* An acknowledgement at least every so many bytes; sooner when nothing came for a while, or when it may be waited for. */
#define ACK_BYTES   (512u << 10)
#define ACK_WAIT_NS 5000000u

void target_fail(struct target *t, const struct pgr_error *err)
{
	pthread_mutex_lock(&t->lock);
	if (!t->failed) {
		t->failed = err->code;
		t->error = *err;
	}
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

void target_set_state(struct target *t, enum pgr_session_state state)
{
	pthread_mutex_lock(&t->lock);
	t->state = state;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
}

int target_lane_init(struct target *t, unsigned i, struct pgr_error *err)
{
	struct target_lane *tl = &t->lanes[i];

	tl->t = t;
	tl->index = i;
	tl->last = &tl->first;
	pthread_mutex_init(&tl->write_lock, NULL);
	pthread_mutex_init(&tl->lock, NULL);
	session_cond_init(&tl->changed);
	tl->stream_bytes = sizeof(struct pgr_stream_header);
	tl->usable = true;
	stream_order_init(&tl->order, STREAM_FROM_SOURCE, t->kind, i);
	return decoder_create(&tl->decoder, err);
}

static void free_queued(struct queued *q)
{
	free(q->buffer);
	free(q);
}

static void free_queue(struct queued *q)
{
	while (q) {
		struct queued *next = q->next;

		free_queued(q);
		q = next;
	}
}

void target_lane_free(struct target_lane *tl)
{
	if (!tl->usable)
		return;
	free_queue(tl->first);
	free_queue(tl->spare);
	stream_reader_free(&tl->reader);
	if (tl->decoder)
		decoder_free(tl->decoder);
	pthread_cond_destroy(&tl->changed);
	pthread_mutex_destroy(&tl->lock);
	pthread_mutex_destroy(&tl->write_lock);
	tl->usable = false;
}

/* ---- receiver ---- */

/* What a record that waits costs: a peer may send any number of empty ones. */
static size_t queued_cost(const struct queued *q)
{
	return sizeof(*q) + q->bytes;
}

/* A spare with a buffer of least .. most bytes, NULL: there is none. */
static struct queued *get_spare(struct target_lane *tl, size_t least, size_t most)
{
	struct queued *q = NULL;

	pthread_mutex_lock(&tl->lock);
	for (struct queued **p = &tl->spare; *p; p = &(*p)->next)
		if ((*p)->bytes >= least && (*p)->bytes <= most) {
			q = *p;
			*p = q->next;
			tl->spare_bytes -= queued_cost(q);
			break;
		}
	pthread_mutex_unlock(&tl->lock);
	return q;
}

static struct queued *queue_copy(struct target_lane *tl, const struct stream_record *rec)
{
	/* Few sizes, so that buffers fit again. */
	size_t bytes = rec->length <= 8192 ? 8192 : COPY_MAX;
	struct queued *q = get_spare(tl, bytes, COPY_MAX);

	if (!q) {
		q = malloc(sizeof(*q));
		if (!q)
			return NULL;
		*q = (struct queued){.buffer = malloc(bytes), .bytes = bytes};
		if (!q->buffer) {
			free(q);
			return NULL;
		}
	}
	if (rec->length)
		memcpy(q->buffer, rec->body, rec->length);
	return q;
}

/* The reader's buffer goes with the record, and the reader goes on with one that has been used up. */
static struct queued *queue_buffer(struct target_lane *tl)
{
	struct stream_reader *r = &tl->reader;
	struct queued *q = get_spare(tl, COPY_MAX + 1, SIZE_MAX);
	struct queued taken = {.buffer = r->buffer, .bytes = r->capacity};

	if (!q)
		q = calloc(1, sizeof(*q));
	if (!q)
		return NULL;
	r->buffer = q->buffer;
	r->capacity = q->bytes;
	*q = taken;
	return q;
}

static int enqueue(struct target_lane *tl, const struct stream_record *rec, struct pgr_error *err)
{
	struct queued *q = rec->length <= COPY_MAX ? queue_copy(tl, rec) : queue_buffer(tl);

	if (!q)
		return pgr_fail(err, -ENOMEM, "no memory for a received record of %u bytes",
				rec->length);
	q->next = NULL;
	q->rec = *rec;
	q->rec.body = q->buffer;
	pthread_mutex_lock(&tl->lock);
	while (tl->queued_bytes && tl->queued_bytes + queued_cost(q) > TARGET_QUEUE_BYTES &&
	       !tl->stop)
		pthread_cond_wait(&tl->changed, &tl->lock);
	*tl->last = q;
	tl->last = &q->next;
	tl->queued_bytes += queued_cost(q);
	pthread_cond_broadcast(&tl->changed);
	pthread_mutex_unlock(&tl->lock);
	return 0;
}

void target_lane_lost(struct target_lane *tl, const struct pgr_error *err)
{
	struct target *t = tl->t;

	pthread_mutex_lock(&t->lock);
	if (!tl->lost_ns) {
		tl->lost_ns = session_now_ns();
		tl->lost_error = *err;
	}
	tl->quiet = true;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	/* What is lost in one direction is lost in both: keepalives would let the source believe in it. */
	tl->channel->ops->shutdown(tl->channel);
}

static void link_failed(struct target_lane *tl, const struct pgr_error *err)
{
	if (tl->t->file || !session_is_loss(err->code))
		target_fail(tl->t, err);
	else
		target_lane_lost(tl, err);
}

/* Nothing comes after END in a file: it would be something else than what was written. */
static int file_ends(struct target_lane *tl, struct pgr_error *err)
{
	struct channel *c = tl->channel;
	uint8_t byte;
	int rc = c->ops->read(c, &byte, sizeof(byte), err);

	if (rc == -ENODATA)
		return 0;
	if (rc)
		return rc;
	return pgr_fail(
		err, -EPROTO,
		"%s goes on after its last record at offset %llu: it is damaged or something was appended; use the file as it was saved",
		c->peer, (unsigned long long)tl->reader.offset);
}

static void *receiver_main(void *arg)
{
	struct target_lane *tl = arg;
	struct pgr_error err = PGR_ERROR_NONE;
	struct stream_record rec;
	bool end = false;
	int rc;

	do {
		rc = stream_read(&tl->reader, &rec, &err);
		if (!rc)
			__atomic_store_n(&tl->wire_bytes, tl->channel->read, __ATOMIC_RELAXED);
		end = !rc && tl->t->file && rec.type == PGR_REC_END;
		if (end)
			rc = file_ends(tl, &err);
		if (!rc)
			rc = enqueue(tl, &rec, &err);
		atomic_store_explicit(&tl->heard_ns, session_now_ns(), memory_order_relaxed);
	} while (!rc && !end);
	if (end && !rc)
		return NULL;
	pthread_mutex_lock(&tl->t->lock);
	tl->receiver_done = true;
	if (tl->quiet)
		rc = 0;
	pthread_cond_broadcast(&tl->t->changed);
	pthread_mutex_unlock(&tl->t->lock);
	if (rc)
		link_failed(tl, &err);
	return NULL;
}

/* ---- applier ---- */

int target_send(struct target_lane *tl, uint32_t type, const void *body, size_t length,
		struct pgr_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&tl->write_lock);
	if (tl->channel && !tl->t->file) {
		rc = stream_write_body(&tl->writer, type, body, length, err);
		tl->last_write_ns = session_now_ns();
	}
	pthread_mutex_unlock(&tl->write_lock);
	return rc;
}

static void acknowledge(struct target_lane *tl)
{
	struct pgr_ack ack = {.sequence = tl->applied};
	struct pgr_error err;

	pthread_mutex_lock(&tl->write_lock);
	/* A loss is noticed by the receiver, and a lost acknowledgement costs nothing: RESUME_REPLY says it again. */
	if (tl->channel && tl->replied && tl->acked != tl->applied && !tl->t->file &&
	    !tl->committed &&
	    !stream_write_body(&tl->writer, PGR_REC_ACK, &ack, sizeof(ack), &err)) {
		tl->last_write_ns = session_now_ns();
		tl->acked = tl->applied;
		tl->unacked_bytes = 0;
	}
	pthread_mutex_unlock(&tl->write_lock);
}

static void *applier_main(void *arg)
{
	struct target_lane *tl = arg;
	struct target *t = tl->t;
	struct pgr_error err = PGR_ERROR_NONE;
	bool failed;
	int rc = 0;

	pthread_mutex_lock(&tl->lock);
	for (;;) {
		struct queued *q = tl->first;

		if (!q) {
			if (tl->stop)
				break;
			/* Each costs both ends several wake-ups, so an applier that only outran the receiver waits a little. */
			if (tl->unacked_bytes && !rc && !tl->hurry &&
			    session_cond_wait_until(&tl->changed, &tl->lock,
						    session_now_ns() + ACK_WAIT_NS))
				continue;
			/* Busy: who ends the connection waits until nothing is written to it any more. */
			tl->busy = true;
			pthread_mutex_unlock(&tl->lock);
			if (!rc)
				acknowledge(tl);
			pthread_mutex_lock(&tl->lock);
			tl->busy = false;
			pthread_cond_broadcast(&tl->changed);
			if (!tl->first && !tl->stop)
				pthread_cond_wait(&tl->changed, &tl->lock);
			continue;
		}
		tl->first = q->next;
		if (!tl->first)
			tl->last = &tl->first;
		tl->busy = true;
		failed = tl->failed;
		pthread_mutex_unlock(&tl->lock);
		if (!rc && !failed) {
			rc = stream_order_next(&tl->order, &q->rec, &err);
			if (!rc)
				rc = target_apply(tl, &q->rec, &err);
			if (rc) {
				target_fail(t, &err);
			} else {
				tl->applied = q->rec.sequence + 1;
				tl->unacked_bytes += q->rec.length;
				/* After the last page of a round the source waits for everything. */
				tl->hurry = q->rec.type != PGR_REC_PAGES;
				if (tl->unacked_bytes >= ACK_BYTES)
					acknowledge(tl);
			}
		}
		pthread_mutex_lock(&tl->lock);
		tl->busy = false;
		tl->queued_bytes -= queued_cost(q);
		if (tl->queued_bytes + tl->spare_bytes + queued_cost(q) > TARGET_QUEUE_BYTES) {
			free_queued(q);
		} else {
			q->next = tl->spare;
			tl->spare = q;
			tl->spare_bytes += queued_cost(q);
		}
		pthread_cond_broadcast(&tl->changed);
	}
	pthread_mutex_unlock(&tl->lock);
	return NULL;
}

/* ---- connections ---- */

int target_greet(struct target *t, unsigned i, struct pgr_error *err)
{
	struct target_lane *tl = &t->lanes[i];
	struct pgr_stream_header h;
	int rc;

	stream_reader_free(&tl->reader);
	stream_reader_init(&tl->reader, session_channel_read, tl->channel);
	rc = stream_read_header(&tl->reader, &h, err);
	if (rc)
		return rc;
	if (h.channel != i ||
	    (t->session_known && (memcmp(h.session, t->session, sizeof(t->session)) ||
				  h.kind != t->kind || h.channels != t->offered)))
		return pgr_fail(
			err, -EPROTO,
			"%s: the stream header names another session, kind, channel or number of channels than the connection was made for",
			tl->channel->peer);
	if (!t->session_known) {
		memcpy(t->session, h.session, sizeof(t->session));
		t->kind = h.kind;
		t->offered = h.channels;
		t->session_known = true;
		if (t->file ? h.kind != PGR_KIND_IMAGE && h.kind != PGR_KIND_CHECKPOINT
			    : h.kind != PGR_KIND_MIGRATE)
			return pgr_fail(err, -EPROTO,
					"%s holds a stream of kind %u, which has no place here",
					tl->channel->peer, h.kind);
		stream_order_init(&tl->order, STREAM_FROM_SOURCE, t->kind, i);
	}
	stream_writer_init(&tl->writer, session_channel_write, tl->channel);
	if (!t->file)
		rc = stream_write_header(&tl->writer, t->kind, t->session, i, h.channels, err);
	return rc;
}

int target_lane_start(struct target *t, unsigned i, struct pgr_error *err)
{
	struct target_lane *tl = &t->lanes[i];
	int rc;

	pthread_mutex_lock(&t->lock);
	tl->quiet = false;
	tl->receiver_done = false;
	tl->lost_ns = 0;
	atomic_store(&tl->heard_ns, session_now_ns());
	pthread_mutex_unlock(&t->lock);
	tl->next_offset = tl->reader.offset;
	if (!tl->applier_running) {
		rc = -pthread_create(&tl->applier, NULL, applier_main, tl);
		if (rc)
			return pgr_fail_errno(err, rc, "cannot start a thread for channel %u", i);
		tl->applier_running = true;
	}
	rc = -pthread_create(&tl->receiver, NULL, receiver_main, tl);
	if (rc)
		return pgr_fail_errno(err, rc, "cannot start a thread for channel %u", i);
	pthread_mutex_lock(&tl->write_lock);
	tl->receiver_running = true;
	pthread_mutex_unlock(&tl->write_lock);
	return 0;
}

/* End the lane's connection; what has been received completely takes effect before this returns. */
static void lane_unlink(struct target_lane *tl)
{
	struct target *t = tl->t;
	struct channel *c = tl->channel;
	int failed;

	if (!c)
		return;
	pthread_mutex_lock(&t->lock);
	tl->quiet = true;
	failed = t->failed;
	pthread_mutex_unlock(&t->lock);
	/* A file that was good ends by itself. */
	if (!t->file || failed)
		c->ops->shutdown(c);
	if (tl->receiver_running)
		pthread_join(tl->receiver, NULL);
	pthread_mutex_lock(&tl->lock);
	while (tl->applier_running && (tl->first || tl->busy) && !tl->stop)
		pthread_cond_wait(&tl->changed, &tl->lock);
	pthread_mutex_unlock(&tl->lock);
	pthread_mutex_lock(&tl->write_lock);
	tl->receiver_running = false;
	tl->replied = false;
	tl->channel = NULL;
	pthread_mutex_unlock(&tl->write_lock);
	pthread_mutex_lock(&t->lock);
	t->wire_before += c->read;
	__atomic_store_n(&tl->wire_bytes, 0, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&t->lock);
	if (!t->file)
		c->ops->close(c);
}

void target_lane_drain(struct target_lane *tl)
{
	pthread_mutex_lock(&tl->lock);
	tl->failed = true;
	pthread_cond_broadcast(&tl->changed);
	while (tl->busy)
		pthread_cond_wait(&tl->changed, &tl->lock);
	pthread_mutex_unlock(&tl->lock);
}

void target_unlink(struct target *t)
{
	for (unsigned i = 0; i < PGR_CHANNELS_MAX; i++) {
		struct target_lane *tl = &t->lanes[i];

		if (!tl->usable)
			continue;
		lane_unlink(tl);
		pthread_mutex_lock(&tl->lock);
		tl->stop = true;
		pthread_cond_broadcast(&tl->changed);
		pthread_mutex_unlock(&tl->lock);
		if (tl->applier_running)
			pthread_join(tl->applier, NULL);
		tl->applier_running = false;
	}
}

/* ---- acceptor ---- */

static void answer_query(struct target *t, struct channel *c)
{
	struct pgr_error err = PGR_ERROR_NONE;
	enum pgr_session_state state;

	pthread_mutex_lock(&t->lock);
	state = t->state;
	pthread_mutex_unlock(&t->lock);
	if (target_answer(c, t->session, state, &err))
		reporter_message(&t->reporter, SESSION_WARNING, "cannot answer %s: %s", c->peer,
				 err.text);
	c->ops->close(c);
}

/* The disks are made when the guest is, and the source may have nothing to send of that before its disks are there. */
static void take_disk_connection(struct target *t, struct channel *c)
{
	bool wanted;

	pthread_mutex_lock(&t->lock);
	wanted = t->opened && t->d.nr_disks && t->features & PGR_FEATURE_DISKS && !t->failed &&
		 !t->over;
	t->want_create = t->want_create || wanted;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	if (wanted)
		t->p->disks->attach(t->p->disks->ctx, c);
	else
		c->ops->close(c);
}

static void *acceptor_main(void *arg)
{
	struct target *t = arg;

	for (;;) {
		struct pgr_error err = PGR_ERROR_NONE;
		struct channel *c = NULL, *old = NULL;
		enum pgr_purpose purpose;
		unsigned i;
		int rc = t->p->accept(t->p->accept_ctx, ACCEPT_SLICE_MS, &i, &purpose, &c, &err);
		bool over;

		pthread_mutex_lock(&t->lock);
		over = t->over;
		pthread_mutex_unlock(&t->lock);
		if (over) {
			if (!rc)
				c->ops->close(c);
			return NULL;
		}
		if (rc == -ETIMEDOUT)
			continue;
		if (rc) {
			/* One connection that could not be made, or nobody who accepts any more: do not spin. */
			struct timespec pause = {.tv_nsec = 50000000};

			nanosleep(&pause, NULL);
			continue;
		}
		if (purpose == PGR_PURPOSE_QUERY) {
			answer_query(t, c);
			continue;
		}
		if (purpose == PGR_PURPOSE_DISK) {
			take_disk_connection(t, c);
			continue;
		}
		if (i >= PGR_CHANNELS_MAX ||
		    (purpose != PGR_PURPOSE_JOIN && purpose != PGR_PURPOSE_RESUME)) {
			c->ops->close(c);
			continue;
		}
		pthread_mutex_lock(&t->lock);
		old = t->arrived[i];
		t->arrived[i] = c;
		t->arrived_purpose[i] = purpose;
		pthread_cond_broadcast(&t->changed);
		pthread_mutex_unlock(&t->lock);
		if (old)
			old->ops->close(old);
	}
}

int target_acceptor_start(struct target *t, struct pgr_error *err)
{
	int rc = -pthread_create(&t->acceptor, NULL, acceptor_main, t);

	if (rc)
		return pgr_fail_errno(err, rc, "cannot start the thread that accepts connections");
	t->acceptor_running = true;
	return 0;
}

void target_acceptor_stop(struct target *t)
{
	pthread_mutex_lock(&t->lock);
	t->over = true;
	pthread_mutex_unlock(&t->lock);
	if (t->acceptor_running)
		pthread_join(t->acceptor, NULL);
	t->acceptor_running = false;
	for (unsigned i = 0; i < PGR_CHANNELS_MAX; i++)
		if (t->arrived[i])
			t->arrived[i]->ops->close(t->arrived[i]);
	memset(t->arrived, 0, sizeof(t->arrived));
}

void target_replied(struct target_lane *tl)
{
	pthread_mutex_lock(&tl->write_lock);
	tl->replied = true;
	pthread_mutex_unlock(&tl->write_lock);
}

static int resume_lane(struct target *t, unsigned i, struct pgr_error *err)
{
	struct target_lane *tl = &t->lanes[i];
	struct pgr_resume reply = {.next_sequence = tl->applied};
	struct pgr_digest ready = {.digest = t->digest.digest, .pages = t->digest.pages};
	struct stream_record rec;
	bool is_ready;
	int rc;

	rc = stream_read(&tl->reader, &rec, err);
	if (!rc && rec.type != PGR_REC_RESUME)
		rc = pgr_fail(err, -EPROTO, "%s: %s where RESUME was expected", tl->channel->peer,
			      stream_type_name(rec.type));
	if (!rc)
		rc = target_send(tl, PGR_REC_RESUME_REPLY, &reply, sizeof(reply), err);
	if (rc)
		return rc;
	pthread_mutex_lock(&tl->write_lock);
	tl->replied = true;
	tl->reader.sequence = tl->acked = tl->applied;
	pthread_mutex_unlock(&tl->write_lock);
	rc = target_lane_start(t, i, err);
	pthread_mutex_lock(&t->lock);
	is_ready = t->state == PGR_STATE_READY;
	pthread_mutex_unlock(&t->lock);
	if (!rc && i == 0 && is_ready)
		rc = target_send(tl, PGR_REC_READY, &ready, sizeof(ready), err);
	return rc;
}

/* Take a connection that arrived for lane i into use. */
static int take(struct target *t, unsigned i, struct channel *c, enum pgr_purpose purpose,
		struct pgr_error *err)
{
	struct target_lane *tl = &t->lanes[i];
	bool joined = tl->usable && tl->greeted;
	int rc = 0;

	/* RESUME without a JOIN: that was lost before it came here, or the source gave up waiting for us to take it. */
	if (i >= t->nr || (purpose == PGR_PURPOSE_JOIN && joined) ||
	    (purpose == PGR_PURPOSE_RESUME &&
	     (!(t->features & PGR_FEATURE_RESUME) || !t->opened_replied))) {
		reporter_message(&t->reporter, SESSION_WARNING,
				 "%s: a connection for channel %u that was not expected was closed",
				 c->peer, i);
		c->ops->close(c);
		return 0;
	}
	lane_unlink(tl);
	pthread_mutex_lock(&tl->write_lock);
	tl->channel = c;
	pthread_mutex_unlock(&tl->write_lock);
	rc = target_greet(t, i, err);
	tl->greeted = true;
	if (!rc && purpose == PGR_PURPOSE_JOIN)
		target_replied(tl);
	if (!rc)
		rc = purpose == PGR_PURPOSE_RESUME ? resume_lane(t, i, err)
						   : target_lane_start(t, i, err);
	if (rc && session_is_loss(rc)) {
		/* It was lost again at once; the source will come back. */
		link_failed(tl, err);
		rc = 0;
	}
	return rc;
}

/* Take a connection that has gone silent for lost, unless we are the slow ones. Caller holds t->lock. */
static void watch_silence(struct target *t, struct target_lane *tl)
{
	unsigned limit = t->p && t->p->silence_ms ? t->p->silence_ms : SESSION_SILENCE_DEFAULT_MS;
	/* Before the clock is read: it is set meanwhile. */
	uint64_t heard = atomic_load(&tl->heard_ns);
	bool idle;

	if (t->file || tl->lost_ns || !tl->receiver_running ||
	    session_now_ns() - heard < limit * 1000000ull)
		return;
	pthread_mutex_lock(&tl->lock);
	idle = tl->queued_bytes == 0;
	pthread_mutex_unlock(&tl->lock);
	if (!idle)
		return;
	tl->lost_ns = session_now_ns();
	/* To the source it may look alive: it learns by this that it has to come back. */
	tl->quiet = true;
	tl->channel->ops->shutdown(tl->channel);
	pgr_fail(&tl->lost_error, -ETIMEDOUT, "nothing was heard on channel %u for %u s", tl->index,
		 (limit + 999) / 1000);
}

int target_wait(struct target *t, bool (*done)(struct target *t), struct pgr_error *err)
{
	uint64_t patience =
		(t->p && t->p->resume_wait_ms ? t->p->resume_wait_ms : RESUME_WAIT_DEFAULT_MS) *
		1000000ull;
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	while (!rc) {
		if (t->failed) {
			*err = t->error;
			rc = t->failed;
			break;
		}
		if (done(t))
			break;
		if (reporter_cancelled(&t->reporter) && !t->have_commit) {
			rc = pgr_fail(err, -ECANCELED, "cancelled at the target");
			break;
		}
		for (unsigned i = 0; i < PGR_CHANNELS_MAX && !rc; i++) {
			struct channel *c = t->arrived[i];
			enum pgr_purpose purpose = t->arrived_purpose[i];

			if (!c)
				continue;
			if (purpose == PGR_PURPOSE_RESUME && t->opened_replied && !t->created) {
				/* The applier that must end before the lane goes on may wait for the guest, which we have to make. */
				t->want_create = true;
				continue;
			}
			t->arrived[i] = NULL;
			pthread_mutex_unlock(&t->lock);
			rc = take(t, i, c, purpose, err);
			pthread_mutex_lock(&t->lock);
		}
		for (unsigned i = 0; i < t->nr && !rc; i++) {
			struct target_lane *tl = &t->lanes[i];

			if (tl->usable)
				watch_silence(t, tl);
			if (!tl->lost_ns)
				continue;
			if (!(t->features & PGR_FEATURE_RESUME) ||
			    t->state == PGR_STATE_NOT_STARTED)
				rc = pgr_fail(err, -ECONNRESET, "the source went away (%s)",
					      tl->lost_error.text);
			else if (session_now_ns() - tl->lost_ns > patience)
				rc = pgr_fail(
					err, -ETIMEDOUT,
					"the source went away (%s) and did not come back within %llu s",
					tl->lost_error.text,
					(unsigned long long)(patience / 1000000000ull));
		}
		if (!rc && t->until_ns && session_now_ns() >= t->until_ns)
			rc = pgr_fail(err, -ETIMEDOUT,
				      "the source did not say in time what it wants to send");
		if (!rc && !t->failed && !done(t))
			session_cond_wait_until(&t->changed, &t->lock,
						session_now_ns() + 100000000ull);
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

int target_answer(struct channel *c, const uint8_t session[PGR_SESSION_SIZE],
		  enum pgr_session_state state, struct pgr_error *err)
{
	struct pgr_status status = {.state = state};
	struct pgr_stream_header h;
	struct stream_reader r;
	struct stream_writer w;
	struct stream_record rec = {0};
	int rc;

	stream_reader_init(&r, session_channel_read, c);
	stream_writer_init(&w, session_channel_write, c);
	rc = stream_read_header(&r, &h, err);
	if (!rc && memcmp(h.session, session, PGR_SESSION_SIZE))
		rc = pgr_fail(err, -EPROTO,
			      "%s asks about another session than it was connected for", c->peer);
	if (!rc)
		rc = stream_read(&r, &rec, err);
	if (!rc && rec.type != PGR_REC_QUERY)
		rc = pgr_fail(err, -EPROTO, "%s: %s where QUERY was expected", c->peer,
			      stream_type_name(rec.type));
	if (!rc)
		rc = stream_write_header(&w, h.kind, session, h.channel, h.channels, err);
	if (!rc)
		rc = stream_write_body(&w, PGR_REC_STATUS, &status, sizeof(status), err);
	/* Let the asker close first, so that the answer is not lost with the connection. */
	if (!rc) {
		struct pgr_error ignored;

		stream_read(&r, &rec, &ignored);
	}
	stream_reader_free(&r);
	return rc;
}
