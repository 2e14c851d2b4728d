/* SPDX-License-Identifier: MIT */
/* The disks that pagurus-blk serves to a guest, while the guest moves: protocol-spec/disk_hold.md. */
#ifndef PAGURUS_XEN_DISKS_H
#define PAGURUS_XEN_DISKS_H

#include <libxl.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"

/* Whether all disks of the configuration are served by pagurus-blk; true also without any. */
bool xen_disks_are_ours(const libxl_domain_config *config);

/* Before the keeper of a domain that is being made is started: its disks are not to be used yet. */
int xen_disks_hold(uint32_t domid, struct pgr_error *err);

/*
 * Have the disks of a guest that stands still flushed and closed. 0 also when pagurus-blk has none of them. -ETIMEDOUT, -EIO (something could not be
 * flushed): xen_disks_use() has to follow, as it may in any case.
 */
int xen_disks_let_go(uint32_t domid, unsigned timeout_ms, struct pgr_error *err);

/* They may be used (again). */
void xen_disks_use(uint32_t domid);

/* The domain, which was being made, is gone. */
void xen_disks_forget(uint32_t domid);

#endif
