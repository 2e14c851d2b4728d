// SPDX-License-Identifier: MIT
/*
 * A hostile front end of disks that pagurus-blk serves: requests that make no sense, grants that are wrong, taken back, or read-only, requests and lists of
 * segments that change while they are looked at, rings and ports that vanish with requests under way, states and features of nonsense, indexes that
 * jump. Each request is answered, with an error where it is wrong; a disk whose rules were broken is closed; nothing of the guest's that was not granted is
 * written; when a connection is over nothing is mapped, and an honest one works on the same disk.
 *
 * The disks are at 51712 and each 16 behind that: a raw one, a qcow2 image, one to read only, and BREAKERS that are closed in the end. Without
 * disks (`disks=0`, or no such option) there is nothing to do.
 * Processors: 2
 * Only beside dom0.
 */
#include "tests/guests/lib/grants.h"
#include "tests/guests/lib/store.h"
#include "vmm/lib/print.h"

#include <xen/event_channel.h>
#include <xen/io/blkif.h>
#include <xen/io/xenbus.h>

#define FRAMES	    4u
#define RING_REF    FIRST
#define LIST_REF    (FIRST + 1u)
#define DATA_REF(i) (FIRST + 2u + (i))
#define NR_DATA	    32u
#define MANY_REF    100u
#define NR_MANY	    1900u
#define NOBODY	    0x7abcu
#define MAPPED	    (GTF_reading | GTF_writing)
#define KEPT_MAX    1056u
#define SEGMENTS    BLKIF_MAX_SEGMENTS_PER_REQUEST
#define INDIRECT    256u
#define IN_PAGE	    8u /* sectors */
#define PLACE	    8192u
#define TRIES	    400u
#define TRY_MS	    100u
#define CANARY	    0x0ddba11c0ffee000ull

enum { RAW, QCOW2, READ_ONLY, BREAKER };
enum { RING = 32 };

/* Copied by its words: the requests have padding, which others use. */
union request {
	uint64_t word[sizeof(blkif_request_t) / 8];
	blkif_request_t data;
	struct blkif_request_indirect indirect;
	struct blkif_request_discard discard;
};
_Static_assert(sizeof(union request) == sizeof(blkif_request_t), "whole words");

const bool uses_store = true;

static struct front {
	unsigned device;
	uint32_t port, req, rsp;
	uint64_t id, sectors;
	blkif_sring_t *ring;
} front;
static uint64_t *list, *data[NR_DATA], *canary[NR_DATA];

/* ---- xenstore ---- */

static const char *node(const char *name)
{
	static char path[96];

	format_string(path, sizeof(path), "device/vbd/%u/%s", front.device, name);
	return path;
}

static uint64_t back_number(const char *name)
{
	static char path[160];
	size_t length;

	if (!store_read(node("backend"), path, 96))
		error("disk %u has no back end", front.device);
	length = strlen(path);
	format_string(path + length, sizeof(path) - length, "/%s", name);
	return store_number(path, 0);
}

static void put(const char *name, uint64_t value)
{
	char text[24];

	format_string(text, sizeof(text), "%llu", (unsigned long long)value);
	store_write(node(name), text);
}

static void state_comes(unsigned wanted, const char *when)
{
	uint64_t now = 0;

	for (unsigned i = 0; i < TRIES; i++) {
		now = back_number("state");
		if (now == wanted)
			return;
		wait_for_event(start_info->store_evtchn, TRY_MS);
	}
	failure("%s: disk %u is in state %llu, not %u", when, front.device, (unsigned long long)now,
		wanted);
}

/* ---- connections ---- */

static void prepare(void)
{
	struct gnttab_setup_table op = {.dom = DOMID_SELF, .nr_frames = FRAMES};
	xen_pfn_t frame[FRAMES];

	if (!option("disks", 0))
		skip("it has no disks");
	set_xen_guest_handle(op.frame_list, frame);
	CHECK_EQ("setup_table", grant_op(GNTTABOP_setup_table, &op, 1), 0);
	CHECK_EQ("its status", op.status, GNTST_okay);
	for (unsigned i = 0; i < FRAMES; i++)
		CHECK_EQ("the table",
			 set_entry(window_entry(WINDOW_PAGES - FRAMES + i), frame[i] << 12 | RW),
			 0);
	grant_table = (void *)WINDOW_VA(WINDOW_PAGES - FRAMES);
	/* Also those of xenstore's page and the console's, which are mapped: a request must not find them. */
	memset(grant_table, 0, FRAMES * PAGE_SIZE);
	front.ring = page_alloc();
	list = page_alloc();
	for (unsigned i = 0; i < NR_DATA; i++) {
		data[i] = page_alloc();
		canary[i] = page_alloc();
		for (unsigned word = 0; word < 512; word++)
			canary[i][word] = CANARY + word;
	}
}

