// SPDX-License-Identifier: MIT
/* What a boot loader says, in both versions, well-formed and not. The information ends where the next page cannot be read. */
#define VMM_HOSTED
#define __XEN_TOOLS__		// the interface of the headers, not the oldest
#include "vmm/boot/multiboot.c" /* NOLINT(bugprone-suspicious-include) */

#include <sys/mman.h>

#include "tests/unit/unit.h"
#include "tests/unit/vmm_log.h"

#define INFO_END 0x20000u /* the page behind is not there */

char *direct_base;

static uint8_t *at(uint32_t maddr)
{
	return (uint8_t *)direct_base + maddr;
}

static void fresh(void)
{
	if (!direct_base) {
		direct_base = mmap(NULL, LOADER_END + PAGE_SIZE, PROT_NONE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (direct_base == MAP_FAILED ||
		    mprotect(direct_base, LOADER_END, PROT_READ | PROT_WRITE) ||
		    mprotect(at(INFO_END), PAGE_SIZE, PROT_NONE))
			abort();
	}
	memset(at(0x10000), 0, INFO_END - 0x10000);
	memset(&boot_info, 0xee, sizeof(boot_info));
	logged[0] = 0;
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

/* ---- version 2: built up in a buffer, then moved to end at INFO_END ---- */

static uint8_t tags[16384];
static uint32_t tags_bytes;

static void begin(void)
{
	fresh();
	memset(tags, 0, sizeof(tags));
	tags_bytes = 8;
}

static uint8_t *tag(uint32_t type, uint32_t bytes)
{
	uint8_t *p = tags + tags_bytes;

	put32(p, type);
	put32(p + 4, 8 + bytes);
	tags_bytes += ROUND_UP(8 + bytes, 8);
	return p + 8;
}

static void tag_string(uint32_t type, const char *s)
{
	memcpy(tag(type, (uint32_t)strlen(s) + 1), s, strlen(s) + 1);
}

static void tag_module(uint32_t start, uint32_t end, const char *s)
{
	uint8_t *p = tag(TAG_MODULE, 8 + (uint32_t)strlen(s) + 1);

	put32(p, start);
	put32(p + 4, end);
	memcpy(p + 8, s, strlen(s) + 1);
}

static void tag_map(const struct boot_range *r, unsigned n)
{
	uint8_t *p = tag(TAG_MAP, 8 + n * 24);

	put32(p, 24);
	for (unsigned i = 0; i < n; i++) {
		put64(p + 8 + 24 * i, r[i].start);
		put64(p + 16 + 24 * i, r[i].end - r[i].start);
		put32(p + 24 + 24 * i, r[i].type);
	}
}

static const struct boot_range plain_map[] = {{0x100000, 0x8000000, RANGE_RAM},
					      {0, 0x9f000, RANGE_RAM}};

static uint32_t place(void)
{
	uint32_t info = INFO_END - tags_bytes;

	put32(tags, tags_bytes);
	memcpy(at(info), tags, tags_bytes);
	return info;
}

static int finish(void)
{
	tag(TAG_END, 0);
	return multiboot_parse(MAGIC2, place());
}

static void takes_all_of_version_2(void)
{
	static const uint8_t colors[6] = {16, 8, 8, 7, 0, 6};
	uint8_t *p;

	begin();
	tag_string(TAG_COMMAND, "placeholder console=com1  loglvl=all");
	tag_string(TAG_LOADER, "GRUB 2.06");
	tag_module(0x1000000, 0x1000123, "placeholder root=/dev/sda1 ro");
	tag_module(0x2000000, 0x2000000, "");
	tag_map(plain_map, 2);
	p = tag(TAG_FRAMEBUFFER, 24 + 6);
	put64(p, 0xfd000000);
	put32(p + 8, 4096);
	put32(p + 12, 1024);
	put32(p + 16, 768);
	p[20] = 32;
	p[21] = FB_RGB;
	memcpy(p + 24, colors, 6);
	put64(tag(TAG_EFI64, 8), 0x7e5ec018);
	memset(tag(TAG_RSDP2, 36), 2, 36);
	memset(tag(TAG_RSDP1, 20), 1, 20);
	tag(4711, 3);
	CHECK_EQ(finish(), 0);
	CHECK_STR(logged, "");
	CHECK_STR(boot_info.loader, "GRUB 2.06");
	CHECK_STR(boot_info.command_line, "console=com1  loglvl=all");
	CHECK_EQ(boot_info.nr_modules, 2);
	CHECK_EQ(boot_info.module[0].start, 0x1000000);
	CHECK_EQ(boot_info.module[0].bytes, 0x123);
	CHECK_STR(boot_info.module[0].command, "root=/dev/sda1 ro");
	CHECK_EQ(boot_info.module[1].bytes, 0);
	CHECK_EQ(boot_info.nr_ranges, 2);
	CHECK_EQ(boot_info.range[0].end, 0x9f000);
	CHECK_EQ(boot_info.range[1].start, 0x100000);
	CHECK(boot_info.has_framebuffer);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.lfb_base, 0xfd000000);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.bytes_per_line, 4096);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.width, 1024);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.height, 768);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.bits_per_pixel, 32);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.red_pos, 16);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.green_size, 7);
	CHECK_EQ(boot_info.screen.u.vesa_lfb.blue_size, 6);
	CHECK(boot_info.efi);
	CHECK_EQ(boot_info.efi_system_table, 0x7e5ec018);
	CHECK_EQ(boot_info.rsdp, 0);
	CHECK_EQ(boot_info.rsdp_bytes, 36);
	CHECK_EQ(boot_info.rsdp_copy[35], 2);
}

