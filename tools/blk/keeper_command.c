// SPDX-License-Identifier: MIT
/*
 * Commands of this host's operator on a guest's disks while they are in use, at /run/pagurus/disks/DOMID.sock: one JSON object a line.
 *
 *   {"request":"status"}                             a line {"type":"disk"} for each disk, then "result"
 *   {"request":"status","disk":PATH}                 of that one
 *   {"request":"mirror","disk":PATH}                 to the NBD server behind the descriptor that comes with it; see below
 *   {"request":"snapshot","guest":GUEST,"name":NAME} of all its disks that are written, at the same moment
 *
 * and those of live_command.h, which says how they are answered. Whoever asks about a PATH that is none of these disks, or another GUEST (name or number),
 * gets {"type":"elsewhere"}.
 *
 * "mirror" is answered by lines {"type":"progress","phase","copied","left","size"}, phase being copy, through, equal or failed, a few times a second, and by
 * "result" when the disk was let go of (disk_hold.md), holds nothing any more that the other has not, and the other was flushed. Nothing else ends it but an
 * error: then the other one is of no use, and the guest goes on as if nothing had been.
 *
 * What a disk's process has to do for it is a call: keeper_call().
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "storage/live_command.h"
#include "storage/live_lock.h"
#include "storage/mirror.h"
#include "tools/blk/keeper_internal.h"

#define DISKS_MAX 64u

/* ---- calls ---- */

struct call {
	struct call *next;
	uint32_t number;
	struct wait over;
	struct control_message *answer;
	call_progress_fn *progress;
	void *ctx;
	bool died;
};

static struct call *call_of(struct disk *d, uint32_t number)
{
	struct call *c = d->calls;

	while (c && c->number != number)
		c = c->next;
	return c;
}

static void end_call(struct disk *d, struct call *c)
{
	struct call **at = &d->calls;

	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
	wait_end(&c->over);
}

void keeper_on_answer(struct disk *d, const struct control_message *m)
{
	struct call *c = call_of(d, m->call);

	if (!c)
		return;
	if (m->kind == CONTROL_PROGRESS) {
		if (c->progress)
			c->progress(c->ctx, &m->progress);
		return;
	}
	*c->answer = *m;
	end_call(d, c);
}

void keeper_end_calls(struct disk *d)
{
	while (d->calls) {
		d->calls->died = true;
		end_call(d, d->calls);
	}
}

/* While it lives, whoever is at the other end of a socket sees no end of it: it is the process's alone. */
static void drop_descriptor(int fd)
{
	if (fd >= 0)
		close(fd);
}

/* One that was told to close its disk does so when what is held goes on, and ends: till then it hears that, and only that. */
static bool hears_calls(const struct disk *d, uint32_t kind)
{
	if (!d->pid || d->keeper->gave_up)
		return false;
	return pv_bus_is_open(d->bus) || (kind == CONTROL_LAYER_GO_ON && pv_bus_done(d->bus));
}

int keeper_call(struct disk *d, struct control_message *m, int passed, call_progress_fn *progress,
		void *ctx, struct pgr_error *err)
{
	struct call c = {.answer = m, .progress = progress, .ctx = ctx};
	char text[sizeof(m->failure.text)];

	if (!hears_calls(d, m->kind)) {
		drop_descriptor(passed);
		return pgr_fail(err, -EAGAIN, "%s: is not open yet; try again",
				pv_bus_name(d->bus));
	}
	if (!++d->newest_call)
		d->newest_call++;
	m->call = c.number = d->newest_call;
	wait_begin(&c.over, d->keeper->loop);
	c.next = d->calls;
	d->calls = &c; // cppcheck-suppress autoVariables
	/* One that has died is found by its end. */
	(void)control_send_fd(d->control.fd, m, passed);
	drop_descriptor(passed);
	wait_for(&c.over);
	if (c.died)
		return pgr_fail(err, -EPIPE, "%s: its process died; say it again",
				pv_bus_name(d->bus));
	if (m->kind != CONTROL_FAILED)
		return 0;
	text_plain(text, sizeof(text), m->failure.text, strlen(m->failure.text));
	return pgr_fail(err, m->failure.code < 0 ? m->failure.code : -EPROTO, "%s", text);
}

/* ---- commands ---- */

struct command {
	struct keeper *keeper;
	struct disk *disk; /* NULL: none is named */
	struct line_client *client;
	const json_t *request;
};

