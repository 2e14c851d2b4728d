// SPDX-License-Identifier: MIT
/*
 * Two domains and what they share: grants and event channels. `role=1` grants, and does as it is told through a page that both have; `role=2` uses what it
 * is granted in each way that it must not, and judges. `peer=N` is the other's number. Each begins when the other is there. What was granted to be read is
 * not written, goes to no other place, into no other use, and not on to a third; what is taken back, given back, or changed meanwhile harms
 * nobody. In the end much is left mapped, for who destroys them in either order. Without a role there is nothing to do.
 * Processors: 2
 * Only beside dom0.
 */
#include "tests/guests/lib/grants.h"

#include <xen/event_channel.h>
#include <xen/memory.h>
#include <xen/sched.h>
#include <xen/vcpu.h>

#define CONTROL	  FIRST	       /* the entry of the page that both have */
#define REF	  (FIRST + 1u) /* and of what is tried */
#define MANY	  (FIRST + 20u)
#define NR_MANY	  200u
#define CONTROL_P 0u /* pages of the window */
#define TRY_P	  1u
#define SECOND_P  2u
#define MANY_P	  100u
#define IMAGE_MFN 0x200ull
#define MAGIC	  0x5ca1ab1e0ddba10ull /* no entry of a table, either */
#define NOBODY	  0x7abcu
#define PAGES	  4u

enum request {
	NOTHING,
	GRANT, /* entry, page, flags, to whom */
	FLAGS, /* of the entry */
	READ,  /* the page's first word */
	WRITE,
	MFN_OF,
	GIVE_BACK, /* the page; it is another afterwards */
	PIN,	   /* as an L1 */
	UNPIN,
	LISTEN, /* a port for whom */
	CLOSE,
	SEND,
	IS_PENDING, /* and is not afterwards */
	FLICKER,    /* the entry changes all the time, or stays as it is when the argument is 0 */
	PORTS,	    /* ports come and go all the time, or do not */
	QUIT
};

struct control {
	volatile uint32_t request, done;
	volatile uint64_t a, b, c, d;
	volatile long result;
};

static struct control *control;
static domid_t peer;
static uint64_t *page[PAGES]; /* the granter's */

/* ---- the granter ---- */

#define EVENT(command, arg) hypercall2(__HYPERVISOR_event_channel_op, command, VA(arg))

static long listen_for(domid_t who)
{
	struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = who};
	long rc = EVENT(EVTCHNOP_alloc_unbound, &op);

	return rc ? rc : (long)op.port;
}

static long close_port(uint64_t port)
{
	struct evtchn_close op = {.port = (evtchn_port_t)port};

	return EVENT(EVTCHNOP_close, &op);
}

static long send_to(uint64_t port)
{
	struct evtchn_send op = {.port = (evtchn_port_t)port};

	return EVENT(EVTCHNOP_send, &op);
}

static long was_pending(uint64_t port)
{
	uint64_t bit = 1ull << port % 64;

	return !!(__atomic_fetch_and(&shared_info->evtchn_pending[port / 64], ~bit,
				     __ATOMIC_SEQ_CST) &
		  bit);
}

static long give_back(unsigned which)
{
	xen_pfn_t frame = mfn_of(page[which]);
	struct xen_memory_reservation r = {.nr_extents = 1, .domid = DOMID_SELF};

	set_xen_guest_handle(r.extent_start, &frame);
	if (set_mapping(page[which], 0))
		return -1;
	page[which] = page_alloc();
	page[which][1] = MAGIC;
	return hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, VA(&r));
}

static long pin(unsigned which, bool pinned)
{
	long rc;

	if (!pinned)
		return mmuext(MMUEXT_UNPIN_TABLE, mfn_of(page[which]), 0) ||
		       protect(page[which], true);
	if (protect(page[which], false))
		return -1;
	rc = mmuext(MMUEXT_PIN_L1_TABLE, mfn_of(page[which]), 0);
	if (rc)
		protect(page[which], true);
	return rc;
}

