// SPDX-License-Identifier: MIT
#include "tools/blk/serve.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/disk.h"
#include "storage/fiber.h"
#include "storage/live.h"
#include "storage/nbd_address.h"
#include "storage/pv_disk.h"
#include "storage/pv_mirror.h"
#include "storage/pv_xen.h"
#include "storage/rbd_name.h"
#include "tools/blk/confine.h"
#include "tools/blk/control.h"

#define TRY_AGAIN_MS 200
#define PROGRESS_NS  200000000ull

struct server {
	struct loop *loop;
	struct pv_xen *guest;
	struct pv_journal *journal;
	struct block *block;
	struct pv_disk *disk;
	struct loop_watch control, events;
	struct block_request resize, close;
	bool resizing, closing;
	struct live_local live;
	struct pv_mirror mirror;
	const char *path; /* of the disk */
	struct block_dial dial;
	bool listening; /* the loop hears what the keeper says */
	bool has_told;
	struct control_message told; /* what was to be heard before */
	struct wait dialled;	     /* for CONTROL_DIALLED, while dialling */
	bool dialling;
	int dialled_fd;
	struct pgr_error dialled_err;
	atomic_bool stop;  /* merging */
	unsigned changing; /* calls that change the layers, or what is under the guest */
};

/* The keeper has gone: as if killed, so that whoever comes next goes on from the journal. */
static void __attribute__((noreturn)) leave(void)
{
	_exit(0);
}

static void tell(const struct control_message *m)
{
	if (control_send(CONTROL_FD, m))
		leave();
}

static void tell_text(enum control_kind kind, const char *text)
{
	if (control_say(CONTROL_FD, kind, text))
		leave();
}

/* ---- what the disk says ---- */

static void on_broken(void *ctx, const char *why)
{
	(void)ctx;
	tell_text(CONTROL_BROKEN, why);
}

static void on_say(void *ctx, const char *text)
{
	(void)ctx;
	tell_text(CONTROL_SAY, text);
}

static void on_disconnected(void *ctx)
{
	(void)ctx;
	tell(&(struct control_message){.kind = CONTROL_DISCONNECTED});
}

/* The last that is done to the disk. */
static void close_disk(struct server *s, enum pv_mirror_end mirror,
		       void (*done)(struct block_request *r, const struct pgr_error *err))
{
	if (s->closing)
		return;
	s->closing = true;
	s->close = (struct block_request){.op = BLOCK_CLOSE, .done = done};
	atomic_store(&s->stop, true);
	pv_mirror_end(&s->mirror, mirror);
	if (!s->changing && !s->live.held_at)
		block_submit(s->block, &s->close);
}

/* Before and after a call that changes the layers: the disk is not closed in the middle of one, nor while it is held. */
static int begin_change(struct server *s, struct pgr_error *err)
{
	if (s->closing && !s->live.held_at)
		return pgr_fail(err, -ECANCELED, "the disk is being closed");
	s->changing++;
	return 0;
}

static void end_change(struct server *s)
{
	if (--s->changing == 0 && s->closing && !s->live.held_at)
		block_submit(s->block, &s->close);
}

static void on_closed_for_another(struct block_request *r, const struct pgr_error *err)
{
	(void)r;
	tell_text(CONTROL_RELEASED, err ? err->text : "");
	leave();
}

static void on_released(void *ctx)
{
	struct server *s = ctx;

	if (!pv_mirror_released(&s->mirror))
		close_disk(s, PV_MIRROR_FINISH, on_closed_for_another);
}

static const struct pv_disk_user user = {.broken = on_broken,
					 .say = on_say,
					 .disconnected = on_disconnected,
					 .released = on_released};

static void on_resized(struct block_request *r, const struct pgr_error *err)
{
	struct server *s = (struct server *)((char *)r - offsetof(struct server, resize));

	s->resizing = false;
	if (err) {
		tell_text(CONTROL_RESIZE_FAILED, err->text);
		return;
	}
	pv_disk_resized(s->disk);
	tell(&(struct control_message){.kind = CONTROL_RESIZED,
				       .size = block_info(s->block)->size});
}

