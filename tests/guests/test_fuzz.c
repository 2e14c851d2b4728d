// SPDX-License-Identifier: MIT
/*
 * Hypercalls at random: arguments and structures are made of what means something (own frames, tables, ports, addresses in and out of the
 * guest's memory, commands, versions), of neighbours of that, and of noise; some are made again with a bit changed.
 * Between them come operations on page tables (lib/storm.c), which a second vCPU does now and then at the same time.
 * The hypervisor must neither panic nor hang, and the guest's own code must come through it: what would end the guest by right is left
 * out. Options: seed=N (otherwise it is another each time, and said), seconds=N, calls=N.
 * Processors: 2
 */
#include "tests/guests/lib/guest.h"

#include <xen/callback.h>
#include <xen/event_channel.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/platform.h>
#include <xen/sched.h>
#include <xen/vcpu.h>

/* They include a header that asks for GNU's language, though nothing in it needs more than C11. */
#pragma push_macro("__STRICT_ANSI__")
#undef __STRICT_ANSI__
#include <xen/domctl.h>
#include <xen/sysctl.h>
#pragma pop_macro("__STRICT_ANSI__")

#define MEMORY_KB    (65536u + 4096u)
#define SECONDS	     60u
#define PAGES	     64u /* that it may do anything with */
#define SCRATCH	     0x40000000000ull
#define SCRATCH_SIZE 0x400000ull
#define LOOK_EVERY   256u

struct call {
	uint64_t number, a[6];
};

static uint64_t random_state;
static uint8_t *page[PAGES]; /* mapped read-only or not at all, now and then */
static uint8_t *room;	     /* structures are built here */
static uint64_t made, fine;
static struct storm mine, others;

/* xorshift64*: any seed but 0 */
static uint64_t noise(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 0x2545f4914f6cdd1dull;
}

static uint64_t below(uint64_t n)
{
	return noise() % n;
}

static uint64_t some_mfn(void)
{
	switch (below(8)) {
	case 0:
		return below(0x10000);
	case 1:
		return noise();
	case 2:
		return 0xfee00;
	case 3:
		return start_info->shared_info >> PAGE_SHIFT;
	default:
		return mfn_of(page[below(PAGES)]);
	}
}

static uint64_t some_address(void)
{
	switch (below(10)) {
	case 0:
		return 0xffff800000000000 + below(0x80000000000);
	case 1:
		return noise();
	case 2:
		return 0x800000000000 - below(64);
	case 3:
		return -below(64);
	case 4:
		return SCRATCH + below(SCRATCH_SIZE);
	case 5:
		return VA(page[below(PAGES)]) + below(PAGE_SIZE);
	case 6:
		return 0;
	default:
		return VA(room) + below(32) * 64;
	}
}

static bool is_free_mfn(uint64_t mfn)
{
	for (unsigned i = 0; i < PAGES; i++)
		if (mfn == mfn_of(page[i]))
			return true;
	return mfn >= start_info->nr_pages * 8 || M2P[mfn] >= start_info->nr_pages;
}

/* An entry. Its own code and data are mapped nowhere else to be written: answers of hypercalls would go there. */
static uint64_t some_entry(void)
{
	uint64_t mfn = some_mfn(), flags = noise() & 0x80000000000001ff;

	return mfn << PAGE_SHIFT | (is_free_mfn(mfn) ? flags : flags & ~PTE_W);
}

static uint64_t some_value(void)
{
	static const uint64_t odd[] = {0,	   1,	       2,	 3,	     7,
				       8,	   DOMID_SELF, DOMID_IO, DOMID_XEN,  DOMID_INVALID,
				       0xffff,	   0xffffffff, ~0ull,	 1ull << 31, 1ull << 32,
				       1ull << 63, 512,	       4096};

	switch (below(8)) {
	case 0:
		return odd[below(ARRAY_SIZE(odd))];
	case 1:
		return some_address();
	case 2:
		return some_mfn();
	case 3:
		return some_entry();
	case 4:
		return noise();
	case 5:
		return 1ull << below(64);
	default:
		return below(64);
	}
}

static void fill_room(void)
{
	uint64_t *word = (uint64_t *)room;
	uint32_t *half = (uint32_t *)room;

	for (unsigned i = 0; i < 64; i++)
		word[below(256)] = some_value();
	for (unsigned i = 0; i < 32; i++)
		half[below(512)] = (uint32_t)some_value();
}

