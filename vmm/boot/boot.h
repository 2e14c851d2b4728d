/* SPDX-License-Identifier: MIT */
/* What the boot loader gave us, in one form whichever protocol it speaks. Valid for good; contents of modules until they are freed. */
#pragma once

#include "vmm/lib/xen.h"

#include "vmm/lib/types.h"

#define BOOT_RANGES_MAX	 256
#define BOOT_MODULES_MAX 8
#define RSDP_BYTES_1	 20 /* ACPI 1.0 */
#define RSDP_BYTES_2	 36

enum range_type {
	RANGE_RAM = 1,
	RANGE_RESERVED = 2,
	RANGE_ACPI = 3,
	RANGE_NVS = 4,
	RANGE_BAD = 5
}; /* E820 */

struct boot_range {
	uint64_t start, end; /* end is behind */
	uint32_t type;
};

struct boot_module {
	uint64_t start, bytes; /* machine address */
	char command[1024];    /* without the file's name */
};

struct boot_info {
	char loader[64];
	char command_line[2048]; /* without the file's name */
	unsigned nr_ranges;
	struct boot_range range[BOOT_RANGES_MAX]; /* sorted, disjoint */
	unsigned nr_modules;
	struct boot_module module[BOOT_MODULES_MAX];
	/* ACPI's root pointer, if the loader gave a copy of it (acpi_init prefers that one); else it has to be searched for. */
	uint64_t rsdp; /* machine address, or 0 */
	unsigned rsdp_bytes;
	uint8_t rsdp_copy[RSDP_BYTES_2];
	bool efi;
	uint64_t efi_system_table;
	bool has_framebuffer;
	struct dom0_vga_console_info
		screen; /* the frame buffer as dom0 wants to know it; its kind goes by efi */
};
extern struct boot_info boot_info;

/* From the protocol's magic and pointer (machine address, below 4 GiB). 0 or -EINVAL with a line in the log. */
int multiboot_parse(uint32_t magic, uint32_t info);

/* The command line's words, checked and put into this; unknown ones are named in the log. */
struct boot_options {
	char console[16]; /* "com1", "com2", "vga", "none" */
	char com[2][64];
	uint64_t dom0_mem, dom0_mem_min, dom0_mem_max; /* bytes, 0: not given */
	unsigned dom0_vcpus_min, dom0_vcpus_max;       /* between: as many as CPUs */
	unsigned maxcpus;			       /* 0: all */
	int noreboot, sync_console, fault_injection;   /* the last: debug key f works */
	/* -1: as is best */
	int smep, smap, pcid, xpti, pv_l1tf, spec_ctrl, ibrs, ibpb, stibp, ssbd, rsb, verw;
	bool tsc_unstable;
};
extern struct boot_options boot_options;
void options_parse(const char *command_line);
