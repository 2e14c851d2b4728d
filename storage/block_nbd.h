/* SPDX-License-Identifier: MIT */
/*
 * A disk on an NBD server, through libnbd: nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, and the same with TLS, nbds:// and
 * nbds+unix://. One connection; libnbd's socket is watched by the loop, nothing waits in it.
 *
 * ---- A lost connection ----
 *
 * It is made again, at once and then with growing pauses, up to 10 seconds. Requests wait meanwhile, and those that were under way are sent again.
 * After options.patience_ms they fail with -ENOTCONN and a sentence that says why it does not come back; it is tried for ever, and when it does come
 * back, later requests go on. Not a disk's failure: a flush that failed so is remembered like every other, see block.h.
 *
 * Why the contract of block.h still holds:
 *
 *   - A request that was under way is not done, so nobody relies on what it did or on what it did not. Each may be done twice: a read, a write,
 *     a zero, a discard and a flush have the same result the second time, and what came between is under way with them, in any order.
 *   - What was done, and not flushed since, the server may have lost: it was killed and had a cache, or its host lost power. A flush on the new
 *     connection would cover it only in name. So writes and zeros are kept here until a flush is done (NBD_KEEP_MAX bytes of them; then a flush of our
 *     own makes room), and they are sent again, in the order in which they were done, before anything else is. What is durable, or a discard, is kept as well
 *     when something older is: that would undo it.
 *   - A request of the old connection that the server still does *after* the new one is there could undo a later write. A server that died does
 *     nothing any more; ours closes a connection only when nothing of it is under way, and lets no other be opened by force. Only when the network
 *     hides from both ends that the connection is gone, and a request waits in the server's buffer for longer than the connection takes to be given up, the
 *     protocol has no means against it. For disks that are written use networks where that cannot be, or the server's own host.
 *
 * A server that is there and does not answer is waited for, for as long as that lasts; options.stop is for who can wait no longer.
 *
 * When the server that comes back has another size or cannot be written any more, it is another disk: every request fails with -ESTALE.
 */
#ifndef PAGURUS_BLOCK_NBD_H
#define PAGURUS_BLOCK_NBD_H

#include "storage/block.h"

/*
 * Waiting. With TLS and options.identity, this host shows its certificate and the server must show one of the trusted ones, whose name is the host of
 * the address. With options.dial connections come from there, with options.dial->first all of them, and their TLS is that one's business (nbd_relay.h). -EINVAL (not an address of ours), -ECONNREFUSED and the like, -EROFS (it is to be written, and the server does not let us), -EOPNOTSUPP
 * (to be written, but the server cannot flush: nothing could be promised), -EPROTO. Here nothing is tried again.
 */
int block_open_nbd(struct loop *l, const char *uri, const struct block_options *o,
		   struct block **out, struct pgr_error *err);

/*
 * The same over a socket that somebody has connected to the server, without TLS; the disk is the server's default one, `name` is for messages. The socket
 * becomes the block's, also on failure. When it is lost every request fails with -ESTALE: for what is done once, a mirror. Only here may silence be the end
 * (options.silence_ms): a server that is slow may do later what it was asked, which on a second connection would undo what came after it.
 */
int block_open_nbd_socket(struct loop *l, int socket, const char *name,
			  const struct block_options *o, struct block **out, struct pgr_error *err);

#endif
