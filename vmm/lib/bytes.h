/* SPDX-License-Identifier: MIT */
/* Little-endian numbers at any alignment, as firmware and boot loaders lay out their tables. */
#pragma once

#include <stdint.h>

#define DEFINE_LOAD(bits)                                         \
	static inline uint##bits##_t load##bits(const void *from) \
	{                                                         \
		uint##bits##_t value;                             \
		__builtin_memcpy(&value, from, sizeof(value));    \
		return value;                                     \
	}
DEFINE_LOAD(16)
DEFINE_LOAD(32)
DEFINE_LOAD(64)
#undef DEFINE_LOAD
