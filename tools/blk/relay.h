/* SPDX-License-Identifier: MIT */
/*
 * The process between a guest's disk and its NBD server that does TLS: it has this host's key, and nothing of the guest's. The disk's process has it the other way round.
 *
 * It begins with two descriptors (control.h): CONTROL_FD to the keeper, which gets one CONTROL_DIALLED, and RELAY_FD to the disk's process, to which it then is a
 * server without TLS. As root it only reads the key; as `uid`, which has no right but to reach every Unix socket, it connects; and before a byte of the server's is
 * looked at it has no right, and no system calls but to read and write what is open.
 */
#ifndef PAGURUS_BLK_RELAY_H
#define PAGURUS_BLK_RELAY_H

#include <sys/types.h>

/* Until either side has ended; the exit status. */
int relay_disk(uid_t uid, const char *uri);

#endif
