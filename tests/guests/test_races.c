// SPDX-License-Identifier: MIT
/*
 * Two vCPUs of one guest work against each other, to find the moment between a check and its use: a page is written to while it becomes a table or
 * descriptors, or after it was given back (invariants 1 and 5); arguments change while a hypercall reads them; frames are exchanged twice at once; pages
 * change type under both (invariants 1 and 2, and the counts are recounted at the end). Options: ms=N for each part.
 * Processors: 2
 */
#include "tests/guests/lib/guest.h"

#include <xen/memory.h>
#include <xen/vcpu.h>

#define SCRATCH		     0x60000000000ull
#define IMAGE_MFN	     0x200ull
#define HOSTILE		     (IMAGE_MFN << PAGE_SHIFT | RO)
#define PATIENCE	     40u
#define SPOT		     5u
#define KERNEL_CS_DESCRIPTOR 0x00af9b000000ffffull
#define DPL_3		     (3ull << 45)

static uint64_t began, limit, patience;

/* Until the part's time is over, and much longer while it has not seen enough: two processors may have to share one. */
static bool goes_on(bool enough)
{
	uint64_t spent = ticks_now() - began;

	return spent < limit || (!enough && spent < patience);
}

static void begin(void (*fn)(void))
{
	if (!(*entry_at(l4_mfn(), SCRATCH, 4) & PTE_P))
		map_at(l4_mfn(), SCRATCH, 0);
	if (!second_start(fn))
		skip("the machine has one processor");
	limit = ticks_of(option("ms", 3000));
	patience = limit * PATIENCE;
	began = ticks_now();
}

static void wait_a_little(void)
{
	for (unsigned i = 0; i < 200; i++)
		__builtin_ia32_pause();
}

static volatile uint64_t *const scratch = (void *)SCRATCH;
static volatile uint64_t evil;

/* Writes by whatever translation is there; the fault when there is none brings it back. */
static void write_evil(void)
{
	for (unsigned i = 0; i < 32; i++) {
		scratch[SPOT] = evil;
		for (unsigned k = 0; k < i; k++)
			__builtin_ia32_pause();
		scratch[SPOT] = 0;
	}
}

/* ---- what cannot be before the first time that the second vCPU runs ---- */

static struct vcpu_guest_context context;

static void bad_context(const char *what)
{
	long rc = hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_initialise, 1, VA(&context));

	if (rc == -ENOENT)
		skip("the machine has one processor");
	CHECK(rc == -EINVAL || rc == -EPERM, "%s: %ld", what, rc);
	CHECK_EQ("up", hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_up, 1, 0), -EINVAL);
	second_context(&context);
}

static void contexts(void)
{
	static const uint64_t addresses[] = {0xffff828000200000, 0x800000000000, 0xffff800000000000,
					     0xffff87ffffffffff, 1ull << 63};
	uint64_t *page = page_alloc(), *bad = page_alloc();

	second_context(&context);
	for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
		context.trap_ctxt[255].address = addresses[i];
		bad_context("a trap's address");
		context.event_callback_eip = addresses[i];
		bad_context("an event's address");
		context.failsafe_callback_eip = addresses[i];
		bad_context("the failsafe address");
		context.syscall_callback_eip = addresses[i];
		bad_context("a system call's address");
		context.fs_base = addresses[i];
		bad_context("FS base");
		context.gs_base_kernel = addresses[i];
		bad_context("GS base");
		context.gs_base_user = addresses[i];
		bad_context("GS base of programs");
		context.debugreg[2] = addresses[i];
		bad_context("a breakpoint");
	}
	context.debugreg[7] = 0x20003;
	bad_context("a breakpoint on ports");
	context.ldt_ents = 8193;
	bad_context("LDT too long");
	context.ldt_ents = 1;
	context.ldt_base = 8;
	bad_context("LDT not at a page's beginning");
	context.gdt_ents = 7169;
	bad_context("GDT too long");
	context.gdt_ents = 1;
	context.gdt_frames[0] = IMAGE_MFN;
	bad_context("GDT in the hypervisor");
	context.gdt_ents = 1;
	context.gdt_frames[0] = mfn_of(page);
	bad_context("GDT in a page that is writable");
	context.ctrlreg[3] = IMAGE_MFN << PAGE_SHIFT;
	bad_context("tables in the hypervisor");
	context.ctrlreg[3] = mfn_of(page) << PAGE_SHIFT;
	bad_context("a page that is writable as table");
	context.ctrlreg[3] = ~0ull;
	bad_context("no frame as table");
	context.ctrlreg[1] = mfn_of(page) << PAGE_SHIFT;
	bad_context("a page that is writable as user mode's table");
	bad[1] = HOSTILE;
	CHECK_EQ("protect", protect(bad, false), 0);
	context.ctrlreg[3] = mfn_of(bad) << PAGE_SHIFT;
	bad_context("a table with the hypervisor's frame");
	context.gdt_ents = 1;
	context.gdt_frames[0] = mfn_of(bad);
	context.ctrlreg[3] = mfn_of(page) << PAGE_SHIFT;
	CHECK_EQ("empty", set_entry(&bad[1], 0), 0);
	bad_context("a fair GDT, bad tables");
	hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_initialise, 1, VA(&context));
	CHECK_EQ("twice", hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_initialise, 1, VA(&context)),
		 -EEXIST);
}

