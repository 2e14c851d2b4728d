/* SPDX-License-Identifier: MIT */
/*
 * Reading the log of written pages in parts: an extension of XEN_DOMCTL_shadow_op. The page that defines it is dirty_log.md; where this header
 * and the page differ, the page is right.
 */
#ifndef PAGURUS_DIRTY_LOG_H
#define PAGURUS_DIRTY_LOG_H

/* A bit of xen_domctl_shadow_op.mode of XEN_DOMCTL_SHADOW_OP_CLEAN. */
#define PGR_LOG_PART 0x80000000u
/* Pages of the guest, and so bits, of one part. */
#define PGR_LOG_PART_PFNS 32768u
/* In xen_domctl_shadow_op.mb: no part is left. */
#define PGR_LOG_PART_NONE 0xffffffffu

#endif