/* ---- what the guest itself lives on ---- */

/* Its code, stack, tables and this program's data stay mapped, and its own. */
static bool is_own_va(uint64_t va)
{
	if (va < VIRT_BASE)
		return false;
	for (unsigned i = 0; i < PAGES; i++)
		if (va - VA(page[i]) < PAGE_SIZE)
			return false;
	return true;
}

/* ---- families ---- */

static void make_mmu_update(struct call *c)
{
	struct mmu_update *u = (struct mmu_update *)room;
	uint64_t n = 1 + below(8);

	for (uint64_t i = 0; i < n; i++) {
		uint64_t mfn = some_mfn();

		if (!is_free_mfn(mfn) && mfn << PAGE_SHIFT != start_info->shared_info)
			mfn = mfn_of(page[0]);
		u[i].ptr = (mfn << PAGE_SHIFT) + (below(PAGE_SIZE) & ~3ull) + below(3);
		if (below(4) == 0)
			u[i].ptr = machine_address(entry_at(l4_mfn(), SCRATCH, 1)) + below(512) * 8;
		u[i].val = some_value();
	}
	*c = (struct call){__HYPERVISOR_mmu_update,
			   {VA(u), n, below(2) ? some_address() : 0, DOMID_SELF}};
	if (below(8) == 0)
		c->a[3] = some_value();
	/* A count that goes on as if interrupted. */
	if (below(16) == 0)
		c->a[1] |= 0x80000000;
}

static void make_va_update(struct call *c)
{
	uint64_t va = some_address();

	if (is_own_va(va))
		va = SCRATCH + below(SCRATCH_SIZE);
	*c = (struct call){__HYPERVISOR_update_va_mapping,
			   {va, some_value(), below(4) ? below(3) : some_value()}};
}

static void make_mmuext(struct call *c)
{
	struct mmuext_op *o = (struct mmuext_op *)room;
	uint64_t n = 1 + below(3);

	for (uint64_t i = 0; i < n; i++) {
		o[i].cmd = (unsigned)below(24);
		o[i].arg1.mfn = below(2) ? some_mfn() : some_value();
		o[i].arg2.src_mfn = below(2) ? some_mfn() : some_value();
		/* A base of which nothing is mapped ends the guest, and its own memory is not for clearing. */
		if (o[i].cmd == MMUEXT_NEW_BASEPTR ||
		    (!is_free_mfn(o[i].arg1.mfn) && o[i].arg1.mfn < 0x100000))
			o[i].arg1.mfn = o[i].cmd == MMUEXT_NEW_BASEPTR ? l4_mfn() : mfn_of(page[1]);
	}
	*c = (struct call){__HYPERVISOR_mmuext_op, {VA(o), n, 0, DOMID_SELF}};
}

/* Frames that it may give away: those of its pages. */
static void make_memory(struct call *c)
{
	static const uint8_t commands[] = {XENMEM_increase_reservation, XENMEM_decrease_reservation,
					   XENMEM_populate_physmap,	XENMEM_exchange,
					   XENMEM_maximum_ram_page,	XENMEM_current_reservation,
					   XENMEM_maximum_reservation,	XENMEM_machphys_mapping,
					   XENMEM_machine_memory_map,	63};
	struct xen_memory_reservation *r = (struct xen_memory_reservation *)room;
	struct xen_memory_exchange *x = (struct xen_memory_exchange *)room;
	uint64_t *list = (uint64_t *)(room + 1024);
	uint8_t command = commands[below(sizeof(commands))];

	for (unsigned i = 0; i < 8; i++) {
		list[i] = some_mfn();
		if (!is_free_mfn(list[i]))
			list[i] = mfn_of(page[2 + below(PAGES / 2)]);
	}
	if (command == XENMEM_exchange) {
		x->in.domid = x->out.domid = DOMID_SELF;
		x->in.nr_extents = 1 + below(4);
		x->out.nr_extents = below(4) ? x->in.nr_extents : some_value();
		x->in.extent_order = 0;
		x->out.extent_order = below(4) ? 0 : (unsigned)below(12);
		x->nr_exchanged = below(4) ? 0 : some_value();
		x->in.extent_start.p = list;
		x->out.extent_start.p = list + 16;
	} else if (command <= XENMEM_populate_physmap && command != XENMEM_maximum_ram_page) {
		r->domid = below(8) ? DOMID_SELF : (domid_t)some_value();
		r->nr_extents = below(8);
		r->extent_order = 0;
		/* Growing without end would only use up the machine. */
		r->mem_flags = below(4) ? 0 : (unsigned)noise();
		r->extent_start.p = below(8) ? list : (uint64_t *)some_address();
		if (r->extent_start.p != list && is_own_va(VA(r->extent_start.p)))
			r->extent_start.p = list;
	}
	*c = (struct call){__HYPERVISOR_memory_op, {command, VA(room)}};
	if (below(16) == 0)
		c->a[0] |= below(4) << 6;
}

