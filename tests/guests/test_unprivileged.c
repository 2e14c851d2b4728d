// SPDX-License-Identifier: MIT
/*
 * A guest beside dom0 asks for what is not its to have: the toolstack's operations, devices, the hypervisor's console, and memory, tables, grants, ports and
 * the life of others: of dom0 and of the guest that `peer=N` names. Each is refused with the error that the interface has for it, and changes nothing.
 * In dom0's place there is nothing to refuse.
 * Only beside dom0.
 */
#include "tests/guests/lib/grants.h"

#include <xen/event_channel.h>
#include <xen/memory.h>
#include <xen/physdev.h>
#include <xen/platform.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

/* They include a header that asks for GNU's language, though nothing in it needs more than C11. */
#pragma push_macro("__STRICT_ANSI__")
#undef __STRICT_ANSI__
#include <xen/domctl.h>
#include <xen/sysctl.h>
#pragma pop_macro("__STRICT_ANSI__")

#define SCRATCH	  0x58000000000ull
#define IMAGE_MFN 0x200ull
#define IRQS	  256u

/* dom0, the peer, and what stands for no domain's memory. */
static domid_t others[4] = {0, DOMID_IO, DOMID_XEN, 0};

static unsigned nr_others(void)
{
	if (privileged())
		skip("it has the right");
	others[3] = (domid_t)option("peer", 0);
	return others[3] ? 4 : 3;
}

static bool is_domain(domid_t id)
{
	return id < DOMID_FIRST_RESERVED;
}

static void tools(void)
{
	static union {
		struct xen_domctl domctl;
		struct xen_sysctl sysctl;
		struct xen_platform_op platform;
	} u;

	for (unsigned n = nr_others(); n--;)
		for (uint32_t command = 0; command < 96; command++) {
			memset(&u, 0, sizeof(u));
			u.domctl.cmd = command;
			u.domctl.interface_version = XEN_DOMCTL_INTERFACE_VERSION;
			u.domctl.domain = others[n];
			CHECK_EQ("domctl", hypercall1(__HYPERVISOR_domctl, VA(&u)), -EPERM);
			u.domctl.domain = own_domid();
			CHECK_EQ("domctl", hypercall1(__HYPERVISOR_domctl, VA(&u)), -EPERM);
			u.sysctl.cmd = command;
			u.sysctl.interface_version = XEN_SYSCTL_INTERFACE_VERSION;
			CHECK_EQ("sysctl", hypercall1(__HYPERVISOR_sysctl, VA(&u)), -EPERM);
			u.platform.cmd = command;
			u.platform.interface_version = XENPF_INTERFACE_VERSION;
			CHECK_EQ("platform_op", hypercall1(__HYPERVISOR_platform_op, VA(&u)),
				 -EPERM);
		}
	CHECK_EQ("xsm_op", hypercall1(__HYPERVISOR_xsm_op, VA(&u)), -ENOSYS);
	CHECK_EQ("kexec_op", hypercall2(__HYPERVISOR_kexec_op, 0, VA(&u)), -ENOSYS);
}

static void devices(void)
{
	static uint64_t room[64];
	struct physdev_eoi eoi;
	struct evtchn_bind_pirq bind;
	struct physdev_set_iopl iopl = {.iopl = 1};

	nr_others();
	for (unsigned command = 0; command < 64; command++) {
		long rc;

		memset(room, 0, sizeof(room));
		rc = hypercall2(__HYPERVISOR_physdev_op, command, VA(room));
		if (command != PHYSDEVOP_set_iopl && command != PHYSDEVOP_set_iobitmap &&
		    command != PHYSDEVOP_irq_status_query && command != PHYSDEVOP_eoi)
			CHECK(rc == -EPERM || rc == -ENOSYS || rc == -EINVAL, "physdev_op %u: %ld",
			      command, rc);
	}
	for (unsigned irq = 0; irq < IRQS; irq++) {
		/* Of one that is another's this does nothing. */
		eoi.irq = irq;
		CHECK_EQ("the end of an interrupt",
			 hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_eoi, VA(&eoi)), 0);
		bind = (struct evtchn_bind_pirq){.pirq = irq};
		CHECK_EQ("an interrupt",
			 hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_pirq, VA(&bind)),
			 -EPERM);
	}
	CHECK_EQ("set_iopl", hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, VA(&iopl)), 0);
	CHECK_EQ("caches", mmuext(MMUEXT_FLUSH_CACHE, 0, 0), -EOPNOTSUPP);
	CHECK_EQ("the console", hypercall3(__HYPERVISOR_console_io, CONSOLEIO_read, 8, VA(room)),
		 -EPERM);
}

