// SPDX-License-Identifier: MIT
/*
 * The order in which changes become durable: the rules at the head of qcow2_image.h.
 *
 *   copies      of all changed entries, and the list of what was released, at one moment
 *   counts      are written; data was, before its entry was changed
 *   flush       now everything that the copies name is there
 *   copies      are written
 *   flush       now nothing durable names what was released before the copies were made
 *   give back
 *
 * Where no entry has changed one flush is all. A failure anywhere leaves everything as changed as it was, to be tried again.
 */
#include <errno.h>
#include <stdlib.h>

#include "storage/qcow2_image.h"

#define RELEASES_MAX 65536u /* then they are worked off before more is released */

/* ---- what is to be given back ---- */

int qcow2_release_room(struct block_qcow2 *q, size_t more, struct pgr_error *err)
{
	struct qcow2_releases *r = &q->w->releases;
	struct qcow2_release *list;
	size_t room = 2 * r->room + more + 16;

	if (r->room - r->nr >= more)
		return 0;
	list = realloc(r->list, room * sizeof(*list));
	if (!list)
		return pgr_fail(
			err, -ENOMEM,
			"%s: no memory to remember what becomes free; the request may be tried again",
			q->b.info.name);
	r->list = list;
	r->room = room;
	return 0;
}

void qcow2_release(struct block_qcow2 *q, uint64_t cluster, uint64_t nr, bool discard)
{
	struct qcow2_releases *r = &q->w->releases;
	struct qcow2_release *last = r->nr ? &r->list[r->nr - 1] : NULL;

	if (!r->list)
		return; /* nobody made room: a leak */
	if (last && last->cluster + last->nr == cluster && last->discard == discard)
		last->nr += nr;
	else
		r->list[r->nr++] =
			(struct qcow2_release){.cluster = cluster, .nr = nr, .discard = discard};
}

static void give_back_all(struct block_qcow2 *q, const struct qcow2_releases *r)
{
	for (size_t i = 0; i < r->nr; i++)
		qcow2_give_back(q, r->list[i].cluster, r->list[i].nr, r->list[i].discard);
}

/* ---- the first table ---- */

void qcow2_l1_changed(struct block_qcow2 *q, uint32_t index)
{
	struct qcow2_writer *w = q->w;

	if (w->l1_from == w->l1_to) {
		w->l1_from = index;
		w->l1_to = index + 1;
	}
	if (index < w->l1_from)
		w->l1_from = index;
	if (index >= w->l1_to)
		w->l1_to = index + 1;
}

/* Everything that a commit writes after its first flush. */
struct copies {
	struct qcow2_batch tables;
	struct qcow2_releases releases;
	void *l1;
	uint32_t l1_from, l1_to; /* whole sectors */
	uint32_t changed_from, changed_to;
};

static int copy_l1(struct block_qcow2 *q, struct copies *c, struct pgr_error *err)
{
	struct qcow2_writer *w = q->w;
	uint32_t unit = qcow2_unit(q) / 8,
		 whole = (uint32_t)(cluster_up(q, q->h.l1_entries * 8ull) / 8);

	if (w->l1_from == w->l1_to)
		return 0;
	c->changed_from = w->l1_from;
	c->changed_to = w->l1_to;
	c->l1_from = w->l1_from / unit * unit;
	c->l1_to = (w->l1_to + unit - 1) / unit * unit;
	if (c->l1_to > whole)
		c->l1_to = whole;
	if (posix_memalign(&c->l1, 4096, (c->l1_to - c->l1_from) * 8ull))
		return pgr_fail(
			err, -ENOMEM,
			"%s: no memory to write its first table; the request may be tried again",
			q->b.info.name);
	memcpy(c->l1, q->l1 + c->l1_from, (c->l1_to - c->l1_from) * 8ull);
	w->l1_from = w->l1_to = 0;
	return 0;
}

