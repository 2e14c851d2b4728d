// SPDX-License-Identifier: MIT
/*
 * What grants and event channels between domains cost: a PV kernel of its own, built as those of tests/guests/. `role=1` grants, and answers each event with
 * another; `role=2`, made right after it, measures. Without a role it is alone, in dom0's place, and both to itself. Between marks for the plugin
 * run NR_BATCHES times OPERATIONS of each row, in the order in which they stand here; vmm_host.py knows them.
 */
#include "tests/bench/vmm_guest/marks.h"
#include "tests/guests/lib/grants.h"

#include <xen/event_channel.h>
#include <xen/sched.h>

#define OPERATIONS 500u
#define NR_BATCHES 3u
#define COPIES	   32u /* in one call */
#define SMALL	   64u /* bytes of each */

#define PAGE_REF FIRST	      /* what is mapped and copied */
#define TALK_REF (FIRST + 1u) /* where the granter says its port, and is told to end */
#define PAGE_P	 0u	      /* pages of the window */
#define TALK_P	 1u

struct talk {
	volatile uint32_t port, end;
};

static domid_t peer;
static struct talk *talk;
static uint64_t own_mfn;
static uint32_t port; /* ours, bound to the other's */

#define EVENT(command, arg) hypercall2(__HYPERVISOR_event_channel_op, command, VA(arg))

static void send(void)
{
	struct evtchn_send op = {.port = port};

	CHECK_EQ("send", EVENT(EVTCHNOP_send, &op), 0);
}

/* Whatever came since then; sleeps until something has. */
static void wait_for_upcall(uint64_t since)
{
	events_allow(false);
	while (upcalls == since) {
		hypercall2(__HYPERVISOR_sched_op, SCHEDOP_block, 0);
		events_allow(false);
	}
}

static uint32_t listen_for(domid_t who)
{
	struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = who};

	CHECK_EQ("alloc_unbound", EVENT(EVTCHNOP_alloc_unbound, &op), 0);
	return op.port;
}

static void bind(void)
{
	struct evtchn_bind_interdomain op = {.remote_dom = peer, .remote_port = talk->port};

	CHECK_EQ("bind_interdomain", EVENT(EVTCHNOP_bind_interdomain, &op), 0);
	port = op.local_port;
}

static void grant(void)
{
	grants_init();
	talk = page_alloc();
	talk->port = port = listen_for(peer);
	grant_to(peer, PAGE_REF, mfn_of(page_alloc()), GRANTED);
	grant_to(peer, TALK_REF, mfn_of(talk), GRANTED);
}

/* The granter's life: an event for an event. */
static void answer(void)
{
	uint64_t seen = upcalls;

	for (;;) {
		wait_for_upcall(seen);
		seen = upcalls;
		if (talk->end)
			return;
		send();
	}
}

static void connect(void)
{
	uint32_t handle;

	grants_init();
	window_entry(0);
	for (unsigned tries = 0; grant_map(peer, TALK_REF, TALK_P, 0, &handle); tries++) {
		if (tries == 100)
			error("the other does not come");
		pass_time(10);
	}
	talk = (void *)WINDOW_VA(TALK_P);
	bind();
}

/* ---- the rows ---- */

static void round_trip(void)
{
	uint64_t seen = upcalls;

	send();
	wait_for_upcall(seen);
}

static void to_itself(void)
{
	uint64_t seen = upcalls;

	events_allow(true);
	send();
	CHECK(upcalls != seen, "there was no upcall");
}

static void copy_page(void)
{
	CHECK_EQ("copy",
		 grant_copy((struct copy_side){peer, true, PAGE_REF, 0},
			    (struct copy_side){DOMID_SELF, false, own_mfn, 0}, PAGE_SIZE),
		 GNTST_okay);
}

static void copy_pieces(void)
{
	static struct gnttab_copy ops[COPIES];

	for (unsigned i = 0; i < COPIES; i++)
		ops[i] = (struct gnttab_copy){.source.domid = peer,
					      .source.u.ref = PAGE_REF,
					      .dest.domid = DOMID_SELF,
					      .dest.u.gmfn = own_mfn,
					      .dest.offset = (uint16_t)(i * SMALL),
					      .len = SMALL,
					      .flags = GNTCOPY_source_gref};
	CHECK_EQ("copies", grant_op(GNTTABOP_copy, ops, COPIES), 0);
	for (unsigned i = 0; i < COPIES; i++)
		CHECK_EQ("copy", ops[i].status, GNTST_okay);
}

static void map_and_unmap(void)
{
	uint32_t handle;

	CHECK_EQ("map", grant_map(peer, PAGE_REF, PAGE_P, 0, &handle), GNTST_okay);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW_VA(PAGE_P)), GNTST_okay);
}

static void measure(void (*row)(void))
{
	row(); /* once for nothing */
	for (unsigned batch = 0; batch < NR_BATCHES; batch++) {
		MARK_BEGIN();
		for (unsigned i = 0; i < OPERATIONS; i++)
			row();
		MARK_END();
	}
}

static void rows(void)
{
	uint64_t role = option("role", 0);

	peer = (domid_t)(own_domid() + (role == 1) - (role == 2));
	if (role != 2)
		grant();
	if (role == 1) {
		answer();
		return;
	}
	if (role == 2)
		connect();
	else
		bind();
	own_mfn = mfn_of(page_alloc());
	measure(role == 2 ? round_trip : to_itself);
	measure(copy_page);
	measure(copy_pieces);
	measure(map_and_unmap);
	talk->end = 1;
	send();
}

const struct part parts[] = {{"rows", rows}, {NULL, NULL}};
