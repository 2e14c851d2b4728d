// SPDX-License-Identifier: MIT
/*
 * Where a request is:
 *
 *   in its ring   not taken: while as many are under way as may be, or others wait
 *   waiting       taken (and in the journal), in one list for all queues, first come, first served; for a buffer, or behind a barrier
 *   active        with the block layer
 *   full          the storage had no room for it; still active, tried again by a timer
 *   answered      by the journal, in the ring; shown to the guest by publish(), once for all that came in one turn of the loop
 *
 * A guest that asks for more as fast as it is answered, with requests that make no sense, would keep the loop's thread for ever: after as many as its ring
 * holds, the next are taken when the loop has looked after everything else (rest()).
 *
 * A barrier goes on when it is the first that waits and nothing is active: a flush, then its data with BLOCK_FUA. Until it is done, nothing that
 * waits behind it begins.
 */
#include "storage/pv_disk.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/pv_grants.h"

#define NS_PER_SECOND 1000000000ull

struct io {
	struct block_request block;
	struct pv_disk *disk;
	struct io *next;
	unsigned queue, slot;
	struct pv_request request;
	struct pv_segment
		*segments; /* request.nr_segments; the pieces for the block layer behind them */
	struct iovec *iov;
	uint8_t *buffer;  /* NULL: the pages are mapped, and in use */
	bool may_be_kept; /* its pages may stay mapped; false after that was tried */
	bool flushed;	  /* a barrier's first half is over */
};

struct io_list {
	struct io *first, *last;
};

struct queue {
	struct pv_ring ring;
	void *pages;
	uint32_t port;
	bool stalled; /* there may be requests that nobody looks for */
	bool dirty;   /* answers that the guest cannot see yet */
};

struct pv_disk {
	struct loop *loop;
	struct block *block;
	const struct pv_guest_ops *ops;
	void *guest;
	struct pv_journal *journal;
	const struct pv_disk_user *user;
	void *user_ctx;
	struct pv_limits limits;
	struct pv_connection at;
	struct pv_grants *grants; /* NULL: nothing stays mapped */
	struct queue queue[PV_QUEUES_MAX];
	bool connected, closing, broken, releasing;
	bool resting; /* nothing is taken until `rest` has run */
	unsigned running, active, nr_full;
	struct io_list waiting, full;
	struct io *barrier;
	size_t buffered;
	struct loop_task publish, rest;
	struct loop_timer again;
	uint64_t said_at;
	struct pv_segment scratch[PV_SEGMENTS_MAX];
};

static void list_add(struct io_list *list, struct io *io)
{
	io->next = NULL;
	if (list->first)
		list->last->next = io;
	else
		list->first = io;
	list->last = io;
}

static struct io *list_take(struct io_list *list)
{
	struct io *io = list->first;

	if (io)
		list->first = io->next;
	return io;
}

static void say(struct pv_disk *d, const char *text)
{
	uint64_t now = loop_now_ns();

	if (d->said_at && now - d->said_at < NS_PER_SECOND)
		return;
	d->said_at = now;
	d->user->say(d->user_ctx, text);
}

/* ---- answers ---- */

static void answer(struct pv_disk *d, unsigned queue, unsigned slot, const struct pv_request *r,
		   int result)
{
	struct queue *q = &d->queue[queue];

	if (result)
		pv_journal_counters(d->journal)->errors++;
	pv_journal_answer(d->journal, queue, slot, &q->ring, r->operation,
			  pv_request_status(result));
	q->dirty = true;
	loop_defer(d->loop, &d->publish);
}

static void count(struct pv_disk *d, const struct pv_request *r)
{
	struct pv_counters *c = pv_journal_counters(d->journal);

	switch (r->op) {
	case PV_READ:
		c->rd_req++;
		c->rd_sect += r->length / BLOCK_SECTOR;
		break;
	case PV_WRITE:
	case PV_BARRIER:
		c->wr_req++;
		c->wr_sect += r->length / BLOCK_SECTOR;
		break;
	case PV_FLUSH:
		c->f_req++;
		break;
	case PV_DISCARD:
		c->ds_req++;
		break;
	}
}