static struct storm noise = {.random = 0x1357};

/* An entry as nobody would change it who means well. */
static void flicker(void)
{
	struct grant_entry_v1 *e = &grant_table[REF];
	uint64_t n = storm_noise(&noise) >> 20;

	switch (n % 8) {
	case 0:
		WRITE_ONCE(e->frame, (uint32_t)mfn_of(page[1 + (n >> 8) % 3]));
		break;
	case 1:
		WRITE_ONCE(e->frame, n & 256 ? (uint32_t)IMAGE_MFN : (uint32_t)n);
		break;
	case 2:
		WRITE_ONCE(e->domid, n & 256 ? NOBODY : peer);
		break;
	case 3:
		WRITE_ONCE(e->flags, (uint16_t)(n >> 8));
		break;
	case 4:
		WRITE_ONCE(e->flags, READONLY);
		break;
	default:
		WRITE_ONCE(e->domid, peer);
		WRITE_ONCE(e->frame, (uint32_t)mfn_of(page[1]));
		WRITE_ONCE(e->flags, GRANTED);
	}
}

static void ports_come_and_go(void)
{
	uint64_t n = storm_noise(&noise) >> 20;

	switch (n % 3) {
	case 0:
		listen_for(peer);
		break;
	case 1:
		close_port(1 + (n >> 8) % 24);
		break;
	default:
		send_to(1 + (n >> 8) % 24);
	}
}

static long work(void fn(void), bool on)
{
	if (!on) {
		second_stop();
		for (uint64_t port = 1; fn == ports_come_and_go && port < 1024; port++)
			close_port(port);
		return 0;
	}
	return second_start(fn) ? 0 : -1;
}

static long answer(void)
{
	unsigned which = (unsigned)control->b % PAGES;
	uint32_t ref = (uint32_t)control->a % GRANT_ENTRIES;

	switch (control->request) {
	case GRANT:
		grant_to((domid_t)control->d, ref, mfn_of(page[which]), (uint16_t)control->c);
		return 0;
	case FLAGS:
		return grant_table[ref].flags;
	case READ:
		return (long)page[which][0];
	case WRITE:
		page[which][0] = control->c;
		return 0;
	case MFN_OF:
		return (long)mfn_of(page[which]);
	case GIVE_BACK:
		return give_back(which);
	case PIN:
	case UNPIN:
		return pin(which, control->request == PIN);
	case LISTEN:
		return listen_for((domid_t)control->a);
	case CLOSE:
		return close_port(control->a);
	case SEND:
		return send_to(control->a);
	case IS_PENDING:
		return was_pending(control->a);
	case FLICKER:
		return work(flicker, control->a);
	case PORTS:
		return work(ports_come_and_go, control->a);
	default:
		return -ENOSYS;
	}
}

static void serve(void)
{
	control = page_alloc();
	for (unsigned i = 0; i < PAGES; i++) {
		page[i] = page_alloc();
		page[i][1] = MAGIC;
	}
	grants_init();
	for (unsigned i = 0; i < NR_MANY; i++)
		grant_to(peer, MANY + i, mfn_of(page_alloc()), i % 2 ? GRANTED : READONLY);
	grant_to(peer, CONTROL, mfn_of(control), GRANTED);
	while (control->request != QUIT) {
		if (control->request == control->done)
			continue;
		control->result = answer();
		control->request = NOTHING;
		__atomic_store_n(&control->done, NOTHING, __ATOMIC_SEQ_CST);
	}
}

/* ---- who uses what is granted ---- */

static long ask(enum request what, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	control->a = a;
	control->b = b;
	control->c = c;
	control->d = d;
	__atomic_store_n(&control->request, what, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&control->request, __ATOMIC_SEQ_CST) == what)
		__builtin_ia32_pause();
	return control->result;
}

static void grant(unsigned which, uint16_t flags)
{
	ask(GRANT, REF, which, flags, own_domid());
}

