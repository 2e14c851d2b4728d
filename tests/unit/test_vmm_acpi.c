// SPDX-License-Identifier: MIT
/* Firmware tables, whole, wrong and missing. Memory ends behind the last table, so that a read beyond it is seen. */
#define VMM_HOSTED
#include "vmm/boot/acpi.c" /* NOLINT(bugprone-suspicious-include) */

#include "tests/unit/unit.h"
#include "tests/unit/vmm_log.h"

#define LOW_BYTES 0x100000u
#define HIGH	  0x123400000000ull /* where map_device reaches */

char *direct_base;
uint64_t direct_bytes;
struct boot_info boot_info;
static uint8_t high[4096];
static unsigned mapped;

void *map_device(uint64_t maddr, size_t bytes)
{
	mapped++;
	if (maddr < HIGH || maddr - HIGH > sizeof(high) || bytes > sizeof(high) - (maddr - HIGH))
		return NULL;
	return high + (maddr - HIGH);
}

static uint32_t next; /* free memory for tables */

/* So that a read behind the last table is one behind an allocation. */
static void cut_memory(void)
{
	char *less = malloc(next);

	if (!less)
		abort();
	memcpy(less, direct_base, next);
	free(direct_base);
	direct_base = less;
	direct_bytes = next;
}

static uint8_t *at(uint32_t maddr)
{
	return (uint8_t *)direct_base + maddr;
}

static void fresh(void)
{
	free(direct_base);
	direct_base = calloc(1, LOW_BYTES);
	if (!direct_base)
		abort();
	direct_bytes = LOW_BYTES;
	memset(&boot_info, 0, sizeof(boot_info));
	memset(&acpi, 0xee, sizeof(acpi));
	memset(high, 0, sizeof(high));
	logged[0] = 0;
	mapped = 0;
	next = 0x20000;
}

static void put16(uint8_t *p, uint16_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, sizeof(v));
}

static void fix_sum(uint8_t *p, uint32_t bytes, unsigned where)
{
	uint8_t sum = 0;

	p[where] = 0;
	for (uint32_t i = 0; i < bytes; i++)
		sum = (uint8_t)(sum + p[i]);
	p[where] = (uint8_t)-sum;
}

static void header(uint8_t *p, const char *name, uint32_t bytes, uint8_t revision)
{
	memcpy(p, name, 4);
	put32(p + 4, bytes);
	p[8] = revision;
	fix_sum(p, bytes, 9);
}

/* Room for a table; header() when its contents are there. */
static uint32_t room(uint32_t bytes)
{
	uint32_t maddr = next;

	next += ROUND_UP(bytes, 16);
	return maddr;
}

static uint32_t make_madt(void)
{
	static const uint8_t entries[] = {
		MADT_CPU,
		8,
		0,
		0,
		1,
		0,
		0,
		0, /* ACPI 0, APIC 0, on */
		MADT_CPU,
		8,
		1,
		2,
		1,
		0,
		0,
		0, /* ACPI 1, APIC 2, on */
		MADT_CPU,
		8,
		2,
		4,
		0,
		0,
		0,
		0, /* off */
		MADT_CPU,
		8,
		3,
		0xff,
		0,
		0,
		0,
		0, /* a place holder */
		MADT_X2APIC,
		16,
		0,
		0,
		0,
		1,
		0,
		0,
		1,
		0,
		0,
		0,
		7,
		0,
		0,
		0, /* APIC 256, ACPI 7 */
		MADT_IOAPIC,
		12,
		5,
		0,
		0,
		0,
		0xc0,
		0xfe,
		24,
		0,
		0,
		0,
		MADT_OVERRIDE,
		10,
		0,
		0,
		2,
		0,
		0,
		0,
		0,
		0, /* ISA 0 is GSI 2 */
		MADT_OVERRIDE,
		10,
		0,
		9,
		9,
		0,
		0,
		0,
		0x0f,
		0, /* level, low */
		0x7f,
		3,
		0, /* of a later version */
		MADT_OVERRIDE,
		10,
		0,
		10,
		10,
		0,
		0,
		0,
		0x0d,
		0, /* level, high */
	};
	uint32_t madt = room(44 + sizeof(entries));

	put32(at(madt) + 36, 0xfee00000);
	memcpy(at(madt) + 44, entries, sizeof(entries));
	header(at(madt), "APIC", 44 + sizeof(entries), 4);
	return madt;
}