static void on_closed(struct block_request *r, const struct pgr_error *err)
{
	(void)r;
	if (err)
		tell_text(CONTROL_SAY, err->text);
	leave();
}

/* ---- a connection to an NBD server, made by the keeper: this process may not, and has no key ---- */

static void on_dialled(struct server *s, const struct control_failure *f, int fd)
{
	if (!s->dialling) {
		if (fd >= 0)
			close(fd);
		return;
	}
	s->dialled_fd = fd;
	if (fd < 0)
		pgr_fail(&s->dialled_err, f->code < 0 ? f->code : -ENOTCONN, "%s", f->text);
	wait_end(&s->dialled);
}

/* Before the loop listens: what is said beside the answer can only be what to open, to a process that looks whether it could. */
static void hear_dialled(struct server *s)
{
	struct control_message m;
	int passed;

	while (!s->dialled.over) {
		if (control_receive(CONTROL_FD, &m, &passed))
			leave();
		if (m.kind == CONTROL_DIALLED) {
			on_dialled(s, &m.failure, passed);
			continue;
		}
		if (passed >= 0)
			close(passed);
		s->told = m;
		s->has_told = true;
	}
}

static int dial(void *ctx, const char *uri, int *socket, struct pgr_error *err)
{
	struct server *s = ctx;

	/* The keeper connects to the disk's own server only, and knows of no keys but this host's. */
	if (strcmp(uri, s->path) != 0 || s->dialling ||
	    (!strncmp(uri, "nbds", 4) && !nbd_address_takes_identity(uri)))
		return pgr_fail(
			err, -ESTALE,
			"%s: the connection was lost, and one with keys of its own is not made again; detach and attach the disk",
			uri);
	s->dialling = true;
	s->dialled_err = PGR_ERROR_NONE;
	wait_begin(&s->dialled, s->loop);
	tell(&(struct control_message){.kind = CONTROL_DIAL});
	if (!s->listening)
		hear_dialled(s);
	wait_for(&s->dialled);
	s->dialling = false;
	*socket = s->dialled_fd;
	if (*socket >= 0)
		return 0;
	*err = s->dialled_err;
	return err->code;
}

/* The disk that is to be opened, by its name. */
static void set_dial(struct server *s, const char *path)
{
	s->path = path;
	s->dial = (struct block_dial){
		.first = nbd_address_takes_identity(path), .connect = dial, .ctx = s};
}

/* ---- calls, each in a fiber ---- */

struct call {
	struct server *server;
	struct control_message m; /* as it came, then the answer */
	int passed;		  /* a descriptor, or -1 */
	uint64_t next_ns;	  /* when progress is told again */
};

static int do_status(struct call *c, struct pgr_error *err)
{
	struct server *s = c->server;
	struct control_status *out = &c->m.status;

	(void)err;
	*out = (struct control_status){.size = block_info(s->block)->size,
				       .block_size = block_info(s->block)->block_size,
				       .layers = block_qcow2_layers(s->block),
				       .running = pv_disk_running(s->disk)};
	out->queues = pv_disk_rings(s->disk, &out->entries);
	block_stats(s->block, &out->block);
	return 0;
}

static int do_hold(struct call *c, struct pgr_error *err)
{
	int fd = c->passed;

	c->passed = -1;
	return live_local_ops.hold(&c->server->live, fd, c->m.text, err);
}

static void report(void *ctx, uint64_t done, uint64_t size)
{
	struct call *c = ctx;
	uint64_t now = loop_now_ns();

	if (now < c->next_ns)
		return;
	c->next_ns = now + PROGRESS_NS;
	tell(&(struct control_message){.kind = CONTROL_PROGRESS,
				       .call = c->m.call,
				       .progress = {.done = done, .size = size}});
}

