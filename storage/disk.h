/* SPDX-License-Identifier: MIT */
/*
 * A disk as a person names it: an address (block_nbd.h, block_rbd.h), a volume of LVM (lvm_name.h), or a path and a format that is said or that the end of the path says. Never guessed from the contents: a guest could
 * write the header of an image into its raw disk, and have the host read any file as its "backing file".
 */
#ifndef PAGURUS_DISK_H
#define PAGURUS_DISK_H

#include "storage/block.h"
#include "storage/snapshots.h"

/*
 * "raw" or "qcow2": format when it is not NULL (-EINVAL: another one), else by the end of the path (.qcow2, or .raw and .img), else raw, but -EINVAL
 * with a sentence when the file then begins like a qcow2 image. Reads the file's first bytes.
 */
int disk_format(const char *path, const char *format, const char **out, struct pgr_error *err);

/* What the end of the path says. */
const char *disk_format_of_name(const char *path);

/* Whether it is an address, and no path: what is there has to be there already, and is raw. */
bool disk_is_address(const char *name);

/* The table for snapshots of a disk whose snapshots are no layers, and that is no file; NULL: another one. */
const struct snapshots_ops *disk_snapshots_of(const char *name);

/* disk_format() and the backend's open. Waiting. */
int disk_open(struct loop *l, const char *path, const char *format, const struct block_options *o,
	      struct block **out, struct pgr_error *err);

#endif
