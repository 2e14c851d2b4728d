// SPDX-License-Identifier: MIT
/*
 * Hypercalls with arguments that cannot be: buffers in the hypervisor, not canonical, across the end of the address space, half mapped; commands that
 * do not exist; ports, vCPUs and vectors out of range. Each is an error for the guest, and nothing is written anywhere but in its own memory:
 * the M2P, the part of the hypervisor's that a guest sees, stays as it was.
 */
#include "tests/guests/lib/guest.h"

#include <xen/callback.h>
#include <xen/event_channel.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#define COMMANDS 48u

static const uint64_t bad_pointers[] = {0xffff800000000000,
					0xffff800000001000,
					0xffff810000000000,
					0xffff820000000000,
					0xffff828000200000,
					0xffff82800020fff8,
					0xffff830000000000,
					0xffff830000200000,
					0xffff87fffffffff8,
					0x800000000000,
					0x7fffffffffff,
					0x7ffffffffff9,
					0xffff7ffffffffff8,
					0xffffffffffffffff,
					0xfffffffffffffff9,
					0x8000000000000000,
					0,
					8};

/* Commands that end the guest or the machine by right, whatever their argument. */
static bool ends_itself(unsigned number, uint64_t command)
{
	return (number == __HYPERVISOR_sched_op && command == SCHEDOP_block) ||
	       (number == __HYPERVISOR_vcpu_op && command == VCPUOP_down);
}

/* Each family with a command in its first argument and a pointer in another: the pointer's place. */
static const struct {
	uint8_t number, pointer;
} families[] = {{__HYPERVISOR_memory_op, 1},   {__HYPERVISOR_event_channel_op, 1},
		{__HYPERVISOR_xen_version, 1}, {__HYPERVISOR_console_io, 2},
		{__HYPERVISOR_physdev_op, 1},  {__HYPERVISOR_grant_table_op, 1},
		{__HYPERVISOR_vcpu_op, 2},     {__HYPERVISOR_sched_op, 1},
		{__HYPERVISOR_callback_op, 1}, {__HYPERVISOR_xsm_op, 1},
		{__HYPERVISOR_nmi_op, 1},      {__HYPERVISOR_hvm_op, 1},
		{__HYPERVISOR_kexec_op, 1}};

static uint64_t m2p_sum(void)
{
	long last = hypercall2(__HYPERVISOR_memory_op, XENMEM_maximum_ram_page, 0);
	uint64_t sum = 0;

	for (long i = 0; i <= last; i++)
		sum = sum * 31 + M2P[i];
	return sum;
}

static void pointers_of_families(void)
{
	uint64_t before = m2p_sum();

	for (unsigned f = 0; f < ARRAY_SIZE(families); f++)
		for (unsigned command = 0; command < COMMANDS; command++)
			for (unsigned i = 0; i < ARRAY_SIZE(bad_pointers); i++) {
				uint64_t a[3] = {command, 0, 0};

				if (ends_itself(families[f].number, command))
					continue;
				if (families[f].number != __HYPERVISOR_vcpu_op)
					a[1] = families[f].pointer == 2 ? 64 : 0;
				a[families[f].pointer] = bad_pointers[i];
				hypercall3(families[f].number, a[0], a[1], a[2]);
			}
	events_allow(false);
	CHECK_EQ("M2P", m2p_sum(), before);
}

