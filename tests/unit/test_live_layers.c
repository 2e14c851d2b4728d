// SPDX-License-Identifier: MIT
/*
 * Snapshots and merges of a disk that is written all the time: on files, where the names matter, and on tapes, where the power is cut at every event.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/block_qcow2.h"
#include "storage/fiber.h"
#include "storage/layers.h"
#include "storage/live.h"
#include "storage/qcow2.h"
#include "storage/qcow2_check.h"
#include "storage/qcow2_create.h"
#include "storage/qcow2_live.h"
#include "tests/storage/tape.h"
#include "tests/unit/in_folder.h"
#include "tests/unit/unit.h"

#define SECTOR 512u

static struct loop *loop;
static struct pgr_error err;
static uint64_t seed;

/* ---- a disk that is written all the time ---- */

#define WRITERS	     4u
#define WRITERS_MAX  8u
#define PART_SECTORS 512u /* of the disk, a writer's own */

struct writer {
	struct block_request r;
	struct iovec iov;
	uint32_t data[64 * SECTOR / 4];
	uint32_t sector[PART_SECTORS]; /* what each holds */
	uint64_t first;		       /* sector of the disk */
	struct block *disk;
	unsigned done;
	bool busy;
};

static struct writer writers[WRITERS_MAX];
static unsigned nr_writers;
static bool pausing;
static uint32_t newest;

static void write_more(struct writer *w)
{
	uint64_t n = 1 + unit_below(&seed, 63), at = unit_below(&seed, PART_SECTORS - n);
	bool zero = !unit_below(&seed, 5);
	uint32_t value = zero ? 0 : ++newest;

	w->busy = true;
	w->r.op = !unit_below(&seed, 9) ? BLOCK_FLUSH : zero ? BLOCK_ZERO : BLOCK_WRITE;
	w->r.flags = BLOCK_UNMAP * (unsigned)(newest & 1);
	w->r.offset = w->r.op == BLOCK_FLUSH ? 0 : (w->first + at) * SECTOR;
	w->r.length = w->r.op == BLOCK_FLUSH ? 0 : n * SECTOR;
	w->iov = (struct iovec){.iov_base = w->data, .iov_len = n * SECTOR};
	for (uint64_t i = 0; i < n * SECTOR / 4; i++)
		w->data[i] = value;
	for (uint64_t i = 0; w->r.length && i < n; i++)
		w->sector[at + i] = value;
	block_submit(w->disk, &w->r);
}

static void on_written(struct block_request *r, const struct pgr_error *e)
{
	struct writer *w = (struct writer *)r;

	CHECK_MSG(!e, "%s", e ? e->text : "");
	w->busy = false;
	w->done++;
	if (!pausing)
		write_more(w);
}

static void pause_writers(void)
{
	pausing = true;
	for (unsigned i = 0; i < nr_writers; i++)
		while (writers[i].busy)
			loop_turn(loop, true);
}

static void go_on(void)
{
	pausing = false;
	for (unsigned i = 0; i < nr_writers; i++)
		write_more(&writers[i]);
}

static void start_writers(struct block *disk, unsigned first, unsigned nr)
{
	nr_writers = first + nr;
	for (unsigned i = 0; i < nr; i++) {
		struct writer *w = &writers[first + i];

		*w = (struct writer){.disk = disk, .first = 16 + i * 1024 * 1024 / SECTOR};
		w->r.iov = &w->iov;
		w->r.nr_iov = 1;
		w->r.done = on_written;
		write_more(w);
	}
}

/* The writers pause. */
static void check_contents(struct block *disk, unsigned first, unsigned nr)
{
	static uint32_t got[PART_SECTORS * SECTOR / 4];

	for (unsigned i = first; i < first + nr; i++) {
		struct writer *w = &writers[i];

		CHECK_EQ(block_read(disk, w->first * SECTOR, got, sizeof(got), &err), 0);
		for (unsigned s = 0; s < PART_SECTORS; s++)
			CHECK_MSG(got[s * SECTOR / 4] == w->sector[s] &&
					  got[(s + 1) * SECTOR / 4 - 1] == w->sector[s],
				  "sector %u of writer %u has %x, not %x", s, i,
				  got[s * SECTOR / 4], w->sector[s]);
	}
}

