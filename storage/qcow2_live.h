/* SPDX-License-Identifier: MIT */
/*
 * The layers of an image that is open and in use, changed in steps, in the process that has it open. What its files are called is the matter of somebody
 * else, who perhaps has the right to open and rename them where this process has not; live.h has the order of both. Waiting functions.
 *
 * Layer 0 is the disk's own, n + 1 is what n stands on. While a layer is being merged into the one below it both stay in the chain, and the disk reads
 * the same: what the upper one says itself hides what is written into the lower one.
 */
#ifndef PAGURUS_QCOW2_LIVE_H
#define PAGURUS_QCOW2_LIVE_H

#include "storage/block.h"
#include "storage/disk_copy.h"

struct qcow2_prepared;

/*
 * Hold the disk's requests with everything flushed, and open the empty image in `file` as its next layer. On success either qcow2_live_switch() or
 * qcow2_live_abandon() follows, and lets the requests go on. file is taken over, also on failure. name: what the present file will be called.
 * -EOPNOTSUPP: it is no image, or has too many layers.
 */
int qcow2_live_prepare(struct block *disk, struct block *file, const char *name,
		       struct qcow2_prepared **out, struct pgr_error *err);
/* When the requests began to be held, by the loop's clock. */
uint64_t qcow2_live_held_at(const struct qcow2_prepared *p);
/* The names were exchanged: from now on what is written goes to the new layer. */
void qcow2_live_switch(struct qcow2_prepared *p);
/* They were not: nothing has happened. */
void qcow2_live_abandon(struct qcow2_prepared *p);

/* That layer; NULL: there is none. It stays the disk's. */
struct block *qcow2_live_layer(struct block *disk, unsigned n);

/*
 * Everything that layer n says itself is in the one below it, durably, which then has its size. fd: that file, opened for reading and writing; it is
 * taken over, also on failure; -1: the block below is writable already. c has rate, stop and progress. n is not 0. It may be begun again at any time.
 * -EAGAIN: somebody else has the lower file open.
 */
int qcow2_live_merge(struct block *disk, unsigned n, int fd, struct disk_copy *c,
		     struct pgr_error *err);

/* Layer n goes out of the chain, after it was merged; the one below it has its name from now on. */
int qcow2_live_drop(struct block *disk, unsigned n, struct pgr_error *err);
/*
 * The same with layer 1, where the one below it keeps its name: the disk's own layer, which has to be one that was made here, says durably that it stands on
 * that. name: as its header is to have it.
 */
int qcow2_live_rebase(struct block *disk, const char *name, struct pgr_error *err);

#endif
