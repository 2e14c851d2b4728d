// SPDX-License-Identifier: MIT
/*
 * A power cut at every event of random writing to a qcow2 image, and the n-th failure of everything.
 *
 * With dirty bitmaps: one that an image calls consistent has each sector that is not what it was.
 *
 * What the disk may hold afterwards is kept sector by sector: each write has a number, which fills its sectors. A cut behind an event leaves, in
 * each sector, what the last flush that was done before it covers, or anything that was asked for later.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/dirty.h"
#include "storage/qcow2.h"
#include "storage/qcow2_bitmaps.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_create.h"
#include "tests/storage/tape.h"
#include "tests/unit/unit.h"

#define SECTOR	    512u
#define DISK	    (192u << 10)
#define SECTORS	    (DISK / SECTOR)
#define HISTORY	    64u
#define AT_ONCE	    6u
#define OLD	    0x80000000u /* below: number of the sector with this bit */
#define QEMU_EVERY  97u
#define WRITE_EVERY 31u

static struct loop *loop;
static struct tape *tape, *below;
static struct block *disk;
static struct pgr_error err;
static uint64_t seed;
static unsigned failing_allocation; /* of those that the next opening begins */
static bool keeps;		    /* discards change nothing in the file */

struct entry {
	uint32_t value;
	unsigned begun;	 /* events of the tape before it was submitted */
	unsigned number; /* of the round */
	bool maybe;	 /* a discard: or what was there */
};

static struct entry history[SECTORS][HISTORY];
static unsigned entries[SECTORS];

struct flush {
	unsigned number, done; /* it covers the rounds before; events when it was done */
};

static struct flush flushes[256];
static unsigned nr_flushes;

static struct block *open_tape(struct tape *t, bool record)
{
	return tape_open(t, loop,
			 &(struct tape_options){
				 .record = record, .grows = true, .keeps = keeps, .seed = seed});
}

/* A tape with a new image. */
static struct tape *new_image(uint32_t cluster, bool backed)
{
	const struct qcow2_creation c = {.size = DISK,
					 .cluster_size = cluster,
					 .backing = backed ? "below" : NULL,
					 .backing_format = "raw"};
	struct tape *t = tape_new(NULL, 0);
	struct block *file = open_tape(t, false);
	int ret = qcow2_create(file, &c, &err);
	const void *contents;
	uint64_t length;
	struct tape *out;

	CHECK_MSG(ret == 0, "%s", err.text);
	CHECK_EQ(block_close(file, &err), 0);
	contents = tape_contents(t, &length);
	out = tape_new(contents, length);
	tape_free(t);
	return out;
}

static struct block *open_below(void)
{
	return below ? tape_open(below, loop, &(struct tape_options){.seed = seed}) : NULL;
}

static int open_over(struct tape *t, bool read_only, bool record)
{
	const struct block_options o = {.read_only = read_only};
	struct block *file = open_tape(t, record), *backing = open_below();

	/* Not of the tapes. */
	if (failing_allocation)
		unit_fail_alloc(failing_allocation);
	failing_allocation = 0;
	return block_open_qcow2_over(file, backing, &o, &disk, &err);
}

static void setup(uint32_t cluster, bool backed)
{
	CHECK_EQ(loop_create(&loop, NULL), 0);
	err = PGR_ERROR_NONE;
	below = NULL;
	nr_flushes = 0;
	if (backed) {
		uint32_t *data = malloc(DISK);

		for (unsigned i = 0; i < DISK / 4; i++)
			data[i] = OLD | i / (SECTOR / 4);
		below = tape_new(data, DISK - 10 * SECTOR);
		free(data);
	}
	tape = new_image(cluster, backed);
	for (unsigned i = 0; i < SECTORS; i++) {
		history[i][0] = (struct entry){.value = backed && i < SECTORS - 10 ? OLD | i : 0};
		entries[i] = 1;
	}
}

static void teardown(void)
{
	tape_free(tape);
	if (below)
		tape_free(below);
	loop_free(loop);
}

