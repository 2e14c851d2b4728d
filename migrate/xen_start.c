/* SPDX-License-Identifier: MIT */
#include "migrate/xen_start.h"

#include <libxl_utils.h>
#include <stddef.h>

#include "migrate/xen_console_log.h"
#include "migrate/xen_disks.h"

int xen_start(libxl_ctx *ctx, uint32_t domid, const char *incoming, const char *name, bool run,
	      const char **step)
{
	int rc;

	*step = "rename";
	if (incoming) {
		rc = libxl_domain_rename(ctx, domid, incoming, name);
		if (rc)
			return rc;
		/* Before it runs: its first words belong into the log that has its name. */
		xen_console_log_reopen();
	}
	/* The last moment at which nothing of the disk was used here. */
	xen_disks_use(domid);
	*step = "unpause";
	rc = run ? libxl_domain_unpause(ctx, domid, NULL) : 0;
	if (!incoming)
		return rc;
	if (rc)
		libxl_domain_rename(ctx, domid, name, incoming);
	else
		xen_console_log_leave(incoming);
	return rc;
}
