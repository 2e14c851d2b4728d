/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/recover.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "migrate/stream.h"
#include "tools/pagurus/guests.h"
#include "tools/pagurus/units.h"

static int finish(struct journal *j, struct journal_file *f, enum session_mark mark,
		  struct pgr_error *err)
{
	j->mark = mark;
	j->done = true;
	return journal_write(f, j, err);
}

static const char *name_of(const struct journal *j)
{
	return j->guest[0] ? j->guest : "not named yet";
}

/* A guest that was leaving, before anybody else could have it: it runs here. */
static int put_back(struct journal *j, struct journal_file *f, char said[256],
		    struct pgr_error *err)
{
	bool stood = false;
	int rc = j->know_guest && !journal_host_restarted(j) ? guests_make_run(j, &stood, err)
							     : -ENOENT;

	if (rc && rc != -ENOENT)
		return rc;
	if (!rc && !stood && j->may_stop && (int64_t)time(NULL) - j->changed < RECOVER_MAY_STOP_S)
		return pgr_fail(
			err, -EINPROGRESS,
			"guest %s: runs here, but had begun to suspend and may stop yet; it is looked after for %d minutes",
			name_of(j), RECOVER_MAY_STOP_S / 60);
	snprintf(said, 256,
		 rc ? "guest %.150s: it is not here any more, nothing to put back"
		    : "guest %.150s: runs here as before",
		 name_of(j));
	return finish(j, f, SESSION_MARK_RETURNED, err);
}

static int remove_moved(struct journal *j, struct journal_file *f, char said[256],
			struct pgr_error *err)
{
	int rc = journal_host_restarted(j) ? 0 : guests_remove_suspended(j, err);

	if (rc && rc != -ENOENT)
		return rc;
	snprintf(said, 256, "guest %.150s: %s; nothing of it is left here", name_of(j),
		 j->role == JOURNAL_SAVE ? "it is in its file" : "it runs at the target");
	return finish(j, f, SESSION_MARK_MOVED, err);
}

static int remove_arriving(struct journal *j, struct journal_file *f, char said[256],
			   struct pgr_error *err)
{
	int rc = j->know_guest && !journal_host_restarted(j) ? guests_remove_incoming(j, err) : 0;
	const char *disk = NULL;

	if (rc && rc != -ENOENT)
		return rc;
	/* They were closed before COMMIT came: by a guest that ran here, and what it wrote may be all that there is of it. */
	if (j->mark == SESSION_MARK_COMMIT)
		disk = disks_arrive_written_since(j->disks, j->nr_disks, j->changed);
	if (disk) {
		snprintf(
			said, 256,
			"guest %.60s: it had arrived and this host ended; its disks were written here since and stay, as %.80s",
			name_of(j), disk);
		return finish(j, f, SESSION_MARK_RETURNED, err);
	}
	rc = disks_arrive_remove(j->disks, j->nr_disks, err);
	if (rc)
		return rc;
	snprintf(said, 256, "guest %.150s: it did not arrive; nothing of it is left here",
		 name_of(j));
	return finish(j, f, SESSION_MARK_RETURNED, err);
}

/*
 * COMMIT had arrived. Three cases: the domain is here, started or not: it runs. It is not here although the host ran all the time: it
 * was started and has ended since; saying "not started" would let the source run an older self of it. The host itself
 * restarted in between: nothing that was in its memory can ever run again, so the source, which has it still, may.
 */
static int start_arrived(struct journal *j, struct journal_file *f, char said[256],
			 struct pgr_error *err)
{
	int rc;

	if (j->kind == PGR_GUEST_SIM || journal_host_restarted(j))
		return remove_arriving(j, f, said, err);
	rc = guests_start_incoming(j, err);
	if (rc && rc != -ENOENT)
		return rc;
	snprintf(said, 256,
		 rc ? "guest %.150s: it was started here and has ended since"
		    : "guest %.150s: had arrived completely and runs here",
		 name_of(j));
	return finish(j, f, SESSION_MARK_MOVED, err);
}

/* The file carries the session: when it has its final name and is this session's, the save was complete. */
static bool file_is_complete(const struct journal *j)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct pgr_stream_header h;
	struct channel *c;
	bool ours;

	if (!j->file[0] || channel_file_open(j->file, &c, &err))
		return false;
	ours = !c->ops->read(c, &h, sizeof(h), &err) &&
	       !memcmp(h.magic, PGR_STREAM_MAGIC, sizeof(h.magic)) &&
	       !memcmp(h.session, j->session, sizeof(h.session));
	c->ops->close(c);
	return ours;
}

