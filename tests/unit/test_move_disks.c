// SPDX-License-Identifier: MIT
/*
 * Disks that come along with a guest: both ends of a session in this process, real images, and in place of pagurus-blk a server that writes its disk all the
 * time, until the guest has stopped. Whatever fails, the disk here has what was written, and there nothing is left.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "migrate/session_internal.h"
#include "storage/block_nbd.h"
#include "storage/disk.h"
#include "storage/fiber.h"
#include "storage/live_command.h"
#include "storage/mirror.h"
#include "tests/unit/in_folder.h"
#include "tests/unit/session_pair.h"
#include "tests/unit/unit.h"
#include "tools/pagurus/disk_lane.h"
#include "tools/pagurus/disk_target.h"
#include "tools/pagurus/disks_arrive.h"
#include "tools/pagurus/disks_leave.h"

#define SIZE (6u << 20)
#define NR   2u

static const char *const formats[NR] = {"qcow2", "raw"};

/* ---- in place of pagurus-blk ---- */

struct serving {
	struct block *disk, *under; /* under: what the load writes, a mirror or the disk */
	bool loaded;
};

static char folder[64];
static struct guest_disk disks[NR];
static struct loop *loop;
static struct line_server *server;
static pthread_t thread;
static atomic_bool let_go, stop, listening;
static atomic_uint mirrored;
static unsigned fails; /* the n-th mirror ends with an error, 1: the first */
static bool early;     /* mirrors end although nobody has let go */
static bool mute;      /* of a mirror nothing is said after the first word */
static struct serving serving[NR];

static char *name_of(char out[128], const char *where, unsigned i)
{
	snprintf(out, 128, "%s/%s-%u", folder, where, i);
	return out;
}

static bool is_served(const struct serving *s)
{
	return !atomic_load(&let_go) && !atomic_load(&stop) && s->disk;
}

static void load(void *ctx)
{
	struct serving *s = ctx;
	uint64_t state = unit_seed() + (uintptr_t)ctx;
	static uint8_t data[64u << 10];

	while (is_served(s)) {
		uint64_t at = unit_below(&state, (SIZE - sizeof(data)) / 512) * 512;

		if (unit_below(&state, 4))
			unit_fill_random(&state, data, sizeof(data));
		else
			memset(data, 0, sizeof(data));
		CHECK_EQ(block_write(s->under, at, data, 512 * (1 + unit_below(&state, 128)), 0,
				     NULL),
			 0);
		fiber_sleep_until(loop, loop_now_ns() + 1000000);
	}
	s->loaded = false;
}

static void show(struct line_client *c, const struct mirror_status *s)
{
	static const char *const phases[] = {"copy", "through", "equal", "failed"};

	live_put(c, json_pack("{ss ss sI sI sI}", "type", "progress", "phase", phases[s->phase],
			      "copied", (json_int_t)s->copied, "left", (json_int_t)s->left, "size",
			      (json_int_t)s->size));
}

static int mirror(struct serving *s, int fd, struct line_client *c, struct pgr_error *err)
{
	const struct mirror_options o = {.zeroed = true};
	struct mirror_status status = {.phase = MIRROR_COPY};
	struct block *to, *m;
	int rc = block_open_nbd_socket(loop, fd, "the disk there", NULL, &to, err);

	if (rc)
		return rc;
	block_quiesce(s->disk);
	CHECK_EQ(mirror_open(s->disk, to, &o, &m, err), 0);
	s->under = m;
	block_resume(s->disk);
	if (mute)
		show(c, &status);
	while (mute && !atomic_load(&stop))
		fiber_sleep_until(loop, loop_now_ns() + 1000000);
	while (!atomic_load(&let_go) && !atomic_load(&stop) && status.phase != MIRROR_FAILED &&
	       !(early && status.phase == MIRROR_EQUAL)) {
		mirror_status(m, &status);
		show(c, &status);
		fiber_sleep_until(loop, loop_now_ns() + 50000000);
	}
	while (s->loaded && atomic_load(&let_go))
		fiber_sleep_until(loop, loop_now_ns() + 1000000);
	if (status.phase == MIRROR_FAILED)
		*err = status.why;
	if (atomic_load(&let_go) || early)
		rc = mirror_finish(m, MIRROR_STAY, err);
	else
		rc = err->code ? err->code : -ECANCELED;
	if (rc)
		mirror_cancel(m);
	return rc;
}

