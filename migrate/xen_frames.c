// SPDX-License-Identifier: MIT
#include "migrate/xen_frames.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "migrate/pv_table.h"
#include "protocol-spec/stream.h"

/* The hypervisor hands its table out in chunks of 2 MiB. */
#define CHUNK_PAGES   512u
#define CHUNK_ENTRIES ((uint64_t)CHUNK_PAGES * XEN_PAGE_SIZE / sizeof(uint64_t))
#define ENTRIES	      (XEN_PAGE_SIZE / (unsigned)sizeof(uint64_t))

/* Bits of an entry of Linux's table that say "no frame of this guest's": foreign, identity. */
#define ENTRY_SPECIAL (3ull << 62)

/* ---- machine to physical ---- */

/* Whether a frame's entry may be read. */
static bool m2p_has(const struct xen_frames *f, uint64_t frame)
{
	uint64_t chunk = frame / CHUNK_ENTRIES;

	return frame < f->m2p_entries && (f->m2p_chunk[chunk / 64] >> chunk % 64 & 1);
}

uint64_t xen_pfn_of(const struct xen_frames *f, uint64_t frame)
{
	uint64_t pfn;

	if (!m2p_has(f, frame))
		return PV_FRAME_NONE;
	pfn = *(volatile uint64_t *)&f->m2p[frame];
	return xen_frame_of(f, pfn) == frame ? pfn : PV_FRAME_NONE;
}

static void unmap_m2p(struct xen_frames *f)
{
	if (f->m2p)
		munmap(f->m2p, f->m2p_pages * XEN_PAGE_SIZE);
	free(f->m2p_chunk);
	f->m2p = NULL;
	f->m2p_chunk = NULL;
}

/* Put the pages of one chunk at their place in the reserved range. */
static int map_chunk(struct xen_frames *f, unsigned chunk, xen_pfn_t first)
{
	xen_pfn_t frames[CHUNK_PAGES];
	char *at = (char *)f->m2p + (size_t)chunk * CHUNK_PAGES * XEN_PAGE_SIZE;
	unsigned i;

	for (i = 0; i < CHUNK_PAGES; i++)
		frames[i] = first + i;
	if (!xenforeignmemory_map2(f->calls->foreign, DOMID_XEN, at, PROT_READ, MAP_FIXED,
				   CHUNK_PAGES, frames, NULL))
		return -errno;
	f->m2p_chunk[chunk / 64] |= 1ull << chunk % 64;
	return 0;
}

static int map_m2p(struct xen_frames *f, struct pgr_error *err)
{
	uint64_t max = 0, chunks;
	xen_pfn_t *list = NULL;
	unsigned nr, i;
	int rc = xen_max_frame(f->calls, &max);

	if (rc)
		return pgr_fail_errno(err, rc, "the hypervisor does not tell the size of memory");
	chunks = (max + CHUNK_ENTRIES - 1) / CHUNK_ENTRIES;
	f->m2p_entries = max;
	f->m2p_pages = chunks * CHUNK_PAGES;
	f->m2p_chunk = calloc(chunks / 64 + 1, sizeof(uint64_t));
	list = xen_calls_alloc(f->calls, chunks * sizeof(*list));
	f->m2p = mmap(NULL, f->m2p_pages * XEN_PAGE_SIZE, PROT_NONE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f->m2p == MAP_FAILED)
		f->m2p = NULL;
	if (!f->m2p_chunk || !list || !f->m2p) {
		rc = pgr_fail(err, -ENOMEM, "no memory for the machine-to-physical table");
		goto out;
	}
	nr = (unsigned)chunks;
	rc = xen_m2p_frames(f->calls, list, &nr);
	for (i = 0; !rc && i < nr; i++)
		if (list[i])
			rc = map_chunk(f, i, list[i]);
	if (rc)
		pgr_fail_errno(err, rc, "the machine-to-physical table cannot be mapped");
out:
	xen_calls_free(f->calls, list);
	return rc;
}

int xen_frames_open(struct xen_frames *f, struct xen_calls *calls, uint32_t domid,
		    struct pgr_error *err)
{
	int rc;

	*f = (struct xen_frames){.calls = calls, .domid = domid};
	rc = map_m2p(f, err);
	if (rc)
		unmap_m2p(f);
	return rc;
}

static void drop_table(struct xen_frames *f)
{
	if (f->frame_plus_1)
		munmap(f->frame_plus_1, f->nr_pfns * sizeof(uint64_t));
	free(f->table_pfns);
	f->frame_plus_1 = NULL;
	f->table_pfns = NULL;
	f->nr_pfns = f->nr_table = f->populated = 0;
}

void xen_frames_close(struct xen_frames *f)
{
	drop_table(f);
	unmap_m2p(f);
}

/* ---- where the guest keeps its table ---- */

/* What the guest says about its table, read once. */
struct guest_table {
	uint64_t max_pfn, list_list, cr3, vaddr, generation;
};

