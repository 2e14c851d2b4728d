// SPDX-License-Identifier: MIT
#include "vmm/platform/pci.h"

#include "vmm/cpu/regs.h"
#include "vmm/lib/lock.h"

#define ENABLE 0x80000000u

static spinlock_t lock = SPINLOCK_INIT;
static uint32_t guest_address; /* what dom0 believes to be in the address port */

static uint32_t address_of(struct pci_device dev, uint8_t at)
{
	return ENABLE | (uint32_t)dev.bus << 16 | (uint32_t)dev.devfn << 8 | (at & 0xfcu);
}

uint32_t pci_read(struct pci_device dev, uint8_t at, unsigned bytes)
{
	uint64_t flags = spin_lock_irq(&lock);
	uint32_t value;

	outl(PCI_ADDRESS_PORT, address_of(dev, at));
	value = port_read(PCI_DATA_PORT + (at & 3u), bytes);
	spin_unlock_irq(&lock, flags);
	return value;
}

void pci_write(struct pci_device dev, uint8_t at, unsigned bytes, uint32_t value)
{
	uint64_t flags = spin_lock_irq(&lock);

	outl(PCI_ADDRESS_PORT, address_of(dev, at));
	port_write(PCI_DATA_PORT + (at & 3u), bytes, value);
	spin_unlock_irq(&lock, flags);
}

uint8_t pci_find_capability(struct pci_device dev, uint8_t id)
{
	uint8_t at;

	/* All ones: there is no such device. */
	if ((pci_read(dev, 0, 4) & 0xffff) == 0xffff ||
	    !(pci_read(dev, PCI_STATUS, 2) & PCI_STATUS_CAPS))
		return 0;
	at = (uint8_t)pci_read(dev, PCI_CAPS, 1) & 0xfc;
	/* 48 capabilities of 4 bytes fit; a list that is longer goes in a circle. */
	for (unsigned i = 0; i < 48 && at >= 0x40; i++) {
		if (pci_read(dev, at, 1) == id)
			return at;
		at = (uint8_t)pci_read(dev, at + 1, 1) & 0xfc;
	}
	return 0;
}

uint32_t pci_guest_port_read(unsigned port, unsigned bytes)
{
	uint64_t flags;
	uint32_t value;

	if (port == PCI_ADDRESS_PORT && bytes == 4)
		return READ_ONCE(guest_address);
	flags = spin_lock_irq(&lock);
	if (port >= PCI_DATA_PORT)
		outl(PCI_ADDRESS_PORT, guest_address);
	value = port_read(port, bytes);
	spin_unlock_irq(&lock, flags);
	return value;
}

void pci_guest_port_write(unsigned port, unsigned bytes, uint32_t value)
{
	uint64_t flags = spin_lock_irq(&lock);

	/* Only a 32-bit write goes to the address register; a byte at 0xcf9 is the reset control's. */
	if (port == PCI_ADDRESS_PORT && bytes == 4) {
		guest_address = value;
	} else {
		if (port >= PCI_DATA_PORT)
			outl(PCI_ADDRESS_PORT, guest_address);
		port_write(port, bytes, value);
	}
	spin_unlock_irq(&lock, flags);
}
