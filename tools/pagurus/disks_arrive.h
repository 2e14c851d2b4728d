/* SPDX-License-Identifier: MIT */
/*
 * Disks that come with their guest: struct target_disks of migrate/session.h. New files, each behind an NBD server of its own that only a connection of the session
 * reaches, closed before anything of this host may open them.
 */
#ifndef PAGURUS_DISKS_ARRIVE_H
#define PAGURUS_DISKS_ARRIVE_H

#include <sys/types.h>

#include "migrate/session.h"

/* What is made for a disk. PARTIAL is its name until it is made; inode 0: it is not. */
struct disk_made {
	char path[PGR_DISK_PATH_MAX + 1];
	char partial[PGR_DISK_PATH_MAX + 48];
	uint64_t inode;
};

struct disks_arrive;

struct disks_arrive_options {
	uint8_t session[PGR_SESSION_SIZE];
	/* Durable on return: what is going to be there, or is, so that disks_arrive_remove() finds it. */
	int (*note)(void *ctx, const struct disk_made *made, unsigned nr, struct pgr_error *err);
	void *ctx;
};

/* ops is good until disks_arrive_free(). -ENOMEM. */
int disks_arrive_new(const struct disks_arrive_options *o, struct disks_arrive **out,
		     struct target_disks *ops, struct pgr_error *err);
/* The files stay as they are. NULL is allowed. */
void disks_arrive_free(struct disks_arrive *a);

/* One of them that was written at that time (seconds since 1970) or later, NULL: none was. */
const char *disks_arrive_written_since(const struct disk_made *made, unsigned nr, int64_t since);

/* Nothing of what was made is left; what has its name and is another file stays. */
int disks_arrive_remove(const struct disk_made *made, unsigned nr, struct pgr_error *err);

#endif
