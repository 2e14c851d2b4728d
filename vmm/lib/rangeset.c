// SPDX-License-Identifier: MIT
/*
 * The ranges are sorted, disjoint and never touch each other, so a range of numbers is inside when it is inside of one of them.
 *
 * A change builds the new array beside the old one and copies it when it fits: it happens whole or not at all.
 */
#include "vmm/lib/rangeset.h"

#include "vmm/lib/errno.h"
#include "vmm/lib/string.h"

/* Room for what one removal can add; the result is checked against RANGESET_MAX. */
struct draft {
	unsigned nr;
	struct {
		uint64_t first, last;
	} range[RANGESET_MAX + 1];
};

static void put(struct draft *d, uint64_t first, uint64_t last)
{
	d->range[d->nr].first = first;
	d->range[d->nr].last = last;
	d->nr++;
}

static int commit(struct rangeset *s, const struct draft *d)
{
	if (d->nr > RANGESET_MAX)
		return -ENOSPC;
	memcpy(s->range, d->range, d->nr * sizeof(s->range[0]));
	s->nr = d->nr;
	return 0;
}

int rangeset_add(struct rangeset *s, uint64_t first, uint64_t last)
{
	struct draft d = {.nr = 0};
	unsigned i = 0;

	if (first > last)
		return -EINVAL;
	while (i < s->nr && s->range[i].last < first && s->range[i].last + 1 < first) {
		put(&d, s->range[i].first, s->range[i].last);
		i++;
	}
	/* Those that overlap it or touch it become one with it. */
	while (i < s->nr && (last == UINT64_MAX || s->range[i].first <= last + 1)) {
		first = MIN(first, s->range[i].first);
		last = MAX(last, s->range[i].last);
		i++;
	}
	put(&d, first, last);
	for (; i < s->nr; i++)
		put(&d, s->range[i].first, s->range[i].last);
	return commit(s, &d);
}

int rangeset_remove(struct rangeset *s, uint64_t first, uint64_t last)
{
	struct draft d = {.nr = 0};

	if (first > last)
		return -EINVAL;
	for (unsigned i = 0; i < s->nr; i++) {
		uint64_t a = s->range[i].first, b = s->range[i].last;

		if (b < first || a > last) {
			put(&d, a, b);
			continue;
		}
		if (a < first)
			put(&d, a, first - 1);
		if (b > last)
			put(&d, last + 1, b);
	}
	return commit(s, &d);
}

bool rangeset_contains(const struct rangeset *s, uint64_t first, uint64_t last)
{
	for (unsigned i = 0; i < s->nr; i++)
		if (s->range[i].first <= first && last <= s->range[i].last)
			return first <= last;
	return false;
}
