// SPDX-License-Identifier: MIT
#include "vmm/platform/power.h"

#include "vmm/boot/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/cpu/regs.h"
#include "vmm/lib/print.h"
#include "vmm/mm/frame.h"
#include "vmm/mm/map.h"
#include "vmm/platform/pci.h"
#include "vmm/platform/time.h"

#define RESET_PORT     0xcf9
#define RESET_SYSTEM   0x02
#define RESET_CPU      0x04
#define KEYBOARD_PORT  0x64
#define KEYBOARD_BUSY  0x02
#define KEYBOARD_RESET 0xfe
#define ATTEMPT_US     100000
#define KEYBOARD_TRIES 100
#define KEYBOARD_WAIT  50
#define SPACE_MEMORY   0
#define SPACE_IO       1
#define SPACE_PCI      2

static void reset_by_acpi(void)
{
	uint64_t at = acpi.reset_address;
	volatile uint8_t *memory;

	if (!acpi.has_reset)
		return;
	if (acpi.reset_space == SPACE_IO) {
		outb((uint16_t)at, acpi.reset_value);
	} else if (acpi.reset_space == SPACE_PCI) {
		/* On bus 0: device in bits 32 to 47, function in 16 to 31, register in the rest. */
		pci_write((struct pci_device){.devfn = (uint8_t)((at >> 32 & 31) << 3 |
								 (at >> 16 & 7))},
			  (uint8_t)at, 1, acpi.reset_value);
	} else if (acpi.reset_space == SPACE_MEMORY) {
		memory = map_device(at, 1);
		if (memory)
			*memory = acpi.reset_value;
	}
	udelay(ATTEMPT_US);
}

static void reset_by_keyboard(void)
{
	for (unsigned i = 0; i < KEYBOARD_TRIES && inb(KEYBOARD_PORT) & KEYBOARD_BUSY; i++)
		udelay(KEYBOARD_WAIT);
	outb(KEYBOARD_PORT, KEYBOARD_RESET);
	udelay(ATTEMPT_US);
}

void machine_restart(void)
{
	static const struct {
		uint16_t limit;
		uint64_t base;
	} __attribute__((packed)) no_idt;

	irq_disable();
	log_info("The machine restarts");
	reset_by_acpi();
	outb(RESET_PORT, RESET_SYSTEM);
	udelay(KEYBOARD_WAIT);
	outb(RESET_PORT, RESET_SYSTEM | RESET_CPU);
	udelay(ATTEMPT_US);
	if (acpi.legacy_devices)
		reset_by_keyboard();
	__asm__ volatile("lidt %0; int3" ::"m"(no_idt));
	machine_halt();
}

void machine_restart_after_error(void)
{
	if (!boot_options.noreboot)
		machine_restart();
	log_info("The machine is not restarted, as the option noreboot asks");
	machine_halt();
}

void machine_halt(void)
{
	log_info("The machine is halted");
	for (;;)
		__asm__ volatile("cli; hlt");
}
