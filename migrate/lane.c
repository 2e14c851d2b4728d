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
 * So the appender writes outside of `lock`: by 1 and 4 nobody else touches [filled, acked + size). A record that comes to nothing
 * leaves filled where it was.
 *
 * append_lock is held while a record is made, never while room is waited for: who must not wait long (the thread that keeps connections
 * alive or ends the session) waits for one encoding at most.
 */
#include "migrate/lane.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "migrate/session_internal.h"

/* Longest piece given to the channel at once: long enough to amortise calls, short enough to keep a bandwidth cap smooth. */
#define LANE_PIECE	  (256u << 10)
#define LANE_PIECE_CAPPED (32u << 10)

static size_t padded(size_t n)
{
	return (n + 7) & ~(size_t)7;
}

/* Up to `size` bytes from there on are in one piece. */
static uint8_t *ring_at(const struct lane *l, uint64_t position)
{
	return l->ring + position % l->size;
}

static int ring_map(struct lane *l)
{
	int fd = memfd_create("pagurus-ring", MFD_CLOEXEC);
	void *base = MAP_FAILED;
	int rc = 0;

	if (fd < 0 || ftruncate(fd, (off_t)l->size))
		rc = -errno;
	if (!rc) {
		base = mmap(NULL, 2 * l->size, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (base == MAP_FAILED)
			rc = -errno;
	}
	for (unsigned i = 0; !rc && i < 2; i++)
		if (mmap((uint8_t *)base + i * l->size, l->size, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
			rc = -errno;
	if (rc && base != MAP_FAILED)
		munmap(base, 2 * l->size);
	if (fd >= 0)
		close(fd);
	if (!rc)
		l->ring = base;
	return rc;
}

/* `length` bytes at filled are a record. */
static int publish(struct lane *l, size_t length, struct pgr_error *err)
{
	for (size_t done = 0; l->capture >= 0 && done < length;) {
		ssize_t n = write(l->capture, ring_at(l, l->filled) + done, length - done);

		if (n < 0 && errno != EINTR)
			return pgr_fail_errno(err, -errno, "cannot write the capture of channel %u",
					      l->index);
		if (n > 0)
			done += (size_t)n;
	}
	pthread_mutex_lock(&l->lock);
	l->filled += length;
	l->next_sequence++;
	pthread_cond_signal(&l->to_send);
	pthread_mutex_unlock(&l->lock);
	return 0;
}

/* The stream writer's output: room was waited for, so this cannot fail but for the capture file. */
static int ring_write(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct lane *l = ctx;
	size_t length = 0;

	for (unsigned i = 0; i < nr; i++) {
		memcpy(ring_at(l, l->filled + length), iov[i].iov_base, iov[i].iov_len);
		length += iov[i].iov_len;
	}
	return publish(l, length, err);
}

int lane_init(struct lane *l, unsigned index, size_t size, struct pgr_error *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int rc;

	memset(l, 0, sizeof(*l));
	l->index = index;
	l->capture = -1;
	l->size = (size + page - 1) / page * page;
	rc = ring_map(l);
	if (rc)
		return pgr_fail_errno(err, rc,
				      "no memory for the %zu bytes of channel %u's send buffer",
				      l->size, index);
	pthread_mutex_init(&l->append_lock, NULL);
	pthread_mutex_init(&l->lock, NULL);
	session_cond_init(&l->to_send);
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
	pthread_cond_destroy(&l->to_send);
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	pthread_mutex_destroy(&l->append_lock);
	munmap(l->ring, 2 * l->size);
	l->ring = NULL;
}

static void *sender_main(void *arg)
{
	struct lane *l = arg;
	struct pgr_error err = PGR_ERROR_NONE;
	bool lost;

	pthread_mutex_lock(&l->lock);
	while (!l->stop) {
		struct iovec iov;
		size_t length;
		int rc;

		if (l->sent == l->filled) {
			pthread_cond_wait(&l->to_send, &l->lock);
			continue;
		}
		length = l->filled - l->sent;
		if (length > (l->limit ? LANE_PIECE_CAPPED : LANE_PIECE))
			length = l->limit ? LANE_PIECE_CAPPED : LANE_PIECE;
		iov = (struct iovec){.iov_base = ring_at(l, l->sent), .iov_len = length};
		l->claimed = l->sent + length;
		pthread_mutex_unlock(&l->lock);
		rc = l->limit ? rate_limit_take(l->limit, length, -1) : 0;
		if (!rc)
			rc = l->channel->ops->write(l->channel, &iov, 1, &err);
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
		/* Room is made by acknowledgements: who waits for it need not know. */
		if (l->flushers || l->one_way)
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
		pthread_cond_signal(&l->to_send);
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

/* Returns with append_lock held and room for a record of so many bytes, or without and an error: lane_append's, -EAGAIN. */
static int begin(struct lane *l, uint32_t type, size_t length, bool wait, struct pgr_error *err)
{
	int rc = 0;

	if (length > l->size)
		return pgr_fail(
			err, -EMSGSIZE,
			"a record %s of %zu bytes does not fit the send buffer of channel %u",
			stream_type_name(type), length, l->index);
	for (;;) {
		pthread_mutex_lock(&l->append_lock);
		pthread_mutex_lock(&l->lock);
		if (l->cancelled)
			rc = pgr_fail(err, -ECANCELED, "cancelled");
		else if (!room(l, type, length))
			rc = -EAGAIN;
		else
			break;
		pthread_mutex_unlock(&l->append_lock);
		if (rc != -EAGAIN || !wait)
			break;
		pthread_cond_wait(&l->changed, &l->lock);
		pthread_mutex_unlock(&l->lock);
		rc = 0;
	}
	pthread_mutex_unlock(&l->lock);
	return rc;
}

static int append(struct lane *l, uint32_t type, const struct iovec *parts, unsigned nr, bool wait,
		  struct pgr_error *err)
{
	int rc = begin(l, type, session_record_bytes(parts, nr), wait, err);

	if (rc)
		return rc;
	rc = stream_write(&l->writer, type, parts, nr, err);
	l->last_append_ns = session_now_ns();
	pthread_mutex_unlock(&l->append_lock);
	return rc;
}

int lane_reserve(struct lane *l, uint32_t type, size_t most, void **body, struct pgr_error *err)
{
	struct iovec part = {.iov_len = most};
	int rc = begin(l, type, session_record_bytes(&part, 1), true, err);

	if (!rc)
		*body = ring_at(l, l->filled) + sizeof(struct pgr_record);
	return rc;
}

int lane_commit(struct lane *l, uint32_t type, size_t length, uint32_t crc, struct pgr_error *err)
{
	size_t bytes = stream_seal(&l->writer, type, ring_at(l, l->filled), length, crc);
	int rc = publish(l, bytes, err);

	l->last_append_ns = session_now_ns();
	pthread_mutex_unlock(&l->append_lock);
	return rc;
}

void lane_drop(struct lane *l)
{
	pthread_mutex_unlock(&l->append_lock);
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
			memcpy(&header, ring_at(l, at), sizeof(header));
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
			memcpy(&header, ring_at(l, at), sizeof(header));
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
	l->flushers++;
	while (l->sent < l->filled && l->running && !l->lost)
		if (!session_cond_wait_until(&l->changed, &l->lock, until_ns))
			break;
	l->flushers--;
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
