/* SPDX-License-Identifier: MIT */
/*
 * A guest with a block front end, in this process: memory that it has granted, event channels that are counters, and rings that it fills. For
 * tests of the PV disk server; it does what a front end does, and on demand what none should do.
 */
#ifndef PAGURUS_PV_FAKE_GUEST_H
#define PAGURUS_PV_FAKE_GUEST_H

#include "storage/pv_disk.h"

#define FAKE_PAGES   1024u
#define FAKE_REF(n)  ((n) + 8u)	 /* of page n */
#define FAKE_PORT(q) ((q) + 40u) /* the guest's port of queue q; the other end's is 100 more */

struct fake_guest {
	int fd;
	uint8_t *memory;
	bool ungranted[FAKE_PAGES];
	unsigned mapped, bound; /* pages and ports that the server has now */
	unsigned copies;	/* pieces that were copied */
	unsigned notified[PV_QUEUES_MAX];
};

/* Aborts when it cannot. */
struct fake_guest *fake_guest_new(void);
void fake_guest_free(struct fake_guest *g);
extern const struct pv_guest_ops fake_guest_ops;
uint8_t *fake_page(struct fake_guest *g, unsigned n);

/* One queue's ring, in the pages from `page` on. */
struct fake_front {
	struct fake_guest *guest;
	enum pv_abi abi;
	unsigned order, page;
	uint32_t req_prod, rsp_cons;
};

/* An empty ring; with *at filled in for the server. start: its first index. */
void fake_front_init(struct fake_front *f, struct fake_guest *g, enum pv_abi abi, unsigned order,
		     unsigned page, uint32_t start, unsigned queue, struct pv_queue_at *at);
/* The four indexes in the shared page: req_prod, req_event, rsp_prod, rsp_event. */
volatile uint32_t *fake_front_indexes(const struct fake_front *f);
/* Put a request (PV_RING_RAW bytes) into the next place; fake_front_push() shows it. */
void fake_front_put(struct fake_front *f, const void *raw);
/* true: the server wants an event. */
bool fake_front_push(struct fake_front *f);
/* The next response; false: none. Asks for an event with the next. */
bool fake_front_get(struct fake_front *f, struct pv_answer *out);

/* Requests, into raw. Segments as {ref, first sector, last sector}. */
struct fake_segment {
	uint32_t ref;
	uint8_t first, last;
};
void fake_data(enum pv_abi abi, void *raw, uint8_t operation, uint64_t id, uint64_t sector,
	       const struct fake_segment *segments, unsigned nr);
void fake_discard(enum pv_abi abi, void *raw, uint8_t flag, uint64_t id, uint64_t sector,
		  uint64_t sectors);
/* The segments go into page `list`. */
void fake_indirect(struct fake_front *f, void *raw, uint8_t operation, uint64_t id, uint64_t sector,
		   unsigned list, const struct fake_segment *segments, unsigned nr);

#endif
