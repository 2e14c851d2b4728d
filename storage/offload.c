// SPDX-License-Identifier: MIT
#include "storage/offload.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

#include "storage/fiber.h"

struct job {
	struct loop_task over; /* posted to the loop by the thread */
	struct wait wait;
	int (*work)(void *ctx);
	void *ctx;
	int result;
	struct job *next;
};

struct offloader {
	struct loop *loop;
	pthread_t thread;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t wake;
	struct job *first, **end;
	bool ending;
};

static void job_over(struct loop_task *t)
{
	wait_end(&((struct job *)t)->wait);
}

static void *work_off(void *arg)
{
	struct offloader *o = arg;

	pthread_mutex_lock(&o->lock);
	for (;;) {
		struct job *j = o->first;

		if (!j) {
			if (o->ending)
				break;
			pthread_cond_wait(&o->wake, &o->lock);
			continue;
		}
		o->first = j->next;
		if (!o->first)
			o->end = &o->first;
		pthread_mutex_unlock(&o->lock);
		j->result = j->work(j->ctx);
		loop_post(o->loop, &j->over);
		pthread_mutex_lock(&o->lock);
	}
	pthread_mutex_unlock(&o->lock);
	return NULL;
}

static void offloader_end(void *object)
{
	struct offloader *o = object;

	pthread_mutex_lock(&o->lock);
	o->ending = true;
	pthread_cond_signal(&o->wake);
	pthread_mutex_unlock(&o->lock);
	pthread_join(o->thread, NULL);
	pthread_cond_destroy(&o->wake);
	pthread_mutex_destroy(&o->lock);
	free(o);
}

/* Signals are for the thread of the loop. */
static int start_thread(struct offloader *o)
{
	sigset_t all, before;
	int ret;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ret = pthread_create(&o->thread, NULL, work_off, o);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -ret;
}

static int offloader_of(struct loop *l, struct offloader **out)
{
	struct offloader *o = loop_attached(l, LOOP_OFFLOAD);
	int ret;

	if (!o) {
		o = calloc(1, sizeof(*o));
		if (!o)
			return -ENOMEM;
		o->loop = l;
		o->end = &o->first;
		pthread_mutex_init(&o->lock, NULL);
		pthread_cond_init(&o->wake, NULL);
		ret = start_thread(o);
		if (ret) {
			pthread_cond_destroy(&o->wake);
			pthread_mutex_destroy(&o->lock);
			free(o);
			return ret;
		}
		loop_attach(l, LOOP_OFFLOAD, o, offloader_end);
	}
	*out = o;
	return 0;
}

int offload(struct loop *l, int (*work)(void *ctx), void *ctx)
{
	struct job j = {.over = {.run = job_over}, .work = work, .ctx = ctx};
	struct offloader *o;
	int ret = offloader_of(l, &o);

	if (ret)
		return ret;
	wait_begin(&j.wait, l);
	pthread_mutex_lock(&o->lock);
	*o->end = &j;
	o->end = &j.next;
	pthread_cond_signal(&o->wake);
	pthread_mutex_unlock(&o->lock);
	wait_for(&j.wait);
	return j.result;
}
