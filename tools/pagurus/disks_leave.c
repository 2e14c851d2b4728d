// SPDX-License-Identifier: MIT
/*
 * Two threads for each disk: one brings bytes to the target and back (disk_lane.h), one listens to the disk's server. The mirror's end of the socket between
 * them is closed here when the server has given its last answer, for until then nobody else would see that it is gone.
 */
#include "tools/pagurus/disks_leave.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "migrate/session_internal.h"
#include "tools/pagurus/disk_lane.h"
#include "tools/pagurus/disk_server.h"
#include "tools/pagurus/message.h"

struct leaving {
	struct disks_leave *l;
	const struct guest_disk *disk;
	unsigned number;
	struct disk_lane lane;
	int mirror; /* the server's end of the socket */
	pthread_t carrier, listener;
	bool carrying, listening; /* there is such a thread to join */
	/* Under l->lock. */
	bool connected; /* lane.channel is there */
	bool same, finished;
	bool carried; /* its way has ended */
	uint64_t copied, left;
};

struct disks_leave {
	struct disks_leave_options o;
	struct leaving leaving[PGR_DISKS_MAX];
	atomic_bool over;     /* as `ending`: a server that says nothing more is not waited for */
	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	bool stopping, ending;
	struct pgr_error failed; /* the first that went wrong */
};

