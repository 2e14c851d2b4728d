// SPDX-License-Identifier: MIT
/*
 * A mirror under a guest's disk, as a move has it: qcow2 images on both sides, the other one behind an NBD server, and a front end that keeps its ring full
 * of reads, writes, flushes and discards that meet each other, in pages that stay mapped or do not. Let go of at a random moment. Then both disks, opened anew,
 * read the same, and as the guest has written.
 */
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#include "storage/block_qcow2.h"
#include "storage/fiber.h"
#include "storage/nbd_server.h"
#include "storage/pv_mirror.h"
#include "storage/qcow2_create.h"
#include "tests/storage/tape.h"
#include "tests/unit/pv_fake_guest.h"
#include "tests/unit/unit.h"

#define SIZE	  (8u << 20)
#define SECTORS	  (SIZE / 512)
#define SLOTS	  32u
#define SEGMENTS  11u
#define DATA_PAGE 100u
#define TURNS_MAX 4000000u

struct request {
	bool busy;
	uint8_t op;
	uint64_t sector, sectors;
	unsigned pages;
};

static struct loop *loop;
static struct tape *from, *to;
static struct block *source, *destination;
static struct nbd_server *server;
static struct fake_guest *guest;
static struct fake_front front;
static struct pv_disk *disk;
static struct pv_journal *journal;
static struct pv_mirror mirror;
static struct pgr_error err;
static uint64_t state;
static void *memory;
static uint8_t *expected; /* what the guest has written; NULL: its requests meet */
static struct request requests[SLOTS];
static unsigned released, disconnected;
static bool over;
static int result;
static enum mirror_phase phase;

static void on_broken(void *ctx, const char *why)
{
	(void)ctx;
	CHECK_MSG(false, "%s", why);
}

static void on_say(void *ctx, const char *text)
{
	(void)ctx;
	CHECK_MSG(false, "%s", text);
}

static void on_disconnected(void *ctx)
{
	(void)ctx;
	disconnected++;
}

static void on_released(void *ctx)
{
	(void)ctx;
	if (pv_mirror_released(&mirror))
		return;
	released++;
	pv_mirror_end(&mirror, PV_MIRROR_FINISH);
}

static const struct pv_disk_user user = {.broken = on_broken,
					 .say = on_say,
					 .disconnected = on_disconnected,
					 .released = on_released};

/* ---- images ---- */

static struct block *open_image(struct tape *t, bool make, uint64_t seed)
{
	const struct tape_options o = {.grows = true, .seed = seed, .max_requests = PV_IO_MAX};
	const struct block_options write = {.read_only = false, .max_requests = PV_IO_MAX};
	const struct qcow2_creation image = {.size = SIZE,
					     .cluster_size = 1u << (12 + unit_below(&state, 5))};
	struct block *file = tape_open(t, loop, &o), *b = NULL;

	if (make)
		CHECK_MSG(qcow2_create(file, &image, &err) == 0, "%s", err.text);
	CHECK_MSG(block_open_qcow2_over(file, NULL, &write, &b, &err) == 0, "%s", err.text);
	return b;
}

static void *contents(struct tape *t)
{
	struct block *b = open_image(t, false, 9);
	uint8_t *data = malloc(SIZE);

	for (uint64_t at = 0; at < SIZE; at += 1u << 20)
		CHECK_MSG(block_read(b, at, data + at, 1u << 20, &err) == 0, "%s", err.text);
	CHECK_EQ(block_close(b, &err), 0);
	return data;
}

/* Data, zeros, and parts that were never written. */
static void fill_source(void)
{
	static uint8_t data[64u << 10];

	for (uint64_t at = 0; at < SIZE; at += sizeof(data)) {
		unsigned kind = (unsigned)unit_below(&state, 4);

		if (!kind)
			continue;
		unit_fill_random(&state, data, sizeof(data));
		if (kind == 1)
			memset(data, 0, sizeof(data) / 2);
		CHECK_EQ(block_write(source, at, data, sizeof(data), 0, &err), 0);
		if (expected)
			memcpy(expected + at, data, sizeof(data));
	}
}

/* ---- the guest ---- */

static unsigned page_of(unsigned slot)
{
	return DATA_PAGE + slot * SEGMENTS;
}