static void on_line(void *ctx, struct line_client *c, char *line)
{
	json_t *request = json_loads(line, 0, NULL);
	const char *path = live_text(request, "disk");
	struct pgr_error err = PGR_ERROR_NONE;
	struct serving *s = NULL;
	int fd = line_take_descriptor(c), rc;

	(void)ctx;
	for (unsigned i = 0; i < NR; i++)
		if (!strcmp(path, disks[i].path))
			s = &serving[i];
	CHECK(s && fd >= 0 && !strcmp(live_text(request, "request"), "mirror"));
	if (atomic_fetch_add(&mirrored, 1) + 1 == fails) {
		close(fd);
		rc = pgr_fail(&err, -EIO, "injected: it cannot be mirrored");
	} else {
		rc = mirror(s, fd, c, &err);
	}
	if (rc)
		live_put_error(c, &err);
	else
		live_put(c, json_pack("{ss}", "type", "result"));
	json_decref(request);
}

static void *serve(void *ctx)
{
	char path[128], socket[128];
	struct pgr_error err = PGR_ERROR_NONE;

	(void)ctx;
	for (unsigned i = 0; i < NR; i++) {
		struct serving *s = &serving[i];

		CHECK_MSG(disk_open(loop, name_of(path, "here", i), formats[i],
				    &(struct block_options){.read_only = false}, &s->disk,
				    &err) == 0,
			  "%s", err.text);
		s->under = s->disk;
		s->loaded = true;
		CHECK_EQ(fiber_start(loop, load, s), 0);
	}
	snprintf(socket, sizeof(socket), "%s/sockets/7.sock", folder);
	CHECK_EQ(line_server_start(loop,
				   &(struct line_server_options){.path = socket, .line = on_line},
				   &server, &err),
		 0);
	atomic_store(&listening, true);
	loop_run(loop);
	line_server_stop(server);
	for (unsigned i = 0; i < NR; i++)
		while (serving[i].loaded)
			loop_turn(loop, true);
	for (unsigned i = 0; i < NR; i++)
		CHECK_EQ(block_close(serving[i].under, &err), 0);
	return NULL;
}

static int guest_lets_go(struct guest_source *g, unsigned timeout_ms, struct pgr_error *err)
{
	(void)g;
	(void)timeout_ms;
	(void)err;
	atomic_store(&let_go, true);
	return 0;
}

/* ---- both ends ---- */

static struct disks_leave *leave;
static struct disks_arrive *arrive;
static struct source_disks source_ops;
static struct target_disks target_ops;
static struct disk_made noted[NR];
static unsigned notes;
static struct pair pair;

static int on_note(void *ctx, const struct disk_made *made, unsigned nr, struct pgr_error *err)
{
	(void)ctx;
	(void)err;
	CHECK_EQ(nr, NR);
	memcpy(noted, made, sizeof(noted));
	notes++;
	return 0;
}

static int connect_later(void *ctx, unsigned channel, enum pgr_purpose purpose,
			 struct channel **out, struct pgr_error *err)
{
	(void)ctx;
	return pair.o.source.connect(pair.o.source.connect_ctx, channel, purpose, out, err);
}

static void make_source_image(unsigned i)
{
	char path[128];
	struct pgr_error err = PGR_ERROR_NONE;
	struct disk_target t = {
		.loop = loop, .path = name_of(path, "here", i), .format = formats[i], .size = SIZE};
	static uint8_t data[1u << 20];
	uint64_t state = unit_seed() + i;

	CHECK_MSG(disk_target_begin(&t, &err) == 0, "%s", err.text);
	for (unsigned at = 0; at < SIZE; at += 2 * sizeof(data)) {
		unit_fill_random(&state, data, sizeof(data));
		CHECK_EQ(block_write(t.to, at, data, sizeof(data), 0, &err), 0);
	}
	CHECK_EQ(disk_target_end(&t, 0, &err), 0);
}

