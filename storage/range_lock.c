// SPDX-License-Identifier: MIT
#include "storage/range_lock.h"

static bool conflict(const struct range_lock *a, const struct range_lock *b)
{
	return a->begin < b->end && b->begin < a->end && (a->exclusive || b->exclusive);
}

/* Whether one that came before k is in its way. */
static bool blocked(const struct range_locks *set, const struct range_lock *k)
{
	for (const struct range_lock *o = set->first; o != k; o = o->next)
		if (conflict(o, k))
			return true;
	return false;
}

void range_lock(struct range_locks *set, struct range_lock *k, struct loop *l, uint64_t begin,
		uint64_t end, bool exclusive)
{
	struct range_lock **at = &set->first;

	*k = (struct range_lock){.begin = begin, .end = end, .exclusive = exclusive};
	while (*at)
		at = &(*at)->next;
	*at = k;
	if (blocked(set, k)) {
		wait_begin(&k->wait, l);
		wait_for(&k->wait);
	}
	k->held = true;
}

void range_unlock(struct range_locks *set, struct range_lock *k)
{
	struct range_lock **at = &set->first;

	while (*at != k)
		at = &(*at)->next;
	*at = k->next;
	for (struct range_lock *o = k->next; o; o = o->next) {
		if (!o->held && conflict(o, k) && !blocked(set, o)) {
			o->held = true;
			wait_end(&o->wait);
		}
	}
}