static bool meets(uint64_t sector, uint64_t sectors)
{
	for (unsigned i = 0; i < SLOTS; i++)
		if (requests[i].busy && sector < requests[i].sector + requests[i].sectors &&
		    requests[i].sector < sector + sectors)
			return true;
	return false;
}

static void put_data(unsigned slot, uint8_t *raw)
{
	struct request *r = &requests[slot];
	struct fake_segment s[SEGMENTS];
	uint64_t left = r->sectors;

	for (unsigned i = 0; i < r->pages; i++) {
		uint64_t n = left < 8 ? left : 8;

		s[i] = (struct fake_segment){FAKE_REF(page_of(slot) + i), 0, (uint8_t)(n - 1)};
		left -= n;
	}
	if (r->op == BLKIF_OP_WRITE) {
		uint8_t *data = fake_page(guest, page_of(slot));

		if (unit_below(&state, 4))
			unit_fill_random(&state, data, r->sectors * 512);
		else
			memset(data, 0, r->sectors * 512);
		if (expected)
			memcpy(expected + r->sector * 512, data, r->sectors * 512);
	}
	fake_data(PV_ABI_64, raw, r->op, slot, r->sector, s, r->pages);
}

static void ask(unsigned slot)
{
	static const uint8_t ops[] = {BLKIF_OP_WRITE, BLKIF_OP_WRITE,		BLKIF_OP_WRITE,
				      BLKIF_OP_READ,  BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_DISCARD};
	struct request r = {.busy = true, .op = ops[unit_below(&state, sizeof(ops))]};
	uint8_t raw[PV_RING_RAW];

	r.sectors = 1 + unit_below(&state, SEGMENTS * 8);
	if (unit_below(&state, 2))
		r.sectors = (r.sectors + 7) & ~7ull;
	if (r.op == BLKIF_OP_DISCARD)
		r.sectors *= 8;
	r.pages = (unsigned)((r.sectors + 7) / 8);
	r.sector = unit_below(&state, SECTORS - r.sectors);
	if (unit_below(&state, 2))
		r.sector %= SECTORS / 8; /* where they meet */
	if (r.op == BLKIF_OP_FLUSH_DISKCACHE)
		r.sectors = r.sector = 0;
	if (expected && (r.op == BLKIF_OP_DISCARD || meets(r.sector, r.sectors)))
		return;
	requests[slot] = r;
	if (r.op == BLKIF_OP_DISCARD)
		fake_discard(PV_ABI_64, raw, 0, slot, r.sector, r.sectors);
	else if (r.op == BLKIF_OP_FLUSH_DISKCACHE)
		fake_data(PV_ABI_64, raw, r.op, slot, 0, NULL, 0);
	else
		put_data(slot, raw);
	fake_front_put(&front, raw);
}

static void take_answers(void)
{
	struct pv_answer a;

	while (fake_front_get(&front, &a)) {
		struct request *r = &requests[a.id];

		CHECK(a.id < SLOTS && r->busy);
		CHECK_EQ(a.status, BLKIF_RSP_OKAY);
		if (expected && r->op == BLKIF_OP_READ)
			CHECK_MEM(fake_page(guest, page_of((unsigned)a.id)),
				  expected + r->sector * 512, r->sectors * 512);
		r->busy = false;
	}
}

/* Some turns of the loop with a ring that is mostly full. */
static void guest_runs(unsigned turns)
{
	while (turns--) {
		take_answers();
		for (unsigned i = 0; i < SLOTS; i++)
			if (!requests[i].busy && unit_below(&state, 2))
				ask(i);
		if (fake_front_push(&front))
			pv_disk_event(disk, FAKE_PORT(0) + 100);
		loop_turn(loop, false);
	}
}

/* ---- the mirror ---- */

static void on_progress(void *ctx, const struct mirror_status *s)
{
	(void)ctx;
	phase = s->phase;
}

static void run(void *ctx)
{
	result = pv_mirror_run(&mirror, *(int *)ctx, on_progress, NULL, &err);
	over = true;
}

