// SPDX-License-Identifier: MIT
#include "storage/block_nbd_keep.h"

#include <stdlib.h>

void nbd_keep_init(struct nbd_keep *k)
{
	*k = (struct nbd_keep){.first = NULL};
	k->end = &k->first;
}

static size_t size_of(const struct nbd_kept *e)
{
	return sizeof(*e) + (e->kind == NBD_KEPT_WRITE ? e->length : 0);
}

struct nbd_kept *nbd_kept_new(enum nbd_kept_kind kind, uint64_t offset, uint64_t length,
			      struct block_data from)
{
	const struct nbd_kept like = {.kind = kind, .offset = offset, .length = length};
	struct nbd_kept *e = malloc(size_of(&like));

	if (!e)
		return NULL;
	*e = like;
	if (kind == NBD_KEPT_WRITE)
		block_data_copy_out(from, e->data, length);
	return e;
}

void nbd_keep_add(struct nbd_keep *k, struct nbd_kept *e)
{
	e->number = ++k->number;
	k->bytes += size_of(e);
	*k->end = e;
	k->end = &e->next;
}

void nbd_keep_drop(struct nbd_keep *k, uint64_t number)
{
	while (k->first && k->first->number <= number) {
		struct nbd_kept *e = k->first;

		k->first = e->next;
		if (!k->first)
			k->end = &k->first;
		k->bytes -= size_of(e);
		free(e);
	}
}
