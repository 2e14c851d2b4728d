/* SPDX-License-Identifier: MIT */
/* A doubly linked ring with a head in it. */
#pragma once

#include "vmm/lib/types.h"

struct list {
	struct list *next, *prev;
};

static inline void list_init(struct list *l)
{
	l->next = l->prev = l;
}

static inline bool list_empty(const struct list *l)
{
	return l->next == l;
}

static inline void list_add_tail(struct list *head, struct list *item)
{
	item->prev = head->prev;
	item->next = head;
	head->prev->next = item;
	head->prev = item;
}

/* The item becomes a ring of its own, so that removing twice does no harm. */
static inline void list_del(struct list *item)
{
	item->prev->next = item->next;
	item->next->prev = item->prev;
	list_init(item);
}

#define list_entry(p, type, member) container_of(p, type, member)
#define list_for_each(p, head)	    for (struct list *p = (head)->next; (p) != (head); (p) = (p)->next)