static void setup(struct pair_options *o)
{
	struct disks_leave_options l = {.disks = disks, .nr = NR, .connect = connect_later};
	struct disks_arrive_options a = {.note = on_note};
	static char sockets[80];
	struct pgr_error err;

	signal(SIGPIPE, SIG_IGN);
	pair_defaults(o);
	strcpy(folder, "/var/tmp/pagurus-disks-XXXXXX");
	CHECK(mkdtemp(folder));
	snprintf(sockets, sizeof(sockets), "%s/sockets", folder);
	CHECK_EQ(mkdir(sockets, 0700), 0);
	atomic_store(&let_go, false);
	atomic_store(&stop, false);
	atomic_store(&mirrored, 0);
	fails = notes = 0;
	early = mute = false;
	memset(noted, 0, sizeof(noted));
	CHECK_EQ(loop_create(&loop, NULL), 0);
	for (unsigned i = 0; i < NR; i++) {
		disks[i] = (struct guest_disk){.vdev = "xvda",
					       .size = SIZE,
					       .used = SIZE,
					       .format = i ? PGR_DISK_RAW : PGR_DISK_QCOW2};
		disks[i].vdev[3] = (char)('a' + i);
		name_of(disks[i].path, "there", i);
		make_source_image(i);
	}
	atomic_store(&listening, false);
	CHECK_EQ(pthread_create(&thread, NULL, serve, NULL), 0);
	while (!atomic_load(&listening))
		usleep(1000);
	l.folder = sockets;
	memcpy(l.session, o->source.session, sizeof(l.session));
	memcpy(a.session, o->source.session, sizeof(a.session));
	CHECK_EQ(disks_leave_new(&l, &leave, &source_ops, &err), 0);
	CHECK_EQ(disks_arrive_new(&a, &arrive, &target_ops, &err), 0);
	o->source.disks = &source_ops;
	o->target.disks = &target_ops;
	o->let_go = guest_lets_go;
}

static bool is_there(const char *path)
{
	return access(path, F_OK) == 0;
}

static void read_image(const char *path, const char *format, uint8_t *out)
{
	const struct block_options o = {.read_only = true};
	struct pgr_error err;
	struct block *b;

	CHECK_MSG(disk_open(loop, path, format, &o, &b, &err) == 0, "%s", err.text);
	CHECK_EQ(block_info(b)->size, SIZE);
	for (unsigned at = 0; at < SIZE; at += 1u << 20)
		CHECK_EQ(block_read(b, at, out + at, 1u << 20, &err), 0);
	CHECK_EQ(block_close(b, &err), 0);
}

static void check_same(void)
{
	uint8_t *here = malloc(SIZE), *there = malloc(SIZE);
	char path[128];
	struct stat st;

	for (unsigned i = 0; i < NR; i++) {
		read_image(name_of(path, "here", i), formats[i], here);
		read_image(disks[i].path, formats[i], there);
		CHECK_MEM(here, there, SIZE);
		CHECK_EQ(stat(disks[i].path, &st), 0);
		CHECK_EQ(st.st_mode & 0777, 0600);
		CHECK_EQ(st.st_ino, noted[i].inode);
	}
	free(here);
	free(there);
}

static void check_nothing(void)
{
	char path[128];

	/* Also under no other name. */
	CHECK_EQ(in_folder(folder, "! ls | grep there"), 0);
	for (unsigned i = 0; i < NR; i++)
		CHECK(is_there(name_of(path, "here", i)));
}

/* The session is over; moved: the disks are there. */
static void end_all(bool moved)
{
	atomic_store(&stop, true);
	disks_leave_free(leave);
	disks_arrive_free(arrive);
	loop_stop(loop);
	pthread_join(thread, NULL);
	if (moved)
		check_same();
	else
		check_nothing();
	loop_free(loop);
	CHECK_EQ(in_folder(folder, "rm -rf %s", folder), 0);
}

static void run(const struct pair_options *o, bool moves, const char *why)
{
	pair_run(&pair, o);
	CHECK_MSG((pair.source.rc == 0) == moves, "source: %s target: %s", pair.source.error.text,
		  pair.target.error.text);
	if (why)
		CHECK_MSG(strstr(pair.source.error.text, why) != NULL, "%s",
			  pair.source.error.text);
	if (moves)
		CHECK(pair.source.result.disk_bytes >= (uint64_t)NR * SIZE);
	pair_check_and_free(&pair);
	end_all(moves);
}

/* ---- tests ---- */

static void they_come_along(void)
{
	struct pair_options o;

	setup(&o);
	run(&o, true, NULL);
	CHECK_EQ(notes, 2);
}

static void of_a_guest_that_stands_still(void)
{
	struct pair_options o;

	setup(&o);
	o.source.stop_first = true;
	run(&o, true, NULL);
}

static void a_mirror_that_fails(void)
{
	for (unsigned n = 1; n <= NR; n++) {
		struct pair_options o;

		setup(&o);
		fails = n;
		run(&o, false, "injected");
	}
}

/* Somebody else had them let go of: what the guest writes from then on would be missing there. */
static void a_mirror_that_ends_early(void)
{
	struct pair_options o;

	setup(&o);
	early = true;
	run(&o, false, "let go of it");
}

