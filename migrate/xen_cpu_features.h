/* SPDX-License-Identifier: MIT */
/*
 * Features of a processor as CPUID tells them: which of those that a guest was promised does a host
 * lack?
 *
 * Pure functions.
 */
#ifndef PAGURUS_XEN_CPU_FEATURES_H
#define PAGURUS_XEN_CPU_FEATURES_H

#include <stdbool.h>
#include <stddef.h>

#include "migrate/xen_calls.h"

/*
 * True when host lacks something; text then has names ("avx2, leaf 7 edx bit 3, and 4 more"). Bits
 * that count or number are left out.
 */
bool xen_cpu_lacking(const struct xen_cpu_policy *guest, const struct xen_cpu_policy *host,
		     char *text, size_t size);

#endif