static void check_image(struct tape *t, bool leaks_allowed)
{
	const struct block_options o = {.read_only = true, .grows = true};
	struct qcow2_check c = {.found = NULL};
	struct block *file = open_tape(t, false);

	(void)o;
	CHECK_MSG(qcow2_check(file, &c, &err) == 0, "%s", err.text);
	CHECK_EQ(block_close(file, &err), 0);
	CHECK_EQ(c.damages, 0);
	CHECK(leaks_allowed || !c.leaks);
}

/* Without its backing file, which is not where it would be looked for. */
static void ask_qemu(uint8_t *image, uint64_t length)
{
	char path[] = "/var/tmp/qcow2-cut-XXXXXX", command[128];
	int fd = mkstemp(path), status;

	memset(image + offsetof(struct qcow2_disk_header, backing_offset), 0, 8);
	CHECK(fd >= 0 && write(fd, image, length) == (ssize_t)length);
	close(fd);
	snprintf(command, sizeof(command), "qemu-img check -q -f qcow2 %s >/dev/null 2>&1", path);
	status = system(command); /* NOLINT(cert-env33-c): the command is the test's own */
	CHECK_MSG(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 3),
		  "qemu-img check: %d", status);
	unlink(path);
}

/* ---- requests ---- */

struct job {
	struct block_request r;
	struct iovec iov;
	uint32_t data[DISK / 4 / 4];
	unsigned round;
	int result;
	bool busy;
};

static struct job jobs[AT_ONCE];
static unsigned busy;

static void job_done(struct block_request *r, const struct pgr_error *e)
{
	struct job *j = (struct job *)r;

	j->result = e ? e->code : 0;
	j->busy = false;
	busy--;
	if (!e && r->op == BLOCK_FLUSH)
		flushes[nr_flushes++] =
			(struct flush){.number = j->round, .done = tape_events(tape)};
}

static void note(unsigned sector, uint32_t value, unsigned round, bool maybe)
{
	CHECK(entries[sector] < HISTORY);
	history[sector][entries[sector]++] = (struct entry){
		.value = value, .begun = tape_events(tape), .number = round, .maybe = maybe};
}

static bool is_free(uint64_t offset, uint64_t length)
{
	for (unsigned i = 0; i < AT_ONCE; i++)
		if (jobs[i].busy && offset < jobs[i].r.offset + jobs[i].r.length &&
		    jobs[i].r.offset < offset + length)
			return false;
	return true;
}

static void start(struct job *j, unsigned round)
{
	uint64_t random = unit_below(&seed, 10);
	uint64_t n = 1 + unit_below(&seed, unit_below(&seed, 3) ? 12 : 90);
	uint64_t first = unit_below(&seed, SECTORS - n);

	j->r = (struct block_request){.op = random < 5	 ? BLOCK_WRITE
					    : random < 7 ? BLOCK_ZERO
					    : random < 9 ? BLOCK_DISCARD
							 : BLOCK_FLUSH,
				      .flags = random & 1 ? BLOCK_UNMAP : 0,
				      .offset = first * SECTOR,
				      .length = n * SECTOR,
				      .iov = &j->iov,
				      .nr_iov = 1,
				      .done = job_done};
	j->round = round;
	if (j->r.op == BLOCK_FLUSH)
		j->r.offset = j->r.length = 0;
	else if (!is_free(j->r.offset, j->r.length))
		return;
	j->iov = (struct iovec){.iov_base = j->data, .iov_len = n * SECTOR};
	for (uint64_t i = 0; i < n * SECTOR / 4; i++)
		j->data[i] = round * AT_ONCE + (unsigned)(j - jobs) + 1;
	for (uint64_t i = 0; i < n && j->r.op != BLOCK_FLUSH; i++)
		note((unsigned)(first + i), j->r.op == BLOCK_WRITE ? j->data[0] : 0, round,
		     j->r.op == BLOCK_DISCARD);
	j->busy = true;
	busy++;
	block_submit(disk, &j->r);
}

