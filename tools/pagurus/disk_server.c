// SPDX-License-Identifier: MIT
#include "tools/pagurus/disk_server.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "common/passed.h"
#include "storage/layers.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/units.h"

#define FIRST_MS 2000u
/* A server says at once whether the disk is its own; one that is stopped, or whose storage does not answer, does not. */
#define SILENT_MS 20000u
/* What a mirror that was told to end may have to say. */
#define LAST_WORD_MS 10000u
/* So often it is looked whether to stop. */
#define SLICE_MS 100

struct asking {
	const json_t *request;
	struct disk_progress progress;
	disk_server_fn *each;
	void *ctx;
	json_t *result;
	const atomic_bool *stop;
	unsigned last_word_ms;	     /* so long it is listened to after a stop */
	bool stopping;		     /* that runs */
	bool begun;		     /* this server has the disk, and does it */
	uint64_t until_ms;	     /* when to give this server up, unless it has begun */
	char silent[PATH_MAX];	     /* the last one that was given up, "" for none */
	const int *passed;	     /* a descriptor that goes with the request, or NULL */
	disk_server_fn *on_progress; /* NULL: it is shown */
};

enum { MORE, LAST, ELSEWHERE };

/* Whether to listen no longer: 0, -ETIMEDOUT without a sentence: it is silent; -ECANCELED with one. */
static int look_up(struct asking *a, struct pgr_error *err)
{
	uint64_t now = units_now_ms();

	if (a->stop && atomic_load(a->stop) && !a->stopping) {
		a->stopping = true;
		a->until_ms = now + a->last_word_ms;
	}
	if (now < a->until_ms || (a->begun && !a->stopping))
		return 0;
	return a->stopping ? layers_fail_stopped("the disk", err) : -ETIMEDOUT;
}

/* The connection, or -errno. One that has died has left its socket; at a full one it is waited for a place. */
static int connect_to(struct asking *a, const char *path, struct pgr_error *err)
{
	const struct timespec pause = {.tv_nsec = SLICE_MS * 1000000l};
	struct sockaddr_un at;
	int fd = paths_socket(path, &at, NULL)
			 ? -1
			 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int ret = fd < 0 ? -ENOENT : -EAGAIN;

	while (ret == -EAGAIN) {
		ret = connect(fd, (struct sockaddr *)&at, sizeof(at)) ? -errno : 0;
		if (ret != -EAGAIN)
			break;
		ret = look_up(a, err);
		if (ret)
			break;
		nanosleep(&pause, NULL);
		ret = -EAGAIN;
	}
	if (!ret && fcntl(fd, F_SETFL, 0))
		ret = -errno;
	if (ret && fd >= 0)
		close(fd);
	return ret ? ret : fd;
}

/* One of these, or -errno with a sentence. */
static int take_answer(struct asking *a, json_t *answer, struct pgr_error *err)
{
	const char *type = message_text(answer, "type");
	json_int_t code = json_integer_value(json_object_get(answer, "code"));

	if (!strcmp(type, "elsewhere"))
		return ELSEWHERE;
	a->begun = true;
	if (!strcmp(type, "begun"))
		return MORE;
	if (!strcmp(type, "error"))
		return pgr_fail(err, code < 0 && code > -4096 ? (int)code : -EPROTO, "%s",
				message_text(answer, "text"));
	if (!strcmp(type, "result")) {
		json_decref(a->result);
		a->result = json_incref(answer);
		return LAST;
	}
	if (!strcmp(type, "progress") && a->on_progress)
		a->on_progress(a->ctx, answer);
	else if (!strcmp(type, "progress"))
		disk_progress_show(&a->progress, message_number(answer, "done"),
				   message_number(answer, "size"));
	else if (a->each)
		a->each(a->ctx, answer);
	return MORE;
}

/* A descriptor comes with a byte: blank, so that the line behind it is the same. */
static int pass(int fd, int passed)
{
	char blank = ' ';
	struct iovec iov = {.iov_base = &blank, .iov_len = 1};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};
	struct passed room;

	passed_attach(&m, &room, passed);
	return sendmsg(fd, &m, MSG_NOSIGNAL) == 1 ? 0 : -errno;
}

/* The next answer, NULL with 0 when there may be one later; -ENODATA: the connection is over. */
static int next_answer(struct asking *a, struct line_reader *reader, int fd, json_t **answer,
		       struct pgr_error *err)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	bool bad = false;
	int ret;

	*answer = line_next(reader, &bad);
	if (*answer)
		return 0;
	if (bad)
		return pgr_fail(err, -EPROTO, "the server of the disk said nonsense");
	ret = look_up(a, err);
	if (ret || poll(&p, 1, SLICE_MS) <= 0)
		return ret;
	ret = line_fill(reader, fd);
	return ret == -EINTR ? 0 : ret;
}