/* ---- on files ---- */

static char folder[64];

struct subject {
	char path[128];
	struct live_local local;
	struct live_disk live;
};

static void setup(void)
{
	err = PGR_ERROR_NONE;
	seed = unit_seed();
	pausing = false;
	snprintf(folder, sizeof(folder), "/var/tmp/live-test-XXXXXX");
	CHECK(mkdtemp(folder));
	CHECK_EQ(loop_create(&loop, NULL), 0);
}

static void open_subject(struct subject *s, const char *name, const char *make)
{
	CHECK_EQ(in_folder(folder, "%s", make), 0);
	snprintf(s->path, sizeof(s->path), "%s/%s", folder, name);
	s->local = (struct live_local){.held_at = 0};
	CHECK_MSG(block_open_qcow2(loop, s->path, &(struct block_options){.read_only = false},
				   &s->local.disk, &err) == 0,
		  "%s", err.text);
	s->live = (struct live_disk){
		.path = s->path, .loop = loop, .ops = &live_local_ops, .ctx = &s->local};
}

static void teardown(void)
{
	loop_free(loop);
	CHECK_EQ(in_folder(folder, "rm -rf %s", folder), 0);
}

static void take(struct subject *s, const char *name)
{
	uint64_t held;

	CHECK_MSG(live_snapshot(&s->live, 1, name, &held, &err) == 0, "%s", err.text);
	CHECK(held > 0 && held < 60000000000ull);
}

static void check_all(struct subject *s, unsigned layers)
{
	CHECK_EQ(block_qcow2_layers(s->local.disk), layers);
	pause_writers();
	check_contents(s->local.disk, 0, WRITERS);
	go_on();
}

/* All that happens, one after the other, while the disk is written. */
static void on_a_disk_in_use(void)
{
	static uint32_t was[WRITERS][PART_SECTORS];
	atomic_bool stop = false;
	struct live_work w = {.stop = &stop};
	struct subject s = {.path = ""};
	char *into;

	setup();
	if (!in_folder_has_qemu(folder)) {
		teardown();
		return;
	}
	open_subject(
		&s, "d.qcow2",
		"qemu-img create -q -f raw base.raw 6M && qemu-io -f raw -c 'write -q -P 7 5M 1M' base.raw && "
		"qemu-img create -q -f qcow2 -b base.raw -F raw d.qcow2 8M");
	start_writers(s.local.disk, 0, WRITERS);
	take(&s, "one");
	check_all(&s, 3);
	/* One whose contents are known. */
	pause_writers();
	for (unsigned i = 0; i < WRITERS; i++)
		memcpy(was[i], writers[i].sector, sizeof(was[i]));
	take(&s, "two");
	go_on();
	take(&s, "three");
	take(&s, "four");
	check_all(&s, 6);
	CHECK_EQ(live_snapshot(&s.live, 1, "four", &(uint64_t){0}, &err), -EEXIST);
	/* In the middle, and stopped first. */
	stop = true;
	CHECK_EQ(live_delete(&s.live, "three", &w, &err), -ECANCELED);
	stop = false;
	check_all(&s, 6);
	CHECK_MSG(live_delete(&s.live, "three", &w, &err) == 0, "%s", err.text);
	check_all(&s, 5);
	CHECK_EQ(live_delete(&s.live, "three", &w, &err), -ENOENT);
	/* What the disk's own layer stands on: another one comes on top. */
	CHECK_MSG(live_delete(&s.live, "four", &w, &err) == 0, "%s", err.text);
	check_all(&s, 5);
	CHECK_MSG(live_delete(&s.live, "one", &w, &err) == 0, "%s", err.text);
	check_all(&s, 4);
	/* disk -> merging -> two -> base */
	CHECK_EQ(in_folder(folder, "qemu-img convert -U -O raw d.two.qcow2 two.raw"), 0);
	stop = true;
	CHECK_EQ(live_commit(&s.live, &w, &into, &err), -ECANCELED);
	free(into);
	stop = false;
	CHECK_MSG(live_commit(&s.live, &w, &into, &err) == 0, "%s", err.text);
	CHECK_HAS(into, "d.merging.qcow2");
	free(into);
	check_all(&s, 4);
	CHECK_EQ(live_delete(&s.live, "merging", &w, &err), 0);
	check_all(&s, 4);
	/* The base is raw: only what it holds can be merged into. */
	CHECK_MSG(live_commit(&s.live, &w, &into, &err) == 0, "%s", err.text);
	free(into);
	check_all(&s, 4);
	pause_writers();
	CHECK_MSG(block_close(s.local.disk, &err) == 0, "%s", err.text);
	CHECK_MSG(block_open_qcow2(loop, s.path, NULL, &s.local.disk, &err) == 0, "%s", err.text);
	check_contents(s.local.disk, 0, WRITERS);
	CHECK_EQ(block_close(s.local.disk, &err), 0);
	CHECK_EQ(in_folder(
			 folder,
			 "for i in *.qcow2; do qemu-img check -q $i || exit; done; ! ls *.leaving"),
		 0);
	for (unsigned i = 0; i < WRITERS; i++)
		memcpy(writers[i].sector, was[i], sizeof(was[i]));
	{
		struct block *two;
		char path[128];

		snprintf(path, sizeof(path), "%s/two.raw", folder);
		CHECK_EQ(block_open_file(loop, path, NULL, &two, &err), 0);
		check_contents(two, 0, WRITERS);
		CHECK_EQ(block_close(two, &err), 0);
	}
	teardown();
}

