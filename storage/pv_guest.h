/* SPDX-License-Identifier: MIT */
/*
 * What a disk's server needs of the hypervisor: the guest's memory, by grants, and event channels. The real one is pv_xen.c; tests have their own,
 * with memory of theirs. One thread.
 */
#ifndef PAGURUS_PV_GUEST_H
#define PAGURUS_PV_GUEST_H

#include <stdbool.h>
#include <stdint.h>

#define PV_PORT_NONE UINT32_MAX

/* Bytes within one page of the guest's, to or from memory of ours. */
struct pv_copy {
	uint32_t ref;
	uint16_t offset, length;
	void *data;
};

struct pv_guest_ops {
	/* Pages behind each other, readable and writable, until unmap() of the same; NULL: one of them cannot be mapped. */
	void *(*map)(void *ctx, const uint32_t *refs, unsigned nr);
	void (*unmap)(void *ctx, void *pages, unsigned nr);
	/* All of them, or a negative errno, and any of them may have been done. The guest sees to_guest at once. */
	int (*copy)(void *ctx, bool to_guest, const struct pv_copy *copies, unsigned nr);
	/* Bind to the guest's port; our own port, or PV_PORT_NONE. */
	uint32_t (*bind)(void *ctx, uint32_t remote);
	void (*unbind)(void *ctx, uint32_t port);
	void (*notify)(void *ctx, uint32_t port);
};

#endif