static uint32_t make_fadt(uint8_t revision, uint32_t bytes)
{
	uint32_t fadt = room(276);
	uint8_t *p = at(fadt);

	put32(p + 64, 0x604);
	put32(p + 68, 0x704);
	put32(p + 76, 0x608);
	p[108] = 0x32;
	put16(p + 109, revision < 3 ? 0 : 1 | 1 << 5);
	put32(p + 112, FADT_HAS_RESET);
	p[116] = SPACE_IO;
	put64(p + 120, 0xcf9);
	p[128] = 0x0f;
	if (bytes > 200) {
		p[172] = SPACE_IO;
		put64(p + 176, 0x1804); /* wins over the old field */
	}
	header(p, "FACP", bytes, revision);
	return fadt;
}

static uint32_t make_root(const char *name, const uint64_t *tables, unsigned n)
{
	unsigned each = name[0] == 'X' ? 8 : 4;
	uint32_t root = room(HEADER_BYTES + n * each);

	for (unsigned i = 0; i < n; i++)
		memcpy(at(root) + HEADER_BYTES + i * each, &tables[i], each);
	header(at(root), name, HEADER_BYTES + n * each, 1);
	return root;
}

static void make_rsdp(uint8_t *p, uint32_t rsdt, uint64_t xsdt)
{
	static const char signature[8] = {'R', 'S', 'D', ' ', 'P', 'T', 'R', ' '};

	memcpy(p, signature, sizeof(signature));
	p[15] = xsdt ? 2 : 0;
	put32(p + 16, rsdt);
	put32(p + 20, RSDP_BYTES_2);
	put64(p + 24, xsdt);
	fix_sum(p, RSDP_BYTES_1, 8);
	fix_sum(p, RSDP_BYTES_2, 32);
}

/* All tables, reached by the XSDT; the RSDT names none. Returns the RSDP. */
static uint32_t make_all(void)
{
	uint64_t tables[4];
	uint32_t rsdp;

	fresh();
	rsdp = room(RSDP_BYTES_2);
	tables[0] = make_madt();
	tables[1] = make_fadt(3, 244);
	tables[2] = room(HEADER_BYTES); /* of no interest, broken */
	memcpy(at((uint32_t)tables[2]), "SSDT", 4);
	tables[3] = 0;
	make_rsdp(at(rsdp), make_root("RSDT", NULL, 0), make_root("XSDT", tables, 4));
	return rsdp;
}

static void check_all(void)
{
	CHECK(acpi.found);
	CHECK_EQ(acpi.nr_cpus, 4);
	CHECK_EQ(acpi.cpu[1].apic_id, 2);
	CHECK_EQ(acpi.cpu[1].acpi_id, 1);
	CHECK(acpi.cpu[1].enabled && !acpi.cpu[2].enabled);
	CHECK_EQ(acpi.cpu[3].apic_id, 256);
	CHECK_EQ(acpi.cpu[3].acpi_id, 7);
	CHECK_EQ(acpi.nr_ioapics, 1);
	CHECK_EQ(acpi.ioapic[0].address, 0xfec00000);
	CHECK_EQ(acpi.ioapic[0].gsi_base, 24);
	CHECK_EQ(acpi.nr_overrides, 3);
	CHECK_EQ(acpi.override[0].gsi, 2);
	CHECK(!acpi.override[0].level && !acpi.override[0].active_low);
	CHECK(acpi.override[1].level && acpi.override[1].active_low);
	CHECK(acpi.override[2].level && !acpi.override[2].active_low);
	CHECK_EQ(acpi.pm1a_control, 0x1804);
	CHECK_EQ(acpi.pm1b_control, 0x704);
	CHECK_EQ(acpi.pm_timer_port, 0x608);
	CHECK(acpi.has_reset && acpi.legacy_devices && acpi.no_rtc);
	CHECK_EQ(acpi.rtc_century, 0x32);
	CHECK_EQ(acpi.reset_space, SPACE_IO);
	CHECK_EQ(acpi.reset_address, 0xcf9);
	CHECK_EQ(acpi.reset_value, 0x0f);
}

static void reads_all_tables(void)
{
	uint32_t rsdp = make_all();

	acpi_init(rsdp);
	check_all();
	CHECK_EQ(acpi.rsdp, rsdp);
	CHECK_STR(logged, "");
}

static void finds_the_root_where_a_bios_leaves_it(void)
{
	uint32_t rsdp = make_all();

	memcpy(at(0xf1230), at(rsdp), RSDP_BYTES_2);
	acpi_init(0);
	check_all();
	CHECK_EQ(acpi.rsdp, 0xf1230);

	/* The extended BIOS data come first; what is there but has a wrong sum is passed over. */
	put16(at(BDA_EBDA_SEGMENT), 0x9fc0);
	memcpy(at(0x9fc10), at(rsdp), RSDP_BYTES_2);
	memcpy(at(0x9fc80), at(rsdp), RSDP_BYTES_2);
	at(0x9fc10)[12] ^= 1;
	acpi_init(0);
	check_all();
	CHECK_EQ(acpi.rsdp, 0x9fc80);
}

