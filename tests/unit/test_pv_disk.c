// SPDX-License-Identifier: MIT
/* The PV disk server between a front end that fills rings and a disk on tape: what it does, what it refuses, and what a dead process leaves to the next. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#include "storage/pv_disk.h"
#include "storage/pv_grants.h"
#include "tests/storage/tape.h"
#include "tests/unit/pv_fake_guest.h"
#include "tests/unit/unit.h"

#define DISK	  (4u << 20)
#define RING_PAGE 0u   /* four rings of 16 pages at most */
#define DATA_PAGE 100u /* data from here on */
#define LIST_PAGE 900u

struct rig {
	struct loop *l;
	struct tape *tape;
	struct block *b;
	struct fake_guest *g;
	void *memory;
	struct pv_journal *journal;
	struct pv_disk *d;
	struct pv_connection c;
	struct fake_front front[PV_QUEUES_MAX];
	unsigned broken, said, disconnected, released;
	char text[256];
};

static void on_broken(void *ctx, const char *why)
{
	struct rig *r = ctx;

	r->broken++;
	snprintf(r->text, sizeof(r->text), "%s", why);
}

static void on_say(void *ctx, const char *text)
{
	struct rig *r = ctx;

	r->said++;
	snprintf(r->text, sizeof(r->text), "%s", text);
}

static void on_disconnected(void *ctx)
{
	((struct rig *)ctx)->disconnected++;
}

static void on_released(void *ctx)
{
	((struct rig *)ctx)->released++;
}

static const struct pv_disk_user user = {.broken = on_broken,
					 .say = on_say,
					 .disconnected = on_disconnected,
					 .released = on_released};

/* A server over the rig's journal and disk, as a process that begins has it. */
static void start_server(struct rig *r)
{
	struct tape_options o = {.record = true, .max_requests = PV_IO_MAX, .fua = true};

	CHECK_EQ(loop_create(&r->l, NULL), 0);
	r->b = tape_open(r->tape, r->l, &o);
	CHECK_EQ(pv_journal_open(r->memory, &r->journal), 0);
	CHECK_EQ(pv_disk_new(r->l, r->b, &fake_guest_ops, r->g, r->journal, &user, r, &r->d), 0);
}

static void set_up_at(struct rig *r, unsigned nr_queues, unsigned order, enum pv_abi abi,
		      bool persistent, uint32_t start)
{
	*r = (struct rig){.g = fake_guest_new(),
			  .tape = tape_new(NULL, DISK),
			  .memory = calloc(1, pv_journal_size()),
			  .c = {.generation = 1,
				.nr_queues = nr_queues,
				.order = order,
				.abi = abi,
				.sector_shift = 9,
				.persistent = persistent,
				.discards = true}};
	for (unsigned q = 0; q < nr_queues; q++)
		fake_front_init(&r->front[q], r->g, abi, order, RING_PAGE + 16 * q, start, q,
				&r->c.queue[q]);
	start_server(r);
	CHECK_EQ(pv_disk_connect(r->d, &r->c, NULL), 0);
}

static void set_up(struct rig *r, bool persistent)
{
	set_up_at(r, 1, 0, PV_ABI_64, persistent, 0);
}

static void turn(struct rig *r, unsigned times)
{
	while (times-- > 0)
		loop_turn(r->l, false);
}

static void tear_down(struct rig *r)
{
	pv_disk_disconnect(r->d);
	for (unsigned i = 0; i < 10000 && !r->disconnected; i++)
		turn(r, 1);
	CHECK_EQ(r->disconnected, 1);
	CHECK_EQ(r->g->mapped, 0);
	CHECK_EQ(r->g->bound, 0);
	CHECK_EQ(pv_disk_running(r->d), 0);
	pv_disk_free(r->d);
	pv_journal_close(r->journal);
	block_close(r->b, NULL);
	loop_free(r->l);
	tape_free(r->tape);
	free(r->memory);
	fake_guest_free(r->g);
}

static void send(struct rig *r, unsigned q, const void *raw)
{
	fake_front_put(&r->front[q], raw);
	if (fake_front_push(&r->front[q]))
		pv_disk_event(r->d, FAKE_PORT(q) + 100);
}

