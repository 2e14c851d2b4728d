/* SPDX-License-Identifier: MIT */
/*
 * What the files of the keeper share: keeper.c follows xenstore and has the processes, keeper_command.c does what the operator asks for, keeper_hold.c lets
 * go of the disks while the guest moves, keeper_dial.c and keeper_relay.c connect to NBD servers.
 */
#ifndef PAGURUS_BLK_KEEPER_INTERNAL_H
#define PAGURUS_BLK_KEEPER_INTERNAL_H

#include <sys/types.h>
#include <xenstore.h>

#include "protocol-spec/disk_hold.h"
#include "storage/fiber.h"
#include "storage/live_pins.h"
#include "tools/blk/control.h"
#include "tools/blk/keeper.h"
#include "tools/blk/process.h"
#include "tools/blk/qmp.h"

struct keeper {
	struct loop *loop;
	struct xs_handle *store;
	uint32_t domid;
	char backends[64];
	struct loop_watch store_watch, signal_watch;
	struct loop_timer show, deadline;
	struct loop_task look;
	struct disk *disks;
	unsigned nr_disks; /* ever */
	bool announced, ending;
	bool gave_up;			   /* processes are waited for no more */
	char wish[PGR_DISK_HOLD_WISH_MAX]; /* "": the disks may be used */
	bool wish_answered;
	char wish_failed[PGR_DISK_HOLD_SENTENCE_MAX]; /* what went wrong, or "" */
	int status;
	struct qmp_disks figures;
	struct line_server *qmp[KEEPER_SOCKETS_MAX], *commands;
};

/* The process that does TLS with a disk's NBD server (relay.h). */
struct relay {
	pid_t pid; /* 0: there is none */
	uint64_t started_ns;
	struct wait_queue gone;
};

struct disk {
	struct keeper *keeper;
	struct disk *next;
	unsigned devid;
	uid_t uid;
	struct pv_bus *bus;
	struct process_journal journal;
	pid_t pid; /* 0: there is no process */
	struct loop_watch control;
	bool in_use, watched;
	bool held;     /* its process waits and has nothing open */
	bool released; /* its process ended, or is about to, because of a wish */
	bool lost;     /* its connection to an NBD server, and that was said */
	bool dialling; /* somebody makes one */
	pid_t asked;   /* for it: the process; 0: none that has no answer yet */
	struct relay relay;
	unsigned deaths;
	uint64_t first_death;
	struct loop_timer again; /* when the next process is started */
	struct pv_counters shown;
	/* Commands. */
	struct call *calls; /* under way */
	uint32_t newest_call;
	unsigned users;		/* commands that have it: it is not freed */
	struct fiber_lock lock; /* of the disk's layers: whoever changes them */
	pid_t switching; /* the process that holds requests while its files get other names; 0: none */
	bool next_waits;       /* the process after it: until they have */
	struct live_pins pins; /* its layers, from when it was first open */
};

/* ---- keeper.c ---- */

/* A line for the log. */
void keeper_say(const struct disk *d, const char *text);
/* Our end never waits: a process that does not read loses the message, and is as good as dead. */
void keeper_tell(struct disk *d, const struct control_message *m);
/* Its process is gone: the next one. */
void keeper_next_process(struct disk *d);
/* The files have the names with which the next process is to open them. */
void keeper_switched(struct disk *d);

/* ---- keeper_store.c ---- */

struct store_value {
	char path[PV_PATH + 64];
	const char *value;
};

/*
 * Write all of them, at once, if the node `there` is there. Whoever removes a guest or a device may be faster, and what is written into a node that was removed
 * makes it anew, for ever. False with errno; ENOENT: it is gone.
 */
bool keeper_store_write(struct keeper *k, const char *there, const struct store_value *values,
			unsigned nr);

/* ---- keeper_hold.c ---- */

/* There may be a wish, or none any more. */
void keeper_look_for_wish(struct keeper *k);
/* There is one: say so once nothing is open. */
void keeper_answer_wish(struct keeper *k);
/* A disk was not let go of as it should be. */
void keeper_hold_failed(struct disk *d, const char *why);
/* One whose process ended because of a wish. */
void keeper_start_anew(struct disk *d);

/* ---- keeper_command.c ---- */

/* Listen at the keeper's socket for commands. */
int keeper_listen(struct keeper *k, struct pgr_error *err);
/* An answer to a call, or how far it is. */
void keeper_on_answer(struct disk *d, const struct control_message *m);
/*
 * Have the disk's process do that, with a descriptor (-1: none; taken over), and wait for its answer, which is in m then. In a fiber; the caller counts itself in
 * d->users. -EAGAIN: it is not open; -EPIPE: it died; or what the process says.
 */
typedef void call_progress_fn(void *ctx, const struct control_progress *p);
int keeper_call(struct disk *d, struct control_message *m, int passed, call_progress_fn *progress,
		void *ctx, struct pgr_error *err);
/* The process has gone, or is waited for no more: no call is answered. */
void keeper_end_calls(struct disk *d);

/* ---- keeper_dial.c ---- */

/* The disk's process has no connection to its NBD server: make one for it, to the server that the disk is said to be on. */
void keeper_dial(struct disk *d);

/* ---- keeper_relay.c ---- */

/* Users of relays are those of disks and so many. */
#define RELAY_USERS 0x08000000u

/* A relay to that server, and in *socket its stream, which is the caller's. In a fiber; the caller counts itself in d->users. */
int keeper_relay(struct disk *d, const char *uri, int *socket, struct pgr_error *err);
/* End it if there is one, at once. */
void keeper_relay_end(struct relay *y);
/* That process has ended; false: it was not this relay. */
bool keeper_relay_reaped(struct relay *y, pid_t pid);

/* ---- keeper_freeze.c ---- */

struct freeze {
	char id[32];
};

/*
 * Have the helper in the guest (guest-linux/freeze) freeze the guest's file systems, for a few seconds at most. False: there is no helper, or it could not. In a
 * fiber. keeper_thaw() says whether they were frozen until then.
 */
bool keeper_freeze(struct keeper *k, struct freeze *f);
bool keeper_thaw(struct keeper *k, const struct freeze *f);

#endif
