/* SPDX-License-Identifier: MIT */
/*
 * `pagurus disk serve`: disks over NBD, until a signal says that it is enough.
 *
 * Then it listens no more, finishes the requests it has received, answers them, flushes and closes the disks; a disk that could not be flushed is an
 * error. Killed, it leaves what block.h promises, and its Unix socket, which the next one replaces.
 */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/text.h"
#include "storage/block_qcow2.h"
#include "storage/fiber.h"
#include "storage/live_command.h"
#include "storage/live_lock.h"
#include "storage/nbd_proto.h"
#include "storage/nbd_server.h"
#include "storage/qcow2_bitmaps.h"
#include "storage/rbd_name.h"
#include "tools/pagurus/disk_mirror.h"
#include "tools/pagurus/log_limit.h"
#include "tools/pagurus/options.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/ready.h"
#include "tools/pagurus/units.h"
#include "tools/pagurus/verb_disk.h"
#include "tools/pagurus/verbs.h"

#define DISKS_MAX      64u
#define SPIN_NS	       50000u /* about what it costs to be put to sleep and woken, on both sides */
#define BITMAP_CONTEXT "qemu:dirty-bitmap:" /* as QEMU calls it, and its clients ask for it */

struct serve {
	struct paths paths;
	const char *format, *name, *unix_path, *listen, *mirror, *bitmap;
	bool read_only, tls, json, overwrite;
	uint64_t connections, rate;
	bool waiting; /* for the mirror */

	char where[512]; /* the URI without the export's name */
	struct loop *loop;
	struct nbd_server *server;
	struct tls_identity *identity;
	struct log_limit limit;
	struct loop_watch signals;
	struct block *disks[DISKS_MAX];
	unsigned nr_disks;

	/* Commands about the disks, while they are in use. */
	struct line_server *commands;
	struct live_local live[DISKS_MAX];
	char *real[DISKS_MAX]; /* where they are; NULL: on another server */
	struct fiber_lock layers;
};

static void say(const struct serve *s, const char *text)
{
	if (s->json)
		disk_print_json(json_pack("{s:s,s:s}", "type", "log", "text", text));
	else
		fprintf(stderr, "pagurus: %s\n", text);
}

static void on_log(void *ctx, const char *text)
{
	struct serve *s = ctx;
	unsigned suppressed = log_limit_refill(&s->limit);
	char more[64];

	if (suppressed) {
		snprintf(more, sizeof(more), "%u more lines were left out", suppressed);
		say(s, more);
	}
	if (log_limit_pass(&s->limit))
		say(s, text);
}

static void on_signal(struct loop_watch *w, uint32_t events)
{
	struct serve *s = (struct serve *)((char *)w - offsetof(struct serve, signals));
	struct signalfd_siginfo info;

	(void)events;
	if (read(w->fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
		loop_stop(s->loop);
}

/* Before anything that may start a thread. */
static int catch_signals(struct serve *s, struct pgr_error *err)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->signals = (struct loop_watch){.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK),
					 .ready = on_signal};
	if (s->signals.fd < 0)
		return pgr_fail_errno(err, -errno, "cannot wait for signals");
	return loop_watch(s->loop, &s->signals, EPOLLIN, err);
}

/* ---- disks ---- */

/* What an export is called: --name, or the last part of the path. image: memory for the name of one on Ceph. */
static const char *export_name(const struct serve *s, const char *path, struct rbd_name *image)
{
	const char *slash = strrchr(path, '/');

	if (s->name)
		return s->name;
	if (rbd_name_is(path) && !rbd_name_parse(path, image, NULL))
		return image->image;
	return slash ? slash + 1 : path;
}

static void wait_for_mirror(void *ctx)
{
	struct serve *s = ctx;
	struct pgr_error err = PGR_ERROR_NONE;
	char text[sizeof(err.text) + 64];

	if (!mirror_wait(s->disks[0], &err))
		snprintf(text, sizeof(text), "the mirror is equal from now on");
	else
		snprintf(text, sizeof(text), "there is no mirror any more: %s", err.text);
	s->waiting = false;
	if (err.code != -ENOTCONN)
		say(s, text);
}

/* From here on finish_mirror() has to come before the disk is closed. */
static void watch_mirror(struct serve *s)
{
	s->waiting = true;
	if (fiber_start(s->loop, wait_for_mirror, s))
		s->waiting = false;
}

/* Nobody uses the disk any more: until the mirror is equal, and flushed. */
static int finish_mirror(struct serve *s, struct pgr_error *err)
{
	int ret = mirror_finish(s->disks[0], MIRROR_STAY, err);

	while (s->waiting)
		loop_turn(s->loop, true);
	return ret;
}

