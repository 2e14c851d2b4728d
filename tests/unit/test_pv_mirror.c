// SPDX-License-Identifier: MIT
/*
 * A mirror under a disk that a guest uses: a front end that writes without a pause, a disk on tape below, another behind an NBD server on a socket pair. Put
 * there, finished, cut, cancelled and let go of at every moment; the guest never gets a wrong answer and its own disk always has what was written.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xen/xen.h>

#include <xen/io/blkif.h>

#include "storage/block_driver.h"
#include "storage/fiber.h"
#include "storage/nbd_server.h"
#include "storage/pv_mirror.h"
#include "tests/storage/tape.h"
#include "tests/unit/pv_fake_guest.h"
#include "tests/unit/unit.h"

#define SIZE	  (6u << 20)
#define DATA_PAGE 100u
#define TURNS_MAX 2000000u
#define BORED_NS  UINT64_C(60000000000)
#define LOOK_NS	  UINT64_C(20000000)

static struct loop *loop;
static struct tape *from, *to;
static struct block *source, *destination;
static struct nbd_server *server;
static struct fake_guest *guest;
static struct fake_front front;
static struct pv_disk *disk;
static struct pv_mirror mirror;
static struct pgr_error err;
static uint64_t state;
static void *memory;
static struct pv_journal *journal;
static uint8_t *expected; /* what the guest has written */
static unsigned released, broken, disconnected, progresses;
static int client; /* the mirror's socket */
static bool over;  /* run() came back */
static int result;
static enum mirror_phase phase;
static uint64_t requests;
static bool hanging; /* the destination: it takes requests and answers none */
static struct wait_queue hung;
static struct block_ops real_ops, hanging_ops;

static void on_broken(void *ctx, const char *why)
{
	(void)ctx;
	(void)why;
	broken++;
}

static void on_say(void *ctx, const char *text)
{
	(void)ctx;
	(void)text;
}

static void on_disconnected(void *ctx)
{
	(void)ctx;
	disconnected++;
}

/* As the disk's process does it; it closes the disk when run() is over. */
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

static void hang(const struct block *b)
{
	if (hanging)
		wait_queue_join(&hung, b->loop);
}

static int hanging_read(struct block *b, uint64_t offset, uint64_t length, struct block_data data,
			struct pgr_error *error)
{
	hang(b);
	return real_ops.read(b, offset, length, data, error);
}

static int hanging_write(struct block *b, uint64_t offset, uint64_t length, struct block_data data,
			 uint32_t flags, struct pgr_error *error)
{
	hang(b);
	return real_ops.write(b, offset, length, data, flags, error);
}

static int hanging_flush(struct block *b, struct pgr_error *error)
{
	hang(b);
	return real_ops.flush(b, error);
}

static void let_it_hang(void)
{
	real_ops = hanging_ops = *destination->ops;
	hanging_ops.read = hanging_read;
	hanging_ops.write = hanging_write;
	hanging_ops.flush = hanging_flush;
	destination->ops = &hanging_ops;
	hanging = true;
}

static void let_it_go_on(void)
{
	hanging = false;
	wait_queue_wake_all(&hung);
}

