// SPDX-License-Identifier: MIT
#include "tools/pagurus/disk_lane.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "migrate/session_internal.h"

#define PIECE	 (256u << 10)
#define ALIVE_MS 500
#define NS	 1000000000ull

static void init(struct disk_lane *l, enum stream_side other)
{
	stream_writer_init(&l->writer, session_channel_write, l->channel);
	stream_reader_init(&l->reader, session_channel_read, l->channel);
	stream_order_init(&l->order, other, PGR_KIND_MIGRATE, 0);
}

/* The next record that means something here. */
static int next(struct disk_lane *l, struct stream_record *rec, struct pgr_error *err)
{
	int rc;

	do {
		rc = stream_read(&l->reader, rec, err);
		if (!rc)
			rc = stream_order_next(&l->order, rec, err);
		if (!rc && rec->type == PGR_REC_ABORT)
			rc = session_abort_error(err, l->channel->peer, rec);
	} while (!rc && rec->type & PGR_OPTIONAL);
	return rc;
}

static int read_header(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE],
		       struct pgr_error *err)
{
	struct pgr_stream_header h;
	int rc = stream_read_header(&l->reader, &h, err);

	if (!rc && (h.kind != PGR_KIND_MIGRATE || h.channel ||
		    memcmp(h.session, session, sizeof(h.session))))
		rc = pgr_fail(err, -EPROTO, "%s: the connection is for another session",
			      l->channel->peer);
	return rc;
}

int disk_lane_attach(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE], unsigned disk,
		     struct pgr_error *err)
{
	struct pgr_disk_attach attach = {.disk = disk};
	int rc;

	init(l, STREAM_FROM_TARGET);
	rc = stream_write_header(&l->writer, PGR_KIND_MIGRATE, session, 0, 1, err);
	if (!rc)
		rc = stream_write_body(&l->writer, PGR_REC_DISK_ATTACH, &attach, sizeof(attach),
				       err);
	return rc ? rc : read_header(l, session, err);
}

int disk_lane_accept(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE], unsigned *disk,
		     struct pgr_error *err)
{
	struct pgr_disk_attach attach;
	struct stream_record rec;
	int rc;

	init(l, STREAM_FROM_SOURCE);
	rc = read_header(l, session, err);
	if (!rc)
		rc = next(l, &rec, err);
	if (rc)
		return rc;
	if (rec.type != PGR_REC_DISK_ATTACH)
		return pgr_fail(err, -EPROTO, "%s: %s where DISK_ATTACH was expected",
				l->channel->peer, stream_type_name(rec.type));
	memcpy(&attach, rec.body, sizeof(attach));
	*disk = attach.disk;
	return 0;
}

int disk_lane_welcome(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE],
		      struct pgr_error *err)
{
	return stream_write_header(&l->writer, PGR_KIND_MIGRATE, session, 0, 1, err);
}

void disk_lane_cut(struct disk_lane *l)
{
	atomic_store(&l->over, true);
	l->channel->ops->shutdown(l->channel);
	shutdown(l->fd, SHUT_RDWR);
}

void disk_lane_free(struct disk_lane *l)
{
	stream_reader_free(&l->reader);
}

/* ---- to this host's socket ---- */

static int put(struct disk_lane *l, const struct stream_record *rec, struct pgr_error *err)
{
	size_t done = 0;

	while (done < rec->length) {
		ssize_t n = send(l->fd, rec->body + done, rec->length - done, MSG_NOSIGNAL);

		if (n >= 0)
			done += (size_t)n;
		/* Who has said all that it has to say may have gone. */
		else if (errno == EPIPE || errno == ECONNRESET)
			return 0;
		else if (errno != EINTR)
			return pgr_fail_errno(err, -errno, "what serves the disk does not listen");
	}
	return 0;
}

struct incoming {
	struct disk_lane *l;
	struct pgr_error err;
};

static void *bring_in(void *ctx)
{
	struct incoming *in = ctx;
	struct disk_lane *l = in->l;
	struct stream_record rec;
	bool end = false;
	int rc = 0;

	while (!rc && !end) {
		rc = next(l, &rec, &in->err);
		if (!rc)
			rc = put(l, &rec, &in->err);
		end = !rc && !rec.length;
	}
	in->err.code = rc;
	if (rc)
		disk_lane_cut(l);
	else
		shutdown(l->fd, SHUT_WR);
	return NULL;
}

/* ---- from it ---- */

static void keep_rate(const struct disk_lane *l, size_t length)
{
	uint64_t rate = atomic_load(&l->rate), ns = rate ? (uint64_t)length * NS / rate : 0;
	const struct timespec pause = {.tv_sec = (time_t)(ns / NS), .tv_nsec = (long)(ns % NS)};

	if (ns && !atomic_load(&l->over))
		nanosleep(&pause, NULL);
}

/* Some bytes; 0: it has said all. Meanwhile the other host hears that this one lives. */
static int get(struct disk_lane *l, uint8_t *data, size_t *length, struct pgr_error *err)
{
	struct pollfd p = {.fd = l->fd, .events = POLLIN};
	ssize_t n;
	int rc;

	for (;;) {
		n = poll(&p, 1, ALIVE_MS);
		if (!n) {
			rc = stream_write(&l->writer, PGR_REC_KEEPALIVE, NULL, 0, err);
			if (rc)
				return rc;
			continue;
		}
		if (n > 0)
			n = recv(l->fd, data, PIECE, 0);
		if (n >= 0 || errno == ECONNRESET)
			break;
		if (errno != EINTR && errno != EAGAIN)
			return pgr_fail_errno(err, -errno, "what serves the disk cannot be read");
	}
	*length = n > 0 ? (size_t)n : 0;
	return 0;
}

static int take_out(struct disk_lane *l, struct pgr_error *err)
{
	uint8_t *data = malloc(PIECE);
	size_t length = 1;
	int rc = data ? 0 : pgr_fail(err, -ENOMEM, "no memory to copy a disk");

	while (!rc && length) {
		rc = get(l, data, &length, err);
		if (!rc)
			rc = stream_write_body(&l->writer, PGR_REC_DISK_DATA, data, length, err);
		keep_rate(l, length);
	}
	free(data);
	return rc;
}

int disk_lane_run(struct disk_lane *l, struct pgr_error *err)
{
	struct incoming in = {.l = l};
	pthread_t thread;
	int rc = -pthread_create(&thread, NULL, bring_in, &in);

	if (rc)
		return pgr_fail_errno(err, rc, "no thread to copy a disk");
	rc = take_out(l, err);
	if (rc)
		disk_lane_cut(l);
	pthread_join(thread, NULL);
	/* Who failed first has cut off the other. */
	if (in.err.code && (!rc || rc == -ECANCELED)) {
		*err = in.err;
		rc = in.err.code;
	}
	return rc;
}
