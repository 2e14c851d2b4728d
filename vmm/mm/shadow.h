/* SPDX-License-Identifier: MIT */
/*
 * Log-dirty shadow paging: which of a domain's frames are written to, while somebody wants to know. How it works is in shadow.c.
 *
 * A domain without it has d->shadow NULL, and its vCPUs' roots are their tables.
 */
#ifndef VMM_MM_SHADOW_H
#define VMM_MM_SHADOW_H

#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"

/* Bits of a page of the log, and how many there may be: 1 TiB of guest. */
#define LOG_PFNS      (PAGE_SIZE * 8)
#define LOG_PFNS_MOST (1ull << 28)

/* Pages for shadow tables that a domain needs at least, and that it gets when nobody says otherwise. */
uint64_t shadow_pages_least(const struct domain *d);
uint64_t shadow_pages_default(const struct domain *d);

/*
 * Switch it on, with that many pages for shadow tables and a log of the frames numbered below pfns (LOG_PFNS_MOST at most); log: false, for tests, logs nothing. The domain is paused.
 * 0, -ENOMEM, -ERESTART.
 */
int shadow_enable(struct domain *d, bool log, uint64_t pages, uint64_t pfns);
/* Off: all its memory is given back. The domain is paused. */
void shadow_disable(struct domain *d);
/* Other than at first. 0, -ENOMEM: as many as there are. */
int shadow_resize(struct domain *d, uint64_t pages);
/* Pages that it has, for whatever. */
uint64_t shadow_pages(const struct domain *d);

/* ---- the log: one caller at a time ---- */

/* What was written since shadow_enable or the last of these will be in shadow_log_old(); from here on the other log is written. Nothing, when that is so. */
void shadow_log_begin(struct domain *d);
/*
 * Every frame's next write will be seen again. 0, or -ERESTART: call again. Then the old log is complete: it has everything that was written before
 * this returned 0 and is not in the new one.
 */
int shadow_log_protect(struct domain *d);
/* The n-th page of a log, LOG_PFNS bits; NULL: beyond its end, or no reading has begun. */
const uint64_t *shadow_log_old(const struct domain *d, uint64_t n);
const uint64_t *shadow_log_now(const struct domain *d, uint64_t n);
/* The old log has been read from its n-th page on, or (back) could not be and is part of the new one. */
void shadow_log_end(struct domain *d, uint64_t n, bool back);
/* The old log's n-th page alone has been read. The next page to read: not empty, or many further on; LOG_NONE: that was the last one, and the end. */
#define LOG_NONE ~0u
uint32_t shadow_log_next(struct domain *d, uint64_t n);
/* Faults that shadow tables caused since the last time with old, and bits in the log: that, or the one that is written now. */
void shadow_log_counts(struct domain *d, bool old, uint32_t *faults, uint32_t *dirty);

/* The frame was written to otherwise than through its owner's tables, or is a new one, or has another number. */
void shadow_mark_frame(struct domain *d, mfn_t m);
static inline void shadow_mark(struct domain *d, mfn_t m)
{
	if (unlikely(READ_ONCE(d->shadow) != NULL))
		shadow_mark_frame(d, m);
}

/* ---- the processor's side ---- */

enum shadow_fault {
	SHADOW_DONE,  /* again, it will succeed */
	SHADOW_GUEST, /* by the guest's own tables */
	SHADOW_LATER, /* not with interrupts off */
};

/* A fault of the current vCPU, by itself or the hypervisor for it, outside of the hypervisor's part. *code becomes what the guest's tables would give. */
enum shadow_fault shadow_fault(struct vcpu *v, uint64_t va, uint32_t *code, bool may_wait);

/* The vCPU has other tables: what the processor shall load. The page lock is held. */
void shadow_roots(struct vcpu *v);
static inline void vcpu_tables_changed(struct vcpu *v)
{
	if (unlikely(v->domain->shadow != NULL)) {
		shadow_roots(v);
	} else {
		v->root_kernel = v->table_kernel;
		v->root_user = v->table_user;
	}
}

/* entry.S knows nothing of shadows, so that it shall not take page faults to a guest that has them. */
static inline void vcpu_traps_changed(struct vcpu *v)
{
	v->page_fault_entry = v->domain->shadow ? 0 : v->trap[TRAP_PAGE_FAULT].address;
}

/* ---- for page_type.c; the page lock of the frame's owner is held ---- */

/* An entry of a table in use changes, in between. */
void shadow_entry_begin(struct frame *f);
void shadow_entry_end(struct frame *f, unsigned level, unsigned index);
/* The frame ceases to be a table. */
void shadow_table_ends(struct frame *f);

#endif
