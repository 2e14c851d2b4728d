/* SPDX-License-Identifier: MIT */
/*
 * The hypervisor's tables: made once at boot; afterwards only device mappings are added and windows change.
 *
 * Rights: text is executable and not writable, everything else is not executable; only the machine-to-physical table is readable from ring 3,
 * and it is written through the direct map. All is global but the windows, which change with the vCPU; with isolated tables (xpti.c) nothing is that
 * a guest's tables do not show.
 */
#include "vmm/mm/map.h"

#include "vmm/domain/domain.h"

#include "vmm/boot/boot.h"
#include "vmm/cpu/mitigation.h"
#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/tlb.h"
#include "vmm/mm/xpti.h"

#define LARGE	   (2ul << 20)
#define LOW_MEMORY (1ul << 20) /* stays as the firmware left it; dom0 looks around in it */

uint64_t *hv_l4;
uint64_t direct_bytes = 4ul << 30;

extern char image_start[], text_end[], rodata_end[], data_end[], image_end[], boot_stack[];

/* Until the heap is there, pages come from the top of one range of RAM. */
static uint64_t early_bottom, early_top;
static bool heap_ready;
static uint64_t device_next = REMAP_BASE;
static uint64_t *window_l1[MAX_CPUS]; /* of the second half */
static uint64_t *m2p;		      /* through the direct map */
static uint64_t m2p_bytes;
static uint64_t global;

static uint64_t early_alloc(uint64_t bytes, uint64_t align)
{
	uint64_t at = (early_top - bytes) & ~(align - 1);

	if (at < early_bottom || at > early_top)
		give_up("too little memory: %lu MiB more are needed below 4 GiB for the hypervisor's tables; give the machine at least 512 MiB",
			(bytes >> 20) + 1);
	early_top = at;
	memset(maddr_to_ptr(at), 0, bytes);
	return at;
}

static uint64_t table_alloc(void)
{
	mfn_t m;

	if (!heap_ready)
		return early_alloc(PAGE_SIZE, PAGE_SIZE);
	m = heap_alloc(0, 0);
	return mfn_eq(m, MFN_NONE) ? 0 : m.v << PAGE_SHIFT;
}

/* The entry of the level for va, with the tables above it made as needed. NULL: no memory. */
static uint64_t *entry_at(uint64_t va, unsigned level)
{
	uint64_t *table = hv_l4;

	for (unsigned l = 4; l > level; l--) {
		uint64_t *e = &table[pt_index(va, l)];

		if (!(*e & PTE_P)) {
			uint64_t fresh = table_alloc();

			if (!fresh)
				return NULL;
			/* Rights are in the last level; US above lets only the M2P through. */
			*e = fresh | PTE_P | PTE_RW | PTE_A | (va < FRAMES_BASE ? PTE_US : 0);
		}
		table = maddr_to_ptr(*e & PTE_ADDR);
	}
	return &table[pt_index(va, level)];
}

static void map_pages(uint64_t va, uint64_t maddr, uint64_t bytes, uint64_t flags)
{
	while (bytes) {
		bool large = !((va | maddr) & (LARGE - 1)) && bytes >= LARGE;
		uint64_t step = large ? LARGE : PAGE_SIZE;

		*entry_at(va, large ? 2 : 1) =
			maddr | flags | PTE_P | PTE_A | PTE_D | (large ? PTE_PSE : 0);
		va += step;
		maddr += step;
		bytes -= MIN(step, bytes);
	}
}

static uint64_t image_phys(const char *symbol)
{
	return (uint64_t)symbol - IMAGE_BASE;
}

/* The range is used by the image or a module. Returns the end of what is in the way, or 0. */
static uint64_t in_the_way(uint64_t start, uint64_t end)
{
	if (start < image_phys(image_end) && end > image_phys(image_start))
		return image_phys(image_end);
	for (unsigned i = 0; i < boot_info.nr_modules; i++) {
		const struct boot_module *m = &boot_info.module[i];
		uint64_t last = ROUND_UP(m->start + m->bytes, PAGE_SIZE);

		if (start < last && end > (m->start & PAGE_MASK))
			return last;
	}
	return 0;
}

typedef void range_fn(uint64_t start, uint64_t end);

/* All RAM that nothing is in, in whole pages. */
static void each_free_range(range_fn *fn)
{
	for (unsigned i = 0; i < boot_info.nr_ranges; i++) {
		const struct boot_range *r = &boot_info.range[i];
		uint64_t at = ROUND_UP(MAX(r->start, LOW_MEMORY), PAGE_SIZE);
		uint64_t end = r->end & PAGE_MASK, begun = at;

		if (r->type != RANGE_RAM)
			continue;
		while (at < end) {
			uint64_t after = in_the_way(at, at + PAGE_SIZE);

			if (!after) {
				at += PAGE_SIZE;
				continue;
			}
			if (at > begun)
				fn(begun, at);
			begun = at = after;
		}
		if (end > begun)
			fn(begun, end);
	}
}

