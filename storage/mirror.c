// SPDX-License-Identifier: MIT
#include "storage/mirror.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "storage/block_driver.h"
#include "storage/dirty.h"

#define COPIERS	   4u
#define CHUNK	   (1u << 20) /* what a copier takes at once */
#define FEW	   (4u << 20) /* left over: no further round is worth it */
#define ROUNDS_MAX 16u
#define NS	   UINT64_C(1000000000)
#define NAP_NS	   (NS / 10)

struct mirror {
	struct block b;
	struct block *source, *destination; /* destination NULL: no mirror any more */
	struct mirror_options o;
	enum mirror_phase phase;
	struct pgr_error why;
	struct dirty *dirty;
	struct range_locks ranges;
	unsigned source_only; /* writes under way that will set bits */
	/* The copiers. */
	unsigned copiers, copying;
	bool stop;
	uint64_t cursor, left_before, copied, next_ns;
	unsigned rounds;
	struct wait_queue work;	   /* those with nothing to do */
	struct wait_queue changed; /* for another phase, or fewer copiers */
};

static struct mirror *to_mirror(struct block *b)
{
	return (struct mirror *)b;
}

/* ---- phases ---- */

static void enter_phase(struct mirror *m, enum mirror_phase phase)
{
	m->phase = phase;
	wait_queue_wake_all(&m->changed);
}

static void fail(struct mirror *m, const struct pgr_error *err)
{
	if (m->phase == MIRROR_FAILED)
		return;
	m->why = *err;
	enter_phase(m, MIRROR_FAILED);
	wait_queue_wake_all(&m->work);
}

static bool nothing_left(const struct mirror *m)
{
	return !m->copying && !m->source_only && !dirty_bytes(m->dirty);
}

/* After whatever may have changed what nothing_left() says. */
static void look(struct mirror *m)
{
	if (m->phase == MIRROR_THROUGH && nothing_left(m))
		enter_phase(m, MIRROR_EQUAL);
	else if (m->phase == MIRROR_EQUAL && !nothing_left(m))
		enter_phase(m, MIRROR_THROUGH);
	if (dirty_bytes(m->dirty))
		wait_queue_wake_all(&m->work);
}

static void set_dirty(struct mirror *m, uint64_t offset, uint64_t length)
{
	dirty_set(m->dirty, offset, length);
	look(m);
}

/* Whether another round would not get far: a round leaves what was written while it lasted. */
static bool rounds_are_over(unsigned rounds, uint64_t left, uint64_t left_before)
{
	return left <= FEW || left > left_before / 2 || rounds >= ROUNDS_MAX;
}

static void end_round(struct mirror *m)
{
	uint64_t left = dirty_bytes(m->dirty);

	m->rounds++;
	m->cursor = 0;
	if (m->phase == MIRROR_COPY && rounds_are_over(m->rounds, left, m->left_before))
		enter_phase(m, MIRROR_THROUGH);
	m->left_before = left;
}

/* ---- copying ---- */

static bool is_over(const struct mirror *m)
{
	return m->stop || m->phase == MIRROR_FAILED;
}

/* Wait for the turn of `length` more bytes. */
static void keep_rate(struct mirror *m, uint64_t length)
{
	uint64_t now = loop_now_ns(), turn;

	if (!m->o.rate)
		return;
	turn = m->next_ns > now ? m->next_ns : now;
	m->next_ns = turn + (uint64_t)((double)length / (double)m->o.rate * (double)NS);
	while (!is_over(m) && (now = loop_now_ns()) < turn)
		fiber_sleep_until(m->b.loop, turn - now < NAP_NS ? turn : now + NAP_NS);
}

static int copy_extent(struct mirror *m, uint64_t at, const struct block_extent *e, bool first,
		       uint8_t *buffer, struct pgr_error *err)
{
	int ret;

	if (e->flags & BLOCK_EXTENT_ZERO)
		return first && m->o.zeroed
			       ? 0
			       : block_zero(m->destination, at, e->length, BLOCK_UNMAP, err);
	ret = block_read(m->source, at, buffer, e->length, err);
	return ret ? ret : block_write(m->destination, at, buffer, e->length, 0, err);
}