static int16_t wait_for_answer(struct rig *r, unsigned q, uint64_t id)
{
	struct pv_answer a;

	for (unsigned i = 0; i < 10000; i++) {
		if (fake_front_get(&r->front[q], &a)) {
			CHECK_EQ(a.id, id);
			return a.status;
		}
		turn(r, 1);
	}
	CHECK_MSG(false, "request %llu has no answer", (unsigned long long)id);
	return -1;
}

/* One request of whole pages, from DATA_PAGE + first on, and its answer. */
static int16_t pages(struct rig *r, uint8_t operation, uint64_t sector, unsigned first, unsigned nr)
{
	static uint64_t id;
	struct fake_segment s[11];
	uint8_t raw[PV_RING_RAW];

	for (unsigned i = 0; i < nr; i++)
		s[i] = (struct fake_segment){FAKE_REF(DATA_PAGE + first + i), 0, 7};
	fake_data(r->c.abi, raw, operation, ++id, sector, s, nr);
	send(r, 0, raw);
	return wait_for_answer(r, 0, id);
}

static void fill(struct rig *r, unsigned first, unsigned nr, uint64_t seed)
{
	unit_fill_random(&seed, fake_page(r->g, DATA_PAGE + first), (size_t)nr * PV_PAGE);
}

/* From then on nothing is asked of the disk. */
static void release(struct rig *r)
{
	r->released = 0;
	pv_disk_release(r->d);
	for (unsigned i = 0; i < 10000 && !r->released; i++)
		turn(r, 1);
	CHECK_EQ(r->released, 1);
}

/*
 * What a process does before it ends while the guest stands still: what the disk has is flushed, and nothing is done to it afterwards, however many
 * requests there are. Its mappings go with it.
 */
static void let_go(struct rig *r)
{
	unsigned events;
	uint64_t size;
	void *kept;

	release(r);
	CHECK_EQ(block_close(r->b, NULL), 0);
	events = tape_events(r->tape);
	pv_disk_event(r->d, FAKE_PORT(0) + 100);
	turn(r, 50);
	CHECK_EQ(tape_events(r->tape), events);
	CHECK_EQ(r->released, 1);
	kept = tape_cut_at(r->tape, events, TAPE_NONE, 0, &size);
	CHECK_MEM(kept, tape_contents(r->tape, &size), size);
	free(kept);
	r->g->mapped = r->g->bound = 0;
}

/* ---- what it does ---- */

static void reads_and_writes(enum pv_abi abi, bool persistent, uint32_t start)
{
	struct pv_counters *c;
	struct rig r;

	set_up_at(&r, 1, 0, abi, persistent, start);
	fill(&r, 0, 11, 1);
	CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 16, 0, 11), BLKIF_RSP_OKAY);
	CHECK_EQ(pages(&r, BLKIF_OP_FLUSH_DISKCACHE, 0, 0, 0), BLKIF_RSP_OKAY);
	CHECK_EQ(pages(&r, BLKIF_OP_READ, 16, 20, 11), BLKIF_RSP_OKAY);
	CHECK_MEM(fake_page(r.g, DATA_PAGE), fake_page(r.g, DATA_PAGE + 20), 11 * PV_PAGE);
	CHECK_EQ(r.g->copies, persistent ? 0 : 22);
	CHECK_EQ(r.g->mapped, 1 + (persistent ? 22 : 0));
	c = pv_journal_counters(r.journal);
	CHECK_EQ(c->rd_req, 1);
	CHECK_EQ(c->wr_req, 1);
	CHECK_EQ(c->f_req, 1);
	CHECK_EQ(c->wr_sect, 88);
	CHECK_EQ(c->errors, 0);
	/* Round the ring a few times. */
	for (unsigned i = 0; i < 100; i++)
		CHECK_EQ(pages(&r, i & 1 ? BLKIF_OP_READ : BLKIF_OP_WRITE, i, i, 2),
			 BLKIF_RSP_OKAY);
	tear_down(&r);
}

static void copied_and_mapped(void)
{
	reads_and_writes(PV_ABI_64, false, 0);
	reads_and_writes(PV_ABI_64, true, 0);
	reads_and_writes(PV_ABI_32, false, 0xfffffff0);
	reads_and_writes(PV_ABI_32, true, 0xfffffff0);
}

