/* SPDX-License-Identifier: MIT */
/*
 * What a disk's process gives up. A guest that takes it over through a mistake of ours has its own disk, and no way to anything else. And its relay: a server that
 * takes that over has the bytes of its own disk, and this host's key, which TLS needs.
 */
#ifndef PAGURUS_BLK_CONFINE_H
#define PAGURUS_BLK_CONFINE_H

#include <sys/types.h>

#include "common/error.h"
#include "storage/loop.h"

/*
 * Before the disk is opened, and before there is a thread: become user and group uid, for good, with the right to open files (CAP_DAC_OVERRIDE)
 * and nothing else. -errno, with a sentence.
 */
int confine_user(uid_t uid, struct pgr_error *err);

/*
 * When everything is open: no right at all, in none of the loop's threads, and only the system calls, and ioctl()s, that serving a disk needs; others fail with
 * EPERM. Waiting.
 */
int confine_calls(struct loop *l, struct pgr_error *err);

/* The same for a relay (relay.h), a process of one thread: it may read and write what is open, wait, and end. */
int confine_relay(struct pgr_error *err);

#endif
