// SPDX-License-Identifier: MIT
/*
 * libxl has written the disks' nodes before it starts this program, and waits for "running" in xenstore: it comes when each of them is open, or is known
 * to be in use elsewhere for now. When one cannot be opened the program ends, and with it the making of the guest.
 *
 * A disk's process that dies is replaced at once, a few times a minute, then after a while: the guest waits meanwhile, and loses nothing.
 */
#include "tools/blk/keeper_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/text.h"

#define NS_PER_SECOND	  1000000000ull
#define SHOW_SECONDS	  5u
#define END_SECONDS	  60u
#define DEATHS_MAX	  5u
#define DEATHS_SECONDS	  60u
#define PAUSE_SECONDS	  10u
#define USERS_FIRST	  0x70000000u /* user numbers that nothing else gives out: one for each disk */
#define USERS_A_DOMAIN	  4096u
#define PATH_BACKENDS	  "/local/domain/0/backend/qdisk/%u"
#define TOKEN_BACKENDS	  "backends"
#define TOKEN_DOMAINS	  "domains"
#define TOKEN_HOLD	  "hold"
#define DEVICE_ID_LENGTH  10u
#define MESSAGES_A_TURN	  64u
#define MESSAGES_AT_DEATH 4096u

void keeper_say(const struct disk *d, const char *text)
{
	char plain[PV_PATH];

	text_plain(plain, sizeof(plain), text, strlen(text));
	fprintf(stderr, "pagurus-blk: %s: %s\n", pv_bus_name(d->bus), plain);
}

/* ---- xenstore, for the bus ---- */

static char *store_read(void *ctx, const char *path)
{
	return xs_read(((struct disk *)ctx)->keeper->store, XBT_NULL, path, NULL);
}

/* Into the disk's node, while it has a front end. */
static void write_values(struct disk *d, const struct store_value *values, unsigned nr)
{
	char there[PV_PATH];

	snprintf(there, sizeof(there), "%s/frontend", pv_bus_backend(d->bus));
	if (!keeper_store_write(d->keeper, there, values, nr) && errno != ENOENT)
		fprintf(stderr, "pagurus-blk: %s: cannot be written in xenstore: %s\n",
			values[0].path, strerror(errno));
}

static void store_write(void *ctx, const char *path, const char *value)
{
	struct store_value v = {.value = value};

	snprintf(v.path, sizeof(v.path), "%s", path);
	write_values(ctx, &v, 1);
}

static void store_remove(void *ctx, const char *path)
{
	xs_rm(((struct disk *)ctx)->keeper->store, XBT_NULL, path);
}

/* ---- the process, for the bus ---- */

static void on_control(struct loop_watch *w, uint32_t events);

void keeper_tell(struct disk *d, const struct control_message *m)
{
	/* A process that has died is found by its end. */
	if (d->pid)
		(void)control_send(d->control.fd, m);
}

static void process_open(void *ctx, const struct pv_open *o)
{
	struct disk *d = ctx;
	struct control_message m = {.kind = d->keeper->wish[0] ? CONTROL_PROBE : CONTROL_OPEN,
				    .open = *o};
	struct pgr_error err = PGR_ERROR_NONE;
	int fd;
	pid_t pid = process_start(&d->journal, d->keeper->domid, d->uid, pv_bus_name(d->bus), &fd,
				  &err);

	if (pid < 0) {
		pv_bus_open_failed(d->bus, err.text);
		return;
	}
	d->pid = pid;
	d->control = (struct loop_watch){.fd = fd, .ready = on_control};
	if (fcntl(fd, F_SETFL, O_NONBLOCK) ||
	    loop_watch(d->keeper->loop, &d->control, EPOLLIN, &err))
		keeper_say(d, err.text);
	keeper_tell(d, &m);
}

static void process_connect(void *ctx, const struct pv_connection *c)
{
	keeper_tell(ctx, &(struct control_message){.kind = CONTROL_CONNECT, .connection = *c});
}

static void process_disconnect(void *ctx)
{
	keeper_tell(ctx, &(struct control_message){.kind = CONTROL_DISCONNECT});
}

static void process_resize(void *ctx, uint64_t size)
{
	keeper_tell(ctx, &(struct control_message){.kind = CONTROL_RESIZE, .size = size});
}

static void process_stop(void *ctx)
{
	struct disk *d = ctx;

	/* One that waits for a disk that is in use does not listen: the end of its socket ends it. */
	if (pv_bus_is_open(d->bus))
		keeper_tell(d, &(struct control_message){.kind = CONTROL_END});
	else if (d->pid)
		kill(d->pid, SIGKILL);
}