static int listen_to(struct asking *a, int fd, struct pgr_error *err)
{
	struct line_reader reader = {.data = NULL};
	json_t *answer = NULL;
	int lost = a->passed ? pass(fd, *a->passed) : 0, ret;

	if (!lost)
		lost = line_write(fd, a->request);
	ret = lost;
	while (!ret) {
		ret = lost = next_answer(a, &reader, fd, &answer, err);
		if (answer)
			ret = take_answer(a, answer, err);
		json_decref(answer);
	}
	/* Its own connection, not one of which the server says that it ended. */
	if (lost == -ENODATA || lost == -EPIPE) {
		if (a->begun)
			pgr_fail(err, ret, "the server of the disk ended; say it again");
		else /* Of whichever disk: had it been this one, the disk is nobody's now. */
			ret = ELSEWHERE;
	}
	line_free(&reader);
	return ret;
}

/* Somebody who can look at it should know. */
static void tell_silent(struct asking *a, const char *path)
{
	json_t *silent = json_pack("{ss so}", "type", "silent", "server", message_string(path));

	snprintf(a->silent, sizeof(a->silent), "%s", path);
	if (silent && a->each)
		a->each(a->ctx, silent);
	json_decref(silent);
}

/* As listen_to(), of the server behind this socket. */
static int ask_one(struct asking *a, const char *path, struct pgr_error *err)
{
	int fd, ret;

	a->begun = false;
	if (!a->stopping)
		a->until_ms = units_now_ms() + SILENT_MS;
	fd = connect_to(a, path, err);
	if (fd >= 0) {
		ret = listen_to(a, fd, err);
		close(fd);
	} else {
		ret = fd == -ETIMEDOUT || fd == -ECANCELED ? fd : ELSEWHERE;
	}
	if (ret != -ETIMEDOUT || a->begun)
		return ret;
	tell_silent(a, path);
	return ELSEWHERE;
}

/* Each server, until one has given the last answer; with `all` every one. What the last one came to. */
static int go_round(struct asking *a, const char *folder, bool all, struct pgr_error *err)
{
	DIR *d = opendir(folder);
	struct dirent *e;
	int ret = ELSEWHERE;

	while (d && (all || ret == ELSEWHERE) && (e = readdir(d))) {
		size_t length = strlen(e->d_name);
		char path[PATH_MAX];

		if (length < 5 || strcmp(e->d_name + length - 5, ".sock") != 0 ||
		    snprintf(path, sizeof(path), "%s/%s", folder, e->d_name) >= (int)sizeof(path))
			continue;
		ret = ask_one(a, path, err);
	}
	if (d)
		closedir(d);
	return ret;
}

void disk_server_warn(const char *server)
{
	fprintf(stderr,
		"pagurus: the server of disks behind %s does not answer, so it is not known what it has: is its process stopped, or does its storage not answer?\n",
		server);
}

int disk_server_ask(const char *folder, json_t *request, bool json, disk_server_fn *each, void *ctx,
		    json_t **result, struct pgr_error *err)
{
	struct asking a = {.request = request,
			   .progress = {.json = json, .next_ms = units_now_ms() + FIRST_MS},
			   .each = each,
			   .ctx = ctx,
			   .stop = interrupt_catch()};
	int ret = go_round(&a, folder, false, err);

	disk_progress_end(&a.progress);
	json_decref(request);
	*result = a.result;
	if (ret == ELSEWHERE && a.silent[0])
		disk_server_warn(a.silent);
	return ret == ELSEWHERE ? 0 : ret;
}

void disk_servers_each(const char *folder, json_t *request, disk_server_fn *each, void *ctx)
{
	struct asking a = {.request = request, .each = each, .ctx = ctx};
	struct pgr_error err = PGR_ERROR_NONE;

	go_round(&a, folder, true, &err);
	json_decref(a.result);
	json_decref(request);
}

int disk_server_mirror(const char *folder, const char *path, int socket, const atomic_bool *stop,
		       disk_server_fn *progress, void *ctx, struct pgr_error *err)
{
	json_t *request = json_pack("{ss so}", "request", "mirror", "disk", message_string(path));
	struct asking a = {.request = request,
			   .ctx = ctx,
			   .passed = &socket,
			   .on_progress = progress,
			   .stop = stop,
			   .last_word_ms = LAST_WORD_MS};
	int ret = go_round(&a, folder, false, err);

	json_decref(a.result);
	json_decref(request);
	if (ret == ELSEWHERE && a.silent[0])
		return pgr_fail(
			err, -ETIMEDOUT,
			"%s: the server of disks behind %s does not answer: is its process stopped, or does its storage not answer?",
			path, a.silent);
	if (ret == ELSEWHERE)
		return pgr_fail(err, -ENOENT, "%s: pagurus-blk does not serve it to a guest", path);
	return ret == LAST ? 0 : ret;
}
