// SPDX-License-Identifier: MIT
/*
 * Multiboot 1 and 2 information into boot_info. The boot loader is not an enemy, but a confused one must end in a line that says so: nothing
 * is read but what lies as a whole below 4 GiB (which is mapped at that time) and inside of what contains it. Everything is
 * copied, so that the loader's memory can be given away at once.
 */
#include "vmm/boot/boot.h"

#include "vmm/lib/bytes.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/frame.h"

#define MAGIC1	   0x2badb002u
#define MAGIC2	   0x36d76289u
#define LOADER_END (1ull << 32)

/* What cannot be used is said, and ends the reading. */
#define broken(...) (log_error(__VA_ARGS__), -EINVAL)

struct boot_info boot_info;

/* What the loader says, in its order and with overlaps. */
static struct boot_range raw[BOOT_RANGES_MAX];
static unsigned nr_raw, nr_raw_lost;

static const uint8_t *loader_memory(uint64_t maddr, uint64_t bytes)
{
	if (!maddr || maddr >= LOADER_END || bytes > LOADER_END - maddr)
		return NULL;
	return maddr_to_ptr(maddr);
}

/* ---- strings ---- */

/* At most `available` bytes are looked at. What does not fit is left off and said so. */
static void copy_string(char *to, size_t size, const void *from, uint64_t available,
			const char *what)
{
	const char *s = from;
	size_t n = 0;

	while (n < available && n + 1 < size && s[n]) {
		to[n] = s[n];
		n++;
	}
	to[n] = 0;
	if (n < available && s[n])
		log_warning("multiboot: the %s is longer than %lu bytes, the rest is ignored", what,
			    (unsigned long)(size - 1));
}

static void copy_string_at(char *to, size_t size, uint64_t maddr, const char *what)
{
	const uint8_t *s = loader_memory(maddr, 1);

	if (s)
		copy_string(to, size, s, LOADER_END - maddr, what);
}

static bool starts_with(const char *s, const char *prefix)
{
	return !strncmp(s, prefix, strlen(prefix));
}

/*
 * Most loaders put the file's name in front of the arguments. GRUB 2 does not; Debian's scripts for it put the word "placeholder" there, for
 * hypervisors that always drop the first word.
 */
static void drop_file_name(char *command)
{
	bool grub2 =
		starts_with(boot_info.loader, "GRUB") && !starts_with(boot_info.loader, "GRUB 0.");
	char *p = command;

	while (*p == ' ')
		p++;
	if (!grub2 || !strcmp(p, "placeholder") || starts_with(p, "placeholder "))
		while (*p && *p != ' ')
			p++;
	while (*p == ' ')
		p++;
	memmove(command, p, strlen(p) + 1);
}

/* ---- the memory map ---- */

static void add_range(uint64_t start, uint64_t bytes, uint32_t type)
{
	if (!bytes)
		return;
	if (nr_raw == BOOT_RANGES_MAX) {
		nr_raw_lost++;
		return;
	}
	if (type < RANGE_RAM || type > RANGE_BAD)
		type = RANGE_RESERVED;
	raw[nr_raw].start = start;
	raw[nr_raw].end = bytes > UINT64_MAX - start ? UINT64_MAX : start + bytes;
	raw[nr_raw].type = type;
	nr_raw++;
}

/* Of two that overlap, the higher one is believed. */
static const uint8_t precedence[] = {
	[RANGE_RAM] = 1, [RANGE_ACPI] = 2, [RANGE_NVS] = 3, [RANGE_RESERVED] = 4, [RANGE_BAD] = 5,
};

/* The type of the address, 0 if no range has it; *next is where that may change, not beyond what *next was. */
static uint32_t type_at(uint64_t address, uint64_t *next)
{
	uint32_t type = 0;

	for (unsigned i = 0; i < nr_raw; i++) {
		if (raw[i].start > address) {
			*next = MIN(*next, raw[i].start);
		} else if (raw[i].end > address) {
			*next = MIN(*next, raw[i].end);
			if (!type || precedence[raw[i].type] > precedence[type])
				type = raw[i].type;
		}
	}
	return type;
}

/* raw into boot_info.range: sorted, disjoint, neighbours of one type joined. */
static int sort_ranges(void)
{
	uint64_t next;

	boot_info.nr_ranges = 0;
	for (uint64_t at = 0; at < UINT64_MAX; at = next) {
		struct boot_range *last = NULL;
		uint32_t type;

		next = UINT64_MAX;
		type = type_at(at, &next);
		if (!type)
			continue;
		if (boot_info.nr_ranges)
			last = &boot_info.range[boot_info.nr_ranges - 1];
		if (last && last->type == type && last->end == at) {
			last->end = next;
			continue;
		}
		if (boot_info.nr_ranges == BOOT_RANGES_MAX)
			return broken("multiboot: the memory map has more than %u ranges",
				      BOOT_RANGES_MAX);
		boot_info.range[boot_info.nr_ranges++] =
			(struct boot_range){.start = at, .end = next, .type = type};
	}
	for (unsigned i = 0; i < boot_info.nr_ranges; i++)
		if (boot_info.range[i].type == RANGE_RAM)
			return 0;
	return broken("multiboot: the boot loader gave no memory map with RAM in it");
}

