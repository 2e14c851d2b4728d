// SPDX-License-Identifier: MIT
/*
 * No translation outlives its flush, whichever address space of the CPU it is in: random loads, changes and flushes against a TLB that forgets only
 * what it is told to, with and without PCIDs, INVPCID and isolated tables. (QEMU's emulation has no PCIDs.)
 */
#define VMM_HOSTED
#include "vmm/cpu/pcpu.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/lock.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

/* ---- the processor ---- */

#define PAGES	 4u
#define ROOTS	 8u /* and as many copies; 0 is the hypervisor's own */
#define PCIDS	 8u
#define CR3_PCID 0xfffull

static struct pcpu cpu;
static struct stack_top top;
static uint64_t memory[ROOTS][PAGES]; /* what each table says of each page; copies follow at once */
static struct {
	bool valid;
	uint64_t value;
} tlb[PCIDS][PAGES];
static uint64_t loaded; /* CR3 */
static bool interrupts_off;
struct cpu_features cpu_features;
struct pcpu pcpus[MAX_CPUS];

static unsigned space_of(uint64_t value)
{
	return cpu_features.pcid ? (unsigned)(value & CR3_PCID) : 0;
}

static void model_write_cr3(uint64_t value)
{
	bool keep = value >> 63;

	CHECK(cpu_features.pcid || !(value & (1ull << 63 | CR3_PCID)));
	/* A flush that comes between the decision and the load would be lost. */
	CHECK(!keep || interrupts_off);
	CHECK(space_of(value) < PCIDS);
	loaded = value & ~(1ull << 63);
	if (!keep)
		memset(tlb[space_of(value)], 0, sizeof(tlb[0]));
}

static uint64_t model_read_cr3(void)
{
	return loaded;
}

static void model_invlpg(uint64_t va)
{
	tlb[space_of(loaded)][va >> PAGE_SHIFT].valid = false;
}

static void model_invpcid(uint64_t type, uint64_t pcid, uint64_t va)
{
	CHECK_EQ(type, 0);
	CHECK(cpu_features.invpcid && pcid < PCIDS);
	tlb[pcid][va >> PAGE_SHIFT].valid = false;
}

static uint64_t model_irq_save(void)
{
	bool before = interrupts_off;

	interrupts_off = true;
	return before;
}

static void model_irq_restore(uint64_t flags)
{
	interrupts_off = flags;
}

#undef this_cpu
#define this_cpu()		(&cpu)
#define stack_top()		(&top)
#define write_cr3		model_write_cr3
#define read_cr3		model_read_cr3
#define invlpg			model_invlpg
#define invpcid(type, pcid, va) model_invpcid(type, pcid, va)
#define irq_save		model_irq_save
#define irq_restore		model_irq_restore
#include "vmm/mm/tlb.c" /* NOLINT(bugprone-suspicious-include) */

mfn_t map_hv_l4(void)
{
	return MFN(0);
}

/* The copy of a table stands ROOTS behind it. */
mfn_t xpti_root(const struct vcpu *v)
{
	return MFN((v->kernel_mode ? v->table_kernel : v->table_user).v + ROOTS);
}

void call_on_cpus(uint64_t cpus, void (*fn)(void *), void *arg)
{
	(void)cpus;
	fn(arg);
}

static void touch(unsigned page)
{
	uint64_t truth = memory[(loaded >> PAGE_SHIFT) % ROOTS][page];
	unsigned space = space_of(loaded);

	if (tlb[space][page].valid)
		CHECK_MSG(tlb[space][page].value == truth, "stale: space %u, page %u, CR3 %llx",
			  space, page, (unsigned long long)loaded);
	tlb[space][page].valid = true;
	tlb[space][page].value = truth;
}

/* ---- what a guest does ---- */

static struct vcpu vcpus[2], *v;
static bool isolated;

static unsigned below(unsigned n)
{
	static uint64_t state;

	if (!state)
		state = unit_seed();
	return (unsigned)unit_below(&state, n);
}

