/* SPDX-License-Identifier: MIT */
/*
 * The target of a session: from the first connection to a guest that runs here, or to nothing; the states are in session.h.
 *
 *   opening     nothing of the guest is here; a refusal or a failure leaves nothing
 *   RECEIVING   a domain is being filled; failing, or a source that does not come back, means: destroy it
 *   READY       the same; the domain is complete, agrees with the source's digest, and waits
 *   COMMIT      mark(COMMIT) is durable before the guest is started, so a target that comes back after a crash knows that it must start it
 *   RUNNING     mark(MOVED) is durable before the source is told; from here QUERY is answered "running" for ever, and what is still
 *               told (CONNECTED) is figures: as long as the source listens, and not for long
 *
 * NOT_STARTED is said only when the domain is gone and mark(RETURNED) is durable: it then can never start in this session.
 *
 * A start that failed takes the journal back to BEGIN before the domain is removed: after a crash COMMIT without a domain means that the guest
 * ran here and ended, which the source would be told.
 */
#include "migrate/target_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WINDOW_DEFAULT	8192u
#define FIRST_ACCEPT_MS 30000u
#define LINGER_NS	5000000000ull
/* The source waits ten seconds: what is known by then has to be there. */
#define CONNECTED_NS 8000000000ull
/* So often it is looked whether the source still listens. */
#define CONNECTED_SLICE_MS 100u
#define OPENING_NS	   120000000000ull /* as long as the source waits for its answer */
#define TARGET_FEATURES                                                                \
	(PGR_FEATURE_LZ4 | PGR_FEATURE_ZSTD | PGR_FEATURE_DELTA | PGR_FEATURE_RESUME | \
	 PGR_FEATURE_VERIFY)

static int take_array(void **out, uint32_t nr, size_t size, const uint8_t *from,
		      struct pgr_error *err)
{
	*out = NULL;
	if (!nr)
		return 0;
	*out = malloc(nr * size);
	if (!*out)
		return pgr_fail(err, -ENOMEM, "no memory for the CPU policy");
	memcpy(*out, from, nr * size);
	return 0;
}

static int take_disk(struct guest_description *d, const struct stream_record *rec,
		     struct pgr_error *err)
{
	const uint8_t *text = rec->body + sizeof(struct pgr_disk);
	struct guest_disk *more = realloc(d->disks, (d->nr_disks + 1) * sizeof(*more)), *disk;
	struct pgr_disk b;

	if (!more)
		return pgr_fail(err, -ENOMEM, "no memory for the description of a disk");
	d->disks = more;
	memcpy(&b, rec->body, sizeof(b));
	disk = &more[d->nr_disks];
	*disk = (struct guest_disk){
		.size = b.size, .used = b.used, .format = (enum pgr_disk_format)b.format};
	memcpy(disk->vdev, text, b.vdev_length);
	memcpy(disk->path, text + b.vdev_length, rec->length - sizeof(b) - b.vdev_length);
	if (guest_disk_comes(d, disk->path))
		return pgr_fail(err, -EPROTO, "two disks come along in the file %s", disk->path);
	d->nr_disks++;
	return 0;
}