/* Snapshots that are taken and deleted again and again leave one layer, and not one each. */
/* ---- a header that says something else than before ---- */

/* The name of what the disk stands on, of the same length, straight into its file, as its process could. */
static void write_name(const struct subject *s, const char *was, const char *is)
{
	uint8_t header[4096];
	FILE *f = fopen(s->path, "r+b");
	uint8_t *at;

	CHECK(f && fread(header, 1, sizeof(header), f) == sizeof(header));
	at = memmem(header, sizeof(header), was, strlen(was));
	CHECK(at && strlen(was) == strlen(is));
	CHECK_EQ(fseek(f, at - header, SEEK_SET), 0);
	CHECK_EQ(fwrite(is, 1, strlen(is), f), strlen(is));
	CHECK_EQ(fclose(f), 0);
}

static void no_other_file_is_touched(void)
{
	const struct live_work work = {.rate = 0};
	struct live_pins pins = {.list = NULL};
	struct subject s = {.path = ""};
	char *into = NULL;

	setup();
	open_subject(
		&s, "d.qcow2",
		"qemu-img create -q -f raw base.raw 4M && qemu-img create -q -f qcow2 -b base.raw -F raw d.0.qcow2 && qemu-img create -q -f qcow2 -b d.0.qcow2 -F qcow2 d.qcow2 && "
		"qemu-img create -q -f qcow2 d.bad.qcow2 4M && cp d.bad.qcow2 kept");
	CHECK_EQ(live_pins_begin(&pins, s.path, "qcow2", &err), 0);
	CHECK_EQ(pins.nr, 3);
	s.live.pins = &pins;
	take(&s, "one");
	take(&s, "two");
	CHECK_EQ(pins.nr, 5);
	/* Its own, and those that were made since, are merged as ever. */
	CHECK_MSG(live_delete(&s.live, "one", &work, &err) == 0, "%s", err.text);
	CHECK_MSG(live_commit(&s.live, &work, &into, &err) == 0, "%s", err.text);
	free(into);
	take(&s, "six");
	write_name(&s, "d.six.qcow2", "d.bad.qcow2");
	CHECK_EQ(live_delete(&s.live, "bad", &work, &err), -EPERM);
	CHECK_HAS(err.text, "d.bad.qcow2");
	CHECK_EQ(live_commit(&s.live, &work, &into, &err), -EPERM);
	free(into);
	CHECK_EQ(in_folder(folder, "cmp d.bad.qcow2 kept && test ! -e d.bad.qcow2.leaving"), 0);
	write_name(&s, "d.bad.qcow2", "d.six.qcow2");
	CHECK_MSG(live_delete(&s.live, "six", &work, &err) == 0, "%s", err.text);
	CHECK_EQ(block_close(s.local.disk, &err), 0);
	live_pins_free(&pins);
	teardown();
}

