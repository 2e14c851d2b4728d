/* SPDX-License-Identifier: MIT */
/*
 * A disk that is copied to another one while it is in use: a filter block over the two, whose users notice nothing.
 *
 *   COPY      what the source holds goes to the destination, chunk by chunk, then what was changed meanwhile, in rounds. Writes go to the source
 *             only and are remembered.
 *   THROUGH   a round that brought little: from now on writes go to both, and are done when both are. So what is left gets less whatever
 *             the load is.
 *   EQUAL     nothing is left: whatever is done on the source is done on the destination. Until the end.
 *   FAILED    the destination failed: the disk goes on over the source alone, as if there were no mirror.
 *
 * The source decides: reads, flushes and failures are its own. The destination's caches are flushed once, at the end.
 *
 * ---- Why they are equal at the end ----
 *
 *   1. A chunk's bit is cleared before the chunk is read, and a write that goes to the source only sets it when it is over (dirty.h). EQUAL needs
 *      all bits clear and nothing of that kind under way, nor a chunk being copied.
 *   2. A write that goes to both holds its range alone, as the copying of a chunk does: the destination never gets what was read before it after
 *      it, and two writes of the same sector reach both disks in the same order.
 *   3. It is copied to a buffer of ours first: the user's memory may change while it is written, and then it would not be the same twice.
 *   4. A discard may leave zeros or what was there, so with both disks it becomes zeros on both, or nothing.
 *   5. One that failed on the source sets its bits: the chunk is copied again.
 *
 * One loop for both disks. Waiting functions, but for mirror_status().
 */
#ifndef PAGURUS_MIRROR_H
#define PAGURUS_MIRROR_H

#include "storage/block.h"

struct mirror_options {
	uint64_t
		rate; /* bytes a second of copying, 0: no limit; what users write is not held back */
	bool zeroed; /* the destination is new and all zeros: those of the first copy are left out */
};

enum mirror_phase { MIRROR_COPY, MIRROR_THROUGH, MIRROR_EQUAL, MIRROR_FAILED };

struct mirror_status {
	enum mirror_phase phase;
	uint64_t size, left;  /* bytes of the disk, and of it still to copy */
	uint64_t copied;      /* bytes so far, zeros included */
	unsigned rounds;      /* over the whole disk */
	struct pgr_error why; /* FAILED */
};

/*
 * Begin. On success both disks belong to the mirror, and whoever used the source uses *out in its place: put it there while the source is held
 * (block_quiesce()). -EINVAL: the destination is smaller, or of another loop. -EROFS, -ENOMEM.
 */
int mirror_open(struct block *source, struct block *destination, const struct mirror_options *o,
		struct block **out, struct pgr_error *err);
void mirror_status(const struct block *b, struct mirror_status *out);
/* Until EQUAL, or FAILED: then its error. */
int mirror_wait(struct block *b, struct pgr_error *err);

enum mirror_end {
	MIRROR_STAY, /* the disk goes on over the source; the destination is a copy of this moment, closed */
	MIRROR_MOVE, /* the disk goes on over the destination; the source is a copy of this moment, closed */
};

/*
 * The switch, for whoever moves a guest: waits for EQUAL, holds the requests, flushes the destination, and goes on over one of the two. With the guest
 * stopped it takes one flush. After an error the disk is over the source, and not a mirror any more. Afterwards the block is a plain filter.
 */
int mirror_finish(struct block *b, enum mirror_end end, struct pgr_error *err);

/* The same at once, whatever is left to copy: the disk goes on over the source, the destination is closed and of no use. */
void mirror_cancel(struct block *b);

/*
 * Take the filter away after its end, while nothing is under way in it: it is freed, and the disk that it was over is the caller's again.
 */
struct block *mirror_unwrap(struct block *b);

#endif
