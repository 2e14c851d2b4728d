/* SPDX-License-Identifier: MIT */
/*
 * Each CPU has one GDT and one LDT address for good, in its window (mm/layout.h); switching vCPUs changes which frames are seen there. Pages of
 * the GDT that the guest does not have show zeroes, so that every selector has a descriptor to look at.
 */
#include "vmm/cpu/desc.h"

#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/cpu/traps.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/map.h"
#include "vmm/mm/page_type.h"
#include "vmm/mm/walk.h"

enum { IST_NONE, IST_DOUBLE_FAULT, IST_NMI, IST_MACHINE_CHECK, IST_DEBUG, NR_IST };

struct tss {
	uint32_t reserved0;
	uint64_t rsp[3];
	uint64_t reserved1;
	uint64_t ist[7];
	uint64_t reserved2;
	uint16_t reserved3, iomap;
} __attribute__((packed));
_Static_assert(sizeof(struct tss) == 104, "AMD64 APM 2, figure 12-8");

struct gate {
	uint16_t offset0, selector;
	uint8_t ist, type;
	uint16_t offset16;
	uint32_t offset32, reserved;
};

struct table_pointer {
	uint16_t limit;
	uint64_t base;
} __attribute__((packed));

static struct gate *idt;	     /* a page; all CPUs see the same */
static uint64_t *own_page[MAX_CPUS]; /* page 14 of the CPU's GDT */
static mfn_t zero_page;

#define TSS_AT 2048 /* in the page of struct stack_top */

extern const char trap_stubs[256][16];
extern char stub_page[], stub_end[], syscall_stub[], syscall_stub_end[], syscall32_stub[],
	syscall32_stub_end[];

static void make_idt(void)
{
	idt = heap_alloc_pages(0);
	BUG_ON(!idt);
	for (unsigned n = 0; n < 256; n++) {
		uint64_t at = (uint64_t)trap_stubs[n];
		/* Guests may use INT3 and INTO themselves; every other INT n is a #GP that traps.c looks into. */
		unsigned dpl = n == TRAP_INT3 || n == TRAP_OVERFLOW ? 3 : 0;

		idt[n] = (struct gate){
			.offset0 = (uint16_t)at,
			.selector = SEL_HV_CODE,
			.type = (uint8_t)(0x8e | dpl << 5),
			.offset16 = (uint16_t)(at >> 16),
			.offset32 = (uint32_t)(at >> 32),
		};
	}
	idt[TRAP_DOUBLE_FAULT].ist = IST_DOUBLE_FAULT;
	idt[TRAP_NMI].ist = IST_NMI;
	idt[TRAP_DEBUG].ist = IST_DEBUG;
	idt[TRAP_MACHINE_CHECK].ist = IST_MACHINE_CHECK;
}

static void set_system_descriptor(uint64_t *page, unsigned selector, uint64_t base, uint32_t limit,
				  unsigned type)
{
	uint64_t *d = &page[(selector & 0xfff) / 8];

	d[0] = (limit & 0xffff) | (base & 0xffffff) << 16 | (uint64_t)(0x80 | type) << 40 |
	       (uint64_t)(limit >> 16 & 0xf) << 48 | (base >> 24 & 0xff) << 56;
	d[1] = base >> 32;
}

static uint64_t window(unsigned cpu, unsigned offset)
{
	return WINDOW_BASE + (uint64_t)cpu * WINDOW_STRIDE + offset;
}

static void make_own_page(unsigned cpu)
{
	uint64_t *page = heap_alloc_pages(0);

	BUG_ON(!page);
	page[(SEL_HV_CODE & 0xfff) / 8] = 0x00af9b000000ffff;
	page[(SEL_HV_DATA & 0xfff) / 8] = 0x00cf93000000ffff;
	page[(SEL_RING3_32 & 0xff8) / 8] = 0x00cffb000000ffff;
	page[(SEL_RING3_SS & 0xff8) / 8] = 0x00cff3000000ffff;
	page[(SEL_RING3_64 & 0xff8) / 8] = 0x00affb000000ffff;
	set_system_descriptor(page, SEL_TSS, window(cpu, WINDOW_FRAME + TSS_AT),
			      sizeof(struct tss) - 1, 9);
	own_page[cpu] = page;
}

