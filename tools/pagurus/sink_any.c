/* SPDX-License-Identifier: MIT */
/*
 * A sink that becomes the right one when the guest's description arrives: guests_open_sink() of guests.h.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tools/pagurus/guests.h"
#include "tools/pagurus/guests_sim.h"
#include "tools/pagurus/guests_xen.h"

struct sink_any {
	struct guest_sink sink; /* first: the ops cast */
	struct guests_sink_options options;
	struct guest_sink *real;
	enum pgr_guest_kind kind;
	uint8_t uuid[16];
};

static struct sink_any *of(struct guest_sink *s)
{
	return (struct sink_any *)s;
}

static int choose(struct sink_any *a, const struct guest_description *d, struct guest_refusals *r,
		  struct pgr_error *err)
{
	int rc;

	if (a->real && a->kind == d->info.kind)
		return 0;
	if (a->real) {
		a->real->ops->close(a->real);
		a->real = NULL;
	}
	if (d->info.kind == PGR_GUEST_SIM && !a->options.allow_sim) {
		guest_refuse(
			r, "this host takes no simulated guests (they are for tests: --allow-sim)");
		return 0;
	}
	if (d->info.kind == PGR_GUEST_SIM) {
		rc = guests_sim_sink(a->options.paused, &a->real, err);
	} else {
		rc = guests_xen_sink(a->options.paused, a->options.rename, &a->real, err);
		if (rc == -ENOTSUP || rc == -ENOENT || rc == -EACCES) {
			guest_refuse(r, "no hypervisor here that could run it: %s", err->text);
			return 0;
		}
	}
	a->kind = d->info.kind;
	return rc;
}

static int any_precheck(struct guest_sink *s, const struct guest_description *d,
			struct guest_refusals *r, struct pgr_error *err)
{
	struct sink_any *a = of(s);
	int rc;

	memcpy(a->uuid, d->info.uuid, sizeof(a->uuid));
	rc = a->options.seen ? a->options.seen(a->options.ctx, d, err) : 0;
	if (!rc)
		rc = choose(a, d, r, err);
	if (rc || !a->real)
		return rc;
	return a->real->ops->precheck(a->real, d, r, err);
}

static int any_create(struct guest_sink *s, const struct guest_description *d,
		      struct pgr_error *err)
{
	struct guest_sink *real = of(s)->real;

	if (!real)
		return pgr_fail(err, -EINVAL, "create before a precheck that passed");
	return real->ops->create(real, d, err);
}

static int any_map(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
		   struct guest_batch *b, struct pgr_error *err)
{
	return of(s)->real->ops->map(of(s)->real, worker, pfns, nr, b, err);
}

static void any_unmap(struct guest_sink *s, unsigned worker, struct guest_batch *b)
{
	of(s)->real->ops->unmap(of(s)->real, worker, b);
}

static int any_set_types(struct guest_sink *s, unsigned worker, const uint64_t *pfns,
			 const uint8_t *types, unsigned nr, struct pgr_error *err)
{
	return of(s)->real->ops->set_types(of(s)->real, worker, pfns, types, nr, err);
}

static int any_discard(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
		       struct pgr_error *err)
{
	return of(s)->real->ops->discard(of(s)->real, worker, pfns, nr, err);
}

static int any_state(struct guest_sink *s, uint32_t type, const void *body, size_t length,
		     struct pgr_error *err)
{
	return of(s)->real->ops->state(of(s)->real, type, body, length, err);
}

static int any_finish(struct guest_sink *s, struct pgr_error *err)
{
	return of(s)->real->ops->finish(of(s)->real, err);
}

static int any_start(struct guest_sink *s, struct pgr_error *err)
{
	return of(s)->real->ops->start(of(s)->real, err);
}

static int any_connected(struct guest_sink *s, unsigned timeout_ms, struct pgr_connected *out,
			 struct pgr_error *err)
{
	return of(s)->real->ops->connected(of(s)->real, timeout_ms, out, err);
}

static int any_destroy(struct guest_sink *s, struct pgr_error *err)
{
	struct guest_sink *real = of(s)->real;

	return real ? real->ops->destroy(real, err) : 0;
}

static void any_close(struct guest_sink *s)
{
	struct sink_any *a = of(s);

	if (a->real)
		a->real->ops->close(a->real);
	free(a);
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
	.finish = any_finish,
	.start = any_start,
	.connected = any_connected,
	.destroy = any_destroy,
	.close = any_close,
};

int guests_open_sink(const struct guests_sink_options *o, struct guest_sink **out,
		     struct pgr_error *err)
{
	struct sink_any *a = calloc(1, sizeof(*a));

	if (!a)
		return pgr_fail(err, -ENOMEM, "no memory for a guest");
	a->sink.ops = &any_ops;
	a->options = *o;
	*out = &a->sink;
	return 0;
}

int guests_started(struct guest_sink *s, unsigned run_ms, struct pgr_error *err)
{
	struct sink_any *a = of(s);

	if (!a->real)
		return pgr_fail(err, -EINVAL, "no guest was started");
	if (a->kind == PGR_GUEST_SIM)
		return guests_sim_started(a->real, run_ms, err);
	return guests_xen_watch(a->uuid, false, err);
}