/* Those whose first arguments are pointers, and those of the tools. */
static void pointers_of_others(void)
{
	static const uint8_t numbers[] = {__HYPERVISOR_set_trap_table, __HYPERVISOR_mmu_update,
					  __HYPERVISOR_set_gdt,	       __HYPERVISOR_platform_op,
					  __HYPERVISOR_multicall,      __HYPERVISOR_mmuext_op,
					  __HYPERVISOR_sysctl,	       __HYPERVISOR_domctl};

	for (unsigned n = 0; n < ARRAY_SIZE(numbers); n++)
		for (unsigned i = 0; i < ARRAY_SIZE(bad_pointers); i++) {
			uint64_t p = bad_pointers[i];
			long rc;

			/* NULL: no table of traps, on purpose. */
			if (!p && numbers[n] == __HYPERVISOR_set_trap_table)
				continue;
			rc = hypercall4(numbers[n], p, 3, p, DOMID_SELF);
			CHECK(rc == -EFAULT || rc == -EINVAL || rc == -EPERM,
			      "hypercall %u with %llx: %ld", numbers[n], (unsigned long long)p, rc);
		}
}

/* The counters that are written at the end. */
static void pointers_to_results(void)
{
	struct mmu_update u = {.ptr = machine_address((void *)start_info) | MMU_MACHPHYS_UPDATE,
			       .val = (VA(start_info) - VIRT_BASE) >> PAGE_SHIFT};
	struct mmuext_op op = {.cmd = MMUEXT_TLB_FLUSH_LOCAL};

	for (unsigned i = 0; i < ARRAY_SIZE(bad_pointers); i++) {
		uint64_t p = bad_pointers[i];

		if (!p)
			continue; /* not wanted */
		CHECK_EQ("mmu_update",
			 hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, p, DOMID_SELF), -EFAULT);
		CHECK_EQ("mmuext_op", hypercall4(__HYPERVISOR_mmuext_op, VA(&op), 1, p, DOMID_SELF),
			 -EFAULT);
	}
}

/* xen_version writes: the last bytes of a page whose next one is missing, and the last ones below the hypervisor. */
static void half_mapped(void)
{
	char *page = page_alloc(), *next = page_alloc();

	CHECK_EQ("neighbours", VA(next) - VA(page), PAGE_SIZE);
	CHECK_EQ("unmap", set_mapping(next, 0), 0);
	for (unsigned left = 1; left < 16; left++)
		CHECK_EQ("extraversion",
			 hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion,
				    VA(page) + PAGE_SIZE - left),
			 -EFAULT);
	CHECK_EQ("that fits",
		 hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion,
			    VA(page) + PAGE_SIZE - 16),
		 0);
	CHECK_EQ("read-only", protect(page, false), 0);
	CHECK_EQ("extraversion",
		 hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, VA(page)), -EFAULT);
}

static void unknown_commands(void)
{
	static const uint64_t commands[] = {47, 63, 1000, 0x7fffffff};
	static const uint8_t numbers[] = {
		__HYPERVISOR_event_channel_op, __HYPERVISOR_xen_version,   __HYPERVISOR_console_io,
		__HYPERVISOR_physdev_op,       __HYPERVISOR_sched_op,	   __HYPERVISOR_vcpu_op,
		__HYPERVISOR_callback_op,      __HYPERVISOR_grant_table_op};
	static uint64_t room[64];

	for (unsigned n = 0; n < ARRAY_SIZE(numbers); n++)
		for (unsigned i = 0; i < ARRAY_SIZE(commands); i++) {
			long rc = hypercall4(numbers[n], commands[i], 0, VA(room), 0);

			/* Who may not do what there is is not told what there is. */
			if (numbers[n] == __HYPERVISOR_physdev_op && !privileged())
				CHECK_EQ("an unknown command for devices", rc, -EPERM);
			else
				CHECK(rc == -ENOSYS, "hypercall %u, command %llu: %ld", numbers[n],
				      (unsigned long long)commands[i], rc);
		}
	CHECK_EQ("memory_op 47", hypercall2(__HYPERVISOR_memory_op, 47, VA(room)), -ENOSYS);
	CHECK(mmuext(63, 0, 0) < 0, "mmuext_op 63");
	CHECK(hypercall2(__HYPERVISOR_vm_assist, 9, 0) < 0, "vm_assist");
	CHECK(hypercall2(__HYPERVISOR_vm_assist, 0, ~0ull) < 0, "vm_assist");
	CHECK_EQ("writes to tables are asked for",
		 hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable,
			    VMASST_TYPE_writable_pagetables),
		 0);
}