static void release_data(struct io *io)
{
	struct pv_disk *d = io->disk;

	if (io->buffer) {
		d->buffered -= io->request.length;
		free(io->buffer);
	} else if (io->iov) {
		for (unsigned i = 0; i < io->request.nr_segments; i++)
			pv_grants_put(d->grants, io->segments[i].ref);
	}
	io->buffer = NULL;
	io->iov = NULL;
}

static void finish(struct io *io, int result)
{
	struct pv_disk *d = io->disk;

	release_data(io);
	if (!result)
		count(d, &io->request);
	answer(d, io->queue, io->slot, &io->request, result);
	if (d->barrier == io)
		d->barrier = NULL;
	d->active--;
	d->running--;
	free(io->segments);
	free(io);
}

/* ---- data ---- */

static int copy_data(struct io *io, bool to_guest)
{
	struct pv_copy copies[PV_SEGMENTS_MAX];
	uint8_t *at = io->buffer;

	for (unsigned i = 0; i < io->request.nr_segments; i++) {
		const struct pv_segment *s = &io->segments[i];

		copies[i] = (struct pv_copy){
			.ref = s->ref, .offset = s->offset, .length = s->length, .data = at};
		at += s->length;
	}
	return io->disk->ops->copy(io->disk->guest, to_guest, copies, io->request.nr_segments);
}

/* Where the pieces go, behind the segments. */
static struct iovec *pieces_of(struct io *io)
{
	return (struct iovec *)(io->segments + io->request.nr_segments);
}

/* All pages of it, mapped and in use; false: not all of them can be. */
static bool map_data(struct io *io)
{
	struct pv_grants *g = io->disk->grants;
	struct iovec *iov = pieces_of(io);

	if (!g || !io->may_be_kept)
		return false;
	io->may_be_kept = false;
	for (unsigned i = 0; i < io->request.nr_segments; i++) {
		const struct pv_segment *s = &io->segments[i];
		uint8_t *page = pv_grants_get(g, s->ref);

		if (!page) {
			while (i-- > 0)
				pv_grants_put(g, io->segments[i].ref);
			return false;
		}
		iov[i] = (struct iovec){.iov_base = page + s->offset, .iov_len = s->length};
	}
	io->iov = iov;
	io->block.nr_iov = io->request.nr_segments;
	return true;
}

static bool has_room(const struct pv_disk *d, uint64_t length)
{
	return !d->buffered || d->buffered + length <= PV_BUFFERS_MAX;
}

/* A buffer, with what is to be written in it. */
static int buffer_data(struct io *io)
{
	struct pv_disk *d = io->disk;
	void *buffer;

	if (posix_memalign(&buffer, PV_PAGE, io->request.length))
		return -ENOMEM;
	io->buffer = buffer;
	d->buffered += io->request.length;
	io->iov = pieces_of(io);
	io->iov[0] = (struct iovec){.iov_base = buffer, .iov_len = io->request.length};
	io->block.nr_iov = 1;
	return io->request.op == PV_READ ? 0 : copy_data(io, false);
}

/* ---- with the block layer ---- */

static void submit(struct io *io);

static bool is_full(int code)
{
	return code == -ENOSPC || code == -EDQUOT;
}

static void on_done(struct block_request *b, const struct pgr_error *err)
{
	struct io *io = (struct io *)((char *)b - offsetof(struct io, block));
	struct pv_disk *d = io->disk;
	int result = err ? err->code : 0;

	if (err)
		say(d, err->text);
	if (is_full(result) && !d->closing) {
		list_add(&d->full, io);
		d->nr_full++;
		loop_defer(d->loop, &d->publish);
		if (!d->again.link && !d->releasing)
			loop_arm(d->loop, &d->again, loop_now_ns() + NS_PER_SECOND);
		return;
	}
	if (!result && io->request.op == PV_BARRIER && !io->flushed) {
		io->flushed = true;
		if (io->request.nr_segments) {
			submit(io);
			return;
		}
	}
	if (!result && io->buffer && io->request.op == PV_READ)
		result = copy_data(io, true);
	finish(io, result);
}

