// SPDX-License-Identifier: MIT
#include "storage/live_lock.h"

#include <errno.h>
#include <stddef.h>

/* What has gone is only looked for: nobody is in a hurry. */
#define LOOK_NS 100000000ull

struct turn {
	struct waiter waiter; /* in the lock's queue until it is its turn, or it leaves */
	struct loop_timer look;
	struct wait_queue *queue;
	const atomic_bool *gone;
	bool left;
};

static void on_look(struct loop_timer *t)
{
	struct turn *turn = (struct turn *)((char *)t - offsetof(struct turn, look));
	struct wait *w = &turn->waiter.wait;

	if (w->over)
		return;
	if (!atomic_load(turn->gone)) {
		loop_arm(w->loop, t, loop_now_ns() + LOOK_NS);
		return;
	}
	wait_queue_leave(turn->queue, &turn->waiter);
	turn->left = true;
	wait_end(w);
}

/* True: it left. Else the lock was handed over. */
static bool wait_for_turn(struct fiber_lock *k, struct loop *l, const atomic_bool *gone)
{
	struct turn turn = {.look = {.fire = on_look}, .queue = &k->queue, .gone = gone};

	wait_queue_enter(&k->queue, &turn.waiter, l);
	loop_arm(l, &turn.look, loop_now_ns() + LOOK_NS);
	wait_for(&turn.waiter.wait);
	loop_disarm(l, &turn.look);
	return turn.left;
}

int live_lock(struct fiber_lock *k, struct loop *l, const struct line_client *c,
	      struct pgr_error *err)
{
	const atomic_bool *gone = line_gone(c);
	bool left = false;

	if (k->held)
		left = wait_for_turn(k, l, gone);
	else
		k->held = true;
	if (!atomic_load(gone))
		return 0;
	if (!left)
		fiber_unlock(k);
	return pgr_fail(err, -ECANCELED, "whoever wanted it has gone; nothing was done");
}
