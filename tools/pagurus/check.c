/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/check.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "migrate/stream.h"
#include "tools/pagurus/guests.h"
#include "tools/pagurus/message.h"

static const uint8_t no_session[PGR_SESSION_SIZE];

static int channel_write_cb(void *ctx, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->write(c, iov, nr, err);
}

static int channel_read_cb(void *ctx, void *data, size_t length, struct pgr_error *err)
{
	struct channel *c = ctx;

	return c->ops->read(c, data, length, err);
}

static int send_one(struct channel *c, uint32_t type, const void *body, size_t length,
		    struct pgr_error *err)
{
	struct stream_writer w;
	int rc;

	stream_writer_init(&w, channel_write_cb, c);
	rc = stream_write_header(&w, PGR_KIND_MIGRATE, no_session, 0, 1, err);
	if (!rc)
		rc = stream_write_body(&w, type, body, length, err);
	return rc;
}

/* The record of that type that comes next; r is the caller's to free, rec lives as long. */
static int receive_one(struct channel *c, uint32_t type, struct stream_reader *r,
		       struct stream_record *rec, struct pgr_error *err)
{
	struct pgr_stream_header header;
	int rc;

	stream_reader_init(r, channel_read_cb, c);
	rc = stream_read_header(r, &header, err);
	if (!rc)
		rc = stream_read(r, rec, err);
	if (!rc && rec->type != type)
		rc = pgr_fail(err, -EPROTO, "%s: expected %s, got %s", c->peer,
			      stream_type_name(type), stream_type_name(rec->type));
	return rc;
}

int check_answer(struct channel *c, bool allow_sim, uint64_t sim_free, struct pgr_error *err)
{
	struct stream_reader r;
	struct stream_record rec;
	json_t *facts;
	char *text;
	int rc = receive_one(c, PGR_REC_CHECK, &r, &rec, err);

	stream_reader_free(&r);
	if (rc)
		return rc;
	facts = guests_host_facts(allow_sim, sim_free);
	text = json_dumps(facts, JSON_COMPACT);
	if (text)
		rc = send_one(c, PGR_REC_CHECK_REPLY, text, strlen(text), err);
	else
		rc = pgr_fail(err, -ENOMEM, "no memory for the answer");
	free(text);
	json_decref(facts);
	return rc;
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int check_ask(const struct host_address *h, const struct tls_identity *id, json_t **facts,
	      struct pgr_error *err)
{
	struct pgr_preamble preamble;
	struct stream_reader r = {.buffer = NULL};
	struct stream_record rec = {.length = 0};
	struct channel *c;
	int64_t begin, here, trip;
	int rc;

	*facts = NULL;
	connect_preamble(&preamble, NULL, 0, PGR_PURPOSE_CHECK);
	rc = connect_to(h, id, &preamble, -1, &c, err);
	if (rc)
		return rc;
	begin = now_ns(CLOCK_MONOTONIC);
	here = now_ns(CLOCK_REALTIME);
	rc = send_one(c, PGR_REC_CHECK, NULL, 0, err);
	if (!rc)
		rc = receive_one(c, PGR_REC_CHECK_REPLY, &r, &rec, err);
	if (!rc) {
		trip = now_ns(CLOCK_MONOTONIC) - begin;
		*facts = json_loadb((const char *)rec.body, rec.length, 0, NULL);
		if (!json_is_object(*facts)) {
			json_decref(*facts);
			*facts = NULL;
			rc = pgr_fail(err, -EPROTO, "%s: its answer is no JSON object", c->peer);
		}
	}
	if (!rc) {
		json_t *clock = json_object_get(*facts, "clock_ns");

		json_object_set_new(*facts, "round_trip_ns", json_integer(trip));
		if (json_is_integer(clock))
			json_object_set_new(
				*facts, "clock_offset_ns",
				json_integer(json_integer_value(clock) - here - trip / 2));
		json_object_set_new(*facts, "connection", message_string(c->peer));
	}
	stream_reader_free(&r);
	c->ops->close(c);
	return rc;
}