static void choose_early(uint64_t start, uint64_t end)
{
	end = MIN(end, 4ul << 30);
	if (end > start && end - start > early_top - early_bottom) {
		early_bottom = start;
		early_top = end;
	}
}

static uint64_t early_first_top;

static void give_to_heap(uint64_t start, uint64_t end)
{
	if (start == early_bottom && end >= early_first_top && early_top < end) {
		heap_add(MFN(start >> PAGE_SHIFT), MFN(early_top >> PAGE_SHIFT));
		start = early_first_top;
	}
	if (end > start)
		heap_add(MFN(start >> PAGE_SHIFT), MFN(end >> PAGE_SHIFT));
}

/* One past the last byte of RAM. */
static uint64_t ram_end(void)
{
	uint64_t end = 0;

	for (unsigned i = 0; i < boot_info.nr_ranges; i++)
		if (boot_info.range[i].type == RANGE_RAM && boot_info.range[i].end > end)
			end = boot_info.range[i].end;
	if (end > DIRECT_BYTES) {
		log_warning("memory above %lu GiB is not used", DIRECT_BYTES >> 30);
		end = DIRECT_BYTES;
	}
	return end & PAGE_MASK;
}

/* Which frames are RAM: the others are not counted, and dom0 may map them as devices. */
uint64_t ram_frames;

static void mark_ram(void)
{
	for (uint64_t i = 0; i < frame_max; i++)
		frame_table[i].ref = REF_IO;
	for (unsigned k = 0; k < boot_info.nr_ranges; k++) {
		const struct boot_range *r = &boot_info.range[k];
		uint64_t first = ROUND_UP(MAX(r->start, LOW_MEMORY), PAGE_SIZE) >> PAGE_SHIFT;

		if (r->type != RANGE_RAM)
			continue;
		for (uint64_t i = first; i < MIN(r->end >> PAGE_SHIFT, frame_max); i++)
			frame_table[i] = (struct frame){.next = FRAME_NONE, .prev = FRAME_NONE};
		ram_frames += (r->end - r->start) >> PAGE_SHIFT;
	}
}

static void map_image(void)
{
	map_pages((uint64_t)image_start, image_phys(image_start),
		  (uint64_t)text_end - (uint64_t)image_start, global);
	map_pages((uint64_t)text_end, image_phys(text_end),
		  (uint64_t)rodata_end - (uint64_t)text_end, global | PTE_NX);
	map_pages((uint64_t)rodata_end, image_phys(rodata_end),
		  (uint64_t)image_end - (uint64_t)rodata_end, global | PTE_RW | PTE_NX);
}

/* Its frames may be mapped by who saves domains, to be read: they are in use as something else than to be written for ever. */
static void map_share_m2p(void)
{
	for (uint64_t i = 0; i < m2p_bytes >> PAGE_SHIFT; i++) {
		struct frame *f = mfn_frame(MFN(ptr_to_mfn(m2p).v + i));

		f->owner = &hypervisor_domain;
		f->ref = REF_ALLOCATED | REF_HYPERVISOR | 1;
		f->type = (uint64_t)TYPE_DESC << TYPE_SHIFT | 1;
	}
}

void map_init(void)
{
	uint64_t end = ram_end(), frames_bytes;

	direct_base = (char *)DIRECT_BASE;
	global = mitigations.xpti ? 0 : PTE_G;
	each_free_range(choose_early);
	early_first_top = early_top;
	hv_l4 = maddr_to_ptr(early_alloc(PAGE_SIZE, PAGE_SIZE));

	frame_max = end >> PAGE_SHIFT;
	frames_bytes = ROUND_UP(frame_max * sizeof(struct frame), LARGE);
	m2p_bytes = ROUND_UP(frame_max * sizeof(uint64_t), LARGE);
	map_image();
	/* Through 4 GiB whatever is there: ACPI tables lie in the holes, uncached device memory is mapped elsewhere. */
	direct_bytes = ROUND_UP(MAX(end, 4ul << 30), LARGE);
	map_pages(DIRECT_BASE, 0, direct_bytes, PTE_RW | global | PTE_NX);
	frame_table = (struct frame *)FRAMES_BASE;
	map_pages(FRAMES_BASE, early_alloc(frames_bytes, LARGE), frames_bytes,
		  PTE_RW | global | PTE_NX);
	m2p = maddr_to_ptr(early_alloc(m2p_bytes, LARGE));
	memset(m2p, 0xff, m2p_bytes);
	map_pages(M2P_BASE, ptr_to_mfn(m2p).v << PAGE_SHIFT, m2p_bytes, PTE_US | PTE_G | PTE_NX);
	/* These top-level entries must be there before any guest's table gets a copy of them. */
	for (unsigned slot = HV_FIRST_SLOT; slot <= HV_LAST_SLOT; slot++) {
		uint64_t va = 0xffff000000000000ul | (uint64_t)slot << 39;

		if (slot == M2P_SLOT || slot == pt_index(REMAP_BASE, 4) ||
		    slot == pt_index(IMAGE_BASE, 4))
			entry_at(va, 3);
	}
	if (!map_cpu(0))
		bug(__FILE__, __LINE__, "no memory for the first processor");
	write_cr3(map_hv_l4().v << PAGE_SHIFT);
	mark_ram();
	map_share_m2p();
	each_free_range(give_to_heap);
	heap_ready = true;
	log_info("memory: %lu MiB in all, %lu MiB free, frame table %lu MiB", ram_frames >> 8,
		 heap_free_frames() >> 8, frames_bytes >> 20);
}

