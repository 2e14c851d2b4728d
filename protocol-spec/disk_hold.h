/* SPDX-License-Identifier: MIT */
/*
 * How whoever moves a guest tells the keeper of the guest's disks that another host is to have them: two nodes in Xenstore. The page that defines them is
 * disk_hold.md; where this header and the page differ, the page is right.
 */
#ifndef PAGURUS_DISK_HOLD_H
#define PAGURUS_DISK_HOLD_H

/* For printf(), with the domain's number. */
#define PGR_DISK_HOLD_FOLDER "/local/domain/0/device-model/%u"
#define PGR_DISK_HOLD_WISH   PGR_DISK_HOLD_FOLDER "/pagurus-hold"
#define PGR_DISK_HOLD_STATE  PGR_DISK_HOLD_FOLDER "/pagurus-disks"

/* Values of the state, the latter two with a wish and the last with a sentence behind it. */
#define PGR_DISK_USED	"used"
#define PGR_DISK_HELD	"held "
#define PGR_DISK_FAILED "failed "

/* Bytes of a wish and of a sentence, with the byte that ends them. */
#define PGR_DISK_HOLD_WISH_MAX	   40u
#define PGR_DISK_HOLD_SENTENCE_MAX 400u

/* The program that serves disks and keeps to this; what a guest's configuration says, word for word. */
#define PGR_DISK_PROGRAM "/usr/lib/pagurus/pagurus-blk"

#endif
