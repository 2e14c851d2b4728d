// SPDX-License-Identifier: MIT
#include "storage/pv_ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#define INDEXES offsetof(struct blkif_sring, ring)

const struct pv_layout pv_layouts[2] = {
	[PV_ABI_64] = {.entry = 112,
		       .response = 16,
		       .id = 8,
		       .sector = 16,
		       .segments = 24,
		       .discard_count = 24,
		       .indirect_refs = 28},
	[PV_ABI_32] = {.entry = 108,
		       .response = 12,
		       .id = 4,
		       .sector = 12,
		       .segments = 20,
		       .discard_count = 20,
		       .indirect_refs = 24},
};

_Static_assert(sizeof(union blkif_sring_entry) == PV_RING_RAW, "the size of a request");
_Static_assert(sizeof(struct blkif_response) == 16, "the size of a response");
_Static_assert(offsetof(struct blkif_request, id) == 8, "id");
_Static_assert(offsetof(struct blkif_request, sector_number) == 16, "sector");
_Static_assert(offsetof(struct blkif_request, seg) == 24, "segments");
_Static_assert(offsetof(struct blkif_request_discard, sector_number) == 16, "sector, discard");
_Static_assert(offsetof(struct blkif_request_discard, nr_sectors) == 24, "sectors, discard");
_Static_assert(offsetof(struct blkif_request_indirect, id) == 8, "id, indirect");
_Static_assert(offsetof(struct blkif_request_indirect, sector_number) == 16, "sector, indirect");
_Static_assert(offsetof(struct blkif_request_indirect, indirect_grefs) == 28, "pages, indirect");
_Static_assert(offsetof(struct blkif_response, operation) == 8, "operation of a response");
_Static_assert(offsetof(struct blkif_response, status) == 10, "status of a response");
_Static_assert(INDEXES == 64, "where the requests begin");

enum { REQ_PROD = 0, REQ_EVENT = 4, RSP_PROD = 8, RSP_EVENT = 12 };

static uint32_t index_get(const struct pv_ring *r, unsigned which)
{
	return *(volatile uint32_t *)(r->shared + which);
}

static void index_set(struct pv_ring *r, unsigned which, uint32_t value)
{
	*(volatile uint32_t *)(r->shared + which) = value;
}

uint32_t pv_ring_entries(enum pv_abi abi, unsigned order)
{
	uint32_t fit = (uint32_t)(((PV_PAGE << order) - INDEXES) / pv_layouts[abi].entry);
	uint32_t entries = 1;

	while (entries * 2 <= fit)
		entries *= 2;
	return entries;
}

void pv_ring_init(struct pv_ring *r, void *shared, unsigned order, enum pv_abi abi)
{
	r->shared = shared;
	r->layout = &pv_layouts[abi];
	r->entries = pv_ring_entries(abi, order);
	r->req_cons = r->rsp_prod = index_get(r, RSP_PROD);
}

static volatile uint32_t *place(const struct pv_ring *r, uint32_t index)
{
	return (volatile uint32_t *)(r->shared + INDEXES +
				     (size_t)(index & (r->entries - 1)) * r->layout->entry);
}

int pv_ring_take(struct pv_ring *r, void *raw)
{
	uint32_t more = index_get(r, REQ_PROD) - r->req_cons;
	uint32_t unanswered = r->req_cons - r->rsp_prod;
	const volatile uint32_t *from;
	uint32_t copy[PV_RING_RAW / 4] = {0};

	if (more > r->entries - unanswered)
		return -EPROTO;
	if (!more)
		return 0;
	/* The request is read after the index that says that it is there. */
	atomic_thread_fence(memory_order_acquire);
	from = place(r, r->req_cons);
	for (unsigned i = 0; i < r->layout->entry / 4u; i++)
		copy[i] = from[i];
	memcpy(raw, copy, sizeof(copy));
	r->req_cons++;
	return 1;
}

bool pv_ring_await(struct pv_ring *r)
{
	index_set(r, REQ_EVENT, r->req_cons + 1);
	/* What the guest puts there after it has looked at req_event has an event; what it put there before, this sees. */
	atomic_thread_fence(memory_order_seq_cst);
	return index_get(r, REQ_PROD) != r->req_cons;
}

void pv_ring_answer(struct pv_ring *r, const struct pv_answer *a)
{
	volatile uint32_t *to = place(r, r->rsp_prod);

	to[0] = (uint32_t)a->id;
	to[1] = (uint32_t)(a->id >> 32);
	to[2] = a->operation | (uint32_t)(uint16_t)a->status << 16;
	r->rsp_prod++;
}

bool pv_ring_publish(struct pv_ring *r)
{
	uint32_t before = index_get(r, RSP_PROD), news = r->rsp_prod - before;

	/* The responses are there before the index that says so. */
	atomic_thread_fence(memory_order_release);
	index_set(r, RSP_PROD, r->rsp_prod);
	atomic_thread_fence(memory_order_seq_cst);
	return r->rsp_prod - index_get(r, RSP_EVENT) < news;
}