static json_t *show_disk(struct disk *d, const struct control_status *s)
{
	const struct pv_counters *n = pv_journal_peek(d->journal.memory);
	const struct pv_open *o = pv_bus_target(d->bus);

	return json_pack(
		"{ss ss sI ss ss si si si si sI sI sI sI sI sI sI sI sI sI sI}", "type", "disk",
		"name", pv_bus_name(d->bus), "domain", (json_int_t)d->keeper->domid, "path",
		o->path, "format", o->format, "size", (json_int_t)s->size, "block_size",
		(json_int_t)s->block_size, "read_only", (int)o->read_only, "pid", (int)d->pid,
		"layers", (int)s->layers, "queues", (int)s->queues, "running", (int)s->running,
		"reads", (json_int_t)n->rd_req, "writes", (json_int_t)n->wr_req, "flushes",
		(json_int_t)n->f_req, "discards", (json_int_t)n->ds_req, "read_bytes",
		(json_int_t)n->rd_sect * (json_int_t)BLOCK_SECTOR, "written_bytes",
		(json_int_t)n->wr_sect * (json_int_t)BLOCK_SECTOR, "errors", (json_int_t)n->errors,
		"restarts", (json_int_t)n->restarts, "storage_reads", (json_int_t)s->block.reads,
		"storage_writes", (json_int_t)s->block.writes, "storage_failed",
		(json_int_t)s->block.failed);
}

static int status_of(struct command *c, struct disk *d, struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_STATUS};
	int ret;

	d->users++;
	ret = keeper_call(d, &m, -1, NULL, NULL, err);
	/* One that is not open is shown, too. */
	if (ret)
		memset(&m.status, 0, sizeof(m.status));
	live_put(c->client, show_disk(d, &m.status));
	d->users--;
	return ret == -EPIPE || ret == -EAGAIN ? 0 : ret;
}

static int do_status(struct command *c, struct pgr_error *err)
{
	unsigned nr = 0, shown = 0;
	int ret = 0;

	if (c->disk)
		return status_of(c, c->disk, err);
	/* The list may change meanwhile: by numbers. */
	for (struct disk *d = c->keeper->disks; d; d = d->next)
		nr++;
	for (unsigned i = 0; i < nr && !ret; i++) {
		struct disk *d = c->keeper->disks;

		for (shown = 0; d && shown < i; shown++)
			d = d->next;
		if (d)
			ret = status_of(c, d, err);
	}
	return ret;
}

/* ---- layers: the disk's process has the disk, the folder is ours ---- */

static int remote_hold(void *ctx, int fd, const char *name, struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_LAYER_HOLD};
	struct disk *d = ctx;
	int ret;

	if (strlen(name) >= sizeof(m.text)) {
		drop_descriptor(fd);
		return pgr_fail(err, -ENAMETOOLONG, "%s: too long for a path", name);
	}
	snprintf(m.text, sizeof(m.text), "%s", name);
	/* Also one that dies as soon as it has answered. */
	d->switching = d->pid;
	ret = keeper_call(d, &m, fd, NULL, NULL, err);
	if (ret)
		keeper_switched(d);
	return ret;
}

static int remote_release(void *ctx, bool switched, uint64_t *held_ns, struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_LAYER_GO_ON, .size = switched};
	struct disk *d = ctx;
	int ret = d->pid == d->switching
			  ? keeper_call(d, &m, -1, NULL, NULL, err)
			  : pgr_fail(err, -EPIPE, "%s: its process died", pv_bus_name(d->bus));

	if (!ret)
		*held_ns = m.size;
	keeper_switched(d);
	return ret;
}

struct merging {
	struct disk *disk;
	const struct live_work *work;
	bool stopped;
};

static void on_progress(void *ctx, const struct control_progress *p)
{
	struct merging *m = ctx;

	m->work->progress(m->work->ctx, p->done, p->size);
	if (!m->stopped && atomic_load(m->work->stop))
		(void)control_send(m->disk->control.fd,
				   &(struct control_message){.kind = CONTROL_LAYER_STOP});
	m->stopped = m->stopped || atomic_load(m->work->stop);
}

static int remote_merge(void *ctx, unsigned n, int fd, const struct live_work *w,
			struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_LAYER_MERGE,
				    .layer = {.n = n, .rate = w->rate}};
	struct merging watched = {.disk = ctx, .work = w};

	return keeper_call(ctx, &m, fd, on_progress, &watched, err);
}

