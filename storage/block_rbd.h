/* SPDX-License-Identifier: MIT */
/*
 * A disk in a Ceph cluster, through librbd (rbd_library.h): rbd:POOL/IMAGE[@SNAPSHOT][?conf=PATH&id=USER]. Ceph's threads do the work; the loop hears of it when
 * it is done, and nothing waits in it.
 *
 * Who writes takes the image's exclusive lock for itself, so that another writer of `pagurus` is refused, and one that Ceph would have taken turns with
 * gets an error instead. An image without that feature is locked against nobody, which block_info.note says; nor are readers kept out, as on other disks.
 *
 * A cluster whose daemons are away is waited for, for ever: requests are not lost and go on when it is back.
 *
 * librbd keeps writes in memory until the first flush says that the disk's user knows of flushes and after that; a flush covers them, as block.h promises.
 */
#ifndef PAGURUS_BLOCK_RBD_H
#define PAGURUS_BLOCK_RBD_H

#include "storage/block.h"
#include "storage/snapshots.h"

/*
 * Waiting. options: read_only, unlocked, max_requests, block_size. -EINVAL (the name), -ENOPKG (librbd is not there), -ENOENT, -EROFS (a snapshot is to be
 * written), -EAGAIN (in use), -ETIMEDOUT, with a sentence.
 */
int block_open_rbd(struct loop *l, const char *name, const struct block_options *o,
		   struct block **out, struct pgr_error *err);

/* A new image of so many bytes, which takes up no room yet. Waiting. -EEXIST and the above. */
int block_rbd_create(struct loop *l, const char *name, uint64_t size, struct pgr_error *err);

/*
 * Ceph's own snapshots. To make one and to remove one works beside who has the disk. Ceph reverts by copying back what changed: a cut leaves a part of that, and
 * the same again does the rest.
 */
extern const struct snapshots_ops block_rbd_snapshots;

#endif
