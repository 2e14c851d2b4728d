/* SPDX-License-Identifier: MIT */
/* Snapshots that are no layers of qcow2 (storage/snapshots.h), as the actions of `pagurus disk` show and change them. */
#ifndef PAGURUS_VERB_DISK_SNAPSHOTS_H
#define PAGURUS_VERB_DISK_SNAPSHOTS_H

#include "storage/layers.h"
#include "storage/snapshots.h"

struct disk_layer_row {
	const char *name;
	unsigned depth;
	uint64_t size, used; /* used: SNAPSHOT_UNKNOWN is possible */
	int64_t when;	     /* 0: unknown */
	const char *notes;   /* behind it, each with two blanks before it */
};

/* One line of `pagurus disk list`. */
void disk_show_row(const struct disk_layer_row *r);
/* All snapshots of the disk, as lines of that list or as JSON. */
int disk_show_snapshots(struct loop *l, const struct snapshots_ops *ops, const char *disk,
			bool json, struct pgr_error *err);

/* The actions on a disk that is no file. The exit status. */
int disk_list_elsewhere(const struct snapshots_ops *ops, const char *disk, bool json);
int disk_snapshot_elsewhere(const struct snapshots_ops *ops, const char *disk, const char *name,
			    uint64_t room, bool json);
int disk_revert_elsewhere(const struct snapshots_ops *ops, const char *disk, const char *name,
			  bool json);
int disk_delete_elsewhere(const struct snapshots_ops *ops, const char *disk, const char *name,
			  bool json);
/* The result of an action: what was done to which snapshot. */
void disk_tell(const char *what, const char *disk, const char *path, bool json);

/* -EEXIST with a sentence, when an image in its folder stands on the raw file, which is to change or to go. */
int disk_check_stood_on(struct loop *l, const char *path, struct pgr_error *err);

#endif
