/* SPDX-License-Identifier: MIT */
/*
 * Disks: a number of bytes with reads, writes and what else a disk does, whatever keeps them.
 *
 * A struct block is one open disk: a file or device, an image format over another block, something across the network. Each belongs to one
 * event loop (loop.h), and everything here is called in that loop's thread. There are two ways to call it, which may be mixed:
 *
 *   asynchronous   block_submit() with a request that the caller owns, and a callback when it is done: for servers.
 *   waiting        block_read() and its like: in a fiber (fiber.h) it lets the others run meanwhile; outside of the loop it turns the loop
 *                  itself: for tools, tests, and for the formats, whose files are blocks too. Not in a callback of the loop.
 *
 * Offsets and lengths are bytes and need no alignment: what the storage cannot do itself (memory or sectors that are not aligned) goes
 * through bounded bounce buffers, and a part of a sector is read, changed and written under a lock. Aligned requests are passed on as they
 * are. block_info() says which alignment is the quick one.
 *
 * ---- Order ----
 *
 * Requests under way at the same time happen in any order, also those for the same bytes: two writes that overlap leave either's data in each
 * sector, a read beside a write sees either the old or the new in each sector. A request that is submitted after another was done sees what
 * that did. Completions come in any order, by the loop and never within the call of block_submit().
 *
 * BLOCK_RESIZE, BLOCK_SNAPSHOT and BLOCK_CLOSE are alone: they wait for the requests before them, and those after them wait for them.
 *
 * ---- What survives a power cut, or kill -9 of the process (of the latter more with options.settled) ----
 *
 *   1. A BLOCK_FLUSH that was done with success: everything that was *done* before it was *submitted* is there. With BLOCK_FUA, a write or
 *      zero that was done is there by itself, and says nothing of others.
 *   2. A write that is not covered so, done or under way: each of its sectors (block_info.block_size, at least 512 bytes) has the old or the
 *      new contents, independently of the other sectors and of the order of the requests. No sector is half of each, none has anything else.
 *   3. The same holds for a zero, and for a discard with "zeros or what was there" as the new contents, once and for all: what a read has
 *      returned after it stays until the next write or the next cut.
 *   4. BLOCK_RESIZE and BLOCK_SNAPSHOT are there when they are done with success; cut in the middle, the disk has either size, the snapshot
 *      is there whole or not at all, and either way the disk holds what it held.
 *   5. Closing a disk with success is a flush.
 *   A failed flush promises nothing of what was done since the last that succeeded; the disk then refuses further flushes with the same
 *   error (-EIO), since the kernel forgets what it could not write. Close it and look at the storage.
 *
 * ---- Memory and limits ----
 *
 * At most options.max_requests of a block are under way; later ones wait in a list made of the callers' own requests. Bounce buffers of a
 * block together have BLOCK_BOUNCE_MAX bytes. There is no thread per request: one helper thread a loop, for system calls that have no
 * asynchronous form.
 *
 * ---- Errors ----
 *
 * Negative errno with a sentence: -EINVAL (nonsense in the request), -ERANGE (beyond the end of the disk), -EROFS, -EOPNOTSUPP (this disk
 * cannot; the sentence says what can), -ENOSPC (no room: nothing is lost, the same request may be tried again), -EIO and others of the
 * storage, -ENOMEM, -ECANCELED (the disk is being closed). A write that failed may have changed any of its sectors.
 */
#ifndef PAGURUS_BLOCK_H
#define PAGURUS_BLOCK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "common/error.h"
#include "storage/loop.h"

struct block;

#define BLOCK_SECTOR	   512u
#define BLOCK_REQUESTS	   128u		/* options.max_requests, when it is 0 */
#define BLOCK_REQUESTS_MAX 1024u	/* the most that may be asked for */
#define BLOCK_BOUNCE_MAX   (4u << 20)	/* bytes of bounce buffers a block */
#define BLOCK_LENGTH_MAX   (64u << 20)	/* bytes of one read or write */
#define BLOCK_IOV_MAX	   1024u	/* pieces of one read or write */
#define BLOCK_SIZE_MAX	   (1ull << 62) /* bytes of a disk */

/* ---- opening ---- */

/* Makes a lost connection to an NBD server again, for a process that may not do so itself; with `first`, the first one as well. */
struct block_dial {
	bool first;
	/* A socket that is connected to that server, or to who does TLS with it, from now on the caller's. Waiting. It may be called again after an error. */
	int (*connect)(void *ctx, const char *uri, int *socket, struct pgr_error *err);
	void *ctx;
};

struct block_options {
	bool read_only;
	bool cached;   /* through the page cache, not O_DIRECT */
	bool unlocked; /* take no lock against other writers; for looking at a disk that is in use */
	/* What is done survives the death of the process, also when it was not flushed; for users who outlive it. A raw file needs nothing for that. */
	bool settled;
	bool grows; /* a write beyond the end makes the file longer: for the files of image formats */
	unsigned max_requests; /* under way; 0: BLOCK_REQUESTS */
	const int *
		descriptor; /* of a file: open already, and taken over; the path is its name only */
	uint32_t block_size; /* to tell the disk's user: 512, 4096, or 0 for the storage's own */
	/* Of disks on NBD servers (block_nbd.h). */
	const char *identity; /* folder of this host's key and certificates; NULL: libnbd's own */
	unsigned patience_ms; /* how long requests wait for a lost connection; 0: a minute */
	/* block_open_nbd_socket(): it is lost when something is asked and nothing moves for so long; 0: never. */
	unsigned silence_ms;
	/* NULL, or it becomes true: everything asked of the server, and connecting to it, fails with -ECANCELED soon after, until the end. */
	const atomic_bool *stop;
	const struct block_dial
		*dial; /* it stays the caller's while the disk is open; NULL: by itself */
};