/* What is left of a discard is read: from then on it is that. */
static void settle(unsigned round)
{
	for (unsigned s = 0; s < SECTORS; s++) {
		struct entry *e = &history[s][entries[s] - 1];
		uint32_t data[SECTOR / 4];

		if (!e->maybe || e->number != round)
			continue;
		CHECK_EQ(block_read(disk, (uint64_t)s * SECTOR, data, SECTOR, &err), 0);
		CHECK(data[0] == 0 || data[0] == e[-1].value);
		e->value = data[0];
		/* Before it was done a cut may have left the other one. */
	}
}

static void run(unsigned rounds)
{
	for (unsigned round = 1; round <= rounds; round++) {
		for (unsigned i = 0; i < AT_ONCE; i++)
			start(&jobs[i], round);
		while (busy)
			loop_turn(loop, true);
		for (unsigned i = 0; i < AT_ONCE; i++)
			CHECK_EQ(jobs[i].result, 0);
		settle(round);
	}
}

/* ---- bitmaps ---- */

#define LATER "later" /* one that was not there from the beginning */

/* How many of the bitmaps of the image that is open are consistent. */
static unsigned check_bitmaps(void)
{
	static uint32_t data[DISK / 4];
	const struct qcow2_bitmaps *all;
	unsigned consistent = 0;

	CHECK_MSG(qcow2_bitmaps(disk, &all, &err) == 0, "%s", err.text);
	CHECK_EQ(block_read(disk, 0, data, DISK, &err), 0);
	for (unsigned i = 0; i < all->nr; i++) {
		if (!all->list[i].dirty || !strcmp(all->list[i].name, LATER))
			continue;
		consistent++;
		for (unsigned s = 0; s < SECTORS; s++) {
			bool set;

			dirty_run(all->list[i].dirty, (uint64_t)s * SECTOR, SECTOR, &set);
			CHECK_MSG(set || data[s * (SECTOR / 4)] == history[s][0].value,
				  "%s says that sector %u was not written", all->list[i].name, s);
		}
	}
	return consistent;
}

static void change_bitmaps(const char *more, const char *fewer)
{
	CHECK_MSG(open_over(tape, false, true) == 0, "%s", err.text);
	if (more)
		CHECK_MSG(qcow2_bitmap_add(disk, more, SECTOR, &err) == 0, "%s", err.text);
	if (fewer)
		CHECK_EQ(qcow2_bitmap_remove(disk, fewer, &err), 0);
	CHECK_EQ(block_close(disk, &err), 0);
}

/* ---- after a cut ---- */

static bool may_be(unsigned sector, uint32_t value, unsigned events)
{
	unsigned covered = 0, base = 0;

	for (unsigned i = 0; i < nr_flushes; i++)
		if (flushes[i].done <= events && flushes[i].number > covered)
			covered = flushes[i].number;
	for (unsigned i = 1; i < entries[sector]; i++)
		if (history[sector][i].number < covered && !history[sector][i].maybe)
			base = i;
	for (unsigned i = base; i < entries[sector] && history[sector][i].begun <= events; i++)
		if (history[sector][i].value == value || (history[sector][i].maybe && value == 0))
			return true;
	return false;
}

static void check_contents(unsigned events)
{
	static uint32_t data[DISK / 4];

	CHECK_EQ(block_read(disk, 0, data, DISK, &err), 0);
	for (unsigned s = 0; s < SECTORS; s++) {
		const uint32_t *sector = data + (size_t)s * (SECTOR / 4);

		for (unsigned i = 1; i < SECTOR / 4; i++)
			CHECK_MSG(sector[i] == sector[0], "sector %u is torn: %x and %x", s,
				  sector[0], sector[i]);
		CHECK_MSG(may_be(s, sector[0], events), "cut behind %u: sector %u has %x", events,
			  s, sector[0]);
	}
}