static void believes_the_loaders_copy(void)
{
	uint32_t rsdp = make_all();

	memcpy(boot_info.rsdp_copy, at(rsdp), RSDP_BYTES_2);
	boot_info.rsdp_bytes = RSDP_BYTES_2;
	acpi_init(0);
	check_all();
	CHECK_EQ(acpi.rsdp, 0);
}

static void does_without_tables(void)
{
	fresh();
	acpi_init(0);
	CHECK(!acpi.found && acpi.legacy_devices && !acpi.nr_cpus);
	CHECK_HAS(logged, "no tables");
	acpi_init(0x30000);
	CHECK(!acpi.found && !acpi.rsdp);
}

static void takes_the_old_root_where_the_new_one_is_broken(void)
{
	uint64_t tables[] = {0};
	uint32_t rsdp = make_all(), xsdt = load32(at(rsdp) + 24);

	tables[0] = make_fadt(1, 116);
	make_rsdp(at(rsdp), make_root("RSDT", tables, 1), xsdt);
	at(xsdt)[20] ^= 1;
	acpi_init(rsdp);
	CHECK(acpi.found);
	CHECK_HAS(logged, "XSDT");
	CHECK_HAS(logged, "checksum");
	CHECK_EQ(acpi.nr_cpus, 0);
	CHECK_EQ(acpi.pm1a_control, 0x604);
	CHECK(acpi.legacy_devices && !acpi.no_rtc && !acpi.has_reset);

	/* ACPI 1.0 has no other. */
	make_rsdp(at(rsdp), load32(at(rsdp) + 16), 0);
	acpi_init(rsdp);
	CHECK_EQ(acpi.pm1a_control, 0x604);
	at(load32(at(rsdp) + 16))[0] = 'Q';
	acpi_init(rsdp);
	CHECK(!acpi.found);
}

static void names_and_passes_over_a_broken_table(void)
{
	uint32_t rsdp = make_all(), madt = 0x20000 + 48;

	CHECK(!memcmp(at(madt), "APIC", 4));
	at(madt)[50] ^= 1;
	acpi_init(rsdp);
	CHECK(acpi.found);
	CHECK_EQ(acpi.nr_cpus, 0);
	CHECK_EQ(acpi.pm1b_control, 0x704);
	CHECK_HAS(logged, "APIC");
	CHECK_EQ(lines_logged(), 1);
	put32(at(madt) + 4, 35);
	acpi_init(rsdp);
	CHECK_HAS(logged, "35 bytes");
	put32(at(madt) + 4, TABLE_MAX + 1);
	acpi_init(rsdp);
	CHECK_HAS(logged, "1048577 bytes");
	CHECK_EQ(acpi.nr_cpus, 0);
	CHECK_EQ(acpi.pm1b_control, 0x704);
}

static void stops_at_a_broken_entry(void)
{
	uint32_t rsdp = make_all(), madt = 0x20000 + 48, bytes = load32(at(madt) + 4);

	/* An entry of no length must not be read for ever. */
	at(madt)[44 + 9] = 0;
	fix_sum(at(madt), bytes, 9);
	acpi_init(rsdp);
	CHECK_EQ(acpi.nr_cpus, 1);
	CHECK_HAS(logged, "broken from byte 52");
	at(madt)[44 + 9] = 7;
	fix_sum(at(madt), bytes, 9);
	acpi_init(rsdp);
	CHECK_EQ(acpi.nr_cpus, 1);

	/* The last one goes beyond the end. */
	at(madt)[44 + 9] = 8;
	header(at(madt), "APIC", bytes - 1, 4);
	acpi_init(rsdp);
	CHECK_EQ(acpi.nr_cpus, 4);
	CHECK_EQ(acpi.nr_overrides, 2);
}

static void maps_what_lies_above_the_direct_map(void)
{
	uint64_t tables[] = {HIGH + 64};
	uint32_t rsdp;

	fresh();
	rsdp = room(RSDP_BYTES_2);
	put32(high + 64 + 68, 0x704);
	header(high + 64, "FACP", 116, 1);
	make_rsdp(at(rsdp), 0, make_root("XSDT", tables, 1));
	acpi_init(rsdp);
	CHECK_EQ(acpi.pm1b_control, 0x704);
	CHECK(mapped > 0);
	/* Where nothing can be mapped, there is nothing. */
	tables[0] = HIGH + sizeof(high) - 36;
	memcpy(high + sizeof(high) - 36, high + 64, 36);
	make_rsdp(at(rsdp), 0, make_root("XSDT", tables, 1));
	acpi_init(rsdp);
	CHECK(acpi.found);
	CHECK_EQ(acpi.pm1b_control, 0);
	tables[0] = UINT64_MAX - 10;
	make_rsdp(at(rsdp), 0, make_root("XSDT", tables, 1));
	acpi_init(rsdp);
	CHECK(acpi.found);
}

