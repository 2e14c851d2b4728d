/* SPDX-License-Identifier: MIT */
#include "tools/pagurus/client.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tools/pagurus/message.h"
#include "tools/pagurus/paths.h"

int client_open(const char *control, int *fd, struct pgr_error *err)
{
	struct sockaddr_un a;
	int rc = paths_socket(control, &a, err);

	if (rc)
		return rc;
	*fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (*fd < 0)
		return pgr_fail_errno(err, -errno, "no socket");
	if (!connect(*fd, (struct sockaddr *)&a, sizeof(a)))
		return 0;
	rc = -errno;
	close(*fd);
	*fd = -1;
	if (rc == -ENOENT || rc == -ECONNREFUSED)
		return pgr_fail(
			err, rc,
			"no daemon answers at %s: start it with `systemctl start pagurus` or `pagurus daemon`",
			control);
	return pgr_fail_errno(err, rc, "cannot connect to the daemon at %s", control);
}

/* Out of what has been read already; NULL: it is not there yet. */
static json_t *find_answer(struct line_reader *reader, const char *type, bool *bad)
{
	json_t *message;

	while ((message = line_next(reader, bad))) {
		const char *is = message_text(message, "type");

		if (!type || !strcmp(is, type) || !strcmp(is, "error"))
			return message;
		json_decref(message);
	}
	return NULL;
}

int client_ask_for(const char *control, json_t *request, const char *type, json_t **answer,
		   struct pgr_error *err)
{
	struct line_reader reader = {.data = NULL};
	bool bad = false;
	int fd, rc;

	*answer = NULL;
	rc = client_open(control, &fd, err);
	if (rc) {
		json_decref(request);
		return rc;
	}
	rc = line_write(fd, request);
	while (!rc && !*answer && !bad) {
		rc = line_fill(&reader, fd);
		if (!rc)
			*answer = find_answer(&reader, type, &bad);
		if (rc == -EINTR)
			rc = 0;
	}
	json_decref(request);
	line_free(&reader);
	close(fd);
	if (rc || bad)
		return pgr_fail(err, rc ? rc : -EPROTO, "the daemon at %s did not answer", control);
	if (strcmp(message_text(*answer, "type"), "error"))
		return 0;
	rc = pgr_fail(err, -EINVAL, "%s", message_text(*answer, "text"));
	json_decref(*answer);
	*answer = NULL;
	return rc;
}

int client_ask(const char *control, json_t *request, json_t **answer, struct pgr_error *err)
{
	return client_ask_for(control, request, NULL, answer, err);
}
