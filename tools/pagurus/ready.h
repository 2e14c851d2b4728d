/* SPDX-License-Identifier: MIT */
#ifndef PAGURUS_READY_H
#define PAGURUS_READY_H

/* Tell systemd, when it started this process, that it can be used now. Once; the processes that it starts later cannot. */
void ready_tell(void);

#endif
