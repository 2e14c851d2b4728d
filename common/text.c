/* SPDX-License-Identifier: MIT */
#include "common/text.h"

#include <stdbool.h>

void text_plain(char *out, size_t size, const char *text, size_t length)
{
	const unsigned char *in = (const unsigned char *)text;
	size_t n = length < size ? length : size - 1;

	/* A continuation byte at the cut belongs to a character that begins before it. */
	while (n < length && n && (in[n] & 0xc0) == 0x80)
		n--;
	for (size_t i = 0; i < n; i++) {
		/* Terminals obey U+0080 to U+009F as they do ESC sequences. */
		bool c1 = in[i] == 0xc2 && i + 1 < n && in[i + 1] >= 0x80 && in[i + 1] < 0xa0;

		out[i] = in[i] < ' ' || in[i] == 127 || c1 ? '?' : text[i];
		if (c1)
			out[++i] = '?';
	}
	out[n] = 0;
}
