/* SPDX-License-Identifier: MIT */
/*
 * The source of a session: from CONNECT to CLEANUP; the states are in session.h.
 *
 * Where the guest is, by what has happened:
 *
 *   until suspend             it runs here; failing means: stop logging, tell the target, done
 *   suspend .. mark(COMMIT)   it stands still here; failing means: resume it
 *   mark(COMMIT) ..           it may run there; only the target's word ("not started") lets us resume it
 *   RUNNING arrived           it runs there; it is removed here, and then CONNECTED is waited for, which changes nothing
 *
 * mark(COMMIT) is durable before COMMIT is sent, so a source that comes back after a crash knows on which side of that line it was.
 * unwind() is the one place that acts on this table.
 */
#include "migrate/source_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SUSPEND_DEFAULT_MS 60000u
#define LET_GO_MS	   20000u
/* A target that gives up cuts its disks off before it says why. */
#define DISK_WORD_NS	     2000000000ull
#define QUERY_PAUSE_NS	     1000000000ull
#define PRECHECK_PATIENCE_NS 120000000000ull
#define READY_PATIENCE_NS    600000000000ull
#define CONNECTED_DEFAULT_MS 10000u
/* What a stop costs without a page, before anything was measured: suspend, state, build, start. */
#define FIXED_STOP_DEFAULT_NS 20000000ull

static uint64_t ms(unsigned value, unsigned fallback)
{
	return value ? value : fallback;
}

/* ---- the opening ---- */

static int send_disks(struct source *s, struct pgr_error *err)
{
	int rc = 0;

	for (unsigned i = 0; i < s->p->disks->nr && !rc; i++) {
		const struct guest_disk *d = &s->p->disks->disks[i];
		struct pgr_disk disk = {.size = d->size,
					.used = d->used,
					.format = d->format,
					.vdev_length = (uint32_t)strlen(d->vdev)};
		struct iovec parts[] = {{&disk, sizeof(disk)},
					{(void *)(uintptr_t)d->vdev, disk.vdev_length},
					{(void *)(uintptr_t)d->path, strlen(d->path)}};

		rc = source_append(s, 0, PGR_REC_DISK, parts, 3, err);
	}
	return rc;
}

static int send_opening(struct source *s, struct pgr_error *err)
{
	const struct guest_description *d = &s->d;
	struct pgr_hello hello = {
		.guest_kind = d->info.kind,
		.features = PGR_FEATURE_LZ4 | PGR_FEATURE_ZSTD | PGR_FEATURE_DELTA |
			    PGR_FEATURE_RESUME | PGR_FEATURE_VERIFY |
			    (s->p->disks ? PGR_FEATURE_DISKS : 0),
		.nr_pfns = d->info.nr_pfns,
		.populated = d->info.populated,
		.vcpus = d->info.vcpus,
		.live = d->info.can_log_dirty,
	};
	struct pgr_identity identity;
	struct pgr_cpu_policy policy = {.nr_leaves = d->nr_leaves, .nr_msrs = d->nr_msrs};
	struct pgr_config config = {.format = d->config_format};
	int rc;

	memcpy(identity.uuid, d->info.uuid, sizeof(identity.uuid));
	rc = source_append_body(s, 0, PGR_REC_HELLO, &hello, sizeof(hello), err);
	if (!rc) {
		struct iovec parts[] = {{&identity, sizeof(identity)},
					{(void *)(uintptr_t)d->info.name, strlen(d->info.name)}};

		rc = source_append(s, 0, PGR_REC_IDENTITY, parts, 2, err);
	}
	if (!rc && (d->nr_leaves || d->nr_msrs)) {
		struct iovec parts[] = {{&policy, sizeof(policy)},
					{d->leaves, d->nr_leaves * sizeof(*d->leaves)},
					{d->msrs, d->nr_msrs * sizeof(*d->msrs)}};

		rc = source_append(s, 0, PGR_REC_CPU_POLICY, parts, 3, err);
	}
	if (!rc) {
		struct iovec parts[] = {{&config, sizeof(config)},
					{d->config, d->config ? strlen(d->config) : 0}};

		rc = source_append(s, 0, PGR_REC_CONFIG, parts, 2, err);
	}
	if (!rc && s->p->disks)
		rc = send_disks(s, err);
	if (!rc)
		rc = source_append(s, 0, PGR_REC_OPEN, NULL, 0, err);
	return rc;
}

static bool opened(struct source *s)
{
	return s->have_reply && s->have_precheck;
}