static int end_save(struct journal *j, struct journal_file *f, char said[256],
		    struct pgr_error *err)
{
	char partial[PATH_MAX + 16];

	if (!j->keep && file_is_complete(j))
		return remove_moved(j, f, said, err);
	snprintf(partial, sizeof(partial), "%s.partial", j->file);
	if (j->file[0])
		unlink(partial);
	return put_back(j, f, said, err);
}

static int end_source(struct journal *j, struct journal_file *f, char said[256],
		      struct pgr_error *err)
{
	switch (j->mark) {
	case SESSION_MARK_COMMIT:
		return pgr_fail(err, -EAGAIN, "only host %s knows whether the guest %s runs there",
				j->peer, j->guest);
	case SESSION_MARK_MOVED:
		return remove_moved(j, f, said, err);
	default:
		return put_back(j, f, said, err);
	}
}

static int end_arriving(struct journal *j, struct journal_file *f, char said[256],
			struct pgr_error *err)
{
	switch (j->mark) {
	case SESSION_MARK_COMMIT:
		return start_arrived(j, f, said, err);
	case SESSION_MARK_MOVED:
		if (j->know_guest && !journal_host_restarted(j))
			guests_look_after(j->kind, j->uuid);
		snprintf(said, 256, "guest %.150s: had arrived and was started", name_of(j));
		return finish(j, f, SESSION_MARK_MOVED, err);
	default:
		return remove_arriving(j, f, said, err);
	}
}

int recover_local(struct journal *j, struct journal_file *f, char said[256], struct pgr_error *err)
{
	said[0] = 0;
	if (j->done)
		return 0;
	switch (j->role) {
	case JOURNAL_SOURCE:
		return end_source(j, f, said, err);
	case JOURNAL_SAVE:
		return j->mark == SESSION_MARK_MOVED ? remove_moved(j, f, said, err)
						     : end_save(j, f, said, err);
	case JOURNAL_TARGET:
	case JOURNAL_RESTORE:
		return end_arriving(j, f, said, err);
	}
	return pgr_fail(err, -EINVAL, "the journal has an unknown role");
}

int recover_ask(struct journal *j, struct journal_file *f, struct guest_source *g,
		struct connect_link *link, const struct session_owner *owner, char said[256],
		struct pgr_error *err)
{
	struct source_params p = {.channels = 1, .connect = connect_link_open, .connect_ctx = link};
	struct guest_source *found = NULL;
	int rc;

	if ((int64_t)time(NULL) - j->changed > RECOVER_ASK_S)
		return pgr_fail(
			err, -ETIME,
			"guest %s was handed to host %s so long ago that the host may have forgotten; look there, then `pagurus recover`",
			j->guest, j->peer);
	memcpy(p.session, j->session, sizeof(p.session));
	if (!g && !journal_host_restarted(j)) {
		rc = guests_open_suspended(j, &found, err);
		if (rc && rc != -ENOENT)
			return rc;
		g = rc ? NULL : found;
	}
	rc = source_recover(g, &p, owner, err);
	if (found)
		found->ops->close(found);
	if (!rc) {
		snprintf(said, 256, "guest %.150s: runs at host %.80s", j->guest, j->peer);
		return finish(j, f, SESSION_MARK_MOVED, err);
	}
	if (rc != -ESTALE)
		return rc;
	if (g)
		snprintf(said, 256, "guest %.120s: host %.60s did not start it; it runs here again",
			 j->guest, j->peer);
	else
		snprintf(said, 256, "guest %.150s: lost: both hosts ended while it was handed over",
			 j->guest);
	return finish(j, f, SESSION_MARK_RETURNED, err);
}

int recover_run_here(struct journal *j, struct journal_file *f, char said[256],
		     struct pgr_error *err)
{
	if (j->role != JOURNAL_SOURCE || j->mark != SESSION_MARK_COMMIT || j->done)
		return pgr_fail(err, -EINVAL,
				"the outcome of this session is not open: role %s, mark %s",
				journal_role_name(j->role), journal_mark_name(j->mark));
	return put_back(j, f, said, err);
}

enum pgr_session_state recover_state(const struct journal *j)
{
	return j->mark == SESSION_MARK_MOVED ? PGR_STATE_RUNNING : PGR_STATE_NOT_STARTED;
}

bool recover_forget(const struct journal *j, int64_t now)
{
	bool started_here = j->role == JOURNAL_TARGET && j->mark == SESSION_MARK_MOVED;

	return j->done &&
	       now - j->changed > (started_here ? RECOVER_KEEP_STARTED_S : RECOVER_KEEP_S);
}
