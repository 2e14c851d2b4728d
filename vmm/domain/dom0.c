/* SPDX-License-Identifier: MIT */
/*
 * dom0 is built as the ABI wants a domain to begin (xen/xen.h, "start-of-day memory layout"): pseudo-physical memory from 0 on, of which the kernel
 * finds mapped at its virtual base
 *
 *   kernel image, [RAM disk], [P2M list], start_info, page tables, stack page, and at least 512 KiB of room
 *
 * RAM disk and P2M list are not in there when the kernel has said that it takes them elsewhere (MOD_START_PFN, INIT_P2M), as Linux does. The
 * tables are written as plain memory and then pinned, so they pass the same checks as every other table.
 */
#include "vmm/domain/dom0.h"

#include <stdarg.h>

#include "vmm/boot/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/cpu/desc.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/domain/domain.h"
#include "vmm/domain/elf.h"
#include "vmm/hypercall/table.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/shadow.h"
#include "vmm/platform/irq.h"
#include "vmm/platform/serial.h"

#define MIB	      (1ul << 20)
#define MIN_ROOM      (512ull << 10)
#define MAP_ALIGN     (4 * MIB)
#define CHUNK_ORDER   10
#define KEEP_MIN      (96 * MIB) /* for the hypervisor, and for frames that devices can reach */
#define KEEP_ASKED    (32 * MIB) /* where dom0_mem asks for more than that leaves */
#define DOM0_MIN      (64 * MIB)
#define TABLE_FLAGS   (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
#define PAGE_FLAGS    (PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D)
#define EVENTS_MASKED 1

/* Where everything goes, in frames of the domain. */
struct plan {
	struct elf_kernel kernel;
	const struct boot_module *image, *initrd; /* initrd may be NULL */
	uint64_t virt_base;
	uint64_t nr_pages;
	uint64_t *mfn; /* of each pfn */
	uint64_t kernel_end, initrd_pfn, p2m_pfn, start_info, tables, nr_tables, stack, mapped_end;
	uint64_t initrd_frames, p2m_frames, p2m_tables;
};

__attribute__((noreturn, format(printf, 1, 2))) static void cannot(const char *format, ...)
{
	char text[300];
	va_list args;

	va_start(args, format);
	format_string_v(text, sizeof(text), format, args);
	va_end(args);
	give_up("dom0 cannot be started: %s", text);
}

static uint64_t frames_of(uint64_t bytes)
{
	return ROUND_UP(bytes, PAGE_SIZE) >> PAGE_SHIFT;
}

static void *page_of(const struct plan *p, uint64_t pfn)
{
	return mfn_to_ptr(MFN(p->mfn[pfn]));
}

static uint64_t va_of(const struct plan *p, uint64_t pfn)
{
	return p->virt_base + (pfn << PAGE_SHIFT);
}

/* Copy into the domain's memory; it is contiguous only page by page. NULL: zeroes, which it has already. */
static void put(const struct plan *p, uint64_t at, const void *from, uint64_t bytes)
{
	const char *source = from;

	while (bytes) {
		uint64_t offset = at & (PAGE_SIZE - 1), n = MIN(bytes, PAGE_SIZE - offset);

		memcpy((char *)page_of(p, at >> PAGE_SHIFT) + offset, source, n);
		at += n;
		source += n;
		bytes -= n;
	}
}

/* ---- memory ---- */

static uint64_t memory_wanted(void)
{
	uint64_t free = heap_free_frames() << PAGE_SHIFT, keep, most, want;

	keep = boot_options.dom0_mem ? KEEP_ASKED : KEEP_MIN;
	most = free > keep + free / 32 ? free - keep - free / 32 : 0;
	want = boot_options.dom0_mem ? boot_options.dom0_mem : most;
	if (boot_options.dom0_mem_min && want < boot_options.dom0_mem_min)
		want = boot_options.dom0_mem_min;
	if (boot_options.dom0_mem_max && want > boot_options.dom0_mem_max)
		want = boot_options.dom0_mem_max;
	if (want > most) {
		log_warning("dom0_mem: %lu MiB are asked for, %lu MiB are there", want / MIB,
			    most / MIB);
		want = most;
	}
	if (want < DOM0_MIN)
		cannot("%lu MiB of memory are left for it, too few; give the machine more memory, or dom0_mem= a larger value",
		       want / MIB);
	return want >> PAGE_SHIFT;
}