/* It goes on from there. */
static void write_after(struct tape *t)
{
	static uint8_t data[DISK], got[DISK];

	CHECK_MSG(open_over(t, false, false) == 0, "%s", err.text);
	memset(data, 0x77, sizeof(data));
	CHECK_EQ(block_write(disk, 0, data, DISK, 0, &err), 0);
	CHECK_EQ(block_read(disk, 0, got, DISK, &err), 0);
	CHECK_MEM(data, got, DISK);
	CHECK_EQ(block_close(disk, &err), 0);
	check_image(t, true);
}

static void cut(unsigned events, enum tape_cut how, unsigned nr)
{
	uint64_t length;
	void *image = tape_cut_at(tape, events, how, seed + nr, &length);
	struct tape *t = tape_new(image, length);

	CHECK_MSG(open_over(t, true, false) == 0, "cut behind %u: %s", events, err.text);
	check_contents(events);
	check_bitmaps();
	CHECK_EQ(block_close(disk, &err), 0);
	check_image(t, true);
	if (nr % QEMU_EVERY == 0)
		ask_qemu(image, length);
	if (nr % WRITE_EVERY == 0)
		write_after(t);
	tape_free(t);
	free(image);
}

static void cuts(uint32_t cluster, bool backed, unsigned rounds, bool bitmaps)
{
	unsigned nr = 0;

	setup(cluster, backed);
	if (bitmaps) {
		change_bitmaps("first", NULL);
		change_bitmaps("second", NULL);
	}
	CHECK_EQ(open_over(tape, false, true), 0);
	run(rounds);
	CHECK_EQ(block_close(disk, &err), 0);
	if (bitmaps) {
		change_bitmaps(LATER, "first");
		CHECK_EQ(open_over(tape, true, false), 0);
		CHECK_EQ(check_bitmaps(), 1);
		CHECK_EQ(block_close(disk, &err), 0);
	}
	check_image(tape, false);
	for (unsigned at = 0; at <= tape_events(tape); at++)
		for (enum tape_cut how = TAPE_NONE; how <= TAPE_TORN; how++)
			cut(at, how, nr++);
	printf("# clusters of %u%s: %u cuts\n", cluster, backed ? ", backed" : "", nr);
	teardown();
}

static void power_cuts_at_every_event(void)
{
	static const uint32_t clusters[] = {512, 4096, 16384};

	seed = unit_seed();
	for (unsigned i = 0; i < 3; i++) {
		keeps = i & 1;
		cuts(clusters[i], false, 12, false);
		keeps = !keeps;
		cuts(clusters[i], true, 12, false);
	}
}

static void power_cuts_with_bitmaps(void)
{
	seed = unit_seed();
	cuts(512, true, 6, true);
	keeps = true;
	cuts(4096, false, 6, true);
	keeps = false;
}

/* ---- the n-th failure ---- */

static const struct step {
	enum block_op op;
	uint32_t flags;
	unsigned first, sectors;
} steps[] = {
	{BLOCK_WRITE, 0, 0, 40},
	{BLOCK_WRITE, 0, 101, 3},
	{BLOCK_FLUSH, 0, 0, 0},
	{BLOCK_WRITE, 0, 100, 30},
	{BLOCK_ZERO, 0, 8, 24},
	{BLOCK_WRITE, 0, 17, 1},
	{BLOCK_FLUSH, 0, 0, 0},
	{BLOCK_DISCARD, 0, 96, 40},
	{BLOCK_ZERO, BLOCK_UNMAP, 200, 70},
	{BLOCK_FLUSH, 0, 0, 0},
	{BLOCK_WRITE, 0, 150, 100},
	{BLOCK_WRITE, 0, 90, 20},
	{BLOCK_WRITE, 0, 330, 50},
	{BLOCK_FLUSH, 0, 0, 0},
	{BLOCK_ZERO, BLOCK_UNMAP, 0, 64},
	{BLOCK_WRITE, 0, 20, 5},
	{BLOCK_FLUSH, 0, 0, 0},
	{BLOCK_RESIZE, 0, 0, 600},
	{BLOCK_RESIZE, 0, 0, SECTORS},
};