/* The bitmap that was asked for, into e, with the name of its context in room. */
static int show_bitmap(struct serve *s, struct nbd_export *e, char *room, size_t size,
		       struct pgr_error *err)
{
	struct dirty *dirty;
	int ret = qcow2_bitmap_find(s->disks[0], s->bitmap, &dirty, err);

	if (ret)
		return ret;
	snprintf(room, size, BITMAP_CONTEXT "%s", s->bitmap);
	e->dirty = dirty;
	e->dirty_name = room;
	return 0;
}

static int open_disk(struct serve *s, const char *path, struct pgr_error *err)
{
	char context[sizeof(BITMAP_CONTEXT) + QCOW2_BITMAP_NAME_MAX];
	const struct block_options o = {.read_only = s->read_only, .identity = s->paths.config};
	struct rbd_name image;
	struct nbd_export e = {.name = export_name(s, path, &image), .description = path};
	const struct block_info *info;
	char text[BLOCK_NOTE + 300];
	int ret = disk_open(s->loop, path, s->format, &o, &s->disks[s->nr_disks], err);

	if (ret)
		return ret;
	s->real[s->nr_disks] = realpath(path, NULL);
	s->nr_disks++;
	if (s->bitmap)
		ret = show_bitmap(s, &e, context, sizeof(context), err);
	if (!ret && s->mirror)
		ret = disk_mirror_over(s->loop, &s->disks[0], s->mirror, s->overwrite,
				       s->paths.config, s->rate, err);
	if (ret)
		return ret;
	e.disk = s->disks[s->nr_disks - 1];
	info = block_info(e.disk);
	if (info->note[0]) {
		snprintf(text, sizeof(text), "%s: %s", info->name, info->note);
		say(s, text);
	}
	return nbd_server_export(s->server, &e, err);
}

static int open_disks(struct serve *s, char **paths, unsigned nr, struct pgr_error *err)
{
	int ret = 0;

	for (unsigned i = 0; i < nr && !ret; i++)
		ret = open_disk(s, paths[i], err);
	return ret;
}

static int close_disks(struct serve *s, bool served, struct pgr_error *err)
{
	int ret = s->mirror && served ? finish_mirror(s, err) : 0;

	for (unsigned i = 0; i < s->nr_disks; i++) {
		int one = block_close(s->disks[i], ret ? NULL : err);

		ret = ret ? ret : one;
		free(s->real[i]);
	}
	return ret;
}

/* ---- commands: live_command.h ---- */

static int find_disk(const struct serve *s, const char *path)
{
	struct stat wanted, is;

	for (unsigned i = 0; i < s->nr_disks && !stat(path, &wanted); i++)
		if (s->real[i] && !stat(s->real[i], &is) && is.st_dev == wanted.st_dev &&
		    is.st_ino == wanted.st_ino)
			return (int)i;
	return -1;
}

static void show_disk(struct serve *s, unsigned i, struct line_client *c)
{
	const struct block_info *info = block_info(s->disks[i]);
	struct block_stats n;

	block_stats(s->disks[i], &n);
	live_put(c, json_pack("{ss ss ss ss si si sI sI sI sI sI sI sI}", "type", "disk", "name",
			      "nbd", "path", info->name, "format", info->driver, "pid",
			      (int)getpid(), "layers", (int)block_qcow2_layers(s->disks[i]),
			      "reads", (json_int_t)n.reads, "writes", (json_int_t)n.writes,
			      "flushes", (json_int_t)n.flushes, "discards", (json_int_t)n.discards,
			      "read_bytes", (json_int_t)n.read_bytes, "written_bytes",
			      (json_int_t)n.write_bytes, "errors", (json_int_t)n.failed));
}

static int run_command(struct serve *s, const json_t *request, struct line_client *c,
		       struct pgr_error *err)
{
	bool all = !live_text(request, "disk")[0] && !live_text(request, "guest")[0];
	int i = find_disk(s, live_text(request, "disk")), ret;
	struct live_disk d;
	json_t *result = NULL;