/* The opening's records; their form was checked by the codec. */
int target_opening(struct target *t, const struct stream_record *rec, struct pgr_error *err)
{
	struct guest_description *d = &t->d;
	size_t n;
	int rc = 0;

	switch (rec->type) {
	case PGR_REC_HELLO: {
		struct pgr_hello h;

		memcpy(&h, rec->body, sizeof(h));
		d->info.kind = h.guest_kind;
		d->info.nr_pfns = h.nr_pfns;
		d->info.populated = h.populated;
		d->info.vcpus = h.vcpus;
		d->info.can_log_dirty = h.live;
		t->features =
			h.features & (t->p && t->p->features ? t->p->features : TARGET_FEATURES);
		if (t->p && t->p->disks)
			t->features |= h.features & PGR_FEATURE_DISKS;
		break;
	}
	case PGR_REC_IDENTITY:
		memcpy(d->info.uuid, rec->body, sizeof(d->info.uuid));
		n = rec->length - sizeof(struct pgr_identity);
		memcpy(d->info.name, rec->body + sizeof(struct pgr_identity), n);
		d->info.name[n] = 0;
		break;
	case PGR_REC_CPU_POLICY: {
		struct pgr_cpu_policy p;
		const uint8_t *at = rec->body + sizeof(p);

		memcpy(&p, rec->body, sizeof(p));
		rc = take_array((void **)&d->leaves, p.nr_leaves, sizeof(*d->leaves), at, err);
		if (!rc)
			d->nr_leaves = p.nr_leaves;
		if (!rc)
			rc = take_array((void **)&d->msrs, p.nr_msrs, sizeof(*d->msrs),
					at + p.nr_leaves * sizeof(*d->leaves), err);
		if (!rc)
			d->nr_msrs = p.nr_msrs;
		break;
	}
	case PGR_REC_CONFIG: {
		struct pgr_config c;

		memcpy(&c, rec->body, sizeof(c));
		n = rec->length - sizeof(c);
		d->config_format = c.format;
		d->config = malloc(n + 1);
		if (!d->config)
			return pgr_fail(err, -ENOMEM, "no memory for the configuration");
		memcpy(d->config, rec->body + sizeof(c), n);
		d->config[n] = 0;
		break;
	}
	case PGR_REC_DISK:
		return take_disk(d, rec, err);
	case PGR_REC_PARENT:
		return pgr_fail(
			err, -EPROTONOSUPPORT,
			"this is a checkpoint that needs its parent; it cannot be restored by itself");
	case PGR_REC_OPEN:
		pthread_mutex_lock(&t->lock);
		t->opened = true;
		pthread_cond_broadcast(&t->changed);
		pthread_mutex_unlock(&t->lock);
		break;
	default:
		break;
	}
	return rc;
}

static bool opened(struct target *t)
{
	return t->opened;
}

static bool want_create(struct target *t)
{
	return t->want_create;
}

static bool all_ended(struct target *t)
{
	return t->lanes_ended == t->nr;
}

static bool have_commit(struct target *t)
{
	return t->have_commit;
}

static bool peer_gone(struct target *t)
{
	return t->lanes[0].lost_ns || t->lanes[0].receiver_done;
}

static int answer_opening(struct target *t, const struct guest_refusals *r, struct pgr_error *err)
{
	struct pgr_hello_reply reply = {.version = PGR_VERSION,
					.features = t->features,
					.channels = t->nr,
					.window = t->p->window ? t->p->window : WINDOW_DEFAULT};
	struct pgr_precheck p = {.refusals = r->nr};
	char body[sizeof(p) + sizeof(r->text)];
	size_t length = sizeof(p);
	int rc;

	memcpy(body, &p, sizeof(p));
	for (unsigned i = 0; i < r->nr; i++) {
		size_t n = strlen(r->text[i]);

		memcpy(body + length, r->text[i], n);
		length += n;
		body[length++] = '\n';
	}
	rc = target_send(&t->lanes[0], PGR_REC_HELLO_REPLY, &reply, sizeof(reply), err);
	if (!rc)
		rc = target_send(&t->lanes[0], PGR_REC_PRECHECK, body, length, err);
	return rc;
}

