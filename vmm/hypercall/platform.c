// SPDX-License-Identifier: MIT
/* XENPF_*: the machine as its owner, dom0, handles it. What is not here is answered with -ENOSYS, of which Linux and xen-utils make no noise. */
#include "vmm/hypercall/hypercall.h"

#include "vmm/lib/xen.h"
#include <xen/platform.h>

#include "vmm/boot/acpi.h"
#include "vmm/boot/boot.h"
#include "vmm/cpu/policy.h"
#include "vmm/domain/vcpu_time.h"
#include "vmm/lib/bytes.h"
#include "vmm/lib/print.h"
#include "vmm/mm/access.h"
#include "vmm/mm/map.h"
#include "vmm/platform/time.h"

/* ---- clock ---- */

static int set_time(uint64_t seconds, uint32_t ns, uint64_t system_time)
{
	if (ns >= 1000000000)
		return -EINVAL;
	time_set_wallclock(seconds, ns, system_time);
	spin_lock(&domain_list_lock);
	for (struct domain *d = domain_list; d; d = d->next)
		domain_update_wallclock(d);
	spin_unlock(&domain_list_lock);
	return 0;
}

/* ---- memory types: the firmware's, which stay ---- */

#define MSR_MTRR_CAP  0xfeu
#define MSR_MTRR_BASE 0x200u
#define MSR_MTRR_MASK 0x201u
#define MTRR_VALID    0x800u
#define MTRR_TYPE     0xffu

static int read_memtype(struct xenpf_read_memtype *m)
{
	uint64_t cap, base, mask, address_bits = (1ull << cpu_features.phys_bits) - PAGE_SIZE;

	if (rdmsr_safe(MSR_MTRR_CAP, &cap) || m->reg >= (cap & 0xff) ||
	    rdmsr_safe(MSR_MTRR_BASE + 2 * m->reg, &base) ||
	    rdmsr_safe(MSR_MTRR_MASK + 2 * m->reg, &mask))
		return -EINVAL;
	m->mfn = m->nr_mfns = m->type = 0;
	mask &= address_bits | MTRR_VALID;
	if (!(mask & MTRR_VALID) || mask == MTRR_VALID)
		return 0;
	m->mfn = (base & address_bits) >> PAGE_SHIFT;
	m->nr_mfns = 1ull << ((unsigned)__builtin_ctzll(mask & address_bits) - PAGE_SHIFT);
	m->type = base & MTRR_TYPE;
	return 0;
}

/* ---- firmware ---- */

#define BDA_SHIFT_FLAGS 0x417u

/* UEFI specification 2.10, 4.3: the system table. */
enum {
	EFI_REVISION = 8,
	EFI_HEADER_BYTES = 24,
	EFI_VENDOR = 24,
	EFI_VENDOR_REVISION = 32,
	EFI_RUNTIME = 88,
	EFI_NR_TABLES = 104,
	EFI_TABLES = 112,
	EFI_SYSTEM_TABLE_BYTES = 120,
};
#define EFI_VENDOR_MAX 128u

static const uint8_t *efi_memory(uint64_t maddr, uint64_t bytes)
{
	if (!maddr || bytes > direct_bytes || maddr > direct_bytes - bytes)
		return NULL;
	return maddr_to_ptr(maddr);
}

/* The name is UTF-16 and ends with 0; it is cut to the guest's buffer. */
static int efi_vendor(union xenpf_efi_info *info, const uint8_t *table)
{
	const uint8_t *name = efi_memory(load64(table + EFI_VENDOR), EFI_VENDOR_MAX);
	uint32_t bytes = MIN(info->vendor.bufsz, EFI_VENDOR_MAX) & ~1u, n = 0;
	static const uint16_t end;
	int rc = 0;

	if (!name)
		return -ENOENT;
	info->vendor.revision = load32(table + EFI_VENDOR_REVISION);
	while (n + 2 < bytes && load16(name + n))
		n += 2;
	if (bytes)
		rc = copy_to_guest(GUEST_VA(info->vendor.name.p), name, n);
	if (bytes && !rc)
		rc = copy_to_guest(GUEST_VA((uint64_t)info->vendor.name.p + n), &end, sizeof(end));
	return rc;
}

/* What lies at an address, by UEFI's numbers (7.2): Linux does not look at tables in memory that is in use for something else now. */
static int efi_memory_info(union xenpf_efi_info *info)
{
	static const uint8_t efi_type[] = {[RANGE_RAM] = 7,
					   [RANGE_RESERVED] = 6,
					   [RANGE_ACPI] = 9,
					   [RANGE_NVS] = 10,
					   [RANGE_BAD] = 8};

	for (unsigned i = 0; i < boot_info.nr_ranges; i++) {
		const struct boot_range *r = &boot_info.range[i];

		if (info->mem.addr < r->start || info->mem.addr >= r->end)
			continue;
		info->mem.size = MIN(info->mem.size, r->end - info->mem.addr);
		info->mem.attr = 0;
		info->mem.type = efi_type[r->type];
		return 0;
	}
	return -ESRCH;
}

#define EFI_UNSUPPORTED 0x8000000000000003u
#define EFI_NOT_FOUND	0x800000000000000eu

