// SPDX-License-Identifier: MIT
/* The keeper and its operator's commands, when the disk's process is slow, leaves or never answers. Xenstore and that process are played. */
#include "tools/blk/process.h"

#undef PROCESS_JOURNALS
#define PROCESS_JOURNALS "." /* the test's folder */

#include "tools/blk/keeper.c"	      /* NOLINT(bugprone-suspicious-include) */
#include "tools/blk/keeper_command.c" /* NOLINT(bugprone-suspicious-include) */

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/unit/unit.h"

#define DOMID	  7u
#define DEVID	  51712u
#define BACKEND	  "/local/domain/0/backend/qdisk/7/51712"
#define FRONTEND  "/local/domain/7/device/vbd/51712"
#define PLAYED	  40 /* what stands for the number of the disk's process */
#define NODES_MAX 64u
#define LIMIT_NS  UINT64_C(120000000000) /* of waiting: other work may use the machine */

/* ---- xenstore ---- */

static struct node {
	char path[128], value[PV_PATH];
} nodes[NODES_MAX], before[NODES_MAX];
static xs_transaction_t begun;
static void (*disturbed)(
	void); /* what somebody else does during the next transaction, and nothing had come of it */

static struct node *find_node(const char *path)
{
	for (unsigned i = 0; i < NODES_MAX; i++)
		if (!strcmp(nodes[i].path, path))
			return &nodes[i];
	return NULL;
}

static void set_node(const char *path, const char *value)
{
	struct node *n = find_node(path);

	if (!n)
		n = find_node("");
	CHECK(n != NULL);
	snprintf(n->path, sizeof(n->path), "%s", path);
	snprintf(n->value, sizeof(n->value), "%s", value);
}

struct xs_handle *xs_open(unsigned long flags)
{
	(void)flags;
	return (struct xs_handle *)nodes;
}

int xs_fileno(struct xs_handle *h)
{
	static int silent[2] = {-1, -1};

	(void)h;
	if (silent[0] < 0)
		CHECK_EQ(pipe(silent), 0);
	return silent[0];
}

void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned *length)
{
	struct node *n = find_node(path);

	(void)h;
	(void)t;
	(void)length;
	errno = n ? 0 : ENOENT;
	return n ? strdup(n->value) : NULL;
}

bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path, const void *value,
	      unsigned length)
{
	(void)h;
	(void)length;
	CHECK(t == begun);
	set_node(path, value);
	return true;
}

/* One at a time. Somebody else may write in the midst of it: it is done again then. */
xs_transaction_t xs_transaction_start(struct xs_handle *h)
{
	(void)h;
	CHECK_EQ(begun, XBT_NULL);
	memcpy(before, nodes, sizeof(nodes));
	return begun = 1;
}

bool xs_transaction_end(struct xs_handle *h, xs_transaction_t t, bool abort)
{
	(void)h;
	CHECK_EQ(t, begun);
	begun = XBT_NULL;
	if (abort || disturbed)
		memcpy(nodes, before, sizeof(nodes));
	if (!disturbed)
		return true;
	disturbed();
	disturbed = NULL;
	errno = EAGAIN;
	return false;
}

bool xs_rm(struct xs_handle *h, xs_transaction_t t, const char *path)
{
	struct node *n = find_node(path);

	(void)h;
	(void)t;
	if (n)
		*n = (struct node){.path = ""};
	return true;
}

char **xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned *nr)
{
	char **list = malloc(sizeof(*list) + sizeof("51712"));

	(void)h;
	(void)t;
	(void)path;
	CHECK(list != NULL);
	*nr = 1;
	list[0] = (char *)(list + 1);
	memcpy(list[0], "51712", sizeof("51712"));
	return list;
}

bool xs_watch(struct xs_handle *h, const char *path, const char *token)
{
	(void)h;
	(void)path;
	(void)token;
	return true;
}

bool xs_unwatch(struct xs_handle *h, const char *path, const char *token)
{
	(void)h;
	(void)path;
	(void)token;
	return true;
}