static void load_tables(unsigned cpu)
{
	struct table_pointer gdtr = {GDT_BYTES - 1, window(cpu, WINDOW_GDT)};
	struct table_pointer idtr = {256 * sizeof(*idt) - 1, window(cpu, WINDOW_IDT)};

	__asm__ volatile("lgdt %0\n"
			 "lidt %1\n"
			 "pushq %2\n"
			 "leaq 1f(%%rip), %%rax\n"
			 "pushq %%rax\n"
			 "lretq\n"
			 "1: mov %3, %%ss\n"
			 "ltr %w4\n"
			 "lldt %w5\n"
			 :
			 : "m"(gdtr), "m"(idtr), "i"(SEL_HV_CODE), "r"(SEL_HV_DATA), "r"(SEL_TSS),
			   "r"(0)
			 : "rax", "memory");
}

/* The jumps out of the stubs reach the image from where the copy is. */
static void mend_jump(char *page, const char *end)
{
	int32_t *to = (int32_t *)(page + (end - stub_page)) - 1;

	*to -= (int32_t)(window(this_cpu()->id, WINDOW_STUB) - (uint64_t)stub_page);
}

static void make_stub(void)
{
	char *page = heap_alloc_pages(0);

	BUG_ON(!page);
	memcpy(page, stub_page, (uint64_t)stub_end - (uint64_t)stub_page);
	mend_jump(page, syscall_stub_end);
	mend_jump(page, syscall32_stub_end);
	map_window(WINDOW_STUB, ptr_to_mfn(page), WINDOW_RX);
}

/* Its end as the processor wants it. */
static uint64_t make_ist(unsigned n)
{
	unsigned end = WINDOW_IST + n * IST_STRIDE;

	for (unsigned at = end - IST_BYTES; at < end; at += (unsigned)PAGE_SIZE) {
		mfn_t m = heap_alloc(0, 0);

		BUG_ON(mfn_eq(m, MFN_NONE));
		map_window(at, m, WINDOW_RW);
	}
	return window(this_cpu()->id, end);
}

void desc_init_cpu(void)
{
	struct pcpu *c = this_cpu();
	struct tss *t = (struct tss *)window(c->id, WINDOW_FRAME + TSS_AT);

	if (c->id == 0) {
		zero_page = heap_alloc(0, 0);
		BUG_ON(mfn_eq(zero_page, MFN_NONE));
		make_idt();
	}
	map_window(WINDOW_IDT, ptr_to_mfn(idt), WINDOW_RO);
	make_own_page(c->id);
	make_stub();
	t->rsp[0] = window(c->id, WINDOW_FRAME + TOP_FRAME_END);
	for (unsigned i = IST_DOUBLE_FAULT; i < NR_IST; i++)
		t->ist[i - 1] = make_ist(i);
	t->iomap = sizeof(*t); /* none: every IN and OUT of a guest is a #GP */
	map_window(WINDOW_GDT + GDT_PAGES * PAGE_SIZE, ptr_to_mfn(own_page[c->id]), WINDOW_RW);
	desc_load(NULL);
	load_tables(c->id);

	wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_SCE);
	wrmsr(MSR_STAR, (uint64_t)SEL_RING3_32 << 48 | (uint64_t)SEL_HV_CODE << 32);
	wrmsr(MSR_LSTAR, window(c->id, WINDOW_STUB) + (uint64_t)syscall_stub - (uint64_t)stub_page);
	wrmsr(MSR_CSTAR,
	      window(c->id, WINDOW_STUB) + (uint64_t)syscall32_stub - (uint64_t)stub_page);
	wrmsr(MSR_SYSCALL_MASK,
	      EFLAGS_IF | EFLAGS_TF | EFLAGS_DF | EFLAGS_NT | EFLAGS_AC | EFLAGS_IOPL | EFLAGS_RF);
	/* SYSENTER is not offered to guests; on a processor that has it in 64-bit mode it must not work by accident. */
	wrmsr_safe(0x174, 0);
}

