/* SPDX-License-Identifier: MIT */
/*
 * What a disk's process has taken from its guest and not answered yet, in memory that outlives the process: a file in /run.
 *
 * A ring cannot tell that by itself. Responses go into the places of requests in the order in which they are ready, so the response to the
 * fifth request may stand where the first one stood, which is still under way. So each request is copied here as it is taken, and its
 * answer is noted here before the guest can see it. A process that takes over finds, for each request of the guest, exactly one of:
 *
 *   not taken                   it is still in the ring, at or behind req_cons
 *   taken                       it is here: it has to be done (again), which does no harm to reads, writes, flushes and discards
 *   answered at response N      N is at or behind the ring's rsp_prod here: the response may not be whole, it has to be written (again)
 *
 * Each step ends with one store that makes it so, and kill -9 at any moment leaves the steps before it.
 *
 *   take     copy of the request, its index, then state TAKEN; then req_cons
 *   answer   status and number of the response, then state ANSWERED; then the response in the ring, then rsp_prod, then state FREE
 *
 * It guards against the death of a process, not of the machine: the guest dies with that, too. What is in the file is not trusted more than the
 * ring: it is checked when it is taken over.
 */
#ifndef PAGURUS_PV_JOURNAL_H
#define PAGURUS_PV_JOURNAL_H

#include "storage/pv_request.h"

#define PV_QUEUES_MAX 4u

/* What blkback counts in sysfs, by the same names. */
struct pv_counters {
	uint64_t rd_req, wr_req, f_req, ds_req; /* requests */
	uint64_t rd_sect, wr_sect;		/* sectors of 512 bytes */
	uint64_t errors;			/* answered with an error */
	uint64_t restarts;			/* of the process */
};

struct pv_journal;

/* Bytes of the file, whatever the connection is. */
size_t pv_journal_size(void);

/*
 * Over that many zeroed or earlier used bytes, which the caller keeps mapped. 0, -ENOMEM. The counters of what was there before are kept when
 * it was a journal.
 */
int pv_journal_open(void *memory, struct pv_journal **out);
void pv_journal_close(struct pv_journal *j);
struct pv_counters *pv_journal_counters(struct pv_journal *j);
/* The same for who only looks, without opening: the counters in such a file, and the connection that it is about. */
const struct pv_counters *pv_journal_peek(const void *memory);
uint64_t pv_journal_peek_generation(const void *memory);

/* The connection that it is about, a number that its maker chose; 0: none. */
uint64_t pv_journal_generation(const struct pv_journal *j);
/*
 * Another connection: pv_journal_begin(), then each queue with its ring as pv_ring_init() left it, then the generation, which makes all of it
 * so. A generation of 0 ends a connection.
 */
void pv_journal_begin(struct pv_journal *j, unsigned nr_queues, uint32_t entries);
void pv_journal_begin_queue(struct pv_journal *j, unsigned queue, const struct pv_ring *r);
void pv_journal_set_generation(struct pv_journal *j, uint64_t generation);

/*
 * A request was taken from ring `queue` (r->req_cons is one behind it). The slot's number, good until pv_journal_answer(); there is always
 * one, as a ring has no more unanswered requests than entries.
 */
unsigned pv_journal_take(struct pv_journal *j, unsigned queue, const struct pv_ring *r,
			 const void *raw);
/* Answer the request in that slot, in the journal and in the ring. */
void pv_journal_answer(struct pv_journal *j, unsigned queue, unsigned slot, struct pv_ring *r,
		       uint8_t operation, int16_t status);

/*
 * Take over: bring the ring's indexes to where they were, finish answers that were begun, and call redo() for each request that was taken,
 * in the order in which they were. -EPROTO: what is in the journal cannot be. The queue's layout has to be set in r already.
 */
int pv_journal_recover(struct pv_journal *j, unsigned queue, struct pv_ring *r,
		       void (*redo)(void *ctx, unsigned queue, unsigned slot, const void *raw),
		       void *ctx);

#endif
