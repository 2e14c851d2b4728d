// SPDX-License-Identifier: MIT
/*
 * Grants between two domains by their hypercall: who holds a frame while it is mapped, what is left when either domain dies with grants in use, every
 * n-th allocation that fails. What a guest sees of it all is in tests/guests/test_grants.c.
 */
#define VMM_HOSTED
#define __XEN_TOOLS__ // the interface of the headers, not the oldest
#include "vmm/domain/domain.h"

static struct vcpu *now_running;
#undef current
#define current now_running

#include "vmm/hypercall/grant_table.c" /* NOLINT(bugprone-suspicious-include) */

#include <stdlib.h>

#include "tests/unit/unit.h"

#define FRAMES	  64u
#define TABLE_MFN 1u /* the mapper's L1 table */
#define FIRST	  8u
#define GRANTED	  GTF_permit_access
/* 0 is no address. */
#define PLACE(n) (PAGE_SIZE * 512 + (n)*PAGE_SIZE)

struct frame *frame_table;
uint64_t frame_max = FRAMES;
char *direct_base;
static struct frame frames[FRAMES];
static _Alignas(4096) char ram[FRAMES][PAGE_SIZE];
static struct domain granter, mapper;
static struct vcpu granters, mappers;
static unsigned next_frame, allocations, fail_at, live_bytes, flushes, preempt_after;
static uint64_t entry[512];

/* ---- the surroundings ---- */

static void *allocated(size_t bytes)
{
	if (++allocations == fail_at)
		return NULL;
	live_bytes += (unsigned)bytes;
	return calloc(1, bytes);
}

/* Pages that may be shared come out of the model's RAM and are not reused: what is written to one after its end shows. */
void *heap_alloc_pages(unsigned order)
{
	CHECK_EQ(order, 0);
	CHECK(next_frame < FRAMES);
	if (++allocations == fail_at)
		return NULL;
	live_bytes += PAGE_SIZE;
	return ram[next_frame++];
}

void heap_free_pages(void *p, unsigned order)
{
	CHECK_EQ(order, 0);
	if (p)
		live_bytes -= PAGE_SIZE;
}

void *heap_zalloc(size_t bytes)
{
	return allocated(bytes);
}

void heap_zfree(void *p, size_t bytes)
{
	if (p)
		live_bytes -= (unsigned)bytes;
	free(p);
}

void frame_release(struct frame *f)
{
	f->owner = NULL;
}

int frame_get_type(struct frame *f, enum page_type type)
{
	if ((f->type & TYPE_COUNT_MASK) && type_of(f->type) != type)
		return -EINVAL;
	f->type = (uint64_t)type << TYPE_SHIFT | ((f->type & TYPE_COUNT_MASK) + 1);
	return 0;
}

void frame_put_type(struct frame *f)
{
	CHECK(f->type & TYPE_COUNT_MASK);
	f->type--;
}

int frame_get_both(struct frame *f, const struct domain *owner, enum page_type type)
{
	int rc;

	if (!frame_get(f, owner))
		return -EPERM;
	rc = frame_get_type(f, type);
	if (rc)
		frame_put(f);
	return rc;
}

void frame_put_both(struct frame *f)
{
	frame_put_type(f);
	frame_put(f);
}

void domain_share(struct domain *d, mfn_t m)
{
	*mfn_frame(m) = (struct frame){.owner = d,
				       .ref = REF_ALLOCATED | REF_HYPERVISOR | 1,
				       .type = (uint64_t)TYPE_WRITABLE << TYPE_SHIFT | 1};
}

void domain_unshare(struct domain *d, mfn_t m)
{
	CHECK(mfn_frame(m)->owner == d);
	frame_put_type(mfn_frame(m));
	mfn_frame(m)->ref &= ~REF_ALLOCATED;
	frame_put(mfn_frame(m));
	live_bytes -= PAGE_SIZE;
}

struct domain *domain_get(domid_t id)
{
	if (id == DOMID_SELF)
		id = current->domain->id;
	return id == granter.id ? &granter : id == mapper.id ? &mapper : NULL;
}

void domain_put(struct domain *d)
{
	(void)d;
}

int page_lock(struct domain *d)
{
	(void)d;
	return 0;
}

void page_unlock(struct domain *d)
{
	(void)d;
}

static mfn_t marked;

void shadow_mark_frame(struct domain *d, mfn_t m)
{
	(void)d;
	marked = m;
}