/* Copy one page of the guest. */
static int read_frame(struct xen_frames *f, uint64_t frame, uint64_t *to)
{
	void *page = xen_map_one(f->calls, f->domid, PROT_READ, frame);

	if (!page)
		return -errno;
	memcpy(to, page, XEN_PAGE_SIZE);
	xen_unmap(f->calls, page, 1);
	return 0;
}

/*
 * The frame of the table of `level` - 1 (or of the page, level 1) that maps vaddr, or
 * PV_FRAME_NONE.
 */
static uint64_t step(const uint64_t *table, unsigned level, uint64_t vaddr)
{
	uint64_t entry = table[vaddr >> (3 + 9 * level) & 511];

	if (!(entry & PV_ENTRY_PRESENT) || (level > 1 && (entry & PV_ENTRY_LARGE)))
		return PV_FRAME_NONE;
	return (entry & PV_ENTRY_FRAME) >> 12;
}

/*
 * Walk the guest's tables to the level-1 table of vaddr. cache keeps the last table of each level.
 */
struct walk {
	uint64_t frame[5];
	uint64_t page[5][XEN_TABLE_SLOTS];
};

static int walk_to_l1(struct xen_frames *f, struct walk *w, uint64_t top, uint64_t vaddr)
{
	uint64_t frame = top;
	unsigned level;
	int rc;

	for (level = 4; level >= 1; level--) {
		if (w->frame[level] != frame) {
			rc = read_frame(f, frame, w->page[level]);
			if (rc) {
				w->frame[level] = PV_FRAME_NONE;
				return rc;
			}
			w->frame[level] = frame;
		}
		if (level == 1)
			break;
		frame = step(w->page[level], level, vaddr);
		if (frame == PV_FRAME_NONE)
			return -EFAULT;
	}
	return 0;
}

/* The linear table: pages behind vaddr in the address space cr3. */
static int find_linear(struct xen_frames *f, const struct guest_table *t, uint64_t *frames,
		       uint64_t nr, struct pgr_error *err)
{
	uint64_t i, vaddr, last = t->vaddr + nr * XEN_PAGE_SIZE - 1;
	struct walk *w;
	int rc = 0;

	/* Canonical, in the guest's half, and not around the end of the address space. */
	if (t->vaddr % XEN_PAGE_SIZE || t->vaddr < HYPERVISOR_VIRT_END || last < t->vaddr)
		return pgr_fail(err, -EINVAL,
				"the guest says that its physical-to-machine table is at %#" PRIx64
				", where no guest can have one",
				t->vaddr);
	w = malloc(sizeof(*w));
	if (!w)
		return pgr_fail(err, -ENOMEM, "no memory for walking page tables");
	memset(w->frame, 0xff, sizeof(w->frame));
	for (i = 0; i < nr && !rc; i++) {
		vaddr = t->vaddr + i * XEN_PAGE_SIZE;
		rc = walk_to_l1(f, w, t->cr3 >> 12, vaddr);
		if (!rc)
			frames[i] = step(w->page[1], 1, vaddr);
		if (!rc && frames[i] == PV_FRAME_NONE)
			rc = -EFAULT;
		if (rc)
			pgr_fail_errno(
				err, -EINVAL,
				"the guest's physical-to-machine table is not mapped at %#" PRIx64
				", where the guest says it is (page %" PRIu64 " of %" PRIu64 ")",
				vaddr, i, nr);
	}
	free(w);
	return rc ? -EINVAL : 0;
}

/* The older tree of three levels: a page of frames of pages of frames of pages of the table. */
static int find_tree(struct xen_frames *f, const struct guest_table *t, uint64_t *frames,
		     uint64_t nr, struct pgr_error *err)
{
	uint64_t top[ENTRIES] = {0}, middle[ENTRIES] = {0}, i;
	int rc;

	if (nr > (uint64_t)ENTRIES * ENTRIES)
		return pgr_fail(err, -EINVAL,
				"the guest has %" PRIu64 " pages of table, more than a tree holds",
				nr);
	rc = read_frame(f, t->list_list, top);
	for (i = 0; i < nr && !rc; i++) {
		if (i % ENTRIES == 0)
			rc = read_frame(f, top[i / ENTRIES], middle);
		frames[i] = middle[i % ENTRIES];
	}
	if (rc)
		return pgr_fail_errno(
			err, -EINVAL,
			"the guest's list of pages of its physical-to-machine table names a frame that is not the guest's");
	return 0;
}

/* ---- reading it ---- */

/*
 * Take the pairs of one page of the table, number `page`, on which the hypervisor's table agrees.
 */
