// SPDX-License-Identifier: MIT
/* The source of a simulated guest: guest.h over guest_sim_machine.c. */
#include "migrate/guest_sim_internal.h"

#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct sim_source {
	struct guest_source source;
	struct guest_sim *guest; /* NULL: destroyed */
	struct sim_faults faults;
};

static struct sim_source *sim_of(struct guest_source *s)
{
	return (struct sim_source *)s;
}

struct guest_sim *guest_sim_of_source(struct guest_source *s)
{
	return sim_of(s)->guest;
}

/* Count the call, let a fault strike, and refuse work on a guest that is gone. */
static int enter(struct sim_source *s, enum guest_sim_fault_point p, struct pgr_error *err)
{
	if (!s->guest)
		return pgr_fail(err, -ENOENT, "guest_sim: %s: the guest was destroyed here",
				guest_sim_fault_name(p));
	return sim_fault(&s->faults, p, err);
}

/* ---- what it is ---- */

/* Leaves 0, 1 and 7 of this processor and one invented MSR, so that the records are exercised. */
static int describe_cpu(struct guest_description *d, struct pgr_error *err)
{
	static const struct {
		uint32_t leaf, subleaf;
	} wanted[] = {{0, UINT32_MAX}, {1, UINT32_MAX}, {7, 0}};
	enum { LEAVES = sizeof(wanted) / sizeof(wanted[0]) };

	d->leaves = calloc(LEAVES, sizeof(*d->leaves));
	d->msrs = calloc(1, sizeof(*d->msrs));
	if (!d->leaves || !d->msrs)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory to describe the guest");
	for (unsigned i = 0; i < LEAVES; i++) {
		struct pgr_cpu_leaf *l = &d->leaves[d->nr_leaves++];

		l->leaf = wanted[i].leaf;
		l->subleaf = wanted[i].subleaf;
		__cpuid_count(l->leaf, l->subleaf == UINT32_MAX ? 0 : l->subleaf, l->eax, l->ebx,
			      l->ecx, l->edx);
	}
	/* IA32_ARCH_CAPABILITIES, promising nothing. */
	d->msrs[d->nr_msrs++] = (struct pgr_msr){.index = 0x10a};
	return 0;
}

static int source_describe(struct guest_source *source, struct guest_description *d,
			   struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	struct guest_sim_status st;
	int rc;

	*d = (struct guest_description){0};
	rc = enter(s, GUEST_SIM_FAULT_DESCRIBE, err);
	if (rc)
		return rc;
	guest_sim_status(s->guest, &st);
	d->info = (struct guest_info){
		.kind = PGR_GUEST_SIM,
		.nr_pfns = st.nr_pfns,
		.populated = st.populated,
		.vcpus = s->guest->vcpus,
		.can_log_dirty = guest_sim_track_works(s->guest->track) &&
				 s->guest->track != GUEST_SIM_TRACK_NONE,
	};
	memcpy(d->info.name, s->guest->name, sizeof(d->info.name));
	memcpy(d->info.uuid, s->guest->uuid, sizeof(d->info.uuid));
	if (!d->info.can_log_dirty) {
		static const char why[] =
			"the simulated guest was made without a way to log its writes";

		memcpy(d->info.why_not, why, sizeof(why));
	}
	d->config_format = PGR_CONFIG_SIM;
	d->config = strdup("{\"type\":\"sim\"}");
	rc = d->config ? describe_cpu(d, err)
		       : pgr_fail(err, -ENOMEM, "guest_sim: no memory to describe the guest");
	if (rc)
		guest_description_free(d);
	return rc;
}

/* ---- its writes ---- */

