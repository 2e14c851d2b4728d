/* SPDX-License-Identifier: MIT */
/* The oldest way to set a vCPU's single-shot timer; VCPUOP_set_singleshot_timer is the other. */
#include "vmm/domain/domain.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/sched/timer.h"

/* A time that is over comes at once; 0: none. */
long do_set_timer_op(arg_t when)
{
	if (when == 0)
		timer_stop(&current->timer);
	else
		timer_set(&current->timer, when);
	return 0;
}
