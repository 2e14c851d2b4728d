/* SPDX-License-Identifier: MIT */
/* Copying a disk into another one, several parts at a time. */
#ifndef PAGURUS_DISK_COPY_H
#define PAGURUS_DISK_COPY_H

#include <stdatomic.h>

#include "storage/block.h"
#include "storage/fiber.h"

enum disk_copy_what {
	COPY_DATA, /* the target reads as zeros, and zeros are left out */
	COPY_ALL,  /* zeros, too */
	COPY_OWN, /* what `from` says itself, its zeros, too: for the rest the target has what it has */
};

struct disk_copy {
	struct block *from, *to; /* of the same loop; to is at least as large */
	enum disk_copy_what what;
	uint64_t rate;			       /* bytes a second; 0: no limit */
	const atomic_bool *stop;	       /* NULL, or it becomes true: -ECANCELED soon after */
	void (*progress)(struct disk_copy *c); /* NULL, or now and then */
	/* Out: bytes of the disk that are over; bytes that were written. */
	uint64_t size, done, copied;

	/* disk_copy.c's */
	struct fiber_lock finder;
	uint64_t next, began_ns;
	unsigned left;
	struct wait over;
	struct pgr_error err;
};

/* Waiting. The target is flushed in the end. 0, -ECANCELED, -ENOMEM, or what the disks say. It may be run again from the beginning. */
int disk_copy(struct disk_copy *c, struct pgr_error *err);

#endif