static int source_log_start(struct guest_source *source, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	struct guest_sim *g = s->guest;
	const struct sim_tracker_ops *ops;
	int rc = enter(s, GUEST_SIM_FAULT_LOG_START, err);

	if (rc)
		return rc;
	if (g->tracker)
		return pgr_fail(err, -EBUSY, "guest_sim: the writes of '%s' are logged already",
				g->name);
	ops = sim_track_choose(g->track);
	if (!ops)
		return pgr_fail(err, -EOPNOTSUPP,
				"guest_sim: the writes of '%s' cannot be logged by '%s' here",
				g->name, guest_sim_track_name(g->track));
	/* userfaultfd protects what is there; a page that was never touched would be written unseen. */
	rc = sim_memory_populate(&g->memory, err);
	if (rc)
		return rc;
	for (uint64_t i = 0; i < sim_words(g->memory.nr_pfns); i++)
		atomic_store(&g->memory.changed[i], 0);
	rc = ops->start(g->memory.base, g->memory.nr_pfns, &g->tracker, err);
	if (!rc)
		g->tracker_name = ops->name;
	return rc;
}

static uint64_t count_bits(const uint64_t *bitmap, uint64_t words)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < words; i++)
		n += (unsigned)__builtin_popcountll(bitmap[i]);
	return n;
}

static int source_log_clean(struct guest_source *source, uint64_t *bitmap, uint64_t *count,
			    struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	struct guest_sim *g = s->guest;
	uint64_t words, before;
	int rc = enter(s, GUEST_SIM_FAULT_LOG_CLEAN, err);

	if (rc)
		return rc;
	if (!g->tracker)
		return pgr_fail(err, -EINVAL, "guest_sim: the writes of '%s' are not being logged",
				g->name);
	words = sim_words(g->memory.nr_pfns);
	before = count_bits(bitmap, words);
	for (uint64_t i = 0; i < words; i++)
		bitmap[i] |= atomic_exchange(&g->memory.changed[i], 0);
	rc = g->tracker->ops->clean(g->tracker, bitmap, err);
	*count = count_bits(bitmap, words) - before;
	return rc;
}

static void log_off(struct guest_sim *g)
{
	if (g->tracker)
		g->tracker->ops->stop(g->tracker);
	g->tracker = NULL;
}

static int source_log_stop(struct guest_source *source, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_LOG_STOP, err);

	if (!rc)
		log_off(s->guest);
	return rc;
}

/* ---- its running ---- */

static int source_throttle(struct guest_source *source, unsigned percent, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_THROTTLE, err);

	if (rc)
		return rc;
	if (percent < 1 || percent > 100)
		return pgr_fail(err, -EINVAL,
				"guest_sim: a speed of %u percent, 1 to 100 are possible", percent);
	sim_workload_throttle(&s->guest->workload, percent);
	return 0;
}

/* A guest that does not answer: it runs on while the caller waits in vain. */
static int suspend_in_vain(struct sim_source *s, unsigned timeout_ms, int code,
			   struct pgr_error *err)
{
	struct timespec ts = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};

	while (nanosleep(&ts, &ts) && errno == EINTR)
		;
	return pgr_fail(
		err, code,
		"guest_sim: '%s' did not answer the request to suspend in %u ms (the fault that was asked for); it runs on",
		s->guest->name, timeout_ms);
}

static int source_suspend(struct guest_source *source, unsigned timeout_ms, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_SUSPEND, err);

	if (rc)
		return rc;
	rc = sim_fault_code(&s->faults, GUEST_SIM_FAULT_SUSPEND_TIMEOUT);
	if (rc)
		return suspend_in_vain(s, timeout_ms, rc, err);
	if (s->guest->life == GUEST_SIM_SUSPENDED)
		return 0;
	return sim_machine_suspend(s->guest, timeout_ms, err);
}

/* It has no disks, but insists on the order. */
static int source_let_go(struct guest_source *source, unsigned timeout_ms, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_LET_GO, err);

	(void)timeout_ms;
	if (!rc && s->guest->life != GUEST_SIM_SUSPENDED)
		rc = pgr_fail(err, -EINVAL, "guest_sim: '%s' runs and uses its disks",
			      s->guest->name);
	return rc;
}

