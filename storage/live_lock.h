/* SPDX-License-Identifier: MIT */
/*
 * Whose turn it is to change a disk's layers. A merge may take hours, and whoever waits for its end may have gone long before: then there is nobody
 * any more for whom to do it.
 */
#ifndef PAGURUS_LIVE_LOCK_H
#define PAGURUS_LIVE_LOCK_H

#include "storage/fiber.h"
#include "storage/line_server.h"

/*
 * As fiber_lock(), until it is the turn of this client's command; fiber_unlock() follows. -ECANCELED with a sentence, and without the lock: the client has gone
 * meanwhile, as is noticed while it waits. In a fiber.
 */
int live_lock(struct fiber_lock *k, struct loop *l, const struct line_client *c,
	      struct pgr_error *err);

#endif