/* Parts of pages, in an order of their own. */
static void pieces(void)
{
	const struct fake_segment s[] = {{FAKE_REF(DATA_PAGE + 3), 1, 2},
					 {FAKE_REF(DATA_PAGE + 1), 7, 7},
					 {FAKE_REF(DATA_PAGE + 3), 0, 0}};
	uint8_t raw[PV_RING_RAW];
	uint64_t size;

	for (unsigned persistent = 0; persistent < 2; persistent++) {
		const uint8_t *disk;
		struct rig r;

		set_up(&r, persistent);
		fill(&r, 0, 4, 7);
		fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE, 1, 3, s, 3);
		send(&r, 0, raw);
		CHECK_EQ(wait_for_answer(&r, 0, 1), BLKIF_RSP_OKAY);
		disk = tape_contents(r.tape, &size);
		CHECK_MEM(disk + 3 * 512, fake_page(r.g, DATA_PAGE + 3) + 512, 1024);
		CHECK_MEM(disk + 5 * 512, fake_page(r.g, DATA_PAGE + 1) + 7 * 512, 512);
		CHECK_MEM(disk + 6 * 512, fake_page(r.g, DATA_PAGE + 3), 512);
		tear_down(&r);
	}
}

static void indirect(void)
{
	struct fake_segment s[PV_SEGMENTS_MAX];
	uint8_t raw[PV_RING_RAW];

	for (unsigned i = 0; i < PV_SEGMENTS_MAX; i++)
		s[i] = (struct fake_segment){FAKE_REF(DATA_PAGE + i), 0, 7};
	for (unsigned persistent = 0; persistent < 2; persistent++) {
		struct rig r;

		set_up(&r, persistent);
		fill(&r, 0, PV_SEGMENTS_MAX, 5);
		fake_indirect(&r.front[0], raw, BLKIF_OP_WRITE, 1, 8, LIST_PAGE, s,
			      PV_SEGMENTS_MAX);
		send(&r, 0, raw);
		CHECK_EQ(wait_for_answer(&r, 0, 1), BLKIF_RSP_OKAY);
		CHECK_MEM((const uint8_t *)tape_contents(r.tape, &(uint64_t){0}) + 4096,
			  fake_page(r.g, DATA_PAGE), PV_SEGMENTS_MAX * PV_PAGE);
		r.g->ungranted[LIST_PAGE] = true;
		send(&r, 0, raw);
		CHECK_EQ(wait_for_answer(&r, 0, 1), BLKIF_RSP_ERROR);
		tear_down(&r);
	}
}

static void several_queues(void)
{
	const struct fake_segment s = {FAKE_REF(DATA_PAGE), 0, 7};
	uint8_t raw[PV_RING_RAW];
	struct rig r;

	set_up_at(&r, PV_QUEUES_MAX, 2, PV_ABI_64, true, 0);
	for (unsigned i = 0; i < 100; i++) {
		fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE, i, i, &s, 1);
		send(&r, i % PV_QUEUES_MAX, raw);
		if (i % 8 == 7)
			for (unsigned q = 0; q < PV_QUEUES_MAX; q++)
				for (unsigned n = 0; n < 2; n++) {
					struct pv_answer a;

					while (!fake_front_get(&r.front[q], &a))
						turn(&r, 1);
					CHECK_EQ(a.status, 0);
					CHECK_EQ(a.id % PV_QUEUES_MAX, q);
				}
	}
	tear_down(&r);
}

static void discards_and_read_only(void)
{
	uint8_t raw[PV_RING_RAW];
	struct rig r;

	set_up(&r, false);
	fake_discard(PV_ABI_64, raw, 0, 1, 8, 8);
	send(&r, 0, raw);
	CHECK_EQ(wait_for_answer(&r, 0, 1), BLKIF_RSP_OKAY);
	CHECK_EQ(tape_count(r.tape, TAPE_DISCARD), 1);
	fake_discard(PV_ABI_64, raw, BLKIF_DISCARD_SECURE, 2, 8, 8);
	send(&r, 0, raw);
	CHECK_EQ(wait_for_answer(&r, 0, 2), BLKIF_RSP_EOPNOTSUPP);
	tear_down(&r);

	set_up(&r, false);
	pv_disk_disconnect(r.d);
	turn(&r, 3);
	CHECK_EQ(r.disconnected, 1);
	r.disconnected = 0;
	r.c.read_only = true;
	r.c.generation = 2;
	CHECK_EQ(pv_disk_connect(r.d, &r.c, NULL), 0);
	CHECK_EQ(pages(&r, BLKIF_OP_READ, 0, 0, 1), BLKIF_RSP_OKAY);
	CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, 0, 1), BLKIF_RSP_ERROR);
	CHECK_EQ(tape_count(r.tape, TAPE_WRITE), 0);
	tear_down(&r);
}