/* HELLO to PRECHECK. */
static int open_session(struct source *s, struct pgr_error *err)
{
	unsigned channels;
	int rc;

	reporter_phase(&s->reporter, SESSION_CONNECT);
	rc = source_link_first(s, err);
	if (rc)
		return rc;
	reporter_phase(&s->reporter, SESSION_PRECHECK);
	rc = send_opening(s, err);
	if (!rc)
		rc = source_wait(s, opened, session_now_ns() + PRECHECK_PATIENCE_NS, err);
	if (rc == -ETIMEDOUT)
		pgr_fail_prefix(err, "the target did not answer the opening");
	if (rc)
		return rc;
	if (s->refusals_total) {
		pgr_fail(err, -EPERM, "the target does not take the guest %s: %s", s->d.info.name,
			 s->refusals.nr ? s->refusals.text[0] : "it gave no reason");
		for (unsigned i = 0; i < s->refusals.nr; i++)
			reporter_message(&s->reporter, SESSION_WARNING, "refused: %s",
					 s->refusals.text[i]);
		return err->code;
	}
	if (s->p->encode.method == ENCODE_ZSTD && !(s->reply.features & PGR_FEATURE_ZSTD))
		return pgr_fail(err, -EPROTONOSUPPORT,
				"the target cannot decode zstd; use --compress lz4");
	if (s->p->encode.method == ENCODE_LZ4 && !(s->reply.features & PGR_FEATURE_LZ4))
		return pgr_fail(err, -EPROTONOSUPPORT,
				"the target cannot decode LZ4; use --compress none");
	if (s->p->disks && !(s->reply.features & PGR_FEATURE_DISKS))
		return pgr_fail(
			err, -EPROTONOSUPPORT,
			"the target takes no disks along; use --with-disks with a newer one");
	channels = s->reply.channels;
	if (channels == 0 || channels > s->p->channels)
		return pgr_fail(err, -EPROTO, "the target accepted %u channels of %u", channels,
				s->p->channels);
	pthread_mutex_lock(&s->lock);
	s->nr = channels;
	pthread_mutex_unlock(&s->lock);
	for (unsigned i = 0; i < s->nr; i++)
		s->lanes[i].lane.window = s->reply.window;
	return 0;
}

/* ---- disks that come along ---- */

static bool disks_are_same(struct source *s)
{
	return s->disks_same;
}

/* Before its memory: while that is copied the disks are kept the same, which costs little. */
static int mirror_disks(struct source *s, struct pgr_error *err)
{
	int rc;

	reporter_phase(&s->reporter, SESSION_DISKS);
	rc = s->p->disks->begin(s->p->disks->ctx, err);
	if (rc)
		return rc;
	atomic_store(&s->disks_begun, true);
	return source_wait(s, disks_are_same, 0, err);
}

static void look_at_disks(struct source *s, struct session_progress *progress)
{
	struct pgr_error err = PGR_ERROR_NONE;
	bool same;

	if (s->p->disks->look(s->p->disks->ctx, &progress->disk_bytes, &progress->disk_left, &same,
			      &err)) {
		if (!s->disks_failed_ns)
			s->disks_failed_ns = session_now_ns();
		if (atomic_load(&s->disks_begun) &&
		    session_now_ns() - s->disks_failed_ns >= DISK_WORD_NS)
			source_fail(s, &err);
		return;
	}
	pthread_mutex_lock(&s->lock);
	s->disks_same = same;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

/* The figures as they are when all is done. */
static void note_disks(struct source *s)
{
	struct pgr_error ignored;
	uint64_t left;
	bool same;

	s->p->disks->look(s->p->disks->ctx, &s->res->disk_bytes, &left, &same, &ignored);
}

static bool never(struct source *s)
{
	(void)s;
	return false;
}

static int finish_disks(struct source *s, struct pgr_error *err)
{
	struct pgr_error why = PGR_ERROR_NONE;
	int rc;

	if (!s->p->disks)
		return 0;
	rc = s->p->disks->finish(s->p->disks->ctx, LET_GO_MS, err);
	atomic_store(&s->disks_begun, false);
	if (!rc) {
		note_disks(s);
		return 0;
	}
	if (source_wait(s, never, session_now_ns() + DISK_WORD_NS, &why) != -ETIMEDOUT)
		*err = why;
	return err->code;
}

static void end_disks(struct source *s)
{
	atomic_store(&s->disks_begun, false);
	if (s->p->disks)
		s->p->disks->end(s->p->disks->ctx);
}

/* ---- rounds ---- */

static void everything(struct source *s)
{
	uint64_t n = s->d.info.nr_pfns;

	memset(s->todo, 0xff, source_words(s) * sizeof(*s->todo));
	if (n % 64)
		s->todo[n / 64] = (1ull << n % 64) - 1;
}

static void give_speed_back(struct source *s)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (s->throttled && s->g->ops->throttle(s->g, 100, &err))
		reporter_message(&s->reporter, SESSION_WARNING,
				 "cannot give the guest its full speed back: %s", err.text);
	else
		s->throttled = false;
}

