/* SPDX-License-Identifier: MIT */
/*
 * The event loop of a server: file descriptors, timers, and work for a later moment, in one thread.
 *
 * Everything here is called by the thread that turns the loop, except loop_post() and loop_stop(), which any thread may call. Callbacks run
 * in that thread, one after the other; they may call everything here but loop_turn(), loop_run() and loop_free(). Watches, timers and tasks
 * are the caller's memory, zeroed before their first use, and stay where they are while the loop knows them.
 */
#ifndef PAGURUS_LOOP_H
#define PAGURUS_LOOP_H

#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

struct loop;

/* -ENOMEM, -EMFILE. */
int loop_create(struct loop **out, struct pgr_error *err);
/* Nothing may be watched, armed or deferred any more. NULL is allowed. */
void loop_free(struct loop *l);

/* One turn: wait until something happens (or, with wait false, only look), and call who waited for it. */
void loop_turn(struct loop *l, bool wait);
/* Turn until loop_stop(). A stop that came before the run ends it at once. */
void loop_run(struct loop *l);
void loop_stop(struct loop *l);
/*
 * Before the loop sleeps, look for so long whether something happens, while that pays: falling asleep and being woken cost more than that when the
 * next request comes at once. It takes a processor from others for a part of the time that it saves. 0, as in the beginning: never.
 */
void loop_spin(struct loop *l, uint64_t most_ns);
/* Whether the caller is inside a callback of this loop. */
bool loop_inside(const struct loop *l);

/* ---- file descriptors ---- */

struct loop_watch {
	int fd;
	void (*ready)(struct loop_watch *w, uint32_t events); /* EPOLLIN and the like */
};

/* w->fd and w->ready are set. Level-triggered unless the events have EPOLLET. -ENOMEM, -EPERM (a regular file), -EEXIST. */
int loop_watch(struct loop *l, struct loop_watch *w, uint32_t events, struct pgr_error *err);
/* Other events from now on; 0: none but errors. */
void loop_rewatch(struct loop *l, struct loop_watch *w, uint32_t events);
/* Before the descriptor is closed. No call of ready follows, not even one that was due already. */
void loop_unwatch(struct loop *l, struct loop_watch *w);

/* ---- timers ---- */

struct loop_timer {
	void (*fire)(struct loop_timer *t);
	uint64_t at_ns;
	struct loop_timer *next, **link; /* link NULL: not armed */
};

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t loop_now_ns(void);
/* Call t->fire once at that time or soon after; arming it again moves it. */
void loop_arm(struct loop *l, struct loop_timer *t, uint64_t at_ns);
/* Idempotent. */
void loop_disarm(struct loop *l, struct loop_timer *t);

/* ---- later ---- */

struct loop_task {
	void (*run)(struct loop_task *t);
	struct loop_task *next;
	bool queued;
};

/* Run it soon: in this turn when a turn is on, before the loop waits. In the order of the calls; queued already: once. */
void loop_defer(struct loop *l, struct loop_task *t);
/* The same from any thread. A task is given either to loop_defer() or to loop_post(), never to both. */
void loop_post(struct loop *l, struct loop_task *t);

/* ---- what belongs to a loop and ends with it ---- */

enum loop_slot { LOOP_FIBERS, LOOP_AIO, LOOP_OFFLOAD, LOOP_SLOTS };

/* One object in each slot; end() is called by loop_free(). */
void loop_attach(struct loop *l, enum loop_slot slot, void *object, void (*end)(void *object));
void *loop_attached(const struct loop *l, enum loop_slot slot);

#endif
