/* SPDX-License-Identifier: MIT */
/*
 * The vectors of protocol-spec/vectors that are images, through target_restore with a sink that takes any guest: what single records do
 * not show - digests, counters, features, VERIFY - is noticed too, and nothing is left when it is.
 */
#include <stdio.h>
#include <string.h>

#include "migrate/channel.h"
#include "migrate/guest.h"
#include "migrate/session.h"
#include "tests/unit/unit.h"
#include "tests/unit/vectors.h"

struct any_sink {
	struct guest_sink sink;
	bool alive;
};

static int any_precheck(struct guest_sink *s, const struct guest_description *d,
			struct guest_refusals *r, struct pgr_error *err)
{
	(void)s;
	(void)err;
	if (d->info.nr_pfns > VECTORS_PFNS_MAX)
		guest_refuse(r, "the guest is larger than this test's memory");
	return 0;
}

static int any_create(struct guest_sink *s, const struct guest_description *d,
		      struct pgr_error *err)
{
	(void)err;
	vectors_memory.nr_pfns = d->info.nr_pfns;
	((struct any_sink *)s)->alive = true;
	return 0;
}

static int any_map(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
		   struct guest_batch *b, struct pgr_error *err)
{
	(void)s;
	(void)worker;
	(void)err;
	*b = (struct guest_batch){.nr = nr};
	for (unsigned i = 0; i < nr; i++) {
		if (!vectors_memory.present[pfns[i]])
			memset(vectors_memory.page[pfns[i]], 0, PGR_PAGE_SIZE);
		vectors_memory.present[pfns[i]] = true;
		b->page[i] = vectors_memory.page[pfns[i]];
	}
	return 0;
}

static void any_unmap(struct guest_sink *s, unsigned worker, struct guest_batch *b)
{
	(void)s;
	(void)worker;
	(void)b;
}

static int any_set_types(struct guest_sink *s, unsigned worker, const uint64_t *pfns,
			 const uint8_t *types, unsigned nr, struct pgr_error *err)
{
	(void)s;
	(void)worker;
	(void)pfns;
	(void)types;
	(void)nr;
	(void)err;
	return 0;
}

static int any_discard(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
		       struct pgr_error *err)
{
	(void)s;
	(void)worker;
	(void)err;
	for (unsigned i = 0; i < nr; i++)
		vectors_memory.present[pfns[i]] = false;
	return 0;
}

static int any_state(struct guest_sink *s, uint32_t type, const void *body, size_t length,
		     struct pgr_error *err)
{
	(void)s;
	(void)type;
	(void)body;
	(void)length;
	(void)err;
	return 0;
}

static int any_step(struct guest_sink *s, struct pgr_error *err)
{
	(void)s;
	(void)err;
	return 0;
}

static int any_destroy(struct guest_sink *s, struct pgr_error *err)
{
	(void)err;
	((struct any_sink *)s)->alive = false;
	return 0;
}

static void any_close(struct guest_sink *s)
{
	(void)s;
}

static const struct guest_sink_ops any_ops = {
	.name = "any",
	.precheck = any_precheck,
	.create = any_create,
	.map = any_map,
	.unmap = any_unmap,
	.set_types = any_set_types,
	.discard = any_discard,
	.state = any_state,
	.finish = any_step,
	.start = any_step,
	.destroy = any_destroy,
	.close = any_close,
};

static int restore_reads(const char *vector, const char *part, struct pgr_error *err)
{
	struct any_sink sink = {.sink.ops = &any_ops};
	struct session_owner owner = {0};
	struct session_result res = {0};
	char path[VECTORS_PATH];
	struct channel *c;
	int rc;

	vectors_path(vector, part, path);
	CHECK_EQ(channel_file_open(path, &c, err), 0);
	rc = target_restore(&sink.sink, c, true, &owner, &res, err);
	c->ops->close(c);
	CHECK_MSG(sink.alive == !rc, "%s: restore said %d and the guest is %s", vector, rc,
		  sink.alive ? "there" : "gone");
	return rc;
}

/* Files that target_restore takes: images. */
static bool is_image(const struct vector *v)
{
	json_t *parts = json_object_get(v->about, "parts");

	return json_array_size(parts) == 1 &&
	       !strcmp(json_string_value(json_array_get(parts, 0)), "image");
}

static void restore_check(const struct vector *v)
{
	struct pgr_error err = PGR_ERROR_NONE;
	int rc;

	if (!is_image(v))
		return;
	rc = vector_each_part(v, restore_reads, &err);
	if (vector_accepts(v)) {
		CHECK_MSG(!rc, "%s: refused: %s", v->name, err.text);
		vector_check_memory(v);
	} else if (!vector_is(v, "needs", "guest") && !vector_is(v, "needs", "index")) {
		CHECK_MSG(rc, "%s: was accepted", v->name);
	}
}

static void restore(void)
{
	vectors_each(restore_check);
}

UNIT_MAIN(TEST(restore))