static void keeps_the_first_word_of_grub_2(void)
{
	begin();
	tag_string(TAG_LOADER, "GRUB 2.06");
	tag_string(TAG_COMMAND, "console=com2 smep=no");
	tag_module(0x1000000, 0x1000001, "placeholders are words");
	tag_map(plain_map, 2);
	CHECK_EQ(finish(), 0);
	CHECK_STR(boot_info.command_line, "console=com2 smep=no");
	CHECK_STR(boot_info.module[0].command, "placeholders are words");
}

static void drops_the_file_name_of_others(void)
{
	begin();
	tag_string(TAG_LOADER, "GRUB 0.97");
	tag_string(TAG_COMMAND, "/boot/pagurus console=com2");
	tag_module(0x1000000, 0x1000001, "/boot/vmlinuz");
	tag_map(plain_map, 2);
	CHECK_EQ(finish(), 0);
	CHECK_STR(boot_info.command_line, "console=com2");
	CHECK_STR(boot_info.module[0].command, "");
}

static void cuts_what_is_too_long(void)
{
	static char line[3000];

	begin();
	memset(line, 'x', sizeof(line) - 1);
	line[1] = ' ';
	tag_string(TAG_COMMAND, line);
	tag_map(plain_map, 2);
	CHECK_EQ(finish(), 0);
	CHECK_EQ(strlen(boot_info.command_line), sizeof(boot_info.command_line) - 3);
	CHECK_HAS(logged, "command line is longer than 2047");
}

static void refuses_broken_tags(void)
{
	uint32_t info;

	begin();
	tag_map(plain_map, 2);
	put32(tag(TAG_COMMAND, 8) - 4, 7);
	CHECK_EQ(finish(), -EINVAL);
	CHECK_HAS(logged, "tag 1 has 7 bytes");

	begin();
	tag_map(plain_map, 2);
	put32(tag(TAG_COMMAND, 8) - 4, 0xfffffff8);
	CHECK_EQ(finish(), -EINVAL);

	begin();
	put32(tag(TAG_MAP, 8 + 24), 19);
	CHECK_EQ(finish(), -EINVAL);
	CHECK_HAS(logged, "19 bytes");

	begin();
	tag_map(plain_map, 2);
	CHECK_EQ(multiboot_parse(MAGIC2, place()), -EINVAL);
	CHECK_HAS(logged, "no end");

	/* Whatever the length says, cut at every byte: never a read behind it. */
	begin();
	tag_string(TAG_LOADER, "GRUB 2.06");
	tag_module(0x1000000, 0x1000001, "name");
	tag_map(plain_map, 2);
	tag(TAG_END, 0);
	for (uint32_t n = 0; n < tags_bytes; n++) {
		memset(at(0x10000), 0, INFO_END - 0x10000);
		put32(tags, n);
		info = INFO_END - MAX(n, 4u);
		memcpy(at(info), tags, MAX(n, 4u));
		/* Less than a header is not placed: its second word would be behind the end. */
		if (n >= 8)
			CHECK_EQ(multiboot_parse(MAGIC2, info), -EINVAL);
	}
}