/* The guest stands still, and nothing but us touches its memory or its disks. */
static int stop_guest(struct source *s, struct pgr_error *err)
{
	uint64_t begin;
	int rc;

	rc = reporter_mark(&s->reporter, SESSION_MARK_STOPPING, err);
	if (rc)
		return rc;
	if (s->p->disks)
		s->p->disks->stopping(s->p->disks->ctx);
	/* It suspends itself: with the little time that it was left, that would be most of the stop. */
	give_speed_back(s);
	reporter_phase(&s->reporter, SESSION_STOP);
	s->suspend_ns = session_now_ns();
	s->suspended =
		true; /* from here on whatever happens it is resumed: that is legal also if it never stopped */
	rc = s->g->ops->suspend(s->g, (unsigned)ms(s->p->suspend_timeout_ms, SUSPEND_DEFAULT_MS),
				err);
	s->res->stop.suspend = session_now_ns() - s->suspend_ns;
	if (rc || s->p->keep)
		return rc;
	begin = session_now_ns();
	if (s->g->ops->let_go)
		rc = s->g->ops->let_go(s->g, LET_GO_MS, err);
	if (!rc)
		rc = finish_disks(s, err);
	s->res->stop.disks = session_now_ns() - begin;
	return rc;
}

static int copy(struct source *s, enum source_work work, struct policy_round *r,
		struct pgr_error *err)
{
	int rc = source_copy_round(s, work, r, err);

	if (!rc)
		s->res->rounds++;
	return rc;
}

/* Rounds while the guest runs, until the policy says stop; leaves in todo what must be sent after the stop. */
static int live_rounds(struct source *s, struct pgr_error *err)
{
	struct policy_limits limits = s->p->policy;
	struct policy_round *rounds = NULL;
	struct policy_decision *next = &s->res->last;
	unsigned nr = 0;
	int rc;

	limits.can_log_dirty = true;
	if (!limits.fixed_stop_ns)
		limits.fixed_stop_ns = FIXED_STOP_DEFAULT_NS;
	rc = s->g->ops->log_start(s->g, err);
	if (rc)
		return rc;
	s->logging = true;
	everything(s);
	reporter_phase(&s->reporter, SESSION_ROUNDS);
	for (;;) {
		void *more = realloc(rounds, (nr + 1) * sizeof(*rounds));

		if (!more) {
			rc = pgr_fail(err, -ENOMEM, "no memory for the record of %u rounds",
				      nr + 1);
			break;
		}
		rounds = more;
		rc = copy(s, WORK_COPY, &rounds[nr], err);
		if (rc)
			break;
		memset(s->dirty, 0, source_words(s) * sizeof(*s->dirty));
		rc = s->g->ops->log_clean(s->g, s->dirty, &rounds[nr].dirtied, err);
		if (rc)
			break;
		nr++;
		memcpy(s->todo, s->dirty, source_words(s) * sizeof(*s->todo));
		policy_next(&limits, rounds, nr, session_now_ns() - s->started_ns, next);
		pthread_mutex_lock(&s->reporter.lock);
		s->reporter.progress.dirty_rate =
			rounds[nr - 1].duration_ns
				? (uint64_t)((double)rounds[nr - 1].dirtied * 1e9 /
					     (double)rounds[nr - 1].duration_ns)
				: 0;
		s->reporter.progress.predicted_downtime_ns = next->predicted_downtime_ns;
		s->reporter.progress.left_ns = next->predicted_left_ns;
		memcpy(s->reporter.progress.reason, next->reason, sizeof(next->reason));
		pthread_mutex_unlock(&s->reporter.lock);
		if (next->action == POLICY_GIVE_UP) {
			rc = pgr_fail(err, -ETIME, "gave up: %s", next->reason);
			break;
		}
		if (next->action == POLICY_STOP)
			break;
		if (next->action == POLICY_THROTTLE) {
			rc = s->g->ops->throttle(s->g, next->speed, err);
			if (rc == -EOPNOTSUPP) {
				reporter_message(&s->reporter, SESSION_WARNING,
						 "this guest cannot be slowed down: %s", err->text);
				limits.min_speed = 100;
			} else if (rc) {
				break;
			} else {
				s->throttled = true;
				s->speed = next->speed;
				reporter_message(&s->reporter, SESSION_INFO, "%s", next->reason);
			}
		}
	}
	free(rounds);
	return rc;
}

