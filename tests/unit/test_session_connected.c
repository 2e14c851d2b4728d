/* SPDX-License-Identifier: MIT */
/* What comes after RUNNING: the target tells when the guest had its devices, or does not, and the move is a success either way. */
#include <string.h>

#include "tests/unit/session_pair.h"
#include "tests/unit/unit.h"

/* Whoever waits for so long has not noticed that nothing comes: the test then ends by its own limit. */
#define FOR_EVER_MS 3600000u

static const struct pgr_connected figures = {
	.devices_ns = 120000000, .announced_ns = 140000000, .devices = 3, .waiting = 1};
static const struct pgr_connected nothing;

static void small(struct pair_options *o)
{
	pair_defaults(o);
	o->guest.memory = 64 * 4096;
	o->guest.workload.working_set = 8 * 4096;
	o->guest.page_table_pages = 1;
	o->source.policy.max_rounds = 2;
	o->sink.connected = figures;
}

/* It moved, and the source heard this of its devices. */
static void must_move(const struct pair_options *o, const struct pgr_connected *heard,
		      const char *said)
{
	struct pair p;

	pair_run(&p, o);
	CHECK_MSG(p.source.rc == 0, "source: %s; target: %s", p.source.error.text,
		  p.target.error.text);
	CHECK_MSG(p.target.rc == 0, "target: %s", p.target.error.text);
	CHECK_EQ(p.source.result.outcome, SESSION_MOVED);
	CHECK(!memcmp(&p.source.result.stop.connected, heard, sizeof(*heard)));
	CHECK(p.source.result.stop.total > 0);
	CHECK_EQ(p.source.moved, !p.source.result.unfinished);
	CHECK_EQ(p.target.moved, 0);
	CHECK_EQ(p.source.marks[p.source.nr_marks - 1], SESSION_MARK_MOVED);
	CHECK_EQ(p.target.marks[p.target.nr_marks - 1], SESSION_MARK_MOVED);
	CHECK_STR(p.target.messages, said);
	if (p.source.result.unfinished)
		CHECK_EQ(p.g->ops->destroy(p.g, &p.source.error), 0);
	else
		CHECK_STR(p.source.messages, "");
	pair_check_and_free(&p);
}

static void the_figures_arrive(void)
{
	for (unsigned channels = 1; channels <= 3; channels += 2) {
		struct pair_options o;

		small(&o);
		o.source.channels = channels;
		o.source.connected_ms = FOR_EVER_MS;
		must_move(&o, &figures, "");
	}
}

/* After the time is over the source leaves, as an older one does at once; the target notices. */
static void devices_that_never_connect_are_not_waited_for(void)
{
	static const unsigned patience_ms[] = {1, 300};

	for (unsigned i = 0; i < 2; i++) {
		struct pair_options o;

		small(&o);
		o.sink.never_connected = true;
		o.source.connected_ms = patience_ms[i];
		must_move(&o, &nothing, "");
	}
}

static void an_older_target_says_nothing(void)
{
	struct pair_options o;

	small(&o);
	o.target_is_older = true;
	o.source.connected_ms = 300;
	must_move(&o, &nothing, "");
}

static void a_target_that_is_gone_after_running_is_not_waited_for(void)
{
	struct pair_options o;

	small(&o);
	o.cut_after_running = true;
	o.source.connected_ms = FOR_EVER_MS;
	must_move(&o, &nothing, "");
}

static void who_cancels_does_not_wait(void)
{
	struct pair_options o;

	small(&o);
	o.sink.never_connected = true;
	o.source.connected_ms = FOR_EVER_MS;
	o.source_cancel = SESSION_CLEANUP;
	must_move(&o, &nothing, "");
	/* The target then tells what it knows. */
	small(&o);
	o.sink.never_connected = true;
	o.source.connected_ms = FOR_EVER_MS;
	o.target_cancel = SESSION_CLEANUP;
	must_move(&o, &figures, "");
}

static void a_target_that_cannot_tell_says_so_at_once(void)
{
	struct pair_options o;

	small(&o);
	o.sink_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_CONNECTED};
	o.source.connected_ms = FOR_EVER_MS;
	must_move(
		&o, &nothing,
		"it cannot be told when the guest had its devices: guest_sim: the fault 'connected' that was asked for: Input/output error\n");
}

/* Its journal stays open for the repair, and the figures come all the same. */
static void a_copy_that_stays_here_is_not_called_moved(void)
{
	struct pair_options o;

	small(&o);
	o.source_fault = (struct guest_sim_fault){.point = GUEST_SIM_FAULT_DESTROY};
	must_move(&o, &figures, "");
}

UNIT_MAIN(TEST(the_figures_arrive), TEST(devices_that_never_connect_are_not_waited_for),
	  TEST(an_older_target_says_nothing),
	  TEST(a_target_that_is_gone_after_running_is_not_waited_for),
	  TEST(who_cancels_does_not_wait), TEST(a_target_that_cannot_tell_says_so_at_once),
	  TEST(a_copy_that_stays_here_is_not_called_moved))
