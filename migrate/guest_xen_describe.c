// SPDX-License-Identifier: MIT
/* What the opening of a stream says about a domain. */
#include "migrate/guest_xen_source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libxl_utils.h>

#include "migrate/xen_toolstack.h"

static int describe_name(struct xen_source *s, struct guest_info *info, struct pgr_error *err)
{
	char *name = libxl_domid_to_name(xen_toolstack_ctx(s->tools), s->domid);
	int rc = 0;

	if (!name || !name[0] || strlen(name) >= sizeof(info->name))
		rc = pgr_fail(err, -EINVAL, "domain %u has no name of 1 to %zu bytes in Xenstore",
			      s->domid, sizeof(info->name) - 1);
	else
		snprintf(info->name, sizeof(info->name), "%s", name);
	free(name);
	return rc;
}

static int describe_config(struct xen_source *s, struct guest_description *d, struct pgr_error *err)
{
	libxl_ctx *ctx = xen_toolstack_ctx(s->tools);
	libxl_domain_config config;
	int rc;

	xen_toolstack_begin(s->tools);
	libxl_domain_config_init(&config);
	rc = libxl_retrieve_domain_configuration(ctx, s->domid, &config, NULL);
	if (rc) {
		rc = xen_toolstack_failed(
			s->tools, rc, err,
			"the configuration of domain %u cannot be read (was it made by libxl?)",
			s->domid);
		goto out;
	}
	d->config = libxl_domain_config_to_json(ctx, &config);
	d->config_format = PGR_CONFIG_LIBXL_JSON;
	if (!d->config)
		rc = pgr_fail(err, -EIO, "the configuration of domain %u cannot be put into words",
			      s->domid);
out:
	libxl_domain_config_dispose(&config);
	return rc;
}

static int describe_cpu(struct xen_source *s, struct guest_description *d, struct pgr_error *err)
{
	struct xen_cpu_policy p;
	uint32_t i;
	int rc = xen_domain_cpu_policy(&s->calls, s->domid, &p);

	if (rc)
		return pgr_fail_errno(err, rc, "the CPU policy of domain %u cannot be read",
				      s->domid);
	d->leaves = calloc(p.nr_leaves + 1, sizeof(*d->leaves));
	d->msrs = calloc(p.nr_msrs + 1, sizeof(*d->msrs));
	if (!d->leaves || !d->msrs) {
		rc = pgr_fail(err, -ENOMEM, "no memory for the CPU policy");
		goto out;
	}
	for (i = 0; i < p.nr_leaves; i++)
		d->leaves[i] = (struct pgr_cpu_leaf){
			.leaf = p.leaves[i].leaf,
			.subleaf = p.leaves[i].subleaf,
			.eax = p.leaves[i].a,
			.ebx = p.leaves[i].b,
			.ecx = p.leaves[i].c,
			.edx = p.leaves[i].d,
		};
	for (i = 0; i < p.nr_msrs; i++)
		d->msrs[i] = (struct pgr_msr){.index = p.msrs[i].idx, .value = p.msrs[i].val};
	d->nr_leaves = p.nr_leaves;
	d->nr_msrs = p.nr_msrs;
out:
	xen_cpu_policy_free(&p);
	return rc;
}

/* Asks, and does not try: switching the log on and off again would cost the guest. */
static void describe_log(struct xen_source *s, struct guest_info *info)
{
	struct xen_sysctl op = {.cmd = XEN_SYSCTL_physinfo};

	if (!xen_sysctl(&s->calls, &op) &&
	    (op.u.physinfo.capabilities & XEN_SYSCTL_PHYSCAP_shadow)) {
		info->can_log_dirty = true;
		return;
	}
	snprintf(
		info->why_not, sizeof(info->why_not),
		"this hypervisor was built without shadow paging (as Debian builds Xen) and cannot tell which pages a paravirtual guest writes");
}

int xen_source_describe(struct xen_source *s, struct guest_description *d, struct pgr_error *err)
{
	struct xen_domctl_getdomaininfo info;
	int rc = xen_domain_info(&s->calls, s->domid, &info);

	*d = (struct guest_description){.config = NULL};
	if (rc)
		return pgr_fail_errno(err, rc, "domain %u cannot be looked at", s->domid);
	d->info.kind = PGR_GUEST_PV64;
	memcpy(d->info.uuid, info.handle, sizeof(d->info.uuid));
	d->info.nr_pfns = s->frames.nr_pfns;
	d->info.populated = s->frames.populated;
	d->info.vcpus = info.max_vcpu_id + 1;
	if (d->info.vcpus == 0 || d->info.vcpus > PGR_VCPUS_MAX)
		rc = pgr_fail(err, -EINVAL, "domain %u has %u vCPUs; 1 to %u can be moved",
			      s->domid, d->info.vcpus, PGR_VCPUS_MAX);
	if (!rc)
		rc = describe_name(s, &d->info, err);
	if (!rc)
		rc = describe_config(s, d, err);
	if (!rc)
		rc = describe_cpu(s, d, err);
	if (!rc)
		describe_log(s, &d->info);
	else
		guest_description_free(d);
	return rc;
}