/* The guest is about to stand still for long: say so, and for how long, while that can still be cancelled. */
static int announce_stop(struct source *s, struct pgr_error *err)
{
	uint64_t expected;
	int rc = source_estimate_stop(s, &expected, err);

	if (rc)
		return rc;
	pthread_mutex_lock(&s->reporter.lock);
	s->reporter.progress.predicted_downtime_ns = expected;
	pthread_mutex_unlock(&s->reporter.lock);
	reporter_message(
		&s->reporter, SESSION_WARNING,
		"%s%sthe guest stands still while all of its memory is copied, for about %.1f s",
		s->d.info.why_not, s->d.info.why_not[0] ? "; " : "", (double)expected / 1e9 + 0.05);
	return 0;
}

static int send_memory(struct source *s, struct pgr_error *err)
{
	struct pgr_stop stop;
	struct policy_round last;
	struct timespec now;
	uint64_t count, begin;
	int rc;

	if (s->d.info.can_log_dirty) {
		rc = live_rounds(s, err);
		if (rc)
			return rc;
	} else {
		policy_next(&(struct policy_limits){.can_log_dirty = false}, NULL, 0, 0,
			    &s->res->last);
		rc = announce_stop(s, err);
		if (rc)
			return rc;
	}
	rc = stop_guest(s, err);
	if (rc)
		return rc;
	begin = session_now_ns();
	if (s->logging)
		rc = s->g->ops->log_clean(s->g, s->todo, &count, err);
	else
		everything(s);
	clock_gettime(CLOCK_REALTIME, &now);
	stop.wallclock_ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
	if (!rc)
		rc = source_append_body(s, 0, PGR_REC_STOP, &stop, sizeof(stop), err);
	if (!rc)
		rc = copy(s, WORK_COPY, &last, err);
	s->res->stop.pages = session_now_ns() - begin;
	if (rc || !s->p->verify)
		return rc;
	begin = session_now_ns();
	reporter_phase(&s->reporter, SESSION_VERIFY);
	everything(s);
	rc = copy(s, WORK_VERIFY, &last, err);
	s->res->stop.verify = session_now_ns() - begin;
	s->res->verified = !rc;
	return rc;
}

/* ---- state and end ---- */

static int emit_state(void *ctx, uint32_t type, const void *body, size_t length,
		      struct pgr_error *err)
{
	struct source *s = ctx;

	return source_append_body(s, 0, type, body, length, err);
}

static int send_index(struct source *s, struct pgr_end *end, struct pgr_error *err)
{
	struct source_lane *sl = &s->lanes[0];
	const uint64_t most = PGR_RECORD_MAX / sizeof(*sl->index);

	for (uint64_t i = 0; i < sl->index_nr; i += most) {
		uint64_t n = sl->index_nr - i < most ? sl->index_nr - i : most;
		int rc;

		if (i == 0)
			end->index_offset = sl->lane.writer.bytes;
		rc = source_append_body(s, 0, PGR_REC_INDEX, sl->index + i, n * sizeof(*sl->index),
					err);
		if (rc)
			return rc;
		end->index_records++;
	}
	return 0;
}

static int send_end(struct source *s, struct pgr_error *err)
{
	struct pgr_digest digest = {0};
	uint64_t begin = session_now_ns();
	int rc;

	rc = s->g->ops->state(s->g, emit_state, s, err);
	for (unsigned i = 0; i < s->nr; i++) {
		digest.digest += s->lanes[i].sum.digest;
		digest.pages += s->lanes[i].sum.pages;
	}
	s->res->digest = digest.digest;
	s->res->digest_pages = digest.pages;
	if (!rc)
		rc = source_append_body(s, 0, PGR_REC_DIGEST, &digest, sizeof(digest), err);
	for (unsigned i = 0; !rc && i < s->nr; i++) {
		struct pgr_end end = {0};

		if (s->file)
			rc = send_index(s, &end, err);
		end.records = s->lanes[i].lane.writer.records;
		end.bytes = s->lanes[i].lane.writer.bytes;
		if (!rc)
			rc = source_append_body(s, i, PGR_REC_END, &end, sizeof(end), err);
	}
	s->res->stop.state = session_now_ns() - begin;
	return rc;
}