static void report_mirror(void *ctx, const struct mirror_status *m)
{
	struct call *c = ctx;

	tell(&(struct control_message){
		.kind = CONTROL_PROGRESS,
		.call = c->m.call,
		.progress = {
			.done = m->copied, .size = m->size, .left = m->left, .phase = m->phase}});
}

/* Until the disk is let go of: its destination is then the same as what was closed here. */
static int do_mirror(struct call *c, struct pgr_error *err)
{
	struct server *s = c->server;
	int fd = c->passed;

	if (fd < 0)
		return pgr_fail(err, -EINVAL, "no connection to mirror it over");
	if (s->changing > 1 || s->live.held_at || s->resizing)
		return pgr_fail(
			err, -EBUSY,
			"%s: its layers or its size are being changed; wait for the end of that",
			block_info(s->block)->name);
	c->passed = -1;
	return pv_mirror_run(&s->mirror, fd, report_mirror, c, err);
}

static int do_merge(struct call *c, struct pgr_error *err)
{
	struct server *s = c->server;
	const struct live_work w = {
		.rate = c->m.layer.rate, .stop = &s->stop, .progress = report, .ctx = c};
	int fd = c->passed;

	if (!s->live.merging && !s->closing)
		atomic_store(&s->stop, false);
	c->passed = -1;
	if (fd < 0)
		return pgr_fail(err, -EINVAL, "no file to merge into");
	return live_local_ops.merge(&s->live, c->m.layer.n, fd, &w, err);
}

static int do_drop(struct call *c, struct pgr_error *err)
{
	const char *name = c->m.layer.name;

	return live_local_ops.drop(&c->server->live, c->m.layer.n, name[0] ? name : NULL, err);
}

static int change_layers(struct call *c, struct pgr_error *err)
{
	struct server *s = c->server;
	int ret = begin_change(s, err);

	if (ret)
		return ret;
	if (c->m.kind != CONTROL_MIRROR && s->mirror.running)
		ret = pgr_fail(err, -EBUSY,
			       "%s: is being copied to another host; wait for the end of that",
			       block_info(s->block)->name);
	switch (ret ? CONTROL_STATUS : c->m.kind) {
	case CONTROL_STATUS:
		break;
	case CONTROL_MIRROR:
		ret = do_mirror(c, err);
		break;
	case CONTROL_LAYER_HOLD:
		ret = do_hold(c, err);
		break;
	case CONTROL_LAYER_GO_ON:
		ret = live_local_ops.release(&s->live, c->m.size, &c->m.size, err);
		break;
	case CONTROL_LAYER_MERGE:
		ret = do_merge(c, err);
		break;
	case CONTROL_LAYER_DROP:
		ret = do_drop(c, err);
		break;
	case CONTROL_LOOK:
		ret = live_local_ops.look(&s->live, c->m.size, &c->m.look, err);
		break;
	default:
		ret = pgr_fail(err, -EINVAL, "its process does not know that call");
		break;
	}
	end_change(s);
	return ret;
}

static void run_call(void *ctx)
{
	struct call *c = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	uint32_t number = c->m.call;
	int ret;

	switch (c->m.kind) {
	case CONTROL_STATUS:
		ret = do_status(c, &err);
		break;
	default:
		ret = change_layers(c, &err);
		break;
	}
	err.code = ret;
	if (c->passed >= 0)
		close(c->passed);
	if (control_answer(CONTROL_FD, number, &c->m, &err))
		leave();
	free(c);
}

static void begin_call(struct server *s, const struct control_message *m, int passed)
{
	struct call *c = malloc(sizeof(*c));
	struct pgr_error err = PGR_ERROR_NONE;

	if (c)
		*c = (struct call){.server = s, .m = *m, .passed = passed};
	if (c && !fiber_start(s->loop, run_call, c))
		return;
	free(c);
	if (passed >= 0)
		close(passed);
	pgr_fail(&err, -ENOMEM, "no memory for that; it may be tried again");
	if (control_answer(CONTROL_FD, m->call, &(struct control_message){.kind = 0}, &err))
		leave();
}

/* ---- what it is told ---- */