/* ---- requests that come while another layer takes over ---- */

#define LATE_MOST 40u

struct late {
	unsigned turns;
	bool over;
};

static void write_late(void *ctx)
{
	struct late *l = ctx;

	for (unsigned i = 0; i < l->turns; i++)
		fiber_yield(loop);
	write_more(&writers[0]);
	l->over = true;
}

static struct late late;

static int release_and_write(void *ctx, bool switched, uint64_t *held_ns, struct pgr_error *e)
{
	CHECK_EQ(fiber_start(loop, write_late, &late), 0);
	return live_local_ops.release(ctx, switched, held_ns, e);
}

/* After any number of turns of the loop: none is lost. */
static void none_is_lost_in_a_switch(void)
{
	struct live_ops ops = live_local_ops;
	struct subject s = {.path = ""};

	setup();
	open_subject(&s, "disk.qcow2", "qemu-img create -q -f qcow2 disk.qcow2 4M");
	ops.release = release_and_write;
	s.live.ops = &ops;
	start_writers(s.local.disk, 0, 1);
	for (unsigned turns = 0; turns < LATE_MOST; turns++) {
		uint64_t end;
		char name[32];

		late = (struct late){.turns = turns};
		snprintf(name, sizeof(name), "at-%u", turns);
		pause_writers();
		take(&s, name);
		end = loop_now_ns() + 60000000000ull;
		while ((!late.over || writers[0].busy) && loop_now_ns() < end)
			loop_turn(loop, false);
		CHECK_MSG(!writers[0].busy, "a request that came %u turns later is lost", turns);
	}
	check_contents(s.local.disk, 0, 1);
	CHECK_EQ(block_close(s.local.disk, &err), 0);
	teardown();
}

static void chains_stay_short(void)
{
	struct live_work w = {.stop = NULL};
	struct subject s = {.path = ""};

	setup();
	if (!in_folder_has_qemu(folder)) {
		teardown();
		return;
	}
	open_subject(&s, "d.qcow2", "qemu-img create -q -f qcow2 d.qcow2 8M");
	start_writers(s.local.disk, 0, WRITERS);
	for (unsigned i = 0; i < 5; i++) {
		char name[16];

		snprintf(name, sizeof(name), "day-%u", i);
		take(&s, name);
		CHECK_MSG(live_delete(&s.live, name, &w, &err) == 0, "%s", err.text);
		check_all(&s, 2);
	}
	/* Kept for three days. */
	for (unsigned i = 0; i < 8; i++) {
		char name[16];

		snprintf(name, sizeof(name), "week-%u", i);
		take(&s, name);
		snprintf(name, sizeof(name), "week-%u", i - 3);
		if (i >= 3)
			CHECK_MSG(live_delete(&s.live, name, &w, &err) == 0, "%s", err.text);
		check_all(&s, i >= 3 ? 4 : 3 + i);
	}
	pause_writers();
	CHECK_EQ(block_close(s.local.disk, &err), 0);
	CHECK_EQ(in_folder(folder, "for i in *.qcow2; do qemu-img check -q $i || exit; done"), 0);
	teardown();
}

/* ---- the process is killed, and its user lives on ---- */