/*
 * Writes, a barrier and writes again in one batch: at each moment of a power cut, when anything of the second part is there, the first part and
 * the barrier's data are.
 */
static void barriers(void)
{
	struct rig r;
	uint8_t raw[PV_RING_RAW];
	struct pv_answer a;
	unsigned answers = 0;

	set_up(&r, false);
	for (unsigned i = 0; i < 9; i++) {
		struct fake_segment s = {FAKE_REF(DATA_PAGE + i), 0, 7};

		memset(fake_page(r.g, DATA_PAGE + i), 0x10 + (int)i, PV_PAGE);
		fake_data(PV_ABI_64, raw, i == 4 ? BLKIF_OP_WRITE_BARRIER : BLKIF_OP_WRITE, i,
			  i * 8, &s, 1);
		fake_front_put(&r.front[0], raw);
	}
	fake_front_push(&r.front[0]);
	pv_disk_event(r.d, FAKE_PORT(0) + 100);
	while (answers < 9)
		if (fake_front_get(&r.front[0], &a)) {
			CHECK_EQ(a.status, 0);
			/* The barrier comes in the middle. */
			CHECK(answers < 4 ? a.id < 4 : answers == 4 ? a.id == 4 : a.id > 4);
			answers++;
		} else {
			turn(&r, 1);
		}
	for (unsigned cut = 0; cut <= tape_events(r.tape); cut++) {
		uint64_t size;
		uint8_t *left = tape_cut_at(r.tape, cut, TAPE_RANDOM, cut, &size);
		bool late = false, early = true;

		for (unsigned i = 0; i < 5; i++)
			early = early && left[i * PV_PAGE] == 0x10 + i;
		for (unsigned i = 5; i < 9; i++)
			late = late || left[i * PV_PAGE];
		CHECK_MSG(early || !late, "after event %u something came before the barrier", cut);
		free(left);
	}
	/* One without data is a flush. */
	CHECK_EQ(pages(&r, BLKIF_OP_WRITE_BARRIER, 0, 0, 0), BLKIF_RSP_OKAY);
	tear_down(&r);
}

/* ---- what goes wrong ---- */

static void errors_of_the_disk(void)
{
	struct rig r;

	set_up(&r, false);
	tape_fail(r.tape, TAPE_WRITE, 1, -EIO);
	CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, 0, 1), BLKIF_RSP_ERROR);
	CHECK_EQ(r.said, 1);
	CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, 0, 1), BLKIF_RSP_OKAY);
	tape_fail(r.tape, TAPE_READ, 1, -EIO);
	CHECK_EQ(pages(&r, BLKIF_OP_READ, 0, 0, 1), BLKIF_RSP_ERROR);
	CHECK_EQ(pv_journal_counters(r.journal)->errors, 2);
	tear_down(&r);
}

/* No room: the guest waits, and goes on when there is some. */
static void full_disk(void)
{
	struct rig r;
	struct pv_answer a;
	struct fake_segment s = {FAKE_REF(DATA_PAGE), 0, 7};
	uint8_t raw[PV_RING_RAW];

	set_up(&r, true);
	tape_fail(r.tape, TAPE_WRITE, 1, -ENOSPC);
	fill(&r, 0, 1, 3);
	fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE, 1, 0, &s, 1);
	send(&r, 0, raw);
	turn(&r, 200);
	CHECK(!fake_front_get(&r.front[0], &a));
	CHECK_EQ(r.said, 1);
	while (!fake_front_get(&r.front[0], &a))
		loop_turn(r.l, true);
	CHECK_EQ(a.status, BLKIF_RSP_OKAY);
	CHECK_MEM(tape_contents(r.tape, &(uint64_t){0}), fake_page(r.g, DATA_PAGE), PV_PAGE);
	/* Waiting for room keeps a disk neither from being let go of nor from being closed. */
	tape_fail(r.tape, TAPE_WRITE, 1, -ENOSPC);
	send(&r, 0, raw);
	turn(&r, 200);
	release(&r);
	turn(&r, 20);
	tape_fail(r.tape, TAPE_WRITE, 0, 0);
	pv_disk_go_on(r.d, r.b);
	CHECK_EQ(wait_for_answer(&r, 0, 1), BLKIF_RSP_OKAY);
	tape_fail(r.tape, TAPE_WRITE, 1, -ENOSPC);
	send(&r, 0, raw);
	turn(&r, 200);
	let_go(&r);
	start_server(&r);
	CHECK_EQ(pv_disk_connect(r.d, &r.c, NULL), 0);
	CHECK_EQ(wait_for_answer(&r, 0, 1), BLKIF_RSP_OKAY);
	tape_fail(r.tape, TAPE_WRITE, 1, -ENOSPC);
	send(&r, 0, raw);
	turn(&r, 200);
	tear_down(&r);
}

