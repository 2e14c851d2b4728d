// SPDX-License-Identifier: MIT
/* What both guest implementations share: descriptions and refusals. */
#include "migrate/guest.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void guest_description_free(struct guest_description *d)
{
	if (!d)
		return;
	free(d->config);
	free(d->leaves);
	free(d->msrs);
	free(d->disks);
	*d = (struct guest_description){0};
}

bool guest_disk_comes(const struct guest_description *d, const char *path)
{
	for (unsigned i = 0; i < d->nr_disks; i++)
		if (!strcmp(d->disks[i].path, path))
			return true;
	return false;
}

void guest_refuse(struct guest_refusals *r, const char *fmt, ...)
{
	va_list ap;

	/* The first refusals are the ones to mend first; a list that is full stays as it is. */
	if (r->nr >= GUEST_REFUSALS_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(r->text[r->nr], sizeof(r->text[0]), fmt, ap);
	va_end(ap);
	/* PRECHECK sends one line each. */
	for (char *c = r->text[r->nr]; *c; c++)
		if (*c == '\n')
			*c = ' ';
	r->nr++;
}