static void whatever_fails(void)
{
	static const struct {
		enum guest_sim_fault_point source, sink;
		unsigned source_mark, target_mark;
	} faults[] = {
		{.sink = GUEST_SIM_FAULT_CREATE},
		{.sink = GUEST_SIM_FAULT_MAP},
		{.sink = GUEST_SIM_FAULT_FINISH},
		{.sink = GUEST_SIM_FAULT_START},
		{.source = GUEST_SIM_FAULT_READ},
		{.source = GUEST_SIM_FAULT_SUSPEND},
		{.source_mark = 2},
		{.source_mark = 3},
		{.target_mark = 1},
		{.target_mark = 2},
	};

	for (unsigned i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		struct pair_options o;

		setup(&o);
		o.source_fault = (struct guest_sim_fault){.point = faults[i].source, .nth = 1};
		o.sink_fault = (struct guest_sim_fault){.point = faults[i].sink, .nth = 1};
		o.source_mark_fails = faults[i].source_mark;
		o.target_mark_fails = faults[i].target_mark;
		/* Also where the target cuts its disks off before it says why. */
		run(&o, false,
		    faults[i].source_mark || faults[i].target_mark ? "injected"
								   : "that was asked for");
	}
}

static void cancelled_in_each_phase(void)
{
	static const enum session_phase phases[] = {SESSION_PRECHECK, SESSION_DISKS, SESSION_ROUNDS,
						    SESSION_STOP, SESSION_WAIT};

	for (unsigned i = 0; i < sizeof(phases) / sizeof(phases[0]); i++) {
		struct pair_options o;

		setup(&o);
		o.source_cancel = phases[i];
		run(&o, false, NULL);
	}
}

/* As one that is stopped, or whose storage does not answer: the move can be given up all the same. */
static void a_server_that_says_nothing_more(void)
{
	struct pair_options o;

	setup(&o);
	mute = true;
	o.source_cancel = SESSION_DISKS;
	run(&o, false, NULL);
}

static void what_is_there_stays(void)
{
	struct pair_options o;

	setup(&o);
	CHECK_EQ(in_folder(folder, "echo mine > there-1"), 0);
	pair_run(&pair, &o);
	CHECK_EQ(pair.source.rc, -EPERM);
	CHECK_MSG(strstr(pair.source.error.text, "there is a file of that name") != NULL, "%s",
		  pair.source.error.text);
	pair_check_and_free(&pair);
	CHECK_EQ(in_folder(folder, "grep -q mine there-1 && rm there-1"), 0);
	end_all(false);
	/* And when it comes between the look and the making. */
	setup(&o);
	{
		struct guest_description d = {.disks = disks, .nr_disks = NR};
		struct pgr_error err = PGR_ERROR_NONE;

		CHECK_EQ(in_folder(folder, "echo mine > there-1"), 0);
		CHECK(target_ops.make(target_ops.ctx, &d, &err) < 0);
		CHECK_MSG(strstr(err.text, "cannot get its name") != NULL, "%s", err.text);
		CHECK_EQ(target_ops.remove(target_ops.ctx, &err), 0);
		CHECK_EQ(target_ops.remove(target_ops.ctx, &err), 0);
		CHECK_EQ(in_folder(folder, "grep -q mine there-1 && rm there-1"), 0);
	}
	end_all(false);
}

static void no_room(void)
{
	struct pair_options o;

	setup(&o);
	disks[0].used = disks[1].used = PGR_DISK_BYTES_MAX;
	run(&o, false, " are free");
}

/* What a crash leaves is found by the notes alone. */
static void removed_by_its_notes(void)
{
	struct guest_description d = {.disks = disks, .nr_disks = NR};
	struct pgr_error err = PGR_ERROR_NONE;
	struct pair_options o;

	setup(&o);
	CHECK_MSG(target_ops.make(target_ops.ctx, &d, &err) == 0, "%s", err.text);
	CHECK(is_there(disks[0].path) && is_there(disks[1].path));
	/* Another file took its place. */
	CHECK_EQ(in_folder(folder, "rm there-1; echo mine > there-1"), 0);
	CHECK_EQ(disks_arrive_remove(noted, NR, &err), 0);
	CHECK(!is_there(disks[0].path));
	CHECK_EQ(in_folder(folder, "grep -q mine there-1 && rm there-1"), 0);
	end_all(false);
	/* Before they had their names. */
	setup(&o);
	for (unsigned i = 0; i < NR; i++) {
		snprintf(noted[i].path, sizeof(noted[i].path), "%s", disks[i].path);
		snprintf(noted[i].partial, sizeof(noted[i].partial), "%s.x.partial", disks[i].path);
	}
	CHECK_EQ(in_folder(folder, "touch there-0.x.partial"), 0);
	CHECK_EQ(disks_arrive_remove(noted, NR, &err), 0);
	end_all(false);
}

