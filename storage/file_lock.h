/* SPDX-License-Identifier: MIT */
/*
 * Locks that keep two writers from one disk image, also between our processes and QEMU's tools.
 *
 * QEMU's convention: a shared lock on byte 100 + n of the file says "I do n", one on byte 200 + n "I do not want others to do n"; who opens an
 * image takes its own and then looks whether somebody else's contradict them. n: 0 read, 1 write, 3 change the size. The locks are those of the
 * open file (F_OFD_SETLK): they end with it, also when the process is killed.
 */
#ifndef PAGURUS_FILE_LOCK_H
#define PAGURUS_FILE_LOCK_H

#include <stdbool.h>

#include "common/error.h"

/* A writer wants nobody else, a reader no writer. path: for the message. 0, -EAGAIN (in use), or what fcntl says. May be called again to change. */
int file_lock(int fd, bool writer, const char *path, struct pgr_error *err);
/* Give it up. */
void file_unlock(int fd);

#endif
