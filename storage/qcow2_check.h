/* SPDX-License-Identifier: MIT */
/* Whether a qcow2 image is sound: every cluster counted, against who names it. */
#ifndef PAGURUS_QCOW2_CHECK_H
#define PAGURUS_QCOW2_CHECK_H

#include "storage/block.h"

struct qcow2_check {
	bool repair; /* leaks, counts that are too low, and flags that say otherwise than the counts; file is writable then */
	/* A finding, one sentence; NULL: they are only counted. At most QCOW2_FINDINGS_MAX are told. */
	void (*found)(void *ctx, const char *sentence);
	void *ctx;
	/* Out. */
	uint64_t clusters, used; /* of the file; named by something */
	uint64_t leaks;		 /* clusters that are counted too high: they take up room */
	uint64_t damages;	 /* everything else: the contents are in danger */
	uint64_t repaired;	 /* of both, so that no longer there */
	bool dirty;		 /* the image said itself that its counts are not to be believed */
};

#define QCOW2_FINDINGS_MAX 100u

/*
 * Check the image in file, which was opened with options.grows and is nobody else's; what is below the image is not looked at. Waiting. Takes 4 bytes of
 * memory for a cluster of the file. 0: it was checked, and *c says with what result; -EINVAL, -EOPNOTSUPP: no image that could be checked; -EFBIG; -ENOMEM;
 * what the file says.
 */
int qcow2_check(struct block *file, struct qcow2_check *c, struct pgr_error *err);

#endif
