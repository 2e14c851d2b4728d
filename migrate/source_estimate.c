/* SPDX-License-Identifier: MIT */
/*
 * How long a guest will stand still whose writes cannot be logged: said before it is stopped, so that the user can still say no.
 *
 * Measured, not guessed: batches from all over its memory are read and encoded as they will be, and a NOTE of blanks, which the target throws
 * away, is timed until it is acknowledged. Workers and senders overlap, so the slower of the two counts. The guest runs on meanwhile, and
 * nothing that is read here is sent.
 */
#include "migrate/source_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLES		  8u
#define PROBE_BYTES	  (192u << 10)
#define PROBE_PATIENCE_NS 10000000000ull

static bool drained(struct source *s)
{
	return lane_drained(&s->lanes[0].lane);
}

/* Nanoseconds from the append of a NOTE of so many blanks until it is acknowledged. */
static int time_note(struct source *s, const char *blanks, size_t length, double *ns,
		     struct pgr_error *err)
{
	uint64_t begin = session_now_ns();
	int rc = source_append_body(s, 0, PGR_REC_NOTE, blanks, length, err);

	if (!rc)
		rc = source_wait(s, drained, begin + PROBE_PATIENCE_NS, err);
	*ns = (double)(session_now_ns() - begin);
	return rc == -ETIMEDOUT ? 0 : rc;
}

/* Nanoseconds that the link takes for a byte, 0 for a file. */
static int time_link(struct source *s, double *ns_per_byte, struct pgr_error *err)
{
	double empty = 0, full = 0;
	char *blanks;
	int rc;

	*ns_per_byte = 0;
	if (s->file)
		return 0;
	blanks = malloc(PROBE_BYTES);
	if (!blanks)
		return pgr_fail(err, -ENOMEM, "no memory for a measurement of the link");
	memset(blanks, ' ', PROBE_BYTES);
	/* The way there and back, which many bytes share, is not what a byte costs. */
	rc = time_note(s, blanks, 1, &empty, err);
	if (!rc)
		rc = time_note(s, blanks, PROBE_BYTES, &full, err);
	free(blanks);
	if (!rc)
		*ns_per_byte = (full > empty ? full - empty : full) / PROBE_BYTES;
	return rc;
}

/* Read and encode samples: nanoseconds for a byte of memory on one worker, and bytes on the wire for it. */
static int time_memory(struct source *s, double *ns_per_byte, double *ratio, struct pgr_error *err)
{
	struct encode_options o = s->p->encode;
	struct encoder *e;
	struct encode_stats stats;
	struct encoded made;
	uint64_t begin = session_now_ns();
	void *body = NULL;
	int rc;

	o.cache_bytes = 0;
	rc = encoder_create(&o, &e, err);
	if (!rc) {
		body = malloc(encoder_room(e, s->batch));
		if (!body)
			rc = pgr_fail(err, -ENOMEM, "no memory for a measurement of the guest");
	}
	for (unsigned n = 0; !rc && n < SAMPLES; n++) {
		uint64_t pfn[PGR_BATCH_MAX];
		uint32_t crc[PGR_BATCH_MAX];
		uint64_t first = s->d.info.nr_pfns / SAMPLES * n;
		struct guest_batch b;
		unsigned nr = 0;

		while (nr < s->batch / 4 && first + nr < s->d.info.nr_pfns) {
			pfn[nr] = first + nr;
			nr++;
		}
		if (!nr)
			continue;
		rc = s->g->ops->read(s->g, 0, pfn, nr, &b, err);
		if (rc)
			break;
		rc = encoder_pages(e, 0, pfn, b.page, b.type, nr, true, crc, body, &made, err);
		s->g->ops->release(s->g, 0, &b);
	}
	if (!rc) {
		encoder_stats(e, &stats);
		*ns_per_byte = stats.bytes_in
				       ? (double)(session_now_ns() - begin) / (double)stats.bytes_in
				       : 0;
		*ratio = stats.bytes_in ? (double)stats.bytes_out / (double)stats.bytes_in : 0;
	}
	free(body);
	if (e)
		encoder_free(e);
	return rc;
}

int source_estimate_stop(struct source *s, uint64_t *ns, struct pgr_error *err)
{
	double memory = (double)s->d.info.populated * PGR_PAGE_SIZE;
	double encode = 0, ratio = 1, link = 0, worst;
	int rc;

	*ns = 0;
	rc = time_memory(s, &encode, &ratio, err);
	if (!rc)
		rc = time_link(s, &link, err);
	if (rc)
		return rc;
	if (s->p->bandwidth && link < 1e9 / (double)s->p->bandwidth)
		link = 1e9 / (double)s->p->bandwidth;
	worst = encode > link * ratio ? encode : link * ratio;
	*ns = (uint64_t)(memory * worst * (s->p->verify ? 2 : 1));
	return 0;
}
