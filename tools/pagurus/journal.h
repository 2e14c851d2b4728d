/* SPDX-License-Identifier: MIT */
/*
 * What this host knows of each session, so that after any crash it does the one right thing. docs/one-owner.md has the argument.
 *
 * One file STATE/sessions/HEX.json for each session, replaced atomically and durably at each mark. One lock STATE/sessions/HEX.lock,
 * held by the process that works on the session for as long as it lives: a journal that is unfinished and not locked belongs to a
 * process that died. The lock is a process-wide fcntl lock: it does not pass to children, and the kernel drops it whatever
 * ends the process.
 *
 * A struct journal_file belongs to one thread at a time; journal_set_mark may come from another thread than the opener's.
 */
#ifndef PAGURUS_JOURNAL_H
#define PAGURUS_JOURNAL_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "migrate/session.h"
#include "tools/pagurus/disks_arrive.h"

enum journal_role {
	JOURNAL_SOURCE,	 /* a guest that leaves for another host */
	JOURNAL_TARGET,	 /* one that comes */
	JOURNAL_SAVE,	 /* into a file */
	JOURNAL_RESTORE, /* out of a file */
};

struct journal {
	uint8_t session[PGR_SESSION_SIZE];
	enum journal_role role;
	enum session_mark mark;
	bool done;     /* nothing is left to do; kept to answer questions */
	bool keep;     /* SAVE: the guest goes on afterwards */
	bool may_stop; /* SOURCE, SAVE: the guest runs, but had begun to suspend and may stop yet */
	bool know_guest; /* the three fields below hold */
	enum pgr_guest_kind kind;
	char guest[256];
	uint8_t uuid[16];
	char peer[256]; /* SOURCE, TARGET: name of the other host's certificate here; "" unknown */
	char file[PATH_MAX];		       /* SAVE, RESTORE: absolute */
	struct disk_made disks[PGR_DISKS_MAX]; /* TARGET: files that were made for it */
	unsigned nr_disks;
	char boot[64];	 /* the run of this host's kernel in which it was written last */
	int64_t changed; /* seconds since 1970, set by each write */
};

struct journal_file;

/*
 * Begin a session: lock, write. -EEXIST: this host knows the session already (it may be over, or refused for ever). -EBUSY: another
 * process is at it. state: the host's state folder, made when missing. *j is copied; boot and changed are filled in.
 */
int journal_create(const char *state, const struct journal *j, struct journal_file **out,
		   struct pgr_error *err);
/*
 * Take over a session whose process is gone, and its guest's lock when it is not over. -ENOENT, -EBUSY: its process lives or another is at
 * work on the guest; -EBADMSG. *j gets what it says.
 */
int journal_take(const char *state, const uint8_t session[PGR_SESSION_SIZE], struct journal *j,
		 struct journal_file **out, struct pgr_error *err);
/* Replace the contents. Durable on return. */
int journal_write(struct journal_file *f, const struct journal *j, struct pgr_error *err);
/* Unlock and free. The file stays. NULL is allowed. */
void journal_close(struct journal_file *f);

/* Read without lock. */
int journal_read(const char *state, const uint8_t session[PGR_SESSION_SIZE], struct journal *j,
		 struct pgr_error *err);
/* Whether another process works on it. Not for a session of this process: looking would drop its lock, as fcntl locks are. */
bool journal_is_locked(const char *state, const uint8_t session[PGR_SESSION_SIZE]);
/* Call each() for every journal; a file that cannot be read is reported through bad(). Returns the first non-zero of each(). */
int journal_each(const char *state, int (*each)(void *ctx, const struct journal *j),
		 void (*bad)(void *ctx, const char *text), void *ctx);
/* Remove a finished session and its lock file. -EBUSY as journal_take. */
int journal_remove(const char *state, const uint8_t session[PGR_SESSION_SIZE],
		   struct pgr_error *err);

/*
 * One session for each guest: hold STATE/guests/UUID.lock. -EBUSY: another session or save has it, or one other than `session` is not
 * over: the copy that is here may be the old self of a guest that runs elsewhere. *fd: keep open; close releases.
 */
int journal_lock_guest(const char *state, const uint8_t uuid[16],
		       const uint8_t session[PGR_SESSION_SIZE], int *fd, struct pgr_error *err);
/* The second half alone, for a guest that arrives. Waits a few seconds for a process that is about to end its session. */
int journal_guest_is_free(const char *state, const uint8_t uuid[16],
			  const uint8_t session[PGR_SESSION_SIZE], struct pgr_error *err);

/*
 * Forget the oldest finished sessions of a peer from which no guest stayed here (TARGET, RETURNED), until fewer than JOURNAL_RETURNED_MAX
 * are left: each connection of a peer may leave one. What they answer is what is answered about an unknown session.
 * No journal may be open in this process.
 */
#define JOURNAL_RETURNED_MAX 256u
int journal_trim(const char *state, const char *peer, struct pgr_error *err);

/* Fill in what identifies the guest. */
void journal_note_guest(struct journal *j, const struct guest_info *info);

/* fault_point() for a mark of a role: before it is written, or when it is durable. */
void journal_fault(enum journal_role role, enum session_mark mark, bool durable);

const char *journal_role_name(enum journal_role r); /* "source" ... */
const char *journal_mark_name(enum session_mark m); /* "begin" ... */

/* True when the journal was written in another run of the host's kernel: no domain of then exists any more. */
bool journal_host_restarted(const struct journal *j);

#endif