static void connect(void)
{
	uint32_t handle;

	if (option("role", 0) != 2)
		skip("it has another role");
	if (control)
		return;
	grants_init();
	window_entry(0);
	for (unsigned tries = 0; grant_map(peer, CONTROL, CONTROL_P, 0, &handle); tries++) {
		if (tries == 6000)
			error("the other does not come");
		pass_time(10);
	}
	control = (void *)WINDOW_VA(CONTROL_P);
}

static volatile uint64_t *tried(void)
{
	return (void *)WINDOW_VA(TRY_P);
}

static void mapped(void)
{
	uint32_t handle, again;

	connect();
	ask(WRITE, 0, 1, 17, 0);
	CHECK(grant_map(peer, REF, TRY_P, 0, &handle) < 0, "before it is granted");
	grant(1, GRANTED);
	CHECK_EQ("map", grant_map(peer, REF, TRY_P, 0, &handle), GNTST_okay);
	CHECK_EQ("what the other wrote", tried()[0], 17);
	tried()[0] = 18;
	CHECK_EQ("what the other reads", ask(READ, 0, 1, 0, 0), 18);
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED | GTF_reading | GTF_writing);
	CHECK_EQ("twice", grant_map(peer, REF, SECOND_P, GNTMAP_readonly, &again), GNTST_okay);
	CHECK_EQ("no handle", grant_unmap(0x7000000, WINDOW_VA(TRY_P)), GNTST_bad_handle);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW_VA(TRY_P)), GNTST_okay);
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED | GTF_reading);
	CHECK_EQ("unmap twice", grant_unmap(handle, WINDOW_VA(TRY_P)), GNTST_bad_handle);
	CHECK_EQ("unmap", grant_unmap(again, WINDOW_VA(SECOND_P)), GNTST_okay);
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED);
	ask(GRANT, REF, 1, GRANTED, NOBODY);
	CHECK_EQ("another's", grant_map(peer, REF, TRY_P, 0, &handle), GNTST_bad_gntref);
	ask(GRANT, REF, 1, GRANTED, 0);
	CHECK_EQ("dom0's", grant_map(peer, REF, TRY_P, 0, &handle), GNTST_bad_gntref);
}

static void poke(uint64_t va)
{
	*(volatile uint64_t *)va = 0x5555;
}