static long memory_op(unsigned command, void *arg)
{
	return hypercall2(__HYPERVISOR_memory_op, command, VA(arg));
}

static void memory_of_others(void)
{
	xen_pfn_t frame = mfn_of(page_alloc());
	static uint64_t room[16];

	for (unsigned n = nr_others(); n--;) {
		domid_t id = others[n];
		struct xen_memory_reservation r = {.nr_extents = 1, .domid = id};
		struct xen_memory_exchange x = {.in = {.nr_extents = 1, .domid = id},
						.out = {.nr_extents = 1, .domid = id}};

		set_xen_guest_handle(r.extent_start, &frame);
		set_xen_guest_handle(x.in.extent_start, &frame);
		set_xen_guest_handle(x.out.extent_start, &frame);
		CHECK_EQ("increase", memory_op(XENMEM_increase_reservation, &r), -EPERM);
		CHECK_EQ("decrease", memory_op(XENMEM_decrease_reservation, &r), -EPERM);
		CHECK_EQ("populate", memory_op(XENMEM_populate_physmap, &r), -EPERM);
		CHECK(memory_op(XENMEM_exchange, &x) < 0, "exchange for %u", id);
		x.in.domid = DOMID_SELF;
		CHECK(memory_op(XENMEM_exchange, &x) < 0, "exchange to %u", id);
		CHECK_EQ("current", memory_op(XENMEM_current_reservation, &id), -EPERM);
		CHECK_EQ("maximum", memory_op(XENMEM_maximum_reservation, &id), -EPERM);
		CHECK_EQ("gpfn", memory_op(XENMEM_maximum_gpfn, &id), -EPERM);
		memset(room, 0, sizeof(room));
		memcpy(room, &id, sizeof(id));
		CHECK(memory_op(XENMEM_add_to_physmap, room) < 0, "add_to_physmap");
		CHECK(memory_op(XENMEM_remove_from_physmap, room) < 0, "remove_from_physmap");
		CHECK(memory_op(XENMEM_acquire_resource, room) < 0, "acquire_resource");
	}
	memset(room, 0, sizeof(room));
	CHECK_EQ("claim_pages", memory_op(XENMEM_claim_pages, room), -EPERM);
	CHECK_EQ("the map of the machine", memory_op(XENMEM_machine_memory_map, room), -EPERM);
	CHECK_EQ("the frames of the M2P", memory_op(XENMEM_machphys_mfn_list, room), -EPERM);
}

/* By the right of naming another as the owner of what is mapped, or of the tables. */
static void foreign_mappings(void)
{
	uint64_t *e, value = pte(page_alloc(), RW);
	struct mmuext_op op = {.cmd = MMUEXT_PIN_L1_TABLE};
	struct mmu_update u;

	nr_others();
	if (!entry_at(l4_mfn(), SCRATCH, 1))
		map_at(l4_mfn(), SCRATCH, 0);
	e = entry_at(l4_mfn(), SCRATCH, 1);
	u = (struct mmu_update){machine_address(e), value};
	for (unsigned n = nr_others(); n--;) {
		uint64_t id = others[n];

		CHECK_EQ("of another", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, id),
			 -EPERM);
		CHECK_EQ("in another's tables",
			 hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0,
				    DOMID_SELF | (id + 1) << 16),
			 -EPERM);
		CHECK_EQ("by address",
			 hypercall4(__HYPERVISOR_update_va_mapping_otherdomain, SCRATCH, value, 0,
				    id),
			 -EPERM);
		for (op.cmd = 0; op.cmd < 24; op.cmd++) {
			op.arg1.mfn = is_domain(others[n]) ? mfn_of(page_alloc()) : IMAGE_MFN;
			CHECK_EQ("extended", hypercall4(__HYPERVISOR_mmuext_op, VA(&op), 1, 0, id),
				 -EPERM);
		}
	}
	CHECK_EQ("the entry", *e, 0);
}