static void grant_all(void)
{
	grant_to(0, RING_REF, mfn_of(front.ring), GRANTED);
	grant_to(0, LIST_REF, mfn_of(list), GRANTED);
	for (unsigned i = 0; i < NR_DATA; i++)
		grant_to(0, DATA_REF(i), mfn_of(data[i]), GRANTED);
}

static uint32_t new_port(void)
{
	struct evtchn_alloc_unbound op = {.dom = DOMID_SELF};

	CHECK_EQ("a port",
		 hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, VA(&op)), 0);
	return op.port;
}

static void close_port(void)
{
	struct evtchn_close op = {.port = front.port};

	if (front.port)
		hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_close, VA(&op));
	front.port = 0;
}

static void kick(void)
{
	struct evtchn_send op = {.port = front.port};

	hypercall2(__HYPERVISOR_event_channel_op, EVTCHNOP_send, VA(&op));
}

/* Whatever came before on that disk. */
static void begin_disk(unsigned which)
{
	if (!grant_table)
		error("nothing is prepared");
	second_stop();
	front.device = 51712 + 16 * which;
	front.req = front.rsp = 0;
	close_port();
	put("state", XenbusStateClosed);
	state_comes(XenbusStateClosed, "after what was before it");
	put("state", XenbusStateInitialising);
	state_comes(XenbusStateInitWait, "before it");
	memset((void *)front.ring, 0, PAGE_SIZE);
	front.ring->req_event = front.ring->rsp_event = 1;
	grant_all();
	front.port = new_port();
	put("ring-ref", RING_REF);
	put("event-channel", front.port);
	store_write(node("protocol"), "x86_64-abi");
}

static void connect(unsigned which, bool persistent)
{
	begin_disk(which);
	put("feature-persistent", persistent);
	put("state", XenbusStateInitialised);
	state_comes(XenbusStateConnected, "connecting");
	put("state", XenbusStateConnected);
	front.sectors = back_number("sectors");
	CHECK(front.sectors > PLACE + 1024, "%llu sectors", (unsigned long long)front.sectors);
}

static void disconnect(void)
{
	put("state", XenbusStateClosed);
	state_comes(XenbusStateClosed, "disconnecting");
	/* Pages with a request under way are unmapped a little later. */
	for (uint32_t ref = FIRST, tries = 0; ref < MANY_REF + NR_MANY; ref++) {
		uint16_t *flags = &grant_table[ref].flags;

		for (; __atomic_load_n(flags, __ATOMIC_SEQ_CST) & MAPPED && tries < TRIES; tries++)
			wait_for_event(start_info->store_evtchn, TRY_MS);
		CHECK(!(*flags & MAPPED), "entry %u is still in use: %x", ref, *flags);
		*flags = 0;
	}
	close_port();
}

/* ---- requests ---- */

static void show(void)
{
	__atomic_store_n(&front.ring->req_prod, front.req, __ATOMIC_SEQ_CST);
	kick();
}

static void add(const void *request)
{
	memcpy(&front.ring->ring[front.req++ % RING], request, sizeof(blkif_request_t));
}

/* The next answer. */
static blkif_response_t answer(void)
{
	for (unsigned i = 0; i < TRIES; i++) {
		if (__atomic_load_n(&front.ring->rsp_prod, __ATOMIC_SEQ_CST) != front.rsp)
			return front.ring->ring[front.rsp++ % RING].rsp;
		__atomic_store_n(&front.ring->rsp_event, front.rsp + 1, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(&front.ring->rsp_prod, __ATOMIC_SEQ_CST) == front.rsp)
			wait_for_event(front.port, TRY_MS);
	}
	failure("request %u is not answered", front.rsp);
}

static void expect(const char *what, union request *r, int status)
{
	union request was = *r;
	blkif_response_t a;

	r->data.id = ++front.id;
	add(r);
	show();
	a = answer();
	CHECK(a.status == status,
	      "%s: status %d, not %d; operation %u, %u segments, sector %llx, %llx and %llx behind that",
	      what, a.status, status, was.data.operation, was.data.nr_segments,
	      (unsigned long long)was.data.sector_number, (unsigned long long)was.word[3],
	      (unsigned long long)was.word[4]);
	CHECK_EQ("its number", a.id, r->data.id);
}

