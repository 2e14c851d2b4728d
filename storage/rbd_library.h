/* SPDX-License-Identifier: MIT */
/*
 * librbd and librados, Ceph's own libraries, loaded when the first disk on Ceph is opened: hosts without one need not have them. What is here is called by
 * the names that <rbd/librbd.h> gives it.
 */
#ifndef PAGURUS_RBD_LIBRARY_H
#define PAGURUS_RBD_LIBRARY_H

#include <rados/librados.h>
#include <rbd/librbd.h>

#include "common/error.h"

/* clang-format off */
#define RADOS_FUNCTIONS(X) \
	X(rados_create) X(rados_conf_read_file) X(rados_conf_set) X(rados_connect) X(rados_shutdown) X(rados_ioctx_create) X(rados_ioctx_destroy)
#define RBD_FUNCTIONS(X) \
	X(rbd_create4) X(rbd_image_options_create) X(rbd_image_options_destroy) X(rbd_open) X(rbd_open_read_only) X(rbd_close) X(rbd_stat) \
	X(rbd_get_features) X(rbd_resize) X(rbd_lock_acquire) X(rbd_diff_iterate2) \
	X(rbd_snap_create) X(rbd_snap_remove) X(rbd_snap_list) X(rbd_snap_list_end) X(rbd_snap_get_timestamp) X(rbd_snap_rollback_with_progress) \
	X(rbd_aio_create_completion) X(rbd_aio_get_return_value) X(rbd_aio_release) X(rbd_aio_readv) X(rbd_aio_writev) X(rbd_aio_discard) \
	X(rbd_aio_write_zeroes) X(rbd_aio_flush)
/* clang-format on */

struct rbd_library {
#define X(name) __typeof__ (&(name))(name);
	RADOS_FUNCTIONS(X)
	RBD_FUNCTIONS(X)
#undef X
};

/* NULL with -ENOPKG and a sentence that says what to install. Any thread; blocks. It stays loaded. */
const struct rbd_library *rbd_library_get(struct pgr_error *err);
/* For tests: these in place of the real ones; NULL: the real ones again. */
void rbd_library_set(const struct rbd_library *functions);

#endif
