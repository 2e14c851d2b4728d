// SPDX-License-Identifier: MIT
/* Error messages: codes, prefixes, truncation, hostile text. */
#include <errno.h>
#include <string.h>

#include "common/error.h"
#include "tests/unit/unit.h"

static void fail_keeps_code_and_text(void)
{
	struct pgr_error err = PGR_ERROR_NONE;

	CHECK_EQ(pgr_fail(&err, -EPROTO, "record %d: %s", 7, "bad"), -EPROTO);
	CHECK_EQ(err.code, -EPROTO);
	CHECK_STR(err.text, "record 7: bad");
}

static void null_error_is_allowed(void)
{
	CHECK_EQ(pgr_fail(NULL, -EIO, "x"), -EIO);
	CHECK_EQ(pgr_fail_errno(NULL, -EIO, "x"), -EIO);
	CHECK_EQ(pgr_fail_prefix(NULL, "x"), 0);
}

static void errno_text_follows(void)
{
	struct pgr_error err;

	CHECK_EQ(pgr_fail_errno(&err, -ENOSPC, "cannot write %s", "f"), -ENOSPC);
	CHECK_STR(err.text, "cannot write f: No space left on device");
}

static void prefix_stands_before(void)
{
	struct pgr_error err;

	pgr_fail(&err, -EIO, "inner");
	CHECK_EQ(pgr_fail_prefix(&err, "channel %d", 3), -EIO);
	CHECK_STR(err.text, "channel 3: inner");
	CHECK_EQ(err.code, -EIO);
}

static void own_text_may_be_an_argument(void)
{
	struct pgr_error err;

	pgr_fail(&err, -EIO, "inner");
	pgr_fail(&err, -EPIPE, "outer (%s)", err.text);
	CHECK_STR(err.text, "outer (inner)");
	pgr_fail_prefix(&err, "%s", err.text);
	CHECK_STR(err.text, "outer (inner): outer (inner)");
}

static void long_text_is_cut_and_terminated(void)
{
	struct pgr_error err;
	char big[3000];

	memset(big, 'a', sizeof(big) - 1);
	big[sizeof(big) - 1] = '\0';
	pgr_fail(&err, -EIO, "%s", big);
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
	pgr_fail_prefix(&err, "%s", big);
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
	pgr_fail_errno(&err, -EIO, "%s", big);
	CHECK_EQ(strlen(err.text), sizeof(err.text) - 1);
}

static void message_is_one_harmless_line(void)
{
	struct pgr_error err;

	pgr_fail(&err, -EIO, "a\nb\033[2Jc\177d");
	CHECK_STR(err.text, "a b [2Jc d");
}

UNIT_MAIN(TEST(fail_keeps_code_and_text), TEST(null_error_is_allowed), TEST(errno_text_follows),
	  TEST(prefix_stands_before), TEST(own_text_may_be_an_argument),
	  TEST(long_text_is_cut_and_terminated), TEST(message_is_one_harmless_line))