/* READY alone is not enough: from mark(COMMIT) on nothing may keep COMMIT waiting for room. */
static bool is_ready(struct source *s)
{
	bool drained = true;

	for (unsigned i = 0; i < s->nr; i++)
		drained = drained && lane_drained(&s->lanes[i].lane);
	return s->have_ready && drained;
}

static bool is_running(struct source *s)
{
	return s->have_running;
}

static bool all_drained(struct source *s)
{
	return lane_drained(&s->lanes[0].lane);
}

/*
 * COMMIT was sent and the connection is gone: ask until somebody answers. 0: it runs there. -ESTALE: it did not start there and never
 * will. -EAGAIN: the target still waits for COMMIT and the session can be resumed. -ECANCELED: nobody answered until cancelled.
 */
static int ask(const struct source_params *p, struct reporter *r, bool may_resume,
	       struct pgr_error *err)
{
	bool told = false;

	for (;;) {
		enum pgr_session_state state;
		struct timespec pause = {.tv_sec = QUERY_PAUSE_NS / 1000000000ull};
		struct pgr_error why = PGR_ERROR_NONE;
		int rc = source_query(p, &state, &why);

		if (!rc && state == PGR_STATE_RUNNING)
			return 0;
		if (!rc && state == PGR_STATE_NOT_STARTED)
			return pgr_fail(err, -ESTALE, "the target did not start the guest");
		if (!rc && may_resume)
			return pgr_fail(err, -EAGAIN, "the target still waits");
		if (!told)
			reporter_message(
				r, SESSION_WARNING,
				"the guest was handed over but the target has not said that it runs%s%s; it stays stopped here until the target answers",
				rc ? ": " : "", rc ? why.text : "");
		told = true;
		if (reporter_cancelled(r))
			return pgr_fail(
				err, -ECANCELED,
				"the guest was handed over and the target does not answer%s%s: the guest is stopped here and may run there",
				rc ? ": " : "", why.text);
		nanosleep(&pause, NULL);
	}
}

static int resume_committed(struct source *s, struct pgr_error *err)
{
	int rc;

	/* reconnect() belongs to source_wait(); for its eyes the session is not committed for the moment, all else holds. */
	s->committed = false;
	rc = source_wait(s, is_running, session_now_ns() + 1000000000ull * 30, err);
	s->committed = true;
	return rc;
}

static int hand_over(struct source *s, struct pgr_error *err)
{
	uint64_t begin = session_now_ns();
	int rc;

	reporter_phase(&s->reporter, SESSION_WAIT);
	rc = source_wait(s, is_ready, begin + READY_PATIENCE_NS, err);
	if (rc == -ETIMEDOUT)
		pgr_fail_prefix(err, "the target has everything but did not get the guest ready");
	if (rc)
		return rc;
	s->res->stop.build = session_now_ns() - begin;
	if (s->ready.digest != s->res->digest || s->ready.pages != s->res->digest_pages)
		return pgr_fail(
			err, -EBADMSG,
			"the memory at the target differs: digest %016llx over %llu pages here, %016llx over %llu there",
			(unsigned long long)s->res->digest,
			(unsigned long long)s->res->digest_pages,
			(unsigned long long)s->ready.digest, (unsigned long long)s->ready.pages);
	rc = reporter_mark(&s->reporter, SESSION_MARK_COMMIT, err);
	if (rc)
		return rc;
	/* Point of no return. */
	begin = session_now_ns();
	s->committed = true;
	reporter_phase(&s->reporter, SESSION_COMMIT);
	rc = source_append(s, 0, PGR_REC_COMMIT, NULL, 0, err);
	if (!rc)
		rc = source_wait(s, is_running, begin + READY_PATIENCE_NS, err);
	while (rc) {
		struct pgr_error why = PGR_ERROR_NONE;
		bool lost, failed;

		pthread_mutex_lock(&s->lock);
		lost = s->lost;
		failed = s->failed;
		pthread_mutex_unlock(&s->lock);
		/* A target that still hears keepalives would wait for a COMMIT that cannot come any more, and we for its decision. */
		if (failed)
			source_unlink(s);
		rc = ask(s->p, &s->reporter, lost && !failed, &why);
		if (rc == -EAGAIN && !resume_committed(s, &why)) {
			rc = 0;
			break;
		}
		if (!rc || rc == -ECANCELED || rc == -ESTALE) {
			if (rc == -ESTALE && err->text[0])
				pgr_fail_prefix(err, "the target did not start the guest");
			else
				*err = why;
			err->code = rc;
			break;
		}
		/* The resume failed as well: from now on only ask. */
		pthread_mutex_lock(&s->lock);
		if (!s->failed) {
			s->failed = -ENOTCONN;
			s->error = why;
		}
		pthread_mutex_unlock(&s->lock);
	}
	s->res->stop.start = session_now_ns() - begin;
	if (rc == -ESTALE)
		s->committed = false;
	return rc;
}

