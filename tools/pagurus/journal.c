/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/journal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tools/pagurus/fault.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/units.h"

#define FORMAT_VERSION 1

/*
 * How long a new session waits for the process of an earlier one of the same guest: the other host hears of a refusal before that process
 * has ended, and a user may try again at once.
 */
#define LEAVING_TRIES	 30u
#define LEAVING_PAUSE_NS 100000000l

struct journal_file {
	char dir[PATH_MAX];
	char name[64];
	int lock;
	int guest_lock; /* of a session that was taken over; -1 */
};

static const char *const role_names[] = {
	[JOURNAL_SOURCE] = "source",
	[JOURNAL_TARGET] = "target",
	[JOURNAL_SAVE] = "save",
	[JOURNAL_RESTORE] = "restore",
};

static const char *const mark_names[] = {
	[SESSION_MARK_BEGIN] = "begin",	      [SESSION_MARK_STOPPING] = "stopping",
	[SESSION_MARK_COMMIT] = "commit",     [SESSION_MARK_MOVED] = "moved",
	[SESSION_MARK_RETURNED] = "returned",
};

#define NR(array) (sizeof(array) / sizeof((array)[0]))

const char *journal_role_name(enum journal_role r)
{
	return r < NR(role_names) ? role_names[r] : "unknown";
}

const char *journal_mark_name(enum session_mark m)
{
	return m < NR(mark_names) ? mark_names[m] : "unknown";
}

static int index_of(const char *const *names, size_t nr, const char *text)
{
	for (size_t i = 0; i < nr; i++)
		if (names[i] && !strcmp(names[i], text))
			return (int)i;
	return -1;
}

static void boot_id(char out[64])
{
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "re");

	out[0] = 0;
	if (!f)
		return;
	if (!fgets(out, 64, f))
		out[0] = 0;
	out[strcspn(out, "\n")] = 0;
	fclose(f);
}

bool journal_host_restarted(const struct journal *j)
{
	char now[64];

	boot_id(now);
	return now[0] && j->boot[0] && strcmp(now, j->boot);
}

static int sessions_dir(const char *state, char out[PATH_MAX], struct pgr_error *err)
{
	if (snprintf(out, PATH_MAX, "%s/sessions", state) >= PATH_MAX)
		return pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long", state);
	return 0;
}

/* Open and lock PATH. A file that was removed while we waited for its lock is no lock: try again with the new one. */
static int lock_path(const char *path, int *out, struct pgr_error *err)
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	struct stat st;
	int fd;

	for (;;) {
		fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (fd < 0)
			return pgr_fail_errno(err, -errno, "cannot open %s", path);
		if (fcntl(fd, F_SETLK, &whole)) {
			int rc = errno == EACCES || errno == EAGAIN ? -EBUSY : -errno;

			close(fd);
			return pgr_fail_errno(err, rc, "cannot lock %s", path);
		}
		if (!fstat(fd, &st) && st.st_nlink) {
			*out = fd;
			return 0;
		}
		close(fd);
	}
}

static int open_file(const char *state, const uint8_t session[PGR_SESSION_SIZE], bool make,
		     struct journal_file **out, struct pgr_error *err)
{
	struct journal_file *f = calloc(1, sizeof(*f));
	char hex[UNITS_HEX16], path[PATH_MAX];
	int rc;

	if (!f)
		return pgr_fail(err, -ENOMEM, "no memory for the journal");
	f->lock = f->guest_lock = -1;
	rc = sessions_dir(state, f->dir, err);
	if (!rc && make)
		rc = paths_make_dir(f->dir, err);
	if (rc)
		goto out;
	units_hex16(session, hex);
	snprintf(f->name, sizeof(f->name), "%s.json", hex);
	if (snprintf(path, sizeof(path), "%s/%s.lock", f->dir, hex) >= (int)sizeof(path))
		rc = pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long", f->dir);
	if (!rc)
		rc = lock_path(path, &f->lock, err);
out:
	if (rc)
		journal_close(f);
	else
		*out = f;
	return rc;
}

static json_t *disks_to_json(const struct journal *j)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < j->nr_disks; i++)
		json_array_append_new(list, json_pack("{so so sI}", "path",
						      message_string(j->disks[i].path), "partial",
						      message_string(j->disks[i].partial), "inode",
						      (json_int_t)j->disks[i].inode));
	return list;
}