static void refuses_information_out_of_reach(void)
{
	fresh();
	CHECK_EQ(multiboot_parse(MAGIC2, 0), -EINVAL);
	CHECK_EQ(multiboot_parse(MAGIC2, 0xfffffffc), -EINVAL);
	CHECK_EQ(multiboot_parse(MAGIC1, 0), -EINVAL);
	CHECK_EQ(multiboot_parse(MAGIC1, 0xffffffe0), -EINVAL);
	put32(at(0x10000), 0xffffffff);
	CHECK_EQ(multiboot_parse(MAGIC2, 0x10000), -EINVAL);
	CHECK_EQ(lines_logged(), 5);
	CHECK_EQ(multiboot_parse(0x12345678, 0x10000), -EINVAL);
	CHECK_HAS(logged, "12345678");
}

static void bounds_modules(void)
{
	begin();
	tag_map(plain_map, 2);
	tag_module(0x1000000, 0xffffff, "ends before it begins");
	tag_module(0, 0x1000, "at zero");
	for (unsigned i = 0; i < BOOT_MODULES_MAX + 1; i++)
		tag_module(0x1000000 + i, 0x2000000, "x one");
	CHECK_EQ(finish(), 0);
	CHECK_EQ(boot_info.nr_modules, BOOT_MODULES_MAX);
	CHECK_EQ(boot_info.module[0].start, 0x1000000);
	CHECK_STR(boot_info.module[BOOT_MODULES_MAX - 1].command, "one");
	CHECK_EQ(lines_logged(), 3);
}

/* ---- the memory map ---- */

static int parse_map(const struct boot_range *r, unsigned n)
{
	begin();
	tag_map(r, n);
	return finish();
}

static void resolves_overlaps_to_the_more_reserved(void)
{
	static const struct boot_range map[] = {
		{0x4000, 0x9000, RANGE_NVS},	  {0x0000, 0x8000, RANGE_RAM},
		{0x6000, 0x7000, RANGE_RESERVED}, {0x3000, 0x5000, RANGE_ACPI},
		{0x8000, 0xa000, RANGE_RAM},	  {0x9800, 0xb000, 12},
		{0xb000, 0xc000, RANGE_RESERVED}, {0xb800, 0xb900, RANGE_BAD},
	};
	static const struct boot_range want[] = {
		{0x0000, 0x3000, RANGE_RAM},	  {0x3000, 0x4000, RANGE_ACPI},
		{0x4000, 0x6000, RANGE_NVS},	  {0x6000, 0x7000, RANGE_RESERVED},
		{0x7000, 0x9000, RANGE_NVS},	  {0x9000, 0x9800, RANGE_RAM},
		{0x9800, 0xb800, RANGE_RESERVED}, {0xb800, 0xb900, RANGE_BAD},
		{0xb900, 0xc000, RANGE_RESERVED},
	};

	CHECK_EQ(parse_map(map, ARRAY_SIZE(map)), 0);
	CHECK_EQ(boot_info.nr_ranges, ARRAY_SIZE(want));
	for (unsigned i = 0; i < ARRAY_SIZE(want); i++) {
		CHECK_EQ(boot_info.range[i].start, want[i].start);
		CHECK_EQ(boot_info.range[i].end, want[i].end);
		CHECK_EQ(boot_info.range[i].type, want[i].type);
	}
}

