/* SPDX-License-Identifier: MIT */
/*
 * The keeper of a guest's disks: follows xenstore, has a process for each disk, starts another when one dies, and ends when the guest does.
 */
#ifndef PAGURUS_BLK_KEEPER_H
#define PAGURUS_BLK_KEEPER_H

#include <stdint.h>

#define KEEPER_SOCKETS_MAX 4u

struct keeper_options {
	uint32_t domid;
	const char *sockets
		[KEEPER_SOCKETS_MAX]; /* where libxl and xentop want to be answered; NULL: none */
};

/* Until the end of the guest, or SIGHUP, SIGTERM or SIGINT; the exit status. Messages go to stderr. */
int keep_disks(const struct keeper_options *o);

#endif
