// SPDX-License-Identifier: MIT
/* The log: formats against the C library's, what reaches the console, what the ring keeps. */
#define VMM_HOSTED
#include "vmm/lib/print.c" /* NOLINT(bugprone-suspicious-include) */

#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/unit.h"

static char console[4 * LOG_RING_BYTES];
static size_t console_length;

void serial_write(const char *text, size_t length)
{
	if (length >= sizeof(console) - console_length)
		abort();
	memcpy(console + console_length, text, length);
	console_length += length;
	console[console_length] = '\0';
}

void panic_stop(void)
{
	abort();
}

static void fresh(void)
{
	log_clear();
	console_length = 0;
	console[0] = '\0';
	mid_line = false;
	log_console_level = LOG_INFO;
}

static const char *ring_text(void)
{
	static char text[LOG_RING_BYTES + 1];
	uint32_t index = 0;

	text[log_read(&index, text, LOG_RING_BYTES)] = '\0';
	return text;
}

/* The same format through both; the test fails where they differ. */
#define SAME(...)                                                           \
	do {                                                                \
		char ours[200], theirs[200];                                \
		int a = format_string(ours, sizeof(ours), __VA_ARGS__);     \
		CHECK_EQ(a, snprintf(theirs, sizeof(theirs), __VA_ARGS__)); \
		CHECK_STR(ours, theirs);                                    \
	} while (0)

static void formats_numbers(void)
{
	SAME("%d %d %d", 0, -1, 2147483647);
	SAME("%d %ld", -2147483647 - 1, -9223372036854775807l - 1);
	SAME("%u %lu %zu", 4294967295u, 18446744073709551615ul, (size_t)7);
	SAME("%x %lx %llx %zx", 0xdeadbeefu, 0xffff800000000000ul, 1ull << 63, (size_t)7);
	SAME("[%8x] [%08x] [%016lx]", 0x12u, 0x56u, 0x789ul);
	SAME("[%6d] [%06d] [%1d] [%3u%%]", -42, -42, 12345, 50u);
}

static void formats_text(void)
{
	SAME("%s|%10s|%.*s|%5.*s|", "abc", "def", 2, "pqr", 9, "st");
	SAME("%s", "");
	SAME("no directive %%");
}

static void ends_at_the_buffer(void)
{
	char out[8];

	for (size_t size = 0; size <= sizeof(out); size++) {
		memset(out, 'x', sizeof(out));
		CHECK_EQ(format_string(out, size, "%s", "123456789"), 9);
		if (size)
			CHECK_EQ(out[size - 1], '\0');
		for (size_t i = size; i < sizeof(out); i++)
			CHECK_EQ(out[i], 'x');
	}
}

static void lines_have_the_prefix_and_an_end(void)
{
	fresh();
	log_info("one %d", 1);
	log_info("two\n");
	log_info("three\nfour\n");
	CHECK_STR(console, "(PGR) one 1\n(PGR) two\n(PGR) three\n(PGR) four\n");
	CHECK_STR(ring_text(), console);
}

static void levels_keep_the_console_short(void)
{
	fresh();
	log_console_level = LOG_WARNING;
	log_debug("as often as a guest likes");
	log_info("quiet");
	log_error("loud");
	CHECK_STR(console, "(PGR) loud\n");
	CHECK_STR(ring_text(), "(PGR) quiet\n(PGR) loud\n");
}

static void guests_text_is_ended_first(void)
{
	fresh();
	log_raw("login: ", 7);
	log_info("heard");
	log_raw("a\n", 2);
	log_info("again");
	CHECK_STR(console, "login: \n(PGR) heard\na\n(PGR) again\n");
	CHECK_STR(ring_text(), "(PGR) heard\n(PGR) again\n");
}

static void long_messages_are_cut(void)
{
	char text[2 * MESSAGE_MAX];

	fresh();
	memset(text, 'z', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	log_info("%s", text);
	CHECK_EQ(console_length, strlen(PREFIX) + MESSAGE_MAX - 1 + 1);
	CHECK_EQ(console[console_length - 1], '\n');
}

static void ring_keeps_the_newest(void)
{
	char out[100];
	uint32_t index = 0;

	fresh();
	log_console_level = LOG_ERROR;
	for (unsigned i = 0; i < 20000; i++) {
		log_info("%05u", i);
		CHECK(ring_head - ring_tail <= LOG_RING_BYTES);
	}
	CHECK_EQ(strlen(ring_text()), LOG_RING_BYTES);
	CHECK_STR(ring_text() + LOG_RING_BYTES - 12, "(PGR) 19999\n");
	/* In pieces, each where the last one ended. */
	for (size_t total = 0, n;; total += n) {
		n = log_read(&index, out, sizeof(out));
		if (!n) {
			CHECK_EQ(total, LOG_RING_BYTES);
			break;
		}
	}
	log_info("new");
	CHECK_EQ(log_read(&index, out, sizeof(out)), 10);
	CHECK_EQ(log_read(&index, out, sizeof(out)), 0);
	/* A position that the ring has lost, and one that never was. */
	index -= LOG_RING_BYTES + 1;
	CHECK_EQ(log_read(&index, out, sizeof(out)), sizeof(out));
	CHECK_EQ(index, ring_tail + sizeof(out));
	index = ring_head + 1;
	CHECK_EQ(log_read(&index, out, sizeof(out)), sizeof(out));
	log_clear();
	index = 0;
	CHECK_EQ(log_read(&index, out, sizeof(out)), 0);
}

static void a_dying_hypervisor_does_not_wait(void)
{
	fresh();
	spin_lock(&console_lock);
	log_force();
	log_error("last words");
	CHECK_STR(console, "(PGR) last words\n");
	CHECK(spin_is_locked(&console_lock));
	spin_unlock(&console_lock);
	log_error("more");
	CHECK(!spin_is_locked(&console_lock));
	WRITE_ONCE(forced, false);
}

UNIT_MAIN(TEST(formats_numbers), TEST(formats_text), TEST(ends_at_the_buffer),
	  TEST(lines_have_the_prefix_and_an_end), TEST(levels_keep_the_console_short),
	  TEST(guests_text_is_ended_first), TEST(long_messages_are_cut),
	  TEST(ring_keeps_the_newest), TEST(a_dying_hypervisor_does_not_wait))