static void submit(struct io *io)
{
	static const enum block_op ops[] = {[PV_READ] = BLOCK_READ,
					    [PV_WRITE] = BLOCK_WRITE,
					    [PV_BARRIER] = BLOCK_WRITE,
					    [PV_FLUSH] = BLOCK_FLUSH,
					    [PV_DISCARD] = BLOCK_DISCARD};
	const struct pv_request *r = &io->request;
	struct block_request *b = &io->block;

	b->op = r->op == PV_BARRIER && !io->flushed ? BLOCK_FLUSH : ops[r->op];
	b->flags = r->op == PV_BARRIER && io->flushed ? BLOCK_FUA : 0;
	b->offset = r->offset;
	b->length = r->length;
	b->iov = io->iov;
	b->done = on_done;
	block_submit(io->disk->block, b);
}

static void on_again(struct loop_timer *t)
{
	struct pv_disk *d = (struct pv_disk *)((char *)t - offsetof(struct pv_disk, again));
	struct io_list list = d->full;
	struct io *io;

	d->full = (struct io_list){NULL, NULL};
	d->nr_full = 0;
	while ((io = list_take(&list)))
		submit(io);
}

/* ---- from taken to active ---- */

/* Begin with the first that waits; false: it has to wait longer. */
static bool run_first(struct pv_disk *d)
{
	struct io *io = d->waiting.first;
	int ret = 0;

	if (!io || d->releasing || d->barrier || (io->request.op == PV_BARRIER && d->active))
		return false;
	if (io->request.nr_segments && !map_data(io)) {
		if (!has_room(d, io->request.length))
			return false;
		ret = buffer_data(io);
	}
	list_take(&d->waiting);
	d->active++;
	if (io->request.op == PV_BARRIER)
		d->barrier = io;
	if (ret)
		finish(io, ret);
	else
		submit(io);
	return true;
}

static int fetch_segments(struct pv_disk *d, struct pv_request *r)
{
	uint8_t wire[PV_SEGMENTS_MAX * PV_SEGMENT_WIRE];
	struct pv_copy copy = {.ref = r->indirect_ref,
			       .length = (uint16_t)(r->nr_segments * PV_SEGMENT_WIRE),
			       .data = wire};
	int ret = d->ops->copy(d->guest, false, &copy, 1);

	return ret ? ret : pv_request_segments(r, wire, &d->limits, d->scratch);
}

static struct io *io_new(struct pv_disk *d, const struct pv_request *r)
{
	struct io *io = calloc(1, sizeof(*io));

	if (!io)
		return NULL;
	io->disk = d;
	io->request = *r;
	io->may_be_kept = true;
	if (!r->nr_segments)
		return io;
	io->segments = malloc(r->nr_segments * (sizeof(io->segments[0]) + sizeof(io->iov[0])));
	if (!io->segments) {
		free(io);
		return NULL;
	}
	memcpy(io->segments, d->scratch, r->nr_segments * sizeof(io->segments[0]));
	return io;
}

/* A request that was taken. */
static void begin(struct pv_disk *d, unsigned queue, unsigned slot, const void *raw)
{
	struct io *io = NULL;
	struct pv_request r;
	int ret = pv_request_decode(d->queue[queue].ring.layout, raw, &d->limits, &r, d->scratch);

	if (!ret && r.indirect)
		ret = fetch_segments(d, &r);
	if (!ret) {
		io = io_new(d, &r);
		ret = io ? 0 : -ENOMEM;
	}
	if (ret) {
		if (r.wrong)
			say(d, r.wrong);
		answer(d, queue, slot, &r, ret);
		return;
	}
	io->queue = queue;
	io->slot = slot;
	d->running++;
	list_add(&d->waiting, io);
	while (run_first(d))
		;
}

static bool may_take(const struct pv_disk *d)
{
	return !d->closing && !d->broken && !d->releasing && !d->resting && !d->waiting.first &&
	       d->running < PV_IO_MAX;
}

static void broken(struct pv_disk *d, const char *why)
{
	d->broken = true;
	d->user->broken(d->user_ctx, why);
}

/* Not a deferred task: those run before the loop looks at anything else. */
static void rest(struct pv_disk *d)
{
	d->resting = true;
	loop_post(d->loop, &d->rest);
}