static void traps(void)
{
	static struct trap_info table[300];
	static const uint64_t addresses[] = {0xffff828000200000, 0x800000000000, 0xffff800000000000,
					     0xffff87ffffffffff};

	for (unsigned i = 0; i < ARRAY_SIZE(addresses); i++) {
		table[0] = (struct trap_info){.vector = 200, .address = addresses[i], .cs = 3};
		table[1].address = 0;
		CHECK_EQ("set_trap_table", hypercall1(__HYPERVISOR_set_trap_table, VA(table)),
			 -EINVAL);
	}
	for (unsigned i = 0; i < 300; i++)
		table[i] = (struct trap_info){.vector = 200, .address = trap_entry(200), .cs = 3};
	CHECK_EQ("without an end", hypercall1(__HYPERVISOR_set_trap_table, VA(table)), -EINVAL);
	for (unsigned type = 0; type < 16; type++) {
		struct callback_register c = {.type = (uint16_t)type,
					      .address = 0xffff828000200000};

		CHECK(hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, VA(&c)) < 0,
		      "callback %u", type);
	}
	install_usual_traps();
}

static void vcpus(void)
{
	static const uint64_t ids[] = {1,  31,	 32,	     63,	 64,
				       65, 4096, 0x7fffffff, 0xffffffff, 1ull << 31};
	static uint64_t room[1024];

	for (unsigned command = 0; command < 16; command++)
		for (unsigned i = 0; i < ARRAY_SIZE(ids); i++) {
			long rc = hypercall3(__HYPERVISOR_vcpu_op, command, ids[i], VA(room));

			CHECK(rc < 0, "command %u for vCPU %llx: %ld", command,
			      (unsigned long long)ids[i], rc);
		}
	CHECK_EQ("is_up", hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_is_up, 0, 0), 1);
	CHECK_EQ("initialise", hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_initialise, 0, VA(room)),
		 -EEXIST);
}

#define EVENT(command, ...) hypercall2(__HYPERVISOR_event_channel_op, command, VA(&(__VA_ARGS__)))

