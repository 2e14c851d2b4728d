// SPDX-License-Identifier: MIT
#include "storage/aio.h"

#include <errno.h>
#include <libaio.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "storage/fiber.h"

#define EVENTS_AT_ONCE 64

struct aio_queue {
	struct loop *loop;
	io_context_t context;
	struct loop_watch ready;
	struct loop_task submit;
	struct iocb *pending[AIO_DEPTH]; /* to go to the kernel */
	unsigned nr_pending;
	unsigned used; /* places, pending ones included */
	struct wait_queue places;
};

struct flight {
	struct iocb cb;
	struct wait wait;
	int64_t result;
};

static void land(struct iocb *cb, int64_t result)
{
	struct flight *f = (struct flight *)cb;

	f->result = result;
	wait_end(&f->wait);
}

static void reap(struct aio_queue *q)
{
	struct io_event event[EVENTS_AT_ONCE];
	struct timespec none = {0};
	int nr;

	do {
		nr = io_getevents(q->context, 0, EVENTS_AT_ONCE, event, &none);
		for (int i = 0; i < nr; i++)
			land(event[i].obj, (int64_t)event[i].res);
	} while (nr == EVENTS_AT_ONCE || nr == -EINTR);
}

/* Edge-triggered: each request that ends rings again, whatever the eventfd counts, so that nobody has to read it. */
static void on_ready(struct loop_watch *w, uint32_t events)
{
	(void)events;
	reap((struct aio_queue *)((char *)w - offsetof(struct aio_queue, ready)));
}

/*
 * The kernel takes as many as it can. -EAGAIN: no room in its ring, which cannot be when it has fewer than AIO_DEPTH, or no memory; then they
 * stay until others have come back. Any other error is that of the first one.
 */
static void submit(struct loop_task *t)
{
	struct aio_queue *q = (struct aio_queue *)((char *)t - offsetof(struct aio_queue, submit));
	unsigned at = 0;

	while (at < q->nr_pending) {
		int nr = io_submit(q->context, (long)(q->nr_pending - at), q->pending + at);

		if (nr > 0)
			at += (unsigned)nr;
		else if (nr == -EAGAIN && q->used > q->nr_pending - at)
			break;
		else if (nr != -EINTR)
			land(q->pending[at++], nr < 0 ? nr : -EIO);
	}
	for (unsigned i = at; i < q->nr_pending; i++)
		q->pending[i - at] = q->pending[i];
	q->nr_pending -= at;
	/* What was in the page cache, or on a device of memory, is done by now. */
	reap(q);
}

static void queue_end(void *object)
{
	struct aio_queue *q = object;

	loop_unwatch(q->loop, &q->ready);
	io_destroy(q->context);
	close(q->ready.fd);
	free(q);
}

/* NULL: *why says why. */
static struct aio_queue *queue_of(struct loop *l, int *why)
{
	struct aio_queue *q = loop_attached(l, LOOP_AIO);

	if (q)
		return q;
	*why = -ENOMEM;
	q = calloc(1, sizeof(*q));
	if (!q)
		return NULL;
	q->loop = l;
	q->submit.run = submit;
	*why = io_setup(AIO_DEPTH, &q->context);
	if (*why)
		goto no_context;
	q->ready = (struct loop_watch){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
				       .ready = on_ready};
	*why = -errno;
	if (q->ready.fd < 0)
		goto no_eventfd;
	*why = loop_watch(l, &q->ready, EPOLLIN | EPOLLET, NULL);
	if (*why)
		goto no_watch;
	loop_attach(l, LOOP_AIO, q, queue_end);
	return q;
no_watch:
	close(q->ready.fd);
no_eventfd:
	io_destroy(q->context);
no_context:
	free(q);
	return NULL;
}

static void prepare(struct iocb *cb, const struct aio_job *job)
{
	switch (job->op) {
	case AIO_READ:
		io_prep_preadv(cb, job->fd, job->iov, (int)job->nr_iov, (long long)job->offset);
		break;
	case AIO_WRITE:
		io_prep_pwritev(cb, job->fd, job->iov, (int)job->nr_iov, (long long)job->offset);
		if (job->durable)
			cb->aio_rw_flags = RWF_DSYNC;
		break;
	case AIO_SYNC:
		io_prep_fdsync(cb, job->fd);
		break;
	}
}

int64_t aio(struct loop *l, const struct aio_job *job)
{
	int why = 0;
	struct aio_queue *q = queue_of(l, &why);
	struct flight f = {.result = 0};

	if (!q)
		return why;
	if (q->used == AIO_DEPTH)
		wait_queue_join(&q->places, l);
	else
		q->used++;
	prepare(&f.cb, job);
	io_set_eventfd(&f.cb, q->ready.fd);
	wait_begin(&f.wait, l);
	q->pending[q->nr_pending++] = &f.cb;
	loop_defer(l, &q->submit);
	wait_for(&f.wait);
	/* Handed over, when somebody waits. */
	if (!wait_queue_wake(&q->places))
		q->used--;
	if (q->nr_pending)
		loop_defer(l, &q->submit);
	return f.result;
}