/* Put the guest back to work here and everything else away; see the table at the top. why NULL: nothing failed. */
static void unwind(struct source *s, const struct pgr_error *why)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (s->committed)
		return;
	/* The guest first: the target cannot start it without COMMIT. */
	give_speed_back(s);
	if (s->suspended && s->g->ops->resume(s->g, &err)) {
		s->res->unfinished = true;
		s->res->may_stop = err.code == -EINPROGRESS;
		reporter_message(
			&s->reporter, SESSION_WARNING,
			s->res->may_stop
				? "%s; it is looked after and resumed when it does"
				: "cannot resume the guest: %s; it stands still until that succeeds",
			err.text);
	} else if (s->suspended) {
		s->res->stop.total = session_now_ns() - s->suspend_ns;
	}
	s->suspended = false;
	if (!why)
		return;
	end_disks(s);
	/* Workers that wait for room hold their lane, and nothing may come after ABORT. */
	source_fail(s, why);
	source_workers_stop(s);
	source_send_abort(s, why);
}

/* The target runs it: that is durable before the copy here is removed. What fails is untidiness, not failure. */
static bool remove_copy(struct reporter *r, struct guest_source *g, struct pgr_error *why)
{
	if (reporter_mark(r, SESSION_MARK_MOVED, why))
		reporter_message(r, SESSION_WARNING,
				 "the guest moved, but that could not be recorded: %s", why->text);
	if (!g || !g->ops->destroy(g, why))
		return true;
	reporter_message(
		r, SESSION_WARNING,
		"the guest runs at the target, but what is left of it here could not be removed: %s",
		why->text);
	return false;
}

/* Also without it: nobody is left who could say it, or nobody wants to know. Nothing is wrong then. */
static bool is_connected(struct source *s)
{
	return s->have_connected || s->failed || reporter_cancelled(&s->reporter);
}

/* The target may tell when the guest had its devices there; an older one does not. */
static void hear_connected(struct source *s, uint64_t running_ns)
{
	uint64_t patience = ms(s->p->connected_ms, CONNECTED_DEFAULT_MS) * 1000000ull;
	struct pgr_error ignored = PGR_ERROR_NONE;

	source_wait(s, is_connected, running_ns + patience, &ignored);
	pthread_mutex_lock(&s->lock);
	s->res->stop.connected = s->connected;
	pthread_mutex_unlock(&s->lock);
}

static void put_log_away(struct source *s)
{
	struct pgr_error err = PGR_ERROR_NONE;

	if (s->logging && s->g->ops->log_stop(s->g, &err))
		reporter_message(&s->reporter, SESSION_WARNING,
				 "cannot switch the dirty log off: %s", err.text);
	s->logging = false;
}

/* ---- life of a struct source ---- */

