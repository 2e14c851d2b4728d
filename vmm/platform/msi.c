// SPDX-License-Identifier: MIT
/*
 * MSI and MSI-X (PCI Local Bus specification 3.0, 6.8). We choose address and data and write them, and mask what can be masked while nobody has
 * it bound; dom0 enables the capability itself.
 *
 * dom0 is trusted with its devices' configuration space and memory: it could write another message there, as it could aim a device's DMA anywhere.
 */
#include "vmm/platform/irq_internal.h"

#include "vmm/boot/boot.h"
#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/lock.h"
#include "vmm/mm/map.h"
#include "vmm/platform/pci.h"

#define MSI_MAX		   192 /* more than there are vectors */
#define MSIX_PAGES	   64  /* of tables that are mapped */
#define MSI_ADDRESS	   0xfee00000u
#define CONTROL		   2
#define CONTROL_QUEUE	   0x0070u /* MSI: how many vectors */
#define CONTROL_64BIT	   0x0080u
#define CONTROL_MASKABLE   0x0100u
#define MSIX_SIZE	   0x07ffu
#define MSIX_TABLE	   4
#define MSIX_ENTRY	   16
#define MSIX_ENTRY_MASKED  1u
#define HEADER_TYPE	   0x0e
#define HEADER_TYPE_BRIDGE 1
#define BAR_IO		   1u
#define BAR_TYPE	   6u
#define BAR_64BIT	   4u

enum { ENTRY_ADDRESS, ENTRY_ADDRESS_HIGH, ENTRY_DATA, ENTRY_CONTROL };

static struct msi {
	bool used;
	struct pci_device dev;
	uint8_t cap;
	uint16_t entry;
	uint16_t control;
	volatile uint32_t *table; /* the MSI-X entry; NULL: MSI */
} msis[MSI_MAX];

/* Held while slots are given out and tables mapped; not by what the irq's lock protects, which is the programming. */
static spinlock_t lock = SPINLOCK_INIT;

static struct {
	uint64_t maddr;
	char *at;
} table_pages[MSIX_PAGES];

static struct msi *find_msi(unsigned irq)
{
	return irq >= nr_gsis && irq - nr_gsis < MSI_MAX ? &msis[irq - nr_gsis] : NULL;
}

bool msi_exists(unsigned irq)
{
	struct msi *m = find_msi(irq);

	return m && READ_ONCE(m->used);
}

/* ---- programming; the irq's lock is held ---- */

static uint8_t data_offset(const struct msi *m)
{
	return m->cap + (m->control & CONTROL_64BIT ? 12 : 8);
}

void msi_mask(unsigned irq, bool masked)
{
	struct msi *m = find_msi(irq);

	if (!m || !m->used)
		return;
	if (m->table)
		m->table[ENTRY_CONTROL] = masked ? MSIX_ENTRY_MASKED : 0;
	else if (m->control & CONTROL_MASKABLE)
		pci_write(m->dev, data_offset(m) + 4, 4, masked);
}

void msi_route(unsigned irq, uint8_t vector, uint32_t apic_id, bool masked)
{
	struct msi *m = find_msi(irq);
	uint32_t address = MSI_ADDRESS | apic_id << 12;

	if (!m || !m->used)
		return;
	msi_mask(irq, true);
	if (m->table) {
		m->table[ENTRY_ADDRESS] = address;
		m->table[ENTRY_ADDRESS_HIGH] = 0;
		m->table[ENTRY_DATA] = vector;
	} else {
		pci_write(m->dev, m->cap + CONTROL, 2,
			  pci_read(m->dev, m->cap + CONTROL, 2) & ~CONTROL_QUEUE);
		pci_write(m->dev, m->cap + 4, 4, address);
		if (m->control & CONTROL_64BIT)
			pci_write(m->dev, m->cap + 8, 4, 0);
		pci_write(m->dev, data_offset(m), 2, vector);
	}
	msi_mask(irq, masked || !vector);
}

/* ---- finding the MSI-X table ---- */

/* The memory that the BAR decodes, 0: none. */
static uint64_t bar_address(struct pci_device dev, unsigned n)
{
	unsigned bars = (pci_read(dev, HEADER_TYPE, 1) & 0x7f) == HEADER_TYPE_BRIDGE ? 2 : 6;
	uint8_t at = (uint8_t)(PCI_BAR0 + 4 * n);
	uint64_t bar;

	if (n >= bars)
		return 0;
	bar = pci_read(dev, at, 4);
	if (bar & BAR_IO)
		return 0;
	if ((bar & BAR_TYPE) == BAR_64BIT && n + 1 < bars)
		bar |= (uint64_t)pci_read(dev, at + 4, 4) << 32;
	return bar & ~0xfull;
}