static void event_channels(void)
{
	static const uint32_t ports[] = {0,	 1,	 100,	     4095,	4096,
					 131071, 131072, 0x7fffffff, 0xffffffff};
	struct evtchn_bind_ipi ipi = {.vcpu = 0};
	struct evtchn_bind_interdomain twice;
	struct evtchn_alloc_unbound unbound = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};

	for (unsigned i = 0; i < ARRAY_SIZE(ports); i++) {
		CHECK(EVENT(EVTCHNOP_send, (struct evtchn_send){ports[i]}) < 0, "send %x",
		      ports[i]);
		CHECK(EVENT(EVTCHNOP_close, (struct evtchn_close){ports[i]}) < 0, "close %x",
		      ports[i]);
		CHECK(EVENT(EVTCHNOP_bind_vcpu, (struct evtchn_bind_vcpu){ports[i], 0}) < 0,
		      "bind %x", ports[i]);
		CHECK(EVENT(EVTCHNOP_bind_interdomain,
			    (struct evtchn_bind_interdomain){DOMID_SELF, ports[i], 0}) < 0,
		      "interdomain %x", ports[i]);
	}
	for (unsigned virq = 0; virq < 40; virq++)
		CHECK(EVENT(EVTCHNOP_bind_virq, (struct evtchn_bind_virq){virq, 1, 0}) < 0,
		      "virq %u of a vCPU that is not", virq);
	CHECK(EVENT(EVTCHNOP_bind_virq, (struct evtchn_bind_virq){~0u, 0, 0}) < 0, "no such virq");
	CHECK(EVENT(EVTCHNOP_bind_ipi, (struct evtchn_bind_ipi){.vcpu = 77}) < 0, "ipi of no vCPU");
	CHECK(EVENT(EVTCHNOP_bind_pirq, (struct evtchn_bind_pirq){.pirq = 0xffffffff}) < 0,
	      "no such pirq");
	CHECK_EQ("ipi", hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, VA(&ipi)), 0);
	CHECK(EVENT(EVTCHNOP_bind_vcpu, (struct evtchn_bind_vcpu){ipi.port, 9}) < 0, "to no vCPU");
	CHECK_EQ("send", EVENT(EVTCHNOP_send, (struct evtchn_send){ipi.port}), 0);
	CHECK_EQ("close", EVENT(EVTCHNOP_close, (struct evtchn_close){ipi.port}), 0);
	CHECK(EVENT(EVTCHNOP_close, (struct evtchn_close){ipi.port}) < 0, "close again");
	CHECK(EVENT(EVTCHNOP_send, (struct evtchn_send){ipi.port}) < 0, "send to a closed one");
	CHECK_EQ("unbound",
		 hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, VA(&unbound)),
		 0);
	twice = (struct evtchn_bind_interdomain){DOMID_SELF, unbound.port, 0};
	CHECK_EQ("bind",
		 hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_interdomain, VA(&twice)),
		 0);
	CHECK(EVENT(EVTCHNOP_bind_interdomain,
		    (struct evtchn_bind_interdomain){DOMID_SELF, unbound.port, 0}) < 0,
	      "bind the other end again");
	CHECK_EQ("send", EVENT(EVTCHNOP_send, (struct evtchn_send){twice.local_port}), 0);
	CHECK_EQ("close", EVENT(EVTCHNOP_close, (struct evtchn_close){unbound.port}), 0);
	EVENT(EVTCHNOP_send, (struct evtchn_send){twice.local_port});
	CHECK_EQ("close", EVENT(EVTCHNOP_close, (struct evtchn_close){twice.local_port}), 0);
	CHECK(EVENT(EVTCHNOP_alloc_unbound, (struct evtchn_alloc_unbound){4711, 0, 0}) < 0,
	      "no domain");
	/* As many as there can be, and no more. */
	while (!hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, VA(&ipi)))
		;
	for (uint32_t port = 1; port <= ipi.port; port++)
		EVENT(EVTCHNOP_close, (struct evtchn_close){port});
	CHECK_EQ("again", hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, VA(&ipi)),
		 0);
	CHECK_EQ("close", EVENT(EVTCHNOP_close, (struct evtchn_close){ipi.port}), 0);
}

/* ---- debug registers ---- */

static uint64_t watched[8];

static void debug_registers(void)
{
	static const uint64_t bad[] = {0xffff828000200000, 0x800000000000, 0xffff800000000000,
				       0x7ffffffffffd};
	long rc;

	for (unsigned i = 0; i < ARRAY_SIZE(bad); i++)
		CHECK(hypercall2(__HYPERVISOR_set_debugreg, 0, bad[i]) < 0, "%llx",
		      (unsigned long long)bad[i]);
	CHECK(hypercall2(__HYPERVISOR_set_debugreg, 8, 0) < 0, "register 8");
	CHECK(hypercall2(__HYPERVISOR_set_debugreg, ~0ull, 0) < 0, "register ~0");
	CHECK(hypercall2(__HYPERVISOR_set_debugreg, 7, 1ull << 32) < 0, "the upper half");
	CHECK(hypercall2(__HYPERVISOR_set_debugreg, 7, 0x20003) < 0, "I/O");
	hypercall2(__HYPERVISOR_set_debugreg, 7, 0x2000);
	CHECK(!(hypercall1(__HYPERVISOR_get_debugreg, 7) & 0x2000), "general detect");
	CHECK_EQ("address", hypercall2(__HYPERVISOR_set_debugreg, 0, VA(watched)), 0);
	/* Eight bytes, reads and writes: what the hypervisor reads and writes for the guest is watched as well, and harms nobody. */
	CHECK_EQ("control", hypercall2(__HYPERVISOR_set_debugreg, 7, 0xb0003), 0);
	rc = hypercall2(__HYPERVISOR_xen_version, XENVER_extraversion, VA(watched));
	CHECK_EQ("a hypercall that writes there", rc, 0);
	rc = hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write, 0, VA(watched));
	CHECK_EQ("a hypercall that reads there", rc, 0);
	CHECK_EQ("control", hypercall2(__HYPERVISOR_set_debugreg, 7, 0), 0);
	CHECK_EQ("address", hypercall2(__HYPERVISOR_set_debugreg, 0, 0), 0);
}

