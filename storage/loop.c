// SPDX-License-Identifier: MIT
/* epoll for descriptors, an eventfd for posts of other threads, a timerfd for the timer that is next. */
#include "storage/loop.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_A_TURN 64
#define NS_PER_SECOND 1000000000u

struct task_list {
	struct loop_task *first, **end;
};

struct loop {
	int epoll, clock;
	struct loop_watch post, tick;
	struct epoll_event
		event[EVENTS_A_TURN]; /* of this turn; data.ptr NULL: unwatched meanwhile */
	int nr_events;
	struct loop_timer *timers; /* by time */
	uint64_t clock_set;	   /* what the timerfd is set to, 0: off */
	struct task_list tasks;
	uint64_t spin_most, spin; /* look for so long before sleeping: at most, now */
	pthread_mutex_t lock;	  /* of what follows */
	struct task_list posted;
	atomic_bool stop;
	bool inside;
	struct {
		void *object;
		void (*end)(void *object);
	} slot[LOOP_SLOTS];
};

static void list_init(struct task_list *list)
{
	list->first = NULL;
	list->end = &list->first;
}

static void list_add(struct task_list *list, struct loop_task *t)
{
	if (t->queued)
		return;
	t->queued = true;
	t->next = NULL;
	*list->end = t;
	list->end = &t->next;
}

static void ring(struct loop *l)
{
	const uint64_t one = 1;

	/* It fails only when the counter is full, and then it rings anyway. */
	while (write(l->post.fd, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

static void quiet(int fd)
{
	uint64_t count;

	while (read(fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

uint64_t loop_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

static void set_clock(struct loop *l)
{
	uint64_t at = l->timers ? l->timers->at_ns : 0;
	struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at / NS_PER_SECOND),
					       .tv_nsec = (long)(at % NS_PER_SECOND)}};

	if (at == l->clock_set)
		return;
	l->clock_set = at;
	timerfd_settime(l->clock, TFD_TIMER_ABSTIME, &when, NULL);
}

void loop_arm(struct loop *l, struct loop_timer *t, uint64_t at_ns)
{
	struct loop_timer **at = &l->timers;

	loop_disarm(l, t);
	t->at_ns = at_ns ? at_ns : 1;
	while (*at && (*at)->at_ns <= t->at_ns)
		at = &(*at)->next;
	t->next = *at;
	if (t->next)
		t->next->link = &t->next;
	t->link = at;
	*at = t;
	set_clock(l);
}

void loop_disarm(struct loop *l, struct loop_timer *t)
{
	if (!t->link)
		return;
	*t->link = t->next;
	if (t->next)
		t->next->link = t->link;
	t->link = NULL;
	set_clock(l);
}

static void on_tick(struct loop_watch *w, uint32_t events)
{
	struct loop *l = (struct loop *)((char *)w - offsetof(struct loop, tick));
	uint64_t now = loop_now_ns();

	(void)events;
	quiet(w->fd);
	l->clock_set = 0;
	while (l->timers && l->timers->at_ns <= now) {
		struct loop_timer *t = l->timers;

		loop_disarm(l, t);
		t->fire(t);
	}
	set_clock(l);
}

static void on_post(struct loop_watch *w, uint32_t events)
{
	struct loop *l = (struct loop *)((char *)w - offsetof(struct loop, post));
	struct loop_task *t, *next;

	(void)events;
	quiet(w->fd);
	pthread_mutex_lock(&l->lock);
	t = l->posted.first;
	list_init(&l->posted);
	/* From here on they may be posted again. */
	for (next = t; next; next = next->next)
		next->queued = false;
	pthread_mutex_unlock(&l->lock);
	while (t) {
		next = t->next;
		t->run(t);
		t = next;
	}
}

void loop_defer(struct loop *l, struct loop_task *t)
{
	list_add(&l->tasks, t);
}

void loop_post(struct loop *l, struct loop_task *t)
{
	pthread_mutex_lock(&l->lock);
	list_add(&l->posted, t);
	pthread_mutex_unlock(&l->lock);
	ring(l);
}

static void run_tasks(struct loop *l)
{
	while (l->tasks.first) {
		struct loop_task *t = l->tasks.first;

		l->tasks.first = t->next;
		if (!t->next)
			l->tasks.end = &l->tasks.first;
		t->queued = false;
		t->run(t);
	}
}

void loop_spin(struct loop *l, uint64_t most_ns)
{
	l->spin_most = most_ns;
	l->spin = 0;
}

/*
 * Until something happens. A wait that ended within the time that may be spent with looking would have been shorter without the sleep: the next one
 * looks first. One that took longer was not worth it: the next one sleeps at once.
 */
static int wait_events(struct loop *l)
{
	uint64_t began, now;
	int nr = 0;

	if (!l->spin_most)
		return epoll_wait(l->epoll, l->event, EVENTS_A_TURN, -1);
	began = now = loop_now_ns();
	while (!nr && now - began < l->spin) {
		nr = epoll_wait(l->epoll, l->event, EVENTS_A_TURN, 0);
		now = loop_now_ns();
	}
	if (!nr) {
		nr = epoll_wait(l->epoll, l->event, EVENTS_A_TURN, -1);
		now = loop_now_ns();
	}
	l->spin = now - began <= l->spin_most ? l->spin_most : 0;
	return nr;
}

void loop_turn(struct loop *l, bool wait)
{
	bool worked = l->tasks.first != NULL;

	l->inside = true;
	run_tasks(l);
	l->inside = false;
	l->nr_events =
		wait && !worked ? wait_events(l) : epoll_wait(l->epoll, l->event, EVENTS_A_TURN, 0);
	l->inside = true;
	for (int i = 0; i < l->nr_events; i++) {
		struct loop_watch *w = l->event[i].data.ptr;

		if (w)
			w->ready(w, l->event[i].events);
	}
	l->nr_events = 0;
	run_tasks(l);
	l->inside = false;
}

void loop_run(struct loop *l)
{
	while (!atomic_exchange(&l->stop, false))
		loop_turn(l, true);
}

void loop_stop(struct loop *l)
{
	atomic_store(&l->stop, true);
	ring(l);
}

bool loop_inside(const struct loop *l)
{
	return l->inside;
}

int loop_watch(struct loop *l, struct loop_watch *w, uint32_t events, struct pgr_error *err)
{
	struct epoll_event e = {.events = events, .data.ptr = w};

	if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, w->fd, &e) == 0)
		return 0;
	return pgr_fail_errno(err, -errno, "cannot watch descriptor %d", w->fd);
}

void loop_rewatch(struct loop *l, struct loop_watch *w, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = w};

	epoll_ctl(l->epoll, EPOLL_CTL_MOD, w->fd, &e);
}

