// SPDX-License-Identifier: MIT
/*
 * I/O ports of guests. Every access of a guest traps (the processor's IOPL stays 0 and there is no bitmap in the TSS), so a domain's ports are
 * what its set of ranges says at that moment.
 */
#include "vmm/cpu/regs.h"
#include "vmm/cpu/traps.h"
#include "vmm/domain/domain.h"
#include "vmm/emul/emul.h"
#include "vmm/mm/access.h"
#include "vmm/platform/pci.h"

#define PORTS 0x10000u

static bool owns(unsigned port, unsigned bytes)
{
	return port + bytes <= PORTS &&
	       rangeset_contains(&current->domain->io_ports, port, port + bytes - 1);
}

/* The address and the data of one access belong together: the hypervisor makes such accesses, too. Its bytes are other registers (0xcf9: reset). */
static bool is_pci(unsigned port, unsigned bytes)
{
	return (port == PCI_ADDRESS_PORT && bytes == 4) ||
	       (port >= PCI_DATA_PORT && port + bytes <= PCI_DATA_PORT + 4);
}

uint32_t guest_port_read(unsigned port, unsigned bytes)
{
	if (!owns(port, bytes))
		return 0xffffffffu >> (32 - 8 * bytes);
	if (is_pci(port, bytes))
		return pci_guest_port_read(port, bytes);
	return port_read(port, bytes);
}

void guest_port_write(unsigned port, unsigned bytes, uint32_t value)
{
	if (!owns(port, bytes))
		return;
	if (is_pci(port, bytes)) {
		pci_guest_port_write(port, bytes, value);
		return;
	}
	port_write(port, bytes, value);
}

/* The bitmap is in the kernel's memory, which the program's tables do not have. */
static int read_bitmap(struct vcpu *v, uint8_t *map, unsigned first, unsigned bytes)
{
	bool other = !v->kernel_mode;
	int rc;

	if (other)
		toggle_guest_mode(v);
	rc = copy_from_guest(map, GUEST_VA(v->iobmp.v + first), bytes);
	if (other)
		toggle_guest_mode(v);
	return rc;
}

bool guest_port_allowed(struct vcpu *v, unsigned port, unsigned bytes)
{
	unsigned last = port + bytes - 1;
	uint8_t map[2] = {0xff, 0xff};
	uint32_t bits = (1u << bytes) - 1;

	if (v->iopl >= (v->kernel_mode ? 1u : 3u))
		return true;
	if (last >= v->iobmp_ports)
		return false;
	if (read_bitmap(v, map, port / 8, last / 8 - port / 8 + 1))
		return false;
	return !((map[0] | (uint32_t)map[1] << 8) >> port % 8 & bits);
}
