/* SPDX-License-Identifier: MIT */
/*
 * A guest leaves for another host. docs/one-owner.md says why the steps are in this order.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/pagurus/connect_link.h"
#include "tools/pagurus/disks_leave.h"
#include "tools/pagurus/guest_disks.h"
#include "tools/pagurus/guests.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/recover.h"
#include "tools/pagurus/report.h"
#include "tools/pagurus/worker.h"

struct departure {
	struct guest_source *guest;
	struct guest_info info;
	struct connect_link link;
	struct source_params params;
	struct guest_disk *list; /* of disks that come along */
	unsigned nr_disks;
	struct disks_leave *disks;
	struct source_disks disks_ops;
	int guest_lock;
};

static void note(void *ctx, const char *text)
{
	worker_say(ctx, SESSION_INFO, "%s", text);
}

static int take_disks(struct worker *w, struct departure *d, const struct guest_description *about,
		      struct pgr_error *err)
{
	struct disks_leave_options o = {
		.rate = d->params.bandwidth, .connect = connect_link_open, .connect_ctx = &d->link};
	int rc;

	if (!message_flag(w->request, "with_disks"))
		return 0;
	o.folder = w->paths.disks;
	rc = guest_disks_list(about, o.folder, &d->list, &d->nr_disks, note, w, err);
	if (rc)
		return rc;
	o.disks = d->list;
	o.nr = d->nr_disks;
	memcpy(o.session, w->session, sizeof(o.session));
	rc = disks_leave_new(&o, &d->disks, &d->disks_ops, err);
	if (!rc)
		d->params.disks = &d->disks_ops;
	return rc;
}

/* Who has it now uses its own. */
static void tell_disks_left(struct worker *w, const struct departure *d)
{
	for (unsigned i = 0; i < d->nr_disks; i++)
		worker_say(
			w, SESSION_INFO,
			"disk %s went along; %s stays here, unused: remove it when it is not needed any more",
			d->list[i].vdev, d->list[i].path);
}

static int open_guest(struct worker *w, struct departure *d, struct pgr_error *err)
{
	struct guest_description about = {.config = NULL};
	const char *name = message_text(w->request, "guest");
	int rc;

	if (!strncmp(name, "sim:", 4) && !w->allow_sim)
		return pgr_fail(
			err, -EPERM,
			"simulated guests are for tests: start the daemon with --allow-sim");
	rc = guests_open_source(name, &d->guest, err);
	if (rc)
		return rc;
	rc = d->guest->ops->describe(d->guest, &about, err);
	if (!rc)
		d->info = about.info;
	if (!rc)
		rc = take_disks(w, d, &about, err);
	guest_description_free(&about);
	if (!rc)
		rc = journal_lock_guest(w->paths.state, d->info.uuid, w->session, &d->guest_lock,
					err);
	return rc;
}

static int begin_journal(struct worker *w, struct departure *d, struct pgr_error *err)
{
	struct journal *j = &w->journal;

	memcpy(j->session, w->session, sizeof(j->session));
	j->role = JOURNAL_SOURCE;
	j->mark = SESSION_MARK_BEGIN;
	journal_note_guest(j, &d->info);
	snprintf(j->peer, sizeof(j->peer), "%s", d->link.host.name);
	return journal_create(w->paths.state, j, &w->journal_file, err);
}

static int fill_params(struct worker *w, struct departure *d, struct pgr_error *err)
{
	const json_t *r = w->request;
	struct source_params *p = &d->params;
	const char *compress = message_text(r, "compress");

	memcpy(p->session, w->session, sizeof(p->session));
	p->channels = (unsigned)message_number(r, "channels");
	p->bandwidth = message_number(r, "bandwidth");
	p->verify = message_flag(r, "verify");
	p->dry_run = message_flag(r, "dry_run");
	p->encode.cache_bytes = message_number(r, "delta_cache");
	p->policy.downtime_ns = message_number(r, "downtime_ms") * 1000000;
	p->policy.max_time_ns = message_number(r, "max_time_ms") * 1000000;
	p->policy.max_rounds = (unsigned)message_number(r, "max_rounds");
	p->policy.min_speed = (unsigned)message_number(r, "throttle");
	p->suspend_timeout_ms = (unsigned)message_number(r, "suspend_timeout_ms");
	p->reconnect_ms = (unsigned)message_number(r, "reconnect_ms");
	/* A guest that stands still waits less. */
	p->reconnect_stopped_ms = p->reconnect_ms / 3;
	p->connect = connect_link_open;
	p->connect_ctx = &d->link;
	if (!p->channels || p->channels > PGR_CHANNELS_MAX || p->policy.min_speed < 1 ||
	    p->policy.min_speed > 100)
		return pgr_fail(err, -EINVAL,
				"the request's channels or throttle are out of range");
	if (!encode_method_parse(compress, &p->encode.method))
		return pgr_fail(err, -EINVAL, "unknown compression \"%s\": lz4, zstd or none",
				compress);
	memcpy(d->link.session, w->session, sizeof(d->link.session));
	d->link.id = w->id;
	d->link.cancel_fd = w->cancel_fd;
	return hosts_find(w->paths.config, message_text(r, "host"), &d->link.host, err);
}