/* ---- I/O privilege ---- */

KERNEL_CODE(read_clock, "mov $0x70, %edx; in %dx, %ax; mov %ax, port_answer");
uint16_t port_answer;
KERNEL_CODE(clear_interrupts, "cli; sti");
USER_CODE(user_reads_clock, "mov $0x71, %edx; in %dx, %al; ud2");
USER_CODE(user_reads_four, "mov $0x70, %edx; in %dx, %eax; ud2");

static void privilege(unsigned iopl)
{
	struct physdev_set_iopl op = {.iopl = iopl};

	CHECK_EQ("set_iopl", hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, VA(&op)), 0);
}

static uint64_t user_vector(const char *code)
{
	struct regs r = user_regs(USER_CODE_AT(code));

	run_user(&r, 0);
	return r.vector;
}

static void ports(void)
{
	struct physdev_set_iopl op = {.iopl = 4};
	struct physdev_set_iobitmap map = {.nr_ports = 0x72};
	static uint8_t bits[8192];

	user_init();
	CHECK(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, VA(&op)) < 0, "level 4");
	privilege(0);
	CHECK(!no_fault(read_clock, 0), "level 0: the kernel reads a port");
	CHECK(!no_fault(clear_interrupts, 0), "level 0: the kernel does CLI");
	privilege(1);
	port_answer = 0;
	CHECK(no_fault(read_clock, 0), "level 1: the kernel does not read a port");
	CHECK(privileged() || port_answer == 0xffff, "a port that it was not given says %x",
	      port_answer);
	CHECK(no_fault(clear_interrupts, 0), "level 1: the kernel does not do CLI");
	CHECK_EQ("level 1: the program", user_vector(user_reads_clock), 13);
	privilege(3);
	CHECK_EQ("level 3: the program", user_vector(user_reads_clock), 6);
	privilege(1);
	memset(bits, 0xff, sizeof(bits));
	bits[0x71 / 8] = (uint8_t) ~(1u << 0x71 % 8);
	map.bitmap.p = bits;
	CHECK_EQ("bitmap", hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, VA(&map)),
		 0);
	/* The bitmap is the kernel's, whose pages the program's tables do not have. */
	CHECK_EQ("a port whose bit is clear", user_vector(user_reads_clock), 6);
	CHECK_EQ("four ports of which it has one", user_vector(user_reads_four), 13);
	map.nr_ports = 65537;
	CHECK(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, VA(&map)) < 0,
	      "too many ports");
	map.nr_ports = 65536;
	map.bitmap.p = (void *)0xffff830000000000;
	CHECK(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, VA(&map)) < 0,
	      "the hypervisor's");
	map.nr_ports = 0;
	map.bitmap.p = NULL;
	CHECK_EQ("none", hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, VA(&map)), 0);
}

const struct part parts[] = {{"pointers-of-families", pointers_of_families},
			     {"pointers-of-others", pointers_of_others},
			     {"pointers-to-results", pointers_to_results},
			     {"half-mapped", half_mapped},
			     {"unknown-commands", unknown_commands},
			     {"traps", traps},
			     {"vcpus", vcpus},
			     {"event-channels", event_channels},
			     {"debug-registers", debug_registers},
			     {"ports", ports},
			     {NULL, NULL}};