/* ---- a page that is written to while it becomes something else ---- */

static void table_and_writer(void)
{
	uint64_t *page = page_alloc(), *e, pinned = 0, refused = 0;

	evil = HOSTILE;
	CHECK_EQ("protect", protect(page, false), 0);
	begin(write_evil);
	e = entry_at(l4_mfn(), SCRATCH, 1);
	while (goes_on(pinned && refused)) {
		uint64_t seen;
		long rc;

		CHECK_EQ("map", set_entry(e, pte(page, RW)), 0);
		wait_a_little();
		/* No flush: the other processor still has the translation. */
		CHECK_EQ("unmap", set_entry(e, 0), 0);
		rc = mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page), 0);
		if (rc) {
			CHECK(rc == -EINVAL || rc == -EPERM, "pin: %ld", rc);
			refused++;
			continue;
		}
		pinned++;
		seen = *(volatile uint64_t *)&page[SPOT];
		CHECK_EQ("what stands in a table", seen, 0);
		wait_a_little();
		CHECK_EQ("what stands there later", *(volatile uint64_t *)&page[SPOT], 0);
		CHECK_EQ("unpin", mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page), 0), 0);
	}
	second_stop();
	CHECK(pinned && refused, "%llu times pinned, %llu times refused",
	      (unsigned long long)pinned, (unsigned long long)refused);
}

static void descriptors_and_writer(void)
{
	uint64_t *page = page_alloc(), frame = mfn_of(page), *e;

	evil = KERNEL_CS_DESCRIPTOR;
	CHECK_EQ("protect", protect(page, false), 0);
	begin(write_evil);
	e = entry_at(l4_mfn(), SCRATCH, 1);
	while (goes_on(true)) {
		CHECK_EQ("map", set_entry(e, pte(page, RW)), 0);
		wait_a_little();
		CHECK_EQ("unmap", set_entry(e, 0), 0);
		CHECK_EQ("set_gdt", hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512), 0);
		for (unsigned i = 0; i < 2; i++) {
			uint64_t d = *(volatile uint64_t *)&page[SPOT];

			CHECK(!d || (d & DPL_3) == DPL_3, "a descriptor of ring %llu: %llx",
			      (unsigned long long)(d >> 45 & 3), (unsigned long long)d);
			wait_a_little();
		}
		CHECK_EQ("no GDT", hypercall2(__HYPERVISOR_set_gdt, 0, 0), 0);
	}
	second_stop();
}

/* A page goes back and another comes, often the same: the other processor's old translation must not reach it. */
static void given_back_and_writer(void)
{
	struct xen_memory_reservation r = {.nr_extents = 1, .domid = DOMID_SELF};
	xen_pfn_t frame = mfn_of(page_alloc());
	uint64_t *e, same = 0, *second;
	uint64_t pfn = M2P[frame];

	evil = 0x5555;
	CHECK_EQ("unmap", set_mapping((void *)(VIRT_BASE + (pfn << PAGE_SHIFT)), 0), 0);
	set_xen_guest_handle(r.extent_start, &frame);
	begin(write_evil);
	e = entry_at(l4_mfn(), SCRATCH, 1);
	second = entry_at(l4_mfn(), SCRATCH + PAGE_SIZE, 1);
	while (goes_on(true)) {
		xen_pfn_t before = frame;

		CHECK_EQ("map", set_entry(e, frame << PAGE_SHIFT | RW), 0);
		wait_a_little();
		CHECK_EQ("unmap", set_entry(e, 0), 0);
		CHECK_EQ("given back",
			 hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, VA(&r)),
			 1);
		frame = pfn;
		CHECK_EQ("populate",
			 hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap, VA(&r)), 1);
		same += frame == before;
		CHECK_EQ("map elsewhere", set_entry(second, frame << PAGE_SHIFT | RW), 0);
		for (unsigned i = 0; i < 100; i++)
			CHECK_EQ("somebody's word in a fresh page", scratch[512 + SPOT], 0);
		CHECK_EQ("unmap", set_mapping((void *)(SCRATCH + PAGE_SIZE), 0), 0);
	}
	second_stop();
	if (!same)
		skip("it was another page each time");
}

