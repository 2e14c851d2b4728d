/* SPDX-License-Identifier: MIT */
/*
 * Records take effect: pages go into the guest, everything else into the session's state. Called by each lane's applier.
 *
 * Pages are mapped, decoded in place, entered into the ledger. That a pfn stays on one lane is checked (owner), since without it two appliers
 * could write one page at once and the digest would depend on luck.
 */
#include "migrate/target_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int wait_created(struct target *t, struct pgr_error *err)
{
	int rc = 0;

	pthread_mutex_lock(&t->lock);
	if (!t->created) {
		t->want_create = true;
		pthread_cond_broadcast(&t->changed);
	}
	while (!t->created && !t->failed)
		pthread_cond_wait(&t->changed, &t->lock);
	if (t->failed) {
		*err = t->error;
		rc = t->failed;
	}
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int claim(struct target_lane *tl, const struct stream_record *rec,
		 const struct decoded_header *h, struct pgr_error *err)
{
	struct target *t = tl->t;

	for (unsigned i = 0; i < h->nr; i++) {
		uint8_t none = 0;

		if (!__atomic_compare_exchange_n(&t->owner[h->pfn[i]], &none,
						 (uint8_t)(tl->index + 1), false, __ATOMIC_RELAXED,
						 __ATOMIC_RELAXED) &&
		    none != tl->index + 1)
			return pgr_fail(
				err, -EPROTO,
				"channel %u, record %u at offset %llu: pfn %llu came on channel %u before and must stay there",
				tl->index, rec->sequence, (unsigned long long)rec->offset,
				(unsigned long long)h->pfn[i], none - 1u);
		if (h->transform[i] == PGR_DELTA && !ledger_is_present(&t->ledger, h->pfn[i]))
			return pgr_fail(
				err, -EPROTO,
				"channel %u, record %u at offset %llu: a delta for pfn %llu, which was never sent",
				tl->index, rec->sequence, (unsigned long long)rec->offset,
				(unsigned long long)h->pfn[i]);
	}
	return 0;
}

static int where(struct pgr_error *err, const struct target_lane *tl,
		 const struct stream_record *rec)
{
	return pgr_fail_prefix(err, "channel %u, record %u (%s) at offset %llu", tl->index,
			       rec->sequence, stream_type_name(rec->type),
			       (unsigned long long)rec->offset);
}

/* The pages of the record that hold memory, mapped; page[] by index in the record. */
struct mapped {
	struct guest_batch batch;
	unsigned nr;
	uint64_t pfn[PGR_BATCH_MAX];
	uint8_t type[PGR_BATCH_MAX];
	uint8_t *page[PGR_BATCH_MAX];
	uint8_t *base;
};

static int map_pages(struct target_lane *tl, const struct decoded_header *h, struct mapped *m,
		     struct pgr_error *err)
{
	struct target *t = tl->t;
	int rc;

	m->nr = 0;
	for (unsigned i = 0; i < h->nr; i++) {
		if (h->transform[i] == PGR_ABSENT)
			continue;
		m->type[m->nr] = h->type[i];
		m->pfn[m->nr++] = h->pfn[i];
	}
	m->base = NULL;
	memset(m->page, 0, h->nr * sizeof(m->page[0]));
	if (!m->nr)
		return 0;
	rc = t->sink->ops->map(t->sink, tl->index, m->pfn, m->nr, &m->batch, err);
	if (rc)
		return rc;
	for (unsigned i = 0, k = 0; i < h->nr; i++)
		if (h->transform[i] != PGR_ABSENT)
			m->page[i] = m->batch.page[k++];
	if (m->nr == h->nr)
		m->base = m->batch.base;
	return 0;
}

static void unmap_pages(struct target_lane *tl, struct mapped *m)
{
	if (m->nr)
		tl->t->sink->ops->unmap(tl->t->sink, tl->index, &m->batch);
}

static int verify_pages(struct target_lane *tl, const struct stream_record *rec,
			const struct decoded_header *h, struct pgr_error *err)
{
	struct target *t = tl->t;
	struct mapped m;
	int differs = -1;
	int rc;

	for (unsigned i = 0; i < h->nr; i++)
		if ((h->transform[i] != PGR_ABSENT) != ledger_is_present(&t->ledger, h->pfn[i]))
			return pgr_fail(
				err, -EBADMSG,
				"verification failed: pfn %llu holds memory at one end and none at the other",
				(unsigned long long)h->pfn[i]);
	rc = map_pages(tl, h, &m, err);
	if (rc)
		return rc;
	rc = decoder_compare(tl->decoder, m.page, &differs, err);
	unmap_pages(tl, &m);
	tl->verified += m.nr;
	if (!rc && differs >= 0)
		rc = pgr_fail(err, -EBADMSG,
			      "verification failed: pfn %llu differs from the source's",
			      (unsigned long long)h->pfn[differs]);
	return rc ? where(err, tl, rec) : 0;
}

static int store_pages(struct target_lane *tl, const struct stream_record *rec,
		       const struct decoded_header *h, struct pgr_error *err)
{
	struct target *t = tl->t;
	uint64_t absent[PGR_BATCH_MAX];
	uint32_t crc[PGR_BATCH_MAX];
	bool fresh[PGR_BATCH_MAX];
	unsigned nr_absent = 0;
	struct mapped m;
	int rc;

	for (unsigned i = 0; i < h->nr; i++) {
		fresh[i] = !ledger_is_present(&t->ledger, h->pfn[i]);
		if (h->transform[i] == PGR_ABSENT)
			absent[nr_absent++] = h->pfn[i];
	}
	rc = map_pages(tl, h, &m, err);
	if (rc)
		return rc;
	rc = decoder_pages(tl->decoder, m.page, m.base, fresh, crc, err);
	unmap_pages(tl, &m);
	if (rc)
		return where(err, tl, rec);
	if (m.nr)
		rc = t->sink->ops->set_types(t->sink, tl->index, m.pfn, m.type, m.nr, err);
	if (!rc && nr_absent)
		rc = t->sink->ops->discard(t->sink, tl->index, absent, nr_absent, err);
	for (unsigned i = 0; !rc && i < h->nr; i++) {
		if (h->transform[i] == PGR_ABSENT)
			ledger_absent(&t->ledger, &tl->sum, h->pfn[i]);
		else
			ledger_set(&t->ledger, &tl->sum, h->pfn[i], crc[i]);
	}
	return rc;
}

static void count(struct target_lane *tl, const struct stream_record *rec,
		  const struct decoded_header *h)
{
	struct iovec body = {.iov_len = rec->length};
	struct encode_stats *s = &tl->stats;

	tl->round_pages += h->nr;
	tl->round_bytes += session_record_bytes(&body, 1);
	pthread_mutex_lock(&tl->t->lock);
	s->pages += h->nr;
	s->bytes_out += rec->length;
	for (unsigned i = 0; i < h->nr; i++) {
		s->zero += h->transform[i] == PGR_ZERO;
		s->delta += h->transform[i] == PGR_DELTA;
		s->plain += h->transform[i] == PGR_DATA;
		s->absent += h->transform[i] == PGR_ABSENT;
		s->bytes_in += h->transform[i] == PGR_ABSENT ? 0 : PGR_PAGE_SIZE;
	}
	pthread_mutex_unlock(&tl->t->lock);
}

/* The record uses only what was agreed on. The decoder has checked its shape. */
static int check_features(const struct target_lane *tl, const struct stream_record *rec,
			  const struct decoded_header *h, struct pgr_error *err)
{
	static const struct {
		uint32_t feature;
		const char *name;
	} of_codec[] = {
		[PGR_CODEC_RAW] = {0, "raw"},
		[PGR_CODEC_LZ4] = {PGR_FEATURE_LZ4, "LZ4"},
		[PGR_CODEC_ZSTD] = {PGR_FEATURE_ZSTD, "ZSTD"},
	};
	const struct pgr_pages *b = (const void *)rec->body;
	const struct pgr_group *g =
		(const void *)(rec->body + sizeof(*b) + b->nr_pages * sizeof(uint64_t));

	for (unsigned i = 0; i < b->nr_groups; i++)
		if ((tl->t->features & of_codec[g[i].codec].feature) !=
		    of_codec[g[i].codec].feature)
			return pgr_fail(err, -EPROTO,
					"group %u uses %s, which is not among the agreed features",
					i, of_codec[g[i].codec].name);
	for (unsigned i = 0; i < h->nr; i++)
		if (h->transform[i] == PGR_DELTA && !(tl->t->features & PGR_FEATURE_DELTA))
			return pgr_fail(
				err, -EPROTO,
				"pfn %llu comes as DELTA, which is not among the agreed features",
				(unsigned long long)h->pfn[i]);
	return 0;
}

static int apply_pages(struct target_lane *tl, const struct stream_record *rec,
		       struct pgr_error *err)
{
	struct decoded_header h;
	int rc;

	rc = wait_created(tl->t, err);
	if (rc)
		return rc;
	rc = decoder_parse(tl->decoder, rec->body, rec->length, tl->t->d.info.nr_pfns, &h, err);
	if (!rc)
		rc = check_features(tl, rec, &h, err);
	if (rc)
		return where(err, tl, rec);
	rc = claim(tl, rec, &h, err);
	if (!rc)
		rc = tl->verifying ? verify_pages(tl, rec, &h, err) : store_pages(tl, rec, &h, err);
	if (!rc)
		count(tl, rec, &h);
	return rc;
}

static int apply_round_end(struct target_lane *tl, const struct stream_record *rec,
			   struct pgr_error *err)
{
	struct pgr_round_end end;
	int rc = 0;

	memcpy(&end, rec->body, sizeof(end));
	if (end.pages != tl->round_pages || end.bytes != tl->round_bytes) {
		pgr_fail(
			err, -EPROTO,
			"round %u ends with %llu pages in %llu bytes where %llu pages in %llu bytes were received",
			end.round, (unsigned long long)end.pages, (unsigned long long)end.bytes,
			(unsigned long long)tl->round_pages, (unsigned long long)tl->round_bytes);
		rc = where(err, tl, rec);
	}
	if (!rc && tl->verifying && tl->verified != tl->sum.pages) {
		pgr_fail(err, -EBADMSG,
			 "verification failed: %llu pages came again of %llu that were received",
			 (unsigned long long)tl->verified, (unsigned long long)tl->sum.pages);
		rc = where(err, tl, rec);
	}
	tl->round_pages = tl->round_bytes = 0;
	return rc;
}

static int apply_end(struct target_lane *tl, const struct stream_record *rec, struct pgr_error *err)
{
	struct target *t = tl->t;
	struct pgr_end end;
	int rc;

	memcpy(&end, rec->body, sizeof(end));
	if (end.records != tl->stream_records || end.bytes != tl->stream_bytes) {
		pgr_fail(err, -EPROTO,
			 "the end says %llu records in %llu bytes, %llu in %llu were received",
			 (unsigned long long)end.records, (unsigned long long)end.bytes,
			 (unsigned long long)tl->stream_records,
			 (unsigned long long)tl->stream_bytes);
		return where(err, tl, rec);
	}
	rc = wait_created(t, err);
	pthread_mutex_lock(&t->lock);
	tl->ended = true;
	t->lanes_ended++;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return rc;
}

static int apply_known(struct target_lane *tl, const struct stream_record *rec,
		       struct pgr_error *err)
{
	struct target *t = tl->t;
	char who[160];
	int rc;

	switch (rec->type) {
	case PGR_REC_HELLO:
	case PGR_REC_IDENTITY:
	case PGR_REC_CPU_POLICY:
	case PGR_REC_CONFIG:
	case PGR_REC_DISK:
	case PGR_REC_PARENT:
	case PGR_REC_OPEN:
		return target_opening(t, rec, err);
	case PGR_REC_PAGES:
		return apply_pages(tl, rec, err);
	case PGR_REC_ROUND_END:
		return apply_round_end(tl, rec, err);
	case PGR_REC_VERIFY:
		tl->verifying = true;
		return 0;
	case PGR_REC_PV_INFO:
	case PGR_REC_PV_P2M_FRAMES:
	case PGR_REC_PV_SHARED_INFO:
	case PGR_REC_VCPU_CONTEXT:
	case PGR_REC_VCPU_EXTENDED:
	case PGR_REC_VCPU_XSAVE:
	case PGR_REC_VCPU_MSRS:
	case PGR_REC_TSC_INFO:
	case PGR_REC_DEVICE_STATE:
	case PGR_REC_SIM_STATE:
		rc = wait_created(t, err);
		if (!rc)
			rc = t->sink->ops->state(t->sink, rec->type, rec->body, rec->length, err);
		return rc ? where(err, tl, rec) : 0;
	case PGR_REC_DIGEST:
		pthread_mutex_lock(&t->lock);
		memcpy(&t->digest, rec->body, sizeof(t->digest));
		t->have_digest = true;
		pthread_mutex_unlock(&t->lock);
		return 0;
	case PGR_REC_END:
		return apply_end(tl, rec, err);
	case PGR_REC_COMMIT:
		tl->committed = true;
		pthread_mutex_lock(&t->lock);
		t->have_commit = true;
		pthread_cond_broadcast(&t->changed);
		pthread_mutex_unlock(&t->lock);
		return 0;
	case PGR_REC_DISK_ATTACH:
	case PGR_REC_DISK_DATA:
		pgr_fail(err, -EPROTO, "%s on a connection that is none of a disk",
			 stream_type_name(rec->type));
		return where(err, tl, rec);
	case PGR_REC_ABORT:
		snprintf(who, sizeof(who), "the source %s", tl->channel ? tl->channel->peer : "");
		return session_abort_error(err, who, rec);
	default:
		/* STOP, KEEPALIVE, INDEX, NOTE: nothing to do here. */
		return 0;
	}
}

int target_apply(struct target_lane *tl, const struct stream_record *rec, struct pgr_error *err)
{
	struct iovec body = {.iov_len = rec->length};
	uint64_t bytes = session_record_bytes(&body, 1);
	int rc;

	/* The reader skips optional records that it does not know; END counts them, and the number and place of the next one tell. */
	tl->stream_records = rec->sequence;
	tl->stream_bytes += rec->offset - tl->next_offset;
	rc = apply_known(tl, rec, err);
	tl->stream_records++;
	tl->stream_bytes += bytes;
	tl->next_offset = rec->offset + bytes;
	return rc;
}
