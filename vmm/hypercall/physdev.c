// SPDX-License-Identifier: MIT
/*
 * PHYSDEVOP_*: interrupts, I/O privilege, PCI devices. A pirq and the irq behind it have the same number, and only dom0 has devices: for others
 * everything but their own I/O privilege is refused.
 */
#include "vmm/hypercall/hypercall.h"

#include "vmm/lib/xen.h"
#include <xen/physdev.h>

#include "vmm/domain/domain.h"
#include "vmm/mm/access.h"
#include "vmm/platform/irq_internal.h"

#define IO_PORTS 65536u

union physdev_op_any {
	struct physdev_eoi eoi;
	struct physdev_irq_status_query status;
	struct physdev_set_iopl set_iopl;
	struct physdev_set_iobitmap set_iobitmap;
	struct physdev_apic apic;
	struct physdev_irq irq;
	struct physdev_map_pirq map_pirq;
	struct physdev_unmap_pirq unmap_pirq;
	struct physdev_setup_gsi setup_gsi;
	struct physdev_pci_device pci_device;
};

static long set_iobitmap(const struct physdev_set_iobitmap *op)
{
	guest_va_t bitmap = GUEST_VA(op->bitmap.p);

	if (op->nr_ports > IO_PORTS)
		return -EINVAL;
	if (!guest_range_ok(bitmap, (op->nr_ports + 7) / 8))
		return -EFAULT;
	current->iobmp = bitmap;
	current->iobmp_ports = op->nr_ports;
	return 0;
}

static long alloc_irq_vector(struct physdev_irq *op)
{
	int vector = irq_vector(op->irq);

	op->vector = (uint32_t)vector;
	return MIN(vector, 0);
}

/* ---- pirqs ---- */

static bool is_self(domid_t id)
{
	return id == DOMID_SELF || id == current->domain->id;
}

static int map_msi(const struct physdev_map_pirq *op)
{
	struct msi_request r = {
		.segment =
			op->type == MAP_PIRQ_TYPE_MSI_SEG ? (uint16_t)((uint32_t)op->bus >> 16) : 0,
		.bus = (uint8_t)op->bus,
		.devfn = (uint8_t)op->devfn,
		.entry = (uint16_t)op->entry_nr,
		.table_base = op->table_base,
	};

	if ((uint32_t)op->entry_nr > UINT16_MAX || (uint32_t)op->devfn > UINT8_MAX)
		return -EINVAL;
	return msi_map(&r);
}

static long map_pirq(struct physdev_map_pirq *op)
{
	int rc;

	if (!is_self(op->domid))
		return -EOPNOTSUPP;
	switch (op->type) {
	case MAP_PIRQ_TYPE_GSI:
		if (op->index < 0 || (unsigned)op->index >= nr_gsis ||
		    (op->pirq >= 0 && op->pirq != op->index))
			return -EINVAL;
		rc = op->index;
		break;
	case MAP_PIRQ_TYPE_MSI:
	case MAP_PIRQ_TYPE_MSI_SEG:
		rc = map_msi(op);
		break;
	default:
		/* MULTI_MSI among them: the driver asks for one instead. */
		return -EOPNOTSUPP;
	}
	op->pirq = rc;
	return MIN(rc, 0);
}

static long unmap_pirq(const struct physdev_unmap_pirq *op)
{
	if (!is_self(op->domid))
		return -EOPNOTSUPP;
	if (op->pirq < 0 || op->pirq >= NR_IRQS)
		return -EINVAL;
	if ((unsigned)op->pirq >= nr_gsis)
		return msi_unmap((unsigned)op->pirq);
	irq_guest_unbind(current->domain, (unsigned)op->pirq);
	return 0;
}

static long setup_gsi(const struct physdev_setup_gsi *op)
{
	if (op->gsi < 0 || op->triggering > 1 || op->polarity > 1)
		return -EINVAL;
	return gsi_setup((unsigned)op->gsi, op->triggering, op->polarity);
}

