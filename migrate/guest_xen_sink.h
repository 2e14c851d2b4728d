/* SPDX-License-Identifier: MIT */
/*
 * What the files of the Xen sink share: guest_xen_sink.c owns it (life of the domain, its memory),
 * guest_xen_precheck.c refuses, guest_xen_shared_pages.c makes the pages shared with Xenstore and
 * the console, guest_xen_state_in.c takes the state records, guest_xen_finish.c puts the guest
 * together.
 */
#ifndef PAGURUS_GUEST_XEN_SINK_H
#define PAGURUS_GUEST_XEN_SINK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "migrate/guest.h"
#include "migrate/xen_calls.h"
#include "migrate/xen_connected.h"
#include "migrate/xen_restore.h"
#include "migrate/xen_toolstack.h"

struct xen_vcpu_in {
	struct vcpu_guest_context context;
	bool has_extended;
	struct xen_domctl_ext_vcpucontext extended;
	uint64_t *xsave; /* malloc'd */
	uint64_t xsave_bytes;
	struct pgr_msr *msrs; /* malloc'd */
	uint32_t nr_msrs;
};

/* The state records, checked for what can be known without the memory. */
struct xen_state_in {
	bool has_info, has_tsc, has_shared_info;
	uint64_t start_info_pfn;
	uint64_t *table_pfns; /* [nr_table] */
	uint64_t nr_table, table_filled;
	struct pgr_tsc_info tsc;
	struct xen_vcpu_in *vcpu[PGR_VCPUS_MAX];
	uint8_t shared_info[XEN_PAGE_SIZE];
};

enum xen_sink_stage { SINK_EMPTY, SINK_CREATED, SINK_FINISHED, SINK_STARTED };

struct xen_sink {
	struct guest_sink sink; /* first */
	struct xen_calls calls;
	struct xen_toolstack *tools;
	char rename[256]; /* "": none */
	bool paused;

	enum xen_sink_stage stage;
	char name[256];		 /* final */
	char incoming[256 + 16]; /* until start() */
	libxl_domain_config config;
	bool has_config;
	struct xen_restore *restore;
	struct xen_made made;
	uint64_t store_frame, console_frame;
	uint32_t vcpus;

	uint64_t nr_pfns;
	/* Reserved, resident where memory is. Written under the lock; 0: no memory. */
	_Atomic uint64_t *frame_plus_1;
	uint8_t *type; /* enum pgr_page_type; each written by the worker that has the pfn */
	pthread_mutex_t lock;
	xen_pfn_t *populate; /* shared with the hypervisor; under the lock */
	_Atomic uint64_t populated;

	struct xen_state_in in;

	struct xen_connected
		*connected; /* since libxl made the devices; NULL: it could not be, and why_not */
	struct pgr_error why_not;
};

/* The name it will have here: the option's, else the description's. */
const char *xen_sink_name(const struct xen_sink *s, const struct guest_description *d);
#define XEN_NAME_MAX 255u
/* What is wrong with a name for a guest here, as the rest of a sentence; NULL: nothing. */
const char *xen_sink_name_fault(const char *name);
/*
 * The configuration out of a description. -EPROTO: not one of libxl's for a PV guest. Dispose of it
 * also on failure.
 */
int xen_sink_parse(struct xen_sink *s, const struct guest_description *d,
		   libxl_domain_config *config, struct pgr_error *err);

int xen_sink_precheck(struct xen_sink *s, const struct guest_description *d,
		      struct guest_refusals *r, struct pgr_error *err);
/* Give the new domain the processor that the description promises. */
int xen_sink_cpu(struct xen_sink *s, const struct guest_description *d, struct pgr_error *err);

int xen_sink_state(struct xen_sink *s, uint32_t type, const void *body, size_t length,
		   struct pgr_error *err);
void xen_state_free(struct xen_state_in *in);

/*
 * Frames for Xenstore and the console, granted to them, without places in the guest yet. Before
 * libxl introduces the domain.
 */
int xen_shared_pages_make(struct xen_sink *s, struct pgr_error *err);
/*
 * Give them the places that start_info names. After all memory is in, before any table is
 * localised.
 */
int xen_shared_pages_place(struct xen_sink *s, struct pgr_error *err);

/* Everything in the domain but libxl's part. */
int xen_sink_assemble(struct xen_sink *s, struct pgr_error *err);

/*
 * The frame of a page that has to be ordinary memory (level 0) or a table of a level; `what` it is,
 * for the message. -EPROTO.
 */
int xen_sink_page(const struct xen_sink *s, uint64_t pfn, unsigned level, const char *what,
		  uint64_t *frame, struct pgr_error *err);

/* The frame of a pfn, or PV_FRAME_NONE. */
uint64_t xen_sink_frame(const struct xen_sink *s, uint64_t pfn);

#endif