/* Of whole pages, from data[first] on. */
static union request pages(uint8_t operation, uint64_t sector, unsigned first, unsigned nr)
{
	union request r = {.word = {0}};

	r.data.operation = operation;
	r.data.nr_segments = (uint8_t)nr;
	r.data.sector_number = sector;
	for (unsigned i = 0; i < nr; i++)
		r.data.seg[i] = (struct blkif_request_segment){.gref = DATA_REF(first + i),
							       .last_sect = IN_PAGE - 1};
	return r;
}

static union request indirect(uint8_t operation, uint64_t sector, unsigned nr)
{
	struct blkif_request_segment *s = (void *)list;
	union request r = {.word = {0}};

	r.indirect.operation = BLKIF_OP_INDIRECT;
	r.indirect.indirect_op = operation;
	r.indirect.nr_segments = (uint16_t)nr;
	r.indirect.sector_number = sector;
	r.indirect.indirect_grefs[0] = LIST_REF;
	for (unsigned n = 0; n < INDIRECT; n++)
		s[n] = (struct blkif_request_segment){.gref = DATA_REF(n % NR_DATA),
						      .last_sect = IN_PAGE - 1};
	return r;
}

static union request discard(uint8_t flag, uint64_t sector, uint64_t sectors)
{
	union request r = {.word = {0}};

	r.discard.operation = BLKIF_OP_DISCARD;
	r.discard.flag = flag;
	r.discard.sector_number = sector;
	r.discard.nr_sectors = sectors;
	return r;
}

static void write_and_read(void)
{
	static uint64_t seed;
	union request r = pages(BLKIF_OP_WRITE, PLACE, 0, SEGMENTS);

	grant_all();
	seed += 0x9e3779b97f4a7c15ull;
	for (unsigned i = 0; i < SEGMENTS; i++)
		for (unsigned word = 0; word < 512; word++)
			data[i][word] = seed * (512 * i + word + 1);
	expect("a write", &r, BLKIF_RSP_OKAY);
	r = pages(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 0);
	expect("a flush", &r, BLKIF_RSP_OKAY);
	r = pages(BLKIF_OP_READ, PLACE, SEGMENTS, SEGMENTS);
	expect("a read", &r, BLKIF_RSP_OKAY);
	for (unsigned i = 0; i < SEGMENTS; i++)
		CHECK(!memcmp(data[i], data[SEGMENTS + i], PAGE_SIZE),
		      "page %u is not what was written", i);
}

static void canaries(void)
{
	for (unsigned i = 0; i < NR_DATA; i++)
		for (unsigned word = 0; word < 512; word++)
			CHECK(canary[i][word] == CANARY + word,
			      "a page that was not granted was written");
}

/* Another connection of an honest front end, to the same disk. */
static void honest(unsigned which)
{
	connect(which, false);
	write_and_read();
	disconnect();
	connect(which, true);
	write_and_read();
	disconnect();
	canaries();
}

static void honest_first(void)
{
	prepare();
	honest(RAW);
	honest(QCOW2);
}

/* ---- requests that make no sense ---- */

static void bad_segments(void)
{
	static const uint8_t counts[] = {0, SEGMENTS + 1, 255};
	static const uint8_t ends[][2] = {{1, 0}, {7, 6}, {0, 8}, {8, 8}, {0, 255}, {255, 255}};
	union request r = pages(BLKIF_OP_READ, 0, 0, SEGMENTS);

	for (unsigned op = BLKIF_OP_READ; op <= BLKIF_OP_WRITE; op++) {
		for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
			r = pages((uint8_t)op, 0, 0, 1);
			r.data.nr_segments = counts[i];
			expect("a count of segments", &r, BLKIF_RSP_ERROR);
		}
		for (unsigned i = 0; i < ARRAY_SIZE(ends); i++) {
			r = pages((uint8_t)op, 0, 0, 2);
			r.data.seg[1].first_sect = ends[i][0];
			r.data.seg[1].last_sect = ends[i][1];
			expect("a segment", &r, BLKIF_RSP_ERROR);
		}
	}
}

