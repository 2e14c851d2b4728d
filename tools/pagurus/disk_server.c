// SPDX-License-Identifier: MIT
#include "tools/pagurus/disk_server.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/passed.h"
#include "storage/layers.h"
#include "tools/pagurus/disk_progress.h"
#include "tools/pagurus/interrupt.h"
#include "tools/pagurus/message.h"
#include "tools/pagurus/paths.h"
#include "tools/pagurus/units.h"

#define FIRST_MS 2000u

struct asking {
	const json_t *request;
	struct disk_progress progress;
	disk_server_fn *each;
	void *ctx;
	json_t *result;
	const atomic_bool *stop;
	bool begun;		     /* this server has the disk, and does it */
	const int *passed;	     /* a descriptor that goes with the request, or NULL */
	disk_server_fn *on_progress; /* NULL: it is shown */
};

/* One that has died has left its socket. */
static int connect_to(const char *folder, const char *name)
{
	struct sockaddr_un at;
	char path[sizeof(at.sun_path) + 1];
	int fd;

	if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path) ||
	    paths_socket(path, &at, NULL))
		return -1;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof(at))) {
		close(fd);
		return -1;
	}
	return fd;
}

enum { MORE, LAST, ELSEWHERE };

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
	bool bad = false;
	int ret;

	*answer = line_next(reader, &bad);
	if (*answer)
		return 0;
	if (bad)
		return pgr_fail(err, -EPROTO, "the server of the disk said nonsense");
	if (a->stop && atomic_load(a->stop))
		return layers_fail_stopped("the disk", err);
	ret = line_fill(reader, fd);
	return ret == -EINTR ? 0 : ret;
}

static int listen_to(struct asking *a, int fd, struct pgr_error *err)
{
	struct line_reader reader = {.data = NULL};
	json_t *answer = NULL;
	int lost = a->passed ? pass(fd, *a->passed) : 0, ret;

	a->begun = false;
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

/* Each server, until one has given the last answer; with `all` every one. What the last one came to. */
static int go_round(struct asking *a, const char *folder, bool all, struct pgr_error *err)
{
	DIR *d = opendir(folder);
	struct dirent *e;
	int ret = ELSEWHERE;

	while (d && (all || ret == ELSEWHERE) && (e = readdir(d))) {
		size_t length = strlen(e->d_name);
		int fd;

		if (length < 5 || strcmp(e->d_name + length - 5, ".sock") != 0)
			continue;
		fd = connect_to(folder, e->d_name);
		if (fd < 0)
			continue;
		ret = listen_to(a, fd, err);
		close(fd);
	}
	if (d)
		closedir(d);
	return ret;
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

int disk_server_mirror(const char *folder, const char *path, int socket, disk_server_fn *progress,
		       void *ctx, struct pgr_error *err)
{
	json_t *request = json_pack("{ss so}", "request", "mirror", "disk", message_string(path));
	struct asking a = {
		.request = request, .ctx = ctx, .passed = &socket, .on_progress = progress};
	int ret = go_round(&a, folder, false, err);

	json_decref(a.result);
	json_decref(request);
	if (ret == ELSEWHERE)
		return pgr_fail(err, -ENOENT, "%s: pagurus-blk does not serve it to a guest", path);
	return ret == LAST ? 0 : ret;
}