	if (!strcmp(live_text(request, "request"), "status") && (all || i >= 0)) {
		for (unsigned n = 0; n < s->nr_disks; n++)
			if (all || (int)n == i)
				show_disk(s, n, c);
		live_put(c, json_pack("{ss}", "type", "result"));
		return 0;
	}
	if (i < 0) {
		live_put(c, json_pack("{ss}", "type", "elsewhere"));
		return 0;
	}
	live_put(c, json_pack("{ss}", "type", "begun"));
	d = (struct live_disk){.path = s->real[i],
			       .raw = !strcmp(block_info(s->disks[i])->driver, "file"),
			       .loop = s->loop,
			       .ops = &live_local_ops,
			       .ctx = &s->live[i]};
	ret = live_lock(&s->layers, s->loop, c, err);
	if (ret)
		return ret;
	s->live[i].disk = s->disks[i];
	ret = s->mirror ? pgr_fail(err, -EBUSY, "%s: is being mirrored; end that first",
				   block_info(s->disks[i])->name)
			: live_command(request, &d, 1, c, &result, err);
	fiber_unlock(&s->layers);
	if (!ret)
		live_put(c, result);
	return ret == 1
		       ? pgr_fail(
				 err, -EINVAL,
				 "unknown request: are the command and the server of the same version?")
		       : ret;
}

static void on_command(void *ctx, struct line_client *c, char *line)
{
	json_t *request = json_loads(line, 0, NULL);
	struct pgr_error err = PGR_ERROR_NONE;

	if (run_command(ctx, request, c, &err))
		live_put_error(c, &err);
	json_decref(request);
}

/* Sockets of servers that were killed. */
static void remove_left(const char *folder)
{
	DIR *d = opendir(folder);
	const struct dirent *e;

	while (d && (e = readdir(d))) {
		int pid = 0, end = 0;

		if (sscanf(e->d_name, "serve-%d.sock%n", &pid, &end) == 1 && end > 0 &&
		    !e->d_name[end] && pid > 0 && kill(pid, 0) && errno == ESRCH)
			unlinkat(dirfd(d), e->d_name, 0);
	}
	if (d)
		closedir(d);
}

/* Where nobody may listen, a user without rights, there are no commands. */
static void start_commands(struct serve *s)
{
	char path[4096];
	struct line_server_options o = {.path = path, .line = on_command, .ctx = s};
	struct pgr_error err = PGR_ERROR_NONE;

	snprintf(path, sizeof(path), "%s/serve-%d.sock", s->paths.disks, (int)getpid());
	remove_left(s->paths.disks);
	if (paths_make_dir(s->paths.disks, &err) ||
	    line_server_start(s->loop, &o, &s->commands, &err))
		say(s, err.text);
}

/* ---- listening ---- */

static bool is_loopback(const char *host)
{
	return !strcmp(host, "localhost") || !strcmp(host, "::1") || !strncmp(host, "127.", 4);
}

static int listen_tcp(struct serve *s, int *fd, struct pgr_error *err)
{
	char host[256] = "";
	uint16_t port = NBD_PORT;
	uint64_t number;
	int ret;

	if (s->listen && s->listen[0] == ':' && s->listen[1] != ':') {
		if (units_count(s->listen + 1, &number) || number > 65535)
			return pgr_fail(err, -EINVAL, "--listen %s: not a port", s->listen);
		port = (uint16_t)number;
	} else if (s->listen && units_host_port(s->listen, host, sizeof(host), &port)) {
		return pgr_fail(
			err, -EINVAL,
			"--listen %s: write ADDRESS, ADDRESS:PORT, [ADDRESS6]:PORT or :PORT for loopback",
			s->listen);
	}
	if (!host[0])
		strcpy(host, "127.0.0.1");
	ret = nbd_listen_tcp(host, &port, fd, err);
	if (ret)
		return ret;
	if (!is_loopback(host) && !s->tls)
		say(s,
		    "without --tls whoever reaches this address can read and write the disks, and on the way everybody can read along");
	snprintf(s->where, sizeof(s->where), strchr(host, ':') ? "%s://[%s]:%u/" : "%s://%s:%u/",
		 s->tls ? "nbds" : "nbd", host, port);
	return 0;
}

static int listen_unix(struct serve *s, int *fd, struct pgr_error *err)
{
	snprintf(s->where, sizeof(s->where), "%s+unix:///", s->tls ? "nbds" : "nbd");
	return nbd_listen_unix(s->unix_path, fd, err);
}

static int start_listening(struct serve *s, struct pgr_error *err)
{
	int fd;
	int ret = s->unix_path ? listen_unix(s, &fd, err) : listen_tcp(s, &fd, err);

	return ret ? ret : nbd_server_listen(s->server, fd, err);
}

