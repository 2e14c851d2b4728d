/* SPDX-License-Identifier: MIT */
/*
 * Grants: a domain lets another one use a frame of its own, by an entry in a table that both the domain and we can write. Version 1 of the
 * interface; version 2 is refused, and kernels then do without (docs/decisions/008).
 *
 * What makes it safe:
 *
 *  - A pin is one use of a grant. It holds a reference to the frame, and TYPE_WRITABLE when it may write, so the frame stays the
 *    granter's and is no page table while it is pinned, whatever the granter writes into its table. The frame's number is read once, when the first pin
 *    is made; pins that follow use that one. `reading` and `writing` in the shared entry are set before the first such pin and cleared after the last.
 *  - A mapping has a handle and one pin. The page-table entry that it makes holds its references as any other entry (pt_update with the
 *    granter as subject), so overwriting it is as safe as overwriting any entry; the pin then stays until the handle is given back.
 *  - A handle is given back in this order: the entry goes, all CPUs that may know it flush, the pin goes. What the granter sees in its
 *    table, that nobody uses the frame, is therefore true.
 *
 * Locks: grants->lock of the granter for its entries, of the mapper for its handles; never two at once, and none while a frame may be freed or a page lock is
 * taken. A granter that has pins has frames, and a domain that has frames is not freed.
 */
#include "vmm/hypercall/grant_table.h"

#include <stddef.h>

#include <xen/grant_table.h>

#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/walk.h"

#define FRAMES_MAX	   128u	 /* what a limit may be at most */
#define MAPTRACK_MAX	   4096u /* frames */
#define ENTRIES_PER_FRAME  (uint32_t)(PAGE_SIZE / sizeof(struct grant_entry_v1))
#define MAPPINGS_PER_FRAME (uint32_t)(PAGE_SIZE / sizeof(struct mapping))
#define BATCH		   32u /* handles between two flushes */
#define NO_HANDLE	   UINT32_MAX
#define KNOWN_FLAGS                                                                       \
	(GNTMAP_device_map | GNTMAP_host_map | GNTMAP_readonly | GNTMAP_application_map | \
	 GNTMAP_contains_pte)
/* Of an entry: what we set ourselves, and what it must not have. */
#define IN_USE	   (GTF_reading | GTF_writing)
#define UNEXPECTED (GTF_type_mask | GTF_PWT | GTF_PCD | GTF_PAT | GTF_sub_page)

/* One of the domain's own entries, in use. */
struct active {
	mfn_t mfn;
	domid_t who;
	uint32_t readers, writers;
};

enum mapping_state { MAPPING_FREE, MAPPING_USED, MAPPING_GOING };

/* A handle: a grant of another's that this domain has mapped. */
struct mapping {
	struct domain *granter;
	uint32_t ref; /* free: the next free handle */
	uint16_t flags;
	uint8_t state;
};

struct grant_state {
	spinlock_t lock;
	bool unshared; /* the frames are not ours to write any more */
	uint32_t nr_frames, max_frames;
	struct grant_entry_v1 *frame[FRAMES_MAX];
	struct active *active[FRAMES_MAX]; /* ACTIVE_ORDER pages for each frame */
	uint32_t nr_maptrack, max_maptrack, free_handle;
	uint32_t released;	   /* handles of a domain that ends */
	struct mapping **maptrack; /* max_maptrack pages at most */
};

#define ACTIVE_BYTES (ENTRIES_PER_FRAME * sizeof(struct active))

static struct active *active_of(const struct grant_state *g, uint32_t ref)
{
	return &g->active[ref / ENTRIES_PER_FRAME][ref % ENTRIES_PER_FRAME];
}

static struct grant_entry_v1 *entry_of(const struct grant_state *g, uint32_t ref)
{
	return &g->frame[ref / ENTRIES_PER_FRAME][ref % ENTRIES_PER_FRAME];
}

static struct mapping *mapping_of(const struct grant_state *g, uint32_t handle)
{
	return &g->maptrack[handle / MAPPINGS_PER_FRAME][handle % MAPPINGS_PER_FRAME];
}

/* ---- the table's life ---- */