/* The firmware's services are not called: to its guests this one has no variables, no clock and no updates. */
static int efi_call(struct xenpf_efi_runtime_call *call)
{
	if (!boot_info.efi)
		return -ENODEV;
	call->status = call->function == XEN_EFI_get_variable ||
				       call->function == XEN_EFI_get_next_variable_name
			       ? EFI_NOT_FOUND
			       : EFI_UNSUPPORTED;
	return 0;
}

static int efi_info(uint32_t index, union xenpf_efi_info *info)
{
	const uint8_t *table =
		boot_info.efi ? efi_memory(boot_info.efi_system_table, EFI_SYSTEM_TABLE_BYTES)
			      : NULL;
	const uint8_t *runtime;

	if (!table)
		return -ENODEV;
	switch (index) {
	case XEN_FW_EFI_VERSION:
		info->version = load32(table + EFI_REVISION);
		return 0;
	case XEN_FW_EFI_RT_VERSION:
		runtime = efi_memory(load64(table + EFI_RUNTIME), EFI_HEADER_BYTES);
		if (!runtime)
			return -ENOENT;
		info->version = load32(runtime + EFI_REVISION);
		return 0;
	case XEN_FW_EFI_CONFIG_TABLE:
		info->cfg.addr = load64(table + EFI_TABLES);
		info->cfg.nent = load32(table + EFI_NR_TABLES);
		return 0;
	case XEN_FW_EFI_VENDOR:
		return efi_vendor(info, table);
	case XEN_FW_EFI_MEM_INFO:
		return efi_memory_info(info);
	default:
		return -ENOSYS;
	}
}

static int firmware_info(struct xenpf_firmware_info *info)
{
	switch (info->type) {
	case XEN_FW_EFI_INFO:
		return efi_info(info->index, &info->u.efi_info);
	case XEN_FW_KBD_SHIFT_FLAGS:
		if (boot_info.efi)
			return -ESRCH;
		info->u.kbd_shift_flags = *(const uint8_t *)maddr_to_ptr(BDA_SHIFT_FLAGS);
		return 0;
	/* The BIOS is not asked about disks and screens: nobody was there in real mode. */
	default:
		return -ESRCH;
	}
}

/* ---- power ---- */

#define ACPI_S5	     5
#define SLEEP_ENABLE 0x2000u
#define OFF_US	     1000000u

/* dom0 has read the values out of the ACPI objects, which needs its interpreter. */
static int enter_sleep(const struct xenpf_enter_acpi_sleep *s)
{
	if (s->sleep_state != ACPI_S5 || s->flags || !acpi.pm1a_control)
		return -EOPNOTSUPP;
	log_info("The machine is switched off");
	for (unsigned enable = 0; enable <= SLEEP_ENABLE; enable += SLEEP_ENABLE) {
		outw(acpi.pm1a_control, (uint16_t)((s->val_a & ~SLEEP_ENABLE) | enable));
		if (acpi.pm1b_control)
			outw(acpi.pm1b_control, (uint16_t)((s->val_b & ~SLEEP_ENABLE) | enable));
	}
	udelay(OFF_US);
	log_error("The machine is still on: the firmware's values do not switch it off");
	return -EIO;
}

/* ---- processors ---- */

static int get_cpuinfo(struct xenpf_pcpuinfo *info)
{
	uint32_t cpu = info->xen_cpuid;

	info->max_present = nr_cpus - 1;
	info->flags = XEN_PCPU_FLAGS_INVALID;
	info->apic_id = info->acpi_id = 0;
	if (cpu < nr_cpus) {
		info->flags = pcpus[cpu].online ? XEN_PCPU_FLAGS_ONLINE : 0;
		info->apic_id = pcpus[cpu].apic_id;
		info->acpi_id = pcpus[cpu].acpi_id;
	}
	return 0;
}

long do_platform_op(arg_t arg)
{
	struct xen_platform_op op;
	int rc;

	if (!current->domain->privileged)
		return -EPERM;
	rc = copy_from_guest(&op, GUEST_VA(arg), sizeof(op));
	if (rc)
		return rc;
	if (op.interface_version != XENPF_INTERFACE_VERSION)
		return -EACCES;
	switch (op.cmd) {
	case XENPF_settime64:
		if (op.u.settime64.mbz)
			return -EINVAL;
		return set_time(op.u.settime64.secs, op.u.settime64.nsecs,
				op.u.settime64.system_time);
	case XENPF_enter_acpi_sleep:
		return enter_sleep(&op.u.enter_acpi_sleep);
	case XENPF_read_memtype:
		rc = read_memtype(&op.u.read_memtype);
		break;
	case XENPF_firmware_info:
		rc = firmware_info(&op.u.firmware_info);
		break;
	case XENPF_efi_runtime_call:
		rc = efi_call(&op.u.efi_runtime_call);
		break;
	case XENPF_get_cpuinfo:
		rc = get_cpuinfo(&op.u.pcpu_info);
		break;
	default:
		return -ENOSYS;
	}
	if (!rc)
		rc = copy_to_guest(GUEST_VA(arg), &op, sizeof(op));
	return rc;
}