static int remote_drop(void *ctx, unsigned n, const char *name, struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_LAYER_DROP, .layer = {.n = n}};

	if (name && strlen(name) >= sizeof(m.layer.name))
		return pgr_fail(err, -ENAMETOOLONG, "%s: too long for a path", name);
	snprintf(m.layer.name, sizeof(m.layer.name), "%s", name ? name : "");
	return keeper_call(ctx, &m, -1, NULL, NULL, err);
}

static void end_text(char *text, size_t size)
{
	text[size - 1] = '\0';
	text_plain(text, size, text, strlen(text));
}

static int remote_look(void *ctx, bool check, struct live_look *out, struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_LOOK, .size = check};
	int ret = keeper_call(ctx, &m, -1, NULL, NULL, err);

	if (ret)
		return ret;
	*out = m.look;
	end_text(out->driver, sizeof(out->driver));
	end_text(out->finding, sizeof(out->finding));
	return 0;
}

static const struct live_ops remote_ops = {
	.hold = remote_hold,
	.release = remote_release,
	.merge = remote_merge,
	.drop = remote_drop,
	.look = remote_look,
};

/* The disks that a command is about, each with its lock, so that they stay. */
struct subjects {
	struct disk *disk[DISKS_MAX];
	struct live_disk live[DISKS_MAX];
	unsigned nr, locked;
};

static int add_subject(struct subjects *s, struct disk *d, struct pgr_error *err)
{
	const struct pv_open *o = pv_bus_target(d->bus);
	char *path;

	if (s->nr == DISKS_MAX)
		return pgr_fail(err, -EFBIG, "it has more than %u disks", DISKS_MAX);
	path = realpath(o->path, NULL);
	if (!path)
		return pgr_fail_errno(err, -errno, "%s: cannot be found", o->path);
	d->users++;
	s->disk[s->nr] = d;
	s->live[s->nr++] = (struct live_disk){.path = path,
					      .raw = strcmp(o->format, "qcow2") != 0,
					      .loop = d->keeper->loop,
					      .ops = &remote_ops,
					      .ctx = d,
					      .pins = &d->pins};
	return 0;
}

/* In the order of the list, whoever asks. */
static int lock_subjects(struct subjects *s, const struct command *c, struct pgr_error *err)
{
	int ret = 0;

	while (!ret && s->locked < s->nr) {
		ret = live_lock(&s->disk[s->locked]->lock, c->keeper->loop, c->client, err);
		s->locked += !ret;
	}
	return ret;
}

static void drop_subjects(struct subjects *s)
{
	for (unsigned i = 0; i < s->nr; i++) {
		if (i < s->locked)
			fiber_unlock(&s->disk[i]->lock);
		s->disk[i]->users--;
		/* Made by realpath(). */
		free((char *)s->live[i].path);
	}
}

static int on_layers(struct command *c, struct pgr_error *err)
{
	struct subjects s = {.nr = 0};
	struct freeze freeze;
	json_t *result = NULL;
	bool froze = false;
	int ret = 0;

	if (c->disk)
		ret = add_subject(&s, c->disk, err);
	for (struct disk *d = c->keeper->disks; d && !c->disk && !ret; d = d->next)
		if (!pv_bus_target(d->bus)->read_only && !pv_bus_done(d->bus))
			ret = add_subject(&s, d, err);
	if (!ret)
		ret = lock_subjects(&s, c, err);
	if (!ret && !strcmp(live_text(c->request, "request"), "snapshot"))
		froze = keeper_freeze(c->keeper, &freeze);
	if (!ret)
		ret = live_command(c->request, s.live, s.nr, c->client, &result, err);
	if (froze) {
		froze = keeper_thaw(c->keeper, &freeze);
		if (result)
			json_object_set_new(result, "frozen", json_boolean(froze));
	}
	if (!ret)
		live_put(c->client, result);
	drop_subjects(&s);
	return ret;
}

/* ---- a mirror ---- */