static int do_step(const struct step *s, unsigned round)
{
	static uint32_t data[DISK / 4];
	uint64_t offset = (uint64_t)s->first * SECTOR, length = (uint64_t)s->sectors * SECTOR;
	int ret = 0;

	for (uint64_t i = 0; i < length / 4 && i < DISK / 4; i++)
		data[i] = round;
	for (unsigned i = 0; i < s->sectors && s->op != BLOCK_RESIZE; i++)
		note(s->first + i, s->op == BLOCK_WRITE ? round : 0, round, s->op == BLOCK_DISCARD);
	switch (s->op) {
	case BLOCK_WRITE:
		return block_write(disk, offset, data, length, 0, &err);
	case BLOCK_ZERO:
		return block_zero(disk, offset, length, s->flags, &err);
	case BLOCK_DISCARD:
		ret = block_discard(disk, offset, length, &err);
		break;
	case BLOCK_RESIZE:
		return block_resize(disk, length, &err);
	default:
		ret = block_flush(disk, &err);
		if (!ret)
			flushes[nr_flushes++] =
				(struct flush){.number = round, .done = tape_events(tape)};
	}
	return ret;
}

/* What fails is asked for again; whether everything worked in the end. *failed: how often it did not. */
static bool do_steps(int code, unsigned *failed)
{
	bool good = true;

	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		int ret = do_step(&steps[i], i + 1);

		if (!ret)
			continue;
		(*failed)++;
		CHECK_MSG(ret == code || (ret == -EIO && !good), "step %u: %d, %s", i, ret,
			  err.text);
		CHECK(err.text[0] != '\0');
		ret = do_step(&steps[i], i + 1);
		good = good && !ret;
	}
	return good;
}

/* Each sector as the last request left it. */
static void check_final(void)
{
	static uint32_t data[DISK / 4];

	CHECK_EQ(block_read(disk, 0, data, DISK, &err), 0);
	for (unsigned s = 0; s < SECTORS; s++) {
		const struct entry *e = &history[s][entries[s] - 1];
		uint32_t is = data[s * (SECTOR / 4)];

		CHECK_MSG(is == e->value || e->maybe, "sector %u is %x, not %x", s, is, e->value);
	}
}

static bool fail_nth(int op, unsigned n, int code, bool backed)
{
	unsigned failed = 0;
	bool good = false, last;
	int ret;

	setup(n & 1 ? 512 : 4096, backed);
	if (op < 0)
		failing_allocation = n;
	else
		tape_fail(tape, (enum tape_op)op, n, code);
	ret = open_over(tape, false, false);
	if (ret) {
		CHECK_MSG(ret == code, "%d", ret);
		failed++;
		ret = open_over(tape, false, false);
	}
	CHECK_EQ(ret, 0);
	good = do_steps(code, &failed);
	last = op < 0 ? unit_fail_alloc(0) < n : tape_count(tape, (enum tape_op)op) < n;
	for (int i = 0; i < TAPE_OPS; i++)
		tape_fail(tape, (enum tape_op)i, 0, 0);
	if (good)
		check_final();
	ret = block_close(disk, &err);
	/* What gives back room after a shrink may be what failed. */
	CHECK_MSG(ret == 0 || !good || (op == TAPE_FLUSH && code == -EIO), "%s", err.text);
	/* After a flush that failed so the disk refuses to flush, as block.h says. */
	CHECK(good || code == -EIO);
	CHECK_EQ(open_over(tape, true, false), 0);
	if (good)
		check_final();
	else
		check_contents(tape_events(tape));
	CHECK_EQ(block_close(disk, &err), 0);
	check_image(tape, failed);
	teardown();
	return last;
}

static void the_nth_operation_fails(void)
{
	static const struct {
		int op, code;
	} kinds[] = {{TAPE_READ, -EIO},	 {TAPE_WRITE, -EIO},	{TAPE_WRITE, -ENOSPC},
		     {TAPE_FLUSH, -EIO}, {TAPE_FLUSH, -ENOSPC}, {TAPE_DISCARD, -EIO},
		     {-1, -ENOMEM}};

	seed = unit_seed();
	for (unsigned i = 0; i < 2 * sizeof(kinds) / sizeof(kinds[0]); i++) {
		unsigned n = 1;

		keeps = i & 1;
		while (!fail_nth(kinds[i / 2].op, n, kinds[i / 2].code, i & 1))
			CHECK(++n < 5000);
		printf("# kind %d: %u times\n", kinds[i / 2].op, n);
		CHECK(n > 1);
	}
}

