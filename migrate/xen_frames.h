/* SPDX-License-Identifier: MIT */
/*
 * Which machine frame each pfn of a running or suspended guest has, and which pfn each frame: read
 * from tables that the guest and the hypervisor keep.
 *
 * The hypervisor's table (machine to physical) is trusted to exist for every frame of this host;
 * what it says about a frame of the guest was written by the guest. The guest's own table (physical
 * to machine) is the guest's alone. A pair is believed only when both tables agree on it, and it
 * gives nobody anything: mapping the frame fails unless the guest owns it.
 *
 * Two pages of the guest decide how much memory is used here: its max_pfn, which is bounded by
 * PGR_PFNS_MAX, and pages of its table that name frames. The table kept here is reserved, and
 * filled only where the guest's has frames.
 *
 * Threads: load by one; look-ups by any number between loads.
 */
#ifndef PAGURUS_XEN_FRAMES_H
#define PAGURUS_XEN_FRAMES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "common/error.h"
#include "migrate/xen_calls.h"

struct xen_frames {
	struct xen_calls *calls;
	uint32_t domid;

	/* machine to physical */
	uint64_t *m2p;
	uint64_t m2p_entries; /* frames below this have an entry, unless their chunk is a hole */
	uint64_t m2p_pages;   /* mapped */
	uint64_t *m2p_chunk;  /* bitmap: chunk (2 MiB of table) is there */

	/* physical to machine */
	uint64_t nr_pfns;
	uint64_t *frame_plus_1; /* [nr_pfns], 0: no memory; reserved, not resident */
	uint64_t populated;
	uint64_t *table_pfns; /* the guest's own pages of the table, [nr_table] */
	uint64_t nr_table;
};

/* Map the machine-to-physical table. f is zeroed first; xen_frames_close() after success only. */
int xen_frames_open(struct xen_frames *f, struct xen_calls *calls, uint32_t domid,
		    struct pgr_error *err);
void xen_frames_close(struct xen_frames *f);

/*
 * Read the guest's table anew. changed (may be NULL): bitmap of nr_pfns bits as they were before;
 * each pfn that has another frame since, or none, is set in it when the size is still the same.
 * shared_info: the guest's page, mapped. -EINVAL: what the guest says is nonsense (text); -EAGAIN:
 * the guest is changing it right now; -ENOTSUP: it keeps none; -ENOMEM.
 */
int xen_frames_load(struct xen_frames *f, const struct shared_info *shared_info,
		    _Atomic uint64_t *changed, struct pgr_error *err);

/* The frame of a pfn, or PV_FRAME_NONE. */
static inline uint64_t xen_frame_of(const struct xen_frames *f, uint64_t pfn)
{
	return f->frame_plus_1 && pfn < f->nr_pfns ? f->frame_plus_1[pfn] - 1 : UINT64_MAX;
}

/* The pfn of a frame of this guest, or PV_FRAME_NONE. */
uint64_t xen_pfn_of(const struct xen_frames *f, uint64_t frame);

#endif
