/* SPDX-License-Identifier: MIT */
/*
 * Fibers: code that reads as if it waited, on a loop that never does.
 *
 * A fiber is a function with a stack of its own. Where it has to wait it hands the processor back to the loop and goes on when what it
 * waited for has come. So a backend is written as plain code, "read the table, then write the data, then the entry", and hundreds of
 * requests are under way in one thread.
 *
 * Waiting works outside of a fiber too: there it turns the loop until the time has come. That is how a tool, or a test, calls the waiting
 * functions of block.h directly. In a callback of the loop nothing may wait: that is a mistake in the program, and it aborts with a message.
 *
 * One thread: that of the loop. No fiber is ever interrupted: between two waits nobody else runs, and what a fiber looks at there does not
 * change. Stacks have FIBER_STACK bytes and a guard page; they are kept for the next fiber, FIBER_KEEP of them at most.
 */
#ifndef PAGURUS_FIBER_H
#define PAGURUS_FIBER_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/loop.h"

#define FIBER_STACK (256u << 10) /* of which only what was used takes up memory */
#define FIBER_KEEP  128u

/* Begin run(ctx) on a fiber, at once, until its first wait; the call returns then. -ENOMEM: nothing was run. */
int fiber_start(struct loop *l, void (*run)(void *ctx), void *ctx);
/* Whether the caller is a fiber. */
bool fiber_inside(void);

struct fiber;

/* ---- to wait for something once ---- */

struct wait {
	struct loop *loop;
	struct fiber *fiber; /* NULL: the thread itself */
	bool over;
};

/* Before what is waited for can happen; by who will wait. */
void wait_begin(struct wait *w, struct loop *l);
/* It has happened. May come before wait_for(). The waiter goes on later, not in this call. */
void wait_end(struct wait *w);
/* Until wait_end(). w must stay where it is. */
void wait_for(struct wait *w);

/* ---- to wait in a queue ---- */

struct waiter {
	struct wait wait;
	struct waiter *next;
};

struct wait_queue {
	struct waiter *first, *last;
};

/* At the end of the queue, until it is this one's turn. */
void wait_queue_join(struct wait_queue *q, struct loop *l);
/* The same in steps, for one who may leave before that: wait_for(&w->wait) follows. w must stay where it is. */
void wait_queue_enter(struct wait_queue *q, struct waiter *w, struct loop *l);
/* Out of the queue, where it is until it is its turn (w->wait.over): nothing happens then. */
void wait_queue_leave(struct wait_queue *q, struct waiter *w);
/* Let the first go on; false: there is none. */
bool wait_queue_wake(struct wait_queue *q);
void wait_queue_wake_all(struct wait_queue *q);

/* ---- a lock; first come, first served ---- */

struct fiber_lock {
	struct wait_queue queue;
	bool held;
};

void fiber_lock(struct fiber_lock *k, struct loop *l);
void fiber_unlock(struct fiber_lock *k);

/* Let the others run before going on. */
void fiber_yield(struct loop *l);
/* Until then, by the loop's clock (loop_now_ns()). */
void fiber_sleep_until(struct loop *l, uint64_t at_ns);

#endif
