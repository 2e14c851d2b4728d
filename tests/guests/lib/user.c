// SPDX-License-Identifier: MIT
/* User mode has an L4 of its own, which has nothing of the kernel; the kernel's L4 has user mode's part as well, as kernels have it. */
#include "tests/guests/lib/internal.h"

#define IF_FLAG 0x200

uint64_t user_l4_mfn, kernel_entry_stack;
bool mask_on_entry;

static struct regs came_back;
static uint64_t place;
static bool waiting;

void user_init(void)
{
	void *l4, *stack, *data;

	if (user_l4_mfn)
		return;
	l4 = page_alloc();
	stack = page_alloc();
	for (uint64_t at = VA(user_start); at < VA(user_end); at += PAGE_SIZE)
		map_at(l4_mfn(), USER_BASE + (at - VA(user_start)), pte((void *)at, RW));
	for (unsigned i = 0; i < 2; i++) {
		data = page_alloc();
		map_at(l4_mfn(), USER_DATA + i * PAGE_SIZE, pte(data, RW));
	}
	if (protect(l4, false) || mmuext(MMUEXT_PIN_L4_TABLE, mfn_of(l4), 0))
		error("no L4 for user mode");
	user_l4_mfn = mfn_of(l4);
	if (set_entry(entry_at(user_l4_mfn, 0, 4), *entry_at(l4_mfn(), 0, 4)) ||
	    mmuext(MMUEXT_NEW_USER_BASEPTR, user_l4_mfn, 0))
		error("no tables for user mode");
	kernel_entry_stack = VA(stack) + PAGE_SIZE;
	if (hypercall2(__HYPERVISOR_stack_switch, FLAT_KERNEL_SS, kernel_entry_stack))
		error("stack_switch");
}

struct regs user_regs(uint64_t rip)
{
	return (struct regs){.rip = rip,
			     .cs = FLAT_USER_CS,
			     .rflags = IF_FLAG | 2,
			     .rsp = USER_STACK,
			     .ss = FLAT_USER_SS};
}

bool user_came_back(const struct regs *r)
{
	if (!waiting)
		return false;
	waiting = false;
	came_back = *r;
	mask_on_entry = shared_info->vcpu_info[0].evtchn_upcall_mask;
	/* Its mask is the user program's. */
	events_allow(false);
	land(place, 1);
}

void run_user(struct regs *r, uint64_t iret_flags)
{
	waiting = true;
	leave_kernel(r, iret_flags, &place);
	*r = came_back;
}
