/* SPDX-License-Identifier: MIT */
/*
 * verify_registers - do registers keep their values while a thread waits?
 *
 * Loads a pseudo-random value into every register that a thread owns (see hold.S), waits spinning or
 * sleeping, and compares. With it go the bases of the GS segment, set once by arch_prctl and once, where
 * the kernel offers modify_ldt, by a descriptor in the LDT: a migrated guest must get back both.
 */
#ifndef WORKLOAD_VERIFY_REGISTERS_H
#define WORKLOAD_VERIFY_REGISTERS_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "verify_fail.h"

enum vector_level {
	VECTOR_SSE,    /* 16 registers of 16 bytes */
	VECTOR_AVX,    /* 16 of 32 bytes */
	VECTOR_AVX512, /* 32 of 64 bytes and 8 masks */
};

#define VECTOR_REGISTERS  32
#define VECTOR_BYTES	  64
#define GENERAL_REGISTERS 9
#define X87_REGISTERS	  8
#define X87_BYTES	  10
#define MASK_REGISTERS	  8

/* Layout known to hold.S. Parts that a level does not load are zero and stay so. */
struct register_image {
	uint64_t general[GENERAL_REGISTERS];
	uint8_t x87[X87_REGISTERS][X87_BYTES];
	uint16_t x87_control;
	uint16_t pad;
	uint32_t mxcsr;
	uint64_t mask[MASK_REGISTERS];
	uint8_t pad2[32];
	uint8_t vector[VECTOR_REGISTERS][VECTOR_BYTES];
};

/* What this processor and kernel offer. */
enum vector_level registers_level(void);
const char *registers_level_name(enum vector_level level);

/* Fills @image with values that follow from @seed, fit for loading at @level. */
void registers_fill(struct register_image *image, uint64_t seed, enum vector_level level);

/* Compares what was loaded with what came back. */
struct finding registers_compare(const struct register_image *in, const struct register_image *out);

/*
 * Loads values that follow from @seed, waits (@sleep, or when that is NULL @spins turns of a loop)
 * and compares. Any thread.
 */
struct finding registers_hold(uint64_t seed, uint64_t spins, const struct timespec *sleep);

/*
 * Points GS at memory that holds a known word, by arch_prctl or, when @ldt, by an LDT descriptor.
 * To be called by the thread that will call segment_check. Returns 0, or a negative errno of
 * arch_prctl, mmap or modify_ldt (-ENOSYS: the kernel or the machine has no LDT for processes).
 */
int segment_set(bool ldt);

/* Reads the word through GS. Before segment_set succeeded in this thread: not allowed. */
struct finding segment_check(void);

#endif