/* What the files hold while the disk is open is all that the next process has: everything that is done has to be there, flushed or not. */
static void done_is_there_when_killed(void)
{
	struct subject s = {.path = ""};
	uint64_t held;

	setup();
	if (!in_folder_has_qemu(folder)) {
		teardown();
		return;
	}
	open_subject(&s, "d.qcow2", "qemu-img create -q -f qcow2 d.qcow2 8M");
	CHECK_EQ(block_close(s.local.disk, &err), 0);
	CHECK_EQ(block_open_qcow2(loop, s.path, &(struct block_options){.settled = true},
				  &s.local.disk, &err),
		 0);
	start_writers(s.local.disk, 0, WRITERS);
	for (unsigned i = 0; i < 12; i++) {
		struct block *copy;
		char path[128];

		for (unsigned n = 0; n < 40; n++)
			loop_turn(loop, true);
		if (i % 4 == 2) {
			char name[16];

			snprintf(name, sizeof(name), "s%u", i);
			CHECK_EQ(live_snapshot(&s.live, 1, name, &held, &err), 0);
		}
		pause_writers();
		CHECK_EQ(in_folder(folder, "rm -rf killed; mkdir killed; cp *.qcow2 killed/"), 0);
		snprintf(path, sizeof(path), "%s/killed/d.qcow2", folder);
		CHECK_MSG(block_open_qcow2(loop, path, NULL, &copy, &err) == 0, "%s", err.text);
		check_contents(copy, 0, WRITERS);
		CHECK_EQ(block_close(copy, NULL), 0);
		go_on();
	}
	pause_writers();
	CHECK_EQ(block_close(s.local.disk, &err), 0);
	teardown();
}

/* ---- the power is cut ---- */

/*
 * Three layers on tapes, under a disk that is written: a snapshot puts the third on top of the second, which then goes into the first, and the header of the
 * third says so. At each turn of the loop the events of each tape are noted: a cut there is one that all of them saw.
 */
#define TAPES	  3u
#define DISK	  (128u << 10)
#define SECTORS	  (DISK / SECTOR)
#define CLUSTER	  16384u
#define MOMENTS	  16384u
#define HISTORY	  256u
#define ROUNDS	  24u
#define PER_ROUND 3u

enum stage { BEFORE, EXCHANGED, MERGED, REBASED };

struct moment {
	unsigned events[TAPES];
	enum stage stage; /* what the folder says */
};

struct said {
	uint32_t value;
	unsigned begun; /* the moment */
};

static struct tape *tapes[TAPES];
static struct moment moments[MOMENTS];
static unsigned nr_moments;
static struct said said[SECTORS][HISTORY];
static unsigned nr_said[SECTORS];
static struct {
	unsigned moment;
	unsigned covers[SECTORS];
} flushes[ROUNDS * PER_ROUND + 8];
static unsigned nr_flushes;
static enum stage stage;
static bool working;

static void note_moment(void)
{
	struct moment m = {.stage = stage};

	for (unsigned i = 0; i < TAPES; i++)
		m.events[i] = tape_events(tapes[i]);
	if (nr_moments && !memcmp(&moments[nr_moments - 1], &m, sizeof(m)))
		return;
	CHECK(nr_moments < MOMENTS);
	moments[nr_moments++] = m;
}

static struct block *tape_file(unsigned i, bool record)
{
	return tape_open(tapes[i], loop,
			 &(struct tape_options){.record = record, .grows = true, .seed = seed + i});
}

static void make_tape(unsigned i, const char *backing)
{
	const struct qcow2_creation c = {.size = DISK,
					 .cluster_size = CLUSTER,
					 .backing = backing,
					 .backing_format = "qcow2"};
	struct tape *t = tape_new(NULL, 0);
	uint64_t length;
	const void *contents;

	tapes[i] = t;
	{
		struct block *file = tape_file(i, false);

		CHECK_MSG(qcow2_create(file, &c, &err) == 0, "%s", err.text);
		CHECK_EQ(block_close(file, &err), 0);
	}
	contents = tape_contents(t, &length);
	tapes[i] = tape_new(contents, length);
	tape_free(t);
}

