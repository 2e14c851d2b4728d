/* SPDX-License-Identifier: MIT */
/* Somebody who has come to a Ceph cluster, a pool and an image in it. Every function blocks: offload.h. */
#ifndef PAGURUS_RBD_SESSION_H
#define PAGURUS_RBD_SESSION_H

#include "storage/rbd_library.h"
#include "storage/rbd_name.h"

struct rbd_session {
	const struct rbd_library *lib;
	struct rbd_name name;
	rados_t cluster;
	rados_ioctx_t pool;
	rbd_image_t image;
};

/*
 * To the pool of s->name. rbd_session_end() follows also on failure. -ENOPKG (rbd_library.h), -ENOENT (no such configuration or pool),
 * -ETIMEDOUT (nobody there, after a minute or what the configuration says), -EACCES and others of Ceph's, with a sentence.
 */
int rbd_session_begin(struct rbd_session *s, struct pgr_error *err);
/* The image, or its snapshot, which is read only. -ENOENT and others, with a sentence. */
int rbd_session_open(struct rbd_session *s, bool read_only, struct pgr_error *err);
/*
 * The image's exclusive lock, for as long as it is open. It ends with us: whoever wants it then finds that nobody has it any more. An image without that
 * feature is not locked. -EAGAIN with a sentence: somebody else has it, and does not give it up.
 */
int rbd_session_lock(struct rbd_session *s, struct pgr_error *err);
/* What closing the image said. */
int rbd_session_end(struct rbd_session *s);

#endif
