/* SPDX-License-Identifier: MIT */
/*
 * Snapshots of raw files on file systems that share blocks between files (FICLONE: XFS, btrfs): copies in constant time.
 *
 * web.monday.raw beside web.raw may be a snapshot of that or a disk of its own. So a snapshot has the extended attribute REFLINK_MARK, whose value is the file
 * name of its disk; without it a file is neither put back nor removed.
 */
#ifndef PAGURUS_REFLINK_H
#define PAGURUS_REFLINK_H

#include <stdbool.h>

#include "storage/snapshots.h"

#define REFLINK_MARK "user.pagurus.snapshot-of"

/*
 * What the open file fd, the disk at `disk`, holds now as the file `path`: whole and durable, or not there at all. Blocks. -EEXIST, -ENAMETOOLONG,
 * -EOPNOTSUPP (the file system cannot, or path is on another one), or what system calls say.
 */
int reflink_keep(int fd, const char *disk, const char *path);

/* Whether the file at `path` is a snapshot of the disk. */
bool reflink_is_snapshot(const char *disk, const char *path);

/* For disks that are raw files; links are followed by the caller. A cut in revert leaves the disk as it was before or as it is to be. */
extern const struct snapshots_ops reflink_ops;

#endif
