/* SPDX-License-Identifier: MIT */
/*
 * System calls that have no asynchronous form (fallocate, BLKDISCARD, ftruncate, a reflink, opening a file) in one thread beside the loop,
 * so that a slow one does not hold up the others' requests. One thread a loop, begun with the first call; it takes them in their order.
 */
#ifndef PAGURUS_OFFLOAD_H
#define PAGURUS_OFFLOAD_H

#include "storage/loop.h"

/*
 * Run work(ctx) in that thread and wait for it; what it returned, or -ENOMEM or -EAGAIN when there is no thread and none can be made.
 * work() may use nothing of the loop, of fibers or of a block.
 */
int offload(struct loop *l, int (*work)(void *ctx), void *ctx);

#endif