/* A bitmap is added, another one kept and stored, with one failure somewhere. */
static bool fail_nth_with_bitmaps(int op, unsigned n, int code)
{
	static uint8_t data[SECTOR];
	unsigned failed = 0;
	bool last;

	setup(n & 1 ? 512 : 4096, false);
	change_bitmaps("first", NULL);
	if (op < 0)
		failing_allocation = n;
	else
		tape_fail(tape, (enum tape_op)op, n, code);
	memset(data, 0x55, sizeof(data));
	for (unsigned again = 0; again < 2; again++) {
		if (open_over(tape, false, false)) {
			failed++;
			continue;
		}
		failed += block_write(disk, 7 * SECTOR, data, SECTOR, 0, &err) != 0;
		failed += qcow2_bitmap_add(disk, LATER, SECTOR, &err) != 0;
		failed += block_write(disk, 9 * SECTOR, data, SECTOR, 0, &err) != 0;
		failed += qcow2_bitmap_remove(disk, LATER, &err) != 0;
		failed += block_close(disk, &err) != 0;
		break;
	}
	last = op < 0 ? unit_fail_alloc(0) < n : !failed;
	for (int i = 0; i < TAPE_OPS; i++)
		tape_fail(tape, (enum tape_op)i, 0, 0);
	CHECK_MSG(open_over(tape, true, false) == 0, "%s", err.text);
	CHECK(check_bitmaps() == 1 || failed);
	CHECK_EQ(block_close(disk, &err), 0);
	check_image(tape, failed);
	write_after(tape);
	teardown();
	return last;
}

static void the_nth_operation_fails_with_bitmaps(void)
{
	static const struct {
		int op, code;
	} kinds[] = {{TAPE_READ, -EIO},
		     {TAPE_WRITE, -EIO},
		     {TAPE_WRITE, -ENOSPC},
		     {TAPE_FLUSH, -EIO},
		     {-1, -ENOMEM}};

	seed = unit_seed();
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		unsigned n = 1;

		while (!fail_nth_with_bitmaps(kinds[i].op, n, kinds[i].code))
			CHECK(++n < 5000);
		printf("# kind %d: %u times\n", kinds[i].op, n);
		CHECK(n > 1);
	}
}

/* The file has room up to a limit: nothing is lost, and with more room the same request works. */
static void no_room(void)
{
	seed = unit_seed();
	for (uint64_t limit = 8192; limit < 2u * DISK; limit += 4096) {
		uint64_t length;
		unsigned failed = 0;

		setup(limit & 4096 ? 512 : 4096, limit & 8192);
		tape_contents(tape, &length);
		CHECK_EQ(open_over(tape, false, false), 0);
		for (unsigned i = 0; i < 7; i++) {
			int ret;

			tape_limit(tape, length + limit);
			ret = do_step(&steps[i], i + 1);
			if (!ret)
				continue;
			CHECK_EQ(ret, -ENOSPC);
			failed++;
			tape_limit(tape, 0);
			CHECK_EQ(do_step(&steps[i], i + 1), 0);
		}
		tape_limit(tape, 0);
		check_final();
		CHECK_EQ(block_close(disk, &err), 0);
		CHECK_EQ(open_over(tape, true, false), 0);
		check_final();
		CHECK_EQ(block_close(disk, &err), 0);
		check_image(tape, failed);
		teardown();
	}
}

UNIT_MAIN(TEST(power_cuts_at_every_event), TEST(power_cuts_with_bitmaps),
	  TEST(the_nth_operation_fails_with_bitmaps), TEST(the_nth_operation_fails), TEST(no_room))
