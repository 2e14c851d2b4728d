/* SPDX-License-Identifier: MIT */
/*
 * Volumes of LVM as disks: made, given another size, and their snapshots, by the commands of LVM2 (docs/decisions/013). What is in them is read and written as in
 * every block device (block_open_file()). All of this waits.
 *
 * A snapshot of the volume web is the volume web.NAME of the same group. A classic one has room of its own for what is overwritten in the disk; when that is full the
 * snapshot is void. One of a thin volume is a thin volume, which gets the tag LVM_MARK with the name of its disk behind it: LVM forgets what a thin
 * volume came from as soon as that is removed, and a thin volume that came from a disk may be a disk itself. Without the tag it is no snapshot.
 *
 * ---- Going back ----
 *
 * Classic: the snapshot is merged, which uses it up, and made anew. The disk reads as the snapshot from the first moment on; after a power cut LVM goes on with
 * the merge. Stopped between the two, the disk is reverted and the snapshot gone.
 *
 * Thin: steps, each whole or not at all by LVM's own metadata.
 *
 *   1. web+next, a new thin snapshot of the snapshot      web is as before
 *   2. web is renamed web+before                          there is no web
 *   3. web+next is renamed web                            web is as the snapshot
 *   4. web+before is removed
 *
 * When 3 fails, web+before gets its name back. Stopped anywhere, the next revert of the disk first puts back what was: without web, web+before gets
 * that name, and what else is left of these two is removed.
 */
#ifndef PAGURUS_LVM_H
#define PAGURUS_LVM_H

#include "storage/lvm_name.h"
#include "storage/snapshots.h"

#define LVM_MARK "pagurus-snapshot-of="

/* The program of LVM2, unless the environment says another in PAGURUS_LVM. */
#define LVM_PROGRAM "/usr/sbin/lvm"

/*
 * A new volume of at least *size bytes, of zeros, in the group itself or thin in its pool; *size is what it has got then, for LVM rounds up. A failure leaves
 * nothing. -ENOPKG with a sentence (LVM2 is not installed), -EIO with what LVM says.
 */
int lvm_create(struct loop *l, const char *disk, uint64_t *size, const char *pool,
	       struct pgr_error *err);
/* Another size than `from`, which it has, of a volume that nobody has open; new bytes are zeros, and a smaller one is meant. *size as above. */
int lvm_resize(struct loop *l, const char *disk, uint64_t from, uint64_t *size,
	       struct pgr_error *err);

extern const struct snapshots_ops lvm_snapshots;

#endif