static void bad_places(void)
{
	const uint64_t places[] = {front.sectors, front.sectors - 15, 1ull << 55,	 1ull << 63,
				   ~0ull,	  ~0ull - 7,	      front.sectors << 9};
	union request r;

	for (unsigned i = 0; i < ARRAY_SIZE(places); i++) {
		r = pages(BLKIF_OP_READ, places[i], 0, 2);
		expect("a read beyond the end", &r, BLKIF_RSP_ERROR);
		r = pages(BLKIF_OP_WRITE, places[i], 0, 2);
		expect("a write beyond the end", &r, BLKIF_RSP_ERROR);
		r = indirect(BLKIF_OP_READ, places[i], 2);
		expect("an indirect one beyond the end", &r, BLKIF_RSP_ERROR);
		r = discard(0, places[i], 16);
		expect("a discard beyond the end", &r, BLKIF_RSP_ERROR);
		r = discard(0, 16, places[i]);
		expect("a discard of too much", &r, BLKIF_RSP_ERROR);
	}
	r = pages(BLKIF_OP_READ, front.sectors - 16, 0, 2);
	expect("a read at the end", &r, BLKIF_RSP_OKAY);
}

static void bad_operations(void)
{
	static const uint8_t unknown[] = {BLKIF_OP_RESERVED_1, 7, 77, 255};
	union request r;

	for (unsigned i = 0; i < ARRAY_SIZE(unknown); i++) {
		r = pages(unknown[i], 0, 0, 1);
		expect("an unknown operation", &r, BLKIF_RSP_EOPNOTSUPP);
		r = indirect(unknown[i], 0, 1);
		expect("an unknown indirect one", &r, BLKIF_RSP_EOPNOTSUPP);
	}
	for (uint8_t op = BLKIF_OP_WRITE_BARRIER; op <= BLKIF_OP_INDIRECT; op++) {
		r = indirect(op, 0, 1);
		expect("one that cannot be indirect", &r, BLKIF_RSP_EOPNOTSUPP);
	}
	r = pages(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 1);
	expect("a flush with data", &r, BLKIF_RSP_ERROR);
	r = discard(BLKIF_DISCARD_SECURE, 0, 8);
	expect("a secure discard", &r, BLKIF_RSP_EOPNOTSUPP);
}

static void bad_lists(void)
{
	static const uint16_t counts[] = {0, INDIRECT + 1, 512, 65535};
	static const uint32_t refs[] = {MANY_REF, 0x10000, 0x7fffffff, 0xffffffff};
	struct blkif_request_segment *s = (void *)list;
	union request r;

	for (unsigned i = 0; i < ARRAY_SIZE(counts); i++) {
		r = indirect(BLKIF_OP_WRITE, 0, counts[i]);
		expect("a count of indirect segments", &r, BLKIF_RSP_ERROR);
	}
	for (unsigned i = 0; i < ARRAY_SIZE(refs); i++) {
		r = indirect(BLKIF_OP_READ, 0, 4);
		r.indirect.indirect_grefs[0] = refs[i];
		expect("a list that is not granted", &r, BLKIF_RSP_ERROR);
		r = indirect(BLKIF_OP_READ, 0, INDIRECT);
		s[INDIRECT - 1].gref = refs[i];
		expect("an indirect segment that is not granted", &r, BLKIF_RSP_ERROR);
		r = indirect(BLKIF_OP_WRITE, 0, INDIRECT);
		s[i].last_sect = 8;
		expect("an indirect segment beyond its page", &r, BLKIF_RSP_ERROR);
	}
	/* A list to read only is enough. */
	r = indirect(BLKIF_OP_WRITE, PLACE + 512, 200);
	grant_to(0, LIST_REF, mfn_of(list), READONLY);
	expect("an indirect write", &r, BLKIF_RSP_OKAY);
}