static void bad_grants(void)
{
	for (unsigned persistent = 0; persistent < 2; persistent++) {
		struct rig r;

		set_up(&r, persistent);
		r.g->ungranted[DATA_PAGE + 1] = true;
		CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, 0, 3), BLKIF_RSP_ERROR);
		CHECK_EQ(pages(&r, BLKIF_OP_READ, 0, 0, 3), BLKIF_RSP_ERROR);
		CHECK_EQ(tape_count(r.tape, TAPE_WRITE), 0);
		CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, 2, 1), BLKIF_RSP_OKAY);
		tear_down(&r);
	}
}

static void jumping_index(void)
{
	struct fake_segment s = {FAKE_REF(DATA_PAGE), 0, 7};
	uint8_t raw[PV_RING_RAW];
	struct pv_answer a;
	struct rig r;

	set_up(&r, false);
	fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE, 1, 0, &s, 1);
	send(&r, 0, raw);
	fake_front_indexes(&r.front[0])[0] += 40;
	pv_disk_event(r.d, FAKE_PORT(0) + 100);
	CHECK_EQ(r.broken, 1);
	CHECK_HAS(r.text, "jumped");
	/* What was taken before is still answered; nothing else is taken. */
	while (!fake_front_get(&r.front[0], &a))
		turn(&r, 1);
	pv_disk_event(r.d, FAKE_PORT(0) + 100);
	CHECK_EQ(r.broken, 1);
	tear_down(&r);
}

/* More than may be under way: the rest stays in the rings, and comes on. */
static void many_at_once(void)
{
	struct fake_segment s[PV_SEGMENTS_MAX];
	uint8_t raw[PV_RING_RAW];
	struct pv_answer a;
	struct rig r;
	unsigned answers = 0;

	set_up_at(&r, 1, PV_RING_ORDER_MAX, PV_ABI_64, false, 0);
	for (unsigned i = 0; i < PV_SEGMENTS_MAX; i++)
		s[i] = (struct fake_segment){FAKE_REF(DATA_PAGE + i), 0, 7};
	for (unsigned i = 0; i < PV_RING_ENTRIES; i++) {
		/* Some are of a megabyte: they wait for buffers. */
		if (i % 16)
			fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE, i, 8 * i, s, 1);
		else
			fake_indirect(&r.front[0], raw, BLKIF_OP_READ, i, 0, LIST_PAGE, s,
				      PV_SEGMENTS_MAX);
		fake_front_put(&r.front[0], raw);
	}
	fake_front_push(&r.front[0]);
	pv_disk_event(r.d, FAKE_PORT(0) + 100);
	CHECK(pv_disk_running(r.d) <= PV_IO_MAX);
	CHECK(pv_disk_running(r.d) > 8);
	while (answers < PV_RING_ENTRIES)
		if (fake_front_get(&r.front[0], &a)) {
			CHECK_EQ(a.status, 0);
			answers++;
		} else {
			CHECK(pv_disk_running(r.d) <= PV_IO_MAX);
			turn(&r, 1);
		}
	tear_down(&r);
}

/* Each list of segments that is fetched puts another request behind it, so that the ring is never empty. */
static struct fake_front *endless;
static unsigned fetched;

static int fetch_endlessly(void *ctx, bool to_guest, const struct pv_copy *copies, unsigned nr)
{
	const struct fake_segment nonsense = {FAKE_REF(DATA_PAGE), 7, 0};
	uint8_t raw[PV_RING_RAW];

	if (endless && ++fetched < 100000) {
		fake_indirect(endless, raw, BLKIF_OP_READ, fetched, 0, LIST_PAGE, &nonsense, 1);
		fake_front_put(endless, raw);
		fake_front_push(endless);
	}
	return fake_guest_ops.copy(ctx, to_guest, copies, nr);
}