static int prepare(struct worker *w, struct departure *d, struct pgr_error *err)
{
	int rc = fill_params(w, d, err);

	if (!rc)
		rc = open_guest(w, d, err);
	if (!rc)
		worker_send(w,
			    json_pack("{ss so ss si}", "type", "guest", "guest",
				      message_string(d->info.name), "peer", d->link.host.name,
				      "vcpus", (int)d->info.vcpus),
			    true);
	if (!rc && !d->params.dry_run)
		rc = begin_journal(w, d, err);
	return rc;
}

/* Nobody has told what became of it: keep asking until somebody does, or the daemon says stop. */
static void find_out(struct worker *w, struct departure *d)
{
	struct pgr_error err = PGR_ERROR_NONE;
	char said[256];
	int rc;

	worker_rearm(w);
	pthread_mutex_lock(&w->journal_lock);
	struct journal j = w->journal;
	pthread_mutex_unlock(&w->journal_lock);
	rc = recover_ask(&j, w->journal_file, d->guest, &d->link, &w->owner, said, &err);
	if (rc)
		worker_say(w, SESSION_WARNING, "guest %s: still unknown where it runs: %s", j.guest,
			   err.text);
	else
		worker_say(w, SESSION_INFO, "%s", said);
	if (!rc && j.mark == SESSION_MARK_RETURNED)
		guests_look_after(d->info.kind, d->info.uuid);
}

static void note_may_stop(struct journal *j, void *ctx)
{
	(void)ctx;
	j->may_stop = true;
}

/* Only figures are waited for any more: whoever brings the guest back meanwhile finds nothing unfinished. */
static void on_moved(void *ctx)
{
	worker_journal_done(ctx, SESSION_MARK_MOVED);
}

int worker_source(struct worker *w)
{
	struct departure d = {.guest_lock = -1};
	struct session_result res = {.outcome = SESSION_STAYED};
	struct pgr_error err = PGR_ERROR_NONE, why = PGR_ERROR_NONE;
	int rc, status;

	w->owner.moved = on_moved;
	rc = prepare(w, &d, &err);
	if (!rc)
		rc = source_run(d.guest, &d.params, &w->owner, &res, &err);
	status = report_exit(&res, rc);
	/* Before the result, so that whoever has the result finds nothing unfinished. */
	if (w->journal_file && !w->journal.done && res.outcome != SESSION_UNKNOWN &&
	    !res.unfinished)
		worker_journal_done(w, res.outcome == SESSION_MOVED ? SESSION_MARK_MOVED
								    : SESSION_MARK_RETURNED);
	if (w->journal_file && res.may_stop && worker_journal(w, note_may_stop, NULL, &why))
		worker_say(w, SESSION_WARNING, "%s", why.text);
	if (d.guest && res.outcome == SESSION_STAYED &&
	    guests_check_source(d.guest, d.info.kind, &err))
		worker_say(w, SESSION_WARNING, "%s", err.text);
	if (res.outcome == SESSION_MOVED)
		tell_disks_left(w, &d);
	worker_send(w, report_result(&res, rc, err.text), true);
	if (res.outcome == SESSION_UNKNOWN)
		find_out(w, &d);
	/* It stood still, and runs on. */
	if (d.guest && res.stop.suspend && !res.unfinished &&
	    w->journal.mark == SESSION_MARK_RETURNED)
		guests_look_after(d.info.kind, d.info.uuid);
	if (d.guest)
		d.guest->ops->close(d.guest);
	disks_leave_free(d.disks);
	free(d.list);
	if (d.guest_lock >= 0)
		close(d.guest_lock);
	journal_close(w->journal_file);
	return status;
}