/* Make the domain and let the appliers go on. */
static int create(struct target *t, struct pgr_error *err)
{
	uint64_t n = t->d.info.nr_pfns;
	int rc;

	reporter_phase(&t->reporter, SESSION_RECEIVE);
	rc = reporter_mark(&t->reporter, SESSION_MARK_BEGIN, err);
	if (rc)
		return rc;
	rc = ledger_init(&t->ledger, n, err);
	if (rc)
		return rc;
	t->owner = calloc(n, 1);
	if (!t->owner)
		return pgr_fail(err, -ENOMEM, "no memory for the table of %llu pages",
				(unsigned long long)n);
	t->res->peak_buffers =
		ledger_bytes(n) + n + (uint64_t)t->nr * (TARGET_QUEUE_BYTES + 2 * PGR_RECORD_MAX);
	rc = t->d.nr_disks ? t->p->disks->make(t->p->disks->ctx, &t->d, err) : 0;
	if (!rc)
		rc = t->sink->ops->create(t->sink, &t->d, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&t->lock);
	t->created = true;
	t->state = PGR_STATE_RECEIVING;
	pthread_cond_broadcast(&t->changed);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

/* Check the guest's welcome. 0, or -EPERM with every refusal told to the owner. */
static int precheck(struct target *t, struct guest_refusals *r, struct pgr_error *err)
{
	int rc;

	memset(r, 0, sizeof(*r));
	rc = t->sink->ops->precheck(t->sink, &t->d, r, err);
	if (!rc && t->d.nr_disks && !(t->features & PGR_FEATURE_DISKS))
		guest_refuse(r, "this host takes no disks along");
	else if (!rc && t->d.nr_disks)
		rc = t->p->disks->check(t->p->disks->ctx, &t->d, r, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < r->nr; i++)
		reporter_message(&t->reporter, SESSION_WARNING, "refused: %s", r->text[i]);
	return 0;
}

/* Everything arrived: compare the digests and put the guest together. */
static int finish(struct target *t, struct pgr_error *err)
{
	struct ledger_sum sum = {0};
	int rc;

	for (unsigned i = 0; i < t->nr; i++) {
		sum.digest += t->lanes[i].sum.digest;
		sum.pages += t->lanes[i].sum.pages;
	}
	t->res->digest = sum.digest;
	t->res->digest_pages = sum.pages;
	t->res->verified = t->lanes[0].verifying;
	if (!t->have_digest || sum.digest != t->digest.digest || sum.pages != t->digest.pages)
		return pgr_fail(
			err, -EBADMSG,
			"the memory that arrived is not the memory that was sent: digest %016llx over %llu pages here, %016llx over %llu there",
			(unsigned long long)sum.digest, (unsigned long long)sum.pages,
			(unsigned long long)t->digest.digest, (unsigned long long)t->digest.pages);
	reporter_phase(&t->reporter, SESSION_FINISH);
	/* Before anything of this host may open them. */
	rc = t->d.nr_disks ? t->p->disks->finish(t->p->disks->ctx, err) : 0;
	return rc ? rc : t->sink->ops->finish(t->sink, err);
}

static void tick(void *ctx, struct session_progress *progress)
{
	struct target *t = ctx;
	uint64_t bytes, pages = 0;
	unsigned nr;

	memset(&progress->encode, 0, sizeof(progress->encode));
	pthread_mutex_lock(&t->lock);
	nr = t->nr;
	bytes = t->wire_before;
	/* The description is the applier's until then. */
	if (t->opened) {
		progress->pages_total = t->d.info.nr_pfns;
		progress->memory_bytes = t->d.info.populated * PGR_PAGE_SIZE;
	}
	for (unsigned i = 0; i < nr; i++) {
		struct target_lane *tl = &t->lanes[i];

		if (!tl->usable)
			continue;
		session_encode_stats_add(&progress->encode, &tl->stats);
		bytes += __atomic_load_n(&tl->wire_bytes, __ATOMIC_RELAXED);
		pages += tl->stats.pages;
	}
	pthread_mutex_unlock(&t->lock);
	progress->bytes_sent = bytes;
	progress->pages_done = pages;
	for (unsigned i = 0; !t->file && i < nr; i++) {
		struct target_lane *tl = &t->lanes[i];
		struct pgr_error ignored;

		/* A writer that waits for the network must not hold up the reporter. */
		if (!tl->usable || pthread_mutex_trylock(&tl->write_lock))
			continue;
		if (tl->channel && tl->receiver_running && tl->replied &&
		    session_now_ns() - tl->last_write_ns > SESSION_KEEPALIVE_NS) {
			stream_write(&tl->writer, PGR_REC_KEEPALIVE, NULL, 0, &ignored);
			tl->last_write_ns = session_now_ns();
		}
		pthread_mutex_unlock(&tl->write_lock);
	}
}

static int target_open(struct target *t, struct guest_sink *sink, const struct target_params *p,
		       const struct session_owner *o, struct session_result *res, bool file,
		       struct pgr_error *err)
{
	int rc;

	memset(t, 0, sizeof(*t));
	memset(res, 0, sizeof(*res));
	res->outcome = SESSION_STAYED;
	t->sink = sink;
	t->p = p;
	t->res = res;
	t->file = file;
	t->kind = file ? PGR_KIND_IMAGE : PGR_KIND_MIGRATE;
	t->state = PGR_STATE_RECEIVING;
	t->nr = 1;
	pthread_mutex_init(&t->lock, NULL);
	session_cond_init(&t->changed);
	rc = target_lane_init(t, 0, err);
	if (rc)
		return rc;
	return reporter_start(&t->reporter, o, tick, t, err);
}

static void target_close(struct target *t)
{
	target_acceptor_stop(t);
	reporter_stop(&t->reporter);
	target_unlink(t);
	for (unsigned i = 0; i < PGR_CHANNELS_MAX; i++)
		target_lane_free(&t->lanes[i]);
	ledger_free(&t->ledger);
	free(t->owner);
	guest_description_free(&t->d);
	pthread_cond_destroy(&t->changed);
	pthread_mutex_destroy(&t->lock);
}

/* The last of a session, whatever came of it; t is gone afterwards. Returns rc. */
static int target_end(struct target *t, int rc)
{
	struct session_progress p;

	t->res->elapsed_ns = session_now_ns() - t->reporter.started_ns;
	t->res->memory_bytes = t->d.info.populated * PGR_PAGE_SIZE;
	memset(&p, 0, sizeof(p));
	tick(t, &p);
	t->res->bytes = p.bytes_sent;
	t->res->encode = p.encode;
	if (t->reporter.running)
		reporter_phase(&t->reporter, rc ? SESSION_FAILED : SESSION_DONE);
	target_close(t);
	free(t);
	return rc;
}

/*
 * After the last word wait a little for the source to close, so that the word is not lost with the connection: closing a socket with
 * unread bytes throws away what the peer has not read yet.
 */
static void linger(struct target *t)
{
	uint64_t until = session_now_ns() + LINGER_NS;

	pthread_mutex_lock(&t->lock);
	while (!peer_gone(t) && session_now_ns() < until)
		session_cond_wait_until(&t->changed, &t->lock, session_now_ns() + 50000000ull);
	pthread_mutex_unlock(&t->lock);
}

static bool is_heard(struct target *t)
{
	bool heard;

	pthread_mutex_lock(&t->lock);
	heard = !peer_gone(t);
	pthread_mutex_unlock(&t->lock);
	return heard && !reporter_cancelled(&t->reporter);
}

/* When the guest had its devices here. It runs: nothing that goes wrong from here on is a failure. */
static void tell_connected(struct target *t)
{
	uint64_t until = session_now_ns() + CONNECTED_NS;
	struct pgr_connected c = {.devices = 0};
	struct pgr_error err = PGR_ERROR_NONE;
	int rc;

	do {
		rc = t->sink->ops->connected(t->sink, CONNECTED_SLICE_MS, &c, &err);
	} while (rc == -ETIMEDOUT && session_now_ns() < until && is_heard(t));
	if (rc && rc != -ETIMEDOUT)
		reporter_message(&t->reporter, SESSION_INFO,
				 "it cannot be told when the guest had its devices: %s", err.text);
	target_send(&t->lanes[0], PGR_REC_CONNECTED, &c, sizeof(c), &err);
}

/* Leave nothing of the guest here and tell the source. */
static void give_up(struct target *t, const struct pgr_error *why)
{
	uint8_t body[sizeof(struct pgr_abort) + sizeof(why->text)];
	struct pgr_error err = PGR_ERROR_NONE;

	/* Appliers that wait for a domain that will not be made. */
	target_fail(t, why);
	for (unsigned i = 0; i < PGR_CHANNELS_MAX; i++)
		if (t->lanes[i].usable)
			target_lane_drain(&t->lanes[i]);
	if (t->committed && reporter_mark(&t->reporter, SESSION_MARK_BEGIN, &err)) {
		/* While the journal says COMMIT a missing guest is one that ran and ended: it must stay until the journal can be changed. */
		t->res->outcome = SESSION_UNKNOWN;
		t->res->unfinished = true;
		reporter_message(
			&t->reporter, SESSION_WARNING,
			"cannot record that the guest was not started: %s; it stays here, complete, until that is repaired",
			err.text);
	} else if (t->sink->ops->destroy(t->sink, &err)) {
		t->res->unfinished = true;
		reporter_message(&t->reporter, SESSION_WARNING,
				 "cannot remove the incomplete guest: %s", err.text);
	} else if (t->d.nr_disks && t->features & PGR_FEATURE_DISKS &&
		   t->p->disks->remove(t->p->disks->ctx, &err)) {
		t->res->unfinished = true;
		reporter_message(&t->reporter, SESSION_WARNING,
				 "cannot remove the guest's incomplete disks: %s", err.text);
	} else if (t->want_create && reporter_mark(&t->reporter, SESSION_MARK_RETURNED, &err)) {
		reporter_message(&t->reporter, SESSION_WARNING,
				 "cannot record that the guest was not started: %s", err.text);
	} else {
		target_set_state(t, PGR_STATE_NOT_STARTED);
	}
	/* A refusal was the last word. */
	if (t->lanes[0].greeted && !t->refused && !t->file)
		if (!target_send(&t->lanes[0], PGR_REC_ABORT, body, session_abort_body(body, why),
				 &err))
			linger(t);
}

static int receive(struct target *t, struct pgr_error *err)
{
	struct guest_refusals refusals;
	struct pgr_digest ready;
	enum pgr_purpose purpose;
	struct channel *c;
	unsigned i;
	int rc;

	rc = t->p->accept(t->p->accept_ctx, FIRST_ACCEPT_MS, &i, &purpose, &c, err);
	if (rc)
		return rc;
	t->lanes[0].channel = c;
	if (purpose != PGR_PURPOSE_NEW || i != 0)
		return pgr_fail(err, -EPROTO,
				"%s: a session begins with a new connection for channel 0",
				c->peer);
	rc = target_greet(t, 0, err);
	if (rc)
		return rc;
	t->lanes[0].greeted = true;
	reporter_phase(&t->reporter, SESSION_CONNECT);
	rc = target_lane_start(t, 0, err);
	if (!rc)
		rc = target_acceptor_start(t, err);
	/* A peer that only keeps the connection alive would have this process for ever. */
	t->until_ns = session_now_ns() + OPENING_NS;
	if (!rc)
		rc = target_wait(t, opened, err);
	t->until_ns = 0;
	if (rc)
		return rc;
	reporter_phase(&t->reporter, SESSION_PRECHECK);
	rc = precheck(t, &refusals, err);
	if (rc)
		return rc;
	for (unsigned k = 1; k < t->offered && !rc; k++)
		rc = target_lane_init(t, k, err);
	if (rc)
		return rc;
	pthread_mutex_lock(&t->lock);
	t->nr = t->offered;
	pthread_mutex_unlock(&t->lock);
	rc = answer_opening(t, &refusals, err);
	/*
	 * What was sent while the connection went away may have arrived, and only the source knows: one that has its answer resumes, one
	 * that has not begins another session, and nobody comes back for this one.
	 */
	if (rc && !refusals.nr && (session_is_loss(rc) || rc == -ECANCELED)) {
		target_lane_lost(&t->lanes[0], err);
		rc = 0;
	}
	if (rc)
		return rc;
	if (refusals.nr) {
		t->refused = true;
		linger(t);
		return pgr_fail(err, -EPERM, "the guest %s was refused: %s", t->d.info.name,
				refusals.text[0]);
	}
	t->opened_replied = true;
	target_replied(&t->lanes[0]);
	rc = target_wait(t, want_create, err);
	if (!rc)
		rc = create(t, err);
	if (!rc)
		rc = target_wait(t, all_ended, err);
	if (!rc)
		rc = finish(t, err);
	if (rc)
		return rc;
	target_set_state(t, PGR_STATE_READY);
	ready = (struct pgr_digest){.digest = t->res->digest, .pages = t->res->digest_pages};
	reporter_phase(&t->reporter, SESSION_READY);
	/* When this is lost it is said again on the connection that replaces the lost one. */
	target_send(&t->lanes[0], PGR_REC_READY, &ready, sizeof(ready), err);
	return target_wait(t, have_commit, err);
}

static int start(struct target *t, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	int rc;

	/* Before the mark: one that failed may be durable all the same. */
	t->committed = true;
	rc = reporter_mark(&t->reporter, SESSION_MARK_COMMIT, err);
	if (rc)
		return rc;
	/* Point of no return, unless start() fails, after which the guest has not run. */
	reporter_phase(&t->reporter, SESSION_COMMIT);
	rc = t->sink->ops->start(t->sink, err);
	if (rc)
		return rc;
	t->res->outcome = SESSION_MOVED;
	if (reporter_mark(&t->reporter, SESSION_MARK_MOVED, &why))
		reporter_message(&t->reporter, SESSION_WARNING,
				 "the guest runs, but that could not be recorded: %s", why.text);
	target_set_state(t, PGR_STATE_RUNNING);
	return 0;
}

int target_run(struct guest_sink *sink, const struct target_params *p,
	       const struct session_owner *o, struct session_result *res, struct pgr_error *err)
{
	struct target *t = malloc(sizeof(*t));
	struct pgr_error why = PGR_ERROR_NONE;
	int rc;

	res->outcome = SESSION_STAYED;
	if (!t)
		return pgr_fail(err, -ENOMEM, "no memory for a session");
	rc = target_open(t, sink, p, o, res, false, err);
	if (!rc)
		rc = receive(t, err);
	if (!rc)
		rc = start(t, err);
	if (rc) {
		give_up(t, err);
	} else {
		reporter_phase(&t->reporter, SESSION_CLEANUP);
		if (!target_send(&t->lanes[0], PGR_REC_RUNNING, NULL, 0, &why)) {
			tell_connected(t);
			linger(t);
		}
	}
	return target_end(t, rc);
}

int target_restore(struct guest_sink *sink, struct channel *in, bool start_it,
		   const struct session_owner *o, struct session_result *res, struct pgr_error *err)
{
	struct target *t = malloc(sizeof(*t));
	struct guest_refusals refusals;
	int rc;

	res->outcome = SESSION_STAYED;
	if (!t)
		return pgr_fail(err, -ENOMEM, "no memory for a session");
	rc = target_open(t, sink, NULL, o, res, true, err);
	t->lanes[0].channel = in;
	if (!rc)
		rc = target_greet(t, 0, err);
	if (!rc) {
		reporter_phase(&t->reporter, SESSION_PRECHECK);
		rc = target_lane_start(t, 0, err);
	}
	if (!rc)
		rc = target_wait(t, opened, err);
	if (!rc)
		rc = precheck(t, &refusals, err);
	if (!rc && refusals.nr)
		rc = pgr_fail(err, -EPERM, "the guest %s cannot be restored here: %s",
			      t->d.info.name, refusals.text[0]);
	if (!rc)
		rc = target_wait(t, want_create, err);
	if (!rc)
		rc = create(t, err);
	if (!rc)
		rc = target_wait(t, all_ended, err);
	if (!rc)
		rc = finish(t, err);
	if (!rc && start_it)
		rc = start(t, err);
	if (rc)
		give_up(t, err);
	else
		res->outcome = SESSION_MOVED;
	return target_end(t, rc);
}