/* Frames are added and never taken away while the domain lives. The domain's grants lock is held or nobody else knows it. */
static int grow_table(struct domain *d, uint32_t nr)
{
	struct grant_state *g = d->grants;

	while (g->nr_frames < nr) {
		struct grant_entry_v1 *frame = heap_alloc_pages(0);
		struct active *active = heap_zalloc(ACTIVE_BYTES);

		if (!frame || !active) {
			heap_free_pages(frame, 0);
			heap_zfree(active, ACTIVE_BYTES);
			return -ENOMEM;
		}
		domain_share(d, ptr_to_mfn(frame));
		g->frame[g->nr_frames] = frame;
		g->active[g->nr_frames] = active;
		g->nr_frames++;
	}
	return 0;
}

int grants_create(struct domain *d, int max_frames, int max_maptrack_frames)
{
	struct grant_state *g;

	if (max_frames < 0)
		max_frames = GRANT_FRAMES_DEFAULT;
	if (max_maptrack_frames < 0)
		max_maptrack_frames = MAPTRACK_FRAMES_DEFAULT;
	if (max_frames == 0 || max_frames > (int)FRAMES_MAX ||
	    max_maptrack_frames > (int)MAPTRACK_MAX)
		return -EINVAL;
	g = heap_zalloc(sizeof(*g));
	if (!g)
		return -ENOMEM;
	d->grants = g;
	g->max_frames = (uint32_t)max_frames;
	g->max_maptrack = (uint32_t)max_maptrack_frames;
	g->free_handle = NO_HANDLE;
	g->maptrack = heap_zalloc(g->max_maptrack * sizeof(void *));
	if (g->maptrack && !grow_table(d, 1))
		return 0;
	grants_free(d);
	return -ENOMEM;
}

void grants_unshare(struct domain *d)
{
	struct grant_state *g = d->grants;

	if (!g)
		return;
	/* Pins of others' may be left, which end later. */
	spin_lock(&g->lock);
	g->unshared = true;
	spin_unlock(&g->lock);
	for (uint32_t i = 0; i < g->nr_frames; i++)
		domain_unshare(d, ptr_to_mfn(g->frame[i]));
}

void grants_free(struct domain *d)
{
	struct grant_state *g = d->grants;

	if (!g)
		return;
	for (uint32_t i = 0; i < g->nr_frames; i++)
		heap_zfree(g->active[i], ACTIVE_BYTES);
	for (uint32_t i = 0; g->maptrack && i < g->nr_maptrack; i++)
		heap_free_pages(g->maptrack[i], 0);
	heap_zfree(g->maptrack, g->max_maptrack * sizeof(void *));
	heap_zfree(g, sizeof(*g));
	d->grants = NULL;
}

/* ---- pins ---- */

/* A reference to a frame that is the domain's to give, used as nothing that must not be written. GNTST_*. */
static int get_frame(mfn_t m, const struct domain *d, bool write)
{
	bool held = write ? !mfn_get_both(m, d, TYPE_WRITABLE)
			  : mfn_valid(m) && frame_get(mfn_frame(m), d);

	return held ? GNTST_okay : GNTST_bad_page;
}

static void put_frame(mfn_t m, bool write)
{
	if (write)
		frame_put_both(mfn_frame(m));
	else
		frame_put(mfn_frame(m));
}

