/* SPDX-License-Identifier: MIT */
/*
 * verify_churn - memory that is mapped, protected, moved, shared with a child and unmapped again.
 *
 * Keeps the kernel changing its page tables (and, when the guest is paravirtual, the hypervisor checking
 * and pinning them) while the content of every page stays known.
 */
#ifndef WORKLOAD_VERIFY_CHURN_H
#define WORKLOAD_VERIFY_CHURN_H

#include <stdint.h>

#include "verify_fail.h"

/* Numbers of churned pages start here: no page of a struct page_set has one of them. */
#define CHURN_FIRST_PAGE (1ULL << 48)

/*
 * One turn over @count pages (2 or more): fresh pages are zero; written pages keep their content while
 * made read-only, moved, and seen by a forked child that writes its own copy while the parent writes;
 * when the middle is replaced by fresh pages those are zero and the rest is intact. @seed must differ
 * from turn to turn. Any thread, also several at once; leaves nothing mapped.
 *
 * Returns 0 with *@finding filled in (kind FINDING_NONE: all is well), or a negative errno of mmap,
 * mprotect, mremap, munmap, fork or waitpid; -EPROTO when the child died without saying why.
 */
int churn_turn(uint64_t seed, uint64_t count, struct finding *finding);

#endif
