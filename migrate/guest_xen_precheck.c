// SPDX-License-Identifier: MIT
/*
 * What would keep a guest from living on this host, found out before any of its memory moves; and
 * the processor it was promised.
 */
#include "migrate/guest_xen_sink.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <libxl_utils.h>

#include "migrate/cpu_features.h"
#include "migrate/guest_xen.h"
#include "migrate/xen_disks.h"
#include "protocol-spec/disk_hold.h"

/* Leaves and MSRs of a policy: the hypervisor has some hundred at most. */
#define LEAVES_MAX 1024u
#define MSRS_MAX   256u

/* ---- names ---- */

const char *xen_sink_name_fault(const char *name)
{
	size_t length = strlen(name), mark = strlen(GUEST_XEN_INCOMING);
	const unsigned char *c;

	if (!length || length > XEN_NAME_MAX)
		return "is empty or longer than 255 bytes";
	/* What is cleaned up after a crash is found by this. */
	if (length >= mark && !strcmp(name + length - mark, GUEST_XEN_INCOMING))
		return "ends like that of a guest that is arriving";
	for (c = (const unsigned char *)name; *c; c++)
		if (*c < ' ' || *c == 0x7f || *c == '/')
			return "has control characters or slashes";
	return NULL;
}

static void check_name(struct xen_sink *s, const struct guest_description *d,
		       struct guest_refusals *r)
{
	libxl_ctx *ctx = xen_toolstack_ctx(s->tools);
	const char *name = xen_sink_name(s, d);
	char incoming[512];
	libxl_dominfo *list;
	uint32_t domid;
	int i, nr = 0;

	if (xen_sink_name_fault(name)) {
		guest_refuse(r, "the guest's name %s: restore it under another name",
			     xen_sink_name_fault(name));
		return;
	}
	snprintf(incoming, sizeof(incoming), "%s%s", name, GUEST_XEN_INCOMING);
	if (!libxl_name_to_domid(ctx, name, &domid))
		guest_refuse(r,
			     "a guest called '%s' is here already (domain %u): rename or remove it",
			     name, domid);
	if (!libxl_name_to_domid(ctx, incoming, &domid))
		guest_refuse(
			r,
			"a guest called '%s' is just arriving here (domain %u): wait for it, or remove what is left of it with `xl destroy %u`",
			name, domid, domid);
	list = libxl_list_domain(ctx, &nr);
	for (i = 0; list && i < nr; i++)
		if (!list[i].dying && !memcmp(libxl_uuid_bytearray(&list[i].uuid), d->info.uuid,
					      sizeof(d->info.uuid)))
			guest_refuse(
				r,
				"a guest with the uuid of '%s' is here already (domain %u): remove it",
				d->info.name, list[i].domid);
	if (list)
		libxl_dominfo_list_free(list, nr);
}

/* ---- memory ---- */

static void check_memory(struct xen_sink *s, const struct guest_description *d,
			 libxl_domain_config *config, struct guest_refusals *r)
{
	libxl_ctx *ctx = xen_toolstack_ctx(s->tools);
	uint64_t need = 0, there = 0, populated = d->info.populated * (XEN_PAGE_SIZE / 1024);

	if (populated / 4 > config->b_info.max_memkb / 4 + 1024)
		guest_refuse(r,
			     "'%s' has %" PRIu64 " MiB of memory, its configuration allows %" PRIu64
			     " MiB: set maxmem",
			     d->info.name, populated / 1024,
			     (uint64_t)config->b_info.max_memkb / 1024);
	if (libxl_domain_need_memory(ctx, config, INVALID_DOMID, &need) ||
	    libxl_get_free_memory(ctx, &there)) {
		guest_refuse(r, "libxl cannot tell how much memory is free here");
		return;
	}
	if (need > there)
		guest_refuse(r,
			     "'%s' needs %" PRIu64 " MiB and %" PRIu64
			     " MiB are free here: stop or shrink another guest (xl mem-set)",
			     d->info.name, need / 1024, there / 1024);
}

/* ---- devices ---- */

/*
 * Programs that libxl would run as root: only those that this host's administrator has put where
 * they belong.
 */
