/* SPDX-License-Identifier: MIT */
/* The first CPU's way from head.S to dom0. */
#include "vmm/boot/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/boot/smp.h"
#include "vmm/cpu/desc.h"
#include "vmm/cpu/mitigation.h"
#include "vmm/cpu/policy.h"
#include "vmm/cpu/regs.h"
#include "vmm/cpu/setup.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/dom0.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/console.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/heap.h"
#include "vmm/mm/map.h"
#include "vmm/platform/irq.h"
#include "vmm/platform/serial.h"
#include "vmm/platform/time.h"
#include "vmm/sched/sched.h"

void start(uint32_t magic, uint32_t info) __attribute__((noreturn));

static void start_console(void)
{
	for (unsigned i = 0; i < 2; i++)
		if (boot_options.com[i][0] ||
		    !strncmp(boot_options.console, i ? "com2" : "com1", 4))
			serial_init(i + 1, boot_options.com[i]);
}

void start(uint32_t magic, uint32_t info)
{
	int rc;

	stack_top()->cpu = &pcpus[0];
	/* head.S has mapped the first 4 GiB there. */
	direct_base = (char *)DIRECT_BASE;
	rc = multiboot_parse(magic, info);
	options_parse(boot_info.command_line);
	start_console();
	log_replay();
	log_info("Pagurus %s, loaded by %s", PAGURUS_VERSION, boot_info.loader);
	log_info("command line: %s", boot_info.command_line);
	if (rc)
		give_up("what the boot loader handed over cannot be used (see above); boot by GRUB's multiboot2");
	cpu_features_init();
	mitigation_init();
	map_init();
	mitigation_patch();
	cpu_setup();
	desc_init_cpu();
	mitigation_init_cpu();
	fpu_init();
	acpi_init(boot_info.rsdp);
	apic_init();
	apic_init_cpu();
	time_init();
	time_init_cpu();
	ioapic_init();
	idle_init();
	sched_init_cpu(0);
	irq_enable();
	smp_start();
	dom0_build();
	log_info("starting dom0; %lu MiB are free", heap_free_frames() >> 8);
	domain_reaper_init();
	console_input_start();
	domain_unpause(dom0);
	enter_idle();
}
