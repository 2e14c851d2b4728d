/* SPDX-License-Identifier: MIT */
/* Grants, with one page of entries, and a window of addresses in which to map others'. */
#ifndef TESTS_GUESTS_LIB_GRANTS_H
#define TESTS_GUESTS_LIB_GRANTS_H

#include "tests/guests/lib/guest.h"

#include <xen/grant_table.h>

#define WINDOW	      0x38000000000ull
#define WINDOW_VA(n)  (WINDOW + (n)*4096ull)
#define WINDOW_PAGES  511u
#define FIRST	      8u /* entries below are the ABI's */
#define GRANT_ENTRIES (uint32_t)(4096 / sizeof(struct grant_entry_v1))
#define REVOKED	      0
#define GRANTED	      GTF_permit_access
#define READONLY      (GTF_permit_access | GTF_readonly)

extern struct grant_entry_v1 *grant_table;

long grant_op(unsigned command, void *op, unsigned count);
/* The entry by which a page of the window is mapped. */
uint64_t *window_entry(unsigned page);
/* Maps the table's first frame, and empties it. */
void grants_init(void);
void grant_to(domid_t who, uint32_t ref, uint64_t mfn, uint16_t flags);
/* GNTST_*; anything else that comes back ends the part (but on the second vCPU, where it must not). */
int grant_map(domid_t whose, uint32_t ref, unsigned page, uint32_t flags, uint32_t *handle);
int grant_unmap(uint32_t handle, uint64_t host_addr);

/* One side of a copy: an entry of that domain's, or a frame. */
struct copy_side {
	domid_t whose;
	bool is_ref;
	uint64_t what;
	unsigned offset;
};
int grant_copy(struct copy_side from, struct copy_side to, unsigned bytes);

#endif