static void tell_where(const struct serve *s, char **paths, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++) {
		struct rbd_name image;
		char uri[1024];

		snprintf(uri, sizeof(uri), "%s%s%s%s", s->where, export_name(s, paths[i], &image),
			 s->unix_path ? "?socket=" : "", s->unix_path ? s->unix_path : "");
		text_plain(uri, sizeof(uri), uri, strlen(uri));
		if (s->json)
			disk_print_json(json_pack("{s:s,s:s,s:s}", "type", "ready", "disk",
						  paths[i], "uri", uri));
		else
			printf("%s\n", uri);
	}
	fflush(stdout);
	ready_tell();
}

static int serve(struct serve *s, char **paths, unsigned nr, struct pgr_error *err)
{
	struct nbd_options o = {.log = on_log, .log_ctx = s};
	int ret = catch_signals(s, err);

	/* With one processor it would be the client's time. */
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1)
		loop_spin(s->loop, SPIN_NS);
	if (!ret && s->tls)
		ret = tls_identity_load(s->paths.config, &s->identity, err);
	o.identity = s->identity;
	o.max_connections = (unsigned)s->connections;
	if (!ret)
		ret = nbd_server_create(s->loop, &o, &s->server, err);
	if (!ret)
		ret = open_disks(s, paths, nr, err);
	if (!ret)
		ret = start_listening(s, err);
	if (ret)
		return ret;
	start_commands(s);
	tell_where(s, paths, nr);
	if (s->mirror)
		watch_mirror(s);
	loop_run(s->loop);
	if (s->unix_path)
		unlink(s->unix_path);
	return 0;
}

int disk_serve(int argc, char **argv)
{
	static struct serve s = {.connections = NBD_CONNECTIONS};
	const struct option_spec options[] = {
		{"read-only", OPTION_FLAG, &s.read_only, NULL, "refuse every change", 0, 0},
		{"unix", OPTION_STRING, &s.unix_path, "PATH", "listen at a Unix socket", 0, 0},
		{"listen", OPTION_STRING, &s.listen, "ADDRESS",
		 "ADDRESS, ADDRESS:PORT or :PORT to listen at (default 127.0.0.1:10809)", 0, 0},
		{"tls", OPTION_FLAG, &s.tls, NULL, "only TLS, and only hosts that are trusted", 0,
		 0},
		PATHS_OPTION_CONFIG(&s.paths),
		{"name", OPTION_STRING, &s.name, "NAME",
		 "of the export (default: the last part of the disk's path)", 0, 0},
		{"bitmap", OPTION_STRING, &s.bitmap, "NAME",
		 "show that bitmap of the image as the context qemu:dirty-bitmap:NAME", 0, 0},
		{"connections", OPTION_COUNT, &s.connections, "N",
		 "at the same time; later ones wait (default 64)", 1, 4096},
		{"mirror", OPTION_STRING, &s.mirror, "TARGET",
		 "make TARGET the same, while the disk is in use, and end with both equal", 0, 0},
		{"overwrite", OPTION_FLAG, &s.overwrite, NULL, "what TARGET holds may go", 0, 0},
		{"rate", OPTION_RATE, &s.rate, "RATE",
		 "copy to TARGET no faster than this a second", 0, 0},
		DISK_OPTION_FORMAT(&s.format),
		DISK_OPTION_JSON(&s.json),
		{NULL, OPTION_FLAG, NULL, NULL, NULL, 0, 0},
	};
	const struct usage usage = {
		"pagurus disk serve [OPTIONS] DISK...",
		"Offer disks over NBD, to qemu, nbd-client, nbdcopy and others, until SIGTERM or Ctrl-C. Prints their addresses when clients can connect.",
		options, 1, DISKS_MAX};
	struct pgr_error err = PGR_ERROR_NONE;
	int count, status, ret, ret2;

	paths_init(&s.paths);
	if (!options_parse(&usage, argc, argv, &count, &status))
		return status;
	if (s.unix_path && s.listen)
		return options_complain(&usage, "either --unix or --listen");
	if (s.name && count > 1)
		return options_complain(&usage, "--name is for one disk, and these are %d", count);
	if (s.bitmap && count > 1)
		return options_complain(&usage, "--bitmap is for one disk, and these are %d",
					count);
	if (s.mirror && count > 1)
		return options_complain(&usage, "--mirror is for one disk, and these are %d",
					count);
	ret = loop_create(&s.loop, &err);
	if (ret)
		return disk_fail(&err, s.json);
	ret = serve(&s, argv, (unsigned)count, &err);
	line_server_stop(s.commands);
	nbd_server_free(s.server);
	ret2 = close_disks(&s, !ret, ret ? NULL : &err);
	loop_unwatch(s.loop, &s.signals);
	loop_free(s.loop);
	tls_identity_free(s.identity);
	return ret || ret2 ? disk_fail(&err, s.json) : EXIT_OK;
}
