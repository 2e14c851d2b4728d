// SPDX-License-Identifier: MIT
/*
 * What a guest can do to get more of a processor than is its due: compute, call the hypervisor, fault, send itself events, set timers that are over already. Each
 * part does one of them for an instant. With `spin=N` (1: the first part) the guest does that for ever and says now and then how
 * often it has: tests/lab/test_fair_shares compares guests so.
 */
#include "tests/guests/lib/guest.h"

#include <xen/event_channel.h>
#include <xen/sched.h>
#include <xen/vcpu.h>
#include <xen/version.h>

#define INSTANT_MS 50
#define SAY_MS	   2000
#define STEPS	   10000

static uint64_t instant, pause_between;
static uint32_t own_port;

static void nowhere(uint64_t at)
{
	*(volatile char *)at = 0;
}

static void compute(void)
{
	uint64_t x = 88172645463325252ull;

	for (unsigned i = 0; i < STEPS; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
	}
	CHECK(x, "a generator that never makes 0 made it");
}

static void call(void)
{
	for (unsigned i = 0; i < 100; i++)
		CHECK(hypercall2(__HYPERVISOR_xen_version, XENVER_version, 0) > 0, "no version");
}

static void fault(void)
{
	for (unsigned i = 0; i < 100; i++)
		CHECK(!no_fault(nowhere, 64), "there is something at 64");
}

static void send_to_itself(void)
{
	struct evtchn_send op = {.port = own_port};
	uint64_t before = upcalls;

	for (unsigned i = 0; i < 100; i++)
		CHECK_EQ("send", hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_send, VA(&op)),
			 0);
	CHECK(upcalls > before, "none of its events came");
}

static void set_timers(void)
{
	struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = 1};
	uint64_t before = upcalls;

	for (unsigned i = 0; i < 100; i++)
		CHECK_EQ("timer",
			 hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_set_singleshot_timer, 0, VA(&op)),
			 0);
	CHECK(upcalls > before, "no timer came");
}

static void bind(void)
{
	struct evtchn_bind_ipi ipi = {.vcpu = 0};
	struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER};

	CHECK_EQ("IPI", hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_ipi, VA(&ipi)), 0);
	own_port = ipi.port;
	CHECK_EQ("timer", hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_bind_virq, VA(&virq)),
		 0);
	for (uint32_t port = 0; port <= MAX(ipi.port, virq.port); port++)
		shared_info->evtchn_mask[0] &= ~(1ull << port);
	events_allow(true);
}

static void repeat(void (*step)(void), unsigned number)
{
	uint64_t end, next, count = 0, forever = option("spin", 0);

	if (!instant) {
		instant = ticks_of(INSTANT_MS);
		pause_between = ticks_of(SAY_MS);
		bind();
	}
	if (forever && forever != number)
		return;
	end = ticks_now() + instant;
	for (next = 0; forever || ticks_now() < end; count++) {
		step();
		if (forever && ticks_now() >= next) {
			say("spin %u: %lu at %lu", number, count, ticks_now());
			next = ticks_now() + pause_between;
		}
	}
}

#define PART(name, step, number)      \
	static void name(void)        \
	{                             \
		repeat(step, number); \
	}
PART(computing, compute, 1)
PART(hypercalls, call, 2)
PART(faults, fault, 3)
PART(ipis, send_to_itself, 4)
PART(timers, set_timers, 5)

const struct part parts[] = {
	{"computing", computing}, {"hypercalls", hypercalls}, {"faults", faults},
	{"ipis", ipis},		  {"timers", timers},	      {0},
};
