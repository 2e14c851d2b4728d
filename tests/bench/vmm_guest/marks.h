/* SPDX-License-Identifier: MIT */
/* For the plugin (counts.c): no-ops between which it counts. */
#ifndef TESTS_BENCH_VMM_GUEST_MARKS_H
#define TESTS_BENCH_VMM_GUEST_MARKS_H

#define MARK_BEGIN() \
	__asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00\n\t.long 0x50410000" ::: "memory")
#define MARK_END() __asm__ volatile(".byte 0x0f, 0x1f, 0x84, 0x00\n\t.long 0x50420000" ::: "memory")

#endif
