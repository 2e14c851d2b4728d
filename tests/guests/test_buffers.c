// SPDX-License-Identifier: MIT
/*
 * Hypervisor addresses where a hypercall's structure has a pointer, and everywhere else in it: each word of each structure in turn, for every command of every family.
 * One of the addresses is a page of the guest's own as the hypervisor maps it: what is written there without a check is seen (invariant 4). The
 * other is the machine-to-physical table, which is not writable. And interruptions that never were: counts and commands as an interrupted
 * operation leaves them, so that a list begins before the hypervisor and goes on inside of it.
 */
#include "tests/guests/lib/guest.h"

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

#define DIRECT_MAP 0xffff830000000000ull
#define HV_START   0xffff800000000000ull
#define WORDS	   18u
#define PATTERN	   0x5a5a5a5a5a5a5a5aull
#define SCRATCH	   0x70000000000ull
#define CONTINUED  0x80000000ull

static uint64_t *target; /* the page that nobody may write to */
static uint64_t *room;
static uint64_t calls;

static uint64_t target_in_hypervisor(void)
{
	return DIRECT_MAP + (mfn_of(target) << PAGE_SHIFT);
}

static void prepare(void)
{
	if (target)
		return;
	target = page_alloc();
	room = page_alloc();
	for (unsigned i = 0; i < 512; i++)
		target[i] = PATTERN;
}

static void look(const char *family, uint64_t command)
{
	for (unsigned i = 0; i < 512; i++)
		CHECK(target[i] == PATTERN, "%s %llu has written to the hypervisor's address",
		      family, (unsigned long long)command);
}

/* Each word from `first` on becomes the address in turn; the others are small numbers. */
static void each_word(const char *family, uint64_t number, uint64_t command, bool has_command,
		      unsigned first)
{
	static const uint64_t others[] = {0, 1, 4, PAGE_SIZE};
	const uint64_t addresses[] = {target_in_hypervisor(), target_in_hypervisor() + 8, HV_START};

	for (unsigned i = 0; i < ARRAY_SIZE(addresses) * ARRAY_SIZE(others); i++) {
		for (unsigned word = first; word < WORDS; word++) {
			uint64_t head[2] = {room[0], room[1]};

			for (unsigned k = first; k < 512; k++)
				room[k] = others[i % ARRAY_SIZE(others)];
			room[word] = addresses[i / ARRAY_SIZE(others)];
			if (!has_command)
				hypercall1(number, VA(room));
			else if (number == __HYPERVISOR_vcpu_op)
				hypercall3(number, command, 0, VA(room));
			else
				hypercall3(number, command, VA(room), 1);
			calls++;
			room[0] = head[0];
			room[1] = head[1];
		}
	}
	look(family, command);
}

static void tools(void)
{
	prepare();
	for (uint32_t command = 0; command < 32; command++) {
		struct xen_sysctl *op = (struct xen_sysctl *)room;

		/* One of the keys restarts the machine. */
		if (command == XEN_SYSCTL_debug_keys)
			continue;
		op->cmd = command;
		op->interface_version = XEN_SYSCTL_INTERFACE_VERSION;
		each_word("sysctl", __HYPERVISOR_sysctl, command, false, 1);
	}
	for (uint32_t command = 0; command < 88; command++) {
		struct xen_domctl *op = (struct xen_domctl *)room;

		/* A cap is not what is tried here, and all would take long after it. */
		if (command == XEN_DOMCTL_scheduler_op || command == XEN_DOMCTL_max_mem)
			continue;
		op->cmd = command;
		op->interface_version = XEN_DOMCTL_INTERFACE_VERSION;
		room[1] = 0; /* the domain */
		each_word("domctl", __HYPERVISOR_domctl, command, false, 2);
	}
	for (uint32_t command = 0; command < 70; command++) {
		struct xen_platform_op *op = (struct xen_platform_op *)room;

		if (command == XENPF_enter_acpi_sleep)
			continue;
		op->cmd = command;
		op->interface_version = XENPF_INTERFACE_VERSION;
		each_word("platform_op", __HYPERVISOR_platform_op, command, false, 1);
	}
	CHECK(calls > 20000, "only %llu calls", (unsigned long long)calls);
}

/* Commands that end the guest or its time by right. */
static bool ends_itself(uint64_t number, uint64_t command)
{
	if (number == __HYPERVISOR_vcpu_op)
		return command == VCPUOP_down || command == VCPUOP_send_nmi;
	if (number == __HYPERVISOR_sched_op)
		return command == SCHEDOP_block || command == SCHEDOP_shutdown ||
		       command == SCHEDOP_remote_shutdown || command == SCHEDOP_watchdog ||
		       command == SCHEDOP_poll;
	return false;
}

/* No more memory than this: all that there is would be gone at once. */
static void limit_memory(void)
{
	struct xen_domctl op = {.cmd = XEN_DOMCTL_max_mem,
				.interface_version = XEN_DOMCTL_INTERFACE_VERSION};

	op.u.max_mem.max_memkb = (start_info->nr_pages + 64) * 4;
	CHECK_EQ("max_mem", hypercall1(__HYPERVISOR_domctl, VA(&op)), 0);
}