/* A client of the disk: writes, zeros and flushes, one after the other. */
static void client(void *ctx)
{
	struct block *disk = ctx;
	static uint32_t data[DISK / 4];

	for (unsigned round = 1; round <= ROUNDS; round++) {
		for (unsigned k = 0; k < PER_ROUND; k++) {
			uint64_t n = 1 + unit_below(&seed, 70),
				 first = unit_below(&seed, SECTORS - n);
			bool zero = !unit_below(&seed, 4);
			uint32_t value = zero ? 0 : round * 16 + k + 1;

			for (uint64_t i = 0; i < n * SECTOR / 4; i++)
				data[i] = value;
			note_moment();
			for (uint64_t i = 0; i < n; i++) {
				CHECK(nr_said[first + i] < HISTORY);
				said[first + i][nr_said[first + i]++] =
					(struct said){.value = value, .begun = nr_moments - 1};
			}
			CHECK_EQ(
				zero ? block_zero(disk, first * SECTOR, n * SECTOR, BLOCK_UNMAP,
						  &err)
				     : block_write(disk, first * SECTOR, data, n * SECTOR, 0, &err),
				0);
		}
		if (round & 1) {
			CHECK_EQ(block_flush(disk, &err), 0);
			note_moment();
			flushes[nr_flushes].moment = nr_moments - 1;
			memcpy(flushes[nr_flushes].covers, nr_said, sizeof(nr_said));
			nr_flushes++;
		}
	}
	working = false;
}

struct worker {
	struct block *disk;
	bool over;
};

/* What live.c does, with tapes for files. */
static void change_layers(void *ctx)
{
	struct worker *w = ctx;
	struct disk_copy c = {.rate = 0};
	struct qcow2_prepared *p;

	while (nr_flushes < 2)
		fiber_yield(loop);
	CHECK_MSG(qcow2_live_prepare(w->disk, tape_file(2, true), "second", &p, &err) == 0, "%s",
		  err.text);
	note_moment();
	stage = EXCHANGED;
	qcow2_live_switch(p);
	CHECK_MSG(qcow2_live_merge(w->disk, 1, -1, &c, &err) == 0, "%s", err.text);
	note_moment();
	stage = MERGED;
	CHECK_MSG(qcow2_live_rebase(w->disk, "first", &err) == 0, "%s", err.text);
	note_moment();
	stage = REBASED;
	w->over = true;
}

/* Notes the moments between what all others do. */
static void observe(void *ctx)
{
	const struct worker *w = ctx;

	while (working || !w->over) {
		note_moment();
		fiber_yield(loop);
	}
}

static uint32_t covered(unsigned moment, unsigned s)
{
	uint32_t base = 0;

	for (unsigned i = 0; i < nr_flushes && flushes[i].moment <= moment; i++)
		base = flushes[i].covers[s];
	return base;
}

static bool may_be(unsigned moment, unsigned s, uint32_t value)
{
	uint32_t base = covered(moment, s);

	if (!base && !value)
		return true;
	for (unsigned i = base ? base - 1 : 0; i < nr_said[s] && said[s][i].begun <= moment; i++)
		if (said[s][i].value == value)
			return true;
	return false;
}

static struct block *open_cut(struct tape *t, struct block *below)
{
	const struct block_options o = {.read_only = true};
	struct block *b;

	CHECK_MSG(block_open_qcow2_over(tape_open(t, loop, &(struct tape_options){.grows = true}),
					below, &o, &b, &err) == 0,
		  "%s", err.text);
	return b;
}