uint64_t map_m2p(mfn_t *first)
{
	*first = ptr_to_mfn(m2p);
	return m2p_bytes >> PAGE_SHIFT;
}

mfn_t map_hv_l4(void)
{
	return ptr_to_mfn(hv_l4);
}

void pt_fill_hypervisor_slots(uint64_t *l4)
{
	memcpy(l4 + HV_FIRST_SLOT, hv_l4 + HV_FIRST_SLOT,
	       (HV_LAST_SLOT - HV_FIRST_SLOT + 1) * sizeof(*l4));
	xpti_forget(ptr_to_mfn(l4));
}

void *map_device(uint64_t maddr, size_t bytes)
{
	uint64_t offset = maddr & (PAGE_SIZE - 1), va = device_next;
	uint64_t size = ROUND_UP(offset + bytes, PAGE_SIZE);

	if (!bytes || size > REMAP_END - device_next)
		return NULL;
	device_next += size;
	for (uint64_t done = 0; done < size; done += PAGE_SIZE) {
		uint64_t *e = entry_at(va + done, 1);

		if (!e)
			return NULL;
		*e = ((maddr & PAGE_MASK) + done) | PTE_P | PTE_RW | PTE_A | PTE_D | global |
		     PTE_PCD | PTE_PWT | PTE_NX;
	}
	return (void *)(va + offset);
}

void map_window(unsigned offset, mfn_t m, enum window_rights rights)
{
	unsigned cpu = this_cpu()->id;
	uint64_t va = WINDOW_BASE + (uint64_t)cpu * WINDOW_STRIDE + offset;
	uint64_t *e = &window_l1[cpu][pt_index(va, 1)], fresh = 0;

	if (!mfn_eq(m, MFN_NONE))
		fresh = pte_make(m, PTE_P | PTE_A | PTE_D | (rights == WINDOW_RW ? PTE_RW : 0) |
					    (rights == WINDOW_RX ? 0 : PTE_NX));
	if (*e == fresh)
		return;
	WRITE_ONCE(*e, fresh);
	tlb_page_local(va);
}

bool map_cpu(unsigned cpu)
{
	uint64_t frame = WINDOW_BASE + (uint64_t)cpu * WINDOW_STRIDE + WINDOW_FRAME;

	for (uint64_t at = 0; at <= STACK_SIZE; at += PAGE_SIZE) {
		uint64_t va = frame - STACK_SIZE + at, *e = entry_at(va, 1);
		uint64_t maddr = cpu ? table_alloc() : image_phys(boot_stack) + at;

		if (!e || !maddr)
			return false;
		*e = maddr | PTE_P | PTE_RW | PTE_A | PTE_D | PTE_NX |
		     (va == frame ? PTE_G : global);
	}
	window_l1[cpu] = entry_at(frame, 1) - pt_index(frame, 1);
	return true;
}

void m2p_set(mfn_t m, uint64_t pfn)
{
	if (m.v < frame_max)
		WRITE_ONCE(m2p[m.v], pfn);
}

uint64_t m2p_get(mfn_t m)
{
	return m.v < frame_max ? READ_ONCE(m2p[m.v]) : M2P_INVALID;
}

void map_free_modules(void)
{
	for (unsigned i = 0; i < boot_info.nr_modules; i++) {
		const struct boot_module *m = &boot_info.module[i];
		uint64_t first = ROUND_UP(m->start, PAGE_SIZE),
			 last = (m->start + m->bytes) & PAGE_MASK;

		if (last > first && last >> PAGE_SHIFT <= frame_max)
			heap_add(MFN(first >> PAGE_SHIFT), MFN(last >> PAGE_SHIFT));
	}
	boot_info.nr_modules = 0;
}
