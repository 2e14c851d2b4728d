// SPDX-License-Identifier: MIT
/*
 * The sink of a simulated guest: guest.h over guest_sim_machine.c.
 *
 *   NEW ── create ──► FILLING ── state ──► (has_state) ── finish ──► COMPLETE ── start ──► STARTED
 *   any but STARTED ── destroy or close ──► NEW, nothing left
 *   STARTED ── destroy ──► NEW: the guest is removed; close leaves it running
 */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum sink_step { SINK_NEW, SINK_FILLING, SINK_COMPLETE, SINK_STARTED };
static const char *const step_names[] = {"not created", "being filled", "complete", "started"};

struct sim_sink {
	struct guest_sink sink;
	struct guest_sim_sink_options options;
	struct guest_sim *guest;
	enum sink_step step;
	bool has_state;
	struct sim_faults faults;
};

static struct sim_sink *sim_of(struct guest_sink *s)
{
	return (struct sim_sink *)s;
}

struct guest_sim *guest_sim_of_sink(struct guest_sink *s)
{
	return sim_of(s)->guest;
}

/* Count the call, let a fault strike, and refuse calls out of order: a peer decides what comes when. */
static int enter(struct sim_sink *s, enum guest_sim_fault_point p, enum sink_step step,
		 struct pgr_error *err)
{
	if (s->step != step)
		return pgr_fail(err, -EINVAL, "guest_sim: %s: the guest is %s, must be %s",
				guest_sim_fault_name(p), step_names[s->step], step_names[step]);
	return sim_fault(&s->faults, p, err);
}

static int sink_precheck(struct guest_sink *sink, const struct guest_description *d,
			 struct guest_refusals *r, struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	const struct guest_info *i = &d->info;
	int rc = enter(s, GUEST_SIM_FAULT_PRECHECK, SINK_NEW, err);

	if (rc)
		return rc;
	r->nr = 0;
	if (sim_fault_code(&s->faults, GUEST_SIM_FAULT_PRECHECK_REFUSE))
		guest_refuse(
			r,
			"this host takes no guests now (the fault that was asked for): try another");
	if (i->kind != PGR_GUEST_SIM)
		guest_refuse(
			r,
			"the guest is of kind %u, only simulated ones (%u) are taken here: choose another target",
			(unsigned)i->kind, (unsigned)PGR_GUEST_SIM);
	if (!i->nr_pfns || i->nr_pfns > PGR_PFNS_MAX)
		guest_refuse(r,
			     "the guest says it has %" PRIu64
			     " pages, 1 to %llu are possible: give it another size",
			     i->nr_pfns, PGR_PFNS_MAX);
	if (!i->vcpus || i->vcpus > SIM_VCPUS_MAX)
		guest_refuse(r,
			     "the guest has %" PRIu32
			     " vCPUs, 1 to %u are possible here: change its number of vCPUs",
			     i->vcpus, SIM_VCPUS_MAX);
	if (s->options.memory_free && i->populated > s->options.memory_free / PGR_PAGE_SIZE)
		guest_refuse(r,
			     "the guest holds %" PRIu64 " KiB of memory, %" PRIu64
			     " KiB are free here: free memory or shrink the guest",
			     i->populated * 4, s->options.memory_free / 1024);
	return 0;
}

static int sink_create(struct guest_sink *sink, const struct guest_description *d,
		       struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	const struct guest_info *i = &d->info;
	int rc = enter(s, GUEST_SIM_FAULT_CREATE, SINK_NEW, err);

	if (rc)
		return rc;
	if (!i->nr_pfns || i->nr_pfns > PGR_PFNS_MAX || !i->vcpus || i->vcpus > SIM_VCPUS_MAX)
		return pgr_fail(err, -EINVAL,
				"guest_sim: cannot make a guest of %" PRIu64 " pages and %" PRIu32
				" vCPUs",
				i->nr_pfns, i->vcpus);
	rc = sim_machine_create(i->name, i->uuid, i->nr_pfns, i->vcpus, s->options.track, &s->guest,
				err);
	if (!rc)
		s->step = SINK_FILLING;
	return rc;
}

/* ---- memory ---- */

static int sink_map(struct guest_sink *sink, unsigned worker, const uint64_t *pfns, unsigned nr,
		    struct guest_batch *b, struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_MAP, SINK_FILLING, err);

	(void)worker;
	if (!rc)
		rc = sim_memory_check(&s->guest->memory, pfns, nr, err);
	if (rc)
		return rc;
	for (unsigned i = 0; i < nr; i++)
		if (!sim_bit(s->guest->memory.present, pfns[i]))
			sim_bit_set(s->guest->memory.present, pfns[i]);
	sim_memory_batch(&s->guest->memory, pfns, nr, b);
	return 0;
}

static void sink_unmap(struct guest_sink *sink, unsigned worker, struct guest_batch *b)
{
	(void)sink;
	(void)worker;
	b->nr = 0;
}

static int sink_set_types(struct guest_sink *sink, unsigned worker, const uint64_t *pfns,
			  const uint8_t *types, unsigned nr, struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_SET_TYPES, SINK_FILLING, err);

	(void)worker;
	if (!rc)
		rc = sim_memory_check(&s->guest->memory, pfns, nr, err);
	for (unsigned i = 0; i < nr && !rc; i++) {
		if ((types[i] & PGR_TYPE_LEVEL_MASK) > PGR_TYPE_L4 || types[i] > 15)
			rc = pgr_fail(err, -EPROTO,
				      "guest_sim: pfn %" PRIu64 " has the unknown type %u", pfns[i],
				      types[i]);
		else if (!sim_bit(s->guest->memory.present, pfns[i]))
			rc = pgr_fail(err, -EPROTO,
				      "guest_sim: pfn %" PRIu64 " gets a type and holds no memory",
				      pfns[i]);
		else
			s->guest->memory.type[pfns[i]] = types[i];
	}
	return rc;
}