static int copy_chunk(struct mirror *m, uint64_t at, uint64_t length, bool first, uint8_t *buffer,
		      struct pgr_error *err)
{
	uint64_t end = at + length;
	struct block_extent e;
	struct range_lock k;
	int ret = 0;

	range_lock(&m->ranges, &k, m->b.loop, at, end, true);
	for (; at < end && !ret; at += e.length) {
		ret = block_status(m->source, at, end - at, &e, err);
		if (!ret)
			ret = copy_extent(m, at, &e, first, buffer, err);
	}
	range_unlock(&m->ranges, &k);
	m->copied += length;
	return ret;
}

/* The next chunk to copy; its bits are cleared. False: there is none. */
static bool take(struct mirror *m, uint64_t *at, uint64_t *length)
{
	if (dirty_take(m->dirty, m->cursor, CHUNK, at, length))
		return true;
	/* Nobody goes round and round in what the others are at. */
	if (m->cursor || m->phase == MIRROR_COPY)
		end_round(m);
	return dirty_take(m->dirty, 0, CHUNK, at, length);
}

static void copier(void *ctx)
{
	struct mirror *m = ctx;
	uint8_t *buffer = block_memory(CHUNK);
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = buffer ? 0 : pgr_fail(&err, -ENOMEM, "%s: no memory to copy", m->b.info.name);
	uint64_t at, length;

	while (!ret && !is_over(m)) {
		bool first = !m->rounds;

		if (!take(m, &at, &length)) {
			look(m);
			wait_queue_join(&m->work, m->b.loop);
			continue;
		}
		m->cursor = at + length;
		m->copying++;
		keep_rate(m, length);
		ret = copy_chunk(m, at, length, first && !m->rounds, buffer, &err);
		m->copying--;
		look(m);
	}
	if (ret)
		fail(m, &err);
	free(buffer);
	m->copiers--;
	wait_queue_wake_all(&m->changed);
}

static void stop_copiers(struct mirror *m)
{
	m->stop = true;
	wait_queue_wake_all(&m->work);
	while (m->copiers)
		wait_queue_join(&m->changed, m->b.loop);
}

/* ---- changes by users ---- */

struct change {
	uint64_t offset, length;
	struct block_data from; /* iov NULL: zeros */
	uint32_t flags;
};

static int apply(struct block *b, const struct change *c, struct pgr_error *err)
{
	if (!c->from.iov)
		return block_zero(b, c->offset, c->length, c->flags, err);
	return block_write_data(b, c->offset, c->length, c->from, c->flags, err);
}

static bool goes_to_both(const struct mirror *m)
{
	return m->phase == MIRROR_THROUGH || m->phase == MIRROR_EQUAL;
}

/* The destination's half of a change, beside the source's. */
struct half {
	struct block *b;
	const struct change *c;
	struct wait wait;
	struct pgr_error err;
};

static void run_half(void *ctx)
{
	struct half *h = ctx;

	h->err.code = apply(h->b, h->c, &h->err);
	wait_end(&h->wait);
}

static int apply_to_both(struct mirror *m, const struct change *c, struct pgr_error *err)
{
	struct change other = *c;
	struct half h = {.b = m->destination, .c = &other};
	int ret;

	other.flags &= ~BLOCK_FUA;
	wait_begin(&h.wait, m->b.loop);
	if (fiber_start(m->b.loop, run_half, &h))
		run_half(&h);
	ret = apply(m->source, c, err);
	wait_for(&h.wait);
	if (h.err.code)
		fail(m, &h.err);
	else if (ret)
		set_dirty(m, c->offset, c->length);
	return ret;
}

/* A piece of a change, small enough for a buffer. The caller holds its range. */
static int change_both(struct mirror *m, struct change c, struct pgr_error *err)
{
	struct iovec iov = {.iov_len = c.length};
	int ret;

	if (!c.from.iov)
		return apply_to_both(m, &c, err);
	iov.iov_base = block_bounce_get(&m->b, c.length);
	if (!iov.iov_base)
		return pgr_fail(err, -ENOMEM, "%s: no memory for a buffer", m->b.info.name);
	block_data_copy_out(c.from, iov.iov_base, c.length);
	c.from = (struct block_data){.iov = &iov, .nr = 1};
	ret = apply_to_both(m, &c, err);
	block_bounce_put(&m->b, iov.iov_base, c.length);
	return ret;
}

