/* SPDX-License-Identifier: MIT */
/* What `pagurus disk mirror` and `disk serve --mirror` share: the disk that is mirrored to. */
#ifndef PAGURUS_DISK_MIRROR_H
#define PAGURUS_DISK_MIRROR_H

#include "storage/mirror.h"

/*
 * Put a mirror over *disk, in whose place it is on success. target: the address of a disk on an NBD server, or a raw file or device; a file that is not
 * there is made. overwrite: what is there may go, or -EEXIST. A file that was made is removed when it cannot be used. identity: for TLS, as in
 * block_options. Waiting.
 */
int disk_mirror_over(struct loop *l, struct block **disk, const char *target, bool overwrite,
		     const char *identity, uint64_t rate, struct pgr_error *err);

#endif
