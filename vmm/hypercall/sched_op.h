/* SPDX-License-Identifier: MIT */
/* What sched_op.c leaves behind in a domain. */
#ifndef VMM_HYPERCALL_SCHED_OP_H
#define VMM_HYPERCALL_SCHED_OP_H

struct domain;

/* The domain's watchdogs never bark again: before it is freed. Not from a timer function. */
void watchdogs_kill(struct domain *d);

#endif