/* The frame's number is known, and of no use but by the grant. */
static void no_more_than_granted(void)
{
	struct vcpu_register_vcpu_info info = {.offset = 0};
	struct xen_memory_reservation r = {.nr_extents = 1, .domid = DOMID_SELF};
	struct mmu_update u;
	uint64_t *own, frame;
	xen_pfn_t number;
	uint32_t handle, other;

	connect();
	own = page_alloc();
	grant(1, READONLY);
	ask(WRITE, 0, 1, 21, 0);
	number = frame = (uint64_t)ask(MFN_OF, 0, 1, 0, 0);
	CHECK_EQ("to write", grant_map(peer, REF, TRY_P, 0, &handle), GNTST_permission_denied);
	CHECK_EQ("map", grant_map(peer, REF, TRY_P, GNTMAP_readonly, &handle), GNTST_okay);
	CHECK_EQ("what is there", tried()[0], 21);
	CHECK(!no_fault(poke, WINDOW_VA(TRY_P)), "it can be written");
	CHECK_EQ("writable", set_entry(window_entry(TRY_P), frame << 12 | RW), -EPERM);
	CHECK_EQ("by address", set_mapping((void *)WINDOW_VA(TRY_P), frame << 12 | RW), -EPERM);
	for (unsigned rw = 0; rw < 2; rw++)
		CHECK_EQ("elsewhere",
			 set_entry(window_entry(SECOND_P), frame << 12 | (rw ? RW : RO)), -EPERM);
	for (unsigned i = MMUEXT_PIN_L1_TABLE; i <= MMUEXT_UNPIN_TABLE; i++)
		CHECK_EQ("as a table", mmuext(i, frame, 0), -EPERM);
	CHECK_EQ("as a base", mmuext(MMUEXT_NEW_USER_BASEPTR, frame, 0), -EPERM);
	CHECK_EQ("clear", mmuext(MMUEXT_CLEAR_PAGE, frame, 0), -EPERM);
	CHECK_EQ("copy from", mmuext(MMUEXT_COPY_PAGE, mfn_of(own), frame), -EPERM);
	CHECK_EQ("copy to", mmuext(MMUEXT_COPY_PAGE, frame, mfn_of(own)), -EPERM);
	CHECK_EQ("as a GDT", hypercall2(__HYPERVISOR_set_gdt, VA(&frame), 512), -EPERM);
	CHECK_EQ("a descriptor", hypercall2(__HYPERVISOR_update_descriptor, frame << 12, 0),
		 -EPERM);
	info.mfn = frame;
	CHECK_EQ("for events",
		 hypercall3(__HYPERVISOR_vcpu_op, VCPUOP_register_vcpu_info, 0, VA(&info)), -EPERM);
	u = (struct mmu_update){frame << 12 | MMU_MACHPHYS_UPDATE, 5};
	CHECK_EQ("its number", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF),
		 -EPERM);
	u = (struct mmu_update){frame << 12, 5};
	CHECK_EQ("a word", hypercall4(__HYPERVISOR_mmu_update, VA(&u), 1, 0, DOMID_SELF), -EPERM);
	set_xen_guest_handle(r.extent_start, &number);
	CHECK_EQ("given back",
		 hypercall2(__HYPERVISOR_memory_op, XENMEM_decrease_reservation, VA(&r)), 0);
	/* On to a third, who is ourselves. */
	grant_to(own_domid(), REF, frame, GRANTED);
	CHECK_EQ("granted on", grant_map(DOMID_SELF, REF, SECOND_P, 0, &other), GNTST_bad_page);
	CHECK_EQ("granted on, to be read",
		 grant_copy((struct copy_side){DOMID_SELF, true, REF, 0},
			    (struct copy_side){DOMID_SELF, false, mfn_of(own), 0}, 8),
		 GNTST_bad_page);
	CHECK_EQ("as one's own",
		 grant_copy((struct copy_side){DOMID_SELF, false, frame, 0},
			    (struct copy_side){DOMID_SELF, false, mfn_of(own), 0}, 8),
		 GNTST_bad_page);
	CHECK_EQ("what is there", tried()[0], 21);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW_VA(TRY_P)), GNTST_okay);
}

/* A table with another's page goes, and its contents stay: they are of no use. */
static void table_with_anothers(void)
{
	uint64_t va = WINDOW + 0x200000, *l2e, table, *t;
	struct gnttab_map_grant_ref op = {
		.host_addr = va, .flags = GNTMAP_host_map, .ref = REF + 1, .dom = peer};

	connect();
	/* Its handle cannot be given back any more, so the entry is no other part's. */
	ask(GRANT, REF + 1, 1, GRANTED, own_domid());
	map_at(l4_mfn(), va, 0);
	l2e = entry_at(l4_mfn(), va, 2);
	table = *l2e;
	t = entry_at(l4_mfn(), va, 1);
	CHECK_EQ("map", grant_op(GNTTABOP_map_grant_ref, &op, 1), 0);
	CHECK_EQ("its status", op.status, GNTST_okay);
	CHECK_EQ("no table", set_entry(l2e, 0), 0);
	CHECK_EQ("unmap", grant_unmap(op.handle, va), GNTST_bad_virt_addr);
	CHECK(t[0], "the entry is gone");
	CHECK_EQ("the table again", set_entry(l2e, table), -EINVAL);
	CHECK_EQ("pinned", mmuext(MMUEXT_PIN_L1_TABLE, table >> 12 & 0xffffffff, 0), -EINVAL);
	CHECK_EQ("writable", protect(t, true), 0);
	t[0] = 0;
	CHECK_EQ("protect", protect(t, false), 0);
	CHECK_EQ("the table again", set_entry(l2e, table), 0);
}

