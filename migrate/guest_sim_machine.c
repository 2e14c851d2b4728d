// SPDX-License-Identifier: MIT
/*
 * A whole simulated guest, and the registry of all of this process.
 *
 *   guest_sim_create ──────────────► RUNNING ◄──── sim_machine_run ────┐
 *                                       │                               │
 *                                       └── sim_machine_suspend ──► SUSPENDED
 *   sim_machine_create ► BUILDING ── sim_machine_run ──► RUNNING
 *   any ── guest_sim_destroy ──► gone
 *
 * The registry counts: whenever a guest becomes RUNNING while another with its uuid is RUNNING, the promise that one owner runs a
 * guest is broken, and guest_sim_overlaps() says so for ever.
 */
#include "migrate/guest_sim_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MEMORY_MIN 65536u

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct guest_sim *registry;
static atomic_uint_fast64_t overlaps;

static const uint8_t no_uuid[16];

static unsigned count_locked(const uint8_t *uuid, bool running)
{
	unsigned n = 0;

	for (struct guest_sim *g = registry; g; g = g->next)
		if ((!uuid || !memcmp(g->uuid, uuid, sizeof(g->uuid))) &&
		    (!running || g->life == GUEST_SIM_RUNNING))
			n++;
	return n;
}

static unsigned count(const uint8_t *uuid, bool running)
{
	unsigned n;

	pthread_mutex_lock(&registry_lock);
	n = count_locked(uuid, running);
	pthread_mutex_unlock(&registry_lock);
	return n;
}

unsigned guest_sim_running(const uint8_t uuid[16])
{
	return count(uuid, true);
}

unsigned guest_sim_count(const uint8_t uuid[16])
{
	return count(uuid, false);
}

uint64_t guest_sim_overlaps(void)
{
	return atomic_load(&overlaps);
}

struct guest_sim *guest_sim_find_running(const uint8_t uuid[16])
{
	struct guest_sim *g;

	pthread_mutex_lock(&registry_lock);
	for (g = registry; g; g = g->next)
		if (!memcmp(g->uuid, uuid, sizeof(g->uuid)) && g->life == GUEST_SIM_RUNNING)
			break;
	pthread_mutex_unlock(&registry_lock);
	return g;
}

static void set_life(struct guest_sim *g, enum guest_sim_life life)
{
	pthread_mutex_lock(&registry_lock);
	if (life == GUEST_SIM_RUNNING && g->life != life && count_locked(g->uuid, true))
		atomic_fetch_add(&overlaps, 1);
	g->life = life;
	pthread_mutex_unlock(&registry_lock);
}

bool sim_machine_attach(struct guest_sim *g, bool attach)
{
	bool ok;

	pthread_mutex_lock(&registry_lock);
	ok = g->attached != attach;
	g->attached = attach;
	pthread_mutex_unlock(&registry_lock);
	return ok;
}

int sim_machine_create(const char *name, const uint8_t uuid[16], uint64_t nr_pfns, unsigned vcpus,
		       enum guest_sim_track track, struct guest_sim **out, struct pgr_error *err)
{
	struct guest_sim *g = calloc(1, sizeof(*g));
	int rc;

	if (!g) {
		pgr_fail(err, -ENOMEM, "guest_sim: no memory for a guest");
		return -ENOMEM;
	}
	snprintf(g->name, sizeof(g->name), "%s", name);
	memcpy(g->uuid, uuid, sizeof(g->uuid));
	g->vcpus = vcpus;
	g->track = track;
	g->life = GUEST_SIM_BUILDING;
	g->tracker_name = "";
	rc = sim_memory_create(&g->memory, nr_pfns, err);
	if (rc) {
		free(g);
		return rc;
	}
	sim_workload_init(&g->workload, &g->memory);
	pthread_mutex_lock(&registry_lock);
	g->next = registry;
	registry = g;
	pthread_mutex_unlock(&registry_lock);
	*out = g;
	return 0;
}

void guest_sim_destroy(struct guest_sim *g)
{
	struct guest_sim **link = &registry;

	if (!g)
		return;
	pthread_mutex_lock(&registry_lock);
	while (*link != g)
		link = &(*link)->next;
	*link = g->next;
	pthread_mutex_unlock(&registry_lock);
	/* The threads first: a tracker that stops lets writers go on, memory that goes does not. */
	sim_workload_free(&g->workload);
	if (g->tracker)
		g->tracker->ops->stop(g->tracker);
	sim_memory_free(&g->memory);
	free(g);
}