/* Mark a shared entry as used. The granter may change it at any moment, so what is checked is what is exchanged. */
static int mark_used(struct grant_entry_v1 *e, domid_t who, bool write)
{
	uint32_t *word = (uint32_t *)(void *)e, old = READ_ONCE(*word);

	_Static_assert(offsetof(struct grant_entry_v1, flags) == 0 &&
			       offsetof(struct grant_entry_v1, domid) == 2,
		       "both are one word");
	do {
		uint16_t flags = (uint16_t)old;

		if ((flags & UNEXPECTED) != GTF_permit_access || (domid_t)(old >> 16) != who)
			return GNTST_bad_gntref;
		if (write && (flags & GTF_readonly))
			return GNTST_permission_denied;
	} while (!__atomic_compare_exchange_n(word, &old,
					      old | GTF_reading | (write ? GTF_writing : 0), false,
					      __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
	return GNTST_okay;
}

/* The granter's lock is held. */
static void mark_unused(const struct grant_state *g, uint32_t ref)
{
	const struct active *a = active_of(g, ref);
	uint16_t gone = (a->writers ? 0 : GTF_writing) | (a->readers || a->writers ? 0 : IN_USE);

	if (!g->unshared)
		__atomic_fetch_and(&entry_of(g, ref)->flags, (uint16_t)~gone, __ATOMIC_SEQ_CST);
}

/* The granter's lock is held. */
static int pin_locked(struct domain *granter, uint32_t ref, domid_t who, bool write, mfn_t *m)
{
	struct grant_state *g = granter->grants;
	struct active *a;
	mfn_t frame;
	int rc;

	if (granter->dying || ref >= g->nr_frames * ENTRIES_PER_FRAME)
		return granter->dying ? GNTST_bad_domain : GNTST_bad_gntref;
	a = active_of(g, ref);
	if (a->readers + a->writers == UINT16_MAX)
		return GNTST_no_space;
	if (a->readers || a->writers) {
		if (a->who != who)
			return GNTST_bad_gntref;
		frame = a->mfn;
	} else {
		frame = MFN(READ_ONCE(entry_of(g, ref)->frame));
	}
	rc = mark_used(entry_of(g, ref), who, write);
	if (rc)
		return rc;
	rc = get_frame(frame, granter, write);
	if (rc) {
		mark_unused(g, ref);
		return rc;
	}
	a->mfn = *m = frame;
	a->who = who;
	if (write)
		a->writers++;
	else
		a->readers++;
	return GNTST_okay;
}

static int pin(struct domain *granter, uint32_t ref, domid_t who, bool write, mfn_t *m)
{
	int rc;

	spin_lock(&granter->grants->lock);
	rc = pin_locked(granter, ref, who, write, m);
	spin_unlock(&granter->grants->lock);
	return rc;
}

static void unpin(struct domain *granter, uint32_t ref, bool write)
{
	struct grant_state *g = granter->grants;
	struct active *a = active_of(g, ref);
	mfn_t m;

	spin_lock(&g->lock);
	m = a->mfn;
	if (write)
		a->writers--;
	else
		a->readers--;
	mark_unused(g, ref);
	spin_unlock(&g->lock);
	/* Perhaps the granter's last frame, and with it the granter. */
	put_frame(m, write);
}

/* ---- handles ---- */

static uint32_t handle_new(struct domain *d)
{
	struct grant_state *g = d->grants;
	uint32_t handle;

	spin_lock(&g->lock);
	if (g->free_handle == NO_HANDLE && g->nr_maptrack < g->max_maptrack) {
		struct mapping *more = heap_alloc_pages(0);

		if (more) {
			g->maptrack[g->nr_maptrack] = more;
			for (uint32_t i = 0; i < MAPPINGS_PER_FRAME; i++) {
				more[i].ref = g->free_handle;
				g->free_handle = g->nr_maptrack * MAPPINGS_PER_FRAME + i;
			}
			g->nr_maptrack++;
		}
	}
	handle = g->free_handle;
	if (handle != NO_HANDLE)
		g->free_handle = mapping_of(g, handle)->ref;
	spin_unlock(&g->lock);
	return handle;
}

static void handle_free(struct domain *d, uint32_t handle)
{
	struct grant_state *g = d->grants;
	struct mapping *m = mapping_of(g, handle);

	spin_lock(&g->lock);
	*m = (struct mapping){.ref = g->free_handle};
	g->free_handle = handle;
	spin_unlock(&g->lock);
}

/* From now on nobody else gives the handle back. NULL: there is none, or somebody is at it. */
static struct mapping *handle_claim(struct domain *d, uint32_t handle)
{
	struct grant_state *g = d->grants;
	struct mapping *m = NULL;

	spin_lock(&g->lock);
	if (handle < g->nr_maptrack * MAPPINGS_PER_FRAME &&
	    mapping_of(g, handle)->state == MAPPING_USED) {
		m = mapping_of(g, handle);
		m->state = MAPPING_GOING;
	}
	spin_unlock(&g->lock);
	return m;
}

static void handle_unclaim(struct domain *d, struct mapping *m)
{
	spin_lock(&d->grants->lock);
	m->state = MAPPING_USED;
	spin_unlock(&d->grants->lock);
}

/* ---- entries of page tables; the mapper's page lock is held ---- */

struct place {
	struct frame *table; /* with a reference */
	unsigned index;
};

/* Where the caller wants it: at an address of its own, or in an entry whose machine address it gives. GNTST_*. */
static int place_get(uint64_t host_addr, bool contains_pte, struct place *p)
{
	struct domain *d = current->domain;
	uint64_t old, word;
	mfn_t m;

	if (contains_pte) {
		m = MFN(host_addr >> PAGE_SHIFT);
		p->index = (unsigned)(host_addr & (PAGE_SIZE - 1)) / 8;
	} else {
		if (guest_walk(host_addr, &old, &m))
			return GNTST_bad_virt_addr;
		p->index = pt_index(host_addr, 1);
	}
	if (host_addr % 8 || !mfn_valid(m) || !frame_get(mfn_frame(m), d))
		return GNTST_bad_virt_addr;
	p->table = mfn_frame(m);
	word = READ_ONCE(p->table->type);
	if ((word & TYPE_COUNT_MASK) && (word & TYPE_VALID) && type_of(word) == TYPE_L1)
		return GNTST_okay;
	frame_put(p->table);
	return GNTST_bad_virt_addr;
}

static int enter(uint64_t host_addr, uint32_t flags, mfn_t m, struct domain *granter)
{
	uint64_t avail = (flags >> _GNTMAP_guest_avail0) << 9 & PTE_AVAIL;
	uint64_t pte = pte_make(m, PTE_P | PTE_US | PTE_A | avail);
	struct domain *d = current->domain;
	struct place p;
	int rc = page_lock(d);

	if (rc)
		return rc;
	if (!(flags & GNTMAP_readonly))
		pte |= PTE_RW | PTE_D;
	rc = place_get(host_addr, flags & GNTMAP_contains_pte, &p);
	if (!rc) {
		rc = pt_update_any(p.table, 1, p.index, pte, false, granter) ? GNTST_general_error
									     : 0;
		frame_put(p.table);
	}
	page_unlock(d);
	return rc;
}

/* Take the entry away, if it is the one of this mapping. -ERESTART or GNTST_*. */
static int leave(uint64_t host_addr, uint32_t flags, mfn_t m)
{
	struct domain *d = current->domain;
	struct place p;
	uint64_t old;
	int rc = page_lock(d);

	if (rc)
		return rc;
	rc = place_get(host_addr, flags & GNTMAP_contains_pte, &p);
	if (rc)
		goto out;
	old = READ_ONCE(((uint64_t *)mfn_to_ptr(frame_mfn(p.table)))[p.index]);
	if (!(old & PTE_P) || !mfn_eq(pte_mfn(old), m) ||
	    ((old & PTE_RW) && (flags & GNTMAP_readonly)))
		rc = GNTST_bad_virt_addr;
	else if (pt_update_any(p.table, 1, p.index, 0, false, d))
		rc = GNTST_general_error;
	frame_put(p.table);
out:
	page_unlock(d);
	return rc;
}

/* ---- map ---- */

static int map_checked(struct gnttab_map_grant_ref *op, struct domain *granter, uint32_t handle)
{
	struct domain *d = current->domain;
	bool write = !(op->flags & GNTMAP_readonly);
	struct mapping *map = mapping_of(d->grants, handle);
	mfn_t m;
	int rc = pin(granter, op->ref, d->id, write, &m);

	if (rc)
		return rc;
	if (op->flags & GNTMAP_host_map)
		rc = enter(op->host_addr, op->flags, m, granter);
	if (rc) {
		unpin(granter, op->ref, write);
		return rc;
	}
	spin_lock(&d->grants->lock);
	*map = (struct mapping){.granter = granter,
				.ref = op->ref,
				.flags = (uint16_t)op->flags,
				.state = MAPPING_USED};
	spin_unlock(&d->grants->lock);
	op->handle = handle;
	op->dev_bus_addr = m.v << PAGE_SHIFT;
	return GNTST_okay;
}

/* -ERESTART or GNTST_*. */
static int map_one(struct gnttab_map_grant_ref *op)
{
	struct domain *d = current->domain, *granter;
	uint32_t handle;
	int rc;

	if (!(op->flags & (GNTMAP_host_map | GNTMAP_device_map)) ||
	    (op->flags & 0xffff & ~(uint32_t)KNOWN_FLAGS))
		return GNTST_bad_gntref;
	granter = domain_get(op->dom);
	if (!granter)
		return GNTST_bad_domain;
	handle = granter->grants ? handle_new(d) : NO_HANDLE;
	rc = handle == NO_HANDLE ? GNTST_no_space : map_checked(op, granter, handle);
	if (rc && handle != NO_HANDLE)
		handle_free(d, handle);
	domain_put(granter);
	return rc;
}

/* ---- unmap ---- */

/* *done: its mapping, claimed, when nothing of it is mapped any more. 0, or -ERESTART: begin again with this one. */
static int unmap_one(struct gnttab_unmap_grant_ref *op, struct mapping **done, bool *flush)
{
	struct domain *d = current->domain;
	struct mapping *m = handle_claim(d, op->handle);
	mfn_t frame;

	*done = NULL;
	op->status = GNTST_bad_handle;
	if (!m)
		return 0;
	/* It is pinned, so this does not change. */
	frame = active_of(m->granter->grants, m->ref)->mfn;
	op->status = GNTST_okay;
	if (op->dev_bus_addr && (m->flags & GNTMAP_device_map)) {
		if (op->dev_bus_addr >> PAGE_SHIFT != frame.v)
			op->status = GNTST_bad_dev_addr;
		else
			m->flags &= (uint16_t)~GNTMAP_device_map;
	}
	if (op->status == GNTST_okay && op->host_addr && (m->flags & GNTMAP_host_map)) {
		int rc = leave(op->host_addr, m->flags, frame);

		if (rc == -ERESTART) {
			handle_unclaim(d, m);
			return rc;
		}
		op->status = (int16_t)rc;
		if (!rc) {
			*flush = true;
			m->flags &= (uint16_t)~GNTMAP_host_map;
		}
	}
	if (m->flags & (GNTMAP_host_map | GNTMAP_device_map))
		handle_unclaim(d, m);
	else
		*done = m;
	return 0;
}

static void give_back(struct domain *d, struct mapping *m, uint32_t handle)
{
	struct domain *granter = m->granter;
	uint32_t ref = m->ref;
	bool write = !(m->flags & GNTMAP_readonly);

	handle_free(d, handle);
	unpin(granter, ref, write);
}

int grants_release_mappings(struct domain *d)
{
	struct grant_state *g = d->grants;

	while (g && g->released < g->nr_maptrack * MAPPINGS_PER_FRAME) {
		uint32_t handle = g->released++;
		struct mapping *m = handle_claim(d, handle);

		if (m)
			give_back(d, m, handle);
		if (hypercall_preempt_check())
			return -ERESTART;
	}
	return 0;
}

/* ---- copy ---- */

/* One side of a copy, which the next of a call uses as well when it is the same. */
struct side {
	struct domain *owner; /* with a reference; NULL: nothing is held */
	mfn_t mfn;
	domid_t id;
	bool granted, write;
	uint64_t what; /* the entry, or the frame */
};

static void side_put(struct side *s)
{
	if (!s->owner)
		return;
	if (s->granted)
		unpin(s->owner, (uint32_t)s->what, s->write);
	else
		put_frame(s->mfn, s->write);
	domain_put(s->owner);
	s->owner = NULL;
}

static int side_renew(struct side *s, domid_t id, bool granted, uint64_t what, bool write)
{
	int rc = GNTST_okay;

	side_put(s);
	if (!granted && id != DOMID_SELF && id != current->domain->id)
		return GNTST_permission_denied;
	*s = (struct side){domain_get(id), MFN(what), id, granted, write, what};
	if (!s->owner)
		return GNTST_bad_domain;
	if (!s->owner->grants)
		rc = GNTST_bad_domain;
	else if (granted)
		rc = pin(s->owner, (uint32_t)what, current->domain->id, write, &s->mfn);
	else
		rc = get_frame(s->mfn, s->owner, write);
	if (rc) {
		domain_put(s->owner);
		s->owner = NULL;
	}
	return rc;
}

static int side_get(struct side *s, domid_t id, bool granted, uint64_t what, bool write)
{
	if (s->owner && s->id == id && s->granted == granted && s->what == what)
		return GNTST_okay;
	return side_renew(s, id, granted, what, write);
}

static int copy_one(const struct gnttab_copy *op, struct side *from, struct side *to)
{
	bool from_grant = op->flags & GNTCOPY_source_gref, to_grant = op->flags & GNTCOPY_dest_gref;
	int rc;

	if (op->flags & ~(GNTCOPY_source_gref | GNTCOPY_dest_gref))
		return GNTST_bad_gntref;
	if (op->source.offset >= PAGE_SIZE || op->dest.offset >= PAGE_SIZE ||
	    op->len > PAGE_SIZE - op->source.offset || op->len > PAGE_SIZE - op->dest.offset)
		return GNTST_bad_copy_arg;
	rc = side_get(from, op->source.domid, from_grant,
		      from_grant ? op->source.u.ref : op->source.u.gmfn, false);
	if (!rc)
		rc = side_get(to, op->dest.domid, to_grant,
			      to_grant ? op->dest.u.ref : op->dest.u.gmfn, true);
	if (rc)
		return rc;
	/* In the log that is read now as in the next one, whenever that begins. */
	shadow_mark(to->owner, to->mfn);
	memcpy((char *)mfn_to_ptr(to->mfn) + op->dest.offset,
	       (const char *)mfn_to_ptr(from->mfn) + op->source.offset, op->len);
	shadow_mark(to->owner, to->mfn);
	return 0;
}

/* ---- the table ---- */

/* The domain that a question about a table is about, with a reference. */
static struct domain *subject(domid_t id, int16_t *status)
{
	struct domain *d = NULL;
	int rc = domain_subject(current->domain, id, &d);

	*status = rc == -EPERM ? GNTST_permission_denied : GNTST_okay;
	if (rc == -ESRCH || (d && !d->grants))
		*status = GNTST_bad_domain;
	if (d && *status) {
		domain_put(d);
		d = NULL;
	}
	return d;
}

int grants_frame(struct domain *d, uint64_t i, xen_pfn_t *mfn)
{
	struct grant_state *g = d->grants;
	int rc = i < g->max_frames ? 0 : -EINVAL;

	spin_lock(&g->lock);
	if (!rc)
		rc = d->dying ? -ESRCH : grow_table(d, (uint32_t)i + 1);
	if (!rc)
		*mfn = ptr_to_mfn(g->frame[i]).v;
	spin_unlock(&g->lock);
	return rc;
}

uint32_t grants_max_frames(const struct domain *d)
{
	return d->grants->max_frames;
}

static long setup_table(guest_va_t arg)
{
	struct gnttab_setup_table op;
	struct domain *d;

	if (copy_from_guest(&op, arg, sizeof(op)))
		return -EFAULT;
	d = subject(op.dom, &op.status);
	if (d) {
		if (op.nr_frames > d->grants->max_frames)
			op.status = GNTST_general_error;
		for (uint32_t i = 0; !op.status && i < op.nr_frames; i++) {
			xen_pfn_t frame;

			if (grants_frame(d, i, &frame))
				op.status = GNTST_no_space;
			else if (to_guest(op.frame_list, i, &frame))
				op.status = GNTST_bad_virt_addr;
		}
		domain_put(d);
	}
	return copy_to_guest(arg, &op, sizeof(op));
}

static long query_size(guest_va_t arg)
{
	struct gnttab_query_size op;
	struct domain *d;

	if (copy_from_guest(&op, arg, sizeof(op)))
		return -EFAULT;
	d = subject(op.dom, &op.status);
	if (d) {
		op.nr_frames = d->grants->nr_frames;
		op.max_nr_frames = d->grants->max_frames;
		domain_put(d);
	}
	return copy_to_guest(arg, &op, sizeof(op));
}

static long version(uint32_t command, guest_va_t arg)
{
	struct gnttab_get_version op; /* set_version's is its beginning's like */
	struct gnttab_set_version set;

	if (command == GNTTABOP_set_version) {
		if (copy_from_guest(&set, arg, sizeof(set)))
			return -EFAULT;
		return set.version == 1 ? 0 : -ENOSYS;
	}
	if (copy_from_guest(&op, arg, sizeof(op)))
		return -EFAULT;
	if (op.dom != DOMID_SELF && op.dom != current->domain->id && !current->domain->privileged)
		return -EPERM;
	op.version = 1;
	return copy_to_guest(arg, &op, sizeof(op));
}

/* ---- the hypercall ---- */

static long map_or_copy_all(guest_va_t *at, uint32_t *left, bool map)
{
	union {
		struct gnttab_map_grant_ref map;
		struct gnttab_copy copy;
	} op;
	const size_t bytes = map ? sizeof(op.map) : sizeof(op.copy);
	struct side from = {.owner = NULL}, to = {.owner = NULL};
	long rc = 0;

	while (*left && !rc) {
		int status;

		if (copy_from_guest(&op, *at, bytes)) {
			rc = -EFAULT;
			break;
		}
		status = map ? map_one(&op.map) : copy_one(&op.copy, &from, &to);
		if (status == -ERESTART) {
			rc = status;
			break;
		}
		if (map)
			op.map.status = (int16_t)status;
		else
			op.copy.status = (int16_t)status;
		if (copy_to_guest(*at, &op, bytes)) {
			rc = -EFAULT;
			break;
		}
		at->v += bytes;
		if (--*left && hypercall_preempt_check())
			rc = -ERESTART;
	}
	side_put(&from);
	side_put(&to);
	return rc;
}

static long unmap_all(guest_va_t *at, uint32_t *left)
{
	struct domain *d = current->domain;
	long rc = 0;

	while (*left && !rc) {
		struct gnttab_unmap_grant_ref op[BATCH];
		struct mapping *done[BATCH];
		uint32_t n = 0, nr = MIN(*left, BATCH);
		bool flush = false;

		while (n < nr && !rc) {
			rc = copy_from_guest(&op[n], GUEST_VA(at->v + n * sizeof(*op)),
					     sizeof(*op));
			if (!rc)
				rc = unmap_one(&op[n], &done[n], &flush);
			if (!rc)
				n++;
		}
		if (flush)
			tlb_flush_cpus(READ_ONCE(d->dirty_cpus));
		for (uint32_t i = 0; i < n; i++) {
			guest_va_t status =
				GUEST_VA(at->v + offsetof(struct gnttab_unmap_grant_ref, status));

			if (done[i])
				give_back(d, done[i], op[i].handle);
			if (copy_to_guest(status, &op[i].status, sizeof(op[i].status)))
				rc = -EFAULT;
			at->v += sizeof(*op);
			--*left;
		}
		if (!rc && *left && hypercall_preempt_check())
			rc = -ERESTART;
	}
	return rc;
}

long do_grant_table_op(arg_t command, arg_t arg, arg_t count)
{
	guest_va_t at = GUEST_VA(arg);
	uint32_t left = (uint32_t)count;
	long rc;

	if (!current->domain->grants)
		return -ENOSYS;
	switch ((uint32_t)command) {
	case GNTTABOP_map_grant_ref:
	case GNTTABOP_copy:
		rc = map_or_copy_all(&at, &left, (uint32_t)command == GNTTABOP_map_grant_ref);
		break;
	case GNTTABOP_unmap_grant_ref:
		rc = unmap_all(&at, &left);
		break;
	case GNTTABOP_setup_table:
		return left == 1 ? setup_table(at) : -EINVAL;
	case GNTTABOP_query_size:
		return left == 1 ? query_size(at) : -EINVAL;
	case GNTTABOP_set_version:
	case GNTTABOP_get_version:
		return left == 1 ? version((uint32_t)command, at) : -EINVAL;
	default:
		return -ENOSYS;
	}
	if (rc == -ERESTART) {
		hypercall_set_argument(1, at.v);
		hypercall_set_argument(2, left);
	}
	return rc;
}

bool grants_pins(const struct domain *d, uint32_t ref, mfn_t *m, uint32_t *readers,
		 uint32_t *writers)
{
	const struct grant_state *g = d->grants;

	if (!g || ref >= g->nr_frames * ENTRIES_PER_FRAME)
		return false;
	*m = active_of(g, ref)->mfn;
	*readers = active_of(g, ref)->readers;
	*writers = active_of(g, ref)->writers;
	return true;
}

void grants_dump(struct domain *d)
{
	const struct grant_state *g = d->grants;
	uint32_t used = 0;

	if (!g)
		return;
	for (uint32_t i = 0; i < g->nr_maptrack * MAPPINGS_PER_FRAME; i++)
		used += mapping_of(g, i)->state != MAPPING_FREE;
	log_info("Grants of domain %u: %u of %u frames, %u mappings of others' in %u frames", d->id,
		 g->nr_frames, g->max_frames, used, g->nr_maptrack);
	for (uint32_t ref = 0; ref < g->nr_frames * ENTRIES_PER_FRAME; ref++) {
		const struct active *a = active_of(g, ref);

		if (a->readers || a->writers)
			log_info("  %u: frame %lx to domain %u, %u readers, %u writers", ref,
				 a->mfn.v, a->who, a->readers, a->writers);
	}
}
