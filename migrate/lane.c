/* SPDX-License-Identifier: MIT */
/*
 * A ring of records on their way; see lane.h.
 *
 * Invariants:
 *  1. acked <= sent <= filled <= acked + size.
 *  2. acked is the position of a record header (or equals filled); its sequence number is acked_sequence. A one-way lane, which is never
 *     resumed, does without this one: acked == sent.
 *  3. Bytes in [acked, filled) are complete records, never changed once filled has moved past them.
 *  4. Only the appender (append_lock held) moves filled, only the sender moves sent while it runs, only the
 *     acknowledger (or the sender of a one-way lane) moves acked.
 * So the appender copies outside of `lock`: by 1 and 4 nobody else touches [filled, acked + size).
 */
#include "migrate/lane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "migrate/session_internal.h"

/* Longest piece given to the channel at once: long enough to amortise calls, short enough to keep a bandwidth cap smooth. */
#define LANE_PIECE	  (256u << 10)
#define LANE_PIECE_CAPPED (32u << 10)

static size_t padded(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

static void ring_copy_in(struct lane *l, uint64_t position, const void *data, size_t length)
{
	size_t at = position % l->size;
	size_t first = length < l->size - at ? length : l->size - at;

	memcpy(l->ring + at, data, first);
	memcpy(l->ring, (const uint8_t *)data + first, length - first);
}

static void ring_copy_out(const struct lane *l, uint64_t position, void *data, size_t length)
{
	size_t at = position % l->size;
	size_t first = length < l->size - at ? length : l->size - at;

	memcpy(data, l->ring + at, first);
	memcpy((uint8_t *)data + first, l->ring, length - first);
}

/* The stream writer's output: room was waited for, so this cannot fail but for the capture file. */
static int ring_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct lane *l = ctx;
	uint64_t position = l->filled;

	for (unsigned i = 0; i < nr; i++) {
		ring_copy_in(l, position, iov[i].iov_base, iov[i].iov_len);
		position += iov[i].iov_len;
		for (size_t done = 0; l->capture >= 0 && done < iov[i].iov_len;) {
			ssize_t n = write(l->capture, (const uint8_t *)iov[i].iov_base + done,
					  iov[i].iov_len - done);

			if (n < 0 && errno != EINTR)
				return pgr_fail_errno(err, -errno,
						      "cannot write the capture of channel %u",
						      l->index);
			if (n > 0)
				done += (size_t)n;
		}
	}
	pthread_mutex_lock(&l->lock);
	l->filled = position;
	l->next_sequence++;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	return 0;
}

int lane_init(struct lane *l, unsigned index, size_t size, struct pgr_error *err)
{
	memset(l, 0, sizeof(*l));
	l->index = index;
	l->capture = -1;
	l->size = (size + 15) & ~(size_t)15;
	l->ring = malloc(l->size);
	if (!l->ring)
		return pgr_fail(err, -ENOMEM,
				"no memory for the %zu bytes of channel %u's send buffer", l->size,
				index);
	pthread_mutex_init(&l->append_lock, NULL);
	pthread_mutex_init(&l->lock, NULL);
	session_cond_init(&l->changed);
	stream_writer_init(&l->writer, ring_write, l);
	return 0;
}

void lane_free(struct lane *l)
{
	if (!l->ring)
		return;
	lane_stop(l);
	if (l->capture >= 0)
		close(l->capture);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	pthread_mutex_destroy(&l->append_lock);
	free(l->ring);
	l->ring = NULL;
}

static void *sender_main(void *arg)
{
	struct lane *l = arg;
	struct pgr_error err = PGR_ERROR_NONE;
	bool lost;

	pthread_mutex_lock(&l->lock);
	while (!l->stop) {
		struct iovec iov[2];
		size_t length, at;
		int rc;

		if (l->sent == l->filled) {
			pthread_cond_wait(&l->changed, &l->lock);
			continue;
		}
		length = l->filled - l->sent;
		if (length > (l->limit ? LANE_PIECE_CAPPED : LANE_PIECE))
			length = l->limit ? LANE_PIECE_CAPPED : LANE_PIECE;
		at = l->sent % l->size;
		iov[0].iov_base = l->ring + at;
		iov[0].iov_len = length < l->size - at ? length : l->size - at;
		iov[1].iov_base = l->ring;
		iov[1].iov_len = length - iov[0].iov_len;
		l->claimed = l->sent + length;
		pthread_mutex_unlock(&l->lock);
		rc = l->limit ? rate_limit_take(l->limit, length, -1) : 0;
		if (!rc)
			rc = l->channel->ops->write(l->channel, iov, iov[1].iov_len ? 2 : 1, &err);
		pthread_mutex_lock(&l->lock);
		if (rc) {
			if (!l->stop) {
				l->lost = true;
				l->error = err;
			}
			pthread_cond_broadcast(&l->changed);
			break;
		}
		l->sent += length;
		__atomic_store_n(&l->wire_bytes, l->wire_bytes + length, __ATOMIC_RELAXED);
		pthread_cond_broadcast(&l->changed);
		if (l->one_way) {
			l->acked = l->sent;
			if (l->sent == l->filled && l->on_drained) {
				pthread_mutex_unlock(&l->lock);
				l->on_drained(l->ctx, l);
				pthread_mutex_lock(&l->lock);
			}
		}
	}
	lost = l->lost;
	pthread_mutex_unlock(&l->lock);
	if (lost && l->on_lost)
		l->on_lost(l->ctx, l);
	return NULL;
}