static void allocate(struct plan *p, struct domain *d)
{
	uint64_t done = 0;
	unsigned order = CHUNK_ORDER;

	p->mfn = heap_zalloc(p->nr_pages * sizeof(*p->mfn));
	if (!p->mfn)
		cannot("no memory for the list of its frames");
	while (done < p->nr_pages) {
		mfn_t m;

		while (order && 1ull << order > p->nr_pages - done)
			order--;
		m = heap_alloc(order, 0);
		if (mfn_eq(m, MFN_NONE)) {
			if (!order)
				cannot("its %lu MiB of memory are not there; give dom0_mem= a smaller value",
				       p->nr_pages >> 8);
			order--;
			continue;
		}
		for (uint64_t i = 0; i < 1ull << order; i++, done++) {
			p->mfn[done] = m.v + i;
			domain_add_frame(d, mfn_frame(MFN(m.v + i)));
			m2p_set(MFN(m.v + i), done);
		}
	}
	if (boot_options.dom0_mem_max)
		d->pages_max = MAX(p->nr_pages, boot_options.dom0_mem_max >> PAGE_SHIFT);
	else
		d->pages_max = ~0ull >> PAGE_SHIFT;
}

/* ---- layout ---- */

/* Tables of levels 1 to 3 to map so many pages there. */
static uint64_t tables_for(uint64_t first, uint64_t pages)
{
	uint64_t last = first + (pages << PAGE_SHIFT) - 1, n = 0;

	for (unsigned level = 1; level <= 3; level++) {
		unsigned shift = PAGE_SHIFT + 9 * level;

		n += (last >> shift) - (first >> shift) + 1;
	}
	return n;
}

/* Whole pages of addresses that a guest may use, on one side of the hole. */
static bool guest_range(uint64_t first, uint64_t pages)
{
	uint64_t last = first + (pages << PAGE_SHIFT) - 1;

	return !(first % PAGE_SIZE) && pages < 1ull << 35 && last > first &&
	       (last < 1ull << 47 || first >= HV_END);
}

static void check_room(const struct plan *p, uint64_t pages)
{
	if (pages >= p->nr_pages)
		cannot("kernel and RAM disk need %lu MiB of the %lu MiB that it gets; give dom0_mem= a larger value",
		       (pages >> 8) + 1, p->nr_pages >> 8);
}

static void lay_out(struct plan *p)
{
	const struct elf_kernel *k = &p->kernel;
	uint64_t at;

	p->virt_base = k->virt_base;
	if (k->paddr_first < k->paddr_offset)
		cannot("the kernel's addresses lie below its PADDR_OFFSET");
	p->kernel_end = frames_of(k->paddr_last - k->paddr_offset);
	at = p->kernel_end;
	p->initrd_frames = p->initrd ? frames_of(p->initrd->bytes) : 0;
	if (p->initrd && !k->mod_start_pfn) {
		p->initrd_pfn = at;
		at += p->initrd_frames;
	}
	p->p2m_frames = frames_of(p->nr_pages * sizeof(uint64_t));
	if (!k->init_p2m_given) {
		p->p2m_pfn = at;
		at += p->p2m_frames;
	}
	p->start_info = at++;
	p->tables = at;
	check_room(p, at);
	do {
		p->nr_tables++;
		p->stack = p->tables + p->nr_tables;
		p->mapped_end =
			(ROUND_UP(va_of(p, p->stack + 1) + MIN_ROOM, MAP_ALIGN) - p->virt_base) >>
			PAGE_SHIFT;
		if (!guest_range(p->virt_base, p->mapped_end))
			cannot("the kernel wants to lie at %lx, where it cannot", p->virt_base);
	} while (1 + tables_for(p->virt_base, p->mapped_end) > p->nr_tables);
	at = p->mapped_end;
	if (p->initrd && k->mod_start_pfn) {
		p->initrd_pfn = at;
		at += p->initrd_frames;
	}
	if (k->init_p2m_given) {
		p->p2m_pfn = at;
		if (!guest_range(k->init_p2m, p->p2m_frames))
			cannot("the kernel wants the list of its frames at %lx, where it cannot be",
			       k->init_p2m);
		p->p2m_tables = tables_for(k->init_p2m, p->p2m_frames);
		at += p->p2m_frames + p->p2m_tables;
	}
	check_room(p, at);
}

/* ---- page tables ---- */

static uint64_t *slot(const struct plan *p, uint64_t *l4, uint64_t va, uint64_t *used,
		      uint64_t first, uint64_t most)
{
	uint64_t *table = l4;

	for (unsigned level = 4; level > 1; level--) {
		uint64_t *e = &table[pt_index(va, level)];

		/* The next unused table. */
		if (!*e) {
			BUG_ON(*used == most);
			*e = pte_make(MFN(p->mfn[first + (*used)++]), TABLE_FLAGS);
		}
		table = mfn_to_ptr(pte_mfn(*e));
	}
	return &table[pt_index(va, 1)];
}