static void disks_from_json(const json_t *list, struct journal *j)
{
	for (size_t i = 0; i < json_array_size(list) && j->nr_disks < PGR_DISKS_MAX; i++) {
		const json_t *o = json_array_get(list, i);
		struct disk_made *d = &j->disks[j->nr_disks++];

		snprintf(d->path, sizeof(d->path), "%s", message_text(o, "path"));
		snprintf(d->partial, sizeof(d->partial), "%s", message_text(o, "partial"));
		d->inode = message_number(o, "inode");
	}
}

static json_t *to_json(const struct journal *j)
{
	char hex[UNITS_HEX16], uuid[UNITS_HEX16];

	return json_pack("{si so ss ss sb sb sb sb si so so so so so ss sI}", "version",
			 FORMAT_VERSION, "session", message_string(units_hex16(j->session, hex)),
			 "role", journal_role_name(j->role), "mark", journal_mark_name(j->mark),
			 "done", j->done, "keep", j->keep, "may_stop", j->may_stop, "know_guest",
			 j->know_guest, "kind", (int)j->kind, "guest", message_string(j->guest),
			 "uuid", message_string(units_hex16(j->uuid, uuid)), "peer",
			 message_string(j->peer), "file", message_string(j->file), "disks",
			 disks_to_json(j), "boot", j->boot, "changed", (json_int_t)j->changed);
}

static int from_json(const char *path, const json_t *o, struct journal *j, struct pgr_error *err)
{
	int role = index_of(role_names, NR(role_names), message_text(o, "role"));
	int mark = index_of(mark_names, NR(mark_names), message_text(o, "mark"));

	memset(j, 0, sizeof(*j));
	if (message_number(o, "version") != FORMAT_VERSION)
		return pgr_fail(err, -EBADMSG, "%s: written by another version of pagurus", path);
	if (role < 0 || mark < 0 || units_parse_hex16(message_text(o, "session"), j->session) ||
	    units_parse_hex16(message_text(o, "uuid"), j->uuid))
		return pgr_fail(err, -EBADMSG, "%s: a field is missing or makes no sense", path);
	j->role = (enum journal_role)role;
	j->mark = (enum session_mark)mark;
	j->done = message_flag(o, "done");
	j->keep = message_flag(o, "keep");
	j->may_stop = message_flag(o, "may_stop");
	j->know_guest = message_flag(o, "know_guest");
	j->kind = (enum pgr_guest_kind)message_number(o, "kind");
	j->changed = (int64_t)message_number(o, "changed");
	snprintf(j->guest, sizeof(j->guest), "%s", message_text(o, "guest"));
	snprintf(j->peer, sizeof(j->peer), "%s", message_text(o, "peer"));
	snprintf(j->file, sizeof(j->file), "%s", message_text(o, "file"));
	snprintf(j->boot, sizeof(j->boot), "%s", message_text(o, "boot"));
	disks_from_json(json_object_get(o, "disks"), j);
	return 0;
}

static int read_name(const char *dir, const char *name, struct journal *j, struct pgr_error *err)
{
	char path[PATH_MAX + 64];
	json_t *o;
	int rc = paths_read_json(dir, name, &o, err);

	if (rc)
		return rc;
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	rc = from_json(path, o, j, err);
	json_decref(o);
	return rc;
}

int journal_create(const char *state, const struct journal *j, struct journal_file **out,
		   struct pgr_error *err)
{
	struct journal_file *f;
	struct journal other;
	int rc;

	*out = NULL;
	rc = open_file(state, j->session, true, &f, err);
	if (rc)
		return rc;
	rc = read_name(f->dir, f->name, &other, NULL);
	if (rc == -ENOENT)
		rc = journal_write(f, j, err);
	else
		rc = pgr_fail(err, -EEXIST, "this host knows the session already, as %s at %s",
			      rc ? "something unreadable" : journal_role_name(other.role),
			      rc ? "an unknown point" : journal_mark_name(other.mark));
	if (rc)
		journal_close(f);
	else
		*out = f;
	return rc;
}

static int lock_guest(const char *state, const uint8_t uuid[16], int *fd, struct pgr_error *err)
{
	char dir[PATH_MAX], path[PATH_MAX + 64], hex[UNITS_HEX16];
	int rc;

	*fd = -1;
	if (snprintf(dir, sizeof(dir), "%s/guests", state) >= (int)sizeof(dir))
		return pgr_fail(err, -ENAMETOOLONG, "%s: the name is too long", state);
	rc = paths_make_dir(dir, err);
	if (rc)
		return rc;
	snprintf(path, sizeof(path), "%s/%s.lock", dir, units_hex16(uuid, hex));
	rc = lock_path(path, fd, err);
	if (rc == -EBUSY)
		rc = pgr_fail(
			err, rc,
			"another session is at work on this guest; `pagurus status` shows it");
	return rc;
}