static void families(void)
{
	static const struct {
		const char *name;
		uint64_t number;
	} family[] = {{"memory_op", __HYPERVISOR_memory_op},
		      {"event_channel_op", __HYPERVISOR_event_channel_op},
		      {"physdev_op", __HYPERVISOR_physdev_op},
		      {"sched_op", __HYPERVISOR_sched_op},
		      {"vcpu_op", __HYPERVISOR_vcpu_op},
		      {"callback_op", __HYPERVISOR_callback_op},
		      {"grant_table_op", __HYPERVISOR_grant_table_op}};

	prepare();
	if (privileged())
		limit_memory();
	for (unsigned f = 0; f < ARRAY_SIZE(family); f++)
		for (uint64_t command = 0; command < 48; command++)
			if (!ends_itself(family[f].number, command))
				each_word(family[f].name, family[f].number, command, true, 0);
}

/* The masks of vCPUs to flush, and lists within lists. */
static void masks(void)
{
	const uint64_t bad[] = {HV_START, target_in_hypervisor(), 0x800000000000,
				0xfffffffffffffff8 - 7};

	prepare();
	map_at(l4_mfn(), SCRATCH, 0);
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		uint64_t p = bad[i] & ~3ull;

		CHECK_EQ("flush", mmuext(MMUEXT_TLB_FLUSH_MULTI, 0, p), -EFAULT);
		CHECK_EQ("invlpg", mmuext(MMUEXT_INVLPG_MULTI, SCRATCH, p), -EFAULT);
		CHECK_EQ("update_va_mapping",
			 hypercall3(__HYPERVISOR_update_va_mapping, SCRATCH, 0, p | UVMF_INVLPG),
			 -EFAULT);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		struct sched_poll poll = {.nr_ports = 1, .timeout = 1};

		poll.ports.p = (evtchn_port_t *)(bad[i] & ~3ull);
		CHECK_EQ("poll", hypercall2(__HYPERVISOR_sched_op, SCHEDOP_poll, VA(&poll)),
			 -EFAULT);
	}
	/* Addresses to forget: any is fine, and the hypervisor's are not forgotten. */
	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++) {
		CHECK_EQ("invlpg", mmuext(MMUEXT_INVLPG_LOCAL, bad[i], 0), 0);
		CHECK_EQ("invlpg", mmuext(MMUEXT_INVLPG_ALL, bad[i], 0), 0);
	}
	look("flushing", 0);
}

static long memory_op(uint64_t command, void *arg)
{
	return hypercall2(__HYPERVISOR_memory_op, command, VA(arg));
}

/* The lists begin so far before the hypervisor that the place to go on is in it. */
static void forged(void)
{
	static const uint64_t done[] = {1, 512, 1ull << 20, 1ull << 36, 1ull << 39};
	struct xen_memory_exchange x;
	struct xen_memory_reservation r;
	uint32_t count = 5;

	prepare();
	for (unsigned i = 0; i < ARRAY_SIZE(done); i++) {
		uint64_t at = target_in_hypervisor() - done[i] * 8;

		x = (struct xen_memory_exchange){
			.in = {.nr_extents = done[i] + 1, .domid = DOMID_SELF},
			.out = {.nr_extents = done[i] + 1, .domid = DOMID_SELF},
			.nr_exchanged = done[i]};
		x.in.extent_start.p = x.out.extent_start.p = (void *)at;
		CHECK(memory_op(XENMEM_exchange, &x) < 0, "exchange from %llx", (long long)at);
		r = (struct xen_memory_reservation){.nr_extents = done[i] + 1, .domid = DOMID_SELF};
		r.extent_start.p = (void *)at;
		CHECK_EQ("populate", memory_op(XENMEM_populate_physmap | done[i] << 6, &r),
			 done[i]);
		CHECK_EQ("decrease", memory_op(XENMEM_decrease_reservation | done[i] << 6, &r),
			 done[i]);
		/* It gets its page, and is not told which. */
		CHECK_EQ("increase", memory_op(XENMEM_increase_reservation | done[i] << 6, &r),
			 done[i]);
	}
	r.nr_extents = 1;
	CHECK(memory_op(XENMEM_populate_physmap | 5 << 6, &r) < 0, "more done than there are");
	CHECK(memory_op(XENMEM_decrease_reservation | ~0ull << 6, &r) < 0,
	      "more done than there are");
	CHECK_EQ("mmu_update",
		 hypercall4(__HYPERVISOR_mmu_update, VA(room), CONTINUED, target_in_hypervisor(),
			    DOMID_SELF),
		 -EFAULT);
	CHECK_EQ("mmu_update",
		 hypercall4(__HYPERVISOR_mmu_update, VA(room), CONTINUED, VA(&count), DOMID_SELF),
		 0);
	CHECK_EQ("its count", count, 5);
	CHECK_EQ("mmuext_op",
		 hypercall4(__HYPERVISOR_mmuext_op, HV_START, CONTINUED | 1, 0, DOMID_SELF),
		 -EFAULT);
	CHECK_EQ("console_io",
		 hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write, 8, target_in_hypervisor()),
		 -EFAULT);
	CHECK_EQ("multicall", hypercall2(__HYPERVISOR_multicall, HV_START - 64, 2), -EFAULT);
	look("a forged one", 0);
}

const struct part parts[] = {{"tools", tools},
			     {"families", families},
			     {"masks", masks},
			     {"forged", forged},
			     {NULL, NULL}};
