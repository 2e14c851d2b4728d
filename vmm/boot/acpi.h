/* SPDX-License-Identifier: MIT */
/* What the hypervisor itself needs of the firmware's ACPI tables. dom0 reads them on its own for everything else. */
#pragma once

#include "vmm/lib/types.h"
#include "vmm/mm/layout.h"

#define ACPI_IOAPICS_MAX   16
#define ACPI_OVERRIDES_MAX 32

struct acpi_info {
	bool found;
	uint64_t rsdp; /* machine address, 0: only the loader's copy is known */
	unsigned nr_cpus;
	struct {
		uint32_t apic_id, acpi_id;
		bool enabled;
	} cpu[MAX_CPUS * 2];
	unsigned nr_ioapics;
	struct {
		uint64_t address;
		uint32_t gsi_base;
	} ioapic[ACPI_IOAPICS_MAX];
	unsigned nr_overrides;
	struct {
		uint32_t gsi;
		bool level, active_low;
	} override[ACPI_OVERRIDES_MAX];
	uint32_t pm_timer_port; /* 0: none */
	/* for reset and power-off when dom0 cannot */
	uint16_t pm1a_control, pm1b_control;
	bool has_reset;
	uint8_t reset_value, reset_space;
	uint64_t reset_address;
	bool legacy_devices, no_rtc;
	uint8_t rtc_century; /* CMOS register, 0: none */
};
extern struct acpi_info acpi;

/* Parse RSDP (0: the boot loader's copy, else search for it), XSDT or RSDT, MADT and FADT. Every length is checked; what is broken is named and ignored. */
void acpi_init(uint64_t rsdp);