static void bus_say(void *ctx, const char *text)
{
	keeper_say(ctx, text);
}

static const struct pv_bus_ops bus_ops = {
	.read = store_read,
	.write = store_write,
	.remove = store_remove,
	.open = process_open,
	.connect = process_connect,
	.disconnect = process_disconnect,
	.resize = process_resize,
	.stop = process_stop,
	.say = bus_say,
};

/* Nobody else writes it any more, and its process has not met the guest yet: what its headers say now is to be believed, and later it is not. */
static void pin_layers(struct disk *d)
{
	const struct pv_open *o = pv_bus_target(d->bus);
	struct pgr_error err = PGR_ERROR_NONE;

	if (!d->pins.nr && live_pins_begin(&d->pins, o->path, o->format, &err))
		keeper_say(d, err.text);
}

static void on_message(void *ctx, const struct control_message *m)
{
	struct disk *d = ctx;

	switch (m->kind) {
	case CONTROL_OPENED:
		d->in_use = d->lost = false;
		pin_layers(d);
		pv_bus_opened(d->bus, &m->opened);
		break;
	case CONTROL_OPEN_FAILED:
		pv_bus_open_failed(d->bus, m->text);
		break;
	case CONTROL_IN_USE:
		d->in_use = true;
		keeper_say(d, m->text);
		keeper_say(d, "waiting until it is free");
		break;
	case CONTROL_DIAL:
		keeper_dial(d);
		break;
	case CONTROL_HELD:
		/* What it looked at the disk through. */
		keeper_relay_end(&d->relay);
		/* One that was told to open it after all is about to. */
		d->held = d->keeper->wish[0] && !d->released;
		break;
	case CONTROL_RELEASED:
		d->released = true;
		if (m->text[0])
			keeper_hold_failed(d, m->text);
		break;
	case CONTROL_CONNECTED:
		pv_bus_connected(d->bus);
		break;
	case CONTROL_CONNECT_FAILED:
		pv_bus_connect_failed(d->bus, m->text);
		break;
	case CONTROL_DISCONNECTED:
		pv_bus_disconnected(d->bus);
		break;
	case CONTROL_BROKEN:
		pv_bus_broken(d->bus, m->text);
		break;
	case CONTROL_RESIZED:
		pv_bus_resized(d->bus, m->size);
		break;
	case CONTROL_RESIZE_FAILED:
		pv_bus_resize_failed(d->bus, m->text);
		break;
	case CONTROL_SAY:
		keeper_say(d, m->text);
		break;
	case CONTROL_DONE:
	case CONTROL_FAILED:
	case CONTROL_PROGRESS:
		keeper_on_answer(d, m);
		break;
	default:
		break;
	}
}

static void on_control(struct loop_watch *w, uint32_t events)
{
	struct disk *d = (struct disk *)((char *)w - offsetof(struct disk, control));
	int ret = control_take(w->fd, MESSAGES_A_TURN, on_message, d);

	(void)events;
	if (ret && ret != -EAGAIN) {
		loop_rewatch(d->keeper->loop, w, 0);
		/* Its death follows, by a signal; of one that said what is no message, too. */
		if (ret != -ENOTCONN && d->pid)
			kill(d->pid, SIGKILL);
	}
	loop_defer(d->keeper->loop, &d->keeper->look);
}

/* ---- disks come and go ---- */

/* One that opened a file just before it becomes a snapshot would write there. */
void keeper_next_process(struct disk *d)
{
	if (d->switching)
		d->next_waits = true;
	else
		pv_bus_died(d->bus);
}

void keeper_switched(struct disk *d)
{
	d->switching = 0;
	if (d->next_waits) {
		d->next_waits = false;
		pv_bus_died(d->bus);
		loop_defer(d->keeper->loop, &d->keeper->look);
	}
}

/* The time has come to start another process. */
static void on_again(struct loop_timer *t)
{
	struct disk *d = (struct disk *)((char *)t - offsetof(struct disk, again));

	keeper_next_process(d);
	loop_defer(d->keeper->loop, &d->keeper->look);
}

