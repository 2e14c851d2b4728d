// SPDX-License-Identifier: MIT
#include "tests/guests/lib/internal.h"

#include <xen/callback.h>
#include <xen/sched.h>

#define DEPTH_MAX 8u

struct regs caught;
uint64_t caught_cr2;
volatile uint64_t upcalls, upcall_rip;

static uint64_t catch_place;
static bool catching;
static unsigned depth;

void trap(struct regs *r);

bool no_fault(void (*fn)(uint64_t arg), uint64_t arg)
{
	bool faulted;

	caught.vector = NO_VECTOR;
	catching = true;
	faulted = guarded(fn, arg, &catch_place);
	catching = false;
	return !faulted;
}

static void take_events(void)
{
	struct vcpu_info *v = &shared_info->vcpu_info[0];

	upcalls++;
	__atomic_store_n(&v->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&v->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
	for (unsigned i = 0; i < ARRAY_SIZE(shared_info->evtchn_pending); i++)
		__atomic_store_n(&shared_info->evtchn_pending[i], 0, __ATOMIC_SEQ_CST);
}

void events_allow(bool allow)
{
	struct vcpu_info *v = &shared_info->vcpu_info[0];

	__atomic_store_n(&v->evtchn_upcall_mask, !allow, __ATOMIC_SEQ_CST);
	if (allow && __atomic_load_n(&v->evtchn_upcall_pending, __ATOMIC_SEQ_CST))
		hypercall2(__HYPERVISOR_xen_version, 0, 0);
}

static void handle(const struct regs *r)
{
	uint64_t cr2 = shared_info->vcpu_info[0].arch.cr2;
	bool from_user = (r->cs & 3) == 3;

	if (r->vector == VECTOR_EVENT) {
		upcall_rip = r->rip;
		take_events();
		return;
	}
	depth = 0;
	if (from_user) {
		caught_cr2 = cr2;
		if (user_came_back(r))
			return;
	} else if (catching) {
		catching = false;
		caught = *r;
		caught_cr2 = cr2;
		land(catch_place, 1);
	}
	error("vector %llu error %llx at %llx:%llx rsp %llx cr2 %llx, which nobody expected",
	      (unsigned long long)r->vector, (unsigned long long)r->error,
	      (unsigned long long)r->cs, (unsigned long long)r->rip, (unsigned long long)r->rsp,
	      (unsigned long long)cr2);
}

void trap(struct regs *r)
{
	/* Without this, a fault in here would go on until the stack has eaten everything. */
	if (++depth > DEPTH_MAX) {
		static bool said;

		if (!said) {
			said = true;
			say("vector %llu error %llx at %llx while exceptions are handled",
			    (unsigned long long)r->vector, (unsigned long long)r->error,
			    (unsigned long long)r->rip);
		}
		guest_shutdown(SHUTDOWN_crash);
	}
	handle(r);
	depth--;
}

uint64_t trap_entry(unsigned vector)
{
	return VA(entries[vector]);
}

static void install(unsigned flags_of_vector(unsigned vector), bool plain)
{
	static struct trap_info table[257];

	for (unsigned i = 0; i < 256; i++)
		table[i] = (struct trap_info){.vector = (uint8_t)i,
					      .flags = (uint8_t)flags_of_vector(i),
					      .cs = FLAT_KERNEL_CS,
					      .address = plain && i < ARRAY_SIZE(entries_plain)
								 ? VA(entries_plain[i])
								 : trap_entry(i)};
	/* What the library itself may need keeps its form. */
	table[13].address = table[13].flags ? table[13].address : trap_entry(13);
	table[14].address = table[14].flags ? table[14].address : trap_entry(14);
	if (hypercall1(__HYPERVISOR_set_trap_table, VA(table)))
		error("set_trap_table");
}

void install_traps(unsigned flags_of_vector(unsigned vector))
{
	install(flags_of_vector, false);
}

void install_plain_traps(unsigned flags_of_vector(unsigned vector))
{
	install(flags_of_vector, true);
}

static unsigned usual_flags(unsigned vector)
{
	return vector == 3 || vector == 4 ? 3 : 0;
}

void install_usual_traps(void)
{
	install(usual_flags, false);
}

static void register_entry(unsigned type, unsigned number)
{
	struct callback_register c = {
		.type = (uint16_t)type, .flags = 0, .address = VA(entries[number])};

	if (hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, VA(&c)))
		error("callback %u", type);
}

void traps_init(void)
{
	struct callback_unregister nmi = {.type = CALLBACKTYPE_nmi};

	install_usual_traps();
	/* Whoever wants them asks for them. */
	hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_unregister, VA(&nmi));
	register_entry(CALLBACKTYPE_event, VECTOR_EVENT);
	register_entry(CALLBACKTYPE_syscall, VECTOR_SYSCALL);
	register_entry(CALLBACKTYPE_syscall32, VECTOR_SYSCALL32);
}