static void make_event(struct call *c)
{
	uint32_t *half = (uint32_t *)room;

	for (unsigned i = 0; i < 6; i++)
		half[i] = below(3) ? (uint32_t)below(16) : (uint32_t)some_value();
	if (below(2))
		*(domid_t *)room = DOMID_SELF;
	*c = (struct call){__HYPERVISOR_event_channel_op, {below(16), VA(room)}};
}

static void make_vcpu(struct call *c)
{
	static const uint8_t commands[] = {0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 20};
	uint8_t command = commands[below(sizeof(commands))];
	uint64_t *word = (uint64_t *)room;

	fill_room();
	/* Where it is written to for ever after: a page of its own that stays. */
	if (command == VCPUOP_register_runstate_memory_area ||
	    command == VCPUOP_register_vcpu_time_memory_area)
		word[0] = below(2) ? 0 : SCRATCH + below(SCRATCH_SIZE);
	/* NMIs have no handler here, and the place of the events' words is taken once in a life. */
	if (command == VCPUOP_send_nmi || command == VCPUOP_register_vcpu_info)
		command = VCPUOP_is_up;
	*c = (struct call){__HYPERVISOR_vcpu_op, {command, below(8) ? 0 : some_value(), VA(room)}};
}

static void make_sched(struct call *c)
{
	static const uint8_t commands[] = {SCHEDOP_yield, SCHEDOP_poll, SCHEDOP_pin_override, 63};
	struct sched_poll *poll = (struct sched_poll *)room;
	uint8_t command = commands[below(sizeof(commands))];

	fill_room();
	/* A wait has to end. */
	if (command == SCHEDOP_poll) {
		poll->timeout = 1;
		poll->nr_ports = (unsigned)below(160);
		poll->ports.p = (evtchn_port_t *)(room + 1024);
	}
	*c = (struct call){__HYPERVISOR_sched_op, {command, VA(room)}};
}

static void make_physdev(struct call *c)
{
	uint32_t *half = (uint32_t *)room;

	fill_room();
	for (unsigned i = 0; i < 6; i++)
		half[i] = below(3) ? (uint32_t)below(32) : (uint32_t)some_value();
	if (below(2))
		*(domid_t *)room = DOMID_SELF;
	*c = (struct call){__HYPERVISOR_physdev_op, {below(34), VA(room)}};
}

static void make_platform(struct call *c)
{
	struct xen_platform_op *op = (struct xen_platform_op *)room;

	fill_room();
	op->interface_version = below(16) ? XENPF_INTERFACE_VERSION : (uint32_t)noise();
	op->cmd = (uint32_t)below(70);
	/* It would switch the machine off. */
	if (op->cmd == XENPF_enter_acpi_sleep)
		op->cmd = XENPF_firmware_info;
	*c = (struct call){__HYPERVISOR_platform_op, {VA(op)}};
}

static void make_sysctl(struct call *c)
{
	struct xen_sysctl *op = (struct xen_sysctl *)room;

	fill_room();
	op->interface_version = below(16) ? XEN_SYSCTL_INTERFACE_VERSION : (uint32_t)noise();
	op->cmd = (uint32_t)below(32);
	/* Keys of the debugging console restart the machine. */
	if (op->cmd == XEN_SYSCTL_debug_keys)
		op->cmd = XEN_SYSCTL_physinfo;
	*c = (struct call){__HYPERVISOR_sysctl, {VA(op)}};
}