static void agrees_with_a_map_of_single_pages(void)
{
	uint64_t seed = unit_seed();

	for (unsigned round = 0; round < 2000; round++) {
		struct boot_range r[12];
		uint32_t model[64] = {0};
		unsigned n = 1 + (unsigned)unit_below(&seed, ARRAY_SIZE(r)), seen = 0;

		for (unsigned i = 0; i < n; i++) {
			r[i].start = unit_below(&seed, 60);
			r[i].end = r[i].start + unit_below(&seed, 64 - r[i].start);
			r[i].type = 1 + (uint32_t)unit_below(&seed, 5);
			for (uint64_t p = r[i].start; p < r[i].end; p++)
				if (!model[p] || precedence[r[i].type] > precedence[model[p]])
					model[p] = r[i].type;
		}
		parse_map(r, n);
		for (unsigned i = 0; i < boot_info.nr_ranges; i++) {
			const struct boot_range *b = &boot_info.range[i];

			CHECK(b->start < b->end && b->end <= 64);
			CHECK(!i || b[-1].end < b->start ||
			      (b[-1].end == b->start && b[-1].type != b->type));
			for (uint64_t p = b->start; p < b->end; p++, seen++)
				CHECK_EQ(b->type, model[p]);
		}
		for (unsigned p = 0; p < 64; p++)
			seen -= model[p] != 0;
		CHECK_EQ(seen, 0);
	}
}

static void takes_a_range_that_ends_beyond_everything(void)
{
	static const struct boot_range map[] = {{0x1000, 0x2000, RANGE_RAM},
						{0xfffffffffffff000, 0x5000, RANGE_RESERVED}};

	CHECK_EQ(parse_map(map, 2), 0);
	CHECK_EQ(boot_info.nr_ranges, 2);
	CHECK_EQ(boot_info.range[1].start, 0xfffffffffffff000);
	CHECK_EQ(boot_info.range[1].end, UINT64_MAX);
}

static void refuses_a_map_without_ram_or_too_long(void)
{
	static struct boot_range map[BOOT_RANGES_MAX + 1];
	static const struct boot_range none[] = {{0x1000, 0x2000, RANGE_RESERVED}};

	CHECK_EQ(parse_map(none, 1), -EINVAL);
	CHECK_HAS(logged, "no memory map");
	for (unsigned i = 0; i < ARRAY_SIZE(map); i++)
		map[i] = (struct boot_range){2 * i, 2 * i + 1, RANGE_RAM};
	CHECK_EQ(parse_map(map, ARRAY_SIZE(map)), -EINVAL);
	CHECK_HAS(logged, "1 entries more");
	CHECK_EQ(parse_map(map, ARRAY_SIZE(map) - 1), 0);
	CHECK_EQ(boot_info.nr_ranges, BOOT_RANGES_MAX);
}

/* ---- version 1 ---- */

#define INFO1	0x10000u
#define STRINGS 0x11000u
#define MODULES 0x12000u
#define MAP1	0x13000u

static void string1(unsigned field, uint32_t maddr, const char *s)
{
	memcpy(at(maddr), s, strlen(s) + 1);
	put32(at(INFO1 + field), maddr);
}

static void takes_what_qemu_gives(void)
{
	fresh();
	put32(at(INFO1), MB1_COMMAND | MB1_MODULES | MB1_MAP | MB1_LOADER);
	string1(64, STRINGS, "qemu");
	string1(16, STRINGS + 0x100, "build/pagurus console=com1 dom0_mem=512M");
	put32(at(INFO1 + 20), 2);
	put32(at(INFO1 + 24), MODULES);
	put32(at(MODULES), 0x800000);
	put32(at(MODULES + 4), 0x900000);
	string1(88, STRINGS + 0x200, "vmlinuz quiet");
	put32(at(MODULES + 8), STRINGS + 0x200);
	put32(at(MODULES + 16), 0x900000);
	put32(at(MODULES + 20), 0xa00010);
	put32(at(MODULES + 24), 0); /* no string */
	put32(at(INFO1 + 44), 24 + 28);
	put32(at(INFO1 + 48), MAP1);
	put32(at(MAP1), 20);
	put64(at(MAP1 + 12), 0x80000);
	put32(at(MAP1 + 20), RANGE_RAM);
	put32(at(MAP1 + 24), 24); /* a longer entry */
	put64(at(MAP1 + 28), 0x100000);
	put64(at(MAP1 + 36), 0x700000);
	put32(at(MAP1 + 44), RANGE_RAM);
	CHECK_EQ(multiboot_parse(MAGIC1, INFO1), 0);
	CHECK_STR(boot_info.command_line, "console=com1 dom0_mem=512M");
	CHECK_EQ(boot_info.nr_modules, 2);
	CHECK_STR(boot_info.module[0].command, "quiet");
	CHECK_STR(boot_info.module[1].command, "");
	CHECK_EQ(boot_info.module[1].bytes, 0x100010);
	CHECK_EQ(boot_info.nr_ranges, 2);
	CHECK_EQ(boot_info.range[0].end, 0x80000);
	CHECK_EQ(boot_info.range[1].end, 0x800000);
	CHECK(!boot_info.has_framebuffer && !boot_info.efi && !boot_info.rsdp_bytes);
}

