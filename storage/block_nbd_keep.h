/* SPDX-License-Identifier: MIT */
/* What was written to a server and not flushed yet: see block_nbd.h. In the order in which it was done. */
#ifndef PAGURUS_BLOCK_NBD_KEEP_H
#define PAGURUS_BLOCK_NBD_KEEP_H

#include <stddef.h>
#include <stdint.h>

#include "storage/block_driver.h"

#define NBD_KEEP_MAX (8u << 20) /* bytes, with what the list itself takes up */

enum nbd_kept_kind { NBD_KEPT_WRITE, NBD_KEPT_ZERO, NBD_KEPT_DISCARD };

struct nbd_kept {
	struct nbd_kept *next;
	uint64_t number, offset, length;
	enum nbd_kept_kind kind;
	uint32_t flags; /* libnbd's */
	uint8_t data[]; /* of a write */
};

struct nbd_keep {
	struct nbd_kept *first, **end;
	uint64_t number; /* of the last one */
	size_t bytes;
};

void nbd_keep_init(struct nbd_keep *k);
/* One that is to be done, with a copy of its data; not in any list. free() it, or add it. NULL: no memory. */
struct nbd_kept *nbd_kept_new(enum nbd_kept_kind kind, uint64_t offset, uint64_t length,
			      struct block_data from);
/* It was done. */
void nbd_keep_add(struct nbd_keep *k, struct nbd_kept *e);
/* A flush that began when `number` was the last is done. */
void nbd_keep_drop(struct nbd_keep *k, uint64_t number);

#endif