static void bad_grants(void)
{
	static const uint32_t refs[] = {MANY_REF, 0x10000, 0x7fffffff, 0xffffffff};
	static const uint16_t flags[] = {REVOKED, GTF_accept_transfer,
					 GTF_transitive | GTF_permit_access};
	uint64_t before;
	union request r;

	for (unsigned op = BLKIF_OP_READ; op <= BLKIF_OP_WRITE; op++) {
		for (unsigned i = 0; i < ARRAY_SIZE(refs); i++) {
			r = pages((uint8_t)op, 0, 0, 4);
			r.data.seg[3].gref = refs[i];
			expect("a page that is not granted", &r, BLKIF_RSP_ERROR);
		}
		for (unsigned i = 0; i < ARRAY_SIZE(flags); i++) {
			r = pages((uint8_t)op, 0, 0, 4);
			r.data.seg[2].gref = MANY_REF;
			grant_to(0, MANY_REF, mfn_of(canary[0]), flags[i]);
			expect("a page granted in another way", &r, BLKIF_RSP_ERROR);
		}
		grant_to(NOBODY, MANY_REF, mfn_of(canary[0]), GRANTED);
		expect("a page granted to another", &r, BLKIF_RSP_ERROR);
		grant_to(0, MANY_REF, l4_mfn(), GRANTED);
		if (op == BLKIF_OP_READ)
			expect("a table of the guest's", &r, BLKIF_RSP_ERROR);
		grant_to(0, MANY_REF, 1ull << 30, GRANTED);
		expect("no frame at all", &r, BLKIF_RSP_ERROR);
		grant_to(0, MANY_REF, 0, REVOKED);
	}
	grant_to(0, MANY_REF, mfn_of(canary[1]), READONLY);
	before = canary[1][7];
	r = pages(BLKIF_OP_READ, PLACE, 0, 2);
	r.data.seg[0].gref = MANY_REF;
	expect("a read to where it must not write", &r, BLKIF_RSP_ERROR);
	CHECK_EQ("the page", canary[1][7], before);
	r = pages(BLKIF_OP_WRITE, PLACE + 512, 0, 2);
	r.data.seg[0].gref = MANY_REF;
	expect("a write from where it may read", &r, BLKIF_RSP_OKAY);
	grant_to(0, MANY_REF, 0, REVOKED);
}

static void bad_requests(void)
{
	for (unsigned which = RAW; which <= QCOW2; which++)
		for (unsigned persistent = 0; persistent < 2; persistent++) {
			connect(which, persistent);
			bad_segments();
			bad_places();
			bad_operations();
			bad_lists();
			bad_grants();
			write_and_read();
			disconnect();
		}
	canaries();
}

static void read_only(void)
{
	union request r;

	connect(READ_ONLY, false);
	for (uint8_t op = BLKIF_OP_WRITE; op <= BLKIF_OP_WRITE_BARRIER; op++) {
		r = pages(op, 0, 0, 2);
		expect("a write", &r, BLKIF_RSP_ERROR);
	}
	r = indirect(BLKIF_OP_WRITE, 0, 20);
	expect("an indirect write", &r, BLKIF_RSP_ERROR);
	r = discard(0, 0, 8);
	expect("a discard", &r, BLKIF_RSP_EOPNOTSUPP);
	r = pages(BLKIF_OP_READ, 0, 0, SEGMENTS);
	expect("a read", &r, BLKIF_RSP_OKAY);
	disconnect();
}

/* ---- many, and changing ones ---- */

static void many_grants(void)
{
	unsigned kept = 0;
	union request r;

	connect(RAW, true);
	for (unsigned i = 0; i < NR_MANY; i++)
		grant_to(0, MANY_REF + i, mfn_of(data[i % NR_DATA]), GRANTED);
	for (unsigned i = 0; i + SEGMENTS <= NR_MANY; i += SEGMENTS) {
		r = pages(BLKIF_OP_READ, i, 0, SEGMENTS);
		for (unsigned n = 0; n < SEGMENTS; n++)
			r.data.seg[n].gref = MANY_REF + i + n;
		expect("a read", &r, BLKIF_RSP_OKAY);
	}
	for (unsigned i = 0; i < NR_MANY; i++)
		kept += !!(__atomic_load_n(&grant_table[MANY_REF + i].flags, __ATOMIC_SEQ_CST) &
			   MAPPED);
	CHECK(kept > KEPT_MAX / 2 && kept <= KEPT_MAX, "%u pages stay mapped", kept);
	write_and_read();
	disconnect();
}

/* Taken back while they are mapped, and given to something else: the old page is what is read and written. */
static void taken_back(void)
{
	union request r = pages(BLKIF_OP_READ, 0, 0, SEGMENTS);

	connect(RAW, true);
	expect("a read", &r, BLKIF_RSP_OKAY);
	for (unsigned i = 0; i < SEGMENTS; i++) {
		uint16_t *flags = &grant_table[DATA_REF(i)].flags;

		CHECK(*flags & MAPPED, "page %u does not stay mapped", i);
		__atomic_fetch_and(flags, (uint16_t)MAPPED, __ATOMIC_SEQ_CST);
		grant_table[DATA_REF(i)].frame = (uint32_t)mfn_of(canary[i]);
	}
	expect("a read again", &r, BLKIF_RSP_OKAY);
	canaries();
	disconnect();
	honest(RAW);
}

