/* SPDX-License-Identifier: MIT */
/*
 * A round: every page of `todo` is read, encoded and put on its lane. Stripe number n belongs to lane n modulo the number of lanes, so a
 * pfn always travels on the same channel and each worker needs nobody's leave: its encoder, its cache, its part of the ledger are its own.
 */
#include "migrate/source_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

size_t source_words(const struct source *s)
{
	return (s->d.info.nr_pfns + 63) / 64;
}

uint64_t source_count(const uint64_t *bitmap, uint64_t bits)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < (bits + 63) / 64; i++)
		sum += (uint64_t)__builtin_popcountll(bitmap[i]);
	return sum;
}

static int note_index(struct source_lane *sl, uint64_t offset, const uint64_t *pfn, unsigned nr,
		      struct pgr_error *err)
{
	if (sl->index_nr == sl->index_capacity) {
		uint64_t n = sl->index_capacity ? sl->index_capacity * 2 : 1024;
		void *p = realloc(sl->index, n * sizeof(*sl->index));

		if (!p)
			return pgr_fail(err, -ENOMEM, "no memory for the file's index");
		sl->index = p;
		sl->index_capacity = n;
	}
	sl->index[sl->index_nr++] = (struct pgr_index_entry){
		.offset = offset, .first_pfn = pfn[0], .last_pfn = pfn[nr - 1], .nr_pages = nr};
	return 0;
}

/* One record of these pages. */
static int send_record(struct source_lane *sl, const uint64_t *pfn, const struct guest_batch *b,
		       bool first_time, struct pgr_error *err)
{
	struct source *s = sl->s;
	uint32_t crc[PGR_BATCH_MAX];
	struct encoded e;
	struct iovec part;
	uint64_t offset;
	void *body;
	int rc;

	rc = lane_reserve(&sl->lane, PGR_REC_PAGES, encoder_room(sl->encoder, b->nr), &body, err);
	if (rc)
		return rc;
	offset = sl->lane.writer.bytes;
	rc = encoder_pages(sl->encoder, s->round, pfn, b->page, b->type, b->nr, first_time, crc,
			   body, &e, err);
	if (rc) {
		lane_drop(&sl->lane);
		return rc;
	}
	rc = lane_commit(&sl->lane, PGR_REC_PAGES, e.length, e.crc, err);
	if (!rc && s->file)
		rc = note_index(sl, offset, pfn, b->nr, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < b->nr; i++) {
		if (b->page[i])
			ledger_set(&s->ledger, &sl->sum, pfn[i], crc[i]);
		else
			ledger_absent(&s->ledger, &sl->sum, pfn[i]);
	}
	part.iov_len = e.length;
	sl->round_pages += b->nr;
	sl->round_bytes += session_record_bytes(&part, 1);
	return 0;
}

static int send_batch(struct source_lane *sl, const uint64_t *pfn, unsigned nr, bool verify,
		      struct pgr_error *err)
{
	struct source *s = sl->s;
	struct guest_batch b;
	int rc;

	rc = s->g->ops->read(s->g, sl->lane.index, pfn, nr, &b, err);
	if (rc)
		return rc;
	rc = send_record(sl, pfn, &b, s->round == 0 || verify, err);
	s->g->ops->release(s->g, sl->lane.index, &b);
	if (rc)
		return rc;
	atomic_fetch_add_explicit(&s->pages_done, nr, memory_order_relaxed);
	pthread_mutex_lock(&s->lock);
	encoder_stats(sl->encoder, &sl->stats);
	rc = s->failed;
	if (rc)
		*err = s->error;
	pthread_mutex_unlock(&s->lock);
	return rc;
}