static void make_domctl(struct call *c)
{
	struct xen_domctl *op = (struct xen_domctl *)room;

	fill_room();
	op->interface_version = below(16) ? XEN_DOMCTL_INTERFACE_VERSION : (uint32_t)noise();
	op->cmd = (uint32_t)below(88);
	op->domain = below(4) ? 0 : (domid_t)some_value();
	/* What it may have is as limited as it was at the beginning, or the machine would have nothing left. */
	if (op->cmd == XEN_DOMCTL_max_mem)
		op->u.max_mem.max_memkb = MEMORY_KB;
	*c = (struct call){__HYPERVISOR_domctl, {VA(op)}};
}

static void make_descriptors(struct call *c)
{
	uint64_t *list = (uint64_t *)room;

	switch (below(3)) {
	case 0:
		for (unsigned i = 0; i < 14; i++)
			list[i] = some_mfn();
		*c = (struct call){__HYPERVISOR_set_gdt,
				   {VA(list), below(3) ? below(7169) : some_value()}};
		break;
	case 1:
		*c = (struct call){
			__HYPERVISOR_update_descriptor,
			{(mfn_of(page[below(PAGES)]) << PAGE_SHIFT) + below(512) * 8, noise()}};
		break;
	default:
		*c = (struct call){__HYPERVISOR_set_segment_base, {below(5), some_value()}};
	}
}

static void make_registers(struct call *c)
{
	switch (below(4)) {
	case 0:
		*c = (struct call){__HYPERVISOR_fpu_taskswitch, {below(2)}};
		break;
	case 1:
		*c = (struct call){__HYPERVISOR_get_debugreg, {some_value()}};
		break;
	case 2:
		/* Breakpoints: their exceptions would come at any place. Addresses alone do nothing. */
		*c = (struct call){__HYPERVISOR_set_debugreg, {below(4), some_value()}};
		break;
	default:
		*c = (struct call){__HYPERVISOR_set_timer_op, {some_value()}};
	}
}

static void make_grant(struct call *c)
{
	fill_room();
	*c = (struct call){__HYPERVISOR_grant_table_op, {below(16), VA(room), below(8)}};
}

static void make_version(struct call *c)
{
	uint64_t at = some_address();

	*c = (struct call){__HYPERVISOR_xen_version, {below(12), is_own_va(at) ? VA(room) : at}};
}

static void make_unknown(struct call *c)
{
	static const uint8_t numbers[] = {4,  6,  11, 16, 19, 27, 28, 31, 34,
					  37, 38, 39, 40, 41, 48, 55, 63};

	*c = (struct call){numbers[below(sizeof(numbers))],
			   {below(32), VA(room), some_value(), some_value()}};
}

static void (*const families[])(struct call *c) = {
	make_mmu_update, make_mmu_update, make_va_update, make_mmuext,	    make_mmuext,
	make_memory,	 make_event,	  make_vcpu,	  make_sched,	    make_physdev,
	make_platform,	 make_sysctl,	  make_domctl,	  make_descriptors, make_registers,
	make_grant,	 make_version,	  make_unknown};

/* No structure points to the guest's own code and data: a bit that was changed could make it so, and the answer would be written there. */
static void tidy_room(void)
{
	uint64_t *word = (uint64_t *)room;

	for (unsigned i = 0; i < PAGE_SIZE / sizeof(*word); i++)
		if (is_own_va(word[i]) && word[i] - VA(room) >= PAGE_SIZE)
			word[i] = VA(room);
}

static void perform(const struct call *c)
{
	tidy_room();
	long rc = hypercall6(c->number, c->a[0], c->a[1], c->a[2], c->a[3], c->a[4], c->a[5]);

	made++;
	fine += rc >= 0;
}

/* By a multicall as well. */
static void perform_several(void)
{
	static struct multicall_entry entries[4];
	struct call c;

	for (unsigned i = 0; i < 4; i++) {
		/* They share the room: what the last one makes there is what all get. Those that could end the guest stay out. */
		families[below(2) ? 1 : 12](&c);
		if (c.number == __HYPERVISOR_domctl || i < 3)
			c = (struct call){__HYPERVISOR_event_channel_op,
					  {below(16), VA(room) + 3072}};
		entries[i].op = c.number;
		memcpy(entries[i].args, c.a, sizeof(c.a));
	}
	hypercall2(__HYPERVISOR_multicall, VA(entries), 1 + below(4));
	made++;
}