int journal_take(const char *state, const uint8_t session[PGR_SESSION_SIZE], struct journal *j,
		 struct journal_file **out, struct pgr_error *err)
{
	struct journal_file *f;
	int rc;

	*out = NULL;
	/* Without this look a question about a session that never was would leave a lock file. */
	rc = journal_read(state, session, j, err);
	if (rc)
		return rc;
	rc = open_file(state, session, false, &f, err);
	if (rc)
		return rc;
	rc = read_name(f->dir, f->name, j, err);
	/* A repair and a new session must not both act on the guest. */
	if (!rc && !j->done && j->know_guest)
		rc = lock_guest(state, j->uuid, &f->guest_lock, err);
	if (rc)
		journal_close(f);
	else
		*out = f;
	return rc;
}

int journal_write(struct journal_file *f, const struct journal *j, struct pgr_error *err)
{
	struct journal now = *j;
	json_t *o;
	int rc;

	boot_id(now.boot);
	now.changed = (int64_t)time(NULL);
	o = to_json(&now);
	if (!o)
		return pgr_fail(err, -ENOMEM, "no memory for the journal");
	rc = paths_write_json(f->dir, f->name, o, err);
	json_decref(o);
	return rc;
}

void journal_close(struct journal_file *f)
{
	if (!f)
		return;
	if (f->guest_lock >= 0)
		close(f->guest_lock);
	if (f->lock >= 0)
		close(f->lock);
	free(f);
}

int journal_read(const char *state, const uint8_t session[PGR_SESSION_SIZE], struct journal *j,
		 struct pgr_error *err)
{
	char dir[PATH_MAX], hex[UNITS_HEX16], name[64];
	int rc = sessions_dir(state, dir, err);

	if (rc)
		return rc;
	snprintf(name, sizeof(name), "%s.json", units_hex16(session, hex));
	return read_name(dir, name, j, err);
}

bool journal_is_locked(const char *state, const uint8_t session[PGR_SESSION_SIZE])
{
	struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char dir[PATH_MAX], path[PATH_MAX + 64], hex[UNITS_HEX16];
	bool locked;
	int fd;

	if (sessions_dir(state, dir, NULL))
		return false;
	snprintf(path, sizeof(path), "%s/%s.lock", dir, units_hex16(session, hex));
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return false;
	locked = !fcntl(fd, F_GETLK, &whole) && whole.l_type != F_UNLCK;
	close(fd);
	return locked;
}

int journal_each(const char *state, int (*each)(void *ctx, const struct journal *j),
		 void (*bad)(void *ctx, const char *text), void *ctx)
{
	char dir[PATH_MAX];
	struct pgr_error err = PGR_ERROR_NONE;
	struct journal *j = malloc(sizeof(*j));
	struct dirent *entry;
	size_t length;
	DIR *d = NULL;
	int rc = 0;

	if (!j)
		return -ENOMEM;
	if (!sessions_dir(state, dir, NULL))
		d = opendir(dir);
	while (d && !rc && (entry = readdir(d))) {
		length = strlen(entry->d_name);
		if (entry->d_name[0] == '.' || length != 37 ||
		    strcmp(entry->d_name + length - 5, ".json"))
			continue;
		if (!read_name(dir, entry->d_name, j, &err))
			rc = each(ctx, j);
		else if (err.code != -ENOENT && bad)
			bad(ctx, err.text);
	}
	if (d)
		closedir(d);
	free(j);
	return rc;
}

int journal_remove(const char *state, const uint8_t session[PGR_SESSION_SIZE],
		   struct pgr_error *err)
{
	struct journal_file *f;
	char lock[64];
	int rc;

	rc = open_file(state, session, false, &f, err);
	if (rc)
		return rc;
	rc = paths_remove(f->dir, f->name, err);
	snprintf(lock, sizeof(lock), "%.*s.lock", (int)strlen(f->name) - 5, f->name);
	if (!rc)
		rc = paths_remove(f->dir, lock, err);
	journal_close(f);
	return rc;
}

struct open_search {
	const uint8_t *uuid, *session;
	struct journal found;
};

