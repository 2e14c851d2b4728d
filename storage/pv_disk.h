/* SPDX-License-Identifier: MIT */
/*
 * A disk served to one guest: requests from its rings go to a block, answers back.
 *
 * Everything here is called in the loop's thread, and the user's functions are called there. What the guest may do is bounded: PV_IO_MAX requests
 * are under way (later ones stay in the ring), PV_BUFFERS_MAX bytes of data are copied at a time, PV_GRANTS_MAX pages stay mapped. A request
 * that makes no sense is answered with an error and does nothing; a ring whose index makes no sense is not read any more.
 *
 * Data goes straight to and from the guest's pages where they stay mapped, and else through one buffer a request.
 *
 * No room (-ENOSPC, -EDQUOT): the request is kept and tried again each second, so the guest waits and loses nothing.
 */
#ifndef PAGURUS_PV_DISK_H
#define PAGURUS_PV_DISK_H

#include "common/error.h"
#include "storage/block.h"
#include "storage/pv_guest.h"
#include "storage/pv_journal.h"

#define PV_IO_MAX      256u
#define PV_BUFFERS_MAX (8u << 20)

struct pv_queue_at {
	uint32_t port; /* the guest's */
	uint32_t ref[1u << PV_RING_ORDER_MAX];
};

/* What back end and front end agreed on in xenstore. */
struct pv_connection {
	uint64_t generation; /* not 0; the same only when a process takes over from one that died */
	uint32_t nr_queues, order;
	uint32_t abi; /* enum pv_abi */
	uint32_t sector_shift;
	uint32_t persistent, discards, read_only; /* booleans */
	struct pv_queue_at queue[PV_QUEUES_MAX];
};

struct pv_disk_user {
	/* The guest broke the rules: nothing is taken from it any more. A pv_disk_disconnect() should follow. */
	void (*broken)(void *ctx, const char *why);
	/* Something that the operator should know, a full disk above all; at most one a second. */
	void (*say)(void *ctx, const char *text);
	/* After pv_disk_disconnect(): nothing is under way, everything of the guest's is unmapped. */
	void (*disconnected)(void *ctx);
	/* After pv_disk_release(): nothing more is asked of the block, nor written to the guest. */
	void (*released)(void *ctx);
};

struct pv_disk;

/*
 * The disk and what it is given: b, ops with guest_ctx, the journal and the user stay the caller's, longer than the disk. -ENOMEM.
 */
int pv_disk_new(struct loop *l, struct block *b, const struct pv_guest_ops *ops, void *guest_ctx,
		struct pv_journal *journal, const struct pv_disk_user *user, void *user_ctx,
		struct pv_disk **out);
/* Disconnected, or never connected. NULL is allowed. */
void pv_disk_free(struct pv_disk *d);

/*
 * Begin, or go on where the process before this one was when the journal is about the same generation. -EINVAL (nonsense in c), -EFAULT (the
 * ring cannot be mapped), -ENOTCONN (the port), -EPROTO (the journal), -ENOMEM, with a sentence; nothing is connected then.
 */
int pv_disk_connect(struct pv_disk *d, const struct pv_connection *c, struct pgr_error *err);
/* There was an event on that port of ours. Others' ports are ignored. */
void pv_disk_event(struct pv_disk *d, uint32_t port);
/* Take no more, finish what is under way, then disconnected(). What waits for room gets an error. */
void pv_disk_disconnect(struct pv_disk *d);
/*
 * Take no more, finish what the block layer has, then released(). What was taken and not begun, or waits for room, stays in the journal and in the guest:
 * whoever serves the guest next does it, another process above all.
 */
void pv_disk_release(struct pv_disk *d);
/* After released(): go on, over b, which holds what the block before it did. */
void pv_disk_go_on(struct pv_disk *d, struct block *b);
/* The block has another size now. */
void pv_disk_resized(struct pv_disk *d);
/* Requests under way. */
unsigned pv_disk_running(const struct pv_disk *d);
/* Rings, and how many requests each has room for; 0: it is not connected. */
unsigned pv_disk_rings(const struct pv_disk *d, uint32_t *entries);

#endif