char **xs_check_watch(struct xs_handle *h)
{
	(void)h;
	return NULL;
}

bool xs_is_domain_introduced(struct xs_handle *h, unsigned domid)
{
	(void)h;
	(void)domid;
	return true;
}

/* ---- the disk's process, and what is made for it ---- */

static int process; /* its end of the socket */
static unsigned killed, removed, started;

int process_make_folder(struct pgr_error *err)
{
	(void)err;
	return 0;
}

int process_journal_open(struct process_journal *j, uint32_t domid, unsigned devid,
			 struct pgr_error *err)
{
	(void)err;
	snprintf(j->path, sizeof(j->path), "%u-%u", domid, devid);
	j->fd = open(j->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK_EQ(ftruncate(j->fd, (off_t)pv_journal_size()), 0);
	j->memory = mmap(NULL, pv_journal_size(), PROT_READ, MAP_SHARED, j->fd, 0);
	CHECK(j->memory != MAP_FAILED);
	return 0;
}

uint64_t process_journal_generation(const struct process_journal *j)
{
	(void)j;
	return 0;
}

void process_journal_remove(struct process_journal *j)
{
	CHECK_EQ(removed++, 0);
	munmap(j->memory, pv_journal_size());
	close(j->fd);
	unlink(j->path);
}

pid_t process_start(const struct process_journal *j, uint32_t domid, uid_t uid, const char *name,
		    int *control, struct pgr_error *err)
{
	int pair[2];

	(void)j;
	(void)domid;
	(void)uid;
	(void)name;
	(void)err;
	CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	started++;
	*control = pair[0];
	process = pair[1];
	return PLAYED;
}

pid_t process_start_relay(const char *uri, int disk, uid_t uid, int *control, struct pgr_error *err)
{
	(void)disk;
	(void)uid;
	(void)control;
	return pgr_fail(err, -EINVAL, "%s: no relays here", uri);
}

/* Instead of the C library's: it does not die of it at once. */
int kill(pid_t pid, int number)
{
	CHECK_EQ(pid, PLAYED);
	CHECK_EQ(number, SIGKILL);
	killed++;
	return 0;
}

/* ---- a keeper ---- */

static struct keeper k;
static char folder[32];

static void turn(void)
{
	loop_turn(k.loop, false);
	usleep(1000);
}

#define TURN_UNTIL(condition)                                                                      \
	do {                                                                                       \
		uint64_t until_end = loop_now_ns() + LIMIT_NS;                                     \
		while (!(condition)) {                                                             \
			CHECK_MSG(loop_now_ns() < until_end, "waited in vain for %s", #condition); \
			turn();                                                                    \
		}                                                                                  \
	} while (0)

static void look(void)
{
	loop_defer(k.loop, &k.look);
	turn();
}

static bool hears(struct control_message *m)
{
	return recv(process, m, sizeof(*m), MSG_DONTWAIT) == (ssize_t)sizeof(*m);
}

/* The next thing that the process is told. */
static struct control_message told(enum control_kind kind)
{
	struct control_message m = {.kind = 0};

	TURN_UNTIL(hears(&m));
	CHECK_EQ(m.kind, kind);
	return m;
}

static void says(enum control_kind kind, uint32_t call)
{
	struct control_message m = {.kind = kind, .call = call};

	if (kind == CONTROL_OPENED)
		m.opened =
			(struct pv_opened){.size = 1 << 20, .block_size = 512, .granularity = 512};
	CHECK_EQ(control_send(process, &m), 0);
}

static void setup_nodes(void)
{
	char params[PV_PATH];

	memset(nodes, 0, sizeof(nodes));
	snprintf(params, sizeof(params), "raw:%s/disk.raw", folder);
	set_node(BACKEND "/params", params);
	set_node(BACKEND "/frontend", FRONTEND);
	set_node(BACKEND "/mode", "w");
	set_node(BACKEND "/device-type", "disk");
	set_node(BACKEND "/dev", "xvda");
	set_node(BACKEND "/online", "1");
	set_node(BACKEND "/state", "1");
	set_node("/local/domain/7", "");
	set_node("/local/domain/0/device-model/7", "");
	set_node(FRONTEND "/state", "3");
	set_node(FRONTEND "/ring-ref", "8");
	set_node(FRONTEND "/event-channel", "5");
}

/* With a guest that is connected. */
static void setup(void)
{
	static const struct keeper_options none;
	struct pgr_error err = PGR_ERROR_NONE;
	int fd;

	snprintf(folder, sizeof(folder), "/tmp/keeper-XXXXXX");
	CHECK(mkdtemp(folder) != NULL);
	CHECK_EQ(chdir(folder), 0);
	fd = open("disk.raw", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK_EQ(ftruncate(fd, 1 << 20), 0);
	close(fd);
	setup_nodes();
	killed = removed = 0;
	k = (struct keeper){.domid = DOMID,
			    .look = {.run = look_at_all},
			    .show = {.fire = on_show},
			    .deadline = {.fire = on_deadline}};
	snprintf(k.backends, sizeof(k.backends), PATH_BACKENDS, DOMID);
	CHECK_EQ(begin(&k, &none, &err), 0);
	look();
	told(CONTROL_OPEN);
	says(CONTROL_OPENED, 0);
	told(CONTROL_CONNECT);
	says(CONTROL_CONNECTED, 0);
	TURN_UNTIL(!strcmp(find_node(BACKEND "/state")->value, "4"));
}

/* As on SIGCHLD. */
static void die(void)
{
	for (struct disk *d = k.disks; d; d = d->next)
		if (d->pid)
			on_death(d, SIGKILL);
	look();
}

/* Its commands have ended already, or end now. */
static void teardown(void)
{
	line_server_stop(k.commands);
	end_all(&k);
	if (k.disks)
		die();
	CHECK(!k.disks);
	CHECK_EQ(removed, 1);
	CHECK(access("7-51712", F_OK) != 0);
	close(process);
	loop_disarm(k.loop, &k.show);
	loop_disarm(k.loop, &k.deadline);
	loop_unwatch(k.loop, &k.signal_watch);
	loop_unwatch(k.loop, &k.store_watch);
	close(k.signal_watch.fd);
	loop_free(k.loop);
	unlink("disk.raw");
	CHECK_EQ(chdir("/"), 0);
	CHECK_EQ(rmdir(folder), 0);
}

/* ---- the operator ---- */

static int client(void)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "7.sock"};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	CHECK_EQ(connect(fd, (struct sockaddr *)&at, sizeof(at)), 0);
	return fd;
}

/* A line that is there; "": not yet, "over": and none will be. */
static const char *line_of(int fd)
{
	static char line[4096];
	ssize_t n, used = 0;

	n = recv(fd, line, sizeof(line) - 1, MSG_PEEK);
	if (n > 0)
		used = (char *)memchr(line, '\n', (size_t)n) - line;
	else if (!n || errno != EAGAIN)
		return "over";
	line[used] = '\0';
	if (n > 0)
		CHECK_EQ(recv(fd, line, (size_t)used + 1, 0), used + 1);
	line[used] = '\0';
	return line;
}

static const char *answer_to(int fd)
{
	const char *line;

	TURN_UNTIL((line = line_of(fd))[0]);
	return line;
}

/* It is under way then. */
static int command(const char *text)
{
	int fd = client();

	CHECK_EQ(send(fd, text, strlen(text), MSG_NOSIGNAL), strlen(text));
	CHECK_HAS(answer_to(fd), "begun");
	return fd;
}

static int snapshot_called(const char *name)
{
	char text[128];

	snprintf(text, sizeof(text),
		 "{\"request\":\"snapshot\",\"disk\":\"disk.raw\",\"name\":\"%s\"}\n", name);
	return command(text);
}

/* It is made, where the file system can. */
static void snapshot_goes_on(struct control_message hold, int fd, const char *file)
{
	CHECK_HAS(hold.text, file);
	says(CONTROL_DONE, hold.call);
	says(CONTROL_DONE, told(CONTROL_LAYER_GO_ON).call);
	CHECK(strcmp(answer_to(fd), "over") != 0);
	close(fd);
	unlink(file);
}

/* ---- tests ---- */

/* The storage hangs, the guest is gone, and a minute later all is given up, whether the process dies then or not. Two commands wait for it. */
static void given_up_while_commands_wait(void)
{
	int status, layers;

	setup();
	status = command("{\"request\":\"status\"}\n");
	told(CONTROL_STATUS);
	layers = command("{\"request\":\"check\",\"disk\":\"disk.raw\"}\n");
	told(CONTROL_LOOK);
	end_all(&k);
	told(CONTROL_DISCONNECT);
	on_deadline(&k.deadline);
	CHECK_EQ(killed, 1);
	CHECK(access("7-51712", F_OK) != 0);
	on_show(&k.show);
	line_server_stop(k.commands);
	k.commands = NULL;
	CHECK_STR(answer_to(status), "over");
	CHECK_STR(answer_to(layers), "over");
	close(status);
	close(layers);
	teardown();
}

/* As xl block-detach, and the guest's front end then. */
static void detach(void)
{
	set_node(BACKEND "/online", "0");
	set_node(BACKEND "/state", "5");
	set_node(FRONTEND "/state", "6");
	look();
	told(CONTROL_DISCONNECT);
}

/* The process has let go of the guest, is told to end, and closes the disk when that is not held any more. */
static void detached_in_the_middle_of_a_snapshot(void)
{
	struct control_message hold;
	int fd;

	setup();
	fd = snapshot_called("one");
	hold = told(CONTROL_LAYER_HOLD);
	detach();
	says(CONTROL_DISCONNECTED, 0);
	told(CONTROL_END);
	snapshot_goes_on(hold, fd, "disk.one.raw");
	CHECK(k.disks != NULL);
	/* Nothing else is said to it any more. */
	fd = command("{\"request\":\"check\",\"disk\":\"disk.raw\"}\n");
	CHECK_HAS(answer_to(fd), "is not open");
	close(fd);
	die();
	CHECK(!k.disks);
	teardown();
}

/* Killed while its files get other names: the next one opens them when they have, and what was done is not called a failure. */
static void dies_in_the_middle_of_a_snapshot(void)
{
	for (unsigned answered = 0; answered < 2; answered++) {
		struct control_message hold;
		struct disk *d;
		const char *said;
		int fd;

		setup();
		d = k.disks;
		fd = snapshot_called("one");
		hold = told(CONTROL_LAYER_HOLD);
		if (answered)
			says(CONTROL_DONE, hold.call);
		started = 0;
		close(process);
		on_death(d, SIGKILL);
		/* Before the command has a turn. */
		for (unsigned i = 0; i < 3 && d->lock.held; i++)
			look_at_all(&k.look);
		CHECK_EQ(started, 0);
		said = answer_to(fd);
		if (answered)
			CHECK(!strstr(said, "died") && !strstr(said, "not open"));
		else
			CHECK_HAS(said, "its process died; say it again");
		close(fd);
		TURN_UNTIL(started == 1);
		told(CONTROL_OPEN);
		CHECK(!d->lock.held && !d->switching);
		teardown();
	}
}

/* A connection that is not hung up for want of a place. */
static bool has_place(int *fd)
{
	*fd = client();
	/* It may have been hung up already. */
	(void)send(*fd, "{}\n", 3, MSG_NOSIGNAL);
	if (strcmp(answer_to(*fd), "over") != 0)
		return true;
	close(*fd);
	return false;
}

/* Behind a merge that takes long: for those who stay their snapshots are made, one after the other, and for nobody else. */
static void who_has_gone_does_not_wait(void)
{
	int fd[LINE_SERVER_CLIENTS], more[LINE_SERVER_CLIENTS];
	unsigned nr = 0;
	char name[8];

	setup();
	fiber_lock(&k.disks->lock, k.loop);
	for (unsigned i = 0; i < LINE_SERVER_CLIENTS; i++) {
		snprintf(name, sizeof(name), "n%u", i);
		fd[i] = snapshot_called(name);
	}
	CHECK(!has_place(&more[0]));
	for (unsigned i = 0; i < LINE_SERVER_CLIENTS; i++)
		if (i != 3 && i != 7)
			close(fd[i]);
	for (; nr < LINE_SERVER_CLIENTS - 2; nr++)
		TURN_UNTIL(has_place(&more[nr]));
	CHECK(!has_place(&more[nr]));
	for (unsigned i = 0; i < nr; i++)
		close(more[i]);
	turn();
	fd[0] = snapshot_called("last");
	fiber_unlock(&k.disks->lock);
	snapshot_goes_on(told(CONTROL_LAYER_HOLD), fd[3], "disk.n3.raw");
	snapshot_goes_on(told(CONTROL_LAYER_HOLD), fd[7], "disk.n7.raw");
	snapshot_goes_on(told(CONTROL_LAYER_HOLD), fd[0], "disk.last.raw");
	teardown();
}

/* It is handed over, and whom it is handed to has gone in the same moment. */
static void who_has_gone_when_it_is_his_turn(void)
{
	struct disk *d;
	int gone, stays;

	setup();
	d = k.disks;
	fiber_lock(&d->lock, k.loop);
	gone = snapshot_called("gone");
	stays = snapshot_called("stays");
	close(gone);
	turn();
	fiber_unlock(&d->lock);
	snapshot_goes_on(told(CONTROL_LAYER_HOLD), stays, "disk.stays.raw");
	CHECK(!d->lock.held);
	teardown();
}

/* As libxl, which does not wait for more than that the disk is closed. */
static void remove_backend(void)
{
	for (unsigned i = 0; i < NODES_MAX; i++)
		if (!strncmp(nodes[i].path, BACKEND, strlen(BACKEND)))
			nodes[i] = (struct node){.path = ""};
}

static void nothing_is_written_for_a_disk_that_is_removed(void)
{
	static void (*const removes[])(void) = {remove_backend, NULL};

	for (unsigned midst = 0; midst < 2; midst++) {
		setup();
		k.disks->shown.rd_req = 1;
		on_show(&k.show);
		CHECK(find_node(BACKEND "/statistics/rd_req") != NULL);
		if (!midst)
			remove_backend();
		disturbed = removes[!midst];
		k.disks->shown.rd_req = k.disks->shown.wr_req = 1;
		on_show(&k.show);
		k.disks->shown.rd_req = 1;
		on_show(&k.show);
		end_all(&k);
		die();
		for (unsigned i = 0; i < NODES_MAX; i++)
			CHECK_MSG(strncmp(nodes[i].path, BACKEND, strlen(BACKEND)) != 0, "%s",
				  nodes[i].path);
		teardown();
	}
}

/* Another writer in between is no reason to leave it. */
static void somebody_else_writes(void)
{
	set_node(BACKEND "/else", "1");
}

static void what_is_written_is_written_again(void)
{
	setup();
	k.disks->shown.rd_req = 1;
	disturbed = somebody_else_writes;
	on_show(&k.show);
	CHECK_STR(find_node(BACKEND "/statistics/rd_req")->value, "0");
	CHECK_STR(find_node(BACKEND "/else")->value, "1");
	teardown();
}

UNIT_MAIN(TEST(nothing_is_written_for_a_disk_that_is_removed),
	  TEST(what_is_written_is_written_again), TEST(given_up_while_commands_wait),
	  TEST(detached_in_the_middle_of_a_snapshot), TEST(dies_in_the_middle_of_a_snapshot),
	  TEST(who_has_gone_does_not_wait), TEST(who_has_gone_when_it_is_his_turn))