static void copies(void)
{
	uint64_t *own, mine;

	connect();
	own = page_alloc();
	mine = mfn_of(own);
	grant(1, READONLY);
	ask(WRITE, 0, 1, 31, 0);
	CHECK_EQ("from",
		 grant_copy((struct copy_side){peer, true, REF, 0},
			    (struct copy_side){DOMID_SELF, false, mine, 8}, 8),
		 GNTST_okay);
	CHECK_EQ("what came", own[1], 31);
	CHECK_EQ("to what is read-only",
		 grant_copy((struct copy_side){DOMID_SELF, false, mine, 0},
			    (struct copy_side){peer, true, REF, 0}, 8),
		 GNTST_permission_denied);
	grant(1, GRANTED);
	own[0] = 32;
	CHECK_EQ("to",
		 grant_copy((struct copy_side){DOMID_SELF, false, mine, 0},
			    (struct copy_side){peer, true, REF, 0}, 8),
		 GNTST_okay);
	CHECK_EQ("what the other reads", ask(READ, 0, 1, 0, 0), 32);
	for (unsigned offset = 4089; offset <= 4104; offset++) {
		CHECK_EQ("across the source's end",
			 grant_copy((struct copy_side){peer, true, REF, offset},
				    (struct copy_side){DOMID_SELF, false, mine, 0}, 8),
			 GNTST_bad_copy_arg);
		CHECK_EQ("across the destination's end",
			 grant_copy((struct copy_side){DOMID_SELF, false, mine, 0},
				    (struct copy_side){peer, true, REF, offset}, 8),
			 GNTST_bad_copy_arg);
	}
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED);
	ask(GRANT, REF, 1, REVOKED, 0);
	CHECK_EQ("taken back",
		 grant_copy((struct copy_side){peer, true, REF, 0},
			    (struct copy_side){DOMID_SELF, false, mine, 0}, 8),
		 GNTST_bad_gntref);
}

static void taken_back(void)
{
	uint32_t handle, again;

	connect();
	grant(2, GRANTED);
	CHECK_EQ("map", grant_map(peer, REF, TRY_P, 0, &handle), GNTST_okay);
	/* The granter cannot make a table of it, whatever it writes into its own page of grants. */
	ask(GRANT, REF, 2, REVOKED, 0);
	CHECK_EQ("a table of it", ask(PIN, 0, 2, 0, 0), -EINVAL);
	CHECK_EQ("map again", grant_map(peer, REF, SECOND_P, 0, &again), GNTST_bad_gntref);
	CHECK_EQ("given back", ask(GIVE_BACK, 0, 2, 0, 0), 1);
	tried()[0] = 77;
	CHECK_EQ("what is there", tried()[0], 77);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW_VA(TRY_P)), GNTST_okay);
	/* And what is a table cannot be granted to be written. */
	grant(3, GRANTED);
	CHECK_EQ("a table", ask(PIN, 0, 3, 0, 0), 0);
	CHECK_EQ("to write", grant_map(peer, REF, TRY_P, 0, &handle), GNTST_bad_page);
	CHECK_EQ("to be copied to",
		 grant_copy((struct copy_side){DOMID_SELF, false, mfn_of(page_alloc()), 0},
			    (struct copy_side){peer, true, REF, 0}, 8),
		 GNTST_bad_page);
	CHECK_EQ("to read", grant_map(peer, REF, TRY_P, GNTMAP_readonly, &handle), GNTST_okay);
	CHECK_EQ("unmap", grant_unmap(handle, WINDOW_VA(TRY_P)), GNTST_okay);
	CHECK_EQ("no table", ask(UNPIN, 0, 3, 0, 0), 0);
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED);
}

/* ---- races ---- */

static uint64_t began, limit;

static bool goes_on(bool enough)
{
	uint64_t spent = ticks_now() - began;

	return spent < limit || (!enough && spent < limit * 40);
}