/* ---- modules ---- */

static struct boot_module *add_module(uint64_t start, uint64_t end)
{
	struct boot_module *m;

	if (start > end || !loader_memory(start, end - start)) {
		log_error("multiboot: a module at %lx to %lx is ignored: it must lie below 4 GiB",
			  start, end);
		return NULL;
	}
	if (boot_info.nr_modules == BOOT_MODULES_MAX) {
		log_error("multiboot: modules beyond the first %u are ignored", BOOT_MODULES_MAX);
		return NULL;
	}
	m = &boot_info.module[boot_info.nr_modules++];
	m->start = start;
	m->bytes = end - start;
	m->command[0] = 0;
	return m;
}

/* ---- frame buffer: the same fields in both versions, after 8 bytes of address ---- */

#define FB_BYTES_MIN 22
#define FB_RGB	     1

static void parse_framebuffer(const uint8_t *p, const uint8_t *color, uint64_t color_bytes)
{
	uint64_t address = load64(p);
	uint32_t pitch = load32(p + 8), height = load32(p + 16);
	struct dom0_vga_console_info *c = &boot_info.screen;

	/* Text mode is what dom0 takes a screen for that it is told nothing about. */
	if (p[21] != FB_RGB || color_bytes < 6)
		return;
	boot_info.has_framebuffer = true;
	c->u.vesa_lfb.width = (uint16_t)load32(p + 12);
	c->u.vesa_lfb.height = (uint16_t)height;
	c->u.vesa_lfb.bytes_per_line = (uint16_t)pitch;
	c->u.vesa_lfb.bits_per_pixel = p[20];
	c->u.vesa_lfb.lfb_base = (uint32_t)address;
	c->u.vesa_lfb.ext_lfb_base = (uint32_t)(address >> 32);
	c->u.vesa_lfb.lfb_size = (uint32_t)(((uint64_t)pitch * height + 0xffff) >> 16);
	c->u.vesa_lfb.red_pos = color[0];
	c->u.vesa_lfb.red_size = color[1];
	c->u.vesa_lfb.green_pos = color[2];
	c->u.vesa_lfb.green_size = color[3];
	c->u.vesa_lfb.blue_pos = color[4];
	c->u.vesa_lfb.blue_size = color[5];
}

/* ---- version 1: a fixed structure with flags and addresses ---- */

#define MB1_BYTES	116
#define MB1_MEMORY	(1u << 0)
#define MB1_COMMAND	(1u << 2)
#define MB1_MODULES	(1u << 3)
#define MB1_MAP		(1u << 6)
#define MB1_LOADER	(1u << 9)
#define MB1_FRAMEBUFFER (1u << 12)
#define MB1_MODULE	16
#define MB1_MAP_ENTRY	20 /* size of the rest first, which is at least this */

static int parse1_map(uint32_t at, uint32_t bytes)
{
	const uint8_t *map = loader_memory(at, bytes);

	if (!map)
		return broken("multiboot: the memory map lies outside of the first 4 GiB");
	for (uint64_t i = 0; i + 4 + MB1_MAP_ENTRY <= bytes;) {
		uint32_t size = load32(map + i);

		if (size < MB1_MAP_ENTRY)
			return broken("multiboot: an entry of the memory map has %u bytes", size);
		add_range(load64(map + i + 4), load64(map + i + 12), load32(map + i + 20));
		i += 4 + (uint64_t)size;
	}
	return 0;
}

static int parse1_modules(uint32_t at, uint32_t count)
{
	const uint8_t *list = loader_memory(at, (uint64_t)count * MB1_MODULE);

	if (!list)
		return broken("multiboot: the list of modules lies outside of the first 4 GiB");
	for (uint32_t i = 0; i < count && i <= BOOT_MODULES_MAX; i++, list += MB1_MODULE) {
		struct boot_module *m = add_module(load32(list), load32(list + 4));

		if (m)
			copy_string_at(m->command, sizeof(m->command), load32(list + 8),
				       "command line of a module");
	}
	return 0;
}

static int parse1(uint32_t info)
{
	const uint8_t *p = loader_memory(info, MB1_BYTES);
	uint32_t flags;
	int rc = 0;

	if (!p)
		return broken("multiboot: the boot loader's information at %x is out of reach",
			      info);
	flags = load32(p);
	if (flags & MB1_LOADER)
		copy_string_at(boot_info.loader, sizeof(boot_info.loader), load32(p + 64),
			       "boot loader's name");
	if (flags & MB1_COMMAND)
		copy_string_at(boot_info.command_line, sizeof(boot_info.command_line),
			       load32(p + 16), "command line");
	if (flags & MB1_MODULES && load32(p + 20))
		rc = parse1_modules(load32(p + 24), load32(p + 20));
	if (!rc && flags & MB1_MAP)
		rc = parse1_map(load32(p + 48), load32(p + 44));
	else if (!rc && flags & MB1_MEMORY) {
		add_range(0, (uint64_t)load32(p + 4) << 10, RANGE_RAM);
		add_range(0x100000, (uint64_t)load32(p + 8) << 10, RANGE_RAM);
	}
	if (flags & MB1_FRAMEBUFFER)
		parse_framebuffer(p + 88, p + 110, 6);
	return rc;
}