static void disk_new(struct keeper *k, unsigned devid)
{
	struct disk *d = calloc(1, sizeof(*d));
	struct pgr_error err = PGR_ERROR_NONE;
	char backend[128];

	if (!d)
		return;
	*d = (struct disk){.keeper = k,
			   .devid = devid,
			   .again = {.fire = on_again},
			   .uid = USERS_FIRST + k->domid * USERS_A_DOMAIN +
				  k->nr_disks % USERS_A_DOMAIN};
	snprintf(backend, sizeof(backend), "%s/%u", k->backends, devid);
	if (process_journal_open(&d->journal, k->domid, devid, &err) ||
	    pv_bus_new(backend, loop_now_ns(), &bus_ops, d, &d->bus)) {
		fprintf(stderr, "pagurus-blk: disk %u: %s\n", devid, err.text);
		k->status = 1;
		free(d);
		return;
	}
	k->nr_disks++;
	d->next = k->disks;
	k->disks = d;
	pv_bus_start(d->bus, process_journal_generation(&d->journal));
	/* An event comes at once. */
	if (pv_bus_frontend(d->bus)[0])
		d->watched = xs_watch(k->store, pv_bus_frontend(d->bus), backend);
}

static void disk_free(struct disk *d)
{
	struct keeper *k = d->keeper;
	struct disk **at = &k->disks;

	while (*at != d)
		at = &(*at)->next;
	*at = d->next;
	if (d->watched)
		xs_unwatch(k->store, pv_bus_frontend(d->bus), pv_bus_backend(d->bus));
	process_journal_remove(&d->journal);
	live_pins_free(&d->pins);
	pv_bus_free(d->bus);
	free(d);
}

static struct disk *disk_of(struct keeper *k, unsigned devid)
{
	struct disk *d = k->disks;

	while (d && d->devid != devid)
		d = d->next;
	return d;
}

/* A disk that is new, or that a keeper before this one served. One that is closed is left alone. */
static bool is_wanted(struct keeper *k, const char *devid)
{
	char path[128], *state;
	bool wanted;

	snprintf(path, sizeof(path), "%s/%s/state", k->backends, devid);
	state = xs_read(k->store, XBT_NULL, path, NULL);
	wanted = state && (state[0] == '1' || state[0] == '2' || state[0] == '4');
	free(state);
	return wanted;
}

static void look_for_new(struct keeper *k)
{
	unsigned nr = 0;
	char **names = xs_directory(k->store, XBT_NULL, k->backends, &nr);

	for (unsigned i = 0; names && i < nr; i++) {
		char *end;
		unsigned long devid = strtoul(names[i], &end, 10);

		if (strlen(names[i]) > DEVICE_ID_LENGTH || *end || disk_of(k, (unsigned)devid))
			continue;
		if (is_wanted(k, names[i]))
			disk_new(k, (unsigned)devid);
	}
	free(names);
}

static void end_all(struct keeper *k)
{
	if (k->ending)
		return;
	k->ending = true;
	loop_arm(k->loop, &k->deadline, loop_now_ns() + END_SECONDS * NS_PER_SECOND);
	for (struct disk *d = k->disks; d; d = d->next) {
		pv_bus_end(d->bus);
		if (d->again.link) {
			loop_disarm(k->loop, &d->again);
			keeper_next_process(d);
		} else if (d->released && !d->pid) {
			keeper_start_anew(d);
		}
	}
}

static void announce(struct keeper *k)
{
	struct store_value v = {.value = "running"};
	char there[64];

	for (struct disk *d = k->disks; d; d = d->next) {
		if (pv_bus_has_failed(d->bus))
			k->status = 1;
		else if (!pv_bus_is_open(d->bus) && !d->in_use && !d->held)
			return;
	}
	k->announced = true;
	if (k->status) {
		end_all(k);
		return;
	}
	snprintf(there, sizeof(there), "/local/domain/%u", k->domid);
	snprintf(v.path, sizeof(v.path), "/local/domain/0/device-model/%u/state", k->domid);
	keeper_store_write(k, there, &v, 1);
}

/* After anything that may have changed something. */
static void look_at_all(struct loop_task *t)
{
	struct keeper *k = (struct keeper *)((char *)t - offsetof(struct keeper, look));
	struct disk *next;

	if (!k->ending)
		look_for_new(k);
	for (struct disk *d = k->disks; d; d = d->next)
		pv_bus_changed(d->bus);
	if (k->wish[0] && !k->wish_answered)
		keeper_answer_wish(k);
	if (!k->announced)
		announce(k);
	for (struct disk *d = k->disks; d; d = next) {
		next = d->next;
		if (pv_bus_done(d->bus) && !d->pid && !d->relay.pid && !d->again.link &&
		    !d->users && (k->announced || !pv_bus_has_failed(d->bus)))
			disk_free(d);
	}
	if (k->ending && !k->disks)
		loop_stop(k->loop);
}

/* ---- what happens ---- */

