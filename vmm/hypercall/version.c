// SPDX-License-Identifier: MIT
/*
 * xen_version: which ABI this is, and who speaks it. Tools go by version and capabilities, which are those of the ABI; the extra version and the
 * changeset name Pagurus.
 */
#include "vmm/lib/xen.h"
#include <xen/version.h>

#include "vmm/boot/boot.h"
#include "vmm/domain/domain.h"
#include "vmm/hypercall/hypercall.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"
#include "vmm/mm/access.h"
#include "vmm/mm/layout.h"

#define ABI_MAJOR 4u
#define ABI_MINOR 17u

union answer {
	xen_extraversion_t extraversion;
	struct xen_compile_info compile_info;
	xen_capabilities_info_t capabilities;
	xen_changeset_info_t changeset;
	struct xen_platform_parameters platform;
	xen_commandline_t command_line;
	xen_domain_handle_t handle;
};
_Static_assert(sizeof(xen_domain_handle_t) == sizeof(((struct domain *)0)->uuid), "one size");

/* Direct paging: a PV guest counts machine frames itself, which the interface calls direct-mapped. */
static uint32_t features(const struct domain *d)
{
	return 1u << XENFEAT_mmu_pt_update_preserve_ad | 1u << XENFEAT_pae_pgdir_above_4gb |
	       1u << XENFEAT_gnttab_map_avail_bits | 1u << XENFEAT_direct_mapped |
	       (uint32_t)d->privileged << XENFEAT_dom0;
}

static long get_features(guest_va_t arg)
{
	struct xen_feature_info info;

	if (copy_from_guest(&info, arg, sizeof(info)))
		return -EFAULT;
	if (info.submap_idx >= XENFEAT_NR_SUBMAPS)
		return -EINVAL;
	info.submap = features(current->domain);
	return copy_to_guest(arg, &info, sizeof(info));
}

/* How many bytes of the answer the caller gets, or a negative errno. */
static long answer(uint32_t command, union answer *a)
{
	const struct domain *d = current->domain;

	switch (command) {
	case XENVER_extraversion:
		format_string(a->extraversion, sizeof(a->extraversion), "-pagurus");
		return sizeof(a->extraversion);
	case XENVER_compile_info:
		/* No date and no place: the same source is the same image. */
		format_string(a->compile_info.compiler, sizeof(a->compile_info.compiler), "gcc %s",
			      __VERSION__);
		return sizeof(a->compile_info);
	case XENVER_capabilities:
		format_string(a->capabilities, sizeof(a->capabilities), "xen-3.0-x86_64");
		return sizeof(a->capabilities);
	case XENVER_changeset:
		format_string(a->changeset, sizeof(a->changeset), "pagurus " PAGURUS_VERSION);
		return sizeof(a->changeset);
	case XENVER_platform_parameters:
		a->platform.virt_start = HV_START;
		return sizeof(a->platform);
	case XENVER_guest_handle:
		memcpy(a->handle, d->uuid, sizeof(a->handle));
		return sizeof(a->handle);
	case XENVER_commandline:
		format_string(a->command_line, sizeof(a->command_line), "%s",
			      d->privileged ? boot_info.command_line : "<denied>");
		return sizeof(a->command_line);
	case XENVER_build_id:
		return d->privileged ? -ENODATA : -EPERM;
	default:
		return -ENOSYS;
	}
}

long do_xen_version(arg_t command, arg_t arg)
{
	union answer a;
	long bytes;

	switch ((uint32_t)command) {
	case XENVER_version:
		return ABI_MAJOR << 16 | ABI_MINOR;
	case XENVER_pagesize:
		return PAGE_SIZE;
	case XENVER_get_features:
		return get_features(GUEST_VA(arg));
	}
	memset(&a, 0, sizeof(a));
	bytes = answer((uint32_t)command, &a);
	return bytes < 0 ? bytes : copy_to_guest(GUEST_VA(arg), &a, (size_t)bytes);
}
