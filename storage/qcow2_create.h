/* SPDX-License-Identifier: MIT */
#ifndef PAGURUS_QCOW2_CREATE_H
#define PAGURUS_QCOW2_CREATE_H

#include "storage/block.h"

struct qcow2_creation {
	uint64_t size;
	uint32_t cluster_size; /* 512 to 2 MiB, a power of two; 0: 64 KiB */
	const char *backing; /* name of the backing file, as the header is to have it; NULL: none */
	const char *backing_format; /* "raw", "qcow2" */
};

/*
 * Make an image of version 3 without contents in file, which is empty, writable, and was opened with options.grows. Waiting; in the same time for
 * every size. It is durable when this returns 0. -EINVAL with a sentence: a size or a name that cannot be; -ENOMEM, and what the file says.
 */
int qcow2_create(struct block *file, const struct qcow2_creation *c, struct pgr_error *err);

#endif
