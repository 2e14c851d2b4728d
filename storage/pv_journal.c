// SPDX-License-Identifier: MIT
#include "storage/pv_journal.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC	0x4c4e4a5642475041ull
#define VERSION 1u

enum { FREE, TAKEN, ANSWERED };

struct slot {
	_Atomic uint32_t state;
	uint32_t request;  /* its number in the ring */
	uint32_t response; /* answered: its number in the ring */
	uint32_t answer;   /* answered: the status, and the operation above it */
	uint8_t raw[PV_RING_RAW];
};
_Static_assert(sizeof(struct slot) == 128, "a slot");

struct queue {
	_Atomic uint32_t req_cons, rsp_prod;
	uint8_t reserved[56];
	struct slot slot[PV_RING_ENTRIES];
};

struct file {
	uint64_t magic;
	uint32_t version, nr_queues, entries, reserved;
	_Atomic uint64_t generation;
	struct pv_counters counters;
	uint8_t reserved2[4096 - 32 - sizeof(struct pv_counters)];
	struct queue queue[PV_QUEUES_MAX];
};
_Static_assert(offsetof(struct file, queue) == 4096, "where the queues begin");

struct pv_journal {
	struct file *file;
	/* Free slots of each queue, a stack. */
	unsigned nr_free[PV_QUEUES_MAX];
	uint16_t free[PV_QUEUES_MAX][PV_RING_ENTRIES];
};

static void put_free(struct pv_journal *j, unsigned queue, uint32_t slot)
{
	j->free[queue][j->nr_free[queue]++] = (uint16_t)slot;
}

size_t pv_journal_size(void)
{
	return sizeof(struct file);
}

int pv_journal_open(void *memory, struct pv_journal **out)
{
	struct pv_journal *j = calloc(1, sizeof(*j));

	if (!j)
		return -ENOMEM;
	j->file = memory;
	if (j->file->magic != MAGIC || j->file->version != VERSION) {
		memset(j->file, 0, offsetof(struct file, queue));
		j->file->magic = MAGIC;
		j->file->version = VERSION;
	}
	*out = j;
	return 0;
}

void pv_journal_close(struct pv_journal *j)
{
	free(j);
}

struct pv_counters *pv_journal_counters(struct pv_journal *j)
{
	return &j->file->counters;
}

const struct pv_counters *pv_journal_peek(const void *memory)
{
	return &((const struct file *)memory)->counters;
}

uint64_t pv_journal_peek_generation(const void *memory)
{
	const struct file *f = memory;

	return f->magic == MAGIC && f->version == VERSION ? f->generation : 0;
}

uint64_t pv_journal_generation(const struct pv_journal *j)
{
	return j->file->generation;
}

void pv_journal_begin(struct pv_journal *j, unsigned nr_queues, uint32_t entries)
{
	j->file->generation = 0;
	j->file->nr_queues = nr_queues;
	j->file->entries = entries;
}

void pv_journal_begin_queue(struct pv_journal *j, unsigned queue, const struct pv_ring *r)
{
	struct queue *q = &j->file->queue[queue];

	memset(q->slot, 0, sizeof(q->slot));
	q->req_cons = r->req_cons;
	q->rsp_prod = r->rsp_prod;
	j->nr_free[queue] = 0;
	for (uint32_t i = r->entries; i-- > 0;)
		put_free(j, queue, i);
}

void pv_journal_set_generation(struct pv_journal *j, uint64_t generation)
{
	j->file->generation = generation;
}

unsigned pv_journal_take(struct pv_journal *j, unsigned queue, const struct pv_ring *r,
			 const void *raw)
{
	unsigned number = j->free[queue][--j->nr_free[queue]];
	struct slot *s = &j->file->queue[queue].slot[number];

	memcpy(s->raw, raw, sizeof(s->raw));
	s->request = r->req_cons - 1;
	atomic_store(&s->state, TAKEN);
	atomic_store(&j->file->queue[queue].req_cons, r->req_cons);
	return number;
}

/* From the state ANSWERED on. */
static void finish(struct pv_journal *j, unsigned queue, unsigned slot, struct pv_ring *r)
{
	struct slot *s = &j->file->queue[queue].slot[slot];
	struct pv_answer a = {.operation = (uint8_t)(s->answer >> 16),
			      .status = (int16_t)(uint16_t)s->answer};

	memcpy(&a.id, s->raw + r->layout->id, sizeof(a.id));
	pv_ring_answer(r, &a);
	atomic_store(&j->file->queue[queue].rsp_prod, r->rsp_prod);
	atomic_store(&s->state, FREE);
	put_free(j, queue, slot);
}

void pv_journal_answer(struct pv_journal *j, unsigned queue, unsigned slot, struct pv_ring *r,
		       uint8_t operation, int16_t status)
{
	struct slot *s = &j->file->queue[queue].slot[slot];

	s->answer = (uint16_t)status | (uint32_t)operation << 16;
	s->response = r->rsp_prod;
	atomic_store(&s->state, ANSWERED);
	finish(j, queue, slot, r);
}

/* ---- taking over ---- */

static bool is_before(uint32_t a, uint32_t b)
{
	return (int32_t)(a - b) < 0;
}

static int by_request(const void *a, const void *b)
{
	const struct slot *const *x = a;
	const struct slot *const *y = b;

	return is_before((*x)->request, (*y)->request) ? -1 : 1;
}

struct found {
	struct slot *taken[PV_RING_ENTRIES];
	unsigned nr_taken;
	struct slot *answered;
};

static int look_at(struct pv_journal *j, unsigned queue, struct pv_ring *r, struct found *out)
{
	struct queue *q = &j->file->queue[queue];

	for (uint32_t i = 0; i < r->entries; i++) {
		struct slot *s = &q->slot[i];

		if (s->state == TAKEN) {
			out->taken[out->nr_taken++] = s;
			if (is_before(r->req_cons, s->request + 1))
				r->req_cons = s->request + 1;
		} else if (s->state == ANSWERED && s->response == r->rsp_prod && !out->answered) {
			out->answered = s;
		} else if (s->state == FREE ||
			   (s->state == ANSWERED && is_before(s->response, r->rsp_prod))) {
			s->state = FREE;
			put_free(j, queue, i);
		} else {
			return -EPROTO;
		}
	}
	return 0;
}

int pv_journal_recover(struct pv_journal *j, unsigned queue, struct pv_ring *r,
		       void (*redo)(void *ctx, unsigned queue, unsigned slot, const void *raw),
		       void *ctx)
{
	struct queue *q = &j->file->queue[queue];
	struct found found = {.nr_taken = 0};
	int ret;

	if (j->file->entries != r->entries || queue >= j->file->nr_queues)
		return -EPROTO;
	r->req_cons = q->req_cons;
	r->rsp_prod = q->rsp_prod;
	j->nr_free[queue] = 0;
	ret = look_at(j, queue, r, &found);
	if (ret)
		return ret;
	if (r->req_cons - r->rsp_prod != found.nr_taken + (found.answered ? 1 : 0))
		return -EPROTO;
	q->req_cons = r->req_cons;
	if (found.answered)
		finish(j, queue, (unsigned)(found.answered - q->slot), r);
	qsort(found.taken, found.nr_taken, sizeof(struct slot *), by_request);
	for (unsigned i = 0; i < found.nr_taken; i++)
		redo(ctx, queue, (unsigned)(found.taken[i] - q->slot), found.taken[i]->raw);
	return 0;
}
