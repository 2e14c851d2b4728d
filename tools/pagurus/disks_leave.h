/* SPDX-License-Identifier: MIT */
/*
 * Disks that leave with their guest: struct source_disks of migrate/session.h. For each a mirror in its server (pagurus-blk), and a way from there to the target.
 * Whatever ends that way ends the mirror, and the guest goes on with its disk here.
 */
#ifndef PAGURUS_DISKS_LEAVE_H
#define PAGURUS_DISKS_LEAVE_H

#include "migrate/session.h"

struct disks_leave;

struct disks_leave_options {
	const struct guest_disk *disks; /* these stay the caller's */
	unsigned nr;
	const char *folder; /* of the sockets of disks' servers */
	uint8_t session[PGR_SESSION_SIZE];
	uint64_t rate; /* bytes a second while a disk is copied the first time, 0: no limit */
	int (*connect)(void *ctx, unsigned channel, enum pgr_purpose purpose, struct channel **out,
		       struct pgr_error *err);
	void *connect_ctx;
};

/* ops is good until disks_leave_free(). -ENOMEM. */
int disks_leave_new(const struct disks_leave_options *o, struct disks_leave **out,
		    struct source_disks *ops, struct pgr_error *err);
/* After ops->end(), or when nothing was begun. NULL is allowed. */
void disks_leave_free(struct disks_leave *l);

#endif
