// SPDX-License-Identifier: MIT
/* The few ACPI tables that the hypervisor reads itself. Offsets are from the ACPI specification 6.3, chapter 5; firmware is wrong now and then. */
#include "vmm/boot/acpi.h"

#include "vmm/boot/boot.h"
#include "vmm/lib/bytes.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/frame.h"
#include "vmm/mm/map.h"

#define HEADER_BYTES 36u
#define TABLE_MAX    (1u << 20)

struct acpi_info acpi;

static const uint8_t *firmware_memory(uint64_t maddr, uint64_t bytes)
{
	if (!maddr || bytes > UINT64_MAX - maddr)
		return NULL;
	return maddr + bytes <= direct_bytes ? maddr_to_ptr(maddr) : map_device(maddr, bytes);
}

static bool sums_to_zero(const uint8_t *p, uint32_t bytes)
{
	uint8_t sum = 0;

	while (bytes--)
		sum = (uint8_t)(sum + *p++);
	return !sum;
}

/* ---- the root pointer ---- */

static bool rsdp_good(const uint8_t *p, uint32_t available)
{
	if (available < RSDP_BYTES_1 || memcmp(p, "RSD PTR ", 8) || !sums_to_zero(p, RSDP_BYTES_1))
		return false;
	return p[15] < 2 || available < RSDP_BYTES_2 || sums_to_zero(p, RSDP_BYTES_2);
}

static uint64_t search_rsdp(uint64_t from, uint64_t bytes)
{
	const uint8_t *p = firmware_memory(from, bytes);

	for (uint64_t i = 0; p && i + RSDP_BYTES_2 <= bytes; i += 16)
		if (rsdp_good(p + i, RSDP_BYTES_2))
			return from + i;
	return 0;
}

#define BDA_EBDA_SEGMENT 0x40eu

/* Where a PC BIOS leaves it: the first KiB of the extended BIOS data, or the BIOS itself. */
static uint64_t find_rsdp(void)
{
	const uint8_t *bda = firmware_memory(BDA_EBDA_SEGMENT, 2);
	uint64_t ebda = bda ? (uint64_t)load16(bda) << 4 : 0, found = 0;

	if (ebda >= 0x80000 && ebda < 0xa0000)
		found = search_rsdp(ebda, 1024);
	return found ? found : search_rsdp(0xe0000, 0x20000);
}

/* ---- tables ---- */

/* The whole table at that address, checked; NULL, with a line in the log, if it is broken. */
static const uint8_t *get_table(uint64_t maddr, uint32_t *bytes)
{
	const uint8_t *p = firmware_memory(maddr, HEADER_BYTES);
	char name[5] = "?";

	if (!p)
		return NULL;
	for (unsigned i = 0; i < 4; i++)
		name[i] = (char)(p[i] >= ' ' && p[i] < 0x7f ? p[i] : '?');
	*bytes = load32(p + 4);
	if (*bytes < HEADER_BYTES || *bytes > TABLE_MAX) {
		log_warning("ACPI: table %s at %lx is ignored: it has %u bytes", name, maddr,
			    *bytes);
		return NULL;
	}
	p = firmware_memory(maddr, *bytes);
	if (!p || !sums_to_zero(p, *bytes)) {
		log_warning("ACPI: table %s at %lx is ignored: its checksum is wrong", name, maddr);
		return NULL;
	}
	return p;
}

/* ---- MADT: processors and interrupt controllers ---- */

enum { MADT_CPU = 0, MADT_IOAPIC = 1, MADT_OVERRIDE = 2, MADT_X2APIC = 9 };

static void add_cpu(uint32_t apic_id, uint32_t acpi_id, uint32_t flags)
{
	bool enabled = flags & 1;

	/* Place holders for processors that may be plugged in. */
	if (!enabled && (apic_id == 0xff || apic_id == UINT32_MAX))
		return;
	if (acpi.nr_cpus == ARRAY_SIZE(acpi.cpu)) {
		log_warning("ACPI: the processor with APIC id %u is ignored: too many", apic_id);
		return;
	}
	for (unsigned i = 0; i < acpi.nr_cpus; i++)
		if (acpi.cpu[i].apic_id == apic_id)
			return;
	acpi.cpu[acpi.nr_cpus].apic_id = apic_id;
	acpi.cpu[acpi.nr_cpus].acpi_id = acpi_id;
	acpi.cpu[acpi.nr_cpus++].enabled = enabled;
}

static void add_ioapic(const uint8_t *p)
{
	if (acpi.nr_ioapics == ACPI_IOAPICS_MAX) {
		log_warning("ACPI: an I/O APIC is ignored: too many");
		return;
	}
	acpi.ioapic[acpi.nr_ioapics].address = load32(p + 4);
	acpi.ioapic[acpi.nr_ioapics++].gsi_base = load32(p + 8);
}

/* Flags: 3 in the low bits is active low, 3 in the next two is level; what "conforms to the bus" is ISA's: high and edge. */
static void add_override(const uint8_t *p)
{
	uint16_t flags = load16(p + 8);

	if (acpi.nr_overrides == ACPI_OVERRIDES_MAX) {
		log_warning("ACPI: an interrupt override is ignored: too many");
		return;
	}
	acpi.override[acpi.nr_overrides].gsi = load32(p + 4);
	acpi.override[acpi.nr_overrides].active_low = (flags & 3) == 3;
	acpi.override[acpi.nr_overrides++].level = (flags >> 2 & 3) == 3;
}

