/* SPDX-License-Identifier: MIT */
/* What sysctl says about the processors. */
#pragma once

#include "vmm/hypercall/domctl.h"

#include <xen/sysctl.h>

/* Their part of the answer; 0 or negative: -EFAULT, -EINVAL, -ENOBUFS, -EOPNOTSUPP (hardware-assisted guests). */
void physinfo_cpus(struct xen_sysctl_physinfo *op);
long cpu_topology(struct xen_sysctl_cputopoinfo *op);
long cpu_featureset(struct xen_sysctl_cpu_featureset *op);
long cpu_policy(struct xen_sysctl_cpu_policy *op);
/* domctl's: a domain's own policy, and setting it: -EINVAL (it has what we do not give; err_leaf says where). */
long cpu_policy_get(const struct domain *d, struct xen_domctl_cpu_policy *op);
long cpu_policy_set(struct domain *d, struct xen_domctl_cpu_policy *op);