/* Every address is in the one table. */
int guest_walk(uint64_t va, uint64_t *l1e, mfn_t *l1_table)
{
	*l1e = entry[pt_index(va, 1)];
	*l1_table = MFN(TABLE_MFN);
	return 0;
}

int pt_update(struct frame *f, unsigned level, unsigned index, uint64_t value, bool preserve_ad,
	      struct domain *subject)
{
	uint64_t *table = (uint64_t *)mfn_to_ptr(frame_mfn(f)), old = table[index];

	(void)level;
	(void)preserve_ad;
	if (value & PTE_P) {
		if (!frame_get(mfn_frame(pte_mfn(value)), subject))
			return -EPERM;
		if ((value & PTE_RW) && frame_get_type(mfn_frame(pte_mfn(value)), TYPE_WRITABLE)) {
			frame_put(mfn_frame(pte_mfn(value)));
			return -EINVAL;
		}
	}
	if (old & PTE_P) {
		if (old & PTE_RW)
			frame_put_type(mfn_frame(pte_mfn(old)));
		frame_put(mfn_frame(pte_mfn(old)));
	}
	table[index] = entry[index] = value;
	return 0;
}

int pt_update_logged(struct frame *f, unsigned level, unsigned index, uint64_t value,
		     bool preserve_ad, struct domain *subject)
{
	return pt_update(f, level, index, value, preserve_ad, subject);
}

void tlb_flush_cpus(uint64_t cpus)
{
	(void)cpus;
	flushes++;
}

int copy_from_guest(void *to, guest_va_t from, size_t bytes)
{
	memcpy(to, (const void *)from.v, bytes);
	return 0;
}

int copy_to_guest(guest_va_t to, const void *from, size_t bytes)
{
	memcpy((void *)to.v, from, bytes);
	return 0;
}

bool hypercall_preempt_check(void)
{
	return preempt_after && --preempt_after == 0;
}

static arg_t again_at, again_count;

void hypercall_set_argument(unsigned n, arg_t value)
{
	if (n == 1)
		again_at = value;
	else
		again_count = value;
}

void log_print(enum log_level level, const char *format, ...)
{
	(void)level;
	(void)format;
}

void bug(const char *file, int line, const char *what)
{
	unit_fail(file, line, "BUG: %s", what);
}

/* ---- the two domains ---- */

static void own(unsigned mfn, struct domain *d)
{
	frames[mfn] = (struct frame){.owner = d, .ref = REF_ALLOCATED | 1};
}

static void begin(void)
{
	/* Those of the test before. */
	grants_free(&granter);
	grants_free(&mapper);
	frame_table = frames;
	direct_base = ram[0];
	memset(frames, 0, sizeof(frames));
	memset(ram, 0, sizeof(ram));
	memset(entry, 0, sizeof(entry));
	granter = (struct domain){.id = 1};
	mapper = (struct domain){.id = 2};
	granters.domain = &granter;
	mappers.domain = &mapper;
	now_running = &mappers;
	next_frame = 40;
	allocations = fail_at = live_bytes = flushes = preempt_after = 0;
	own(TABLE_MFN, &mapper);
	frames[TABLE_MFN].type = (uint64_t)TYPE_L1 << TYPE_SHIFT | TYPE_VALID | 1;
	for (unsigned i = 2; i < 20; i++)
		own(i, &granter);
	CHECK_EQ(grants_create(&granter, 2, 1), 0);
	CHECK_EQ(grants_create(&mapper, 2, 1), 0);
}

static struct grant_entry_v1 *shared(uint32_t ref)
{
	return entry_of(granter.grants, ref);
}

static void give(uint32_t ref, unsigned mfn, uint16_t flags)
{
	*shared(ref) = (struct grant_entry_v1){.flags = flags, .domid = mapper.id, .frame = mfn};
}

static int map(uint32_t ref, unsigned index, uint32_t flags, uint32_t *handle)
{
	struct gnttab_map_grant_ref op = {.host_addr = PLACE(index),
					  .flags = GNTMAP_host_map | flags,
					  .ref = ref,
					  .dom = granter.id};

	CHECK_EQ(do_grant_table_op(GNTTABOP_map_grant_ref, (arg_t)(uintptr_t)&op, 1), 0);
	*handle = op.handle;
	return op.status;
}