static void begin(void)
{
	static int fd;
	int pair[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
	CHECK_EQ(nbd_server_accept(server, pair[1], &err), 0);
	fd = pair[0];
	CHECK_EQ(fiber_start(loop, run, &fd), 0);
}

static void setup(unsigned round)
{
	struct pv_connection c = {.generation = 1,
				  .nr_queues = 1,
				  .sector_shift = 9,
				  .discards = 1,
				  .persistent = round & 1};

	signal(SIGPIPE, SIG_IGN);
	err = PGR_ERROR_NONE;
	released = disconnected = 0;
	over = false;
	phase = MIRROR_COPY;
	memset(requests, 0, sizeof(requests));
	expected = round & 2 ? calloc(1, SIZE) : NULL;
	CHECK_EQ(loop_create(&loop, NULL), 0);
	from = tape_new(NULL, 0);
	to = tape_new(NULL, 0);
	source = open_image(from, true, state);
	destination = open_image(to, true, state + 1);
	fill_source();
	CHECK_EQ(nbd_server_create(loop, NULL, &server, &err), 0);
	CHECK_EQ(nbd_server_export(server, &(struct nbd_export){.name = "", .disk = destination},
				   &err),
		 0);
	guest = fake_guest_new();
	memory = calloc(1, pv_journal_size());
	fake_front_init(&front, guest, PV_ABI_64, 0, 0, 0, 0, &c.queue[0]);
	CHECK_EQ(pv_journal_open(memory, &journal), 0);
	CHECK_EQ(pv_disk_new(loop, source, &fake_guest_ops, guest, journal, &user, NULL, &disk), 0);
	CHECK_EQ(pv_disk_connect(disk, &c, NULL), 0);
	mirror = (struct pv_mirror){.loop = loop, .disk = disk, .source = source};
}

/* As the processes at both ends do it: what was not answered is not done, here or there. */
static void let_go(void)
{
	unsigned i;

	pv_mirror_leave(&mirror);
	pv_disk_release(disk);
	for (i = 0; i < TURNS_MAX && (!released || !over); i++)
		loop_turn(loop, false);
	CHECK_MSG(i < TURNS_MAX, "released %u times, the mirror is %s", released,
		  over ? "over" : "not over");
	CHECK_MSG(result == 0, "%s", err.text);
	take_answers();
}

/* Only what waits in the ring or in the journal has no answer. */
static void check_both(void)
{
	uint8_t *here = contents(from), *there = contents(to);

	for (uint64_t at = 0; at < SIZE; at++)
		if (here[at] != there[at])
			CHECK_MSG(false, "byte %llu is %u, and %u at the other host",
				  (unsigned long long)at, here[at], there[at]);
	for (uint64_t sector = 0; expected && sector < SECTORS; sector++)
		if (!meets(sector, 1))
			CHECK_MEM(here + sector * 512, expected + sector * 512, 512);
	free(here);
	free(there);
}

static void teardown(void)
{
	unsigned i;

	pv_disk_disconnect(disk);
	for (i = 0; i < TURNS_MAX && !disconnected; i++)
		loop_turn(loop, false);
	CHECK_EQ(disconnected, 1);
	pv_disk_free(disk);
	CHECK_EQ(block_close(source, &err), 0);
	nbd_server_free(server);
	CHECK_EQ(block_close(destination, &err), 0);
	check_both();
	/* Whatever was not begun ends with an error, for its disk is gone. */
	for (i = 0; i < SLOTS; i++)
		requests[i].busy = false;
	tape_free(from);
	tape_free(to);
	pv_journal_close(journal);
	loop_free(loop);
	fake_guest_free(guest);
	free(memory);
	free(expected);
}

static void equal_whatever_the_guest_does(void)
{
	const char *asked = getenv("ROUNDS");
	unsigned equal = 0, rounds = asked ? (unsigned)atoi(asked) : 12;

	state = unit_seed();
	for (unsigned round = 0; round < rounds; round++) {
		setup(round);
		guest_runs((unsigned)unit_below(&state, 300));
		begin();
		if (round % 3)
			for (unsigned i = 0; i < TURNS_MAX && phase < MIRROR_EQUAL; i++)
				guest_runs(20);
		guest_runs((unsigned)unit_below(&state, round % 3 ? 3000 : 20000));
		equal += phase == MIRROR_EQUAL;
		let_go();
		teardown();
	}
	CHECK_MSG(equal, "never equal before it was let go of");
}

UNIT_MAIN(TEST(equal_whatever_the_guest_does))
