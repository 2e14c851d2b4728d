/* SPDX-License-Identifier: MIT */
#ifndef PAGURUS_BLK_SERVE_H
#define PAGURUS_BLK_SERVE_H

#include <stdint.h>
#include <sys/types.h>

/*
 * A disk's process, from its start to its end: control.h on CONTROL_FD, the journal's file on JOURNAL_FD. Its exit status. When the other side of
 * the control socket has gone, it ends at once and leaves the journal to the next.
 */
int serve_disk(uint32_t domid, uid_t uid);

#endif
