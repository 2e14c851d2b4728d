// SPDX-License-Identifier: MIT
/*
 * One thread has the loop with the images and their servers, from make() on; each connection has one, too.
 *
 *   make()     PARTIAL is noted, made, noted with its inode, and gets its name; the server is there, with one end of a socket pair as its only client
 *   attach()   whoever comes first for a disk gets the other end
 *   finish()   every connection has ended by itself; the servers are closed, and the images, durably
 *
 * A file gets its name only where there is none, and PARTIAL has the session in its name: so whatever is removed later was made here.
 */
#include "tools/pagurus/disks_arrive.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/file.h"
#include "migrate/session_internal.h"
#include "storage/nbd_server.h"
#include "tools/pagurus/disk_lane.h"
#include "tools/pagurus/disk_target.h"
#include "tools/pagurus/guest_disks.h"
#include "tools/pagurus/units.h"

#define FINISH_NS 30000000000ull

struct arriving {
	struct disk_made made;
	enum pgr_disk_format format;
	uint64_t size;
	struct block *image; /* the loop's thread's, both */
	struct nbd_server *server;
	int fd; /* the server's client; -1: it was given away */
	/* Under a->lock. */
	bool taken, ended; /* by a connection, which has ended well */
};

/* A connection, from when it came. */
struct visitor {
	struct disks_arrive *a;
	struct visitor *next;
	struct disk_lane lane;
	pthread_t thread;
	bool ended; /* it does nothing more, and is to be joined */
};

struct disks_arrive {
	struct disks_arrive_options o;
	struct arriving disk[PGR_DISKS_MAX];
	unsigned nr;
	struct loop *loop;
	pthread_t thread;
	bool threaded; /* there is one to join */

	pthread_mutex_t lock; /* all below */
	pthread_cond_t changed;
	bool made, over; /* make() has done all; nobody is let in any more */
	int ready;	 /* of the loop's thread: 0 not yet, 1, or -errno and `error` */
	struct pgr_error error;
	struct visitor *visitors;
};

/* ---- precheck ---- */

static bool is_there(const char *path)
{
	struct stat st;

	return !lstat(path, &st);
}

/* What disks before this one need in the same place. */
static uint64_t needed_before(const struct guest_description *d, unsigned i, uint64_t place)
{
	uint64_t sum = 0;

	for (unsigned k = 0; k < i; k++) {
		char *folder = strndup(d->disks[k].path, file_folder_length(d->disks[k].path));
		struct statvfs fs;

		if (folder && !statvfs(folder, &fs) && fs.f_fsid == place)
			sum += d->disks[k].used;
		free(folder);
	}
	return sum;
}

static void check_room(const struct guest_description *d, unsigned i, const char *folder,
		       struct guest_refusals *r)
{
	const struct guest_disk *disk = &d->disks[i];
	char needs[UNITS_TEXT], has[UNITS_TEXT];
	struct statvfs fs;
	uint64_t room;

	if (statvfs(folder, &fs)) {
		guest_refuse(r, "disk %s would be %.100s, and that folder cannot be used here: %s",
			     disk->vdev, disk->path, strerror(errno));
		return;
	}
	room = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (needed_before(d, i, fs.f_fsid) + disk->used > room)
		guest_refuse(r, "disk %s needs %s in %.100s, where %s are free", disk->vdev,
			     units_show_size(disk->used, needs), folder,
			     units_show_size(room, has));
}

static int arrive_check(void *ctx, const struct guest_description *d, struct guest_refusals *r,
			struct pgr_error *err)
{
	(void)ctx;
	for (unsigned i = 0; i < d->nr_disks; i++) {
		const struct guest_disk *disk = &d->disks[i];
		char *folder = strndup(disk->path, file_folder_length(disk->path));

		if (!folder)
			return pgr_fail(err, -ENOMEM, "no memory for a name");
		if (!guest_disks_has(d, disk))
			guest_refuse(r, "the guest has no disk %s in %.150s", disk->vdev,
				     disk->path);
		else if (is_there(disk->path))
			guest_refuse(
				r,
				"disk %s would be %.120s, and there is a file of that name here: remove it, or move without --with-disks if both hosts share it",
				disk->vdev, disk->path);
		else
			check_room(d, i, folder, r);
		free(folder);
	}
	return 0;
}

/* ---- files ---- */

static int sync_folder_of(const char *path, struct pgr_error *err)
{
	int rc = file_sync_folder_of(path);

	return rc ? pgr_fail_errno(err, rc, "%s: its folder cannot be made durable", path) : 0;
}

