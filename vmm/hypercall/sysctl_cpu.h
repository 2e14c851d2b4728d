/* SPDX-License-Identifier: MIT */
/* What sysctl says about the processors. */
#ifndef VMM_HYPERCALL_SYSCTL_CPU_H
#define VMM_HYPERCALL_SYSCTL_CPU_H

#include "vmm/hypercall/domctl.h"

#include <xen/sysctl.h>

/* Their part of the answer; 0 or negative: -EFAULT, -EINVAL, -ENOBUFS, -EOPNOTSUPP (hardware-assisted guests). */
void physinfo_cpus(struct xen_sysctl_physinfo *op);
long cpu_topology(struct xen_sysctl_cputopoinfo *op);
long cpu_featureset(struct xen_sysctl_cpu_featureset *op);
long cpu_policy(struct xen_sysctl_cpu_policy *op);

#endif