/* ---- the same frames at once ---- */

#define FRAMES 4u

static volatile xen_pfn_t list[FRAMES];
static struct storm mine = {.random = 0x1234567}, others = {.random = 0x89abcdef};

static long exchange(const volatile xen_pfn_t *in, volatile xen_pfn_t *out)
{
	struct xen_memory_exchange x = {.in = {.nr_extents = 1, .domid = DOMID_SELF},
					.out = {.nr_extents = 1, .domid = DOMID_SELF}};

	set_xen_guest_handle(x.in.extent_start, (xen_pfn_t *)(uintptr_t)in);
	set_xen_guest_handle(x.out.extent_start, (xen_pfn_t *)(uintptr_t)out);
	return hypercall2(__HYPERVISOR_memory_op, XENMEM_exchange, VA(&x));
}

static void exchange_one(struct storm *s)
{
	unsigned i = (unsigned)(storm_noise(s) >> 20) % FRAMES;
	xen_pfn_t out = 1ull << 20;

	if (exchange(&list[i], &out) == 0 && out != 1ull << 20)
		list[i] = out;
	else
		list[i] = list[(i + 1) % FRAMES];
}

static void exchange_other(void)
{
	exchange_one(&others);
}

static long reservation(void)
{
	domid_t self = DOMID_SELF;

	return hypercall2(__HYPERVISOR_memory_op, XENMEM_current_reservation, VA(&self));
}

static void exchanges(void)
{
	static uint8_t both[16];
	long before = reservation();
	uint64_t turns = 0;

	for (unsigned i = 0; i < FRAMES; i++) {
		void *page = page_alloc();

		list[i] = mfn_of(page);
		CHECK_EQ("unmap", set_mapping(page, 0), 0);
	}
	/* What is written is read again as what is given: half of another number. */
	for (unsigned i = 0; i < FRAMES / 2; i++) {
		xen_pfn_t frame = list[i];

		memcpy(both, &frame, sizeof(frame));
		exchange((xen_pfn_t *)both, (xen_pfn_t *)(both + 4));
		CHECK(reservation() <= before, "an exchange has made more of it");
	}
	begin(exchange_other);
	while (goes_on(turns > 10)) {
		exchange_one(&mine);
		turns++;
	}
	second_stop();
	CHECK(turns > 10, "%llu turns", (unsigned long long)turns);
	CHECK(reservation() <= before, "exchanges have made %ld pages out of %ld", reservation(),
	      before);
}

/* One is mapped between the look at it and its going: it has gone and is still there, while another has come. */
static uint64_t mapper_entry;

static long update(uint64_t ptr, uint64_t value)
{
	struct mmu_update u = {ptr, value};

	return hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF);
}

static void map_what_goes(void)
{
	for (unsigned i = 0; i < 32; i++) {
		update(mapper_entry, list[0] << PAGE_SHIFT | RW);
		for (unsigned k = 0; k < i; k++)
			wait_a_little();
		update(mapper_entry, 0);
		wait_a_little();
	}
}

static void exchange_and_mapper(void)
{
	long before = reservation();
	void *page = page_alloc();
	uint64_t done = 0, refused = 0;

	list[0] = mfn_of(page);
	CHECK_EQ("unmap", set_mapping(page, 0), 0);
	if (!entry_at(l4_mfn(), SCRATCH, 1))
		map_at(l4_mfn(), SCRATCH, 0);
	mapper_entry = machine_address(entry_at(l4_mfn(), SCRATCH + PAGE_SIZE, 1));
	begin(map_what_goes);
	while (goes_on(done && refused)) {
		xen_pfn_t out = 1ull << 20;
		long rc = exchange(&list[0], &out);

		CHECK(reservation() <= before, "after %llu exchanges it has %ld pages, not %ld",
		      (unsigned long long)done, reservation(), before);
		if (rc == 0)
			list[0] = out;
		done += rc == 0;
		refused += rc != 0;
	}
	second_stop();
	CHECK(done && refused, "%llu exchanges, %llu refused", (unsigned long long)done,
	      (unsigned long long)refused);
}

