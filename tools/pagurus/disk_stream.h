/* SPDX-License-Identifier: MIT */
/* A disk, byte after byte, to a descriptor: a pipe, or a file whose holes are left out. */
#ifndef PAGURUS_DISK_STREAM_H
#define PAGURUS_DISK_STREAM_H

#include "storage/block.h"

/*
 * Write all of the disk to fd, as a raw image of whole sectors; Ctrl-C (interrupt.h) ends it also when nobody reads: -ECANCELED. Nothing of it is left
 * in a file then, nor after a failure; what has gone into a pipe is gone. -errno with a sentence. Waiting; the loop stands still while nobody reads.
 */
int disk_stream(struct block *from, int fd, struct pgr_error *err);

#endif