static int is_open(void *ctx, const struct journal *j)
{
	struct open_search *s = ctx;
	bool arrived = (j->role == JOURNAL_TARGET || j->role == JOURNAL_RESTORE) &&
		       j->mark == SESSION_MARK_MOVED;

	/* A guest that arrived is this host's own; its process may still be saying goodbye. */
	if (j->done || arrived || !j->know_guest || memcmp(j->uuid, s->uuid, sizeof(j->uuid)) ||
	    !memcmp(j->session, s->session, sizeof(j->session)))
		return 0;
	s->found = *j;
	return 1;
}

int journal_guest_is_free(const char *state, const uint8_t uuid[16],
			  const uint8_t session[PGR_SESSION_SIZE], struct pgr_error *err)
{
	struct open_search *s = calloc(1, sizeof(*s));
	const struct timespec pause = {.tv_nsec = LEAVING_PAUSE_NS};
	char hex[UNITS_HEX16];
	unsigned tries;
	int rc = 0;

	if (!s)
		return pgr_fail(err, -ENOMEM, "no memory for a look at the journal");
	s->uuid = uuid;
	s->session = session;
	for (tries = 0; tries < LEAVING_TRIES; tries++) {
		rc = journal_each(state, is_open, NULL, s);
		if (rc <= 0 || !journal_is_locked(state, s->found.session))
			break;
		nanosleep(&pause, NULL);
	}
	if (rc > 0)
		rc = pgr_fail(
			err, -EBUSY,
			"session %s of this guest (%s, %s) is not over: the daemon puts it right within seconds, unless only the other host can; see `pagurus status` and `pagurus recover`",
			units_hex16(s->found.session, hex), journal_role_name(s->found.role),
			journal_mark_name(s->found.mark));
	free(s);
	return rc;
}

int journal_lock_guest(const char *state, const uint8_t uuid[16],
		       const uint8_t session[PGR_SESSION_SIZE], int *fd, struct pgr_error *err)
{
	int rc = lock_guest(state, uuid, fd, err);

	/* Under the lock: whoever comes next sees the journal that this session then writes. */
	if (!rc)
		rc = journal_guest_is_free(state, uuid, session, err);
	if (rc && *fd >= 0) {
		close(*fd);
		*fd = -1;
	}
	return rc;
}

struct returned {
	const char *peer;
	unsigned nr;
	struct journal oldest;
};

static int note_returned(void *ctx, const struct journal *j)
{
	struct returned *r = ctx;

	if (!j->done || j->role != JOURNAL_TARGET || j->mark != SESSION_MARK_RETURNED ||
	    strcmp(j->peer, r->peer))
		return 0;
	if (!r->nr++ || j->changed < r->oldest.changed)
		r->oldest = *j;
	return 0;
}

int journal_trim(const char *state, const char *peer, struct pgr_error *err)
{
	struct returned *r = malloc(sizeof(*r));
	char dir[PATH_MAX], path[PATH_MAX + 16];
	int rc, lock = -1;

	if (!r)
		return pgr_fail(err, -ENOMEM, "no memory for a look at the journal");
	rc = sessions_dir(state, dir, err);
	if (!rc)
		rc = paths_make_dir(dir, err);
	if (!rc) {
		snprintf(path, sizeof(path), "%s/trim.lock", dir);
		rc = lock_path(path, &lock, err);
	}
	while (!rc) {
		r->peer = peer;
		r->nr = 0;
		rc = journal_each(state, note_returned, NULL, r);
		if (!rc && r->nr >= JOURNAL_RETURNED_MAX)
			rc = journal_remove(state, r->oldest.session, err);
		if (r->nr <= JOURNAL_RETURNED_MAX)
			break;
	}
	if (lock >= 0)
		close(lock);
	free(r);
	/* Another process is at it, or answers from that one just now. */
	return rc == -EBUSY ? 0 : rc;
}

void journal_note_guest(struct journal *j, const struct guest_info *info)
{
	j->know_guest = true;
	j->kind = info->kind;
	memcpy(j->guest, info->name, sizeof(j->guest));
	memcpy(j->uuid, info->uuid, sizeof(j->uuid));
}

void journal_fault(enum journal_role role, enum session_mark mark, bool durable)
{
	char point[64];

	snprintf(point, sizeof(point), "%s-%s%s", journal_role_name(role), journal_mark_name(mark),
		 durable ? "-done" : "");
	fault_point(point);
}