/* Take what there is. */
static void work(struct pv_disk *d, unsigned queue)
{
	struct queue *q = &d->queue[queue];
	uint8_t raw[PV_RING_RAW];
	int ret;

	q->stalled = false;
	for (uint32_t taken = 0;; taken++) {
		if (taken == q->ring.entries)
			rest(d);
		if (!may_take(d)) {
			q->stalled = true;
			return;
		}
		ret = pv_ring_take(&q->ring, raw);
		if (ret < 0) {
			broken(d, "the index of its ring jumped");
			return;
		}
		if (ret)
			begin(d, queue, pv_journal_take(d->journal, queue, &q->ring, raw), raw);
		else if (!pv_ring_await(&q->ring))
			return;
	}
}

static void publish_queue(struct pv_disk *d, struct queue *q)
{
	q->dirty = false;
	if (pv_ring_publish(&q->ring))
		d->ops->notify(d->guest, q->port);
}

static void forget_connection(struct pv_disk *d)
{
	for (unsigned i = 0; i < PV_QUEUES_MAX; i++) {
		struct queue *q = &d->queue[i];

		if (q->port != PV_PORT_NONE)
			d->ops->unbind(d->guest, q->port);
		if (q->pages)
			d->ops->unmap(d->guest, q->pages, 1u << d->at.order);
		*q = (struct queue){.port = PV_PORT_NONE};
	}
	pv_grants_free(d->grants);
	d->grants = NULL;
	d->connected = d->closing = d->broken = false;
}

static void go_on(struct pv_disk *d)
{
	while (run_first(d))
		;
	for (unsigned i = 0; i < d->at.nr_queues && d->connected; i++) {
		if (d->queue[i].dirty)
			publish_queue(d, &d->queue[i]);
		if (d->queue[i].stalled && may_take(d))
			work(d, i);
	}
	if (d->releasing && d->active == d->nr_full)
		d->user->released(d->user_ctx);
	if (!d->closing || d->running || d->resting)
		return;
	pv_journal_set_generation(d->journal, 0);
	forget_connection(d);
	d->user->disconnected(d->user_ctx);
}

static void on_publish(struct loop_task *t)
{
	go_on((struct pv_disk *)((char *)t - offsetof(struct pv_disk, publish)));
}

static void on_rest(struct loop_task *t)
{
	struct pv_disk *d = (struct pv_disk *)((char *)t - offsetof(struct pv_disk, rest));

	d->resting = false;
	go_on(d);
}

/* ---- connecting ---- */

static int check_connection(const struct pv_connection *c, struct pgr_error *err)
{
	if (c->generation && c->nr_queues && c->nr_queues <= PV_QUEUES_MAX &&
	    c->order <= PV_RING_ORDER_MAX && c->abi <= PV_ABI_32 &&
	    (c->sector_shift == 9 || c->sector_shift == 12))
		return 0;
	return pgr_fail(err, -EINVAL, "%u queues with rings of 1 << %u pages are not possible",
			c->nr_queues, c->order);
}

static int attach_queue(struct pv_disk *d, unsigned i, struct pgr_error *err)
{
	const struct pv_queue_at *at = &d->at.queue[i];
	struct queue *q = &d->queue[i];

	q->pages = d->ops->map(d->guest, at->ref, 1u << d->at.order);
	if (!q->pages)
		return pgr_fail(err, -EFAULT, "the guest's ring %u cannot be mapped", i);
	q->port = d->ops->bind(d->guest, at->port);
	if (q->port == PV_PORT_NONE)
		return pgr_fail(err, -ENOTCONN, "the guest's event channel %u cannot be bound",
				at->port);
	pv_ring_init(&q->ring, q->pages, d->at.order, (enum pv_abi)d->at.abi);
	return 0;
}

static void redo(void *ctx, unsigned queue, unsigned slot, const void *raw)
{
	begin(ctx, queue, slot, raw);
}