static bool script_is_ours(const char *script)
{
	static const char folder[] = "/etc/xen/scripts/";

	if (!script || !script[0])
		return true;
	if (!strncmp(script, folder, sizeof(folder) - 1))
		script += sizeof(folder) - 1;
	return !strchr(script, '/');
}

static void check_programs(const libxl_domain_config *config, struct guest_refusals *r)
{
	int i;

	for (i = 0; i < config->num_disks; i++)
		if (!script_is_ours(config->disks[i].script))
			guest_refuse(
				r,
				"disk %s has its script outside of /etc/xen/scripts: put it there",
				config->disks[i].vdev ? config->disks[i].vdev : "without a name");
	for (i = 0; i < config->num_nics; i++)
		if (!script_is_ours(config->nics[i].script))
			guest_refuse(
				r,
				"network device %d has its script outside of /etc/xen/scripts: put it there",
				config->nics[i].devid);
	if (!config->b_info.device_model)
		return;
	if (strcmp(config->b_info.device_model, PGR_DISK_PROGRAM) != 0)
		guest_refuse(
			r,
			"the guest brings its own device model program, which is not started for it: remove device_model_override");
	else if (access(PGR_DISK_PROGRAM, X_OK))
		guest_refuse(
			r, "the guest's disks are served by %s, which is not here: install Pagurus",
			PGR_DISK_PROGRAM);
}

static void check_disk(const libxl_device_disk *disk, const struct guest_description *d, bool ours,
		       struct guest_refusals *r)
{
	struct stat st;

	if (disk->backend_domid != 0)
		guest_refuse(
			r,
			"disk %s has its backend in domain %u, which guests cannot take along: use one of domain 0",
			disk->vdev, disk->backend_domid);
	/* An empty drive, or a script that knows what the words mean. */
	if (!disk->pdev_path || !disk->pdev_path[0] || disk->script)
		return;
	/* Of an address it is found out by the program that serves it, before memory moves. */
	if (ours && strstr(disk->pdev_path, "://"))
		return;
	/* It is made here. */
	if (guest_disk_comes(d, disk->pdev_path))
		return;
	if (stat(disk->pdev_path, &st))
		guest_refuse(
			r,
			"disk %s is %s, which does not exist here: share it with this host, or take it along (--with-disks)",
			disk->vdev, disk->pdev_path);
}

static void check_nic(const libxl_device_nic *nic, struct guest_refusals *r)
{
	char path[256];

	if (nic->backend_domid != 0)
		guest_refuse(r,
			     "network device %d has its backend in domain %u: use one of domain 0",
			     nic->devid, nic->backend_domid);
	if (!nic->bridge || !nic->bridge[0])
		return;
	if (strchr(nic->bridge, '/') || strlen(nic->bridge) > 64) {
		guest_refuse(r, "network device %d has a bridge with no valid name", nic->devid);
		return;
	}
	snprintf(path, sizeof(path), "/sys/class/net/%s", nic->bridge);
	if (access(path, F_OK))
		guest_refuse(
			r,
			"network device %d is on bridge %s, which does not exist here: make it (ip link add %s type bridge)",
			nic->devid, nic->bridge, nic->bridge);
}

static void check_devices(const struct guest_description *d, const libxl_domain_config *config,
			  struct guest_refusals *r)
{
	int i;

	for (i = 0; i < config->num_disks; i++)
		check_disk(&config->disks[i], d, xen_disks_are_ours(config), r);
	for (i = 0; i < config->num_nics; i++)
		check_nic(&config->nics[i], r);
	if (config->num_pcidevs)
		guest_refuse(
			r,
			"the guest has %d passed-through PCI devices, which cannot move: detach them (xl pci-detach)",
			config->num_pcidevs);
	if (config->num_usbdevs)
		guest_refuse(
			r,
			"the guest has %d passed-through USB devices, which cannot move: detach them (xl usbdev-detach)",
			config->num_usbdevs);
}

/* ---- processor ---- */

static int policy_of(const struct guest_description *d, struct xen_cpu_policy *p,
		     struct pgr_error *err)
{
	uint32_t i;