static int write_l1(struct block_qcow2 *q, struct copies *c, struct pgr_error *err)
{
	if (!c->l1)
		return 0;
	return block_write(q->file, q->h.l1_offset + c->l1_from * 8ull, c->l1,
			   (c->l1_to - c->l1_from) * 8ull, 0, err);
}

/* ---- a commit ---- */

static int make_copies(struct block_qcow2 *q, struct copies *c, struct pgr_error *err)
{
	int ret = copy_l1(q, c, err);

	if (!ret)
		ret = qcow2_cache_collect(q->tables, &c->tables, err);
	if (ret)
		return ret;
	c->releases = q->w->releases;
	q->w->releases = (struct qcow2_releases){.list = NULL};
	return 0;
}

static void undo_copies(struct block_qcow2 *q, struct copies *c)
{
	struct qcow2_releases *now = &q->w->releases;

	qcow2_batch_undo(&c->tables);
	if (c->l1) {
		qcow2_l1_changed(q, c->changed_from);
		qcow2_l1_changed(q, c->changed_to - 1);
	}
	/* Those of now are released later than those: all of them by the next commit. */
	if (!now->nr) {
		free(now->list);
		*now = c->releases;
	} else if (!qcow2_release_room(q, c->releases.nr, NULL)) {
		for (size_t i = 0; i < c->releases.nr; i++)
			now->list[now->nr++] = c->releases.list[i];
		free(c->releases.list);
	} else {
		free(c->releases.list); /* no memory: a leak in the image, which a check finds */
	}
	c->releases = (struct qcow2_releases){.list = NULL};
}

static int write_counts(struct block_qcow2 *q, struct pgr_error *err)
{
	struct qcow2_batch batch;
	int ret = qcow2_cache_collect(q->w->counts, &batch, err);

	return ret ? ret : qcow2_batch_write(&batch, err);
}

static int commit(struct block_qcow2 *q, struct pgr_error *err)
{
	struct copies c = {.l1 = NULL};
	bool entries;
	int ret = make_copies(q, &c, err);

	entries = c.l1 || c.tables.nr;
	if (!ret && q->w->first_stale)
		ret = qcow2_header_write(q, err);
	if (!ret)
		ret = write_counts(q, err);
	if (!ret)
		ret = block_flush(q->file, err);
	if (!ret && entries) {
		ret = qcow2_batch_write(&c.tables, err);
		if (!ret)
			ret = write_l1(q, &c, err);
		if (!ret)
			ret = block_flush(q->file, err);
	}
	if (ret)
		undo_copies(q, &c);
	else
		give_back_all(q, &c.releases);
	free(c.releases.list);
	free(c.l1);
	return ret;
}

/* One after the other; who finds that one has begun since it came, and succeeded, need not do it again. */
int qcow2_image_flush(struct block *b, struct pgr_error *err)
{
	struct block_qcow2 *q = to_qcow2(b);
	struct qcow2_writer *w = q->w;
	uint64_t came = w->begun, mine;
	int ret = 0;

	fiber_lock(&w->commit_lock, b->loop);
	if (w->good <= came) {
		mine = ++w->begun;
		ret = qcow2_check_whole(q, err);
		if (!ret)
			ret = commit(q, err);
		if (!ret)
			w->good = mine;
	}
	fiber_unlock(&w->commit_lock);
	return ret;
}

int qcow2_relieve(struct block_qcow2 *q, struct pgr_error *err)
{
	int ret = qcow2_check_whole(q, err);

	if (!ret && (qcow2_cache_pool_changed(q->tables) >= CACHE_CHANGED_MAX ||
		     q->w->releases.nr >= RELEASES_MAX))
		ret = qcow2_image_flush(&q->b, err);
	return ret;
}

void qcow2_write_counts(struct block_qcow2 *q)
{
	if (!q->w->broken && qcow2_cache_changed(q->w->counts))
		write_counts(q, NULL);
}