static int source_resume(struct guest_source *source, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_RESUME, err);

	if (!rc && s->guest->life == GUEST_SIM_SUSPENDED)
		sim_machine_run(s->guest, s->guest->paused);
	return rc;
}

/* ---- what it holds ---- */

static int source_read(struct guest_source *source, unsigned worker, const uint64_t *pfns,
		       unsigned nr, struct guest_batch *b, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_READ, err);

	(void)worker;
	if (!rc)
		rc = sim_memory_check(&s->guest->memory, pfns, nr, err);
	if (!rc)
		sim_memory_batch(&s->guest->memory, pfns, nr, b);
	return rc;
}

static void source_release(struct guest_source *source, unsigned worker, struct guest_batch *b)
{
	(void)source;
	(void)worker;
	b->nr = 0;
}

static int source_state(struct guest_source *source, guest_state_fn *emit, void *ctx,
			struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	uint8_t *body = NULL;
	size_t length = 0;
	int rc = enter(s, GUEST_SIM_FAULT_STATE, err);

	if (rc)
		return rc;
	if (s->guest->life != GUEST_SIM_SUSPENDED)
		return pgr_fail(err, -EBUSY,
				"guest_sim: the state of '%s' was asked for while it runs",
				s->guest->name);
	rc = sim_state_pack(&s->guest->workload, &s->guest->fixed, &body, &length, err);
	if (!rc)
		rc = emit(ctx, PGR_REC_SIM_STATE, body, length, err);
	free(body);
	return rc;
}

/* ---- its end ---- */

static int source_destroy(struct guest_source *source, struct pgr_error *err)
{
	struct sim_source *s = sim_of(source);
	int rc = enter(s, GUEST_SIM_FAULT_DESTROY, err);

	if (rc)
		return rc;
	guest_sim_destroy(s->guest);
	s->guest = NULL;
	return 0;
}

static void source_close(struct guest_source *source)
{
	struct sim_source *s = sim_of(source);

	if (!source)
		return;
	if (s->guest) {
		log_off(s->guest);
		sim_workload_throttle(&s->guest->workload, 100);
		sim_machine_attach(s->guest, false);
	}
	free(s);
}

static const struct guest_source_ops sim_source_ops = {
	.name = "guest_sim",
	.describe = source_describe,
	.log_start = source_log_start,
	.log_clean = source_log_clean,
	.log_stop = source_log_stop,
	.throttle = source_throttle,
	.suspend = source_suspend,
	.let_go = source_let_go,
	.resume = source_resume,
	.read = source_read,
	.release = source_release,
	.state = source_state,
	.destroy = source_destroy,
	.close = source_close,
};

int guest_sim_source_open(struct guest_sim *g, const struct guest_sim_fault *faults,
			  unsigned nr_faults, struct guest_source **out, struct pgr_error *err)
{
	struct sim_source *s = calloc(1, sizeof(*s));
	int rc;

	if (!s)
		return pgr_fail(err, -ENOMEM, "guest_sim: no memory for a source");
	s->source.ops = &sim_source_ops;
	s->guest = g;
	rc = sim_faults_init(&s->faults, faults, nr_faults, err);
	if (!rc && !sim_machine_attach(g, true))
		rc = pgr_fail(err, -EBUSY, "guest_sim: another source works on '%s'", g->name);
	if (rc) {
		free(s);
		return rc;
	}
	*out = &s->source;
	return 0;
}

int guest_sim_source_create(const struct guest_sim_options *o, const struct guest_sim_fault *faults,
			    unsigned nr_faults, struct guest_source **out, struct pgr_error *err)
{
	struct guest_sim *g;
	int rc = guest_sim_create(o, &g, err);

	if (rc)
		return rc;
	rc = guest_sim_source_open(g, faults, nr_faults, out, err);
	if (rc)
		guest_sim_destroy(g);
	return rc;
}