/* The length that an entry of this type must have to be read; of all others only type and length are. */
static const uint8_t madt_entry_bytes[256] = {
	[MADT_CPU] = 8,
	[MADT_IOAPIC] = 12,
	[MADT_OVERRIDE] = 10,
	[MADT_X2APIC] = 16,
};

static void parse_madt(const uint8_t *table, uint32_t bytes)
{
	if (bytes < 44)
		return;
	for (uint32_t at = 44; at + 2 <= bytes;) {
		const uint8_t *p = table + at;
		uint8_t size = p[1];

		if (size < MAX(madt_entry_bytes[p[0]], 2) || size > bytes - at) {
			log_warning("ACPI: the MADT is broken from byte %u on", at);
			return;
		}
		switch (p[0]) {
		case MADT_CPU:
			add_cpu(p[3], p[2], load32(p + 4));
			break;
		case MADT_X2APIC:
			add_cpu(load32(p + 4), load32(p + 12), load32(p + 8));
			break;
		case MADT_IOAPIC:
			add_ioapic(p);
			break;
		case MADT_OVERRIDE:
			add_override(p);
			break;
		default:
			break;
		}
		at += size;
	}
}

/* ---- FADT: power, timer, what a PC has ---- */

#define FADT_HAS_RESET (1u << 10)
#define SPACE_IO       1

/* An I/O port from the extended field (a generic address), or from the old 32-bit one. */
static uint32_t fadt_port(const uint8_t *table, uint32_t bytes, unsigned old_at, unsigned new_at)
{
	if (bytes >= new_at + 12 && load64(table + new_at + 4))
		return table[new_at] == SPACE_IO ? (uint32_t)load64(table + new_at + 4) : 0;
	return bytes >= old_at + 4 ? load32(table + old_at) : 0;
}

static void parse_fadt(const uint8_t *table, uint32_t bytes)
{
	uint32_t flags;

	if (bytes < 116) {
		log_warning("ACPI: the FADT is ignored: it has %u bytes", bytes);
		return;
	}
	flags = load32(table + 112);
	acpi.pm1a_control = (uint16_t)fadt_port(table, bytes, 64, 172);
	acpi.pm1b_control = (uint16_t)fadt_port(table, bytes, 68, 184);
	acpi.pm_timer_port = (uint16_t)fadt_port(table, bytes, 76, 208);
	acpi.rtc_century = table[108];
	/* Before revision 3 the flags about a PC's devices were not there, and every machine was one. */
	acpi.legacy_devices = table[8] < 3 || load16(table + 109) & 1;
	acpi.no_rtc = table[8] >= 3 && load16(table + 109) & 1u << 5;
	if (flags & FADT_HAS_RESET && bytes >= 129) {
		acpi.has_reset = true;
		acpi.reset_space = table[116];
		acpi.reset_address = load64(table + 120);
		acpi.reset_value = table[128];
	}
}

static void parse_table(uint64_t maddr)
{
	const uint8_t *p = firmware_memory(maddr, HEADER_BYTES);
	uint32_t bytes;

	/* Of the others not even the checksum is our business. */
	if (!p || (memcmp(p, "APIC", 4) && memcmp(p, "FACP", 4)))
		return;
	p = get_table(maddr, &bytes);
	if (!p)
		return;
	if (p[0] == 'A')
		parse_madt(p, bytes);
	else
		parse_fadt(p, bytes);
}

/* The tables that the RSDT (4-byte entries) or XSDT (8) names. False: it cannot be read. */
static bool parse_root(uint64_t maddr, const char *name, unsigned entry_bytes)
{
	uint32_t bytes;
	const uint8_t *p = get_table(maddr, &bytes);

	if (!p || memcmp(p, name, 4))
		return false;
	for (uint32_t at = HEADER_BYTES; at + entry_bytes <= bytes; at += entry_bytes)
		parse_table(entry_bytes == 8 ? load64(p + at) : load32(p + at));
	return true;
}

void acpi_init(uint64_t rsdp)
{
	const uint8_t *p = NULL;
	uint32_t available = RSDP_BYTES_2;

	memset(&acpi, 0, sizeof(acpi));
	acpi.legacy_devices = true;
	if (!rsdp && rsdp_good(boot_info.rsdp_copy, boot_info.rsdp_bytes)) {
		p = boot_info.rsdp_copy;
		available = boot_info.rsdp_bytes;
	} else {
		acpi.rsdp = rsdp ? rsdp : find_rsdp();
		p = firmware_memory(acpi.rsdp, RSDP_BYTES_2);
	}
	if (!p || !rsdp_good(p, available)) {
		acpi.rsdp = 0;
		log_warning("ACPI: no tables were found: one CPU, interrupts as on an old PC");
		return;
	}
	if (p[15] >= 2 && available >= RSDP_BYTES_2)
		acpi.found = parse_root(load64(p + 24), "XSDT", 8);
	if (!acpi.found)
		acpi.found = parse_root(load32(p + 16), "RSDT", 4);
	if (!acpi.found)
		log_warning("ACPI: neither XSDT nor RSDT can be read");
}