static void begin(void)
{
	limit = ticks_of(option("ms", 1500));
	began = ticks_now();
}

/* The granter changes the entry, we map and copy: what is mapped is a page of the granter's that it had granted at some time. */
static void changing_entry(void)
{
	uint64_t *own, maps = 0, copies_made = 0, turns = 0;
	uint32_t handle;

	connect();
	own = page_alloc();
	for (unsigned i = 1; i < PAGES; i++)
		ask(WRITE, 0, i, 0, 0);
	grant(1, GRANTED);
	CHECK_EQ("flicker", ask(FLICKER, 1, 0, 0, 0), 0);
	begin();
	while (goes_on(maps > 20 && copies_made > 20)) {
		bool write = turns++ % 2;
		int rc = grant_map(peer, REF, TRY_P, write ? 0 : GNTMAP_readonly, &handle);

		CHECK(rc == GNTST_okay || rc == GNTST_bad_gntref || rc == GNTST_bad_page ||
			      rc == GNTST_permission_denied,
		      "map: %d", rc);
		if (!rc) {
			maps++;
			if (write)
				tried()[2] = turns;
			CHECK_EQ("what is mapped", tried()[1], MAGIC);
			CHECK_EQ("unmap", grant_unmap(handle, WINDOW_VA(TRY_P)), GNTST_okay);
		}
		rc = grant_copy((struct copy_side){peer, true, REF, 0},
				(struct copy_side){DOMID_SELF, false, mfn_of(own), 0}, 64);
		CHECK(rc == GNTST_okay || rc == GNTST_bad_gntref || rc == GNTST_bad_page,
		      "copy: %d", rc);
		copies_made += rc == 0;
	}
	ask(FLICKER, 0, 0, 0, 0);
	grant(1, GRANTED);
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED);
	CHECK(maps && copies_made, "%llu maps, %llu copies", (unsigned long long)maps,
	      (unsigned long long)copies_made);
}

static volatile uint32_t common_handle;
static volatile uint64_t unmapped_by_other;

static void unmap_other(void)
{
	struct gnttab_unmap_grant_ref op = {.host_addr = WINDOW_VA(TRY_P), .handle = common_handle};

	grant_op(GNTTABOP_unmap_grant_ref, &op, 1);
	unmapped_by_other += op.status == GNTST_okay;
}

/* Two processors give the same handle back: one of them does. */
static void one_handle_for_two(void)
{
	uint64_t maps = 0, mine = 0;
	uint32_t handle;

	connect();
	grant(1, GRANTED);
	common_handle = ~0u;
	if (!second_start(unmap_other))
		skip("the machine has one processor");
	begin();
	while (goes_on(unmapped_by_other > 10 && mine > 10)) {
		int rc = grant_map(peer, REF, TRY_P, 0, &handle);

		CHECK_EQ("map", rc, GNTST_okay);
		maps++;
		common_handle = handle;
		for (unsigned i = 0; i < maps % 200; i++)
			__builtin_ia32_pause();
		rc = grant_unmap(handle, WINDOW_VA(TRY_P));
		CHECK(rc == GNTST_okay || rc == GNTST_bad_handle, "unmap: %d", rc);
		mine += rc == 0;
		/* The other may be in the middle of it. */
		while (mine + unmapped_by_other < maps)
			__builtin_ia32_pause();
		CHECK_EQ("given back", mine + unmapped_by_other, maps);
	}
	second_stop();
	CHECK_EQ("flags", ask(FLAGS, REF, 0, 0, 0), GRANTED);
}

/* ---- event channels ---- */

static long bind_to(uint64_t port, uint32_t *local)
{
	struct evtchn_bind_interdomain op = {.remote_dom = peer,
					     .remote_port = (evtchn_port_t)port};
	long rc = EVENT(EVTCHNOP_bind_interdomain, &op);

	*local = op.local_port;
	return rc;
}