static int remove_one(const char *path, struct pgr_error *err)
{
	if (unlink(path))
		return errno == ENOENT ? 0
				       : pgr_fail_errno(err, -errno, "%s: cannot be removed", path);
	return sync_folder_of(path, err);
}

static bool is_made(const struct disk_made *m, struct stat *st)
{
	return m->inode && !lstat(m->path, st) && st->st_ino == m->inode;
}

const char *disks_arrive_written_since(const struct disk_made *made, unsigned nr, int64_t since)
{
	struct stat st;

	for (unsigned i = 0; i < nr; i++)
		if (is_made(&made[i], &st) && st.st_mtime >= since)
			return made[i].path;
	return NULL;
}

int disks_arrive_remove(const struct disk_made *made, unsigned nr, struct pgr_error *err)
{
	int rc = 0, ret;

	for (unsigned i = 0; i < nr; i++) {
		struct stat st;

		ret = made[i].partial[0] ? remove_one(made[i].partial, err) : 0;
		if (!ret && is_made(&made[i], &st))
			ret = remove_one(made[i].path, err);
		rc = rc ? rc : ret;
	}
	return rc;
}

static int note(struct disks_arrive *a, struct pgr_error *err)
{
	struct disk_made made[PGR_DISKS_MAX];

	for (unsigned i = 0; i < a->nr; i++)
		made[i] = a->disk[i].made;
	return a->o.note ? a->o.note(a->o.ctx, made, a->nr, err) : 0;
}

static int make_image(struct disks_arrive *a, struct arriving *d, struct pgr_error *err)
{
	struct disk_target t = {.loop = a->loop,
				.path = d->made.path,
				.format = d->format == PGR_DISK_QCOW2 ? "qcow2" : "raw",
				.size = d->size,
				.partial = d->made.partial};
	struct stat st;
	int rc = disk_target_open(&t, err);

	d->image = t.to;
	if (!rc && lstat(d->made.partial, &st))
		rc = pgr_fail_errno(err, -errno, "%s: cannot be found", d->made.partial);
	if (!rc)
		d->made.inode = st.st_ino;
	return rc;
}

static int give_name(const struct disk_made *m, struct pgr_error *err)
{
	if (renameat2(AT_FDCWD, m->partial, AT_FDCWD, m->path, RENAME_NOREPLACE))
		return pgr_fail_errno(err, -errno, "%s: cannot get its name", m->path);
	return sync_folder_of(m->path, err);
}

/* ---- the loop's thread ---- */

