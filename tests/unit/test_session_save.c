/* SPDX-License-Identifier: MIT */
/* A guest that is written into a file and goes on: not only when the file is durable, and also when that fails. */
#include <errno.h>
#include <string.h>

#include "migrate/guest_sim.h"
#include "migrate/session.h"
#include "tests/unit/unit.h"

/* Takes everything, and looks at the guest when all of it is to be made durable. */
struct watched {
	struct channel c;
	struct guest_sim *guest;
	int sync_rc;
	unsigned syncs;
	enum guest_sim_life life;
};

static int take(struct channel *c, const struct iovec *iov, unsigned nr, struct pgr_error *err)
{
	(void)err;
	for (unsigned i = 0; i < nr; i++)
		c->written += iov[i].iov_len;
	return 0;
}

static int look(struct channel *c, struct pgr_error *err)
{
	struct watched *w = (struct watched *)c;
	struct guest_sim_status status;

	guest_sim_status(w->guest, &status);
	w->life = status.life;
	w->syncs++;
	return w->sync_rc ? pgr_fail(err, w->sync_rc, "the storage is gone") : 0;
}

static void nothing(struct channel *c)
{
	(void)c;
}

/* What it came to, with the guest as it was while the file became durable, and afterwards. */
static int save(struct watched *w, bool keep, struct session_result *res,
		enum guest_sim_life *afterwards)
{
	static const struct channel_ops ops = {
		.write = take, .sync = look, .shutdown = nothing, .close = nothing};
	struct guest_sim_options o = {.memory = 64 * 4096, .vcpus = 1};
	struct source_params p = {.channels = 1, .keep = keep};
	struct session_owner owner = {.ctx = NULL};
	struct pgr_error err = PGR_ERROR_NONE;
	struct guest_sim_status status;
	struct guest_source *g = NULL;
	struct guest_sim *guest;
	int rc;

	o.workload.working_set = 8 * 4096;
	o.workload.rate = 1 << 20;
	p.policy.max_rounds = 3;
	CHECK_EQ(guest_sim_source_create(&o, NULL, 0, &g, &err), 0);
	guest = guest_sim_of_source(g);
	w->c = (struct channel){.ops = &ops, .peer = "nowhere"};
	w->guest = guest;
	rc = source_save(g, &w->c, &p, &owner, res, &err);
	CHECK_EQ(rc, w->sync_rc);
	CHECK_EQ(w->syncs, 1);
	guest_sim_status(guest, &status);
	*afterwards = status.life;
	CHECK_EQ(status.mismatches, 0);
	g->ops->close(g);
	guest_sim_destroy(guest);
	return rc;
}

static void one_that_is_kept_runs_before_the_file_is_durable(void)
{
	struct watched w = {.sync_rc = 0};
	struct session_result res;
	enum guest_sim_life afterwards;

	save(&w, true, &res, &afterwards);
	CHECK_EQ(w.life, GUEST_SIM_RUNNING);
	CHECK_EQ(afterwards, GUEST_SIM_RUNNING);
	CHECK_EQ(res.outcome, SESSION_MOVED);
	CHECK(res.stop.total > 0);
}

static void another_stands_still_until_then(void)
{
	struct watched w = {.sync_rc = 0};
	struct session_result res;
	enum guest_sim_life afterwards;

	save(&w, false, &res, &afterwards);
	CHECK_EQ(w.life, GUEST_SIM_SUSPENDED);
	CHECK_EQ(afterwards, GUEST_SIM_SUSPENDED);
	CHECK_EQ(res.outcome, SESSION_MOVED);
}

static void both_run_on_when_it_fails(void)
{
	for (unsigned keep = 0; keep < 2; keep++) {
		struct watched w = {.sync_rc = -EIO};
		struct session_result res;
		enum guest_sim_life afterwards;

		save(&w, keep, &res, &afterwards);
		CHECK_EQ(w.life, keep ? GUEST_SIM_RUNNING : GUEST_SIM_SUSPENDED);
		CHECK_EQ(afterwards, GUEST_SIM_RUNNING);
		CHECK_EQ(res.outcome, SESSION_STAYED);
		CHECK(!res.unfinished);
	}
}

UNIT_MAIN(TEST(one_that_is_kept_runs_before_the_file_is_durable),
	  TEST(another_stands_still_until_then), TEST(both_run_on_when_it_fails))
