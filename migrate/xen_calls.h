/* SPDX-License-Identifier: MIT */
/*
 * Hypercalls of the control domain, one function each: the only file that knows about buffers the
 * hypervisor can reach.
 *
 * Every function returns 0 or a negative errno (as the hypervisor gave it) without a text: the
 * caller knows what it was doing. All are thread-safe. "Shared" arrays must come from
 * xen_calls_alloc(); others are copied.
 */
#ifndef PAGURUS_XEN_CALLS_H
#define PAGURUS_XEN_CALLS_H

#include "migrate/xen_abi.h"

#include <stdbool.h>
#include <stddef.h>
#include <xencall.h>
#include <xenforeignmemory.h>

#include "common/error.h"
#include "migrate/cpu_features.h"

struct xen_calls {
	xencall_handle *call;
	xenforeignmemory_handle *foreign;
};

/*
 * Also checks the version: -ENOTSUP with a text when there is no hypervisor, no privilege or
 * another interface than 4.17's.
 */
int xen_calls_open(struct xen_calls *x, struct pgr_error *err);
void xen_calls_close(struct xen_calls *x);

/* Zeroed memory that hypercalls can take; NULL: none. */
void *xen_calls_alloc(struct xen_calls *x, size_t size);
void xen_calls_free(struct xen_calls *x, void *shared);

/* interface_version is filled in; u is copied in and back. Pointers in it must be shared. */
int xen_domctl(struct xen_calls *x, struct xen_domctl *op);
int xen_sysctl(struct xen_calls *x, struct xen_sysctl *op);

/* -ENOENT: no such domain. */
int xen_domain_info(struct xen_calls *x, uint32_t domid, struct xen_domctl_getdomaininfo *info);

/*
 * Frames (shared) to frames with XEN_DOMCTL_PFINFO_* in bits 28 to 31 of each word, frame number
 * gone. nr <= 1024.
 */
int xen_page_info(struct xen_calls *x, uint32_t domid, uint64_t *shared, unsigned nr);

/*
 * Pfns (shared) to the frames given to them. All or nothing: -ENOMEM after giving back what was
 * got.
 */
int xen_populate(struct xen_calls *x, uint32_t domid, xen_pfn_t *shared, unsigned nr);
/* Give the frames (shared) back. */
int xen_depopulate(struct xen_calls *x, uint32_t domid, xen_pfn_t *shared, unsigned nr);

/* Tell the hypervisor's machine-to-physical table that a frame of the domain has this pfn. */
int xen_set_pfn(struct xen_calls *x, uint32_t domid, uint64_t frame, uint64_t pfn);

/* *done (may be NULL): how many were, also on failure. */
int xen_mmuext(struct xen_calls *x, uint32_t domid, struct mmuext_op *shared, unsigned nr,
	       unsigned *done);

/* First frame number that no memory of this host has. */
int xen_max_frame(struct xen_calls *x, uint64_t *max);
/*
 * The frames that hold the machine-to-physical table, one for each 2 MiB of it; *nr in: room, out:
 * how many. 0: a hole.
 */
int xen_m2p_frames(struct xen_calls *x, xen_pfn_t *shared, unsigned *nr);

struct xen_cpu_policy {
	xen_cpuid_leaf_t *leaves; /* malloc'd */
	uint32_t nr_leaves;
	xen_msr_entry_t *msrs; /* malloc'd */
	uint32_t nr_msrs;
};
void xen_cpu_policy_free(struct xen_cpu_policy *p);
/* The same leaves, as the stream has them. Valid as long as p's. */
struct cpu_leaves xen_policy_leaves(const struct xen_cpu_policy *p);
/* What a domain was promised of the processor. */
int xen_domain_cpu_policy(struct xen_calls *x, uint32_t domid, struct xen_cpu_policy *p);
/* What this host can promise: XEN_SYSCTL_cpu_policy_*. */
int xen_host_cpu_policy(struct xen_calls *x, uint32_t index, struct xen_cpu_policy *p);
/*
 * Before the domain first runs. On -EINVAL bad (may be NULL) tells leaf, subleaf, MSR that were
 * refused.
 */
int xen_set_cpu_policy(struct xen_calls *x, uint32_t domid, const struct xen_cpu_policy *p,
		       uint32_t bad[3]);

/*
 * Map frames of a domain; errors[i] 0 or a negative errno for each. NULL when nothing could be
 * mapped: errno.
 */
void *xen_map(struct xen_calls *x, uint32_t domid, int prot, unsigned nr, const xen_pfn_t *frames,
	      int *errors);
/* One frame, or NULL with errno. */
void *xen_map_one(struct xen_calls *x, uint32_t domid, int prot, xen_pfn_t frame);
void xen_unmap(struct xen_calls *x, void *addr, unsigned nr);

#endif