static int change_source(struct mirror *m, const struct change *c, struct pgr_error *err)
{
	int ret;

	m->source_only++;
	ret = apply(m->source, c, err);
	m->source_only--;
	if (m->destination)
		set_dirty(m, c->offset, c->length);
	return ret;
}

static int change(struct mirror *m, struct change c, struct pgr_error *err)
{
	uint64_t left = c.length;
	struct range_lock k;
	int ret = 0;

	if (!goes_to_both(m))
		return change_source(m, &c, err);
	range_lock(&m->ranges, &k, m->b.loop, c.offset, c.offset + c.length, true);
	while (left && !ret) {
		c.length = c.from.iov && left > BLOCK_PIECE ? BLOCK_PIECE : left;
		/* Waiting for the range, or for the piece before, it may have failed. */
		ret = goes_to_both(m) ? change_both(m, c, err) : change_source(m, &c, err);
		left -= c.length;
		c.offset += c.length;
		if (c.from.iov)
			c.from = block_data_skip(c.from, c.length);
	}
	range_unlock(&m->ranges, &k);
	return ret;
}

static int mirror_write(struct block *b, uint64_t offset, uint64_t length, struct block_data from,
			uint32_t flags, struct pgr_error *err)
{
	return change(to_mirror(b), (struct change){offset, length, from, flags}, err);
}

static int mirror_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
		       struct pgr_error *err)
{
	/* Whether it is quick is the source's to say, before anything is done. */
	if (flags & BLOCK_FAST && goes_to_both(to_mirror(b)))
		return pgr_fail(err, -EOPNOTSUPP, "%s: zeros go to two disks", b->info.name);
	return change(to_mirror(b), (struct change){offset, length, {.iov = NULL}, flags}, err);
}

static int mirror_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err)
{
	struct mirror *m = to_mirror(b);
	int ret;

	if (goes_to_both(m))
		return 0;
	m->source_only++;
	ret = block_discard(m->source, offset, length, err);
	m->source_only--;
	if (m->destination)
		set_dirty(m, offset, length);
	return ret;
}

/* ---- the rest is the source's ---- */

static int mirror_read(struct block *b, uint64_t offset, uint64_t length, struct block_data to,
		       struct pgr_error *err)
{
	return block_read_data(to_mirror(b)->source, offset, length, to, err);
}

static int mirror_flush(struct block *b, struct pgr_error *err)
{
	struct mirror *m = to_mirror(b);

	/* Unwrapped, it is closed without a source. */
	return m->source ? block_flush(m->source, err) : 0;
}

static int mirror_block_status(struct block *b, uint64_t offset, uint64_t length,
			       struct block_extent *out, struct pgr_error *err)
{
	return block_status(to_mirror(b)->source, offset, length, out, err);
}

static int mirror_close(struct block *b, struct pgr_error *err)
{
	struct mirror *m = to_mirror(b);

	stop_copiers(m);
	block_close(m->destination, NULL);
	dirty_free(m->dirty);
	return m->source ? block_close(m->source, err) : 0;
}

static const struct block_ops mirror_ops = {
	.read = mirror_read,
	.write = mirror_write,
	.discard = mirror_discard,
	.zero = mirror_zero,
	.flush = mirror_flush,
	.status = mirror_block_status,
	.close = mirror_close,
};

/* ---- beginning and end ---- */

static int check(const struct block *source, const struct block *destination, struct pgr_error *err)
{
	const struct block_info *from = block_info(source), *to = block_info(destination);

	if (source->loop != destination->loop)
		return pgr_fail(err, -EINVAL, "%s and %s belong to two event loops", from->name,
				to->name);
	if (to->read_only)
		return pgr_fail(err, -EROFS, "%s: opened for reading only", to->name);
	if (to->size < from->size)
		return pgr_fail(err, -EINVAL, "%s: has %llu bytes, and %s has %llu", to->name,
				(unsigned long long)to->size, from->name,
				(unsigned long long)from->size);
	return 0;
}