/* ---- arguments that change ---- */

#define CALLS 16u

static struct multicall_entry calls[CALLS];
static struct mmu_update updates[CALLS];
static uint64_t fair_ptr, fair_val, answer[8];

/* One word of something becomes good or bad. */
static void change_arguments(void)
{
	struct multicall_entry *c = &calls[storm_noise(&others) % CALLS];
	volatile struct mmu_update *u = &updates[(storm_noise(&others) >> 10) % CALLS];
	bool good = storm_noise(&others) >> 40 & 1;

	switch ((storm_noise(&others) >> 20) % 6) {
	case 0:
		u->val = good ? fair_val : HOSTILE;
		break;
	case 1:
		u->val = good ? fair_val : fair_ptr | RW;
		break;
	case 2:
		u->ptr = good ? fair_ptr : IMAGE_MFN << PAGE_SHIFT;
		break;
	case 3:
		WRITE_ONCE(c->args[1], good ? VA(answer) : 0xffff830000200000);
		break;
	case 4:
		WRITE_ONCE(c->op, good ? __HYPERVISOR_memory_op : __HYPERVISOR_multicall);
		break;
	default:
		WRITE_ONCE(c->args[0], good ? XENMEM_current_reservation : XENMEM_machphys_mapping);
	}
}

static void arguments(void)
{
	uint64_t *page = page_alloc(), *e, turns = 0, untouched = M2P[IMAGE_MFN];

	answer[0] = DOMID_SELF;
	fair_val = pte(page, RW);
	begin(change_arguments);
	e = entry_at(l4_mfn(), SCRATCH, 1);
	fair_ptr = machine_address(e);
	for (unsigned i = 0; i < CALLS; i++) {
		updates[i] = (struct mmu_update){fair_ptr, fair_val};
		calls[i].op = __HYPERVISOR_multicall;
	}
	while (goes_on(turns > 10)) {
		long rc = hypercall4(__HYPERVISOR_mmu_update, VA(updates), CALLS, 0, DOMID_SELF);

		CHECK(rc == 0 || rc == -EPERM || rc == -EINVAL, "mmu_update: %ld", rc);
		CHECK((*e & ~(PTE_A | PTE_D)) == (fair_val & ~(PTE_A | PTE_D)) || !*e,
		      "the entry is %llx", (unsigned long long)*e);
		rc = hypercall2(__HYPERVISOR_multicall, VA(calls), CALLS);
		CHECK_EQ("multicall", rc, 0);
		answer[0] = DOMID_SELF;
		turns++;
	}
	second_stop();
	CHECK(turns > 10, "%llu turns", (unsigned long long)turns);
	CHECK_EQ("M2P", M2P[IMAGE_MFN], untouched);
	CHECK_EQ("unmap", set_mapping((void *)SCRATCH, 0), 0);
}

/* ---- each pair of uses of one page ---- */

enum use { AS_L1, AS_L2, AS_L3, AS_L4, AS_WRITABLE, AS_DESCRIPTORS, NR_USES };

static uint64_t used_frame, use_entry[2];
static enum use wanted[2];
static volatile bool has[2];
static volatile uint64_t uses[2], both;

static long take(unsigned who)
{
	if (wanted[who] == AS_WRITABLE)
		return update(use_entry[who], used_frame << PAGE_SHIFT | RW);
	if (wanted[who] == AS_DESCRIPTORS)
		return hypercall2(__HYPERVISOR_set_gdt, VA(&used_frame), 512);
	return mmuext(MMUEXT_PIN_L1_TABLE + (unsigned)wanted[who], used_frame, 0);
}

static void give_up(unsigned who)
{
	if (wanted[who] == AS_WRITABLE)
		update(use_entry[who], 0);
	else if (wanted[who] == AS_DESCRIPTORS)
		hypercall2(__HYPERVISOR_set_gdt, 0, 0);
	else
		mmuext(MMUEXT_UNPIN_TABLE, used_frame, 0);
}

