/* SPDX-License-Identifier: MIT */
/*
 * PCI configuration space of segment 0, the first 256 bytes of each function, through ports 0xcf8 and 0xcfc: enough for capabilities. Any context.
 *
 * Those ports are a pair, and dom0 uses them as well. So its accesses come here too: the address that it wrote is kept, and written just before the
 * data port is touched, under the lock that our own accesses hold.
 */
#pragma once

#include "vmm/lib/types.h"

#define PCI_ADDRESS_PORT 0xcf8
#define PCI_DATA_PORT	 0xcfc

#define PCI_COMMAND	   0x04
#define PCI_COMMAND_MEMORY 0x0002
#define PCI_STATUS	   0x06
#define PCI_STATUS_CAPS	   0x0010
#define PCI_BAR0	   0x10
#define PCI_CAPS	   0x34
#define PCI_CAP_MSI	   0x05
#define PCI_CAP_MSIX	   0x11

struct pci_device {
	uint8_t bus, devfn;
};

/* bytes: 1, 2 or 4; at aligned to it. What does not exist reads as all ones. */
uint32_t pci_read(struct pci_device dev, uint8_t at, unsigned bytes);
void pci_write(struct pci_device dev, uint8_t at, unsigned bytes, uint32_t value);
/* Where the capability lies, 0: it has none. */
uint8_t pci_find_capability(struct pci_device dev, uint8_t id);

/* A guest that may use the ports 0xcf8 .. 0xcff does: port within them, bytes 1, 2 or 4, not beyond their end. */
uint32_t pci_guest_port_read(unsigned port, unsigned bytes);
void pci_guest_port_write(unsigned port, unsigned bytes, uint32_t value);