int lane_start(struct lane *l, struct channel *c, struct pgr_error *err)
{
	int rc;

	pthread_mutex_lock(&l->lock);
	l->channel = c;
	l->stop = false;
	l->lost = false;
	/* Before the thread is there: who asks whether it runs may come at any time. */
	l->running = true;
	pthread_mutex_unlock(&l->lock);
	rc = -pthread_create(&l->sender, NULL, sender_main, l);
	if (!rc)
		return 0;
	pthread_mutex_lock(&l->lock);
	l->running = false;
	pthread_mutex_unlock(&l->lock);
	return pgr_fail_errno(err, rc, "cannot start the sending thread of channel %u", l->index);
}

void lane_stop(struct lane *l)
{
	if (l->running) {
		pthread_mutex_lock(&l->lock);
		l->stop = true;
		pthread_cond_broadcast(&l->changed);
		pthread_mutex_unlock(&l->lock);
		/* A file is its caller's, who may still want to sync and commit it; its writes end by themselves. */
		if (!l->one_way)
			l->channel->ops->shutdown(l->channel);
		pthread_join(l->sender, NULL);
		pthread_mutex_lock(&l->lock);
		l->running = false;
		pthread_mutex_unlock(&l->lock);
	}
	if (l->channel && !l->one_way)
		l->channel->ops->close(l->channel);
	l->channel = NULL;
}

/* The window is for pages: what opens and ends a session must never wait behind it. Caller holds lock. */
static bool room(const struct lane *l, uint32_t type, size_t bytes)
{
	if (l->filled + bytes > l->acked + l->size)
		return false;
	return type != PGR_REC_PAGES || !l->window ||
	       l->next_sequence - l->acked_sequence < l->window;
}

static int append(struct lane *l, uint32_t type, const struct iovec *parts, unsigned nr, bool wait,
		  struct pgr_error *err)
{
	size_t length = session_record_bytes(parts, nr);
	int rc = 0;

	if (length > l->size)
		return pgr_fail(
			err, -EMSGSIZE,
			"a record %s of %zu bytes does not fit the send buffer of channel %u",
			stream_type_name(type), length, l->index);

	pthread_mutex_lock(&l->append_lock);
	pthread_mutex_lock(&l->lock);
	while (wait && !l->cancelled && !room(l, type, length))
		pthread_cond_wait(&l->changed, &l->lock);
	if (l->cancelled)
		rc = pgr_fail(err, -ECANCELED, "cancelled");
	else if (!room(l, type, length))
		rc = -EAGAIN;
	pthread_mutex_unlock(&l->lock);
	if (!rc)
		rc = stream_write(&l->writer, type, parts, nr, err);
	l->last_append_ns = session_now_ns();
	pthread_mutex_unlock(&l->append_lock);
	return rc;
}

int lane_append(struct lane *l, uint32_t type, const struct iovec *parts, unsigned nr,
		struct pgr_error *err)
{
	return append(l, type, parts, nr, true, err);
}

int lane_try_append(struct lane *l, uint32_t type, const struct iovec *parts, unsigned nr,
		    struct pgr_error *err)
{
	return append(l, type, parts, nr, false, err);
}

bool lane_has_room(struct lane *l, uint32_t type, size_t bytes)
{
	bool has;

	pthread_mutex_lock(&l->lock);
	has = l->cancelled || room(l, type, bytes);
	pthread_mutex_unlock(&l->lock);
	return has;
}

int lane_append_body(struct lane *l, uint32_t type, const void *body, size_t length,
		     struct pgr_error *err)
{
	struct iovec part = {.iov_base = (void *)(uintptr_t)body, .iov_len = length};

	return lane_append(l, type, &part, length ? 1 : 0, err);
}

