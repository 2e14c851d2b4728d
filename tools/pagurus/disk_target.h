/* SPDX-License-Identifier: MIT */
/*
 * The file that a copy of a disk becomes: PATH.partial until it is whole and durable; then it gets its name. Ctrl-C and failures remove it. Killed, it
 * stays, and the next copy to the same path begins anew: the lock of the file says that nobody is at work on it.
 */
#ifndef PAGURUS_DISK_TARGET_H
#define PAGURUS_DISK_TARGET_H

#include <stdbool.h>

#include "storage/block.h"

struct disk_target {
	struct loop *loop;
	const char *path, *format; /* "raw" or "qcow2" */
	uint64_t size;		   /* bytes of the disk; a raw file has whole sectors */
	bool overwrite;		   /* what has the name may lose it */
	struct block *to;	   /* out: empty, and for writing; closed by disk_target_end() */
	char *partial; /* its name until then; disk_target.c's, but for disk_target_open() */
	bool ours;     /* out: it was made, and is to be removed when the copy fails */
};

/* Open it. disk_target_end() follows also on failure. -EEXIST with a sentence: the name is taken, and overwrite was not said. Waiting. */
int disk_target_begin(struct disk_target *t, struct pgr_error *err);
/* Give it its name when ret, how the copying ended, is 0; else nothing is left. ret, or why it cannot get its name. Waiting. */
int disk_target_end(struct disk_target *t, int ret, struct pgr_error *err);

/* Only make and open it, by the name in `partial`, which the caller has set; the rest is the caller's. Waiting. */
int disk_target_open(struct disk_target *t, struct pgr_error *err);

/* -EEXIST, with the sentence for a name that is taken. */
int disk_target_fail_exists(const char *path, struct pgr_error *err);

#endif
