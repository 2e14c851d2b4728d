/* SPDX-License-Identifier: MIT */
/* What the files of the library have between themselves. */
#ifndef TESTS_GUESTS_LIB_INTERNAL_H
#define TESTS_GUESTS_LIB_INTERNAL_H

#include "tests/guests/lib/guest.h"

#define ENTRY_BYTES 32

/* entry.S */
int guarded(void (*fn)(uint64_t arg), uint64_t arg, uint64_t *place);
void land(uint64_t place, int value) __attribute__((noreturn));
int leave_kernel(const struct regs *r, uint64_t iret_flags, uint64_t *place);
extern const char entries[NR_ENTRIES][ENTRY_BYTES], entries_plain[32][ENTRY_BYTES];

void traps_init(void);
/* user.c: an entry from user mode; false: nobody waits for it. */
bool user_came_back(const struct regs *r);

#endif
