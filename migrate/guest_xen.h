/* SPDX-License-Identifier: MIT */
/*
 * PV guests of a hypervisor that speaks Xen's control ABI (Xen 4.17, Pagurus), as sources and sinks
 * of guest.h.
 *
 * A source reads the frames of a domain through foreign mappings and its state through control
 * hypercalls. A sink lets libxl make the domain and its devices as for any restore, with this
 * program in the place of libxl's save helper, and fills the new domain's frames itself. Both need
 * root in the control domain.
 *
 * Signals: libxl forks (the save helper, hotplug scripts) and takes SIGCHLD for itself while a source
 * or sink is open; it reaps only its own children. The program must not handle SIGCHLD meanwhile,
 * must reap its own by pid, and must ignore SIGPIPE.
 *
 * Threads: as guest.h says. Sources and sinks of different guests are independent.
 */
#ifndef PAGURUS_GUEST_XEN_H
#define PAGURUS_GUEST_XEN_H

#include <stdbool.h>

#include "common/error.h"
#include "migrate/guest.h"

/* Behind the name of a domain as long as it is being put together. */
#define GUEST_XEN_INCOMING "--incoming"

/*
 * The domain with that name, or with that number when the name is all digits. -ENOENT: none;
 * -ENOTSUP: no hypervisor here, not its control domain, an interface that this program was not made
 * for, or not a 64-bit PV guest; -EPERM: domain 0; -ENOMEM.
 */
int guest_xen_source_open(const char *name, struct guest_source **out, struct pgr_error *err);

/* A domain that somebody else has suspended is neither taken by suspend() (-EBUSY) nor resumed. Its number, for messages and tests. */
unsigned guest_xen_source_domid(const struct guest_source *g);

/* What a mover that was killed left on: the log of the guest's writes, and a cap on its speed. By whoever alone is at work on the guest. */
void guest_xen_put_aids_away(unsigned domid);

struct guest_xen_sink_options {
	const char *rename; /* the guest's name here; NULL: as in its description. Copied */
	bool paused;	    /* start() names it but leaves it paused: `xl unpause` lets it run */
};
/* o may be NULL. -ENOTSUP: no hypervisor here, not 4.17; -ENOMEM. */
int guest_xen_sink_open(const struct guest_xen_sink_options *o, struct guest_sink **out,
			struct pgr_error *err);

/* The domain after create(), 0 before. */
unsigned guest_xen_sink_domid(const struct guest_sink *s);

/*
 * libxl starts this very program again (/proc/self/exe) as its save helper. main() has to look for
 * that before anything else:
 *
 *	if (guest_xen_is_save_helper(argc, argv))
 *		return guest_xen_save_helper(argc, argv);
 */
bool guest_xen_is_save_helper(int argc, char **argv);
int guest_xen_save_helper(int argc, char **argv);

#endif