static int check_options(const struct guest_sim_options *o, struct pgr_error *err)
{
	uint64_t shares = 0;

	if (o->memory % PGR_PAGE_SIZE || o->memory < MEMORY_MIN ||
	    o->memory / PGR_PAGE_SIZE > PGR_PFNS_MAX)
		return pgr_fail(err, -EINVAL,
				"guest_sim: memory of %" PRIu64
				" bytes: choose a multiple of 4096, at least %u",
				o->memory, MEMORY_MIN);
	if (o->vcpus > SIM_VCPUS_MAX || o->absent_permille > 900 ||
	    o->nr_regions > GUEST_SIM_REGIONS_MAX)
		return pgr_fail(
			err, -EINVAL,
			"guest_sim: %u vCPUs (at most %u), %u permille absent (at most 900), %u regions (at most %u): one is out of range",
			o->vcpus, SIM_VCPUS_MAX, o->absent_permille, o->nr_regions,
			GUEST_SIM_REGIONS_MAX);
	for (unsigned i = 0; i < o->nr_regions; i++) {
		if ((unsigned)o->region[i].content > GUEST_SIM_MIXED ||
		    o->region[i].share > 1u << 20)
			return pgr_fail(err, -EINVAL,
					"guest_sim: region %u: content %u or share %u out of range",
					i, (unsigned)o->region[i].content, o->region[i].share);
		shares += o->region[i].share;
	}
	if (o->nr_regions && !shares)
		return pgr_fail(err, -EINVAL, "guest_sim: no region has a share of memory");
	if (o->workload.write_bytes > 4080 ||
	    (o->workload.write_bytes && o->workload.write_bytes < 8) ||
	    (unsigned)o->workload.pattern > GUEST_SIM_HOT)
		return pgr_fail(
			err, -EINVAL,
			"guest_sim: writes of %u bytes (8 to 4080, 0: whole pages) or pattern %u out of range",
			o->workload.write_bytes, (unsigned)o->workload.pattern);
	if (o->workload.working_set / PGR_PAGE_SIZE > GUEST_SIM_WORKING_SET_MAX ||
	    o->page_table_pages > o->memory / PGR_PAGE_SIZE / 16)
		return pgr_fail(err, -EINVAL,
				"guest_sim: a working set of %" PRIu64
				" pages (at most %u) or %u page tables (at most 1/16 of memory)",
				o->workload.working_set / PGR_PAGE_SIZE, GUEST_SIM_WORKING_SET_MAX,
				o->page_table_pages);
	if (o->track != GUEST_SIM_TRACK_AUTO && !guest_sim_track_works(o->track))
		return pgr_fail(err, -EOPNOTSUPP,
				"guest_sim: this machine cannot log writes by %s: choose %s",
				guest_sim_track_name(o->track),
				guest_sim_track_name(GUEST_SIM_TRACK_AUTO));
	return 0;
}

static void choose_absent(const struct guest_sim_options *o, struct sim_memory *m)
{
	uint64_t rng = sim_mix(o->seed, 0xab5e97);

	for (uint64_t pfn = 0; pfn < m->nr_pfns; pfn++)
		if (sim_random(&rng) % 1000 >= o->absent_permille)
			sim_bit_set(m->present, pfn);
}

static int note_fixed(struct guest_sim *g, struct pgr_error *err)
{
	uint64_t *working = sim_workload_pages(&g->workload);

	if (!working)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for a bitmap");
	sim_memory_digest(&g->memory, working, &g->fixed.digest, &g->fixed.pages);
	free(working);
	return 0;
}

int guest_sim_create(const struct guest_sim_options *o, struct guest_sim **out,
		     struct pgr_error *err)
{
	struct guest_sim *g = NULL;
	uint8_t uuid[16];
	int rc = check_options(o, err);

	if (rc)
		return rc;
	memcpy(uuid, o->uuid, sizeof(uuid));
	if (!memcmp(uuid, no_uuid, sizeof(uuid)))
		sim_content_fill(GUEST_SIM_RANDOM, sim_mix(o->seed, 0x1d), uuid, sizeof(uuid));
	rc = sim_machine_create(o->name ? o->name : "sim", uuid, o->memory / PGR_PAGE_SIZE,
				o->vcpus ? o->vcpus : 1, o->track, &g, err);
	if (rc)
		return rc;
	choose_absent(o, &g->memory);
	rc = sim_memory_populate(&g->memory, err);
	if (!rc)
		rc = sim_content_memory(o, &g->memory, err);
	if (!rc)
		rc = sim_workload_make(&g->workload, o, err);
	if (!rc)
		rc = note_fixed(g, err);
	if (!rc)
		rc = sim_workload_launch(&g->workload, err);
	if (rc) {
		guest_sim_destroy(g);
		return rc;
	}
	sim_machine_run(g, false);
	*out = g;
	return 0;
}