static void falls_back_to_two_sizes(void)
{
	fresh();
	put32(at(INFO1), MB1_MEMORY);
	put32(at(INFO1 + 4), 640);
	put32(at(INFO1 + 8), 0x3000);
	CHECK_EQ(multiboot_parse(MAGIC1, INFO1), 0);
	CHECK_EQ(boot_info.nr_ranges, 2);
	CHECK_EQ(boot_info.range[0].end, 0xa0000);
	CHECK_EQ(boot_info.range[1].start, 0x100000);
	CHECK_EQ(boot_info.range[1].end, 0xd00000);
}

static void refuses_broken_lists(void)
{
	fresh();
	put32(at(INFO1), MB1_MODULES);
	put32(at(INFO1 + 20), 0xffffffff);
	put32(at(INFO1 + 24), MODULES);
	CHECK_EQ(multiboot_parse(MAGIC1, INFO1), -EINVAL);
	CHECK_HAS(logged, "list of modules");
	put32(at(INFO1), MB1_MAP);
	put32(at(INFO1 + 44), 48);
	put32(at(INFO1 + 48), MAP1);
	put32(at(MAP1), 19);
	CHECK_EQ(multiboot_parse(MAGIC1, INFO1), -EINVAL);
	CHECK_HAS(logged, "19 bytes");
	put32(at(INFO1 + 48), 0xfffffff0);
	CHECK_EQ(multiboot_parse(MAGIC1, INFO1), -EINVAL);
	CHECK_HAS(logged, "memory map lies");
}

/* Mutated tags: no crash, and what is accepted is within its bounds. */
static void survives_mutations(void)
{
	uint64_t seed = unit_seed();
	unsigned accepted = 0;

	for (unsigned round = 0; round < 20000; round++) {
		begin();
		tag_string(TAG_LOADER, "GRUB 2.06");
		tag_string(TAG_COMMAND, "console=com1");
		tag_module(0x1000000, 0x1000001, "name");
		tag_map(plain_map, 2);
		memset(tag(TAG_RSDP2, 36), 2, 36);
		tag(TAG_END, 0);
		for (unsigned i = 1 + (unsigned)unit_below(&seed, 4); i; i--)
			tags[8 + unit_below(&seed, tags_bytes - 8)] = (uint8_t)unit_random(&seed);
		accepted += !multiboot_parse(MAGIC2, place());
		CHECK(boot_info.nr_ranges <= BOOT_RANGES_MAX);
		CHECK(boot_info.nr_modules <= BOOT_MODULES_MAX);
		CHECK(boot_info.rsdp_bytes <= RSDP_BYTES_2);
	}
	CHECK(accepted > 1000 && accepted < 20000);
}

UNIT_MAIN(TEST(takes_all_of_version_2), TEST(keeps_the_first_word_of_grub_2),
	  TEST(drops_the_file_name_of_others), TEST(cuts_what_is_too_long),
	  TEST(refuses_broken_tags), TEST(refuses_information_out_of_reach), TEST(bounds_modules),
	  TEST(resolves_overlaps_to_the_more_reserved), TEST(agrees_with_a_map_of_single_pages),
	  TEST(takes_a_range_that_ends_beyond_everything),
	  TEST(refuses_a_map_without_ram_or_too_long), TEST(takes_what_qemu_gives),
	  TEST(falls_back_to_two_sizes), TEST(refuses_broken_lists), TEST(survives_mutations))