static void resize(struct server *s, uint64_t size)
{
	if (s->resizing)
		return;
	if (s->mirror.running) {
		tell_text(CONTROL_RESIZE_FAILED, "it is being copied to another host");
		return;
	}
	s->resizing = true;
	s->resize = (struct block_request){.op = BLOCK_RESIZE, .length = size, .done = on_resized};
	block_submit(s->block, &s->resize);
}

static void connect_guest(struct server *s, const struct pv_connection *c)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (!pv_disk_connect(s->disk, c, &err))
		tell(&(struct control_message){.kind = CONTROL_CONNECTED});
	else
		tell_text(CONTROL_CONNECT_FAILED, err.text);
}

static void on_control(struct loop_watch *w, uint32_t events)
{
	struct server *s = (struct server *)((char *)w - offsetof(struct server, control));
	struct control_message m;
	int passed;

	(void)events;
	if (control_receive(w->fd, &m, &passed))
		leave();
	if (m.call) {
		begin_call(s, &m, passed);
		return;
	}
	if (m.kind == CONTROL_DIALLED) {
		on_dialled(s, &m.failure, passed);
		return;
	}
	if (passed >= 0)
		close(passed);
	switch (m.kind) {
	case CONTROL_CONNECT:
		connect_guest(s, &m.connection);
		break;
	case CONTROL_DISCONNECT:
		pv_disk_disconnect(s->disk);
		break;
	case CONTROL_RESIZE:
		resize(s, m.size);
		break;
	case CONTROL_LAYER_STOP:
		atomic_store(&s->stop, true);
		break;
	case CONTROL_END:
		close_disk(s, PV_MIRROR_CANCEL, on_closed);
		break;
	case CONTROL_RELEASE:
		pv_mirror_leave(&s->mirror);
		pv_disk_release(s->disk);
		break;
	default:
		break;
	}
}

static void on_event(struct loop_watch *w, uint32_t events)
{
	struct server *s = (struct server *)((char *)w - offsetof(struct server, events));
	uint32_t port = pv_xen_event(s->guest);

	(void)events;
	if (port != PV_PORT_NONE)
		pv_disk_event(s->disk, port);
}

/* ---- beginning ---- */

static int open_journal(struct server *s, struct pgr_error *err)
{
	void *memory =
		mmap(NULL, pv_journal_size(), PROT_READ | PROT_WRITE, MAP_SHARED, JOURNAL_FD, 0);

	if (memory == MAP_FAILED)
		return pgr_fail_errno(err, -errno, "cannot map the journal");
	close(JOURNAL_FD);
	if (pv_journal_open(memory, &s->journal))
		return pgr_fail(err, -ENOMEM, "no memory for the journal");
	return 0;
}

/* Wait a while, or until the keeper has gone. */
static void wait_before_next_try(void)
{
	struct pollfd p = {.fd = CONTROL_FD, .events = POLLRDHUP};

	if (poll(&p, 1, TRY_AGAIN_MS) > 0)
		leave();
}

/* The threads and connections of Ceph's library are nothing that this process may have, so it is not even loaded. */
static int check_disk(const char *path, struct pgr_error *err)
{
	if (!rbd_name_is(path))
		return 0;
	return pgr_fail(
		err, -EOPNOTSUPP,
		"%s: pagurus-blk does not serve disks on Ceph, whose library needs what its process may not do; use `pagurus disk serve --unix SOCKET` and target=nbd+unix:///IMAGE?socket=SOCKET, or rbd map and the device /dev/rbd/POOL/IMAGE",
		path);
}

/* Somebody else may have the disk for a while: the host that the guest comes from, above all. */
static int open_disk(struct server *s, const struct pv_open *o, struct pgr_error *err)
{
	const struct block_options options = {.read_only = o->read_only,
					      .max_requests = PV_IO_MAX,
					      /* A guest waits for a server as it waits for room. */
					      .patience_ms = UINT_MAX,
					      .dial = &s->dial,
					      /* The guest lives on when this process is killed. */
					      .settled = true};
	bool told = false;
	int ret = check_disk(o->path, err);

	set_dial(s, o->path);
	if (ret)
		return ret;
	while ((ret = disk_open(s->loop, o->path, o->format, &options, &s->block, err)) ==
	       -EAGAIN) {
		if (!told)
			tell_text(CONTROL_IN_USE, err->text);
		told = true;
		wait_before_next_try();
	}
	return ret;
}