static void setup(uint64_t destination_size)
{
	struct pv_connection c = {
		.generation = 1, .nr_queues = 1, .sector_shift = 9, .discards = 1};

	signal(SIGPIPE, SIG_IGN);
	err = PGR_ERROR_NONE;
	state = unit_seed();
	released = broken = disconnected = progresses = 0;
	over = false;
	phase = MIRROR_COPY;
	requests = 0;
	expected = malloc(SIZE);
	unit_fill_random(&state, expected, SIZE);
	memset(expected + (2u << 20), 0, 1u << 20);
	CHECK_EQ(loop_create(&loop, NULL), 0);
	from = tape_new(expected, SIZE);
	to = tape_new(NULL, destination_size);
	source =
		tape_open(from, loop, &(struct tape_options){.seed = 1, .max_requests = PV_IO_MAX});
	destination = tape_open(to, loop, &(struct tape_options){.seed = 2});
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

static void turns(unsigned n)
{
	while (n--)
		loop_turn(loop, false);
}

static void look_again(struct loop_timer *t)
{
	loop_arm(loop, t, loop_now_ns() + LOOK_NS);
}

/* However long it takes, within reason. */
static bool comes(bool (*it)(void))
{
	struct loop_timer look = {.fire = look_again};
	uint64_t bored = loop_now_ns() + BORED_NS;
	bool came;

	look_again(&look);
	while (!(came = it()) && loop_now_ns() < bored)
		loop_turn(loop, true);
	loop_disarm(loop, &look);
	return came;
}

/* One write of the guest. */
static void guest_asks(void)
{
	const struct fake_segment s[] = {{FAKE_REF(DATA_PAGE), 0, 7},
					 {FAKE_REF(DATA_PAGE + 1), 0, 7}};
	uint64_t sector = unit_below(&state, SIZE / 512 - 16);
	uint8_t raw[PV_RING_RAW];

	unit_fill_random(&state, fake_page(guest, DATA_PAGE), 2 * PV_PAGE);
	memcpy(expected + sector * 512, fake_page(guest, DATA_PAGE), 2 * PV_PAGE);
	fake_data(PV_ABI_64, raw, BLKIF_OP_WRITE, ++requests, sector, s, 2);
	fake_front_put(&front, raw);
	if (fake_front_push(&front))
		pv_disk_event(disk, FAKE_PORT(0) + 100);
}

/* And its answer. */
static void guest_writes(void)
{
	struct pv_answer a;
	unsigned i;

	guest_asks();
	for (i = 0; i < TURNS_MAX && !fake_front_get(&front, &a); i++)
		loop_turn(loop, false);
	CHECK_MSG(i < TURNS_MAX, "request %llu has no answer", (unsigned long long)requests);
	CHECK_EQ(a.id, requests);
	CHECK_EQ(a.status, BLKIF_RSP_OKAY);
}

static void on_progress(void *ctx, const struct mirror_status *s)
{
	(void)ctx;
	progresses++;
	phase = s->phase;
	CHECK_EQ(s->size, SIZE);
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
	client = fd = pair[0];
	CHECK_EQ(fiber_start(loop, run, &fd), 0);
}

static void cut(void)
{
	if (!over)
		shutdown(client, SHUT_RDWR);
}

static void wait_until_over(void)
{
	unsigned i;

	for (i = 0; i < TURNS_MAX && !over; i++)
		loop_turn(loop, true);
	CHECK_MSG(over, "the mirror does not end");
}

/* Also while the guest writes. */
static void reach(enum mirror_phase wanted)
{
	phase = MIRROR_COPY;
	for (unsigned i = 0; i < TURNS_MAX / 100 && phase < wanted && !over; i++) {
		guest_writes();
		turns(20);
	}
	CHECK(phase >= wanted && phase != MIRROR_FAILED);
}

/* For good, as before a guest moves. */
static void let_go(void)
{
	unsigned i;

	pv_mirror_leave(&mirror);
	pv_disk_release(disk);
	for (i = 0; i < TURNS_MAX && (!released || !over); i++)
		loop_turn(loop, false);
	CHECK_MSG(i < TURNS_MAX, "released %u times, the mirror is %s", released,
		  over ? "over" : "not over");
}

static void check_source(void)
{
	uint64_t size;

	CHECK_MEM(tape_contents(from, &size), expected, SIZE);
}

static void check_destination(void)
{
	uint64_t size;
	void *kept;

	/* With what a power cut at this moment leaves at least. */
	kept = tape_cut_at(to, tape_events(to), TAPE_NONE, 0, &size);
	CHECK_MEM(tape_contents(to, &size), expected, SIZE);
	free(kept);
}

static void teardown(void)
{
	unsigned i;

	CHECK_EQ(mirror.running, false);
	CHECK_EQ(broken, 0);
	pv_disk_go_on(disk, source);
	pv_disk_disconnect(disk);
	for (i = 0; i < TURNS_MAX && !disconnected; i++)
		loop_turn(loop, false);
	CHECK_EQ(disconnected, 1);
	pv_disk_free(disk);
	pv_journal_close(journal);
	CHECK_EQ(block_close(source, &err), 0);
	nbd_server_free(server);
	block_close(destination, NULL);
	tape_free(from);
	tape_free(to);
	loop_free(loop);
	fake_guest_free(guest);
	free(memory);
	free(expected);
}

/* ---- tests ---- */

static void finished_while_the_guest_writes(void)
{
	unsigned flushes;

	setup(SIZE);
	begin();
	reach(MIRROR_EQUAL);
	for (unsigned i = 0; i < 50; i++)
		guest_writes();
	flushes = tape_count(to, TAPE_FLUSH);
	let_go();
	CHECK_MSG(result == 0, "%s", err.text);
	CHECK(tape_count(to, TAPE_FLUSH) > flushes);
	CHECK(progresses > 1);
	check_source();
	check_destination();
	teardown();
}

/* As the one who passed it has, for a while. */
static void somebody_else_has_the_socket_too(void)
{
	int other;

	setup(SIZE);
	begin();
	other = dup(client);
	reach(MIRROR_EQUAL);
	let_go();
	CHECK_MSG(result == 0, "%s", err.text);
	turns(1000);
	check_destination();
	close(other);
	teardown();
	/* And when it is cut. */
	setup(SIZE);
	begin();
	other = dup(client);
	reach(MIRROR_EQUAL);
	cut();
	wait_until_over();
	for (unsigned i = 0; i < 20; i++)
		guest_writes();
	check_source();
	close(other);
	teardown();
}

/* The first copy leaves out what is zero, and so is the new disk. */
static void zeros_are_not_sent(void)
{
	setup(SIZE);
	begin();
	reach(MIRROR_EQUAL);
	let_go();
	CHECK_EQ(result, 0);
	check_destination();
	teardown();
}

static void a_cut_leaves_the_guest_alone(void)
{
	for (unsigned when = 0; when < 4; when++) {
		setup(SIZE);
		begin();
		if (when == 1)
			turns(200);
		else if (when == 2)
			reach(MIRROR_THROUGH);
		else if (when == 3)
			reach(MIRROR_EQUAL);
		cut();
		for (unsigned i = 0; i < 20; i++)
			guest_writes();
		wait_until_over();
		CHECK(result < 0);
		CHECK(err.text[0]);
		for (unsigned i = 0; i < 20; i++)
			guest_writes();
		check_source();
		CHECK_EQ(released, 0);
		teardown();
	}
}

/* The other disk fails, at each of its first writes and at a flush. */
static void the_destination_fails(void)
{
	unsigned failed = 0;

	for (unsigned n = 1; n < 12; n++) {
		setup(SIZE);
		tape_fail(to, n == 11 ? TAPE_FLUSH : TAPE_WRITE, n == 11 ? 1 : n, -ENOSPC);
		begin();
		for (unsigned i = 0; i < 2000 && !over && phase != MIRROR_EQUAL; i++) {
			guest_writes();
			turns(10);
		}
		if (n == 11)
			let_go();
		wait_until_over();
		CHECK(result < 0);
		failed++;
		if (n < 11)
			guest_writes();
		check_source();
		teardown();
	}
	CHECK_EQ(failed, 11);
}

static void too_small(void)
{
	setup(SIZE - 512);
	begin();
	wait_until_over();
	CHECK_EQ(result, -EINVAL);
	guest_writes();
	check_source();
	teardown();
}

static void one_at_a_time(void)
{
	int pair[2], first;

	setup(SIZE);
	begin();
	reach(MIRROR_EQUAL);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	CHECK_EQ(pv_mirror_run(&mirror, pair[0], on_progress, NULL, &err), -EBUSY);
	/* It was closed. */
	CHECK_EQ(recv(pair[1], &first, sizeof(first), 0), 0);
	close(pair[1]);
	guest_writes();
	pv_mirror_end(&mirror, PV_MIRROR_CANCEL);
	wait_until_over();
	CHECK_EQ(result, -ECANCELED);
	guest_writes();
	check_source();
	/* And another one after it. */
	over = false;
	begin();
	reach(MIRROR_EQUAL);
	let_go();
	CHECK_EQ(result, 0);
	check_destination();
	teardown();
}

/* Let go of, cut and cancelled after every number of events: it comes to an end, which is the right one or an error, and the disk is released. */
static void at_every_moment(void)
{
	unsigned finished = 0, failed = 0;

	for (unsigned n = 0; n < 400; n += n < 120 ? 1 : 17) {
		setup(SIZE);
		begin();
		for (unsigned i = 0; i < n && !over && phase != MIRROR_EQUAL; i++)
			loop_turn(loop, true);
		if (n % 3 == 1)
			cut();
		else if (n % 3 == 2)
			pv_mirror_end(&mirror, PV_MIRROR_CANCEL);
		turns(n % 7);
		let_go();
		check_source();
		if (!result)
			check_destination();
		finished += !result;
		failed += result < 0;
		CHECK(released >= 1);
		teardown();
	}
	CHECK_MSG(finished > 5 && failed > 5, "%u finished, %u failed", finished, failed);
}

/* The end of a guest that has disconnected: nothing is finished. */
static void cancelled_at_the_guests_end(void)
{
	setup(SIZE);
	begin();
	reach(MIRROR_THROUGH);
	pv_disk_disconnect(disk);
	for (unsigned i = 0; i < TURNS_MAX && !disconnected; i++)
		loop_turn(loop, false);
	pv_mirror_end(&mirror, PV_MIRROR_CANCEL);
	wait_until_over();
	CHECK_EQ(result, -ECANCELED);
	check_source();
	CHECK_EQ(released, 0);
	disconnected = 0;
	teardown();
}

/* A server that says nothing: the socket's end is the mirror's. */
static void a_peer_that_does_not_answer(void)
{
	static int fd;
	int pair[2];

	setup(SIZE);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	client = fd = pair[0];
	CHECK_EQ(fiber_start(loop, run, &fd), 0);
	for (unsigned i = 0; i < 20; i++)
		guest_writes();
	CHECK(!over);
	cut();
	wait_until_over();
	CHECK(result < 0);
	close(pair[1]);
	guest_writes();
	check_source();
	teardown();
}

static struct pv_answer answer;

static bool is_answered(void)
{
	return fake_front_get(&front, &answer);
}

static bool is_over(void)
{
	return over;
}

static bool is_let_go(void)
{
	return over && released;
}

static void begin_and_hang(enum mirror_phase when)
{
	setup(SIZE);
	mirror.silence_ms = 400;
	if (when == MIRROR_COPY)
		let_it_hang();
	begin();
	if (when == MIRROR_COPY)
		turns(1000);
	else
		reach(when);
	if (when != MIRROR_COPY)
		let_it_hang();
	CHECK(!over);
}

static void end_hanging(void)
{
	CHECK_MSG(result < 0, "it was finished");
	check_source();
	let_it_go_on();
	turns(1000);
	teardown();
}

/* The storage at the other host: the connection is as good as ever. The guest does not wait for it for ever. */
static void the_other_storage_hangs(void)
{
	static const enum mirror_phase when[] = {MIRROR_COPY, MIRROR_EQUAL};

	for (unsigned i = 0; i < 2; i++) {
		begin_and_hang(when[i]);
		guest_asks();
		CHECK_MSG(comes(is_answered), "the guest's write in phase %u has no answer",
			  when[i]);
		CHECK_EQ(answer.id, requests);
		CHECK_EQ(answer.status, BLKIF_RSP_OKAY);
		CHECK_MSG(comes(is_over), "the mirror does not end");
		CHECK_EQ(result, -ESTALE);
		CHECK_HAS(err.text, "look at the storage there");
		for (unsigned n = 0; n < 20; n++)
			guest_writes();
		CHECK_EQ(released, 0);
		end_hanging();
	}
}

/* Nobody writes. */
static void the_other_storage_hangs_unnoticed(void)
{
	begin_and_hang(MIRROR_EQUAL);
	CHECK_MSG(comes(is_over), "the mirror does not end");
	CHECK_HAS(err.text, "look at the storage there");
	end_hanging();
}

static void let_go_of_while_the_other_storage_hangs(void)
{
	begin_and_hang(MIRROR_EQUAL);
	guest_asks();
	turns(100);
	pv_mirror_leave(&mirror);
	pv_disk_release(disk);
	CHECK_MSG(comes(is_let_go), "released %u times, the mirror is %s", released,
		  over ? "over" : "not over");
	end_hanging();
}

static void cancelled_while_the_other_storage_hangs(void)
{
	begin_and_hang(MIRROR_EQUAL);
	guest_asks();
	turns(100);
	pv_mirror_end(&mirror, PV_MIRROR_CANCEL);
	CHECK_MSG(comes(is_over), "the mirror does not end");
	CHECK_MSG(comes(is_answered), "the guest's write has no answer");
	CHECK_EQ(answer.status, BLKIF_RSP_OKAY);
	end_hanging();
}

UNIT_MAIN(TEST(finished_while_the_guest_writes), TEST(somebody_else_has_the_socket_too),
	  TEST(zeros_are_not_sent), TEST(a_cut_leaves_the_guest_alone), TEST(the_destination_fails),
	  TEST(too_small), TEST(one_at_a_time), TEST(at_every_moment),
	  TEST(cancelled_at_the_guests_end), TEST(a_peer_that_does_not_answer),
	  TEST(the_other_storage_hangs), TEST(the_other_storage_hangs_unnoticed),
	  TEST(let_go_of_while_the_other_storage_hangs),
	  TEST(cancelled_while_the_other_storage_hangs))