/* ---- the hypercall ---- */

enum { ANYBODY = 1, ANSWERS = 2 }; /* others than dom0 may; the structure is written back */

/* Those that take a structure. */
static const struct {
	uint8_t bytes, flags;
} known[] = {
	[PHYSDEVOP_set_iopl] = {sizeof(struct physdev_set_iopl), ANYBODY},
	[PHYSDEVOP_set_iobitmap] = {sizeof(struct physdev_set_iobitmap), ANYBODY},
	[PHYSDEVOP_eoi] = {sizeof(struct physdev_eoi), ANYBODY},
	[PHYSDEVOP_irq_status_query] = {sizeof(struct physdev_irq_status_query), ANYBODY | ANSWERS},
	[PHYSDEVOP_apic_read] = {sizeof(struct physdev_apic), ANSWERS},
	[PHYSDEVOP_alloc_irq_vector] = {sizeof(struct physdev_irq), ANSWERS},
	[PHYSDEVOP_map_pirq] = {sizeof(struct physdev_map_pirq), ANSWERS},
	[PHYSDEVOP_unmap_pirq] = {sizeof(struct physdev_unmap_pirq), 0},
	[PHYSDEVOP_setup_gsi] = {sizeof(struct physdev_setup_gsi), 0},
	[PHYSDEVOP_restore_msi_ext] = {sizeof(struct physdev_pci_device), 0},
};

static long perform(uint64_t command, union physdev_op_any *op)
{
	switch (command) {
	case PHYSDEVOP_set_iopl:
		if (op->set_iopl.iopl > 3)
			return -EINVAL;
		current->iopl = op->set_iopl.iopl;
		return 0;
	case PHYSDEVOP_set_iobitmap:
		return set_iobitmap(&op->set_iobitmap);
	case PHYSDEVOP_eoi:
		if (op->eoi.irq >= NR_IRQS)
			return -EINVAL;
		irq_guest_eoi(current->domain, op->eoi.irq);
		return 0;
	case PHYSDEVOP_irq_status_query:
		if (op->status.irq >= NR_IRQS)
			return -EINVAL;
		op->status.flags = irq_needs_eoi(op->status.irq) ? XENIRQSTAT_needs_eoi : 0;
		return 0;
	case PHYSDEVOP_apic_read:
		return ioapic_guest_read(op->apic.apic_physbase, op->apic.reg, &op->apic.value);
	case PHYSDEVOP_alloc_irq_vector:
		return alloc_irq_vector(&op->irq);
	case PHYSDEVOP_map_pirq:
		return map_pirq(&op->map_pirq);
	case PHYSDEVOP_unmap_pirq:
		return unmap_pirq(&op->unmap_pirq);
	case PHYSDEVOP_setup_gsi:
		return setup_gsi(&op->setup_gsi);
	default:
		return msi_restore(op->pci_device.seg, op->pci_device.bus, op->pci_device.devfn);
	}
}

long do_physdev_op(arg_t command, arg_t arg)
{
	uint64_t i = command < ARRAY_SIZE(known) ? array_nospec(command, ARRAY_SIZE(known)) : 0;
	uint8_t bytes = known[i].bytes, flags = known[i].flags;
	union physdev_op_any op;
	long rc;

	if (!(flags & ANYBODY) && !current->domain->privileged)
		return -EPERM;
	switch (command) {
	/* Which devices there are is looked up when one is used. */
	case PHYSDEVOP_pci_device_add:
	case PHYSDEVOP_pci_device_remove:
	case PHYSDEVOP_pci_mmcfg_reserved:
	case PHYSDEVOP_prepare_msix:
	case PHYSDEVOP_release_msix:
		return 0;
	}
	if (!bytes)
		return -ENOSYS;
	if (copy_from_guest(&op, GUEST_VA(arg), bytes))
		return -EFAULT;
	rc = perform(command, &op);
	return !rc && flags & ANSWERS ? copy_to_guest(GUEST_VA(arg), &op, bytes) : rc;
}