	*p = (struct xen_cpu_policy){.leaves = NULL};
	if (d->nr_leaves > LEAVES_MAX || d->nr_msrs > MSRS_MAX)
		return pgr_fail(err, -EPROTO, "a CPU policy of %u leaves and %u MSRs is too large",
				d->nr_leaves, d->nr_msrs);
	p->leaves = calloc(d->nr_leaves + 1, sizeof(*p->leaves));
	p->msrs = calloc(d->nr_msrs + 1, sizeof(*p->msrs));
	if (!p->leaves || !p->msrs) {
		xen_cpu_policy_free(p);
		return pgr_fail(err, -ENOMEM, "no memory for a CPU policy");
	}
	for (i = 0; i < d->nr_leaves; i++)
		p->leaves[i] = (xen_cpuid_leaf_t){
			.leaf = d->leaves[i].leaf,
			.subleaf = d->leaves[i].subleaf,
			.a = d->leaves[i].eax,
			.b = d->leaves[i].ebx,
			.c = d->leaves[i].ecx,
			.d = d->leaves[i].edx,
		};
	for (i = 0; i < d->nr_msrs; i++)
		p->msrs[i] = (xen_msr_entry_t){.idx = d->msrs[i].index, .val = d->msrs[i].value};
	p->nr_leaves = d->nr_leaves;
	p->nr_msrs = d->nr_msrs;
	return 0;
}

static int check_cpu(struct xen_sink *s, const struct guest_description *d,
		     struct guest_refusals *r, struct pgr_error *err)
{
	struct cpu_leaves guest = {.leaf = d->leaves, .nr = d->nr_leaves};
	struct xen_cpu_policy policy;
	char lacking[160];
	int rc;

	if (!d->nr_leaves)
		return 0;
	if (d->nr_leaves > LEAVES_MAX || d->nr_msrs > MSRS_MAX) {
		guest_refuse(r, "a CPU policy of %u leaves and %u MSRs is too large", d->nr_leaves,
			     d->nr_msrs);
		return 0;
	}
	rc = xen_host_cpu_policy(&s->calls, XEN_SYSCTL_cpu_policy_pv_max, &policy);
	if (rc)
		return pgr_fail_errno(err, rc,
				      "the hypervisor does not tell what its processor can do");
	if (cpu_lacking(guest, xen_policy_leaves(&policy), lacking, sizeof(lacking)))
		guest_refuse(
			r,
			"the guest was promised processor features that this host lacks: %s; choose another host, or boot the guest with them masked (cpuid=)",
			lacking);
	xen_cpu_policy_free(&policy);
	return 0;
}

int xen_sink_cpu(struct xen_sink *s, const struct guest_description *d, struct pgr_error *err)
{
	struct xen_cpu_policy p;
	uint32_t bad[3] = {0};
	int rc;

	if (!d->nr_leaves)
		return 0;
	rc = policy_of(d, &p, err);
	if (rc)
		return rc;
	rc = xen_set_cpu_policy(&s->calls, s->made.domid, &p, bad);
	if (rc)
		pgr_fail_errno(
			err, rc,
			"this host cannot give the guest the processor it was promised (leaf %#x, subleaf %#x, MSR %#x)",
			bad[0], bad[1], bad[2]);
	xen_cpu_policy_free(&p);
	return rc;
}

int xen_sink_precheck(struct xen_sink *s, const struct guest_description *d,
		      struct guest_refusals *r, struct pgr_error *err)
{
	libxl_domain_config config;
	int rc = xen_sink_parse(s, d, &config, err);

	*r = (struct guest_refusals){0};
	if (rc == -EPROTO) {
		/* The peer's fault: an answer, not a failure of this host. */
		guest_refuse(r, "%s",
			     err ? err->text : "the guest's configuration is not readable");
		rc = 0;
		goto out;
	}
	if (rc)
		goto out;
	check_name(s, d, r);
	check_devices(d, &config, r);
	if (d->nr_disks && !xen_disks_are_ours(&config))
		guest_refuse(
			r,
			"a disk that comes along has to be served by pagurus-blk, and this guest has one that is not");
	check_programs(&config, r);
	rc = check_cpu(s, d, r, err);
	/* Last: it fills in defaults. */
	if (!rc)
		check_memory(s, d, &config, r);
out:
	libxl_domain_config_dispose(&config);
	return rc;
}