/* ---- a peer that does not keep to the rules ---- */

static int visit(struct disk_lane *l, struct channel **mine)
{
	struct channel *theirs;
	struct pgr_error err;
	int fd[2];

	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd), 0);
	CHECK_EQ(channel_from_fd(fd[0], 3000, "target", mine, &err), 0);
	CHECK_EQ(channel_from_fd(fd[1], 3000, "source", &theirs, &err), 0);
	*l = (struct disk_lane){.channel = *mine, .fd = -1};
	target_ops.attach(target_ops.ctx, theirs);
	return 0;
}

static bool is_closed(struct channel *c)
{
	struct pgr_error err;
	uint8_t byte;

	return c->ops->read(c, &byte, 1, &err) != 0 && err.code != -ETIMEDOUT;
}

static void hostile_connections(void)
{
	struct guest_description d = {.disks = disks, .nr_disks = NR};
	struct pgr_error err = PGR_ERROR_NONE;
	uint8_t session[PGR_SESSION_SIZE], other[PGR_SESSION_SIZE] = {1};
	struct disk_lane l, first;
	struct channel *c, *kept;
	struct stream_writer w;
	struct pair_options o;

	setup(&o);
	memcpy(session, o.source.session, sizeof(session));
	CHECK_MSG(target_ops.make(target_ops.ctx, &d, &err) == 0, "%s", err.text);
	/* No such disk; another session. */
	visit(&l, &c);
	CHECK(disk_lane_attach(&l, session, NR, &err) < 0);
	disk_lane_free(&l);
	c->ops->close(c);
	visit(&l, &c);
	CHECK(disk_lane_attach(&l, other, 0, &err) < 0);
	disk_lane_free(&l);
	c->ops->close(c);
	/* Data before it says whose; something else; nothing of the kind. */
	for (unsigned i = 0; i < 3; i++) {
		visit(&l, &c);
		stream_writer_init(&w, session_channel_write, c);
		CHECK_EQ(stream_write_header(&w, PGR_KIND_MIGRATE, session, 0, 1, &err), 0);
		if (i < 2)
			stream_write_body(&w, i ? PGR_REC_QUERY : PGR_REC_DISK_DATA, "x", i ? 0 : 1,
					  &err);
		else
			c->ops->write(c, &(struct iovec){(void *)"GET / HTTP/1.1\r\n\r\n", 18}, 1,
				      &err);
		if (i == 2)
			c->ops->shutdown(c);
		CHECK(is_closed(c));
		c->ops->close(c);
	}
	/* One that has it, and a second one for the same. */
	visit(&first, &kept);
	CHECK_MSG(disk_lane_attach(&first, session, 0, &err) == 0, "%s", err.text);
	visit(&l, &c);
	CHECK(disk_lane_attach(&l, session, 0, &err) < 0);
	disk_lane_free(&l);
	c->ops->close(c);
	/* It speaks nonsense to the NBD server, and then a record that does not belong there. */
	CHECK_EQ(stream_write_body(&first.writer, PGR_REC_DISK_DATA, "nonsense and more of it", 23,
				   &err),
		 0);
	stream_write_body(&first.writer, PGR_REC_OPEN, NULL, 0, &err);
	while (!kept->ops->read(kept, session, 1, &err))
		;
	disk_lane_free(&first);
	kept->ops->close(kept);
	CHECK(target_ops.finish(target_ops.ctx, &err) < 0);
	CHECK_EQ(target_ops.remove(target_ops.ctx, &err), 0);
	/* Nobody comes in any more. */
	visit(&l, &c);
	CHECK(is_closed(c));
	c->ops->close(c);
	end_all(false);
}

UNIT_MAIN(TEST(they_come_along), TEST(of_a_guest_that_stands_still), TEST(a_mirror_that_fails),
	  TEST(a_mirror_that_ends_early), TEST(whatever_fails), TEST(cancelled_in_each_phase),
	  TEST(a_server_that_says_nothing_more), TEST(what_is_there_stays), TEST(no_room),
	  TEST(removed_by_its_notes), TEST(hostile_connections))