static void tick(void *ctx, struct session_progress *progress)
{
	struct source *s = ctx;
	uint64_t bytes = 0;
	unsigned nr;

	memset(&progress->encode, 0, sizeof(progress->encode));
	pthread_mutex_lock(&s->lock);
	nr = s->have_reply ? s->nr : 0;
	for (unsigned i = 0; i < s->nr; i++) {
		session_encode_stats_add(&progress->encode, &s->lanes[i].stats);
		bytes += __atomic_load_n(&s->lanes[i].lane.wire_bytes, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&s->lock);
	progress->bytes_sent = bytes;
	progress->pages_done = atomic_load(&s->pages_done);
	if (atomic_load(&s->disks_begun))
		look_at_disks(s, progress);
	/* HELLO is a stream's first word. */
	if (!s->file)
		for (unsigned i = 0; i < nr; i++)
			lane_keepalive(&s->lanes[i].lane, SESSION_KEEPALIVE_NS);
}

/* Records of many pages compress best and cost least; many channels share a bounded memory. */
static unsigned batch_pages(unsigned channels)
{
	return channels <= 4 ? 256 : channels <= 8 ? 128 : 64;
}

static size_t ring_bytes(unsigned i, unsigned channels)
{
	size_t share = (8u << 20) / channels;
	size_t least = i == 0 ? 4u << 20 : (2u << 20) + (256u << 10);

	return share > least ? share : least;
}

static int source_open(struct source *s, struct guest_source *g, const struct source_params *p,
		       const struct session_owner *o, struct session_result *res, bool file,
		       struct pgr_error *err)
{
	unsigned channels = file ? 1 : p->channels;
	int rc;

	memset(s, 0, sizeof(*s));
	memset(res, 0, sizeof(*res));
	res->outcome = SESSION_STAYED;
	s->g = g;
	s->p = p;
	s->res = res;
	s->file = file;
	s->speed = 100;
	s->started_ns = session_now_ns();
	pthread_mutex_init(&s->lock, NULL);
	session_cond_init(&s->changed);
	if (channels < 1 || channels > PGR_CHANNELS_MAX)
		return pgr_fail(err, -EINVAL, "%u channels asked for; 1 to %u are possible",
				channels, PGR_CHANNELS_MAX);
	rc = g->ops->describe(g, &s->d, err);
	if (rc)
		return rc;
	if (s->d.info.nr_pfns == 0 || s->d.info.nr_pfns > PGR_PFNS_MAX)
		return pgr_fail(err, -ERANGE, "the guest has %llu pages; 1 to %llu are possible",
				(unsigned long long)s->d.info.nr_pfns, PGR_PFNS_MAX);
	if (p->stop_first)
		s->d.info.can_log_dirty = false;
	res->memory_bytes = s->d.info.populated * PGR_PAGE_SIZE;
	rc = ledger_init(&s->ledger, s->d.info.nr_pfns, err);
	if (rc)
		return rc;
	s->todo = calloc(source_words(s) + 1, sizeof(*s->todo));
	s->dirty = calloc(source_words(s) + 1, sizeof(*s->dirty));
	if (!s->todo || !s->dirty)
		return pgr_fail(err, -ENOMEM, "no memory for the bitmaps of %llu pages",
				(unsigned long long)s->d.info.nr_pfns);
	res->peak_buffers =
		ledger_bytes(s->d.info.nr_pfns) + 2 * source_words(s) * sizeof(*s->todo);
	if (p->bandwidth) {
		if (rate_limit_new(p->bandwidth, 0, &s->limit))
			return pgr_fail(err, -ENOMEM, "no memory for the bandwidth cap");
	}
	s->batch = batch_pages(channels);
	s->nr = channels;
	for (unsigned i = 0; i < channels; i++) {
		rc = source_lane_open(s, i, ring_bytes(i, channels), file, err);
		if (rc)
			return rc;
	}
	rc = reporter_start(&s->reporter, o, tick, s, err);
	if (rc)
		return rc;
	s->reporter.progress.memory_bytes = res->memory_bytes;
	return reporter_mark(&s->reporter, SESSION_MARK_BEGIN, err);
}

static void source_close(struct source *s)
{
	if (s->nr)
		source_workers_stop(s);
	reporter_stop(&s->reporter);
	end_disks(s);
	source_unlink(s);
	for (unsigned i = 0; i < PGR_CHANNELS_MAX; i++) {
		struct source_lane *sl = &s->lanes[i];

		lane_free(&sl->lane);
		if (sl->encoder)
			encoder_free(sl->encoder);
		stream_reader_free(&sl->reader);
		free(sl->index);
	}
	rate_limit_free(s->limit);
	ledger_free(&s->ledger);
	free(s->todo);
	free(s->dirty);
	guest_description_free(&s->d);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->lock);
}

/* The last of a session, whatever came of it; s is gone afterwards. Returns rc. */
static int source_end(struct source *s, int rc)
{
	struct session_result *res = s->res;

	if (!res->elapsed_ns)
		res->elapsed_ns = session_now_ns() - s->started_ns;
	res->bytes = 0;
	memset(&res->encode, 0, sizeof(res->encode));
	for (unsigned i = 0; i < s->nr; i++) {
		session_encode_stats_add(&res->encode, &s->lanes[i].stats);
		res->bytes += s->lanes[i].lane.wire_bytes;
	}
	if (s->reporter.running)
		reporter_phase(&s->reporter, rc ? SESSION_FAILED : SESSION_DONE);
	source_close(s);
	free(s);
	return rc;
}

int source_run(struct guest_source *g, const struct source_params *p, const struct session_owner *o,
	       struct session_result *res, struct pgr_error *err)
{
	struct source *s = malloc(sizeof(*s));
	int rc;

