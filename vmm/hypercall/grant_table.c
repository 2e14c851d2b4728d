/* SPDX-License-Identifier: MIT */
/* Grant tables: a domain alone has nobody to grant anything to. */
#include "vmm/hypercall/hypercall.h"

long do_grant_table_op(arg_t command, arg_t arg, arg_t count)
{
	(void)command;
	(void)arg;
	(void)count;
	return -ENOSYS;
}
