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

/* The argument's structure into *op. */
#define fetch(op, arg) copy_from_guest(op, GUEST_VA(arg), sizeof(*(op)))
#define store(op, arg) copy_to_guest(GUEST_VA(arg), op, sizeof(*(op)))

static long eoi(arg_t arg)
{
	struct physdev_eoi op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (op.irq >= NR_IRQS)
		return -EINVAL;
	irq_guest_eoi(current->domain, op.irq);
	return 0;
}

static long irq_status_query(arg_t arg)
{
	struct physdev_irq_status_query op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (op.irq >= NR_IRQS)
		return -EINVAL;
	op.flags = irq_needs_eoi(op.irq) ? XENIRQSTAT_needs_eoi : 0;
	return store(&op, arg);
}

static long set_iopl(arg_t arg)
{
	struct physdev_set_iopl op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (op.iopl > 3)
		return -EINVAL;
	current->iopl = op.iopl;
	return 0;
}

static long set_iobitmap(arg_t arg)
{
	struct physdev_set_iobitmap op;
	guest_va_t bitmap;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	bitmap = GUEST_VA(op.bitmap.p);
	if (op.nr_ports > IO_PORTS)
		return -EINVAL;
	if (!guest_range_ok(bitmap, (op.nr_ports + 7) / 8))
		return -EFAULT;
	current->iobmp = bitmap;
	current->iobmp_ports = op.nr_ports;
	return 0;
}

static long apic_access(arg_t arg, bool write)
{
	struct physdev_apic op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (write)
		return ioapic_guest_write(op.apic_physbase, op.reg, op.value);
	rc = ioapic_guest_read(op.apic_physbase, op.reg, &op.value);
	return rc ? rc : store(&op, arg);
}

static long alloc_irq_vector(arg_t arg)
{
	struct physdev_irq op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	rc = irq_vector(op.irq);
	if (rc < 0)
		return rc;
	op.vector = (uint32_t)rc;
	return store(&op, arg);
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
		.count = 1,
	};

	if ((uint32_t)op->entry_nr > UINT16_MAX || (uint32_t)op->devfn > UINT8_MAX)
		return -EINVAL;
	return msi_map(&r);
}

static long map_pirq(arg_t arg)
{
	struct physdev_map_pirq op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (!is_self(op.domid))
		return -EOPNOTSUPP;
	switch (op.type) {
	case MAP_PIRQ_TYPE_GSI:
		if (op.index < 0 || (unsigned)op.index >= nr_gsis ||
		    (op.pirq >= 0 && op.pirq != op.index))
			return -EINVAL;
		rc = op.index;
		break;
	case MAP_PIRQ_TYPE_MSI:
	case MAP_PIRQ_TYPE_MSI_SEG:
		rc = map_msi(&op);
		break;
	default:
		/* MULTI_MSI among them: the driver asks for one instead. */
		rc = -EOPNOTSUPP;
		break;
	}
	if (rc < 0)
		return rc;
	op.pirq = rc;
	return store(&op, arg);
}

static long unmap_pirq(arg_t arg)
{
	struct physdev_unmap_pirq op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (!is_self(op.domid))
		return -EOPNOTSUPP;
	if (op.pirq < 0 || op.pirq >= NR_IRQS)
		return -EINVAL;
	if ((unsigned)op.pirq >= nr_gsis)
		return msi_unmap((unsigned)op.pirq);
	irq_guest_unbind(current->domain, (unsigned)op.pirq);
	return 0;
}

static long setup_gsi(arg_t arg)
{
	struct physdev_setup_gsi op;
	int rc = fetch(&op, arg);

	if (rc)
		return rc;
	if (op.gsi < 0 || op.triggering > 1 || op.polarity > 1)
		return -EINVAL;
	return gsi_setup((unsigned)op.gsi, op.triggering, op.polarity);
}

static long restore_msi(arg_t arg)
{
	struct physdev_restore_msi op;
	int rc = fetch(&op, arg);

	return rc ? rc : msi_restore(0, op.bus, op.devfn);
}

static long restore_msi_ext(arg_t arg)
{
	struct physdev_pci_device op;
	int rc = fetch(&op, arg);

	return rc ? rc : msi_restore(op.seg, op.bus, op.devfn);
}

long do_physdev_op(arg_t command, arg_t arg)
{
	switch (command) {
	case PHYSDEVOP_set_iopl:
		return set_iopl(arg);
	case PHYSDEVOP_set_iobitmap:
		return set_iobitmap(arg);
	case PHYSDEVOP_eoi:
		return eoi(arg);
	case PHYSDEVOP_irq_status_query:
		return irq_status_query(arg);
	/* Linux asks by irq_status_query instead. */
	case PHYSDEVOP_pirq_eoi_gmfn_v1:
	case PHYSDEVOP_pirq_eoi_gmfn_v2:
		return -ENOSYS;
	default:
		break;
	}
	if (!current->domain->privileged)
		return -EPERM;
	switch (command) {
	case PHYSDEVOP_apic_read:
		return apic_access(arg, false);
	case PHYSDEVOP_apic_write:
		return apic_access(arg, true);
	case PHYSDEVOP_alloc_irq_vector:
		return alloc_irq_vector(arg);
	case PHYSDEVOP_map_pirq:
		return map_pirq(arg);
	case PHYSDEVOP_unmap_pirq:
		return unmap_pirq(arg);
	case PHYSDEVOP_setup_gsi:
		return setup_gsi(arg);
	case PHYSDEVOP_restore_msi:
		return restore_msi(arg);
	case PHYSDEVOP_restore_msi_ext:
		return restore_msi_ext(arg);
	/* Vectors stay with their GSIs; which devices there are is looked up when one is used. */
	case PHYSDEVOP_free_irq_vector:
	case PHYSDEVOP_manage_pci_add:
	case PHYSDEVOP_manage_pci_add_ext:
	case PHYSDEVOP_manage_pci_remove:
	case PHYSDEVOP_pci_device_add:
	case PHYSDEVOP_pci_device_remove:
	case PHYSDEVOP_pci_mmcfg_reserved:
	case PHYSDEVOP_prepare_msix:
	case PHYSDEVOP_release_msix:
		return 0;
	default:
		return -ENOSYS;
	}
}
