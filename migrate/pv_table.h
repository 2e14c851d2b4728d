/* SPDX-License-Identifier: MIT */
/*
 * Page tables of a 64-bit PV guest: machine frame numbers out, pfns in, and back.
 *
 * A table is 512 entries of 8 bytes; an entry with bit 0 set names a frame in bits 12 to 51.
 * Nothing here knows a hypervisor: pure functions over a page, any thread.
 */
#ifndef PAGURUS_PV_TABLE_H
#define PAGURUS_PV_TABLE_H

#include <stdint.h>

#define PV_TABLE_ENTRIES 512u
#define PV_ENTRY_PRESENT 1ull
#define PV_ENTRY_WRITE	 2ull
#define PV_ENTRY_LARGE	 (1ull << 7) /* levels 2 and 3: PV guests have none */
#define PV_ENTRY_FRAME	 0x000ffffffffff000ull
#define PV_FRAME_NONE	 UINT64_MAX
#define PV_FRAME_KIND	 (UINT64_MAX - 1)

/*
 * The frame number to put in the place of that in an entry of a table of level 1 to 4.
 * PV_FRAME_NONE: there is none; PV_FRAME_KIND: there is, but this entry must not name it.
 */
typedef uint64_t pv_frame_fn(const void *ctx, uint64_t frame, unsigned level, uint64_t entry);

enum pv_table_fault {
	PV_TABLE_FRAME, /* a present entry names a frame that translate() does not know */
	PV_TABLE_KIND,	/* ... or one that it must not name */
	PV_TABLE_LARGE, /* a large page */
};

struct pv_table_error {
	enum pv_table_fault fault;
	unsigned slot;
	uint64_t entry;
};

/*
 * Copy the table `from` of that level (1 to 4) to `to` (may be the same page), every present
 * entry's frame replaced by translate() of it. The hypervisor's slots of a top table become zero.
 * from may change meanwhile: each entry is read once. 0, or -EINVAL with e (not NULL) for the first
 * entry that cannot be translated; `to` is then undefined.
 */
int pv_table_translate(uint64_t *to, const uint64_t *from, unsigned level, pv_frame_fn *translate,
		       const void *ctx, struct pv_table_error *e);

/* What is wrong with the entry, as the rest of a sentence that names it. */
const char *pv_table_fault_text(enum pv_table_fault f);

#endif
