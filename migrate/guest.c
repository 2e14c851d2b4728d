// SPDX-License-Identifier: MIT
/* What both guest implementations share: descriptions and refusals. */
#include "migrate/guest.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void guest_description_free(struct guest_description *d)
{
	if (!d)
		return;
	free(d->config);
	free(d->leaves);
	free(d->msrs);
	*d = (struct guest_description){0};
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