void loop_unwatch(struct loop *l, struct loop_watch *w)
{
	epoll_ctl(l->epoll, EPOLL_CTL_DEL, w->fd, NULL);
	for (int i = 0; i < l->nr_events; i++)
		if (l->event[i].data.ptr == w)
			l->event[i].data.ptr = NULL;
}

void loop_attach(struct loop *l, enum loop_slot slot, void *object, void (*end)(void *object))
{
	l->slot[slot].object = object;
	l->slot[slot].end = end;
}

void *loop_attached(const struct loop *l, enum loop_slot slot)
{
	return l->slot[slot].object;
}

int loop_create(struct loop **out, struct pgr_error *err)
{
	struct loop *l = calloc(1, sizeof(*l));
	int ret;

	if (!l)
		return pgr_fail(err, -ENOMEM, "no memory for an event loop");
	list_init(&l->tasks);
	list_init(&l->posted);
	pthread_mutex_init(&l->lock, NULL);
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	l->clock = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	l->tick = (struct loop_watch){.fd = l->clock, .ready = on_tick};
	l->post =
		(struct loop_watch){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .ready = on_post};
	if (l->epoll < 0 || l->clock < 0 || l->post.fd < 0) {
		ret = pgr_fail_errno(err, -errno, "cannot make an event loop");
		loop_free(l);
		return ret;
	}
	ret = loop_watch(l, &l->tick, EPOLLIN, err);
	if (!ret)
		ret = loop_watch(l, &l->post, EPOLLIN, err);
	if (ret) {
		loop_free(l);
		return ret;
	}
	*out = l;
	return 0;
}

void loop_free(struct loop *l)
{
	if (!l)
		return;
	/* Fibers last: the others may still have some. */
	for (int i = LOOP_SLOTS - 1; i >= 0; i--)
		if (l->slot[i].end)
			l->slot[i].end(l->slot[i].object);
	if (l->epoll >= 0)
		close(l->epoll);
	if (l->clock >= 0)
		close(l->clock);
	if (l->post.fd >= 0)
		close(l->post.fd);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
