// SPDX-License-Identifier: MIT
/*
 * NMIs: from the guest itself (VCPUOP_send_nmi) at once, a second one not before the first's handler has ended with iret; with `machine=1` the one that
 * tests/lab/test_cpu makes the machine send. With `wait=1` the guest stays where it is, for a look at it from outside.
 */
#include "tests/guests/lib/guest.h"

#include <xen/callback.h>
#include <xen/nmi.h>
#include <xen/vcpu.h>

#define VECTOR_NMI 2

USER_CODE(user_ends, "ud2");

static void ask_for_nmis(void)
{
	struct callback_register c = {.type = CALLBACKTYPE_nmi, .address = trap_entry(VECTOR_NMI)};

	if (hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, VA(&c)))
		failure("the callback is refused");
}

static void send(uint64_t unused)
{
	(void)unused;
	if (hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_send_nmi, 0, 0))
		error("send_nmi");
}

static void spin(uint64_t unused)
{
	(void)unused;
	for (;;)
		__asm__ volatile("pause");
}

/* What the handlers of the library leave out, since they do not return. */
static void end_handler(uint64_t vector)
{
	struct regs r = user_regs(USER_CODE_AT(user_ends));

	user_init();
	run_user(&r, 0);
	CHECK_EQ("vector", r.vector, vector);
	CHECK_EQ("rip", r.rip, USER_CODE_AT(user_ends));
}

static void own(void)
{
	ask_for_nmis();
	CHECK(!no_fault(send, 0), "no NMI");
	CHECK_EQ("vector", caught.vector, VECTOR_NMI);
	CHECK(no_fault(send, 0), "an NMI in an NMI's handler");
	end_handler(VECTOR_NMI);
	end_handler(6);
}

static void nobody_asked(void)
{
	struct callback_register c = {.type = CALLBACKTYPE_nmi, .address = 0xffff800000000000};
	struct callback_unregister drop = {.type = CALLBACKTYPE_nmi};

	CHECK_EQ("bad address", hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, VA(&c)),
		 -EINVAL);
	CHECK_EQ("unregister",
		 hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_unregister, VA(&drop)), 0);
	CHECK(no_fault(send, 0), "an NMI that nobody asked for");
	ask_for_nmis();
	CHECK(!no_fault(send, 0), "no NMI");
	end_handler(6);
}

/* As Linux asks: by the trap table alone, which further vCPUs have from the beginning and saved ones keep. */
static void trap_table(void)
{
	struct callback_unregister drop = {.type = CALLBACKTYPE_nmi};

	hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_unregister, VA(&drop));
	install_usual_traps();
	CHECK(!no_fault(send, 0), "no NMI");
	CHECK_EQ("vector", caught.vector, VECTOR_NMI);
	end_handler(6);
}

static void machine(void)
{
	if (!option("machine", 0))
		skip("not asked for");
	ask_for_nmis();
	say("ready for an NMI");
	CHECK(!no_fault(spin, 0), "no NMI");
	CHECK_EQ("vector", caught.vector, VECTOR_NMI);
	CHECK_EQ("reason", shared_info->arch.nmi_reason, XEN_NMIREASON_unknown);
	end_handler(6);
}

static void wait(void)
{
	if (!option("wait", 0))
		skip("not asked for");
	say("ready to be looked at");
	spin(0);
}

const struct part parts[] = {{"own", own},
			     {"nobody-asked", nobody_asked},
			     {"trap-table", trap_table},
			     {"machine", machine},
			     {"wait", wait},
			     {0}};