/* Which layer's name the third has in its header. */
static bool stands_on_second(struct tape *t)
{
	struct block *file = tape_open(t, loop, &(struct tape_options){.grows = true});
	struct qcow2_header h;

	CHECK_MSG(qcow2_header_load(file, &h, &err) == 0, "%s", err.text);
	CHECK_EQ(block_close(file, NULL), 0);
	CHECK(!strcmp(h.backing, "second") || !strcmp(h.backing, "first"));
	CHECK_STR(h.backing_format, "qcow2");
	return !strcmp(h.backing, "second");
}

static void cut(unsigned moment, enum tape_cut how)
{
	static uint32_t data[DISK / 4];
	const struct moment *m = &moments[moment];
	struct tape *t[TAPES];
	struct block *disk;
	bool second;

	for (unsigned i = 0; i < TAPES; i++) {
		uint64_t length;
		void *contents =
			tape_cut_at(tapes[i], m->events[i], how, seed + moment + i, &length);

		t[i] = tape_new(contents, length);
		free(contents);
	}
	second = m->stage == BEFORE || stands_on_second(t[2]);
	CHECK(second || m->stage >= MERGED);
	CHECK(m->stage != REBASED || !second);
	disk = open_cut(t[0], NULL);
	if (second)
		disk = open_cut(t[1], disk);
	if (m->stage != BEFORE)
		disk = open_cut(t[2], disk);
	CHECK_MSG(block_read(disk, 0, data, DISK, &err) == 0, "%s", err.text);
	for (unsigned s = 0; s < SECTORS; s++) {
		const uint32_t *sector = data + (size_t)s * (SECTOR / 4);

		for (unsigned i = 1; i < SECTOR / 4; i++)
			CHECK_MSG(sector[i] == sector[0], "sector %u is torn", s);
		CHECK_MSG(may_be(moment, s, sector[0]), "cut at %u (stage %d): sector %u has %x",
			  moment, m->stage, s, sector[0]);
	}
	CHECK_EQ(block_close(disk, &err), 0);
	for (unsigned i = 0; i < TAPES; i++) {
		struct qcow2_check c = {.found = NULL};
		struct block *file = tape_open(t[i], loop, &(struct tape_options){.grows = true});

		CHECK_MSG(qcow2_check(file, &c, &err) == 0, "%s", err.text);
		CHECK_EQ(c.damages, 0);
		CHECK_EQ(block_close(file, NULL), 0);
		tape_free(t[i]);
	}
}

static void power_cuts(void)
{
	struct worker w = {.over = false};
	struct block *disk;
	unsigned nr = 0;

	err = PGR_ERROR_NONE;
	seed = unit_seed();
	CHECK_EQ(loop_create(&loop, NULL), 0);
	make_tape(0, NULL);
	make_tape(1, "first");
	make_tape(2, "second");
	CHECK_EQ(block_open_qcow2_over(tape_file(0, true), NULL,
				       &(struct block_options){.read_only = true}, &disk, &err),
		 0);
	CHECK_EQ(block_open_qcow2_over(tape_file(1, true), disk,
				       &(struct block_options){.read_only = false}, &disk, &err),
		 0);
	w.disk = disk;
	working = true;
	stage = BEFORE;
	note_moment();
	CHECK_EQ(fiber_start(loop, client, disk), 0);
	CHECK_EQ(fiber_start(loop, change_layers, &w), 0);
	CHECK_EQ(fiber_start(loop, observe, &w), 0);
	while (working || !w.over)
		loop_turn(loop, true);
	note_moment();
	CHECK_EQ(block_close(disk, &err), 0);
	for (unsigned at = 0; at < nr_moments; at++)
		for (enum tape_cut how = TAPE_NONE; how <= TAPE_TORN; how++, nr++)
			cut(at, how);
	printf("# %u cuts\n", nr);
	for (unsigned i = 0; i < TAPES; i++)
		tape_free(tapes[i]);
	loop_free(loop);
}

UNIT_MAIN(TEST(on_a_disk_in_use), TEST(no_other_file_is_touched), TEST(none_is_lost_in_a_switch),
	  TEST(chains_stay_short), TEST(done_is_there_when_killed), TEST(power_cuts))
