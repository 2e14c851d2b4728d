/* SPDX-License-Identifier: MIT */
/*
 * Named points at which a test may make a process die or stand still, chosen from outside by the environment variable
 * PAGURUS_FAULTS: "kill@NAME" or "stop@NAME", several separated by commas. Without it nothing happens.
 *
 * NAME: "ROLE-MARK" just before a mark becomes durable, "ROLE-MARK-done" just after; ROLE and MARK as in the journal
 * ("source-commit", "target-commit-done", ...); "save-committed": a file is complete and has its name, the guest still stands here.
 */
#ifndef PAGURUS_FAULT_H
#define PAGURUS_FAULT_H

void fault_point(const char *name);

#endif
