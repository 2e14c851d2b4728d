/* SPDX-License-Identifier: MIT */
/*
 * Which parts of a disk were changed since somebody looked: a bit for each chunk.
 *
 * Attached to a block, every write, zero and discard sets the bits of its chunks when it is *over*, done or failed (a failed one may have changed
 * something). So to copy a disk that is in use: take a chunk, which clears its bits, then read it. A change that was over before the taking is in
 * what is read; one that ends later sets the bit again. What is still under way is seen by nobody: who wants to know that nothing is left holds
 * the disk's requests first (block_quiesce()).
 *
 * In memory only: size / granularity bits. One thread, that of the block's loop.
 */
#ifndef PAGURUS_DIRTY_H
#define PAGURUS_DIRTY_H

#include "storage/block.h"

#define DIRTY_GRANULARITY (64u << 10) /* what is best for copying; a disk of 1 TB then takes 2 MB */

struct dirty;

/*
 * For a disk of `size` bytes, nothing set. granularity: bytes of a chunk, a power of two from 512 to 2 GiB, or -EINVAL. -ENOMEM.
 */
int dirty_create(uint64_t size, uint32_t granularity, struct dirty **out, struct pgr_error *err);
/* Detached first. NULL is allowed. */
void dirty_free(struct dirty *d);

/* Record the changes of b, which has the size of d. Several may be attached to a block; while one is, its size cannot be changed. */
void dirty_attach(struct dirty *d, struct block *b);
/* Idempotent. Before the block is closed. */
void dirty_detach(struct dirty *d);

/* All chunks that the bytes touch; what is beyond the end is left out. */
void dirty_set(struct dirty *d, uint64_t offset, uint64_t length);
/* Bytes of the chunks that are set. */
uint64_t dirty_bytes(const struct dirty *d);

/*
 * The first set chunks at or behind `from`, whole and next to each other, as many as fit `max` bytes but at least one; they are cleared. The last
 * chunk of the disk may be shorter. false: none is set from there to the end.
 */
bool dirty_take(struct dirty *d, uint64_t from, uint64_t max, uint64_t *offset, uint64_t *length);

/* Whether the byte at offset is in a set chunk, and for how many bytes, at most length, the same holds. offset < size, length > 0. */
uint64_t dirty_run(const struct dirty *d, uint64_t offset, uint64_t length, bool *set);

/* Nothing is set any more. */
void dirty_clear(struct dirty *d);

/* The bits as bytes, the first chunk in the lowest bit of the first one, as qcow2 keeps them: how many; `length` of them from byte `at` on; set these, too. */
uint64_t dirty_map_bytes(const struct dirty *d);
void dirty_map_get(const struct dirty *d, uint64_t at, void *out, size_t length);
void dirty_map_add(struct dirty *d, uint64_t at, const void *from, size_t length);

/* block.c's: the same for each bitmap of a block. */
void dirty_set_all(struct dirty *first, uint64_t offset, uint64_t length);

#endif