/*
 * A regular file or block device as it is (raw). o may be NULL. Waiting. Locks it against writers, and a writer against everybody, in the way
 * that QEMU's tools do and respect: -EAGAIN when it is in use, with a sentence. -ENOENT, -EACCES, -EISDIR and the like.
 * Without O_DIRECT in the file system it goes on through the page cache and says so in block_info.note.
 */
int block_open_file(struct loop *l, const char *path, const struct block_options *o,
		    struct block **out, struct pgr_error *err);

/* ---- what it is ---- */

#define BLOCK_NOTE 256

struct block_info {
	const char *driver;   /* "file", ... */
	uint64_t size;	      /* bytes */
	uint32_t block_size;  /* smallest unit without a read-modify-write; a power of two */
	uint32_t granularity; /* best unit of discard and zero: smaller ones may free nothing */
	bool read_only;
	bool can_discard; /* false: a discard succeeds and does nothing */
	bool can_snapshot;
	char name[BLOCK_NOTE]; /* for messages: its path or address */
	char note[BLOCK_NOTE]; /* something that the operator should know, or "" */
};

/* It stays the block's and is right until the next turn of the loop. */
const struct block_info *block_info(const struct block *b);

struct block_stats {
	uint64_t reads, read_bytes, writes, write_bytes, flushes, discards, zeros, failed;
	unsigned running, queued; /* requests, now */
};
void block_stats(const struct block *b, struct block_stats *out);

/* ---- requests ---- */

enum block_op {
	BLOCK_READ,
	BLOCK_WRITE,
	BLOCK_DISCARD, /* the contents are no longer needed: from now on zeros, or what was there, in each unit */
	BLOCK_ZERO, /* zeros from now on */
	BLOCK_FLUSH,
	BLOCK_STATUS,
	BLOCK_RESIZE,	/* length is the new size; new bytes are zeros */
	BLOCK_SNAPSHOT, /* keep what the disk holds now under `name` */
	BLOCK_CLOSE,
};

/* Flags of a request. */
#define BLOCK_FUA 1u /* write, zero: durable when done */
#define BLOCK_UNMAP \
	2u /* zero: the storage may be given back; without it, it stays or becomes allocated where the backend can */

#define BLOCK_FAST 4u /* zero: -EOPNOTSUPP, where zeros would be written as data are */

/* Flags of an extent. */
#define BLOCK_EXTENT_ZERO	1u /* reads as zeros */
#define BLOCK_EXTENT_DATA	2u /* takes up storage, here or in a layer below */
#define BLOCK_EXTENT_HERE	4u /* decided by this layer and not by one below */
#define BLOCK_EXTENT_COMPRESSED 8u
#define BLOCK_EXTENT_AT		16u /* `at` is where it is in the file below, byte for byte */

struct block_extent {
	uint64_t length;
	uint32_t flags;
	uint64_t at;
};

/*
 * One request. The caller owns it and what it points to, and leaves both alone from block_submit() until done() is called; there it may use
 * the request again or free it. Zero it once, so that what is added later has its default.
 */
struct block_request {
	enum block_op op;
	uint32_t flags;
	uint64_t offset, length;
	const struct iovec *iov; /* read, write: length bytes together */
	unsigned nr_iov;
	/* BLOCK_STATUS: room for nr_extents; out: their number. They begin at offset, follow each other and may end before or after length. */
	struct block_extent *extents;
	unsigned nr_extents;
	const char *name; /* BLOCK_SNAPSHOT */
	/*
	 * By the loop. err is NULL when it worked, and else good until done() returns. After BLOCK_CLOSE the block is
	 * gone, whatever err says, but for -EAGAIN: there was no memory to begin, it may be submitted again.
	 */
	void (*done)(struct block_request *r, const struct pgr_error *err);

	/* The block layer's, while the request is under way. */
	struct block *block;
	struct block_request *next;
	struct loop_task task;
};

/* Never fails: what is wrong with the request comes to done(), by the loop. Nothing may follow a BLOCK_CLOSE. */
void block_submit(struct block *b, struct block_request *r);

/*
 * Hold what is submitted from now on, and call when nothing is under way any more: at this moment the layers below may be changed. Nested
 * calls count. Waiting. block_resume() lets everything go on.
 */
void block_quiesce(struct block *b);
void block_resume(struct block *b);

/* ---- the same, waiting ---- */

int block_read(struct block *b, uint64_t offset, void *data, size_t length, struct pgr_error *err);
int block_write(struct block *b, uint64_t offset, const void *data, size_t length, uint32_t flags,
		struct pgr_error *err);
int block_discard(struct block *b, uint64_t offset, uint64_t length, struct pgr_error *err);
int block_zero(struct block *b, uint64_t offset, uint64_t length, uint32_t flags,
	       struct pgr_error *err);
int block_flush(struct block *b, struct pgr_error *err);
/* One extent that begins at offset (below the size) and is at most length long. */
int block_status(struct block *b, uint64_t offset, uint64_t length, struct block_extent *out,
		 struct pgr_error *err);
int block_resize(struct block *b, uint64_t size, struct pgr_error *err);
int block_snapshot(struct block *b, const char *name, struct pgr_error *err);
/*
 * Requests that wait get -ECANCELED, those under way are finished, a writer is flushed, everything is freed, also on failure. NULL is
 * allowed. Whoever else waits in a call on the block must have come back.
 */
int block_close(struct block *b, struct pgr_error *err);

#endif
