/* SPDX-License-Identifier: MIT */
/*
 * What the keeper of a guest's disks and the processes of the disks say to each other: whole messages over a socket pair (SOCK_SEQPACKET). The socket's
 * end is the other one's.
 */
#ifndef PAGURUS_BLK_CONTROL_H
#define PAGURUS_BLK_CONTROL_H

#include "storage/live.h"
#include "storage/pv_bus.h"

/* The descriptors that a disk's process begins with, and its relay (relay.h). */
#define CONTROL_FD 3
#define SECOND_FD  4
#define JOURNAL_FD SECOND_FD
#define RELAY_FD   SECOND_FD /* a stream to the disk's process */

enum control_kind {
	/* To the process. */
	CONTROL_OPEN,
	CONTROL_PROBE, /* only see to it that it could be opened; CONTROL_HELD, then wait for CONTROL_OPEN */
	CONTROL_RELEASE, /* finish what is under way, flush, close, say CONTROL_RELEASED, end */
	CONTROL_CONNECT,
	CONTROL_DISCONNECT,
	CONTROL_RESIZE,
	CONTROL_END, /* close the disk and end */
	/* The same with an answer: CONTROL_DONE or CONTROL_FAILED with the same number; several may be under way. */
	CONTROL_STATUS,
	/* What struct live_ops (storage/live.h) has, on the disk's layers. */
	CONTROL_LAYER_HOLD,  /* text: the name; a descriptor, or none */
	CONTROL_LAYER_GO_ON, /* size: whether it was switched; the answer's: nanoseconds */
	CONTROL_LAYER_MERGE, /* layer, and a descriptor */
	CONTROL_LAYER_DROP,  /* layer, and perhaps a name */
	CONTROL_LOOK,	     /* size: whether to check; the answer: look */
	CONTROL_MIRROR, /* to the NBD server behind the descriptor, until the disk is let go of; CONTROL_PROGRESS meanwhile */
	CONTROL_DIALLED, /* without a number: the answer to CONTROL_DIAL; a descriptor, or `failure`. A relay's only word to the keeper: `failure`, with code 0: none */
	CONTROL_LAYER_STOP, /* without an answer: no more of CONTROL_LAYER_MERGE, which then fails */
	/* From it. */
	CONTROL_OPENED,
	CONTROL_OPEN_FAILED,
	CONTROL_IN_USE, /* it goes on trying */
	CONTROL_DIAL, /* make a connection to its NBD server, the first one or another; one at a time */
	CONTROL_HELD,
	CONTROL_RELEASED, /* the text: what went wrong, or nothing */
	CONTROL_CONNECTED,
	CONTROL_CONNECT_FAILED,
	CONTROL_DISCONNECTED,
	CONTROL_BROKEN,
	CONTROL_RESIZED,
	CONTROL_RESIZE_FAILED,
	CONTROL_SAY,
	CONTROL_DONE,
	CONTROL_FAILED,
	CONTROL_PROGRESS, /* of a call that takes long: as far as it is */
};

/* What an operator may want to know of a disk's process. */
struct control_status {
	struct block_stats block;
	uint64_t size;
	uint32_t block_size;
	uint32_t layers; /* open: the disk's own, and those that it stands on */
	uint32_t queues, entries,
		running; /* rings, requests that each has room for, those under way */
};

struct control_progress {
	uint64_t done, size; /* bytes */
	uint64_t left;	     /* of a mirror: bytes */
	uint32_t phase;	     /* the same: enum mirror_phase */
};

struct control_layer {
	uint64_t rate;
	uint32_t n;
	char name[PV_PATH - 12];
};

struct control_failure {
	int32_t code;
	char text[PV_PATH - 4];
};

struct control_message {
	uint32_t kind;
	uint32_t call; /* number of the call that it belongs to; 0: none */
	union {
		struct pv_open open;
		struct pv_opened opened;
		struct pv_connection connection;
		uint64_t size;
		struct control_status status;
		struct control_progress progress;
		struct control_layer layer;
		struct live_look look;
		struct control_failure failure;
		char text[PV_PATH];
	};
};

/* 0 or -errno; both wait. A text is ended, whatever the other side sent. */
int control_send(int fd, const struct control_message *m);
/* With a descriptor, which stays the caller's; -1: none. */
int control_send_fd(int fd, const struct control_message *m, int passed);
/*
 * -ENOTCONN: the other side has gone. *passed is the descriptor that came along (close-on-exec), the caller's from now on, or -1; passed NULL: none is
 * taken.
 */
int control_receive(int fd, struct control_message *m, int *passed);
/*
 * Up to `most` messages that are there, each to fn; the socket does not wait. 0: there may be more; -EAGAIN: there are none now; and as above. Whoever sends
 * without an end holds nobody up that way.
 */
typedef void control_fn(void *ctx, const struct control_message *m);
int control_take(int fd, unsigned most, control_fn *fn, void *ctx);
/* A message with a text. */
int control_say(int fd, enum control_kind kind, const char *text);
/* The error into a message that has room for one. */
void control_put_error(struct control_message *m, const struct pgr_error *err);
/* The answer to the call of that number: m with CONTROL_DONE, or the error when it has one. */
int control_answer(int fd, uint32_t call, struct control_message *m, const struct pgr_error *err);

#endif