static bool overlaps_ram(uint64_t start, uint64_t bytes)
{
	for (unsigned i = 0; i < boot_info.nr_ranges; i++) {
		const struct boot_range *r = &boot_info.range[i];

		if (r->type == RANGE_RAM && start < r->end && start + bytes > r->start)
			return true;
	}
	return false;
}

/* Tables stay mapped: there is one for each device, whoever's driver comes and goes. */
static volatile uint32_t *map_entry(uint64_t maddr)
{
	uint64_t page = maddr & PAGE_MASK;

	for (unsigned i = 0; i < MSIX_PAGES; i++) {
		if (!table_pages[i].at) {
			table_pages[i].at = map_device(page, PAGE_SIZE);
			table_pages[i].maddr = page;
		}
		if (!table_pages[i].at)
			return NULL;
		if (table_pages[i].maddr == page)
			return (volatile uint32_t *)(table_pages[i].at + (maddr - page));
	}
	return NULL;
}

/* Fills in table. fallback: dom0's word for where it is, for virtual functions, whose BARs are elsewhere. */
static int find_table(struct msi *m, uint64_t fallback)
{
	uint32_t where = pci_read(m->dev, m->cap + MSIX_TABLE, 4);
	uint64_t base = bar_address(m->dev, where & 7);

	if (m->entry > (m->control & MSIX_SIZE))
		return -EINVAL;
	if (!base)
		base = fallback & ~0xfull;
	else if (!(pci_read(m->dev, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY))
		return -ENXIO;
	if (base >> 52)
		return -EINVAL;
	base += (where & ~7u) + (uint64_t)m->entry * MSIX_ENTRY;
	if (overlaps_ram(base, MSIX_ENTRY))
		return -EINVAL;
	m->table = map_entry(base);
	return m->table ? 0 : -ENOMEM;
}

/* ---- giving out ---- */

static bool same(const struct msi *a, const struct msi *b)
{
	return a->used && a->dev.bus == b->dev.bus && a->dev.devfn == b->dev.devfn &&
	       a->cap == b->cap && a->entry == b->entry;
}

/* A free slot, or the one that the message has already (a driver that was killed does not unmap). */
static int find_slot(const struct msi *new)
{
	int found = -ENOSPC;

	for (unsigned i = 0; i < MSI_MAX; i++) {
		if (same(&msis[i], new))
			return (int)i;
		if (found < 0 && !msis[i].used)
			found = (int)i;
	}
	return found;
}

static int map_locked(const struct msi_request *r)
{
	struct msi new = {.used = true, .dev = {.bus = r->bus, .devfn = r->devfn}};
	int slot, vector;
	unsigned irq;

	new.cap = pci_find_capability(new.dev, r->table_base ? PCI_CAP_MSIX : PCI_CAP_MSI);
	if (!new.cap)
		return -ENODEV;
	new.control = (uint16_t)pci_read(new.dev, new.cap + CONTROL, 2);
	if (r->table_base) {
		int rc;

		new.entry = r->entry;
		rc = find_table(&new, r->table_base);
		if (rc)
			return rc;
	}
	slot = find_slot(&new);
	if (slot < 0)
		return slot;
	irq = nr_gsis + (unsigned)slot;
	if (irq >= NR_IRQS)
		return -ENOSPC;
	if (irq_bound(irq))
		return -EBUSY;
	msis[slot] = new;
	vector = irq_vector(irq);
	if (vector < 0) {
		msis[slot].used = false;
		return vector;
	}
	irq_reprogram(irq);
	return (int)irq;
}

int msi_map(const struct msi_request *r)
{
	int rc;

	/* Segments besides the first are reached by memory only (MCFG), which few machines need. */
	if (r->segment)
		return -EOPNOTSUPP;
	spin_lock(&lock);
	rc = map_locked(r);
	spin_unlock(&lock);
	return rc;
}

int msi_unmap(unsigned irq)
{
	struct msi *m = find_msi(irq);
	int rc = -EINVAL;

	if (!m)
		return rc;
	spin_lock(&lock);
	if (m->used) {
		irq_forget(irq);
		WRITE_ONCE(m->used, false);
		rc = 0;
	}
	spin_unlock(&lock);
	return rc;
}

int msi_restore(uint16_t segment, uint8_t bus, uint8_t devfn)
{
	if (segment)
		return -EOPNOTSUPP;
	spin_lock(&lock);
	for (unsigned i = 0; i < MSI_MAX; i++)
		if (msis[i].used && msis[i].dev.bus == bus && msis[i].dev.devfn == devfn)
			irq_reprogram(nr_gsis + i);
	spin_unlock(&lock);
	return 0;
}
