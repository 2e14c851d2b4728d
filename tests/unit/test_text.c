// SPDX-License-Identifier: MIT
/* What a peer says, on its way to a terminal. */
#include <string.h>

#include "common/text.h"
#include "tests/unit/unit.h"

static void plain(const char *from, const char *to)
{
	char out[64];

	text_plain(out, sizeof(out), from, strlen(from));
	CHECK_STR(out, to);
}

static void words_stay(void)
{
	plain("", "");
	plain("guest web-1", "guest web-1");
	plain("caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\xa6\x80",
	      "caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\xa6\x80");
	/* U+00A0 and U+00C5: the neighbours of the controls, and a character that holds a byte of theirs. */
	plain("\xc2\xa0\xc3\x85", "\xc2\xa0\xc3\x85");
}

static void controls_go(void)
{
	plain("a\nb\tc\r\x7f", "a?b?c??");
	plain("\x1b[2J", "?[2J");
	/* U+009B is what ESC [ is. */
	plain("\xc2\x9b"
	      "2J\xc2\x80\xc2\x9f",
	      "??2J????");
}

static void bytes_that_are_no_text(void)
{
	char out[8];

	text_plain(out, sizeof(out), "a\0b\xc2", 4);
	CHECK_EQ(memcmp(out, "a?b\xc2", 5), 0);
	plain("\x9b\xff", "\x9b\xff");
}

static void a_cut_leaves_whole_characters(void)
{
	char out[4];

	text_plain(out, sizeof(out), "ab\xe2\x82\xac", 5);
	CHECK_STR(out, "ab");
	text_plain(out, sizeof(out),
		   "a\xc2\x9b"
		   "b",
		   4);
	CHECK_STR(out, "a??");
	text_plain(out, 1, "abc", 3);
	CHECK_STR(out, "");
}

static void in_place(void)
{
	char text[] = "one\ntwo";

	text_plain(text, sizeof(text), text, strlen(text));
	CHECK_STR(text, "one?two");
}

UNIT_MAIN(TEST(words_stay), TEST(controls_go), TEST(bytes_that_are_no_text),
	  TEST(a_cut_leaves_whole_characters), TEST(in_place))