static void ports(void)
{
	uint32_t local, again;
	long port;

	connect();
	port = ask(LISTEN, own_domid(), 0, 0, 0);
	CHECK(port > 0, "listen: %ld", port);
	CHECK_EQ("bind", bind_to((uint64_t)port, &local), 0);
	CHECK_EQ("bind again", bind_to((uint64_t)port, &again), -EINVAL);
	ask(IS_PENDING, (uint64_t)port, 0, 0, 0);
	CHECK_EQ("send", send_to(local), 0);
	CHECK_EQ("it is there", ask(IS_PENDING, (uint64_t)port, 0, 0, 0), 1);
	was_pending(local);
	CHECK_EQ("the other sends", ask(SEND, (uint64_t)port, 0, 0, 0), 0);
	CHECK_EQ("it is here", was_pending(local), 1);
	CHECK_EQ("the other closes", ask(CLOSE, (uint64_t)port, 0, 0, 0), 0);
	CHECK_EQ("send to nobody", send_to(local), 0);
	CHECK_EQ("it is not there", ask(IS_PENDING, (uint64_t)port, 0, 0, 0), 0);
	CHECK_EQ("close", close_port(local), 0);
	port = ask(LISTEN, NOBODY, 0, 0, 0);
	CHECK_EQ("for another", bind_to((uint64_t)port, &local), -EINVAL);
	CHECK_EQ("the other closes", ask(CLOSE, (uint64_t)port, 0, 0, 0), 0);
	CHECK_EQ("a closed one", bind_to((uint64_t)port, &local), -EINVAL);
}

/* Both bind, send and close what comes and goes on the other side. */
static void ports_at_once(void)
{
	uint64_t bound = 0, turns = 0;

	connect();
	CHECK_EQ("ports", ask(PORTS, 1, 0, 0, 0), 0);
	begin();
	while (goes_on(bound > 20)) {
		uint32_t local;
		long rc = bind_to(1 + turns++ % 24, &local);

		CHECK(rc == 0 || rc == -EINVAL, "bind: %ld", rc);
		if (rc)
			continue;
		bound++;
		rc = send_to(local);
		CHECK(rc == 0, "send: %ld", rc);
		if (turns % 3)
			CHECK_EQ("close", close_port(local), 0);
		if (turns % 64 == 0)
			for (uint64_t port = 1; port < 1024; port++)
				close_port(port);
	}
	ask(PORTS, 0, 0, 0, 0);
	CHECK(bound, "none of %llu was bound", (unsigned long long)turns);
}

/* Left as it is, for who destroys the two; or in the midst of using it. */
static void left(void)
{
	uint32_t handle, local;

	connect();
	for (unsigned i = 0; i < NR_MANY; i++)
		CHECK_EQ(
			"map",
			grant_map(peer, MANY + i, MANY_P + i, i % 2 ? 0 : GNTMAP_readonly, &handle),
			GNTST_okay);
	for (unsigned i = 0; i < 50; i++)
		CHECK_EQ("bind", bind_to((uint64_t)ask(LISTEN, own_domid(), 0, 0, 0), &local), 0);
	if (!option("storm", 0))
		return;
	ask(FLICKER, 1, 0, 0, 0);
	say("in the midst of it");
	for (;;) {
		if (grant_map(peer, REF, TRY_P, GNTMAP_readonly, &handle) == 0)
			grant_unmap(handle, WINDOW_VA(TRY_P));
		send_to(local);
	}
}

static void role(void)
{
	peer = (domid_t)option("peer", 0);
	if (option("role", 0) == 1)
		serve();
	else if (option("role", 0) == 0)
		skip("it is alone");
}

const struct part parts[] = {{"role", role},
			     {"mapped", mapped},
			     {"no-more-than-granted", no_more_than_granted},
			     {"table-with-anothers", table_with_anothers},
			     {"copies", copies},
			     {"taken-back", taken_back},
			     {"changing-entry", changing_entry},
			     {"one-handle-for-two", one_handle_for_two},
			     {"ports", ports},
			     {"ports-at-once", ports_at_once},
			     {"left", left},
			     {NULL, NULL}};