/* ---- version 2: tags ---- */

enum tag {
	TAG_END = 0,
	TAG_COMMAND = 1,
	TAG_LOADER = 2,
	TAG_MODULE = 3,
	TAG_MAP = 6,
	TAG_FRAMEBUFFER = 8,
	TAG_EFI64 = 12,
	TAG_RSDP1 = 14,
	TAG_RSDP2 = 15,
};

static void copy_rsdp(const uint8_t *p, uint32_t bytes)
{
	/* The newer one is believed, whichever comes first. */
	if (bytes < RSDP_BYTES_1 || MIN(bytes, RSDP_BYTES_2) <= boot_info.rsdp_bytes)
		return;
	boot_info.rsdp_bytes = MIN(bytes, RSDP_BYTES_2);
	memcpy(boot_info.rsdp_copy, p, boot_info.rsdp_bytes);
}

static int parse2_map(const uint8_t *p, uint32_t bytes)
{
	uint32_t entry = bytes >= 8 ? load32(p) : 0;

	if (entry < 20)
		return broken("multiboot: an entry of the memory map has %u bytes", entry);
	for (uint64_t i = 8; i + entry <= bytes; i += entry)
		add_range(load64(p + i), load64(p + i + 8), load32(p + i + 16));
	return 0;
}

/* p: the tag's contents behind its type and size, and their length. */
static int parse2_tag(uint32_t type, const uint8_t *p, uint32_t bytes)
{
	struct boot_module *m;

	switch (type) {
	case TAG_COMMAND:
		copy_string(boot_info.command_line, sizeof(boot_info.command_line), p, bytes,
			    "command line");
		break;
	case TAG_LOADER:
		copy_string(boot_info.loader, sizeof(boot_info.loader), p, bytes,
			    "boot loader's name");
		break;
	case TAG_MODULE:
		m = bytes >= 8 ? add_module(load32(p), load32(p + 4)) : NULL;
		if (m)
			copy_string(m->command, sizeof(m->command), p + 8, bytes - 8,
				    "command line of a module");
		break;
	case TAG_MAP:
		return parse2_map(p, bytes);
	case TAG_FRAMEBUFFER:
		if (bytes >= FB_BYTES_MIN)
			parse_framebuffer(p, p + 24, bytes >= 24 ? bytes - 24 : 0);
		break;
	case TAG_EFI64:
		boot_info.efi = bytes >= 8;
		boot_info.efi_system_table = boot_info.efi ? load64(p) : 0;
		break;
	case TAG_RSDP1:
	case TAG_RSDP2:
		copy_rsdp(p, bytes);
		break;
	default:
		break;
	}
	return 0;
}

static int parse2(uint32_t info)
{
	const uint8_t *p = loader_memory(info, 8);
	uint32_t total = p ? load32(p) : 0;
	uint64_t at = 8;

	if (!p || !loader_memory(info, total))
		return broken("multiboot: the boot loader's information at %x is out of reach",
			      info);
	while (at + 8 <= total) {
		uint32_t type = load32(p + at), size = load32(p + at + 4);
		int rc;

		if (type == TAG_END)
			return 0;
		if (size < 8 || size > total - at)
			return broken("multiboot: tag %u has %u bytes, which does not fit", type,
				      size);
		rc = parse2_tag(type, p + at + 8, size - 8);
		if (rc)
			return rc;
		at += ROUND_UP((uint64_t)size, 8);
	}
	return broken("multiboot: the boot loader's tags have no end");
}

int multiboot_parse(uint32_t magic, uint32_t info)
{
	int rc;

	memset(&boot_info, 0, sizeof(boot_info));
	nr_raw = nr_raw_lost = 0;
	if (magic != MAGIC1 && magic != MAGIC2)
		return broken(
			"boot: magic number %x is neither multiboot's nor multiboot 2's: use a boot loader that speaks one of them",
			magic);
	rc = magic == MAGIC1 ? parse1(info) : parse2(info);
	if (nr_raw_lost) {
		log_error(
			"multiboot: the memory map has %u entries more than the %u that can be taken",
			nr_raw_lost, BOOT_RANGES_MAX);
		rc = -EINVAL;
	}
	drop_file_name(boot_info.command_line);
	if (rc)
		return rc;
	for (unsigned i = 0; i < boot_info.nr_modules; i++)
		drop_file_name(boot_info.module[i].command);
	return sort_ranges();
}