/* The same connection as that of the process before. */
static int take_over(struct pv_disk *d, struct pgr_error *err)
{
	for (unsigned i = 0; i < d->at.nr_queues; i++) {
		if (pv_journal_recover(d->journal, i, &d->queue[i].ring, redo, d))
			return pgr_fail(
				err, -EPROTO,
				"what was under way cannot be found again; shut the guest down and start it again");
		d->queue[i].dirty = true;
	}
	pv_journal_counters(d->journal)->restarts++;
	return 0;
}

static void begin_anew(struct pv_disk *d)
{
	pv_journal_begin(d->journal, d->at.nr_queues, d->queue[0].ring.entries);
	for (unsigned i = 0; i < d->at.nr_queues; i++)
		pv_journal_begin_queue(d->journal, i, &d->queue[i].ring);
	pv_journal_set_generation(d->journal, d->at.generation);
}

void pv_disk_resized(struct pv_disk *d)
{
	d->limits.size = block_info(d->block)->size;
}

int pv_disk_connect(struct pv_disk *d, const struct pv_connection *c, struct pgr_error *err)
{
	int ret = check_connection(c, err);

	if (ret)
		return ret;
	d->at = *c;
	d->limits = (struct pv_limits){.sector_shift = c->sector_shift,
				       .read_only = c->read_only,
				       .discards = c->discards};
	pv_disk_resized(d);
	for (unsigned i = 0; i < c->nr_queues && !ret; i++)
		ret = attach_queue(d, i, err);
	if (!ret && c->persistent && pv_grants_new(d->ops, d->guest, PV_GRANTS_MAX, &d->grants))
		ret = pgr_fail(err, -ENOMEM, "no memory to keep the guest's pages mapped");
	if (!ret && pv_journal_generation(d->journal) != c->generation)
		begin_anew(d);
	else if (!ret)
		ret = take_over(d, err);
	if (ret) {
		/* Requests that were begun again hold their ring: the caller has to give up the process. */
		if (!d->running)
			forget_connection(d);
		return ret;
	}
	d->connected = true;
	for (unsigned i = 0; i < c->nr_queues; i++) {
		/* Events from before are lost. */
		publish_queue(d, &d->queue[i]);
		d->ops->notify(d->guest, d->queue[i].port);
		work(d, i);
	}
	return 0;
}

void pv_disk_event(struct pv_disk *d, uint32_t port)
{
	for (unsigned i = 0; i < d->at.nr_queues && d->connected; i++)
		if (d->queue[i].port == port)
			work(d, i);
}

void pv_disk_disconnect(struct pv_disk *d)
{
	struct io *io;

	d->closing = true;
	loop_disarm(d->loop, &d->again);
	d->nr_full = 0;
	while ((io = list_take(&d->full)))
		finish(io, -EIO);
	loop_defer(d->loop, &d->publish);
}

void pv_disk_release(struct pv_disk *d)
{
	d->releasing = true;
	loop_disarm(d->loop, &d->again);
	loop_defer(d->loop, &d->publish);
}

void pv_disk_go_on(struct pv_disk *d, struct block *b)
{
	d->releasing = false;
	d->block = b;
	if (d->full.first)
		loop_arm(d->loop, &d->again, loop_now_ns());
	loop_defer(d->loop, &d->publish);
}

unsigned pv_disk_running(const struct pv_disk *d)
{
	return d->running;
}

unsigned pv_disk_rings(const struct pv_disk *d, uint32_t *entries)
{
	*entries = d->connected ? d->queue[0].ring.entries : 0;
	return d->connected ? d->at.nr_queues : 0;
}

int pv_disk_new(struct loop *l, struct block *b, const struct pv_guest_ops *ops, void *guest_ctx,
		struct pv_journal *journal, const struct pv_disk_user *user, void *user_ctx,
		struct pv_disk **out)
{
	struct pv_disk *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->loop = l;
	d->block = b;
	d->ops = ops;
	d->guest = guest_ctx;
	d->journal = journal;
	d->user = user;
	d->user_ctx = user_ctx;
	d->publish.run = on_publish;
	d->rest.run = on_rest;
	d->again.fire = on_again;
	for (unsigned i = 0; i < PV_QUEUES_MAX; i++)
		d->queue[i].port = PV_PORT_NONE;
	*out = d;
	return 0;
}

void pv_disk_free(struct pv_disk *d)
{
	free(d);
}