static void make_tables(const struct plan *p)
{
	uint64_t used = 1, p2m_used = 0;
	uint64_t *l4 = page_of(p, p->tables);

	for (uint64_t pfn = 0; pfn < p->mapped_end; pfn++) {
		bool is_table = pfn >= p->tables && pfn < p->tables + p->nr_tables;

		*slot(p, l4, va_of(p, pfn), &used, p->tables, p->nr_tables) =
			pte_make(MFN(p->mfn[pfn]), is_table ? PAGE_FLAGS & ~PTE_RW : PAGE_FLAGS);
	}
	if (!p->kernel.init_p2m_given)
		return;
	for (uint64_t i = 0; i < p->p2m_frames; i++)
		*slot(p, l4, p->kernel.init_p2m + (i << PAGE_SHIFT), &p2m_used,
		      p->p2m_pfn + p->p2m_frames, p->p2m_tables) =
			pte_make(MFN(p->mfn[p->p2m_pfn + i]), PAGE_FLAGS);
}

static void use_tables(const struct plan *p, struct vcpu *v)
{
	struct domain *d = v->domain;
	struct frame *l4 = mfn_frame(MFN(p->mfn[p->tables]));
	int rc;

	if (page_lock(d))
		bug(__FILE__, __LINE__, "dom0's page lock");
	rc = frame_pin(l4, TYPE_L4);
	if (!rc)
		rc = frame_get_both(l4, d, TYPE_L4);
	page_unlock(d);
	if (rc)
		cannot("its first page tables are not valid (%d)", rc);
	v->table_kernel = frame_mfn(l4);
	vcpu_tables_changed(v);
}

/* ---- contents ---- */

static void load_kernel(const struct plan *p)
{
	const char *file = maddr_to_ptr(p->image->start);

	for (unsigned i = 0; i < p->kernel.nr_segments; i++) {
		const struct elf_segment *s = &p->kernel.segment[i];

		put(p, s->paddr - p->kernel.paddr_offset, file + s->file_offset, s->file_bytes);
	}
	if (p->kernel.hypercall_page_given) {
		uint64_t at = p->kernel.hypercall_page - p->virt_base;

		if (at % PAGE_SIZE || at >> PAGE_SHIFT >= p->kernel_end)
			cannot("the kernel's hypercall page at %lx is not inside of it",
			       p->kernel.hypercall_page);
		hypercall_page_fill(page_of(p, at >> PAGE_SHIFT));
	}
}

static void fill_console(struct dom0_vga_console_info *c)
{
	if (!boot_info.has_framebuffer) {
		c->video_type = XEN_VGATYPE_TEXT_MODE_3;
		c->u.text_mode_3.rows = 25;
		c->u.text_mode_3.columns = 80;
		c->u.text_mode_3.font_height = 16;
		return;
	}
	*c = boot_info.screen;
	c->video_type = boot_info.efi ? XEN_VGATYPE_EFI_LFB : XEN_VGATYPE_VESA_LFB;
}

static void fill_start_info(const struct plan *p, const struct domain *d)
{
	struct start_info *s = page_of(p, p->start_info);
	const char *words = p->image->command;
	size_t length = strlen(words);

	_Static_assert(sizeof(struct start_info) + sizeof(struct dom0_vga_console_info) <=
			       PAGE_SIZE,
		       "both stand in one page");
	memcpy(s->magic, "xen-3.0-x86_64", sizeof("xen-3.0-x86_64"));
	s->nr_pages = p->nr_pages;
	s->shared_info = ptr_to_mfn(d->shared_info).v << PAGE_SHIFT;
	s->flags = SIF_PRIVILEGED | SIF_INITDOMAIN;
	s->pt_base = va_of(p, p->tables);
	s->nr_pt_frames = p->nr_tables;
	s->mfn_list = p->kernel.init_p2m_given ? p->kernel.init_p2m : va_of(p, p->p2m_pfn);
	if (p->kernel.init_p2m_given) {
		s->first_p2m_pfn = p->p2m_pfn;
		s->nr_p2m_frames = p->p2m_frames + p->p2m_tables;
	}
	if (p->initrd) {
		s->mod_start = p->kernel.mod_start_pfn ? p->initrd_pfn : va_of(p, p->initrd_pfn);
		s->mod_len = p->initrd->bytes;
		if (p->kernel.mod_start_pfn)
			s->flags |= SIF_MOD_START_PFN;
	}
	s->console.dom0.info_off = sizeof(*s);
	s->console.dom0.info_size = sizeof(struct dom0_vga_console_info);
	fill_console((struct dom0_vga_console_info *)(s + 1));
	if (length >= sizeof(s->cmd_line)) {
		log_warning("dom0's command line is cut after %zu characters",
			    sizeof(s->cmd_line) - 1);
		length = sizeof(s->cmd_line) - 1;
	}
	memcpy(s->cmd_line, words, length);
}

