// SPDX-License-Identifier: MIT
#include "tests/unit/pv_fake_guest.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#define SHARED (MAP_SHARED | MAP_POPULATE)

struct fake_guest *fake_guest_new(void)
{
	struct fake_guest *g = calloc(1, sizeof(*g));

	if (!g)
		abort();
	g->fd = memfd_create("guest", MFD_CLOEXEC);
	if (g->fd < 0 || ftruncate(g->fd, (off_t)FAKE_PAGES * PV_PAGE))
		abort();
	g->memory = mmap(NULL, FAKE_PAGES * PV_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	if (g->memory == MAP_FAILED)
		abort();
	return g;
}

void fake_guest_free(struct fake_guest *g)
{
	munmap(g->memory, FAKE_PAGES * PV_PAGE);
	close(g->fd);
	free(g);
}

uint8_t *fake_page(struct fake_guest *g, unsigned n)
{
	return g->memory + (size_t)n * PV_PAGE;
}

static bool is_granted(const struct fake_guest *g, uint32_t ref)
{
	return ref >= FAKE_REF(0) && ref < FAKE_REF(FAKE_PAGES) && !g->ungranted[ref - FAKE_REF(0)];
}

static void *fake_map(void *ctx, const uint32_t *refs, unsigned nr)
{
	struct fake_guest *g = ctx;
	uint8_t *at;

	for (unsigned i = 0; i < nr; i++)
		if (!is_granted(g, refs[i]))
			return NULL;
	at = mmap(NULL, (size_t)nr * PV_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		return NULL;
	for (unsigned i = 0; i < nr; i++)
		if (mmap(at + (size_t)i * PV_PAGE, PV_PAGE, PROT_READ | PROT_WRITE,
			 SHARED | MAP_FIXED, g->fd,
			 (off_t)(refs[i] - FAKE_REF(0)) * PV_PAGE) == MAP_FAILED)
			abort();
	g->mapped += nr;
	return at;
}

static void fake_unmap(void *ctx, void *pages, unsigned nr)
{
	struct fake_guest *g = ctx;

	munmap(pages, (size_t)nr * PV_PAGE);
	g->mapped -= nr;
}

static int fake_copy(void *ctx, bool to_guest, const struct pv_copy *copies, unsigned nr)
{
	struct fake_guest *g = ctx;

	for (unsigned i = 0; i < nr; i++) {
		const struct pv_copy *c = &copies[i];
		uint8_t *page;

		if (!is_granted(g, c->ref) || c->offset + c->length > (int)PV_PAGE)
			return -EFAULT;
		page = fake_page(g, c->ref - FAKE_REF(0)) + c->offset;
		memcpy(to_guest ? page : c->data, to_guest ? c->data : page, c->length);
		g->copies++;
	}
	return 0;
}

static uint32_t fake_bind(void *ctx, uint32_t remote)
{
	struct fake_guest *g = ctx;

	if (remote < FAKE_PORT(0) || remote >= FAKE_PORT(PV_QUEUES_MAX))
		return PV_PORT_NONE;
	g->bound++;
	return remote + 100;
}

static void fake_unbind(void *ctx, uint32_t port)
{
	(void)port;
	((struct fake_guest *)ctx)->bound--;
}

static void fake_notify(void *ctx, uint32_t port)
{
	((struct fake_guest *)ctx)->notified[port - 100 - FAKE_PORT(0)]++;
}

const struct pv_guest_ops fake_guest_ops = {
	.map = fake_map,
	.unmap = fake_unmap,
	.copy = fake_copy,
	.bind = fake_bind,
	.unbind = fake_unbind,
	.notify = fake_notify,
};

/* ---- the front end ---- */

volatile uint32_t *fake_front_indexes(const struct fake_front *f)
{
	return (volatile uint32_t *)fake_page(f->guest, f->page);
}

void fake_front_init(struct fake_front *f, struct fake_guest *g, enum pv_abi abi, unsigned order,
		     unsigned page, uint32_t start, unsigned queue, struct pv_queue_at *at)
{
	volatile uint32_t *index;

	*f = (struct fake_front){.guest = g,
				 .abi = abi,
				 .order = order,
				 .page = page,
				 .req_prod = start,
				 .rsp_cons = start};
	index = fake_front_indexes(f);
	index[0] = index[2] = start;
	index[1] = index[3] = start + 1;
	at->port = FAKE_PORT(queue);
	for (unsigned i = 0; i < 1u << order; i++)
		at->ref[i] = FAKE_REF(page + i);
}

static uint8_t *entry_at(const struct fake_front *f, uint32_t index)
{
	uint32_t entries = pv_ring_entries(f->abi, f->order);

	return fake_page(f->guest, f->page) + 64 +
	       (size_t)(index & (entries - 1)) * pv_layouts[f->abi].entry;
}

void fake_front_put(struct fake_front *f, const void *raw)
{
	memcpy(entry_at(f, f->req_prod), raw, pv_layouts[f->abi].entry);
	f->req_prod++;
}

bool fake_front_push(struct fake_front *f)
{
	volatile uint32_t *index = fake_front_indexes(f);
	uint32_t news = f->req_prod - index[0];

	atomic_thread_fence(memory_order_release);
	index[0] = f->req_prod;
	atomic_thread_fence(memory_order_seq_cst);
	return f->req_prod - index[1] < news;
}

bool fake_front_get(struct fake_front *f, struct pv_answer *out)
{
	volatile uint32_t *index = fake_front_indexes(f);
	const uint8_t *from;

	if (index[2] == f->rsp_cons) {
		index[3] = f->rsp_cons + 1;
		atomic_thread_fence(memory_order_seq_cst);
		if (index[2] == f->rsp_cons)
			return false;
	}
	atomic_thread_fence(memory_order_acquire);
	from = entry_at(f, f->rsp_cons);
	memcpy(&out->id, from, 8);
	out->operation = from[8];
	memcpy(&out->status, from + 10, 2);
	f->rsp_cons++;
	return true;
}

/* ---- requests ---- */

static void put_value(void *raw, unsigned at, uint64_t value, unsigned bytes)
{
	memcpy((uint8_t *)raw + at, &value, bytes);
}

static void put_segments(uint8_t *at, const struct fake_segment *segments, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		put_value(at, i * 8, segments[i].ref, 4);
		at[i * 8 + 4] = segments[i].first;
		at[i * 8 + 5] = segments[i].last;
	}
}

static void put_head(enum pv_abi abi, void *raw, uint8_t operation, uint8_t second, uint64_t id,
		     uint64_t sector)
{
	memset(raw, 0, PV_RING_RAW);
	put_value(raw, 0, operation, 1);
	put_value(raw, 1, second, 1);
	put_value(raw, pv_layouts[abi].id, id, 8);
	put_value(raw, pv_layouts[abi].sector, sector, 8);
}

void fake_data(enum pv_abi abi, void *raw, uint8_t operation, uint64_t id, uint64_t sector,
	       const struct fake_segment *segments, unsigned nr)
{
	put_head(abi, raw, operation, (uint8_t)nr, id, sector);
	put_segments((uint8_t *)raw + pv_layouts[abi].segments, segments,
		     nr < BLKIF_MAX_SEGMENTS_PER_REQUEST ? nr : BLKIF_MAX_SEGMENTS_PER_REQUEST);
}

void fake_discard(enum pv_abi abi, void *raw, uint8_t flag, uint64_t id, uint64_t sector,
		  uint64_t sectors)
{
	put_head(abi, raw, BLKIF_OP_DISCARD, flag, id, sector);
	put_value(raw, pv_layouts[abi].discard_count, sectors, 8);
}

void fake_indirect(struct fake_front *f, void *raw, uint8_t operation, uint64_t id, uint64_t sector,
		   unsigned list, const struct fake_segment *segments, unsigned nr)
{
	put_head(f->abi, raw, BLKIF_OP_INDIRECT, operation, id, sector);
	put_value(raw, 2, nr, 2);
	put_value(raw, pv_layouts[f->abi].indirect_refs, FAKE_REF(list), 4);
	put_segments(fake_page(f->guest, list), segments, nr < 512 ? nr : 512);
}