static void fail(struct leaving *d, const struct pgr_error *why)
{
	struct disks_leave *l = d->l;

	pthread_mutex_lock(&l->lock);
	if (!l->failed.code && !l->ending) {
		l->failed = *why;
		pgr_fail_prefix(&l->failed, "disk %s cannot be taken along", d->disk->vdev);
	}
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

/* ---- the server's side ---- */

static void on_progress(void *ctx, const json_t *answer)
{
	struct leaving *d = ctx;
	const char *phase = message_text(answer, "phase");

	pthread_mutex_lock(&d->l->lock);
	d->copied = message_number(answer, "copied");
	d->left = message_number(answer, "left");
	/* From then on it does not get less, whatever the guest writes. */
	d->same = !strcmp(phase, "through") || !strcmp(phase, "equal");
	pthread_cond_broadcast(&d->l->changed);
	pthread_mutex_unlock(&d->l->lock);
	if (d->same)
		atomic_store(&d->lane.rate, 0);
}

static void *listen_to_mirror(void *ctx)
{
	struct leaving *d = ctx;
	struct disks_leave *l = d->l;
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = disk_server_mirror(l->o.folder, d->disk->path, d->mirror, &l->over, on_progress, d,
				    &err);

	/* A server that does not answer may have it yet. */
	if (rc)
		shutdown(d->mirror, SHUT_RDWR);
	close(d->mirror);
	pthread_mutex_lock(&l->lock);
	if (!rc && !l->stopping)
		rc = pgr_fail(
			&err, -EIO,
			"its server let go of it while the guest used it; is somebody else moving the guest?");
	d->finished = !rc;
	/* Its last words are of before the end. */
	if (!rc && d->copied < d->disk->size)
		d->copied = d->disk->size;
	if (!rc)
		d->left = 0;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	if (rc)
		fail(d, &err);
	return NULL;
}

/* ---- the target's side ---- */

/* False: it is too late. */
static bool take_channel(struct leaving *d, struct channel *c)
{
	bool wanted;

	pthread_mutex_lock(&d->l->lock);
	wanted = !d->l->ending;
	d->lane.channel = c;
	d->connected = wanted;
	pthread_mutex_unlock(&d->l->lock);
	if (!wanted)
		c->ops->close(c);
	return wanted;
}

static int reach_target(struct leaving *d, struct pgr_error *err)
{
	const struct disks_leave_options *o = &d->l->o;
	struct channel *c;
	int rc = o->connect(o->connect_ctx, 0, PGR_PURPOSE_DISK, &c, err);

	if (rc)
		return rc;
	if (!take_channel(d, c))
		return pgr_fail(err, -ECANCELED, "cancelled");
	return disk_lane_attach(&d->lane, o->session, d->number, err);
}

static int begin_mirror(struct leaving *d, struct pgr_error *err)
{
	int rc = -pthread_create(&d->listener, NULL, listen_to_mirror, d);

	if (rc)
		return pgr_fail_errno(err, rc, "no thread to listen to its server");
	d->listening = true;
	return 0;
}

static void *carry(void *ctx)
{
	struct leaving *d = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = reach_target(d, &err);

	if (!rc)
		rc = begin_mirror(d, &err);
	if (rc)
		close(d->mirror);
	else
		rc = disk_lane_run(&d->lane, &err);
	if (rc)
		fail(d, &err);
	/* What is left of the mirror ends with its socket. */
	shutdown(d->lane.fd, SHUT_RDWR);
	pthread_mutex_lock(&d->l->lock);
	d->carried = true;
	pthread_cond_broadcast(&d->l->changed);
	pthread_mutex_unlock(&d->l->lock);
	return NULL;
}

static int begin_one(struct disks_leave *l, unsigned i, struct pgr_error *err)
{
	struct leaving *d = &l->leaving[i];
	int pair[2], rc;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return pgr_fail_errno(err, -errno, "no socket for a disk");
	d->l = l;
	d->number = i;
	d->disk = &l->o.disks[i];
	d->left = d->disk->size;
	d->lane.fd = pair[0];
	atomic_store(&d->lane.rate, l->o.rate);
	d->mirror = pair[1];
	rc = -pthread_create(&d->carrier, NULL, carry, d);
	if (rc) {
		close(pair[0]);
		close(pair[1]);
		return pgr_fail_errno(err, rc, "no thread for a disk");
	}
	d->carrying = true;
	return 0;
}

/* ---- what the session asks for ---- */

static int leave_begin(void *ctx, struct pgr_error *err)
{
	struct disks_leave *l = ctx;
	int rc = 0;

	for (unsigned i = 0; i < l->o.nr && !rc; i++)
		rc = begin_one(l, i, err);
	return rc;
}

static int leave_look(void *ctx, uint64_t *copied, uint64_t *left, bool *same,
		      struct pgr_error *err)
{
	struct disks_leave *l = ctx;
	int rc;

	*copied = *left = 0;
	*same = true;
	pthread_mutex_lock(&l->lock);
	for (unsigned i = 0; i < l->o.nr; i++) {
		const struct leaving *d = &l->leaving[i];

		*copied += d->copied;
		*left += d->left;
		*same = *same && (d->same || d->finished);
	}
	rc = l->failed.code;
	if (rc)
		*err = l->failed;
	pthread_mutex_unlock(&l->lock);
	return rc;
}

static void leave_stopping(void *ctx)
{
	struct disks_leave *l = ctx;

	pthread_mutex_lock(&l->lock);
	l->stopping = true;
	pthread_mutex_unlock(&l->lock);
}

static bool all_over(const struct disks_leave *l)
{
	for (unsigned i = 0; i < l->o.nr; i++)
		if (!l->leaving[i].finished || !l->leaving[i].carried)
			return false;
	return true;
}

static int leave_finish(void *ctx, unsigned timeout_ms, struct pgr_error *err)
{
	struct disks_leave *l = ctx;
	uint64_t until = session_now_ns() + timeout_ms * 1000000ull;
	bool over, in_time = true;
	int rc;

	pthread_mutex_lock(&l->lock);
	while (!all_over(l) && !l->failed.code && in_time)
		in_time = session_cond_wait_until(&l->changed, &l->lock, until);
	over = all_over(l);
	rc = l->failed.code;
	if (rc)
		*err = l->failed;
	pthread_mutex_unlock(&l->lock);
	if (rc || over)
		return rc;
	return pgr_fail(
		err, -ETIMEDOUT,
		"the guest's disks did not have everything at the target within %u ms of the stop: is the network, or the target's storage, slower than what the guest writes?",
		timeout_ms);
}

static void leave_end(void *ctx)
{
	struct disks_leave *l = ctx;

	pthread_mutex_lock(&l->lock);
	l->ending = true;
	atomic_store(&l->over, true);
	for (unsigned i = 0; i < l->o.nr; i++)
		if (l->leaving[i].connected)
			disk_lane_cut(&l->leaving[i].lane);
	pthread_mutex_unlock(&l->lock);
	for (unsigned i = 0; i < l->o.nr; i++) {
		struct leaving *d = &l->leaving[i];

		if (!d->carrying)
			continue;
		pthread_join(d->carrier, NULL);
		if (d->listening)
			pthread_join(d->listener, NULL);
		d->carrying = d->listening = false;
		if (d->connected) {
			disk_lane_free(&d->lane);
			d->lane.channel->ops->close(d->lane.channel);
		}
		d->connected = false;
		close(d->lane.fd);
	}
}

int disks_leave_new(const struct disks_leave_options *o, struct disks_leave **out,
		    struct source_disks *ops, struct pgr_error *err)
{
	struct disks_leave *l = calloc(1, sizeof(*l));

	if (!l)
		return pgr_fail(err, -ENOMEM, "no memory for disks that come along");
	l->o = *o;
	pthread_mutex_init(&l->lock, NULL);
	session_cond_init(&l->changed);
	*ops = (struct source_disks){.ctx = l,
				     .disks = o->disks,
				     .nr = o->nr,
				     .begin = leave_begin,
				     .look = leave_look,
				     .stopping = leave_stopping,
				     .finish = leave_finish,
				     .end = leave_end};
	*out = l;
	return 0;
}

void disks_leave_free(struct disks_leave *l)
{
	if (!l)
		return;
	pthread_cond_destroy(&l->changed);
	pthread_mutex_destroy(&l->lock);
	free(l);
}