static bool domain_is_gone(const struct keeper *k)
{
	return !xs_is_domain_introduced(k->store, k->domid);
}

static void on_store(struct loop_watch *w, uint32_t events)
{
	struct keeper *k = (struct keeper *)((char *)w - offsetof(struct keeper, store_watch));
	char **event;

	(void)events;
	while ((event = xs_check_watch(k->store))) {
		if (!strcmp(event[XS_WATCH_TOKEN], TOKEN_DOMAINS) && domain_is_gone(k))
			end_all(k);
		else if (!strcmp(event[XS_WATCH_TOKEN], TOKEN_HOLD))
			keeper_look_for_wish(k);
		free(event);
	}
	loop_defer(k->loop, &k->look);
}

static bool dies_too_often(struct disk *d)
{
	uint64_t now = loop_now_ns();

	if (!d->deaths || now - d->first_death > DEATHS_SECONDS * NS_PER_SECOND) {
		d->deaths = 0;
		d->first_death = now;
	}
	return ++d->deaths > DEATHS_MAX;
}

static void on_death(struct disk *d, int status)
{
	char text[128];

	/* What it said before: no more than a socket holds, also when somebody else has its end. */
	control_take(d->control.fd, MESSAGES_AT_DEATH, on_message, d);
	loop_unwatch(d->keeper->loop, &d->control);
	close(d->control.fd);
	d->pid = 0;
	d->asked = 0;
	d->in_use = d->held = false;
	keeper_end_calls(d);
	keeper_relay_end(&d->relay);
	if (pv_bus_done(d->bus))
		return;
	if (WIFSIGNALED(status))
		snprintf(text, sizeof(text), "its process was ended by signal %d",
			 WTERMSIG(status));
	else
		snprintf(text, sizeof(text), "its process ended with status %d",
			 WEXITSTATUS(status));
	if (d->keeper->wish[0] && !d->keeper->ending) {
		if (!d->released)
			keeper_hold_failed(d, text);
		d->released = true;
		return;
	}
	if (d->released) {
		keeper_start_anew(d);
		return;
	}
	keeper_say(d, text);
	if (!d->keeper->ending && dies_too_often(d)) {
		keeper_say(d, "it dies again and again; the guest waits for the next one");
		loop_arm(d->keeper->loop, &d->again, loop_now_ns() + PAUSE_SECONDS * NS_PER_SECOND);
	} else {
		keeper_next_process(d);
	}
}

static void reap(struct keeper *k)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct disk *d = k->disks; d; d = d->next) {
			if (keeper_relay_reaped(&d->relay, pid))
				break;
			if (d->pid == pid) {
				on_death(d, status);
				break;
			}
		}
	loop_defer(k->loop, &k->look);
}