static void bounds_its_arrays(void)
{
	uint32_t bytes = 44 + 200 * 16 + 40 * 12 + 40 * 10, madt;
	uint64_t table;
	uint32_t rsdp;
	uint8_t *p;

	fresh();
	rsdp = room(RSDP_BYTES_2);
	madt = room(bytes);
	p = at(madt) + 44;
	for (unsigned i = 0; i < 200; i++, p += 16) {
		p[0] = MADT_X2APIC;
		p[1] = 16;
		put32(p + 4, i);
	}
	for (unsigned i = 0; i < 40; i++, p += 12) {
		p[0] = MADT_IOAPIC;
		p[1] = 12;
	}
	for (unsigned i = 0; i < 40; i++, p += 10) {
		p[0] = MADT_OVERRIDE;
		p[1] = 10;
	}
	header(at(madt), "APIC", bytes, 4);
	table = madt;
	make_rsdp(at(rsdp), 0, make_root("XSDT", &table, 1));
	acpi_init(rsdp);
	CHECK_EQ(acpi.nr_cpus, MAX_CPUS * 2);
	CHECK_EQ(acpi.nr_ioapics, ACPI_IOAPICS_MAX);
	CHECK_EQ(acpi.nr_overrides, ACPI_OVERRIDES_MAX);
	CHECK_HAS(logged, "too many");
}

/* Memory ends where the table says that it does. */
static void takes_tables_of_any_length(void)
{
	static const char *const names[] = {"APIC", "FACP"};

	for (unsigned n = 0; n < ARRAY_SIZE(names); n++) {
		for (uint32_t bytes = HEADER_BYTES; bytes < 260; bytes++) {
			uint64_t table;
			uint32_t rsdp;

			fresh();
			rsdp = room(RSDP_BYTES_2);
			table = room(16);
			make_rsdp(at(rsdp), make_root("RSDT", &table, 1), 0);
			table = next;
			put32(at(load32(at(rsdp) + 16)) + HEADER_BYTES, (uint32_t)table);
			header(at(load32(at(rsdp) + 16)), "RSDT", HEADER_BYTES + 4, 1);
			memset(at(next), 1, bytes);
			header(at(next), names[n], bytes, 3);
			next += bytes;
			cut_memory();
			acpi_init(rsdp);
			CHECK(acpi.found);
			CHECK_EQ(acpi.pm1b_control, n == 1 && bytes >= 116 ? 0x101 : 0);
		}
	}
}

/* Any byte of any table changed, with the sums put right: no crash. The tables' memory ends right behind them. */
static void survives_mutations(void)
{
	uint64_t seed = unit_seed();
	unsigned same = 0;

	for (unsigned round = 0; round < 3000; round++) {
		uint32_t rsdp = make_all(), victim, bytes;

		victim =
			0x20000 + 48 + 16 * (uint32_t)unit_below(&seed, (next - 0x20000 - 48) / 16);
		while (!at(victim)[0] || load32(at(victim) + 4) > 1000 ||
		       load32(at(victim) + 4) < HEADER_BYTES)
			victim -= 16;
		bytes = load32(at(victim) + 4);
		for (unsigned i = 1 + (unsigned)unit_below(&seed, 6); i; i--)
			at(victim)[4 + unit_below(&seed, bytes - 4)] = (uint8_t)unit_random(&seed);
		if (load32(at(victim) + 4) <= next - victim)
			fix_sum(at(victim), MAX(load32(at(victim) + 4), 10u), 9);
		cut_memory();
		acpi_init(rsdp);
		same += acpi.nr_cpus == 4 && acpi.pm1b_control == 0x704;
		CHECK(acpi.nr_cpus <= MAX_CPUS * 2);
	}
	CHECK(same > 100 && same < 3000);
}

UNIT_MAIN(TEST(reads_all_tables), TEST(finds_the_root_where_a_bios_leaves_it),
	  TEST(believes_the_loaders_copy), TEST(does_without_tables),
	  TEST(takes_the_old_root_where_the_new_one_is_broken),
	  TEST(names_and_passes_over_a_broken_table), TEST(stops_at_a_broken_entry),
	  TEST(maps_what_lies_above_the_direct_map), TEST(bounds_its_arrays),
	  TEST(takes_tables_of_any_length), TEST(survives_mutations))