static void take_page(struct xen_frames *f, uint64_t page, const uint64_t *entries)
{
	uint64_t first = page * ENTRIES, pfn, frame;
	unsigned i;

	for (i = 0; i < ENTRIES && first + i < f->nr_pfns; i++) {
		pfn = first + i;
		frame = *(const volatile uint64_t *)&entries[i];
		if ((frame & ENTRY_SPECIAL) || !m2p_has(f, frame))
			continue;
		if (*(volatile uint64_t *)&f->m2p[frame] != pfn)
			continue;
		f->frame_plus_1[pfn] = frame + 1;
		f->populated++;
	}
}

static int take_table(struct xen_frames *f, const uint64_t *frames, struct pgr_error *err)
{
	uint64_t i, entries[ENTRIES] = {0};
	int rc;

	for (i = 0; i < f->nr_table; i++) {
		rc = read_frame(f, frames[i], entries);
		if (rc)
			return pgr_fail_errno(
				err, -EINVAL,
				"page %" PRIu64
				" of the guest's physical-to-machine table (frame %#" PRIx64
				") cannot be mapped",
				i, frames[i]);
		take_page(f, i, entries);
	}
	/* Only now can frames be told from others. */
	for (i = 0; i < f->nr_table; i++) {
		f->table_pfns[i] = xen_pfn_of(f, frames[i]);
		if (f->table_pfns[i] == PV_FRAME_NONE)
			return pgr_fail(err, -EINVAL,
					"page %" PRIu64
					" of the guest's physical-to-machine table (frame %#" PRIx64
					") is not a page of the guest",
					i, frames[i]);
	}
	return 0;
}

static void read_shared(struct guest_table *t, const struct shared_info *s)
{
	const volatile struct arch_shared_info *a = &s->arch;

	t->max_pfn = a->max_pfn;
	t->list_list = a->pfn_to_mfn_frame_list_list;
	t->cr3 = a->p2m_cr3;
	t->vaddr = a->p2m_vaddr;
	t->generation = a->p2m_generation;
}

static int check_shared(const struct guest_table *t, struct pgr_error *err)
{
	if (t->cr3 && (t->generation & 1))
		return pgr_fail(err, -EAGAIN,
				"the guest is changing its physical-to-machine table");
	if (!t->max_pfn || t->max_pfn > PGR_PFNS_MAX)
		return pgr_fail(
			err, -EINVAL,
			"the guest says that it has %" PRIu64
			" pages: it has not finished booting, or is larger than this program moves (%llu)",
			t->max_pfn, PGR_PFNS_MAX);
	if (!t->cr3 && (!t->list_list || t->list_list == UINT64_MAX))
		return pgr_fail(
			err, -ENOTSUP,
			"the guest does not say where its physical-to-machine table is: it has not finished booting, or cannot be moved");
	return 0;
}

static void mark_changed(_Atomic uint64_t *changed, const uint64_t *before, const uint64_t *now,
			 uint64_t nr)
{
	uint64_t pfn;

	for (pfn = 0; pfn < nr; pfn++)
		if (before[pfn] != now[pfn])
			atomic_fetch_or(&changed[pfn / 64], 1ull << pfn % 64);
}

/* Find and read the guest's table into f's new, empty arrays. */
static int load(struct xen_frames *f, const struct guest_table *t, struct pgr_error *err)
{
	uint64_t *frames;
	int rc;

	f->nr_table = (t->max_pfn + ENTRIES - 1) / ENTRIES;
	frames = calloc(f->nr_table + 1, sizeof(*frames));
	f->table_pfns = calloc(f->nr_table + 1, sizeof(*f->table_pfns));
	f->frame_plus_1 = mmap(NULL, t->max_pfn * sizeof(uint64_t), PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (f->frame_plus_1 == MAP_FAILED)
		f->frame_plus_1 = NULL;
	f->nr_pfns = t->max_pfn;
	if (!frames || !f->table_pfns || !f->frame_plus_1) {
		pgr_fail(err, -ENOMEM, "no memory for the guest's physical-to-machine table");
		free(frames);
		return -ENOMEM;
	}
	if (t->cr3)
		rc = find_linear(f, t, frames, f->nr_table, err);
	else
		rc = find_tree(f, t, frames, f->nr_table, err);
	if (!rc)
		rc = take_table(f, frames, err);
	free(frames);
	return rc;
}

int xen_frames_load(struct xen_frames *f, const struct shared_info *shared_info,
		    _Atomic uint64_t *changed, struct pgr_error *err)
{
	struct guest_table t;
	uint64_t *before = f->frame_plus_1, nr_before = f->nr_pfns;
	int rc;

	read_shared(&t, shared_info);
	rc = check_shared(&t, err);
	if (rc)
		return rc;
	f->frame_plus_1 = NULL;
	drop_table(f);
	rc = load(f, &t, err);
	if (rc)
		drop_table(f);
	else if (changed && before && f->frame_plus_1 && nr_before == f->nr_pfns)
		mark_changed(changed, before, f->frame_plus_1, nr_before);
	if (before)
		munmap(before, nr_before * sizeof(uint64_t));
	return rc;
}
