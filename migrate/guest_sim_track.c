// SPDX-License-Identifier: MIT
/* Which way of finding written pages works here. */
#include "migrate/guest_sim_internal.h"

#include <sys/mman.h>

static const struct {
	const char *name;
	const struct sim_tracker_ops *ops;
} trackers[] = {
	[GUEST_SIM_TRACK_AUTO] = {"auto", NULL},
	[GUEST_SIM_TRACK_UFFD_ASYNC] = {"uffd-async", &sim_track_uffd_async},
	[GUEST_SIM_TRACK_UFFD] = {"uffd", &sim_track_uffd},
	[GUEST_SIM_TRACK_MPROTECT] = {"mprotect", &sim_track_mprotect},
	[GUEST_SIM_TRACK_NONE] = {"none", NULL},
};

const char *guest_sim_track_name(enum guest_sim_track t)
{
	return (unsigned)t < sizeof(trackers) / sizeof(trackers[0]) ? trackers[t].name : "unknown";
}

#define PROBE_BYTES (2 * (size_t)PGR_PAGE_SIZE)

/* Let it find one write. A kernel may know a call and still refuse it, so nothing less is proof. */
static bool tracker_finds_a_write(const struct sim_tracker_ops *ops)
{
	struct sim_tracker *t = NULL;
	uint64_t dirty = 0;
	bool works = false;
	uint8_t *probe = mmap(NULL, PROBE_BYTES, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (probe == MAP_FAILED)
		return false;
	if (!ops->start(probe, 2, &t, NULL)) {
		*(volatile uint8_t *)(probe + PGR_PAGE_SIZE) = 1;
		works = !ops->clean(t, &dirty, NULL) && dirty == 2;
		ops->stop(t);
	}
	munmap(probe, PROBE_BYTES);
	return works;
}

const struct sim_tracker_ops *sim_track_choose(enum guest_sim_track t)
{
	if (t == GUEST_SIM_TRACK_AUTO) {
		for (unsigned i = GUEST_SIM_TRACK_UFFD_ASYNC; i <= GUEST_SIM_TRACK_MPROTECT; i++)
			if (tracker_finds_a_write(trackers[i].ops))
				return trackers[i].ops;
		return NULL;
	}
	if ((unsigned)t >= sizeof(trackers) / sizeof(trackers[0]) || !trackers[t].ops)
		return NULL;
	return tracker_finds_a_write(trackers[t].ops) ? trackers[t].ops : NULL;
}

bool guest_sim_track_works(enum guest_sim_track t)
{
	return t == GUEST_SIM_TRACK_NONE || sim_track_choose(t);
}

int sim_track_runs(uint64_t word, uint64_t first, sim_run_fn *fn, void *ctx)
{
	int rc = 0;

	while (word && !rc) {
		unsigned start = (unsigned)__builtin_ctzll(word);
		uint64_t rest = ~(word >> start);
		unsigned length = rest ? (unsigned)__builtin_ctzll(rest) : 64;

		if (length > 64 - start)
			length = 64 - start;
		rc = fn(ctx, first + start, length);
		word &= length == 64 ? 0 : ~(((1ull << length) - 1) << start);
	}
	return rc;
}