static int send_share(struct source_lane *sl, bool verify, struct pgr_error *err)
{
	struct source *s = sl->s;
	uint64_t pfn[PGR_BATCH_MAX];
	struct pgr_round_end end = {.round = s->round};
	unsigned nr = 0;
	int rc = 0;

	sl->round_pages = 0;
	sl->round_bytes = 0;
	if (verify) {
		encoder_forget_all(sl->encoder);
		rc = lane_append(&sl->lane, PGR_REC_VERIFY, NULL, 0, err);
	}
	for (uint64_t first = (uint64_t)sl->lane.index * SOURCE_STRIPE;
	     !rc && first < s->d.info.nr_pfns; first += (uint64_t)s->nr * SOURCE_STRIPE) {
		for (uint64_t w = first / 64;
		     !rc && w < (first + SOURCE_STRIPE) / 64 && w < source_words(s); w++) {
			uint64_t bits = s->todo[w];

			for (; !rc && bits; bits &= bits - 1) {
				pfn[nr++] = w * 64 + (unsigned)__builtin_ctzll(bits);
				if (nr == s->batch) {
					rc = send_batch(sl, pfn, nr, verify, err);
					nr = 0;
				}
			}
		}
	}
	if (!rc && nr)
		rc = send_batch(sl, pfn, nr, verify, err);
	end.pages = sl->round_pages;
	end.bytes = sl->round_bytes;
	if (!rc)
		rc = lane_append_body(&sl->lane, PGR_REC_ROUND_END, &end, sizeof(end), err);
	return rc;
}

static void *worker_main(void *arg)
{
	struct source_lane *sl = arg;
	struct source *s = sl->s;
	unsigned seen = 0;

	for (;;) {
		struct pgr_error err = PGR_ERROR_NONE;
		enum source_work work;

		pthread_mutex_lock(&s->lock);
		while (s->work_number == seen)
			pthread_cond_wait(&s->changed, &s->lock);
		seen = s->work_number;
		work = s->work;
		pthread_mutex_unlock(&s->lock);
		if (work == WORK_QUIT)
			return NULL;
		if (send_share(sl, work == WORK_VERIFY, &err))
			source_fail(s, &err);
		pthread_mutex_lock(&s->lock);
		s->busy--;
		pthread_cond_broadcast(&s->changed);
		pthread_mutex_unlock(&s->lock);
	}
}

static void give_work(struct source *s, enum source_work work)
{
	pthread_mutex_lock(&s->lock);
	s->work = work;
	s->work_number++;
	s->busy = s->nr;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

int source_workers_start(struct source *s, struct pgr_error *err)
{
	for (unsigned i = 0; i < s->nr; i++) {
		int rc = -pthread_create(&s->lanes[i].worker, NULL, worker_main, &s->lanes[i]);

		if (rc)
			return pgr_fail_errno(err, rc, "cannot start the worker of channel %u", i);
		s->lanes[i].worker_running = true;
	}
	return 0;
}

void source_workers_stop(struct source *s)
{
	for (unsigned i = 0; i < s->nr; i++)
		lane_cancel(&s->lanes[i].lane);
	give_work(s, WORK_QUIT);
	for (unsigned i = 0; i < s->nr; i++) {
		if (s->lanes[i].worker_running)
			pthread_join(s->lanes[i].worker, NULL);
		s->lanes[i].worker_running = false;
	}
}

static bool round_done(struct source *s)
{
	if (s->busy)
		return false;
	for (unsigned i = 0; i < s->nr; i++)
		if (!lane_drained(&s->lanes[i].lane))
			return false;
	return true;
}

int source_copy_round(struct source *s, enum source_work work, struct policy_round *r,
		      struct pgr_error *err)
{
	uint64_t begin = session_now_ns(), bytes = 0;
	int rc;

	pthread_mutex_lock(&s->reporter.lock);
	s->reporter.progress.round = s->round;
	s->reporter.progress.pages_total = source_count(s->todo, s->d.info.nr_pfns);
	atomic_store(&s->pages_done, 0);
	pthread_mutex_unlock(&s->reporter.lock);
	for (unsigned i = 0; i < s->nr; i++)
		bytes -= s->lanes[i].lane.writer.bytes;
	give_work(s, work);
	rc = source_wait(s, round_done, 0, err);
	/* After a failure the workers may still be writing. */
	for (unsigned i = 0; !rc && i < s->nr; i++)
		bytes += s->lanes[i].lane.writer.bytes;
	memset(r, 0, sizeof(*r));
	r->pages = atomic_load(&s->pages_done);
	r->bytes = rc ? 0 : bytes;
	r->duration_ns = session_now_ns() - begin;
	r->speed = s->speed;
	if (!rc)
		s->round++;
	return rc;
}