void lane_keepalive(struct lane *l, uint64_t idle_ns)
{
	bool free_room;

	if (pthread_mutex_trylock(&l->append_lock))
		return;
	pthread_mutex_lock(&l->lock);
	free_room = l->running && !l->lost && !l->abandoned && l->sent == l->filled &&
		    room(l, PGR_REC_KEEPALIVE, sizeof(struct pgr_record));
	pthread_mutex_unlock(&l->lock);
	if (free_room && session_now_ns() - l->last_append_ns > idle_ns) {
		stream_write(&l->writer, PGR_REC_KEEPALIVE, NULL, 0, NULL);
		l->last_append_ns = session_now_ns();
	}
	pthread_mutex_unlock(&l->append_lock);
}

/* Move acked forward to the record with the given number. Caller holds lock. */
static int advance(struct lane *l, uint32_t sequence, uint64_t limit, struct pgr_error *err)
{
	uint64_t at = l->acked;
	uint32_t next = l->acked_sequence;

	while (next != sequence) {
		struct pgr_record header;

		if (at < limit) {
			ring_copy_out(l, at, &header, sizeof(header));
			at += sizeof(header) + padded(header.length);
			next++;
		}
		if (at > limit || (at == limit && next != sequence))
			return pgr_fail(
				err, -EPROTO,
				"the target acknowledged record %u of channel %u, which was not sent (last one: %u)",
				sequence, l->index, l->acked_sequence);
	}
	l->acked = at;
	l->acked_sequence = next;
	return 0;
}

int lane_ack(struct lane *l, uint32_t sequence, struct pgr_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&l->lock);
	/* An acknowledgement that is older than the last says nothing new; sequence numbers may wrap. */
	if (!l->abandoned && (int32_t)(sequence - l->acked_sequence) > 0) {
		/*
		 * A record can take effect before write() has returned for all of the piece that it is in: claimed, not sent. Beyond that
		 * it would free bytes of the ring that still have to be written.
		 */
		rc = advance(l, sequence, l->claimed, err);
		pthread_cond_broadcast(&l->changed);
	}
	pthread_mutex_unlock(&l->lock);
	return rc;
}

int lane_rewind(struct lane *l, uint32_t next, struct pgr_error *err)
{
	int rc;

	pthread_mutex_lock(&l->lock);
	if ((int32_t)(next - l->acked_sequence) < 0)
		rc = pgr_fail(
			err, -EPROTO,
			"the target asks for record %u of channel %u again, which it had acknowledged (next: %u)",
			next, l->index, l->acked_sequence);
	else
		rc = advance(l, next, l->claimed, err);
	if (!rc)
		l->sent = l->claimed = l->acked;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	return rc;
}

void lane_abandon(struct lane *l)
{
	struct pgr_record header;

	pthread_mutex_lock(&l->append_lock);
	pthread_mutex_lock(&l->lock);
	l->cancelled = false;
	l->abandoned = true;
	if (l->limit)
		rate_limit_set(l->limit, RATE_UNLIMITED, 0);
	if (l->claimed < l->sent)
		l->claimed = l->sent;
	if (l->acked < l->filled) {
		uint64_t at = l->acked;
		uint32_t sequence = l->acked_sequence;

		while (at < l->claimed) {
			ring_copy_out(l, at, &header, sizeof(header));
			at += sizeof(header) + padded(header.length);
			sequence++;
		}
		l->filled = at;
		l->writer.sequence = l->next_sequence = sequence;
		/* What was sent is needed no more: a ring full of it would leave no room. The sender moves sent. */
		l->acked = l->sent;
	}
	pthread_mutex_unlock(&l->lock);
	pthread_mutex_unlock(&l->append_lock);
}

bool lane_wait_sent(struct lane *l, uint64_t until_ns)
{
	bool sent;

	pthread_mutex_lock(&l->lock);
	while (l->sent < l->filled && l->running && !l->lost)
		if (!session_cond_wait_until(&l->changed, &l->lock, until_ns))
			break;
	sent = l->sent >= l->filled;
	pthread_mutex_unlock(&l->lock);
	return sent;
}

void lane_cancel(struct lane *l)
{
	pthread_mutex_lock(&l->lock);
	l->cancelled = true;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

bool lane_drained(struct lane *l)
{
	bool drained;

	pthread_mutex_lock(&l->lock);
	drained = l->acked == l->filled;
	pthread_mutex_unlock(&l->lock);
	return drained;
}

uint64_t lane_acked(struct lane *l)
{
	uint64_t acked;

	pthread_mutex_lock(&l->lock);
	acked = l->acked;
	pthread_mutex_unlock(&l->lock);
	return acked;
}

uint32_t lane_next_sequence(struct lane *l)
{
	uint32_t next;

	pthread_mutex_lock(&l->lock);
	next = l->next_sequence;
	pthread_mutex_unlock(&l->lock);
	return next;
}