/* Each frame's number is its owner's to change, and the table itself is to be read only. */
static void machine_to_physical(void)
{
	long last = hypercall2(__HYPERVISOR_memory_op, XENMEM_maximum_ram_page, 0);
	uint64_t *page = page_alloc(), own = M2P[mfn_of(page)], changed = 0;
	struct mmu_update u = {.val = 0x1234567};

	nr_others();
	for (uint64_t mfn = 0; mfn <= (uint64_t)last; mfn++) {
		uint64_t before = M2P[mfn];

		if (before < start_info->nr_pages &&
		    mfn_of((void *)(VIRT_BASE + (before << PAGE_SHIFT))) == mfn)
			continue;
		u.ptr = mfn << PAGE_SHIFT | MMU_MACHPHYS_UPDATE;
		if (hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF) == 0)
			changed++;
		CHECK(M2P[mfn] == before || M2P[mfn] != u.val || changed < 3,
		      "the number of frame %llx of another's", (unsigned long long)mfn);
	}
	/* The shared page and the table of grants. */
	CHECK(changed <= 2, "%llu frames of others", (unsigned long long)changed);
	for (unsigned i = 0; i < 3; i++) {
		static const uint64_t values[] = {~0ull, 1ull << 63, 0};

		u.ptr = machine_address(page) | MMU_MACHPHYS_UPDATE;
		u.val = values[i];
		CHECK_EQ("its own", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF),
			 0);
		CHECK_EQ("what stands there", M2P[mfn_of(page)], values[i]);
		/* Whatever stands there, it is the same frame. */
		CHECK_EQ("read-only", protect(page, false), 0);
		CHECK_EQ("writable", protect(page, true), 0);
	}
	u.val = own;
	CHECK_EQ("its own", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF), 0);
}

static void grants_of_others(void)
{
	uint64_t mine = mfn_of(page_alloc());

	nr_others();
	grants_init();
	for (unsigned n = nr_others(); n--;) {
		domid_t id = others[n];
		struct gnttab_setup_table setup = {.dom = id, .nr_frames = 1};
		struct gnttab_query_size size = {.dom = id};
		struct gnttab_get_version version = {.dom = id};
		xen_pfn_t frame = 0;
		uint32_t handle;

		for (uint32_t ref = 0; ref < GRANT_ENTRIES; ref++) {
			CHECK(grant_map(id, ref, 0, 0, &handle) < 0, "grant %u of %u", ref, id);
			CHECK(grant_map(id, ref, 0, GNTMAP_readonly, &handle) < 0,
			      "grant %u of %u, to be read", ref, id);
			CHECK(grant_copy((struct copy_side){id, true, ref, 0},
					 (struct copy_side){DOMID_SELF, false, mine, 0}, 8) < 0,
			      "a copy of grant %u of %u", ref, id);
		}
		CHECK_EQ("a copy of a frame",
			 grant_copy((struct copy_side){id, false, IMAGE_MFN, 0},
				    (struct copy_side){DOMID_SELF, false, mine, 0}, 8),
			 GNTST_permission_denied);
		CHECK_EQ("a copy to a frame",
			 grant_copy((struct copy_side){DOMID_SELF, false, mine, 0},
				    (struct copy_side){id, false, IMAGE_MFN, 0}, 8),
			 GNTST_permission_denied);
		set_xen_guest_handle(setup.frame_list, &frame);
		CHECK_EQ("setup_table", grant_op(GNTTABOP_setup_table, &setup, 1), 0);
		CHECK_EQ("its status", setup.status, GNTST_permission_denied);
		CHECK_EQ("query_size", grant_op(GNTTABOP_query_size, &size, 1), 0);
		CHECK_EQ("its status", size.status, GNTST_permission_denied);
		CHECK_EQ("get_version", grant_op(GNTTABOP_get_version, &version, 1), -EPERM);
	}
}