/* Whether it could be opened. Somebody else writes to it: only its first bytes are looked at, and not believed. */
static int probe_disk(struct server *s, const struct pv_open *o, struct pgr_error *err)
{
	const struct block_options options = {
		.read_only = true, .unlocked = true, .dial = &s->dial};
	struct block *b;
	int ret = check_disk(o->path, err);

	set_dial(s, o->path);
	if (!ret)
		ret = disk_open(s->loop, o->path, o->format, &options, &b, err);
	return ret ? ret : block_close(b, err);
}

/* The next that the keeper said. */
static void hear(struct server *s, struct control_message *m)
{
	if (s->has_told)
		*m = s->told;
	else if (control_receive(CONTROL_FD, m, NULL))
		leave();
	s->has_told = false;
}

/* What to open, when the time has come. */
static int learn_disk(struct server *s, struct pv_open *o, struct pgr_error *err)
{
	struct control_message m;
	int ret;

	for (;;) {
		hear(s, &m);
		*o = m.open;
		if (m.kind == CONTROL_OPEN)
			return 0;
		if (m.kind != CONTROL_PROBE)
			leave();
		ret = probe_disk(s, o, err);
		if (ret)
			return ret;
		tell(&(struct control_message){.kind = CONTROL_HELD});
	}
}

static void tell_opened(const struct server *s)
{
	const struct block_info *info = block_info(s->block);
	struct control_message m = {.kind = CONTROL_OPENED,
				    .opened = {.size = info->size,
					       .block_size = info->block_size,
					       .granularity = info->granularity,
					       .can_discard = info->can_discard}};

	if (info->note[0])
		tell_text(CONTROL_SAY, info->note);
	tell(&m);
}

static int begin(struct server *s, uint32_t domid, uid_t uid, struct pgr_error *err)
{
	static struct pv_open open; /* its path stays in use */
	int ret = pv_xen_open(domid, &s->guest, err);

	if (!ret)
		ret = open_journal(s, err);
	if (!ret)
		ret = confine_user(uid, err);
	if (!ret)
		ret = loop_create(&s->loop, err);
	if (ret)
		return ret;
	ret = learn_disk(s, &open, err);
	if (!ret)
		ret = open_disk(s, &open, err);
	if (!ret)
		ret = confine_calls(s->loop, err);
	if (!ret &&
	    pv_disk_new(s->loop, s->block, &pv_xen_ops, s->guest, s->journal, &user, s, &s->disk))
		ret = pgr_fail(err, -ENOMEM, "no memory for a disk");
	if (ret)
		return ret;
	s->live.disk = s->block;
	s->mirror = (struct pv_mirror){.loop = s->loop, .disk = s->disk, .source = s->block};
	s->control = (struct loop_watch){.fd = CONTROL_FD, .ready = on_control};
	s->events = (struct loop_watch){.fd = pv_xen_event_fd(s->guest), .ready = on_event};
	ret = loop_watch(s->loop, &s->control, EPOLLIN, err);
	s->listening = !ret;
	return ret ? ret : loop_watch(s->loop, &s->events, EPOLLIN, err);
}

int serve_disk(uint32_t domid, uid_t uid)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct server s = {.loop = NULL};

	/* Started by way of /proc/self/exe, it would be called "exe". */
	prctl(PR_SET_NAME, "pagurus-blk", 0, 0, 0);
	if (begin(&s, domid, uid, &err)) {
		tell_text(CONTROL_OPEN_FAILED, err.text);
		return 1;
	}
	tell_opened(&s);
	loop_run(s.loop);
	return 0;
}