static void take_over_info(struct mirror *m)
{
	m->b.info = *block_info(m->source);
	m->b.info.driver = "mirror";
	m->b.info.can_snapshot = false;
}

int mirror_open(struct block *source, struct block *destination, const struct mirror_options *o,
		struct block **out, struct pgr_error *err)
{
	struct mirror *m;
	int ret = check(source, destination, err);

	if (ret)
		return ret;
	m = calloc(1, sizeof(*m));
	if (!m)
		return pgr_fail(err, -ENOMEM, "%s: no memory for a mirror", source->info.name);
	block_init(&m->b, source->loop, &mirror_ops, NULL);
	m->b.max_requests = source->max_requests;
	m->b.fua = true;
	m->source = source;
	m->destination = destination;
	if (o)
		m->o = *o;
	take_over_info(m);
	ret = dirty_create(m->b.info.size, DIRTY_GRANULARITY, &m->dirty, err);
	if (ret) {
		free(m);
		return ret;
	}
	dirty_set(m->dirty, 0, m->b.info.size);
	m->left_before = m->b.info.size;
	for (unsigned i = 0; i < COPIERS; i++) {
		m->copiers++;
		if (fiber_start(source->loop, copier, m))
			m->copiers--;
	}
	if (!m->copiers) {
		dirty_free(m->dirty);
		free(m);
		return pgr_fail(err, -ENOMEM, "%s: no memory for a mirror", source->info.name);
	}
	*out = &m->b;
	return 0;
}

void mirror_status(const struct block *b, struct mirror_status *out)
{
	const struct mirror *m = (const struct mirror *)b;

	*out = (struct mirror_status){.phase = m->phase,
				      .size = m->b.info.size,
				      .left = dirty_bytes(m->dirty),
				      .copied = m->copied,
				      .rounds = m->rounds,
				      .why = m->why};
}

int mirror_wait(struct block *b, struct pgr_error *err)
{
	struct mirror *m = to_mirror(b);

	while (m->phase != MIRROR_EQUAL && m->phase != MIRROR_FAILED)
		wait_queue_join(&m->changed, b->loop);
	if (m->phase == MIRROR_EQUAL)
		return 0;
	if (err)
		*err = m->why;
	return m->why.code;
}

/* Hold the disk's requests at a moment at which both disks are equal. */
static int hold_equal(struct mirror *m, struct pgr_error *err)
{
	int ret;

	for (;;) {
		ret = mirror_wait(&m->b, err);
		block_quiesce(&m->b);
		if (ret || m->phase == MIRROR_EQUAL)
			return ret;
		block_resume(&m->b);
	}
}

int mirror_finish(struct block *b, enum mirror_end end, struct pgr_error *err)
{
	struct mirror *m = to_mirror(b);
	struct block *leave = m->destination;
	int ret = hold_equal(m, err), ret2;

	stop_copiers(m);
	if (!ret)
		ret = block_flush(m->destination, err);
	if (!ret && end == MIRROR_MOVE) {
		leave = m->source;
		m->source = m->destination;
		take_over_info(m);
	}
	m->destination = NULL;
	/* There is no mirror: nothing is copied, nothing goes to both. */
	if (!ret)
		pgr_fail(&m->why, -ENOTCONN, "%s: its mirror has ended", m->b.info.name);
	else if (m->phase != MIRROR_FAILED && err)
		m->why = *err;
	enter_phase(m, MIRROR_FAILED);
	ret2 = block_close(leave, ret ? NULL : err);
	block_resume(b);
	return ret ? ret : ret2;
}

void mirror_cancel(struct block *b)
{
	struct pgr_error err;

	pgr_fail(&err, -ECANCELED, "%s: its mirror was cancelled", b->info.name);
	fail(to_mirror(b), &err);
	mirror_finish(b, MIRROR_STAY, NULL);
}

struct block *mirror_unwrap(struct block *b)
{
	struct block *source = to_mirror(b)->source;

	to_mirror(b)->source = NULL;
	block_close(b, NULL);
	return source;
}
