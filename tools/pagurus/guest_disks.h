/* SPDX-License-Identifier: MIT */
/* Which disks of a guest can come along when it moves: those in files of this host that pagurus-blk serves. */
#ifndef PAGURUS_GUEST_DISKS_H
#define PAGURUS_GUEST_DISKS_H

#include "migrate/guest.h"

/*
 * The disks of the guest that d describes (its CONFIG), *out malloc'd; addresses on the network and empty drives are left where they are. folder: of the
 * sockets of disks' servers, who are asked for sizes. note: something to tell the user. -ENOENT: none can come. -EOPNOTSUPP, -EINVAL and others: one of them cannot,
 * and why.
 */
int guest_disks_list(const struct guest_description *d, const char *folder, struct guest_disk **out,
		     unsigned *nr, void (*note)(void *ctx, const char *text), void *ctx,
		     struct pgr_error *err);

/* Whether the guest has a disk of that name in that file, by its CONFIG; always for guests without one. */
bool guest_disks_has(const struct guest_description *d, const struct guest_disk *disk);

#endif