static int unmap(uint32_t handle, unsigned index)
{
	struct gnttab_unmap_grant_ref op = {.host_addr = PLACE(index), .handle = handle};

	CHECK_EQ(do_grant_table_op(GNTTABOP_unmap_grant_ref, (arg_t)(uintptr_t)&op, 1), 0);
	return op.status;
}

static void untouched(unsigned mfn)
{
	CHECK_EQ(frames[mfn].ref & REF_COUNT_MASK, 1);
	CHECK_EQ(frames[mfn].type & TYPE_COUNT_MASK, 0);
}

/* ---- tests ---- */

static void holds_while_it_is_mapped(void)
{
	uint32_t handle, second;

	begin();
	give(FIRST, 5, GRANTED);
	CHECK_EQ(map(FIRST, 1, 0, &handle), GNTST_okay);
	/* The owner's, the pin's, the entry's. */
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 3);
	CHECK_EQ(frames[5].type & TYPE_COUNT_MASK, 2);
	CHECK_EQ(map(FIRST, 2, GNTMAP_readonly, &second), GNTST_okay);
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 5);
	CHECK_EQ(frames[5].type & TYPE_COUNT_MASK, 2);
	CHECK_EQ(unmap(handle, 1), GNTST_okay);
	CHECK_EQ(flushes, 1);
	CHECK_EQ(frames[5].type & TYPE_COUNT_MASK, 0);
	CHECK_EQ(shared(FIRST)->flags, GRANTED | GTF_reading);
	CHECK_EQ(unmap(second, 2), GNTST_okay);
	CHECK_EQ(shared(FIRST)->flags, GRANTED);
	untouched(5);
}

/* The guest overwrites the entry itself: the pin stays until the handle is given back, which the end of the mapper does. */
static void the_mapper_dies(void)
{
	uint32_t handle;
	unsigned calls = 0;

	begin();
	for (unsigned i = 0; i < 5; i++) {
		give(FIRST + i, 5 + i, GRANTED);
		CHECK_EQ(map(FIRST + i, i, 0, &handle), GNTST_okay);
		CHECK_EQ(pt_update(&frames[TABLE_MFN], 1, i, 0, false, &mapper), 0);
		CHECK_EQ(frames[5 + i].ref & REF_COUNT_MASK, 2);
	}
	mapper.dying = true;
	now_running = &granters;
	/* Interrupted all the time, it looks at each handle once: going through the free ones again and again would be for ever. */
	do {
		preempt_after = 1;
		calls++;
	} while (grants_release_mappings(&mapper) == -ERESTART);
	CHECK_EQ(calls, MAPPINGS_PER_FRAME + 1);
	for (unsigned i = 0; i < 5; i++) {
		untouched(5 + i);
		CHECK_EQ(shared(FIRST + i)->flags, GRANTED);
	}
}

/* Its table is somebody else's page when the mapper lets go: nothing is written there any more. */
static void the_granter_dies_first(void)
{
	uint32_t handle, other;
	char *page;

	begin();
	give(FIRST, 5, GRANTED);
	give(FIRST + 1, 6, GRANTED);
	CHECK_EQ(map(FIRST, 1, 0, &handle), GNTST_okay);
	granter.dying = true;
	CHECK_EQ(map(FIRST + 1, 2, 0, &other), GNTST_bad_domain);
	untouched(6);
	page = (char *)shared(0);
	frames[5].ref &= ~REF_ALLOCATED;
	frame_put(&frames[5]);
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 2);
	grants_unshare(&granter);
	memset(page, 0xff, PAGE_SIZE);
	CHECK_EQ(unmap(handle, 1), GNTST_okay);
	for (unsigned i = 0; i < PAGE_SIZE; i++)
		CHECK_MSG((uint8_t)page[i] == 0xff, "byte %u of a page that is not ours", i);
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 0);
	CHECK(frames[5].owner == NULL);
	grants_free(&granter);
	grants_unshare(&mapper);
	grants_free(&mapper);
	CHECK_EQ(live_bytes, 0);
}

static void what_is_full(void)
{
	uint32_t handle, last = 0;
	unsigned n = 0;

	begin();
	give(FIRST, 5, GRANTED);
	while (map(FIRST, n % 512, GNTMAP_readonly, &handle) == GNTST_okay) {
		last = handle;
		n++;
	}
	/* One frame of handles, of which all but their number is the mapper's to use. */
	CHECK_EQ(n, MAPPINGS_PER_FRAME);
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 1 + 2 * n);
	CHECK_EQ(unmap(last, (n - 1) % 512), GNTST_okay);
	CHECK_EQ(map(FIRST, 0, GNTMAP_readonly, &handle), GNTST_okay);
}