int sim_machine_suspend(struct guest_sim *g, unsigned timeout_ms, struct pgr_error *err)
{
	uint64_t begin = sim_now_ns();
	int rc = sim_workload_hold(&g->workload, timeout_ms, err);

	if (rc) {
		/* hold() let the threads go; a guest that was paused stays so. */
		return rc;
	}
	g->suspend_ns = sim_now_ns() - begin;
	set_life(g, GUEST_SIM_SUSPENDED);
	return 0;
}

void sim_machine_run(struct guest_sim *g, bool paused)
{
	set_life(g, GUEST_SIM_RUNNING);
	g->paused = paused;
	if (!paused)
		sim_workload_release(&g->workload);
}

void guest_sim_unpause(struct guest_sim *g)
{
	if (g->life == GUEST_SIM_RUNNING)
		sim_machine_run(g, false);
}

/* ---- looking at it ---- */

void guest_sim_status(struct guest_sim *g, struct guest_sim_status *st)
{
	struct sim_workload *w = &g->workload;

	*st = (struct guest_sim_status){
		.life = g->life,
		.paused = g->paused,
		.writes = sim_workload_writes(w),
		.checked = atomic_load(&w->checked),
		.suspend_ns = g->suspend_ns,
		.speed = atomic_load(&w->speed),
		.tracker = g->tracker_name,
		.nr_pfns = g->memory.nr_pfns,
	};
	pthread_mutex_lock(&w->lock);
	st->mismatches = atomic_load(&w->mismatches);
	memcpy(st->mismatch, w->mismatch, sizeof(st->mismatch));
	pthread_mutex_unlock(&w->lock);
	for (uint64_t i = 0; i < sim_words(g->memory.nr_pfns); i++)
		st->populated += (unsigned)__builtin_popcountll(atomic_load(&g->memory.present[i]));
}

int guest_sim_verify(struct guest_sim *g, struct pgr_error *err)
{
	uint64_t *working = sim_workload_pages(&g->workload);
	uint64_t digest, pages;
	struct sim_fixed fixed;
	int rc;

	if (!working)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for a bitmap");
	rc = sim_workload_verify(&g->workload, err);
	if (rc)
		goto out;
	pthread_mutex_lock(&g->workload.lock);
	fixed = g->fixed;
	pthread_mutex_unlock(&g->workload.lock);
	sim_memory_digest(&g->memory, working, &digest, &pages);
	if (digest != fixed.digest || pages != fixed.pages)
		rc = pgr_fail(err, -EBADMSG,
			      "guest_sim: the %" PRIu64
			      " pages outside of the working sets have digest %016" PRIx64
			      ", the guest was made with %" PRIu64 " and %016" PRIx64,
			      pages, digest, fixed.pages, fixed.digest);
out:
	free(working);
	return rc;
}

void guest_sim_digest(struct guest_sim *g, uint64_t *digest, uint64_t *pages)
{
	sim_memory_digest(&g->memory, NULL, digest, pages);
}

uint8_t *guest_sim_page(struct guest_sim *g, uint64_t pfn)
{
	return pfn < g->memory.nr_pfns && sim_bit(g->memory.present, pfn)
		       ? sim_memory_page(&g->memory, pfn)
		       : NULL;
}

uint8_t guest_sim_type(struct guest_sim *g, uint64_t pfn)
{
	return pfn < g->memory.nr_pfns ? g->memory.type[pfn] : PGR_TYPE_ORDINARY;
}

int guest_sim_balloon(struct guest_sim *g, uint64_t pfn, bool in, struct pgr_error *err)
{
	struct sim_memory *m = &g->memory;
	uint64_t *working = sim_workload_pages(&g->workload);
	int rc = 0;

	if (!working)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for a bitmap");
	if (pfn >= m->nr_pfns || m->type[pfn] != PGR_TYPE_ORDINARY ||
	    working[pfn / 64] >> (pfn % 64) & 1) {
		rc = pgr_fail(err, -EINVAL,
			      "guest_sim: pfn %" PRIu64
			      " is out of range, a page table or of a working set",
			      pfn);
		goto out;
	}
	if (sim_bit(m->present, pfn) == in)
		goto out;
	if (in) {
		/* A frame that was given back reads as zero. */
		sim_bit_set(m->present, pfn);
	}
	pthread_mutex_lock(&g->workload.lock);
	g->fixed.digest += in ? sim_page_digest(m, pfn) : 0 - sim_page_digest(m, pfn);
	g->fixed.pages += in ? 1 : -1ull;
	pthread_mutex_unlock(&g->workload.lock);
	if (!in)
		rc = sim_memory_drop(m, pfn, err);
	sim_bit_set(m->changed, pfn);
out:
	free(working);
	return rc;
}