/* Its pages become what they are not: tables, read-only, writable. */
static void change_a_page(void)
{
	void *p = page[below(PAGES)];

	switch (below(3)) {
	case 0:
		protect(p, false);
		break;
	case 1:
		protect(p, true);
		break;
	default:
		if (!protect(p, true))
			((uint64_t *)p)[below(512)] = some_value();
	}
}

static void step(uint64_t ignored)
{
	struct call c;

	(void)ignored;
	for (unsigned i = 0; i < LOOK_EVERY; i++) {
		families[below(ARRAY_SIZE(families))](&c);
		perform(&c);
		if (below(8) == 0)
			change_a_page();
		if (below(32) == 0)
			perform_several();
		if (below(64) == 0)
			storm_step(&mine);
		/* The structures of the moment, changed in one place. */
		if (below(4) == 0 && c.number != __HYPERVISOR_mmu_update &&
		    c.number != __HYPERVISOR_mmuext_op && c.number != __HYPERVISOR_memory_op &&
		    c.number != __HYPERVISOR_platform_op && c.number != __HYPERVISOR_sysctl &&
		    c.number != __HYPERVISOR_sched_op && c.number != __HYPERVISOR_vcpu_op) {
			room[below(256)] ^= (uint8_t)(1u << below(8));
			perform(&c);
		}
	}
}

static void storm_other(void)
{
	storm_step(&others);
}

static void limit_memory(void)
{
	struct xen_domctl *op = (struct xen_domctl *)room;

	op->cmd = XEN_DOMCTL_max_mem;
	op->interface_version = XEN_DOMCTL_INTERFACE_VERSION;
	op->domain = 0;
	op->u.max_mem.max_memkb = MEMORY_KB;
	CHECK_EQ("max_mem", hypercall1(__HYPERVISOR_domctl, VA(op)), 0);
}

/* One second of four: where two processors wait for each other, much less is done in the same time. */
static void wake_second(bool wake)
{
	static bool awake = true;

	if (wake != awake)
		hypercall3(__HYPERVISOR_vcpu_op, wake ? VCPUOP_up : VCPUOP_down, 1, 0);
	awake = wake;
}

static void fuzz(void)
{
	uint64_t seed = option("seed", 0), calls = option("calls", ~0ull), faults = 0;
	uint64_t began = ticks_now(), second = ticks_of(1000),
		 limit = ticks_of(option("seconds", SECONDS) * 1000);
	bool two;

	if (!seed)
		seed = began ^ (began << 20) ^ 0x9e3779b97f4a7c15ull;
	random_state = seed ? seed : 1;
	say("seed=%llu", (unsigned long long)seed);
	room = page_alloc();
	for (unsigned i = 0; i < PAGES; i++)
		page[i] = page_alloc();
	for (uint64_t at = SCRATCH; at < SCRATCH + SCRATCH_SIZE; at += 512 * PAGE_SIZE)
		map_at(l4_mfn(), at, 0);
	if (privileged())
		limit_memory();
	storm_init();
	mine.random = noise() | 1;
	others.random = noise() | 1;
	two = second_start(storm_other);
	events_allow(true);
	say("in the midst of it");
	while (made < calls && ticks_now() - began < limit) {
		if (two)
			wake_second((ticks_now() - began) / second % 4 == 0);
		if (no_fault(step, 0))
			continue;
		/* Writes to a page of its own that has become something else. */
		faults++;
		CHECK(caught.vector == 14 || caught.vector == 7,
		      "vector %llu error %llx at %llx cr2 %llx", (unsigned long long)caught.vector,
		      (unsigned long long)caught.error, (unsigned long long)caught.rip,
		      (unsigned long long)caught_cr2);
	}
	events_allow(false);
	say("%llu calls, %llu of them without an error, %llu faults of its own",
	    (unsigned long long)made, (unsigned long long)fine, (unsigned long long)faults);
	if (two) {
		wake_second(true);
		second_stop();
		second_start(storm_let_go);
		second_stop();
	}
	say("%llu and %llu operations on tables, %llu and %llu of them without an error",
	    (unsigned long long)mine.made, (unsigned long long)others.made,
	    (unsigned long long)mine.fine, (unsigned long long)others.fine);
	storm_end();
	CHECK(made > 1000, "only %llu calls", (unsigned long long)made);
	CHECK(fine > made / 20, "only %llu of %llu calls did anything", (unsigned long long)fine,
	      (unsigned long long)made);
}

const struct part parts[] = {{"fuzz", fuzz}, {NULL, NULL}};