static void on_signal(struct loop_watch *w, uint32_t events)
{
	struct keeper *k = (struct keeper *)((char *)w - offsetof(struct keeper, signal_watch));
	struct signalfd_siginfo info;

	(void)events;
	if (read(w->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	if (info.ssi_signo != SIGCHLD)
		end_all(k);
	reap(k);
}

/*
 * Something does not come to its end, storage that does not answer above all; then a process may outlive even that for as long. The disks stay until the
 * commands that run have ended.
 */
static void on_deadline(struct loop_timer *t)
{
	struct keeper *k = (struct keeper *)((char *)t - offsetof(struct keeper, deadline));

	k->gave_up = true;
	for (struct disk *d = k->disks; d; d = d->next) {
		keeper_say(d, "its storage does not answer; its process is ended");
		if (d->pid)
			kill(d->pid, SIGKILL);
		/* The guest has lost the disk: nobody goes on where this process was. */
		unlink(d->journal.path);
		keeper_relay_end(&d->relay);
		keeper_end_calls(d);
	}
	k->status = 1;
	loop_stop(k->loop);
}

/* ---- figures for the operator ---- */

static void show_figures(struct disk *d)
{
	const struct pv_counters now = *pv_journal_peek(d->journal.memory), *was = &d->shown;
	const struct {
		const char *name;
		uint64_t now, was;
	} figures[] = {
		{"rd_req", now.rd_req, was->rd_req},	{"wr_req", now.wr_req, was->wr_req},
		{"f_req", now.f_req, was->f_req},	{"ds_req", now.ds_req, was->ds_req},
		{"rd_sect", now.rd_sect, was->rd_sect}, {"wr_sect", now.wr_sect, was->wr_sect},
		{"errors", now.errors, was->errors},	{"restarts", now.restarts, was->restarts},
	};
	struct store_value values[sizeof(figures) / sizeof(figures[0])];
	char text[sizeof(figures) / sizeof(figures[0])][24];
	unsigned nr = 0;

	for (unsigned i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
		if (figures[i].now == figures[i].was)
			continue;
		snprintf(text[nr], sizeof(text[nr]), "%llu", (unsigned long long)figures[i].now);
		values[nr] = (struct store_value){.value = text[nr]};
		snprintf(values[nr].path, sizeof(values[nr].path), "%s/statistics/%s",
			 pv_bus_backend(d->bus), figures[i].name);
		nr++;
	}
	if (nr)
		write_values(d, values, nr);
	d->shown = now;
}

static void on_show(struct loop_timer *t)
{
	struct keeper *k = (struct keeper *)((char *)t - offsetof(struct keeper, show));

	for (struct disk *d = k->disks; d; d = d->next)
		if (!pv_bus_done(d->bus))
			show_figures(d);
	loop_arm(k->loop, t, loop_now_ns() + SHOW_SECONDS * NS_PER_SECOND);
}

static bool figures_of(void *ctx, unsigned index, struct qmp_disk *out)
{
	const struct disk *d = ((struct keeper *)ctx)->disks;
	const struct pv_counters *n;

	while (d && index--)
		d = d->next;
	if (!d)
		return false;
	n = pv_journal_peek(d->journal.memory);
	*out = (struct qmp_disk){.name = pv_bus_name(d->bus),
				 .path = pv_bus_target(d->bus)->path,
				 .reads = n->rd_req,
				 .writes = n->wr_req,
				 .read_bytes = n->rd_sect * BLOCK_SECTOR,
				 .written_bytes = n->wr_sect * BLOCK_SECTOR};
	return true;
}

/* ---- beginning and end ---- */

static int watch_signals(struct keeper *k, struct pgr_error *err)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	/* Before xenstore's library has a thread. */
	sigprocmask(SIG_BLOCK, &set, NULL);
	k->signal_watch =
		(struct loop_watch){.fd = signalfd(-1, &set, SFD_CLOEXEC), .ready = on_signal};
	if (k->signal_watch.fd < 0)
		return pgr_fail_errno(err, -errno, "no descriptor for signals");
	return loop_watch(k->loop, &k->signal_watch, EPOLLIN, err);
}

static int watch_store(struct keeper *k, struct pgr_error *err)
{
	char wish[64];

	snprintf(wish, sizeof(wish), PGR_DISK_HOLD_WISH, k->domid);
	k->store = xs_open(XS_UNWATCH_FILTER);
	if (!k->store || !xs_watch(k->store, wish, TOKEN_HOLD) ||
	    !xs_watch(k->store, "@releaseDomain", TOKEN_DOMAINS) ||
	    !xs_watch(k->store, k->backends, TOKEN_BACKENDS))
		return pgr_fail_errno(err, -errno, "cannot use xenstore; is xenstored running?");
	k->store_watch = (struct loop_watch){.fd = xs_fileno(k->store), .ready = on_store};
	return loop_watch(k->loop, &k->store_watch, EPOLLIN, err);
}

static int begin(struct keeper *k, const struct keeper_options *o, struct pgr_error *err)
{
	int ret = loop_create(&k->loop, err);

	if (!ret)
		ret = watch_signals(k, err);
	for (unsigned i = 0; i < KEEPER_SOCKETS_MAX && !ret; i++)
		if (o->sockets[i])
			ret = qmp_listen(k->loop, o->sockets[i], &k->figures, &k->qmp[i], err);
	if (!ret)
		ret = keeper_listen(k, err);
	if (!ret)
		ret = watch_store(k, err);
	if (!ret) {
		/* Before a disk is opened. */
		keeper_look_for_wish(k);
		on_show(&k->show);
	}
	return ret;
}

int keep_disks(const struct keeper_options *o)
{
	struct keeper k = {.domid = o->domid,
			   .look = {.run = look_at_all},
			   .show = {.fire = on_show},
			   .deadline = {.fire = on_deadline}};
	struct pgr_error err = PGR_ERROR_NONE;

	k.figures = (struct qmp_disks){.get = figures_of, .ctx = &k};
	snprintf(k.backends, sizeof(k.backends), PATH_BACKENDS, o->domid);
	if (begin(&k, o, &err)) {
		fprintf(stderr, "pagurus-blk: %s\n", err.text);
		return 1;
	}
	loop_run(k.loop);
	line_server_stop(k.commands);
	for (unsigned i = 0; i < KEEPER_SOCKETS_MAX; i++)
		line_server_stop(k.qmp[i]);
	return k.status;
}
