/* SPDX-License-Identifier: MIT */
/* What domctl and sysctl share. */
#pragma once

#include "vmm/domain/domain.h"

/* It includes a header that asks for GNU's language, though nothing in it needs more than C11. */
#pragma push_macro("__STRICT_ANSI__")
#undef __STRICT_ANSI__
#include <xen/domctl.h>
#pragma pop_macro("__STRICT_ANSI__")

void domain_info(struct domain *d, struct xen_domctl_getdomaininfo *out);
/* Up to 64 bits from and to a guest's bitmap; the rest of a longer one is ignored, or becomes 0. 0 or -EFAULT. */
int bitmap_from_guest(const struct xenctl_bitmap *b, uint64_t *bits);
int bitmap_to_guest(const struct xenctl_bitmap *b, uint64_t bits);

static inline uint64_t all_cpus(void)
{
	return nr_cpus >= 64 ? ~0ull : (1ull << nr_cpus) - 1;
}