static uint64_t noise(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	return *state ^= *state << 17;
}

/* The other processor: what was asked for, and what is granted, changes. */
static void flip(void)
{
	static uint64_t random = 0x123456789abcdefull;
	static const uint16_t flags[] = {GRANTED, GRANTED, READONLY, REVOKED};
	volatile uint8_t *slots = (volatile uint8_t *)front.ring->ring;
	uint64_t n = noise(&random);

	/* Not the page of lists, nor the ring. */
	if (n % 4 == 0)
		__atomic_store_n(&grant_table[DATA_REF(n / 8 % (NR_DATA / 2))].flags,
				 flags[n / 1024 % 4], __ATOMIC_SEQ_CST);
	else if (n % 4 == 1)
		((volatile uint8_t *)list)[n / 8 % 2048] = (uint8_t)(n >> 32);
	else
		slots[n / 8 % (RING * sizeof(blkif_request_t))] = (uint8_t)(n >> 32 & n >> 40);
	__atomic_store_n(&front.ring->req_event, (uint32_t)(n >> 20), __ATOMIC_SEQ_CST);
}

static union request random_request(uint64_t *random)
{
	uint64_t n = noise(random);
	uint64_t place = n >> 8 & 0xff ? (n >> 16) % front.sectors : n;
	unsigned nr = (unsigned)(1 + (n >> 40) % SEGMENTS);
	uint8_t op = n >> 32 & 1;
	union request r = pages(op, place, (n >> 48) % (NR_DATA - SEGMENTS), nr);

	switch (n % 8) {
	case 0:
		r = indirect(op, place, (unsigned)(n >> 40) % (n >> 60 ? 48 : INDIRECT + 2));
		break;
	case 1:
		r = discard(n >> 33 & 1, place, n >> 34 & 0x7f);
		break;
	case 2:
		r.data.operation = n >> 32 & 7;
		break;
	case 3:
		r.data.seg[(n >> 33) % nr] = (struct blkif_request_segment){
			.gref = (uint32_t)(FIRST + 1 + (n >> 36) % 256),
			.first_sect = n >> 44 & 15,
			.last_sect = n >> 50 & 15};
		break;
	case 4:
		((uint8_t *)r.word)[n >> 33 & 63] ^= (uint8_t)(1 << (n >> 60 & 7));
		break;
	}
	return r;
}

static void storm(unsigned which, bool persistent, bool other)
{
	uint64_t random = option("seed", 1) * 0x2545f4914f6cdd1dull | 1;
	unsigned requests = (unsigned)option("requests", 400), asked = 0, fine = 0;

	connect(which, persistent);
	if (other && !second_start(flip))
		skip("there is no second processor");
	while (front.rsp != requests) {
		for (; asked < requests && front.req - front.rsp < RING; asked++) {
			union request r = random_request(&random);

			add(&r);
		}
		show();
		fine += answer().status == BLKIF_RSP_OKAY;
	}
	second_stop();
	CHECK(fine && fine < asked, "%u asked, %u done", asked, fine);
	canaries();
	write_and_read();
	disconnect();
}

static void fuzz(void)
{
	storm(RAW, false, false);
	storm(QCOW2, true, false);
	storm(QCOW2, false, true);
	storm(RAW, true, true);
	honest(QCOW2);
}

/* ---- what vanishes under load ---- */

static void load(void)
{
	for (unsigned i = 0; i < RING; i++) {
		union request r = i % 2 ? pages(BLKIF_OP_WRITE, PLACE + 16 * i, 0, SEGMENTS)
					: indirect(BLKIF_OP_READ, 0, 64);

		add(&r);
	}
	show();
}

static void port_vanishes(void)
{
	connect(RAW, false);
	load();
	close_port();
	/* The answers are in the ring all the same. */
	for (unsigned i = 0;
	     i < TRIES && __atomic_load_n(&front.ring->rsp_prod, __ATOMIC_SEQ_CST) != RING; i++)
		wait_for_event(start_info->store_evtchn, TRY_MS);
	CHECK_EQ("answers", front.ring->rsp_prod, RING);
	disconnect();
	honest(RAW);
}