static void without_end(void)
{
	struct pv_guest_ops ops = fake_guest_ops;
	struct rig r;

	ops.copy = fetch_endlessly;
	set_up(&r, false);
	pv_disk_disconnect(r.d);
	turn(&r, 3);
	pv_disk_free(r.d);
	r.disconnected = 0;
	CHECK_EQ(pv_disk_new(r.l, r.b, &ops, r.g, r.journal, &user, &r, &r.d), 0);
	fake_front_init(&r.front[0], r.g, PV_ABI_64, 0, RING_PAGE, 0, 0, &r.c.queue[0]);
	CHECK_EQ(pv_disk_connect(r.d, &r.c, NULL), 0);
	endless = &r.front[0];
	fetched = 0;
	fetch_endlessly(r.g, false, NULL, 0);
	pv_disk_event(r.d, FAKE_PORT(0) + 100);
	CHECK(fetched > 32 && fetched < 100);
	for (unsigned turns = 1; turns < 10; turns++) {
		turn(&r, 1);
		CHECK(fetched < 100 * (turns + 1));
	}
	CHECK(fetched > 300);
	CHECK_EQ(r.broken, 0);
	/* The loop comes to what it is told, and the guest has no say in it. */
	tear_down(&r);
	endless = NULL;
}

static void refused_connections(void)
{
	struct pgr_error err = PGR_ERROR_NONE;
	struct pv_connection bad;
	struct rig r;

	set_up(&r, true);
	pv_disk_disconnect(r.d);
	turn(&r, 3);
	r.disconnected = 0;
	bad = r.c;
	bad.nr_queues = PV_QUEUES_MAX + 1;
	CHECK_EQ(pv_disk_connect(r.d, &bad, &err), -EINVAL);
	bad = r.c;
	bad.order = PV_RING_ORDER_MAX + 1;
	CHECK_EQ(pv_disk_connect(r.d, &bad, &err), -EINVAL);
	bad = r.c;
	bad.queue[0].ref[0] = 1;
	CHECK_EQ(pv_disk_connect(r.d, &bad, &err), -EFAULT);
	bad = r.c;
	bad.queue[0].port = 1;
	CHECK_EQ(pv_disk_connect(r.d, &bad, &err), -ENOTCONN);
	CHECK_EQ(r.g->mapped, 0);
	CHECK_EQ(r.g->bound, 0);
	CHECK_EQ(pv_disk_connect(r.d, &r.c, &err), 0);
	tear_down(&r);
}

/* The request, its pieces, its buffer; what comes then is the tape's. */
static void without_memory(void)
{
	struct rig r;

	for (unsigned long n = 1; n <= 3; n++) {
		int16_t status;

		set_up(&r, false);
		unit_fail_alloc(n);
		status = pages(&r, BLKIF_OP_WRITE, 0, 0, 2);
		unit_fail_alloc(0);
		CHECK_EQ(status, BLKIF_RSP_ERROR);
		CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, 0, 2), BLKIF_RSP_OKAY);
		tear_down(&r);
	}
}

/* ---- pages that stay mapped ---- */

static void kept_pages(void)
{
	struct fake_guest *g = fake_guest_new();
	struct pv_grants *grants;
	void *first;

	CHECK_EQ(pv_grants_new(&fake_guest_ops, g, 3, &grants), 0);
	first = pv_grants_get(grants, FAKE_REF(0));
	CHECK(first && pv_grants_get(grants, FAKE_REF(0)) == first);
	CHECK(pv_grants_get(grants, FAKE_REF(1024 - 8)) != NULL);
	pv_grants_put(grants, FAKE_REF(1024 - 8));
	CHECK(pv_grants_get(grants, FAKE_REF(2)) != NULL);
	CHECK_EQ(g->mapped, 3);
	/* The one that is in no use goes; then there is none. */
	CHECK(pv_grants_get(grants, FAKE_REF(3)) != NULL);
	CHECK_EQ(g->mapped, 3);
	CHECK(!pv_grants_get(grants, FAKE_REF(4)));
	pv_grants_put(grants, FAKE_REF(0));
	CHECK(!pv_grants_get(grants, FAKE_REF(4)));
	pv_grants_put(grants, FAKE_REF(0));
	CHECK(pv_grants_get(grants, FAKE_REF(4)) != NULL);
	CHECK_EQ(pv_grants_count(grants), 3);
	CHECK(!pv_grants_get(grants, 1));
	pv_grants_free(grants);
	CHECK_EQ(g->mapped, 0);
	fake_guest_free(g);
}