static void goes_on_where_it_was(void)
{
	struct gnttab_map_grant_ref maps[10];
	struct gnttab_unmap_grant_ref unmaps[10];
	long rc;

	begin();
	give(FIRST, 5, GRANTED);
	for (unsigned i = 0; i < 10; i++)
		maps[i] = (struct gnttab_map_grant_ref){.host_addr = PLACE(i),
							.flags = GNTMAP_host_map,
							.ref = FIRST,
							.dom = granter.id};
	preempt_after = 3;
	rc = do_grant_table_op(GNTTABOP_map_grant_ref, (arg_t)(uintptr_t)maps, 10);
	CHECK_EQ(rc, -ERESTART);
	CHECK_EQ(again_count, 7);
	CHECK_EQ(again_at, (arg_t)(uintptr_t)&maps[3]);
	CHECK_EQ(do_grant_table_op(GNTTABOP_map_grant_ref, again_at, again_count), 0);
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 21);
	for (unsigned i = 0; i < 10; i++) {
		CHECK_EQ(maps[i].status, GNTST_okay);
		unmaps[i] = (struct gnttab_unmap_grant_ref){.host_addr = PLACE(i),
							    .handle = maps[i].handle};
	}
	/* The same handle twice in a batch is given back once. */
	unmaps[9].handle = unmaps[8].handle;
	CHECK_EQ(do_grant_table_op(GNTTABOP_unmap_grant_ref, (arg_t)(uintptr_t)unmaps, 10), 0);
	CHECK_EQ(flushes, 1);
	CHECK_EQ(unmaps[8].status, GNTST_okay);
	CHECK_EQ(unmaps[9].status, GNTST_bad_handle);
	CHECK_EQ(frames[5].ref & REF_COUNT_MASK, 3);
	CHECK_EQ(unmap(maps[9].handle, 9), GNTST_okay);
	untouched(5);
}

static void memory_is_short(void)
{
	bool worked = false;
	uint32_t handle;

	for (unsigned n = 1; !worked; n++) {
		begin();
		grants_unshare(&granter);
		grants_free(&granter);
		live_bytes = allocations = 0;
		fail_at = n;
		worked = grants_create(&granter, 2, 1) == 0;
		CHECK(worked || granter.grants == NULL);
		if (worked) {
			grants_unshare(&granter);
			grants_free(&granter);
		}
		CHECK_MSG(live_bytes == 0, "%u bytes are left when allocation %u fails", live_bytes,
			  n);
	}
	/* Its second frame; a page for the handles of who maps. */
	for (unsigned n = 1; n <= 2; n++) {
		xen_pfn_t mfn;

		begin();
		allocations = 0;
		fail_at = n;
		CHECK_EQ(grants_frame(&granter, 1, &mfn), -ENOMEM);
		CHECK_EQ(grants_frame(&granter, 1, &mfn), 0);
		CHECK_EQ(granter.grants->nr_frames, 2);
	}
	begin();
	give(FIRST, 5, GRANTED);
	allocations = 0;
	fail_at = 1;
	CHECK_EQ(map(FIRST, 1, 0, &handle), GNTST_no_space);
	untouched(5);
	CHECK_EQ(shared(FIRST)->flags, GRANTED);
	CHECK_EQ(map(FIRST, 1, 0, &handle), GNTST_okay);
	CHECK_EQ(unmap(handle, 1), GNTST_okay);
	grants_unshare(&granter);
	grants_unshare(&mapper);
	grants_free(&granter);
	grants_free(&mapper);
	CHECK_EQ(live_bytes, 0);
	CHECK_EQ(grants_create(&granter, 0, 1), -EINVAL);
	CHECK_EQ(grants_create(&granter, FRAMES_MAX + 1, 1), -EINVAL);
	CHECK_EQ(grants_create(&granter, 1, MAPTRACK_MAX + 1), -EINVAL);
}

UNIT_MAIN(TEST(holds_while_it_is_mapped), TEST(the_mapper_dies), TEST(the_granter_dies_first),
	  TEST(what_is_full), TEST(goes_on_where_it_was), TEST(memory_is_short))
