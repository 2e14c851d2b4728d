// SPDX-License-Identifier: MIT
#include "storage/snapshots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int snapshots_add(struct snapshots *s, struct snapshot one, struct pgr_error *err)
{
	struct snapshot *more = NULL;
	int ret = 0;

	if (s->nr == SNAPSHOTS_MAX)
		ret = pgr_fail(err, -EFBIG, "the disk has more than %u snapshots", SNAPSHOTS_MAX);
	else if (one.name && one.path)
		more = realloc(s->list, (s->nr + 1) * sizeof(*more));
	if (!more) {
		free(one.name);
		free(one.path);
		return ret ? ret : pgr_fail(err, -ENOMEM, "no memory for the list of snapshots");
	}
	s->list = more;
	s->list[s->nr++] = one;
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct snapshot *)a)->name, ((const struct snapshot *)b)->name);
}

void snapshots_sort(struct snapshots *s)
{
	if (s->nr)
		qsort(s->list, s->nr, sizeof(*s->list), by_name);
}

void snapshots_free(struct snapshots *s)
{
	for (unsigned i = 0; i < s->nr; i++) {
		free(s->list[i].name);
		free(s->list[i].path);
	}
	free(s->list);
	*s = (struct snapshots){.list = NULL};
}