	res->outcome = SESSION_STAYED;
	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a session");
	rc = source_open(s, g, p, o, res, false, err);
	if (!rc)
		rc = open_session(s, err);
	if (!rc && p->dry_run) {
		struct pgr_error over;

		pgr_fail(&over, -ECANCELED, "this was a dry run");
		source_send_abort(s, &over);
		return source_end(s, reporter_mark(&s->reporter, SESSION_MARK_RETURNED, err));
	}
	if (!rc)
		rc = source_link_more(s, s->nr, err);
	if (!rc)
		rc = source_workers_start(s, err);
	if (!rc && p->disks)
		rc = mirror_disks(s, err);
	if (!rc)
		rc = send_memory(s, err);
	if (!rc)
		rc = send_end(s, err);
	if (!rc)
		rc = hand_over(s, err);
	if (rc) {
		unwind(s, err);
		res->outcome = s->committed ? SESSION_UNKNOWN : SESSION_STAYED;
		put_log_away(s);
		if (!s->committed && !res->unfinished && s->reporter.running) {
			struct pgr_error ignored = PGR_ERROR_NONE;

			reporter_mark(&s->reporter, SESSION_MARK_RETURNED, &ignored);
		}
	} else {
		struct pgr_error why = PGR_ERROR_NONE;
		uint64_t running_ns = session_now_ns();

		res->stop.total = running_ns - s->suspend_ns;
		res->outcome = SESSION_MOVED;
		reporter_phase(&s->reporter, SESSION_CLEANUP);
		put_log_away(s);
		res->unfinished = !remove_copy(&s->reporter, g, &why);
		res->elapsed_ns = session_now_ns() - s->started_ns;
		if (!res->unfinished)
			reporter_moved(&s->reporter);
		hear_connected(s, running_ns);
	}
	return source_end(s, rc);
}

int source_save(struct guest_source *g, struct channel *out, const struct source_params *p,
		const struct session_owner *o, struct session_result *res, struct pgr_error *err)
{
	struct source *s = malloc(sizeof(*s));
	struct stream_writer w;
	int rc;

	res->outcome = SESSION_STAYED;
	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a session");
	rc = source_open(s, g, p, o, res, true, err);
	if (!rc) {
		stream_writer_init(&w, session_channel_write, out);
		rc = stream_write_header(&w, PGR_KIND_IMAGE, p->session, 0, 1, err);
	}
	if (!rc)
		rc = lane_start(&s->lanes[0].lane, out, err);
	if (!rc)
		rc = send_opening(s, err);
	if (!rc)
		rc = source_workers_start(s, err);
	if (!rc)
		rc = send_memory(s, err);
	if (!rc)
		rc = send_end(s, err);
	if (!rc) {
		reporter_phase(&s->reporter, SESSION_WAIT);
		rc = source_wait(s, all_drained, 0, err);
	}
	/* It runs on here whatever becomes of the file, and need not stand still until that is durable. */
	if (!rc && p->keep) {
		unwind(s, NULL);
		put_log_away(s);
		/* After this a guest that stands still was stopped by somebody else. */
		if (!res->unfinished)
			rc = reporter_mark(&s->reporter, SESSION_MARK_RETURNED, err);
	}
	if (!rc)
		rc = out->ops->sync(out, err);
	if (rc)
		unwind(s, err);
	put_log_away(s);
	if (!rc) {
		res->outcome = SESSION_MOVED;
		if (!p->keep)
			res->stop.total = session_now_ns() - s->suspend_ns;
	}
	return source_end(s, rc);
}

int source_recover(struct guest_source *g, const struct source_params *p,
		   const struct session_owner *o, struct pgr_error *err)
{
	struct reporter r;
	struct pgr_error why = PGR_ERROR_NONE;
	int rc;

	rc = reporter_start(&r, o, NULL, NULL, err);
	if (rc)
		return rc;
	reporter_phase(&r, SESSION_COMMIT);
	rc = ask(p, &r, false, err);
	if (rc == 0) {
		if (!remove_copy(&r, g, &why)) {
			*err = why;
			rc = why.code;
		}
	} else if (rc == -ESTALE) {
		if (g && g->ops->resume(g, &why)) {
			*err = why;
			rc = why.code;
		} else if (reporter_mark(&r, SESSION_MARK_RETURNED, &why))
			reporter_message(
				&r, SESSION_WARNING,
				"the guest runs here again, but that could not be recorded: %s",
				why.text);
	}
	reporter_stop(&r);
	return rc;
}