static void show_mirror(void *ctx, const struct control_progress *p)
{
	static const char *const phases[] = {[MIRROR_COPY] = "copy",
					     [MIRROR_THROUGH] = "through",
					     [MIRROR_EQUAL] = "equal",
					     [MIRROR_FAILED] = "failed"};
	const char *phase =
		p->phase < sizeof(phases) / sizeof(phases[0]) ? phases[p->phase] : "failed";

	live_put(ctx, json_pack("{ss ss sI sI sI}", "type", "progress", "phase", phase, "copied",
				(json_int_t)p->done, "left", (json_int_t)p->left, "size",
				(json_int_t)p->size));
}

static int run_mirror(struct command *c, struct pgr_error *err)
{
	struct control_message m = {.kind = CONTROL_MIRROR};
	int fd = line_take_descriptor(c->client), ret;

	if (c->disk && fd >= 0) {
		c->disk->users++;
		ret = keeper_call(c->disk, &m, fd, show_mirror, c->client, err);
		c->disk->users--;
	} else {
		ret = pgr_fail(err, -EINVAL, "a mirror needs a disk and a connection");
		drop_descriptor(fd);
	}
	if (!ret)
		live_put(c->client, json_pack("{ss}", "type", "result"));
	return ret;
}

/* ---- which command ---- */

static int run_status(struct command *c, struct pgr_error *err)
{
	int ret = do_status(c, err);

	if (!ret)
		live_put(c->client, json_pack("{ss}", "type", "result"));
	return ret;
}

/* Each sends its result itself, when there was no error. */
static const struct {
	const char *name;
	int (*run)(struct command *c, struct pgr_error *err);
} commands[] = {
	{"status", run_status}, {"snapshot", on_layers}, {"delete", on_layers},
	{"commit", on_layers},	{"revert", on_layers},	 {"mirror", run_mirror},
	{"info", on_layers},	{"check", on_layers},
};

static struct disk *disk_at(struct keeper *k, const char *path)
{
	struct stat wanted, is;

	if (stat(path, &wanted))
		return NULL;
	for (struct disk *d = k->disks; d; d = d->next)
		if (!stat(pv_bus_target(d->bus)->path, &is) && is.st_dev == wanted.st_dev &&
		    is.st_ino == wanted.st_ino)
			return d;
	return NULL;
}

/* Our guest's name or number. */
static bool is_guest(struct keeper *k, const char *name)
{
	char path[64], number[16], *is;
	bool same;

	snprintf(number, sizeof(number), "%u", k->domid);
	if (!strcmp(name, number))
		return true;
	snprintf(path, sizeof(path), "/local/domain/%u/name", k->domid);
	is = xs_read(k->store, XBT_NULL, path, NULL);
	same = is && !strcmp(is, name);
	free(is);
	return same;
}

static void run(struct command *c)
{
	const char *request = live_text(c->request, "request"),
		   *path = live_text(c->request, "disk");
	const char *guest = live_text(c->request, "guest");
	struct pgr_error err = PGR_ERROR_NONE;
	int ret = -EINVAL;

	c->disk = path[0] ? disk_at(c->keeper, path) : NULL;
	if (path[0] ? !c->disk : guest[0] && !is_guest(c->keeper, guest)) {
		live_put(c->client, json_pack("{ss}", "type", "elsewhere"));
		return;
	}
	live_put(c->client, json_pack("{ss}", "type", "begun"));
	pgr_fail(&err, ret,
		 "unknown request: are the command and pagurus-blk of the same version?");
	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].name, request)) {
			err = PGR_ERROR_NONE;
			ret = commands[i].run(c, &err);
			break;
		}
	if (ret)
		live_put_error(c->client, &err);
}

static void on_line(void *ctx, struct line_client *client, char *line)
{
	json_t *request = json_loads(line, 0, NULL);
	struct command c = {.keeper = ctx, .client = client, .request = request};
	struct pgr_error err = PGR_ERROR_NONE;

	if (json_is_object(request)) {
		run(&c);
	} else {
		pgr_fail(&err, -EINVAL, "that line is no JSON object");
		live_put_error(client, &err);
	}
	json_decref(request);
	/* What waited for the disks to be free. */
	loop_defer(c.keeper->loop, &c.keeper->look);
}

int keeper_listen(struct keeper *k, struct pgr_error *err)
{
	char path[64];
	int ret = process_make_folder(err);

	snprintf(path, sizeof(path), PROCESS_JOURNALS "/%u.sock", k->domid);
	return ret ? ret
		   : line_server_start(
			     k->loop,
			     &(struct line_server_options){.path = path, .line = on_line, .ctx = k},
			     &k->commands, err);
}