static int serve(struct disks_arrive *a, struct arriving *d, struct pgr_error *err)
{
	/* The client comes when the source has connected, which it does in its own time. */
	const struct nbd_options o = {.max_connections = 1, .handshake_ms = UINT_MAX};
	const struct nbd_export e = {.name = "", .disk = d->image};
	int pair[2], rc = nbd_server_create(a->loop, &o, &d->server, err);

	if (!rc)
		rc = nbd_server_export(d->server, &e, err);
	if (!rc && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		rc = pgr_fail_errno(err, -errno, "no socket for a disk");
	if (rc)
		return rc;
	d->fd = pair[0];
	return nbd_server_accept(d->server, pair[1], err);
}

static int make_all(struct disks_arrive *a, struct pgr_error *err)
{
	int rc = note(a, err);

	for (unsigned i = 0; i < a->nr && !rc; i++)
		rc = make_image(a, &a->disk[i], err);
	if (!rc)
		rc = note(a, err);
	for (unsigned i = 0; i < a->nr && !rc; i++)
		rc = give_name(&a->disk[i].made, err);
	for (unsigned i = 0; i < a->nr && !rc; i++)
		rc = serve(a, &a->disk[i], err);
	return rc;
}

static int close_all(struct disks_arrive *a, struct pgr_error *err)
{
	int rc = 0, ret;

	for (unsigned i = 0; i < a->nr; i++) {
		struct arriving *d = &a->disk[i];

		nbd_server_free(d->server);
		ret = block_close(d->image, rc ? NULL : err);
		d->server = NULL;
		d->image = NULL;
		rc = rc ? rc : ret;
	}
	return rc;
}

static void tell(struct disks_arrive *a, int ready, const struct pgr_error *err)
{
	pthread_mutex_lock(&a->lock);
	a->ready = ready;
	if (ready < 0)
		a->error = *err;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
}

static void *loop_main(void *ctx)
{
	struct disks_arrive *a = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	int rc = make_all(a, &err);

	if (rc) {
		close_all(a, NULL);
		tell(a, rc, &err);
		return NULL;
	}
	tell(a, 1, NULL);
	loop_run(a->loop);
	rc = close_all(a, &err);
	if (rc)
		tell(a, rc, &err);
	return NULL;
}

/* What came of the images. */
static int end_loop(struct disks_arrive *a, struct pgr_error *err)
{
	int rc;

	if (!a->threaded)
		return 0;
	loop_stop(a->loop);
	pthread_join(a->thread, NULL);
	a->threaded = false;
	loop_free(a->loop);
	a->loop = NULL;
	rc = a->ready < 0 ? a->ready : 0;
	if (rc && err)
		*err = a->error;
	return rc;
}

/* ---- connections ---- */

/* Which disk it may write; NULL with a sentence. Waits until they are made. */
static struct arriving *find_disk(struct visitor *v, unsigned number, struct pgr_error *err)
{
	struct disks_arrive *a = v->a;
	struct arriving *d = NULL;

	pthread_mutex_lock(&a->lock);
	while (!a->made && !a->over)
		pthread_cond_wait(&a->changed, &a->lock);
	if (a->over)
		pgr_fail(err, -ECANCELED, "cancelled");
	else if (number >= a->nr || a->disk[number].taken)
		pgr_fail(err, -EPROTO, "%s: a connection for disk %u, which is none or has one",
			 v->lane.channel->peer, number);
	else
		d = &a->disk[number];
	if (d)
		d->taken = true;
	pthread_mutex_unlock(&a->lock);
	return d;
}

static int receive(struct visitor *v, struct arriving **d, struct pgr_error *err)
{
	struct disk_lane *lane = &v->lane;
	unsigned number;
	int rc = disk_lane_accept(lane, v->a->o.session, &number, err);

	if (rc)
		return rc;
	*d = find_disk(v, number, err);
	if (!*d)
		return err->code;
	pthread_mutex_lock(&v->a->lock);
	lane->fd = (*d)->fd;
	(*d)->fd = -1;
	rc = v->a->over ? pgr_fail(err, -ECANCELED, "cancelled") : 0;
	pthread_mutex_unlock(&v->a->lock);
	if (!rc)
		rc = disk_lane_welcome(lane, v->a->o.session, err);
	return rc ? rc : disk_lane_run(lane, err);
}

static void *visit(void *ctx)
{
	struct visitor *v = ctx;
	struct disks_arrive *a = v->a;
	struct pgr_error err = PGR_ERROR_NONE;
	struct arriving *d = NULL;
	int rc = receive(v, &d, &err);

	pthread_mutex_lock(&a->lock);
	if (d)
		d->ended = !rc;
	if (rc && d && !a->error.code)
		a->error = err;
	disk_lane_free(&v->lane);
	v->lane.channel->ops->close(v->lane.channel);
	if (v->lane.fd >= 0)
		close(v->lane.fd);
	v->ended = true;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

/* Put away who has gone. Caller holds lock, which who has ended does not need any more. */
static void reap_visitors(struct disks_arrive *a)
{
	struct visitor **at = &a->visitors;

	while (*at) {
		struct visitor *v = *at;

		if (!v->ended) {
			at = &v->next;
			continue;
		}
		*at = v->next;
		pthread_join(v->thread, NULL);
		free(v);
	}
}

static void arrive_attach(void *ctx, struct channel *c)
{
	struct disks_arrive *a = ctx;
	struct visitor *v = calloc(1, sizeof(*v));
	unsigned nr = 0;
	bool in = false;

	pthread_mutex_lock(&a->lock);
	reap_visitors(a);
	for (const struct visitor *o = a->visitors; o; o = o->next)
		nr++;
	if (v && !a->over && nr < PGR_DISKS_MAX) {
		*v = (struct visitor){
			.a = a, .next = a->visitors, .lane = {.channel = c, .fd = -1}};
		a->visitors = v;
		in = !pthread_create(&v->thread, NULL, visit, v);
		if (!in)
			a->visitors = v->next;
	}
	pthread_mutex_unlock(&a->lock);
	if (in)
		return;
	free(v);
	c->ops->close(c);
}

/* Nobody comes in any more, and whoever is there goes. */
static void end_visits(struct disks_arrive *a)
{
	pthread_mutex_lock(&a->lock);
	a->over = true;
	for (struct visitor *v = a->visitors; v; v = v->next)
		if (!v->ended)
			disk_lane_cut(&v->lane);
	pthread_cond_broadcast(&a->changed);
	for (reap_visitors(a); a->visitors; reap_visitors(a))
		pthread_cond_wait(&a->changed, &a->lock);
	pthread_mutex_unlock(&a->lock);
}

/* ---- what the session asks for ---- */

static int fill(struct disks_arrive *a, const struct guest_description *d, struct pgr_error *err)
{
	char hex[UNITS_HEX16];

	for (unsigned i = 0; i < d->nr_disks; i++) {
		struct arriving *to = &a->disk[i];

		*to = (struct arriving){
			.format = d->disks[i].format, .size = d->disks[i].size, .fd = -1};
		memcpy(to->made.path, d->disks[i].path, sizeof(to->made.path));
		if (snprintf(to->made.partial, sizeof(to->made.partial), "%s.%s.partial",
			     d->disks[i].path,
			     units_hex16(a->o.session, hex)) >= (int)sizeof(to->made.partial))
			return pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long",
					to->made.path);
	}
	a->nr = d->nr_disks;
	return 0;
}

static int arrive_make(void *ctx, const struct guest_description *d, struct pgr_error *err)
{
	struct disks_arrive *a = ctx;
	int rc = fill(a, d, err);

	if (!rc)
		rc = loop_create(&a->loop, err);
	if (rc)
		return rc;
	rc = -pthread_create(&a->thread, NULL, loop_main, a);
	if (rc) {
		loop_free(a->loop);
		a->loop = NULL;
		return pgr_fail_errno(err, rc, "no thread for the disks");
	}
	a->threaded = true;
	pthread_mutex_lock(&a->lock);
	while (!a->ready)
		pthread_cond_wait(&a->changed, &a->lock);
	rc = a->ready < 0 ? a->ready : 0;
	if (rc)
		*err = a->error;
	a->made = !rc;
	pthread_cond_broadcast(&a->changed);
	pthread_mutex_unlock(&a->lock);
	return rc;
}

static bool all_ended(const struct disks_arrive *a)
{
	for (unsigned i = 0; i < a->nr; i++)
		if (!a->disk[i].ended)
			return false;
	return true;
}

static int arrive_finish(void *ctx, struct pgr_error *err)
{
	struct disks_arrive *a = ctx;
	uint64_t until = session_now_ns() + FINISH_NS;
	bool in_time = true, ended;
	int rc = 0;

	pthread_mutex_lock(&a->lock);
	while (!all_ended(a) && !a->error.code && in_time)
		in_time = session_cond_wait_until(&a->changed, &a->lock, until);
	ended = all_ended(a);
	if (!ended && a->error.code)
		*err = a->error;
	else if (!ended)
		pgr_fail(err, -ETIMEDOUT,
			 "the guest has arrived, and its disks have not: their connections go on");
	rc = ended ? 0 : err->code;
	pthread_mutex_unlock(&a->lock);
	if (rc)
		return rc;
	end_visits(a);
	return end_loop(a, err);
}

static int arrive_remove(void *ctx, struct pgr_error *err)
{
	struct disks_arrive *a = ctx;
	struct disk_made made[PGR_DISKS_MAX];

	end_visits(a);
	end_loop(a, NULL);
	for (unsigned i = 0; i < a->nr; i++)
		made[i] = a->disk[i].made;
	return disks_arrive_remove(made, a->nr, err);
}

int disks_arrive_new(const struct disks_arrive_options *o, struct disks_arrive **out,
		     struct target_disks *ops, struct pgr_error *err)
{
	struct disks_arrive *a = calloc(1, sizeof(*a));

	if (!a)
		return pgr_fail(err, -ENOMEM, "no memory for disks that come along");
	a->o = *o;
	pthread_mutex_init(&a->lock, NULL);
	session_cond_init(&a->changed);
	*ops = (struct target_disks){.ctx = a,
				     .check = arrive_check,
				     .make = arrive_make,
				     .attach = arrive_attach,
				     .finish = arrive_finish,
				     .remove = arrive_remove};
	*out = a;
	return 0;
}

void disks_arrive_free(struct disks_arrive *a)
{
	if (!a)
		return;
	end_visits(a);
	end_loop(a, NULL);
	for (unsigned i = 0; i < a->nr; i++)
		if (a->disk[i].fd >= 0)
			close(a->disk[i].fd);
	pthread_cond_destroy(&a->changed);
	pthread_mutex_destroy(&a->lock);
	free(a);
}
