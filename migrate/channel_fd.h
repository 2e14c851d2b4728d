/* SPDX-License-Identifier: MIT */
/*
 * What TLS needs of the descriptor channel below it, beyond struct channel_ops. Internal to the channel_*.c files.
 *
 * channel_fd_limit and channel_fd_linger do nothing on a channel of another kind (a test's wrapper): there the timeout without
 * progress is the only bound. Thread: the one that is in the handshake; no other may be in a call of c.
 */
#ifndef PAGURUS_CHANNEL_FD_H
#define PAGURUS_CHANNEL_FD_H

#include "migrate/channel.h"

/*
 * Besides the timeout without progress, all waits end with -ETIMEDOUT at most ms milliseconds (not above the channel's own
 * timeout, if it has one) from now: a peer that sends a byte now and then must not hold a handshake for ever. 0: no such end.
 */
void channel_fd_limit(struct channel *c, unsigned ms);

/*
 * Say that nothing more will be sent, and read and drop what the peer still sends until it closes, for at most ms
 * milliseconds. Closing with unread bytes would make TCP throw away the alert that tells the peer why.
 */
void channel_fd_linger(struct channel *c, unsigned ms);

/*
 * Read at least least bytes and as many more, up to most (not below least), as are there without waiting; their number in *got.
 * A channel of another kind gives exactly least. Errors and thread as channel_ops.read.
 */
int channel_fd_read_some(struct channel *c, void *data, size_t least, size_t most, size_t *got,
			 struct pgr_error *err);

#endif