static void ring_vanishes(void)
{
	for (unsigned persistent = 0; persistent < 2; persistent++) {
		connect(RAW, persistent);
		load();
		/* As far as a guest can: what is mapped stays so. */
		for (uint32_t ref = FIRST; ref < DATA_REF(NR_DATA); ref++)
			__atomic_fetch_and(&grant_table[ref].flags, (uint16_t)MAPPED,
					   __ATOMIC_SEQ_CST);
		memset((void *)front.ring->ring, 0xff, PAGE_SIZE - offsetof(blkif_sring_t, ring));
		disconnect();
	}
	honest(RAW);
}

static void node_vanishes(void)
{
	connect(RAW, true);
	load();
	store_remove(node("state"));
	store_remove(node("ring-ref"));
	store_remove(node("event-channel"));
	state_comes(XenbusStateClosed, "without a state");
	disconnect();
	honest(RAW);
}

/* ---- xenstore ---- */

static void states(void)
{
	static const char *const words[] = {
		"", "x", "-1", "99", "4294967300", "18446744073709551620", "4 ", "04", "\x7f\x01"};
	uint64_t random = 77;

	connect(RAW, false);
	for (unsigned i = 0; i < 150; i++) {
		uint64_t n = noise(&random);

		if (n % 4)
			put("state", n >> 8 & 7);
		else
			store_write(node("state"), words[(n >> 8) % ARRAY_SIZE(words)]);
		if (n % 5 == 0)
			load();
		front.req = front.rsp = 0;
	}
	put("state", XenbusStateClosing);
	wait_for_event(start_info->store_evtchn, TRY_MS);
	put("state", XenbusStateClosed);
	state_comes(XenbusStateClosed, "after all states");
	disconnect();
	honest(RAW);
}

static void features(void)
{
	begin_disk(RAW);
	store_write(node("feature-persistent"), "-1");
	store_write(node("feature-large-sector-size"), "99999999999999999999999");
	store_write(node("feature-nonsense"), "1");
	store_write(node("multi-queue-num-queues"), "1");
	put("state", XenbusStateInitialised);
	state_comes(XenbusStateConnected, "nonsense that nobody has to know");
	write_and_read();
	disconnect();
	store_remove(node("feature-large-sector-size"));
	honest(RAW);
}

/* Each closes its disk for good. */
static void broken(void)
{
	static const char *const nodes[][2] = {{"ring-ref", "4294967295"},
					       {"event-channel", "4095"}};
	static const int jumps[] = {RING + 1, -1};
	unsigned which = BREAKER;

	for (unsigned i = 0; i < ARRAY_SIZE(nodes); i++) {
		begin_disk(which++);
		store_write(node(nodes[i][0]), nodes[i][1]);
		put("state", XenbusStateInitialised);
		state_comes(XenbusStateClosed, nodes[i][1]);
		disconnect();
	}
	for (unsigned i = 0; i < ARRAY_SIZE(jumps); i++) {
		connect(which++, i);
		write_and_read();
		front.req += (uint32_t)jumps[i];
		show();
		state_comes(XenbusStateClosed, "an index that jumped");
		disconnect();
	}
	honest(RAW);
}

/* What who looks afterwards has to find. */
static void honest_last(void)
{
	union request r = pages(BLKIF_OP_WRITE, 0, 0, 1);

	honest(QCOW2);
	connect(RAW, true);
	for (unsigned word = 0; word < 512; word++)
		memcpy(&data[0][word], "honest.\n", 8);
	expect("a write", &r, BLKIF_RSP_OKAY);
	r = pages(BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 0);
	expect("a flush", &r, BLKIF_RSP_OKAY);
	/* The rest is left under way, for who destroys it. */
	if (option("left", 1)) {
		r = pages(BLKIF_OP_READ, 0, 1, SEGMENTS);
		expect("a read", &r, BLKIF_RSP_OKAY);
		return;
	}
	disconnect();
}

const struct part parts[] = {{"honest", honest_first},	       {"bad-requests", bad_requests},
			     {"read-only", read_only},	       {"many-grants", many_grants},
			     {"taken-back", taken_back},       {"fuzz", fuzz},
			     {"port-vanishes", port_vanishes}, {"ring-vanishes", ring_vanishes},
			     {"node-vanishes", node_vanishes}, {"states", states},
			     {"features", features},	       {"broken", broken},
			     {"honest-last", honest_last},     {NULL, NULL}};