/* ---- rights ---- */

static void give_rights(struct domain *d)
{
	static const struct {
		uint16_t first, last;
	} kept[] = {{0x20, 0x21}, {0xa0, 0xa1}, {0x40, 0x43}, {0x61, 0x61}};
	uint64_t frames = 1ull << (cpu_features.phys_bits - PAGE_SHIFT);

	rangeset_add(&d->io_ports, 0, 0xffff);
	for (unsigned i = 0; i < ARRAY_SIZE(kept); i++)
		rangeset_remove(&d->io_ports, kept[i].first, kept[i].last);
	if (serial_base())
		rangeset_remove(&d->io_ports, serial_base(), serial_base() + SERIAL_PORTS - 1);
	rangeset_add(&d->io_frames, 0, frames - 1);
	/* Interrupt controllers are ours, and where messages to processors go. */
	rangeset_remove(&d->io_frames, 0xfee00000 >> PAGE_SHIFT, 0xfeefffff >> PAGE_SHIFT);
	for (unsigned i = 0; i < acpi.nr_ioapics; i++)
		rangeset_remove(&d->io_frames, acpi.ioapic[i].address >> PAGE_SHIFT,
				acpi.ioapic[i].address >> PAGE_SHIFT);
	rangeset_add(&d->irqs, 0, NR_IRQS - 1);
}

static void start_vcpu(const struct plan *p, struct vcpu *v)
{
	v->regs.rip = p->kernel.entry;
	v->regs.rsp = va_of(p, p->stack + 1);
	v->regs.rsi = va_of(p, p->start_info);
	v->regs.cs = SEL_RING3_64;
	v->regs.ss = SEL_RING3_SS;
	v->regs.rflags = EFLAGS_IF | 2;
	v->kernel_sp = v->regs.rsp;
	v->kernel_ss = SEL_RING3_SS;
	v->kernel_mode = true;
	v->info->evtchn_upcall_mask = EVENTS_MASKED;
	v->initialised = true;
	v->down = false;
}

void dom0_build(void)
{
	static struct plan plan;
	struct plan *p = &plan;
	unsigned vcpus =
		MIN(MAX(MIN(nr_cpus, boot_options.dom0_vcpus_max), boot_options.dom0_vcpus_min),
		    MAX_VCPUS);
	const char *why;
	struct vcpu *v;

	if (!boot_info.nr_modules)
		cannot("the boot loader brought no kernel; add a line `module2 /boot/vmlinux...` for it, and one for its initrd");
	p->image = &boot_info.module[0];
	p->initrd = boot_info.nr_modules > 1 ? &boot_info.module[1] : NULL;
	if (elf_parse(maddr_to_ptr(p->image->start), p->image->bytes, &p->kernel, &why))
		cannot("the first module, which should be its kernel, %s", why);
	if (domain_create(0, true, -1, -1, &dom0))
		cannot("no memory for its structures");
	p->nr_pages = memory_wanted();
	lay_out(p);
	allocate(p, dom0);
	load_kernel(p);
	if (p->initrd)
		put(p, p->initrd_pfn << PAGE_SHIFT, maddr_to_ptr(p->initrd->start),
		    p->initrd->bytes);
	put(p, p->p2m_pfn << PAGE_SHIFT, p->mfn, p->nr_pages * sizeof(uint64_t));
	make_tables(p);
	fill_start_info(p, dom0);
	give_rights(dom0);
	for (unsigned i = 0; i < vcpus; i++)
		if (vcpu_create(dom0, i, &v))
			cannot("no memory for its vCPU %u", i);
	use_tables(p, dom0->vcpu[0]);
	start_vcpu(p, dom0->vcpu[0]);
	heap_zfree(p->mfn, p->nr_pages * sizeof(*p->mfn));
	log_info("dom0: %s, %lu MiB, %u vCPU%s, kernel up to %lx, RAM disk of %lu KiB, entry %lx",
		 p->kernel.guest_os[0] ? p->kernel.guest_os : "a PV kernel", p->nr_pages >> 8,
		 vcpus, vcpus == 1 ? "" : "s", va_of(p, p->kernel_end),
		 p->initrd ? p->initrd->bytes >> 10 : 0, p->kernel.entry);
	map_free_modules();
}
