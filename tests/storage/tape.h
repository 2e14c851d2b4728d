/* SPDX-License-Identifier: MIT */
/*
 * A disk in memory that remembers everything that was done to it, for tests: what a power cut at any moment may have left, and failures on
 * demand.
 *
 * Each change is an event when it begins and another when it is done; between the two the loop turns a few times, so requests overtake each
 * other. After a cut behind an event, a change is
 *
 *   there for certain    when it was done before a flush began that was done before the cut (or it was a FUA write that was done);
 *   there or not         when it had begun: each of its sectors by itself, in any order with others of its kind, as block.h says.
 *
 * A size change is certain when it was done.
 */
#ifndef PAGURUS_TAPE_H
#define PAGURUS_TAPE_H

#include "storage/block.h"

struct tape;

enum tape_op { TAPE_READ, TAPE_WRITE, TAPE_ZERO, TAPE_DISCARD, TAPE_FLUSH, TAPE_RESIZE, TAPE_OPS };

/* What of the changes that are not certain the cut has left. */
enum tape_cut {
	TAPE_NONE,   /* nothing */
	TAPE_ALL,    /* everything that had begun, in its order */
	TAPE_RANDOM, /* some of them, whole, in any order */
	TAPE_TORN,   /* some of their sectors */
};

struct tape_options {
	bool record;	 /* keep the events; else only failures on demand */
	uint32_t align;	 /* 0: 512 */
	bool fua, grows; /* as of struct block */
	bool keeps;	 /* a discard changes nothing */
	uint64_t seed;	 /* of the delays */
	unsigned max_requests;
};

/* A disk with `size` bytes of `contents` (NULL: zeros). The tape outlives the block, and is the caller's. Aborts without memory. */
struct tape *tape_new(const void *contents, uint64_t size);
void tape_free(struct tape *t);
struct block *tape_open(struct tape *t, struct loop *l, const struct tape_options *o);

/* The n-th (1: the next) operation of this kind from now on fails with that code; 0: none does. */
void tape_fail(struct tape *t, enum tape_op op, unsigned n, int code);
/* How many there were since tape_fail() or tape_new(). */
unsigned tape_count(const struct tape *t, enum tape_op op);
/* Every write that needs room beyond `size` bytes fails with -ENOSPC; 0: no limit. */
void tape_limit(struct tape *t, uint64_t size);

/* Events so far. */
unsigned tape_events(const struct tape *t);
/* Contents after a cut behind that many events (malloc'd), their size in *size. */
void *tape_cut_at(const struct tape *t, unsigned events, enum tape_cut how, uint64_t seed,
		  uint64_t *size);
/* What it holds now; the tape's. */
const void *tape_contents(const struct tape *t, uint64_t *size);

#endif
