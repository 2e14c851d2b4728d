/* SPDX-License-Identifier: MIT */
/* Numbers in options. */
#pragma once

#include "vmm/lib/types.h"

/* A decimal or 0x number; *end behind it. False: no digit, or more than 64 bits. */
static inline bool parse_number(const char *s, const char **end, uint64_t *out)
{
	unsigned base = s[0] == '0' && s[1] == 'x' ? 16 : 10;
	uint64_t value = 0;
	bool any = false;

	if (base == 16)
		s += 2;
	for (;; s++, any = true) {
		unsigned lower = (unsigned)*s | 0x20, digit;

		if (*s >= '0' && *s <= '9')
			digit = (unsigned)(*s - '0');
		else if (base == 16 && lower >= 'a' && lower <= 'f')
			digit = lower - 'a' + 10;
		else
			break;
		if (value > (UINT64_MAX - digit) / base)
			return false;
		value = value * base + digit;
	}
	*end = s;
	*out = value;
	return any;
}
