/* SPDX-License-Identifier: MIT */
/* The operations of domctl that make, fill and end other domains than the caller's. */
#pragma once

#include "vmm/hypercall/domctl.h"

/* Both under the domctl lock. op is written back when 0 is returned and *answers was set. */
long domctl_create(struct xen_domctl *op);
/* -ENOSYS: not one of these. -ERESTART as everywhere. */
long domctl_guest(struct domain *d, struct xen_domctl *op, bool *answers);