static mfn_t root(void)
{
	return MFN(1 + below(ROOTS - 1));
}

static void touch_some(void)
{
	for (unsigned n = below(4); n; n--)
		touch(below(PAGES));
}

/* Out to the guest's code and in again; it touches what it likes. */
static void visit_guest(void)
{
	if (isolated) {
		interrupts_off = true;
		model_write_cr3(tlb_guest_cr3(v));
	}
	touch_some();
	if (isolated) {
		model_write_cr3(top.hv_cr3);
		interrupts_off = false;
	}
}

/* As whoever changes an entry has to flush it: by page, or all. */
static void change(void)
{
	unsigned page = below(PAGES);

	/* Tables share what is below them. */
	for (unsigned r = 1; r < ROOTS; r++)
		memory[r][page]++;
	if (below(2))
		tlb_page_local((uint64_t)page << PAGE_SHIFT);
	else if (below(2))
		tlb_flush_local();
	else
		tlb_flush_since(v->domain, tlb_clock_now());
}

static void step(void)
{
	switch (below(8)) {
	case 0:
	case 1:
		v->kernel_mode = !v->kernel_mode;
		tlb_load(v);
		break;
	case 2:
		if (v->kernel_mode) {
			v->table_kernel = root();
			tlb_load_new(v);
		}
		break;
	case 3:
		if (v->kernel_mode) {
			v->table_user = root();
			tlb_user_changed();
		}
		break;
	case 4:
	case 5:
		change();
		break;
	case 6:
		v = &vcpus[below(2)];
		tlb_load_new(v);
		break;
	default:
		tlb_load_none();
		/* While it is idle, tables change and nobody tells this CPU. */
		for (unsigned page = 0; page < PAGES; page++)
			memory[1 + below(ROOTS - 1)][page]++;
		v = &vcpus[below(2)];
		tlb_load_new(v);
		break;
	}
	touch_some();
	visit_guest();
}

static void run(bool pcid, bool invpcid_too, bool with_copies)
{
	static struct domain d;

	memset(tlb, 0, sizeof(tlb));
	memset(&cpu, 0, sizeof(cpu));
	cpu.online = pcpus[0].online = true;
	d.dirty_cpus = 1;
	cpu_features.pcid = pcid;
	cpu_features.invpcid = invpcid_too;
	isolated = with_copies;
	for (unsigned i = 0; i < 2; i++)
		vcpus[i] =
			(struct vcpu){.domain = &d, .table_kernel = root(), .table_user = root()};
	v = &vcpus[0];
	tlb_load_new(v);
	for (unsigned n = 0; n < 300000; n++) {
		step();
		pcpus[0].tlb_clock = cpu.tlb_clock;
	}
}

static void without_pcids(void)
{
	run(false, false, false);
}

static void with_pcids(void)
{
	run(true, false, false);
	run(true, true, false);
}

static void with_isolated_tables(void)
{
	run(false, false, true);
	run(true, false, true);
	run(true, true, true);
}

/* What PCIDs are for. */
static void going_to_and_fro_forgets_nothing(void)
{
	static struct domain d;

	cpu_features.pcid = true;
	vcpus[0] = (struct vcpu){.domain = &d, .table_kernel = MFN(1), .table_user = MFN(2)};
	v = &vcpus[0];
	tlb_load_new(v);
	touch(1);
	v->kernel_mode = true;
	tlb_load(v);
	touch(2);
	v->kernel_mode = false;
	tlb_load(v);
	CHECK(tlb[space_of(loaded)][1].valid);
	v->kernel_mode = true;
	tlb_load(v);
	CHECK(tlb[space_of(loaded)][2].valid);
}

UNIT_MAIN(TEST(without_pcids), TEST(with_pcids), TEST(with_isolated_tables),
	  TEST(going_to_and_fro_forgets_nothing))