static void use(unsigned who)
{
	/* Or the lock of the tables would let one in whenever the other has just taken it. */
	if (uses[who] > uses[!who] + 4) {
		wait_a_little();
		return;
	}
	if (take(who)) {
		/* What an L4 had of the hypervisor's stands there still. */
		mmuext(MMUEXT_CLEAR_PAGE, used_frame, 0);
		return;
	}
	__atomic_store_n(&has[who], true, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < 40; i++) {
		both += __atomic_load_n(&has[!who], __ATOMIC_SEQ_CST);
		__builtin_ia32_pause();
	}
	uses[who]++;
	__atomic_store_n(&has[who], false, __ATOMIC_SEQ_CST);
	give_up(who);
}

static void use_second(void)
{
	use(1);
}

/* Invariant 1: whoever has it as one thing is alone; and each gets it some time. */
static void transitions(void)
{
	void *page = page_alloc();

	CHECK_EQ("protect", protect(page, false), 0);
	used_frame = mfn_of(page);
	for (unsigned i = 0; i < 2; i++) {
		if (!entry_at(l4_mfn(), SCRATCH, 1))
			map_at(l4_mfn(), SCRATCH, 0);
		use_entry[i] =
			machine_address(entry_at(l4_mfn(), SCRATCH + (i + 2) * PAGE_SIZE, 1));
	}
	for (wanted[0] = AS_L1; wanted[0] < NR_USES; wanted[0]++)
		for (wanted[1] = wanted[0] + 1; wanted[1] < NR_USES; wanted[1]++) {
			uses[0] = uses[1] = both = 0;
			begin(use_second);
			limit /= 20;
			while (goes_on(uses[0] > 5 && uses[1] > 5))
				use(0);
			second_stop();
			CHECK(!both, "as %u and %u at once", wanted[0], wanted[1]);
			CHECK(uses[0] && uses[1], "%llu times %u, %llu times %u",
			      (unsigned long long)uses[0], wanted[0], (unsigned long long)uses[1],
			      wanted[1]);
		}
	CHECK_EQ("free again", protect(page, true), 0);
}

/* ---- tables under two ---- */

static void storm_other(void)
{
	storm_step(&others);
}

static void storm_mine(uint64_t ignored)
{
	(void)ignored;
	storm_step(&mine);
}

static void tables(void)
{
	uint64_t faults = 0;

	storm_init();
	mine = (struct storm){.random = ticks_now() | 1};
	others = (struct storm){.random = mine.random * 3};
	say("seed=%llu", (unsigned long long)mine.random);
	begin(storm_other);
	while (goes_on(mine.fine > 100 && others.fine > 100))
		faults += !no_fault(storm_mine, 0);
	second_stop();
	second_start(storm_let_go);
	second_stop();
	say("%llu and %llu operations, %llu and %llu without an error, %llu and %llu faults",
	    (unsigned long long)mine.made, (unsigned long long)others.made,
	    (unsigned long long)mine.fine, (unsigned long long)others.fine,
	    (unsigned long long)faults, (unsigned long long)second_faults);
	CHECK(mine.fine > mine.made / 20 && others.fine > others.made / 20,
	      "hardly anything was legal");
	storm_end();
}

/* One holds the lock of the tables for as long as it can; the other's operations come through all the same. */
static struct mmu_update many[50000];

static void update_many(void)
{
	hypercall4(__HYPERVISOR_mmu_update, VA(many), ARRAY_SIZE(many), 0, DOMID_SELF);
}

static void long_lock(void)
{
	uint64_t *page = page_alloc(), turns = 0, rounds;

	for (unsigned i = 0; i < ARRAY_SIZE(many); i++)
		many[i] = (struct mmu_update){machine_address(page), i};
	begin(update_many);
	rounds = second_rounds;
	while (goes_on(turns > 200)) {
		CHECK_EQ("an operation", mmuext(MMUEXT_CLEAR_PAGE, mfn_of(page), 0), 0);
		turns++;
	}
	second_stop();
	rounds = second_rounds - rounds;
	CHECK(turns > 10 * rounds, "%llu operations beside %llu long ones",
	      (unsigned long long)turns, (unsigned long long)rounds);
}

const struct part parts[] = {{"contexts", contexts},
			     {"table-and-writer", table_and_writer},
			     {"descriptors-and-writer", descriptors_and_writer},
			     {"given-back-and-writer", given_back_and_writer},
			     {"exchanges", exchanges},
			     {"exchange-and-mapper", exchange_and_mapper},
			     {"arguments", arguments},
			     {"transitions", transitions},
			     {"tables", tables},
			     {"long-lock", long_lock},
			     {NULL, NULL}};
