/* SPDX-License-Identifier: MIT */
/* Text from elsewhere (a peer, a guest's name) on its way to a terminal or a log. */
#ifndef PAGURUS_TEXT_H
#define PAGURUS_TEXT_H

#include <stddef.h>

/*
 * Copy length bytes of UTF-8 into out (size > 0) with a '?' for each byte of a control character, U+0080 to U+009F included: nothing in it
 * acts on a terminal or makes a line of its own. What does not fit is cut between characters. out may be text. Any thread.
 */
void text_plain(char *out, size_t size, const char *text, size_t length);

#endif
