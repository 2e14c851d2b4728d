// SPDX-License-Identifier: MIT
#include "migrate/pv_table.h"

#include <errno.h>
#include <stdbool.h>

/* HYPERVISOR_VIRT_START .. HYPERVISOR_VIRT_END of Xen's x86-64 ABI. */
#define FIRST_RESERVED 256u
#define LAST_RESERVED  271u

static int fault(struct pv_table_error *e, enum pv_table_fault f, unsigned slot, uint64_t entry)
{
	*e = (struct pv_table_error){.fault = f, .slot = slot, .entry = entry};
	return -EINVAL;
}

static bool reserved(unsigned level, unsigned slot)
{
	return level == 4 && slot >= FIRST_RESERVED && slot <= LAST_RESERVED;
}

int pv_table_translate(uint64_t *to, const uint64_t *from, unsigned level, pv_frame_fn *translate,
		       const void *ctx, struct pv_table_error *e)
{
	uint64_t entry, frame;
	unsigned i;

	for (i = 0; i < PV_TABLE_ENTRIES; i++) {
		entry = *(const volatile uint64_t *)&from[i];
		if (reserved(level, i)) {
			to[i] = 0;
			continue;
		}
		if (entry & PV_ENTRY_PRESENT) {
			if (level > 1 && (entry & PV_ENTRY_LARGE))
				return fault(e, PV_TABLE_LARGE, i, entry);
			frame = translate(ctx, (entry & PV_ENTRY_FRAME) >> 12, level, entry);
			if (frame == PV_FRAME_KIND)
				return fault(e, PV_TABLE_KIND, i, entry);
			if (frame == PV_FRAME_NONE || frame > PV_ENTRY_FRAME >> 12)
				return fault(e, PV_TABLE_FRAME, i, entry);
			entry = (entry & ~PV_ENTRY_FRAME) | frame << 12;
		}
		to[i] = entry;
	}
	return 0;
}

const char *pv_table_fault_text(enum pv_table_fault f)
{
	switch (f) {
	case PV_TABLE_FRAME:
		return "names a frame that is not the guest's";
	case PV_TABLE_KIND:
		return "names a page of the wrong kind (page tables are never writable, and entries of a table name tables of the level below)";
	case PV_TABLE_LARGE:
		return "is a large page, which paravirtual guests do not have";
	}
	return "cannot be translated";
}
