/* SPDX-License-Identifier: MIT */
/*
 * A disk's way to the other host: bytes of NBD between a socket of this host and a connection of the session, in DISK_DATA records
 * (protocol-spec/stream.md 6.10).
 */
#ifndef PAGURUS_DISK_LANE_H
#define PAGURUS_DISK_LANE_H

#include <stdatomic.h>

#include "migrate/channel.h"
#include "migrate/stream.h"

struct disk_lane {
	struct channel *channel; /* these three are the caller's to set, and stay the caller's */
	int fd;
	atomic_uint_least64_t rate; /* bytes a second towards the other host, 0: no limit */
	/* disk_lane.c's */
	struct stream_writer writer;
	struct stream_reader reader;
	struct stream_order order; /* of what the other host sends */
	atomic_bool over;	   /* in one direction or by an error */
};

/* The source's beginning: says which disk it is about, and waits until the target has it. */
int disk_lane_attach(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE], unsigned disk,
		     struct pgr_error *err);
/* The target's: which disk it is about. disk_lane_welcome() tells the source that it may begin. */
int disk_lane_accept(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE], unsigned *disk,
		     struct pgr_error *err);
int disk_lane_welcome(struct disk_lane *l, const uint8_t session[PGR_SESSION_SIZE],
		      struct pgr_error *err);

/* Until both ends have said all, or one has failed. Afterwards fd is shut down. */
int disk_lane_run(struct disk_lane *l, struct pgr_error *err);
/* Any thread: every call above ends soon. The channel and fd are still there. */
void disk_lane_cut(struct disk_lane *l);
/* Afterwards. */
void disk_lane_free(struct disk_lane *l);

#endif
