// SPDX-License-Identifier: MIT
/* Metadata contexts: what a client can ask of an export beside its data, and the answers. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "storage/nbd_internal.h"

static const char *const context_names[NBD_CONTEXTS] = {
	[NBD_ALLOCATION] = "base:allocation",
	[NBD_DIRTY] = "pagurus:dirty",
};

static const char *name_of(const struct nbd_exported *e, enum nbd_context k)
{
	return k == NBD_DIRTY && e->e.dirty_name ? e->e.dirty_name : context_names[k];
}

static bool has_context(const struct nbd_exported *e, enum nbd_context k)
{
	return k != NBD_DIRTY || e->e.dirty;
}

/* Whether a query means this context: its name, or when listing also a part of it up to a colon. */
static bool is_meant(const char *name, const uint8_t *query, size_t length, bool list)
{
	if (length > strlen(name) || memcmp(name, query, length) != 0)
		return false;
	return length == strlen(name) || (list && length && name[length - 1] == ':');
}

struct cursor {
	const uint8_t *at;
	size_t left;
};

static bool get32(struct cursor *k, uint32_t *out)
{
	if (k->left < sizeof(*out))
		return false;
	memcpy(out, k->at, sizeof(*out));
	*out = be32toh(*out);
	k->at += sizeof(*out);
	k->left -= sizeof(*out);
	return true;
}

/* A length and so many bytes. */
static bool get_text(struct cursor *k, const uint8_t **text, uint32_t *length)
{
	if (!get32(k, length) || *length > k->left)
		return false;
	*text = k->at;
	k->at += *length;
	k->left -= *length;
	return true;
}

/* The contexts of e that the queries mean; false: they are not as long as they say. */
static bool find(struct cursor k, uint32_t nr, const struct nbd_exported *e, bool list,
		 bool found[NBD_CONTEXTS])
{
	for (unsigned i = 0; i < NBD_CONTEXTS; i++)
		found[i] = list && !nr && has_context(e, i);
	for (; nr; nr--) {
		const uint8_t *query;
		uint32_t length;

		if (!get_text(&k, &query, &length))
			return false;
		for (unsigned i = 0; i < NBD_CONTEXTS; i++)
			if (has_context(e, i) && is_meant(name_of(e, i), query, length, list))
				found[i] = true;
	}
	return !k.left;
}

int nbd_contexts(struct nbd_connection *c, uint32_t option, const uint8_t *data, size_t length)
{
	struct cursor k = {.at = data, .left = length};
	bool list = option == NBD_OPT_LIST_META_CONTEXT, found[NBD_CONTEXTS];
	const struct nbd_exported *e;
	const uint8_t *name;
	uint32_t name_length, nr;
	int ret = 0;

	if (!list)
		memset(c->context, 0, sizeof(c->context));
	if (!c->structured)
		return nbd_option_refuse(c, option, NBD_REP_ERR_INVALID,
					 "contexts need structured replies first");
	if (!get_text(&k, &name, &name_length) || !get32(&k, &nr))
		return nbd_option_refuse(c, option, NBD_REP_ERR_INVALID,
					 "the name is longer than the option");
	e = nbd_find_export(c->server, (const char *)name, name_length);
	if (!e)
		return nbd_option_refuse(c, option, NBD_REP_ERR_UNKNOWN,
					 "there is no export of this name");
	if (!find(k, nr, e, list, found))
		return nbd_option_refuse(c, option, NBD_REP_ERR_INVALID,
					 "the queries are not as long as the option");
	for (unsigned i = 0; i < NBD_CONTEXTS && !ret; i++) {
		const uint32_t id = htobe32(list ? 0 : i + 1);

		if (found[i])
			ret = nbd_option_reply(c, option, NBD_REP_META_CONTEXT, &id, sizeof(id),
					       name_of(e, i), strlen(name_of(e, i)));
	}
	if (!list) {
		memcpy(c->context, found, sizeof(found));
		c->context_export = e;
	}
	return ret ? ret : nbd_option_reply(c, option, NBD_REP_ACK, NULL, 0, NULL, 0);
}

/* ---- the answer to NBD_CMD_BLOCK_STATUS ---- */

/* A chunk that is being written; neighbours that say the same become one. */
struct list {
	struct nbd_extent *e;
	unsigned nr, most;
	uint64_t left; /* bytes of the request that nothing was said of yet */
};

/* False: there is no room for more. */
static bool add(struct list *l, uint64_t length, uint32_t flags)
{
	if (length > l->left)
		length = l->left;
	if (l->nr && be32toh(l->e[l->nr - 1].flags) == flags) {
		struct nbd_extent *last = &l->e[l->nr - 1];

		last->length = htobe32(be32toh(last->length) + (uint32_t)length);
	} else if (l->nr == l->most) {
		return false;
	} else {
		l->e[l->nr++] = (struct nbd_extent){.length = htobe32((uint32_t)length),
						    .flags = htobe32(flags)};
	}
	l->left -= length;
	return l->left > 0;
}

static uint32_t allocation_flags(uint32_t flags)
{
	return (flags & BLOCK_EXTENT_DATA ? 0 : NBD_STATE_HOLE) |
	       (flags & BLOCK_EXTENT_ZERO ? NBD_STATE_ZERO : 0);
}

static void list_allocation(struct list *l, const struct block_request *r)
{
	for (unsigned i = 0; i < r->nr_extents; i++)
		if (!add(l, r->extents[i].length, allocation_flags(r->extents[i].flags)))
			return;
}

static void list_dirty(struct list *l, const struct block_request *r, const struct dirty *d)
{
	uint64_t length;
	bool is;

	do {
		length = dirty_run(d, r->offset + r->length - l->left, l->left, &is);
	} while (add(l, length, is ? NBD_STATE_DIRTY : 0));
}

size_t nbd_status_chunks(const struct nbd_call *call, const struct block_request *r, uint8_t *to)
{
	const struct nbd_connection *c = call->c;
	unsigned last = c->context[NBD_DIRTY] ? NBD_DIRTY : NBD_ALLOCATION;
	uint8_t *at = to;

	for (unsigned i = 0; i < NBD_CONTEXTS; i++) {
		struct nbd_chunk *head = (struct nbd_chunk *)at;
		uint32_t *id = (uint32_t *)(head + 1);
		struct list l = {
			.e = (struct nbd_extent *)(id + 1),
			.most = call->flags & NBD_CMD_FLAG_REQ_ONE ? 1 : NBD_EXTENTS,
			.left = r->length,
		};

		if (!c->context[i])
			continue;
		if (i == NBD_ALLOCATION)
			list_allocation(&l, r);
		else
			list_dirty(&l, r, c->export->e.dirty);
		*id = htobe32(i + 1);
		*head = (struct nbd_chunk){
			.magic = htobe32(NBD_STRUCTURED_MAGIC),
			.flags = htobe16(i == last ? NBD_CHUNK_DONE : 0),
			.type = htobe16(NBD_CHUNK_BLOCK_STATUS),
			.cookie = call->cookie,
			.length = htobe32((uint32_t)(sizeof(*id) + l.nr * sizeof(*l.e))),
		};
		at = (uint8_t *)(l.e + l.nr);
	}
	return (size_t)(at - to);
}
