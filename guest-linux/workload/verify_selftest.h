/* SPDX-License-Identifier: MIT */
/*
 * verify_selftest - the verifier corrupts itself on purpose, in every way, and must notice.
 */
#ifndef WORKLOAD_VERIFY_SELFTEST_H
#define WORKLOAD_VERIFY_SELFTEST_H

/* Prints a line "PASS name" or "FAIL name: why" for each corruption; returns 0 or 1. Main thread. */
int verify_selftest(void);

#endif