/* More pages than may stay mapped. */
static void evicted_pages(void)
{
	struct rig r;

	set_up(&r, true);
	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < 800; i += 10) {
			fill(&r, i, 10, i + round);
			CHECK_EQ(pages(&r, BLKIF_OP_WRITE, 0, i, 10), 0);
			CHECK_MEM(tape_contents(r.tape, &(uint64_t){0}),
				  fake_page(r.g, DATA_PAGE + i), 10 * PV_PAGE);
		}
	CHECK(r.g->mapped <= PV_GRANTS_MAX + 1);
	tear_down(&r);
}

/* ---- a process dies and another takes over ---- */

/* LeakSanitizer's: what a process that died held is lost on purpose. */
/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void)
{
	return "leak:deaths\nleak:full_disk";
}
/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

/* The process is gone, wherever it was: its disk and loop are left alone, and the kernel takes its mappings back. */
static void die(struct rig *r)
{
	r->g->mapped = r->g->bound = 0;
	start_server(r);
}

/*
 * Random requests, with deaths at random turns, announced and not: each is answered exactly once, with success, and at the end the disk has what was written. Each
 * write has a place of its own while it is under way.
 */
static void deaths(void)
{
	enum { PLACES = 24 };
	uint64_t seed = unit_seed();

	for (unsigned round = 0; round < 30; round++) {
		uint32_t start = (uint32_t)unit_random(&seed);
		bool busy[PLACES] = {false};
		unsigned under_way = 0, sent = 0, deaths_here = 0;
		struct rig r;

		set_up_at(&r, 1, 0, round & 1 ? PV_ABI_32 : PV_ABI_64, round & 2, start);
		while (sent < 300 || under_way) {
			unsigned place = (unsigned)unit_below(&seed, PLACES);
			struct pv_answer a;

			if (sent < 300 && !busy[place]) {
				struct fake_segment s = {FAKE_REF(DATA_PAGE + place), 0, 7};
				uint8_t raw[PV_RING_RAW];

				fill(&r, place, 1, unit_random(&seed));
				fake_data(r.c.abi, raw,
					  sent % 17 == 5 ? BLKIF_OP_WRITE_BARRIER : BLKIF_OP_WRITE,
					  place, 8 * place, &s, 1);
				busy[place] = true;
				under_way++;
				sent++;
				send(&r, 0, raw);
			}
			if (unit_below(&seed, 3) == 0)
				turn(&r, 1);
			while (fake_front_get(&r.front[0], &a)) {
				CHECK_EQ(a.status, BLKIF_RSP_OKAY);
				CHECK(a.id < PLACES && busy[a.id]);
				busy[a.id] = false;
				under_way--;
			}
			if (unit_below(&seed, 20) == 0) {
				release(&r);
				pv_disk_go_on(r.d, r.b);
			}
			if (unit_below(&seed, 40) == 0) {
				if (unit_below(&seed, 2))
					let_go(&r);
				die(&r);
				CHECK_EQ(pv_disk_connect(r.d, &r.c, NULL), 0);
				deaths_here++;
			}
		}
		CHECK_EQ(pv_journal_counters(r.journal)->restarts, deaths_here);
		CHECK_MEM(tape_contents(r.tape, &(uint64_t){0}), fake_page(r.g, DATA_PAGE),
			  PLACES * PV_PAGE);
		tear_down(&r);
	}
}

UNIT_MAIN(TEST(copied_and_mapped), TEST(pieces), TEST(indirect), TEST(several_queues),
	  TEST(discards_and_read_only), TEST(barriers), TEST(errors_of_the_disk), TEST(full_disk),
	  TEST(bad_grants), TEST(jumping_index), TEST(many_at_once), TEST(without_end),
	  TEST(refused_connections), TEST(without_memory), TEST(kept_pages), TEST(evicted_pages),
	  TEST(deaths))
