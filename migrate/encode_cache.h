/* SPDX-License-Identifier: MIT */
/*
 * What was last sent for a pfn: a bounded table of page contents, for DELTA. One thread.
 *
 * All memory is taken at creation (touched only as it fills): no call but encode_cache_create can
 * fail.
 */
#ifndef PAGURUS_ENCODE_CACHE_H
#define PAGURUS_ENCODE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct encode_cache;

/* bytes: bound of all its memory. NULL in *out and 0 when not even one page fits; -ENOMEM. */
int encode_cache_create(size_t bytes, struct encode_cache **out);
void encode_cache_free(struct encode_cache *c);

/*
 * The contents kept for pfn (4096 bytes aligned to 64, writable, valid until the next insert), or
 * NULL. Counts as a use.
 */
uint8_t *encode_cache_find(struct encode_cache *c, uint64_t pfn);

/*
 * Room for the contents of a pfn that is not in the cache: the caller fills it. evict false: NULL
 * when the cache is full; true: another page, not used for long, makes room.
 */
uint8_t *encode_cache_insert(struct encode_cache *c, uint64_t pfn, bool evict);

void encode_cache_remove(struct encode_cache *c, uint64_t pfn);
void encode_cache_clear(struct encode_cache *c);

#endif