static int sink_discard(struct guest_sink *sink, unsigned worker, const uint64_t *pfns, unsigned nr,
			struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_DISCARD, SINK_FILLING, err);

	(void)worker;
	if (!rc)
		rc = sim_memory_check(&s->guest->memory, pfns, nr, err);
	for (unsigned i = 0; i < nr && !rc; i++)
		if (sim_bit(s->guest->memory.present, pfns[i]))
			rc = sim_memory_drop(&s->guest->memory, pfns[i], err);
	return rc;
}

/* ---- the rest ---- */

static int sink_state(struct guest_sink *sink, uint32_t type, const void *body, size_t length,
		      struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_SINK_STATE, SINK_FILLING, err);

	if (rc)
		return rc;
	if (type != PGR_REC_SIM_STATE || s->has_state)
		return pgr_fail(err, -EPROTO,
				"guest_sim: state record 0x%" PRIx32
				": a simulated guest has one SIM_STATE and no other",
				type);
	rc = sim_state_unpack(body, length, &s->guest->workload, &s->guest->fixed, err);
	if (!rc && s->guest->workload.vcpus != s->guest->vcpus)
		rc = pgr_fail(err, -EPROTO, "SIM_STATE: %u vCPUs, the guest was announced with %u",
			      s->guest->workload.vcpus, s->guest->vcpus);
	s->has_state = !rc;
	return rc;
}

/* The workload may write only where there is ordinary memory. */
static int check_working_sets(struct guest_sim *g, struct pgr_error *err)
{
	for (unsigned i = 0; i < g->workload.vcpus; i++)
		for (uint32_t p = 0; p < g->workload.vcpu[i].nr_pages; p++) {
			uint32_t pfn = g->workload.vcpu[i].page[p].pfn;

			if (!sim_bit(g->memory.present, pfn) ||
			    g->memory.type[pfn] != PGR_TYPE_ORDINARY)
				return pgr_fail(err, -EPROTO,
						"SIM_STATE: vCPU %u writes pfn %" PRIu32
						", which holds no memory or a page table",
						i, pfn);
		}
	return 0;
}

static int sink_finish(struct guest_sink *sink, struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_FINISH, SINK_FILLING, err);

	if (rc)
		return rc;
	if (!s->has_state)
		return pgr_fail(err, -EPROTO, "guest_sim: '%s' arrived without SIM_STATE",
				s->guest->name);
	rc = check_working_sets(s->guest, err);
	if (!rc)
		rc = sim_workload_launch(&s->guest->workload, err);
	if (!rc)
		s->step = SINK_COMPLETE;
	return rc;
}

static int sink_start(struct guest_sink *sink, struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_START, SINK_COMPLETE, err);

	if (rc)
		return rc;
	sim_machine_run(s->guest, s->options.start_paused);
	s->step = SINK_STARTED;
	return 0;
}

static int sink_connected(struct guest_sink *sink, unsigned timeout_ms, struct pgr_connected *out,
			  struct pgr_error *err)
{
	const struct timespec wait = {.tv_sec = timeout_ms / 1000,
				      .tv_nsec = timeout_ms % 1000 * 1000000l};
	struct sim_sink *s = sim_of(sink);
	int rc = enter(s, GUEST_SIM_FAULT_CONNECTED, SINK_STARTED, err);

	if (rc)
		return rc;
	*out = s->options.connected;
	if (!s->options.never_connected)
		return 0;
	nanosleep(&wait, NULL);
	return pgr_fail(err, -ETIMEDOUT, "guest_sim: its devices are not connected");
}

static void forget(struct sim_sink *s)
{
	guest_sim_destroy(s->guest);
	s->guest = NULL;
	s->step = SINK_NEW;
	s->has_state = false;
}

static int sink_destroy(struct guest_sink *sink, struct pgr_error *err)
{
	struct sim_sink *s = sim_of(sink);
	int rc = sim_fault(&s->faults, GUEST_SIM_FAULT_SINK_DESTROY, err);

	if (!rc)
		forget(s);
	return rc;
}

static void sink_close(struct guest_sink *sink)
{
	struct sim_sink *s = sim_of(sink);

	if (!sink)
		return;
	if (s->step != SINK_STARTED)
		forget(s);
	free(s);
}

static const struct guest_sink_ops sim_sink_ops = {
	.name = "guest_sim",
	.precheck = sink_precheck,
	.create = sink_create,
	.map = sink_map,
	.unmap = sink_unmap,
	.set_types = sink_set_types,
	.discard = sink_discard,
	.state = sink_state,
	.finish = sink_finish,
	.start = sink_start,
	.connected = sink_connected,
	.destroy = sink_destroy,
	.close = sink_close,
};

int guest_sim_sink_open(const struct guest_sim_sink_options *o,
			const struct guest_sim_fault *faults, unsigned nr_faults,
			struct guest_sink **out, struct pgr_error *err)
{
	struct sim_sink *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for a sink");
	s->sink.ops = &sim_sink_ops;
	if (o)
		s->options = *o;
	rc = sim_faults_init(&s->faults, faults, nr_faults, err);
	if (rc) {
		free(s);
		return rc;
	}
	*out = &s->sink;
	return 0;
}
