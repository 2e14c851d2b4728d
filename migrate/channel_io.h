/* SPDX-License-Identifier: MIT */
/*
 * What the channels share below their operations: waiting, writing without signals, reading ahead, printable names.
 *
 * Internal to the channel_*.c files. No function keeps an argument; all are safe on any thread as long as a
 * struct channel_ahead is used by one thread at a time.
 */
#ifndef PAGURUS_CHANNEL_IO_H
#define PAGURUS_CHANNEL_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

#include "common/error.h"

struct channel;

#define CHANNEL_IOV_MAX 16u /* of channel_ops.write */

/* CLOCK_MONOTONIC in nanoseconds. */
int64_t channel_now_ns(void);

/*
 * Wait until poll(2) reports EVENTS (or an error or hang-up, which the next call on fd will tell) on fd. 0, -ECANCELED:
 * cancel_fd (-1: none) is readable, -ETIMEDOUT: deadline_ns (of channel_now_ns; INT64_MAX: none) has passed, or poll's errno.
 */
int channel_wait(int fd, short events, int cancel_fd, int64_t deadline_ns);

/*
 * writev(2) that never kills: SIGPIPE and SIGXFSZ that it raises are swallowed, those of others are left pending.
 * Bytes written or a negative errno.
 */
ssize_t channel_writev_quiet(int fd, const struct iovec *iov, unsigned nr);

/* Copy iov (nr <= CHANNEL_IOV_MAX, else -EINVAL) without empty entries; their number, and the sum in *total. */
int channel_iov_copy(struct iovec copy[CHANNEL_IOV_MAX], const struct iovec *iov, unsigned nr,
		     size_t *total, struct pgr_error *err);
/* Step over n bytes of *iov, which must hold as many. */
void channel_iov_advance(struct iovec **iov, unsigned *nr, size_t n);

/* Bytes that came along with the ones that were asked for. */
struct channel_ahead {
	unsigned char *base;
	size_t size;
	size_t start;
	size_t end;
};

/* 0 or -ENOMEM. */
int channel_ahead_init(struct channel_ahead *a, size_t size);
void channel_ahead_free(struct channel_ahead *a);
/* Move up to length bytes that are already here to data; their number. */
size_t channel_ahead_take(struct channel_ahead *a, void *data, size_t length);
/* Where the next system call should put bytes: first the length that are wanted at data, then the (empty) buffer. */
void channel_ahead_iov(struct channel_ahead *a, void *data, size_t length, struct iovec iov[2]);
/* Tell that the call with that iov gave n bytes; how many of them are at data. */
size_t channel_ahead_got(struct channel_ahead *a, size_t length, size_t n);

/* Set c->peer to prefix and name; control characters become '?', what is too long is cut. */
void channel_name(struct channel *c, const char *prefix, const char *name);

/* Add to c->written or c->read, which another thread may be looking at. */
void channel_count(uint64_t *counter, uint64_t n);

#endif
