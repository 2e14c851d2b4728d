// SPDX-License-Identifier: MIT
/* I/O APICs (Intel 82093AA data sheet). What a redirection entry holds is kept here as well, so that masking it takes no read. */
#include "vmm/platform/irq_internal.h"

#include "vmm/boot/acpi.h"
#include "vmm/domain/domain.h"
#include "vmm/lib/errno.h"
#include "vmm/lib/lock.h"
#include "vmm/lib/print.h"
#include "vmm/mm/map.h"

#define SELECT	    0x00
#define WINDOW	    0x10
#define REG_VERSION 0x01
#define REG_ENTRIES 0x10 /* two for each pin */

#define ENTRY_LOW    0x2000u
#define ENTRY_LEVEL  0x8000u
#define ENTRY_MASKED 0x10000u
#define ISA_IRQS     16u
#define GSIS_MAX     512u
_Static_assert(GSIS_MAX < NR_IRQS, "numbers are left for MSIs");

static struct ioapic {
	volatile uint32_t *mmio;
	uint64_t address;
	unsigned gsi_base, pins;
} ioapics[ACPI_IOAPICS_MAX];
static unsigned nr_ioapics;

static struct gsi {
	struct ioapic *ioapic; /* NULL: no pin has this number */
	uint32_t low;	       /* the entry's low word */
	uint32_t apic_id;
} gsis[GSIS_MAX];
unsigned nr_gsis;

static spinlock_t lock = SPINLOCK_INIT; /* selecting and accessing a register are two steps */

static uint32_t read_locked(struct ioapic *io, uint32_t reg)
{
	io->mmio[SELECT / 4] = reg;
	return io->mmio[WINDOW / 4];
}

static void write_locked(struct ioapic *io, uint32_t reg, uint32_t value)
{
	io->mmio[SELECT / 4] = reg;
	io->mmio[WINDOW / 4] = value;
}

static uint32_t entry_register(const struct gsi *g)
{
	return REG_ENTRIES + 2 * ((unsigned)(g - gsis) - g->ioapic->gsi_base);
}

/* The high half, the destination, is not to change while the entry can fire. */
static void write_entry(struct gsi *g)
{
	uint32_t reg = entry_register(g);
	uint64_t flags = spin_lock_irq(&lock);

	write_locked(g->ioapic, reg, g->low | ENTRY_MASKED);
	write_locked(g->ioapic, reg + 1, g->apic_id << 24);
	if (!(g->low & ENTRY_MASKED))
		write_locked(g->ioapic, reg, g->low);
	spin_unlock_irq(&lock, flags);
}

static struct gsi *find_gsi(unsigned gsi)
{
	return gsi < nr_gsis && gsis[gsi].ioapic ? &gsis[gsi] : NULL;
}

void ioapic_route(unsigned gsi, uint8_t vector, uint32_t apic_id, bool masked)
{
	struct gsi *g = find_gsi(gsi);

	if (!g)
		return;
	g->low = (g->low & (ENTRY_LOW | ENTRY_LEVEL)) | vector;
	if (masked || !vector)
		g->low |= ENTRY_MASKED;
	g->apic_id = apic_id;
	write_entry(g);
}

void ioapic_mask(unsigned gsi, bool masked)
{
	struct gsi *g = find_gsi(gsi);
	uint64_t flags;

	if (!g)
		return;
	g->low = masked ? g->low | ENTRY_MASKED : g->low & ~ENTRY_MASKED;
	flags = spin_lock_irq(&lock);
	write_locked(g->ioapic, entry_register(g), g->low);
	spin_unlock_irq(&lock, flags);
}

bool gsi_is_level(unsigned gsi)
{
	return gsi < nr_gsis && gsis[gsi].low & ENTRY_LEVEL;
}

static void set_mode(struct gsi *g, bool level, bool active_low)
{
	g->low = (g->low & ~(ENTRY_LEVEL | ENTRY_LOW)) | (level ? ENTRY_LEVEL : 0) |
		 (active_low ? ENTRY_LOW : 0);
}

int gsi_setup(unsigned gsi, bool level, bool active_low)
{
	struct gsi *g = find_gsi(gsi);

	if (!g)
		return -EINVAL;
	if (level == !!(g->low & ENTRY_LEVEL) && active_low == !!(g->low & ENTRY_LOW))
		return 0;
	if (irq_bound(gsi))
		return -EEXIST;
	set_mode(g, level, active_low);
	irq_reprogram(gsi);
	return 0;
}

/* ---- the guest's view ---- */

int ioapic_guest_read(uint64_t base, uint32_t reg, uint32_t *value)
{
	for (unsigned i = 0; i < nr_ioapics; i++) {
		struct ioapic *io = &ioapics[i];
		uint64_t flags;

		if (io->address != base || reg >= REG_ENTRIES + 2 * io->pins)
			continue;
		flags = spin_lock_irq(&lock);
		*value = read_locked(io, reg);
		spin_unlock_irq(&lock, flags);
		return 0;
	}
	return -EINVAL;
}

/* ---- boot ---- */

static void add_ioapic(uint64_t address, unsigned gsi_base)
{
	struct ioapic *io = &ioapics[nr_ioapics];

	io->mmio = map_device(address, PAGE_SIZE);
	if (!io->mmio)
		return;
	io->address = address;
	io->gsi_base = gsi_base;
	io->pins = (read_locked(io, REG_VERSION) >> 16 & 0xff) + 1;
	if (io->pins > 240 || gsi_base >= GSIS_MAX || io->pins > GSIS_MAX - gsi_base) {
		log_warning("I/O APIC at %lx is ignored: it has %u pins from GSI %u on", address,
			    io->pins, gsi_base);
		return;
	}
	nr_ioapics++;
	nr_gsis = MAX(nr_gsis, gsi_base + io->pins);
	for (unsigned gsi = gsi_base; gsi < gsi_base + io->pins; gsi++) {
		struct gsi *g = &gsis[gsi];

		/* ISA's lines are edge and high, PCI's level and low, until told otherwise. */
		g->ioapic = io;
		g->low = ENTRY_MASKED | (gsi < ISA_IRQS ? 0 : ENTRY_LEVEL | ENTRY_LOW);
		write_entry(g);
	}
	log_info("I/O APIC at %lx: GSI %u to %u", address, gsi_base, gsi_base + io->pins - 1);
}

void ioapic_init(void)
{
	irq_init();
	for (unsigned i = 0; i < acpi.nr_ioapics; i++)
		add_ioapic(acpi.ioapic[i].address, acpi.ioapic[i].gsi_base);
	if (!nr_ioapics) {
		log_error("There is no I/O APIC: devices without MSI will not work");
		nr_gsis = ISA_IRQS;
	}
	for (unsigned i = 0; i < acpi.nr_overrides; i++) {
		struct gsi *g = find_gsi(acpi.override[i].gsi);

		if (!g)
			continue;
		set_mode(g, acpi.override[i].level, acpi.override[i].active_low);
		write_entry(g);
	}
}
