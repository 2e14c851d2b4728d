/* SPDX-License-Identifier: MIT */
/* What sched_op.c leaves behind in a domain. */
#pragma once

struct domain;

/* The domain's watchdogs never bark again: before it is freed. Not from a timer function. */
void watchdogs_kill(struct domain *d);
