/* SPDX-License-Identifier: MIT */
/*
 * The ring that a guest's block front end shares with us (xen/io/ring.h, xen/io/blkif.h), from the back end's side.
 *
 * The memory belongs to the guest, which may write anything there at any moment. So every index is read once, a request is copied before it
 * is looked at, and nothing that was read there is used as an index: the ring's own indexes are in struct pv_ring, which the guest does
 * not see. One thread.
 */
#ifndef PAGURUS_PV_RING_H
#define PAGURUS_PV_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PV_PAGE		  4096u
#define PV_RING_ORDER_MAX 4u   /* of the number of pages */
#define PV_RING_RAW	  112u /* bytes of a request, in either ABI at most */
#define PV_RING_ENTRIES	  512u /* of the largest ring */

/* A front end of 32 bits has its structures packed differently ("protocol" in xenstore). */
enum pv_abi { PV_ABI_64, PV_ABI_32 };

/* Where things are in a request: blkif.h as compilers of either ABI lay it out. */
struct pv_layout {
	uint16_t entry, response; /* sizes */
	uint16_t id, sector;
	uint16_t segments;	/* read, write */
	uint16_t discard_count; /* discard */
	uint16_t indirect_refs; /* indirect */
};
extern const struct pv_layout pv_layouts[2];

struct pv_ring {
	volatile uint8_t *shared;
	const struct pv_layout *layout;
	uint32_t entries;  /* a power of two */
	uint32_t req_cons; /* the next request to take */
	uint32_t
		rsp_prod; /* the next response to write; the guest sees those before what was published last */
};

/* How many requests a ring of 1 << order pages has. */
uint32_t pv_ring_entries(enum pv_abi abi, unsigned order);

/*
 * shared: 1 << order (at most PV_RING_ORDER_MAX) pages behind each other. Begins where the guest says that responses have come to, which
 * is 0 on a new ring; the caller sets both indexes when it knows better.
 */
void pv_ring_init(struct pv_ring *r, void *shared, unsigned order, enum pv_abi abi);

/*
 * 1: raw (PV_RING_RAW bytes) is a copy of the next request, which is taken. 0: there is none. -EPROTO: the guest's index is not one that a
 * front end that keeps to the protocol can have; nothing more is to be had from this ring.
 */
int pv_ring_take(struct pv_ring *r, void *raw);

/* Ask for an event with the next request; true: one is there already, and none may come for it. */
bool pv_ring_await(struct pv_ring *r);

struct pv_answer {
	uint64_t id;
	uint8_t operation;
	int16_t status; /* BLKIF_RSP_* */
};
/* Write a response in the place of the next one, and count it; there is room for one for each request that was taken. */
void pv_ring_answer(struct pv_ring *r, const struct pv_answer *a);

/* Show the guest what was answered; true: it wants an event. */
bool pv_ring_publish(struct pv_ring *r);

#endif
