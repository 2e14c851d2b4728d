/* SPDX-License-Identifier: MIT */
/*
 * Locks on ranges of a disk, among the fibers of one loop.
 *
 * Shared and exclusive; first come, first served among those that meet: who comes after a waiting one that it meets waits, too, so nobody
 * waits for ever. The lock is the caller's memory and stays where it is until it is released. A fiber holds one lock of a set at a time.
 */
#ifndef PAGURUS_RANGE_LOCK_H
#define PAGURUS_RANGE_LOCK_H

#include "storage/fiber.h"

struct range_lock {
	uint64_t begin, end;
	bool exclusive, held;
	struct wait wait;
	struct range_lock *next;
};

/* All that are held or waited for, in the order in which they came. */
struct range_locks {
	struct range_lock *first;
};

/* Bytes begin to end - 1. */
void range_lock(struct range_locks *set, struct range_lock *k, struct loop *l, uint64_t begin,
		uint64_t end, bool exclusive);
void range_unlock(struct range_locks *set, struct range_lock *k);

#endif