static void lldt(bool any, uint64_t base, uint32_t limit)
{
	if (any)
		set_system_descriptor(own_page[this_cpu()->id], SEL_LDT, base, limit, 2);
	__asm__ volatile("lldt %w0" ::"r"(any ? SEL_LDT : 0));
}

static void load_ldt(const struct vcpu *v)
{
	unsigned entries = v ? v->ldt_entries : 0;

	for (unsigned i = 0; i < LDT_PAGES; i++)
		map_window(WINDOW_LDT + i * (unsigned)PAGE_SIZE,
			   v && entries ? v->ldt[i] : MFN_NONE, WINDOW_RW);
	lldt(entries, window(this_cpu()->id, WINDOW_LDT), entries * 8 - 1);
}

void desc_load(const struct vcpu *v)
{
	static bool ldt_used[MAX_CPUS];
	unsigned cpu = this_cpu()->id;

	for (unsigned i = 0; i < GDT_PAGES; i++) {
		mfn_t page = v && i * 512 < v->gdt_entries ? v->gdt[i] : MFN_NONE;
		bool has = !mfn_eq(page, MFN_NONE);

		map_window(WINDOW_GDT + i * (unsigned)PAGE_SIZE, has ? page : zero_page,
			   has ? WINDOW_RW : WINDOW_RO);
	}
	if (ldt_used[cpu] || (v && v->ldt_entries)) {
		load_ldt(v);
		ldt_used[cpu] = v && v->ldt_entries;
	}
}

void desc_load_lost(unsigned selector, bool gs)
{
	static const uint64_t flat = 0x00cff3000000ffff; /* accessed: nobody writes to it */

	if (!(selector & SELECTOR_LDT))
		return;
	lldt(true, (uint64_t)&flat - (selector & 0xfff8), selector | 7);
	if (gs)
		load_selector_gs(selector);
	else
		load_selector_fs(selector);
	load_ldt(current);
}

bool desc_ldt_fault(struct vcpu *v, uint64_t offset)
{
	struct domain *d = v->domain;
	unsigned i = (unsigned)(offset >> PAGE_SHIFT);
	uint64_t pte;
	mfn_t table;
	struct frame *f;
	int rc;

	if (offset >= v->ldt_entries * 8ull || !mfn_eq(v->ldt[i], MFN_NONE) ||
	    guest_walk_kernel(v->ldt_base + offset, &pte, &table) || !(pte & PTE_P) ||
	    !mfn_valid(pte_mfn(pte)))
		return false;
	f = mfn_frame(pte_mfn(pte));
	if (page_lock(d))
		return true; /* interrupted: the guest faults again */
	rc = frame_get_both(f, d, TYPE_DESC);
	page_unlock(d);
	if (rc)
		return false;
	v->ldt[i] = frame_mfn(f);
	map_window(WINDOW_LDT + i * (unsigned)PAGE_SIZE, v->ldt[i], WINDOW_RW);
	return true;
}

void desc_ldt_drop(struct vcpu *v)
{
	for (unsigned i = 0; i < LDT_PAGES; i++) {
		if (mfn_eq(v->ldt[i], MFN_NONE))
			continue;
		if (v == current)
			map_window(WINDOW_LDT + i * (unsigned)PAGE_SIZE, MFN_NONE, WINDOW_RO);
		frame_put_both(mfn_frame(v->ldt[i]));
		v->ldt[i] = MFN_NONE;
	}
}