#define EVENT(command, arg) hypercall2(__HYPERVISOR_event_channel_op, command, VA(arg))

static void ports_of_others(void)
{
	for (unsigned n = nr_others(); n--;) {
		domid_t id = others[n];
		/* dom0 has kept for us those of the store and the console, whose other ends are closed here. */
		unsigned ours = 0;
		struct evtchn_alloc_unbound unbound = {.dom = id, .remote_dom = DOMID_SELF};
		struct evtchn_reset reset = {.dom = id};

		CHECK_EQ("alloc_unbound", EVENT(EVTCHNOP_alloc_unbound, &unbound), -EPERM);
		CHECK_EQ("reset", EVENT(EVTCHNOP_reset, &reset), -EPERM);
		for (uint32_t port = 0; port < 4096; port++) {
			struct evtchn_bind_interdomain bind = {.remote_dom = id,
							       .remote_port = port};
			struct evtchn_status status = {.dom = id, .port = port};

			long rc = EVENT(EVTCHNOP_bind_interdomain, &bind);
			struct evtchn_close close = {.port = bind.local_port};

			if (rc == 0 && id == 0 && ours++ < 2)
				CHECK_EQ("close", EVENT(EVTCHNOP_close, &close), 0);
			else
				CHECK_EQ("bind_interdomain", rc, is_domain(id) ? -EINVAL : -ESRCH);
			CHECK_EQ("status", EVENT(EVTCHNOP_status, &status), -EPERM);
		}
	}
	/* The hypervisor's own interrupts are dom0's: one may ask for them, and gets none. */
	for (unsigned virq = 0; virq < 24; virq++) {
		struct evtchn_bind_virq bind = {.virq = virq};
		struct evtchn_close close;

		if (EVENT(EVTCHNOP_bind_virq, &bind))
			continue;
		close.port = bind.port;
		CHECK_EQ("close", EVENT(EVTCHNOP_close, &close), 0);
	}
}

static void life_of_others(void)
{
	struct sched_pin_override pin = {.pcpu = 0};
	static uint64_t room[8];
	xen_commandline_t line = "";

	for (unsigned n = nr_others(); n--;) {
		struct sched_remote_shutdown op = {.domain_id = others[n],
						   .reason = SHUTDOWN_crash};

		CHECK_EQ("remote_shutdown",
			 hypercall2(__HYPERVISOR_sched_op, SCHEDOP_remote_shutdown, VA(&op)),
			 -EPERM);
	}
	CHECK_EQ("pin_override", hypercall2(__HYPERVISOR_sched_op, SCHEDOP_pin_override, VA(&pin)),
		 -EPERM);
	CHECK(hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_get_physid, 0, VA(room)) < 0, "get_physid");
	CHECK_EQ("the command line",
		 hypercall2(__HYPERVISOR_xen_version, XENVER_commandline, VA(line)), 0);
	CHECK(!strcmp(line, "<denied>"), "the command line is %.*s", 40, line);
	CHECK_EQ("the build", hypercall2(__HYPERVISOR_xen_version, XENVER_build_id, 0), -EPERM);
}

/* Lines of nothing, each of which the log begins with its own words: tests/lab/test_attack_guests counts how many get there. */
static void empty_lines(void)
{
	static char text[40000];

	nr_others();
	memset(text, '\n', sizeof(text));
	CHECK_EQ("console",
		 hypercall3(__HYPERVISOR_console_io, CONSOLEIO_write, sizeof(text), VA(text)), 0);
	pass_time(1100);
}

const struct part parts[] = {{"tools", tools},
			     {"empty-lines", empty_lines},
			     {"devices", devices},
			     {"memory-of-others", memory_of_others},
			     {"foreign-mappings", foreign_mappings},
			     {"machine-to-physical", machine_to_physical},
			     {"grants-of-others", grants_of_others},
			     {"ports-of-others", ports_of_others},
			     {"life-of-others", life_of_others},
			     {NULL, NULL}};
