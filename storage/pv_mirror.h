/* SPDX-License-Identifier: MIT */
/*
 * A mirror under a disk that is served to a guest (pv_disk.h): put there while the guest uses the disk, and taken away again. For a disk that moves
 * to another host with its guest: the destination is a disk there, behind a socket.
 *
 *   none ──run()──▶ opening ──▶ under the guest ──▶ none
 *
 * It ends, and the disk is over its own storage alone again:
 *
 *   finished   the disk was let go of for good (pv_mirror_end(FINISH)): when both are equal, and the destination is flushed
 *   failed     the destination or the connection to it did, or nothing was answered there for silence_ms: the guest's writes, which wait for both,
 *              are done here then. The guest goes on, and has lost nothing but time
 *   cancelled  pv_mirror_end(CANCEL)
 *
 * The one that serves the disk tells of what happens to it: released() of its struct pv_disk_user goes through pv_mirror_released() first, and
 * pv_mirror_leave() comes before a pv_disk_release() that is for good. Between the two nothing puts the disk back to work.
 *
 * One loop; run() in a fiber.
 */
#ifndef PAGURUS_PV_MIRROR_H
#define PAGURUS_PV_MIRROR_H

#include "storage/fiber.h"
#include "storage/mirror.h"
#include "storage/pv_disk.h"

enum pv_mirror_end { PV_MIRROR_GO_ON, PV_MIRROR_FINISH, PV_MIRROR_CANCEL };

struct pv_mirror {
	struct loop *loop;
	struct pv_disk *disk;
	struct block *source; /* what the disk is served from; these four are the owner's to set */
	unsigned silence_ms;  /* the other side may answer nothing for so long; 0: 20000 */
	bool running;	      /* there is a run() */
	enum pv_mirror_end end;
	bool holding, leaving;
	struct wait held;
	struct wait_queue changed; /* for `end` */
};

/*
 * Mirror the disk to the default disk of the NBD server that is connected to the socket, until one of the ends above. 0: finished. Others with a sentence: the
 * destination is of no use; -EBUSY (there is one already), -ECANCELED, -EINVAL (too small), and what it failed of. The destination is new and holds zeros.
 * The socket becomes ours, also on failure. progress: a few times a second.
 */
int pv_mirror_run(struct pv_mirror *m, int socket,
		  void (*progress)(void *ctx, const struct mirror_status *s), void *ctx,
		  struct pgr_error *err);

/* The disk was released. True: for the mirror, which goes on by itself. */
bool pv_mirror_released(struct pv_mirror *m);
/* The disk is about to be released for good. */
void pv_mirror_leave(struct pv_mirror *m);
/* FINISH: after released(). CANCEL: at any time. run() ends soon after, with a silent other side when that is given up; without one nothing happens. */
void pv_mirror_end(struct pv_mirror *m, enum pv_mirror_end how);

#endif
