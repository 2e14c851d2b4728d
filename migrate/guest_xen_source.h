/* SPDX-License-Identifier: MIT */
/*
 * What the files of the Xen source share: guest_xen_source.c owns it, guest_xen_describe.c and
 * guest_xen_state.c read it.
 */
#ifndef PAGURUS_GUEST_XEN_SOURCE_H
#define PAGURUS_GUEST_XEN_SOURCE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "migrate/guest.h"
#include "migrate/xen_calls.h"
#include "migrate/xen_frames.h"
#include "migrate/xen_speed.h"

struct xen_toolstack;

/* One reader: what it has mapped, and room to put page tables that were translated. */
struct xen_reader {
	uint64_t *info;	 /* shared with the hypervisor: PGR_BATCH_MAX words */
	uint8_t *tables; /* PGR_BATCH_MAX pages, allocated when the first page table comes */
	void *map;
	unsigned map_pages;
};

struct xen_source {
	struct guest_source source; /* first */
	struct xen_calls calls;
	struct xen_toolstack *tools;
	uint32_t domid;
	struct xen_speed speed;
	struct xen_frames frames;
	struct shared_info *shared_info; /* mapped read-only */
	uint64_t told_pfns;		 /* what describe() said; fixed from then on */
	bool suspended;
	bool asked; /* by suspend(): what stands still does so for us */
	bool begun; /* to suspend, but suspend() gave it up: it may stop yet */
	bool logging;
	uint64_t *log; /* shared with the hypervisor: the dirty bitmap, or a part of it */
	size_t log_bytes;
	bool log_whole; /* this hypervisor gives out its log as a whole only */
	/*
	 * Pages that could not be read while the guest ran: reported as written. Bit pfn % 64 of
	 * word pfn / 64.
	 */
	_Atomic uint64_t *again;
	struct xen_reader reader[GUEST_WORKERS_MAX];
};

/* Name, configuration and CPU policy; the frames must be loaded. */
int xen_source_describe(struct xen_source *s, struct guest_description *d, struct pgr_error *err);

/* The state records of the suspended guest. */
int xen_source_state(struct xen_source *s, guest_state_fn *emit, void *ctx, struct pgr_error *err);

#endif
